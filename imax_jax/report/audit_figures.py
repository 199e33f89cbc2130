"""The audit page's figures; each takes audit.json's content and gives one <svg>, or ""."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from imax_jax.report import style
from imax_jax.report.figures import TASK_TITLES

_COLOUR = style.RUN_COLOURS["pseudo"]
_COLUMNS = 4
_GROUP_TITLES = {
  "multi_class": "Grade of edema", "multi_label": "Findings present",
  "reg": "Organ named (REG)", "verify": "Yes or no (VQA, verify)",
}  # fmt: skip


def confidence(audit: Mapping[str, Any]) -> str:
  """A histogram a task: all labels made, and those kept."""
  found = audit["confidence"]
  tasks = [task for task in TASK_TITLES if task in found]
  if not tasks:
    return ""
  rows = -(-len(tasks) // _COLUMNS)
  with style.new_figure(9.0, 1.75 * rows) as figure:
    panels = list(figure.subplots(rows, _COLUMNS, squeeze=False).flat)
    for axes, task in zip(panels, tasks, strict=False):
      edges = np.array(found[task]["edges"])
      for kind, alpha in (("made", 0.3), ("kept", 1.0)):
        axes.stairs(found[task][kind], edges, fill=True, color=_COLOUR, alpha=alpha)
      axes.set_title(TASK_TITLES[task])
      axes.yaxis.set_major_locator(MaxNLocator(3, integer=True))
      axes.xaxis.set_major_locator(MaxNLocator(4))
      axes.spines["left"].set_visible(False)
      axes.grid(axis="y")
    _blank(panels, len(tasks))
    figure.supxlabel(
      "mean log-probability of an answer's tokens", fontsize=9, color=style.MUTED
    )
    return style.to_svg(
      figure, "confidence", "Distribution of the labels' log-probabilities by task"
    )


def classes(audit: Mapping[str, Any]) -> str:
  """A line a class: its share in training, in the labels, and in truth."""
  found = audit["classes"]
  groups = [group for group in _GROUP_TITLES if group in found]
  if not groups:
    return ""
  heights = [len(found[group]) for group in groups]
  with style.new_figure(9.0, 0.27 * sum(heights) + 0.55 * len(groups) + 0.3) as figure:
    panels = figure.subplots(
      len(groups), 1, squeeze=False, height_ratios=[h + 0.6 for h in heights]
    )[:, 0]
    for axes, group in zip(panels, groups, strict=True):
      _class_lines(axes, found[group])
      axes.set_title(_GROUP_TITLES[group])
    panels[-1].set_xlabel("share, %", color=style.MUTED)
    return style.to_svg(figure, "classes", "Shares of classes: training, labels, truth")


def _class_lines(axes: Axes, rows: list[dict[str, Any]]) -> None:
  for place, row in enumerate(rows):
    share = {
      who: 100 * row[who]
      for who in ("training", "made", "kept", "true")
      if row[who] is not None
    }
    axes.plot([min(share.values()), max(share.values())], [place] * 2,
              color=style.RULE, linewidth=1.2, zorder=1)  # fmt: skip
    if "true" in share:
      axes.plot([share["true"]] * 2, [place - 0.32, place + 0.32], color=style.INK,
                linewidth=1.8)  # fmt: skip
    for who, alpha in (("made", 0.35), ("kept", 1.0)):
      if who in share:
        axes.plot(share[who], place, "o", color=_COLOUR, markersize=6, alpha=alpha,
                  markeredgewidth=0)  # fmt: skip
    if "training" in share:
      axes.plot(share["training"], place, "o", color="none", markersize=8,
                markeredgecolor=style.RUN_COLOURS["dmax"], markeredgewidth=1.3)  # fmt: skip
  axes.set_yticks(range(len(rows)), [row["class"] for row in rows])
  axes.set_ylim(len(rows) - 0.4, -0.6)
  axes.set_xlim(-2, 102)
  axes.spines["left"].set_visible(False)
  axes.grid(axis="x")


def reliability(audit: Mapping[str, Any]) -> str:
  """Accuracy by tenths of confidence, a panel a task."""
  found = audit["accuracy"]
  tasks = [task for task in TASK_TITLES if task in found]
  if not tasks:
    return ""
  rows = -(-len(tasks) // _COLUMNS)
  with style.new_figure(9.0, 1.95 * rows) as figure:
    panels = list(figure.subplots(rows, _COLUMNS, squeeze=False, sharey=True).flat)
    for axes, task in zip(panels, tasks, strict=False):
      one = found[task]
      points = np.array([(d["log_prob"], 100 * d["score"]) for d in one["deciles"]])
      axes.axhline(100 * one["constant"], color=style.MUTED, linewidth=1.0,
                   linestyle=(0, (3, 2)))  # fmt: skip
      axes.plot(*points.T, "o-", color=_COLOUR, linewidth=1.3, markersize=4.5,
                markeredgecolor=style.PAPER, markeredgewidth=0.6)  # fmt: skip
      axes.set_title(TASK_TITLES[task])
      axes.set_ylim(-4, 104)
      axes.xaxis.set_major_locator(MaxNLocator(4))
      axes.spines["left"].set_visible(False)
      axes.grid(axis="y")
    _blank(panels, len(tasks))
    figure.supxlabel(
      "mean log-probability of a tenth of the labels", fontsize=9, color=style.MUTED
    )
    figure.supylabel("right, %", fontsize=9, color=style.MUTED)
    return style.to_svg(
      figure, "reliability", "Share of right labels by tenths of their confidence"
    )


def _blank(panels: list[Axes], used: int) -> None:
  for axes in panels[used:]:
    axes.set_axis_off()
