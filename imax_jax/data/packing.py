"""Which entries share a step, a row and a prefix; and the arrays that say so.

Entries are visited as one endless stream: epoch after epoch, each a permutation of the
images, an image's entries side by side. Step s takes entries [s E, (s + 1) E) of the
stream, so that every step has exactly E entries and every epoch has every entry once; an
image that a step's end cuts in two repeats its prefix in the next step. Inside a step
the entries of an image share a row, several images fill one, and an image is cut where
that saves a row.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Literal
from typing import NamedTuple

import numpy as np

from imax_jax.data.records import TokenizedImage

Weighting = Literal["token", "entry"]
# A row: (image index, its entries' indices) in turn.
Row = tuple[tuple[int, tuple[int, ...]], ...]


@dataclasses.dataclass(frozen=True, slots=True)
class StepPlan:
  rows: tuple[Row, ...]

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
  """Sizes that hold over a whole run, or XLA would compile the step again.

  The batch is made of `num_shards` equal parts, one for each place along the mesh axis
  "data"; a part's rows refer only to images of that part. `supervised` is how many tokens
  of a part may be trained on.
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
    entry_lengths: for each image the tokens of each entry, prompt and answer.
    prefix_length: tokens that an image's entries share, image tokens included.
    entries_per_step: E, the same in every step.
    row_tokens: T.
    seed: decides the order of each epoch.
    share_prefix: False gives each entry a row of its own, the usual layout, in the same
      order: the same step holds the same entries.

  Raises:
    ValueError: no entry at all, or one that does not fit a row.
  """

  def __init__(
    self,
    entry_lengths: Sequence[Sequence[int]],
    prefix_length: int,
    *,
    entries_per_step: int,
    row_tokens: int,
    seed: int,
    share_prefix: bool = True,
  ) -> None:
    self._lengths = [tuple(lengths) for lengths in entry_lengths]
    self._counts = np.array([len(lengths) for lengths in self._lengths], np.int64)
    self._prefix = prefix_length
    self._row_tokens = row_tokens
    self._seed = seed
    self._share_prefix = share_prefix
    self.entries_per_step = entries_per_step
    self.num_entries = int(self._counts.sum())
    if not self.num_entries or entries_per_step < 1:
      raise ValueError(
        f"{self.num_entries} entries, {entries_per_step} a step: expected at least one "
        "of each; check the dataset and entries_per_step"
      )
    longest = max(max(lengths, default=0) for lengths in self._lengths)
    if prefix_length + longest > row_tokens:
      raise ValueError(
        f"an entry of {longest} tokens and a prefix of {prefix_length} do not fit a row "
        f"of {row_tokens}; raise row_tokens to at least {prefix_length + longest}"
      )
    self._order = functools.lru_cache(maxsize=4)(self._epoch_order)

  def _epoch_order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """(image index, entry index) of each entry of an epoch, in the stream's order."""
    rng = np.random.default_rng((self._seed, epoch))
    images = rng.permutation(len(self._counts))
    counts = self._counts[images]
    starts = np.cumsum(counts) - counts
    image = np.repeat(images, counts)
    entry = np.arange(self.num_entries) - np.repeat(starts, counts)
    return image, entry

  def entries(self, step: int) -> list[tuple[int, int]]:
    """The step's (image index, entry index), in the stream's order."""
    start = step * self.entries_per_step
    stop = start + self.entries_per_step
    pairs: list[tuple[int, int]] = []
    while start < stop:
      epoch, offset = divmod(start, self.num_entries)
      count = min(stop - start, self.num_entries - offset)
      image, entry = self._order(epoch)
      part = slice(offset, offset + count)
      pairs += zip(image[part].tolist(), entry[part].tolist(), strict=True)
      start += count
    return pairs

  def plan(self, step: int) -> StepPlan:
    """The step's rows."""
    pairs = self.entries(step)
    if not self._share_prefix:
      return StepPlan(tuple(((image, (entry,)),) for image, entry in pairs))
    by_image: dict[int, list[int]] = {}
    for image, entry in pairs:
      by_image.setdefault(image, []).append(entry)
    lengths = {image: self._piece(image, part) for image, part in by_image.items()}
    order = sorted(by_image, key=lambda image: -lengths[image])
    smallest = -(-sum(lengths.values()) // self._row_tokens)
    for num_rows in range(smallest, len(pairs) + 1):
      rows = self._pack({image: by_image[image] for image in order}, num_rows)
      if rows is not None:
        return StepPlan(rows)
    raise AssertionError("a row for each entry holds them all: __init__ checked it")

  def _piece(self, image: int, entries: Sequence[int]) -> int:
    """Tokens of some entries of an image together with their prefix."""
    return self._prefix + sum(self._lengths[image][entry] for entry in entries)

  def _pack(
    self, by_image: dict[int, list[int]], num_rows: int
  ) -> tuple[Row, ...] | None:
    """Fills so many rows, or None if that fails.

    Each image goes whole into the fullest row that takes it (best fit). If none does it
    is cut: the emptiest row takes what it can, for the price of another prefix. What is
    left then fits that row no more, so no row has two pieces of an image; the second's
    prefix would see the first's.
    """
    free = [self._row_tokens] * num_rows
    rows: list[dict[int, tuple[int, ...]]] = [{} for _ in range(num_rows)]
    for image, entries in by_image.items():
      left = entries
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
        assert image not in rows[row], "the entries left did not fit this row"
        free[row] -= self._piece(image, taken)
        rows[row][image] = tuple(taken)
    return tuple(tuple(row.items()) for row in rows if row)

  def _cut(
    self, image: int, entries: list[int], tokens: int
  ) -> tuple[list[int], list[int]]:
    """(entries that fit so many tokens together with a prefix, the rest), in order."""
    taken: list[int] = []
    rest: list[int] = []
    for entry in entries:
      fits = self._piece(image, [*taken, entry]) <= tokens
      (taken if fits else rest).append(entry)
    return taken, rest


def shard_rows(plan: StepPlan, num_shards: int) -> list[tuple[Row, ...]]:
  """Deals the rows to the shards in turn: their numbers differ by one at most."""
  return [plan.rows[shard::num_shards] for shard in range(num_shards)]


def shapes_of(
  planner: Planner,
  images: Sequence[TokenizedImage],
  num_steps: int,
  *,
  row_tokens: int,
  num_shards: int = 1,
) -> Shapes:
  """The smallest sizes that hold all steps of a run: all of them are planned once."""
  answers = [[len(entry.answer_ids) for entry in image.entries] for image in images]
  most_rows = most_images = most_supervised = 1
  for step in range(num_steps):
    for part in shard_rows(planner.plan(step), num_shards):
      held = [(image, chosen) for row in part for image, chosen in row]
      tokens = sum(answers[image][entry] for image, chosen in held for entry in chosen)
      most_rows = max(most_rows, len(part))
      most_images = max(most_images, len({image for image, _ in held}))
      most_supervised = max(most_supervised, tokens)
  return Shapes(num_shards, most_rows, most_images, row_tokens, most_supervised)


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
        f"{size}; lay it out again with shapes_of over all its steps"
      )
    line[: len(found)] = found
  return places


