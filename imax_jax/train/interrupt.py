"""How a run ends before its end: asked to by a scheduler, or since nothing moves.

    SIGTERM ──▶ Preemption ──▶ all processes save at one step and leave ─┐
    a peer that lives and does not move ──▶ Watchdog ──▶ stacks, and out ─┴▶ exit code 75

75 is sysexits' EX_TEMPFAIL: start the same command again, it goes on from the last
checkpoint.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

EXIT_AGAIN = 75

_TICK = 1.0  # seconds
_TIMES = 10  # a step may take so many times the median of the last ones
_RECENT = 50


class Preempted(Exception):
  """The run was asked to stop; it has saved."""


class Preemption:
  """Whether the scheduler wants this run to go: `reached(step)`, asked at every step.

  With one process a handler of SIGTERM sets a flag; a second signal finds it set. With
  several, JAX's own service takes the signal, and the processes agree on a step that
  none of them has passed.
  """

  def __init__(self) -> None:
    self._asked = False

  @contextlib.contextmanager
  def listening(self) -> Iterator[Callable[[int], bool]]:
    """Yields `reached`. SIGTERM is as before after the block, and comes again if it came
    too late for the block to leave by it."""
    if jax.process_count() > 1:
      yield multihost_utils.reached_preemption_sync_point
      return
    if threading.current_thread() is not threading.main_thread():
      yield lambda step: False  # Python hands signals to the main thread only
      return
    before: Any = signal.signal(signal.SIGTERM, self._ask)
    try:
      yield lambda step: self._asked
    finally:
      signal.signal(signal.SIGTERM, before)
    if self._asked:
      os.kill(os.getpid(), signal.SIGTERM)

  def _ask(self, number: int, frame: FrameType | None) -> None:
    self._asked = True


class Watchdog:
  """Ends the process where a step takes far too long: a peer may live and not move.

  JAX's heartbeat sees dead processes only. A thread counts seconds since the last
  `beat`; after `seconds`, or ten times the median step if that is longer, it prints the
  stacks of all threads and leaves with code 75, for a launcher to start all again. It
  counts its own ticks: a process that was stopped, or a machine that slept, was not
  waiting.

  Args:
    seconds: the least that is waited; 0: there is no watchdog.
    leave: what is called in the end.
  """

  def __init__(
    self, seconds: float, *, leave: Callable[[int], Any] = os._exit, tick: float = _TICK
  ) -> None:
    self._seconds, self._leave, self._tick = seconds, leave, tick
    self._steps: deque[float] = deque(maxlen=_RECENT)
    self._last: float | None = None
    self._silent, self._paused = 0.0, True  # until there was a step
    self._met: set[tuple[tuple[int, ...], ...]] = set()
    self._over = threading.Event()

  @contextlib.contextmanager
  def watching(self) -> Iterator[Watchdog]:
    """Watches while the block runs."""
    if self._seconds > 0:
      threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
    try:
      yield self
    finally:
      self._over.set()

  def beat(self) -> None:
    """A step is done. The first is not timed: it was compiled."""
    now = time.monotonic()
    if self._last is not None:
      self._steps.append(now - self._last)
    self._last, self._silent, self._paused = now, 0.0, False

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """For what takes its time between two steps: evaluations and saves."""
    before, self._paused = self._paused, True
    try:
      yield
    finally:
      self._silent, self._paused = 0.0, before
      if self._last is not None:
        self._last = time.monotonic()

  @contextlib.contextmanager
  def compiling(self, batch: Mapping[str, Any]) -> Iterator[None]:
    """For a step: of a size of batch that was not met before it is compiled first."""
    size = tuple(array.shape for array in batch.values())
    if size in self._met:
      yield
      return
    with self.paused():
      yield
    self._met.add(size)

  def limit(self) -> float:
    """Seconds that a step may take."""
    median = statistics.median(self._steps) if self._steps else 0.0
    return max(self._seconds, _TIMES * median)

  def _watch(self) -> None:
    while not self._over.wait(self._tick):
      self._silent = 0.0 if self._paused else self._silent + self._tick
      if self._silent > self.limit():
        other = " another process may hang." if jax.process_count() > 1 else ""
        sys.stderr.write(
          f"imax_jax: process {jax.process_index()}: no step for {self._silent:.0f} s, "
          f"expected one within {self.limit():.0f};{other} Leaving "
          f"with code {EXIT_AGAIN}: the same command goes on from the last checkpoint\n"
        )
        faulthandler.dump_traceback(file=sys.stderr)
        sys.stderr.flush()
        self._leave(EXIT_AGAIN)
        return
