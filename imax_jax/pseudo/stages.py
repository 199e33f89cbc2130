"""The three-stage strategy for DMAX (paper 4.2.2 and Figure 4), as data.

foundation ─primary─▶ model ─label─▶ pseudo-IMAX
                        └──────pretrain──▶ model ─finetune─▶ model

primary    train on DMAX
label      the primary model infers the tasks that each DMAX image lacks; original
           entries and pseudo labels together are pseudo-IMAX
pretrain   train on pseudo-IMAX
finetune   train on DMAX again
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Literal

FOUNDATION = "foundation"
DMAX = "dmax_train"
PSEUDO_IMAX = "pseudo_imax"


@dataclasses.dataclass(frozen=True, slots=True)
class Stage:
  """`start` names the stage whose weights this one begins with, or `FOUNDATION`."""

  name: str
  action: Literal["train", "label"]
  data: str  # the dataset trained on, or whose missing tasks are labelled
  start: str


# The paper: "The model subsequently undergoes hybrid pretraining": the primary model
# goes on. `from_foundation` is the other reading, which forgets the primary weights.
STAGES: tuple[Stage, ...] = (
  Stage("primary", "train", DMAX, FOUNDATION),
  Stage("label", "label", DMAX, "primary"),
  Stage("pretrain", "train", PSEUDO_IMAX, "primary"),
  Stage("finetune", "train", DMAX, "pretrain"),
)


def from_foundation(stages: Sequence[Stage] = STAGES) -> tuple[Stage, ...]:
  """The same stages, but pre-training starts afresh from the foundation."""
  return tuple(
    dataclasses.replace(stage, start=FOUNDATION) if stage.name == "pretrain" else stage
    for stage in stages
  )


def lineage(stages: Sequence[Stage], name: str = "finetune") -> tuple[Stage, ...]:
  """The training stages whose steps are in the weights of stage `name`, in order.

  Raises:
    ValueError: a stage, or the start of one, that is not among the stages before it.
  """
  chain: list[Stage] = []
  end = len(stages)
  while name != FOUNDATION:
    found = [place for place in range(end) if stages[place].name == name]
    if not found:
      raise ValueError(
        f"pseudo: no stage {name!r} to start from; a stage starts from "
        f"{FOUNDATION!r} or an earlier one of {[stage.name for stage in stages]}"
      )
    end = found[0]
    if stages[end].action != "train":
      raise ValueError(f"pseudo: stage {name!r} trains nothing; start from another")
    chain.append(stages[end])
    name = stages[end].start
  return tuple(reversed(chain))


def num_steps(
  stages: Sequence[Stage],
  *,
  num_entries: Mapping[str, int],
  epochs: Mapping[str, float],
  entries_per_step: int,
) -> dict[str, int]:
  """{training stage: optimizer steps}: its epochs over its dataset, rounded up.

  Args:
    num_entries: {dataset: training entries}; every dataset that a stage trains on.
    epochs: {training stage: passes}; the paper trains 3 epochs and gives no number for
      the stages.

  Raises:
    ValueError: a dataset or stage without a number, or a stage without a step.
  """
  steps: dict[str, int] = {}
  for stage in stages:
    if stage.action != "train":
      continue
    if stage.data not in num_entries or stage.name not in epochs:
      raise ValueError(
        f"pseudo: stage {stage.name!r} needs its epochs and the size of {stage.data!r}; "
        f"got epochs of {sorted(epochs)} and sizes of {sorted(num_entries)}"
      )
    # 50 * 1.1 is 55.00000000000001: 55 steps, not 56.
    exact = num_entries[stage.data] * epochs[stage.name] / entries_per_step
    steps[stage.name] = math.ceil(exact - 1e-9)
    if steps[stage.name] < 1:
      raise ValueError(
        f"pseudo: stage {stage.name!r} has no step with {epochs[stage.name]} epochs of "
        f"{num_entries[stage.data]} entries; raise its epochs"
      )
  return steps


def control_steps(
  stages: Sequence[Stage], steps: Mapping[str, int], name: str = "finetune"
) -> int:
  """Steps for the control: DMAX alone, for as long as the compared weights trained.

  Without it a gain of the third stage may be no more than longer training.
  {"primary": 400, "pretrain": 400, "finetune": 200} -> 1000.
  """
  return sum(steps[stage.name] for stage in lineage(stages, name))
