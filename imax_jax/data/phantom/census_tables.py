"""The census's tables of MIMIC-CXR-JPG, CXR-Cardiomegaly and PE-Severity.

Labels, grades and ratios are drawn, each table for itself, with the releases' numbers
and prevalences: nothing here was seen on a film, and no two tables agree on a study.
"""

from __future__ import annotations

import gzip
import itertools
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from imax_jax.data.phantom.census_people import LATERAL
from imax_jax.data.phantom.census_people import LL
from imax_jax.data.phantom.census_people import NUM_STUDIES
from imax_jax.data.phantom.census_people import PA
from imax_jax.data.phantom.census_people import VIEWS
from imax_jax.data.phantom.census_people import People
from imax_jax.data.phantom.census_people import apportion
from imax_jax.data.phantom.census_people import scaled
from imax_jax.data.phantom.tables import VIEW_CODES

_LINES = 4096  # written at once
METADATA_HEADER = (
  "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,"
  "Columns,StudyDate,StudyTime,ProcedureCodeSequence_CodeMeaning,"
  "ViewCodeSequence_CodeMeaning,PatientOrientationCodeSequence_CodeMeaning"
)
# One has a comma, hence quotes.
_PROCEDURES = (
  "CHEST (PA AND LAT)", "CHEST (PORTABLE AP)", "CHEST (SINGLE VIEW)", "CHEST (PRE-OP AP)",
  '"CHEST (PA, LAT AND OBLIQUES)"', "",
)  # fmt: skip
_PROCEDURE_SHARES = (0.40, 0.40, 0.10, 0.03, 0.01, 0.06)
SPLITS = (("train", "validate", "test"), (368_960, 2_991, 5_159))
# Of each label of the two labellers: present, denied, uncertain; else not mentioned.
CHEXPERT: dict[str, tuple[float, float, float]] = {
  "Atelectasis": (0.20, 0.01, 0.04), "Cardiomegaly": (0.20, 0.07, 0.03),
  "Consolidation": (0.05, 0.03, 0.02), "Edema": (0.12, 0.11, 0.06),
  "Enlarged Cardiomediastinum": (0.03, 0.02, 0.04), "Fracture": (0.02, 0.01, 0.01),
  "Lung Lesion": (0.03, 0.01, 0.01), "Lung Opacity": (0.23, 0.01, 0.02),
  "No Finding": (0.33, 0.0, 0.0), "Pleural Effusion": (0.24, 0.12, 0.03),
  "Pleural Other": (0.01, 0.01, 0.01), "Pneumonia": (0.07, 0.11, 0.08),
  "Pneumothorax": (0.05, 0.19, 0.01), "Support Devices": (0.29, 0.01, 0.01),
}  # fmt: skip
STUDIES_WITHOUT_LABELS = 8
_LABEL_CELLS = np.array(["1.0", "0.0", "-1.0", ""])
# Where the second labeller sees another thing than the first.
_LABELLERS_DIFFER = 0.03
ERROR_RATE = 0.03  # of CTR and of CPAR, apart from each other
# name: (studies, (grades 0 to 3)); the regex differs on so many of the first two.
GRADES: dict[str, tuple[int, ...]] = {
  "regex": (2801, 1497, 1736, 676),
  "expert": (216, 98, 105, 66),
  "consensus": (61, 44, 20, 16),
}
DISAGREE = {"expert": 50, "consensus": 80}
CHF_IMAGES = 17_900  # rows of the auxiliary table


