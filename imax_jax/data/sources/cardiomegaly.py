"""CXR-Cardiomegaly 1.0.0 (Duvieusart et al., 2024): CTR and CPAR of PA images.

    CTRs.csv    dicom_file,CTR      CPARs.csv    dicom_file,CPAR

A value of 2, 3 or 4 is an error mark (heart, lungs or both not found), in the column
of the values; the authors drop everything from 1 up.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping
from pathlib import Path

from imax_jax.data.sources.reading import NOT_FRONTAL
from imax_jax.data.sources.reading import Counts
from imax_jax.data.sources.reading import find_file
from imax_jax.data.sources.reading import image_id_of
from imax_jax.data.sources.reading import log_counts
from imax_jax.data.sources.reading import table_rows
from imax_jax.schema import Annotation
from imax_jax.schema import Origin
from imax_jax.schema import Radiograph
from imax_jax.schema import Ratio

REMEDY = (
  "Point cardiomegaly at the folder of https://physionet.org/content/"
  "cxr-cardiomegaly/1.0.0/ (open access: CTRs.csv and CPARs.csv)."
)
_ERROR_MARKS = {2.0: "heart", 3.0: "lungs", 4.0: "heart and lungs"}


def read(
  root: str | Path,
  radiographs: Mapping[str, Radiograph],
  *,
  require_both: bool = True,
  counts: Counts | None = None,
) -> Iterator[Annotation]:
  """Yields a "ctr" and a "cpar" of each image, values in (0, 1).

  The two fail independently. With `require_both` an image gives both or nothing: the
  paper's 54,684 calculation entries are exactly two an image.

  Raises:
    FileNotFoundError: a file is missing.
    ValueError: other columns, or a damaged file.
  """
  counts = Counts() if counts is None else counts
  found: dict[str, dict[str, Annotation]] = {}
  for file, column in (("CTRs.csv", "CTR"), ("CPARs.csv", "CPAR")):
    path = find_file(root, [file], remedy=REMEDY)
    columns = (("dicom_file", "dicom_id"), column)
    for row, (dicom, cell) in table_rows(path, columns):
      name = image_id_of(dicom)
      value = _ratio(column, cell, counts)
      if name not in radiographs:
        counts[NOT_FRONTAL] += 1
      elif value is not None:
        found.setdefault(name, {}).setdefault(
          column,
          Annotation(
            name, "calculation", column.lower(), Ratio(value), Origin(path.name, row)
          ),
        )
  for pair in found.values():
    if require_both and len(pair) < 2:
      counts["only one of CTR and CPAR"] += 1
      continue
    counts["kept"] += len(pair)
    yield from pair.values()
  log_counts("cardiomegaly", counts)


def _ratio(column: str, cell: str, counts: Counts) -> float | None:
  try:
    value = float(cell)
  except ValueError:
    counts[f"{column} not a number"] += 1
    return None
  if 0 < value < 1:
    return value
  mark = _ERROR_MARKS.get(value)
  counts[f"{column}: {mark} not found" if mark else f"{column} outside (0, 1)"] += 1
  return None
