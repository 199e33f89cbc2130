"""NIH ChestX-ray14 (Wang et al., 2017), as downloaded: images, labels, boxes.

    images_001/images/00000001_000.png     … images_012, or all in images/
    Data_Entry_2017_v2020.csv              or the first release, Data_Entry_2017.csv
    BBox_List_2017.csv                     984 boxes on 880 images; may be absent

The label file's header ends in OriginalImage[Width,Height],OriginalImagePixelSpacing
[x,y]: with the commas in the brackets it has 11 columns, and so have the rows. The first
release has a twelfth, empty, in header and rows. The box file's header ends in
"Bbox [x,y,w,h],,,": it has 9 columns, its rows have 6 cells.

OriginalImage is the film before NIH's own resizing. The images were distributed with
1024 x 1024 pixels, and the boxes are in those.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from collections.abc import Mapping
from pathlib import Path

from imax_jax.data.sources.files import AGAIN
from imax_jax.data.sources.files import READ_ERRORS
from imax_jax.data.sources.files import Inside
from imax_jax.data.sources.files import find_file
from imax_jax.data.sources.files import open_bytes
from imax_jax.data.sources.intake import DamagedFile
from imax_jax.data.sources.intake import Distinct
from imax_jax.data.sources.intake import Tally
from imax_jax.data.sources.reading import MAX_ROW_BYTES
from imax_jax.data.sources.reading import grouped_rows
from imax_jax.data.sources.reading import split_row
from imax_jax.data.sources.reading import table_header
from imax_jax.data.sources.reading import table_rows
from imax_jax.schema import FINDINGS
from imax_jax.schema import Annotation
from imax_jax.schema import Bits
from imax_jax.schema import Box
from imax_jax.schema import Radiograph
from imax_jax.schema import Region

REMEDY = (
  "Point nih at the folder of https://nihcc.app.box.com/v/ChestXray-NIHCC (open access) "
  "with Data_Entry_2017_v2020.csv, BBox_List_2017.csv and the images, unpacked."
)
LABELS = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
BOXES = "BBox_List_2017.csv"
SIZE = 1024
# NIH's fourteen labels, those among them that are the paper's under the paper's names.
_FINDING_OF_LABEL = {
  "Effusion": "Pleural Effusion",
  **{
    name: name
    for name in ("Atelectasis", "Pneumonia", "Edema", "Consolidation", "Pneumothorax",
                 "Infiltration", "Nodule")
  },
}  # fmt: skip
_OTHER_LABELS = (
  "Cardiomegaly", "Mass", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia"
)  # fmt: skip
_KNOWN_LABELS = {*_FINDING_OF_LABEL, *_OTHER_LABELS}
_NO_FINDING = "No Finding"
NAMES = tuple(name for name in FINDINGS if name in _FINDING_OF_LABEL.values())
# What the box file calls a label of the label file.
_SPELLING = {"Infiltrate": "Infiltration"}

IMAGE_RULE = "nih/image"
BITS_RULE = "nih/bits"
BOX_RULE = "nih/box"
RULES: dict[str, str] = {
  IMAGE_RULE: "An image NUMBER_FOLLOWUP.png, view PA or AP, of the patient NUMBER; each "
  "image is a study. Its size is 1024 x 1024, as distributed.",
  BITS_RULE: "The eight of NIH's labels that are among the paper's ten, mined by NIH from "
  "the report's text. 0 means that the report does not state it; "
  "No Finding is eight zeros.",
  BOX_RULE: "A box drawn by NIH's radiologist, clipped to its image. REC leaves out a "
  "finding that an image has several boxes of.",
}
_FILE = re.compile(r"([0-9]{8})_[0-9]{3}\.png")
_BOX_HEADER = ["Image Index", "Finding Label", "Bbox [x", "y", "w", "h]"]
# Boxes were drawn on a screen and scaled: an edge may come out a hair outside.
_SLACK_PX = 1.0
_PixelBox = tuple[float, float, float, float]


def read_radiographs(
  root: str | Path, *, require_images: bool = True, tally: Tally | None = None
) -> dict[str, Radiograph]:
  """The radiographs by image id, "00000001_000", in the order of the label file.

  Raises:
    FileNotFoundError: the label file, or every image, is missing.
    DamagedFile: the label file has other columns, or can not be read to its end.
  """
  tally = Tally("nih images") if tally is None else tally
  path = _label_file(root, tally)
  files = _image_files(Path(root))
  images: Distinct[str, tuple[str, str]] = Distinct(tally)
  columns = ("Image Index", "Patient ID", "View Position")
  rows = Tally("nih images")  # `read` meets them again, and lists those it rejects too
  for row, (file, patient, view) in table_rows(path, columns, rows):
    match = _FILE.fullmatch(file)
    if match is None:
      rows.reject(tally.name(path), row, "image name of the wrong form", IMAGE_RULE)
      continue
    if patient.lstrip("0") != match[1].lstrip("0"):
      reason = "patient is not the one in the image's name"
    elif view not in ("PA", "AP"):
      reason = "view neither PA nor AP"
    else:
      images.add(_image_id(file), (match[1], view), path, row)
      continue
    tally.reject(tally.name(path), row, reason, IMAGE_RULE)
  tally.add(rows)
  radiographs: dict[str, Radiograph] = {}
  leads_inside = Inside(root)
  for name, (patient, view), table, row in images.items():
    file = f"{name}.png"
    if require_images and file not in files:
      tally.leave_out_image(name, "image file absent")
      continue
    where = files.get(file, os.path.join(root, "images", file))
    if not leads_inside(where):
      reason = "image is a link that leads out of its folder"
      tally.reject(table, row, reason, IMAGE_RULE)
      continue
    radiographs[name] = Radiograph(name, name, patient, view, SIZE, SIZE, where)
  tally.keep(len(radiographs))
  tally.log()
  if tally.counts["image file absent"] and not radiographs:
    raise FileNotFoundError(
      f"{root}: none of the {tally.counts['image file absent']} images of {path.name} "
      "is there, expected images_001/images/00000001_000.png … or images/… "
      f"(unpack images_001.tar.gz …). {REMEDY}"
    )
  return radiographs


def read(
  root: str | Path,
  radiographs: Mapping[str, Radiograph],
  *,
  tally: Tally | None = None,
) -> Iterator[Annotation]:
  """Yields one `Bits` over the eight `NAMES` an image, then the boxes of findings.

  A box gives a "reg", and a "rec" if it is the image's only one of that finding, under
  the finding's name in lower case. There are boxes of cardiomegaly and mass, too.

  Raises:
    FileNotFoundError: the label file is missing.
    DamagedFile: a file has other columns, or can not be read to its end.
  """
  tally = Tally("nih") if tally is None else tally
  yield from _bits(_label_file(root, tally), radiographs, tally)
  if Path(root, BOXES).exists() or Path(root, f"{BOXES}.gz").exists():
    path = find_file(root, [BOXES], remedy=REMEDY, tally=tally)
    yield from _regions(path, radiographs, tally)
  else:
    tally.met("boxes", f"no {BOXES}: none are read")
  tally.log()


def _label_file(root: str | Path, tally: Tally) -> Path:
  path = find_file(root, LABELS, remedy=REMEDY, tally=tally)
  header = table_header(path)
  release = "first release" if header[-1:] == [""] else "release of 2020"
  tally.met("label file", f"{path.name}, {len(header)} columns: the {release}")
  return path


def _image_files(root: Path) -> dict[str, str]:
  """File name -> path. Listed a folder at a time: 112,120 look-ups take far longer."""
  folders = [root / "images", *sorted(root.glob("images_*/images"))]
  found: dict[str, str] = {}
  for folder in folders:
    if folder.is_dir():
      with os.scandir(folder) as entries:
        for entry in entries:
          if entry.name.endswith(".png") and entry.is_file():
            found.setdefault(entry.name, entry.path)
  return found


def _image_id(file: str) -> str:
  return file.removesuffix(".png")


# ── Labels ────────────────────────────────────────────────────────────────────────


def _bits(
  path: Path, radiographs: Mapping[str, Radiograph], tally: Tally
) -> Iterator[Annotation]:
  labels: Distinct[str, tuple[int, ...]] = Distinct(tally)
  columns = ("Image Index", "Finding Labels")
  for row, (file, cell) in table_rows(path, columns, tally):
    given = set(cell.split("|"))
    if _FILE.fullmatch(file) is None:
      reason = "image name of the wrong form"
    elif given - _KNOWN_LABELS - {_NO_FINDING}:
      reason = "label of another name"
    elif _NO_FINDING in given and len(given) > 1:
      reason = "No Finding beside a finding"
    else:
      found = {_FINDING_OF_LABEL.get(label) for label in given}
      bits = tuple([int(name in found) for name in NAMES])
      if _image_id(file) in radiographs:
        labels.add(_image_id(file), bits, path, row)
      else:
        tally.absent(_image_id(file))
      continue
    tally.reject(tally.name(path), row, reason, BITS_RULE)
  for name, bits, file, row in labels.items():
    tally.keep()
    origin = tally.origin(file, row, BITS_RULE)
    yield Annotation(name, "multi_label", "", Bits(bits, NAMES), origin)


# ── Boxes ─────────────────────────────────────────────────────────────────────────


def _regions(
  path: Path, radiographs: Mapping[str, Radiograph], tally: Tally
) -> Iterator[Annotation]:
  drawn: dict[tuple[str, str], dict[_PixelBox, int]] = {}
  for row, cells in _box_rows(path, tally):
    file, label, *numbers = cells
    label = _SPELLING.get(label, label)
    box = _box(numbers)
    if _FILE.fullmatch(file) is None:
      reason = "image name of the wrong form"
    elif label not in _KNOWN_LABELS:
      reason = "label of another name"
    elif isinstance(box, str):
      reason = box
    else:
      name = _FINDING_OF_LABEL.get(label, label).replace("_", " ").lower()
      boxes = drawn.setdefault((_image_id(file), name), {})
      if _image_id(file) not in radiographs:
        tally.absent(_image_id(file))
      elif box in boxes:
        tally.leave_out("says again what another row says")
      else:
        boxes[box] = row
      continue
    tally.reject(tally.name(path), row, reason, BOX_RULE)
  for (image_id, name), boxes in drawn.items():
    for (x_min, y_min, x_max, y_max), row in boxes.items():
      fractions: Box = (x_min / SIZE, y_min / SIZE, x_max / SIZE, y_max / SIZE)
      region, origin = Region(name, fractions), tally.origin(path, row, BOX_RULE)
      if len(boxes) == 1:
        tally.keep()
        yield Annotation(image_id, "rec", name, region, origin)
      else:
        tally.leave_out("rec: several boxes of one finding")
      tally.keep()
      yield Annotation(image_id, "reg", name, region, origin)


def _box_rows(path: Path, tally: Tally) -> Iterator[tuple[int, list[str]]]:
  """(data row from 0, its six cells) of the good rows."""
  if table_header(path)[: len(_BOX_HEADER)] != _BOX_HEADER:
    raise DamagedFile(
      path,
      "expected the columns Image Index, Finding Label, Bbox [x,y,w,h]",
      "Is this the file it is named after?",
    )
  try:
    with open_bytes(path) as lines:
      lines.readline(MAX_ROW_BYTES)
      for row, line in enumerate(grouped_rows(path, lines, None)):
        tally.rows += 1
        # A spreadsheet pads the rows with the header's three empty columns.
        cells = split_row(line.rstrip(b"\r\n,"), len(_BOX_HEADER))
        if isinstance(cells, str):
          reason = "has more or fewer than six cells" if "cells" in cells else cells
          tally.reject(tally.name(path), row, reason, BOX_RULE)
        else:
          yield row, cells
  except DamagedFile:
    raise
  except READ_ERRORS as error:
    raise DamagedFile(
      path, f"cannot be read to its end ({type(error).__name__})", AGAIN
    ) from None


def _box(cells: list[str]) -> _PixelBox | str:
  """(x_min, y_min, x_max, y_max) in pixels of x, y, w, h; or why there is none."""
  try:
    x, y, width, height = (float(cell) for cell in cells)
  except ValueError:
    return "box not of numbers"
  if not all(map(math.isfinite, (x, y, width, height))):
    return "box not of numbers"
  if width <= 0 or height <= 0:
    return "box without area"
  edges = (x, y, x + width, y + height)
  x_min, y_min, x_max, y_max = (min(max(edge, 0.0), float(SIZE)) for edge in edges)
  if min(edges) < -_SLACK_PX or max(edges) > SIZE + _SLACK_PX:
    return "box outside its image"
  if x_min >= x_max or y_min >= y_max:
    return "box outside its image"
  return x_min, y_min, x_max, y_max
