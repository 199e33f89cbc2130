"""The page of `report --runs`: Table 1 and Figure 3 of all rows, then each row's own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from imax_jax.ledger import whole
from imax_jax.report import arms
from imax_jax.report import figures
from imax_jax.report import markup
from imax_jax.report import page
from imax_jax.report import radar
from imax_jax.report import rows as rows_lib
from imax_jax.report import scorers
from imax_jax.report import sheets
from imax_jax.report import spectra
from imax_jax.report import systems
from imax_jax.report import table1
from imax_jax.report import table2
from imax_jax.report import tables
from imax_jax.report.tables import Results

_OTHERS = tuple(pair for pair in arms.PAIRS if pair != rows_lib.MAIN)
_FIGURE_3 = ("figure3.svg", "figure3.pdf", "figure3.png")


def write_comparison(rows: Mapping[str, Results], path: str | Path) -> list[Path]:
  """Writes the page of `rows` (comparison.json's, in their order) to `path`, whole or not, and beside it
  its tables (CSV, LaTeX) and Figure 3 (SVG, PDF, PNG).

  Returns:
    All files that were written, the page first.
  """
  path = Path(path)
  with whole(path) as part:
    part.write_text(_page(rows), encoding="utf-8")
  drawn = radar.write_grid(rows, [path.with_name(name) for name in _FIGURE_3])
  return [path, *sheets.write(rows, path.parent), *drawn]


def _page(rows: Mapping[str, Results]) -> str:
  sections = [
    ("table1", "Table 1, as measured", _table1(rows)),
    ("figure3", "Figure 3, as measured", _figure3(rows)),
    ("metrics", "Every metric", systems.metrics(rows)),
  ]
  others = _others(rows)
  if others:
    sections.append(("others", "Other comparisons", others))
  for number, (title, results) in enumerate(rows.items()):
    name = f"row{number}"
    body = markup.apart(_row(title, results), name)
    sections.append((name, markup.text(title), body))
  lede = (
    "Work directories side by side. Those of one row are the same experiment with other "
    "seeds, and are pooled; intervals are over seeds and test patients. Beside this page: "
    f"{', '.join((*sheets.NAMES, *_FIGURE_3))}."
  )
  kinds = {tables.section(results, "about").get("data") for results in rows.values()}
  about = {"data": kinds.pop()} if len(kinds) == 1 else {}
  return page.document(
    "IMAX against DMAX", lede, page.plainly(about), sections, "several results.json"
  )


_GAINS = (
  "Dots are seeds, the upright bar their mean. The pale bar is the 95 % interval over "
  "seeds and patients, the thin line that over seeds alone. Grey: how far two seeds of "
  "the base itself are apart. Open diamonds are the paper’s gains. An arrow: what ends "
  "beyond the axis, and where."
)
_RADARS = (
  "After the paper’s Figure 3, one chart a row, all on the same scale: further out is "
  "better, on error metrics too (1 + the metric’s term of Eq. 1). Beside each spoke: DMAX "
  "→ IMAX, × 100, means over seeds; a dash: not measured. Bars along the spokes: 95 % "
  "intervals; what lies beyond the outer ring is drawn on it. CLS I is multi-class accuracy, CLS II "
  "multi-label F1, micro and macro; BLEU, ROUGE and METEOR are of reports; Verify, Choose "
  "and Query of VQA (accuracy, BLEU, BLEU). What the paper’s eight charts show stands in "
  "its picture only, and is not quoted."
)


def _table1(rows: Mapping[str, Results]) -> str:
  """Table 1, what its lines do not rest on, and the same drawn."""
  said = rows_lib.said_of(rows, lambda r: [*rows_lib.caveats_of(r), *rows_lib.lacks(r)])
  known = markup.caveats([f"{whose}: {sentence}" for whose, sentence in said])
  seen = "".join(
    f'<p class="small">{markup.text(line)}</p>' for line in rows_lib.notes(rows)
  )
  drawn = figures.gains(rows, (rows_lib.MAIN,))
  figure = markup.figure(drawn, _GAINS) if drawn else ""
  return f"{table1.systems(rows)}{known}{seen}{figure}"


def _figure3(rows: Mapping[str, Results]) -> str:
  """The charts, and why a row has none."""
  drawn = radar.drawn(rows)
  few = "fewer than 3 metrics"
  without = "; ".join(
    f"{title} ({few if rows_lib.gain_of(results) else rows_lib.why_no_gain(results)})"
    for title, results in rows.items()
    if title not in drawn
  )
  said = f" No chart: {markup.text(without)}." if without and drawn else ""
  return markup.figure(radar.grid(rows), _RADARS + said)


def _others(rows: Mapping[str, Results]) -> str:
  """The comparisons of runs other than IMAX and DMAX; "" where there are none."""
  if not any(
    tables.section(results, "gains", pair.name)
    for results in rows.values()
    for pair in _OTHERS
  ):
    return ""
  drawn = figures.gains(rows, _OTHERS)
  return table1.table1(rows, _OTHERS) + (markup.figure(drawn, _GAINS) if drawn else "")


def _row(title: str, results: Results) -> str:
  """What a row is, what its gains show in words, and its tables, folded."""
  lines = "".join(
    page.verdict_line(results, pair) for pair in tables.measured_pairs(results)
  )
  found = rows_lib.printed(title)
  own = found is None or found.system == rows_lib.UNIFIED
  parts = [
    ("Every metric, with its interval", table2.table2(results, paper=own)),
    ("IMAX relative to DMAX, large", page.radar(results)),
  ]
  if results.get("fisher") or results.get("fisher_caveats"):
    parts.append(("Fisher spectra", spectra.section(results)))
  folded = "".join(
    f"<details><summary>{summary}</summary>{body}</details>" for summary, body in parts
  )
  return (
    f'<p class="small">{markup.text(_of(results))}</p>'
    f"{markup.caveats(results.get('caveats'))}"
    + (f'<ul class="verdicts">{lines}</ul>' if lines else _none(results))
    + f"{folded}{table1.tests(results)}{scorers.folded(results)}"
  )


def _none(results: Results) -> str:
  why = rows_lib.why_no_gain(results)
  return f'<p class="absent">Nothing to compare: {markup.text(why)}.</p>'


def _of(results: Results) -> str:
  folders = [Path(folder).name for folder in results.get("folders") or []]
  seeds = rows_lib.num_seeds(results)
  size = rows_lib.size(results)
  return f"{seeds} seed{'s' * (seeds != 1)}, of {', '.join(folders)}." + (
    f" Layers × width: {size}." if size else ""
  )
