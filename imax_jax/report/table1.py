"""Table 1: the average gains with their intervals and tests, and each metric's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from imax_jax.report import markup
from imax_jax.report import table2
from imax_jax.report import tables
from imax_jax.report.tables import Results

_HEAD = (
  "", "improved / total", "Δ, %", "95 % over seeds and patients", "95 % over seeds",
  "p, seeds", "p, patients", "read as",
)  # fmt: skip


def table1(rows: Mapping[str, Results], *, paper: bool = False) -> str:
  """A line for each comparison of each of `rows`, {title: results}.

  A title is shown where there are several. `paper` adds the paper's own lines.
  """
  lines: list[list[str]] = []
  for title, results in rows.items():
    for pair in tables.measured_pairs(results):
      gain = tables.section(results, "gains", pair.name)
      name = f"{title}: {pair.title}" if len(rows) > 1 else pair.title
      lines.append([name, *_cells(gain)])
  if not lines:
    return markup.ABSENT
  quoted = []
  for model, improved, percent in tables.PAPER_TABLE1 if paper else ():
    quoted.append(len(lines))
    lines.append(
      [f"the paper’s {model}", f"{improved} / 16", tables.signed(percent), *["–"] * 5]
    )
  return markup.facts(_HEAD, lines, muted=quoted) + f'<p class="legend">{_LEGEND}</p>'


_LEGEND = (
  "Δ is the mean over metrics of the relative changes (Eq. 1), errors turned so that a "
  "fall is a gain, and over seeds. Both intervals recompute all of Δ: drawn are the seeds "
  "and, for each, the test patients, the same for both runs (two-level bootstrap); over "
  "seeds alone it is Student’s t. p, seeds: the signs of the seeds’ gains are flipped, "
  "which is about the recipes, and cannot fall below 2 / 2ⁿ with n seeds. p, patients: "
  "the two runs’ answers are exchanged patient by patient, which is about these very "
  "models: two seeds of one recipe often differ by it. Read as an effect is what several "
  "seeds tell from zero by both intervals; all else is noise. Nothing is adjusted for how "
  "many comparisons stand here: of twenty without an effect, one may be read as one."
)


def _cells(gain: Mapping[str, Any]) -> list[str]:
  mean = tables.number(gain, "mean")
  both, seeds = tables.limits(gain, "interval"), tables.limits(gain, "over_seeds")
  if mean is None:
    return ["0 / 0", *["–"] * 5, "nothing to compare"]
  if tables.is_same(gain):
    read = "the same"
  elif tables.is_told(gain):
    read = "better" if mean > 0 else "worse"
  elif seeds is None and both and not both[0] <= 0 <= both[1]:
    read = "one seed: these models differ"
  else:
    read = "noise"
  return [
    f"{gain.get('improved')} / {gain.get('total')}",
    tables.signed(mean),
    tables.between(both) if both else "–",
    tables.between(seeds) if seeds else "–",
    tables.chance(tables.number(gain, "p_seeds")),
    tables.chance(tables.number(gain, "p_patients")),
    read,
  ]


def tests(results: Results) -> str:
  """Each metric's change in each comparison, with interval and test; "" without any."""
  pairs = [
    pair
    for pair in tables.measured_pairs(results)
    if tables.section(results, "gains", pair.name, "tests")
  ]
  if not pairs:
    return ""
  head = "".join(f'<th scope="col">{markup.text(pair.title)}</th>' for pair in pairs)
  body = ""
  for _, columns in table2.groups():
    body += "<tbody>"
    for column in columns:
      cells = "".join(_test(results, pair.name, column.name) for pair in pairs)
      body += f"<tr>{table2.metric_head(results, column)}{cells}</tr>"
    body += "</tbody>"
  found = [tables.section(results, "gains", pair.name) for pair in pairs]
  draws = max(int(gain.get("draws") or 0) for gain in found)
  least = max(len(gain["tests"]) for gain in found) * 2 / (1 + draws)
  legend = (
    "Large: the relative change in % (positive is better), a term of Δ. Small: its 95 % "
    "interval over seeds and patients, and Holm’s p over the metrics of the column, of "
    f"answers exchanged patient by patient; {draws:,} exchanges show none below "
    f"{markup.text(tables.chance(least))}. <b>Bold</b>: p below 0.05. These are of the models trained "
    "here; see Table 1 for the recipes."
  )
  return (
    "<details><summary>Each metric’s change, with its test</summary>"
    f'<div class="wide"><table class="table2 tests"><thead><tr><td></td>{head}</tr></thead>'
    f'{body}</table></div><p class="legend">{legend}</p></details>'
  )


def _test(results: Results, pair: str, metric: str) -> str:
  found = tables.section(results, "gains", pair, "tests", metric)
  change, p = tables.number(found, "gain"), tables.number(found, "p_holm")
  if change is None:
    why = tables.section(results, "gains", pair, "excluded").get(metric, "not measured")
    return f'<td class="absent" title="{markup.text(why)}">–</td>'
  shown = tables.signed(change)
  if p is not None and p < 0.05:
    shown = f"<b>{shown}</b>"
  ends = tables.limits(found, "gain_interval")
  small = tables.between(ends) if ends else "–"
  return f"<td>{shown}<small>{small}</small><small>p {tables.chance(p)}</small></td>"
