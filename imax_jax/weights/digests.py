"""What files were when they were made, and whether they still are.

Orbax and safetensors keep no checksum of values: a bit that falls over on a disk is
loaded as another weight. So whatever we write and read again is sealed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imax_jax.ledger import write_json

SEAL = "sha256.json"
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


def seal(folder: Path) -> None:
  """Writes what every file of a folder is into its sha256.json: the folder is finished."""
  files = sorted(path for path in folder.rglob("*") if path.is_file())
  write_json(
    folder / SEAL, {str(path.relative_to(folder)): describe(path) for path in files}
  )


def is_sealed(folder: Path) -> bool:
  return (folder / SEAL).is_file()


def check_seal(folder: Path, remedy: str) -> None:
  """Compares a sealed folder with its sha256.json.

  Raises:
    FileNotFoundError: a file, or the seal itself, is not there.
    ValueError: a file has other bytes, or the seal can not be read.
  """
  path = folder / SEAL
  if not path.is_file():
    raise FileNotFoundError(f"{path}: missing; {remedy}")
  try:
    said = json.loads(path.read_text(encoding="utf8"))
    files = {folder / name: dict(file) for name, file in said.items()}
  except (ValueError, AttributeError, TypeError):
    raise ValueError(f"{path}: was changed since it was made; {remedy}") from None
  for file, facts in files.items():
    check(file, facts, remedy)


def _words(said: Mapping[str, Any]) -> str:
  size, digest = said.get("size", 0), str(said.get("sha256"))
  return f"{size:,} bytes with SHA-256 {digest[:_DIGITS]}…"
