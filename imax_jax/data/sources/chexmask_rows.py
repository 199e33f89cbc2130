"""One piece of a CheXmask file, measured: what a worker process does."""

from __future__ import annotations

import collections
import dataclasses
import math
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO
from typing import NamedTuple

import numpy as np

from imax_jax.data.sources.files import AGAIN
from imax_jax.data.sources.files import open_bytes
from imax_jax.data.sources.intake import DamagedFile
from imax_jax.data.sources.masks import PixelBox
from imax_jax.data.sources.masks import Runs
from imax_jax.data.sources.masks import parse_runs
from imax_jax.data.sources.reading import BOM
from imax_jax.data.sources.reading import MAX_ROW_BYTES
from imax_jax.data.sources.reading import column_places
from imax_jax.data.sources.reading import grouped_rows
from imax_jax.data.sources.reading import split_row
from imax_jax.schema import ORGANS

_COLUMN_OF_ORGAN = {
  "heart": "Heart",
  "left lung": "Left Lung",
  "right lung": "Right Lung",
}
# Which of the 120 landmarks outline an organ.
_LANDMARKS = {
  "right lung": slice(0, 44),
  "left lung": slice(44, 94),
  "heart": slice(94, 120),
}
_NO_BRACKETS = str.maketrans("[],\n", "    ")
# A mask is its landmarks' polygon with rounded corners, so that boxes may differ by it.
_TOLERANCE_PX = 2
# What is asked of every row, and under which key of `Found.seen` the yeses are.
QUESTIONS: dict[str, str] = {
  "masks lie where their landmarks do": "as landmarks",
  "only with Height and Width exchanged, and are read so": "as exchanged landmarks",
  "the left lung lies on the image's right": "patient's left",
  "Dice RCA (Mean) is at most Dice RCA (Max)": "mean at most max",
}


class Piece(NamedTuple):
  """The rows of a file that begin in bytes [start, end)."""

  path: Path
  start: int
  end: int
  header: tuple[str, ...]
  id_column: str
  row_start: bytes
  min_dice: float


class Measured(NamedTuple):
  """An image's masks: height and width as recorded; boxes (ends exclusive) and areas in
  pixels, in the order of `ORGANS`.
  """

  image_id: str
  size: tuple[int, int]
  boxes: tuple[PixelBox, ...]
  areas: tuple[int, ...]


@dataclasses.dataclass
class Found:
  """What a piece holds; rows count from its first."""

  num_rows: int = 0
  measured: list[tuple[int, Measured]] = dataclasses.field(default_factory=list)
  rejected: list[tuple[int, str]] = dataclasses.field(default_factory=list)
  left_out: collections.Counter[str] = dataclasses.field(
    default_factory=collections.Counter
  )
  seen: collections.Counter[str] = dataclasses.field(
    default_factory=collections.Counter
  )


def places_of(path: Path, header: tuple[str, ...], id_column: str) -> list[int]:
  """Where id, mean, max, landmarks, height, width and the masks of `ORGANS` stand.

  Raises:
    DamagedFile: a column is missing.
  """
  columns = (
    id_column, "Dice RCA (Mean)", "Dice RCA (Max)", "Landmarks", "Height", "Width",
    *(_COLUMN_OF_ORGAN[organ] for organ in ORGANS),
  )  # fmt: skip
  return column_places(path, header, columns)


def measure(piece: Piece) -> Found:
  """All rows of a piece.

  Raises:
    DamagedFile: the file can not be read to its end.
  """
  places = places_of(piece.path, piece.header, piece.id_column)
  begins = re.compile(piece.row_start)
  found = Found()
  for row in _rows(piece, begins):
    number = found.num_rows
    found.num_rows += 1
    row = row.removeprefix(BOM)
    cells = _cells(row, len(piece.header))
    if not isinstance(cells, str) and not begins.match(row):
      cells = "image id of the wrong form"
    if isinstance(cells, str):
      found.rejected.append((number, cells))
      continue
    try:
      measured = _measured([cells[place] for place in places], piece.min_dice, found)
    except ValueError as error:  # of our own words, never of a cell's
      found.rejected.append((number, str(error)))
      continue
    if measured is not None:
      found.measured.append((number, measured))
  return found


