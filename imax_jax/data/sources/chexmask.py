"""CheXmask 1.0.0: masks of heart and lungs, measured without decoding them.

    OriginalResolution/MIMIC-CXR-JPG.csv
    dicom_id,Dice RCA (Mean),Dice RCA (Max),Landmarks,
    Left Lung,Right Lung,Heart,Height,Width

13 GB in one csv whose landmark cells hold newlines: it is streamed, in pieces of
`PIECE_BYTES` that several processes measure. A mask is "start length start length …",
starts from 1, row-major. Left and right are the patient's. The other sets' files differ
in the name of the id column (`SETS`).

What is not known of the released files is looked at in every row and said in the log:
whether Height and Width are the metadata's Rows and Columns or the two exchanged (the
publishers' scripts disagree), whether the masks agree with their landmarks (if they do
only in rows as long as Height, they are read so), on which side the left lung lies, and whether the mean of Dice is at most its maximum.
"""

from __future__ import annotations

import collections
import multiprocessing
from collections.abc import Iterator
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from absl import logging

from imax_jax.data.sources.chexmask_rows import QUESTIONS
from imax_jax.data.sources.chexmask_rows import Found
from imax_jax.data.sources.chexmask_rows import Measured
from imax_jax.data.sources.chexmask_rows import Piece
from imax_jax.data.sources.chexmask_rows import measure
from imax_jax.data.sources.chexmask_rows import places_of
from imax_jax.data.sources.files import find_file
from imax_jax.data.sources.files import is_packed
from imax_jax.data.sources.intake import Distinct
from imax_jax.data.sources.intake import Tally
from imax_jax.data.sources.masks import cpar
from imax_jax.data.sources.masks import ctr
from imax_jax.data.sources.reading import table_header
from imax_jax.schema import ORGANS
from imax_jax.schema import Annotation
from imax_jax.schema import Box
from imax_jax.schema import Origin
from imax_jax.schema import Radiograph
from imax_jax.schema import Ratio
from imax_jax.schema import Region

REMEDY = (
  "Point chexmask at the folder of https://physionet.org/content/"
  "chexmask-cxr-segmentation-data/1.0.0/ (open access)."
)
# The publishers' own gate on the estimated Dice coefficient.
MIN_DICE = 0.7
PIECE_BYTES = 64 * 2**20
RULE = "chexmask/box"
RATIO_RULE = "chexmask/ratio"
RULES: dict[str, str] = {
  RULE: "The box around the runs of an organ's mask, where heart and both lungs have "
  f"one and Dice RCA (Mean) is at least {MIN_DICE}.",
  RATIO_RULE: "CTR: the width of the heart's mask over the width from the leftmost to "
  "the rightmost lung pixel. CPAR: the heart's pixels over those of both lungs.",
}


class Set(NamedTuple):
  """One of the five image sets: its file, id column, and how its rows begin."""

  file: str
  id_column: str
  row_start: bytes


SETS: dict[str, Set] = {
  "mimic": Set(
    "MIMIC-CXR-JPG.csv", "dicom_id", rb'"?[0-9a-f]{8}(?:-[0-9a-f]{8}){4}"?,'
  ),
  "nih": Set("ChestX-Ray8.csv", "Image Index", rb'"?\d{8}_\d{3}\.png"?,'),
  "vindr": Set("VinDr-CXR.csv", "image_id", rb'"?[0-9a-f]{32}(?:\.\w+)?"?,'),
}


def check_options(*, min_dice: float = MIN_DICE, **_: object) -> None:
  """Raises a ValueError if `read` does not take them."""
  if not 0 <= min_dice <= 1:
    raise ValueError(f"min_dice={min_dice}: expected a Dice coefficient, 0 to 1")


