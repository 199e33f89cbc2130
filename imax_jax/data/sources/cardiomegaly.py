"""CXR-Cardiomegaly 1.0.0 (Duvieusart et al., 2024): CTR and CPAR of PA images.

    CTRs.csv    dicom_file,CTR      CPARs.csv    dicom_file,CPAR

A value of 2, 3 or 4 is an error mark (heart, lungs or both not found), in the column
of the values; the authors drop everything from 1 up. Whether the marks print as "2" or
"2.0", and which name the id column has, is not known before the files are seen: both
are read, and the log says which they were.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from collections.abc import Mapping
from pathlib import Path

from imax_jax.data.sources.files import find_file
from imax_jax.data.sources.intake import Distinct
from imax_jax.data.sources.intake import Tally
from imax_jax.data.sources.mimic_ids import image_id_of
from imax_jax.data.sources.mimic_ids import is_dicom_id
from imax_jax.data.sources.options import Choices
from imax_jax.data.sources.options import check_choices
from imax_jax.data.sources.published import note_rows
from imax_jax.data.sources.reading import table_header
from imax_jax.data.sources.reading import table_rows
from imax_jax.schema import Annotation
from imax_jax.schema import Radiograph
from imax_jax.schema import Ratio

REMEDY = (
  "Point cardiomegaly at the folder of https://physionet.org/content/"
  "cxr-cardiomegaly/1.0.0/ (open access: CTRs.csv and CPARs.csv)."
)
RULE = "cardiomegaly/ratio"
RULES: dict[str, str] = {
  RULE: "A CTR or CPAR strictly between 0 and 1; 2, 3 and 4 are the authors' error "
  "marks and are left out. An image must have both unless told otherwise."
}
CHOICES: Choices = {"require_both": (True, False)}
# `float` would also take "0_5", "nan" and the digits of other scripts.
_NUMBER = re.compile(r"[+-]?\d*\.?\d+(?:[eE][+-]?\d+)?|[+-]?\d+\.", re.ASCII)
_ERROR_MARKS = {2.0: "heart", 3.0: "lungs", 4.0: "heart and lungs"}


def check_options(**options: object) -> None:
  """Raises a ValueError if `read` does not take them."""
  check_choices("cardiomegaly", CHOICES, options)


def read(
  root: str | Path,
  radiographs: Mapping[str, Radiograph],
  *,
  require_both: bool = True,
  tally: Tally | None = None,
) -> Iterator[Annotation]:
  """Yields a "ctr" and a "cpar" of each image, values in (0, 1).

  The two fail independently. With `require_both` an image gives both or nothing: the
  paper's 54,684 calculation entries are exactly two an image.

  Raises:
    ValueError: as `check_options`.
    FileNotFoundError: a file is missing.
    DamagedFile: other columns, or it can not be read to its end.
  """
  check_options(require_both=require_both)
  tally = Tally("cardiomegaly") if tally is None else tally
  found: dict[str, list[Annotation]] = {}
  prints: set[str] = set()
  for file, column in (("CTRs.csv", "CTR"), ("CPARs.csv", "CPAR")):
    path = find_file(root, [file], remedy=REMEDY, tally=tally)
    for name, value, source_file, row in _ratios(path, column, prints, tally).items():
      if name not in radiographs:
        tally.absent(name)
      elif value in _ERROR_MARKS:
        tally.leave_out(f"{column}: {_ERROR_MARKS[value]} not found")
      else:
        annotation = Annotation(
          name, "calculation", column.lower(), Ratio(value),
          tally.origin(source_file, row, RULE),
        )  # fmt: skip
        found.setdefault(name, []).append(annotation)
  if prints:
    tally.met("error marks print as", " and ".join(sorted(prints)))
  for pair in found.values():
    if require_both and len(pair) < 2:
      tally.leave_out("only one of CTR and CPAR")
      continue
    tally.keep(len(pair))
    yield from pair
  tally.log()


def _ratios(
  path: Path, column: str, prints: set[str], tally: Tally
) -> Distinct[str, float]:
  """The well-formed values by image: ratios, and error marks; adds to `prints` how
  the marks are written.
  """
  ratios: Distinct[str, float] = Distinct(tally)
  file, before = tally.name(path), tally.rows
  tally.met(
    f"{path.name} id column",
    "dicom_file" if "dicom_file" in table_header(path) else "dicom_id",
  )
  columns = (("dicom_file", "dicom_id"), column)
  for row, (dicom, cell) in table_rows(path, columns, tally):
    name = image_id_of(dicom)
    if not is_dicom_id(name):
      tally.reject(file, row, "image id of the wrong form", RULE)
      continue
    text = cell.strip()
    if not _NUMBER.fullmatch(text):
      tally.reject(file, row, f"{column} not a number", RULE)
      continue
    value = float(text)
    if 0 < value < 1 or value in _ERROR_MARKS:
      if value in _ERROR_MARKS:
        prints.add("2" if text.isdigit() else "2.0")
      ratios.add(name, value, file, row)
    else:
      tally.reject(file, row, f"{column} neither in (0, 1) nor an error mark", RULE)
  note_rows(tally, path.name, tally.rows - before)
  return ratios
