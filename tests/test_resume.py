"""A run that was stopped anywhere, and goes on, is the run that nobody stopped."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import multiprocessing
import os
import signal
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from typing import NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import test_checkpoint as checkpoints
import test_train as toy
from jax.experimental.compilation_cache import compilation_cache
from reliability import record

from imax_jax.data.pipeline import Batches
from imax_jax.data.pipeline import BatchIterator
from imax_jax.train import checkpoint as checkpoint_lib
from imax_jax.train import metrics
from imax_jax.train.interrupt import Preempted
from imax_jax.weights import digests

EPOCH, EPOCHS, ENTRIES = 20, 3, 6  # steps, epochs, entries a step
CUTS = (1, 7, 19, 20, 21, 39, 40, 59)
# What each mode hands to `Batches`, and what to `train`.
MODES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
  "image": ({"share_prefix": True}, {}),
  "entry": ({"share_prefix": False}, {}),
  "image, accumulated": ({"share_prefix": True, "accumulate": 2}, {"accumulate": 2}),
  "entry, accumulated": ({"share_prefix": False, "accumulate": 3}, {"accumulate": 3}),
}


@pytest.fixture(scope="module", autouse=True)
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
  """Many lives of one program: it is compiled once, as in a work directory."""
  names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
  before = [getattr(jax.config, name) for name in names]
  for name, value in zip(
    names, (str(tmp_path_factory.mktemp("programs")), 0), strict=True
  ):
    jax.config.update(name, value)
  compilation_cache.reset_cache()
  yield
  for name, value in zip(names, before, strict=True):
    jax.config.update(name, value)
  compilation_cache.reset_cache()


# ── Cuts: epochs 1 to 3, their ends, and the middle (R3) ──────────────────────────


def images() -> list[Any]:
  """As many entries as an epoch of twenty steps has."""
  found, left = [], EPOCH * ENTRIES
  for image in toy.make_images(left):
    found.append(dataclasses.replace(image, entries=image.entries[:left]))
    left -= len(found[-1].entries)
    if not left:
      return found
  raise AssertionError("too few images")


@functools.cache
def batches(mode: str) -> Batches:
  settings = {"entries_per_step": ENTRIES, "row_tokens": 32, "seed": 1}
  made = Batches(
    images(), toy.pixels_of, num_steps=EPOCH * EPOCHS, **settings, **MODES[mode][0]
  )
  assert made.num_entries == EPOCH * ENTRIES
  return made


def life(workdir: Path, mode: str, **kwargs: Any) -> str | None:
  """Runs until its end, or until it is stopped; the final weights' SHA-256."""
  settings = {"save_steps": 6, "snapshots": {}} | MODES[mode][1]
  try:
    weights = toy.run(workdir, batches=batches(mode), **(settings | kwargs))
  except Preempted:
    return None
  digest = hashlib.sha256()
  for leaf in jax.tree.leaves(jax.device_get(weights)):
    digest.update(leaf.tobytes())
  return digest.hexdigest()


def losses(workdir: Path) -> list[tuple[int, int]]:
  """(step, the bits of its float32 loss) of each line."""
  rows = metrics.read_metrics(workdir / "metrics.jsonl")
  return [(row["step"], int(np.float32(row["loss"]).view(np.uint32))) for row in rows]


@pytest.fixture(scope="module")
def straight(
  tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], tuple[str, list[tuple[int, int]]]]:
  @functools.cache
  def run(mode: str) -> tuple[str, list[tuple[int, int]]]:
    workdir = tmp_path_factory.mktemp("straight")
    weights = life(workdir, mode)
    assert weights is not None
    return weights, losses(workdir)

  return run


@pytest.mark.parametrize("mode", MODES)
def test_a_run_cut_anywhere_ends_with_the_same_bits(
  tmp_path: Path, straight: Any, mode: str
) -> None:
  """Asked to leave at the cut, and killed there with a checkpoint behind it (R3)."""
  weights, lines = straight(mode)
  assert [step for step, _ in lines] == list(range(1, EPOCH * EPOCHS + 1))
  assert len({bits for _, bits in lines}) > 50
  same, rare = 0, {"save_steps": 0}  # but for the cut and the end
  for cut in CUTS:
    asked, killed = tmp_path / f"asked-{cut}", tmp_path / f"killed-{cut}"
    assert (
      life(asked, mode, preempted=lambda step, cut=cut: step == cut, **rare) is None
    )
    assert checkpoints._sealed(asked) == cut
    life(killed, mode, stop_after=cut, save_steps=9)
    ends = [(life(folder, mode, **rare), losses(folder)) for folder in (asked, killed)]
    same += all(end == (weights, lines) for end in ends)
  record(
    "R3", f"asked to leave, and killed, at step {', '.join(map(str, CUTS))} of 60, mode {mode}",
    f"{same} of {len(CUTS)}", "bits of all losses and weights equal", same == len(CUTS),
  )  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
