"""Checkpoints: killed, damaged and failed saves cost no more than the steps since."""

from __future__ import annotations

import errno
import functools
import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import test_train as toy
from reliability import CHAOS
from reliability import record

from imax_jax.train import checkpoint as checkpoint_lib
from imax_jax.train import snapshots
from imax_jax.train.checkpoint import Checkpointer
from imax_jax.train.metrics import read_metrics
from imax_jax.train.state import TrainState
from imax_jax.train.state import init_state
from imax_jax.weights import digests

KILLS, STEPS = (50, 1000) if CHAOS else (20, 400)
DAMAGES = (100, 20, 20) if CHAOS else (24, 8, 8)


def fresh() -> TrainState:
  trainable, _ = toy.bigram_params()
  return init_state(trainable, toy.make_toy_optimizer(trainable).update, seed=7)


def restore(workdir: Path) -> Any:
  keeper = Checkpointer(workdir)
  try:
    return keeper.restore(fresh())
  finally:
    keeper.close()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, Any]]:
  """A run's folder with the checkpoints of steps 3 and 6, and the weights at each."""
  folder, states = tmp_path_factory.mktemp("run"), {}

  def keep(trainable: Any) -> dict[str, float]:
    states[3 * len(states) + 3] = jax.device_get(trainable)
    return {}

  toy.run(folder, stop_after=7, evaluators={"keep": keep}, evaluate_steps=3)
  return folder, states


# ── Damage ────────────────────────────────────────────────────────────────────────


def flip(path: Path, rng: np.random.Generator) -> None:
  data = bytearray(path.read_bytes())
  data[rng.integers(len(data))] ^= 1 << rng.integers(8)
  path.write_bytes(bytes(data))


def truncate(path: Path, rng: np.random.Generator) -> None:
  path.write_bytes(path.read_bytes()[: rng.integers(path.stat().st_size)])


def delete(path: Path, _: np.random.Generator) -> None:
  path.unlink()


def any_file(folder: Path, rng: np.random.Generator) -> Path:
  """One of its files, large ones more often, as bits rot."""
  files = sorted(p for p in folder.rglob("*") if p.is_file() and p.stat().st_size)
  files = [path for path in files if path.name != digests.SEAL]
  sizes = np.array([path.stat().st_size for path in files])
  return files[rng.choice(len(files), p=sizes / sizes.sum())]


@pytest.mark.parametrize(
  ("damage", "times"), zip((flip, truncate, delete), DAMAGES, strict=True)
)
def test_damage_is_found_and_the_one_before_restored(
  saved: tuple[Path, dict[int, Any]],
  tmp_path: Path,
  caplog: pytest.LogCaptureFixture,
  damage: Callable[[Path, np.random.Generator], None],
  times: int,
) -> None:
  folder, states = saved
  for seed in range(times):
    workdir = Path(shutil.copytree(folder, tmp_path / str(seed)))
    rng = np.random.default_rng(seed)
    file = any_file(workdir / "latest" / "6", rng)
    damage(file, rng)
    caplog.clear()
    found = restore(workdir)
    assert int(found.state.step) == 3 and found.iterator == {"example": 18}
    toy.assert_same_bits(found.state.trainable, states[3])
    assert f"{file}: " in caplog.text
    assert [path.name for path in (workdir / "damaged").iterdir()] == ["6-1"]
  # A resume from there ends as if nothing had been.
  whole = toy.run(tmp_path / "whole")
  toy.assert_same_bits(toy.run(tmp_path / "0"), whole)
  words = "damage found, the file named, the checkpoint before it restored bit for bit"
  record("R8", words, f"{times} of {times}", f"{sum(DAMAGES)} of {sum(DAMAGES)}", True)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"_METADATA": 3}', "\x00\x01"])
def test_a_damaged_seal_is_damage(
  saved: tuple[Path, dict[int, Any]], tmp_path: Path, text: str
) -> None:
  workdir = Path(shutil.copytree(saved[0], tmp_path / "run"))
  (workdir / "latest" / "6" / digests.SEAL).write_text(text)
  assert int(restore(workdir).state.step) == 3


def test_a_bit_of_the_seal_restores_nothing_wrong(
  saved: tuple[Path, dict[int, Any]], tmp_path: Path
) -> None:
  folder, states = saved
  for seed in range(8):
    workdir = Path(shutil.copytree(folder, tmp_path / str(seed)))
    flip(workdir / "latest" / "6" / digests.SEAL, np.random.default_rng(seed))
    found = restore(workdir)
    toy.assert_same_bits(found.state.trainable, states[int(found.state.step)])


def test_when_all_are_damaged_nothing_begins(
  saved: tuple[Path, dict[int, Any]], tmp_path: Path
) -> None:
  workdir = Path(shutil.copytree(saved[0], tmp_path / "run"))
  rng = np.random.default_rng(1)
  for step in ("3", "6"):
    flip(any_file(workdir / "latest" / step, rng), rng)
  with pytest.raises(ValueError, match=r"latest/6/.*SHA-256.*none is whole; delete"):
    toy.run(workdir)
  kept = sorted(path.name for path in (workdir / "damaged").iterdir())
  assert kept == ["3-1", "6-1"]


