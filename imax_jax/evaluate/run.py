"""Generated answers to the sixteen numbers of the paper's Table 2.

    Entry, text -> Prediction -> {metric: number}

The definitions are the paper's (section 4.1.1); what it leaves open is decided in
`scores/`. An answer that cannot be parsed is never dropped: it counts as the ratio 0,
as a box of no area, as no label present and as a wrong class, and is counted by its
reason.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from typing import Literal

import numpy as np

from imax_jax.data import prompts
from imax_jax.evaluate.scores import boxes
from imax_jax.evaluate.scores import labels
from imax_jax.evaluate.scores import ratios
from imax_jax.evaluate.scores import text as text_scores
from imax_jax.ledger import whole
from imax_jax.schema import TARGET_OF_TASK
from imax_jax.schema import Bits
from imax_jax.schema import Entry
from imax_jax.schema import Prediction
from imax_jax.schema import Ratio
from imax_jax.schema import Region
from imax_jax.schema import Report

Predictions = Sequence[Prediction]
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


def predict_values(entries: Sequence[Entry], texts: Sequence[str]) -> list[Prediction]:
  """Parses each generated text by its entry's prompt.

  Raises:
    ValueError: not exactly one text an entry.
  """
  if len(entries) != len(texts):
    raise ValueError(
      f"{len(entries)} entries but {len(texts)} texts: give one an entry"
    )
  predictions = []
  for entry, text in zip(entries, texts, strict=True):
    try:
      predictions.append(Prediction(entry, text, prompts.parse(entry, text), ""))
    except prompts.ParseError as error:
      predictions.append(Prediction(entry, text, None, error.reason))
  return predictions


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
  for metric in METRICS:
    concerned = [p for p in predictions if metric.concerns(p.entry)]
    if concerned:
      values[metric.name] = metric.function(concerned)
  return values


def count_unparsed(predictions: Iterable[Prediction]) -> dict[str, dict[str, int]]:
  """{task: {reason: how many}} of the answers that could not be parsed."""
  counts: dict[str, Counter[str]] = {}
  for prediction in predictions:
    if prediction.reason:
      counts.setdefault(prediction.entry.task, Counter())[prediction.reason] += 1
  return {task: dict(sorted(counts[task].items())) for task in sorted(counts)}


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
  return 100.0 * float(np.mean([_is_right(p) for p in predictions]))


def _is_right(prediction: Prediction) -> bool:
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
    overlap = float(box_ious([prediction])[0])
    return Verdict(overlap > 0.5, f"IoU {overlap:.2f}")
  return Verdict(_is_right(prediction), "")


# ── Files ─────────────────────────────────────────────────────────────────────────


def write_predictions(path: str | Path, predictions: Iterable[Prediction]) -> None:
  """One JSON line an entry; the file appears whole or not at all.

  Keys: id, task, subtask, prompt, answer, text, value (what was parsed, or null),
  reason (why it could not be, or "").
  """
  with whole(path) as part, part.open("w", encoding="utf-8") as file:
    for prediction in predictions:
      file.write(json.dumps(_as_json(prediction), ensure_ascii=False) + "\n")


def _as_json(prediction: Prediction) -> dict[str, Any]:
  entry = prediction.entry
  return {
    "id": entry.id,
    "task": entry.task,
    "subtask": entry.subtask,
    "prompt": entry.prompt,
    "answer": entry.answer,
    "text": prediction.text,
    "value": None if prediction.value is None else dataclasses.asdict(prediction.value),
    "reason": prediction.reason,
  }


def read_predictions(
  path: str | Path, entries: Mapping[str, Entry]
) -> list[Prediction]:
  """Reads `write_predictions`' file; `entries` maps ids to the entries asked.

  Raises:
    FileNotFoundError: no such file.
    ValueError: a line that is not a prediction, or an id that is not in `entries`.
  """
  asked, texts = [], []
  with Path(path).open(encoding="utf-8") as file:
    for number, line in enumerate(file, start=1):
      try:
        row = json.loads(line)
        asked.append(entries[row["id"]])
        texts.append(row["text"])
      except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
          f"{path}:{number}: expected a prediction of a known entry; the file is of "
          "another data set or damaged. Delete it and evaluate again."
        ) from error
  return predict_values(asked, texts)
