"""What the readers share: finding a file below a source's root, and opening it.

Gzipped or not, under either name; never through a way that leads out of the root, and
never without end.
"""

from __future__ import annotations

import gzip
import io
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imax_jax.data.sources.intake import DamagedFile
from imax_jax.data.sources.intake import Tally

AGAIN = "download it again and compare it with SHA256SUMS.txt"
READ_ERRORS = (EOFError, gzip.BadGzipFile, zlib.error, OSError)
# gzip reaches 1000 : 1 on a bomb, some 10 : 1 on these tables.
_MAX_RATIO = 200
_RATIO_FREE_BYTES = 8 * 2**20


def find_file(
  root: str | Path, names: Sequence[str], *, remedy: str, tally: Tally | None = None
) -> Path:
  """The first of `names` under `root`; "x.csv.gz" also finds "x.csv" and the reverse.

  Where both are there, the name that was asked for counts; the tally is told.

  Raises:
    FileNotFoundError: no name exists; says which were looked for, where, and `remedy`.
    DamagedFile: it is a link to outside of `root`.
  """
  for name in names:
    other = name.removesuffix(".gz") if name.endswith(".gz") else f"{name}.gz"
    for candidate in (name, other):
      if Path(root, candidate).exists():
        path = inside(root, candidate)
        if tally is not None:
          tally.opened(path)
          if candidate == name and Path(root, other).exists():
            tally.met(f"{name} and {Path(other).name}", "both there: the first is read")
        return path
  raise FileNotFoundError(
    f"{root}: expected {' or '.join(names)}, which is not there. {remedy}"
  )


def inside(root: str | Path, name: str) -> Path:
  """`root/name`, for a name that was read from a file.

  Raises:
    DamagedFile: an absolute name, one that climbs with "..", one with a NUL or a
      backslash, or a way through a link that leads out of `root`.
  """
  if "\0" in name or "\\" in name or "//" in f"/{name}" or ".." in name.split("/"):
    raise DamagedFile(root, "names a file outside its own folder")
  path = Path(root, name)
  try:
    path.exists()  # pathlib hides too long a name from resolve()
    real = path.resolve()
  except (OSError, RuntimeError):  # or links in a circle
    raise DamagedFile(root, "names a file that no folder can hold") from None
  if not real.is_relative_to(Path(root).resolve()):
    raise DamagedFile(path, "is a link that leads out of its folder")
  return path


def within(root: str | Path, path: Path) -> Path:
  """A path that was found below `root`; raises as `inside`."""
  return inside(root, path.relative_to(root).as_posix())


class Inside:
  """As `inside` for the many paths below `root` that readers make up.

  Each folder is looked at once: a quarter of a million images take a second, not six.
  """

  def __init__(self, root: str | Path) -> None:
    self._root, self._real_root = str(Path(root)), os.path.realpath(root)
    self._folders: dict[str, bool] = {}

  def __call__(self, path: str) -> bool:
    """Whether no link on the way leads out."""
    if os.path.islink(path):
      real = os.path.realpath(path)
      return os.path.commonpath((real, self._real_root)) == self._real_root
    folder = os.path.dirname(path)
    if len(folder) <= len(self._root):
      return True
    if folder not in self._folders:
      self._folders[folder] = self(folder)
    return self._folders[folder]


class _Bounded(io.RawIOBase):
  """A gzip file's content, refused once it is out of all proportion to the file."""

  def __init__(self, path: Path) -> None:
    self._path, self._size = path, path.stat().st_size
    self._file = gzip.GzipFile(path)
    self._given = 0

  def readable(self) -> bool:
    return True

  def readinto(self, buffer: Any) -> int:
    # One piece at a time, so that what precedes a damaged place is still given.
    data = self._file.read1(len(buffer))
    buffer[: len(data)] = data
    self._given += len(data)
    if self._given > _RATIO_FREE_BYTES and self._given > _MAX_RATIO * self._size:
      raise DamagedFile(self._path, f"unpacks to over {_MAX_RATIO} times its size")
    return len(data)

  def close(self) -> None:
    self._file.close()
    super().close()


def is_packed(path: Path) -> bool:
  """Whether the file is gzip's, whatever its name says: browsers unpack as they load."""
  with path.open("rb") as file:
    return file.read(2) == b"\x1f\x8b"


def open_bytes(path: Path) -> io.BufferedReader:
  """A gzipped or plain file's content; a gzip bomb raises `DamagedFile` as it is read."""
  if is_packed(path):
    return io.BufferedReader(_Bounded(path), 2**20)
  return io.BufferedReader(path.open("rb", buffering=0), 2**20)
