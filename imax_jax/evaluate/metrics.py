"""The sixteen metrics of the paper's Table 2, each over its predictions.

The definitions are the paper's (section 4.1.1); what it leaves open is decided in
`scores/`. An answer that cannot be parsed is never dropped: it counts as the ratio 0,
as a box of no area, as no label present and as a wrong class.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any
from typing import Literal

import numpy as np

from imax_jax.evaluate.predictions import Predictions
from imax_jax.evaluate.scores import boxes
from imax_jax.evaluate.scores import labels
from imax_jax.evaluate.scores import ratios
from imax_jax.evaluate.scores import text as text_scores
from imax_jax.schema import Bits
from imax_jax.schema import Entry
from imax_jax.schema import Prediction
from imax_jax.schema import Ratio
from imax_jax.schema import Region

# Boxes are compared in the unit in which prompts and answers write them.
BOX_UNITS = 1000.0


@dataclasses.dataclass(frozen=True, slots=True)
class Metric:
  """A column of Table 2. `subtask` "" means all of the task's entries.

  `function` takes the metric's predictions, at least one, and returns its value × 100.
  """

  name: str
  task: str
  subtask: str
  title: str
  lower_is_better: bool
  function: Callable[[Predictions], float] = dataclasses.field(repr=False)

  def concerns(self, entry: Entry) -> bool:
    return entry.task == self.task and self.subtask in ("", entry.subtask)


# ── What each metric takes from its predictions ───────────────────────────────────


def _ratio_metric(error: Callable[..., float]) -> Callable[[Predictions], float]:
  def function(predictions: Predictions) -> float:
    truth = [_target(p, Ratio).value for p in predictions]
    value = [p.value.value if isinstance(p.value, Ratio) else 0.0 for p in predictions]
    return 100.0 * error(truth, value)

  return function


def _report_bleu1(predictions: Predictions) -> float:
  truths = [text_scores.report_words(p.entry.answer) for p in predictions]
  return 100.0 * text_scores.bleu1(
    truths, [text_scores.report_words(p.text) for p in predictions]
  )


def _report_mean(
  metric: Callable[[str, str], float],
) -> Callable[[Predictions], float]:
  def function(predictions: Predictions) -> float:
    scores = [metric(p.entry.answer, p.text) for p in predictions]
    return 100.0 * float(np.mean(scores))

  return function


def _accuracy(predictions: Predictions) -> float:
  return 100.0 * float(np.mean([is_right(p) for p in predictions]))


def is_right(prediction: Prediction) -> bool:
  return not prediction.reason and text_scores.is_match(
    prediction.entry.answer, prediction.text
  )


def _answer_bleu1(predictions: Predictions) -> float:
  scores = [text_scores.answer_bleu1(p.entry.answer, p.text) for p in predictions]
  return 100.0 * float(np.mean(scores))


def _f1_metric(kind: Literal["micro", "macro"]) -> Callable[[Predictions], float]:
  def function(predictions: Predictions) -> float:
    # Sources may ask for different labels: a label that an entry does not ask for is
    # absent from both its truth and its prediction, which no F1 counts.
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
    return 100.0 * float(getattr(labels.f1(truth, value), kind))

  return function


def box_ious(predictions: Predictions) -> np.ndarray:
  """IoU of each REC prediction, float64[N]; 0 where no box could be read."""
  truth = [_target(p, Region).box for p in predictions]
  value = [
    p.value.box if isinstance(p.value, Region) else (0.0,) * 4 for p in predictions
  ]
  return boxes.iou(np.multiply(truth, BOX_UNITS), np.multiply(value, BOX_UNITS))


def _mean_iou(predictions: Predictions) -> float:
  return 100.0 * float(np.mean(box_ious(predictions)))


def _recall_50(predictions: Predictions) -> float:
  return 100.0 * boxes.recall_at(box_ious(predictions))


def _target(prediction: Prediction, kind: type) -> Any:
  assert isinstance(prediction.entry.target, kind), prediction.entry.id
  return prediction.entry.target


METRICS: tuple[Metric, ...] = (
  Metric(
    "cpar_mae", "calculation", "cpar", "CPAR MAE", True, _ratio_metric(ratios.mae)
  ),
  Metric(
    "cpar_rmse", "calculation", "cpar", "CPAR RMSE", True, _ratio_metric(ratios.rmse)
  ),
  Metric("ctr_mae", "calculation", "ctr", "CTR MAE", True, _ratio_metric(ratios.mae)),
  Metric(
    "ctr_rmse", "calculation", "ctr", "CTR RMSE", True, _ratio_metric(ratios.rmse)
  ),
  Metric("report_bleu1", "report", "", "BLEU-1", False, _report_bleu1),
  Metric(
    "report_rouge1", "report", "", "ROUGE-1", False, _report_mean(text_scores.rouge1)
  ),
  Metric(
    "report_meteor", "report", "", "METEOR", False, _report_mean(text_scores.meteor)
  ),
  Metric("multi_class_acc", "multi_class", "", "Accuracy", False, _accuracy),
  Metric(
    "multi_label_micro_f1", "multi_label", "", "Micro F1", False, _f1_metric("micro")
  ),
  Metric(
    "multi_label_macro_f1", "multi_label", "", "Macro F1", False, _f1_metric("macro")
  ),
  Metric("rec_iou", "rec", "", "IoU", False, _mean_iou),
  Metric("rec_r50", "rec", "", "R@0.5", False, _recall_50),
  Metric("reg_acc", "reg", "", "Accuracy", False, _accuracy),
  Metric("vqa_verify_acc", "vqa", "verify", "Verify accuracy", False, _accuracy),
  Metric("vqa_choose_bleu1", "vqa", "choose", "Choose BLEU-1", False, _answer_bleu1),
  Metric("vqa_query_bleu1", "vqa", "query", "Query BLEU-1", False, _answer_bleu1),
)
