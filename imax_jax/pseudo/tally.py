"""What there is to know of many pseudo labels, counted in one pass over them."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

from imax_jax.data import prompts
from imax_jax.pseudo import labels as labels_lib
from imax_jax.pseudo.labels import LabelFile
from imax_jax.schema import EDEMA_GRADES
from imax_jax.schema import FINDINGS
from imax_jax.schema import ORGANS
from imax_jax.schema import TASKS
from imax_jax.schema import Bits
from imax_jax.schema import Entry
from imax_jax.schema import ImageRecord
from imax_jax.schema import Ratio
from imax_jax.schema import Region
from imax_jax.schema import Target

# What is right of what an entry asks, and from 0 to 1 how right the entry is.
FindTruth = Callable[[Entry], Target | None]
Score = Callable[[Entry, Target], float]

_BINS = 24
_DECILES = 10
# Answers are counted as classes in these groups; of multi-label, the labels present.
_GROUPS = ("multi_class", "multi_label", "reg", "verify")
_KNOWN = (*EDEMA_GRADES, *FINDINGS, *ORGANS, "yes", "no")  # in the order to show


class Training:
  """The split's own entries: what is usual there."""

  def __init__(self, entries: Iterable[Entry]) -> None:
    self.marks = _Marks()
    kinds: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
      self.marks.add(entry, entry.target)
      kinds.setdefault(_kind(entry), []).append(entry)
    self._usual = {kind: _usual(found) for kind, found in kinds.items()}

  def constant(self, entry: Entry) -> Entry | None:
    """`entry` as training's usual answer to its kind of question would have it."""
    usual = self._usual.get(_kind(entry))
    if usual is None:
      return None
    target = entry.target
    if isinstance(target, Region) and isinstance(usual, Region):
      own = {"name": usual.name} if entry.task == "reg" else {"box": usual.box}
      return dataclasses.replace(entry, target=dataclasses.replace(target, **own))
    return dataclasses.replace(entry, target=usual)


class _Marks:
  """How often each class was said, by group."""

  def __init__(self) -> None:
    self.totals: collections.Counter[str] = collections.Counter()
    self.counts: collections.Counter[tuple[str, str]] = collections.Counter()

  def add(self, entry: Entry, target: Target) -> None:
    group = "verify" if entry.subtask == "verify" else entry.task
    if group not in _GROUPS:
      return
    self.totals[group] += 1
    said = [prompts.answer_of(target, entry.task)]
    if isinstance(target, Bits):
      said = [n for n, bit in zip(target.labels, target.values, strict=True) if bit]
    for name in said:
      self.counts[group, name] += 1

  def share(self, group: str, name: str) -> float | None:
    total = self.totals[group]
    return self.counts[group, name] / total if total else None


