"""What the choice of test patients leaves open: bootstrap intervals and paired tests.

A test split is a sample of patients, and a patient's answers go together: patients are
drawn, with all their answers, and never single answers (the cluster bootstrap). Every
metric is a function of sums over answers, so a draw of patients is a vector of weights
and all draws of all metrics are one matrix product.

Intervals are percentiles of the draws. BCa was tried beside them (benchmarks/intervals.py,
invented samples of 30 to 500 patients): on single metrics it covers as well or, where
tails are heavy or patients few, somewhat better (an RMSE of 30 patients 82 % against 78),
on Δ, a mean of ratios of two runs, worse (90 to 91 % against 93 to 95), and it knows no
drawing of seeds. One kind serves all, and is read where it counts, on Δ; with fewer than
some 75 patients expect RMSE and macro F1 to be held less often than 95 %. Where all
patients are alike an interval has no width: a sample cannot show what it does not hold.
"""

from __future__ import annotations

import dataclasses
import hashlib
import zipfile
from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import special

from imax_jax.evaluate.metrics import STRICT
from imax_jax.evaluate.metrics import Metric
from imax_jax.evaluate.predictions import Predictions
from imax_jax.ledger import whole
from imax_jax.schema import Prediction

LEVEL = 0.95
DRAWS = 4000
Interval = list[float]  # [low, high]


@dataclasses.dataclass(frozen=True, slots=True)
class Tally:
  """What each test patient's answers add to each metric: all that resampling needs.

  `matrix` is float64[patients, columns]: metric by metric, in the order of `widths`, the
  sums of `Metric.statistics` over the patient's answers and how many answers those are.
  """

  patients: tuple[str, ...]
  asked: str  # a digest of the entries' ids: equal where the same was asked
  widths: dict[str, int]  # metric -> its columns, the count included
  matrix: np.ndarray

  def columns(self) -> dict[str, slice]:
    ends = np.cumsum(list(self.widths.values())).tolist()
    return {
      name: slice(end - width, end)
      for (name, width), end in zip(self.widths.items(), ends, strict=True)
    }

  def too_few(self) -> dict[str, str]:
    """{metric: why its patients allow no interval}."""
    reasons = {}
    for name, columns in self.columns().items():
      count = int((self.matrix[:, columns][:, -1] > 0).sum())
      if count < 2:
        reasons[name] = f"{count} test patient: nothing can be resampled"
    return reasons


def by_metric(
  predictions: Predictions, metrics: Sequence[Metric] = STRICT
) -> dict[str, list[Prediction]]:
  """{metric: the predictions that it concerns}; a metric without any is absent."""
  found = {m.name: [p for p in predictions if m.concerns(p.entry)] for m in metrics}
  return {name: concerned for name, concerned in found.items() if concerned}


def tally(
  answered: Mapping[str, Predictions],
  patient_of: Mapping[str, str],
  metrics: Sequence[Metric] = STRICT,
) -> Tally:
  """Adds up `by_metric`'s predictions by patient.

  Args:
    patient_of: {image id: patient id}, of every image asked about.

  Raises:
    ValueError: no prediction, or an image whose patient is not known.
  """
  # In one order whoever asked: some metrics' columns come as their entries do.
  answered = {
    m.name: sorted(answered[m.name], key=lambda p: p.entry.id)
    for m in metrics
    if answered.get(m.name)
  }
  if not answered:
    raise ValueError(
      "no prediction to draw patients from: evaluate on a test split with entries"
    )
  entries = {p.entry.id: p.entry.image_id for ps in answered.values() for p in ps}
  unknown = next((i for i in entries.values() if i not in patient_of), None)
  if unknown is not None:
    raise ValueError(
      f"image {unknown}: its patient is not known; the predictions are of another "
      "version of the data set: evaluate again"
    )
  patients = tuple(sorted({patient_of[image] for image in entries.values()}))
  row = {patient: number for number, patient in enumerate(patients)}
  parts = []
  for metric in metrics:
    if metric.name not in answered:
      continue
    predictions = answered[metric.name]
    added = np.asarray(metric.statistics(predictions), np.float64)
    added = np.concatenate([added, np.ones((len(predictions), 1))], axis=1)
    sums = np.zeros((len(patients), added.shape[1]))
    np.add.at(sums, [row[patient_of[p.entry.image_id]] for p in predictions], added)
    parts.append(sums)
  digest = hashlib.sha256("\n".join(sorted(entries)).encode()).hexdigest()[:16]
  widths = {name: part.shape[1] for name, part in zip(answered, parts, strict=True)}
  return Tally(patients, digest, widths, np.concatenate(parts, axis=1))


