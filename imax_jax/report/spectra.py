"""Figure 5: how the Fisher information spreads at four phases of training."""

from __future__ import annotations

import re
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from imax_jax.report import arms
from imax_jax.report import style
from imax_jax.report.tables import Results

PHASES: tuple[str, ...] = ("initial", "early", "mid", "late")


def fisher(results: Results) -> str:
  """Figure 5, extended: both indicators of both estimates at each phase."""
  rows = [row for row in results.get("fisher") or [] if isinstance(row, Mapping)]
  kinds = [k for k in ("sampled", "exact") if any(row.get("kind") == k for row in rows)]
  if not kinds:
    return ""
  titles = {
    "sampled": "sampled: one scalar a matrix",
    "exact": "exact: all trainable parameters",
  }
  with style.new_figure(9.8, 2.75 * len(kinds) + 0.5) as figure:
    engine: Any = figure.get_layout_engine()
    engine.set(hspace=0.09, wspace=0.05)
    grid = figure.subplots(len(kinds), 2, squeeze=False)
    for kind, line in zip(kinds, grid, strict=True):
      for axes, key, title in (
        (line[0], "entropy", "spectral entropy"),
        (line[1], "dominant", "dominant eigenvalue ratio, %"),
      ):
        _violins(axes, [row for row in rows if row.get("kind") == kind], key)
        axes.set_title(f"{title} ({titles[kind]})")
    handles, names = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=2)
    return style.to_svg(
      figure, "fisher", "Spectral entropy and dominant eigenvalue ratio of the Fisher "
      "information by training phase for DMAX and IMAX; numbers in the table below",
    )  # fmt: skip


def samples(
  rows: Sequence[Mapping[str, Any]], arm: str, phase: str, key: str
) -> np.ndarray:
  """All finite values of an arm at a phase, its seeds pooled."""
  values = [
    value
    for row in rows
    if re.sub(r"-s\d+$", "", str(row.get("run"))) == arm and row.get("phase") == phase
    for value in row.get(key) or []
    if value is not None
  ]
  array = np.array(values, float)
  return array[np.isfinite(array)]


def _violins(axes: Axes, rows: Sequence[Mapping[str, Any]], key: str) -> None:
  for arm, shift in (("dmax", -0.2), ("imax", 0.2)):
    colour = style.RUN_COLOURS[arm]
    for place, phase in enumerate(PHASES):
      values = samples(rows, arm, phase, key)
      if not len(values):
        continue
      at = place + shift
      if len(values) > 2 and np.ptp(values) > 0:
        parts: Any = axes.violinplot([values], [at], widths=0.36, showextrema=False)
        for body in parts["bodies"]:
          body.set(facecolor=colour, alpha=0.25, edgecolor="none")
      line = {"color": colour, "linewidth": 1.0}
      axes.boxplot(
        [values], positions=[at], widths=0.11, showfliers=False, patch_artist=True,
        boxprops={"facecolor": style.PAPER, "edgecolor": colour, "linewidth": 1.0},
        medianprops={"color": colour, "linewidth": 1.8}, whiskerprops=line,
        capprops={"linewidth": 0},
      )  # fmt: skip
    axes.fill([], [], color=colour, alpha=0.5, label=arms.ARM[arm].title)
  axes.set_xticks(range(len(PHASES)), PHASES)
  axes.set_xlim(-0.55, len(PHASES) - 0.45)
  axes.grid(axis="y")
  axes.spines["left"].set_visible(False)
