"""What has been done in a work directory, and what it was done from.

A study is a chain of stations. Each has a folder, and beside its files a `station.json`
with the fingerprint of everything it depends on: its part of the config and the
fingerprints of the stations before it. A finished station with the same fingerprint is
not repeated; one whose fingerprint has changed is redone from an empty folder, and so is
everything after it, since fingerprints contain one another. An interrupted station has
no `finished` in its `station.json`, so nothing half-written looks done.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import logging
from ml_collections import ConfigDict

_MARK = "station.json"
# Which verb makes a station, by the first part of its name.
_VERBS = {
  "hospital": "build",
  "data": "build",
  "selection": "select",
  "sight": "train",
  "runs": "train",
  "pseudo": "pseudo",
  "answers": "evaluate",
  "evaluations": "evaluate",
  "fisher": "fisher",
}


def _verb(station: str) -> str:
  """The verb that makes a station."""
  if station.startswith("runs/pseudo"):
    return "pseudo"
  return _VERBS.get(station.split("/")[0], "that makes it")


def _is_full(error: BaseException) -> bool:
  """Whether the disk is; array_record and tensorstore say so in words only."""
  if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
    return True
  words = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT))
  return isinstance(error, Exception) and any(word in str(error) for word in words)


def fingerprint(value: Any) -> str:
  """SHA-256 of a JSON-able value; equal values give equal digests on any machine."""
  text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def plain(value: Any) -> Any:
  """A ConfigDict, tuples and all, as JSON would give it back."""
  if isinstance(value, ConfigDict | dict):
    return {key: plain(item) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [plain(item) for item in value]
  return value


def stamps(path: str | Path) -> list[list[Any]]:
  """[name, bytes, time of last change] of a file, or of each file of a folder.

  Raises:
    FileNotFoundError: nothing there.
  """
  path = Path(path)
  if not path.exists():
    raise FileNotFoundError(f"{path}: no such file or folder; check the path")
  found = []
  for file in sorted(path.iterdir()) if path.is_dir() else [path]:
    if file.is_file():
      stat = file.stat()
      found.append([file.name, stat.st_size, stat.st_mtime_ns])
  return [[str(path.resolve()), 0, 0], *found]


def differing(made: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
  """The keys under which two stations' inputs differ: "construct.seed", "files"."""
  made, asked = plain(made), plain(asked)
  found = []
  for key in sorted(made.keys() | asked.keys()):
    one, other = made.get(key), asked.get(key)
    if isinstance(one, dict) and isinstance(other, dict):
      found += [f"{key}.{below}" for below in differing(one, other)]
    elif one != other:
      found.append(key)
  return found


@contextlib.contextmanager
def whole(path: str | Path) -> Iterator[Path]:
  """Yields a path to write to, which replaces `path` if the block ends without an error.

  A reader sees the old file or the new one, never a part. Missing folders are made.
  """
  path = Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  # Not the process id: in containers, all have the same.
  part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
  try:
    yield part
    part.replace(path)
  finally:
    part.unlink(missing_ok=True)


def write_json(path: str | Path, value: Any) -> None:
  """Indented JSON, `whole`. NaN and infinity are refused."""
  text = json.dumps(value, indent=1, allow_nan=False) + "\n"
  with whole(path) as part:
    part.write_text(text, encoding="utf8")


