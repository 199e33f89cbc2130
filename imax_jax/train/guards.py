"""What is looked at after each step, and what ends a run that has gone wrong."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence

from absl import logging

_WINDOW, _ENOUGH = 200, 50  # losses that a new one is compared with; fewer say nothing
_FAR = 5.0  # median absolute deviations
_SHOWN = 8  # names of a batch that an error lists

Names = Callable[[int], Sequence[str]]


class Guard:
  """Looks at a step's numbers: `look` says what is to be written of them.

  Args:
    names: batch -> the ids of its entries, for the messages: names of files and tasks,
      no words of a report.
    past: the lines of the run so far, on a resume; what they say is remembered.
    max_skipped: how many steps may be skipped in a run for a loss or a gradient that is
      not finite; 0 ends the run at the first. The step itself never takes such a
      gradient: weights and moments stay, and the schedule with them.
  """

  def __init__(
    self,
    names: Names,
    past: Iterable[Mapping[str, float]] = (),
    *,
    max_skipped: int = 0,
  ) -> None:
    self._names, self._max_skipped = names, max_skipped
    self._losses: deque[float] = deque(maxlen=_WINDOW)
    self._skipped = 0
    for line in past:
      self._skipped += "skipped" in line
      if "loss" in line:
        self._losses.append(line["loss"])

  def look(self, step: int, values: Mapping[str, float]) -> dict[str, float]:
    """The line to write of a step: its numbers, or that it was skipped.

    A loss further from the median of the last 200 than 5 median absolute deviations is
    an event: "spike" is added, how many of them it is off.

    Args:
      step: updates done with this one; its batch is number step - 1.
      values: "loss", "grad_norm", "tokens" and others.

    Raises:
      FloatingPointError: not finite, once more than may be skipped.
      ValueError: the batch had no supervised token.
    """
    if not values["tokens"]:
      raise ValueError(
        f"step {step}: none of the batch's tokens is trained on ({self._batch(step)}); "
        "build the data again"
      )
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    if bad:
      bad.sort(key="loss".__ne__)  # what came first of all
      self._skipped += 1
      words = f"step {step}: {bad[0]} is {values[bad[0]]} ({self._batch(step)})"
      if self._skipped > self._max_skipped:
        raise FloatingPointError(
          f"{words}; lower the learning rate, look at these entries, or let "
          "--config.train.max_skipped steps be skipped"
        )
      logging.warning("%s: skipped, %d so far", words, self._skipped)
      kept = {name: value for name, value in values.items() if name not in bad}
      return {**kept, "skipped": 1.0}
    line = dict(values)
    spike = self._spike(values["loss"])
    if spike is not None:
      line["spike"] = spike
      logging.warning(
        "step %d: loss %.4g is %.1f deviations above the median (%s)",
        step, values["loss"], spike, self._batch(step),
      )  # fmt: skip
    self._losses.append(values["loss"])
    return line

  def _spike(self, loss: float) -> float | None:
    if len(self._losses) < _ENOUGH:
      return None
    middle = statistics.median(self._losses)
    spread = statistics.median(abs(past - middle) for past in self._losses)
    if loss <= middle + _FAR * spread:
      return None
    return (loss - middle) / spread if spread else _FAR

  def _batch(self, step: int) -> str:
    names = self._names(step - 1)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"its {len(names)} entries: {', '.join(names[:_SHOWN])}{more}"
