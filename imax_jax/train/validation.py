"""Which patients are held out of training, what the loss on them is, and when to stop."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import cast

import jax
import numpy as np
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec

from imax_jax import mesh as mesh_lib
from imax_jax.data.pipeline import EntryBatches

BEST = "best"  # the name that the best weights are kept under
_ROOM = "validation"  # before each name in the lines of metrics


def held_out(patients: Sequence[str], fraction: float) -> set[int]:
  """Places of the images that are not trained on: all of about so many patients.

  A patient's id alone decides, so that IMAX and DMAX hold out the same people.

  Raises:
    ValueError: a fraction outside [0, 1), or one that holds out nobody or all of them.
  """
  if not 0 <= fraction < 1:
    raise ValueError(f"validation.fraction {fraction}: expected 0 (none) to below 1")
  if not fraction:
    return set()
  held = {
    place
    for place, patient in enumerate(patients)
    if int.from_bytes(hashlib.sha256(patient.encode()).digest()[:8]) < fraction * 2**64
  }
  if len(held) in (0, len(patients)):
    raise ValueError(
      f"validation.fraction {fraction} holds out {len(held)} of {len(patients)} images; "
      "choose another, or more data"
    )
  return held


def evaluator(
  row_loss: Callable[..., tuple[Any, Any]],
  frozen: Any,
  batches: EntryBatches,
  mesh: Mesh,
) -> Callable[[Any], dict[str, float]]:
  """trainable -> {"loss": as training weighs it, "loss_rec": …, of each task}."""
  whole = NamedSharding(mesh, PartitionSpec())
  apply = jax.jit(row_loss, out_shardings=whole)  # all processes see all rows

  def evaluate(trainable: Any) -> dict[str, float]:
    sums: dict[str, np.ndarray] = {}
    for group in range(len(batches)):
      batch = mesh_lib.put_batch(cast(Mapping[str, np.ndarray], batches[group]), mesh)
      rows = np.stack(jax.device_get(apply(trainable, frozen, batch)), axis=1)
      for entry, values in zip(batches.entries(group), rows, strict=False):
        for name in ("loss", f"loss_{entry.task}"):
          sums[name] = sums.get(name, 0) + values.astype(np.float64)
    return {name: float(total / weight) for name, (total, weight) in sums.items()}

  return evaluate


class Best:
  """The least value so far of a metric, and whether it is long ago.

  Args:
    metric: "loss", or "loss_" and a task.
    patience: evaluations without a better one after which the run is over; 0: never.
    past: the lines of the run so far, on a resume: they hold all that is remembered.
  """

  def __init__(
    self, metric: str, patience: int, past: Iterable[Mapping[str, float]] = ()
  ) -> None:
    self._name, self._patience = f"{_ROOM}/{metric}", patience
    self._least, self._since, self._last = float("inf"), 0, float("nan")
    for line in past:
      self.look(line)

  def look(self, line: Mapping[str, float]) -> bool:
    """Whether this line of metrics has the best value so far."""
    if not any(name.startswith(_ROOM) for name in line):
      return False
    if self._name not in line:
      there = sorted(
        name.removeprefix(f"{_ROOM}/") for name in line if name.startswith(_ROOM)
      )
      raise ValueError(
        f"validation.metric {self._name.removeprefix(f'{_ROOM}/')!r}: there are "
        f"{', '.join(there)}"
      )
    self._last = line[self._name]
    better = self._last < self._least
    self._least = min(self._least, self._last)
    self._since = 0 if better else self._since + 1
    return better

  @property
  def over(self) -> bool:
    return 0 < self._patience <= self._since

  @property
  def words(self) -> str:
    """The last value beside the least, for a person."""
    if not self._since:
      return f"{self._name} {self._last:.4g}, the least so far"
    return f"{self._name} {self._last:.4g}; the least is {self._least:.4g}, {self._since} times ago"
