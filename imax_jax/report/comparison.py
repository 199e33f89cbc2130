"""The page of `report --runs`: Table 1 of all rows, then each row's tables and figures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from imax_jax.ledger import whole
from imax_jax.report import figures
from imax_jax.report import markup
from imax_jax.report import page
from imax_jax.report import scorers
from imax_jax.report import spectra
from imax_jax.report import table1
from imax_jax.report import table2
from imax_jax.report import tables
from imax_jax.report.tables import Results


def write_comparison(rows: Mapping[str, Results], path: str | Path) -> None:
  """Writes the page of `rows` (comparison.json's) to `path`, whole or not."""
  with whole(path) as part:
    part.write_text(_page(rows), encoding="utf-8")


def _page(rows: Mapping[str, Results]) -> str:
  caption = (
    "Dots are seeds, the upright bar their mean. The pale bar is the 95 % interval over "
    "seeds and patients, the thin line that over seeds alone. Grey: how far two seeds of "
    "the base itself are apart. An arrow: what ends beyond the axis, and where."
  )
  sections = [
    (
      "table1",
      "Table 1, as measured",
      table1.table1(rows, paper=True)
      + markup.figure(figures.gains(rows), caption)
      + _words(rows),
    )
  ]
  for number, (title, results) in enumerate(rows.items()):
    body = (
      f'<p class="small">{markup.text(_of(results))}</p>{table2.table2(results)}'
      f"{table1.tests(results)}{scorers.folded(results)}"
      f"<h3>IMAX relative to DMAX</h3>{page.radar(results)}"
    )
    if results.get("fisher") or results.get("fisher_caveats"):
      body += f"<h3>Fisher spectra</h3>{spectra.section(results)}"
    name = f"row{number}"
    sections.append((name, markup.text(title), markup.apart(body, name)))
  lede = (
    "Work directories side by side. Those of one row are the same experiment with other "
    "seeds, and are pooled; intervals are over seeds and test patients."
  )
  kinds = {tables.section(results, "about").get("data") for results in rows.values()}
  about = {"data": kinds.pop()} if len(kinds) == 1 else {}
  return page.document(
    "IMAX against DMAX", lede, page.plainly(about), sections, "several results.json"
  )


def _of(results: Results) -> str:
  folders = [Path(folder).name for folder in results.get("folders") or []]
  seeds = max(map(len, tables.section(results, "per_seed").values()), default=0)
  plural = "seed" if seeds == 1 else "seeds"
  return f"{seeds} {plural}, of {', '.join(folders)}."


def _words(rows: Mapping[str, Results]) -> str:
  """What each row's gains show, in words."""
  text = ""
  for title, results in rows.items():
    lines = "".join(
      page.verdict_line(results, pair) for pair in tables.measured_pairs(results)
    )
    text += f"<h3>{markup.text(title)}</h3>{markup.caveats(results.get('caveats'))}"
    text += f'<ul class="verdicts">{lines}</ul>' if lines else markup.ABSENT
  return text
