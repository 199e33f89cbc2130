"""Scores of generated words: normalisation, accuracy, BLEU-1, ROUGE-1 and METEOR.

All return fractions in [0, 1]; `evaluate/metrics.py` multiplies by 100.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from rouge_score import rouge_scorer

from imax_jax.evaluate.scores import meteor as meteor_scores

_ARTICLES = frozenset(("a", "an", "the"))
_NUMBER_WORDS = (
  "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
)  # fmt: skip
_NUMBERS = {word: str(number) for number, word in enumerate(_NUMBER_WORDS)}
_APOSTROPHES = re.compile(r"['’]")
# Whatever is neither letter, digit nor a point before a digit.
_SEPARATORS = re.compile(r"(?!\.\d)[\W_]+?")

_LEGACY_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!:'
_LEGACY_DIGIT_COMMA_DIGIT = re.compile(r"\d,\d")
_LEGACY_PERIOD = re.compile(r"\.(?!\d)")
# Upstream hands re.UNICODE (32) to re.sub in the place of `count`.
_LEGACY_MAX_PERIODS = 32
_CONTRACTIONS = (
  "ain't", "aren't", "can't", "couldn't", "didn't", "doesn't", "don't", "hadn't",
  "hasn't", "haven't", "he'd", "he's", "how'd", "how'll", "how's", "isn't", "it'd",
  "it'll", "let's", "mightn't", "might've", "mustn't", "needn't", "oughtn't",
  "shan't", "should've", "shouldn't", "that's", "there'd", "there's", "they'd",
  "they'll", "they're", "they've", "wasn't", "we've", "weren't", "what'll",
  "what're", "what's", "what've", "when's", "where'd", "where's", "who'd", "who'll",
  "who's", "who've", "why'll", "why's", "won't", "would've", "wouldn't", "you'd",
  "you'll", "you're", "you've",
)  # fmt: skip
_LEGACY_CONTRACTIONS = {word.replace("'", ""): word for word in _CONTRACTIONS}


def normalise(text: str, *, legacy: bool = False) -> str:
  """The words of an answer, as they are compared: "The left-lung." -> "left lung".

  Lower case, no "<unk>", no punctuation, no articles, number words as digits. The
  default, strict variant puts a space wherever punctuation stood, so that
  "1,0,0,1" -> "1 0 0 1" and "none" stays "none". `legacy` is the published evaluation's
  `normalize_word` (Uni-Med evaluate_metrics.py), which makes "1001" and "0" of these,
  glues words where the same mark stands beside a space elsewhere in the answer, and
  restores apostrophes; it is kept for comparison with its published numbers.
  """
  text = text.lower().replace("<unk>", "").strip()
  if legacy:
    return _normalise_legacy(text)
  text = _SEPARATORS.sub(" ", _APOSTROPHES.sub("", text))
  words = (_NUMBERS.get(word, word) for word in text.split())
  return " ".join(word for word in words if word not in _ARTICLES)


def _normalise_legacy(text: str) -> str:
  out = text
  digits = _LEGACY_DIGIT_COMMA_DIGIT.search(text) is not None
  for mark in _LEGACY_PUNCTUATION:
    glued = digits or f"{mark} " in text or f" {mark}" in text
    out = out.replace(mark, "" if glued else " ")
  out = _LEGACY_PERIOD.sub("", out, count=_LEGACY_MAX_PERIODS)
  numbers = {**_NUMBERS, "none": "0"}
  words = [numbers.get(word, word) for word in out.split()]
  words = [word for word in words if word not in _ARTICLES]
  return " ".join(_LEGACY_CONTRACTIONS.get(word, word) for word in words)


def is_match(
  truth: str, text: str, *, substring: bool = False, legacy: bool = False
) -> bool:
  """Whether the normalised texts are equal.

  `substring` asks only that the truth occur in the text, as Uni-Med's eval_vqa.py does:
  "no" is then found in "normal", which is why it is not the default.
  """
  want, got = normalise(truth, legacy=legacy), normalise(text, legacy=legacy)
  return want in got if substring else want == got


def report_words(text: str) -> list[str]:
  """Lower-case words and numbers without punctuation: "No effusion." -> [no, effusion].

  It stands where the published evaluation calls a Java PTB tokenizer, from which it
  differs in that hyphenated words are split.
  """
  return _SEPARATORS.sub(" ", _APOSTROPHES.sub("", text.lower())).split()


def bleu1(truths: Sequence[Sequence[str]], texts: Sequence[Sequence[str]]) -> float:
  """Corpus BLEU-1 of tokenised texts, one reference each.

  A corpus of one pair is nltk's `sentence_bleu` with weights (1, 0, 0, 0) and no
  smoothing.

  Raises:
    ValueError: the two sequences differ in length.
  """
  return float(bleu1_of(bleu1_counts(truths, texts).sum(axis=0)))


def bleu1_counts(
  truths: Sequence[Sequence[str]], texts: Sequence[Sequence[str]]
) -> np.ndarray:
  """What each pair adds to BLEU-1: float64[N, 3].

  Words matched (no more often than in the reference), generated and wanted.
  """
  return np.array(
    [
      ((Counter(truth) & Counter(text)).total(), len(text), len(truth))
      for truth, text in zip(truths, texts, strict=True)
    ],
    np.float64,
  ).reshape(-1, 3)


def bleu1_of(sums: np.ndarray) -> np.ndarray:
  """BLEU-1, float64[...], of `bleu1_counts` summed over a corpus, float64[..., 3].

  The share of the words generated that match, times the brevity penalty
  exp(1 - reference length / generated length) where that is below 1 (Papineni et al.
  2002); 0 where nothing was generated.
  """
  matched, generated, wanted = np.moveaxis(sums, -1, 0)
  words = np.where(generated > 0, generated, 1.0)
  brevity = np.exp(np.minimum(0.0, 1.0 - wanted / words))
  return np.where(generated > 0, matched / words * brevity, 0.0)


def answer_bleu1(truth: str, text: str, *, legacy: bool = False) -> float:
  """BLEU-1 of one short answer on normalised words (Uni-Med eval_vqa.py)."""
  return bleu1(
    [normalise(truth, legacy=legacy).split()], [normalise(text, legacy=legacy).split()]
  )


@functools.cache
def _rouge1_scorer() -> rouge_scorer.RougeScorer:
  return rouge_scorer.RougeScorer(["rouge1"], use_stemmer=False)


def rouge1(truth: str, text: str) -> float:
  """ROUGE-1 F measure by the `rouge-score` package, without stemming.

  It counts every occurrence of a word; the published evaluation's `rouge` 1.0.1 counts
  a word once.
  """
  return float(_rouge1_scorer().score(truth, text)["rouge1"].fmeasure)


def rouge1_of_sets(truth: str, text: str) -> float:
  """ROUGE-1 F measure of `rouge` 1.0.1: a word counts once, sentences end at points.

  Neither text is empty.
  """
  want, got = (
    {
      word
      for part in t.split(".")
      if part
      for word in " ".join(part.split()).split(" ")
    }
    for t in (truth, text)
  )
  shared = len(want & got)
  precision, recall = shared / len(got), shared / len(want)
  return 2.0 * (precision * recall / (precision + recall + 1e-8))


def meteor(truth: str, text: str) -> float:
  """METEOR of the words of one pair: nltk's, with WordNet 3.0's synonyms.

  The published evaluation runs the Java METEOR 1.5, which weighs words and has
  paraphrases; see `published.report_meteor`.
  """
  return meteor_scores.meteor(report_words(truth), report_words(text))
