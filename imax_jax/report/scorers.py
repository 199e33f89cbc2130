"""How the numbers were scored: both scorers side by side, definitions, odd answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from imax_jax.report import arms
from imax_jax.report import markup
from imax_jax.report import table2
from imax_jax.report import tables
from imax_jax.report.tables import Results


def scorers(results: Results) -> str:
  """Strict against legacy, metric by metric, and what each metric is."""
  return _legacy(results) + _definitions(results)


def folded(results: Results) -> str:
  """The same behind a line to click, with what was odd about the answers."""
  return (
    f"<details><summary>Two scorers</summary>{_legacy(results)}</details>"
    "<details><summary>Generated reports and unreadable answers</summary>"
    f"{reports(results)}{unparsed(results)}</details>{_definitions(results)}"
  )


def _legacy(results: Results) -> str:
  runs = [
    run
    for run in tables.measured_runs(results)
    if tables.section(results, "legacy", run)
  ]
  if not runs:
    return markup.ABSENT
  body = ""
  for _, columns in table2.groups():
    body += "<tbody>"
    for column in columns:
      cells = "".join(_both(results, run, column.name) for run in runs)
      body += f"<tr>{table2.metric_head(results, column)}{cells}</tr>"
    body += "</tbody>"
  legend = (
    "strict → legacy, and small the difference. Strict, the scorer of all other tables, "
    "takes an answer as right when it is the truth after normalisation; legacy does what "
    "the published scripts do. Both are means over seeds of the same answers."
  )
  return (
    f'<div class="wide"><table class="table2"><thead><tr><td></td>{table2.run_heads(runs)}'
    f'</tr></thead>{body}</table></div><p class="legend">{legend}</p>'
  )


def _both(results: Results, run: str, metric: str) -> str:
  strict = tables.value_of(results, run, metric)
  legacy = tables.number(tables.section(results, "legacy", run), metric)
  if strict is None or legacy is None:
    why = tables.section(results, "definitions", "not_legacy").get(
      metric, "not measured"
    )
    return f'<td class="absent" title="{markup.text(why)}">–</td>'
  gap = legacy - strict
  small = tables.signed(gap) if abs(gap) >= 0.005 else "the same"
  return f"<td>{strict:.2f} → {legacy:.2f}<small>{small}</small></td>"


def _definitions(results: Results) -> str:
  """What each metric is by each scorer, with its version and an unreadable answer's cost."""
  terms = ""
  for column in tables.COLUMNS:
    for scorer in ("strict", "legacy"):
      found = tables.section(results, "definitions", scorer, column.name)
      if not found:
        continue
      said = f"{found.get('definition')} {found.get('unparsed')}"
      terms += (
        f"<dt>{markup.text(column.label)}, {scorer} "
        f"<small>{markup.text(found.get('version'))}</small></dt>"
        f"<dd>{markup.text(said)}</dd>"
      )
    why = tables.section(results, "definitions", "not_legacy").get(column.name)
    if why:
      terms += f"<dt>{markup.text(column.label)}, legacy</dt><dd>None: {markup.text(why)}.</dd>"
  if not terms:
    return ""
  return (
    "<details><summary>How each metric is defined, its version, and what an unreadable "
    f'answer costs</summary><dl class="terms">{terms}</dl></details>'
  )


def reports(results: Results) -> str:
  """Whether the reports differ from image to image, and name the findings."""
  rows, known = [], tables.section(results, "reports")
  scores: list[str] = []
  for run, seeds in known.items():
    for number, found in enumerate(seeds or [], start=1):
      f1 = _numbers(found.get("findings_f1") or {})
      scores = scores or list(f1)
      title = _title(run) + (f", {number}" if len(seeds) > 1 else "")
      rows.append([
        title, f"{found.get('distinct')} of {found.get('of')}",
        *("–" if f1.get(name) is None else f"{f1[name]:.2f}" for name in scores),
      ])  # fmt: skip
  if not rows:
    return markup.ABSENT
  head = ("run", "different reports", *(f"findings F1, {name}" for name in scores))
  return markup.facts(head, rows)


def _numbers(node: Mapping[str, Any]) -> dict[str, float]:
  """The numbers at the top of a mapping."""
  return {key: value for key in node if (value := tables.number(node, key)) is not None}


def unparsed(results: Results) -> str:
  """How many answers could not be read, and why."""
  if "unparsed" not in results:
    return markup.ABSENT
  rows = []
  for run in tables.section(results, "unparsed"):
    asked = tables.section(results, "asked", run)
    for task in tables.section(results, "unparsed", run):
      reasons = tables.section(results, "unparsed", run, task)
      for reason, count in reasons.items():
        of = f" of {asked[task]:,}" if task in asked else ""
        rows.append([_title(run), f"{task}: {reason}", f"{count:,}{of}"])
  if not rows:
    return '<p class="small">None: every answer could be read.</p>'
  return markup.facts(("run", "why", "answers"), rows)


def _title(run: str) -> str:
  return arms.ARM[run].title if run in arms.ARM else run
