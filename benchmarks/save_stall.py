"""How long a checkpoint holds the training loop up, beside a step at paper size.

  python -m benchmarks.save_stall [--saves 5]

The state is what the 7B model's run saves with 256 image tokens: LoRA, connector and their
two moments, 0.5 GB in float32, invented values. A save copies it where it lies, then all
else goes on behind the loop. On a card the copy is quick and the rest is the host's; here
both are the CPU's. So three figures:

  the host's part: the same arrays of 1 kB each, how long `save()` holds the loop
  0.5 GB, and a host that waits for a card (a step is a sleep, and donates its state): the
    hold, and how much later steps come until the checkpoint is sealed
  0.5 GB, and this CPU computes steps with the cores that also write

Asked: under 5 % of a step. A step's length at paper size is computed
(benchmarks/paper_training.py), the card's copy too: the state read and written at 2 TB/s.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import paper_training as paper
from imax_jax.train import optim
from imax_jax.train.checkpoint import Checkpointer
from imax_jax.train.state import TrainState
from imax_jax.train.state import init_state

_ASKED = 0.05
_SHARE = 0.4  # of a card's peak
_ENTRIES = 8
_APART = 8  # steps from save to save
_MEMORY = 2.0e12  # bytes a second of an A800's memory, by its data sheet

Step = Callable[[TrainState], TrainState]


def paper_steps() -> dict[str, float]:
  """Seconds of a step on two A800, features kept, by layout."""
  found = {}
  for slots in (64, 256):
    model = paper.Model(slots)
    for mode in ("image", "entry"):
      batches = paper.layout(slots, mode == "image", _ENTRIES, 50)
      flops = model.work(batches).step
      found[f"{mode}, {slots} image tokens"] = paper.seconds(flops, _SHARE)
  return found


def make_state(small: bool) -> tuple[TrainState, optim.Optimizer]:
  def draw(leaf: Any) -> jax.Array:
    shape = (256,) if small else leaf.shape
    return jax.random.normal(jax.random.key(leaf.size), shape, leaf.dtype)

  trainable = jax.tree.map(draw, paper.Model(256).trainable)
  schedule = optim.make_schedule(
    num_steps=100, peak_lr=1e-6, final_lr=1e-7, warmup_fraction=0.0, warmup_start_lr=0.0
  )
  optimizer = optim.make_optimizer(trainable, schedule)
  state = init_state(trainable, optimizer.update, seed=0)
  return jax.block_until_ready(state), optimizer


def size_of(state: TrainState) -> tuple[int, int]:
  """(arrays, bytes) of weights and moments."""
  leaves = jax.tree.leaves((state.trainable, state.opt_state))
  return len(leaves), sum(leaf.nbytes for leaf in leaves)


def card_step(seconds: float) -> Step:
  """The host waits for a card; the state is donated and stays where it is."""
  bump = jax.jit(lambda state: state._replace(step=state.step + 1), donate_argnums=0)

  def step(state: TrainState) -> TrainState:
    state = bump(state)
    time.sleep(seconds)
    return jax.block_until_ready(state)

  return step


def cpu_step(optimizer: optim.Optimizer) -> Step:
  """The update itself and some products before it, on this CPU."""

  def update(state: TrainState) -> TrainState:
    x = jnp.ones((512, 2048)) * state.step
    x = jax.lax.fori_loop(0, 4, lambda _, x: jnp.tanh(x @ jnp.ones((2048, 2048))), x)
    grads = jax.tree.map(lambda leaf: leaf * 1e-3 + x[0, 0] * 0, state.trainable)
    changes, opt_state = optimizer.update.update(
      grads, state.opt_state, state.trainable
    )
    trainable = jax.tree.map(jnp.add, state.trainable, changes)
    return TrainState(state.step + 1, trainable, opt_state, state.rng)

  compiled = jax.jit(update, donate_argnums=0)
  return lambda state: jax.block_until_ready(compiled(state))


def stalls(
  step: Step, state: TrainState, saves: int
) -> tuple[list[float], list[float], float]:
  """Seconds: each save's hold, each save's delay of steps until the next, a step alone."""
  with tempfile.TemporaryDirectory() as folder:
    keeper = Checkpointer(folder)
    for number in range(2):  # compiles, and makes the folders
      keeper.save(step_to(state, number), {"step": number})
      keeper.wait()
      state = step(state)
    held, spans, alone = [], [], []
    for number in range(saves):
      keeper.wait()
      began = time.perf_counter()
      for _ in range(_APART):
        state = step(state)
      alone.append(time.perf_counter() - began)
      began = time.perf_counter()
      keeper.save(step_to(state, 10 + number), {"step": number})
      held.append(time.perf_counter() - began)
      for _ in range(_APART):
        state = step(state)
      spans.append(time.perf_counter() - began)
    keeper.close()
  usual = statistics.median(alone)
  return held, [span - usual for span in spans], usual / _APART


def step_to(state: TrainState, number: int) -> TrainState:
  return state._replace(step=jnp.int32(number))


def main() -> None:
  parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
  parser.add_argument("--saves", type=int, default=5)
  options = parser.parse_args()
  lengths = paper_steps()
  small, _ = make_state(small=True)
  state, optimizer = make_state(small=False)
  count, size = size_of(state)
  sys.stdout.write(f"state: {size / 1e9:.2f} GB in {count} arrays\n")
  waiting = card_step(min(lengths.values()))
  again = jax.tree.map(jnp.copy, state)
  host = show("the host's part", stalls(waiting, small, options.saves))
  show("0.5 GB, the host waits for a card", stalls(waiting, again, options.saves))
  show("0.5 GB, this CPU computes", stalls(cpu_step(optimizer), state, options.saves))
  copy = 2 * size / _MEMORY
  sys.stdout.write(
    f"at paper size ({_SHARE:.0%} of two A800's peak, {_ENTRIES} entries a step): the "
    f"host's {1e3 * host:.1f} ms, measured, and {1e3 * copy:.1f} ms of copying, computed\n"
  )
  for name, seconds in lengths.items():
    share = (host + copy) / seconds
    sys.stdout.write(
      f"  {name:<24}{seconds:5.2f} s a step, held up by {share:.1%} of it "
      f"(asked: under {_ASKED:.0%})\n"
    )


def show(name: str, found: tuple[list[float], list[float], float]) -> float:
  """Prints it; the median hold."""
  held, late, usual = found
  sys.stdout.write(
    f"{name} (a step {usual:.3f} s): save() holds the loop for "
    f"{1e3 * statistics.median(held):.1f} ms ({1e3 * min(held):.1f} to "
    f"{1e3 * max(held):.1f});\n  {_APART} steps with a save in them take "
    f"{1e3 * statistics.median(late):+.0f} ms longer ({1e3 * min(late):+.0f} to "
    f"{1e3 * max(late):+.0f})\n"
  )
  sys.stdout.flush()
  return statistics.median(held)


if __name__ == "__main__":
  main()
