"""The loss, unreduced: the caller decides whether to sum over a batch or not.

Training divides the batch's sum by its weight (the token mean); the Fisher information
wants one entry's own log-likelihood, which is a row that holds nothing else.

Logits are made at supervised places only. They are a tenth of a row or less, and a
vocabulary is wide: all of a row's logits are its largest array and up to a quarter of a
small model's products.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from imax_jax import schema

# (x[Z, m, D], target int32[Z, m]) -> nll float32[Z, m]
Nll = Callable[[jax.Array, jax.Array], jax.Array]


def token_nll(logits: jax.Array, target: jax.Array) -> jax.Array:
  """-log p of each target, in nats: [..., V], int32[...] -> float32[...]."""
  logits = logits.astype(jnp.float32)
  picked = jnp.take_along_axis(logits, target[..., None], axis=-1)[..., 0]
  return jax.nn.logsumexp(logits, axis=-1) - picked


def example_loss(
  nll: Nll, x: jax.Array, batch: schema.Batch | Mapping[str, Any]
) -> tuple[jax.Array, jax.Array]:
  """Each row's (weighted sum of nll, sum of weights): float32[B] twice.

  Args:
    nll: the head and `token_nll`, handed what stands at the supervised places.
    x: the decoder's output, float[B, T, D].
  """
  rows, tokens = batch["text"].shape
  supervised = jnp.asarray(batch["supervised"])
  num_shards = supervised.shape[0]
  at, real = jnp.maximum(supervised, 0), supervised >= 0

  def pick(array: jax.Array) -> jax.Array:
    """[B, T, …] -> [Z, M, …]; a shard's rows lie on one device, and stay there."""
    array = array.reshape(num_shards, -1, *array.shape[2:])
    return jnp.take_along_axis(array, at.reshape(*at.shape, *[1] * (array.ndim - 2)), 1)

  # A row's last token predicts nothing: its weight is zero and it is never picked.
  target = pick(jnp.roll(batch["text"], -1, axis=1))
  weight = jnp.asarray(batch["loss_weight"])
  weighted = jnp.where(real, nll(pick(x), target) * pick(weight), 0.0)
  # A sum and no scatter, whose order a GPU does not keep.
  own = (at // tokens)[..., None] == jnp.arange(rows // num_shards)
  sums = jnp.where(own, weighted[..., None], 0.0).sum(axis=1)
  return sums.reshape(rows), weight.sum(axis=1)
