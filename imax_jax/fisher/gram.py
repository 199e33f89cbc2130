"""The N x N Gram matrix whose eigenvalues are those of the Fisher information matrix.

With J the N x p Jacobian of the log-likelihoods, the empirical FIM of Eq. 2 is
JᵀJ / N (p x p) and the Gram matrix JJᵀ / N (N x N). Their non-zero eigenvalues are the
same, so 32 examples never need more than a 32 x 32 eigenproblem, whatever p is.

Two choices of parameters:

    exact     all trainable parameters
    sampled   "a single parameter is chosen per trainable layer" (paper 4.2.2): one
              scalar of each trainable matrix
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec

from imax_jax import mesh as mesh_lib
from imax_jax import tree as tree_lib
from imax_jax.fisher import grads
from imax_jax.models import taps
from imax_jax.schema import Batch

KINDS = ("sampled", "exact")
# {path: flat index of one scalar in each matrix of the leaf}. A scanned leaf [L, …]
# stacks L matrices and has L indices; any other leaf is one matrix and has one.
Scalars = dict[str, tuple[int, ...]]
# Leaves whose leading axis is that of scanned layers, or of a connector's experts.
SCANNED = r"(.*/)?(layers|experts)/.*"


def num_matrices(path: str, leaf: Any) -> int:
  """Of a leaf: one a layer where layers are scanned, else one; a vector counts as one."""
  return int(leaf.shape[0]) if _is_stacked(path) else 1


def _is_stacked(path: str) -> bool:
  return re.fullmatch(SCANNED, path) is not None


def choose_scalars(trainable: tree_lib.Tree, *, seed: int) -> Scalars:
  """Draws one scalar of every trainable matrix, for `sampled`.

  A matrix is what is left with two or more axes once the axis of scanned layers is
  taken off; biases, norms and other vectors are left out. With LoRA on the seven
  projections of 32 layers and a connector of two matrices that is 7 * 2 * 32 + 2, the
  paper's 450 (its own words do not say which scalar: here a seeded uniform draw, to be
  kept for all checkpoints of a run and all runs that are compared). Only shapes are
  read, so that `jax.eval_shape`'s result will do.

  Raises:
    ValueError: no trainable matrix.
  """
  rng = np.random.default_rng(seed)
  scalars: Scalars = {}
  for path, leaf in tree_lib.flatten(trainable).items():
    count = num_matrices(path, leaf)
    shape = leaf.shape[1:] if _is_stacked(path) else leaf.shape
    if len(shape) < 2:
      continue
    scalars[path] = tuple(rng.integers(math.prod(shape), size=count).tolist())
  if not scalars:
    raise ValueError(
      "fisher: no trainable matrix to choose a scalar from; trainable paths begin like "
      f"{list(tree_lib.flatten(trainable))[:3]}. Train LoRA or the connector, or measure "
      "kind 'exact'."
    )
  return scalars


def num_scalars(scalars: Scalars) -> int:
  """The number of chosen parameters: 450 for the paper's model."""
  return sum(len(indices) for indices in scalars.values())


def gram_of(jacobian: Any) -> np.ndarray:
  """float64[N, N] = JJᵀ / N of a Jacobian J [N, p]."""
  rows = np.asarray(jacobian, dtype=np.float64)
  return rows @ rows.T / rows.shape[0]


@dataclasses.dataclass(frozen=True, slots=True)
class Gram:
  """What one backward pass over N examples tells of the Fisher information."""

  exact: np.ndarray  # float64[N, N] over all trainable parameters
  entries: np.ndarray  # float64[N, m]: the chosen scalars' gradients; [N, 0] without
  traces: dict[str, np.ndarray]  # path -> float64[its matrices]; their sum is the trace

  @property
  def sampled(self) -> np.ndarray:
    """float64[N, N] over the chosen scalars."""
    return gram_of(self.entries)


