"""The tables of several rows as files to take away: CSV for programs, LaTeX for papers."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imax_jax.ledger import whole
from imax_jax.report import rows as rows_lib
from imax_jax.report import tables
from imax_jax.report.tables import Results

NAMES = ("table1.csv", "table1.tex", "metrics.csv")
_TABLE1 = (
  "row", "seeds", "improved", "total", "delta_percent", "low_95", "high_95",
  "seeds_low_95", "seeds_high_95", "median_percent", "p_seeds", "p_patients", "read_as",
  "paper_system", "paper_improved", "paper_delta_percent",
)  # fmt: skip
_METRICS = ("row", "run", "metric", "better_is", "seeds", "value", "low_95", "high_95")
_LATEX = {
  "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
  **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}  # fmt: skip


def write(rows: Mapping[str, Results], folder: Path) -> list[Path]:
  """table1.csv, table1.tex (needs booktabs) and metrics.csv in `folder`; their paths.

  Percentages and metrics (× 100) are whole in CSV and of two decimals in LaTeX; what was
  not measured is empty there and a dash here. Columns low_95 to high_95 are the interval
  over seeds and patients.
  """
  table1, latex, metrics = (folder / name for name in NAMES)
  _csv(table1, _TABLE1, (_line(title, results) for title, results in rows.items()))
  _csv(metrics, _METRICS, _metrics(rows))
  with whole(latex) as part:
    part.write_text(_tex(rows), encoding="utf-8")
  return [table1, latex, metrics]


def _csv(path: Path, head: Sequence[str], lines: Iterable[Sequence[Any]]) -> None:
  with whole(path) as part, part.open("w", encoding="utf-8", newline="") as file:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(lines)


def _line(title: str, results: Results) -> list[Any]:
  gain, found = rows_lib.gain_of(results), rows_lib.printed(title)
  return [
    title,
    tables.num_seeds(gain) or rows_lib.num_seeds(results),
    gain.get("improved"),
    gain.get("total"),
    tables.number(gain, "mean"),
    *(tables.limits(gain, "interval") or (None, None)),
    *(tables.limits(gain, "over_seeds") or (None, None)),
    tables.number(gain, "median"),
    tables.number(gain, "p_seeds"),
    tables.number(gain, "p_patients"),
    tables.read_as(gain) if gain else rows_lib.why_no_gain(results),
    *((found.system, found.improved, found.percent) if found else (None,) * 3),
  ]


def _metrics(rows: Mapping[str, Results]) -> Iterable[list[Any]]:
  for title, results in rows.items():
    for run in tables.measured_runs(results):
      seeds = len(tables.section(results, "per_seed").get(run) or ())
      ends = tables.section(results, "intervals", run)
      for column in tables.COLUMNS:
        yield [
          title, run, column.name, "lower" if column.lower_is_better else "higher", seeds,
          tables.value_of(results, run, column.name),
          *(tables.limits(ends, column.name) or (None, None)),
        ]  # fmt: skip


# ── LaTeX ─────────────────────────────────────────────────────────────────────────


def _tex(rows: Mapping[str, Results]) -> str:
  lines = [
    "% Table 1 after arXiv 2504.09967: IMAX over DMAX. Needs booktabs.",
    "% Brackets: 95 % intervals over seeds and test patients.",
    r"\begin{tabular}{lrrrl}",
    r"\toprule",
    r"Models & Seeds & Improved / Total & "
    r"Average Gains $\Delta(\uparrow)$ & 95\,\% interval \\",
    r"\midrule",
    *(_tex_line(title, results) for title, results in rows.items()),
    r"\bottomrule",
    r"\end{tabular}",
  ]
  return "\n".join(lines) + "\n"


def _tex_line(title: str, results: Results) -> str:
  gain = rows_lib.gain_of(results)
  mean, ends = tables.number(gain, "mean"), tables.limits(gain, "interval")
  if mean is None:
    why = rows_lib.why_no_gain(results) if not gain else tables.read_as(gain)
    return f"{_tex_text(title)} & {rows_lib.num_seeds(results)} & -- & -- & {why} \\\\"
  cells = [
    _tex_text(title),
    str(tables.num_seeds(gain)),
    f"{gain.get('improved')} / {gain.get('total')}",
    f"${_tex_number(mean)}\\,\\%$",
    f"$[{_tex_number(ends[0])}, {_tex_number(ends[1])}]$" if ends else "--",
  ]
  return " & ".join(cells) + r" \\"


def _tex_number(value: float) -> str:
  return tables.signed(value).replace("−", "-")


def _tex_text(text: str) -> str:
  return "".join(_LATEX.get(letter, letter) for letter in text)
