"""Which entries share a row and a prefix; and the arrays that say so.

Inside a step (see `order`) the entries of an image share a row, several images fill one,
and an image is cut where that saves a row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from imax_jax.data.order import Stream
from imax_jax.data.records import TokenizedImage
from imax_jax.data.weighting import EACH_ONE
from imax_jax.data.weighting import WeightOf

# A row: (image index, its entries' indices) in turn.
Row = tuple[tuple[int, tuple[int, ...]], ...]
# An image and the number of the task that it is seen for: what has a prefix of its own.
Seen = tuple[int, int]


@dataclasses.dataclass(frozen=True, slots=True)
class StepPlan:
  rows: tuple[Row, ...]
  row_tokens: int  # that no row exceeds

  def pairs(self) -> list[tuple[int, int]]:
    """All (image index, entry index) of the step, row by row."""
    return [
      (image, entry) for row in self.rows for image, entries in row for entry in entries
    ]


class Load(NamedTuple):
  """What a step holds, over all shards: places are tokens and padding."""

  tokens: int
  supervised: int
  entries: int
  places: int


@dataclasses.dataclass(frozen=True, slots=True)
class Shapes:
  """Sizes of a compiled step.

  The batch is made of `num_shards` equal parts, one for each place along the mesh's rows
  and each turn of gradient accumulation; a part's rows refer only to images of that part.
  `supervised` is how many tokens of a part may be trained on.
  """

  num_shards: int
  rows_per_shard: int
  images_per_shard: int
  row_tokens: int
  supervised: int

  @property
  def rows(self) -> int:
    return self.num_shards * self.rows_per_shard

  @property
  def images(self) -> int:
    return self.num_shards * self.images_per_shard


class Planner:
  """Plans any step by itself: a pure function of the arguments and the step.

  Args:
    stream: which entries each step has.
    entry_lengths: for each image the tokens of each entry, prompt and answer.
    prefix_length: tokens that an image's entries share, image tokens included.
    entry_tasks: the number of each entry's task, where image tokens depend on it: those
      of an image and of one task share a prefix then.
    row_tokens: the longest that a row may be.
    row_multiple: rows are as long as a multiple of it, or `row_tokens`.
    num_shards: to how many the rows are dealt.
    share_prefix: False gives each entry a row of its own, the usual layout, in the same
      order: the same step holds the same entries.

  Raises:
    ValueError: an entry that does not fit a row, or no multiple.
  """

  def __init__(
    self,
    stream: Stream,
    entry_lengths: Sequence[Sequence[int]],
    prefix_length: int,
    *,
    entry_tasks: Sequence[Sequence[int]] = (),
    row_tokens: int,
    row_multiple: int = 0,
    num_shards: int = 1,
    share_prefix: bool = True,
  ) -> None:
    self._lengths = [tuple(lengths) for lengths in entry_lengths]
    self._prefix = prefix_length
    self._tasks = entry_tasks
    self._share_prefix = share_prefix
    self._stream = stream
    self.num_shards = num_shards
    longest = max(max(lengths, default=0) for lengths in self._lengths)
    if prefix_length + longest > row_tokens:
      raise ValueError(
        f"an entry of {longest} tokens and a prefix of {prefix_length} do not fit a row "
        f"of {row_tokens}; raise row_tokens to at least {prefix_length + longest}"
      )
    if row_multiple < 0:
      raise ValueError(f"row_multiple {row_multiple}: expected 0 or more")
    shorter = range(row_multiple, row_tokens, row_multiple) if row_multiple else ()
    self.row_lengths = (*shorter, row_tokens)

  def entries(self, step: int) -> list[tuple[int, int]]:
    """The step's (image index, entry index), in the stream's order."""
    return self._stream.entries(step)

  def plan(self, step: int, row_tokens: int) -> StepPlan:
    """The step's rows, of one of the `row_lengths`."""
    return self._plan(self.entries(step), row_tokens)

  def plans(self, step: int) -> list[StepPlan]:
    """One for each of the `row_lengths` that the step's longest entry fits."""
    pairs = self.entries(step)
    longest = self._prefix + max(self._lengths[image][entry] for image, entry in pairs)
    return [self._plan(pairs, size) for size in self.row_lengths if size >= longest]

  def _plan(self, pairs: Sequence[tuple[int, int]], row_tokens: int) -> StepPlan:
    if not self._share_prefix:
      return StepPlan(tuple(((i, (entry,)),) for i, entry in pairs), row_tokens)
    by_image: dict[Seen, list[int]] = {}
    for image, entry in pairs:
      task = self._tasks[image][entry] if self._tasks else 0
      by_image.setdefault((image, task), []).append(entry)
    lengths = {seen: self._piece(seen[0], part) for seen, part in by_image.items()}
    order = sorted(by_image, key=lambda seen: -lengths[seen])
    smallest = -(-sum(lengths.values()) // row_tokens)
    for num_rows in range(smallest, len(pairs) + 1):
      rows = self._pack({seen: by_image[seen] for seen in order}, num_rows, row_tokens)
      if rows is not None:
        return StepPlan(rows, row_tokens)
    raise AssertionError("a row for each entry holds them all: __init__ checked it")

  def _piece(self, image: int, entries: Sequence[int]) -> int:
    """Tokens of some entries of an image together with their prefix."""
    return self._prefix + sum(self._lengths[image][entry] for entry in entries)

  def _pack(
    self, by_image: dict[Seen, list[int]], num_rows: int, row_tokens: int
  ) -> tuple[Row, ...] | None:
    """Fills so many rows, or None if that fails.

    Each image goes whole into the fullest row that takes it (best fit). If none does it
    is cut: the emptiest row takes what it can, for the price of another prefix. What is
    left then fits that row no more, so no row has two pieces of an image; the second's
    prefix would see the first's.
    """
    free = [row_tokens] * num_rows
    rows: list[dict[Seen, tuple[int, ...]]] = [{} for _ in range(num_rows)]
    for seen, entries in by_image.items():
      (image, _), left = seen, entries
      while left:
        needed = self._piece(image, left)
        whole = [r for r in range(num_rows) if free[r] >= needed]
        if whole:
          row = min(whole, key=lambda r: (free[r], r))
        else:
          row = max(range(num_rows), key=lambda r: (free[r], -r))
        taken, left = self._cut(image, left, free[row])
        if not taken:
          return None
        assert seen not in rows[row], "the entries left did not fit this row"
        free[row] -= self._piece(image, taken)
        rows[row][seen] = tuple(taken)
    return tuple(
      tuple((image, taken) for (image, _), taken in row.items()) for row in rows if row
    )

  def _cut(
    self, image: int, entries: list[int], tokens: int
  ) -> tuple[list[int], list[int]]:
    """(entries that fit so many tokens together with a prefix, the rest), in order."""
    taken: list[int] = []
    rest: list[int] = []
    free = tokens - self._prefix
    for entry in entries:
      length = self._lengths[image][entry]
      fits = length <= free
      (taken if fits else rest).append(entry)
      free -= length if fits else 0
    return taken, rest


def shard_rows(plan: StepPlan, num_shards: int) -> list[tuple[Row, ...]]:
  """Deals the rows to the shards in turn: their numbers differ by one at most."""
  return [plan.rows[shard::num_shards] for shard in range(num_shards)]


def supervised(loss_weight: np.ndarray, num_shards: int, size: int) -> np.ndarray:
  """float[B, T] -> int32[num_shards, size], `schema.Batch`'s `supervised`.

  >>> supervised(np.array([[0, 1, 0], [1, 1, 0]]), 1, 4).tolist()
  [[1, 3, 4, -1]]

  Raises:
    ValueError: a shard has more of them.
  """
  places = np.full((num_shards, size), -1, np.int32)
  for line, weight in zip(places, np.array_split(loss_weight, num_shards), strict=True):
    found = np.flatnonzero(weight)
    if len(found) > size:
      raise ValueError(
        f"a shard of rows has {len(found)} supervised tokens, the run was laid out for "
        f"{size}; lay it out again with lay_out over all its steps"
      )
    line[: len(found)] = found
  return places


def assemble(
  plan: StepPlan,
  images: Sequence[TokenizedImage],
  shapes: Shapes,
  *,
  weight_of: WeightOf = EACH_ONE,
  shards: range | None = None,
  answers_only: bool = False,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
  """The arrays of `schema.Batch` but the pixels, and whose pixels they need.

  Args:
    weight_of: see `weighting.weigh`.
    shards: the parts to make, all unless given; a process makes its own. The parts of
      all processes, one after the other, are the batch: `image` counts over the whole
      batch, as the compiled step does, not over the part.
    answers_only: no token of the template before an answer is supervised, though it is
      in training.

  Returns:
    (arrays, image index int64[N]; -1: padding, to be filled with zeros).

  Raises:
    ValueError: the plan does not fit the shapes.
  """
  shards = range(shapes.num_shards) if shards is None else shards
  size = (len(shards) * shapes.rows_per_shard, shapes.row_tokens)
  arrays = {
    "text": np.zeros(size, np.int32),
    "image": np.full(size, -1, np.int32),
    "slot": np.full(size, -1, np.int32),
    "segment": np.zeros(size, np.int32),
    "position": np.zeros(size, np.int32),
    "loss_weight": np.zeros(size, np.float32),
  }
  index = np.full(len(shards) * shapes.images_per_shard, -1, np.int64)
  task = np.zeros(len(index), np.int32)
  parts = shard_rows(plan, shapes.num_shards)
  for number, shard in enumerate(shards):
    pieces = [piece for row in parts[shard] for piece in row]
    wanted = list(dict.fromkeys((i, images[i].task_of(some)) for i, some in pieces))
    if (
      len(parts[shard]) > shapes.rows_per_shard or len(wanted) > shapes.images_per_shard
    ):
      raise ValueError(
        f"a step needs {len(parts[shard])} rows and {len(wanted)} images a shard, the "
        f"run was laid out for {shapes.rows_per_shard} and {shapes.images_per_shard}; "
        "lay it out again with lay_out over all its steps"
      )
    first = number * shapes.images_per_shard
    for i, seen in enumerate(wanted, start=first):
      index[i], task[i] = seen
    ids = {seen: shard * shapes.images_per_shard + i for i, seen in enumerate(wanted)}
    for i, row in enumerate(parts[shard]):
      line = {name: a[number * shapes.rows_per_shard + i] for name, a in arrays.items()}
      _fill_row(line, row, images, ids, weight_of, answers_only)
  arrays["supervised"] = supervised(
    arrays["loss_weight"], len(shards), shapes.supervised
  )
  return {"task": task, **arrays}, index


def _fill_row(
  line: dict[str, np.ndarray],
  row: Row,
  images: Sequence[TokenizedImage],
  ids: dict[Seen, int],
  weight_of: WeightOf,
  answers_only: bool,
) -> None:
  """Writes one row of each array in place.

  What is supervised of a prefix weighs what it would in a row for each of its entries.
  """
  at = 0
  for number, entries in row:
    image = images[number]
    prefix, begin = len(image.prefix_ids), at
    line["text"][at : at + prefix] = image.prefix_ids
    line["slot"][at : at + prefix] = image.prefix_slot
    line["position"][at : at + prefix] = np.arange(prefix)
    at += prefix
    taught = [] if answers_only else [begin + place - 1 for place in image.taught]
    for segment, chosen in enumerate(entries, start=1):
      entry = image.entries[chosen]
      answer, end = at + len(entry.prompt_ids), at + entry.length
      line["text"][at:answer] = entry.prompt_ids
      line["text"][answer:end] = entry.answer_ids
      line["segment"][at:end] = segment
      line["position"][at:end] = prefix + np.arange(entry.length)
      first = answer - 1 - (0 if answers_only else entry.lead)
      weight = weight_of(entry)
      line["loss_weight"][first : end - 1] = weight
      line["loss_weight"][taught] += weight
      at = end
    line["image"][begin:at] = ids[number, image.task_of(entries)]