def write_tally(path: str | Path, made: Tally) -> None:
  """One .npz file; it appears whole or not at all."""
  with whole(path) as part, part.open("wb") as file:
    np.savez(
      file, patients=np.array(made.patients), asked=np.array(made.asked),
      names=np.array(list(made.widths)), widths=np.array([*made.widths.values()]),
      matrix=made.matrix,
    )  # fmt: skip


def read_tally(path: str | Path) -> Tally:
  """Reads `write_tally`'s file.

  Raises:
    ValueError: no such file, or not one of these.
  """
  try:
    with np.load(path, allow_pickle=False) as found:
      return Tally(
        tuple(found["patients"].tolist()),
        str(found["asked"]),
        dict(zip(found["names"].tolist(), found["widths"].tolist(), strict=True)),
        found["matrix"],
      )
  except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
    raise ValueError(
      f"{path}: expected the sums by patient that `evaluate` keeps beside its scores "
      f"({type(error).__name__}): delete the folder and evaluate again"
    ) from error


# ── Draws ─────────────────────────────────────────────────────────────────────────


def weights(num_patients: int, num_draws: int, seed: int | Sequence[int]) -> np.ndarray:
  """How often each patient is drawn, float64[draws, patients]; rows sum to patients."""
  rng = np.random.default_rng(seed)
  drawn = rng.integers(0, num_patients, (num_draws, num_patients))
  drawn += np.arange(num_draws)[:, None] * num_patients
  counts = np.bincount(drawn.ravel(), minlength=num_draws * num_patients)
  return counts.reshape(num_draws, num_patients).astype(np.float64)


def scores(
  sums: np.ndarray, like: Tally, metrics: Sequence[Metric] = STRICT
) -> np.ndarray:
  """Sums over patients, [draws, columns], as metrics, float64[draws, len(metrics)].

  NaN where a draw holds no answer that the metric concerns.
  """
  values = np.full((len(sums), len(metrics)), np.nan)
  columns = like.columns()
  for number, metric in enumerate(metrics):
    if metric.name in columns:
      part = sums[:, columns[metric.name]]
      has = part[:, -1] > 0
      values[has, number] = metric.combine(part[has, :-1])
  return values


def totals(made: Tally, metrics: Sequence[Metric] = STRICT) -> dict[str, float]:
  """{metric: value × 100} of all patients; a metric without answers is absent."""
  values = scores(made.matrix.sum(axis=0, keepdims=True), made, metrics)[0]
  named = {m.name: float(v) for m, v in zip(metrics, values, strict=True)}
  return {name: value for name, value in named.items() if name in made.widths}


def percentiles(values: np.ndarray) -> Interval | None:
  """The middle 95 % of draws, float64[draws]; None where half of them have no value."""
  known = values[np.isfinite(values)]
  if 2 * len(known) <= len(values):
    return None
  low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
  return [float(low), float(high)]


