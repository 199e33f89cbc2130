"""Predictions -> the numbers of the paper's Table 2, and a word on each prediction."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imax_jax.evaluate import additive
from imax_jax.evaluate import metrics
from imax_jax.evaluate.predictions import count_unparsed
from imax_jax.evaluate.scores import findings
from imax_jax.evaluate.scores import text as text_scores
from imax_jax.schema import TARGET_OF_TASK
from imax_jax.schema import Bits
from imax_jax.schema import Entry
from imax_jax.schema import Prediction
from imax_jax.schema import Ratio
from imax_jax.schema import Report


def summary(
  predictions: Iterable[Prediction],
  entries: Iterable[Entry] | None = None,
  *,
  meteor_jar: str | Path = "",
) -> dict[str, Any]:
  """All that is said of one set of weights' predictions, fit for JSON.

    scores       {metric: value × 100} by `metrics.STRICT`
    legacy       the same as the published scripts score
    not_legacy   {metric: why they give no such number}
    definitions  {"strict", "legacy": {metric: {"definition", "version", "unparsed"}}}
    asked        {task: predictions}
    unparsed     {task: {reason: how many}}
    reports      {"distinct": different texts, "of": reports, "findings_f1":
                 `findings.f1`}; empty without reports

  Args:
    predictions: one an entry.
    entries: what was asked; where given, the predictions must be theirs, all and only.
    meteor_jar: METEOR 1.5's jar, for the legacy METEOR.

  Raises:
    ValueError: no prediction, two of one entry, one of an entry that was not asked or
      none of one that was, or an entry whose target is not of its task's type.
  """
  predictions = _checked(predictions)
  _check_ids(predictions, entries)
  published = metrics.legacy(meteor_jar)
  legacy = score(predictions, published)
  missing = {
    name: reason
    for name, reason in metrics.NOT_LEGACY.items()
    if name not in {metric.name for metric in published}
  }
  for name in [name for name, value in legacy.items() if not math.isfinite(value)]:
    del legacy[name]
    missing[name] = "every pair has an empty side, and the published script drops those"
  return {
    "scores": score(predictions),
    "legacy": legacy,
    "not_legacy": missing,
    "definitions": definitions(published),
    "asked": dict(sorted(Counter(p.entry.task for p in predictions).items())),
    "unparsed": count_unparsed(predictions),
    "reports": _of_reports([p for p in predictions if p.entry.task == "report"]),
  }


def score(
  predictions: Iterable[Prediction], by: Sequence[metrics.Metric] = metrics.STRICT
) -> dict[str, float]:
  """{metric: value × 100} in Table 2's order.

  A metric none of whose entries are there is absent: it was not measured.

  Raises:
    ValueError: no prediction, or an entry whose target is not of its task's type.
  """
  predictions = _checked(predictions)
  values = {}
  for metric in by:
    concerned = [p for p in predictions if metric.concerns(p.entry)]
    if concerned:
      values[metric.name] = metric.value(concerned)
  return values


def _checked(predictions: Iterable[Prediction]) -> list[Prediction]:
  predictions = list(predictions)
  if not predictions:
    raise ValueError(
      "predictions: expected at least one, got none; evaluate a split that has entries"
    )
  for number, prediction in enumerate(predictions):
    _check(number, prediction)
  return predictions


def _check(number: int, prediction: Prediction) -> None:
  if not isinstance(prediction, Prediction):
    raise ValueError(
      f"prediction {number}: expected a Prediction, got {type(prediction).__name__}; "
      "make them by predict_values"
    )
  entry = prediction.entry
  kind = TARGET_OF_TASK.get(entry.task)
  if kind is None:
    raise ValueError(
      f"entry {entry.id}: expected a task of {list(TARGET_OF_TASK)}, got {entry.task!r}"
    )
  if not isinstance(entry.target, kind):
    raise ValueError(
      f"entry {entry.id}: expected a target of type {kind.__name__} for task "
      f"{entry.task!r}, got {type(entry.target).__name__}"
    )


def _check_ids(
  predictions: Sequence[Prediction], entries: Iterable[Entry] | None
) -> None:
  given = Counter(p.entry.id for p in predictions)
  twice = sorted(name for name, count in given.items() if count > 1)
  if twice:
    raise ValueError(
      f"predictions: expected one an entry, got {given[twice[0]]} of {twice[0]!r} "
      f"({len(twice)} entries have several); give each once"
    )
  if entries is None:
    return
  asked = {entry.id for entry in entries}
  for what, ids in (
    ("of entries that are not among the references", set(given) - asked),
    ("missing of entries among the references", asked - set(given)),
  ):
    if ids:
      raise ValueError(
        f"predictions: expected those of all {len(asked)} references and no others, got "
        f"{len(ids)} {what}, {min(ids)!r} for one; use the references that were asked"
      )


def definitions(
  published: Sequence[metrics.Metric] = metrics.LEGACY,
) -> dict[str, dict[str, dict[str, str]]]:
  """What `summary` scores by, in words and versions."""
  return {"strict": _words(metrics.STRICT), "legacy": _words(published)}


def _words(by: Sequence[metrics.Metric]) -> dict[str, dict[str, str]]:
  keys = ("definition", "version", "unparsed")
  return {metric.name: {key: getattr(metric, key) for key in keys} for metric in by}


def _of_reports(predictions: Sequence[Prediction]) -> dict[str, Any]:
  if not predictions:
    return {}
  texts = [p.text for p in predictions]
  return {
    "distinct": len({" ".join(text.split()) for text in texts}),
    "of": len(texts),
    "findings_f1": findings.f1([p.entry.answer for p in predictions], texts),
  }


# ── One prediction, for a reader ──────────────────────────────────────────────────


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
  """`correct` is None where right and wrong are a matter of degree (ratio, report, some labels)."""

  correct: bool | None
  note: str  # "off by 0.021", "IoU 0.83", "unreadable: …" or ""


def judge(prediction: Prediction) -> Verdict:
  """What to say of one prediction beside its picture."""
  entry, value = prediction.entry, prediction.value
  if prediction.reason:
    return Verdict(False, f"unreadable: {prediction.reason}")
  if isinstance(entry.target, Ratio) and isinstance(value, Ratio):
    return Verdict(None, f"off by {abs(value.value - entry.target.value):.3f}")
  if isinstance(entry.target, Report):
    return Verdict(
      None, f"ROUGE-1 {text_scores.rouge1(entry.answer, prediction.text):.2f}"
    )
  if isinstance(entry.target, Bits) and isinstance(value, Bits):
    same = sum(a == b for a, b in zip(entry.target.values, value.values, strict=True))
    total = len(entry.target.values)
    return Verdict(True if same == total else None, f"{same} of {total} labels right")
  if entry.task == "rec":
    overlap = float(additive.box_ious([prediction])[0])
    return Verdict(overlap > 0.5, f"IoU {overlap:.2f}")
  return Verdict(additive.is_right(prediction), "")
