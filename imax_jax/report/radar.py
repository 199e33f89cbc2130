"""Figure 3's manner: every metric of IMAX relative to DMAX, a spoke a metric.

`radar` is one row, large; `grid` has a small chart for each of several, all on the same
spokes and the same scale, so that what looks wider is wider.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from imax_jax.report import rows as rows_lib
from imax_jax.report import style
from imax_jax.report import tables
from imax_jax.report.tables import Results

_Spoke = tuple[tables.Column, float, float]  # a metric, DMAX's value and IMAX's
_PAPER: dict[str, Any] = {
  "color": style.MUTED,
  "linewidth": 1.0,
  "linestyle": (0, (2, 2)),
  "label": "IMAX in the paper, against its DMAX",
}
# Inches of a small chart: its cell, its circle, what the labels below it take, the legend.
_WIDE, _HIGH, _CIRCLE, _BELOW, _FOOT = 3.95, 3.6, 2.25, 0.48, 0.4


def radar(results: Results) -> str:
  """One row, as an SVG element, with both absolute values; "" for under 3 metrics."""
  rows = _known(results)
  if len(rows) < 3:
    return ""
  shown = [_relative(*row) for row in rows]
  paper = _papers([column for column, *_ in rows])
  bottom, top = _range([*shown, *paper], shown)
  with style.new_figure(8.6, 6.2) as figure:
    figure.set_layout_engine("none")  # it does not see the labels around a polar axis
    square = (0.225, 0.16, 0.55, 0.55 * 8.6 / 6.2)
    axes = _axes(figure, square, bottom, top, len(rows), font=7.5)
    _ring(axes, paper, **_PAPER)
    _rings(axes, shown, width=1.9)
    _whiskers(axes, results, [column for column, *_ in rows], width=3.2)
    _labels(axes, rows, top + 0.09 * (top - bottom))
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.11), ncols=3)
    described = "; ".join(f"{c.label} {old:.2f} to {now:.2f}" for c, old, now in rows)
    description = f"Metrics of IMAX relative to DMAX. {described}"
    return style.to_svg(figure, "radar", description)


def drawn(rows: Mapping[str, Results]) -> dict[str, Results]:
  """Those of {title: results} that have a chart: at least 3 metrics of DMAX and IMAX."""
  return {
    title: results for title, results in rows.items() if len(_known(results)) >= 3
  }


def grid(rows: Mapping[str, Results]) -> str:
  """A chart for each of `rows`, {title: results}, as one SVG element."""
  rows = drawn(rows)
  if not rows:
    return ""
  with style.new_figure(*_size(len(rows))) as figure:
    _grid(figure, rows)
    said = "; ".join(f"{title}, Δ {_gain(results)}" for title, results in rows.items())
    return style.to_svg(
      figure, "radars", f"Metrics of IMAX relative to DMAX of every row. {said}"
    )


def write_grid(rows: Mapping[str, Results], paths: Sequence[Path]) -> list[Path]:
  """The same figure as files on white, of the kind that each suffix says.

  Returns:
    The files: `paths`, or none where no row has a chart.
  """
  rows = drawn(rows)
  if not rows:
    return []
  with style.new_figure(*_size(len(rows))) as figure:
    _grid(figure, rows)
    for path in paths:
      style.to_file(figure, path)
  return list(paths)


# ── Many charts ───────────────────────────────────────────────────────────────────


def _columns(count: int) -> int:
  return count if count < 3 else 2 if count == 4 else 3


def _size(count: int) -> tuple[float, float]:
  """Width and height in inches; a single chart has the room of its legend."""
  columns = _columns(count)
  lines = math.ceil(count / columns)
  return max(columns * _WIDE, 6.0), lines * _HIGH + _FOOT


def _grid(figure: Figure, rows: Mapping[str, Results]) -> None:
  figure.set_layout_engine("none")
  columns = [c for c in tables.COLUMNS if any(_spoke(r, c) for r in rows.values())]
  spokes = {title: [_spoke(r, c) for c in columns] for title, r in rows.items()}
  paper = {
    title: _papers(columns)
    for title in rows
    if (known := rows_lib.printed(title)) and known.system == rows_lib.UNIFIED
  }
  shown = [_relative(*spoke) for results in rows.values() for spoke in _known(results)]
  bottom, top = _range([*shown, *(r for row in paper.values() for r in row)], shown)
  width, height = figure.get_size_inches()
  handles: dict[str, Any] = {}
  for (title, results), (x, y) in zip(rows.items(), _places(len(rows)), strict=True):
    square = ((x - _CIRCLE / 2) / width, (y + _BELOW) / height,
              _CIRCLE / width, _CIRCLE / height)  # fmt: skip
    axes = _axes(figure, square, bottom, top, len(columns), font=6.5)
    axes.set_rlabel_position(3.5 * 360 / len(columns))  # where labels leave it room
    for tick, text in zip(axes.get_yticks(), axes.get_yticklabels(), strict=True):
      text.set_visible(tick > bottom and tick % 0.5 == 0)
    if title in paper:
      _ring(axes, paper[title], **_PAPER)
    values = [math.nan if s is None else _relative(*s) for s in spokes[title]]
    _rings(axes, values, width=1.6)
    _whiskers(axes, results, columns, width=2.6)
    _small_labels(axes, columns, spokes[title], top + 0.1 * (top - bottom))
    over = (y + _BELOW + _CIRCLE + 0.71) / height
    figure.text(x / width, over, rows_lib.cut(title, 42), ha="center", va="center",
                weight="bold", fontsize=10.0, color=style.INK,
                parse_math=False)  # fmt: skip
    figure.text(x / width, over - 0.18 / height, _under(results), ha="center",
                va="center", fontsize=8.0, color=style.MUTED)  # fmt: skip
    lines, names = axes.get_legend_handles_labels()
    handles |= dict(zip(names, lines, strict=True))
  figure.legend(handles.values(), handles.keys(), loc="lower center", ncols=3,
                bbox_to_anchor=(0.5, 0.06 / height), fontsize=9.0)  # fmt: skip


def _places(count: int) -> list[tuple[float, float]]:
  """Each chart's middle and its lower edge; a last line of fewer stands in the middle."""
  width, height = _size(count)
  across, found = _columns(count), []
  for number in range(count):
    line = number // across
    here = min(across, count - line * across)
    x = width / 2 + (number % across - (here - 1) / 2) * _WIDE
    found.append((x, height - (line + 1) * _HIGH))
  return found