def assemble(
  plan: StepPlan,
  images: Sequence[TokenizedImage],
  shapes: Shapes,
  *,
  weighting: Weighting = "token",
  shards: range | None = None,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
  """The arrays of `schema.Batch` but the pixels, and whose pixels they need.

  Args:
    weighting: "token": 1 for each answer token. "entry": 1 / (answer tokens), so that
      a yes weighs as much as a report.
    shards: the parts to make, all unless given; a process makes its own. The parts of
      all processes, one after the other, are the batch: `image` counts over the whole
      batch, as the compiled step does, not over the part.

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
  parts = shard_rows(plan, shapes.num_shards)
  for number, shard in enumerate(shards):
    wanted = list(dict.fromkeys(image for row in parts[shard] for image, _ in row))
    if (
      len(parts[shard]) > shapes.rows_per_shard or len(wanted) > shapes.images_per_shard
    ):
      raise ValueError(
        f"a step needs {len(parts[shard])} rows and {len(wanted)} images a shard, the "
        f"run was laid out for {shapes.rows_per_shard} and {shapes.images_per_shard}; "
        "lay it out again with shapes_of over all its steps"
      )
    first = number * shapes.images_per_shard
    index[first : first + len(wanted)] = wanted
    ids = {image: shard * shapes.images_per_shard + i for i, image in enumerate(wanted)}
    for i, row in enumerate(parts[shard]):
      line = {name: a[number * shapes.rows_per_shard + i] for name, a in arrays.items()}
      _fill_row(line, row, images, ids, weighting)
  arrays["supervised"] = supervised(
    arrays["loss_weight"], len(shards), shapes.supervised
  )
  return arrays, index


def _fill_row(
  line: dict[str, np.ndarray],
  row: Row,
  images: Sequence[TokenizedImage],
  ids: dict[int, int],
  weighting: Weighting,
) -> None:
  """Writes one row of each array in place."""
  at = 0
  for number, entries in row:
    image = images[number]
    prefix, begin = len(image.prefix_ids), at
    line["text"][at : at + prefix] = image.prefix_ids
    line["slot"][at : at + prefix] = image.prefix_slot
    line["position"][at : at + prefix] = np.arange(prefix)
    at += prefix
    for segment, chosen in enumerate(entries, start=1):
      entry = image.entries[chosen]
      answer, end = at + len(entry.prompt_ids), at + entry.length
      line["text"][at:answer] = entry.prompt_ids
      line["text"][answer:end] = entry.answer_ids
      line["segment"][at:end] = segment
      line["position"][at:end] = prefix + np.arange(entry.length)
      weight = 1.0 if weighting == "token" else 1.0 / len(entry.answer_ids)
      line["loss_weight"][answer - 1 : end - 1] = weight
      at = end
    line["image"][begin:at] = ids[number]
