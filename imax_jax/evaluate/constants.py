"""What can be scored without the image: two baselines to stand beside every metric.

    constant   one answer for each kind of question (a ratio, an organ to find, a type of
               VQA question, …)
    blind      one answer for each prompt: REG names the organ whose mean box is nearest
               to the box asked about, a question gets the best answer to that very
               question

Answers are chosen on the TRAINING entries, by the very metric they will stand beside. A
trained model that does not beat both has learnt how answers are distributed, or what
questions give away, and need not have looked at the image.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable
from collections.abc import Hashable
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from imax_jax.data import prompts
from imax_jax.evaluate.metrics import STRICT
from imax_jax.evaluate.metrics import Metric
from imax_jax.evaluate.predictions import predict_values
from imax_jax.evaluate.scores import text as text_scores
from imax_jax.evaluate.scoring import score
from imax_jax.schema import Bits
from imax_jax.schema import Box
from imax_jax.schema import Entry
from imax_jax.schema import Ratio
from imax_jax.schema import Region

Entries = Sequence[Entry]
Kind = Hashable
T = TypeVar("T")

# How many training entries of a kind judge a candidate, how many reports are compared
# with each other, and how many candidates of those that cannot be computed are tried.
_MAX_JUDGES = 200
_MAX_REPORTS = 400
_MAX_CANDIDATES = 12


def constant_scores(train: Entries, test: Entries) -> dict[str, float]:
  """{metric: value × 100}, each by the constants that are best for that metric.

  So MAE stands beside the median ratio and RMSE beside the mean one. Metrics without
  test entries are absent, as in `score`. A kind of question that training does not hold
  is answered by the empty text.
  """
  return _scores(test, constant_answers(train))


def blind_scores(train: Entries, test: Entries) -> dict[str, float]:
  """The same of the best answers to the prompt alone."""
  constant = constant_answers(train)
  by_prompt: dict[str, list[Entry]] = {}
  for entry in sorted(train, key=lambda e: e.id):
    if entry.task == "vqa":
      by_prompt.setdefault(entry.prompt, []).append(entry)
  best = functools.cache(lambda m, prompt: _best_answer(STRICT[m], by_prompt[prompt]))
  centres = _mean_boxes(train)

  def answer(metric: Metric, entry: Entry) -> str:
    if entry.task == "reg" and centres and isinstance(entry.target, Region):
      asked = np.array(entry.target.box)
      return min(centres, key=lambda name: float(np.abs(centres[name] - asked).sum()))
    if entry.prompt in by_prompt:
      return best(STRICT.index(metric), entry.prompt)
    return constant(metric, entry)

  return _scores(test, answer)


def constant_answers(train: Entries) -> Callable[[Metric, Entry], str]:
  """(metric, test entry) -> the constant that is best for the metric."""
  kinds = _by_kind(train)
  best = functools.cache(lambda m, kind: _best_answer(STRICT[m], kinds.get(kind, [])))
  return lambda metric, entry: best(STRICT.index(metric), _kind(entry))


def _scores(test: Entries, answer: Callable[[Metric, Entry], str]) -> dict[str, float]:
  scores = {}
  for metric in STRICT:
    concerned = [entry for entry in test if metric.concerns(entry)]
    if concerned:
      texts = [answer(metric, entry) for entry in concerned]
      scores[metric.name] = score(predict_values(concerned, texts))[metric.name]
  return scores


def _mean_boxes(train: Entries) -> dict[str, np.ndarray]:
  """{organ: its mean box among the REG entries}."""
  boxes: dict[str, list[Box]] = {}
  for entry in train:
    if entry.task == "reg" and isinstance(entry.target, Region):
      boxes.setdefault(entry.target.name, []).append(entry.target.box)
  return {name: np.mean(found, axis=0) for name, found in sorted(boxes.items())}


def _kind(entry: Entry) -> Kind:
  """What the prompt gives away: entries of one kind share their constant.

  REG's sub-task is the organ, which is the answer; it must not tell the kinds apart.
  """
  if isinstance(entry.target, Bits):
    return entry.task, entry.target.labels
  return entry.task, "" if entry.task == "reg" else entry.subtask


def _by_kind(entries: Entries) -> dict[Kind, list[Entry]]:
  kinds: dict[Kind, list[Entry]] = {}
  for entry in sorted(entries, key=lambda e: e.id):
    kinds.setdefault(_kind(entry), []).append(entry)
  return kinds


def _best_answer(metric: Metric, entries: Entries) -> str:
  candidates = _candidates(entries)
  if len(candidates) < 2:
    return candidates[0] if candidates else ""
  judges = _thin(entries, _MAX_JUDGES)
  sign = -1.0 if metric.lower_is_better else 1.0

  def quality(answer: str) -> float:
    return sign * metric.value(predict_values(judges, [answer] * len(judges)))

  return max(candidates, key=quality)  # the first of equals


def _candidates(entries: Entries) -> list[str]:
  """Answer texts among which the best constant is sought; none without entries."""
  if not entries:
    return []
  first = entries[0]
  if isinstance(first.target, Ratio):
    values = [e.target.value for e in entries if isinstance(e.target, Ratio)]
    centres = (float(np.median(values)), float(np.mean(values)))
    return [prompts.answer_of(Ratio(value), "calculation") for value in centres]
  if isinstance(first.target, Bits):
    return _bits_candidates(first, entries)
  if isinstance(first.target, Region) and first.task == "rec":
    boxes = [e.target.box for e in entries if isinstance(e.target, Region)]
    return _box_candidates(first.target, boxes)
  if first.task == "report":
    return _report_candidates([entry.answer for entry in entries])
  counts = Counter(entry.answer for entry in entries)
  # Equal counts in the alphabet's order, whatever the entries' order.
  common = sorted(counts, key=lambda answer: (-counts[answer], answer))
  return common[:_MAX_CANDIDATES]


def _box_candidates(like: Region, seen: Sequence[Box]) -> list[str]:
  """The median and the mean of each side, and some of the boxes themselves."""
  candidates = []
  for sides in (np.median(seen, axis=0), np.mean(seen, axis=0)):
    x_min, y_min, x_max, y_max = map(float, sides)
    candidates.append((x_min, y_min, x_max, y_max))
  return [
    prompts.box_text(dataclasses.replace(like, box=box))
    for box in [*candidates, *_thin(seen, _MAX_CANDIDATES)]
  ]


def _bits_candidates(first: Entry, entries: Entries) -> list[str]:
  """The k most frequent labels present, for every k.

  The constant of the best micro F1 is one of these; so is that of the best macro F1
  (every label that occurs at all).
  """
  assert isinstance(first.target, Bits)
  labels = first.target.labels
  frequency = np.mean(
    [e.target.values for e in entries if isinstance(e.target, Bits)], 0
  )
  rank = np.argsort(np.argsort(-frequency, kind="stable"), kind="stable")
  return [
    prompts.answer_of(Bits(tuple(int(r < k) for r in rank), labels), "multi_label")
    for k in range(len(rank) + 1)
  ]


def _report_candidates(reports: Sequence[str]) -> list[str]:
  """The reports with the highest mean unigram F1 to the others (of a thinned list)."""
  reports = _thin(reports, _MAX_REPORTS)
  words = [Counter(text_scores.report_words(report)) for report in reports]
  column = {word: number for number, word in enumerate(sorted(set().union(*words)))}
  counts = np.zeros((len(reports), len(column)), np.int64)
  for row, counter in enumerate(words):
    for word, count in counter.items():
      counts[row, column[word]] = count
  lengths = counts.sum(axis=1)
  mean_f1 = [
    np.mean(2 * np.minimum(counts, counts[row]).sum(1) / np.maximum(lengths + total, 1))
    for row, total in enumerate(lengths)
  ]
  best = np.argsort(-np.asarray(mean_f1), kind="stable")
  return list(dict.fromkeys(reports[row] for row in best))[:_MAX_CANDIDATES]


def _thin(items: Sequence[T], limit: int) -> list[T]:
  """At most `limit` items, evenly spaced."""
  if len(items) <= limit:
    return list(items)
  return [items[int(i)] for i in np.linspace(0, len(items) - 1, limit)]