def _gain(results: Results) -> str:
  mean = tables.number(rows_lib.gain_of(results), "mean")
  return "–" if mean is None else f"{tables.signed(mean)} %"


def _under(results: Results) -> str:
  """What stands under a chart's title."""
  gain, seeds = rows_lib.gain_of(results), rows_lib.num_seeds(results)
  better = f"{gain.get('improved')} of {gain.get('total')} better"
  return f"Δ {_gain(results)}  ·  {better}  ·  {seeds} seed{'s' * (seeds != 1)}"


# ── The parts of a chart ──────────────────────────────────────────────────────────


def _spoke(results: Results, column: tables.Column) -> _Spoke | None:
  """A metric with both values; None where one is lacking."""
  before = tables.value_of(results, "dmax", column.name)
  after = tables.value_of(results, "imax", column.name)
  return None if before is None or after is None else (column, before, after)


def _known(results: Results) -> list[_Spoke]:
  """All metrics that have a ratio: both values, and DMAX's is not 0."""
  found = [_spoke(results, column) for column in tables.COLUMNS]
  return [spoke for spoke in found if spoke is not None and spoke[1]]


def _papers(columns: Sequence[tables.Column]) -> list[float]:
  printed = tables.PAPER_TABLE2
  return [
    _relative(c, printed["dmax"][c.name], printed["imax"][c.name]) for c in columns
  ]


def _range(above: Sequence[float], below: Sequence[float]) -> tuple[float, float]:
  """The axis' ends, in quarters: wide enough for both, never beyond 0 to 2."""
  top = max(1.25, min(2.0, math.ceil(4 * max(above) + 0.2) / 4))
  return max(0.0, min(0.5, math.floor(4 * min(below) - 0.2) / 4)), top


