"""The numbers of the paper's section 3.2 and Figure 2."""

from __future__ import annotations

import collections
from collections.abc import Iterable
from collections.abc import Sequence
from typing import Any

from imax_jax.schema import TASKS
from imax_jax.schema import Entry


def describe(images: Iterable[Sequence[Entry]]) -> dict[str, Any]:
  """Counts over a split, given the entries of each of its images. JSON-able.

  Returns:
    {"images": 2, "entries": 5,
     "entries_per_task": {"calculation": 2, …},       all seven tasks; Figure 2(a)
     "entries_per_subtask": {"calculation/ctr": 1, …},   where there is a sub-task
     "images_per_task": {"calculation": 1, …},
     "tasks_per_image": {"1": 1, "3": 1},             how many images have n tasks; 2(b)
     "entries_per_image": {"1": 1, "4": 1},           … n entries; 2(c)
     "mean_tasks_per_image": 2.0, "mean_entries_per_image": 2.5}
    A mean over no images is None.
  """
  task_entries: collections.Counter[str] = collections.Counter()
  subtask_entries: collections.Counter[str] = collections.Counter()
  task_images: collections.Counter[str] = collections.Counter()
  task_counts: collections.Counter[int] = collections.Counter()
  entry_counts: collections.Counter[int] = collections.Counter()
  for entries in images:
    tasks = {entry.task for entry in entries}
    task_entries.update(entry.task for entry in entries)
    subtask_entries.update(f"{e.task}/{e.subtask}" for e in entries if e.subtask)
    task_images.update(tasks)
    task_counts[len(tasks)] += 1
    entry_counts[len(entries)] += 1
  return {
    "images": task_counts.total(),
    "entries": task_entries.total(),
    "entries_per_task": {task: task_entries[task] for task in TASKS},
    "entries_per_subtask": dict(sorted(subtask_entries.items())),
    "images_per_task": {task: task_images[task] for task in TASKS},
    "tasks_per_image": _histogram(task_counts),
    "entries_per_image": _histogram(entry_counts),
    "mean_tasks_per_image": _mean(task_counts),
    "mean_entries_per_image": _mean(entry_counts),
  }


def _histogram(counts: collections.Counter[int]) -> dict[str, int]:
  # Keys are text because JSON would make them so.
  return {str(size): count for size, count in sorted(counts.items())}


def _mean(counts: collections.Counter[int]) -> float | None:
  if not counts:
    return None
  return sum(size * count for size, count in counts.items()) / counts.total()
