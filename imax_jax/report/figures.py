"""The report's figures: effect, metrics, data and training.

Every function takes `results` and returns an SVG element, or "" where that part of the
study was not run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator
from matplotlib.ticker import NullFormatter
from matplotlib.ticker import StrMethodFormatter

from imax_jax.report import arms
from imax_jax.report import rows as rows_lib
from imax_jax.report import style
from imax_jax.report import tables
from imax_jax.report.tables import Results
from imax_jax.schema import TASKS

TASK_TITLES: dict[str, str] = {
  "calculation": "Calculation",
  "report": "Report generation",
  "multi_class": "Multi-class",
  "multi_label": "Multi-label",
  "rec": "REC",
  "reg": "REG",
  "vqa": "VQA",
}
_FARTHEST = 200.0  # percent: a base near zero would make a dot of every other gain
_MAX_POINTS = 240  # of a curve: more cannot be seen, and the page stays small


# ── Effect ────────────────────────────────────────────────────────────────────────


def gains(rows: Mapping[str, Results], pairs: Sequence[arms.Pair] = arms.PAIRS) -> str:
  """Each average gain of each of {title: results}: seeds as dots, their mean, both
  intervals, the base's own noise and, where the paper prints one of it, the paper's."""
  found = [
    (title, results, pair)
    for title, results in rows.items()
    for pair in tables.measured_pairs(results)
    if pair in pairs
    and tables.number(tables.section(results, "gains", pair.name), "mean") is not None
  ]
  if not found:
    return ""
  names = [rows_lib.name(title, pair, pairs) for title, _, pair in found]
  with style.new_figure(9.0, 0.52 * len(found) + 0.85) as figure:
    axes = figure.subplots()
    axes.axvline(0.0, color=style.MUTED, linewidth=0.8)
    for place, (title, results, pair) in enumerate(found):
      around = tables.number(tables.section(results, "noise"), pair.base)
      if around is not None:
        axes.fill_betweenx([place - 0.36, place + 0.36], -around, around,
                           color=style.RULE, alpha=0.6, linewidth=0)  # fmt: skip
      gain = tables.section(results, "gains", pair.name)
      _gain(axes, place, gain, style.RUN_COLOURS[pair.new])
      printed = _printed(title, pair)
      if printed is not None:
        axes.plot(printed, place, "D", markersize=6, color="none",
                  markeredgecolor=style.MUTED, markeredgewidth=1.1)  # fmt: skip
    axes.set_yticks(range(len(found)), [rows_lib.cut(name, 60) for name in names],
                    parse_math=False)  # fmt: skip
    axes.set_ylim(len(found) - 0.45, -0.6)
    _cut(axes, [tables.section(r, "gains", pair.name) for _, r, pair in found],
         [style.RUN_COLOURS[pair.new] for *_, pair in found])  # fmt: skip
    axes.set_xlabel("average gain Δ over all metrics, %", color=style.MUTED)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    described = "; ".join(
      f"{name} {tables.gain_text(tables.section(results, 'gains', pair.name))}"
      for name, (_, results, pair) in zip(names, found, strict=True)
    )
    name = "gains" if len(pairs) > 1 else f"gains-{pairs[0].name}"
    return style.to_svg(figure, name, f"Average gains with their seeds. {described}")


def _printed(title: str, pair: arms.Pair) -> float | None:
  """The paper's own gain of a comparison, in %; the unified model's for a study alone."""
  if not title:
    return tables.PAPER_GAINS.get(pair.name)
  known = rows_lib.printed(title) if pair == rows_lib.MAIN else None
  return known.percent if known else None


def _gain(axes: Axes, place: int, gain: Mapping[str, Any], colour: str) -> None:
  mean = gain["mean"]
  seeds = [value for value in gain.get("per_seed") or [] if value is not None]
  for key, width, alpha in (("interval", 7, 0.28), ("over_seeds", 1.1, 1.0)):
    ends = tables.limits(gain, key)
    if ends is not None:
      axes.plot(ends, [place, place], color=colour, linewidth=width, alpha=alpha,
                solid_capstyle="butt")  # fmt: skip
  axes.plot([mean, mean], [place - 0.24, place + 0.24], color=colour, linewidth=2.2)
  axes.plot(seeds, [place] * len(seeds), "o", color=colour, markersize=5,
            markeredgecolor=style.PAPER, markeredgewidth=0.7)  # fmt: skip


def _cut(
  axes: Axes, gains: Sequence[Mapping[str, Any]], colours: Sequence[str]
) -> None:
  """Ends the axis at ±`_FARTHEST`; what lies beyond has an arrow there and its number."""
  low, high = axes.get_xlim()
  axes.set_xlim(max(low, -_FARTHEST), min(high, _FARTHEST))
  for place, (gain, colour) in enumerate(zip(gains, colours, strict=True)):
    values = [gain["mean"], *(v for v in gain.get("per_seed") or [] if v is not None)]
    for key in ("interval", "over_seeds"):
      values += tables.limits(gain, key) or ()
    for value, side, marker in ((min(values), -1, "<"), (max(values), 1, ">")):
      if side * value > _FARTHEST:
        edge, said = side * _FARTHEST, f"to {value:+,.0f}"
        if side * gain["mean"] > _FARTHEST:
          said += f", mean {gain['mean']:+,.0f}"
        axes.plot(0.985 * edge, place, marker, color=colour, markersize=6)
        axes.annotate(
          said.replace("-", "−"), (edge, place), xytext=(-side * 4, 8), va="center",
          textcoords="offset points", ha="right" if side > 0 else "left", fontsize=7.0,
          color=style.MUTED,
        )  # fmt: skip


# ── Data ──────────────────────────────────────────────────────────────────────────


def composition(results: Results) -> str:
  """Figure 2: entries by task, tasks an image, entries an image."""
  statistics = tables.section(results, "statistics")
  train = {run: tables.section(statistics, f"{run}_train") for run in ("imax", "dmax")}
  train = {run: numbers for run, numbers in train.items() if numbers}
  if not train:
    return ""
  with style.new_figure(10.4, 3.1) as figure:
    left, middle, right = figure.subplots(1, 3, width_ratios=[1.05, 1.0, 1.45])
    whole = tables.section(statistics, "imax_train") or next(iter(train.values()))
    test = tables.section(statistics, "imax_test", "entries_per_task")
    per_task = {
      task: (whole["entries_per_task"].get(task) or 0) + (test.get(task) or 0)
      for task in TASKS
    }
    _task_bars(left, {task: count for task, count in per_task.items() if count})
    name = "IMAX" if "imax" in train else "DMAX"
    left.set_title(f"(a) {name}, train and test: {sum(per_task.values()):,} entries")
    _histogram(middle, train, "tasks_per_image")
    middle.set_title("(b) tasks an image, % of images")
    _histogram(right, train, "entries_per_image")
    right.set_title("(c) training entries an image, % of images")
    # Below: bars may reach any corner.
    right.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2)
    described = ", ".join(f"{TASK_TITLES[t]} {n}" for t, n in per_task.items() if n)
    return style.to_svg(
      figure, "composition", f"Composition of the data sets. {described}"
    )


def _task_bars(axes: Axes, counts: Mapping[str, int]) -> None:
  order = sorted(counts, key=lambda task: -counts[task])
  total = sum(counts.values())
  axes.barh(
    range(len(order)), [counts[t] for t in order], 0.68, color=style.RUN_COLOURS["imax"]
  )
  for place, task in enumerate(order):
    axes.text(counts[task] + 0.02 * counts[order[0]], place,
              f"{counts[task]:,} · {100 * counts[task] / total:.1f} %",
              va="center", fontsize=8.0, color=style.MUTED)  # fmt: skip
  axes.set_yticks(range(len(order)), [TASK_TITLES[task] for task in order])
  axes.set_xlim(0, 1.5 * counts[order[0]])
  axes.set_ylim(len(order) - 0.5, -0.5)
  axes.set_xticks([])
  axes.spines[["bottom", "left"]].set_visible(False)


def _histogram(axes: Axes, train: Mapping[str, Mapping[str, Any]], key: str) -> None:
  histograms = {
    run: {int(k): v for k, v in numbers[key].items()} for run, numbers in train.items()
  }
  high = max(max(h, default=1) for h in histograms.values())
  places = np.arange(1, high + 1)
  width = 0.8 / len(histograms)
  for number, run in enumerate(sorted(histograms)):
    counts = np.array([histograms[run].get(int(place), 0) for place in places], float)
    share = 100 * counts / max(counts.sum(), 1)
    shift = (number - (len(histograms) - 1) / 2) * width
    mean = float(counts @ places / max(counts.sum(), 1))
    axes.bar(places + shift, share, width, color=style.RUN_COLOURS[run],
             label=f"{arms.ARM[run].title}, mean {mean:.2f}")  # fmt: skip
  step = max(1, int(np.ceil(high / 14)))
  axes.set_xticks(places[::step])
  axes.grid(axis="y")
  axes.spines["left"].set_visible(False)


# ── Training ──────────────────────────────────────────────────────────────────────


def curves(results: Results) -> str:
  """Training loss of every arm: thin lines are seeds, the thick one is their mean."""
  arms: dict[str, list[np.ndarray]] = {}
  for name, points in tables.section(results, "curves").items():
    curve = np.array([p for p in points or [] if None not in p], float).reshape(-1, 2)
    curve = curve[np.isfinite(curve).all(axis=1)]
    if len(curve) > 1:
      arms.setdefault(re.sub(r"-s\d+$", "", name), []).append(curve)
  study = {arm: seeds for arm, seeds in arms.items() if _colour_of(arm) != style.MUTED}
  other = {arm: seeds for arm, seeds in arms.items() if arm not in study}
  panels = [panel for panel in (study, other) if panel]
  if not panels:
    return ""
  with style.new_figure(9.6, 3.4) as figure:
    for axes, panel in zip(
      np.atleast_1d(figure.subplots(1, len(panels))), panels, strict=True
    ):
      for arm, seeds in panel.items():
        _arm(axes, arm, seeds)
      axes.set_xlabel("step", color=style.MUTED)
      axes.set_yscale("log")
      axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
      axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
      axes.yaxis.set_minor_formatter(NullFormatter())
      axes.tick_params(which="minor", length=0)
      where = "" if panel is study else ", other stages"
      axes.set_title(f"training loss{where} (logarithmic)")
      axes.grid(axis="y")
      axes.spines["left"].set_visible(False)
      axes.legend(loc="upper right")
    return style.to_svg(figure, "curves", f"Training loss by step of {', '.join(arms)}")


def _arm(axes: Axes, arm: str, seeds: Sequence[np.ndarray]) -> None:
  colour = _colour_of(arm)
  dashed = "--" if arm in ("pseudo-pretrain", "pseudo_pretrain") else "-"
  smooth = [_smooth(curve) for curve in seeds]
  if len(smooth) > 1:
    for curve in smooth:
      axes.plot(curve[:, 0], curve[:, 1], color=colour, linewidth=0.6, alpha=0.5)
  steps = smooth[0][:, 0]
  mean = np.mean([np.interp(steps, c[:, 0], c[:, 1]) for c in smooth], axis=0)
  title = arms.ARM[arm].title if arm in arms.ARM else arm.replace("_", " ")
  axes.plot(steps, mean, color=colour, linewidth=1.7, linestyle=dashed, label=title)


def _smooth(curve: np.ndarray) -> np.ndarray:
  """A centred running mean over 1/40 of the curve, at no more than `_MAX_POINTS`."""
  window = max(1, len(curve) // 40)
  kernel = np.ones(window)
  loss = np.convolve(curve[:, 1], kernel, "same") / np.convolve(
    np.ones(len(curve)), kernel, "same"
  )
  keep = np.unique(np.linspace(0, len(curve) - 1, _MAX_POINTS).astype(int))
  return np.stack([curve[keep, 0], loss[keep]], axis=1)


def _colour_of(run: str) -> str:
  """A run's colour by the longest known name it begins with."""
  known = [name for name in style.RUN_COLOURS if run.startswith(name)]
  return style.RUN_COLOURS[max(known, key=len)] if known else style.MUTED
