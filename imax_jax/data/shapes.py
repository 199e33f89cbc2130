"""The few sizes that a run's batches have, or XLA would compile its step at every step.

Steps differ in how many tokens they hold, and rows may be long and few or short and many.
All steps of a run are planned when it starts, at every length of row, so that what will
be compiled is known then and every step fits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from imax_jax.data.packing import Planner
from imax_jax.data.packing import Shapes
from imax_jax.data.packing import StepPlan
from imax_jax.data.packing import shard_rows
from imax_jax.data.records import TokenizedImage

_NEVER = np.iinfo(np.int32).max  # rows of a length that an entry of the step exceeds


class Layout(NamedTuple):
  """Which of its sizes each step of a run has."""

  shapes: tuple[Shapes, ...]  # the largest first
  chosen: np.ndarray  # int64[steps]


def lay_out(
  planner: Planner,
  images: Sequence[TokenizedImage],
  num_steps: int,
  *,
  max_shapes: int = 1,
) -> Layout:
  """At most `max_shapes` sizes that hold all steps of a run with little padding.

  The first is the one that holds all steps in the fewest places; then, again and again,
  the one that saves most.

  Raises:
    ValueError: `max_shapes` below 1.
  """
  if max_shapes < 1:
    raise ValueError(f"max_shapes {max_shapes}: expected at least 1")
  own = [[entry.supervised for entry in image.entries] for image in images]
  shared = [len(image.taught) for image in images]
  lengths = np.array(planner.row_lengths)
  # [steps, lengths, (rows, images, supervised)] of the fullest shard.
  needs = np.full((num_steps, len(lengths), 3), _NEVER, np.int32)
  for step in range(num_steps):
    for plan in planner.plans(step):
      number = planner.row_lengths.index(plan.row_tokens)
      needs[step, number] = _needs(plan, planner.num_shards, images, own, shared)
  sizes = _sizes(needs[..., 0], lengths, max_shapes)
  chosen = np.argmin(_places(needs[..., 0], lengths, sizes), axis=1)
  # A size that others have taken all steps from is not compiled.
  sizes = [size for number, size in enumerate(sizes) if (chosen == number).any()]
  sizes.sort(key=lambda size: (-lengths[size[0]] * size[1], size))
  chosen = np.argmin(_places(needs[..., 0], lengths, sizes), axis=1)
  shapes = []
  for number, (length, rows) in enumerate(sizes):
    _, most_images, supervised = needs[chosen == number, length].max(axis=0).tolist()
    shapes.append(
      Shapes(planner.num_shards, rows, most_images, int(lengths[length]), supervised)
    )
  return Layout(tuple(shapes), chosen)


def _needs(
  plan: StepPlan,
  num_shards: int,
  images: Sequence[TokenizedImage],
  own: Sequence[Sequence[int]],
  shared: Sequence[int],
) -> tuple[int, int, int]:
  """(rows, images, supervised tokens) of the fullest shard, one at least of each.

  Args:
    own, shared: supervised tokens of each entry, and of each image's prefix.
  """
  rows = most = supervised = 1
  for part in shard_rows(plan, num_shards):
    held = [(image, chosen) for row in part for image, chosen in row]
    tokens = sum(
      shared[image] + sum(own[image][entry] for entry in chosen)
      for image, chosen in held
    )
    rows = max(rows, len(part))
    most = max(
      most, len({(image, images[image].task_of(some)) for image, some in held})
    )
    supervised = max(supervised, tokens)
  return rows, most, supervised


# (number of a row length, rows of a shard)
_Size = tuple[int, int]


def _sizes(needed: np.ndarray, lengths: np.ndarray, most: int) -> list[_Size]:
  """needed int32[steps, lengths]: rows a shard -> the sizes, at most so many."""
  whole = [
    (number, int(needed[:, number].max()))
    for number in range(len(lengths))
    if needed[:, number].max() < _NEVER
  ]
  found = [min(whole, key=lambda size: (lengths[size[0]] * size[1], size))]
  least = _places(needed, lengths, found).min(axis=1)
  candidates = [
    (number, int(rows))
    for number in range(len(lengths))
    for rows in np.unique(needed[:, number])
    if rows < _NEVER
  ]
  places = _places(needed, lengths, candidates)
  while len(found) < most:
    totals = np.minimum(places, least[:, None]).sum(axis=0)
    best = int(np.argmin(totals))
    if totals[best] >= least.sum():
      break
    found.append(candidates[best])
    least = np.minimum(least, places[:, best])
  return found


def _places(
  needed: np.ndarray, lengths: np.ndarray, sizes: Sequence[_Size]
) -> np.ndarray:
  """float[steps, sizes]: places of a shard, infinitely many where a step does not fit."""
  number, rows = np.array(sizes).T
  return np.where(needed[:, number] <= rows, lengths[number] * rows, np.inf)
