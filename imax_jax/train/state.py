"""What changes from step to step, and nothing else: the frozen weights are not in it."""

from __future__ import annotations

from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from imax_jax.tree import Tree


class TrainState(NamedTuple):
  step: Any  # int32[]: updates done
  trainable: Any  # float32 tree
  opt_state: Any  # of the trainable leaves only
  rng: Any  # a typed key; never changes: step s draws from fold_in(rng, s)


def init_state(
  trainable: Tree, optimizer: optax.GradientTransformation, *, seed: int
) -> TrainState:
  """State before the first step. Copies `trainable`: the step donates its state."""
  trainable = jax.tree.map(jnp.copy, trainable)
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    trainable=trainable,
    opt_state=optimizer.init(trainable),
    rng=jax.random.key(seed),
  )
