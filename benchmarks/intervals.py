"""How often do intervals cover the truth, and what do they cost?

  python -m benchmarks.intervals [--trials 400] [--draws 1500]

First, samples of invented patients from a population whose values are known: the share of
95 % intervals that hold it, percentiles (what the package takes) beside BCa, for an
accuracy (1 to 4 answers a patient, which go together), an RMSE with heavy tails, the macro
F1 of ten findings, and Δ of two runs over the three. Then seconds: intervals of 16 metrics
and of a pair, over 10,000 answers of 900 patients. One process, on the CPU.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

import numpy as np

from imax_jax.evaluate import additive
from imax_jax.evaluate import intervals
from imax_jax.evaluate import pooling
from imax_jax.evaluate.metrics import STRICT

_PREVALENCE = np.array([0.64, 0.40, 0.17, 0.16, 0.25, 0.16, 0.13, 0.13, 0.13, 0.22])
_NAMES = ("accuracy", "RMSE", "macro F1", "Δ")
_NORMAL = statistics.NormalDist()


def people(rng: np.random.Generator, count: int) -> list[tuple[np.ndarray, ...]]:
  """Sums by patient of two runs, the second a little better: one array a metric."""
  asked = rng.integers(1, 5, count)
  skill, spread = rng.normal(0, 0.7, count), np.exp(rng.normal(0, 0.24, count))
  truth = rng.random((count, 10)) < _PREVALENCE
  sight = 0.7 * rng.normal(0, 1, (count, 10))
  runs = []
  for better in (0.0, 0.25):
    right = rng.binomial(asked, 1 / (1 + np.exp(-(0.4 + better + skill))))
    error = (0.08 - 0.01 * better) * spread * rng.standard_t(4, count)
    said = sight + 0.7 * rng.normal(0, 1, (count, 10)) + (2 + better) * truth > 1.3
    runs.append((
      np.stack([asked, right], 1).astype(float),
      np.stack([np.ones(count), error**2], 1),
      np.concatenate([truth & said, truth.astype(float) + said], 1),
    ))  # fmt: skip
  return runs


def values(weights: np.ndarray, runs: list[tuple[np.ndarray, ...]]) -> np.ndarray:
  """float64[draws, 4]: the second run's metrics, and Δ."""
  combine = (additive.mean, additive.root_mean, additive.macro_f1)
  base, new = (
    np.stack([f(weights @ part) for f, part in zip(combine, run, strict=True)], -1)
    for run in runs
  )
  terms = (new - base) / base * [100.0, -100.0, 100.0]
  return np.concatenate([new, terms.mean(-1, keepdims=True)], -1)


def corrected(drawn: np.ndarray, seen: np.ndarray, without: np.ndarray) -> np.ndarray:
  """BCa's [2, 4] limits: bias by the draws, acceleration by leaving each patient out."""
  limits = np.zeros((2, 4))
  away = without.mean(0) - without
  curve = (away**3).sum(0) / (6 * (away**2).sum(0) ** 1.5)
  for number in range(4):
    below = (drawn[:, number] < seen[number]).mean()
    bias = _NORMAL.inv_cdf(min(max(below, 1e-4), 1 - 1e-4))
    for end, z in enumerate((-1.959964, 1.959964)):
      moved = bias + (bias + z) / (1 - curve[number] * (bias + z))
      limits[end, number] = np.quantile(drawn[:, number], _NORMAL.cdf(moved))
  return limits


def coverage(trials: int, draws: int) -> None:
  rng = np.random.default_rng(0)
  everyone = people(rng, 1_000_000)
  truth = values(np.ones((1, 1_000_000)), everyone)[0]
  sys.stdout.write(f"95 % intervals that hold the truth, of {trials} samples, in %\n")
  sys.stdout.write(f"{'patients':>8} {'':>11}" + "".join(f"{n:>10}" for n in _NAMES))
  for count in (30, 75, 150, 500):
    held = np.zeros((2, 4))
    for trial in range(trials):
      runs = people(rng, count)
      drawn = values(intervals.weights(count, draws, trial), runs)
      seen = values(np.ones((1, count)), runs)[0]
      plain = np.array([intervals.percentiles(column) for column in drawn.T]).T
      bca = corrected(drawn, seen, values(1 - np.eye(count), runs))
      for row, (low, high) in enumerate((plain, bca)):
        held[row] += (low <= truth) & (truth <= high)
    for name, row in zip(("percentiles", "BCa"), held, strict=True):
      shares = "".join(f"{100 * share / trials:>10.1f}" for share in row)
      sys.stdout.write(f"\n{count:>8} {name:<11}{shares}")
    sys.stdout.flush()
  sys.stdout.write("\n")


def cost() -> None:
  rng, widths = np.random.default_rng(0), {}
  for metric in STRICT:
    f1, bleu = "f1" in metric.name, metric.name == "report_bleu1"
    widths[metric.name] = 21 if f1 else 4 if bleu else 3
  people_of = tuple(f"p{i}" for i in range(900))

  def run() -> pooling.Measured:
    sums = rng.random((900, sum(widths.values()))) * 2 + 1
    made = intervals.Tally(people_of, "asked", widths, sums)
    return pooling.Measured(intervals.totals(made), made)

  seed = {"new": run(), "base": run()}
  for title, work in (
    ("16 intervals of a run", lambda: intervals.of(seed["new"].tally)),
    ("a pair, one seed", lambda: pooling.paired([seed], "new", "base")),
    ("a pair, five seeds", lambda: pooling.paired([seed] * 5, "new", "base")),
  ):
    work()
    start = time.perf_counter()
    work()
    spent = time.perf_counter() - start
    sys.stdout.write(f"{title:<24}{intervals.DRAWS} draws  {spent:.2f} s\n")


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--trials", type=int, default=400)
  parser.add_argument("--draws", type=int, default=1500)
  arguments = parser.parse_args()
  coverage(arguments.trials, arguments.draws)
  cost()


if __name__ == "__main__":
  main()