def read(
  root: str | Path,
  radiographs: Mapping[str, Radiograph],
  *,
  of: str = "mimic",
  min_dice: float = MIN_DICE,
  ratios: bool = False,
  workers: int = 1,
  tally: Tally | None = None,
) -> Iterator[Annotation]:
  """Yields for each image three "rec" and three "reg" annotations: the `ORGANS`.

  An image counts only with all three masks.

  Args:
    of: which image set, a key of `SETS`.
    min_dice: the least Dice RCA (Mean) of a mask that is used.
    ratios: yields "ctr" and "cpar" too, computed from the masks.
    workers: processes; the result does not depend on it.

  Raises:
    ValueError: as `check_options`.
    FileNotFoundError: the file is missing.
    DamagedFile: other columns, or it can not be read to its end.
  """
  check_options(min_dice=min_dice)
  tally = Tally("chexmask") if tally is None else tally
  which = SETS[of]
  path = find_file(
    root, [f"OriginalResolution/{which.file}", which.file], remedy=REMEDY, tally=tally
  )
  organs: Distinct[str, tuple[Measured, bool]] = Distinct(tally)
  for row, measured in _measure(path, which, min_dice, workers, tally):
    radiograph = radiographs.get(measured.image_id)
    if radiograph is None:
      tally.absent(measured.image_id)
      continue
    size = (radiograph.height, radiograph.width)
    if measured.size not in (size, size[::-1]):
      reason = "Height and Width are not the image's"
      tally.reject(tally.name(path), row, reason, RULE)
    else:
      organs.add(measured.image_id, (measured, measured.size == size), path, row)
  exchanged = collections.Counter(same for _, (_, same), _, _ in organs.items())
  if exchanged:
    tally.met(
      "Height and Width",
      f"the image's own in {exchanged[True]} rows, exchanged in {exchanged[False]}",
    )
  for name, (measured, _), _, row in organs.items():
    boxes = _fractions(measured, radiographs[name])
    if boxes is None:
      tally.reject(tally.name(path), row, "a mask lies outside the image", RULE)
      continue
    said = list(_regions(name, boxes, tally.origin(path, row, RULE)))
    if ratios:
      said += _ratios(name, measured, tally.origin(path, row, RATIO_RULE))
    tally.keep(len(said))
    yield from said
  tally.log()


def _regions(name: str, boxes: list[Box], origin: Origin) -> Iterator[Annotation]:
  for task in ("rec", "reg"):
    for organ, box in zip(ORGANS, boxes, strict=True):
      yield Annotation(name, task, organ, Region(organ, box), origin)


def _ratios(name: str, measured: Measured, origin: Origin) -> Iterator[Annotation]:
  boxes = dict(zip(ORGANS, measured.boxes, strict=True))
  areas = dict(zip(ORGANS, measured.areas, strict=True))
  for kind, value in (("ctr", ctr(boxes)), ("cpar", cpar(areas))):
    if 0 < value < 1:
      yield Annotation(name, "calculation", kind, Ratio(value), origin)


def _measure(
  path: Path, which: Set, min_dice: float, workers: int, tally: Tally
) -> Iterator[tuple[int, Measured]]:
  """Yields (row, what is measured in it) in the order of the rows."""
  header = tuple(table_header(path))
  places_of(path, header, which.id_column)  # fails before any work
  pieces = _pieces(path, header, which, min_dice)
  first_row = 0
  seen: collections.Counter[str] = collections.Counter()
  for found in _over(pieces, workers):
    for row, reason in found.rejected:
      tally.reject(tally.name(path), first_row + row, reason, RULE)
    for reason, count in found.left_out.items():
      tally.leave_out(reason, count)
    for row, measured in found.measured:
      yield first_row + row, measured
    first_row += found.num_rows
    tally.rows += found.num_rows
    seen.update(found.seen)
  for question, key in QUESTIONS.items():
    tally.met(question, f"in {seen[key]} of {seen['rows']} rows")
  if 2 * (seen["as landmarks"] + seen["as exchanged landmarks"]) < seen["rows"]:
    logging.warning(
      "%s: most masks do not lie where their landmarks do; look at some boxes before "
      "you use any", tally.name(path),
    )  # fmt: skip


def _pieces(
  path: Path, header: tuple[str, ...], which: Set, min_dice: float
) -> list[Piece]:
  """The file in ranges of bytes; a row belongs to the range that it begins in."""
  size = path.stat().st_size
  # A gzip file has no middle to begin in.
  step = max(size, 1) if is_packed(path) else PIECE_BYTES
  return [
    Piece(path, start, start + step, header, which.id_column, which.row_start, min_dice)
    for start in range(0, max(size, 1), step)
  ]


def _over(pieces: list[Piece], workers: int) -> Iterator[Found]:
  if workers <= 1 or len(pieces) == 1:
    yield from map(measure, pieces)
    return
  # Not fork: the parent may hold threads of jax or grain.
  with multiprocessing.get_context("spawn").Pool(min(workers, len(pieces))) as pool:
    yield from pool.imap(measure, pieces)


def _fractions(measured: Measured, radiograph: Radiograph) -> list[Box] | None:
  """Boxes by the metadata's size; None if one has nothing inside it."""
  width, height = radiograph.width, radiograph.height
  boxes = [
    (min(x0 / width, 1.0), min(y0 / height, 1.0),
     min(x1 / width, 1.0), min(y1 / height, 1.0))
    for x0, y0, x1, y1 in measured.boxes
  ]  # fmt: skip
  return None if any(x0 >= x1 or y0 >= y1 for x0, y0, x1, y1 in boxes) else boxes
