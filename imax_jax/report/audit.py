"""The audit page of pseudo-IMAX: one HTML page that needs nothing beside itself.

It shows the content of audit.json (`imax_jax.audit.collect`): numbers only, no radiograph
and no text of one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imax_jax.ledger import whole
from imax_jax.report import audit_figures
from imax_jax.report import markup
from imax_jax.report import page
from imax_jax.report.figures import TASK_TITLES

Audit = Mapping[str, Any]

# What is right, where it is not a matter of being the same.
RATIO_OFF, LEAST_IOU = 0.05, 0.5
RIGHT: dict[str, str] = {
  "calculation": f"within {RATIO_OFF} of the true ratio",
  "report": "F1 of the findings it names",
  "multi_class": "the true grade",
  "multi_label": "share of the ten labels that are true",
  "rec": f"IoU above {LEAST_IOU}",
  "reg": "the organ that shares most with the box asked about",
  "vqa": "all right answers and no other",
}
_LEDE = (
  "The primary model was asked for every label that a DMAX image lacks (arXiv 2504.09967, "
  "section 4.2.2). What it answered is what the next stage trains on. How much is there, "
  "how sure was the model, and how much of it is true?"
)
_NONE_MADE = '<p class="absent">No label was made.</p>'
_SETS = {
  "dmax_train": "DMAX, training", "pseudo_imax": "Pseudo-IMAX, labelled images",
  "imax_train": "IMAX, training",
}  # fmt: skip


def write_audit(audit: Audit, path: str | Path) -> None:
  """Writes the page to `path`, whole or not."""
  with whole(path) as part:
    part.write_text(_page(audit), encoding="utf-8")


def _page(audit: Audit) -> str:
  about = audit["about"]
  seeds = ", ".join(map(str, about["seeds"]))
  title = f"Audit of pseudo-IMAX: {markup.text(about['title'])}"
  sections = (
    ("counts", "Asked, made, kept", _counts(audit)),
    ("reasons", "Why labels were rejected", _reasons(audit)),
    ("confidence", "How sure the model was", _confidence(audit)),
    ("composition", "What it makes of DMAX", _composition(audit)),
    ("classes", "Balance of classes", _classes(audit)),
    ("accuracy", "Against the truth", _accuracy(audit)),
  )
  return page.document(
    title, _LEDE, _in_short(audit), sections, "audit.json",
    kicker=f"audit, seeds {seeds}", holds="no radiograph and no text of one is on it",
  )  # fmt: skip


def _in_short(audit: Audit) -> str:
  counts = audit["counts"]
  asked, made = (sum(counts[key].values()) for key in ("asked", "made"))
  first = next(iter(counts["kept"]))
  kept = sum(counts["kept"][first].values())
  said = (
    f"<p><strong>{asked:,} labels were missing, {made:,} were made "
    f"({_percent(made, asked)}), {kept:,} are trained on.</strong> "
  )
  if not made:
    return f"{said}No label could be: what trains on them trains on DMAX alone.</p>"
  found = audit["accuracy"]
  better = [
    TASK_TITLES[task] for task, one in found.items() if one["made"] > one["constant"]
  ]
  if found:
    said += (
      f"Better than the usual answer of training would be in {len(better)} of "
      f"{len(found)} tasks{': ' if better else ''}{', '.join(better)}. "
    )
  else:
    said += (
      "What is true of these radiographs is not known: nothing says how right it is."
    )
  return f"{said}</p>"


def _counts(audit: Audit) -> str:
  counts = audit["counts"]
  rows_kept = list(counts["kept"])
  lines = []
  for task in [task for task in TASK_TITLES if task in counts["asked"]]:
    asked, made = counts["asked"][task], counts["made"].get(task, 0)
    kept = [counts["kept"][row].get(task, 0) for row in rows_kept]
    lines.append([TASK_TITLES[task], asked, made, _percent(made, asked), *kept])
  asked, made = (sum(counts[key].values()) for key in ("asked", "made"))
  totals = [sum(counts["kept"][row].values()) for row in rows_kept]
  lines.append(["together", asked, made, _percent(made, asked), *totals])
  head = ("", "missing", "made", "", *(_row_title(audit, row) for row in rows_kept))
  table = markup.facts(head, [list(map(_cell, line)) for line in lines])
  return (
    "<p>Missing is what an image lacks of the seven tasks: two ratios, a report, a grade, "
    "ten labels, three boxes, three names of organs and the configured number of "
    "questions. Made is what could be read and can be a label. The columns behind it are "
    f"what rows of Table 2 train on, by their filters.</p>{table}"
  )


def _reasons(audit: Audit) -> str:
  counts, lines = audit["counts"], []
  for task in TASK_TITLES:
    for reason, number in sorted(counts["rejected"].get(task, {}).items()):
      share = _percent(number, counts["asked"][task])
      lines.append([TASK_TITLES[task], "as answered", reason, number, share])
  for row, found in counts["filtered"].items():
    for task in TASK_TITLES:
      for reason, number in sorted(found.get(task, {}).items()):
        share = _percent(number, counts["made"][task])
        lines.append([TASK_TITLES[task], _row_title(audit, row), reason, number, share])
  if not lines:
    return "<p>None was.</p>"
  head = ("", "by", "reason", "labels", "")
  return (
    "<p>An answer that cannot be read, or that no label of its task could be, is never "
    "trained on. Filters take from what is left; their shares are of the labels made."
    "</p>" + markup.facts(head, [list(map(_cell, line)) for line in lines])
  )


def _confidence(audit: Audit) -> str:
  if not audit["counts"]["made"]:
    return _NONE_MADE
  caption = (
    "Mean natural log-probability of an answer's tokens, its end token included: 0 is "
    "certainty. Pale: all labels made; full: those kept by the first row's filters."
  )
  return markup.figure(audit_figures.confidence(audit), caption)


def _composition(audit: Audit) -> str:
  rows = []
  for name, title in _SETS.items():
    if name in audit["composition"]:
      one = audit["composition"][name]
      means = (one[f"mean_{kind}_per_image"] for kind in ("tasks", "entries"))
      rows.append([title, one["images"], one["entries"], *(f"{m:.2f}" for m in means)])
  head = ("", "images", "entries", "tasks an image", "entries an image")
  return (
    "<p>The labelled images with their own entries and the labels kept, seeds one after "
    "the other. The paper's IMAX has 4.10 tasks and 7.46 training entries an image, its "
    "DMAX 1.25 and 2.09; of pseudo-IMAX it gives no numbers.</p>"
    + markup.facts(head, [list(map(_cell, row)) for row in rows])
  )


def _classes(audit: Audit) -> str:
  caption = (
    "How often each class stands in training's own entries (ring), in the pseudo labels "
    "(dot, kept ones in full) and, where it is known, in what is true of the same images "
    "and questions (bar). Multi-label: the share of films with the label."
  )
  return markup.figure(audit_figures.classes(audit), caption)


def _accuracy(audit: Audit) -> str:
  found = audit["accuracy"]
  if not found and not audit["counts"]["made"]:
    return _NONE_MADE
  if not found:
    return (
      '<p class="absent">Not known: only a phantom hospital says what is true of each '
      "of its films.</p>"
    )
  kept_rows = list(audit["counts"]["kept"])
  lines = [
    [
      TASK_TITLES[task], RIGHT[task], one["labels"], _hundredths(one["made"]),
      *(_hundredths(one["kept"][row]) for row in kept_rows),
      _hundredths(one["constant"]),
    ]
    for task, one in found.items()
  ]  # fmt: skip
  head = ("", "right is", "labels", "made", *(_row_title(audit, r) for r in kept_rows),
          "usual answer")  # fmt: skip
  caption = (
    "Reliability: each dot is a tenth of a task's labels, from the least confident to "
    "the most. Where confidence tells right from wrong, the line rises. Dashed: the "
    "usual answer of training, which does not look at the image."
  )
  return (
    "<p>The hospital knows what is exactly true of its films, and its questions can be "
    "answered from it; neither training nor labelling reads that. The usual answer is "
    "training's median ratio or box, or its most frequent answer to that kind of "
    "question: a label that is right no more often says nothing of its image.</p>"
    + markup.facts(head, [list(map(_cell, line)) for line in lines])
    + markup.figure(audit_figures.reliability(audit), caption)
  )


def _row_title(audit: Audit, row: str) -> str:
  used = audit["about"]["rows"][row].items()
  named = [key if value is True else f"{key} {value}" for key, value in used if value]
  return ", ".join(named) or "all"


def _percent(part: int, total: int) -> str:
  return f"{100 * part / total:.0f} %" if total else "–"


def _hundredths(value: float | None) -> str:
  return "–" if value is None else f"{100 * value:.1f}"


def _cell(value: Any) -> str:
  return f"{value:,}" if isinstance(value, int) else str(value)
