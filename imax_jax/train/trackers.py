"""Where the numbers of a run are written beside metrics.jsonl.

TensorBoard always; Weights & Biases and Trackio where they are asked for. Both get
numbers and their names, no path and no config, and keep them on this machine: W&B is
offline unless WANDB_MODE says otherwise.
"""

from __future__ import annotations

import hashlib
import importlib
import os
from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from typing import Protocol

from tensorboardX import SummaryWriter

NAMES = ("wandb", "trackio")
_PROJECT = "imax_jax"


class Tracker(Protocol):
  def write(self, step: int, values: Mapping[str, float], /) -> None: ...

  def close(self) -> None: ...


class TensorBoard:
  """Event files in a folder. Those of steps that will come again are taken back."""

  def __init__(self, folder: Path, *, step: int) -> None:
    again = {"purge_step": step + 1} if folder.is_dir() else {}
    self._writer = SummaryWriter(str(folder), **again)

  def write(self, step: int, values: Mapping[str, float]) -> None:
    for name, value in values.items():
      self._writer.add_scalar(name, value, step)

  def close(self) -> None:
    self._writer.close()


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
