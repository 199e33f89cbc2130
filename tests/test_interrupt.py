"""A run that is asked to stop saves and goes on later; one that hangs ends itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_train as toy
from reliability import record

from imax_jax.train.interrupt import EXIT_AGAIN
from imax_jax.train.interrupt import Preempted
from imax_jax.train.interrupt import Preemption
from imax_jax.train.interrupt import Watchdog
from imax_jax.weights import digests

ROOT = Path(__file__).parent.parent


# ── SIGTERM ───────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Any:
  return toy.run(tmp_path_factory.mktemp("straight"))


@pytest.mark.parametrize("step", range(1, 11))
def test_sigterm_saves_and_the_next_start_goes_on(
  tmp_path: Path, straight: Any, step: int
) -> None:
  """At any step (R6); a second signal while it saves does no harm."""

  def send(done: int, total: int, loss: float) -> None:
    if done == step:
      os.kill(os.getpid(), signal.SIGTERM)
      os.kill(os.getpid(), signal.SIGTERM)

  before = signal.getsignal(signal.SIGTERM)
  with (
    pytest.raises(Preempted, match=rf"saved at step {step + 1} of 12"),
    Preemption().listening() as preempted,
  ):
    toy.run(tmp_path, preempted=preempted, on_step=send, save_steps=100)
  assert signal.getsignal(signal.SIGTERM) is before
  sealed = [path.parent.name for path in (tmp_path / "latest").glob("*/sha256.json")]
  assert sealed == [str(step + 1)]
  toy.assert_same_bits(toy.run(tmp_path, save_steps=100), straight)
  record(
    "R6",
    "SIGTERM twice at a step: saved there, the same end",
    "1 of 1",
    "10 of 10",
    True,
  )


def test_a_signal_that_comes_too_late_comes_again(tmp_path: Path) -> None:
  """After the last step: the run is whole, and the program is still to end."""
  seen: list[int] = []
  before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
  try:
    with Preemption().listening() as preempted:
      toy.run(
        tmp_path,
        preempted=preempted,
        on_step=lambda done, *_: done == 12 and os.kill(os.getpid(), signal.SIGTERM),
      )
      assert not seen
    assert seen == [signal.SIGTERM]
  finally:
    signal.signal(signal.SIGTERM, before)


def test_signals_are_left_alone_off_the_main_thread() -> None:
  before, seen = signal.getsignal(signal.SIGTERM), []

  def work() -> None:
    with Preemption().listening() as preempted:
      seen.append(preempted(3))

  thread = threading.Thread(target=work)
  thread.start()
  thread.join()
  assert seen == [False] and signal.getsignal(signal.SIGTERM) is before


def command(workdir: Path, *words: str) -> list[str]:
  return [
    sys.executable, "-m", "imax_jax.main", "--config", "configs/phantom.py:tiny",
    "--workdir", str(workdir), *words,
  ]  # fmt: skip


def test_the_program_says_so_with_its_exit_code(tmp_path: Path) -> None:
  """75, twice in a row: the second start goes on where the first one saved."""
  subprocess.run(command(tmp_path, "build"), cwd=ROOT, check=True, capture_output=True)
  long = command(tmp_path, "--config.train.epochs=3000", "train")
  steps = []
  for _ in range(2):
    with subprocess.Popen(long, cwd=ROOT, stderr=subprocess.PIPE, text=True) as run:
      metrics = tmp_path / "runs" / "dmax-s0" / "metrics.jsonl"
      lines = metrics.stat().st_size if metrics.exists() else 0
      while not metrics.exists() or metrics.stat().st_size <= lines + 100:
        assert run.poll() is None
        time.sleep(0.05)
      run.send_signal(signal.SIGTERM)
      _, words = run.communicate(timeout=60)
    assert run.returncode == EXIT_AGAIN, words
    assert words.rstrip().endswith("; the same command goes on")
    sealed = (tmp_path / "runs" / "dmax-s0" / "latest").glob(f"*/{digests.SEAL}")
    steps.append(max(int(path.parent.name) for path in sealed))
    assert f"saved at step {steps[-1]} of" in words
  assert 0 < steps[0] < steps[1]
  record(
    "R6", "SIGTERM to the program: exit code 75, goes on", "2 of 2", "2 of 2", True
  )


# ── Watchdog ──────────────────────────────────────────────────────────────────────

STUCK = """
import sys, time
sys.path[:0] = sys.argv[1:3]
import test_train as toy
from imax_jax.train.interrupt import Watchdog

class Stuck:
  def __init__(self):
    self.clean = toy.make_batches()
    self.names = self.clean.names
    self.examples_per_step = self.clean.examples_per_step
  def __len__(self):
    return len(self.clean)
  def __getitem__(self, step):
    if step == 8:
      time.sleep(1000)
    return self.clean[step]

with Watchdog(2.0, tick=0.1).watching() as watchdog:
  toy.run(sys.argv[3], batches=Stuck(), watchdog=watchdog)
"""


def test_a_step_that_never_ends_ends_the_process(tmp_path: Path, straight: Any) -> None:
  """As a host that lives and does not move would keep it (R7)."""
  words = [sys.executable, "-c", STUCK, str(ROOT / "tests"), str(ROOT), str(tmp_path)]
  done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
  assert done.returncode == EXIT_AGAIN, done.stderr
  assert "process 0: no step for 2 s, expected one within 2" in done.stderr
  assert "Thread" in done.stderr and "loop.py" in done.stderr  # where it hung
  toy.assert_same_bits(toy.run(tmp_path), straight)  # from step 6


def test_the_watchdog_knows_slow_from_stuck() -> None:
  left: list[int] = []
  watchdog = Watchdog(0.2, leave=left.append, tick=0.02)
  for _ in range(6):
    watchdog.beat()
    time.sleep(0.05)
  assert 0.45 < watchdog.limit() < 0.8  # ten times the median
  with watchdog.watching():
    watchdog.beat()
    time.sleep(0.3)
    with watchdog.paused():
      time.sleep(1.0)
    time.sleep(0.3)
    assert not left
    time.sleep(1.5)
    assert left == [EXIT_AGAIN]
  assert Watchdog(60.0).limit() == 60.0


def test_it_waits_for_the_first_step_and_not_without_a_limit() -> None:
  left: list[int] = []
  for seconds, beats in ((0.1, 0), (0.0, 3)):
    with Watchdog(seconds, leave=left.append, tick=0.02).watching() as watchdog:
      for _ in range(beats):
        watchdog.beat()
      time.sleep(0.5)
  assert not left and np.isfinite(watchdog.limit())


def test_a_size_that_is_compiled_is_waited_for_once() -> None:
  """A second size of batch comes late in a run: its compilation is no hanging step."""
  left: list[int] = []
  small, large = {"text": np.zeros((1, 2))}, {"text": np.zeros((1, 3))}
  with Watchdog(0.3, leave=left.append, tick=0.05).watching() as watchdog:
    watchdog.beat()
    for batch in (small, large):
      with watchdog.compiling(batch):
        time.sleep(1)
      watchdog.beat()
    assert not left
    with watchdog.compiling(large):
      time.sleep(1)
  assert left == [EXIT_AGAIN]
