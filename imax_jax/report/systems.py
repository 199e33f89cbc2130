"""All metrics of several rows in one table, as the paper's Table 2 lies: a run a line."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence

from imax_jax.report import arms
from imax_jax.report import markup
from imax_jax.report import rows as rows_lib
from imax_jax.report import table2
from imax_jax.report import tables
from imax_jax.report.tables import Column
from imax_jax.report.tables import Results

_RUNS = (rows_lib.MAIN.base, rows_lib.MAIN.new)


def metrics(rows: Mapping[str, Results]) -> str:
  """DMAX and IMAX of every row; under the unified model the paper's own."""
  body = "".join(_row(title, results) for title, results in rows.items())
  if not body:
    return markup.ABSENT
  without, shared = _without_image(rows)
  legend = (
    "Means over seeds, × 100. ↓ lower is better, ↑ higher is better. <b>Bold</b>: IMAX’s, "
    "where it is better than DMAX’s by Holm’s p below 0.05; <u>underlined</u>: where it is "
    "worse by that (answers exchanged patient by patient, of the models trained here). "
    "† and pale: not told from an answer given without the image. Intervals stand in each "
    f"row’s own table{'' if shared else ', and what is scored without the image'}."
  )
  return (
    f'<div class="wide"><table class="table2 metrics">{_head()}{body}{without}</table>'
    f'</div><p class="legend">{legend}</p>'
  )


def _head() -> str:
  over, under = "", ""
  for group, columns in table2.groups():
    over += f'<th colspan="{len(columns)}"{_first(True)}><span>{group}</span></th>'
    for number, column in enumerate(columns):
      name = " ".join(filter(None, (column.part, column.title)))
      under += (
        f'<th scope="col"{_first(not number)}>{markup.text(name)}&nbsp;'
        f'<span class="arrow">{column.arrow}</span></th>'
      )
  return f"<thead><tr><td></td><td></td>{over}</tr><tr><td></td><td></td>{under}</tr></thead>"


def _first(is_first: bool) -> str:
  return ' class="first"' if is_first else ""


def _row(title: str, results: Results) -> str:
  """A row's lines in a body of their own; "" where neither run has numbers."""
  runs = [run for run in _RUNS if tables.section(results, "tables", run)]
  lines = [
    (run, arms.ARM[run].title, [_cell(results, run, c) for c in tables.COLUMNS])
    for run in runs
  ]
  found = rows_lib.printed(title)
  if lines and found and found.system == rows_lib.UNIFIED:
    for run in _RUNS:
      cells = [
        (f"{tables.PAPER_TABLE2[run][c.name]:.2f}", "paper") for c in tables.COLUMNS
      ]
      lines.append(("", f"{arms.ARM[run].title}, paper", cells))
  text = ""
  for number, (run, name, cells) in enumerate(lines):
    head = (
      f'<th scope="rowgroup" rowspan="{len(lines)}">{markup.text(title)}</th>'
      if not number
      else ""
    )
    swatch = f' style="--swatch:var(--{arms.variable(run)})"' if run else ""
    kind = "run" if run else "paper"
    head += f'<th scope="row" class="{kind}"{swatch}>{markup.text(name)}</th>'
    text += f"<tr>{head}{_cells(cells)}</tr>"
  return f"<tbody>{text}</tbody>" if text else ""


def _cells(cells: Sequence[tuple[str, str]]) -> str:
  """[(HTML, class)] of all columns, the first of each group apart from those before."""
  firsts = [not n for _, columns in table2.groups() for n in range(len(columns))]
  return "".join(
    f'<td class="{" ".join(filter(None, (kind, "first" if first else "")))}">{cell}</td>'
    for (cell, kind), first in zip(cells, firsts, strict=True)
  )


def _cell(results: Results, run: str, column: Column) -> tuple[str, str]:
  value = tables.value_of(results, run, column.name)
  if value is None:
    return "–", "absent"
  shown = f"{value:.2f}"
  test = tables.section(rows_lib.gain_of(results), "tests", column.name)
  change, p = tables.number(test, "gain"), tables.number(test, "p_holm")
  if run == rows_lib.MAIN.new and change and p is not None and p < 0.05:
    shown = f"<b>{shown}</b>" if change > 0 else f"<u>{shown}</u>"
  if tables.is_behind(results, run, column):
    return f"{shown}<sup>†</sup>", "behind"
  return shown, ""


def _without_image(rows: Mapping[str, Results]) -> tuple[str, bool]:
  """Two lines of what is scored without the image, and whether all rows have the same."""
  found = [
    [tables.section(results, "tables", run) for run in arms.BLIND]
    for results in rows.values()
  ]
  if not all(map(all, found)) or any(one != found[0] for one in found):
    return "", False
  text = ""
  for number, (run, scores) in enumerate(zip(arms.BLIND, found[0], strict=True)):
    values = [tables.number(scores, column.name) for column in tables.COLUMNS]
    cells = [("–" if value is None else f"{value:.2f}", run) for value in values]
    head = (
      '<th scope="rowgroup" rowspan="2">Without the image</th>' if not number else ""
    )
    text += (
      f'<tr>{head}<th scope="row" class="run" style="--swatch:var(--{run})">'
      f"{markup.text(arms.ARM[run].short)}</th>{_cells(cells)}</tr>"
    )
  return f'<tbody class="without">{text}</tbody>', True
