"""Per-example gradients: the gradient of each entry's own log-likelihood.

One example is one entry, alone in its row with its own copy of the image prefix (a
`Batch` packed with `share_prefix=False`). The rows of a batch are split into
one-row batches, and `vmap(grad)` runs over those.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from collections.abc import Mapping
from typing import Any
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from imax_jax import tree as tree_lib
from imax_jax.data import packing
from imax_jax.schema import Batch

# loss(trainable, frozen, batch of one row) -> (sum of weighted nll, sum of weights).
Loss = Callable[[Any, Any, Mapping[str, Any]], tuple[Any, Any]]
Normalise = Literal["sum", "mean"]
Rows = dict[str, np.ndarray]


def split_rows(batch: Batch) -> Rows:
  """A batch of B one-entry rows as B batches of one row and one image.

  Every array gains an axis: `text[B, T]` -> `[B, 1, T]`, and `pixels[N, …]` ->
  `[B, 1, …]`, where row b holds the pixels of the image that row b shows. Image ids
  become 0 (padding stays -1), so that row b is a whole `Batch` on its own. Loss weights
  become 1 on the answer's tokens: a log-likelihood knows no training weights.

  Raises:
    ValueError: a row with no entry, with several entries or with several images.
  """
  image = np.asarray(batch["image"])
  segment = np.asarray(batch["segment"])
  weight = np.asarray(batch["loss_weight"])
  real = image >= 0
  shown = image.max(axis=1)  # [B]
  entries = np.where(real, segment, 0).max(axis=1)
  for row in range(image.shape[0]):
    if (
      shown[row] < 0
      or np.any(image[row][real[row]] != shown[row])
      or entries[row] != 1
      or not np.any(weight[row])
    ):
      raise ValueError(
        f"fisher: row {row} must hold exactly one entry of one image, got "
        f"{len(np.unique(image[row][real[row]]))} images, {entries[row]} entries and "
        f"{np.count_nonzero(weight[row])} weighted tokens. Pack the batch with "
        "share_prefix=False and leave no row empty."
      )
  rows: Rows = {"pixels": np.asarray(batch["pixels"])[shown][:, None]}
  rows["image"] = np.where(real, 0, -1).astype(image.dtype)[:, None]
  rows["text"] = np.asarray(batch["text"])[:, None]
  rows["slot"] = np.asarray(batch["slot"])[:, None]
  rows["segment"] = segment[:, None]
  rows["position"] = np.asarray(batch["position"])[:, None]
  rows["loss_weight"] = (weight != 0).astype(weight.dtype)[:, None]
  most = np.asarray(batch["supervised"]).shape[1]
  rows["supervised"] = packing.supervised(weight, len(weight), most)[:, None]
  return rows


def row_gradients(
  loss: Loss,
  trainable: tree_lib.Tree,
  frozen: tree_lib.Tree,
  rows: Mapping[str, Any],
  *,
  normalise: Normalise = "mean",
  rows_at_once: int | None = None,
) -> dict[str, jax.Array]:
  """{path: float32[B, *leaf]}: to be called inside `jax.jit`.

  `rows_at_once` bounds how many rows' activations are alive together; None runs all
  the rows in one `vmap`. The gradients themselves are B times the trainable size.
  """
  if normalise not in ("sum", "mean"):
    raise ValueError(f"fisher: normalise must be 'sum' or 'mean', got {normalise!r}")

  def log_likelihood(trainable: Any, row: Mapping[str, Any]) -> jax.Array:
    total, weight = loss(trainable, frozen, row)
    total, weight = jnp.sum(total), jnp.sum(weight)
    return -(total / weight if normalise == "mean" else total).astype(jnp.float32)

  def one(row: Mapping[str, Any]) -> dict[str, jax.Array]:
    gradient = tree_lib.flatten(jax.grad(log_likelihood)(trainable, row))
    return {path: leaf.astype(jnp.float32) for path, leaf in gradient.items()}

  if rows_at_once is None:
    return jax.vmap(one)(dict(rows))
  return jax.lax.map(one, dict(rows), batch_size=rows_at_once)


@functools.partial(jax.jit, static_argnames=("loss", "normalise", "rows_at_once"))
def _flat_gradients(
  loss: Loss,
  trainable: tree_lib.Tree,
  frozen: tree_lib.Tree,
  rows: Mapping[str, Any],
  normalise: Normalise,
  rows_at_once: int | None,
) -> jax.Array:
  gradients = row_gradients(
    loss, trainable, frozen, rows, normalise=normalise, rows_at_once=rows_at_once
  )
  count = next(iter(gradients.values())).shape[0]
  return jnp.concatenate(
    [leaf.reshape(count, -1) for leaf in gradients.values()], axis=1
  )


def per_example_grads(
  loss: Loss,
  trainable: tree_lib.Tree,
  frozen: tree_lib.Tree,
  batch: Batch,
  *,
  normalise: Normalise = "mean",
  rows_at_once: int | None = None,
) -> jax.Array:
  """The rows of the Jacobian of Eq. 2: float32[B, p].

  Row b is the gradient of log p(answer | image, prompt) of entry b with respect to the
  trainable parameters, leaves in sorted order of path. The paper does not say whether
  an answer's log-likelihood is summed or averaged over its tokens; "mean" follows the
  loss of Uni-Med (uni_med/models/uni_med.py, reduction="mean"), "sum" is the plain
  log-likelihood, in which long answers weigh more.

  This holds all B x p numbers; `gram.gram_matrices` never does. `loss` is a static
  argument: hand in the same function object each time, or every call compiles anew.

  Raises:
    ValueError: rows that do not hold exactly one entry each.
  """
  return _flat_gradients(
    loss, trainable, frozen, split_rows(batch), normalise, rows_at_once
  )
