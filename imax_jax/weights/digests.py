"""What a file was when it was made, and whether it still is."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_DIGITS = 8  # of a hash that a person is shown


def describe(path: Path) -> dict[str, Any]:
  """A file's name, size in bytes and SHA-256."""
  with path.open("rb") as file:
    digest = hashlib.file_digest(file, "sha256").hexdigest()
  return {"name": path.name, "size": path.stat().st_size, "sha256": digest}


def check(path: Path, said: Mapping[str, Any], remedy: str) -> None:
  """Compares a file with what `describe` said of it when it was made.

  Args:
    remedy: what a person should do, for the message.

  Raises:
    FileNotFoundError: it is not there.
    ValueError: it has other bytes.
  """
  if not path.is_file():
    raise FileNotFoundError(f"{path}: missing; {remedy}")
  found = describe(path)
  if found != said:
    raise ValueError(
      f"{path}: was changed since it was made: expected {_words(said)}, found "
      f"{_words(found)}; {remedy}"
    )


def _words(said: Mapping[str, Any]) -> str:
  size, digest = said.get("size", 0), str(said.get("sha256"))
  return f"{size:,} bytes with SHA-256 {digest[:_DIGITS]}…"
