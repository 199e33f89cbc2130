"""One update, a pure function."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from imax_jax.train.optim import Optimizer
from imax_jax.train.state import TrainState

# (trainable, frozen, batch, rng) -> (sum of weighted losses, sum of weights)
ModelLoss = Callable[[Any, Any, Mapping[str, jax.Array], jax.Array], tuple[Any, Any]]
Metrics = dict[str, jax.Array]
TrainStep = Callable[
  [TrainState, Any, Mapping[str, jax.Array]], tuple[TrainState, Metrics]
]


def make_train_step(
  model_loss: ModelLoss, optimizer: Optimizer, *, shardings: TrainState | None = None
) -> TrainStep:
  """The compiled step: `step(state, frozen, batch) -> (state, metrics)`.

  The loss is sum / weight over the whole batch, on however many devices it lies. Only
  the trainable tree is differentiated; the frozen one is an argument and not a constant
  of the program, which would be compiled into it. The state that is handed in is given
  up (donated). `shardings` keeps the state where it lies; without it XLA may move it.

  Metrics: loss, grad_norm (before clipping), lr (of this update), tokens (supervised).
  """

  def step(
    state: TrainState, frozen: Any, batch: Mapping[str, jax.Array]
  ) -> tuple[TrainState, Metrics]:
    rng = jax.random.fold_in(state.rng, state.step)

    def mean_loss(trainable: Any) -> jax.Array:
      total, weight = model_loss(trainable, frozen, batch, rng)
      return total / weight

    loss, grads = jax.value_and_grad(mean_loss)(state.trainable)
    updates, opt_state = optimizer.update.update(
      grads, state.opt_state, state.trainable
    )
    metrics = {
      "loss": loss,
      "grad_norm": optax.global_norm(grads),
      "lr": optimizer.schedule(state.step),
      "tokens": jnp.sum(batch["loss_weight"] > 0),
    }
    trainable = optax.apply_updates(state.trainable, updates)
    return TrainState(state.step + 1, trainable, opt_state, state.rng), metrics

  return jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))