def write_lines(path: Path, header: str | None, lines: Iterable[str]) -> int:
  """Streams a text file, gzipped where the name says so; returns its number of lines.

  The same lines give the same bytes: gzip's header is kept free of name and time.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open("wb") as file:
    if path.suffix != ".gz":
      return _stream(file, header, lines)
    with gzip.GzipFile("", "wb", compresslevel=6, fileobj=file, mtime=0) as packed:
      return _stream(packed, header, lines)


def _stream(
  file: BinaryIO | gzip.GzipFile, header: str | None, lines: Iterable[str]
) -> int:
  number = 0
  if header is not None:
    file.write(f"{header}\n".encode())
  lines = iter(lines)
  while batch := list(itertools.islice(lines, _LINES)):
    number += len(batch)
    file.write(("\n".join(batch) + "\n").encode())
  return number


def write_mimic(root: Path, people: People) -> None:
  """metadata, split, chexpert, negbio and IMAGE_FILENAMES of MIMIC-CXR-JPG 2.1.0."""
  write_lines(
    root / "mimic-cxr-2.0.0-metadata.csv.gz", METADATA_HEADER, _metadata(people)
  )
  split = people.split(*SPLITS, code=11)
  subjects, patients = people.subject_of_study, people.patient.tolist()
  write_lines(
    root / "mimic-cxr-2.0.0-split.csv.gz",
    "dicom_id,study_id,subject_id,split",
    (
      f"{image},{people.study_ids[study]},{subjects[study]},{split[patients[study]]}"
      for image, study in zip(people.image_ids, people.study.tolist(), strict=True)
    ),
  )
  _write_labels(root, people)
  write_lines(root / "IMAGE_FILENAMES", None, people.paths)


def _metadata(people: People) -> Iterator[str]:
  rng = people.rng(12)
  num_studies = len(people.study_ids)
  day = rng.integers((2110, 1, 1), (2205, 13, 29), size=(num_studies, 3))
  date = (day @ (10_000, 100, 1)).tolist()
  clock = rng.integers((24, 60, 60_000), size=(num_studies, 3)).tolist()
  time = [h * 10_000 + m * 100 + s / 1000 for h, m, s in clock]
  procedure = rng.choice(len(_PROCEDURES), num_studies, p=_PROCEDURE_SHARES).tolist()
  subjects = people.subject_of_study
  upright = (PA, LATERAL, LL)
  for image, study, view, size in zip(
    people.image_ids, people.study.tolist(), people.view.tolist(),
    people.size.tolist(), strict=True,
  ):  # fmt: skip
    rows, columns = people.sizes[size]
    name = _PROCEDURES[procedure[study]]
    yield (
      f"{image},{subjects[study]},{people.study_ids[study]},{name},{VIEWS[view]},"
      f"{rows},{columns},{date[study]},{round(time[study], 3)!r},{name},"
      f"{VIEW_CODES.get(VIEWS[view], '')},{'Erect' if view in upright else ''}"
    )


def _write_labels(root: Path, people: People) -> None:
  """chexpert and negbio: a row for all studies but a few, which are the same in both."""
  rng = people.rng(13)
  number = len(people.study_ids)
  edges = np.cumsum(list(CHEXPERT.values()), axis=1)
  lacking = rng.choice(number, _lacking(people.scale), replace=False)
  labelled = np.delete(np.arange(number), lacking)
  header = ",".join(("subject_id", "study_id", *CHEXPERT))
  cells = _cells(rng, number, edges)
  for name in ("chexpert", "negbio"):
    ids = [
      f"{people.subject_of_study[study]},{people.study_ids[study]}"
      for study in labelled.tolist()
    ]
    rows = map(",".join, _LABEL_CELLS[cells[labelled]].tolist())
    write_lines(
      root / f"mimic-cxr-2.0.0-{name}.csv.gz",
      header,
      map(",".join, zip(ids, rows, strict=True)),
    )
    other = rng.random(cells.shape) < _LABELLERS_DIFFER
    cells = np.where(other, _cells(rng, number, edges), cells)


def _lacking(scale: float) -> int:
  whole = round(NUM_STUDIES * scale)
  return whole - round((NUM_STUDIES - STUDIES_WITHOUT_LABELS) * scale)


def _cells(rng: np.random.Generator, number: int, edges: np.ndarray) -> np.ndarray:
  """int8[number, labels] into `_LABEL_CELLS`."""
  draw = rng.random((number, len(edges)), np.float32)
  return (draw[..., None] >= edges).sum(axis=2, dtype=np.int8)


def write_cardiomegaly(root: Path, people: People) -> int:
  """CTRs.csv and CPARs.csv: every PA image, at times an error mark for a value."""
  rng = people.rng(21)
  images = np.flatnonzero(people.view == PA)
  ids = [people.image_ids[image] for image in images.tolist()]
  for column, middle, spread in (("CTR", 0.48, 0.065), ("CPAR", 0.36, 0.08)):
    value = np.clip(rng.normal(middle, spread, images.size), 0.2, 0.95)
    mark = rng.integers(2, 5, images.size)
    value = np.where(rng.random(images.size) < ERROR_RATE, mark, value)
    rows = (f"{image},{v!r}" for image, v in zip(ids, value.tolist(), strict=True))
    write_lines(root / f"{column}s.csv", f"dicom_file,{column}", rows)
  return images.size


def _grades(
  rng: np.random.Generator, counts: Sequence[int], scale: float
) -> np.ndarray:
  """The grades of one table in any order."""
  number = scaled(sum(counts), scale)
  return rng.permutation(np.repeat(np.arange(4), apportion(number, counts)))


def write_pe_severity(root: Path, people: People) -> int:
  """The three tables of edema grades and the auxiliary one; returns the studies."""
  rng = people.rng(23)
  given = {name: _grades(rng, counts, people.scale) for name, counts in GRADES.items()}
  studies, groups = _graded(rng, people, {name: len(g) for name, g in given.items()})
  regex = np.full(studies.size, -1)
  for name, places in groups.items():
    regex[places] = given[name]
    wrong = rng.permutation(places)[: scaled(DISAGREE[name], people.scale)]
    regex[wrong] = (regex[wrong] + rng.integers(1, 4, wrong.size)) % 4
  # The others bring the regex's numbers of each grade to the release's.
  left = np.bincount(given["regex"], minlength=4)
  left = np.maximum(left - np.bincount(regex[regex >= 0], minlength=4), 0)
  rest = np.repeat(np.arange(4), apportion((regex < 0).sum(), left))
  regex[regex < 0] = rng.permutation(rest)
  key = "subject_id,study_id"
  ids = [
    f"{people.subject_of_study[study]},{people.study_ids[study]}"
    for study in studies.tolist()
  ]
  rows = {"regex": [f"{one},{g}" for one, g in zip(ids, regex.tolist(), strict=True)]}
  for name, places in groups.items():
    rows[name] = []
    for place, grade in zip(places.tolist(), given[name].tolist(), strict=True):
      image = people.image_ids[people.first_frontal[studies[place]]]
      middle = f",{image}" if name == "consensus" else ""
      rows[name].append(f"{ids[place]}{middle},{grade}")
  for name in ("regex", "expert"):
    path = root / f"{name}_report_edema_severity.csv"
    write_lines(path, f"{key},edema_severity", rows[name])
  path = root / "consensus_image_edema_severity.csv"
  write_lines(path, f"{key},dicom_id,edema_severity", rows["consensus"])
  _write_auxiliary(root / "auxiliary_metadata", people, studies)
  return studies.size


def _graded(
  rng: np.random.Generator, people: People, numbers: dict[str, int]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
  """The regex's studies in their order, and which of them experts and consensus have:
  patients of the one are none of the other's.
  """
  with_frontal = np.flatnonzero(people.first_frontal >= 0)
  # Patient after patient, so that a patient's studies are graded together.
  turn = rng.permutation(len(people.subject_ids))
  order = np.argsort(turn[people.patient[with_frontal]], kind="stable")
  picked = with_frontal[order][: numbers["regex"]]
  whose = people.patient[picked]
  places = np.argsort(np.argsort(picked))
  experts = np.arange(picked.size)[: numbers["expert"]]
  others = np.flatnonzero(whose != whose[experts[-1]])
  others = others[others >= numbers["expert"]][: numbers["consensus"]]
  groups = {"expert": np.sort(places[experts]), "consensus": np.sort(places[others])}
  return np.sort(picked), groups


def _write_auxiliary(root: Path, people: People, studies: np.ndarray) -> None:
  """Images of the graded patients, then of others, up to the release's number."""
  graded = np.isin(people.patient[people.study], people.patient[studies])
  order = np.argsort(~graded, kind="stable")
  images = np.sort(order[: scaled(CHF_IMAGES, people.scale)])
  frontal = set(people.frontal.tolist())
  write_lines(
    root / "mimic_cxr_metadata_available_CHF_view.csv",
    "subject_id,study_id,dicom_id,view",
    (
      f"{people.subject_of_study[study]},{people.study_ids[study]},"
      f"{people.image_ids[image]},{'frontal' if image in frontal else 'lateral'}"
      for image, study in zip(images.tolist(), people.study[images].tolist(),
                              strict=True)
    ),
  )  # fmt: skip
