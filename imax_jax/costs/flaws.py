"""What is wrong with a compiled step: waste that works, and that nobody would notice.

Each was met: XLA says the first on stderr, and keeps silent about the others.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any

import jax

from imax_jax import mesh as mesh_lib
from imax_jax.costs import hlo

# A leaf or a gathered stack of this many bytes is no trifle.
_LARGE = 64 * 2**20
_REMAT = re.compile(r"Involuntary full rematerialization\..*?(?= As the last|\n|$)")


def local_shape(leaf: Any) -> tuple[int, ...]:
  """The part of a leaf that a device holds."""
  return tuple(leaf.sharding.shard_shape(leaf.shape))


def find(
  messages: str,
  parameters: Mapping[str, Any],
  line: tuple[int, ...],
  program: hlo.Program,
  mesh: jax.sharding.Mesh,
) -> tuple[str, ...]:
  """One sentence a flaw.

  Args:
    messages: what XLA wrote to stderr.
    parameters: {path: shape with its sharding}.
    line: (rows, tokens) of the whole batch.
  """
  return (
    *_rematerialised(messages),
    *_replicated(parameters, mesh),
    *_gathered_stacks(parameters, program),
    *_rows_not_split(line, program, mesh),
  )


def _rematerialised(messages: str) -> Iterator[str]:
  if int(os.environ.get("TF_CPP_MIN_LOG_LEVEL") or 0) > 1:
    yield (
      "XLA's warnings are off (TF_CPP_MIN_LOG_LEVEL above 1): involuntary "
      "rematerialisation would not be seen"
    )
  for message in dict.fromkeys(_REMAT.findall(messages)):
    yield f"XLA: {message.strip()}"


def _splits_weights(mesh: jax.sharding.Mesh) -> bool:
  return mesh.shape.get("fsdp", 1) * mesh.shape.get("tensor", 1) > 1


def _replicated(
  parameters: Mapping[str, Any], mesh: jax.sharding.Mesh
) -> Iterator[str]:
  if not _splits_weights(mesh):
    return
  for path, leaf in parameters.items():
    size = math.prod(leaf.shape) * leaf.dtype.itemsize
    if size >= _LARGE and local_shape(leaf) == tuple(leaf.shape):
      yield (
        f"{path} {list(leaf.shape)}, {size / 1e9:.2f} GB, lies whole on every device: "
        "give its rule in config.sharding a mesh axis"
      )


def _gathered_stacks(
  parameters: Mapping[str, Any], program: hlo.Program
) -> Iterator[str]:
  """All layers of a kernel gathered at once, where a loop should gather its own."""
  gathered = {
    tensor.shape: tensor.bytes
    for collective in program.collectives
    for tensor in collective.tensors
    if collective.kind == "all-gather" and tensor.bytes >= _LARGE
  }
  for shape, size in gathered.items():
    paths = [path for path, leaf in parameters.items() if _is_stack(path, leaf, shape)]
    if paths:
      yield (
        f"{' or '.join(paths[:2])}: all {shape[0]} layers are gathered at once, "
        f"{size / 1e9:.2f} GB; the scan over layers should gather one"
      )


def _is_stack(path: str, leaf: Any, shape: tuple[int, ...]) -> bool:
  """Whether the shape is the leaf's with all layers and more than a device's part."""
  whole, local = tuple(leaf.shape), local_shape(leaf)
  return (
    "/layers/" in path
    and len(shape) == len(whole)
    and shape != local
    and shape[0] == whole[0]
    and all(size in pair for size, *pair in zip(shape, whole, local, strict=True))
  )


def _rows_not_split(
  line: tuple[int, ...], program: hlo.Program, mesh: jax.sharding.Mesh
) -> Iterator[str]:
  rows, shards = line[0], mesh_lib.num_row_shards(mesh)
  whole = [t for t in program.carried if t.shape[:2] == line and len(t.shape) == 3]
  if shards > 1 and whole:
    worst = max(whole, key=lambda tensor: tensor.bytes)
    yield (
      f"all {rows} rows are on every device: a loop carries {worst.dtype}"
      f"{list(worst.shape)}; the residual stream should lie as the rows (mesh.lay_rows)"
    )
