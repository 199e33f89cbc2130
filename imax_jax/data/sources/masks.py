"""Masks of heart and lungs: their boxes, their areas, and the two ratios of the heart.

A mask is a boolean array [H, W], or run-length text, on which the arithmetic is done
without decoding it: "start length start length …", starts from 1, row-major (CheXmask).

    "2 2 12 1" in a 3 x 5 image       . # # . .
                                      . . . . .       box (1, 0, 3, 3), area 3
                                      . # . . .

Boxes are (x_min, y_min, x_max, y_max) in pixels, ends exclusive.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from imax_jax.schema import ORGANS
from imax_jax.schema import Box

PixelBox = tuple[int, int, int, int]

HEART, LEFT_LUNG, RIGHT_LUNG = ORGANS
# What the two ratios are when they are computed here, for the rules of the readers.
DEFINITIONS: dict[str, str] = {
  "ctr": "CTR from masks: the width of the heart's box over the width of the box "
  "around both lungs.",
  "cpar": "CPAR from masks: the heart's area over the sum of the two lungs' areas.",
}
_DIGITS_AND_SPACES = b"0123456789 "


# ── Run-length text ───────────────────────────────────────────────────────────────


@dataclasses.dataclass(frozen=True, slots=True)
class Runs:
  """A mask of at least one pixel as its runs, in order and apart from each other.

  `first` and `last` are int64[runs], each run's first and last pixel, counted row by
  row from 0 in an image `width` pixels wide. A run may go on over the end of a row.
  """

  first: np.ndarray
  last: np.ndarray
  width: int

  @property
  def area(self) -> int:
    """In pixels."""
    return int((self.last - self.first).sum()) + self.first.size

  def box(self) -> PixelBox:
    """In pixels, ends exclusive."""
    top, left = np.divmod(self.first, self.width)
    bottom, right = np.divmod(self.last, self.width)
    wraps = bottom > top
    if wraps.any():
      x_min, x_max = 0, self.width - 1
    else:
      x_min, x_max = int(left.min()), int(right.max())
    return x_min, int(top[0]), x_max + 1, int(bottom[-1]) + 1


def parse_runs(text: str, height: int, width: int) -> Runs | None:
  """The runs of a mask's text; None for an empty mask (an empty cell).

  Raises:
    ValueError: not whole numbers parted by one space, an odd number of them, a run that
      is empty or outside the image, or runs that overlap or are not in order: an area
      would count their pixels twice. The message holds nothing of the text.
  """
  text = text.strip()
  if not text:
    return None
  if not text.isascii() or text.encode().translate(None, _DIGITS_AND_SPACES):
    raise ValueError("a mask is not made of whole numbers")
  # Parses in C, seven times as fast as int() of each: a release is mostly such numbers.
  numbers = np.fromstring(text, dtype=np.int64, sep=" ")
  if numbers.size != text.count(" ") + 1 or numbers.size % 2:
    raise ValueError("a mask is not made of start-length pairs")
  start, length = numbers[0::2], numbers[1::2]
  pixels = height * width
  # Both bounds before the sum: numbers too long for int64 read as its largest.
  if start.min() < 1 or start.max() > pixels:
    raise ValueError("a run of a mask lies outside its image")
  if length.min() < 1 or length.max() > pixels:
    raise ValueError("a run of a mask is empty, or longer than its image")
  first, last = start - 1, start + length - 2
  if (first[1:] <= last[:-1]).any():
    raise ValueError("runs of a mask overlap or are not in order")
  if last[-1] >= pixels:
    raise ValueError("a run of a mask lies outside its image")
  return Runs(first, last, width)


# ── Arrays ────────────────────────────────────────────────────────────────────────


def box_of(mask: np.ndarray) -> PixelBox | None:
  """The box of a bool[H, W] mask in pixels, ends exclusive; None for an empty mask."""
  rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
  if not rows.size:
    return None
  return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def area_of(mask: np.ndarray) -> int:
  """The pixels of a bool[H, W] mask."""
  return int(np.count_nonzero(mask))


def fractions(box: PixelBox, width: int, height: int) -> Box:
  """A box in pixels as fractions of the image."""
  x_min, y_min, x_max, y_max = box
  return x_min / width, y_min / height, x_max / width, y_max / height


# ── The ratios ────────────────────────────────────────────────────────────────────


def ctr(boxes: Mapping[str, PixelBox]) -> float:
  """The cardiothoracic ratio from the boxes of the three `ORGANS`, in pixels.

      (heart's rightmost - leftmost pixel + 1) / (lungs' rightmost - leftmost pixel + 1)

  The numerator is the paper's: the horizontal distance between the extremes of the
  heart's shadow (appendix A). The denominator is not quite: the paper's is the
  distance between the inner sides of the ribs at the level of the hemidiaphragms,
  this one the widest extent of the lungs, at whichever heights its two sides lie. Where
  a lung mask ends inside of the ribs the ratio is too large, where it is widest off
  that level too small, and where one lung is masked in part it is wrong. It may exceed
  1; a reader holds it to (0, 1).
  """
  left, right = boxes[LEFT_LUNG], boxes[RIGHT_LUNG]
  thorax = max(left[2], right[2]) - min(left[0], right[0])
  return (boxes[HEART][2] - boxes[HEART][0]) / thorax


def cpar(areas: Mapping[str, int]) -> float:
  """The cardiopulmonary area ratio from the areas of the three `ORGANS`.

      heart / (left lung + right lung)

  The paper's: the area of the heart's shadow to that of the lungs. A pixel that masks
  of heart and lung both claim (some 3 to 5 % in CheXmask) counts above and below the
  line; one that both lungs claim counts twice. The lung behind the heart and below the
  dome of the diaphragm counts only where a mask draws it.
  """
  return areas[HEART] / (areas[LEFT_LUNG] + areas[RIGHT_LUNG])
