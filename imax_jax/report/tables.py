"""Tables 1 and 2: columns, the paper's own numbers, and how a measured one is told.

What the tables, figures and page take from `results.json` is read here and only here,
so that a part that was not run is absent in one place and breaks nothing.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from imax_jax.report import arms

Results = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Column:
  """A column of Table 2. `name` and `lower_is_better` are those of evaluate.metrics.STRICT."""

  name: str
  group: str  # three levels of heading
  part: str
  title: str
  label: str  # all in one, where there is no heading above
  short: str  # beside an axis of a small radar, as in the paper's Figure 3
  lower_is_better: bool = False

  @property
  def arrow(self) -> str:
    return "↓" if self.lower_is_better else "↑"


COLUMNS: tuple[Column, ...] = (
  Column("cpar_mae", "Calculation", "CPAR", "MAE", "CPAR MAE", "CPAR MAE", True),
  Column("cpar_rmse", "Calculation", "CPAR", "RMSE", "CPAR RMSE", "CPAR RMSE", True),
  Column("ctr_mae", "Calculation", "CTR", "MAE", "CTR MAE", "CTR MAE", True),
  Column("ctr_rmse", "Calculation", "CTR", "RMSE", "CTR RMSE", "CTR RMSE", True),
  Column("report_bleu1", "Report generation", "", "BLEU", "Report BLEU", "BLEU"),
  Column("report_rouge1", "Report generation", "", "Rouge", "Report ROUGE", "ROUGE"),
  Column("report_meteor", "Report generation", "", "Meteor", "Report METEOR", "METEOR"),
  Column("multi_class_acc", "Classification", "Multi-class", "Acc", "Multi-class Acc",
         "CLS I"),
  Column("multi_label_micro_f1", "Classification", "Multi-label", "Micro",
         "Multi-label micro F1", "CLS II mi."),
  Column("multi_label_macro_f1", "Classification", "Multi-label", "Macro",
         "Multi-label macro F1", "CLS II ma."),
  Column("rec_iou", "REC", "", "IoU", "REC IoU", "REC IoU"),
  Column("rec_r50", "REC", "", "R@.5", "REC R@0.5", "REC R@.5"),
  Column("reg_acc", "REG", "", "Acc", "REG Acc", "REG"),
  Column("vqa_verify_acc", "VQA", "Verify", "Acc", "VQA verify Acc", "Verify"),
  Column("vqa_choose_bleu1", "VQA", "Choose", "BLEU", "VQA choose BLEU", "Choose"),
  Column("vqa_query_bleu1", "VQA", "Query", "BLEU", "VQA query BLEU", "Query"),
)  # fmt: skip


def _paper_row(numbers: str) -> dict[str, float]:
  values = [float(number) for number in numbers.split()]
  return {column.name: value for column, value in zip(COLUMNS, values, strict=True)}


# arXiv 2504.09967, Table 2. The third row's REG is printed as 3.41; only 83.41 agrees
# with its underline and with the printed average gain.
PAPER_TABLE2: dict[str, dict[str, float]] = {
  "dmax": _paper_row(
    "6.93 8.22 3.67 4.96 33.25 40.34 15.18 26.97 73.62 47.84 50.89 63.95 64.13 62.75 "
    "40.69 39.06"
  ),
  "imax": _paper_row(
    "3.31 4.76 2.52 3.65 34.32 40.06 16.15 47.14 80.67 63.71 71.38 87.98 87.00 71.02 "
    "50.50 53.20"
  ),
  "pseudo": _paper_row(
    "5.29 6.69 3.22 4.50 35.43 41.30 16.01 45.98 77.44 54.72 67.29 84.78 83.41 64.16 "
    "40.81 36.91"
  ),
}
PAPER_GAINS: dict[str, float] = {"imax": 29.07, "pseudo": 16.25}

# arXiv 2504.09967, Table 1: IMAX over DMAX on eight models; improved metrics of 16, Δ.
PAPER_TABLE1: tuple[tuple[str, int, float], ...] = (
  ("LLaVA-Med", 16, 10.14), ("XrayGPT*", 15, 21.05), ("MiniGPT-Med", 14, 12.94),
  ("Uni-Med", 14, 4.81), ("LLaVA-Tri", 14, 10.17), ("MedM-VL-2D", 13, 3.20),
  ("HealthGPT-M3", 15, 5.47), ("HealthGPT-L14", 15, 16.92),
)  # fmt: skip


# ── Reading results ───────────────────────────────────────────────────────────────


def section(results: Results, *keys: str) -> Mapping[str, Any]:
  """The mapping under `keys`, empty where that part was not run."""
  node: Any = results
  for key in keys:
    node = node.get(key) if isinstance(node, Mapping) else None
  return node if isinstance(node, Mapping) else {}


def number(node: Mapping[str, Any], key: str) -> float | None:
  """A finite number, or None."""
  value = node.get(key)
  if isinstance(value, bool) or not isinstance(value, int | float):
    return None
  return float(value) if math.isfinite(value) else None


def measured_runs(results: Results) -> list[str]:
  """The known runs that have numbers, in the table's order."""
  return [arm.name for arm in arms.ARMS if section(results, "tables", arm.name)]


