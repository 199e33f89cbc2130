"""MIMIC-CXR-JPG 2.1.0: the images, whose they are and how they were taken.

Layout (the file names still say 2.0.0 in release 2.1.0):

    files/p10/p10000001/s50000001/DICOM_ID.jpg
    mimic-cxr-2.0.0-metadata.csv.gz   dicom_id,subject_id,study_id,…,ViewPosition,Rows,…
    mimic-cxr-2.0.0-split.csv.gz      dicom_id,study_id,subject_id,split
"""

from __future__ import annotations

import os
from pathlib import Path

from imax_jax.data.sources.reading import Counts
from imax_jax.data.sources.reading import find_file
from imax_jax.data.sources.reading import image_id_of
from imax_jax.data.sources.reading import log_counts
from imax_jax.data.sources.reading import plain_id
from imax_jax.data.sources.reading import table_rows
from imax_jax.schema import Radiograph

# Compared whole: "PA LLD" and "AP AXIAL" are not frontal views, nor is an empty cell.
FRONTAL_VIEWS = ("AP", "PA")
METADATA = "mimic-cxr-2.0.0-metadata.csv.gz"
SPLIT = "mimic-cxr-2.0.0-split.csv.gz"
REMEDY = (
  "Point mimic_cxr_jpg at the release folder of https://physionet.org/content/"
  "mimic-cxr-jpg/2.1.0/ (credentialed access), or make a phantom hospital."
)


def read_radiographs(
  root: str | Path,
  *,
  require_images: bool = True,
  counts: Counts | None = None,
) -> dict[str, Radiograph]:
  """The frontal radiographs by image id, in the metadata's order.

  Width and height are the metadata's Columns and Rows, the original pixels: the JPEG
  on disk may be a smaller copy. With `require_images`, an image whose JPEG is absent
  (a partial download) is rejected.

  Raises:
    FileNotFoundError: the metadata, or every image, is missing.
    ValueError: the metadata has other columns or is damaged.
  """
  counts = Counts() if counts is None else counts
  path = find_file(root, [METADATA], remedy=REMEDY)
  columns = ("dicom_id", "subject_id", "study_id", "ViewPosition", "Rows", "Columns")
  radiographs: dict[str, Radiograph] = {}
  for _, (dicom, subject, study, view, height, width) in table_rows(path, columns):
    if view not in FRONTAL_VIEWS:
      counts["not frontal" if view else "view missing"] += 1
      continue
    radiograph = _radiograph(str(root), dicom, subject, study, view, height, width)
    if radiograph is None:
      counts["no size"] += 1
    elif radiograph.image_id in radiographs:
      counts["repeated image id"] += 1
    elif require_images and not os.path.exists(radiograph.path):
      counts["image file absent"] += 1
    else:
      counts["kept"] += 1
      radiographs[radiograph.image_id] = radiograph
  log_counts("mimic_cxr_jpg", counts)
  if not radiographs and counts["image file absent"]:
    raise FileNotFoundError(
      f"{root}/files: none of the {counts['image file absent']} frontal images of "
      f"{path.name} is there, expected files/p10/p…/s…/DICOM_ID.jpg. {REMEDY}"
    )
  return radiographs


def _radiograph(
  root: str, dicom: str, subject: str, study: str, view: str, height: str, width: str
) -> Radiograph | None:
  try:
    columns, rows = int(float(width)), int(float(height))
  except ValueError:
    return None
  if columns < 1 or rows < 1:
    return None
  name = image_id_of(dicom)
  patient, study_id = plain_id(subject), plain_id(study)
  folder = f"files/p{patient[:2]}/p{patient}/s{study_id}"
  return Radiograph(
    image_id=name,
    study_id=study_id,
    patient_id=patient,
    view=view,
    width=columns,
    height=rows,
    path=os.path.join(root, folder, f"{name}.jpg"),
  )


def read_splits(root: str | Path) -> dict[str, str]:
  """image id -> "train", "validate" or "test": the official split.

  The paper pools the splits; this is here so that a leak can be looked for.
  """
  path = find_file(root, [SPLIT], remedy=REMEDY)
  return {
    image_id_of(dicom): split
    for _, (dicom, split) in table_rows(path, ("dicom_id", "split"))
  }
