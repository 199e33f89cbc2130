"""The training loop."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from typing import cast

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh
from jax.sharding import NamedSharding

from imax_jax import mesh as mesh_lib
from imax_jax.data.pipeline import Steps
from imax_jax.data.pipeline import make_iterator
from imax_jax.train import snapshots as snapshots_lib
from imax_jax.train import trackers as trackers_lib
from imax_jax.train.checkpoint import Checkpointer
from imax_jax.train.guards import Guard
from imax_jax.train.interrupt import Preempted
from imax_jax.train.interrupt import Watchdog
from imax_jax.train.metrics import MetricsWriter
from imax_jax.train.metrics import lines_until
from imax_jax.train.optim import Optimizer
from imax_jax.train.speed import Tracer
from imax_jax.train.state import TrainState
from imax_jax.train.state import init_state
from imax_jax.train.step import ModelLoss
from imax_jax.train.step import make_train_step
from imax_jax.train.trackers import Tracker
from imax_jax.train.validation import BEST
from imax_jax.train.validation import Best

Evaluator = Callable[[Any], Mapping[str, float]]
Progress = Callable[[int, int, float], None]


def train(
  *,
  model_loss: ModelLoss,
  trainable: Mapping[str, Any],
  frozen: Mapping[str, Any],
  optimizer: Optimizer,
  batches: Steps,
  mesh: Mesh,
  workdir: str | Path,
  seed: int,
  num_steps: int | None = None,
  accumulate: int = 1,
  save_steps: int = 0,
  snapshots: Mapping[str, int] | None = None,
  keep: int = 2,
  evaluators: Mapping[str, Evaluator] | None = None,
  evaluate_steps: int = 0,
  choose: tuple[str, int] = ("loss", 0),
  metadata: Mapping[str, Any] | None = None,
  on_step: Progress | None = None,
  trackers: Sequence[str] = (),
  profile: tuple[int, int] = (0, 0),
  max_skipped: int = 0,
  watchdog: Watchdog | None = None,
  preempted: Callable[[int], bool] = lambda step: False,
  stop_after: int | None = None,
) -> dict[str, Any]:
  """Trains, or goes on from the checkpoint in `workdir`, and returns the weights.

  At each step, in this order, DO NOT CHANGE IT:

    evaluate   first, so that a checkpoint's step has its evaluation in the metrics
    save       state and iterator before a batch is taken: a resume takes the same one
    fetch      the batch of this step, and only now, for the same reason
    step       the update; returns before the device has done it
    write      the numbers of the step BEFORE, for which the device is surely not waiting

  so a run that is killed anywhere and started again ends with the same bits and the same
  lines of metrics as one that was not.

  Args:
    trainable: the weights to train, already placed; copied, not given up.
    frozen: the weights that only take part, already placed.
    batches: this process's batches; `num_steps` of them unless given.
    workdir: gets metrics.jsonl, tensorboard/, latest/ and snapshots/.
    accumulate: turns of a step, as the batches were made for; see `make_train_step`.
    save_steps: updates between two checkpoints; the last step is always saved.
    snapshots: {name: step} at which the trainable weights are kept by name, 0 being the
      weights before the first update.
    keep: how many of the latest checkpoints stay.
    evaluators: {name: trainable -> numbers}; at each multiple of `evaluate_steps`, step
      0 left out, and at the end. The weights at which "validation" has its least value
      are the snapshot "best".
    choose: (metric, patience) of that, see `Best`. Where it says so the run ends early:
      snapshots of its last step are kept then, those between are not.
    metadata: what a resume must share with the run it goes on from.
    on_step: called with (step, steps in all, loss), e.g. to draw progress.
    trackers: see `trackers`.
    profile: (first, end): these updates are traced, to be read with TensorBoard or
      Perfetto, in workdir/profile.
    max_skipped: see `Guard`.
    watchdog: one that watches; none unless given.
    preempted: asked at every step whether to save and leave; see `Preemption`.
    stop_after: returns after this step, saving nothing: a kill, for tests.

  Raises:
    FloatingPointError: a loss or gradient that is not finite; names step, quantity and
      the batch's entries.
    OSError: a checkpoint could not be written.
    Preempted: it was asked to leave, and has saved.
    ValueError: a batch without a supervised token; a checkpoint of another model or run,
      or none of which is whole; too few batches; a snapshot beyond the last step.
  """
  num_steps = len(batches) if num_steps is None else num_steps
  snapshots = dict(snapshots or {})
  _check_plan(num_steps, len(batches), snapshots)
  workdir, watchdog = Path(workdir), watchdog or Watchdog(0)
  with contextlib.closing(
    Checkpointer(workdir, metadata=metadata, keep=keep)
  ) as checkpointer:
    state = _place(init_state(trainable, optimizer.update, seed=seed), mesh)
    iterator = make_iterator(batches)
    restored = checkpointer.restore(state)
    start, resumed = 0, restored is not None
    if restored is not None:
      state, start = restored.state, int(restored.state.step)
      iterator.set_state(restored.iterator)
      if start > num_steps:
        raise ValueError(
          f"{workdir}: checkpoint at step {start}, beyond the {num_steps} steps of this "
          "run; train longer or use another workdir"
        )
      logging.info("resuming %s at step %d of %d", workdir, start, num_steps)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    step_fn = make_train_step(
      model_loss, optimizer, accumulate=accumulate, shardings=shardings
    )
    past = lines_until(workdir / "metrics.jsonl", start)
    best = Best(*choose, past)
    writer = _Pending(
      workdir,
      start,
      on_step,
      Guard(batches.names, past, max_skipped=max_skipped),
      trackers,
    )
    tracer = Tracer(workdir / "profile", *profile)

    def keep_as(name: str, trainable: Any) -> None:
      checkpointer.wait()  # orbax takes two saves at once for one another
      snapshots_lib.save(workdir, name, trainable)

    for step in range(start, num_steps + 1):
      last = step == num_steps or best.over
      fresh = not (resumed and step == start)  # else done before the kill
      leave = preempted(step)
      if fresh:
        if evaluators and _due(step, evaluate_steps, last):
          writer.flush(num_steps)
          with watchdog.paused():
            for name, evaluator in evaluators.items():
              values = evaluator(state.trainable)
              line = {f"{name}/{key}": float(value) for key, value in values.items()}
              writer.add(step, line)
              if best.look(line):
                keep_as(BEST, state.trainable)
              logging.info("step %d: %s", step, best.words)
          last = last or best.over
        due = num_steps if last else step  # the last weights are those of the end
        for name in sorted(name for name, at in snapshots.items() if at in (step, due)):
          writer.flush(num_steps)  # raises if these weights come of a bad step
          with watchdog.paused():
            keep_as(name, state.trainable)
        if leave or _due(step, save_steps, last):
          writer.flush(num_steps)
          with watchdog.paused():
            checkpointer.save(state, iterator.get_state())
      if last or step == stop_after:
        break
      if leave:
        raise Preempted(
          f"{workdir}: asked to stop; saved at step {step} of {num_steps}"
        )
      arrays = cast(Mapping[str, np.ndarray], next(iterator))
      batch = mesh_lib.put_batch(arrays, mesh)
      if step in profile:
        checkpointer.wait()  # the profiler crashes beside orbax's threads
      tracer.before(step)
      with watchdog.compiling(batch):
        state, metrics = step_fn(state, frozen, batch)
      writer.flush(num_steps)
      watchdog.beat()
      writer.hold(step + 1, metrics)

    if step < num_steps and best.over:
      logging.info("ended at step %d of %d: %s", step, num_steps, best.words)
    writer.flush(num_steps)
    writer.close()
    tracer.close()
    return state.trainable


def _check_plan(num_steps: int, available: int, snapshots: Mapping[str, int]) -> None:
  if num_steps > available:
    raise ValueError(
      f"{num_steps} steps of {available} batches; build the batches for as many steps"
    )
  late = sorted(name for name, at in snapshots.items() if not 0 <= at <= num_steps)
  if late:
    raise ValueError(
      f"snapshots {late} lie outside steps 0 to {num_steps}; move them or train longer"
    )


def _place(state: TrainState, mesh: Mesh) -> TrainState:
  """Leaves that were placed stay; counters and plain arrays go to every device."""

  def place(leaf: jax.Array) -> jax.Array:
    placed = isinstance(leaf.sharding, NamedSharding)
    return leaf if placed else mesh_lib.replicate(leaf, mesh)

  return jax.tree.map(place, state)


def _due(step: int, every: int, last: bool) -> bool:
  return last or bool(every and step and step % every == 0)


class _Pending:
  """Holds a step's numbers until the next is under way; they are checked when read."""

  def __init__(
    self,
    workdir: Path,
    step: int,
    on_step: Progress | None,
    guard: Guard,
    trackers: Sequence[str],
  ) -> None:
    self._guard, self._on_step = guard, on_step
    self._writers: list[Tracker] = []
    if jax.process_index() == 0:  # all processes hold the same numbers
      self._writers = [MetricsWriter(workdir / "metrics.jsonl", step=step)]
      self._writers += trackers_lib.open_all(workdir, trackers, step=step)
    self._held: tuple[int, dict[str, jax.Array]] | None = None

  def hold(self, step: int, metrics: dict[str, jax.Array]) -> None:
    self._held = (step, metrics)

  def flush(self, num_steps: int) -> None:
    if self._held is None:
      return
    (step, metrics), self._held = self._held, None
    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
    self.add(step, self._guard.look(step, values))
    if self._on_step is not None:
      self._on_step(step, num_steps, values["loss"])

  def add(self, step: int, values: Mapping[str, float]) -> None:
    for writer in self._writers:
      writer.write(step, values)

  def close(self) -> None:
    for writer in self._writers:
      writer.close()
