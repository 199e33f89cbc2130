"""MIMIC's ids, as its tables write them: with a letter before, a file's ending behind."""

from __future__ import annotations

import re
from collections.abc import Mapping
from collections.abc import Sequence

from imax_jax.schema import Radiograph

# Columns that say again, beside the image, whose it is.
IDENTITY = ("subject_id", "study_id")
OF_ANOTHER = "patient or study is not the image's"
_DICOM = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{8}){4}")


def plain_id(text: str) -> str:
  """A patient's or study's id: "s50000001", "50000001", "50000001.0" -> "50000001"."""
  text = text.strip().removesuffix(".0")
  return text[1:] if text[:1] in ("s", "p") and text[1:].isdigit() else text


def is_mimic_number(text: str) -> bool:
  """Whether `text` has the form of MIMIC's patient and study ids, eight digits."""
  return len(text) == 8 and text.isascii() and text.isdigit()


def identity_columns(header: Sequence[str]) -> tuple[str, ...]:
  """Those of `IDENTITY` that a table has."""
  return tuple([name for name in IDENTITY if name in header])


def is_of(radiograph: Radiograph, columns: Sequence[str], ids: Sequence[str]) -> bool:
  """Whether `ids`, the cells of some of `IDENTITY`, are the image's patient and study."""
  for column, text in zip(columns, ids, strict=True):
    known = radiograph.patient_id if column == "subject_id" else radiograph.study_id
    if text != known and plain_id(text) != known:
      return False
  return True


def image_id_of(text: str) -> str:
  """An image's id from itself, a file name or a path."""
  name = text.strip()
  if "/" in name:
    name = name.rsplit("/", 1)[-1]
  return name.removesuffix(".dcm").removesuffix(".jpg")


def is_dicom_id(text: str) -> bool:
  """Whether `text` has the form of MIMIC's image ids, five groups of eight hex digits."""
  return _DICOM.fullmatch(text) is not None


def images_by_study(radiographs: Mapping[str, Radiograph]) -> dict[str, list[str]]:
  """study_id -> its images' ids, in the order of `radiographs`."""
  studies: dict[str, list[str]] = {}
  for name, radiograph in radiographs.items():
    studies.setdefault(radiograph.study_id, []).append(name)
  return studies
