"""Two processes of which one dies or stands still: the other ends too, and soon (R7)."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import toy_hosts as hosts
from reliability import record

from imax_jax.train.interrupt import EXIT_AGAIN

HEARTBEAT, WATCHDOG = 10, 3  # seconds


class Fault(NamedTuple):
  process: int  # which of the two has it
  signal: int | None  # what it is sent; None: a step of it never ends
  seconds: float  # within which the other is gone
  code: tuple[int, ...]  # what it may end with: its own error, JAX's abort, or "again"
  says: str  # a pattern in the other's log: the missing process, as far as JAX tells


FAULTS = {
  "SIGKILL of the worker": Fault(
    1, signal.SIGKILL, HEARTBEAT + 5, (1, -6),
    r"Gloo .*127\.0\.0\.1.*(reset|closed) by peer|stopped sending heartbeats\):\s+1\s",
  ),
  "SIGKILL of the coordinator": Fault(
    0, signal.SIGKILL, 5, (1, -6), r"the leader \(usually slice 0 task 0\)|by peer"
  ),
  "SIGSTOP of the worker": Fault(
    1, signal.SIGSTOP, HEARTBEAT + 5, (-6,), r"stopped sending heartbeats\):\s+1\s"
  ),
  "a step of the worker never ends": Fault(
    1, None, WATCHDOG + 12, (EXIT_AGAIN,), r"process 0: no step for \d+ s, expected one"
  ),
}  # fmt: skip


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[bytes]]]:
  processes: list[subprocess.Popen[bytes]] = []
  yield processes
  for process in processes:
    process.kill()
    process.wait()


def wait_for_a_line(workdir: Path, processes: list[subprocess.Popen[bytes]]) -> None:
  lines = hosts.folder_of(workdir) / "metrics.jsonl"
  deadline = time.monotonic() + 300
  while not (lines.exists() and lines.read_text().count("\n") >= 3):
    assert all(process.poll() is None for process in processes)
    assert time.monotonic() < deadline, "no line of metrics"
    time.sleep(0.02)


@pytest.mark.parametrize("name", FAULTS)
def test_the_other_process_ends_and_says_why(
  tmp_path: Path, started: list[subprocess.Popen[bytes]], name: str
) -> None:
  fault = FAULTS[name]
  toy = hosts.Toy(
    steps=4000, save_steps=5, step_seconds=0.02,
    watchdog=0 if fault.signal else WATCHDOG,
    stuck=(fault.process, -1 if fault.signal else 30),
  )  # fmt: skip
  started += hosts.start(tmp_path, toy, processes=2, heartbeat=HEARTBEAT)
  wait_for_a_line(tmp_path, started)
  if fault.signal:
    started[fault.process].send_signal(fault.signal)
  began, other = time.monotonic(), 1 - fault.process
  code = started[other].wait(timeout=120)
  seconds = time.monotonic() - began
  # Where a figure is wanted it must be the asked one; elsewhere the machine may be busy.
  limit = fault.seconds if os.environ.get("IMAX_RELIABILITY") else 100
  log = hosts.log_of(tmp_path, other).read_text()
  said = re.search(fault.says, log)
  if not fault.signal:  # the one that stands still finds it out as well, and where
    assert started[fault.process].wait(timeout=60) == EXIT_AGAIN
    assert "toy_hosts.py" in hosts.log_of(tmp_path, fault.process).read_text()
  record(
    "R7", f"{name} (heartbeat {HEARTBEAT} s, watchdog {WATCHDOG} s)",
    f"the other ends with {code} after {seconds:.1f} s",
    f"an error within {fault.seconds} s that says why",
    code in fault.code and seconds < limit and said is not None,
  )  # fmt: skip