class Tally:
  """Counts of the labels of one or several seeds.

  Args:
    rows: names of the rows that keep some of them; the first is the study's.
    training: of the labelled split.
    find_truth, score: what is right, where that is known.
  """

  def __init__(
    self,
    rows: Sequence[str],
    training: Training,
    find_truth: FindTruth | None,
    score: Score,
  ) -> None:
    self._rows, self._training = rows, training
    self._find_truth, self._score = find_truth, score
    self._counts: dict[str, Any] = {"asked": {}, "made": {}, "rejected": {}}
    self._filtered: dict[str, Any] = {row: {} for row in rows}
    self._tasks: list[int] = []
    self._log_probs: list[float] = []
    self._scores: list[tuple[float, float]] = []  # the label's, the constant's
    self._kept: list[tuple[bool, ...]] = []
    self._made, self._left, self._true = _Marks(), _Marks(), _Marks()
    self._images: list[tuple[int, int]] = []  # tasks and entries of labelled images

  def add_counts(self, counts: Mapping[str, Any]) -> None:
    """`stream.counts_of` a seed."""
    _add(self._counts, counts)

  def add_rejected(self, row: str, counts: Mapping[str, Any]) -> None:
    """`filters.count` of a seed for a row."""
    _add(self._filtered[row], counts)

  def add_labels(
    self,
    labels: LabelFile,
    records: Sequence[ImageRecord],
    kept: Mapping[str, np.ndarray],
  ) -> None:
    """All labels of a seed; `kept` says of each row which lines it keeps."""
    for place, found in labels.images():
      record = records[place]
      labels_lib.check_image(record, [label for _, label in found])
      tasks = [entry.task for entry in record.entries]
      for line, label in found:
        entry, keeps = label.entry, tuple(bool(kept[row][line]) for row in self._rows)
        self._tasks.append(TASKS.index(entry.task))
        self._log_probs.append(label.log_prob)
        self._kept.append(keeps)
        self._made.add(entry, entry.target)
        if keeps[0]:
          self._left.add(entry, entry.target)
          tasks.append(entry.task)
        self._scores.append(self._judged(entry))
      self._images.append((len(set(tasks)), len(tasks)))

  def result(self, splits: Mapping[str, Any]) -> dict[str, Any]:
    """All that was counted, JSON-able; `splits` are the statistics of the datasets."""
    task, kept = np.array(self._tasks, int), np.array(self._kept, bool)
    kept = kept.reshape(len(task), len(self._rows))
    log_probs, scores = np.array(self._log_probs), np.array(self._scores)
    found = {name: task == number for number, name in enumerate(TASKS)}
    found = {name: mask for name, mask in found.items() if mask.any()}
    return {
      "counts": self._counts
      | {
        "kept": {
          row: {name: int(kept[mask, number].sum()) for name, mask in found.items()}
          for number, row in enumerate(self._rows)
        },
        "filtered": self._filtered,
      },
      "confidence": {
        name: _histogram(log_probs[mask], kept[mask, 0]) for name, mask in found.items()
      },
      "composition": self._composition(splits),
      "classes": self._classes(),
      "accuracy": {
        name: accuracy
        for name, mask in found.items()
        if (accuracy := self._accuracy(log_probs[mask], scores[mask], kept[mask]))
      },
    }

  def _judged(self, entry: Entry) -> tuple[float, float]:
    """(how right the label is, how right the usual answer would be); NaN: not known."""
    truth = self._find_truth(entry) if self._find_truth else None
    if truth is None:
      return np.nan, np.nan
    if isinstance(truth, type(entry.target)):
      self._true.add(entry, truth)
    usual = self._training.constant(entry)
    return self._score(entry, truth), self._score(usual, truth) if usual else 0.0

  def _accuracy(
    self, log_probs: np.ndarray, scores: np.ndarray, kept: np.ndarray
  ) -> dict[str, Any]:
    known = ~np.isnan(scores[:, 0])
    if not known.any():
      return {}
    log_probs, scores, kept = log_probs[known], scores[known], kept[known]
    order = np.argsort(log_probs, kind="stable")
    return {
      "labels": len(scores),
      "made": float(scores[:, 0].mean()),
      "kept": {
        row: float(scores[kept[:, number], 0].mean()) if kept[:, number].any() else None
        for number, row in enumerate(self._rows)
      },
      "constant": float(scores[:, 1].mean()),
      "deciles": [
        {
          "labels": len(part),
          "log_prob": float(log_probs[part].mean()),
          "score": float(scores[part, 0].mean()),
        }
        for part in np.array_split(order, min(_DECILES, len(order)))
      ],
    }

  def _classes(self) -> dict[str, list[dict[str, Any]]]:
    marks = {
      "training": self._training.marks, "made": self._made, "kept": self._left,
      "true": self._true,
    }  # fmt: skip
    found = {}
    for group in _GROUPS:
      said = {
        n for mark in marks.values() for which, n in mark.counts if which == group
      }
      names = [name for name in _KNOWN if name in said] + sorted(said - {*_KNOWN})
      if names:
        found[group] = [
          {"class": name}
          | {who: mark.share(group, name) for who, mark in marks.items()}
          for name in names
        ]
    return found

  def _composition(self, splits: Mapping[str, Any]) -> dict[str, Any]:
    """Of the original sets, and of the labelled images with what is kept."""
    wanted = ("images", "entries", "mean_tasks_per_image", "mean_entries_per_image")
    found = {
      name: {key: splits[name][key] for key in (*wanted, "entries_per_task")}
      for name in ("dmax_train", "imax_train")
      if name in splits
    }
    tasks, entries = np.array(self._images).reshape(-1, 2).T
    if len(tasks):
      found["pseudo_imax"] = {
        "images": len(tasks),
        "entries": int(entries.sum()),
        "mean_tasks_per_image": float(tasks.mean()),
        "mean_entries_per_image": float(entries.mean()),
      }
    return found


def _add(into: dict[str, Any], counts: Mapping[str, Any]) -> None:
  for key, value in counts.items():
    if isinstance(value, Mapping):
      _add(into.setdefault(key, {}), value)
    else:
      into[key] = into.get(key, 0) + value


def _histogram(log_probs: np.ndarray, kept: np.ndarray) -> dict[str, list[float]]:
  edges = np.linspace(min(float(np.quantile(log_probs, 0.005)), -1e-3), 0.0, _BINS + 1)
  inside = np.clip(log_probs, edges[0], edges[-1])
  made, left = (np.histogram(x, edges)[0] for x in (inside, inside[kept]))
  return {"edges": edges.tolist(), "made": made.tolist(), "kept": left.tolist()}


def _kind(entry: Entry) -> tuple[str, str]:
  """What the prompt gives away. REG's sub-task is the organ, which is the answer."""
  return entry.task, "" if entry.task == "reg" else entry.subtask


def _usual(entries: Sequence[Entry]) -> Target:
  """The median ratio or box, the labels that most have, the most frequent answer."""
  first = entries[0]
  if isinstance(first.target, Ratio):
    return Ratio(float(np.median(list(_values(entries, "value")))))
  if isinstance(first.target, Region) and first.task == "rec":
    box = np.median(list(_values(entries, "box")), axis=0).tolist()
    return dataclasses.replace(first.target, box=tuple(box))
  if isinstance(first.target, Bits):
    most = np.mean(list(_values(entries, "values")), axis=0) > 0.5
    return dataclasses.replace(first.target, values=tuple(map(int, most)))
  answers = collections.Counter(entry.answer for entry in entries)
  best = min(answers, key=lambda answer: (-answers[answer], answer))
  return next(entry.target for entry in entries if entry.answer == best)


def _values(entries: Iterable[Entry], field: str) -> Iterator[Any]:
  return (getattr(entry.target, field) for entry in entries)
