"""Encoded image files -> pixels, upright, grey or in colour. Pure functions of their bytes.

PNG, JPEG, TIFF, BMP, GIF, WebP, JPEG 2000, PNM, and DICOM (`data.dicom`). A file's EXIF
orientation is carried out: widths, heights and boxes anywhere in this package are those
of the picture as it is shown. Of several frames or pages the first is taken.
Transparency is ignored. A file whose header declares over `MAX_PIXELS` is refused before
anything is unpacked.
"""

from __future__ import annotations

import io
import struct
import zlib
from typing import NamedTuple

import numpy as np
from PIL import Image

from imax_jax.data import dicom
from imax_jax.data.geometry import MAX_PIXELS
from imax_jax.data.geometry import STRETCH
from imax_jax.data.geometry import Geometry

# Not all that PIL knows: it hands some to other programs (EPS), and few are ever used.
_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "JPEG2000", "PPM")

# What PIL raises over files that are cut short, corrupt or no image at all.
_UNREADABLE = (
  OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError,
  OverflowError, AttributeError, struct.error, zlib.error,
)  # fmt: skip
_BOMB = (Image.DecompressionBombError, Image.DecompressionBombWarning)

_ORIENTATION = 0x0112  # the EXIF tag; the values are those of EXIF 2.3, 4.6.4
_UPRIGHT = {
  2: Image.Transpose.FLIP_LEFT_RIGHT,
  3: Image.Transpose.ROTATE_180,
  4: Image.Transpose.FLIP_TOP_BOTTOM,
  5: Image.Transpose.TRANSPOSE,
  6: Image.Transpose.ROTATE_270,
  7: Image.Transpose.TRANSVERSE,
  8: Image.Transpose.ROTATE_90,
}


class _Picture(NamedTuple):
  image: Image.Image  # "L" or "RGB", upright
  size: tuple[int, int]  # width and height of the whole picture
  shrunk: int  # image is the whole picture's shrunk-th part
  plain: bool  # the file itself is an 8-bit grey PNG or JPEG, stored upright


def decode(data: bytes, *, name: str = "image", colour: bool = False) -> np.ndarray:
  """An encoded image -> uint8[H, W], grey, or uint8[H, W, 3] with `colour`.

  Colour and palettes become luminance (ITU-R 601-2, as PIL's); grey in colour is three
  times the same. A 16-bit image is brought to 8 bits from the smallest depth that holds
  its maximum, since files of 10, 12 and 16 bits all come in the same 16-bit container.

  Args:
    data: the whole file.
    name: the path or id that an error should name.

  Raises:
    ValueError: the bytes are not a readable image, or one of too many pixels.
  """
  return np.asarray(_read(data, name, colour).image)


def size_of(stored: bytes, *, name: str = "image") -> tuple[int, int]:
  """Width and height of a stored picture, which is upright; its header alone is read.

  Raises:
    ValueError: the bytes are not a readable image.
  """
  try:
    with Image.open(io.BytesIO(stored), formats=_FORMATS) as file:
      return file.size
  except (*_BOMB, *_UNREADABLE) as error:
    raise _unreadable(stored, name, error) from error


def to_pixels(
  data: bytes,
  image_px: int,
  channels: int = 3,
  *,
  name: str = "image",
  colour: bool = False,
  geometry: Geometry = STRETCH,
  draft: bool = False,
) -> np.ndarray:
  """An encoded image -> uint8[image_px, image_px, channels].

  Args:
    data, name: as for `decode`.
    channels: all alike, unless `colour`.
    colour: keep the colours, as the published models' transforms do; needs 3 channels.
      A grey film comes out the same either way, but for the colour it is padded with.
    geometry: how the picture becomes a square. `geometry.to_square` moves boxes along.
    draft: let the reader of JPEG files shrink them on the way, twice as fast on a large
      film, where that leaves at least twice the square's sides. Pixels then differ from
      the published transforms', by less than 1 of 255 on average over a picture; so it
      is off unless asked for.

  Raises:
    ValueError: the bytes are not a readable image, or colour with other than 3 channels.
  """
  if colour and channels != 3:
    raise ValueError(f"an image in colour has 3 channels, not {channels}")
  pixels = np.array(_square(data, image_px, name, colour, geometry, draft)[0])
  return pixels if colour else np.repeat(pixels[:, :, None], channels, axis=2)


