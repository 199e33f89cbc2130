"""Which pseudo labels to keep: by confidence, by agreement between tasks, by balance.

The paper seems to keep all, and so does the default. Each filter judges what the ones
before it left, and a REG label falls with the REC label whose box it was asked about.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence

import numpy as np

from imax_jax.pseudo import contradictions
from imax_jax.pseudo import labels as labels_lib
from imax_jax.pseudo.labels import LabelFile
from imax_jax.schema import Entry
from imax_jax.schema import ImageRecord

# What a label is rejected for; a verdict is a place in this list, 0: it is kept.
REASONS = (
  "", "low confidence", *contradictions.REASONS, "its box from rec is rejected",
  "more of its class than in training",
)  # fmt: skip
_LOW, _ITS_BOX, _TOO_MANY = 1, len(REASONS) - 2, len(REASONS) - 1
_CLASSES = ("multi_class", "multi_label", "reg", "vqa")


@dataclasses.dataclass(frozen=True, slots=True)
class Filters:
  """What each filter takes away; the default is nothing.

  Attributes:
    confidence: the share, by task and sub-task, with the lowest mean token
      log-probability. A share and not a bound, for a report's words are less certain
      than a box's digits. From 0 to below 1.
    agreement: whether labels that another of the same image contradicts go
      (`contradictions`). An original entry is right; of two pseudo labels both go.
    balance: how often a class may be pseudo-labelled, in multiples of its share among
      training's own entries; the least confident go. 0: as often as it was. Classes are
      the answers of multi-class, multi-label, REG and each semantic type of VQA; one
      label of each may stay.
  """

  confidence: float = 0.0
  agreement: bool = False
  balance: float = 0.0

  def check(self) -> None:
    """Raises a ValueError for a value that means nothing."""
    if not 0 <= self.confidence < 1:
      raise ValueError(f"confidence={self.confidence}: expected a share below 1")
    if not 0 <= self.balance < math.inf:
      raise ValueError(f"balance={self.balance}: expected 0, or times as often")


def judge(
  labels: LabelFile,
  records: Sequence[ImageRecord],
  filters: Filters,
  read_findings: contradictions.ReadFindings,
) -> np.ndarray:
  """uint8[lines]: for each label its place in `REASONS`, 0 where it is kept.

  Args:
    records: the split that the labels are of.
    read_findings: what a text says of the ten findings: `evaluate.scores.findings.stated`.

  Raises:
    ValueError: a filter's value, or labels of other records.
  """
  filters.check()
  verdict = np.zeros(labels.num_lines, np.uint8)
  if filters == Filters():
    return verdict
  kinds, classes, log_probs = _columns(labels)
  if filters.confidence:
    verdict[_least_confident(kinds, log_probs, filters.confidence)] = _LOW
  if filters.agreement:
    for place, found in labels.images():
      record = records[place]
      labels_lib.check_image(record, [label for _, label in found])
      alive = {n: label.entry for n, label in found if not verdict[n]}
      for line, reason in contradictions.find(record, alive, read_findings).items():
        verdict[line] = REASONS.index(reason)
  _drop_regions(labels, verdict)
  if filters.balance:
    own = _shares(entry for i in range(len(records)) for entry in records[i].entries)
    surplus = _surplus(classes, log_probs, verdict == 0, own, filters.balance)
    verdict[surplus] = _TOO_MANY
  return verdict


def count(labels: LabelFile, verdict: np.ndarray) -> dict[str, dict[str, int]]:
  """{task: {reason: labels}} of those rejected."""
  counts: dict[str, collections.Counter[str]] = {}
  for _, task, reason in rejected(labels, verdict):
    counts.setdefault(task, collections.Counter())[reason] += 1
  return {task: dict(sorted(found.items())) for task, found in sorted(counts.items())}


def rejected(labels: LabelFile, verdict: np.ndarray) -> Iterator[tuple[str, str, str]]:
  """(id, task, reason) of each label that is not kept."""
  for _, found in labels.images():
    for line, label in found:
      if verdict[line]:
        yield label.entry.id, label.entry.task, REASONS[verdict[line]]


def class_of(entry: Entry) -> tuple[str, str, str] | None:
  """(task, semantic type of VQA, answer) of an entry whose answer is a class."""
  if entry.task not in _CLASSES:
    return None
  return entry.task, entry.subtask if entry.task == "vqa" else "", entry.answer


def _columns(
  labels: LabelFile,
) -> tuple[np.ndarray, list[tuple[str, str, str] | None], np.ndarray]:
  """Of each line: its task and sub-task as a number, its class, its log-probability."""
  numbers: dict[tuple[str, str], int] = {}
  kinds = np.zeros(labels.num_lines, np.int32)
  log_probs = np.zeros(labels.num_lines)
  classes: list[tuple[str, str, str] | None] = [None] * labels.num_lines
  known: dict[tuple[str, str, str] | None, tuple[str, str, str] | None] = {}
  for _, found in labels.images():
    for line, label in found:
      kind = label.entry.task, label.entry.subtask
      kinds[line] = numbers.setdefault(kind, len(numbers))
      log_probs[line] = label.log_prob
      one = class_of(label.entry)
      classes[line] = known.setdefault(one, one)  # one tuple for equal ones
  return kinds, classes, log_probs


def _least_confident(
  kinds: np.ndarray, log_probs: np.ndarray, share: float
) -> np.ndarray:
  """Lines of the `share` of each kind, rounded down, with the lowest log-probability."""
  lines = []
  for kind in np.unique(kinds):
    of_kind = np.flatnonzero(kinds == kind)
    order = np.argsort(log_probs[of_kind], kind="stable")
    lines.append(of_kind[order[: int(share * len(of_kind))]])
  return np.concatenate([np.zeros(0, np.int64), *lines])


def _drop_regions(labels: LabelFile, verdict: np.ndarray) -> None:
  for _, found in labels.images():
    fallen = {
      label.entry.subtask
      for line, label in found
      if label.entry.task == "rec" and verdict[line]
    }
    for line, label in found:
      entry = label.entry
      if entry.task == "reg" and entry.subtask in fallen and not verdict[line]:
        verdict[line] = _ITS_BOX


def _shares(entries: Iterable[Entry]) -> dict[tuple[str, str, str], float]:
  """{class: its share among its task's original entries}."""
  counts = collections.Counter(one for entry in entries if (one := class_of(entry)))
  totals: collections.Counter[tuple[str, str]] = collections.Counter()
  for (task, kind, _), number in counts.items():
    totals[task, kind] += number
  return {one: number / totals[one[:2]] for one, number in counts.items()}


def _surplus(
  classes: Sequence[tuple[str, str, str] | None],
  log_probs: np.ndarray,
  kept: np.ndarray,
  own: Mapping[tuple[str, str, str], float],
  times: float,
) -> list[int]:
  """Lines beyond `times` what the class's share of its task's kept labels would be."""
  by_class: dict[tuple[str, str, str], list[int]] = {}
  totals: collections.Counter[tuple[str, str]] = collections.Counter()
  for line, one in enumerate(classes):
    if one is not None and kept[line]:
      by_class.setdefault(one, []).append(line)
      totals[one[:2]] += 1
  lines: list[int] = []
  for one, members in by_class.items():
    most = max(1, int(times * own.get(one, 0.0) * totals[one[:2]] + 1e-9))
    members.sort(key=lambda line: (-log_probs[line], line))
    lines += members[most:]
  return lines
