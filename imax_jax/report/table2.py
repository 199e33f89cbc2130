"""Table 2 as HTML: measured, beside the paper's, in the paper's own orientation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from imax_jax.report import markup
from imax_jax.report import tables
from imax_jax.report.tables import Results


def table2(results: Results) -> str:
  body = "".join(_table_row(results, run) for run in tables.RUN_TITLES)
  paper = "".join(_paper_row(run) for run in tables.PAPER_TABLE2)
  num_columns = len(tables.COLUMNS) + 2
  legend = (
    "Values × 100. ↓ lower is better, ↑ higher is better. <b>Bold</b>: best trained run, "
    "<u>underlined</u>: second. † no better than an answer given without the image: the best "
    "constant, or the best to the prompt alone (a question’s most rewarding answer, the organ "
    "whose mean box is nearest), both chosen on the training entries by each metric’s own "
    "criterion. "
    "± sample standard deviation over seeds. “DMAX, step-matched” trains on DMAX for as "
    "many steps as the three stages take together. The paper’s third REG value is printed "
    "as 3.41; its average gain requires 83.41. BLEU here is BLEU-1."
  )
  return (
    f'<div class="wide"><table class="table2">{_table_head()}'
    f"<tbody>{body}</tbody><tbody>"
    f'<tr class="caption"><th colspan="{num_columns}">The paper’s own Table 2 '
    "(47,600 real radiographs, a 7 B decoder): another scale, not a target</th></tr>"
    f'{paper}</tbody></table></div><p class="legend">{legend}</p>{_per_seed(results)}'
  )


def _table_head() -> str:
  groups = _runs([column.group for column in tables.COLUMNS])
  parts = _runs([(column.group, column.part) for column in tables.COLUMNS])
  first = "".join(
    f'<th colspan="{n}" class="first"><span>{markup.text(g)}</span></th>'
    for g, n in groups
  )
  second = "".join(
    f'<th colspan="{n}">{markup.text(part)}</th>' for (_, part), n in parts
  )
  third = "".join(
    f'<th scope="col" aria-label="{markup.text(c.label)}"{_first(c)}>'
    f"{markup.text(c.title)}&nbsp;{c.arrow}</th>"
    for c in tables.COLUMNS
  )
  return (
    "<thead><tr><td></td>" + first + '<th class="first"><span>Average</span></th></tr>'
    f"<tr><td></td>{second}<th>gain</th></tr>"
    f'<tr><td></td>{third}<th scope="col" aria-label="Average gain" class="first">'
    "Δ&nbsp;%&nbsp;↑</th></tr></thead>"
  )


def _first(column: tables.Column, *classes: str) -> str:
  """The class attribute of a cell; a group's first column stands a little apart."""
  before = tables.COLUMNS[tables.COLUMNS.index(column) - 1]
  apart = (before.group, before.part) != (column.group, column.part)
  names = " ".join([*classes, *(["first"] if apart else [])])
  return f' class="{names}"' if names else ""


def _runs(items: Sequence[Any]) -> list[tuple[Any, int]]:
  """[a, a, b] -> [(a, 2), (b, 1)]."""
  runs: list[tuple[Any, int]] = []
  for item in items:
    if runs and runs[-1][0] == item:
      runs[-1] = (item, runs[-1][1] + 1)
    else:
      runs.append((item, 1))
  return runs


def _table_row(results: Results, run: str) -> str:
  head = f'<tr class="{run}"><th scope="row">{markup.text(tables.RUN_TITLES[run])}</th>'
  if not tables.section(results, "tables", run):
    span = len(tables.COLUMNS) + 1
    return f'{head}<td colspan="{span}" class="absent">not run</td></tr>'
  trained = {
    name: tables.section(results, "tables", name) for name in tables.TRAINED_RUNS
  }
  cells = []
  for column in tables.COLUMNS:
    value = tables.value_of(results, run, column.name)
    if value is None:
      cells.append(f"<td{_first(column, 'absent')}>–</td>")
      continue
    std = None
    if run not in tables.BLIND_RUNS:
      std = tables.std_of(results, run, column.name)
    behind = tables.is_behind(results, run, column)
    shown = _ranked(value, tables.ranks(trained, column).get(run))
    if behind:
      shown += '<sup title="no better than an answer given without the image">†</sup>'
    kind = _first(column, *(["behind"] if behind else []))
    cells.append(f"<td{kind}>{shown}{_deviation(std)}</td>")
  gain = tables.section(results, "gains", run)
  mean, std = tables.number(gain, "mean"), tables.number(gain, "std")
  shown = "–" if mean is None else f"{tables.signed(mean)}"
  return (
    f'{head}{"".join(cells)}<td class="gain first">{shown}{_deviation(std)}</td></tr>'
  )


def _deviation(std: float | None) -> str:
  return "" if std is None else f"<small>±{std:.2f}</small>"


def _paper_row(run: str) -> str:
  cells = []
  for column in tables.COLUMNS:
    place = tables.ranks(tables.PAPER_TABLE2, column).get(run)
    shown = _ranked(tables.PAPER_TABLE2[run][column.name], place)
    cells.append(f"<td{_first(column)}>{shown}</td>")
  printed = tables.PAPER_GAINS.get(run)
  gain = "–" if printed is None else f"{tables.signed(printed)}"
  title = markup.text(tables.RUN_TITLES[run])
  return (
    f'<tr><th scope="row">{title}</th>{"".join(cells)}'
    f'<td class="gain first">{gain}</td></tr>'
  )


def _ranked(value: float, place: int | None) -> str:
  text = f"{value:.2f}"
  return {1: f"<b>{text}</b>", 2: f"<u>{text}</u>"}.get(place or 0, text)


def _per_seed(results: Results) -> str:
  rows = []
  known = tables.section(results, "config").get("seeds")
  known = known if isinstance(known, list | tuple) else ()
  for run, seeds in tables.section(results, "per_seed").items():
    # Scores stand in the order of the config's seeds unless some are missing.
    names = known if len(known) == len(seeds or []) else range(1, len(seeds or []) + 1)
    gains = tables.section(results, "gains", run).get("per_seed") or []
    gains = gains if len(gains) == len(names) else [None] * len(names)
    for name, scores, gain in zip(names, seeds or [], gains, strict=True):
      cells = ""
      for column in tables.COLUMNS:
        value = tables.number(scores, column.name)
        cells += f"<td{_first(column)}>{'–' if value is None else f'{value:.2f}'}</td>"
      title = markup.text(f"{tables.RUN_TITLES.get(run, run)}, seed {name}")
      shown = "–" if gain is None else tables.signed(gain)
      rows.append(
        f'<tr><th scope="row">{title}</th>{cells}<td class="gain first">{shown}</td></tr>'
      )
  if not rows:
    return ""
  return (
    '<details><summary>Every seed</summary><div class="wide"><table class="table2">'
    f"{_table_head()}<tbody>{''.join(rows)}</tbody></table></div></details>"
  )
