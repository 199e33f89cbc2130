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

# loss(trainable, frozen, batch of one row) -> (sum of weighted nll, sum of weights); with
# the taps of some of its weights as a fourth argument where it hangs them in itself.
Loss = Callable[..., tuple[Any, Any]]
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
  # A process's rows count the images of the whole batch, and it holds its own.
  first = shown.min() if len(batch["pixels"]) <= shown.max() else 0
  rows: Rows = {
    name: np.asarray(batch[name])[shown - first][:, None]
    for name in ("pixels", "task")
    if name in batch
  }
  rows["image"] = np.where(real, 0, -1).astype(image.dtype)[:, None]
  rows["text"] = np.asarray(batch["text"])[:, None]
  rows["slot"] = np.asarray(batch["slot"])[:, None]
  rows["segment"] = segment[:, None]
  rows["position"] = np.asarray(batch["position"])[:, None]
  rows["loss_weight"] = (weight != 0).astype(weight.dtype)[:, None]
  most = np.asarray(batch["supervised"]).shape[1]
  rows["supervised"] = packing.supervised(weight, len(weight), most)[:, None]
  return rows


def log_likelihood(loss: Loss, normalise: Normalise) -> Callable[..., jax.Array]:
  """`loss`'s arguments, of one row -> log p of its answer, summed or averaged over it.

  Raises:
    ValueError: another word than sum or mean.
  """
  if normalise not in ("sum", "mean"):
    raise ValueError(f"fisher: normalise must be 'sum' or 'mean', got {normalise!r}")

  def value(*arguments: Any) -> jax.Array:
    total, weight = (jnp.sum(part) for part in loss(*arguments))
    return -(total / weight if normalise == "mean" else total).astype(jnp.float32)

  return value


def row_gradients(
  loss: Loss,
  trainable: tree_lib.Tree,
  frozen: tree_lib.Tree,
  rows: Mapping[str, Any],
  *,
  normalise: Normalise,
  rows_at_once: int = 0,
  shards: int = 1,
) -> dict[str, jax.Array]:
  """{path: float32[B, *leaf]}: to be called inside `jax.jit`.

  `rows_at_once` bounds how many rows' activations are alive together on each of the
  `shards` that the rows lie on; 0 runs all the rows in one `vmap`. The gradients
  themselves are B times the trainable size.
  """
  value = log_likelihood(loss, normalise)

  def one(row: Mapping[str, Any]) -> dict[str, jax.Array]:
    gradient = tree_lib.flatten(jax.grad(value)(trainable, frozen, row))
    return {path: leaf.astype(jnp.float32) for path, leaf in gradient.items()}

  if not rows_at_once:
    return jax.vmap(one)(dict(rows))
  # Each turn takes some rows of every shard, so that none of them waits.
  turns = jax.tree.map(
    lambda x: x.reshape(shards, -1, *x.shape[1:]).swapaxes(0, 1), dict(rows)
  )
  found = jax.lax.map(jax.vmap(one), turns, batch_size=rows_at_once)
  return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), found)


@functools.partial(jax.jit, static_argnames=("loss", "normalise", "rows_at_once"))
def _flat_gradients(
  loss: Loss,
  trainable: tree_lib.Tree,
  frozen: tree_lib.Tree,
  rows: Mapping[str, Any],
  normalise: Normalise,
  rows_at_once: int,
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
  normalise: Normalise = "sum",
  rows_at_once: int = 0,
) -> jax.Array:
  """The rows of the Jacobian of Eq. 2: float32[B, p].

  Row b is the gradient of log p(answer | image, prompt) of entry b with respect to the
  trainable parameters, leaves in sorted order of path. "sum" over the answer's tokens is
  Eq. 2 as it is defined, the probability of the whole answer, and the default: only of it
  is the Fisher information a Fisher information (model samples' gradients have mean
  zero). The paper does not say whether its own code averages; "mean" follows the loss of
  Uni-Med (uni_med/models/uni_med.py, reduction="mean"), and long answers weigh less.

  This holds all B x p numbers; `gram.measure_gram` never lays them out. `loss` is a static
  argument: hand in the same function object each time, or every call compiles anew.

  Raises:
    ValueError: rows that do not hold exactly one entry each.
  """
  return _flat_gradients(
    loss, trainable, frozen, split_rows(batch), normalise, rows_at_once
  )
