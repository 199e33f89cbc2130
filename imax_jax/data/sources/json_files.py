"""JSON files, whole or an item at a time; what is wrong with them raises `DamagedFile`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from imax_jax.data.sources.files import AGAIN
from imax_jax.data.sources.files import READ_ERRORS
from imax_jax.data.sources.files import open_bytes
from imax_jax.data.sources.intake import DamagedFile

MAX_JSON_BYTES = 4 * 2**30
_SPACE = re.compile(r"[ \t\r\n]*")


def json_list(path: Path) -> Iterator[tuple[int, Any]]:
  """Yields (number, item) of a file that is one JSON list, decoding an item at a time.

  Only the text is held whole (260 MB for the largest release file), not its hundreds
  of thousands of dictionaries.

  Raises:
    DamagedFile: not JSON, not a list, not UTF-8, nested beyond reason, or cut short.
  """
  text = json_text(path)
  decoder = json.JSONDecoder()
  place = _skip(text, 0)
  if text[place : place + 1] != "[":
    raise DamagedFile(path, "expected a JSON list, found something else")
  place, number = _skip(text, place + 1), 0
  ended = text[place : place + 1] == "]"
  while not ended:
    try:
      item, place = decoder.raw_decode(text, place)
    except json.JSONDecodeError as error:
      # The decoder's own message is safe, but the exception carries the whole text.
      raise DamagedFile(
        path, f"is not JSON from line {error.lineno} on", AGAIN
      ) from None
    except (RecursionError, ValueError):  # a ValueError: a number of 4,300 digits
      raise DamagedFile(
        path, f"item {number} is nested or long beyond reason"
      ) from None
    yield number, item
    place, number = _skip(text, place), number + 1
    mark = text[place : place + 1]
    if mark not in (",", "]"):  # the end of the text too
      line = text.count("\n", 0, place) + 1
      raise DamagedFile(path, f"is not JSON from line {line} on", AGAIN)
    ended = mark == "]"
    if not ended:
      place = _skip(text, place + 1)
  if _skip(text, place + 1) < len(text):
    raise DamagedFile(path, "has something behind its list", AGAIN)


def json_whole(path: Path) -> Any:
  """A JSON file's content.

  Raises:
    DamagedFile: as `json_list`.
  """
  text = json_text(path)
  try:
    return json.loads(text)
  except json.JSONDecodeError as error:
    raise DamagedFile(path, f"is not JSON from line {error.lineno} on", AGAIN) from None
  except (RecursionError, ValueError):  # a ValueError: a number of 4,300 digits
    raise DamagedFile(path, "is nested or long beyond reason") from None


def json_text(path: Path) -> str:
  """A text file of bounded size, without a byte order mark."""
  if path.stat().st_size > MAX_JSON_BYTES:
    raise DamagedFile(path, f"has over {MAX_JSON_BYTES} bytes")
  try:
    with open_bytes(path) as file:
      text = file.read().decode("utf-8-sig")
  except UnicodeDecodeError:
    raise DamagedFile(path, "is not UTF-8", AGAIN) from None
  except DamagedFile:
    raise
  except READ_ERRORS as error:
    raise DamagedFile(
      path, f"cannot be read to its end ({type(error).__name__})", AGAIN
    ) from None
  if "\0" in text:
    raise DamagedFile(path, "has a NUL byte", AGAIN)
  return text


def _skip(text: str, place: int) -> int:
  """Where what is no white space follows."""
  found = _SPACE.match(text, place)
  return found.end() if found else place