def _axes(
  figure: Figure,
  square: tuple[float, float, float, float],
  bottom: float,
  top: float,
  count: int,
  *,
  font: float,
) -> Any:
  axes: Any = figure.add_axes(square, projection="polar")
  axes.set_theta_offset(np.pi / 2)
  axes.set_theta_direction(-1)
  axes.set_ylim(bottom, top)
  ticks = np.arange(bottom, top + 1e-9, 0.25)
  names = [f"{tick:g}×" for tick in ticks]
  axes.set_yticks(ticks, names, fontsize=font, color=style.MUTED)
  axes.set_rlabel_position(180 / count)
  axes.set_xticks(_angles(count), [""] * count)
  axes.spines["polar"].set_visible(False)
  return axes


def _angles(count: int) -> np.ndarray:
  return np.linspace(0, 2 * np.pi, count, endpoint=False)


def _rings(axes: Any, values: Sequence[float], *, width: float) -> None:
  line: dict[str, Any] = {"color": style.RUN_COLOURS["dmax"], "linewidth": width - 0.4}
  _ring(axes, [1.0] * len(values), label="DMAX (= 1)", **line)
  line = {"color": style.RUN_COLOURS["imax"], "linewidth": width}
  _ring(axes, values, fill=0.12, label="IMAX", **line)


def _ring(
  axes: Any, values: Sequence[float], *, fill: float = 0.0, **line: Any
) -> None:
  """A closed line round the axis, open where a value is lacking; what lies beyond its
  edges is drawn on them."""
  angles = np.linspace(0, 2 * np.pi, len(values) + 1)
  inside = np.clip([*values, values[0]], *axes.get_ylim())
  axes.plot(angles, inside, **line)
  if fill and np.isfinite(inside).all():
    axes.fill(angles, inside, color=line["color"], alpha=fill, linewidth=0)


def _whiskers(
  axes: Any, results: Results, columns: Sequence[tables.Column], *, width: float
) -> None:
  """Each metric's 95 % interval along its axis."""
  tests = tables.section(results, "gains", "imax", "tests")
  for angle, column in zip(_angles(len(columns)), columns, strict=True):
    ends = tables.limits(tables.section(tests, column.name), "gain_interval")
    if ends is not None:
      inside = np.clip([1 + end / 100 for end in ends], *axes.get_ylim())
      axes.plot([angle, angle], inside, color=style.RUN_COLOURS["imax"], linewidth=width,
                alpha=0.45, solid_capstyle="butt")  # fmt: skip


def _relative(column: tables.Column, before: float, after: float) -> float:
  """1 + the metric's gain in Eq. 1: above 1 is better, errors included; NaN from 0."""
  if before == 0:
    return math.nan
  change = (after - before) / before
  return 1.0 - change if column.lower_is_better else 1.0 + change


def _labels(axes: Any, rows: Sequence[_Spoke], radius: float) -> None:
  texts = [
    (f"{column.label} {column.arrow}", _values(before, after))
    for column, before, after in rows
  ]
  _around(axes, texts, radius, font=8.5, apart=6.5)


def _small_labels(
  axes: Any,
  columns: Sequence[tables.Column],
  spokes: Sequence[_Spoke | None],
  radius: float,
) -> None:
  texts = [
    (f"{column.short} {column.arrow}", "–" if spoke is None else _values(*spoke[1:]))
    for column, spoke in zip(columns, spokes, strict=True)
  ]
  _around(axes, texts, radius, font=8.0, apart=5.3, lift=4.0)


def _values(before: float, after: float) -> str:
  return f"{before:.1f} → {after:.1f}"


def _around(
  axes: Any,
  texts: Sequence[tuple[str, str]],
  radius: float,
  *,
  font: float,
  apart: float,
  lift: float = 0.0,
) -> None:
  """Two lines at the end of each spoke: the metric, and its values.

  Those beside the top and the bottom stand `lift` points farther, clear of the next.
  """
  for angle, lines in zip(_angles(len(texts)), texts, strict=True):
    side = np.sin(angle)
    align = "center" if abs(side) < 0.2 else "left" if side > 0 else "right"
    up = lift * np.sign(np.cos(angle)) if 0.2 < abs(side) < 0.5 else 0.0
    # Two texts, for only a single line's alignment survives another font's widths.
    for shift, text, colour in (
      (apart, lines[0], style.INK),
      (-apart, lines[1], style.MUTED),
    ):
      axes.annotate(
        text, (angle, radius), xytext=(0, up + shift), textcoords="offset points",
        ha=align, va="center", fontsize=font, color=colour, annotation_clip=False,
      )  # fmt: skip
