"""What takes too long for every change: `make chaos`."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest
import test_checkpoint as checkpoints
import test_hosts
import toy_hosts as hosts
from reliability import CHAOS
from reliability import record

from imax_jax.train import metrics
from imax_jax.train.checkpoint import Checkpointer

pytestmark = pytest.mark.skipif(not CHAOS, reason="long: make chaos")

SAVES, KEPT, SETTLED = 200, 3, 50


def test_two_hundred_saves_leave_nothing_behind(tmp_path: Path) -> None:
  """Neither memory nor open files nor folders (R10)."""
  state, keeper = checkpoints.fresh(), Checkpointer(tmp_path, keep=KEPT)
  step = jax.jit(lambda state: state._replace(step=state.step + 1))
  memory, files = [], []
  for number in range(1, SAVES + 1):
    state = step(state)
    keeper.save(state, {"example": number})
    keeper.wait()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    memory.append(pages * os.sysconf("SC_PAGE_SIZE") / 1e6)
    files.append(len(os.listdir("/proc/self/fd")))
  keeper.close()
  slope = np.polyfit(range(SETTLED, SAVES), memory[SETTLED:], 1)[0]
  more = max(files[SETTLED:]) - min(files[SETTLED:])
  left = sorted(int(path.name) for path in (tmp_path / "latest").iterdir())
  record(
    "R10", f"{SAVES} saves, keep {KEPT}",
    f"{slope:.3f} MB and {(files[-1] - files[SETTLED]) / (SAVES - SETTLED):.2f} open "
    f"files a save, at most {more} more at once; folders {left}",
    "under 0.05 MB a save, open files flat, 3 folders",
    slope < 0.05
    and files[-1] <= files[SETTLED]
    and left == list(range(SAVES - KEPT + 1, SAVES + 1)),
  )  # fmt: skip


MINUTES = float(os.environ.get("IMAX_CHAOS_MINUTES", "30"))
BETWEEN = 20.0  # mean seconds from a start to the next kill
STEP_SECONDS, SAVE_STEPS, HEARTBEAT = 0.1, 20, 10


class Loss(NamedTuple):
  """What a kill cost."""

  done: int  # the last step that had been written down
  resumed: int  # the step it went on from

  @property
  def steps(self) -> int:
    return self.done - self.resumed


def _last(workdir: Path) -> int:
  lines = hosts.folder_of(workdir) / "metrics.jsonl"
  rows = metrics.read_metrics(lines) if lines.exists() else []
  return int(rows[-1]["step"]) if rows else 0


def _end(processes: list[subprocess.Popen[bytes]]) -> int:
  """Waits for the others, and ends those that do not see it, as launch/local.sh does:
  one that waits for a peer to join would wait five minutes. How many were ended."""
  ended, until = 0, time.monotonic() + HEARTBEAT + 5
  for process in processes:
    try:
      assert process.wait(timeout=max(0.0, until - time.monotonic())) != 0
    except subprocess.TimeoutExpired:
      process.kill()
      process.wait()
      ended += 1
  return ended


def test_killed_for_half_an_hour_it_ends_as_if_nobody_had(tmp_path: Path) -> None:
  """Two processes, of which one or both are killed again and again (R29)."""
  asked = hosts.Toy(
    steps=int(MINUTES * 60 / STEP_SECONDS * 0.5), save_steps=SAVE_STEPS,
    step_seconds=STEP_SECONDS,
  )  # fmt: skip
  quiet, killed = tmp_path / "quiet", tmp_path / "killed"
  for process in hosts.start(quiet, asked._replace(step_seconds=0.0), processes=2):
    assert process.wait(timeout=600) == 0, hosts.log_of(quiet, 0).read_text()
  chance, began, losses, ended = random.Random(0), time.monotonic(), [], 0
  while True:
    kills = time.monotonic() - began < MINUTES * 60
    processes = hosts.start(killed, asked, processes=2, heartbeat=HEARTBEAT)
    due = time.monotonic() + (chance.expovariate(1 / BETWEEN) if kills else 1e9)
    while time.monotonic() < due and any(p.poll() is None for p in processes):
      time.sleep(0.05)
    if all(process.poll() is not None for process in processes):
      break
    for victim in chance.choice([[0], [1], [0, 1]]):
      processes[victim].send_signal(signal.SIGKILL)
    ended += _end(processes)
    folder = hosts.folder_of(killed)
    losses.append(Loss(_last(killed), checkpoints._sealed(folder)))
  seconds = time.monotonic() - began
  log = hosts.log_of(killed, 0).read_text()
  assert [process.returncode for process in processes] == [0, 0], log
  expected, got = (test_hosts.weights(workdir) for workdir in (quiet, killed))
  same = expected.keys() == got.keys() and all(
    np.array_equal(got[path], leaf) for path, leaf in expected.items()
  )
  lines = [
    metrics.read_metrics(hosts.folder_of(folder) / "metrics.jsonl")
    for folder in (quiet, killed)
  ]
  assert float(np.abs(got["kernel"]).max()) > 0.1  # it has learnt
  same = same and lines[0] == lines[1] and len(lines[0]) == asked.steps
  most = max((loss.steps for loss in losses), default=0)
  late = sum(loss.steps > SAVE_STEPS for loss in losses)
  again = sum(loss.steps for loss in losses)
  good = asked.steps * STEP_SECONDS / seconds
  record(
    "R29", f"{len(losses)} kills in {seconds / 60:.0f} minutes of two processes",
    f"weights and losses {'' if same else 'not '}those of an undisturbed run; at most "
    f"{most} steps lost at once, more than {SAVE_STEPS} at {late} kills; "
    f"{again / (asked.steps + again):.1%} of all steps done twice, goodput {good:.0%} "
    f"at a kill every {BETWEEN:.0f} s, the start included; "
    f"{ended} survivors ended by the launcher",
    f"the same; at most {SAVE_STEPS} steps, the save interval, and what was done while "
    "a save was under way",
    same and len(losses) > 0 and most < 2 * SAVE_STEPS,
  )  # fmt: skip
