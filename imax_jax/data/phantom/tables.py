"""MIMIC-CXR-JPG's tables and CXR-Cardiomegaly's, CheXmask's and PE-Severity's."""

from __future__ import annotations

import csv
import gzip
import io
import math
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from imax_jax.data.phantom.films import Shot
from imax_jax.data.phantom.roster import Exposure
from imax_jax.data.phantom.roster import Visit
from imax_jax.schema import FINDINGS

Shots = Mapping[str, Shot]

_CHEXPERT = (
  "Atelectasis", "Cardiomegaly", "Consolidation", "Edema",
  "Enlarged Cardiomediastinum", "Fracture", "Lung Lesion", "Lung Opacity",
  "No Finding", "Pleural Effusion", "Pleural Other", "Pneumonia", "Pneumothorax",
  "Support Devices",
)  # fmt: skip
_METADATA = (
  "dicom_id", "subject_id", "study_id", "PerformedProcedureStepDescription",
  "ViewPosition", "Rows", "Columns", "StudyDate", "StudyTime",
  "ProcedureCodeSequence_CodeMeaning", "ViewCodeSequence_CodeMeaning",
  "PatientOrientationCodeSequence_CodeMeaning",
)  # fmt: skip
VIEW_CODES = {
  "PA": "postero-anterior", "AP": "antero-posterior", "LATERAL": "lateral",
  "LL": "left lateral", "": "",
}  # fmt: skip
ERROR_RATE = 0.03  # of CTR and of CPAR, apart from each other
LOW_DICE_RATE = 0.03
EMPTY_MASK_RATE = 0.01


def write_csv(
  path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]
) -> int:
  """Writes a table, gzipped where the name says so; returns its number of rows.

  The same rows give the same bytes: gzip's header is kept free of name and time.
  """
  text = io.StringIO(newline="")
  writer = csv.writer(text, lineterminator="\n")
  writer.writerow(header)
  written = list(rows)
  writer.writerows(written)
  data = text.getvalue().encode()
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
  return len(written)


def chosen(visits: Sequence[Visit], fraction: float, seed: int, code: int) -> set[str]:
  """The studies with a frontal film that a source covers: exactly that fraction."""
  with_frontal = [visit.study_id for visit in visits if visit.frontals]
  order = np.random.default_rng((seed, code)).permutation(len(with_frontal))
  return {with_frontal[index] for index in order[: round(fraction * len(order))]}


def study_ctr(visit: Visit, shots: Shots) -> float:
  """The CTR that a study's reader sees: its first film with a heart on it."""
  values = [shots[exposure.image_id].ctr for exposure in visit.exposures]
  return next((value for value in values if not math.isnan(value)), visit.study.ctr)


def write_mimic(root: Path, visits: Sequence[Visit], shots: Shots) -> None:
  """metadata, split, chexpert and IMAGE_FILENAMES of MIMIC-CXR-JPG 2.1.0."""
  films = [(visit, exposure) for visit in visits for exposure in visit.exposures]
  write_csv(
    root / "mimic-cxr-2.0.0-metadata.csv.gz",
    _METADATA,
    [_metadata_row(visit, exposure, shots) for visit, exposure in films],
  )
  write_csv(
    root / "mimic-cxr-2.0.0-split.csv.gz",
    ("dicom_id", "study_id", "subject_id", "split"),
    [(e.image_id, v.study_id, v.subject_id, v.split) for v, e in films],
  )
  write_csv(
    root / "mimic-cxr-2.0.0-chexpert.csv.gz",
    ("subject_id", "study_id", *_CHEXPERT),
    [_chexpert_row(visit, shots) for visit in visits],
  )
  names = "".join(f"{visit.path(exposure)}\n" for visit, exposure in films)
  (root / "IMAGE_FILENAMES").write_text(names, encoding="utf-8")


def _metadata_row(visit: Visit, exposure: Exposure, shots: Shots) -> tuple[object, ...]:
  views = {other.case.view for other in visit.exposures}
  if "LATERAL" in views:
    procedure = "CHEST (PA AND LAT)"
  else:
    procedure = "CHEST (PORTABLE AP)" if "AP" in views else "CHEST (SINGLE VIEW)"
  size = shots[exposure.image_id].size
  return (
    exposure.image_id,
    visit.subject_id,
    visit.study_id,
    procedure if exposure.view_position else "",
    exposure.view_position,
    size,
    size,
    visit.date,
    visit.time,
    procedure,
    VIEW_CODES[exposure.view_position],
    "Erect" if exposure.view_position in ("PA", "LATERAL", "LL") else "",
  )


