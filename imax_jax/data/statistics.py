"""The numbers of the paper's section 3.2 and Figure 2, and the paper's own."""

from __future__ import annotations

import collections
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from imax_jax.schema import TASKS
from imax_jax.schema import Entry

# Section 3.2; of DMAX only what the paper gives.
PAPER: dict[str, dict[str, Any]] = {
  "imax": {
    "images": 47_600, "entries": 354_595, "mean_tasks_per_image": 4.10,
    "entries_per_task": {
      "calculation": 54_684, "report": 45_715, "multi_class": 6_019,
      "multi_label": 45_186, "rec": 51_045, "reg": 51_045, "vqa": 100_901,
    },
  },
  "imax_train": {
    "images": 38_077, "entries": 284_017, "mean_entries_per_image": 7.46
  },
  "dmax_train": {
    "images": 136_218, "entries": 284_017,
    "mean_tasks_per_image": 1.25, "mean_entries_per_image": 2.09,
  },
}  # fmt: skip
_MEANS = ("mean_tasks_per_image", "mean_entries_per_image")


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


def table(described: Mapping[str, Any], *, with_paper: bool = False) -> str:
  """The counts of each split in lines; the paper's beside them if asked for.

  Args:
    described: "splits": {split: `describe` of it}, "shortfall", "quota_shortfall",
      "dropped" as `construct.Datasets` has them.
  """
  columns: list[tuple[str, Mapping[str, Any]]] = []
  for split, found in described["splits"].items():
    columns.append((split, found))
    if with_paper and split in PAPER:
      columns.append(("paper", PAPER[split]))
  widths = [max(12, len(name) + 2) for name, _ in columns]
  names = [name for name, _ in columns]
  lines = [_line("", names, widths)]
  for name in ("images", "entries", *_MEANS):
    cells = [found.get(name) for _, found in columns]
    lines.append(_line(name.replace("_", " "), cells, widths))
  for task in TASKS:
    cells = [found.get("entries_per_task", {}).get(task) for _, found in columns]
    lines.append(_line(f"  {task}", cells, widths))
  shares = [
    found.get("tasks_per_image", {}).get("1", 0) / found["images"]
    if "tasks_per_image" in found and found["images"]
    else None
    for _, found in columns
  ]
  lines.append(_line("share of one task", shares, widths))
  for key, words in (
    ("shortfall", "DMAX has fewer than IMAX-train, by"),
    ("quota_shortfall", "IMAX has fewer than its quota, by"),
    ("dropped", "annotations that no dataset could use"),
  ):
    if described[key]:
      parts = [f"{name} {count:,}" for name, count in described[key].items()]
      lines.append(f"{words}: {', '.join(parts)}")
  return "\n".join(lines)


def _line(name: str, cells: Sequence[float | str | None], widths: Sequence[int]) -> str:
  line = f"{name:22}"
  for cell, width in zip(cells, widths, strict=True):
    text = "" if cell is None else f"{cell:.2f}" if isinstance(cell, float) else cell
    line += f"{text:>{width}}" if isinstance(text, str) else f"{text:>{width},}"
  return line.rstrip()


def _histogram(counts: collections.Counter[int]) -> dict[str, int]:
  # Keys are text because JSON would make them so.
  return {str(size): count for size, count in sorted(counts.items())}


def _mean(counts: collections.Counter[int]) -> float | None:
  if not counts:
    return None
  return sum(size * count for size, count in counts.items()) / counts.total()