def test_a_resume_of_a_resume_ends_with_the_same_bits(
  tmp_path: Path, straight: Any, mode: str
) -> None:
  same, thrice = 0, ((1, 19, 40), (7, 20, 41), (21, 39, 59))
  for cuts in thrice:
    workdir = tmp_path / str(cuts[0])
    for cut in cuts:
      life(workdir, mode, stop_after=cut, save_steps=4)
    same += (life(workdir, mode), losses(workdir)) == straight(mode)
  record(
    "R3", f"a resume of a resume of a resume, mode {mode}", f"{same} of {len(thrice)}",
    "bits of all losses and weights equal", same == len(thrice),
  )  # fmt: skip


# ── Deaths between the update, the place in the data and the save (R2) ────────────


class Place(NamedTuple):
  """Where a process dies: before or after the n-th call that `counts`."""

  owner: Any
  name: str
  after: bool
  call: int
  restored: tuple[int, ...]  # the steps it may go on from
  counts: Callable[..., bool] = lambda *args: True


def _is_checkpoint(folder: Path) -> bool:
  return folder.parent.name == "latest"


PLACES = {
  "a batch is taken, its update not begun": Place(
    BatchIterator, "__next__", True, 11, (6, 9)
  ),
  "the update is done, its numbers not written": Place(
    metrics.MetricsWriter, "write", False, 11, (6, 9)
  ),
  "half of its line is written": Place(metrics, "_line", True, 11, (6, 9)),
  "the place in the data is read, the state not handed over": Place(
    BatchIterator, "get_state", True, 3, (3, 6)
  ),
  "orbax writes": Place(ocp.CheckpointManager, "save", True, 3, (6,)),
  "orbax has written, nothing is sealed": Place(
    digests, "seal", False, 3, (6,), _is_checkpoint
  ),
  "the seal is beside its place": Place(
    Path, "replace", False, 3, (6,),
    lambda part, path: path.name == digests.SEAL and _is_checkpoint(path.parent),
  ),
  "sealed, and nobody was told": Place(digests, "seal", True, 3, (9,), _is_checkpoint),
}  # fmt: skip


def _die() -> None:
  os.kill(os.getpid(), signal.SIGKILL)


def _die_at(workdir: str, name: str) -> None:
  """A child that trains until it comes to the place."""
  place = PLACES[name]
  real, calls = getattr(place.owner, place.name), 0

  def wrapped(*args: Any, **kwargs: Any) -> Any:
    nonlocal calls
    calls += place.counts(*args)
    if calls == place.call and not place.after:
      _die()
    found = real(*args, **kwargs)
    if calls == place.call and place.owner is metrics:
      with (Path(workdir) / "metrics.jsonl").open("a") as file:
        file.write(found[: len(found) // 2])
    if calls == place.call:
      _die()
    return found

  setattr(place.owner, place.name, wrapped)
  toy.run(Path(workdir))


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, str, dict[int, Any]]:
  """An undisturbed run: final weights, lines, and all that it had at each step."""
  kept: dict[int, Any] = {}
  real = checkpoint_lib.Checkpointer.save

  def save(self: Any, state: Any, iterator: Any) -> None:
    arrays = jax.device_get(checkpoint_lib._to_arrays(state))
    kept[int(state.step)] = (arrays, dict(iterator))
    real(self, state, iterator)

  workdir = tmp_path_factory.mktemp("undisturbed")
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(checkpoint_lib.Checkpointer, "save", save)
    weights = toy.run(workdir, save_steps=1)
  return weights, (workdir / "metrics.jsonl").read_text(), kept


@pytest.mark.parametrize("name", PLACES)
def test_killed_at_a_named_place_all_that_is_restored_is_of_one_step(
  tmp_path: Path, states: Any, name: str
) -> None:
  """Weights, moments, rng and place in the data (R2); and the end is the same."""
  weights, lines, kept = states
  context = multiprocessing.get_context("forkserver")
  context.set_forkserver_preload(["test_train"])
  child = context.Process(target=_die_at, args=(str(tmp_path), name))
  child.start()
  child.join()
  assert child.exitcode == -signal.SIGKILL
  found = checkpoints.restore(tmp_path)
  step = int(found.state.step)
  assert step in PLACES[name].restored
  arrays, iterator = kept[step]
  toy.assert_same_bits(jax.device_get(checkpoint_lib._to_arrays(found.state)), arrays)
  assert found.iterator == iterator == {"example": step * ENTRIES}
  toy.assert_same_bits(toy.run(tmp_path), weights)
  assert (tmp_path / "metrics.jsonl").read_text() == lines
  record(
    "R2", "weights, moments, rng and data position of one step; the same end",
    "1 of 1", "8 of 8", True,
  )  # fmt: skip
