"""Predictions -> the numbers of the paper's Table 2, and a word on each prediction."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from imax_jax.evaluate import additive
from imax_jax.evaluate import metrics
from imax_jax.evaluate.scores import text as text_scores
from imax_jax.schema import TARGET_OF_TASK
from imax_jax.schema import Bits
from imax_jax.schema import Prediction
from imax_jax.schema import Ratio
from imax_jax.schema import Report


def score(predictions: Iterable[Prediction]) -> dict[str, float]:
  """{metric: value × 100} in Table 2's order.

  A metric none of whose entries are there is absent: it was not measured.

  Raises:
    ValueError: an entry whose target is not of its task's type.
  """
  predictions = list(predictions)
  for prediction in predictions:
    entry = prediction.entry
    if not isinstance(entry.target, TARGET_OF_TASK[entry.task]):
      raise ValueError(
        f"entry {entry.id}: expected a target of type "
        f"{TARGET_OF_TASK[entry.task].__name__} for task {entry.task!r}, got "
        f"{type(entry.target).__name__}"
      )
  values = {}
  for metric in metrics.STRICT:
    concerned = [p for p in predictions if metric.concerns(p.entry)]
    if concerned:
      values[metric.name] = metric.value(concerned)
  return values


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
