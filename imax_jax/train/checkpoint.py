"""Everything a resume needs: state, place in the data, and whose state it is.

    DIRECTORY/latest/STEP/    trainable weights, optimiser, step, rng; the iterator
    DIRECTORY/damaged/…       checkpoints that were not restored

The frozen weights are a reference to their source and never a copy. Orbax writes a
checkpoint beside its place and renames it; then it is sealed (`weights.digests`), for
orbax restores a checkpoint with a flipped bit without a word. What is not sealed was
never finished.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections import Counter
from collections.abc import Callable
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils

from imax_jax.train import snapshots
from imax_jax.train.state import TrainState
from imax_jax.weights import digests

_ALL_DAMAGED = -2  # what `_look` gives in place of a step


class Restored(NamedTuple):
  state: TrainState
  iterator: dict[str, int]
  metadata: dict[str, Any]


class Checkpointer:
  """Saves and restores in a directory.

  Args:
    directory: made if it is missing; what killed saves left in it is removed.
    metadata: JSON-able facts that a resume must share, e.g. the config's fingerprint.
    keep: how many of the latest checkpoints stay. Two at least: where the last is
      damaged or not sealed, the one before is restored.

  Raises:
    ValueError: fewer than two.
  """

  def __init__(
    self,
    directory: str | Path,
    *,
    metadata: Mapping[str, Any] | None = None,
    keep: int = 2,
  ) -> None:
    if keep < 2:
      raise ValueError(f"keep {keep}: expected two checkpoints or more")
    self.directory = Path(directory).absolute()
    self.metadata = dict(metadata or {})
    if jax.process_index() == 0:
      snapshots.clean(self.directory)
    self._latest = ocp.CheckpointManager(
      self.directory / "latest",
      options=ocp.CheckpointManagerOptions(max_to_keep=keep),
      item_names=("state", "facts"),
    )
    self._saving: Future[None] | None = None
    self._copies: bool | None = None

  def latest_step(self) -> int | None:
    """Updates done in the latest sealed checkpoint; None where there is none."""
    self.wait()
    return max(filter(self._is_sealed, self._latest.all_steps()), default=None)

  def save(self, state: TrainState, iterator: Mapping[str, int]) -> None:
    """Saves the state as the latest one, while training goes on.

    Call `wait` before anything else is saved by orbax: it numbers the saves of a process
    by one counter, and two at once take each other's folders for their own.

    Raises:
      Exception: the save before this one failed; it is not in the directory.
    """
    self.wait()
    arrays, facts = _to_arrays(state), dict(iterator)
    if self._copies is None:  # asked once: copies are part of what is held afterwards
      self._copies = jax.process_count() == 1 and _have_room_for(arrays)
    if self._copies:
      # Orbax takes tens of ms and a card's whole transfer before it returns, a copy where
      # the arrays lie a few. The next step donates the state, not the copy.
      copied = _copied(arrays)
      self._saving = _in_background(lambda: self._finish(self._begin(copied, facts)))
      return
    # Without room for a copy the steps wait for the transfer. With other processes too:
    # orbax waits for them by a sum over devices, which must come at the same place among
    # the steps' own in all of them, not in a thread. It has the values on the host before
    # it returns, or holds the buffers, which JAX then does not write to (a test holds
    # that).
    step = self._begin(arrays, facts)
    self._saving = _in_background(lambda: self._finish(step))

  def _begin(self, arrays: dict[str, Any], iterator: dict[str, int]) -> int:
    """Orbax's own save, which goes on behind it; the step that it is of."""
    step = int(arrays["step"])
    self._latest.save(
      step,
      force=True,  # when to save is the loop's to say, and a signal's
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(arrays),
        facts=ocp.args.JsonSave(
          {
            "iterator": iterator,
            "metadata": self.metadata,
            "shapes": snapshots.describe(arrays),
          }
        ),
      ),
    )
    return step

  def _finish(self, step: int) -> None:
    self._latest.wait_until_finished()
    if jax.process_index() == 0:
      digests.seal(self._folder(step))

  def wait(self) -> None:
    """Returns when nothing is being saved; raises what went wrong in the background."""
    saving, self._saving = self._saving, None
    if saving is not None:
      saving.result()

  def restore(self, like: TrainState) -> Restored | None:
    """The latest checkpoint that is whole, placed on devices as `like` is.

    One that is damaged is moved to damaged/, named in the log, and the one before it is
    restored; so is one that a killed run had not sealed. None: there is none, or none
    was ever finished.

    Raises:
      ValueError: all are damaged; or it has other arrays than `like`, or other metadata
        than this run.
    """
    step = self._whole_step()
    if step is None:
      return None
    facts = self._latest.restore(
      step, args=ocp.args.Composite(facts=ocp.args.JsonRestore())
    )["facts"]
    where = self._folder(step)
    arrays = _to_arrays(like)
    snapshots.check_shapes(facts["shapes"], snapshots.describe(arrays), where)
    if facts["metadata"] != self.metadata:
      keys = sorted(facts["metadata"].keys() | self.metadata.keys())
      differ = [
        key for key in keys if facts["metadata"].get(key) != self.metadata.get(key)
      ]
      raise ValueError(
        f"{where}: checkpoint of another run ({', '.join(differ)} differ); use another "
        "workdir, or delete this one to start anew"
      )
    restored = self._latest.restore(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardRestore(snapshots.abstract(arrays))
      ),
    )["state"]
    return Restored(_to_state(restored, like), facts["iterator"], facts["metadata"])

  def _whole_step(self) -> int | None:
    """The first process looks, and all do as it says: they must restore the same."""
    self.wait()
    found, words = -1, ""
    if jax.process_index() == 0:
      found, words = self._look()
    if jax.process_count() > 1:
      found = int(multihost_utils.broadcast_one_to_all(np.int32(found)))
    self._latest.reload()
    if found == _ALL_DAMAGED:
      raise ValueError(
        words or f"{self.directory}: every checkpoint is damaged; {snapshots.ANEW}"
      )
    return None if found < 0 else found

  def _look(self) -> tuple[int, str]:
    """(the latest whole step, or a negative number; what was wrong with later ones)."""
    words: list[str] = []
    for step in sorted(self._latest.all_steps(), reverse=True):
      folder = self._folder(step)
      try:
        if self._is_sealed(step):
          digests.check_seal(folder, "an earlier checkpoint is looked for")
          return step, ""
        logging.warning("%s: was not finished; moved aside", folder)
      except (FileNotFoundError, ValueError) as error:
        words.append(str(error))
        logging.error("%s", error)
      _aside(folder, self.directory / "damaged")
    if words:
      return _ALL_DAMAGED, f"{words[0]}: none is whole; {snapshots.ANEW}"
    return -1, ""

  def _folder(self, step: int) -> Path:
    return self.directory / "latest" / str(step)

  def _is_sealed(self, step: int) -> bool:
    return digests.is_sealed(self._folder(step))

  def close(self) -> None:
    """Waits for the last save; raises what went wrong in it."""
    try:
      self.wait()
    finally:
      self._latest.close()


