"""What the readers share: the rows of a table by column name.

The releases differ in small ways (columns in another order, other names), and these
differences are met here once. So is damage: a bad row is rejected and the next is read; a
bad file raises `DamagedFile`.
"""

from __future__ import annotations

import codecs
import csv
import io
import math
import re
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from imax_jax.data.sources.files import AGAIN
from imax_jax.data.sources.files import READ_ERRORS
from imax_jax.data.sources.files import open_bytes
from imax_jax.data.sources.intake import ROW_RULE
from imax_jax.data.sources.intake import DamagedFile
from imax_jax.data.sources.intake import Tally

# A column by name, or by any of several names that releases have used for it.
Column = str | tuple[str, ...]

# The longest row of the releases has some 100 kB (CheXmask); a table's row is a line.
MAX_ROW_BYTES = 16 * 2**20
MAX_EMPTY_LINES = 1000
BOM = codecs.BOM_UTF8  # before a row where two tables were joined
_PIECE_BYTES = 2**20  # of a table that is split at once


def is_text(value: object) -> bool:
  """Whether it is a str that UTF-8 can hold: JSON's "\\ud800", half a character, is not."""
  if not isinstance(value, str):
    return False
  try:
    value.encode()
  except UnicodeEncodeError:
    return False
  return True


def one_line(words: Iterable[str] | str) -> str:
  """White space collapsed."""
  return " ".join(words.split() if isinstance(words, str) else words)


def table_header(path: Path) -> list[str]:
  """The names of a csv file's columns."""
  try:
    with open_bytes(path) as file:
      line = file.readline(MAX_ROW_BYTES)
    return next(csv.reader([line.decode("utf-8-sig").rstrip("\r\n")]), [])
  except (*READ_ERRORS, UnicodeDecodeError, csv.Error):
    raise DamagedFile(path, "has no readable first line", AGAIN) from None


def table_rows(
  path: Path,
  columns: Sequence[Column],
  tally: Tally,
  *,
  row_start: re.Pattern[bytes] | None = None,
) -> Iterator[tuple[int, tuple[str, ...]]]:
  """Yields (data row from 0, the cells of `columns`) of the good rows, streaming.

  A row is a line. Where cells may hold newlines, `row_start` matches the beginning of
  good rows, so that one missing quote costs one row, not the rest.

  Rejected are rows with more or fewer cells than the header, with a NUL byte, that are
  not UTF-8 or not csv.

  Raises:
    DamagedFile: a column is missing, the file is cut short, or a row has no end.
  """
  names = table_header(path)
  places = column_places(path, names, columns)
  file, number = tally.name(path), 0
  try:
    with open_bytes(path) as lines:
      lines.readline(MAX_ROW_BYTES)
      for part in _whole_lines(path, lines) if row_start is None else (b"",):
        cells = _plain_columns(part, len(names), places) if part else None
        if cells is not None:
          first, number = number, number + len(cells[0])
          tally.rows += number - first
          yield from zip(range(first, number), zip(*cells, strict=True), strict=True)
          continue
        rows = io.BytesIO(part) if part else lines
        for row in grouped_rows(path, rows, row_start, len(names)):
          tally.rows += 1
          found = split_row(row, len(names))
          if isinstance(found, str):
            tally.reject(file, number, found, ROW_RULE)
          else:
            yield number, tuple([found[place] for place in places])
          number += 1
  except DamagedFile:
    raise
  except READ_ERRORS as error:
    raise DamagedFile(
      path, f"cannot be read to its end ({type(error).__name__})", AGAIN
    ) from None


def _whole_lines(path: Path, file: io.BufferedReader) -> Iterator[bytes]:
  """Pieces of the file that end where a line does.

  Raises:
    DamagedFile: a line that has no end.
  """
  begun = bytearray()
  while piece := file.read1(_PIECE_BYTES):
    cut = piece.rfind(b"\n") + 1
    if cut:
      yield bytes(begun) + piece[:cut]
      begun.clear()
    begun += piece[cut:]
    if len(begun) >= MAX_ROW_BYTES:
      raise DamagedFile(path, f"has a row of over {MAX_ROW_BYTES} bytes", AGAIN)
  if begun:
    yield bytes(begun)


