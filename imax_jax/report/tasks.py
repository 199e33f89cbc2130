"""The page's heat maps of what two tasks' gradients have to do with each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from imax_jax.report import arms
from imax_jax.report import style
from imax_jax.report import tables
from imax_jax.report.tables import Results

_SHORT = {
  "calculation": "ratio", "report": "report", "multi_class": "class",
  "multi_label": "labels", "rec": "REC", "reg": "REG", "vqa": "VQA",
}  # fmt: skip
_MEASURES = {
  "overlap": "overlap of Fisher matrices",
  "cosine": "mean cosine of gradients",
  "conflict": "share of negative products",
}
_ENOUGH = 50  # pairs: of fewer, a mean of products is told by a few entries


def figure(results: Results, phase: str) -> str:
  """Heat maps of what tasks have to do with each other, a row an arm."""
  shown = _meetings(results, phase)
  if not shown:
    return ""
  with style.new_figure(9.8, 3.35 * len(shown) + 0.2) as drawn:
    grid = drawn.subplots(len(shown), len(_MEASURES), squeeze=False)
    for (arm, found), line in zip(shown.items(), grid, strict=True):
      for axes, (key, title) in zip(line, _MEASURES.items(), strict=True):
        _heat(axes, found, key)
        axes.set_title(f"{title}, {arms.ARM[arm].title}", fontsize=8.5)
    return style.to_svg(
      drawn, "fisher-tasks", "Overlap, mean cosine and conflict between the gradients of "
      "each two tasks, for DMAX and IMAX",
    )  # fmt: skip


def caption(results: Results, phase: str) -> str:
  seeds = seeds_text(
    {arm: found["seeds"] for arm, found in _meetings(results, phase).items()}
  )
  return (
    f"What two tasks’ gradients have to do with each other, phase {phase}, all groups of all "
    f"seeds together ({seeds}): entries of both that stand in one group, an entry never "
    "with itself; small, how many pairs those are. Overlap estimates the cosine between the "
    "tasks’ own Fisher matrices, 1 where they move the same directions; the estimate may "
    "leave 0 to 1 by noise. Gradients that pull apart have a negative cosine; unrelated ones "
    f"conflict in half of all pairs. –: fewer than {_ENOUGH} pairs, of the two tasks or, for "
    "overlap, of either with itself."
  )


def seeds_text(counts: Mapping[str, int]) -> str:
  """ "DMAX 1 seed, IMAX 3 seeds" """
  return ", ".join(
    f"{arms.ARM[arm].title} {count} seed{'s' * (count != 1)}"
    for arm, count in counts.items()
  )


def known(found: Mapping[str, Any], key: str) -> list[list[float | None]]:
  """A measure of each two tasks; None of fewer than `_ENOUGH` pairs.

  An overlap is also divided by how each of the two meets itself, and needs those pairs.
  """
  pairs = np.asarray(found["pairs"])
  if key == "overlap":
    own = np.diag(pairs)
    pairs = np.minimum(pairs, np.minimum.outer(own, own))
  return [
    [value if count >= _ENOUGH else None for value, count in zip(*line, strict=True)]
    for line in zip(found[key], pairs, strict=True)
  ]


def _meetings(results: Results, phase: str) -> dict[str, Mapping[str, Any]]:
  """{arm: what its tasks have to do with each other}, of all seeds."""
  found = {
    arm: tables.section(results, "fisher_tasks", phase, arm) for arm in ("dmax", "imax")
  }
  return {arm: of for arm, of in found.items() if of}


def _heat(axes: Axes, found: Mapping[str, Any], key: str) -> None:
  """A square a pair, the stronger the farther from 0: blue together, orange apart.

  Of "conflict", shares of pairs that pull apart, half say nothing. "overlap" has the
  numbers of pairs beside it.
  """
  names = [_SHORT.get(name, name) for name in found["names"]]
  counts = key == "overlap"
  for row, line in enumerate(known(found, key)):
    for column, value in enumerate(line):
      text = "–"
      if value is not None:
        along = 1 - 2 * value if key == "conflict" else value
        colour = style.RUN_COLOURS["imax" if along >= 0 else "dmax"]
        square = Rectangle(
          (column - 0.5, row - 0.5), 1, 1, facecolor=colour, linewidth=0,
          alpha=min(abs(along), 1) * 0.7,
        )  # fmt: skip
        axes.add_patch(square)
        text = f"{round(value, 2) + 0.0:.2f}".replace("-", "−")
      axes.text(
        column, row - 0.14 * counts, text, ha="center", va="center", fontsize=6.5
      )
      if counts:
        axes.text(column, row + 0.26, f"{found['pairs'][row][column]:,}", ha="center",
                  va="center", fontsize=5.0)  # fmt: skip
  places = range(len(names))
  axes.set_xticks(places, names, rotation=45, ha="right", rotation_mode="anchor")
  axes.set_yticks(places, names)
  axes.tick_params(length=0, labelsize=7.5)
  axes.set_xlim(-0.5, len(names) - 0.5)
  axes.set_ylim(len(names) - 0.5, -0.5)
  axes.set_aspect("equal")
  axes.spines[["left", "bottom"]].set_visible(False)
