"""Devices: the mesh, and which parameter lies where on it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec

from imax_jax import tree as tree_lib


def make_mesh(axes: Mapping[str, int]) -> Mesh:
  """A mesh of named axes, e.g. {"data": -1, "model": 2}; -1 takes what is left.

  Raises:
    ValueError: the axes do not multiply to the number of devices.
  """
  count = jax.device_count()
  sizes = dict(axes)
  open_axes = [name for name, size in sizes.items() if size == -1]
  fixed = math.prod(size for size in sizes.values() if size != -1)
  if len(open_axes) > 1 or count % fixed or (not open_axes and fixed != count):
    raise ValueError(
      f"mesh {dict(axes)} does not fit {count} devices: sizes must multiply to {count}, "
      "and at most one may be -1"
    )
  for name in open_axes:
    sizes[name] = count // fixed
  # jax makes Explicit axes by default since 0.10; this code is written for automatic
  # partitioning, where a sharding is a hint and XLA inserts the collectives.
  return jax.make_mesh(
    tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes)
  )


def shard_params(params: tree_lib.Tree, mesh: Mesh, rules: tree_lib.Rules) -> Any:
  """Places each leaf by the first rule that matches its path.

  A rule's value is a tuple of axis names (or None) for the leaf's LAST dimensions, so
  that one rule serves a matrix and the same matrix stacked over scanned layers.
  """
  specs = tree_lib.first_match(rules, params, name="sharding")

  def place(path: str, leaf: Any) -> Any:
    axes = tuple(specs[path])[-leaf.ndim :] if leaf.ndim else ()
    spec = PartitionSpec(*((None,) * (leaf.ndim - len(axes)) + axes))
    return jax.device_put(leaf, NamedSharding(mesh, spec))

  return tree_lib.map_paths(place, params)


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
  """Splits the leading axis of every array over the mesh axis "data".

  Each process hands in its own part of the global batch.
  """
  sharding = NamedSharding(mesh, PartitionSpec("data"))
  return {
    name: jax.make_array_from_process_local_data(sharding, np.asarray(value))
    for name, value in batch.items()
  }


def replicate(tree: Any, mesh: Mesh) -> Any:
  """Every leaf whole on every device."""
  return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))
