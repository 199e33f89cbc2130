"""The sixteen metrics of the paper's Table 2, each with its definition and version.

`STRICT` scores what an answer says; what the paper (section 4.1.1) leaves open is decided
in `additive.py` and `scores/`. `LEGACY` scores as the published scripts of its baseline
do (`published.py`), to be compared with published numbers; what cannot be had so is in
`NOT_LEGACY` with the reason and never another number.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np

from imax_jax.evaluate import additive
from imax_jax.evaluate import published
from imax_jax.evaluate.predictions import Predictions
from imax_jax.evaluate.scores import text as text_scores
from imax_jax.schema import Entry

Statistics = Callable[[Predictions], np.ndarray]
Combine = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True, slots=True)
class Metric:
  """A column of Table 2. `subtask` "" means all of the task's entries.

  `statistics` gives what each prediction adds, float64[N, k]; `combine` turns sums of
  these over predictions, float64[..., k], into values × 100, float64[...]. Sums over
  resampled patients are combined in the same way, which is all that a bootstrap needs.
  """

  name: str
  task: str
  subtask: str
  title: str
  lower_is_better: bool
  definition: str  # one sentence
  version: str  # of what computes it
  unparsed: str  # what an answer that cannot be read costs
  statistics: Statistics = dataclasses.field(repr=False)
  combine: Combine = dataclasses.field(repr=False)

  def concerns(self, entry: Entry) -> bool:
    return entry.task == self.task and self.subtask in ("", entry.subtask)

  def value(self, predictions: Predictions) -> float:
    """The value × 100 of the metric's predictions, at least one.

    Raises:
      ValueError: no prediction.
    """
    if not predictions:
      raise ValueError(
        f"{self.name}: expected at least one prediction, got none; a metric without "
        "entries was not measured"
      )
    return float(self.combine(self.statistics(predictions).sum(axis=0)))


_OURS = "imax_jax 1"  # raised when a definition below changes
_NLTK = f"imax_jax 1 = nltk {version('nltk')} + WordNet 3.0"
_ROUGE = f"rouge-score {version('rouge-score')}"

# What an answer that cannot be read costs.
_AS_ZERO = "It counts as the ratio 0: its error is the whole true ratio."
_NO_WORDS = (
  "Only an empty report cannot be read: it matches nothing, and its reference's words "
  "make the brevity penalty harder."
)
_SCORE_ZERO = "Only an empty text cannot be read: it scores 0 and stays in the mean."
_WRONG = "It counts as wrong and stays in the mean."
_NO_LABEL = (
  "It counts as no label present: every true label is missed, none is invented."
)
_NO_BOX = "It counts as a box of no area, IoU 0, and stays in the mean."

STRICT: tuple[Metric, ...] = (
  Metric(
    "cpar_mae", "calculation", "cpar", "CPAR MAE", True,
    "Mean of |predicted - true ratio|, × 100.",
    _OURS, _AS_ZERO, additive.errors, additive.mean,
  ),
  Metric(
    "cpar_rmse", "calculation", "cpar", "CPAR RMSE", True,
    "Root of the mean of (predicted - true ratio)², × 100.",
    _OURS, _AS_ZERO, additive.squared_errors, additive.root_mean,
  ),
  Metric(
    "ctr_mae", "calculation", "ctr", "CTR MAE", True,
    "Mean of |predicted - true ratio|, × 100.",
    _OURS, _AS_ZERO, additive.errors, additive.mean,
  ),
  Metric(
    "ctr_rmse", "calculation", "ctr", "CTR RMSE", True,
    "Root of the mean of (predicted - true ratio)², × 100.",
    _OURS, _AS_ZERO, additive.squared_errors, additive.root_mean,
  ),
  Metric(
    "report_bleu1", "report", "", "BLEU-1", False,
    "Corpus BLEU-1 of lower-case words without punctuation, one reference a report.",
    _OURS, _NO_WORDS, additive.report_bleu1, additive.bleu1,
  ),
  Metric(
    "report_rouge1", "report", "", "ROUGE-1", False,
    "Mean over reports of the F measure of words, each occurrence counted, no stemming.",
    _ROUGE, _SCORE_ZERO, additive.of_pairs(text_scores.rouge1), additive.mean,
  ),
  Metric(
    "report_meteor", "report", "", "METEOR", False,
    "Mean over reports of nltk's METEOR (α 0.9, β 3, γ 0.5): equal words, stems, synonyms.",
    _NLTK, _SCORE_ZERO, additive.of_pairs(text_scores.meteor), additive.mean,
  ),
  Metric(
    "multi_class_acc", "multi_class", "", "Accuracy", False,
    "Share of answers equal to the class's name after normalisation.",
    _OURS, _WRONG, additive.right, additive.mean,
  ),
  Metric(
    "multi_label_micro_f1", "multi_label", "", "Micro F1", False,
    "2 TP / (2 TP + FP + FN), summed over all labels.",
    _OURS, _NO_LABEL, additive.label_counts, additive.micro_f1,
  ),
  Metric(
    "multi_label_macro_f1", "multi_label", "", "Macro F1", False,
    "Mean of the labels' own F1; a label that occurs nowhere is left out.",
    _OURS, _NO_LABEL, additive.label_counts, additive.macro_f1,
  ),
  Metric(
    "rec_iou", "rec", "", "IoU", False,
    "Mean intersection over union of continuous boxes.",
    _OURS, _NO_BOX, additive.overlaps, additive.mean,
  ),
  Metric(
    "rec_r50", "rec", "", "R@0.5", False,
    "Share of boxes whose IoU is above 0.5.",
    _OURS, _NO_BOX, additive.recalls, additive.mean,
  ),
  Metric(
    "reg_acc", "reg", "", "Accuracy", False,
    "Share of answers equal to the object's name after normalisation.",
    _OURS, _WRONG, additive.right, additive.mean,
  ),
  Metric(
    "vqa_verify_acc", "vqa", "verify", "Verify accuracy", False,
    "Share of answers equal to the reference after normalisation.",
    _OURS, _WRONG, additive.right, additive.mean,
  ),
  Metric(
    "vqa_choose_bleu1", "vqa", "choose", "Choose BLEU-1", False,
    "Mean over answers of BLEU-1 on normalised words.",
    _OURS, _SCORE_ZERO, additive.of_pairs(text_scores.answer_bleu1), additive.mean,
  ),
  Metric(
    "vqa_query_bleu1", "vqa", "query", "Query BLEU-1", False,
    "Mean over answers of BLEU-1 on normalised words.",
    _OURS, _SCORE_ZERO, additive.of_pairs(text_scores.answer_bleu1), additive.mean,
  ),
)  # fmt: skip

# ── The published scripts' ────────────────────────────────────────────────────────

_SCRIPTS = "Uni-Med 5c902a5"
_PTB = f"{_SCRIPTS}, pycocoevalcap 1.2 (PTBTokenizer 3.4.1)"
_READ_AS_TEXT = (
  "Nothing is parsed: the text is compared as it is, and none is left out."
)
_AT_THE_START = (
  "IoU 0 unless four <numbers> open the text; words after them do no harm."
)
_DROPPED = "An empty text is LEFT OUT with its reference: silence costs nothing."
_CONTAINED = (
  'Share of answers that contain the reference, both normalised: "no" in "normal".'
)
_EQUAL = "Share of answers equal to the reference, both by their normalize_word."
_SENTENCE_BLEU = (
  "Mean over answers of nltk's sentence BLEU-1 on normalize_word's words."
)
# name: definition, version, cost of an unreadable answer, statistics, combine.
_PUBLISHED: dict[str, tuple[str, str, str, Statistics, Combine]] = {
  "report_bleu1": (
    "Corpus BLEU-1 of Penn Treebank tokens, references cut to 50 words.",
    _PTB, _DROPPED, published.report_bleu1, published.bleu1,
  ),
  "report_rouge1": (
    "Mean over reports of the F measure of the sets of words of both normalised texts.",
    f"{_SCRIPTS}, rouge 1.0.1", _DROPPED, published.report_rouge1, additive.mean,
  ),
  "multi_class_acc": (
    _EQUAL, _SCRIPTS, _READ_AS_TEXT, published.equal, additive.mean,
  ),
  "rec_iou": (
    "Mean IoU in thousandths of the image's sides, +1 on every side.",
    _SCRIPTS, _AT_THE_START, published.overlaps, additive.mean,
  ),
  "rec_r50": (
    "Share of boxes whose IoU, +1 on every side, is above 0.5.",
    _SCRIPTS, _AT_THE_START, published.recalls, additive.mean,
  ),
  "reg_acc": (
    _EQUAL, _SCRIPTS, _READ_AS_TEXT, published.equal, additive.mean,
  ),
  "vqa_verify_acc": (
    _CONTAINED, _SCRIPTS, _READ_AS_TEXT, published.contained, additive.mean,
  ),
  "vqa_choose_bleu1": (
    _SENTENCE_BLEU, _SCRIPTS, _READ_AS_TEXT, published.answer_bleu1, additive.mean,
  ),
  "vqa_query_bleu1": (
    _SENTENCE_BLEU, _SCRIPTS, _READ_AS_TEXT, published.answer_bleu1, additive.mean,
  ),
}  # fmt: skip


def legacy(meteor_jar: str | Path = "") -> tuple[Metric, ...]:
  """The published scripts' metrics; METEOR too where the user has its jar.

  `meteor_jar` is METEOR 1.5's `meteor-1.5.jar` with its folder `data` beside it.
  """
  rows = dict(_PUBLISHED)
  if meteor_jar:
    rows["report_meteor"] = (
      "METEOR 1.5 (-l en -norm) of all reports' summed counts.",
      f"{_PTB}, {Path(meteor_jar).name}", _DROPPED,
      published.report_meteor(meteor_jar), published.meteor,
    )  # fmt: skip
  return tuple(
    dataclasses.replace(
      metric, definition=row[0], version=row[1], unparsed=row[2], statistics=row[3],
      combine=row[4],
    )
    for metric in STRICT
    if (row := rows.get(metric.name))
  )  # fmt: skip


LEGACY: tuple[Metric, ...] = legacy()
NOT_LEGACY: dict[str, str] = {
  metric.name: (
    "needs METEOR 1.5's Java program: give its jar by config.evaluate.meteor_jar"
    if metric.name == "report_meteor"
    else "no published script computes it"
  )
  for metric in STRICT
  if metric.name not in _PUBLISHED
}
