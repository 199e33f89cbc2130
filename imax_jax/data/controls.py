"""Control datasets: what of IMAX's advantage is image-centricity, and what is not?

IMAX and DMAX have as many entries, but differ in three things at once: in how many
images they have, in how many tasks an image has, and in which images they are. Beside
them may stand

    same_images   IMAX-train's very images, one task each: decentralised, same images
    core          as many entries of each sub-task as `same_images`, from as few of
                  IMAX-train's images as they fit in: image-centric
    same_count    DMAX cut down to as many images as IMAX-train has

so that each difference can be had by itself:

    core - same_images        tasks an image; images from one pool, as many entries
    same_images - same_count  which images; as many of them, about a task each
    IMAX - same_count         all annotations of an image against one, as many images
"""

from __future__ import annotations

import collections
from collections.abc import Mapping
from collections.abc import Sequence

import numpy as np

from imax_jax.data.offers import Tasks
from imax_jax.schema import TASKS

CONTROLS: dict[str, tuple[str, ...]] = {
  "same_images": ("same_images", "core"),  # one is of little use without the other
  "same_count": ("same_count",),
}


ALL = tuple(name for names in CONTROLS.values() for name in names)


def make(
  names: Sequence[str],
  train: Mapping[str, Tasks],
  dmax: Mapping[str, Tasks],
  seed: int,
) -> dict[str, dict[str, Tasks]]:
  """{"same_images_train": …, "core_train": …, "same_count_train": …} as asked for.

  Raises:
    ValueError: an unknown name.
  """
  check(names)
  made: dict[str, dict[str, Tasks]] = {}
  if "same_images" in names:
    spread = _one_task_each(train, seed)
    made["same_images_train"] = spread
    made["core_train"] = _few_images(train, spread, seed)
  if "same_count" in names:
    chosen = _shuffled(sorted(dmax), seed, 5)[: len(train)]
    made["same_count_train"] = {image: dmax[image] for image in sorted(chosen)}
  return made


def check(names: Sequence[str]) -> None:
  """Raises a ValueError for an unknown name."""
  unknown = [name for name in names if name not in CONTROLS]
  if unknown:
    raise ValueError(f"controls {unknown}: expected some of {list(CONTROLS)}")


def _shuffled(images: Sequence[str], seed: int, stage: int) -> list[str]:
  order = np.random.default_rng([seed, stage]).permutation(len(images))
  return [images[place] for place in order]


def _one_task_each(train: Mapping[str, Tasks], seed: int) -> dict[str, Tasks]:
  """Each image with one of its tasks, entire; a task's share of images as in `train`."""
  holders = collections.Counter(task for tasks in train.values() for task in tasks)
  share = len(train) / holders.total()
  room = {task: round(count * share) for task, count in holders.items()}
  rest = dict.fromkeys(_shuffled(sorted(train), seed, 4))
  chosen: dict[str, Tasks] = {}
  # The rarest first: its images are the hardest to find.
  for task in sorted(room, key=lambda task: (holders[task], TASKS.index(task))):
    for image in [image for image in rest if task in train[image]][: room[task]]:
      chosen[image] = {task: train[image][task]}
      del rest[image]
  for image in rest:  # whose tasks are all used up: the most frequent of them
    task = max(train[image], key=lambda task: (holders[task], -TASKS.index(task)))
    chosen[image] = {task: train[image][task]}
  return chosen


def _few_images(
  train: Mapping[str, Tasks], spread: Mapping[str, Tasks], seed: int
) -> dict[str, Tasks]:
  """As many entries of each sub-task as `spread`, all that an image has at a time."""
  need = collections.Counter(
    (a.task, a.subtask)
    for tasks in spread.values()
    for parts in tasks.values()
    for _, a in parts
  )
  chosen: dict[str, Tasks] = {}
  for image in _shuffled(sorted(train), seed, 6):
    kept: Tasks = {}
    for task, parts in train[image].items():
      for number, annotation in parts:
        if need[task, annotation.subtask] > 0:
          need[task, annotation.subtask] -= 1
          kept.setdefault(task, []).append((number, annotation))
    if kept:
      chosen[image] = kept
  return chosen
