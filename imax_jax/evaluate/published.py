"""What each prediction adds to a metric in the published scripts (Uni-Med's).

As `additive.py`, but every choice is theirs: MSIIP/Uni-Med at 5c902a5, eval_vqa.py,
eval_identify.py, eval_cls.py, eval_ref.py, eval_caption.py and what these call. They
have no script for ratios and for several labels an image. References are cut to 50
words, as their text processor does; a generated text is put in lower case and loses
"<unk>". What was parsed of an answer does not matter here: they read the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from imax_jax.data.spelling import from_frame
from imax_jax.evaluate import additive
from imax_jax.evaluate.predictions import Predictions
from imax_jax.evaluate.scores import boxes
from imax_jax.evaluate.scores import java_meteor
from imax_jax.evaluate.scores import ptb
from imax_jax.evaluate.scores import text as text_scores
from imax_jax.schema import Prediction
from imax_jax.schema import Region

MAX_WORDS = 50  # of a reference
# Theirs has braces and three digits; the study's boxes have none and count to 1000.
_BOX = re.compile(r"\{?<(\d{1,4})><(\d{1,4})><(\d{1,4})><(\d{1,4})>")
# pycocoevalcap keeps its divisions from 0 by these.
_TINY, _SMALL = 1e-15, 1e-9


def reference(prediction: Prediction) -> str:
  """The answer with single spaces, its first 50 words."""
  words = re.sub(r"\s{2,}", " ", prediction.entry.answer).rstrip("\n").strip(" ")
  return " ".join(words.split(" ")[:MAX_WORDS])


def generated(prediction: Prediction) -> str:
  return prediction.text.lower().replace("<unk>", "").strip()


def _pairs(predictions: Predictions) -> Iterator[tuple[str, str]]:
  return ((reference(p), generated(p)) for p in predictions)


# ── Answers ───────────────────────────────────────────────────────────────────────


def contained(predictions: Predictions) -> np.ndarray:
  """1 where the normalised reference occurs in the text: "no" does in "normal"."""
  return additive.each(
    [
      text_scores.is_match(truth, text, substring=True, legacy=True)
      for truth, text in _pairs(predictions)
    ]
  )


def equal(predictions: Predictions) -> np.ndarray:
  return additive.each(
    [text_scores.is_match(*pair, legacy=True) for pair in _pairs(predictions)]
  )


def answer_bleu1(predictions: Predictions) -> np.ndarray:
  return additive.each(
    [text_scores.answer_bleu1(*pair, legacy=True) for pair in _pairs(predictions)]
  )


# ── Boxes ─────────────────────────────────────────────────────────────────────────


def overlaps(predictions: Predictions) -> np.ndarray:
  return additive.each(_box_ious(predictions))


def recalls(predictions: Predictions) -> np.ndarray:
  return additive.each(_box_ious(predictions) > 0.5)


def _box_ious(predictions: Predictions) -> np.ndarray:
  return np.array([_box_iou(p) for p in predictions], np.float64)


def _box_iou(prediction: Prediction) -> float:
  """IoU in thousandths of the image's sides, both edges counted; 0 without a box.

  Theirs are pixels of the image file, whose size an entry does not know.
  """
  region = prediction.entry.target
  assert isinstance(region, Region), prediction.entry.id
  found = _BOX.match(generated(prediction).replace(" ", ""))
  if not found:
    return 0.0
  sides = [int(side) for side in found.groups()]
  if region.order == "yx":
    sides = [sides[1], sides[0], sides[3], sides[2]]
  x_min, y_min, x_max, y_max = (np.array(sides) / np.array(2 * region.scale)).tolist()
  box = np.array(from_frame((x_min, y_min, x_max, y_max), region.frame))
  units = additive.BOX_UNITS
  truth = np.multiply(region.box, units)
  return float(boxes.iou(truth, box * units, plus_one=True))


# ── Reports ───────────────────────────────────────────────────────────────────────


def report_bleu1(predictions: Predictions) -> np.ndarray:
  """Rows (words matched, generated, wanted) of Penn Treebank tokens.

  A pair of which one side is empty adds nothing; neither to the other two.
  """
  rows = np.zeros((len(predictions), 3))
  for row, (truth, text) in zip(rows, _pairs(predictions), strict=True):
    if truth and text:
      # A token may hold a hard space, at which BLEU cuts it.
      tokens = [" ".join(ptb.report_tokens(t)).split() for t in (truth, text)]
      row[:] = text_scores.bleu1_counts(tokens[:1], tokens[1:])[0]
  return rows


def bleu1(sums: np.ndarray) -> np.ndarray:
  """100 × BLEU-1 as pycocoevalcap's `Bleu` computes it of the sums."""
  matched, words, wanted = np.moveaxis(sums, -1, 0)
  precision = (matched + _TINY) / (words + _SMALL)
  ratio = (words + _TINY) / (wanted + _SMALL)
  return 100.0 * precision * np.where(ratio < 1, np.exp(1 - 1 / ratio), 1.0)


def report_rouge1(predictions: Predictions) -> np.ndarray:
  """`rouge` 1.0.1's F measure of the SETS of words, both texts normalised twice.

  (Their METEOR normalises the texts in place before ROUGE does so again.) A pair of which
  one side is left empty by that adds nothing.
  """
  rows = np.zeros((len(predictions), 2))
  for row, (truth, text) in zip(rows, _pairs(predictions), strict=True):
    want, got = (_twice(t) if truth and text else "" for t in (truth, text))
    if want and got:
      row[:] = 1.0, text_scores.rouge1_of_sets(want, got)
  return rows


def report_meteor(jar: str | Path) -> Callable[[Predictions], np.ndarray]:
  """Rows of METEOR 1.5's counts by the user's jar (`java_meteor.counts`)."""

  def statistics(predictions: Predictions) -> np.ndarray:
    rows = np.zeros((len(predictions), java_meteor.COUNTS))
    asked, pairs = [], []
    for number, (truth, text) in enumerate(_pairs(predictions)):
      if truth and text:
        words = (text_scores.normalise(t, legacy=True) for t in (truth, text))
        want, got = (" ".join(ptb.report_tokens(t)) for t in words)
        asked.append(number)
        pairs.append((want, got))
    if pairs:
      rows[asked] = java_meteor.counts(jar, pairs)
    return rows

  return statistics


def meteor(sums: np.ndarray) -> np.ndarray:
  return 100.0 * java_meteor.score_of(sums)


def _twice(text: str) -> str:
  once = text_scores.normalise(text, legacy=True)
  return text_scores.normalise(once, legacy=True)
