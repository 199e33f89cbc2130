"""The phantom hospital: drawn radiographs in the file formats of seven releases.

    write_hospital(root, seed=0, num_patients=200, image_px=128, workers=2)

writes below `root`, in PhysioNet's layout, what `imax_jax.data.sources` reads:

    mimic-cxr-jpg/2.1.0/                      films, metadata, split, chexpert
    mimic-cxr/2.1.0/mimic-cxr-reports.zip     reports
    cxr-cardiomegaly/1.0.0/                   CTR and CPAR of PA films
    mimic-cxr-pe-severity/1.0.1/              grades of edema
    cxr-lt-iccv-workshop-cvamd/2.0.0/         findings
    chexmask-cxr-segmentation-data/1.0.0/     masks of heart and lungs
    mimic-ext-mimic-cxr-vqa/1.0.0/            questions
    phantom_truth.jsonl                       what is exactly true of each film

with their gaps, error marks and disagreements. Nobody was X-rayed for it.
"""

from __future__ import annotations

import collections
import json
import os
import shutil
import uuid
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path

from imax_jax.data.phantom import films
from imax_jax.data.phantom import inquiry
from imax_jax.data.phantom import labels
from imax_jax.data.phantom import reports
from imax_jax.data.phantom import roster
from imax_jax.data.phantom import tables

TRUTH = "phantom_truth.jsonl"
# What share each source covers, near the releases' own.
COVERAGE: dict[str, float] = {
  "calculation": 1.0,  # of PA films
  "report": 0.85,  # of studies: findings and impression both
  "multi_class": 0.35,  # of studies
  "multi_label": 1.0,  # of studies
  "chexmask": 1.0,  # of AP and PA films
  "vqa": 0.60,  # of studies, one film each
}


def write_hospital(
  root: str | Path,
  *,
  seed: int,
  num_patients: int,
  image_px: int,
  workers: int = 1,
  coverage: Mapping[str, float] | None = None,
  progress: Callable[[int, int], None] | None = None,
) -> dict[str, int]:
  """Draws a hospital and writes it; the same arguments give the same bytes.

  All is written to a folder beside `root`, readable by its owner only, that takes
  `root`'s name once it is complete: a killed run leaves no hospital, not half of one.

  Args:
    root: a path that is not there yet, or an empty folder.
    image_px: height and width of the films.
    workers: processes to render with; the result does not depend on it.
    coverage: departures from `COVERAGE`, fractions in [0, 1].
    progress: called with (films done, films in all) after each film.

  Returns:
    Counts: patients, studies, images, frontal_images, and what each source holds.

  Raises:
    ValueError: a bad argument, or `root` is not empty.
  """
  root = Path(root)
  shares = _shares(coverage)
  if root.exists() and (not root.is_dir() or any(root.iterdir())):
    raise ValueError(
      f"{root}: expected no such folder, or an empty one; choose another"
    )
  visits = roster.draw_roster(seed, num_patients)
  root.parent.mkdir(parents=True, exist_ok=True)
  draft = root.parent / f".{root.name}.{uuid.uuid4().hex[:8]}.partial"
  draft.mkdir(mode=0o700)
  try:
    jobs = [
      films.Job(
        exposure.image_id,
        exposure.case,
        image_px,
        str(draft / "mimic-cxr-jpg/2.1.0" / visit.path(exposure)),
      )
      for visit in visits
      for exposure in visit.exposures
    ]
    shots = films.take_all(jobs, workers=workers, progress=progress)
    counts = _write_sources(draft, visits, shots, shares, seed)
    _write_truth(draft / TRUTH, visits, shots)
    if root.exists():
      root.rmdir()
    os.replace(draft, root)
  except BaseException:  # Ctrl-C too: a draft is of no use to anyone
    shutil.rmtree(draft, ignore_errors=True)
    raise
  return counts


def _shares(coverage: Mapping[str, float] | None) -> dict[str, float]:
  asked = dict(coverage or {})
  unknown = sorted(set(asked) - set(COVERAGE))
  if unknown:
    raise ValueError(f"coverage: unknown {unknown}; expected some of {list(COVERAGE)}")
  for name, share in asked.items():
    if not 0 <= share <= 1:
      raise ValueError(
        f"coverage[{name!r}]: expected a fraction in [0, 1], got {share}"
      )
  return COVERAGE | asked


def _write_sources(
  root: Path,
  visits: Sequence[roster.Visit],
  shots: tables.Shots,
  shares: Mapping[str, float],
  seed: int,
) -> dict[str, int]:
  views = collections.Counter(
    exposure.frontal for visit in visits for exposure in visit.exposures
  )
  tables.write_mimic(root / "mimic-cxr-jpg/2.1.0", visits, shots)
  return {
    "patients": len({visit.subject_id for visit in visits}),
    "studies": len(visits),
    "images": views.total(),
    "frontal_images": views[True],
    "report": reports.write_reports(
      root / "mimic-cxr/2.1.0/mimic-cxr-reports.zip",
      visits, shots, fraction=shares["report"], seed=seed,
    ),
    "calculation": tables.write_cardiomegaly(
      root / "cxr-cardiomegaly/1.0.0",
      visits, shots, fraction=shares["calculation"], seed=seed,
    ),
    "multi_class": tables.write_pe_severity(
      root / "mimic-cxr-pe-severity/1.0.1",
      visits, fraction=shares["multi_class"], seed=seed,
    ),
    "multi_label": labels.write_cxr_lt(
      root / "cxr-lt-iccv-workshop-cvamd/2.0.0",
      visits, shots, fraction=shares["multi_label"], seed=seed,
    ),
    "chexmask": tables.write_chexmask(
      root / "chexmask-cxr-segmentation-data/1.0.0",
      visits, shots, fraction=shares["chexmask"], seed=seed,
    ),
    "vqa": inquiry.write_vqa(
      root / "mimic-ext-mimic-cxr-vqa/1.0.0",
      visits, shots, fraction=shares["vqa"], seed=seed,
    ),
  }  # fmt: skip


def _write_truth(
  path: Path, visits: Sequence[roster.Visit], shots: tables.Shots
) -> None:
  """One JSON object a film, the lateral ones too (their ctr and cpar are null)."""
  with path.open("w", encoding="utf-8") as file:
    for visit in visits:
      for exposure in visit.exposures:
        case, shot = exposure.case, shots[exposure.image_id]
        frontal = bool(shot.organ_boxes)
        truth = {
          "image_id": exposure.image_id,
          "study_id": visit.study_id,
          "patient_id": visit.subject_id,
          "view": case.view,
          "sex": case.sex,
          "findings": [[f.name, f.side, f.zone] for f in case.findings],
          "edema_grade": case.edema_grade,
          "devices": list(case.devices),
          "marker_side": case.marker_side,
          "ctr": shot.ctr if frontal else None,
          "cpar": shot.cpar if frontal else None,
          "organ_boxes": shot.organ_boxes,
          "practice_boxes": shot.practice_boxes,
        }
        file.write(json.dumps(truth) + "\n")
