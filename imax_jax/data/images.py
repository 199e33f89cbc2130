"""Encoded image files <-> grey pixels. Pure functions of their bytes."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

# What PIL raises over files that are cut short, corrupt or no image at all.
_UNREADABLE = (
  OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, OverflowError,
  struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip


def decode(data: bytes, *, name: str = "image") -> np.ndarray:
  """An encoded image -> uint8[H, W], grey.

  Colour and palettes become luminance (ITU-R 601-2, as PIL's), transparency is ignored.
  A 16-bit image is brought to 8 bits from the smallest depth that holds its maximum,
  since files of 10, 12 and 16 bits all come in the same 16-bit container.

  Args:
    data: the whole file, of any format PIL reads.
    name: the path or id that an error should name.

  Raises:
    ValueError: the bytes are not a readable image.
  """
  try:
    with Image.open(io.BytesIO(data)) as image:
      image.load()
      return _to_grey(image)
  except _UNREADABLE as error:
    raise ValueError(
      f"{name}: expected a whole PNG or JPEG, got {len(data)} bytes that do not decode "
      f"({type(error).__name__}). Copy the file again, or leave the image out."
    ) from error


def to_pixels(
  data: bytes, image_px: int, channels: int = 3, *, name: str = "image"
) -> np.ndarray:
  """An encoded image -> uint8[image_px, image_px, channels], all channels alike.

  The image is stretched to a square with PIL's bicubic filter: its aspect is not kept,
  so that boxes in fractions of width and height stay true.

  Raises:
    ValueError: the bytes are not a readable image.
  """
  grey = resize(decode(data, name=name), image_px)
  return np.repeat(grey[:, :, None], channels, axis=2)


def to_stored(data: bytes, image_px: int | None, *, name: str = "image") -> bytes:
  """The bytes to keep for an image: an 8-bit grey PNG or JPEG that surely decodes.

  The file's own bytes where they already are that (and of the wanted size), else a PNG
  of the grey pixels, stretched to image_px x image_px unless that is None.

  Raises:
    ValueError: the bytes are not a readable image.
  """
  grey = decode(data, name=name)
  with Image.open(io.BytesIO(data)) as image:
    plain = image.mode == "L" and image.format in ("PNG", "JPEG")
  if image_px is not None and grey.shape != (image_px, image_px):
    return encode_png(resize(grey, image_px))
  return data if plain else encode_png(grey)


def resize(grey: np.ndarray, image_px: int) -> np.ndarray:
  """uint8[H, W] -> uint8[image_px, image_px]; bicubic, aspect not kept."""
  size = (image_px, image_px)
  return np.asarray(Image.fromarray(grey).resize(size, Image.Resampling.BICUBIC))


def encode_png(grey: np.ndarray) -> bytes:
  """uint8[H, W] -> the bytes of a PNG file, without loss."""
  buffer = io.BytesIO()
  Image.fromarray(grey).save(buffer, "PNG")
  return buffer.getvalue()


def _to_grey(image: Image.Image) -> np.ndarray:
  if image.mode.startswith("I"):
    values = np.maximum(np.asarray(image).astype(np.int64), 0)
    depth = max(int(values.max()).bit_length(), 8)
    return (values >> (depth - 8)).astype(np.uint8)
  if image.mode == "F":
    raise ValueError("floating-point pixels have no known range")
  return np.asarray(image.convert("L"))
