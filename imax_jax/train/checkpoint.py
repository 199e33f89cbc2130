"""Everything a resume needs: state, place in the data, and whose state it is.

    DIRECTORY/latest/STEP/       trainable weights, optimiser, step, rng; the iterator
    DIRECTORY/snapshots/NAME/    trainable weights at a phase of training (for the Fisher)

The frozen weights are a reference to their source and never a copy. Orbax writes a
checkpoint beside its place and renames it: a killed save leaves the one before.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from typing import NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.options import MultiprocessingOptions

from imax_jax import tree as tree_lib
from imax_jax.train.state import TrainState


class Restored(NamedTuple):
  state: TrainState
  iterator: dict[str, int]
  metadata: dict[str, Any]


class Checkpointer:
  """Saves and restores in a directory.

  Args:
    directory: made if it is missing.
    metadata: JSON-able facts that a resume must share, e.g. the config's fingerprint.
  """

  def __init__(
    self, directory: str | Path, *, metadata: Mapping[str, Any] | None = None
  ) -> None:
    self.directory = Path(directory).absolute()
    self.metadata = dict(metadata or {})
    self._latest = ocp.CheckpointManager(
      self.directory / "latest",
      options=ocp.CheckpointManagerOptions(
        # The step donates the state; a save that ran on beside it would read memory
        # that the next update writes (on CPU, orbax copies nothing).
        max_to_keep=1,
        enable_async_checkpointing=False,
      ),
      item_names=("state", "facts"),
    )

  def latest_step(self) -> int | None:
    """Updates done in the latest checkpoint; None where there is none."""
    return self._latest.latest_step()

  def save(self, state: TrainState, iterator: Mapping[str, int]) -> None:
    """Saves the state as the latest one; the one before goes only afterwards."""
    arrays = _to_arrays(state)
    self._latest.save(
      int(state.step),
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(arrays),
        facts=ocp.args.JsonSave(
          {
            "iterator": dict(iterator),
            "metadata": self.metadata,
            "shapes": _describe(arrays),
          }
        ),
      ),
    )

  def restore(self, like: TrainState) -> Restored:
    """The latest checkpoint, placed on devices as `like` is.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it has other arrays than `like`, or other metadata than this run.
    """
    step = self.latest_step()
    if step is None:
      raise FileNotFoundError(
        f"{self.directory}: no checkpoint to resume; start the run without resuming"
      )
    facts = self._latest.restore(
      step, args=ocp.args.Composite(facts=ocp.args.JsonRestore())
    )["facts"]
    where = self.directory / "latest" / str(step)
    arrays = _to_arrays(like)
    _check_shapes(facts["shapes"], _describe(arrays), where)
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
      args=ocp.args.Composite(state=ocp.args.StandardRestore(_abstract(arrays))),
    )["state"]
    return Restored(_to_state(restored, like), facts["iterator"], facts["metadata"])

  def save_snapshot(self, name: str, trainable: tree_lib.Tree) -> None:
    """Keeps the trainable weights under a name; an earlier one is replaced."""
    with ocp.StandardCheckpointer() as writer:
      writer.save(self.directory / "snapshots" / name, dict(trainable), force=True)

  def snapshots(self) -> tuple[str, ...]:
    """Names, sorted."""
    return snapshots(self.directory)

  def restore_snapshot(self, name: str, like: tree_lib.Tree) -> dict[str, Any]:
    """The trainable weights kept under a name.

    Raises:
      FileNotFoundError: no such snapshot.
      ValueError: it has other arrays than `like`.
    """
    return restore_snapshot(self.directory, name, like)

  def close(self) -> None:
    self._latest.close()


def snapshots(directory: str | Path) -> tuple[str, ...]:
  """Names of the weights kept under a run's folder, sorted; nothing is made."""
  folder = Path(directory).absolute() / "snapshots"
  # Orbax writes beside the final name, with a suffix of its own, before it renames.
  names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
  return tuple(sorted(name for name in names if "orbax-checkpoint-tmp" not in name))


def restore_snapshot(
  directory: str | Path, name: str, like: tree_lib.Tree
) -> dict[str, Any]:
  """The trainable weights that a run's folder keeps under a name; nothing is made.

  They are placed as `like` is, whatever devices they were saved from. If these are all
  this process's own, it reads alone; else all processes must take part.

  Raises:
    FileNotFoundError: no such snapshot.
    ValueError: it has other arrays than `like`, or is damaged.
  """
  where = Path(directory).absolute() / "snapshots" / name
  if name not in snapshots(directory):
    raise FileNotFoundError(
      f"{where}: no trained weights here (the folder keeps {list(snapshots(directory))}); "
      "give the folder of a finished run, e.g. WORKDIR/runs/imax-s0"
    )
  with ocp.StandardCheckpointer(multiprocessing_options=_readers(like)) as reader:
    try:
      found = _describe(reader.metadata(where).item_metadata.tree)
    except Exception as error:  # orbax raises whatever its parsers do
      raise _damaged(where, error) from error
    _check_shapes(found, _describe(like), where)
    try:
      return reader.restore(where, _abstract(like))
    except Exception as error:
      raise _damaged(where, error) from error


def _readers(like: tree_lib.Tree) -> MultiprocessingOptions:
  """The processes that orbax waits for."""
  if not all(leaf.sharding.is_fully_addressable for leaf in jax.tree.leaves(like)):
    return MultiprocessingOptions()
  this = jax.process_index()
  return MultiprocessingOptions(
    primary_host=this, active_processes={this}, barrier_sync_key_prefix=f"process{this}"
  )


def _damaged(where: Path, error: Exception) -> ValueError:
  return ValueError(
    f"{where}: damaged checkpoint ({type(error).__name__}); delete the run's folder and "
    "train it again"
  )


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


def _abstract(tree: Any) -> Any:
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding),
    tree,
  )


def _describe(tree: tree_lib.Tree) -> dict[str, str]:
  """{path: "float32[8, 16]"}."""
  return {
    path: f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"
    for path, leaf in tree_lib.flatten(tree).items()
  }


def _check_shapes(
  found: Mapping[str, str], expected: Mapping[str, str], where: Path
) -> None:
  for path in sorted(found.keys() | expected.keys()):
    has = found.get(path, "nothing")
    wants = expected.get(path, "nothing")
    if has != wants:
      raise ValueError(
        f"{where}: checkpoint of another model: {path} is {has}, expected {wants}; use "
        "the config it was trained with, or another workdir"
      )
