"""Seeds of one study together: means, intervals over seeds and patients, paired tests.

Two things are left to chance, and each has its own words here:

    over seeds       another training run of the same recipe: Student's t over the seeds'
                     own values, and the test that flips their signs
    over patients    another test split, the trained models given: the test that exchanges
                     the two runs' answers patient by patient
    both             the two-level bootstrap: seeds are drawn, and for each the patients

A claim about how to train needs the first; the second is about the very models that were
trained. Where all seeds were asked about the same patients, one draw of patients serves
them all; where each has a test split of its own, each gets its own, and the spread over
seeds holds the patients' already: the two-level interval is then on the careful side. Of
two or three seeds the bootstrap knows little, and Student's interval is the wide one; an
effect is told from zero only where both exclude it (report/tables.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

from imax_jax.evaluate import gains
from imax_jax.evaluate import intervals
from imax_jax.evaluate.gains import Scores
from imax_jax.evaluate.intervals import Tally
from imax_jax.evaluate.metrics import STRICT
from imax_jax.evaluate.metrics import Metric


@dataclasses.dataclass(frozen=True, slots=True)
class Measured:
  """What one run of one seed scored, and its sums by patient."""

  scores: Scores
  tally: Tally


Seed = Mapping[str, Measured]  # run -> what it measured


def pool(
  seeds: Sequence[Seed],
  pairs: Mapping[str, tuple[str, str]],
  *,
  blind: Sequence[str] = (),
  metrics: Sequence[Metric] = STRICT,
  num_draws: int = intervals.DRAWS,
) -> dict[str, Any]:
  """Everything that a row of tables is made of, JSON-able.

  Args:
    seeds: runs of one seed answered the same test split; a run may be absent.
    pairs: {name: (new, base)}; a pair that no seed has is absent from the result.
    blind: runs that look at no image: what the others are set beside.

  Returns:
    {"tables": {run: {metric: mean}}, "spread": {run: {metric: std or None}},
     "per_seed": {run: [scores]}, "intervals": {run: {metric: [low, high]}},
     "no_interval": {run: {metric: why}}, "ahead": {run: {metric: whether it is told from
     every blind run}}, "noise": {run: how far two seeds of it are apart, in % of Eq. 1},
     "gains": {pair: see `paired`}}

  Raises:
    ValueError: runs of a seed that answered other entries or by other metrics.
  """
  for seed in seeds:
    check_seed(seed)
  names = list(dict.fromkeys(run for seed in seeds for run in seed))
  made: dict[str, dict[str, Any]] = {
    key: {}
    for key in ("tables", "spread", "per_seed", "intervals", "no_interval", "ahead")
  }
  noise = {}
  for run in names:
    having = [seed for seed in seeds if run in seed]
    per_seed = [dict(seed[run].scores) for seed in having]
    made["per_seed"][run] = per_seed
    made["tables"][run], made["spread"][run] = gains.mean_scores(per_seed, metrics)
    drawn = _draw(
      having, [run, *(b for b in blind if b in having[0])], num_draws, metrics
    )
    few = {
      name: why for seed in having for name, why in seed[run].tally.too_few().items()
    }
    made["intervals"][run] = _intervals(drawn[run], metrics, few)
    made["no_interval"][run] = few
    if run not in blind:
      made["ahead"][run] = _ahead(drawn, run, metrics, few)
      if len(per_seed) > 1:
        noise[run] = gains.between_seeds(per_seed, metrics)
  compared = {}
  for name, (new, base) in pairs.items():
    both = [seed for seed in seeds if new in seed and base in seed]
    if both:
      compared[name] = paired(both, new, base, metrics=metrics, num_draws=num_draws)
  return made | {"noise": noise, "gains": compared}


def check_seed(seed: Seed) -> None:
  """Raises a ValueError unless all runs of a seed were asked and scored alike."""
  (like, first), *others = seed.items()
  for run, measured in others:
    intervals.check_pair(measured.tally, first.tally, (run, like))


def paired(
  seeds: Sequence[Seed],
  new: str,
  base: str,
  *,
  metrics: Sequence[Metric] = STRICT,
  num_draws: int = intervals.DRAWS,
) -> dict[str, Any]:
  """One run against another over paired seeds.

  Returns:
    `gains.paired_gains`, and of Δ: "interval" (two-level bootstrap; for one seed its
    patients alone), "over_seeds" (Student's t, None for one seed), "p_seeds" (flipped
    signs, None for one seed), "p_patients" (exchanged answers); "tests": {metric: {"gain"
    in %, "gain_interval", "difference" new - base, its "interval", "p" of exchanged
    answers, "p_holm" over the metrics}}; "dropped": {metric: share of the draws in which its base
    was 0 or unanswered, and Δ is that of the others}; "draws": how many there are.

  Raises:
    ValueError: the runs answered other entries or were scored by other metrics.
  """
  for seed in seeds:
    check_seed({new: seed[new], base: seed[base]})
  found = gains.paired_gains(
    [seed[new].scores for seed in seeds], [seed[base].scores for seed in seeds], metrics
  )
  shared = [metric for metric in metrics if metric.name in found["per_metric"]]
  if not shared:
    return found | {
      "interval": None, "over_seeds": None, "p_seeds": None, "p_patients": None,
      "tests": {}, "dropped": {}, "draws": 0,
    }  # fmt: skip
  drawn = _draw(seeds, [new, base], num_draws, shared)
  terms = gains.relative(drawn[new], drawn[base], shared)  # [draws, seeds, metrics]
  lost = np.isnan(terms).mean(axis=(0, 1))
  per_seed = found["per_seed"]
  chance, differences = _exchanged(seeds, new, base, num_draws, shared)
  return found | {
    "draws": num_draws,
    "interval": intervals.percentiles(_mean(_mean(terms, 2), 1)),
    "over_seeds": intervals.student(per_seed),
    "p_seeds": intervals.p_of_signs(per_seed),
    "p_patients": intervals.p_value(found["mean"], chance),
    "tests": _tests(seeds, (new, base), found, drawn, differences, shared),
    "dropped": {
      metric.name: float(share)
      for metric, share in zip(shared, lost, strict=True)
      if share
    },
  }


def _tests(
  seeds: Sequence[Seed],
  pair: tuple[str, str],
  found: Mapping[str, Any],
  drawn: Mapping[str, np.ndarray],
  differences: np.ndarray,
  metrics: Sequence[Metric],
) -> dict[str, dict[str, Any]]:
  new, base = pair
  over_draws = _mean(drawn[new] - drawn[base], 1)
  terms = _mean(gains.relative(drawn[new], drawn[base], metrics), 1)
  few = {name: why for seed in seeds for name, why in seed[new].tally.too_few().items()}
  tests: dict[str, dict[str, Any]] = {}
  for number, metric in enumerate(metrics):
    by_seed = [
      float(seed[new].scores[metric.name]) - float(seed[base].scores[metric.name])  # type: ignore[arg-type]
      for seed in seeds
    ]
    difference = float(np.mean(by_seed))
    tests[metric.name] = {
      "gain": found["per_metric"][metric.name],
      "gain_interval": None,
      "difference": difference,
      "interval": None,
      "p": intervals.p_value(difference, differences[:, number]),
    }
    if metric.name not in few:
      tests[metric.name] |= {
        "gain_interval": intervals.percentiles(terms[:, number]),
        "interval": intervals.percentiles(over_draws[:, number]),
      }
  adjusted = intervals.holm({name: test["p"] for name, test in tests.items()})
  return {name: test | {"p_holm": adjusted[name]} for name, test in tests.items()}


# ── Draws ─────────────────────────────────────────────────────────────────────────


def _same_patients(tallies: Sequence[Tally]) -> bool:
  return len({(made.patients, made.asked) for made in tallies}) == 1


def _draw(
  seeds: Sequence[Seed],
  names: Sequence[str],
  num_draws: int,
  metrics: Sequence[Metric],
) -> dict[str, np.ndarray]:
  """{run: float64[draws, seeds, metrics]}: scores of drawn seeds on drawn patients.

  The same seeds and patients in a draw of every run, so that differences are paired.
  """
  count = len(seeds)
  picks = np.random.default_rng([1, count]).integers(0, count, (num_draws, count))
  shared = _same_patients([seed[names[0]].tally for seed in seeds])
  drawn = {run: np.full((num_draws, count, len(metrics)), np.nan) for run in names}
  size = len(seeds[0][names[0]].tally.patients)
  common = intervals.weights(size, num_draws, [0, 0]) if shared else None
  for number, seed in enumerate(seeds):
    tallies = {run: seed[run].tally for run in names}
    size = len(tallies[names[0]].patients)
    for slot in range(count):
      rows = np.flatnonzero(picks[:, slot] == number)
      if common is not None:
        patients = common[rows]
      else:
        patients = intervals.weights(size, len(rows), [1, number, slot])
      for run, made in tallies.items():
        sums = patients @ made.matrix
        drawn[run][rows, slot] = intervals.scores(sums, made, metrics)
  return drawn


def _exchanged(
  seeds: Sequence[Seed],
  new: str,
  base: str,
  num_draws: int,
  metrics: Sequence[Metric],
) -> tuple[np.ndarray, np.ndarray]:
  """(Δ [draws], differences [draws, metrics]) of exchanged answers, means over seeds."""
  shared = _same_patients([seed[new].tally for seed in seeds])
  means, differences = [], []
  for number, seed in enumerate(seeds):
    made = seed[new].tally
    # A patient that all seeds were asked about is exchanged in all of them or in none.
    turned = intervals.swapped(
      made, seed[base].tally, num_draws, [2, 0 if shared else number]
    )
    after, before = (intervals.scores(sums, made, metrics) for sums in turned)
    means.append(_mean(gains.relative(after, before, metrics), 1))
    differences.append(after - before)
  return _mean(np.stack(means), 0), _mean(np.stack(differences), 0)


def _mean(values: np.ndarray, axis: int) -> np.ndarray:
  """The mean of what is not NaN; NaN where nothing is."""
  known = ~np.isnan(values)
  total, count = np.where(known, values, 0.0).sum(axis), known.sum(axis)
  return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _intervals(
  drawn: np.ndarray, metrics: Sequence[Metric], few: Mapping[str, str]
) -> dict[str, intervals.Interval]:
  means = _mean(drawn, 1)
  found = {m.name: intervals.percentiles(means[:, i]) for i, m in enumerate(metrics)}
  return {name: i for name, i in found.items() if i is not None and name not in few}


def _ahead(
  drawn: Mapping[str, np.ndarray],
  run: str,
  metrics: Sequence[Metric],
  few: Mapping[str, str],
) -> dict[str, bool]:
  """Whether the run's lead over every other in `drawn` excludes 0, by metric."""
  ahead: dict[str, bool] = {}
  for other in drawn.keys() - {run}:
    lead = _mean(drawn[run] - drawn[other], 1)
    for number, metric in enumerate(metrics):
      limits = intervals.percentiles(lead[:, number])
      if limits is None or metric.name in few:
        continue
      told = limits[1] < 0 if metric.lower_is_better else limits[0] > 0
      ahead[metric.name] = ahead.get(metric.name, True) and told
  return ahead
