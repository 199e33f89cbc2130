"""VinDr-CXR 1.0.0 (Nguyen et al., 2022): findings and boxes by radiologists.

PhysioNet's release, and Kaggle's (VinBigData) of its training half:

    train/<32 hex digits>.dicom, test/…
    annotations/image_labels_train.csv   image_id,rad_id,Aortic enlargement,…,No finding
    annotations/image_labels_test.csv    without rad_id: the consensus of five
    annotations/annotations_train.csv    image_id,rad_id,class_name,x_min,y_min,x_max,y_max
    annotations/annotations_test.csv     without rad_id
    train.csv                            Kaggle: image_id,class_name,class_id,rad_id,x_min,…

Three readers saw each training image apart from each other: a row each of labels, and
any number of boxes; one who saw nothing has a row "No finding" without a box. Columns
are found by name ("Other diseases" of one file is "Other disease" in the other).

Boxes are in pixels of the DICOM image. A user's PNG or JPEG beside it or in its place
(train/<id>.png) is decoded instead, and gives the size where there is no DICOM file: so
it must not be a smaller copy.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from imax_jax.data.sources.agreement import RULE_TEXT as AGREEMENT
from imax_jax.data.sources.dicom_header import SUFFIXES
from imax_jax.data.sources.dicom_header import size_and_view
from imax_jax.data.sources.files import find_file
from imax_jax.data.sources.files import inside
from imax_jax.data.sources.intake import DamagedFile
from imax_jax.data.sources.intake import Distinct
from imax_jax.data.sources.intake import Tally
from imax_jax.data.sources.pictures import size_of
from imax_jax.data.sources.reading import table_header
from imax_jax.data.sources.reading import table_rows
from imax_jax.data.sources.vindr_boxes import IMAGE_NAME
from imax_jax.data.sources.vindr_boxes import RULE as REGION_RULE
from imax_jax.data.sources.vindr_boxes import RULE_TEXT as REGION
from imax_jax.data.sources.vindr_boxes import Row
from imax_jax.data.sources.vindr_boxes import read_rows
from imax_jax.data.sources.vindr_boxes import regions
from imax_jax.schema import Annotation
from imax_jax.schema import Bits
from imax_jax.schema import Radiograph

REMEDY = (
  "Point vindr at the folder of https://physionet.org/content/vindr-cxr/1.0.0/ "
  "(credentialed access) or at Kaggle's VinBigData folder, with train/ beside the tables."
)
RULE = "vindr/labels"
IMAGE_RULE = "vindr/image"
RULES: dict[str, str] = {
  RULE: "The findings of the paper that VinDr asks for under the same name: not Nodule "
  "(VinDr's is Nodule/Mass) and not Fracture (VinDr's are of clavicle and rib). Present "
  "is what two of three readers say; a consensus is taken as it is.",
  IMAGE_RULE: "An image that a table names, that is there and readable; its patient is "
  "itself, for no patient ids are given.",
  REGION_RULE: f"{REGION} {AGREEMENT}",
}
# The paper's finding -> VinDr's column or class_name.
COLUMNS: dict[str, str] = {
  "Lung Opacity": "Lung Opacity",
  "Pleural Effusion": "Pleural effusion",
  "Atelectasis": "Atelectasis",
  "Pneumonia": "Pneumonia",
  "Edema": "Edema",
  "Consolidation": "Consolidation",
  "Pneumothorax": "Pneumothorax",
  "Infiltration": "Infiltration",
}
# Kaggle's fourteen classes have no Pneumonia (it has no box) and no Edema.
KAGGLE = tuple(name for name in COLUMNS if name not in ("Pneumonia", "Edema"))
READERS = 3
_BIT = {"0": 0, "0.0": 0, "1": 1, "1.0": 1, "": 0}


class Split(NamedTuple):
  folder: str  # of the images
  labels: Path
  boxes: Path  # Kaggle's one table is both


def _splits(root: str | Path, tally: Tally) -> list[Split]:
  """The halves that are there: PhysioNet's, else Kaggle's."""
  tables = [f"annotations/image_labels_{half}.csv" for half in ("train", "test")]
  first = find_file(root, [*tables, "train.csv"], remedy=REMEDY, tally=tally)
  if not first.name.startswith("image_labels"):
    tally.met("layout", "Kaggle's train.csv")
    return [Split("train", first, first)]
  splits = []
  for half, table in zip(("train", "test"), tables, strict=True):
    if any(Path(root, name).exists() for name in (table, f"{table}.gz")):
      boxes = f"annotations/annotations_{half}.csv"
      found = (
        find_file(root, [name], remedy=REMEDY, tally=tally) for name in (table, boxes)
      )
      splits.append(Split(half, *found))
  tally.met("layout", f"PhysioNet's: {' and '.join(s.folder for s in splits)}")
  return splits


def read_radiographs(
  root: str | Path, *, tally: Tally | None = None
) -> dict[str, Radiograph]:
  """The images that the tables of labels name: "vindr/<32 hex digits>".

  Raises:
    FileNotFoundError: a table, or every image, is missing.
    DamagedFile: a table is damaged.
    ValueError: there is a DICOM file, and no pydicom.
  """
  tally = Tally("vindr images") if tally is None else tally
  radiographs: dict[str, Radiograph] = {}
  named: set[str] = set()
  measured: set[str] = set()
  for split in _splits(root, tally):
    # `read` judges and lists the rows; here they only name images.
    rows = table_rows(split.labels, ("image_id",), Tally("vindr"))
    for row, (cell,) in rows:
      if cell in named or not IMAGE_NAME.fullmatch(cell):
        continue
      named.add(cell)
      tally.rows += 1
      image_id = f"vindr/{cell}"
      try:
        radiograph = _radiograph(root, split.folder, cell, measured)
      except DamagedFile as error:
        tally.reject(tally.name(split.labels), row, f"image {error.reason}", IMAGE_RULE)
        continue
      if radiograph is None:
        tally.leave_out_image(image_id, "image file absent")
      else:
        radiographs[image_id] = radiograph
  tally.met("image sizes", " and ".join(sorted(measured)) or "none")
  tally.met("patient ids", "none: an image is its own patient")
  tally.keep(len(radiographs))
  tally.log()
  if named and not radiographs:
    raise FileNotFoundError(
      f"{root}: none of the {len(named)} images can be read, expected train/<id>.dicom "
      f"or .png. {REMEDY}"
    )
  return radiographs


def _radiograph(
  root: str | Path, folder: str, name: str, measured: set[str]
) -> Radiograph | None:
  """An image; what is decoded is the converted one, what measures it the DICOM file.

  `measured` is told which it was.
  """
  picture = _first(root, folder, name, (".png", ".jpg", ".jpeg"))
  dicom = _first(root, folder, name, SUFFIXES)
  if dicom is not None:
    width, height, view = size_and_view(dicom)
    measured.add("of DICOM headers")
  elif picture is not None:
    (width, height), view = size_of(picture), ""
    measured.add("of converted images (true if those have their full size)")
  else:
    return None
  image_id, path = f"vindr/{name}", str(picture or dicom)
  return Radiograph(image_id, image_id, image_id, view, width, height, path)


def _first(
  root: str | Path, folder: str, name: str, suffixes: tuple[str, ...]
) -> Path | None:
  for suffix in suffixes:
    path = inside(root, f"{folder}/{name}{suffix}")
    if path.is_file():
      return path
  return None


def read(
  root: str | Path,
  radiographs: Mapping[str, Radiograph],
  *,
  tally: Tally | None = None,
) -> Iterator[Annotation]:
  """Yields the `Bits` of each image, then a `Region` a box, for REC and for REG.

  Raises:
    FileNotFoundError, DamagedFile: a table is missing or damaged, or the boxes do not
      fit the images (smaller copies).
  """
  tally = Tally("vindr") if tally is None else tally
  for split in _splits(root, tally):
    kaggle = split.labels == split.boxes
    rows = read_rows(split.boxes, radiographs, tally)
    if kaggle:
      labels, votes = KAGGLE, _drawn_votes(rows, tally)
    else:
      labels, votes = tuple(COLUMNS), _votes(split.labels, radiographs, tally)
    for image_id, (row, bits) in votes.items():
      tally.keep()
      origin = tally.origin(split.labels, row, RULE)
      yield Annotation(image_id, "multi_label", "", Bits(bits, labels), origin)
    yield from regions(split.boxes, rows, radiographs, tally)
  tally.log()


Votes = dict[str, tuple[int, tuple[int, ...]]]  # image -> first row, bits


def _votes(path: Path, radiographs: Mapping[str, Radiograph], tally: Tally) -> Votes:
  """PhysioNet's labels: the majority of the readers, or the consensus."""
  readers = "rad_id" in table_header(path)
  columns = ("image_id", "rad_id" if readers else "image_id", *COLUMNS.values())
  said: Distinct[tuple[str, str], tuple[int, ...]] = Distinct(tally)
  blank = False
  for row, (cell, reader, *cells) in table_rows(path, columns, tally):
    bits = tuple(_BIT.get(one.strip(), -1) for one in cells)
    if not IMAGE_NAME.fullmatch(cell) or not reader:
      tally.reject(tally.name(path), row, "image or reader id of the wrong form", RULE)
    elif -1 in bits:
      tally.reject(tally.name(path), row, "a label is neither 0 nor 1", RULE)
    elif f"vindr/{cell}" not in radiographs:
      tally.absent(f"vindr/{cell}")
    else:
      blank = blank or "" in cells
      said.add((f"vindr/{cell}", reader if readers else ""), bits, path, row)
  tally.met(f"blank labels in {path.name}", "some: read as 0" if blank else "none")
  if not readers:
    return {name: (row, bits) for (name, _), bits, _, row in said.items()}
  by_image: dict[str, list[tuple[int, tuple[int, ...]]]] = {}
  for (name, _), bits, _, row in said.items():
    by_image.setdefault(name, []).append((row, bits))
  return _majority(by_image, tally)


def _drawn_votes(rows: Sequence[Row], tally: Tally) -> Votes:
  """Kaggle's labels: a reader who drew a box of a finding says that it is present."""
  readers: dict[str, dict[str, tuple[int, set[str]]]] = {}
  for row, image_id, reader, finding, _ in rows:
    first = readers.setdefault(image_id, {}).setdefault(reader, (row, set()))
    first[1].add(finding)
  by_image = {
    image_id: [
      (row, tuple(int(COLUMNS[label].lower() in drawn) for label in KAGGLE))
      for row, drawn in of_reader.values()
    ]
    for image_id, of_reader in readers.items()
  }
  return _majority(by_image, tally)


def _majority(
  by_image: Mapping[str, list[tuple[int, tuple[int, ...]]]], tally: Tally
) -> Votes:
  found: Votes = {}
  for name, votes in by_image.items():
    if len(votes) != READERS:
      tally.leave_out(f"not read by {READERS} readers")
      continue
    bits = (
      sum(vote) > READERS // 2 for vote in zip(*(b for _, b in votes), strict=True)
    )
    found[name] = (votes[0][0], tuple(int(bit) for bit in bits))
  return found
