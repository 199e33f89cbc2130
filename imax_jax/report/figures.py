"""The report's figures: effect, metrics, data and training.

Every function takes `results` and returns an SVG element, or "" where that part of the
study was not run.
"""

from __future__ import annotations

import math
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


def gains(rows: Mapping[str, Results]) -> str:
  """Each average gain of each of {title: results}: seeds as dots, their mean, both
  intervals, and the base's own noise."""
  found = [
    (f"{title}: {pair.title}" if len(rows) > 1 else pair.title, results, pair)
    for title, results in rows.items()
    for pair in tables.measured_pairs(results)
    if tables.number(tables.section(results, "gains", pair.name), "mean") is not None
  ]
  if not found:
    return ""
  with style.new_figure(9.0, 0.52 * len(found) + 0.85) as figure:
    axes = figure.subplots()
    axes.axvline(0.0, color=style.MUTED, linewidth=0.8)
    for place, (_, results, pair) in enumerate(found):
      around = tables.number(tables.section(results, "noise"), pair.base)
      if around is not None:
        axes.fill_betweenx([place - 0.36, place + 0.36], -around, around,
                           color=style.RULE, alpha=0.6, linewidth=0)  # fmt: skip
      gain = tables.section(results, "gains", pair.name)
      _gain(axes, place, gain, style.RUN_COLOURS[pair.new])
      if pair.name in tables.PAPER_GAINS and len(rows) == 1:
        axes.plot(tables.PAPER_GAINS[pair.name], place, "D", markersize=6, color="none",
                  markeredgecolor=style.MUTED, markeredgewidth=1.1)  # fmt: skip
    axes.set_yticks(range(len(found)), [name for name, *_ in found])
    axes.set_ylim(len(found) - 0.45, -0.6)
    _cut(axes, [tables.section(r, "gains", pair.name) for _, r, pair in found],
         [style.RUN_COLOURS[pair.new] for *_, pair in found])  # fmt: skip
    axes.set_xlabel("average gain Δ over all metrics, %", color=style.MUTED)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    described = "; ".join(
      f"{name} {tables.gain_text(tables.section(results, 'gains', pair.name))}"
      for name, results, pair in found
    )
    return style.to_svg(figure, "gains", f"Average gains with their seeds. {described}")


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


def radar(results: Results) -> str:
  """Figure 3's manner: each metric relative to DMAX, with both absolute values."""
  base = tables.section(results, "tables", "dmax")
  new = tables.section(results, "tables", "imax")
  rows = []
  for column in tables.COLUMNS:
    before, after = tables.number(base, column.name), tables.number(new, column.name)
    if before and after is not None:
      rows.append((column, before, after))
  if len(rows) < 3:
    return ""
  shown = [_relative(*row) for row in rows]
  printed = tables.PAPER_TABLE2
  paper = [
    _relative(c, printed["dmax"][c.name], printed["imax"][c.name]) for c, *_ in rows
  ]
  top = max(1.25, min(2.0, math.ceil(4 * max(*shown, *paper) + 0.2) / 4))
  bottom = max(0.0, min(0.5, math.floor(4 * min(shown) - 0.2) / 4))
  with style.new_figure(8.6, 6.2) as figure:
    figure.set_layout_engine("none")  # it does not see the labels around a polar axis
    square = (0.225, 0.16, 0.55, 0.55 * 8.6 / 6.2)
    axes: Any = figure.add_axes(square, projection="polar")
    axes.set_theta_offset(np.pi / 2)
    axes.set_theta_direction(-1)
    axes.set_ylim(bottom, top)
    ring: dict[str, Any] = {
      "color": style.MUTED,
      "linewidth": 1.0,
      "linestyle": (0, (2, 2)),
    }
    _ring(axes, paper, label="IMAX in the paper, against its DMAX", **ring)
    ring = {"color": style.RUN_COLOURS["dmax"], "linewidth": 1.5}
    _ring(axes, [1.0] * len(rows), label="DMAX (= 1)", **ring)
    ring = {"color": style.RUN_COLOURS["imax"], "linewidth": 1.9}
    _ring(axes, shown, fill=0.12, label="IMAX", **ring)
    _whiskers(axes, tables.section(results, "gains", "imax", "tests"), rows)
    ticks = np.arange(bottom, top + 1e-9, 0.25)
    names = [f"{tick:g}×" for tick in ticks]
    axes.set_yticks(ticks, names, fontsize=7.5, color=style.MUTED)
    axes.set_rlabel_position(180 / len(rows))
    axes.spines["polar"].set_visible(False)
    _radar_labels(axes, rows, top + 0.09 * (top - bottom))
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.11), ncols=3)
    described = "; ".join(f"{c.label} {old:.2f} to {now:.2f}" for c, old, now in rows)
    description = f"Metrics of IMAX relative to DMAX. {described}"
    return style.to_svg(figure, "radar", description)


def _ring(
  axes: Any, values: Sequence[float], *, fill: float = 0.0, **line: Any
) -> None:
  """A closed line round the axis; what lies beyond its edges is drawn on them."""
  angles = np.linspace(0, 2 * np.pi, len(values) + 1)
  inside = np.clip([*values, values[0]], *axes.get_ylim())
  axes.plot(angles, inside, **line)
  if fill:
    axes.fill(angles, inside, color=line["color"], alpha=fill, linewidth=0)


def _whiskers(
  axes: Any,
  tests: Mapping[str, Any],
  rows: Sequence[tuple[tables.Column, float, float]],
) -> None:
  """Each metric's 95 % interval along its axis."""
  angles = np.linspace(0, 2 * np.pi, len(rows), endpoint=False)
  for angle, (column, *_) in zip(angles, rows, strict=True):
    ends = tables.limits(tables.section(tests, column.name), "gain_interval")
    if ends is not None:
      inside = np.clip([1 + end / 100 for end in ends], *axes.get_ylim())
      axes.plot([angle, angle], inside, color=style.RUN_COLOURS["imax"], linewidth=3.2,
                alpha=0.45, solid_capstyle="butt")  # fmt: skip


def _relative(column: tables.Column, before: float, after: float) -> float:
  """1 + the metric's gain in Eq. 1: above 1 is better, errors included."""
  change = (after - before) / before
  return 1.0 - change if column.lower_is_better else 1.0 + change


def _radar_labels(
  axes: Any, rows: Sequence[tuple[tables.Column, float, float]], radius: float
) -> None:
  angles = np.linspace(0, 2 * np.pi, len(rows), endpoint=False)
  axes.set_xticks(angles, [""] * len(rows))
  for angle, (column, before, after) in zip(angles, rows, strict=True):
    side = np.sin(angle)
    align = "center" if abs(side) < 0.2 else "left" if side > 0 else "right"
    # Two texts, for only a single line's alignment survives another font's widths.
    for shift, text, colour in (
      (6.5, f"{column.label} {column.arrow}", style.INK),
      (-6.5, f"{before:.1f} → {after:.1f}", style.MUTED),
    ):
      axes.annotate(
        text, (angle, radius), xytext=(0, shift), textcoords="offset points", ha=align,
        va="center", fontsize=8.5, color=colour, annotation_clip=False,
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
