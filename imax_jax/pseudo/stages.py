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
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import Literal

FOUNDATION = "foundation"
DMAX = "dmax_train"
PSEUDO_IMAX = "pseudo_imax"
KEPT = "kept.npy"  # in a row's station of kept labels: bool of each line


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


def reading(pretrain_from: str) -> tuple[Stage, ...]:
  """The stages as the config's `pseudo.pretrain_from` has it: "primary", "foundation"."""
  readings = {FOUNDATION: from_foundation(), "primary": STAGES}
  if pretrain_from not in readings:
    raise ValueError(
      f"pseudo.pretrain_from {pretrain_from!r}: expected one of {list(readings)}"
    )
  return readings[pretrain_from]


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


def control_steps(
  stages: Sequence[Stage], steps: Mapping[str, int], name: str = "finetune"
) -> int:
  """Steps for the control: DMAX alone, for as long as the compared weights trained.

  Without it a gain of the third stage may be no more than longer training.
  {"primary": 400, "pretrain": 400, "finetune": 200} -> 1000.
  """
  return sum(steps[stage.name] for stage in lineage(stages, name))


# ── Names ─────────────────────────────────────────────────────────────────────────


def rows(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
  """The strategy's rows of Table 2 that are asked for, and each one's filters.

  The second and later ones are ablations: the same labels, otherwise filtered.

    {"filters": {"confidence": 0.0, …}, "ablations": ["balance"],
     "named_filters": {"balance": {"balance": 1.5}, …}, …}
      -> {"pseudo": {"confidence": 0.0, …}, "pseudo_balance": {"balance": 1.5, …}}

  Raises:
    ValueError: an ablation without a name among `named_filters`.
  """
  unknown = sorted(set(config["ablations"]) - config["named_filters"].keys())
  if unknown:
    raise ValueError(
      f"pseudo.ablations: {unknown[0]!r} is none of pseudo.named_filters, "
      f"{list(config['named_filters'])}"
    )
  named = ("pseudo", *(f"pseudo_{name}" for name in config["ablations"]))
  return {row: chosen for row, chosen in possible_rows(config).items() if row in named}


def possible_rows(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
  """The same of all that have a name, in their order, asked for or not."""
  more = config["named_filters"].items()
  return {"pseudo": dict(config["filters"])} | {
    f"pseudo_{name}": config["filters"] | chosen for name, chosen in more
  }


def pretraining_of(row: str) -> str:
  """The run of a row's second training: "pseudo_balance" -> "pseudo_pretrain_balance"."""
  return f"pseudo_pretrain{row.removeprefix('pseudo')}"


def labels_station(seed: int | str) -> str:
  """Where the labels of a seed are made, once for all rows."""
  return f"pseudo/labels-s{seed}"


def kept_station(row: str, seed: int | str) -> str:
  """Where a row's filters say which of them to keep: "pseudo/kept_balance-s0"."""
  return f"pseudo/kept{row.removeprefix('pseudo')}-s{seed}"
