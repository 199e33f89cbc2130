"""What a DICOM radiograph's header says of its picture. Needs `pydicom`.

pydicom is an extra, and looked for only when a DICOM file is met: who has converted the
images, or uses no such source, never needs it. `data.dicom` reads the pixels.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from imax_jax.data.geometry import MAX_PIXELS
from imax_jax.data.sources.intake import DamagedFile

SUFFIXES = (".dicom", ".dcm")
# All that is read; the patient's own elements are not even looked at.
_TAGS = ("Rows", "Columns", "ViewPosition")
# pydicom would inflate such a file whole, whatever its size.
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_META_BYTES = 4096


def size_and_view(path: Path) -> tuple[int, int, str]:
  """(width, height, ViewPosition or "") of a DICOM file.

  Raises:
    ValueError: pydicom is not installed.
    DamagedFile: no DICOM file, or not of a picture of up to `MAX_PIXELS` pixels.
  """
  try:
    pydicom = importlib.import_module("pydicom")
  except ImportError as error:
    raise ValueError(
      f"{path}: a DICOM file, which needs pydicom 3. Install it: pip install "
      "'imax_jax[dicom]', or convert the images to PNG at their full size"
    ) from error
  # Its warnings quote values of the file.
  pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
  try:
    with path.open("rb") as file:
      if _DEFLATED in file.read(_META_BYTES):
        raise ValueError("deflated")
    header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_TAGS))
    width, height = int(header.Columns), int(header.Rows)
    view = str(header.get("ViewPosition") or "").strip()
  except Exception as error:  # pydicom raises of every kind over a damaged file
    kind = type(error).__name__
    raise DamagedFile(path, f"has no readable DICOM header ({kind})") from None
  if not 0 < width * height <= MAX_PIXELS:
    raise DamagedFile(path, f"has no pixels, or over {MAX_PIXELS}")
  return width, height, view
