"""The order in which a run visits its entries, and which of them share a step.

One endless stream; step s takes entries [s E, (s + 1) E) of it, so that every step has
exactly E entries and its place is one number, whatever the devices and processes.

    image    epochs; each a permutation of the images, an image's entries side by side. An
             image that a step's end cuts in two repeats its prefix in the next step
    global   epochs; each a permutation of all entries
    task     every step is of one task, drawn at random; each task has its own epochs,
             permutations of its entries. So do MiniGPT-v2 and Uni-Med, whose loaders
             draw a data set for each batch (minigpt4/datasets/data_utils.py)
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Literal

import numpy as np

Shuffle = Literal["image", "global", "task"]

_BLOCK = 1024  # draws of a task that are made together


class Stream:
  """(image index, entry index) of any step: a pure function of the arguments and the step.

  Args:
    tasks: for each image the task of each entry.
    entries_per_step: E.
    seed: decides the order of each epoch.
    shuffle: see above.
    sample_ratios: of "task": how often each is drawn, in proportion; where all are 0, or
      none is given, in proportion to its entries.

  Raises:
    ValueError: no entry at all, an unknown shuffle, or ratios below 0 or of no task here.
  """

  def __init__(
    self,
    tasks: Sequence[Sequence[str]],
    *,
    entries_per_step: int,
    seed: int,
    shuffle: Shuffle = "image",
    sample_ratios: Mapping[str, float] | None = None,
  ) -> None:
    self._counts = np.array([len(named) for named in tasks], np.int64)
    self.num_entries = int(self._counts.sum())
    self.entries_per_step = entries_per_step
    if not self.num_entries or entries_per_step < 1:
      raise ValueError(
        f"{self.num_entries} entries, {entries_per_step} a step: expected at least one "
        "of each; check the dataset and entries_per_step"
      )
    if shuffle not in ("image", "global", "task"):
      raise ValueError(f"shuffle {shuffle!r}: expected 'image', 'global' or 'task'")
    self._seed, self._shuffle = seed, shuffle
    self._order = functools.lru_cache(maxsize=16)(self._epoch)
    if shuffle != "task":
      return
    found = [name for named in tasks for name in named]
    self._tasks = sorted(set(found))
    self._chance = _chances(found, self._tasks, sample_ratios or {})
    places = np.stack(self._entries(np.arange(len(tasks))), axis=1)
    names = np.array(found)
    self._of_task = [places[names == task] for task in self._tasks]
    self._draws = functools.lru_cache(maxsize=None)(self._drawn)

  def entries(self, step: int) -> list[tuple[int, int]]:
    """The step's (image index, entry index), in the stream's order."""
    if self._shuffle != "task":
      return self._slice(step * self.entries_per_step, None)
    block, offset = divmod(step, _BLOCK)
    drawn, before = self._draws(block)
    task = int(drawn[offset])
    done = int(before[task]) + int(np.count_nonzero(drawn[:offset] == task))
    return self._slice(done * self.entries_per_step, task)

  def _slice(self, start: int, task: int | None) -> list[tuple[int, int]]:
    """E entries from `start` on, of all or of a task's own stream."""
    stop = start + self.entries_per_step
    pairs: list[tuple[int, int]] = []
    while start < stop:
      size = self.num_entries if task is None else len(self._of_task[task])
      epoch, offset = divmod(start, size)
      count = min(stop - start, size - offset)
      image, entry = self._order(epoch, task)
      part = slice(offset, offset + count)
      pairs += zip(image[part].tolist(), entry[part].tolist(), strict=True)
      start += count
    return pairs

  def _epoch(self, epoch: int, task: int | None) -> tuple[np.ndarray, np.ndarray]:
    """(image index, entry index) of each entry of an epoch, in the stream's order."""
    if task is not None:
      rng = np.random.default_rng((self._seed, epoch, task))
      image, entry = rng.permutation(self._of_task[task]).T
      return image, entry
    rng = np.random.default_rng((self._seed, epoch))
    if self._shuffle == "image":
      return self._entries(rng.permutation(len(self._counts)))
    image, entry = self._entries(np.arange(len(self._counts)))
    order = rng.permutation(self.num_entries)
    return image[order], entry[order]

  def _entries(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(image index, entry index) of all entries of the images, one image after another."""
    counts = self._counts[images]
    starts = np.cumsum(counts) - counts
    return np.repeat(images, counts), np.arange(counts.sum()) - np.repeat(
      starts, counts
    )

  def _drawn(self, block: int) -> tuple[np.ndarray, np.ndarray]:
    """(the tasks of a block's steps, how often each was drawn in all blocks before)."""

    def draw(number: int) -> np.ndarray:
      rng = np.random.default_rng((self._seed, number, len(self._tasks)))
      return rng.choice(len(self._tasks), _BLOCK, p=self._chance)

    before = np.zeros(len(self._tasks), np.int64)
    for number in range(block):
      before += np.bincount(draw(number), minlength=len(self._tasks))
    return draw(block), before


def _chances(
  found: Sequence[str], tasks: Sequence[str], ratios: Mapping[str, float]
) -> np.ndarray:
  given = np.array([ratios.get(task, 0.0) for task in tasks])
  if any(ratio < 0 for ratio in ratios.values()):
    raise ValueError(f"sample_ratios {dict(ratios)}: expected numbers from 0 on")
  lost = sorted(task for task, ratio in ratios.items() if ratio and task not in tasks)
  if lost:
    raise ValueError(
      f"sample_ratios: no entry of {', '.join(lost)} to draw; there are {', '.join(tasks)}"
    )
  if not given.any():
    given = np.array([found.count(task) for task in tasks], float)
  return np.asarray(given / given.sum())
