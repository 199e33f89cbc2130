"""Which questions are read together, and how long the answers of each level are.

    line    an image's prefix and questions about it
    piece   some lines, read in one pass
    wave    some pieces; no answer of one wave meets one of another

A program is compiled for each size of a piece, so there are few.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_PART = 4  # of the questions that go on together, a piece has about one in so many
_MULTIPLE = 16  # of a line's tokens
_SIZES = 4  # of pieces, at most
_PIECES = 4  # that a size of their own pays for
_WAVE = 16  # times as many questions as answers that go on together
_LEVEL = 8  # tokens of the answers of the first level
_STEP = 4  # times as many in the next


class Line(NamedTuple):
  """An image and questions about it, by their numbers."""

  image: int
  questions: tuple[int, ...]


class Piece(NamedTuple):
  """Lines, of which there may be `high`.

  room: tokens of text that each may have behind its prefix.
  width: questions that each may have.
  """

  lines: tuple[Line, ...]
  high: int
  room: int
  width: int

  @property
  def questions(self) -> list[int]:
    return [number for line in self.lines for number in line.questions]


def plan(images: Sequence[int], lengths: Sequence[int], rows: int) -> list[list[Piece]]:
  """Waves that hold all questions, an image's in one line if there are no more than `rows`.

  Args:
    images, lengths: the image and the number of tokens of each question.
    rows: how many answers go on together.
  """
  asked: dict[int, list[int]] = {}
  for number, image in enumerate(images):
    asked.setdefault(image, []).append(number)
  if not asked:
    return []
  lines = [
    Line(image, tuple(numbers[at : at + rows]))
    for image, numbers in sorted(asked.items())
    for at in range(0, len(numbers), rows)
  ]
  tokens = {line: sum(lengths[n] for n in line.questions) for line in lines}
  lines.sort(key=lambda line: -tokens[line])
  high = 1 << max(0, (rows * len(lines) // (_PART * len(images))).bit_length() - 1)
  parts = [tuple(lines[at : at + high]) for at in range(0, len(lines), high)]
  longest = [tokens[part[0]] for part in parts]
  rooms = sizes(longest, min(_SIZES, 1 + len(parts) // _PIECES))
  of_part = [rooms[np.searchsorted(rooms, needed)] for needed in longest]
  width = dict.fromkeys(rooms, 0)
  for part, room in zip(parts, of_part, strict=True):
    width[room] = max(width[room], *(len(line.questions) for line in part))
  waves: list[list[Piece]] = []
  count = 0
  for part, room in zip(parts, of_part, strict=True):
    if count // (_WAVE * rows) >= len(waves):
      waves.append([])
    waves[-1].append(Piece(part, high, room, width[room]))
    count += len(waves[-1][-1].questions)
  return waves


def sizes(needed: Sequence[int], most: int) -> list[int]:
  """At most so many sizes, rising, that hold all that is needed with the least padding."""
  rounded = -(-np.array(needed) // _MULTIPLE) * _MULTIPLE
  steps, counts = np.unique(rounded, return_counts=True)
  choices = [
    np.array([*some, steps[-1]])
    for some in itertools.combinations(steps[:-1], min(most, len(steps)) - 1)
  ]
  best = min(
    choices, key=lambda some: (counts * some[np.searchsorted(some, steps)]).sum()
  )
  return [int(size) for size in best]


def levels(budget: int) -> list[int]:
  """How many tokens the answers of each level may have; the last has all of `budget`."""
  found = [min(_LEVEL, budget)]
  while found[-1] < budget:
    found.append(min(_STEP * found[-1], budget))
  return found
