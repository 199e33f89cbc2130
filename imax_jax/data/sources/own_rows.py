"""The rows of annotations.csv or annotations.jsonl, as spreadsheets and people write them.

    image,patient,study,view,task,name,answer
    p1/film.png,p1,,PA,calculation,CTR,0.47

Met in spreadsheets' files and read: a byte order mark, ";" or tabs between the cells,
line ends of any system, cells with newlines, empty columns and rows around the table,
column names in capitals. Not read: another encoding than UTF-8.

The number of a row counts all below the header from 0, empty ones too: row 0 is the
spreadsheet's row 2, and line 1 of a JSONL file.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from imax_jax.data.sources.files import inside
from imax_jax.data.sources.intake import ROW_RULE
from imax_jax.data.sources.intake import DamagedFile
from imax_jax.data.sources.intake import Tally

FILES = ("annotations.csv", "annotations.jsonl")
REQUIRED = ("image", "task", "answer")
COLUMNS = ("image", "patient", "study", "view", "task", "name", "answer", "subtask")
REMEDY = (
  "Point own at a folder with your images and annotations.csv, which has the columns "
  f"{', '.join(COLUMNS)}; all but {', '.join(REQUIRED)} may be left out."
)
_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs"}
_MAX_BYTES = 2**30
_ENCODING = 'save it as "CSV UTF-8"'

# Column name -> cell: text, or what JSON has there. What is empty is left out.
Row = dict[str, Any]


def find(root: str | Path, tally: Tally) -> Path:
  """The folder's annotation file.

  Raises:
    FileNotFoundError: it has none. DamagedFile: it has both.
  """
  found = [name for name in FILES if Path(root, name).exists()]
  if not found:
    raise FileNotFoundError(f"{root}: expected {' or '.join(FILES)}. {REMEDY}")
  if len(found) > 1:
    raise DamagedFile(root, f"has both {' and '.join(found)}", "Remove one of them")
  return tally.opened(inside(root, found[0]))


def rows(path: Path, tally: Tally) -> Iterator[tuple[int, Row]]:
  """Yields (number, cells by column name) of the good rows.

  Raises:
    DamagedFile: a column is missing or there twice, a quote is not closed, or it is not
      UTF-8; names the line, never its text.
  """
  if path.stat().st_size > _MAX_BYTES:
    raise DamagedFile(path, f"has over {_MAX_BYTES} bytes")
  try:
    data = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
  except OSError as error:
    raise DamagedFile(path, f"cannot be read ({type(error).__name__})") from None
  found = _json_rows(data) if path.suffix == ".jsonl" else _csv_rows(path, data, tally)
  for number, row in found:
    if not row:
      continue
    tally.rows += 1
    if isinstance(row, str):
      tally.reject(tally.name(path), number, row, ROW_RULE)
    else:
      yield number, row


# ── CSV ───────────────────────────────────────────────────────────────────────────


def _csv_rows(path: Path, data: bytes, tally: Tally) -> Iterator[tuple[int, Row | str]]:
  """(number, cells by name, or why there are none)."""
  try:
    text = data.decode("utf-8")
  except UnicodeDecodeError as error:
    line = data[: error.start].count(b"\n") + 1
    raise DamagedFile(path, f"is not UTF-8 on line {line}", _ENCODING) from None
  if "\0" in text:
    raise DamagedFile(path, "has a NUL byte", _ENCODING)
  delimiter = _delimiter(text)
  tally.met("cells are parted by", _DELIMITERS[delimiter])
  table = _table(path, text, delimiter)
  names = [name.strip().lower() for name in next(table, [])]
  _check_header(path, names)
  others = [name for name in names if name and name not in COLUMNS]
  if others:
    tally.met("columns that are not read", str(len(others)))
  for number, cells in enumerate(table):
    cells = [cell.strip() for cell in cells]
    known = dict(zip(names, cells, strict=False))
    # What stands under no name: the empty columns that spreadsheets write.
    nameless = [c for c, n in zip(cells, names, strict=False) if not n]
    if any(cells[len(names) :]) or any(nameless):
      yield number, "has more cells than the header"
    else:
      yield number, {name: known[name] for name in COLUMNS if known.get(name)}


def _delimiter(text: str) -> str:
  """The one by which the first line has the most of our columns."""
  first = text.partition("\n")[0].lower().replace('"', "")

  def known(delimiter: str) -> int:
    return sum(name.strip() in COLUMNS for name in first.split(delimiter))

  return max(_DELIMITERS, key=known)


def _table(path: Path, text: str, delimiter: str) -> Iterator[list[str]]:
  reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
  while True:
    line = reader.line_num + 1
    try:
      cells = next(reader)
    except StopIteration:
      return
    except csv.Error:
      # Where the quote was meant to end no one knows, nor which rows are whole.
      raise DamagedFile(
        path,
        f"has a quote that is not closed, or stands inside a cell, in the row that "
        f"begins on line {line}",
        'Put a cell with quotes, commas or newlines in "…" and write "" for a quote in it',
      ) from None
    yield cells


def _check_header(path: Path, names: list[str]) -> None:
  missing = [name for name in REQUIRED if name not in names]
  if missing:
    raise DamagedFile(
      path,
      f"has no column {', '.join(missing)} on line 1, found {len(names)} others",
      REMEDY,
    )
  twice = [name for name in COLUMNS if names.count(name) > 1]
  if twice:
    raise DamagedFile(path, f"has the column {', '.join(twice)} twice")


# ── JSONL ─────────────────────────────────────────────────────────────────────────


def _json_rows(data: bytes) -> Iterator[tuple[int, Row | str]]:
  """(number, values by name, or why there are none)."""
  for number, line in enumerate(data.split(b"\n")):
    if not line.strip():
      continue
    try:
      item = json.loads(line.decode("utf-8"))
      json.dumps(item, ensure_ascii=False).encode("utf-8")  # no half characters
    except UnicodeDecodeError:
      yield number, "is not UTF-8"
    except (ValueError, RecursionError):
      yield number, "is not JSON"
    else:
      yield number, _object_row(item)


def _object_row(item: Any) -> Row | str:
  if not isinstance(item, dict):
    return "is not a JSON object"
  found = {name.strip().lower(): value for name, value in item.items()}
  row = {name: found[name] for name in COLUMNS if found.get(name) not in (None, "")}
  return {k: v.strip() if isinstance(v, str) else v for k, v in row.items()} or (
    "has none of the columns"
  )
