"""VinDr-CXR's boxes: the rows of its tables, and the regions they come to."""

from __future__ import annotations

import collections
import re
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from imax_jax.data.sources.agreement import Drawn
from imax_jax.data.sources.agreement import agree
from imax_jax.data.sources.intake import DamagedFile
from imax_jax.data.sources.intake import Tally
from imax_jax.data.sources.reading import table_header
from imax_jax.data.sources.reading import table_rows
from imax_jax.schema import Annotation
from imax_jax.schema import Box
from imax_jax.schema import Radiograph
from imax_jax.schema import Region

RULE = "vindr/region"
RULE_TEXT = (
  'A box inside its image, under its class_name in lower case; "Other lesion" has no '
  "name to ask for. Where one box of an image is outside of it none of its boxes is "
  "used. REC leaves out names that an image has twice."
)
NO_FINDING, OTHER = "no finding", "other lesion"
_BEYOND = "a box of this image is outside of it: is the image a smaller copy?"
# Single rows may be wrong; this many images are not.
_FEW_BEYOND, _SHARE_BEYOND = 3, 0.05
IMAGE_NAME = re.compile(r"[0-9a-f]{32}")


class Row(NamedTuple):
  """`reader` is "" in a consensus. `box` is in pixels; None: none drawn, or a bad one."""

  row: int
  image_id: str
  reader: str
  finding: str
  box: Box | None


def read_rows(
  path: Path, radiographs: Mapping[str, Radiograph], tally: Tally
) -> list[Row]:
  """The rows about `radiographs`; those with a bad box are listed and have none."""
  read = "rad_id" in table_header(path)
  columns = ("image_id", "rad_id" if read else "image_id", "class_name")
  rows: dict[tuple[str, str, str, tuple[str, ...]], Row] = {}
  for row, (cell, reader, finding, *sides) in table_rows(
    path, (*columns, "x_min", "y_min", "x_max", "y_max"), tally
  ):
    file, image_id = tally.name(path), f"vindr/{cell}"
    name = " ".join(finding.lower().split())
    key = (image_id, reader, name, tuple(sides))
    if not IMAGE_NAME.fullmatch(cell) or not reader.strip() or not name:
      tally.reject(file, row, "image id, reader or class_name of the wrong form", RULE)
    elif image_id not in radiographs:
      tally.absent(image_id)
    elif key in rows:
      tally.leave_out("says again what another row says")
    else:
      box = None if name == NO_FINDING else _box(sides)
      if isinstance(box, str):
        tally.reject(file, row, box, RULE)
        box = None
      rows[key] = Row(row, image_id, reader if read else "", name, box)
  return list(rows.values())


def _box(sides: Sequence[str]) -> Box | str:
  try:
    x_min, y_min, x_max, y_max = (float(side) for side in sides)
  except ValueError:
    return "box is not four numbers"
  # Chained, so that a NaN fails too; no image is a million pixels wide.
  if not (0 <= x_min < x_max < 1e6 and 0 <= y_min < y_max < 1e6):
    return "box empty or outside the image"
  return x_min, y_min, x_max, y_max


def regions(
  path: Path,
  rows: Sequence[Row],
  radiographs: Mapping[str, Radiograph],
  tally: Tally,
) -> Iterator[Annotation]:
  """Yields the regions of each image, for REC and for REG.

  Raises:
    DamagedFile: the boxes of many images reach outside of them.
  """
  drawn: dict[str, dict[str, list[Drawn]]] = {}
  beyond: dict[str, list[int]] = {}
  for row, image_id, reader, finding, box in rows:
    if finding in (NO_FINDING, OTHER):
      tally.leave_out(f"region: {finding}")
    elif box is not None:
      radiograph = radiographs[image_id]
      if box[2] > radiograph.width + 1 or box[3] > radiograph.height + 1:
        beyond.setdefault(image_id, []).append(row)
      names = drawn.setdefault(image_id, {})
      names.setdefault(finding, []).append(Drawn(reader, row, box))
  if len(beyond) > max(_FEW_BEYOND, _SHARE_BEYOND * len(drawn)):
    raise DamagedFile(
      path,
      f"has boxes outside of {len(beyond)} of {len(drawn)} images",
      "The images are smaller copies: put the DICOM files beside them, or convert those "
      "at full size",
    )
  for image_id, names in drawn.items():
    if image_id in beyond:
      for one in sorted(one.row for group in names.values() for one in group):
        tally.reject(tally.name(path), one, _BEYOND, RULE)
    else:
      yield from _of_image(path, radiographs[image_id], names, tally)


def _of_image(
  path: Path,
  radiograph: Radiograph,
  names: Mapping[str, Sequence[Drawn]],
  tally: Tally,
) -> Iterator[Annotation]:
  found: list[tuple[int, str, Box]] = []
  for name, group in names.items():
    if group[0].reader:
      agreed, alone, unclear = agree(group)
      tally.leave_out("region: of one reader only", alone)
      tally.leave_out("region: readers' boxes can not be paired", unclear)
    else:
      agreed = [(one.row, one.box) for one in group]
    found += [(row, name, _fractions(box, radiograph)) for row, box in agreed]
  often = collections.Counter(name for _, name, _ in found)
  for task in ("rec", "reg"):
    for row, name, fractions in sorted(found):
      if task == "rec" and often[name] > 1:
        tally.leave_out("rec: several boxes of one name")
        continue
      tally.keep()
      origin = tally.origin(path, row, RULE)
      yield Annotation(radiograph.image_id, task, name, Region(name, fractions), origin)


def _fractions(box: Box, radiograph: Radiograph) -> Box:
  """Pixels -> fractions; up to one pixel outside is rounding, and cut off."""
  width, height = radiograph.width, radiograph.height
  x_min, y_min, x_max, y_max = box
  return (
    min(x_min / width, 1.0), min(y_min / height, 1.0),
    min(x_max / width, 1.0), min(y_max / height, 1.0),
  )  # fmt: skip
