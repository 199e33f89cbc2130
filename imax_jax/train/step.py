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
  model_loss: ModelLoss,
  optimizer: Optimizer,
  *,
  accumulate: int = 1,
  shardings: TrainState | None = None,
) -> TrainStep:
  """The compiled step: `step(state, frozen, batch) -> (state, metrics)`.

  The loss is sum / weight over the whole batch, on however many devices it lies and in
  however many turns it is gone through. Only the trainable tree is differentiated; the
  frozen one is an argument and not a constant of the program, which would be compiled
  into it. The state that is handed in is given up (donated), and stays as it was but for
  its step where loss or gradient is not finite. `shardings` keeps the state where it
  lies; without it XLA may move it.

  Metrics: loss, grad_norm (before clipping), lr (of this update), tokens (supervised).

  Args:
    accumulate: turns; the batch's shards are as many times those of the mesh, and each
      device goes through its own one after another. What is kept for the way back is
      then one turn's.
  """

  in_turns = _in_turns(model_loss, accumulate)

  def step(
    state: TrainState, frozen: Any, batch: Mapping[str, jax.Array]
  ) -> tuple[TrainState, Metrics]:
    rng = jax.random.fold_in(state.rng, state.step)
    total, weight, grads = in_turns(state.trainable, frozen, batch, rng)
    loss = total / weight
    grads = jax.tree.map(lambda leaf: leaf / weight, grads)
    grad_norm = optax.global_norm(grads)
    metrics = {
      "loss": loss,
      "grad_norm": grad_norm,
      "lr": optimizer.schedule(_updates(state.opt_state)),
      "tokens": jnp.sum(batch["loss_weight"] > 0),
    }

    def update(kept: tuple[Any, Any]) -> tuple[Any, Any]:
      trainable, opt_state = kept
      updates, opt_state = optimizer.update.update(grads, opt_state, trainable)
      return optax.apply_updates(trainable, updates), opt_state

    # A step that went wrong changes nothing: no checkpoint can hold its NaN. A branch, and
    # no choice element by element: for that XLA copies both moments of every weight.
    fine = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    trainable, opt_state = jax.lax.cond(
      fine, update, lambda kept: kept, (state.trainable, state.opt_state)
    )
    return TrainState(state.step + 1, trainable, opt_state, state.rng), metrics

  return jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))


def _in_turns(model_loss: ModelLoss, accumulate: int) -> Callable[..., Any]:
  """`model_loss` -> (sum of losses, sum of weights, the former's gradient)."""
  value_and_grad = jax.value_and_grad(model_loss, has_aux=True)

  def at_once(trainable: Any, *rest: Any) -> tuple[Any, Any, Any]:
    (total, weight), grads = value_and_grad(trainable, *rest)
    return total, weight, grads

  def in_turns(
    trainable: Any, frozen: Any, batch: Mapping[str, jax.Array], rng: jax.Array
  ) -> Any:
    def turn(carry: Any, number: jax.Array) -> tuple[Any, None]:
      part, key = _turn(batch, accumulate, number), jax.random.fold_in(rng, number)
      found = at_once(trainable, frozen, part, key)
      return jax.tree.map(jnp.add, carry, found), None

    none = (jnp.zeros(()), jnp.zeros(()), jax.tree.map(jnp.zeros_like, trainable))
    found, _ = jax.lax.scan(turn, none, jnp.arange(accumulate))
    return found

  return at_once if accumulate == 1 else in_turns


def _turn(
  batch: Mapping[str, jax.Array], accumulate: int, number: jax.Array
) -> dict[str, jax.Array]:
  """`schema.Batch` of one turn: one part of each of the mesh's shards.

  The leading axis of every array is (shards of the mesh, turns, rest); the first of them
  is split over devices, so that nothing moves.
  """
  shards = batch["supervised"].shape[0]
  part = {}
  for name, array in batch.items():
    rest = (array.shape[0] // shards, *array.shape[1:])
    turns = array.reshape(-1, accumulate, *rest)
    taken = jax.lax.dynamic_index_in_dim(turns, number, axis=1, keepdims=False)
    part[name] = taken.reshape(-1, *rest[1:])
  # Images are counted over the whole batch: from a shard's first to its first in a turn.
  images = batch["pixels"].shape[0] // shards
  shard, own = part["image"] // images, part["image"] % images
  part["image"] = jnp.where(part["image"] < 0, -1, shard // accumulate * images + own)
  return part


def _updates(opt_state: Any) -> jax.Array:
  """How many there were: what the schedule counts, steps that were skipped left out."""
  (_, count), *_ = optax.tree_utils.tree_get_all_with_path(opt_state, "count")
  return jnp.asarray(count)
