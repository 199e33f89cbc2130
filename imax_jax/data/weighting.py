"""What an entry's tokens weigh in the loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from collections.abc import Mapping
from typing import Literal

from imax_jax.data.records import TokenizedEntry

Weighting = Literal["token", "entry"]
# What each supervised token of an entry weighs.
WeightOf = Callable[[TokenizedEntry], float]


def weigh(
  weighting: Weighting = "token", task_weights: Mapping[str, float] | None = None
) -> WeightOf:
  """What a token weighs: 1, or 1 / (its entry's supervised ones), times its task's weight.

  Boxes and bit strings hold most answer tokens, and yes or no under 2 %: "entry" makes a
  yes weigh as much as a report.

  Raises:
    ValueError: an unknown weighting, or a task's weight of 0 or less.
  """
  if weighting not in ("token", "entry"):
    raise ValueError(f"weighting {weighting!r}: expected 'token' or 'entry'")
  weights = {task: value for task, value in (task_weights or {}).items() if value != 1}
  if any(not 0 < value < math.inf for value in weights.values()):
    raise ValueError(
      f"task_weights {weights}: expected more than 0; a task that shall not be trained on "
      "is left out when the data are built"
    )

  def weight_of(entry: TokenizedEntry) -> float:
    weight = 1.0 if weighting == "token" else 1.0 / entry.supervised
    return weight * weights.get(entry.entry.task, 1.0) if weights else weight

  return weight_of


EACH_ONE = weigh()
