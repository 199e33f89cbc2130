"""Annotations by image and task: what each image has to offer a dataset."""

from __future__ import annotations

import collections
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence

from imax_jax.data import prompts
from imax_jax.schema import TASKS
from imax_jax.schema import Annotation
from imax_jax.schema import Entry
from imax_jax.schema import Radiograph

# (number among those of its image and sub-task, annotation)
Numbered = tuple[int, Annotation]
# task -> what an image offers for it, in TASKS' order
Tasks = dict[str, list[Numbered]]


def gather(
  radiographs: Mapping[str, Radiograph],
  annotations: Iterable[Annotation],
  views: Sequence[str],
  required_subtasks: Mapping[str, Sequence[str]],
) -> tuple[dict[str, Tasks], dict[str, int]]:
  """What each usable image offers, and how much was dropped for which reason.

  The order of the annotations does not matter.

  Raises:
    ValueError: an annotation of an unknown image or task.
  """
  dropped: collections.Counter[str] = collections.Counter()
  found: dict[str, dict[str, list[Annotation]]] = {}
  wrong_view = f"view not in {'/'.join(views)}"
  for a in annotations:
    if a.task not in TASKS:
      raise ValueError(f"{a.origin.file}: task {a.task!r} is not of {list(TASKS)}")
    radiograph = radiographs.get(a.image_id)
    if radiograph is None:
      raise ValueError(
        f"{a.origin.file} row {a.origin.row}: image {a.image_id!r} is not among the "
        f"{len(radiographs)} radiographs; read both from the same roots"
      )
    if radiograph.view not in views:
      dropped[wrong_view] += 1
    else:
      found.setdefault(a.image_id, {}).setdefault(a.task, []).append(a)
  offers: dict[str, Tasks] = {}
  for image, by_task in found.items():
    offers[image] = {t: _numbered(by_task[t]) for t in TASKS if t in by_task}
  for tasks in offers.values():
    for task, subtasks in required_subtasks.items():
      if task in tasks and set(subtasks) - {a.subtask for _, a in tasks[task]}:
        dropped[f"{task} incomplete"] += len(tasks.pop(task))
  return offers, dict(sorted(dropped.items()))


def _numbered(annotations: list[Annotation]) -> list[Numbered]:
  if len(annotations) > 1:
    annotations.sort(key=_place)
  numbers: collections.Counter[str] = collections.Counter()
  numbered = []
  for a in annotations:
    numbered.append((numbers[a.subtask], a))
    numbers[a.subtask] += 1
  return numbered


def _place(a: Annotation) -> tuple[str, str, str, int, str]:
  # A row may hold several annotations, so that only the target tells them apart.
  return a.subtask, a.origin.source, a.origin.file, a.origin.row, repr(a.target)


def to_entries(tasks: Tasks) -> tuple[Entry, ...]:
  """An image's entries in TASKS' order.

  Raises:
    ValueError: an annotation that cannot be put into words.
  """
  return tuple(
    prompts.make_entry(annotation, number)
    for task in TASKS
    if task in tasks
    for number, annotation in tasks[task]
  )
