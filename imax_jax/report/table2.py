"""Table 2 as HTML: every metric of every run with its interval, beside the paper's.

The paper's table lies on its side here: a metric a line, a run a column, so that each
number has room for its interval, on screen and on a printed page.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence

from imax_jax.report import arms
from imax_jax.report import markup
from imax_jax.report import tables
from imax_jax.report.tables import Column
from imax_jax.report.tables import Results

PAPER_ARMS: tuple[str, ...] = tuple(tables.PAPER_TABLE2)


def table2(results: Results, *, paper: bool = True) -> str:
  """The runs that were measured; "not run" where none was.

  `paper` sets the paper's Table 2 beside them, which is of its unified model.
  """
  runs = tables.measured_runs(results)
  quoted = PAPER_ARMS if paper else ()
  if not runs:
    return markup.ABSENT
  seeds = max(map(len, tables.section(results, "per_seed").values()), default=1)
  over = f"{seeds} seeds and the test patients" if seeds > 1 else "the test patients"
  told = "; ".join(
    f"<i>{markup.text(arms.ARM[run].title)}</i>: {markup.text(arms.ARM[run].told)}"
    for run in runs
  )
  legend = (
    "Values × 100. ↓ lower is better, ↑ higher is better. Small: the 95 % interval over "
    f"{over} (percentiles of {'two-level ' if seeds > 1 else ''}bootstrap draws of "
    "patients, not of answers). <b>Bold</b>: best trained run, <u>underlined</u>: second. "
    "† not told from an answer given without the image: the interval of the lead holds 0; "
    "the constants are chosen on the training entries by each metric’s own criterion. "
    f"{told}. {_QUOTED if paper else ''}BLEU here is BLEU-1."
  )
  return (
    f'<div class="wide"><table class="table2">{_head(runs, quoted)}'
    f"{_body(results, runs, quoted)}{_gains(results, runs, quoted)}</table></div>"
    f'<p class="legend">{legend}</p>{_per_seed(results)}'
  )


_QUOTED = (
  "The paper’s (47,600 real radiographs, a 7 B decoder) are of another scale, not a "
  "target; its third REG value is printed as 3.41, its average gain requires 83.41. "
)


def groups() -> Iterator[tuple[str, list[Column]]]:
  """The columns of Table 2 by their group, in order."""
  found: dict[str, list[Column]] = {}
  for column in tables.COLUMNS:
    found.setdefault(column.group, []).append(column)
  yield from found.items()


def metric_head(results: Results, column: Column) -> str:
  """A line's heading; its definition and version appear under the pointer."""
  said = tables.section(results, "definitions", "strict", column.name)
  hint = ""
  if said:
    hint = f' title="{markup.text(said.get("definition"))} {markup.text(said.get("version"))}"'
  return (
    f'<th scope="row"{hint}>{markup.text(column.label)}&nbsp;'
    f'<span class="arrow">{column.arrow}</span></th>'
  )


def run_heads(runs: Sequence[str]) -> str:
  """A column's heading: the run's title under its colour."""
  return "".join(
    f'<th scope="col" class="run" style="--swatch:var(--{arms.variable(run)})">'
    f"{markup.text(arms.ARM[run].title)}</th>"
    for run in runs
  )


def _head(runs: Sequence[str], quoted: Sequence[str]) -> str:
  paper = "".join(
    f'<th scope="col" class="paper{" first" * (not number)}">'
    f"{markup.text(arms.ARM[run].title)}</th>"
    for number, run in enumerate(quoted)
  )
  over = f'<th colspan="{len(quoted)}" class="first"><span>the paper’s</span></th>'
  return (
    f'<thead><tr><td></td><th colspan="{len(runs)}"><span>measured</span></th>'
    f"{over if quoted else ''}</tr>"
    f"<tr><td></td>{run_heads(runs)}{paper}</tr></thead>"
  )


