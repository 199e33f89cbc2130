"""CXR-LT's tables: 45 labels in 2024's release, 26 in that of 2023."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from imax_jax.data.phantom.roster import Exposure
from imax_jax.data.phantom.roster import Visit
from imax_jax.data.phantom.tables import VIEW_CODES
from imax_jax.data.phantom.tables import Shots
from imax_jax.data.phantom.tables import study_ctr
from imax_jax.data.phantom.tables import write_csv
from imax_jax.schema import FINDINGS

LABELS_40 = (
  "Adenopathy", "Atelectasis", "Azygos Lobe", "Calcification of the Aorta",
  "Cardiomegaly", "Clavicle Fracture", "Consolidation", "Edema", "Emphysema",
  "Enlarged Cardiomediastinum", "Fibrosis", "Fissure", "Fracture", "Granuloma",
  "Hernia", "Hydropneumothorax", "Infarction", "Infiltration", "Kyphosis",
  "Lobar Atelectasis", "Lung Lesion", "Lung Opacity", "Mass", "Nodule", "Normal",
  "Pleural Effusion", "Pleural Other", "Pleural Thickening", "Pneumomediastinum",
  "Pneumonia", "Pneumoperitoneum", "Pneumothorax", "Pulmonary Embolism",
  "Pulmonary Hypertension", "Rib Fracture", "Round(ed) Atelectasis",
  "Subcutaneous Emphysema", "Support Devices", "Tortuous Aorta", "Tuberculosis",
)  # fmt: skip
LABELS_TASK_3 = ("Bulla", "Cardiomyopathy", "Hilum", "Osteopenia", "Scoliosis")
LABELS_45 = (*LABELS_40, *LABELS_TASK_3)
LABELS_26 = (
  "Atelectasis", "Calcification of the Aorta", "Cardiomegaly", "Consolidation",
  "Edema", "Emphysema", "Enlarged Cardiomediastinum", "Fibrosis", "Fracture",
  "Hernia", "Infiltration", "Lung Lesion", "Lung Opacity", "Mass", "No Finding",
  "Nodule", "Pleural Effusion", "Pleural Other", "Pleural Thickening",
  "Pneumomediastinum", "Pneumonia", "Pneumoperitoneum", "Pneumothorax",
  "Subcutaneous Emphysema", "Support Devices", "Tortuous Aorta",
)  # fmt: skip
# Task 2 of 2024 writes "Normal" where 2023 wrote "No Finding", out of order.
LABELS_TASK_2 = tuple("Normal" if name == "No Finding" else name for name in LABELS_26)
RARE_RATE = 0.02  # of each label that the phantom does not draw

_Row = tuple[Visit, Exposure, dict[str, int]]


def write_cxr_lt(
  root: Path, visits: Sequence[Visit], shots: Shots, *, fraction: float, seed: int
) -> int:
  """Both releases. Labels are a study's, on every film of it, the lateral too.

  Returns the number of images with labels.
  """
  rows: list[_Row] = []
  for visit in visits:
    rng = np.random.default_rng((seed, 31, visit.number))
    if rng.random() >= fraction:
      continue
    labels = _labels(visit, study_ctr(visit, shots), rng)
    rows += [(visit, exposure, labels) for exposure in visit.exposures]
  of = {
    split: [row for row in rows if row[0].lt_split == split]
    for split in ("train", "development", "test")
  }
  _write_2024(root / "cxr-lt-2024", rows, of)
  for split in ("train", "development", "test"):
    _write(root / "cxr-lt-2023" / f"{split}.csv", of[split], LABELS_26, prefix="")
  return len(rows)


def _write_2024(root: Path, rows: list[_Row], of: dict[str, list[_Row]]) -> None:
  _write(root / "labels.csv", rows, LABELS_45, split=True)
  _write(root / "train_labeled.csv", of["train"], LABELS_40)
  for split in ("development", "test"):
    for number, labels in ((1, LABELS_40), (2, LABELS_TASK_2), (3, LABELS_TASK_3)):
      path = root / f"{split}_labeled_task{number}.csv"
      _write(path, of[split], labels)
      _write(root / f"{split}_task{number}.csv", of[split], ())


def _labels(visit: Visit, ctr: float, rng: np.random.Generator) -> dict[str, int]:
  labels = {
    name: int(rng.random() < RARE_RATE)
    for name in LABELS_45
    if name not in FINDINGS and not name.endswith("Fracture")
  }
  case = visit.exposures[0].case
  labels |= {name: case.label(name) for name in FINDINGS}
  labels["Cardiomegaly"] = int(ctr > 0.5)
  labels["Lung Lesion"] = labels["Nodule"]
  labels["Rib Fracture"], labels["Clavicle Fracture"] = labels["Fracture"], 0
  labels["Support Devices"] = int(bool(case.devices))
  normal = not any(value for name, value in labels.items() if name != "Support Devices")
  labels["Normal"] = labels["No Finding"] = int(normal)
  return labels


def _write(
  path: Path,
  rows: list[_Row],
  names: Sequence[str],
  *,
  split: bool = False,
  prefix: str = "s",
) -> None:
  """2024: study "s50000001" and `fpath`; 2023 (no prefix): 50000001 and `path`."""
  place = "fpath" if prefix else "path"
  key = ("dicom_id", "subject_id", "study_id", "ViewPosition")
  header = (*key, "ViewCodeSequence_CodeMeaning", place, *names)
  table = [
    (
      exposure.image_id,
      visit.subject_id,
      f"{prefix}{visit.study_id}",
      exposure.view_position,
      VIEW_CODES[exposure.view_position],
      visit.path(exposure),
      *(labels[name] for name in names),
      *((visit.lt_split,) if split else ()),
    )
    for visit, exposure, labels in rows
  ]
  write_csv(path, (*header, "split") if split else header, table)