def test_weights_kept_by_name_are_sealed_too(
  saved: tuple[Path, dict[int, Any]], tmp_path: Path
) -> None:
  workdir = Path(shutil.copytree(saved[0], tmp_path / "run"))
  trainable, _ = toy.bigram_params()
  rng = np.random.default_rng(3)
  file = any_file(workdir / "snapshots" / "initial", rng)
  flip(file, rng)
  with pytest.raises(ValueError, match=rf"{file.name}: was changed .*train it again"):
    snapshots.restore(workdir, "initial", trainable)
  (workdir / "snapshots" / "initial" / digests.SEAL).unlink()
  with pytest.raises(FileNotFoundError, match=r"sha256.json: missing.*train it again"):
    snapshots.restore(workdir, "initial", trainable)


# ── Saves that fail or are killed ─────────────────────────────────────────────────


@pytest.mark.parametrize("room", [True, False])
def test_what_is_saved_is_of_its_step(
  tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: bool
) -> None:
  """Though the steps after it run on, and are given its memory (they donate it)."""
  shape = (1024, 1024)
  copies: list[Any] = []
  copied = checkpoint_lib._copied
  monkeypatch.setattr(
    checkpoint_lib, "_copied", lambda a: copies.append(a) or copied(a)
  )
  monkeypatch.setattr(checkpoint_lib, "_have_room_for", lambda arrays: room)

  def state(value: float) -> TrainState:
    weights = {f"w{i}": jnp.full(shape, value + i) for i in range(24)}
    return TrainState(jnp.int32(1), weights, optax.EmptyState(), jax.random.key(0))

  @functools.partial(jax.jit, donate_argnums=0)
  def step(state: TrainState) -> TrainState:
    later = jax.tree.map(lambda leaf: leaf + 100, state.trainable)
    return state._replace(trainable=later)

  keeper, running = Checkpointer(tmp_path), state(0.0)
  keeper.save(running, {"step": 1})
  for _ in range(5):
    running = step(running)
  jax.block_until_ready(running)
  found = keeper.restore(state(7.0))
  keeper.close()
  toy.assert_same_bits(found.state.trainable, state(0.0).trainable)
  assert len(copies) == room


@pytest.mark.parametrize(("peak", "room"), [(70, True), (76, True), (77, False)])
def test_a_copy_is_made_where_a_device_has_room(
  monkeypatch: pytest.MonkeyPatch, peak: int, room: bool
) -> None:
  """24 bytes of state; the most that the steps have held, of 100."""
  arrays = {"a": jnp.zeros(4), "b": jnp.zeros(2)}
  assert checkpoint_lib._have_room_for(arrays)  # a CPU, which has no limit of its own

  class Device:
    def memory_stats(self) -> dict[str, int]:
      return {"bytes_limit": 100, "peak_bytes_in_use": peak}

  one = Device()

  def leaf(array: jax.Array) -> Any:
    shard = SimpleNamespace(device=one, data=array)
    return SimpleNamespace(addressable_shards=[shard])

  assert checkpoint_lib._have_room_for({n: leaf(a) for n, a in arrays.items()}) == room


