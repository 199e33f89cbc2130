"""MIMIC-CXR-JPG 2.1.0: the images, whose they are and how they were taken.

Layout (the file names still say 2.0.0 in release 2.1.0; gzipped or not):

    files/p10/p10000001/s50000001/DICOM_ID.jpg
    mimic-cxr-2.0.0-metadata.csv.gz   dicom_id,subject_id,study_id,…,ViewPosition,Rows,…
    mimic-cxr-2.0.0-split.csv.gz      dicom_id,study_id,subject_id,split
    mimic-cxr-2.0.0-chexpert.csv.gz   subject_id,study_id,Atelectasis,… (negbio alike)
    mimic-cxr-2.1.0-test-set-labeled.csv      study_id and radiologists' 14 labels,
                                              whose spelling is not verified
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Sequence
from pathlib import Path

from imax_jax.data.sources.files import Inside
from imax_jax.data.sources.files import find_file
from imax_jax.data.sources.intake import DamagedFile
from imax_jax.data.sources.intake import Distinct
from imax_jax.data.sources.intake import Tally
from imax_jax.data.sources.mimic_ids import identity_columns
from imax_jax.data.sources.mimic_ids import image_id_of
from imax_jax.data.sources.mimic_ids import is_dicom_id
from imax_jax.data.sources.mimic_ids import is_mimic_number
from imax_jax.data.sources.mimic_ids import plain_id
from imax_jax.data.sources.published import note_rows
from imax_jax.data.sources.reading import table_header
from imax_jax.data.sources.reading import table_rows
from imax_jax.schema import Radiograph

# Compared whole: "PA LLD" and "AP AXIAL" are not frontal views, nor is an empty cell.
FRONTAL_VIEWS = ("AP", "PA")
METADATA = "mimic-cxr-2.0.0-metadata.csv.gz"
SPLIT = "mimic-cxr-2.0.0-split.csv.gz"
LABEL_TABLES: dict[str, str] = {
  "chexpert": "mimic-cxr-2.0.0-chexpert.csv.gz",
  "negbio": "mimic-cxr-2.0.0-negbio.csv.gz",
  "radiologist": "mimic-cxr-2.1.0-test-set-labeled.csv",
}
# CheXpert's, which NegBio's table has too.
LABELS = (
  "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Enlarged Cardiomediastinum",
  "Fracture", "Lung Lesion", "Lung Opacity", "No Finding", "Pleural Effusion",
  "Pleural Other", "Pneumonia", "Pneumothorax", "Support Devices",
)  # fmt: skip
REMEDY = (
  "Point mimic_cxr_jpg at the release folder of https://physionet.org/content/"
  "mimic-cxr-jpg/2.1.0/ (credentialed access), or make a phantom hospital."
)
RULE = "mimic_cxr_jpg/frontal"
_SPLIT_RULE = "mimic_cxr_jpg/split"
_LABEL_RULE = "mimic_cxr_jpg/labels"
RULES: dict[str, str] = {
  RULE: "An image whose ViewPosition is exactly AP or PA, of known size; ids of MIMIC's "
  "form.",
  _SPLIT_RULE: "The official split of an image is train, validate or test; ids of "
  "MIMIC's form.",
  _LABEL_RULE: "A label is 1 (present), 0 (denied), -1 (uncertain) or blank; ids of "
  "MIMIC's form.",
}
_PIXELS = re.compile(r" *(\d{1,9})(?:\.0*)? *", re.ASCII)
_LABEL_VALUES = {"1": 1, "1.0": 1, "0": 0, "0.0": 0, "-1": -1, "-1.0": -1, "": None}


def read_radiographs(
  root: str | Path, *, require_images: bool = True, tally: Tally | None = None
) -> dict[str, Radiograph]:
  """The frontal radiographs by image id, in the metadata's order.

  Width and height are the metadata's Columns and Rows, the original pixels: the JPEG
  on disk may be a smaller copy. With `require_images`, an image whose JPEG is absent
  (a partial download) is left out.

  Raises:
    FileNotFoundError: the metadata, or every image, is missing.
    DamagedFile: the metadata has other columns or can not be read to its end.
  """
  tally = Tally("mimic_cxr_jpg") if tally is None else tally
  path = find_file(root, [METADATA], remedy=REMEDY, tally=tally)
  columns = ("dicom_id", "subject_id", "study_id", "ViewPosition", "Rows", "Columns")
  images: Distinct[str, tuple[str, str, str, tuple[int, int]]] = Distinct(tally)
  size_of = functools.cache(_size)  # the detectors have some hundred sizes
  file, before = tally.name(path), tally.rows
  for row, (dicom, subject, study, view, *size) in table_rows(path, columns, tally):
    name, patient, study_id = image_id_of(dicom), plain_id(subject), plain_id(study)
    pixels = size_of(*size)
    if not is_dicom_id(name):
      tally.reject(file, row, "image id of the wrong form", RULE)
    elif not is_mimic_number(patient) or not is_mimic_number(study_id):
      tally.reject(file, row, "patient or study id of the wrong form", RULE)
    elif pixels is None:
      tally.reject(file, row, "Rows or Columns not a number of pixels", RULE)
    elif view not in FRONTAL_VIEWS and view.strip().upper() in FRONTAL_VIEWS:
      tally.reject(file, row, "view of another spelling", RULE)
    else:
      images.add(name, (study_id, patient, view, pixels), file, row)
  note_rows(tally, path.name, tally.rows - before)
  radiographs: dict[str, Radiograph] = {}
  num_absent, leads_inside = 0, Inside(root)
  for name, (study_id, patient, view, (width, height)), _, row in images.items():
    if view not in FRONTAL_VIEWS:
      tally.leave_out_image(name, "not frontal" if view.strip() else "view missing")
      continue
    image = f"{root}/files/p{patient[:2]}/p{patient}/s{study_id}/{name}.jpg"
    if require_images and not os.path.isfile(image):
      num_absent += 1
      tally.leave_out_image(name, "image file absent")
    elif require_images and not leads_inside(image):
      tally.reject(file, row, "image is a link that leads out of its folder", RULE)
    else:
      tally.keep()
      radiographs[name] = Radiograph(
        name, study_id, patient, view, width, height, image
      )
  tally.log()
  if num_absent and not radiographs:
    raise FileNotFoundError(
      f"{root}/files: none of the {num_absent} frontal images of {path.name} is there, "
      f"expected files/p10/p…/s…/DICOM_ID.jpg. {REMEDY}"
    )
  return radiographs


def _size(rows: str, columns: str) -> tuple[int, int] | None:
  """(width, height) of the cells Rows and Columns."""
  found = _PIXELS.fullmatch(rows), _PIXELS.fullmatch(columns)
  if found[0] is None or found[1] is None:
    return None
  height, width = int(found[0][1]), int(found[1][1])
  return (width, height) if 0 < width < 2**16 and 0 < height < 2**16 else None


def _are_numbers(ids: Sequence[str]) -> bool:
  return all(is_mimic_number(plain_id(text)) for text in ids)


def read_splits(root: str | Path, *, tally: Tally | None = None) -> dict[str, str]:
  """image id -> "train", "validate" or "test": the official split.

  The paper pools the splits; this is here so that a leak can be looked for.

  Raises:
    FileNotFoundError, DamagedFile: as `read_radiographs`.
  """
  tally = Tally("mimic_cxr_jpg split") if tally is None else tally
  path = find_file(root, [SPLIT], remedy=REMEDY, tally=tally)
  splits: Distinct[str, str] = Distinct(tally)
  file, before = tally.name(path), tally.rows
  whose = identity_columns(table_header(path))
  for row, (dicom, split, *ids) in table_rows(
    path, ("dicom_id", "split", *whose), tally
  ):
    name = image_id_of(dicom)
    if not is_dicom_id(name):
      tally.reject(file, row, "image id of the wrong form", _SPLIT_RULE)
    elif not _are_numbers(ids):
      tally.reject(file, row, "patient or study id of the wrong form", _SPLIT_RULE)
    elif split not in ("train", "validate", "test"):
      tally.reject(file, row, "split of another name", _SPLIT_RULE)
    else:
      splits.add(name, split, file, row)
  note_rows(tally, path.name, tally.rows - before)
  found = {name: split for name, split, _, _ in splits.items()}
  tally.keep(len(found))
  return found


def read_labels(
  root: str | Path, table: str = "chexpert", *, tally: Tally | None = None
) -> dict[str, dict[str, int | None]]:
  """study id -> {"Edema": 1, "Fracture": None, …}: 1, 0, -1 (uncertain), None (blank).

  Of the columns only those of `LABELS` are read.

  The study makes no task of them: they are an independent reading of the same reports,
  to hold other labels against. 8 of the 227,835 studies have no row.

  Raises:
    ValueError: another table than those of `LABEL_TABLES`.
    FileNotFoundError, DamagedFile: as `read_radiographs`; or it has no known label.
  """
  if table not in LABEL_TABLES:
    raise ValueError(f"label table {table!r}: expected one of {sorted(LABEL_TABLES)}")
  tally = Tally(f"mimic_cxr_jpg {table}") if tally is None else tally
  path = find_file(root, [LABEL_TABLES[table]], remedy=REMEDY, tally=tally)
  # A file without a header begins with a patient's row: no name of it may be told.
  header = table_header(path)
  ids = ("study_id", *[name for name in identity_columns(header) if name != "study_id"])
  names = [name for name in LABELS if name in header]
  others = len(header) - sum(name in ids for name in header) - len(names)
  tally.met(
    f"labels of {LABEL_TABLES[table]}",
    f"{len(names)} of {len(LABELS)} known labels, {others} other columns",
  )
  if not names:
    raise DamagedFile(path, f"has none of the {len(LABELS)} known labels")
  labels: Distinct[str, tuple[int | None, ...]] = Distinct(tally)
  file, before, first = tally.name(path), tally.rows, len(ids)
  for row, cells in table_rows(path, (*ids, *names), tally):
    if not _are_numbers(cells[:first]):
      tally.reject(file, row, "patient or study id of the wrong form", _LABEL_RULE)
    elif any(cell not in _LABEL_VALUES for cell in cells[first:]):
      tally.reject(file, row, "label not 1, 0, -1 or blank", _LABEL_RULE)
    else:
      values = tuple(_LABEL_VALUES[cell] for cell in cells[first:])
      labels.add(plain_id(cells[0]), values, file, row)
  note_rows(tally, LABEL_TABLES[table], tally.rows - before)
  found = {s: dict(zip(names, v, strict=True)) for s, v, _, _ in labels.items()}
  tally.keep(len(found))
  return found
