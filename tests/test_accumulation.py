"""A step in several turns is the step in one: the token mean is over all of its entries."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reliability import record
from test_train import make_images
from test_train import make_vlm
from test_train import pixels_of

from imax_jax import tree as tree_lib
from imax_jax.data.pipeline import Batches
from imax_jax.models.vlm import batch_loss
from imax_jax.train.optim import Optimizer
from imax_jax.train.state import init_state
from imax_jax.train.step import make_train_step

ENTRIES = 16
RULES = [(".*lora_.|connector/.*", True), (".*", False)]


def make_batches(**kwargs) -> Batches:
  settings = {"num_steps": 1, "entries_per_step": ENTRIES, "row_tokens": 32, "seed": 1}
  return Batches(make_images(12), pixels_of, **(settings | kwargs))


def gradient_of(batches: Batches, accumulate: int):
  """(the step's numbers, its gradient, as momentum's first value is)."""
  model, batch = make_vlm(), batches[0]
  shapes = jax.eval_shape(model.init, jax.random.key(0), batch)["params"]
  rng = np.random.default_rng(0)
  params = tree_lib.map_paths(
    lambda path, leaf: jnp.asarray(rng.normal(0, 0.1, leaf.shape), jnp.float32), shapes
  )
  trainable, frozen = tree_lib.split(params, RULES)
  schedule = optax.constant_schedule(0.1)
  optimizer = Optimizer(optax.sgd(schedule, momentum=0.9), schedule)
  step = make_train_step(batch_loss(model), optimizer, accumulate=accumulate)
  state = init_state(trainable, optimizer.update, seed=0)
  state, metrics = step(state, frozen, dict(batch))
  return metrics, optax.tree_utils.tree_get(state.opt_state, "trace")


@pytest.mark.parametrize(
  ("share_prefix", "weighting"), [(True, "token"), (False, "entry")]
)
def test_turns_do_not_change_a_gradient(share_prefix, weighting):
  settings = {"share_prefix": share_prefix, "weighting": weighting}
  metrics, expected = gradient_of(make_batches(**settings), 1)
  worst = 0.0
  # 16 turns of an entry, 4 of 4, and shards of a mesh that go through theirs in turns.
  for num_shards, accumulate in ((1, 16), (1, 4), (2, 3)):
    batches = make_batches(num_shards=num_shards, accumulate=accumulate, **settings)
    [shapes] = batches.shapes
    assert shapes.num_shards == num_shards * accumulate
    # A mean of the turns' means would be another gradient: their weights differ.
    weights = batches[0]["loss_weight"].reshape(accumulate, -1).sum(axis=1)
    assert weighting == "entry" or len({*weights.tolist()}) > 1
    found, gradient = gradient_of(batches, accumulate)
    assert found["tokens"] == metrics["tokens"]
    np.testing.assert_allclose(found["loss"], metrics["loss"], rtol=1e-6)
    apart = jax.tree.map(jnp.subtract, gradient, expected)
    worst = max(worst, float(optax.global_norm(apart) / optax.global_norm(expected)))
  record(
    "R16", f"1 x 16, 4 x 4, 16 x 1, 2 shards x 3; {'image' if share_prefix else 'entry'}",
    f"gradients differ by {worst:.1e}", "below 1e-6", worst < 1e-6,
  )  # fmt: skip


def test_each_turn_draws_its_own_dropout():
  """Or four turns would hide the same places of every kernel."""
  seen = []

  def loss(trainable, frozen, batch, rng):
    draw = jax.random.uniform(rng)
    jax.debug.callback(lambda value: seen.append(float(value)), draw)
    return (trainable["bias"] * draw).sum(), batch["loss_weight"].sum()

  schedule = optax.constant_schedule(0.1)
  optimizer = Optimizer(optax.sgd(schedule), schedule)
  step = make_train_step(loss, optimizer, accumulate=4)
  state = init_state({"bias": jnp.ones(2)}, optimizer.update, seed=0)
  for _ in range(2):
    state, _ = step(state, {}, dict(make_batches(accumulate=4)[0]))
  jax.effects_barrier()
  assert len(seen) == 8
  assert all(a != b for a, b in itertools.combinations(seen, 2))


def test_turns_are_checked():
  with pytest.raises(ValueError, match="accumulate 0: expected 1 or more"):
    make_batches(accumulate=0)
