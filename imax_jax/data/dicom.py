"""DICOM files -> pixels as a reading room shows them. Needs the extra `dicom`.

Steps of the standard's grey-scale pipeline (PS3.3 C.7.6.3, C.11.1, C.11.2): modality
LUT, the first VOI LUT or else the first window, then MONOCHROME1 turned around. Where a
file names neither, its lowest value is black and its highest white. Of several frames
the first is taken.
"""

from __future__ import annotations

import importlib
import io
import struct
from typing import Any

import numpy as np

from imax_jax.data.geometry import MAX_PIXELS

# All that is read; the patient's own elements are not even looked at.
_TAGS = (
  "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames",
  "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
  "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence",
  "VOILUTSequence", "VOILUTFunction", "WindowCenter", "WindowWidth",
  "LUTDescriptor", "LUTData", "PixelData",
)  # fmt: skip
_GREY = ("MONOCHROME1", "MONOCHROME2")
_COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
# pydicom would inflate such a file whole, whatever its size.
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_META_BYTES = 4096


def is_dicom(data: bytes) -> bool:
  """True for a file with the standard's preamble and mark."""
  return data[128:132] == b"DICM"


def decode(data: bytes, *, name: str = "image") -> np.ndarray:
  """A DICOM file -> uint8[H, W], or uint8[H, W, 3] of a colour one.

  Raises:
    ValueError: pydicom is not installed, or the file is damaged, too large, or of a kind
      that is not a picture in grey or full colour.
  """
  pydicom, pixels = _pydicom(name)
  if _DEFLATED in data[:_META_BYTES]:
    raise ValueError(
      f"{name}: a deflated DICOM file, whose size cannot be known before it is unpacked. "
      "Convert it to Explicit VR Little Endian."
    )
  try:
    dataset = pydicom.dcmread(io.BytesIO(data), specific_tags=list(_TAGS))
    size = int(dataset.Columns), int(dataset.Rows)
    kind = str(dataset.PhotometricInterpretation)
  except Exception as error:  # pydicom does not say which; a chained one may quote text
    raise _unreadable(name, data, error) from None
  if size[0] * size[1] > MAX_PIXELS:
    raise ValueError(
      f"{name}: expected at most {MAX_PIXELS} pixels, got {size[0]} x {size[1]}. "
      "If it is a real film, reduce it first; else leave the image out."
    )
  if kind not in _GREY + _COLOURS:
    raise ValueError(
      f"{name}: expected a DICOM picture of {', '.join(_GREY)} or colour, got one of "
      "another photometric interpretation. Convert it, or leave the image out."
    )
  try:
    values = pixels.pixel_array(dataset, index=0)
    if kind in _COLOURS:
      return _scale(values, 0, 2 ** int(dataset.BitsStored) - 1)
    grey = _shown(pixels.apply_modality_lut(values, dataset), dataset)
  except Exception as error:
    raise _unreadable(name, data, error) from None
  return 255 - grey if kind == "MONOCHROME1" else grey


def _pydicom(name: str) -> tuple[Any, Any]:
  """pydicom and its pixels module, told not to quote a file's values in warnings.

  Where a length is damaged, a value of those read can run on into the patient's name.
  """
  try:
    pydicom = importlib.import_module("pydicom")
    pixels = importlib.import_module("pydicom.pixels")
  except ImportError as error:
    raise ValueError(
      f"{name}: a DICOM file, which needs pydicom 3. "
      "Install it: pip install 'imax_jax[dicom]'"
    ) from error
  pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
  return pydicom, pixels


def _unreadable(name: str, data: bytes, error: Exception) -> ValueError:
  return ValueError(
    f"{name}: expected a whole DICOM picture, got {len(data)} bytes that do not decode "
    f"({type(error).__name__}). Copy the file again; if it is compressed, install the "
    "decoder (pylibjpeg) or convert it to Explicit VR Little Endian."
  )


def _shown(values: np.ndarray, dataset: Any) -> np.ndarray:
  """Values after the modality LUT -> uint8 by VOI LUT, window, or their own range."""
  if tables := dataset.get("VOILUTSequence"):
    table = _table(tables[0], little_endian=dataset.original_encoding[1])
    _, first, bits = tables[0].LUTDescriptor
    place = np.clip(np.rint(values).astype(np.int64) - first, 0, len(table) - 1)
    return _scale(table[place], 0, 2**bits - 1)
  if dataset.get("WindowCenter") is not None and dataset.get("WindowWidth") is not None:
    center = float(np.ravel(dataset.WindowCenter)[0])
    width = float(np.ravel(dataset.WindowWidth)[0])
    function = str(dataset.get("VOILUTFunction") or "LINEAR")
    return _scale(_window(values, center, width, function), 0, 1)
  return _scale(values, values.min(), values.max())


def _table(item: Any, *, little_endian: bool) -> np.ndarray:
  """The entries of a LUT: numbers, or bytes where the file calls them OW."""
  if isinstance(item.LUTData, bytes):
    count = len(item.LUTData) // 2
    order = "<" if little_endian else ">"
    return np.array(struct.unpack(f"{order}{count}H", item.LUTData[: 2 * count]))
  return np.ravel(item.LUTData).astype(np.int64)


def _window(
  values: np.ndarray, center: float, width: float, function: str
) -> np.ndarray:
  """PS3.3 C.11.2.1.2 and C.11.2.1.3, to [0, 1]."""
  if function == "SIGMOID":
    return 1 / (1 + np.exp(-4 * (values - center) / width))
  if function == "LINEAR_EXACT":
    return np.clip((values - center) / width + 0.5, 0, 1)
  # A width of 1 is a threshold.
  return np.clip((values - (center - 0.5)) / max(width - 1, 1e-6) + 0.5, 0, 1)


def _scale(values: np.ndarray, low: float, high: float) -> np.ndarray:
  """[low, high] -> [0, 255]; all black where the two are one."""
  span = max(float(high) - float(low), np.finfo(float).tiny)
  return np.rint(np.clip((values - float(low)) / span, 0, 1) * 255).astype(np.uint8)