def test_the_loop_goes_on_and_orbax_saves_one_thing_at_a_time(
  tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  """Two saves at once would take each other's folders for their own."""
  under_way, threads, seen = [0], [], []
  begin, finish, keep = Checkpointer._begin, Checkpointer._finish, snapshots.save

  def slow(self: Checkpointer, *args: Any) -> int:
    under_way[0] += 1
    threads.append(threading.current_thread().name)
    time.sleep(0.2)
    return begin(self, *args)

  def done(self: Checkpointer, step: int) -> None:
    finish(self, step)
    under_way[0] -= 1

  def look(*args: Any) -> None:
    seen.append(under_way[0])
    keep(*args)

  monkeypatch.setattr(Checkpointer, "_begin", slow)
  monkeypatch.setattr(Checkpointer, "_finish", done)
  monkeypatch.setattr(snapshots, "save", look)
  toy.run(tmp_path, save_steps=3, snapshots={"a": 4, "b": 7, "c": 12})
  assert threads == ["checkpoint"] * 4
  assert seen == [0, 0, 0]


def test_what_is_not_sealed_was_not_finished(
  saved: tuple[Path, dict[int, Any]], tmp_path: Path
) -> None:
  workdir = Path(shutil.copytree(saved[0], tmp_path / "run"))
  (workdir / "latest" / "6" / digests.SEAL).unlink()
  assert int(restore(workdir).state.step) == 3
  # A run that was killed in its first save begins anew.
  workdir = Path(shutil.copytree(saved[0], tmp_path / "first"))
  shutil.rmtree(workdir / "latest" / "3")
  (workdir / "latest" / "6" / digests.SEAL).unlink()
  assert restore(workdir) is None
  assert [path.name for path in (workdir / "damaged").iterdir()] == ["6-1"]


@pytest.mark.parametrize("full", [1, 2, 3])
def test_a_save_that_fails_in_the_background_stops_the_run(
  tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: int
) -> None:
  """Never `success`: the error comes with the next save, or at the end of the run."""
  calls, real = [], digests.seal

  def seal(folder: Path) -> None:
    if folder.parent.name == "latest":
      calls.append(folder.name)
      if len(calls) == full:
        raise OSError(errno.ENOSPC, "No space left on device")
    real(folder)

  monkeypatch.setattr(checkpoint_lib.digests, "seal", seal)
  with pytest.raises(OSError, match="No space left"):
    toy.run(tmp_path, stop_after=10)
  assert calls == ["3", "6", "9"][: len(calls)] and len(calls) == full
  monkeypatch.setattr(checkpoint_lib.digests, "seal", real)
  found = restore(tmp_path)
  assert (found and int(found.state.step)) == (3 * (full - 1) or None)
  toy.assert_same_bits(toy.run(tmp_path), toy.run(tmp_path / "straight"))


def test_leftovers_of_a_killed_save_are_removed(tmp_path: Path) -> None:
  for name in ("latest/4", "snapshots/late"):
    (tmp_path / f"{name}.orbax-checkpoint-tmp" / "d").mkdir(parents=True)
  Checkpointer(tmp_path).close()
  assert not list(tmp_path.rglob("*orbax-checkpoint-tmp*"))


def _live(workdir: str, save_steps: int, pause: float) -> None:
  """A child that trains until it is killed; a step takes a while, as steps do."""
  toy.run(
    Path(workdir),
    batches=toy.make_batches(STEPS),
    num_steps=STEPS,
    save_steps=save_steps,
    snapshots={"late": STEPS},
    on_step=lambda *_: time.sleep(pause),
  )


def test_killed_at_any_moment_it_goes_on_from_the_last_sealed_step(
  tmp_path: Path,
) -> None:
  """kill -9 at random instants of saves, on and on in one folder (R1, and R3's resume
  of a resume): no life restores other weights than the last sealed ones, and the last
  one ends with the bits of a run that nobody disturbed."""
  weights: dict[int, Any] = {}

  def keep(trainable: Any) -> dict[str, float]:
    weights[len(weights) + 1] = jax.device_get(trainable)
    return {}

  kwargs = {"num_steps": STEPS, "save_steps": 0, "snapshots": {}}
  straight = toy.run(
    tmp_path / "straight", batches=toy.make_batches(STEPS), **kwargs,
    evaluators={"keep": keep}, evaluate_steps=1,
  )  # fmt: skip
  workdir, rng = tmp_path / "killed", np.random.default_rng(0)
  context = multiprocessing.get_context("forkserver")
  context.set_forkserver_preload(["test_train"])
  restored = []
  for number in range(KILLS):
    before = _sealed(workdir)
    life = context.Process(target=_live, args=(str(workdir), 2, 0.01))
    life.start()
    # Every other life ends before it has saved anything.
    _wait_for_a_step(life, workdir)
    while number % 2 and _sealed(workdir) <= before:
      assert life.is_alive(), "it died by itself"
      time.sleep(0.005)
    time.sleep(rng.uniform(0, 0.3))
    os.kill(life.pid, signal.SIGKILL)
    life.join()
    assert life.exitcode == -signal.SIGKILL
    sealed = _sealed(workdir)
    found = restore(workdir)
    if found is None:
      assert not sealed
      continue
    restored.append(int(found.state.step))
    assert restored[-1] == sealed
    toy.assert_same_bits(found.state.trainable, weights[restored[-1]])
    assert not list(workdir.rglob("*orbax-checkpoint-tmp*"))
  assert restored == sorted(restored) and len(set(restored)) >= KILLS // 2
  assert restored[-1] < STEPS
  last = context.Process(target=_live, args=(str(workdir), 0, 0.0))
  last.start()
  last.join()
  assert last.exitcode == 0
  trainable, _ = toy.bigram_params()
  toy.assert_same_bits(snapshots.restore(workdir, "late", trainable), straight)
  lines = [
    read_metrics(tmp_path / name / "metrics.jsonl") for name in ("straight", "killed")
  ]
  losses = [{row["step"]: row["loss"] for row in of if "loss" in row} for of in lines]
  assert losses[0] == losses[1] and len(losses[0]) == STEPS
  print(f"restored at steps {json.dumps(restored)}")
  record(
    "R1", "killed in saves, the last sealed step restored bit for bit, the same end",
    f"{KILLS} of {KILLS}", f"{KILLS} of {KILLS}", True,
  )  # fmt: skip


def _sealed(workdir: Path) -> int:
  """The latest sealed step; 0 where there is none."""
  found = (workdir / "latest").glob(f"[0-9]*/{digests.SEAL}")
  return max((int(path.parent.name) for path in found), default=0)


def _wait_for_a_step(life: Any, workdir: Path) -> None:
  """Until this life has trained: the killed one's lines are dropped when it begins."""
  path, began = workdir / "metrics.jsonl", time.time_ns()
  while not (path.exists() and path.stat().st_mtime_ns > began and path.stat().st_size):
    assert life.is_alive(), "it died by itself"
    time.sleep(0.005)