def _rows(piece: Piece, begins: re.Pattern[bytes]) -> Iterator[bytes]:
  """The rows that begin in the piece; the last one may reach beyond it."""
  try:
    with open_bytes(piece.path) as file:
      place = len(file.readline(MAX_ROW_BYTES))  # the header
      if piece.start > place:
        # A line that begins where the piece does belongs to it: look one byte back.
        file.seek(piece.start - 1)
        place = piece.start - 1 + len(file.readline(MAX_ROW_BYTES))
        place = _skip_to_row(file, place, begins)
      yield from grouped_rows(
        piece.path, file, begins, len(piece.header), place, piece.end
      )
  except DamagedFile:
    raise
  except (EOFError, OSError, zlib.error) as error:
    raise DamagedFile(
      piece.path, f"cannot be read to its end ({type(error).__name__})", AGAIN
    ) from None


def _skip_to_row(file: BinaryIO, place: int, begins: re.Pattern[bytes]) -> int:
  """Moves to the next line that begins a row; gives its place."""
  while line := file.readline(MAX_ROW_BYTES):
    if begins.match(line):
      file.seek(place)
      break
    place += len(line)
  return place


def _cells(row: bytes, expected: int) -> list[str] | str:
  """As `split_row`, at a tenth of its time where one cell is quoted, as landmarks are."""
  parts = row.rstrip(b"\r\n").split(b'"')
  if len(parts) == 3 and parts[0].endswith(b",") and parts[2].startswith(b","):
    cells = [*parts[0][:-1].split(b","), parts[1], *parts[2][1:].split(b",")]
    if len(cells) == expected and b"\0" not in row:
      try:
        return [cell.decode() for cell in cells]
      except UnicodeDecodeError:
        return "is not UTF-8"
  return split_row(row, expected)


def _measured(cells: list[str], min_dice: float, found: Found) -> Measured | None:
  """What a row says, None where it is left out; counts it in `found`.

  Raises:
    ValueError: with a reason that shows nothing of a cell.
  """
  identity, mean_text, max_text, points, height_text, width_text, *masks = cells
  mean, most = _number(mean_text), _number(max_text)
  height, width = int(_number(height_text)), int(_number(width_text))
  if not 0 < height < 2**16 or not 0 < width < 2**16:
    raise ValueError("Height or Width is not a size")
  if not mean >= min_dice:
    found.left_out["Dice RCA below the gate"] += 1
    return None
  if any(not mask.strip() for mask in masks):
    found.left_out["a mask is empty"] += 1
    return None
  runs = [run for mask in masks if (run := parse_runs(mask, height, width)) is not None]
  boxes = tuple([run.box() for run in runs])
  boxes = _as_landmarks(boxes, runs, points, height, found)
  _, left_lung, right_lung = boxes
  found.seen["patient's left"] += left_lung[0] + left_lung[2] > sum(right_lung[::2])
  found.seen["mean at most max"] += mean <= most
  name = identity.strip().rsplit("/", 1)[-1].rsplit(".", 1)[0]
  areas = tuple([run.area for run in runs])
  return Measured(name, (height, width), boxes, areas)


def _number(text: str) -> float:
  try:
    number = float(text)
  except ValueError:
    number = math.nan
  if not math.isfinite(number):
    raise ValueError("Dice, Height or Width is not a number")
  return number


def _as_landmarks(
  boxes: tuple[PixelBox, ...], runs: list[Runs], points: str, height: int, found: Found
) -> tuple[PixelBox, ...]:
  """`boxes`, or those of the runs in rows as long as the image is high, where these and
  not the former lie where the landmarks do: then Height and Width are exchanged.
  """
  found.seen["rows"] += 1
  try:
    outline = np.fromstring(points.translate(_NO_BRACKETS), dtype=np.float64, sep=" ")
  except ValueError:  # damaged landmarks do not tell
    return boxes
  if outline.size != 240:
    return boxes
  outline = outline.reshape(120, 2)
  drawn = []
  for organ in ORGANS:
    part = outline[_LANDMARKS[organ]]
    drawn.append((*part.min(axis=0), *(part.max(axis=0) + 1)))
  if _near(boxes, drawn):
    found.seen["as landmarks"] += 1
    return boxes
  turned = tuple([dataclasses.replace(run, width=height).box() for run in runs])
  if not _near(turned, drawn):
    return boxes
  found.seen["as exchanged landmarks"] += 1
  return turned


def _near(boxes: tuple[PixelBox, ...], drawn: list[tuple[float, ...]]) -> bool:
  return bool(np.abs(np.subtract(boxes, drawn)).max() <= _TOLERANCE_PX)