def of(
  made: Tally,
  metrics: Sequence[Metric] = STRICT,
  *,
  num_draws: int = DRAWS,
  seed: int = 0,
) -> dict[str, Interval]:
  """{metric: its 95 % interval over the test patients}; absent as `too_few` says."""
  drawn = weights(len(made.patients), num_draws, seed) @ made.matrix
  values, few = scores(drawn, made, metrics), made.too_few()
  found = {}
  for number, metric in enumerate(metrics):
    interval = percentiles(values[:, number])
    if interval is not None and metric.name not in few:
      found[metric.name] = interval
  return found


# ── Tests ─────────────────────────────────────────────────────────────────────────


def check_pair(new: Tally, base: Tally, names: tuple[str, str]) -> None:
  """Refuses two runs, of these names, that were not asked or scored alike.

  Raises:
    ValueError: they answered other entries, or were scored by other metrics.
  """
  both = " and ".join(names)
  if (new.patients, new.asked) != (base.patients, base.asked):
    raise ValueError(
      f"{both} cannot be compared patient by patient: they answered other entries "
      f"({len(new.patients)} and {len(base.patients)} patients, {new.asked} and "
      f"{base.asked}); evaluate both on one test split"
    )
  if new.widths != base.widths:
    differ = sorted(
      name
      for name in new.widths.keys() | base.widths.keys()
      if new.widths.get(name) != base.widths.get(name)
    )
    raise ValueError(
      f"{both} were scored by other metrics ({', '.join(differ)}): evaluate both with one "
      "version"
    )


def swapped(
  new: Tally, base: Tally, num_draws: int, seed: int | Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
  """Sums of both runs with a chance half of the patients' answers exchanged.

  If the two models answer alike, whose answer is whose is a matter of chance, and the
  runs as they are look like any of these. Returns two float64[draws, columns].
  """
  rng = np.random.default_rng(seed)
  turned = rng.integers(0, 2, (num_draws, len(new.patients))).astype(np.float64)
  moved = turned @ (base.matrix - new.matrix)
  return new.matrix.sum(0) + moved, base.matrix.sum(0) - moved


def p_value(observed: float, chance: np.ndarray) -> float:
  """Two-sided: twice the smaller tail, the observed value counted as one of chance's.

  Valid whatever the statistic's shape (Δ, a mean of ratios, is not symmetric).
  """
  known = chance[np.isfinite(chance)]
  slack = 1e-9 * max(1.0, abs(observed))
  tails = (known >= observed - slack).sum(), (known <= observed + slack).sum()
  return min(1.0, 2.0 * (1 + int(min(tails))) / (1 + len(known)))


def p_of_signs(values: Sequence[float]) -> float | None:
  """The sign-flip test of paired seeds' gains; None for a single one.

  All 2^n signs up to 16 seeds, else 65,536 by chance. Five seeds can not get below
  2 / 32 = 0.0625.
  """
  n = len(values)
  if n < 2:
    return None
  if n <= 16:
    bits = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
  else:
    bits = np.random.default_rng(0).integers(0, 2, (2**16, n))
  flipped = np.abs((1.0 - 2.0 * bits) @ np.asarray(values, np.float64))
  observed = abs(float(np.sum(values)))
  return float(np.mean(flipped >= observed - 1e-9 * max(1.0, observed)))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
  """Holm's step-down adjustment: the chance of any false alarm among all stays below p."""
  order = sorted(p_values, key=lambda name: p_values[name])
  adjusted, least = {}, 0.0
  for place, name in enumerate(order):
    least = max(least, min(1.0, (len(order) - place) * p_values[name]))
    adjusted[name] = least
  return {name: adjusted[name] for name in p_values}


def student(values: Sequence[float]) -> Interval | None:
  """The 95 % interval of a mean over seeds by Student's t; None for a single seed."""
  n = len(values)
  if n < 2:
    return None
  half = special.stdtrit(n - 1, (1 + LEVEL) / 2) * np.std(values, ddof=1) / np.sqrt(n)
  mean = float(np.mean(values))
  return [mean - float(half), mean + float(half)]
