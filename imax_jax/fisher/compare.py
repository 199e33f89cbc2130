"""What differs between two runs' spectra, and whether chance would do as much.

Each value (a spectral entropy, a dominant ratio) is of one group of entries. Exchanged are
whole groups: under the hypothesis that both runs' values come from one distribution, which
run a group is of is a coin's toss. A seed's groups are exchanged and drawn among
themselves. Neither test nor interval knows how another training would have come out: with
one seed they say whether the groups differ, not whether the way of annotating does.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

from imax_jax.fisher import tasks

INDICATORS = ("entropy", "dominant")
_DRAWS = 10_000
_COVERED = 95.0


def changes(
  rows: Sequence[Mapping[str, Any]], new: str = "imax", base: str = "dmax"
) -> list[dict[str, Any]]:
  """The relative change of each indicator from `base` to `new`, in percent.

  Args:
    rows: of several runs, what `measure` returned with "run", "seed", "phase" and
      "answers" (where the answers are from: "data" or "model"), and with "folder" where
      they are of several work directories: seeds of one number are then not one seed.

  Returns:
    {"kind", "answers", "phase", "indicator", "change", "interval": [low, high], "p",
    "seeds"} of each where both runs were measured: the change of the mean, what 95 of 100
    bootstrap samples of the groups lie between, the two-sided p of the permutation test,
    at least 1 / 10,001, and each seed's own change.
  """
  cases = dict.fromkeys(
    (str(r["kind"]), str(r["answers"]), str(r["phase"])) for r in rows
  )
  found = []
  for kind, answers, phase in cases:
    chosen = [
      row for row in rows
      if (row["kind"], row["answers"], row["phase"]) == (kind, answers, phase)
    ]  # fmt: skip
    for indicator in INDICATORS:
      pairs = _pairs(chosen, indicator, new, base)
      if pairs:
        found.append(
          {"kind": kind, "answers": answers, "phase": phase, "indicator": indicator}
          | change(pairs)
        )
  return found


def meetings(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
  """{phase: {run: `tasks.pooled` of its seeds}} of the exact spectra of the data's answers.

  Without those that `lack_sums`.
  """
  found: dict[str, dict[str, list[Any]]] = {}
  for row in rows:
    if row.get("tasks") and row["answers"] == "data" and not lack_sums(row):
      found.setdefault(row["phase"], {}).setdefault(row["run"], []).append(row["tasks"])
  return {
    phase: {run: tasks.pooled(seeds) for run, seeds in of.items()}
    for phase, of in found.items()
  }


def lack_sums(row: Mapping[str, Any]) -> bool:
  """Whether an earlier version wrote a spectrum's tasks: ratios, which do not add up."""
  return bool(row.get("tasks")) and "sums" not in row["tasks"]


def _pairs(
  rows: Sequence[Mapping[str, Any]], indicator: str, new: str, base: str
) -> list[tuple[np.ndarray, np.ndarray]]:
  """(values of `new`, of `base`) of each folder's seed that has both."""
  of = {
    (row["run"], (row.get("folder"), row.get("seed"))): np.asarray(
      row[indicator], float
    )
    for row in rows
    if row["run"] in (new, base)
  }
  seeds = dict.fromkeys(seed for _, seed in of)
  return [
    (of[new, seed], of[base, seed])
    for seed in seeds
    if (new, seed) in of and (base, seed) in of
  ]


def change(
  pairs: Sequence[tuple[np.ndarray, np.ndarray]], seed: int = 0
) -> dict[str, Any]:
  """What `changes` says of each seed's (new, base) values."""
  rng = np.random.default_rng(seed)
  new = np.concatenate([values for values, _ in pairs])
  base = np.concatenate([values for _, values in pairs])
  exchanged = [_exchanged(rng, *pair) for pair in pairs]
  drawn = [[_drawn(rng, values) for values in pair] for pair in pairs]
  differences = _ratio(*_means(exchanged, len(new), len(base)))
  low, high = np.percentile(
    _ratio(*_means(drawn, len(new), len(base))), (50 - _COVERED / 2, 50 + _COVERED / 2)
  )
  observed = float(_ratio(new.mean(), base.mean()))
  # The arrangement that was observed is one of those that could have been.
  apart = np.abs(np.log1p(differences / 100))
  extreme = (apart >= abs(np.log1p(observed / 100)) * (1 - 1e-12)).sum()
  return {
    "change": observed,
    "interval": [float(low), float(high)],
    "p": float((1 + extreme) / (1 + _DRAWS)),
    "seeds": [float(_ratio(new.mean(), base.mean())) for new, base in pairs],
  }


def _exchanged(rng: Any, new: np.ndarray, base: np.ndarray) -> list[np.ndarray]:
  """Sums over both parts of [draws] random divisions of all values."""
  values = np.concatenate([new, base])
  shuffled = rng.permuted(np.broadcast_to(values, (_DRAWS, len(values))), axis=1)
  return [shuffled[:, : len(new)].sum(axis=1), shuffled[:, len(new) :].sum(axis=1)]


def _drawn(rng: Any, values: np.ndarray) -> np.ndarray:
  return values[rng.integers(len(values), size=(_DRAWS, len(values)))].sum(axis=1)


def _means(sums: Sequence[Sequence[np.ndarray]], *counts: int) -> list[np.ndarray]:
  return [
    np.sum([of_seed[part] for of_seed in sums], axis=0) / count
    for part, count in enumerate(counts)
  ]


def _ratio(new: Any, base: Any) -> Any:
  return 100 * (new / base - 1)
