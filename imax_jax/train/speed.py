"""How fast a run is, and what share of its devices' peak that is.

Model FLOPs of a step with a frozen base: 4 for each value of the decoder's layers and
token (forward, and the gradient of the inputs; a frozen kernel has no gradient of its
own), 4 for each value of the head and supervised token. Not in it: attention, LoRA,
connector, encoder (some 5 % of a 7B model), and what remat computes again. Padding is no
token. 6·P·T, the formula of full fine-tuning, would overstate it by half.
"""

from __future__ import annotations

import resource
import time
from collections import deque
from collections.abc import Callable
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from imax_jax.data.packing import Load

_WINDOW = 20  # steps that the figures are of


class Speed:
  """Figures of the last steps: call it with each step's number when it is done.

  Args:
    load: batch -> what it holds, over all processes.
    layers, head: values of the decoder's layers' kernels, and of its head's.
    peak: FLOP a second of all devices; 0 where nobody knows it.
  """

  def __init__(
    self, load: Callable[[int], Load], *, layers: int, head: int, peak: float = 0.0
  ) -> None:
    self._load, self._layers, self._head, self._peak = load, layers, head, peak
    # (when, what was done since the one before); the first was compiled.
    self._done: deque[tuple[float, Load]] = deque(maxlen=_WINDOW + 1)

  def __call__(self, step: int, now: float | None = None) -> dict[str, float]:
    """{} until two steps are done; else tokens and entries a second, and shares.

    Args:
      step: updates done; its batch is number step - 1.
      now: seconds of a clock.
    """
    now = time.monotonic() if now is None else now
    self._done.append((now, self._load(step - 1)))
    seconds = now - self._done[0][0]
    if len(self._done) < 2 or seconds <= 0:
      return {}
    loads = [load for _, load in self._done][1:]
    tokens, supervised, entries, places = (
      sum(load[field] for load in loads) for field in range(len(Load._fields))
    )
    figures = {
      "tokens_per_second": tokens / seconds,
      "entries_per_second": entries / seconds,
      "padding": 1 - tokens / places,
      "memory_gb": memory() / 1e9,
    }
    if self._peak:
      flops = 4 * (self._layers * tokens + self._head * supervised)
      figures["mfu"] = flops / seconds / self._peak
    return figures


class Tracer:
  """Traces updates `first` to `end`, the latter left out, into a folder; none if equal."""

  def __init__(self, folder: Path, first: int, end: int) -> None:
    self._folder, self._steps = folder, range(first, end)
    self._on = False

  def before(self, step: int) -> None:
    """Called before the update that follows `step` earlier ones."""
    if step in self._steps and not self._on:
      jax.profiler.start_trace(str(self._folder))
      self._on = True
    elif step not in self._steps:
      self.close()

  def close(self) -> None:
    if self._on:
      jax.profiler.stop_trace()
      self._on = False


def memory() -> float:
  """Bytes: the most that a device of this process has held, or the process on a CPU."""
  found = [device.memory_stats() or {} for device in jax.local_devices()]
  most = max((stats.get("peak_bytes_in_use", 0) for stats in found), default=0)
  return most or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def words(loss: float, figures: Mapping[str, Any]) -> str:
  """What stands behind the progress bar.

  >>> words(0.712, {"tokens_per_second": 1234.5, "entries_per_second": 8.6,
  ...   "padding": 0.231, "memory_gb": 3.16, "mfu": 0.412})
  'loss 0.712, 1,234 tokens/s, 8.6 entries/s, padding 23 %, MFU 41 %, 3.2 GB'
  """
  parts = [f"loss {loss:.3g}"]
  if figures:
    parts += [
      f"{figures['tokens_per_second']:,.0f} tokens/s",
      f"{figures['entries_per_second']:.3g} entries/s",
      f"padding {figures['padding']:.0%}".replace("%", " %"),
    ]
    if "mfu" in figures:
      parts.append(f"MFU {figures['mfu']:.0%}".replace("%", " %"))
    parts.append(f"{figures['memory_gb']:.1f} GB")
  return ", ".join(parts)
