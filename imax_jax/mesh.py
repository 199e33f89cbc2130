"""Devices: the mesh, which parameter lies where on it, and who holds which rows.

Three axes, any of which a mesh may lack:

    data     every device has all weights, each its rows of the batch
    fsdp     rows of the batch too, and the weights are split; gathered where they work
    tensor   the weights are split and work where they lie; the same rows on all

The rows of a batch are split over data and fsdp together. Devices that are neighbours
differ in tensor first, so that its collectives, a few a layer, stay inside a host.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec

from imax_jax import tree as tree_lib

AXES = ("data", "fsdp", "tensor")  # outermost first
_ROWS = ("data", "fsdp")

_COLUMN = r"decoder/layers/(attn|mlp)/(q|k|v|qkv|gate|up|gate_up)"
_ROW = r"decoder/layers/(attn|mlp)/(o|down)"
# Where the weights of every model of the family lie on a mesh with "fsdp", "tensor" or
# both. A matrix whose outputs are split over tensor (q, k, v, gate, up, head) stands
# before one whose inputs are (o, down), so that a pair needs one sum over tensor. A
# low-rank pair lies as its kernel does, its rank whole. A leaf that no rule knows is an
# error and not a copy on every device.
FSDP: tree_lib.Rules = (
  (r"decoder/embed/embedding", ("tensor", "fsdp")),
  (rf"({_COLUMN}|decoder/head)/kernel(_scale)?", ("fsdp", "tensor")),
  (rf"{_COLUMN}/lora_(a|route)", ("fsdp", None)),
  (rf"{_COLUMN}/lora_b", (None, "tensor")),
  (rf"{_ROW}/kernel(_scale)?", ("tensor", "fsdp")),
  (rf"{_ROW}/lora_(a|route)", ("tensor", None)),
  (rf"{_ROW}/lora_b", (None, "fsdp")),
  # As many outputs as there are experts; five divide by nothing.
  (r"connector/router/dense_1/kernel", ("fsdp", None)),
  # A patch's values (588 at 14 px) seldom divide by eight; the widths do.
  (r"(encoder|connector)/.*kernel(_scale)?", (None, "fsdp")),
  (r".*/(scale|bias|[qkv]_bias)|encoder/(class_token|positions)", ()),
  (r"connector/(task_tokens|qformer/queries)", ()),
)


class RowShare(NamedTuple):
  """The part of a batch's rows that a process makes; the fields are `Batches`' own.

  It is shards [process_index, process_index + 1) · num_shards / process_count, where
  processes that need the same rows count as one.
  """

  num_shards: int
  process_index: int
  process_count: int


def make_mesh(axes: Mapping[str, int], devices: Sequence[Any] | None = None) -> Mesh:
  """A mesh of AXES' names and order, e.g. {"data": -1, "tensor": 2}; -1 takes the rest.

  Args:
    devices: all of all processes unless given.

  Raises:
    ValueError: an unknown axis, or sizes that do not multiply to the number of devices.
  """
  unknown = sorted(set(axes) - set(AXES))
  if unknown:
    raise ValueError(f"mesh: unknown axes {unknown}; there are {', '.join(AXES)}")
  count = jax.device_count() if devices is None else len(devices)
  sizes = {name: axes[name] for name in AXES if name in axes}
  open_axes = [name for name, size in sizes.items() if size == -1]
  fixed = math.prod(size for size in sizes.values() if size != -1)
  misfit = fixed < 1 or count % fixed or (not open_axes and fixed != count)
  if misfit or len(open_axes) > 1:
    raise ValueError(
      f"mesh {dict(axes)} does not fit {count} devices: sizes must multiply to {count}, "
      "and at most one may be -1"
    )
  for name in open_axes:
    sizes[name] = count // fixed
  # jax makes Explicit axes by default since 0.10; this code is written for automatic
  # partitioning, where a sharding is a hint and XLA inserts the collectives.
  return jax.make_mesh(
    tuple(sizes.values()),
    tuple(sizes),
    axis_types=(AxisType.Auto,) * len(sizes),
    devices=devices,
  )


def own_mesh(mesh: Mesh) -> Mesh:
  """For work that a process does by itself: its own devices, along fsdp.

  With one process, the mesh as it is.
  """
  if jax.process_count() == 1:
    return mesh
  return make_mesh({"fsdp": -1}, jax.local_devices())


# ── Weights ───────────────────────────────────────────────────────────────────────


def shardings(abstract: tree_lib.Tree, mesh: Mesh, rules: tree_lib.Rules) -> Any:
  """Where each leaf lies: the same tree with a NamedSharding in place of each leaf.

  The first rule that matches a path decides. Its value holds an axis or None for each of
  the leaf's LAST dimensions, so that one rule serves a matrix and the same matrix stacked
  over scanned layers. An axis that the mesh lacks does not split, nor is a dimension of
  one value (an int8 kernel's scale over its inputs) split.

  Args:
    abstract: anything with a shape at its leaves.
    rules: one's own and those of `FSDP`. Of `FSDP`, a rule that the model has no leaf
      for is left out; a rule of one's own that decides nothing is an error.

  Raises:
    ValueError: a leaf without a rule; a rule without a leaf, of more dimensions than its
      leaf, or of an unknown axis; a dimension that its axis does not divide.
  """
  specs = tree_lib.first_match(_of_use(rules, abstract), abstract, name="sharding")
  return tree_lib.map_paths(
    lambda path, leaf: NamedSharding(mesh, _spec(path, leaf.shape, specs[path], mesh)),
    abstract,
  )


def _of_use(rules: tree_lib.Rules, tree: tree_lib.Tree) -> tree_lib.Rules:
  """The rules less those of `FSDP` that decide no leaf of this tree."""
  left, kept = set(tree_lib.flatten(tree)), []
  for pattern, axes in rules:
    taken: set[str] = set()
    with contextlib.suppress(re.error):  # `first_match` says which one it is
      taken = {path for path in left if re.fullmatch(pattern, path)}
    left -= taken
    if taken or (pattern, tuple(axes)) not in FSDP:
      kept.append((pattern, axes))
  return kept


def _spec(
  path: str, shape: tuple[int, ...], axes: Sequence[str | None], mesh: Mesh
) -> PartitionSpec:
  if len(axes) > len(shape):
    raise ValueError(
      f"sharding: {path} {list(shape)} has fewer dimensions than its rule's {axes}"
    )
  names: list[str | None] = [None] * (len(shape) - len(axes))
  for size, axis in zip(shape[len(names) :], axes, strict=True):
    if axis is not None and axis not in AXES:
      raise ValueError(
        f"sharding: {path}: unknown axis {axis!r}; there are {', '.join(AXES)}"
      )
    split = axis in mesh.shape and size > 1
    if split and size % mesh.shape[axis]:
      raise ValueError(
        f"sharding: {path} {list(shape)}: dimension {len(names)} of {size} does not "
        f"divide over mesh axis {axis!r} of {mesh.shape[axis]}; choose a size of "
        f"{axis!r} that divides {size}, or give the path a rule of its own"
      )
    names.append(axis if split else None)
  return PartitionSpec(*names)


def place(tree: Any, where: Any) -> Any:
  """Moves each leaf to its sharding in `where`, a tree alike (or one sharding for all).

  Leaves that are whole in each process (numpy, or on its own devices) must be the same
  in all; each process takes what its devices hold and nothing is sent.
  """
  if isinstance(where, NamedSharding):
    return jax.tree.map(lambda leaf: _place(leaf, where), tree)
  return jax.tree.map(_place, tree, where)


def _place(leaf: Any, where: NamedSharding) -> jax.Array:
  if where.is_fully_addressable or not getattr(leaf, "is_fully_addressable", True):
    return jax.device_put(leaf, where)
  # `device_put` would first send the leaf around to see that all have the same.
  if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
    data = _place(jax.random.key_data(leaf), where)
    return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
  whole = np.asarray(leaf)
  return jax.make_array_from_callback(whole.shape, where, lambda index: whole[index])


def replicate(tree: Any, mesh: Mesh) -> Any:
  """Every leaf whole on every device."""
  return place(tree, NamedSharding(mesh, PartitionSpec()))


# ── Rows ──────────────────────────────────────────────────────────────────────────


def row_sharding(mesh: Mesh) -> NamedSharding:
  """The leading axis over data and fsdp, as far as the mesh has them."""
  axes = tuple(axis for axis in _ROWS if axis in mesh.shape)
  return NamedSharding(mesh, PartitionSpec(axes) if axes else PartitionSpec())


def lay_rows(x: Any) -> Any:
  """x, its leading axis laid as a batch's rows; for use inside a compiled function.

  Left to itself, XLA lets the residual stream lie as the kernels do: split by width over
  fsdp, all rows on every device, each layer's activations summed over all devices. Told
  where the rows are, it gathers a layer's kernels instead. The type of x says which mesh
  it is computed on. Rows that do not divide (one at a time) are left as they are.
  """
  mesh: Any = jax.typeof(x).sharding.mesh
  if mesh.empty or x.shape[0] % num_row_shards(mesh):
    return x
  return jax.lax.with_sharding_constraint(x, row_sharding(mesh))


def num_row_shards(mesh: Mesh) -> int:
  """Into how many parts a batch's rows are split."""
  return math.prod(mesh.shape.get(axis, 1) for axis in _ROWS)


def row_share(mesh: Mesh, process: int | None = None) -> RowShare:
  """Which of them a process (this one unless given) hands to `put_batch`.

  Processes that differ in tensor only have the same share.

  Raises:
    ValueError: a process's shards are not neighbours in the order of the processes'
      shares; another order of axis sizes makes them so.
  """
  num_shards = num_row_shards(mesh)
  process = jax.process_index() if process is None else process
  # The axes of the rows stand first: what is left of the mesh works on the same rows.
  holders = mesh.devices.reshape(num_shards, -1)
  mine = [
    shard
    for shard, devices in enumerate(holders)
    if any(device.process_index == process for device in devices)
  ]
  size = len(mine)
  if num_shards % size or mine[0] % size or mine[-1] - mine[0] != size - 1:
    raise ValueError(
      f"mesh {dict(mesh.shape)}: process {process} holds row shards {mine} of "
      f"{num_shards}, expected equal blocks of neighbours; make the mesh axes multiples "
      "or divisors of a host's devices"
    )
  return RowShare(num_shards, mine[0] // size, num_shards // size)


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
  """Splits the leading axis of every array over `row_sharding`.

  Each process hands in its own part of the global batch, its `row_share`.
  """
  sharding = row_sharding(mesh)
  return {
    name: jax.make_array_from_process_local_data(sharding, np.asarray(value))
    for name, value in batch.items()
  }
