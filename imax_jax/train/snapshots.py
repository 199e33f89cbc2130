"""Trainable weights that a run keeps by name: at its phases, for the Fisher, and at its end.

DIRECTORY/snapshots/NAME/    orbax's files, and sha256.json once they are all there
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.options import MultiprocessingOptions

from imax_jax import tree as tree_lib
from imax_jax.weights import digests

ANEW = "delete the run's folder and train it again"
# Orbax writes beside the final name, with a suffix of its own, before it renames.
_UNFINISHED = "orbax-checkpoint-tmp"


def save(directory: str | Path, name: str, trainable: tree_lib.Tree) -> None:
  """Keeps the trainable weights under a name; an earlier one is replaced."""
  where = _folder(directory) / name
  with ocp.StandardCheckpointer() as writer:
    writer.save(where, dict(trainable), force=True)
  if jax.process_index() == 0:
    digests.seal(where)


def clean(directory: str | Path) -> None:
  """Removes what killed saves left, of snapshots and of checkpoints."""
  for path in Path(directory).glob(f"*/*{_UNFINISHED}*"):
    shutil.rmtree(path)


def names(directory: str | Path) -> tuple[str, ...]:
  """Names of the weights kept under a run's folder, sorted; nothing is made."""
  folder = _folder(directory)
  found = [path.name for path in folder.iterdir()] if folder.is_dir() else []
  return tuple(sorted(name for name in found if _UNFINISHED not in name))


def restore(directory: str | Path, name: str, like: tree_lib.Tree) -> dict[str, Any]:
  """The trainable weights that a run's folder keeps under a name; nothing is made.

  They are placed as `like` is, whatever devices they were saved from. If these are all
  this process's own, it reads alone; else all processes must take part.

  Raises:
    FileNotFoundError: no such snapshot.
    ValueError: it has other arrays than `like`, or is damaged.
  """
  where = _folder(directory) / name
  if name not in names(directory):
    raise FileNotFoundError(
      f"{where}: no trained weights here (the folder keeps {list(names(directory))}); "
      "give the folder of a finished run, e.g. WORKDIR/runs/imax-s0"
    )
  digests.check_seal(where, ANEW)
  with ocp.StandardCheckpointer(multiprocessing_options=_readers(like)) as reader:
    try:
      found = describe(reader.metadata(where).item_metadata.tree)
    except Exception as error:  # orbax raises whatever its parsers do
      raise _damaged(where, error) from error
    check_shapes(found, describe(like), where)
    try:
      return reader.restore(where, abstract(like))
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
  return ValueError(f"{where}: damaged checkpoint ({type(error).__name__}); {ANEW}")


def _folder(directory: str | Path) -> Path:
  return Path(directory).absolute() / "snapshots"


def abstract(tree: Any) -> Any:
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding),
    tree,
  )


def describe(tree: tree_lib.Tree) -> dict[str, str]:
  """{path: "float32[8, 16]"}."""
  return {
    path: f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"
    for path, leaf in tree_lib.flatten(tree).items()
  }


def check_shapes(
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
