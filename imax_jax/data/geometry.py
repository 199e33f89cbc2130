"""How a picture of any shape becomes an encoder's square, and its boxes with it.

    stretch   both sides to the square, aspect not kept (MiniGPT-v2, Uni-Med, SigLIP)
    pad       on a square canvas of the longer side, in the middle (LLaVA-Med 1.5,
              LLaVA-Tri, HealthGPT), then as stretch
    crop      the shorter side to the square's, then the middle (CLIP, LLaVA-Med 1.0)

What each does to a film of 2544 x 3056 pixels and its boxes, on a square of 224:

    way       cut off                           box's x times   box's y times
    stretch   nothing                           1.000           1.000
    pad       nothing                           0.832           1.000
    crop      8.2 % at the top, 8.6 % below     1.000           1.201

All resize with PIL's antialiased bicubic filter, as those models' own transforms do.
Boxes are fractions (`schema.Box`) of the upright picture, or of the square.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal
from typing import get_args

from PIL import Image

from imax_jax.schema import Box

# About four times the largest detector's. Below the count at which PIL warns, so that
# a picture is either read in silence or refused.
MAX_PIXELS = 80_000_000
# An object that is cut to less than half of its box is no fair target.
MIN_SHARE = 0.5

Kind = Literal["stretch", "pad", "crop"]
# What a JPEG file's reader may shrink by, and how many times the square's side must
# still be left. So read, each of 1,438 radiographs (512 pixels, to 48, 64 and 112) was
# less than 0.95 of 255 off its full reading on average over the picture; 8 times with
# the same margin were up to 1.5 off, twice with no margin up to 1.2.
_SHRINKS = (4, 2)
_MARGIN = 2


@dataclasses.dataclass(frozen=True, slots=True)
class Geometry:
  """One of the three ways.

  `fill` is the red, green and blue around a padded picture: by default the mean colour
  of CLIP's normalisation, int(255 * mean), as LLaVA's `expand2square` has it. A grey
  picture gets its luminance, 116.
  """

  kind: Kind = "stretch"
  fill: tuple[int, int, int] = (122, 116, 104)

  def __post_init__(self) -> None:
    if self.kind not in get_args(Kind):
      raise ValueError(
        f"geometry {self.kind!r}: expected one of {', '.join(get_args(Kind))}"
      )

  def fit(
    self,
    image: Image.Image,
    image_px: int,
    *,
    size: tuple[int, int] | None = None,
    shrunk: int = 1,
  ) -> Image.Image:
    """A picture, "L" or "RGB", -> the square of image_px a side, in the same mode.

    Args:
      size: width and height of the whole picture, where `image` is that picture shrunk
        to its `shrunk`-th part (sides rounded up).

    Raises:
      ValueError: a picture so narrow that its canvas would pass `MAX_PIXELS`.
    """
    width, height = size or image.size
    region = (width / shrunk, height / shrunk)
    sides = (image_px, image_px)
    if self.kind == "stretch":
      return image.resize(sides, Image.Resampling.BICUBIC, (0, 0, *region))
    if self.kind == "pad":
      canvas, box = self._pad(image, (width, height), shrunk)
      return canvas.resize(sides, Image.Resampling.BICUBIC, box)
    wide, high = _check(_short_side(width, height, image_px))
    whole = image.resize((wide, high), Image.Resampling.BICUBIC, (0, 0, *region))
    left, top = (wide - image_px) // 2, (high - image_px) // 2
    return whole.crop((left, top, left + image_px, top + image_px))

  def _pad(
    self, image: Image.Image, size: tuple[int, int], shrunk: int
  ) -> tuple[Image.Image, Box]:
    """The canvas, and the square on it in its pixels.

    A shrunk picture's place need not be a whole pixel: it goes on the next one, and the
    square begins that part of a pixel later. Of its last pixel only a part may be the
    picture's.
    """
    side = max(size)
    places = [math.ceil((side - own) // 2 / shrunk) for own in size]
    x, y = (
      place - (side - own) // 2 / shrunk
      for place, own in zip(places, size, strict=True)
    )
    right, bottom = x + side / shrunk, y + side / shrunk
    corner = _check((math.ceil(right), math.ceil(bottom)))
    fill = Image.new("RGB", (1, 1), self.fill).convert(image.mode).getpixel((0, 0))
    canvas = Image.new(image.mode, corner, fill)
    mask = Image.new("L", image.size, 255)
    mask.paste(_last_share(size[0], shrunk), (image.width - 1, 0, *image.size))
    mask.paste(_last_share(size[1], shrunk), (0, image.height - 1, *image.size))
    canvas.paste(image, (places[0], places[1]), mask)
    return canvas, (x, y, right, bottom)

  def shrink(self, width: int, height: int, image_px: int) -> int:
    """How many times smaller the picture may be read for a square of image_px: 1, 2, 4."""
    side = max(width, height) if self.kind == "pad" else min(width, height)
    for shrink in _SHRINKS:
      if side >= shrink * _MARGIN * image_px and min(width, height) >= shrink:
        return shrink
    return 1

  def to_square(
    self,
    box: Box,
    width: int,
    height: int,
    image_px: int,
    *,
    min_share: float = MIN_SHARE,
  ) -> Box | None:
    """A box of the picture -> the same of the square, cut to it.

    >>> Geometry("pad").to_square((0.0, 0.0, 1.0, 0.5), 100, 200, 224)
    (0.25, 0.0, 0.75, 0.5)

    Args:
      width, height: of the upright picture.
      image_px: the square's side; crop rounds to its pixels.
      min_share: of the box's area. None is returned where less, or nothing, is left.
    """
    moved = self._moved(box, width, height, image_px)
    left = _cut(moved)
    if left is None or _area(left) < min_share * _area(moved):
      return None
    return left

  def share(self, box: Box, width: int, height: int, image_px: int) -> float:
    """How much of a box's area is on the square, 0 to 1; 0 of a box without area."""
    moved = self._moved(box, width, height, image_px)
    left = _cut(moved)
    return 0.0 if left is None else _area(left) / _area(moved)

  def window(self, width: int, height: int, image_px: int) -> Box:
    """The square in fractions of the picture; where it is padded, it reaches beyond.

    >>> Geometry("pad").window(100, 200, 224)
    (-0.5, 0.0, 1.5, 1.0)
    """
    (x_scale, x_shift), (y_scale, y_shift) = self._axes(width, height, image_px)
    return (
      0.0 - x_shift / x_scale, 0.0 - y_shift / y_scale,
      (1 - x_shift) / x_scale, (1 - y_shift) / y_scale,
    )  # fmt: skip

  def to_picture(self, box: Box, width: int, height: int, image_px: int) -> Box | None:
    """A box of the square -> the same of the picture, cut to it; None: all beside it.

    Undoes `to_square`, but for what crop has cut off.
    """
    (x_scale, x_shift), (y_scale, y_shift) = self._axes(width, height, image_px)
    x_min, y_min, x_max, y_max = box
    return _cut((
      (x_min - x_shift) / x_scale, (y_min - y_shift) / y_scale,
      (x_max - x_shift) / x_scale, (y_max - y_shift) / y_scale,
    ))  # fmt: skip

  def _moved(self, box: Box, width: int, height: int, image_px: int) -> Box:
    """A box of the picture -> the same of the square, and beyond it."""
    (x_scale, x_shift), (y_scale, y_shift) = self._axes(width, height, image_px)
    x_min, y_min, x_max, y_max = box
    return (
      x_min * x_scale + x_shift, y_min * y_scale + y_shift,
      x_max * x_scale + x_shift, y_max * y_scale + y_shift,
    )  # fmt: skip

  def _axes(
    self, width: int, height: int, image_px: int
  ) -> tuple[tuple[float, float], tuple[float, float]]:
    """(scale, shift) of x and of y: fractions of the picture -> of the square."""
    if self.kind == "stretch":
      return (1.0, 0.0), (1.0, 0.0)
    if self.kind == "pad":
      side = max(width, height)
      x, y = ((own / side, (side - own) // 2 / side) for own in (width, height))
      return x, y
    x, y = (
      (own / image_px, -((own - image_px) // 2) / image_px)
      for own in _short_side(width, height, image_px)
    )
    return x, y


STRETCH = Geometry("stretch")


def _short_side(width: int, height: int, image_px: int) -> tuple[int, int]:
  """The size with the shorter side image_px; the other rounds down.

  So round Hugging Face's CLIPImageProcessor and torchvision's Resize. The crop's odd
  pixel goes to the end, as CLIPImageProcessor has it (torchvision rounds half to even).
  """
  short = min(width, height)
  return image_px * width // short, image_px * height // short


def _last_share(length: int, shrunk: int) -> int:
  """How much of a shrunk picture's last pixel is picture, of 255."""
  return round(255 * ((length - 1) % shrunk + 1) / shrunk)


def _check(size: tuple[int, int]) -> tuple[int, int]:
  if size[0] * size[1] > MAX_PIXELS:
    raise ValueError(
      f"a picture this narrow needs {size[0]} x {size[1]} pixels on its way to a square, "
      f"over the {MAX_PIXELS} allowed; cut it first, or use the geometry 'stretch'"
    )
  return size


def _cut(box: Box) -> Box | None:
  x_min, y_min, x_max, y_max = (min(max(side, 0.0), 1.0) for side in box)
  return (x_min, y_min, x_max, y_max) if x_min < x_max and y_min < y_max else None


def _area(box: Box) -> float:
  return (box[2] - box[0]) * (box[3] - box[1])
