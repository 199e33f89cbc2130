"""What the readers share: finding a file, its rows by column name, ids, counts.

The releases differ in small ways (gunzipped files, "s50000001" against 50000001,
columns in another order), and these differences are met here once.
"""

from __future__ import annotations

import collections
import contextlib
import csv
import gzip
import io
import sys
import zlib
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path

from absl import logging

from imax_jax.schema import Radiograph

# Rejected rows by reason, and "kept". Never holds a patient's text.
Counts = collections.Counter[str]
# A column by name, or by any of several names that releases have used for it.
Column = str | tuple[str, ...]

NOT_FRONTAL = "image absent or not frontal"
_READ_ERRORS = (EOFError, gzip.BadGzipFile, zlib.error, UnicodeDecodeError, csv.Error)


def find_file(root: str | Path, names: Sequence[str], *, remedy: str) -> Path:
  """The first of `names` that exists under `root`; "x.csv.gz" also finds "x.csv".

  Raises:
    FileNotFoundError: no name exists; says which were looked for, where, and `remedy`.
  """
  for name in names:
    for path in (Path(root, name), Path(root, name.removesuffix(".gz"))):
      if path.exists():
        return path
  raise FileNotFoundError(
    f"{root}: expected {' or '.join(names)}, which is not there. {remedy}"
  )


def open_text(path: Path) -> io.TextIOBase:
  """A gzipped or plain text file, newlines as they are (csv needs that)."""
  if path.suffix == ".gz":
    return gzip.open(path, "rt", encoding="utf-8", newline="")
  return path.open(encoding="utf-8", newline="")


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
  """Turns a damaged file's many exceptions into one ValueError that names it."""
  try:
    yield
  except _READ_ERRORS as error:
    raise ValueError(
      f"{path}: cannot be read ({type(error).__name__}): truncated or damaged; "
      "download it again and compare it with SHA256SUMS.txt"
    ) from None


def table_header(path: Path) -> list[str]:
  """The names of a csv file's columns."""
  with readable(path), open_text(path) as file:
    return next(csv.reader(file), [])


def table_rows(
  path: Path, columns: Sequence[Column]
) -> Iterator[tuple[int, tuple[str, ...]]]:
  """Yields (data row from 0, the cells of `columns`), streaming.

  Cells may hold newlines and be of any length (CheXmask's have both).

  Raises:
    ValueError: a column is missing, a row is short, or the file is damaged.
  """
  csv.field_size_limit(sys.maxsize)
  with readable(path), open_text(path) as file:
    reader = csv.reader(file)
    names = [name.removeprefix("\ufeff") for name in next(reader, [])]
    places = _places(path, names, columns)
    needed = max(places) + 1
    for number, cells in enumerate(reader):
      if not cells:
        continue
      if len(cells) < needed:
        raise ValueError(
          f"{path}: data row {number} has {len(cells)} cells, expected {len(names)}: "
          "the file is cut short; download it again"
        )
      yield number, tuple(cells[place] for place in places)


def _places(path: Path, names: list[str], columns: Sequence[Column]) -> list[int]:
  places = []
  for column in columns:
    accepted = (column,) if isinstance(column, str) else column
    found = [names.index(name) for name in accepted if name in names]
    if not found:
      wanted = [c if isinstance(c, str) else " or ".join(c) for c in columns]
      raise ValueError(
        f"{path}: no column {' or '.join(accepted)}; expected {wanted}, found "
        f"{names[:60]}. Is this the file it is named after?"
      )
    places.append(found[0])
  return places


def plain_id(text: str) -> str:
  """A patient's or study's id: "s50000001", "50000001", "50000001.0" -> "50000001"."""
  text = text.strip().removesuffix(".0")
  return text[1:] if text[:1] in ("s", "p") and text[1:].isdigit() else text


def image_id_of(text: str) -> str:
  """An image's id from itself, a file name or a path."""
  name = text.strip().rsplit("/", 1)[-1]
  return name.removesuffix(".dcm").removesuffix(".jpg")


def images_by_study(radiographs: Mapping[str, Radiograph]) -> dict[str, list[str]]:
  """study_id -> its images' ids, in the order of `radiographs`."""
  studies: dict[str, list[str]] = {}
  for name, radiograph in radiographs.items():
    studies.setdefault(radiograph.study_id, []).append(name)
  return studies


def log_counts(source: str, counts: Counts) -> None:
  """One line: what was kept, and what was rejected for which reason."""
  rejected = {key: counts[key] for key in sorted(counts) if key != "kept"}
  logging.info("%s: kept %d; rejected %s", source, counts["kept"], rejected)
