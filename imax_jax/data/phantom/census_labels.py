"""CXR-LT's tables of the census: 45 labels in 2024's release, 26 in that of 2023."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from imax_jax.data.phantom.census_people import VIEWS
from imax_jax.data.phantom.census_people import People
from imax_jax.data.phantom.census_tables import write_lines
from imax_jax.data.phantom.labels import LABELS_26
from imax_jax.data.phantom.labels import LABELS_45
from imax_jax.data.phantom.tables import VIEW_CODES

_NAMES = ("train", "development", "test")
SPLIT_2024 = (258_871, 39_293, 78_946)
SPLIT_2023 = (264_849, 36_769, 75_492)
# Of all studies, a long tail; the labels not named have `_RARE`.
_PREVALENCE: dict[str, float] = {
  "Support Devices": 0.32, "Lung Opacity": 0.27, "Cardiomegaly": 0.26,
  "Atelectasis": 0.24, "Pleural Effusion": 0.24, "Pneumonia": 0.16, "Edema": 0.13,
  "Enlarged Cardiomediastinum": 0.10, "Consolidation": 0.055, "Pneumothorax": 0.045,
  "Infiltration": 0.035, "Rib Fracture": 0.03, "Nodule": 0.026, "Mass": 0.018,
  "Emphysema": 0.014, "Calcification of the Aorta": 0.014, "Tortuous Aorta": 0.012,
  "Hernia": 0.012, "Pleural Thickening": 0.011, "Lung Lesion": 0.008,
}  # fmt: skip
_RARE = 0.003
_SICK = 0.82  # of all studies; the others have no finding but a device


def draw_labels(people: People) -> np.ndarray:
  """uint8[S, 45] in the order of `LABELS_45`."""
  rng = people.rng(31)
  number = len(people.study_ids)
  chance = np.array([_PREVALENCE.get(name, _RARE) for name in LABELS_45]) / _SICK
  drawn = rng.random((number, len(LABELS_45)), np.float32) < chance
  place = {name: index for index, name in enumerate(LABELS_45)}
  device = rng.random(number) < _PREVALENCE["Support Devices"]
  drawn &= (rng.random(number) < _SICK)[:, None]
  broken = drawn[:, place["Rib Fracture"]] | drawn[:, place["Clavicle Fracture"]]
  drawn[:, place["Fracture"]] |= broken
  drawn[:, [place["Normal"], place["Support Devices"]]] = False
  drawn[:, place["Normal"]] = ~drawn.any(axis=1)
  drawn[:, place["Support Devices"]] = device
  return drawn.astype(np.uint8)


def write_cxr_lt(root: Path, people: People) -> int:
  """labels.csv of 2024 and the three tables of 2023; returns the labelled images.

  Labels are a study's, on every image of it, the lateral too.
  """
  labels = draw_labels(people)
  patient = people.patient[people.study]
  split = people.split(_NAMES, SPLIT_2024, code=32)
  rows = _rows(people, range(patient.size), _bits(labels, LABELS_45), prefix="s")
  whose = (split[one] for one in patient.tolist())
  written = write_lines(
    root / "cxr-lt-2024" / "labels.csv",
    _header("fpath", (*LABELS_45, "split")),
    map(",".join, zip(rows, whose, strict=True)),
  )
  split = people.split(_NAMES, SPLIT_2023, code=33)
  bits = _bits(labels, LABELS_26)
  part = np.array([_NAMES.index(name) for name in split])[patient]
  for number, name in enumerate(_NAMES):
    images = np.flatnonzero(part == number).tolist()
    write_lines(
      root / "cxr-lt-2023" / f"{name}.csv",
      _header("path", LABELS_26),
      _rows(people, images, bits, prefix=""),
    )
  return written


def _header(place: str, names: Sequence[str]) -> str:
  key = ("dicom_id", "subject_id", "study_id", "ViewPosition")
  return ",".join((*key, "ViewCodeSequence_CodeMeaning", place, *names))


def _bits(labels: np.ndarray, names: Sequence[str]) -> list[str]:
  """Of each study: "0,1,0"."""
  places = [LABELS_45.index("Normal" if n == "No Finding" else n) for n in names]
  text = np.full((len(labels), 2 * len(names)), ord(","), np.uint8)
  text[:, 0::2] = labels[:, places] + ord("0")
  return [row.tobytes()[:-1].decode() for row in text]


def _rows(
  people: People, images: Iterable[int], bits: list[str], *, prefix: str
) -> Iterator[str]:
  studies, views = people.study.tolist(), people.view.tolist()
  subjects = people.subject_of_study
  for image in images:
    study, view = studies[image], VIEWS[views[image]]
    yield (
      f"{people.image_ids[image]},{subjects[study]},{prefix}{people.study_ids[study]},"
      f"{view},{VIEW_CODES.get(view, '')},{people.paths[image]},{bits[study]}"
    )
