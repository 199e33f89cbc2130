"""The questions that pseudo labels are asked for: drawn from training's, by their type."""

from __future__ import annotations

import bisect
import collections
import itertools
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from imax_jax.schema import Answer
from imax_jax.schema import ImageRecord


class Question(NamedTuple):
  """A question that may be asked of any image."""

  text: str
  subtask: str  # its semantic type: "verify", "choose" or "query"
  content_type: str  # what it is about: "presence", "anatomy", …


class Pool:
  """All questions of the training images, as often as they were asked there, by stratum.

  A stratum is a semantic type and a content type ("verify", "presence"). The distinct
  questions are kept, and how often each came.
  """

  def __init__(self, questions: Iterable[Question]) -> None:
    counts = collections.Counter(questions)
    self.num_distinct = len(counts)
    strata: dict[tuple[str, str], list[Question]] = {}
    for question in sorted(counts):
      strata.setdefault((question.subtask, question.content_type), []).append(question)
    # Sorted by type, so that neighbours on the line below are of like types.
    self._strata = [strata[key] for key in sorted(strata)]
    self._ends = [
      list(itertools.accumulate(counts[question] for question in stratum))
      for stratum in self._strata
    ]
    self._line = list(itertools.accumulate(ends[-1] for ends in self._ends))

  def __len__(self) -> int:
    """How many were asked."""
    return self._line[-1] if self._line else 0

  def draw(self, count: int, rng: np.random.Generator) -> list[Question]:
    """`count` distinct questions, or all that there are.

    Systematic sampling: all that were asked lie on a line, a stratum behind the other,
    and points at equal distances from a random beginning fall on them. So every stratum
    comes as often as it did in training, and the questions of one image are of types as
    different as can be. Within its stratum a question is drawn by how often it was asked.
    """
    count = min(count, self.num_distinct)
    if not count:
      return []
    points = (rng.random() + np.arange(count)) / count * len(self)
    wanted = collections.Counter(
      bisect.bisect_right(self._line, int(point)) for point in points
    )
    drawn: dict[Question, None] = {}
    for number, times in sorted(wanted.items()):
      stratum, ends = self._strata[number], self._ends[number]
      most = len(drawn) + min(times, len(stratum))
      while len(drawn) < most:
        place = bisect.bisect_right(ends, int(rng.integers(ends[-1])))
        drawn[stratum[place]] = None
    while len(drawn) < count:  # a stratum had fewer than fell to it
      number = bisect.bisect_right(self._line, int(rng.integers(len(self))))
      stratum, ends = self._strata[number], self._ends[number]
      drawn[stratum[bisect.bisect_right(ends, int(rng.integers(ends[-1])))]] = None
    return list(drawn)


def pool_of(records: Iterable[ImageRecord]) -> Pool:
  """The questions of the training images.

  Training images only: a test question must not be seen before the test.
  """
  return Pool(
    Question(entry.target.question, entry.subtask, entry.target.content_type)
    for record in records
    for entry in record.entries
    if isinstance(entry.target, Answer)
  )
