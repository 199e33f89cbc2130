"""Table 1: the average gains with their intervals and tests, and each metric's own."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from imax_jax.report import arms
from imax_jax.report import markup
from imax_jax.report import rows as rows_lib
from imax_jax.report import table2
from imax_jax.report import tables
from imax_jax.report.tables import Results

_HEAD = (
  "", "improved / total", "Δ, %", "95 % over seeds and patients", "95 % over seeds",
  "p, seeds", "p, patients", "read as",
)  # fmt: skip


def table1(rows: Mapping[str, Results], pairs: Sequence[arms.Pair] = arms.PAIRS) -> str:
  """A line for each of `pairs` of each of `rows`, {title: results}."""
  lines = [
    [
      rows_lib.name(title, pair, pairs),
      *_cells(tables.section(results, "gains", pair.name)),
    ]
    for title, results in rows.items()
    for pair in tables.measured_pairs(results)
    if pair in pairs
  ]
  if not lines:
    return markup.ABSENT
  return markup.facts(_HEAD, lines) + f'<p class="legend">{_LEGEND}</p>'


_LEGEND = (
  "Δ is the mean over metrics of the relative changes (Eq. 1), errors turned so that a "
  "fall is a gain, and over seeds. Both intervals recompute all of Δ: drawn are the seeds "
  "and, for each, the test patients, the same for both runs (two-level bootstrap); over "
  "seeds alone it is Student’s t. p, seeds: the signs of the seeds’ gains are flipped, "
  "which is about the recipes, and cannot fall below 2 / 2ⁿ with n seeds. p, patients: "
  "the two runs’ answers are exchanged patient by patient, which is about these very "
  "models: two seeds of one recipe often differ by it. Read as an effect is what several "
  "seeds tell from zero by both intervals; of one seed, whose models differ, what interval "
  "and p, patients (below 0.05) both tell; all else is noise. Nothing is adjusted for how "
  "many comparisons stand here: of twenty without an effect, one may be read as one."
)


def _cells(gain: Mapping[str, Any]) -> list[str]:
  mean = tables.number(gain, "mean")
  both, seeds = tables.limits(gain, "interval"), tables.limits(gain, "over_seeds")
  if mean is None:
    return ["0 / 0", *["–"] * 5, "nothing to compare"]
  return [
    f"{gain.get('improved')} / {gain.get('total')}",
    tables.signed(mean),
    tables.between(both) if both else "–",
    tables.between(seeds) if seeds else "–",
    tables.chance(tables.number(gain, "p_seeds")),
    tables.chance(tables.number(gain, "p_patients")),
    tables.read_as(gain),
  ]


# ── Systems ───────────────────────────────────────────────────────────────────────


def systems(rows: Mapping[str, Results]) -> str:
  """The paper's Table 1: IMAX over DMAX, a line a system, the paper's own beside it.

  Under it stands what a line does not rest on, and which of the paper's lines have none.
  """
  body = ""
  for title, results in rows.items():
    gain = tables.section(results, "gains", rows_lib.MAIN.name)
    cells = _system(results, gain)
    found = rows_lib.printed(title)
    for value, first in zip(_printed(found), (" first", ""), strict=True):
      cells += f'<td class="paper{first}">{value}</td>'
    told = ' class="told"' if tables.is_told(gain) else ""
    body += f'<tr{told}><th scope="row">{markup.text(title)}</th>{cells}</tr>'
  span = len(_SYSTEM_HEAD) + 1
  heads = "".join(f'<th scope="col">{head}</th>' for head in _SYSTEM_HEAD)
  return (
    '<div class="wide"><table class="table2 systems"><thead>'
    f'<tr><td></td><th colspan="{span}"><span>IMAX over DMAX, measured</span></th>'
    '<th colspan="2" class="first"><span>the paper’s</span></th></tr>'
    f'<tr><td></td>{heads}<th scope="col" class="read">read as</th>'
    '<th scope="col" class="paper first">improved</th>'
    f'<th scope="col" class="paper">Δ, %</th></tr></thead><tbody>{body}</tbody></table>'
    f"</div>{_unmeasured(rows)}"
  )


_SYSTEM_HEAD = (
  "seeds", "improved / total", "Δ, %", "95 % over seeds and patients", "95 % over seeds",
  "median metric, %", "p, seeds", "p, patients",
)  # fmt: skip


def _system(results: Results, gain: Mapping[str, Any]) -> str:
  """What was measured of a row, or why nothing was."""
  seeds = tables.num_seeds(gain) or rows_lib.num_seeds(results)
  if not gain:
    why = f"{rows_lib.why_no_gain(results)}"
    return f'<td>{seeds}</td><td class="absent" colspan="8">{markup.text(why)}</td>'
  better, mean, both, over, *chances, read = _cells(gain)
  median = tables.number(gain, "median")
  cells = [
    str(seeds), better, f"<b>{mean}</b>", both, over,
    "–" if median is None else tables.signed(median), *map(markup.text, chances),
  ]  # fmt: skip
  return "".join(f"<td>{cell}</td>" for cell in cells) + (
    f'<td class="read">{markup.text(read)}</td>'
  )


def _printed(found: rows_lib.Printed | None) -> tuple[str, str]:
  if found is None:
    return "", ""
  return f"{found.improved} / {len(tables.COLUMNS)}", tables.signed(found.percent)


def _unmeasured(rows: Mapping[str, Results]) -> str:
  """The paper's lines beside which nothing was measured, and what all of them are."""
  named = "; ".join(
    f"{markup.text(one.system)} {' '.join(_printed(one))}&nbsp;%"
    for one in rows_lib.unmeasured(rows)
  )
  listed = f" Not among these rows: <i>{named}</i>." if named else ""
  said = rows_lib.said_of(
    rows, lambda results: [*filter(None, [rows_lib.size(results)])]
  )
  sizes = "; ".join(f"{whose}: {size}" for whose, size in said)
  listed += f" Layers × width here: {markup.text(sizes)}." if sizes else ""
  return (
    '<p class="legend">The paper’s: of its Table 1, and of the unified model of its '
    "Table 2, whose improved metrics are counted here; real radiographs, the systems’ "
    "full sizes and published weights. They are no target for rows of other data or size, "
    f"and the paper gives no interval.{listed}</p>"
    f'<p class="legend">{_LEGEND}</p>'
  )


# ── Metrics ───────────────────────────────────────────────────────────────────────


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
