"""Lines appended to files in whole chunks, whatever ends the process.

    FOLDER/labels.jsonl    b"…"       what is behind the sizes in written.json
    FOLDER/written.json    {"sizes": {"labels.jsonl": 40960, …}, "state": {…}}

is cut off when the work goes on: a chunk that was half written is made again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imax_jax.ledger import write_json

MARK = "written.json"


class Journal:
  """The files of one folder, and a state that belongs to what is written of them.

  Args:
    folder: exists; may hold what an earlier process left.
    files: their names.
    state: JSON-able, if nothing is written yet.

  Raises:
    ValueError: the folder is damaged: a file is shorter than was written.
  """

  def __init__(
    self, folder: Path, files: Sequence[str], state: Mapping[str, Any]
  ) -> None:
    self._folder = folder
    if (folder / MARK).is_file():
      said = _read(folder)
      self._sizes, self.state = said["sizes"], said["state"]
    else:
      self._sizes, self.state = dict.fromkeys(files, 0), dict(state)
    for name, size in self._sizes.items():
      with (folder / name).open("ab") as file:
        if file.tell() < size:
          raise _damaged(folder / name)
        file.truncate(size)

  def append(
    self, lines: Mapping[str, Sequence[str]], state: Mapping[str, Any]
  ) -> None:
    """Adds lines to the files, and has `state` from then on: all of it or nothing."""
    sizes = dict(self._sizes)
    for name, added in lines.items():
      with (self._folder / name).open("ab") as file:
        file.write("".join(f"{line}\n" for line in added).encode())
        file.flush()
        os.fsync(file.fileno())
        sizes[name] = file.tell()
    write_json(self._folder / MARK, {"sizes": sizes, "state": dict(state)})
    self._sizes, self.state = sizes, dict(state)


def state_of(folder: Path) -> dict[str, Any]:
  """The state that a finished journal was left with.

  Raises:
    ValueError: it is damaged.
  """
  return dict(_read(folder)["state"])


def _read(folder: Path) -> dict[str, Any]:
  try:
    said = json.loads((folder / MARK).read_text("utf8"))
    return {"sizes": dict(said["sizes"]), "state": dict(said["state"])}
  except (OSError, KeyError, TypeError, ValueError) as error:
    raise _damaged(folder / MARK) from error


def _damaged(path: Path) -> ValueError:
  return ValueError(f"{path}: damaged; remove {path.parent} and run again")