def to_stored(
  data: bytes,
  image_px: int | None,
  *,
  name: str = "image",
  geometry: Geometry = STRETCH,
  draft: bool = False,
) -> bytes:
  """The bytes to keep for an image: an upright 8-bit grey PNG or JPEG that surely decodes.

  The file's own bytes where they already are that (and of the wanted size), else a PNG
  of the grey pixels, fitted to image_px x image_px unless that is None.

  Args:
    geometry, draft: as for `to_pixels`; without meaning where image_px is None.

  Raises:
    ValueError: the bytes are not a readable image.
  """
  if image_px is None:
    picture = _read(data, name, colour=False)
    return data if picture.plain else encode_png(np.asarray(picture.image))
  square, picture = _square(data, image_px, name, False, geometry, draft)
  if picture.plain and picture.size == (image_px, image_px):
    return data
  return encode_png(np.asarray(square))


def to_negative(stored: bytes) -> bytes:
  """A stored picture with black and white exchanged: MONOCHROME1 read as MONOCHROME2."""
  return encode_png(255 - decode(stored))


def encode_png(pixels: np.ndarray) -> bytes:
  """uint8[H, W] or uint8[H, W, 3] -> the bytes of a PNG file, without loss."""
  buffer = io.BytesIO()
  Image.fromarray(pixels).save(buffer, "PNG")
  return buffer.getvalue()


def _square(
  data: bytes, image_px: int, name: str, colour: bool, geometry: Geometry, draft: bool
) -> tuple[Image.Image, _Picture]:
  draft_px = image_px if draft else None
  picture = _read(data, name, colour, geometry, draft_px)
  try:
    size, shrunk = picture.size, picture.shrunk
    return geometry.fit(picture.image, image_px, size=size, shrunk=shrunk), picture
  except ValueError as error:
    raise ValueError(f"{name}: {error}") from error


def _read(
  data: bytes,
  name: str,
  colour: bool,
  geometry: Geometry = STRETCH,
  draft_px: int | None = None,
) -> _Picture:
  mode = "RGB" if colour else "L"
  if dicom.is_dicom(data):
    image = Image.fromarray(dicom.decode(data, name=name)).convert(mode)
    return _Picture(image, image.size, 1, plain=False)
  try:
    with Image.open(io.BytesIO(data), formats=_FORMATS) as file:
      if file.width * file.height > MAX_PIXELS:
        raise Image.DecompressionBombError(f"{file.width} x {file.height}")
      size, shrunk = file.size, 1
      if draft_px and _orientation(file) not in _UPRIGHT:
        shrunk = _draft(file, mode, geometry.shrink(*size, draft_px))
      file.decodermaxblock = len(data)  # in one go: a fiftieth faster than PIL's 64 KiB
      file.load()
      turn = _UPRIGHT.get(_orientation(file))
      plain = file.mode == "L" and file.format in ("PNG", "JPEG") and turn is None
      image = _to_8_bits(file, mode)
  except _BOMB as error:
    raise ValueError(
      f"{name}: expected at most {MAX_PIXELS} pixels, got a header that declares more "
      f"({error}). If it is a real film, reduce it first; else leave the image out."
    ) from error
  except _UNREADABLE as error:
    raise _unreadable(data, name, error) from error
  if turn is not None:
    image = image.transpose(turn)
  return _Picture(image, size if shrunk > 1 else image.size, shrunk, plain)


def _unreadable(data: bytes, name: str, error: BaseException) -> ValueError:
  return ValueError(
    f"{name}: expected a whole PNG or JPEG, got {len(data)} bytes that do not decode "
    f"({type(error).__name__}). Copy the file again, or leave the image out."
  )


def _draft(file: Image.Image, mode: str, shrink: int) -> int:
  """Has a JPEG file read `shrink` times smaller; says how many times it will be."""
  width, height = file.size
  if shrink == 1 or not file.draft(mode, (width // shrink, height // shrink)):
    return 1
  return shrink


def _orientation(file: Image.Image) -> int:
  """EXIF's, 1 to 8. A damaged EXIF part says nothing: the picture may well be whole."""
  try:
    return int(file.getexif().get(_ORIENTATION, 1))
  except _UNREADABLE:
    return 1


def _to_8_bits(file: Image.Image, mode: str) -> Image.Image:
  if file.mode.startswith("I"):
    values = np.maximum(np.asarray(file), 0)
    depth = max(int(values.max()).bit_length(), 8)
    return Image.fromarray((values >> (depth - 8)).astype(np.uint8)).convert(mode)
  if file.mode == "F":
    raise ValueError("floating-point pixels have no known range")
  return file if file.mode == mode else file.convert(mode)
