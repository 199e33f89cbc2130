"""The loss, unreduced: the caller decides whether to sum over a batch or not.

Training divides the batch's sum by its weight (the token mean); the Fisher information
wants one entry's own log-likelihood, which is a row that holds nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from imax_jax import schema


def token_nll(logits: jax.Array, batch: schema.Batch | Mapping[str, Any]) -> jax.Array:
  """-log p of token t + 1 after token t, in nats: float32[B, T].

  Zero where `loss_weight` is zero, the last column included: nothing follows it.
  """
  logits = logits.astype(jnp.float32)
  # The last column's target is a filler, which its weight of zero hides.
  target = jnp.roll(batch["text"], -1, axis=1)
  picked = jnp.take_along_axis(logits, target[..., None], axis=-1)[..., 0]
  nll = jax.nn.logsumexp(logits, axis=-1) - picked
  real = jnp.asarray(batch["loss_weight"]) != 0
  return jnp.where(real.at[:, -1].set(False), nll, 0.0)


def example_loss(
  logits: jax.Array, batch: schema.Batch | Mapping[str, Any]
) -> tuple[jax.Array, jax.Array]:
  """Each row's (weighted sum of nll, sum of weights): float32[B] twice."""
  weight = jnp.asarray(batch["loss_weight"])
  return (token_nll(logits, batch) * weight).sum(1), weight.sum(1)