def measured_pairs(results: Results) -> list[arms.Pair]:
  """The known comparisons that were made, in the table's order."""
  return [pair for pair in arms.PAIRS if section(results, "gains", pair.name)]


def limits(node: Mapping[str, Any], key: str) -> tuple[float, float] | None:
  """An interval's two finite ends, or None."""
  found = node.get(key)
  if not isinstance(found, Sequence) or len(found) != 2:
    return None
  ends = dict(enumerate(found))
  low, high = number(ends, 0), number(ends, 1)  # type: ignore[arg-type]
  return None if low is None or high is None else (low, high)


def value_of(results: Results, run: str, metric: str) -> float | None:
  return number(section(results, "tables", run), metric)


def std_of(results: Results, run: str, metric: str) -> float | None:
  return number(section(results, "spread", run), metric)


def ranks(rows: Mapping[str, Mapping[str, Any]], column: Column) -> dict[str, int]:
  """{row: 1 or 2} of the best and second best of a column; equals share a place.

  Compared as printed, to two decimals, so that no two like numbers look different.
  """
  values = {row: number(scores, column.name) for row, scores in rows.items()}
  sign = 1.0 if column.lower_is_better else -1.0
  keys = {
    row: sign * round(value, 2) for row, value in values.items() if value is not None
  }
  order = sorted(keys.values())
  places = {row: 1 + order.index(key) for row, key in keys.items()}
  return {row: place for row, place in places.items() if place <= 2 and len(order) > 1}


def is_behind(results: Results, run: str, column: Column) -> bool:
  """Whether a trained run is not told from what is scored without the image.

  That is when the interval of its lead holds 0; without an interval, when its mean is
  no better.
  """
  got = value_of(results, run, column.name)
  if got is None or run in arms.BLIND:
    return False
  told = section(results, "ahead", run).get(column.name)
  if told is not None:
    return not told
  blind = [value_of(results, name, column.name) for name in arms.BLIND]
  sign = -1.0 if column.lower_is_better else 1.0
  return any(sign * got <= sign * value for value in blind if value is not None)


# ── Sentences about an effect ─────────────────────────────────────────────────────


def gain_text(gain: Mapping[str, Any]) -> str:
  """ "+3.20 % (−1.02 to +7.41)", the interval over seeds and patients; "–" for none."""
  mean, ends = number(gain, "mean"), limits(gain, "interval")
  if mean is None:
    return "–"
  return f"{signed(mean)} %" + (f" ({between(ends)})" if ends else "")


def metrics_text(gain: Mapping[str, Any]) -> str:
  """ "median metric +1.02 %, 9 of 16 better"; "" where no metric was compared."""
  median = number(gain, "median")
  if median is None:
    return ""
  better = f"{gain.get('improved')} of {gain.get('total')} better"
  return f"median metric {signed(median)} %, {better}"


def signed(value: float, digits: int = 2) -> str:
  """-3.214 -> "−3.21", with a minus sign and not a hyphen."""
  shown = f"{round(value, digits) + 0.0:+.{digits}f}"  # never "−0.00"
  return shown.replace("-", "−")


def between(ends: tuple[float, float]) -> str:
  return f"{signed(ends[0])} to {signed(ends[1])}"