class Ledger:
  """The stations of one work directory, which several processes may share.

  Args:
    workdir: made if it is missing, private to the user.
    chief: whether this process keeps the ledger and does what one process can do;
      the others only take part in `together` stations and wait at the rest.
    barrier: waits for all processes at a name; None: there is one process.

  Raises:
    ValueError: the directory can not be made or written to.
  """

  def __init__(
    self,
    workdir: str | Path,
    *,
    chief: bool = True,
    barrier: Callable[[str], None] | None = None,
  ) -> None:
    self.workdir = Path(workdir)
    if self.workdir.exists() and self.workdir.stat().st_mode & 0o077:
      logging.warning("%s can be read by other users: chmod 700 it", self.workdir)
    self._chief = chief
    self._barrier = barrier or (lambda name: None)
    self._alone = False  # inside a station to which the others do not come
    try:
      self.workdir.mkdir(parents=True, exist_ok=True, mode=0o700)
      # Nameless, since processes of several hosts may open the directory at once, and in
      # containers they all have the same process id.
      with tempfile.TemporaryFile(dir=self.workdir):
        pass
    except OSError as error:
      raise ValueError(
        f"work directory {self.workdir} can not be written ({error.strerror}): "
        "give another with --workdir"
      ) from error

  @contextlib.contextmanager
  def lock(self) -> Iterator[None]:
    """Holds the work directory for this process's writing (one host's processes only).

    What is written meanwhile is the user's alone, whoever may look into the directory.

    Raises:
      ValueError: another process holds it; names the process and its host.
    """
    before = os.umask(0o077)
    try:
      with (self.workdir / ".lock").open("a+") as file:
        if self._chief:
          self._take(file)
        yield
    finally:
      os.umask(before)

  def _take(self, file: Any) -> None:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      file.seek(0)
      raise ValueError(
        f"{self.workdir} is in use by another imax_jax ({file.read().strip()}): wait "
        "for it, or give another --workdir"
      ) from error
    file.truncate(0)
    print(f"process {os.getpid()} on {socket.gethostname()}", file=file, flush=True)

  def station(
    self,
    name: str,
    inputs: Mapping[str, Any],
    make: Callable[[Path], Any],
    *,
    resumable: bool = False,
    together: bool = False,
    aside: bool = False,
  ) -> Path:
    """Runs `make(folder)` unless that was done from the same inputs; returns the folder.

    Args:
      name: the folder's name under the work directory, e.g. "runs/imax-s0".
      inputs: everything that decides the result, JSON-able.
      make: does the work. Its return value is not used: results are files.
      resumable: `make` can continue from an interrupted folder with the same inputs;
        otherwise such a folder is emptied first.
      together: all processes do it; otherwise the chief does, and the others wait.
      aside: what is there stays until `make` has ended well, in a folder beside it. For
        results that cost more than their room.
    """
    folder, digest = self.workdir / name, fingerprint(inputs)
    work = folder.with_name(f".{folder.name}.new") if aside else folder
    mark = self._read(folder)
    # All read before any writes, or they would not agree on what there is to do.
    self.meet(f"{name}/read")
    if mark.get("fingerprint") == digest and "finished" in mark:
      return folder
    before = mark.get("seconds", 0.0) if resumable else 0.0
    record = {"fingerprint": digest, "inputs": dict(inputs)}
    if self._chief:
      differ = ", ".join(differing(mark.get("inputs", {}), inputs)[:4])
      why = f"inputs have changed ({differ})" if differ else "it was interrupted"
      self._begin(work, name, record, "" if resumable and not differ else why)
    self.meet(f"{name}/begun")
    start = time.time()
    try:
      if self._chief or together:
        with self._inside(together):
          make(work)
    except BaseException as error:
      spent = {"seconds": before + time.time() - start}
      if self._chief:
        self._leave(work, None if aside else record | spent)
      if _is_full(error):
        raise OSError(
          errno.ENOSPC, f"{folder}: no space left; make room and run the same again"
        ) from error
      raise
    if self._chief:
      seconds = before + time.time() - start
      write_json(work / _MARK, record | {"seconds": seconds, "finished": True})
      if aside:
        if folder.exists():
          self._clear(folder, name, why)
        work.rename(folder)
      logging.info("%s: done in %.1f s", name, seconds)
    self.meet(f"{name}/done")
    return folder

  def _begin(self, work: Path, name: str, record: dict[str, Any], why: str) -> None:
    """`why` it begins from nothing; "" to go on."""
    if why and work.exists():
      self._clear(work, name, why)
    work.mkdir(parents=True, exist_ok=True)
    write_json(work / _MARK, record)
    logging.info("%s: begun", name)

  def _leave(self, work: Path, mark: Mapping[str, Any] | None) -> None:
    """What is left of a station that ended badly: its mark, or None: nothing."""
    with contextlib.suppress(OSError):  # the first error is the one to tell
      if mark is None:
        shutil.rmtree(work)
      else:
        write_json(work / _MARK, mark)

  @contextlib.contextmanager
  def _inside(self, together: bool) -> Iterator[None]:
    outside, self._alone = self._alone, self._alone or not together
    try:
      yield
    finally:
      self._alone = outside

  def meet(self, name: str) -> None:
    """Waits for all processes, unless they wait at the end of a station around this."""
    if not self._alone:
      self._barrier(name)

  def is_done(self, name: str) -> bool:
    """Whether the station has finished, from whatever inputs."""
    return "finished" in self._read(self.workdir / name)

  def inputs(self, name: str) -> dict[str, Any]:
    """What a finished station was made from.

    Raises:
      ValueError: the station has not finished.
    """
    return self._finished(name)["inputs"]

  def digest(self, name: str, inputs: Mapping[str, Any] | None = None) -> str:
    """The fingerprint of a finished station, to be put into the inputs of the next.

    Raises:
      ValueError: the station has not finished, or was made from other `inputs`.
    """
    found = self._finished(name)
    if inputs is not None and found["fingerprint"] != fingerprint(inputs):
      other = differing(found["inputs"], inputs)
      raise ValueError(
        f"{self.workdir / name} was made with another config or other files "
        f"({', '.join(other)}): run the verb {_verb(name)} again, or give those it was "
        "made with"
      )
    return found["fingerprint"]

  def _finished(self, name: str) -> dict[str, Any]:
    folder, mark = self.workdir / name, self._read(self.workdir / name)
    if "finished" not in mark:
      raise ValueError(f"{folder} is not finished: run the verb {_verb(name)}")
    return mark

  def seconds(self) -> dict[str, float]:
    """How long each finished station took, by name."""
    marks = sorted(self.workdir.glob(f"**/{_MARK}"))
    return {
      str(mark.parent.relative_to(self.workdir)): round(record["seconds"], 2)
      for mark in marks
      if "finished" in (record := self._read(mark.parent))
    }

  @staticmethod
  def _read(folder: Path) -> dict[str, Any]:
    try:
      return json.loads((folder / _MARK).read_text(encoding="utf8"))
    except FileNotFoundError:
      return {}
    except json.JSONDecodeError as error:
      raise ValueError(
        f"{folder / _MARK} is damaged: remove {folder} and run again"
      ) from error

  def _clear(self, folder: Path, name: str, why: str) -> None:
    if not (folder / _MARK).exists() and any(folder.iterdir()):
      raise ValueError(
        f"{folder} holds files that imax_jax did not make: move them, or give another --workdir"
      )
    logging.info("%s: %s; doing it again", name, why)
    shutil.rmtree(folder)
