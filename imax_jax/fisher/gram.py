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

import functools
import math
import re
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from imax_jax import tree as tree_lib
from imax_jax.fisher import grads
from imax_jax.schema import Batch

Kind = Literal["sampled", "exact"]
KINDS: tuple[Kind, ...] = ("sampled", "exact")
# {path: flat index of one scalar in each matrix of the leaf}. A scanned leaf [L, …]
# stacks L matrices and has L indices; any other leaf is one matrix and has one.
Scalars = dict[str, tuple[int, ...]]
# Leaves whose leading axis is that of scanned layers.
SCANNED = r"(.*/)?layers/.*"


def choose_scalars(
  trainable: tree_lib.Tree, *, seed: int, scanned: str = SCANNED
) -> Scalars:
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
    stacked = re.fullmatch(scanned, path) is not None
    shape = tuple(leaf.shape[1:] if stacked else leaf.shape)
    if len(shape) < 2:
      continue
    count = leaf.shape[0] if stacked else 1
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


def _columns(leaf: jax.Array, indices: jax.Array) -> jax.Array:
  """[N, *leaf] gradients -> [N, number of indices], one of each matrix."""
  matrices = leaf.reshape(leaf.shape[0], indices.shape[0], -1)
  return matrices[:, jnp.arange(indices.shape[0]), indices]


@functools.partial(
  jax.jit, static_argnames=("loss", "kinds", "normalise", "rows_at_once")
)
def _reduce_gradients(
  loss: grads.Loss,
  trainable: tree_lib.Tree,
  frozen: tree_lib.Tree,
  rows: Mapping[str, Any],
  scalars: Mapping[str, jax.Array],
  kinds: tuple[Kind, ...],
  normalise: grads.Normalise,
  rows_at_once: int | None,
) -> tuple[jax.Array | None, jax.Array | None]:
  """(the chosen columns of J [N, m], the Gram matrix of each leaf [leaves, N, N])."""
  gradients = grads.row_gradients(
    loss, trainable, frozen, rows, normalise=normalise, rows_at_once=rows_at_once
  )
  columns = products = None
  if "sampled" in kinds:
    columns = jnp.concatenate(
      [_columns(gradients[path], indices) for path, indices in scalars.items()], axis=1
    )
  if "exact" in kinds:
    # Highest: the default multiplies float32 as bfloat16 on a TPU and as TF32 on a GPU,
    # which drowns the small eigenvalues.
    products = jnp.stack(
      [
        jnp.einsum("np,mp->nm", flat, flat, precision=jax.lax.Precision.HIGHEST)
        for leaf in gradients.values()
        for flat in [leaf.reshape(leaf.shape[0], -1)]
      ]
    )
  return columns, products


def gram_matrices(
  loss: grads.Loss,
  trainable: tree_lib.Tree,
  frozen: tree_lib.Tree,
  batch: Batch,
  *,
  kinds: Sequence[Kind] = KINDS,
  scalars: Scalars | None = None,
  normalise: grads.Normalise = "mean",
  rows_at_once: int | None = None,
) -> dict[str, np.ndarray]:
  """{kind: float64[N, N]} of a batch's N one-entry rows, from one set of gradients.

  The exact Gram matrix is the sum over leaves of each leaf's own, float32 on the device
  and float64 in the sum, so that J is never laid out whole; at its peak this holds N
  gradients of the trainable parameters. It is for LoRA and connectors: the gradients
  of a fully trained 7B model for 32 examples are 862 GB.

  Raises:
    ValueError: an unknown kind, "sampled" without its scalars or with the scalars of
      another model, or rows that do not hold exactly one entry each.
  """
  unknown = [kind for kind in kinds if kind not in KINDS]
  if unknown or not kinds:
    raise ValueError(f"fisher: kinds must be some of {KINDS}, got {tuple(kinds)}")
  if "sampled" in kinds:
    _check_scalars(scalars, trainable)
  chosen = {path: np.asarray(index) for path, index in (scalars or {}).items()}
  rows = grads.split_rows(batch)
  columns, products = _reduce_gradients(
    loss, trainable, frozen, rows, chosen, tuple(kinds), normalise, rows_at_once
  )
  count = rows["text"].shape[0]
  matrices: dict[str, np.ndarray] = {}
  for kind in kinds:
    if kind == "sampled":
      matrices[kind] = gram_of(columns)
    else:
      matrices[kind] = np.asarray(products, dtype=np.float64).sum(axis=0) / count
  return matrices


def _check_scalars(scalars: Scalars | None, trainable: tree_lib.Tree) -> None:
  if not scalars:
    raise ValueError(
      "fisher: kind 'sampled' needs scalars; make them with choose_scalars(trainable, "
      "seed=…) once and keep them for every checkpoint"
    )
  flat = tree_lib.flatten(trainable)
  for path, indices in scalars.items():
    size = math.prod(flat[path].shape) if path in flat else 0
    if size % len(indices) or max(indices) >= size // len(indices):
      raise ValueError(
        f"fisher: scalars of {path!r} do not fit the trainable parameters (leaf of "
        f"{size} numbers, {len(indices)} matrices); choose them for this model"
      )