def _chexpert_row(visit: Visit, shots: Shots) -> tuple[object, ...]:
  """What a labeller makes of the report: 1.0 present, 0.0 denied, blank unmentioned."""
  case = visit.exposures[0].case
  present = {name for name in FINDINGS if case.label(name)}
  if study_ctr(visit, shots) > 0.5:
    present.add("Cardiomegaly")
  if "Nodule" in present:
    present.add("Lung Lesion")
  if not present:
    present.add("No Finding")
  if case.devices:
    present.add("Support Devices")
  denied = {"Pneumothorax", "Pleural Effusion"} - present
  return (
    visit.subject_id,
    visit.study_id,
    *("1.0" if n in present else "0.0" if n in denied else "" for n in _CHEXPERT),
  )


def write_cardiomegaly(
  root: Path, visits: Sequence[Visit], shots: Shots, *, fraction: float, seed: int
) -> int:
  """CTRs.csv and CPARs.csv of PA films; at times an error mark instead of a value."""
  rng = np.random.default_rng((seed, 21))
  ratios: dict[str, list[tuple[str, str]]] = {"CTR": [], "CPAR": []}
  for visit in visits:
    for exposure in visit.exposures:
      if exposure.view_position != "PA" or rng.random() >= fraction:
        continue
      shot = shots[exposure.image_id]
      for column, value in (("CTR", shot.ctr), ("CPAR", shot.cpar)):
        mark = float(rng.choice((2, 3, 4))) if rng.random() < ERROR_RATE else value
        ratios[column].append((exposure.image_id, repr(mark)))
  for column, rows in ratios.items():
    write_csv(root / f"{column}s.csv", ("dicom_file", column), rows)
  return len(ratios["CTR"])


def write_chexmask(
  root: Path, visits: Sequence[Visit], shots: Shots, *, fraction: float, seed: int
) -> int:
  """OriginalResolution/MIMIC-CXR-JPG.csv: AP and PA films, some poor, some empty."""
  rng = np.random.default_rng((seed, 22))
  rows = []
  for visit in visits:
    for exposure in visit.frontals:
      if rng.random() >= fraction:
        continue
      shot = shots[exposure.image_id]
      poor = rng.random() < LOW_DICE_RATE
      mean = float(rng.uniform(0.45, 0.69) if poor else rng.uniform(0.74, 0.96))
      best = min(mean + float(rng.uniform(0.01, 0.12)), 0.995)
      heart = "" if rng.random() < EMPTY_MASK_RATE else shot.runs["heart"]
      rows.append(
        (
          exposure.image_id, f"{mean:.10f}", f"{best:.10f}", shot.landmarks,
          shot.runs["left lung"], shot.runs["right lung"], heart, shot.size, shot.size,
        )
      )  # fmt: skip
  header = (
    "dicom_id", "Dice RCA (Mean)", "Dice RCA (Max)", "Landmarks", "Left Lung",
    "Right Lung", "Heart", "Height", "Width",
  )  # fmt: skip
  return write_csv(root / "OriginalResolution" / "MIMIC-CXR-JPG.csv", header, rows)


def write_pe_severity(
  root: Path, visits: Sequence[Visit], *, fraction: float, seed: int
) -> int:
  """The three tables of edema grades. What the more careful table says is true.

  The regex errs on some of the studies that experts or the consensus graded too (a
  third and a half of them; 50 of 485 and 80 of 141 in the release).
  """
  rng = np.random.default_rng((seed, 23))
  picked = chosen(visits, fraction, seed, 24)
  graded = [visit for visit in visits if visit.study_id in picked]
  order = rng.permutation(len(graded)).tolist()
  num_experts = min(len(graded), max(2, round(0.07 * len(graded))))
  experts = set(order[:num_experts])
  consensus = set(order[num_experts : num_experts + max(1, round(0.02 * len(graded)))])
  wrong = set(sorted(experts)[::3]) | set(sorted(consensus)[::2])
  tables: dict[str, list[tuple[object, ...]]] = {"regex": [], "expert": [], "image": []}
  for index, visit in enumerate(graded):
    grade, ids = visit.study.edema_grade, (visit.subject_id, visit.study_id)
    miss = (grade + 1) % 4 if index in wrong else grade
    tables["regex"].append((*ids, miss))
    if index in experts:
      tables["expert"].append((*ids, grade))
    if index in consensus:
      tables["image"] += [(*ids, film.image_id, grade) for film in visit.frontals]
  key, end = ("subject_id", "study_id"), ("edema_severity",)
  write_csv(root / "regex_report_edema_severity.csv", (*key, *end), tables["regex"])
  write_csv(root / "expert_report_edema_severity.csv", (*key, *end), tables["expert"])
  image = (*key, "dicom_id", *end)
  write_csv(root / "consensus_image_edema_severity.csv", image, tables["image"])
  views = [
    (v.subject_id, v.study_id, e.image_id, "frontal" if e.frontal else "lateral")
    for v in visits
    if v.study.patient.heart_failure
    for e in v.exposures
  ]
  write_csv(
    root / "auxiliary_metadata" / "mimic_cxr_metadata_available_CHF_view.csv",
    (*key, "dicom_id", "view"),
    views,
  )
  return len(graded)