def _have_room_for(arrays: dict[str, Any]) -> bool:
  """Whether each device can hold a copy of its shards beside the most it has held yet.

  The most is the steps' own, which go on beside the copy. Devices that do not say what
  they hold, a CPU, have the host's memory.
  """
  needed: Counter[jax.Device] = Counter()
  for leaf in jax.tree.leaves(arrays):
    for shard in leaf.addressable_shards:
      needed[shard.device] += shard.data.nbytes
  for device, size in needed.items():
    held = device.memory_stats() or {}
    if size + held.get("peak_bytes_in_use", 0) > held.get("bytes_limit", math.inf):
      return False
  return True


@jax.jit
def _copied(arrays: dict[str, Any]) -> dict[str, Any]:
  return jax.tree.map(jnp.copy, arrays)


def _in_background(work: Callable[[], None]) -> Future[None]:
  """Runs it in a thread that does not keep a dying program alive."""
  done: Future[None] = Future()

  def run() -> None:
    try:
      work()
    except BaseException as error:
      done.set_exception(error)
    else:
      done.set_result(None)

  threading.Thread(target=run, name="checkpoint", daemon=True).start()
  return done


def _aside(folder: Path, shelf: Path) -> None:
  """Moves a folder to a shelf, under a name that is free there."""
  shelf.mkdir(exist_ok=True)
  taken = {path.name for path in shelf.iterdir()}
  name = next(
    name
    for number in itertools.count(1)
    if (name := f"{folder.name}-{number}") not in taken
  )
  folder.rename(shelf / name)


def _to_arrays(state: TrainState) -> dict[str, Any]:
  """A tree of plain dicts: what is on disk does not depend on optax's classes."""
  leaves = jax.tree_util.tree_leaves_with_path(state.opt_state)
  names = [f"{i:04d}{jax.tree_util.keystr(path)}" for i, (path, _) in enumerate(leaves)]
  return {
    "step": state.step,
    "trainable": state.trainable,
    # A path holds "/" nowhere, but orbax makes files of names: keep them plain.
    "opt_state": {
      "".join(c if c.isalnum() or c in "_." else "-" for c in name): leaf
      for name, (_, leaf) in zip(names, leaves, strict=True)
    },
    "rng": jax.random.key_data(state.rng),
  }


def _to_state(arrays: Mapping[str, Any], like: TrainState) -> TrainState:
  structure = jax.tree.structure(like.opt_state)
  opt_leaves = [arrays["opt_state"][name] for name in sorted(arrays["opt_state"])]
  return TrainState(
    step=arrays["step"],
    trainable=arrays["trainable"],
    opt_state=jax.tree.unflatten(structure, opt_leaves),
    rng=jax.random.wrap_key_data(arrays["rng"], impl=jax.random.key_impl(like.rng)),
  )