def measure_gram(
  loss: grads.Loss,
  trainable: tree_lib.Tree,
  frozen: tree_lib.Tree,
  batch: Batch,
  *,
  scalars: Scalars | None = None,
  normalise: grads.Normalise = "sum",
  rows_at_once: int = 0,
  tapped: str = "",
  mesh: Mesh | None = None,
) -> Gram:
  """The Gram matrices of a batch's N one-entry rows, from one backward pass.

  Each matrix's own Gram matrix is float32 from the device (of products at full
  precision), and their sum float64, so that J is never laid out. Two ways, by memory:

      rows_at_once=0   all rows together, a gradient thrown away as soon as its products
                       are taken (`models.taps`): the memory of a plain backward pass of
                       N rows, and the N gradients of one matrix
      rows_at_once=k   k rows after k rows: the memory of k rows' backward pass, and the N
                       gradients of all trainable parameters. For LoRA and connectors, and
                       for a CPU, which is faster with few rows at a time

  Args:
    scalars: `choose_scalars`'s, for `sampled`.
    tapped: a regular expression over the paths whose taps `loss` hangs in itself, as its
      fourth argument; of another path with scanned layers, the gradients of all layers
      are in memory together.
    mesh: the rows are split over its data and fsdp axes; every process hands in its own
      (`mesh.row_share`) and all get all of the result.

  Raises:
    ValueError: scalars of another model, rows that do not hold exactly one entry each, or
      that the mesh does not divide.
  """
  index = _indices(scalars, trainable)
  rows: Any = grads.split_rows(batch)
  if mesh is not None:
    check_rows(len(rows["text"]) * mesh_lib.row_share(mesh).process_count, mesh)
    rows = mesh_lib.put_batch(rows, mesh)
  program = _program(loss, normalise, rows_at_once, tapped, mesh)
  found = jax.device_get(program(trainable, frozen, rows, index))
  count = rows["text"].shape[0]
  exact, traces = np.zeros((count, count)), {}
  for path, (_, row) in found.items():
    products = row.astype(np.float64).swapaxes(0, 1) / count  # [m, N, N]
    exact += products.sum(axis=0)
    traces[path] = np.trace(products, axis1=1, axis2=2)
  entries = [found[path][0] for path in scalars or {}]
  return Gram(exact, np.concatenate([np.zeros((count, 0)), *entries], axis=1), traces)


def check_rows(count: int, mesh: Mesh) -> None:
  """Raises a ValueError unless the mesh divides a group of so many rows."""
  shards = mesh_lib.num_row_shards(mesh)
  if count % shards:
    raise ValueError(
      f"fisher: a group of {count} entries does not divide over the mesh's {shards} row "
      "shards (data x fsdp); choose another group_size, or fewer devices for this verb"
    )


@functools.lru_cache(maxsize=8)
def _program(
  loss: grads.Loss,
  normalise: grads.Normalise,
  rows_at_once: int,
  tapped: str,
  mesh: Mesh | None,
) -> Callable[..., dict[str, tuple[jax.Array, jax.Array]]]:
  """(trainable, frozen, rows, index) -> {path: (entry [N, m], row [N, m, N])}, compiled."""

  def kept(trainable: Any, frozen: Any, rows: Any, index: Any) -> Any:
    gradients = grads.row_gradients(
      loss, trainable, frozen, rows, normalise=normalise, rows_at_once=rows_at_once,
      shards=1 if mesh is None else mesh_lib.num_row_shards(mesh),
    )  # fmt: skip
    return {path: taps.products(gradients[path], index[path]) for path in index}

  def together(trainable: Any, frozen: Any, rows: Any, index: Any) -> Any:
    value, examples = grads.log_likelihood(loss, normalise), len(rows["text"])
    asked = {path: taps.make(at, examples) for path, at in index.items()}

    def one(row: Any) -> Any:
      def of_taps(asked: Any) -> jax.Array:
        hung = {path: tap | {"index": index[path]} for path, tap in asked.items()}
        inside = {path: taps.each(hung.pop(path)) for path in asked if own(path)}
        weights = taps.tapped(trainable, tree_lib.unflatten(hung))
        rest = (tree_lib.unflatten(inside),) if inside else ()
        return value(weights, frozen, row, *rest)

      return jax.grad(of_taps)(asked)

    found = jax.vmap(one)(rows)
    return {path: (tap["entry"], tap["row"]) for path, tap in found.items()}

  def own(path: str) -> bool:
    return re.fullmatch(tapped, path) is not None

  whole = None if mesh is None else NamedSharding(mesh, PartitionSpec())
  return jax.jit(kept if rows_at_once else together, out_shardings=whole)


def _indices(
  scalars: Scalars | None, trainable: tree_lib.Tree
) -> dict[str, np.ndarray]:
  """{path: one flat index in each of its matrices}: the chosen one, or the first."""
  flat = tree_lib.flatten(trainable)
  _check_scalars(scalars or {}, flat)
  return {
    path: np.asarray(
      (scalars or {}).get(path, (0,) * num_matrices(path, leaf)), np.int32
    )
    for path, leaf in flat.items()
  }


def _check_scalars(scalars: Scalars, flat: Mapping[str, Any]) -> None:
  for path, indices in scalars.items():
    size = math.prod(flat[path].shape) if path in flat else 0
    count = num_matrices(path, flat[path]) if path in flat else 0
    if len(indices) != count or max(indices) >= size // count:
      raise ValueError(
        f"fisher: scalars of {path!r} do not fit the trainable parameters (leaf of "
        f"{size} numbers, {len(indices)} matrices); choose them for this model"
      )
