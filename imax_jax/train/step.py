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
  up (donated), and stays as it was but for its step where loss or gradient is not
  finite. `shardings` keeps the state where it lies; without it XLA may move it.

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
    grad_norm = optax.global_norm(grads)
    metrics = {
      "loss": loss,
      "grad_norm": grad_norm,
      "lr": optimizer.schedule(_updates(state.opt_state)),
      "tokens": jnp.sum(batch["loss_weight"] > 0),
    }
    new = (optax.apply_updates(state.trainable, updates), opt_state)
    # A step that went wrong changes nothing: no checkpoint can hold its NaN.
    fine = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    trainable, opt_state = jax.tree.map(
      lambda one, other: jnp.where(fine, one, other),
      new,
      (state.trainable, state.opt_state),
    )
    return TrainState(state.step + 1, trainable, opt_state, state.rng), metrics

  return jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))


def _updates(opt_state: Any) -> jax.Array:
  """How many there were: what the schedule counts, steps that were skipped left out."""
  (_, count), *_ = optax.tree_utils.tree_get_all_with_path(opt_state, "count")
  return jnp.asarray(count)
