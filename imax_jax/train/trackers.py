"""Where the numbers of a run are written beside metrics.jsonl.

TensorBoard always; Weights & Biases and Trackio where they are asked for. Both get
numbers and their names, no path and no config, and keep them on this machine: W&B is
offline unless WANDB_MODE says otherwise.
"""

from __future__ import annotations

import errno
import hashlib
import importlib
import io
import os
import struct
import time
from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from typing import Protocol

from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.event_pb2 import SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import masked_crc32c

NAMES = ("wandb", "trackio")
_PROJECT = "imax_jax"


class Tracker(Protocol):
  def write(self, step: int, values: Mapping[str, float], /) -> None: ...

  def close(self) -> None: ...


class TensorBoard:
  """Event files in a folder, one a start. What will be written again is taken back.

  Records are appended unbuffered: nothing is left to be written where a disk is full.
  """

  def __init__(self, folder: Path, *, step: int) -> None:
    again = folder.is_dir()
    folder.mkdir(parents=True, exist_ok=True)
    # TensorBoard reads them in the order of their names.
    path = folder / f"events.out.tfevents.{time.time_ns()}"
    self._file: io.FileIO = path.open("xb", buffering=0)
    self._append(Event(wall_time=time.time(), file_version="brain.Event:2"))
    if again:
      start = SessionLog(status=SessionLog.START)
      self._append(Event(wall_time=time.time(), step=step + 1, session_log=start))

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Raises an OSError that names the file."""
    found = [Summary.Value(tag=tag, simple_value=x) for tag, x in values.items()]
    summary = Summary(value=found)
    self._append(Event(wall_time=time.time(), step=step, summary=summary))

  def _append(self, event: Any) -> None:
    data = event.SerializeToString()
    length = struct.pack("<Q", len(data))
    sums = (struct.pack("<I", masked_crc32c(part)) for part in (length, data))
    record = length + next(sums) + data + next(sums)
    try:
      short = len(record) - (self._file.write(record) or 0)
    except OSError as error:
      raise OSError(error.errno, error.strerror, self._file.name) from error
    if short:  # a full disk takes what it can
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._file.name)

  def close(self) -> None:
    self._file.close()


class _Remote:
  """W&B or Trackio, whose modules have the same three functions."""

  def __init__(self, name: str, run: Path) -> None:
    self._module = _import(name)
    options: dict[str, Any] = {"resume": "allow"}
    if name == "wandb":
      options["id"] = hashlib.sha256(str(run.absolute()).encode()).hexdigest()[:16]
      options["dir"] = str(run)
      options["mode"] = os.environ.get("WANDB_MODE", "offline")
    self._module.init(project=_PROJECT, name=run.name, **options)

  def write(self, step: int, values: Mapping[str, float]) -> None:
    self._module.log(dict(values), step=step)

  def close(self) -> None:
    self._module.finish()


def check(names: Sequence[str]) -> None:
  """Raises a ValueError where one is unknown or not installed."""
  for name in names:
    if name not in NAMES:
      raise ValueError(f"train.trackers: no {name!r}; there are {', '.join(NAMES)}")
    _import(name)


def _import(name: str) -> Any:
  try:
    return importlib.import_module(name)
  except ModuleNotFoundError as error:
    raise ValueError(
      f"train.trackers: {name} is not installed: pip install 'imax_jax[{name}]'"
    ) from error


def open_all(run: Path, names: Sequence[str], *, step: int) -> list[Tracker]:
  """TensorBoard's and those named, of the run in a folder that goes on from `step`."""
  found: list[Tracker] = [TensorBoard(run / "tensorboard", step=step)]
  return found + [_Remote(name, run) for name in names]