def chance(p: float | None) -> str:
  """A p-value to two digits: "0.012", "< 0.001", "–" for none."""
  if p is None:
    return "–"
  return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def num_seeds(gain: Mapping[str, Any]) -> int:
  per_seed = gain.get("per_seed")
  if not isinstance(per_seed, Sequence):
    return 0
  return sum(value is not None for value in per_seed)


def is_told(gain: Mapping[str, Any]) -> bool:
  """Whether Δ is told from zero as the effect of a recipe: by several seeds, outside of
  both their Student interval and the two-level bootstrap's, on one side.
  """
  ends = [limits(gain, key) for key in ("over_seeds", "interval")]
  known = [pair for pair in ends if pair is not None]
  return len(known) == 2 and (
    all(low > 0 for low, _ in known) or all(high < 0 for _, high in known)
  )


def models_differ(gain: Mapping[str, Any]) -> bool:
  """Whether two models, of one seed, are told apart by their test patients: Δ's interval
  leaves out 0, and exchanged answers seldom come to as much (p below 0.05).

  Both, since a metric whose base is near zero can widen Δ to one side only.
  """
  ends, p = limits(gain, "interval"), number(gain, "p_patients")
  return bool(ends and not ends[0] <= 0 <= ends[1] and (p is None or p < 0.05))


def is_same(gain: Mapping[str, Any]) -> bool:
  """Whether no choice of seeds and patients tells the two runs apart: Δ is 0 in all."""
  ends = [limits(gain, key) for key in ("interval", "over_seeds")]
  known = [pair for pair in ends if pair is not None]
  return gain.get("mean") == 0 and bool(known) and set(known) == {(0.0, 0.0)}


def read_as(gain: Mapping[str, Any]) -> str:
  """`verdict` in a word or two, for a cell of a table."""
  mean = number(gain, "mean")
  if mean is None:
    return "nothing to compare"
  if is_same(gain):
    return "the same"
  if is_told(gain):
    return "better" if mean > 0 else "worse"
  if limits(gain, "over_seeds") is None and models_differ(gain):
    return "one seed: these models differ"
  return "noise"


def verdict(gain: Mapping[str, Any], noise: float | None = None) -> str:
  """Plain words on what a gain shows, whichever its sign.

  Args:
    noise: how far two seeds of the base are apart, in % of Eq. 1.
  """
  mean, seeds = number(gain, "mean"), num_seeds(gain)
  if not gain:
    return "Not run."
  if mean is None:
    return "No metric can be compared: the base scores zero on all."
  direction = "better" if mean > 0 else "worse" if mean < 0 else "of difference"
  size = f"{abs(mean):.1f} % {direction} on average"
  ends, over_seeds = limits(gain, "interval"), limits(gain, "over_seeds")
  own = (
    "" if noise is None else f" Two seeds of the base alone differ by {noise:.1f} %."
  )
  if ends is None:
    return f"{size}; no interval: there are too few test patients."
  if is_same(gain):
    return (
      "No difference at all: the two score the same whichever test patients are drawn."
    )
  if over_seeds is None:
    if ends[0] <= 0 <= ends[1]:
      return (
        f"{size} in one seed, which is noise: another choice of test patients would do "
        f"({between(ends)} %)."
      )
    if not models_differ(gain):
      return (
        f"{size} in one seed, which is noise: exchanged answers of the same patients come "
        f"to as much (p = {chance(number(gain, 'p_patients'))})."
      )
    return (
      f"{size} in one seed: more than the choice of test patients makes "
      f"({between(ends)} %), so these two models differ. Whether the recipes do, one "
      "seed cannot tell from chance."
    )
  if is_told(gain):
    return (
      f"{size} over {seeds} seeds, told from zero: {between(over_seeds)} % over seeds, "
      f"{between(ends)} % over seeds and patients.{own}"
    )
  where, held = ("seeds", over_seeds)
  if not over_seeds[0] <= 0 <= over_seeds[1]:
    where, held = ("seeds and patients", ends)
  return (
    f"{size} over {seeds} seeds, which is noise: the 95 % interval over {where} holds "
    f"zero ({between(held)} %).{own}"
  )
