"""Tables 1 and 2 and the gains for a terminal of 100 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence

from imax_jax.report import arms
from imax_jax.report import rows as rows_lib
from imax_jax.report import tables
from imax_jax.report.tables import Column
from imax_jax.report.tables import Results

WIDTH = 100


def text_table(results: Results) -> str:
  """A metric a line, a run a column; as many tables as the columns need.

  "*" marks the best trained run of a line and "<" one that is not told from an answer
  given without the image.
  """
  runs = tables.measured_runs(results)
  if not runs:
    return "Nothing has been evaluated: results.json holds no tables."
  rule = "─" * WIDTH
  text = [rule]
  for block in _blocks(results, runs):
    text += [block[0], rule, *block[1:], rule]
  text += _gains(results)
  return "\n".join([*text, rule, *_legend(results)])


def _blocks(results: Results, runs: Sequence[str]) -> Iterator[list[str]]:
  """The table, broken between runs where it grows too wide."""
  names = ["metric (× 100)", *(f"{c.arrow} {c.label}" for c in tables.COLUMNS)]
  label = max(map(len, names))
  columns = []
  for run in runs:
    cells = [arms.ARM[run].short, *(_cell(results, run, c) for c in tables.COLUMNS)]
    cells[0] += " " * (
      0 if run in arms.BLIND else 2
    )  # above the numbers, not the marks
    width = max(map(len, cells))
    columns.append([cell.rjust(width) for cell in cells])
  while columns:
    taken, used = 0, label
    while taken < len(columns) and used + 2 + len(columns[taken][0]) <= WIDTH:
      used += 2 + len(columns[taken][0])
      taken += 1
    block, columns = columns[: max(taken, 1)], columns[max(taken, 1) :]
    yield [
      "  ".join([name.ljust(label), *cells]).rstrip()
      for name, cells in zip(names, zip(*block, strict=True), strict=True)
    ]


def _cell(results: Results, run: str, column: Column) -> str:
  value = tables.value_of(results, run, column.name)
  if value is None:
    return "–" + " " * (0 if run in arms.BLIND else 2)
  if run in arms.BLIND:
    return f"{value:.2f}"
  trained = {
    name: tables.section(results, "tables", name)
    for name in arms.TRAINED
    if tables.section(results, "tables", name)
  }
  best = [name for name, place in tables.ranks(trained, column).items() if place == 1]
  ends = tables.limits(tables.section(results, "intervals", run), column.name)
  text = f"{value:.2f}" + (f"±{(ends[1] - ends[0]) / 2:.2f}" if ends else "")
  behind = tables.is_behind(results, run, column)
  return text + ("*" if best == [run] else " ") + ("<" if behind else " ")


def _gains(results: Results, pairs: Sequence[arms.Pair] = arms.PAIRS) -> list[str]:
  rows = [
    [
      "Δ (Eq. 1)",
      "mean %",
      "95 % interval",
      "better",
      "median %",
      "p seeds",
      "p patients",
    ]
  ]
  for pair in tables.measured_pairs(results):
    if pair not in pairs:
      continue
    gain = tables.section(results, "gains", pair.name)
    mean, median = tables.number(gain, "mean"), tables.number(gain, "median")
    ends = tables.limits(gain, "interval")
    rows.append([
      pair.short,
      "–" if mean is None else tables.signed(mean),
      tables.between(ends) if ends else "–",
      f"{gain.get('improved')} of {gain.get('total')}",
      "–" if median is None else tables.signed(median),
      tables.chance(tables.number(gain, "p_seeds")),
      tables.chance(tables.number(gain, "p_patients")),
    ])  # fmt: skip
  if len(rows) == 1:
    return ["Δ no two runs to compare"]
  widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
  return [
    "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
    for row in rows
  ]


def compared(rows: Mapping[str, Results]) -> str:
  """Table 1 of several rows, {title: results}, the paper's beside it; then their other
  comparisons, and what must be known of each."""
  rule = "─" * WIDTH
  said = rows_lib.said_of(rows, lambda r: [*rows_lib.caveats_of(r), *rows_lib.lacks(r)])
  notes = [f"! {whose}: {sentence}" for whose, sentence in said]
  notes += rows_lib.notes(rows)
  text = [rule, f"Table 1: {rows_lib.MAIN.short}", rule, *_table1(rows), rule]
  for title, results in rows.items():
    others = [p for p in tables.measured_pairs(results) if p != rows_lib.MAIN]
    if others:
      text += [*_wrapped([title]), *_gains(results, others), rule]
  return "\n".join([*text, *_wrapped([_TABLE1_LEGEND, *notes])])


_TABLE1_LEGEND = (
  "n: seeds. 95 %: of Δ, over seeds and test patients (over seeds alone: on the page). p pat.: "
  "answers exchanged between the two runs. better, worse: told from zero by several seeds; "
  "differ: one seed, these models do, by interval and p pat. paper: improved metrics of 16 and Δ that it prints of "
  "the full system on real radiographs; no target for another size or other data."
)
_SHORT = {"one seed: these models differ": "differ", "nothing to compare": "nothing"}


def _table1(rows: Mapping[str, Results]) -> list[str]:
  """A line a row; names are cut where the line would grow wider than the terminal."""
  head = [
    "",
    "n",
    "better",
    "Δ %",
    "95 % interval",
    "median",
    "p seeds",
    "p pat.",
    "read",
  ]
  lines = [[*head, "paper"]]
  for title, results in rows.items():
    gain, found = rows_lib.gain_of(results), rows_lib.printed(title)
    mean, median = tables.number(gain, "mean"), tables.number(gain, "median")
    ends, read = tables.limits(gain, "interval"), tables.read_as(gain)
    lines.append([
      title,
      str(tables.num_seeds(gain) or rows_lib.num_seeds(results)),
      f"{gain.get('improved')}/{gain.get('total')}" if gain else "–",
      "–" if mean is None else tables.signed(mean),
      " to ".join(tables.signed(end, 1) for end in ends) if ends else "–",
      "–" if median is None else tables.signed(median, 1),
      tables.chance(tables.number(gain, "p_seeds")),
      tables.chance(tables.number(gain, "p_patients")),
      _SHORT.get(read, read) if gain else "no Δ",
      f"{found.improved}/16 {tables.signed(found.percent)}" if found else "",
    ])  # fmt: skip
  widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
  name = max(8, min(widths[0], WIDTH - sum(widths[1:]) - 2 * (len(widths) - 1)))
  return [
    "  ".join(
      [rows_lib.cut(line[0], name).ljust(name), *map(str.rjust, line[1:], widths[1:])]
    ).rstrip()
    for line in lines
  ]


def _verdicts(results: Results) -> list[str]:
  noise = tables.section(results, "noise")
  said = [
    f"{pair.title}: "
    + tables.verdict(
      tables.section(results, "gains", pair.name), tables.number(noise, pair.base)
    )
    for pair in tables.measured_pairs(results)
  ]
  caveats = [*(results.get("caveats") or ()), *(results.get("fisher_caveats") or ())]
  return said + [f"! {caveat}" for caveat in caveats]


def _wrapped(said: Sequence[str]) -> list[str]:
  """Lines of at most `WIDTH`; a number keeps its percent sign."""
  return [
    line.replace("\xa0", " ")
    for text in said
    for line in textwrap.wrap(
      text.replace(" %", "\xa0%"), WIDTH, subsequent_indent="  "
    )
  ]


def _legend(results: Results) -> list[str]:
  seeds = max(
    (len(rows) for rows in tables.section(results, "per_seed").values() if rows),
    default=0,
  )
  over = f"{seeds} seeds and the test patients" if seeds > 1 else "the test patients"
  said = [
    "* best trained run  < not told from an answer given without the image  ± half the "
    f"95 % interval over {over}",
    "const.: the best constant answer; blind: the best to the prompt alone. p seeds: signs "
    "of the seeds' gains flipped (of the recipes); p patients: answers exchanged between the "
    "two runs (of these very models).",
  ]
  return _wrapped([*said, *_verdicts(results)])
