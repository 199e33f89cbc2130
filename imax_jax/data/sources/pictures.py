"""Image files of a download: their size without decoding them, and masks within bounds.

A release names image files in its tables, and anyone may have written either. So a
size is read from the header alone, and a mask is decoded only once its header promises
few enough pixels.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from imax_jax.data.geometry import MAX_PIXELS
from imax_jax.data.sources.intake import DamagedFile

# Named, so that PIL tries none of its other fifty decoders on a stranger's file.
IMAGE_FORMATS = ("PNG", "JPEG")
# JPEG is no format for a mask: it has no sharp edges.
MASK_FORMATS = ("PNG", "GIF", "BMP")
_UNREADABLE = (
  OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError,
  OverflowError, AttributeError, struct.error, zlib.error,
)  # fmt: skip
_ORIENTATION = 0x0112  # the EXIF tag
_ON_ITS_SIDE = (5, 6, 7, 8)


def size_of(path: Path, formats: Sequence[str] = IMAGE_FORMATS) -> tuple[int, int]:
  """An upright image's (width, height) in pixels, from its header.

  A photograph's EXIF orientation is carried out when it is decoded (`data.images`), so
  it counts here. PIL would decode a PNG to look for one behind its pixels: not looked for.

  Raises:
    DamagedFile: no image of these formats, or one of over `MAX_PIXELS` pixels.
  """
  try:
    with Image.open(path, formats=list(formats)) as image:
      width, height = image.size
      exif = image.getexif() if "exif" in image.info else {}
      if exif.get(_ORIENTATION) in _ON_ITS_SIDE:
        width, height = height, width
  except _UNREADABLE:
    raise DamagedFile(path, f"is no {' or '.join(formats)} image") from None
  except Image.DecompressionBombError:
    width = height = 0
  if not 0 < width * height <= MAX_PIXELS:
    raise DamagedFile(path, f"has no pixels, or over {MAX_PIXELS}")
  return width, height


def read_mask(path: Path) -> np.ndarray:
  """A mask's file -> bool[H, W]: the pixels above half of its brightest.

  So a mask of 0 and 1, one of 0 and 255 and one with soft edges are all read; an empty
  mask stays empty.

  Raises:
    DamagedFile: as `size_of`, or the file is cut short.
  """
  size_of(path, MASK_FORMATS)
  try:
    with Image.open(path, formats=list(MASK_FORMATS)) as image:
      values = np.asarray(image.convert("L"))
  except _UNREADABLE:
    raise DamagedFile(path, "can not be decoded to its end") from None
  return values > values.max() / 2
