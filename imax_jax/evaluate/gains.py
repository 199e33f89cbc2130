"""The paper's average gain Δ (Eq. 1) and its spread over seeds."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

from imax_jax.evaluate.metrics import STRICT
from imax_jax.evaluate.metrics import Metric

Scores = Mapping[str, float | None]


@dataclasses.dataclass(frozen=True, slots=True)
class Gain:
  """Δ of one run over another. Percentages are relative to the base run."""

  mean_percent: float | None  # None where no metric could be compared
  improved: int
  total: int  # how many metrics were compared
  per_metric: dict[str, float]  # positive is better, whichever way the metric points
  excluded: dict[str, str]  # metric -> why it was not compared


def gain(new: Scores, base: Scores, metrics: Sequence[Metric] = STRICT) -> Gain:
  """Eq. 1: the mean over metrics of (new - base) / base × 100 %.

  The sign of the four error metrics is turned, so that a fall counts as a gain; with
  that the paper's own Table 2 gives 29.09 % and 16.26 %, its 29.07 and 16.25 but for the
  rounding of its entries. A metric that either run lacks, or whose base is 0 (which has
  no relative gain), is left out of the mean and named in `excluded`.
  """
  per_metric: dict[str, float] = {}
  excluded: dict[str, str] = {}
  for metric in metrics:
    after, before = new.get(metric.name), base.get(metric.name)
    if after is None or before is None:
      excluded[metric.name] = "not measured in both runs"
    elif not (math.isfinite(after) and math.isfinite(before)):
      excluded[metric.name] = "not finite"
    elif before == 0:
      excluded[metric.name] = "the base run scores 0"
    else:
      change = (after - before) / before * 100.0
      per_metric[metric.name] = -change if metric.lower_is_better else change
  values = list(per_metric.values())
  return Gain(
    mean_percent=statistics.fmean(values) if values else None,
    improved=sum(value > 0 for value in values),
    total=len(values),
    per_metric=per_metric,
    excluded=excluded,
  )


def relative(
  new: np.ndarray, base: np.ndarray, metrics: Sequence[Metric] = STRICT
) -> np.ndarray:
  """Eq. 1's terms in %, float64[..., metrics] of scores of that shape; positive is better.

  NaN where `gain` would leave the metric out.
  """
  signs = np.array([-1.0 if metric.lower_is_better else 1.0 for metric in metrics])
  known = np.isfinite(new) & np.isfinite(base) & (base != 0)
  change = (new - base) / np.where(known, base, 1.0) * 100.0
  return np.where(known, signs * change, np.nan)


def between_seeds(
  per_seed: Sequence[Scores], metrics: Sequence[Metric] = STRICT
) -> float:
  """How far two seeds of one run are apart: the mean |Δ| of each over each other, in %.

  Raises:
    ValueError: fewer than two seeds, or no metric that they share.
  """
  found = [
    abs(value)
    for i, new in enumerate(per_seed)
    for j, base in enumerate(per_seed)
    if i != j and (value := gain(new, base, metrics).mean_percent) is not None
  ]
  return spread(found)[0]


def spread(values: Sequence[float]) -> tuple[float, float | None]:
  """(mean, sample standard deviation); the second is None for a single value.

  Raises:
    ValueError: no value.
  """
  if not values:
    raise ValueError("spread: expected at least one value, got none")
  deviation = statistics.stdev(values) if len(values) > 1 else None
  return statistics.fmean(values), deviation


def mean_scores(
  per_seed: Sequence[Scores], metrics: Sequence[Metric] = STRICT
) -> tuple[dict[str, float], dict[str, float | None]]:
  """({metric: mean}, {metric: sample std or None}) over the seeds that measured it."""
  means, deviations = {}, {}
  for metric in metrics:
    values = [v for scores in per_seed if (v := scores.get(metric.name)) is not None]
    if values:
      means[metric.name], deviations[metric.name] = spread(values)
  return means, deviations


def paired_gains(
  new: Sequence[Scores], base: Sequence[Scores], metrics: Sequence[Metric] = STRICT
) -> dict[str, Any]:
  """One run's gain over another, seed by seed, as `results.json` holds it.

  {"mean", "std", "per_seed", "median", "improved", "total", "per_metric", "excluded"},
  all over the metrics that can be compared in every seed, so that seeds are alike: the
  mean and the sample standard deviation of the seeds' own gains; "median" of the metrics'
  gains averaged over seeds (a metric whose base is nearly 0 can carry the mean, but not
  the median), and "improved" of "total" counts those above 0. A number that does not
  exist is None, never NaN or infinite.

  Raises:
    ValueError: the runs have different numbers of seeds.
  """
  if len(new) != len(base):
    raise ValueError(
      f"paired gains: expected the same seeds in both runs, got {len(new)} and "
      f"{len(base)}; train the missing seeds or leave the pair out"
    )
  excluded: dict[str, str] = {}
  for a, b in zip(new, base, strict=True):
    excluded |= gain(a, b, metrics).excluded
  shared = [metric for metric in metrics if metric.name not in excluded]
  gains = [gain(a, b, shared) for a, b in zip(new, base, strict=True)]
  per_seed = [g.mean_percent for g in gains]
  known = [value for value in per_seed if value is not None]
  mean, deviation = spread(known) if known else (None, None)
  per_metric, _ = mean_scores([g.per_metric for g in gains], metrics)
  return {
    "mean": mean,
    "std": deviation,
    "per_seed": per_seed,
    "median": statistics.median(per_metric.values()) if per_metric else None,
    "improved": sum(value > 0 for value in per_metric.values()),
    "total": len(per_metric),
    "per_metric": per_metric,
    "excluded": excluded,
  }
