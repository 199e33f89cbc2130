"""CheXmask 1.0.0: masks of heart and lungs, read straight as boxes.

    OriginalResolution/MIMIC-CXR-JPG.csv
    dicom_id,Dice RCA (Mean),Dice RCA (Max),Landmarks,
    Left Lung,Right Lung,Heart,Height,Width

13 GB in one csv whose landmark cells hold newlines: it is streamed and no mask is
decoded. A mask is "start length start length …", starts from 1, row-major. Left and
right are the patient's.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from imax_jax.data.sources.reading import NOT_FRONTAL
from imax_jax.data.sources.reading import Counts
from imax_jax.data.sources.reading import find_file
from imax_jax.data.sources.reading import image_id_of
from imax_jax.data.sources.reading import log_counts
from imax_jax.data.sources.reading import table_rows
from imax_jax.schema import ORGANS
from imax_jax.schema import Annotation
from imax_jax.schema import Box
from imax_jax.schema import Origin
from imax_jax.schema import Radiograph
from imax_jax.schema import Region

REMEDY = (
  "Point chexmask at the folder of https://physionet.org/content/"
  "chexmask-cxr-segmentation-data/1.0.0/ (open access)."
)
FILE = "OriginalResolution/MIMIC-CXR-JPG.csv"
# The publishers' own gate on the estimated Dice coefficient.
MIN_DICE = 0.7
_COLUMN_OF_ORGAN = {
  "heart": "Heart",
  "left lung": "Left Lung",
  "right lung": "Right Lung",
}


def run_length_box(
  text: str, height: int, width: int
) -> tuple[int, int, int, int] | None:
  """The box of a run-length mask in pixels, ends exclusive; None for an empty mask.

      run_length_box("2 2 12 1", height=3, width=5) -> (1, 0, 3, 3)

  Raises:
    ValueError: an odd number of numbers, a non-number, or a run outside the image.
  """
  if not text.strip():
    return None
  # Parses in C, seven times as fast as int() of each: 13 GB are mostly such numbers.
  numbers = np.fromstring(text, dtype=np.int64, sep=" ")
  if numbers.size != len(text.split()) or numbers.size % 2:
    raise ValueError("a mask is not made of start-length pairs of whole numbers")
  first, length = numbers[0::2] - 1, numbers[1::2]
  last = first + length - 1
  if first.min() < 0 or length.min() < 1 or last.max() >= height * width:
    raise ValueError(f"a run of a mask lies outside its {height} x {width} image")
  wraps = first // width != last // width
  left = np.where(wraps, 0, first % width)
  right = np.where(wraps, width - 1, last % width)
  return (
    int(left.min()),
    int((first // width).min()),
    int(right.max()) + 1,
    int((last // width).max()) + 1,
  )


def read(
  root: str | Path,
  radiographs: Mapping[str, Radiograph],
  *,
  min_dice: float = MIN_DICE,
  counts: Counts | None = None,
) -> Iterator[Annotation]:
  """Yields for each image three "rec" and three "reg" annotations: the `ORGANS`.

  An image counts only with all three masks. Height and Width must be the metadata's
  Rows and Columns; exchanged (the publishers' back-projection scripts do so), the runs
  are read with the recorded pair and normalised by the metadata's.

  Raises:
    FileNotFoundError: the file is missing.
    ValueError: other columns, or a damaged file.
  """
  counts = Counts() if counts is None else counts
  names = [FILE, f"{FILE}.gz", Path(FILE).name]
  path = find_file(root, names, remedy=REMEDY)
  columns = ("dicom_id", "Dice RCA (Mean)", "Height", "Width")
  masks = tuple(_COLUMN_OF_ORGAN[organ] for organ in ORGANS)
  given: set[str] = set()
  for row, (dicom, dice, height, width, *cells) in table_rows(path, (*columns, *masks)):
    name = image_id_of(dicom)
    if name not in radiographs:
      counts[NOT_FRONTAL] += 1
      continue
    if name in given:
      counts["repeated image id"] += 1
      continue
    boxes = _boxes(radiographs[name], dice, height, width, cells, min_dice, counts)
    if boxes is None:
      continue
    given.add(name)
    counts["kept"] += 1
    for task in ("rec", "reg"):
      for organ, box in zip(ORGANS, boxes, strict=True):
        region = Region(organ, box)
        yield Annotation(name, task, organ, region, Origin(path.name, row))
  log_counts("chexmask", counts)


def _boxes(
  radiograph: Radiograph,
  dice: str,
  height: str,
  width: str,
  cells: list[str],
  min_dice: float,
  counts: Counts,
) -> list[Box] | None:
  """The organs' boxes as fractions, or None after counting why not."""
  try:
    rows, columns = int(float(height)), int(float(width))
    if not float(dice) >= min_dice:  # a NaN fails too
      counts["Dice RCA below the gate"] += 1
      return None
    size = (radiograph.height, radiograph.width)
    if (rows, columns) not in (size, size[::-1]):
      counts["size differs from the metadata's"] += 1
      return None
    pixels = [run_length_box(cell, rows, columns) for cell in cells]
  except ValueError:
    counts["malformed number or mask"] += 1
    return None
  if any(box is None for box in pixels):
    counts["a mask is empty"] += 1
    return None
  width_px, height_px = radiograph.width, radiograph.height
  fractions = [
    (
      min(x0 / width_px, 1.0),
      min(y0 / height_px, 1.0),
      min(x1 / width_px, 1.0),
      min(y1 / height_px, 1.0),
    )
    for x0, y0, x1, y1 in (box for box in pixels if box is not None)
  ]
  if any(x0 >= x1 or y0 >= y1 for x0, y0, x1, y1 in fractions):
    counts["a mask lies outside the image"] += 1
    return None
  return fractions
