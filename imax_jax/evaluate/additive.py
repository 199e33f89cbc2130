"""What each prediction adds to a metric, and what sums of it say.

A function here takes a metric's predictions and gives float64[N, k], a row each; the
functions at the end turn sums of rows, float64[..., k], into values × 100. Sums of sums
are as good, so that patients can be drawn anew without scoring anything twice.

An answer that cannot be parsed is never dropped: it counts as the ratio 0, as a box of
no area, as no label present and as a wrong answer; a report is whatever was written.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import numpy as np

from imax_jax.evaluate.predictions import Predictions
from imax_jax.evaluate.scores import boxes
from imax_jax.evaluate.scores import labels
from imax_jax.evaluate.scores import text as text_scores
from imax_jax.schema import Bits
from imax_jax.schema import Prediction
from imax_jax.schema import Ratio
from imax_jax.schema import Region

# Boxes are compared in the unit in which prompts and answers write them.
BOX_UNITS = 1000.0

# ── Rows ──────────────────────────────────────────────────────────────────────────


def each(values: Sequence[float] | np.ndarray) -> np.ndarray:
  """Rows (1, value), of which `mean` is the mean."""
  values = np.asarray(values, np.float64)
  return np.stack([np.ones_like(values), values], axis=1)


def errors(predictions: Predictions) -> np.ndarray:
  """|predicted - true ratio|."""
  return each(np.abs(_ratio_errors(predictions)))


def squared_errors(predictions: Predictions) -> np.ndarray:
  return each(_ratio_errors(predictions) ** 2)


def _ratio_errors(predictions: Predictions) -> np.ndarray:
  truth = [_target(p, Ratio).value for p in predictions]
  value = [p.value.value if isinstance(p.value, Ratio) else 0.0 for p in predictions]
  return np.subtract(value, truth)


def report_bleu1(predictions: Predictions) -> np.ndarray:
  truths = [text_scores.report_words(p.entry.answer) for p in predictions]
  return text_scores.bleu1_counts(
    truths, [text_scores.report_words(p.text) for p in predictions]
  )


def of_pairs(
  score: Callable[[str, str], float],
) -> Callable[[Predictions], np.ndarray]:
  """Rows of a score of (reference, generated text)."""
  return lambda predictions: each([score(p.entry.answer, p.text) for p in predictions])


def right(predictions: Predictions) -> np.ndarray:
  return each([is_right(p) for p in predictions])


def is_right(prediction: Prediction) -> bool:
  return not prediction.reason and text_scores.is_match(
    prediction.entry.answer, prediction.text
  )


def label_counts(predictions: Predictions) -> np.ndarray:
  """`labels.counts`, its columns the labels that any of the predictions asks for.

  Sources may ask for different labels: a label that an entry does not ask for is absent
  from both its truth and its prediction, which no F1 counts.
  """
  names = list(dict.fromkeys(n for p in predictions for n in _target(p, Bits).labels))
  column = {name: number for number, name in enumerate(names)}
  truth = np.zeros((len(predictions), len(names)), bool)
  value = np.zeros_like(truth)
  for row, prediction in enumerate(predictions):
    target = _target(prediction, Bits)
    columns = [column[name] for name in target.labels]
    truth[row, columns] = target.values
    if isinstance(prediction.value, Bits):
      value[row, columns] = prediction.value.values
  return labels.counts(truth, value)


def overlaps(predictions: Predictions) -> np.ndarray:
  return each(box_ious(predictions))


def recalls(predictions: Predictions) -> np.ndarray:
  """1 where the IoU is ABOVE 0.5 (the paper's R@0.5)."""
  return each(box_ious(predictions) > 0.5)


def box_ious(predictions: Predictions) -> np.ndarray:
  """IoU of each REC prediction, float64[N]; 0 where no box could be read."""
  truth = [_target(p, Region).box for p in predictions]
  value = [
    p.value.box if isinstance(p.value, Region) else (0.0,) * 4 for p in predictions
  ]
  return boxes.iou(np.multiply(truth, BOX_UNITS), np.multiply(value, BOX_UNITS))


def _target(prediction: Prediction, kind: type) -> Any:
  assert isinstance(prediction.entry.target, kind), prediction.entry.id
  return prediction.entry.target


# ── Sums ──────────────────────────────────────────────────────────────────────────


def mean(sums: np.ndarray) -> np.ndarray:
  """100 × the mean of `each`'s values; NaN where nothing was counted."""
  count, total = np.moveaxis(sums, -1, 0)
  return 100.0 * np.where(count > 0, total / np.where(count > 0, count, 1.0), np.nan)


def root_mean(sums: np.ndarray) -> np.ndarray:
  """100 × the root of the mean."""
  return 10.0 * np.sqrt(mean(sums))


def bleu1(sums: np.ndarray) -> np.ndarray:
  return 100.0 * text_scores.bleu1_of(sums)


def micro_f1(sums: np.ndarray) -> np.ndarray:
  return 100.0 * labels.micro_f1(sums)


def macro_f1(sums: np.ndarray) -> np.ndarray:
  return 100.0 * labels.macro_f1(sums)