def _plain_columns(
  lines: bytes, expected: int, places: Sequence[int]
) -> list[list[str]] | None:
  """The columns at `places`, of lines without quotes that all have `expected` cells.

  None of any others: they must be split row by row, which takes three times as long.
  """
  if expected < 2 or b'"' in lines or b"\0" in lines or BOM in lines:
    return None
  if b"\r" in lines:
    lines = lines.replace(b"\r\n", b"\n")
  lines = lines.removesuffix(b"\n")
  try:
    text = lines.decode()
  except UnicodeDecodeError:
    return None
  codes = np.frombuffer(lines, np.uint8)
  ends = np.flatnonzero(codes == ord("\n"))
  commas = np.flatnonzero(codes == ord(","))
  count = len(ends) + 1
  if b"\r" in lines or len(commas) != count * (expected - 1):
    return None
  of_row = commas.reshape(count, expected - 1)
  if (of_row[:-1, -1] > ends).any() or (of_row[1:, 0] < ends).any():
    return None
  cells = text.replace("\n", ",").split(",")
  return [cells[place::expected] for place in places]


def grouped_rows(
  path: Path,
  lines: BinaryIO,
  row_start: re.Pattern[bytes] | None,
  cells: int = 0,
  place: int = 0,
  end: float = math.inf,
) -> Iterator[bytes]:
  """The rows of `lines`, as in `table_rows`, that begin before `end`.

  A line begins a row where `row_start` says so, and where the row before has all its
  `cells` and closed its quotes. So a row without its last quote costs no other, nor does
  one of which `row_start` knows nothing. `end` is met at a line that `row_start` matches.

  Args:
    place: where `lines` stand, in bytes.

  Raises:
    DamagedFile: a row that has no end.
  """
  row, is_open, empty = bytearray(), False, 0
  while line := lines.readline(MAX_ROW_BYTES):
    starts = row_start is None or row_start.match(line) is not None
    if row and (starts or (not is_open and row.count(b",") >= cells - 1)):
      yield bytes(row)
      row, is_open = bytearray(), False
    if starts and place >= end:
      return
    place += len(line)
    if row or line.strip():
      row += line
      is_open ^= row_start is not None and line.count(b'"') % 2 == 1
    else:
      empty += 1
    if empty > MAX_EMPTY_LINES:
      raise DamagedFile(path, f"has over {MAX_EMPTY_LINES} empty lines", AGAIN)
    if len(row) >= MAX_ROW_BYTES:
      raise DamagedFile(path, f"has a row of over {MAX_ROW_BYTES} bytes", AGAIN)
  if row:
    yield bytes(row)


def split_row(row: bytes, expected: int) -> list[str] | str:
  """The cells of a csv row, or the reason why it is none."""
  if b"\0" in row:
    return "has a NUL byte"
  try:
    text = row.rstrip(b"\r\n").removeprefix(BOM).decode("utf-8")
  except UnicodeDecodeError:
    return "is not UTF-8"
  if '"' not in text:
    cells = text.split(",")
  else:
    try:
      found = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except csv.Error:
      return "is not csv (a quote is missing, or a cell is too long)"
    if len(found) != 1:
      return "is not one csv row"
    cells = found[0]
  if len(cells) != expected:
    return "has more or fewer cells than the header"
  return cells


def column_places(
  path: Path, names: Sequence[str], columns: Sequence[Column]
) -> list[int]:
  """Where `columns` stand among `names`.

  Raises:
    DamagedFile: one is not there, or there twice.
  """
  places = []
  for column in columns:
    accepted = (column,) if isinstance(column, str) else column
    found = [names.index(name) for name in accepted if name in names]
    if not found:
      wanted = [c if isinstance(c, str) else " or ".join(c) for c in columns]
      raise DamagedFile(
        path,
        f"has no column {' or '.join(accepted)}; expected {wanted}, found {len(names)} "
        "others",
        "Is this the file it is named after?",
      )
    if names.count(names[found[0]]) > 1:
      raise DamagedFile(path, f"has the column {names[found[0]]} twice")
    places.append(found[0])
  return places