def _body(results: Results, runs: Sequence[str], quoted: Sequence[str]) -> str:
  trained = {
    run: tables.section(results, "tables", run) for run in runs if run in arms.TRAINED
  }
  text = ""
  for _, columns in groups():
    text += "<tbody>"
    for column in columns:
      places = tables.ranks(trained, column)
      cells = "".join(_cell(results, run, column, places.get(run)) for run in runs)
      places = tables.ranks(tables.PAPER_TABLE2, column)
      for number, run in enumerate(quoted):
        shown = _ranked(tables.PAPER_TABLE2[run][column.name], places.get(run))
        cells += f'<td class="paper{" first" * (not number)}">{shown}</td>'
      text += f"<tr>{metric_head(results, column)}{cells}</tr>"
    text += "</tbody>"
  return text


def _cell(results: Results, run: str, column: Column, place: int | None) -> str:
  value = tables.value_of(results, run, column.name)
  if value is None:
    return '<td class="absent">–</td>'
  shown, kind = _ranked(value, place), run if run in arms.BLIND else ""
  if tables.is_behind(results, run, column):
    shown += '<sup title="not told from an answer given without the image">†</sup>'
    kind = "behind"
  ends = tables.limits(tables.section(results, "intervals", run), column.name)
  std, hint = tables.std_of(results, run, column.name), ""
  if std is not None and run in arms.TRAINED:
    hint = f' title="standard deviation over seeds {std:.2f}"'
  if ends is None:
    why = tables.section(results, "no_interval", run).get(column.name)
    shown += f'<small title="{markup.text(why)}">–</small>' if why else ""
  else:
    shown += f"<small>{ends[0]:.1f}–{ends[1]:.1f}</small>"
  return f'<td class="{kind}"{hint}>{shown}</td>'


def _gains(results: Results, runs: Sequence[str], quoted: Sequence[str]) -> str:
  """The last line: the average gain over DMAX."""
  of = {pair.new: pair.name for pair in arms.PAIRS if pair.base == "dmax"}
  cells = ""
  for run in runs:
    gain = tables.section(results, "gains", of.get(run, ""))
    mean, ends = tables.number(gain, "mean"), tables.limits(gain, "interval")
    shown = "–" if mean is None else tables.signed(mean)
    if ends:
      shown += "<small>" + "<br>to ".join(map(tables.signed, ends)) + "</small>"
    cells += f"<td>{shown}</td>"
  for number, run in enumerate(quoted):
    printed = tables.PAPER_GAINS.get(run)
    shown = "–" if printed is None else tables.signed(printed)
    cells += f'<td class="paper{" first" * (not number)}">{shown}</td>'
  return (
    '<tbody class="gain"><tr><th scope="row">Δ over DMAX, %&nbsp;'
    f'<span class="arrow">↑</span></th>{cells}</tr></tbody>'
  )


def _ranked(value: float, place: int | None) -> str:
  text = f"{value:.2f}"
  return {1: f"<b>{text}</b>", 2: f"<u>{text}</u>"}.get(place or 0, text)


def _per_seed(results: Results) -> str:
  """Every seed's scores, a line a seed."""
  rows = []
  names = results.get("seeds")
  for run in arms.TRAINED:
    seeds = tables.section(results, "per_seed").get(run) or []
    known = names.get(run) if isinstance(names, dict) else None
    if not isinstance(known, list) or len(known) != len(seeds):
      known = list(range(1, len(seeds) + 1))
    for name, scores in zip(known, seeds, strict=True):
      cells = "".join(
        f"<td>{'–' if value is None else f'{value:.2f}'}</td>"
        for value in (tables.number(scores, column.name) for column in tables.COLUMNS)
      )
      title = markup.text(f"{arms.ARM[run].title}, seed {name}")
      rows.append(f'<tr><th scope="row">{title}</th>{cells}</tr>')
  if not rows:
    return ""
  head = "".join(
    f'<th scope="col">{markup.text(c.label)}&nbsp;{c.arrow}</th>'
    for c in tables.COLUMNS
  )
  return (
    '<details><summary>Every seed</summary><div class="wide"><table class="seeds">'
    f"<thead><tr><td></td>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    "</details>"
  )
