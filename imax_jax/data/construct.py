"""Annotations -> IMAX and its decentralized twin DMAX (paper, section 3).

    all annotations
      ├─ images with at least `min_tasks` tasks ─ drawn ─▶ imax_train : imax_test, 4 : 1
      └─ the other images ─ matched, task by task, to imax_train's counts ─▶ dmax_train

The paper states its counts, not its rules. Every choice it leaves open is a named
argument of `construct`; specs/data_formats.md, section 7, derives the defaults.

IMAX: images are drawn at random. With quotas, those of the rarest task (fewest eligible
images) are drawn first, as many as its quota asks for, those of the most tasks first;
then an image keeps each of its tasks, entire, at the rate that uses up the task's
quota, `min_tasks` at least, REC and REG together, or is left out. Then patients are split.

DMAX: for each task from the rarest on, images outside IMAX of patients outside its test
set are taken, those that serve the fewest tasks so far first, until each sub-task's
count is IMAX-train's; the last image gives only what is missing. IMAX-train's patients
may come back (unless told otherwise), its images never. DMAX can be as decentralized as
the paper's (1.25 tasks an image) only if IMAX leaves several times its own images over.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import TypeVar

import numpy as np

from imax_jax.data import controls as controls_lib
from imax_jax.data import statistics
from imax_jax.data.offers import Tasks
from imax_jax.data.offers import gather
from imax_jax.data.offers import to_entries
from imax_jax.schema import ORGANS
from imax_jax.schema import TASKS
from imax_jax.schema import Annotation
from imax_jax.schema import Entry
from imax_jax.schema import Radiograph

# 54,684 = 2 x 27,342 calculation and 51,045 = 3 x 17,015 REC and REG entries: the paper
# used an image for these tasks only when all its parts were there.
REQUIRED_SUBTASKS: dict[str, tuple[str, ...]] = {
  "calculation": ("ctr", "cpar"),
  "rec": ORGANS,
  "reg": ORGANS,
}
_PAIR = {"rec": "reg", "reg": "rec"}  # they ask about the same boxes

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, slots=True)
class Selected:
  """A radiograph with the entries a dataset takes from it, in TASKS' order."""

  radiograph: Radiograph
  entries: tuple[Entry, ...]


@dataclasses.dataclass(frozen=True)
class Datasets:
  """What `construct` made of the annotations.

  splits: "imax_train", "imax_test", "dmax_train" and those of `controls`, each sorted
    by image id.
  shortfall: entries by which DMAX falls short of IMAX-train, {"vqa/query": 3}; a task
    without sub-tasks stands alone, {"multi_class": 12}. Empty: matched exactly.
  quota_shortfall: entries by which IMAX falls short of its quotas, by task.
  dropped: annotations that no dataset could use, by reason.
  """

  splits: dict[str, list[Selected]]
  shortfall: dict[str, int]
  quota_shortfall: dict[str, int]
  dropped: dict[str, int]

  def statistics(self) -> dict[str, dict[str, Any]]:
    """`statistics.describe` of each split, and of "imax", train and test together."""
    groups = {"imax": self.splits["imax_train"] + self.splits["imax_test"]}
    return {
      name: statistics.describe(selected.entries for selected in group)
      for name, group in (groups | self.splits).items()
    }


def construct(
  radiographs: Mapping[str, Radiograph],
  annotations: Iterable[Annotation],
  *,
  seed: int,
  num_images: int | None = None,
  min_tasks: int = 3,
  train_fraction: float = 0.8,
  quotas: Mapping[str, int] | None = None,
  views: Sequence[str] = ("PA", "AP"),
  required_subtasks: Mapping[str, Sequence[str]] = REQUIRED_SUBTASKS,
  split_unit: str = "patient",
  dmax_patients: str = "not in test",
  num_dmax_images: int | None = None,
  controls: Sequence[str] = (),
) -> Datasets:
  """IMAX and DMAX from all that the sources say, in any order.

  Args:
    seed: of all draws; not negative.
    num_images: IMAX's size, train and test together, at most; None: all that qualify.
    min_tasks: how many tasks an image of IMAX has at least.
    train_fraction: of IMAX's images (4 : 1 in the paper), below 1.
    split_unit: what train and test do not share: "patient", "study" or "image".
    quotas: {task: entries} of IMAX, never exceeded; one not named is unlimited.
    views: the view positions used, matched exactly; others are dropped.
    required_subtasks: {task: sub-tasks} that an image must all offer for the task.
    dmax_patients: whose images DMAX takes, "not in test", "not in imax", or "any".
    num_dmax_images: beyond so many, tasks go to images that DMAX has already.
    controls: further datasets, names of `controls.CONTROLS`.

  Raises:
    ValueError: a wrong argument or annotation, or no image with `min_tasks` tasks.
  """
  quotas = dict(quotas or {})
  check_choices(
    split_unit, dmax_patients, controls, seed, num_images, num_dmax_images, min_tasks,
    train_fraction, quotas, required_subtasks,
  )  # fmt: skip
  offers, dropped = gather(radiographs, annotations, views, required_subtasks)
  order = _shuffled(sorted(offers), seed, 0)
  chosen = _draw_images(offers, order, num_images, min_tasks, quotas)
  imax, room = _share_out(offers, chosen, min_tasks, quotas, seed)
  units = [getattr(radiographs[image], f"{split_unit}_id") for image in imax]
  test = _test_units(units, train_fraction, seed)
  train = {i: imax[i] for unit, i in zip(units, imax, strict=True) if unit not in test}
  spare = _of_others(radiographs, order, imax, train, dmax_patients)
  dmax, shortfall = _match(train, offers, _shuffled(spare, seed, 2), num_dmax_images)
  groups = {
    "imax_train": train,
    "imax_test": {i: tasks for i, tasks in imax.items() if i not in train},
    "dmax_train": dmax,
    **controls_lib.make(controls, train, dmax, seed),
  }
  return Datasets(
    splits={name: _write_out(radiographs, group) for name, group in groups.items()},
    shortfall=shortfall,
    quota_shortfall={task: count for task, count in room.items() if count},
    dropped=dropped,
  )


def check_choices(
  split_unit: str = "patient",
  dmax_patients: str = "not in test",
  controls: Sequence[str] = (),
  seed: int = 0,
  num_images: int | None = None,
  num_dmax_images: int | None = None,
  min_tasks: int = 3,
  train_fraction: float = 0.8,
  quotas: Mapping[str, int] | None = None,
  required_subtasks: Mapping[str, Sequence[str]] | None = None,
) -> None:
  """Raises a ValueError that names an argument which `construct` does not take."""
  controls_lib.check(controls)
  for name, text, known in (
    ("split_unit", split_unit, ("patient", "study", "image")),
    ("dmax_patients", dmax_patients, ("not in test", "not in imax", "any")),
  ):
    if text not in known:
      raise ValueError(f"{name} {text!r}: expected one of {known}")
  for name, size in (("num_images", num_images), ("num_dmax_images", num_dmax_images)):
    if size is not None and size < 1:
      raise ValueError(f"{name} {size}: expected at least 1, or None for all")
  if seed < 0:
    raise ValueError(f"seed {seed}: expected 0 or more")
  if not 1 <= min_tasks <= len(TASKS):
    raise ValueError(f"min_tasks {min_tasks}: expected 1 to {len(TASKS)}")
  if not 0 < train_fraction < 1:
    raise ValueError(f"train_fraction {train_fraction}: expected above 0 and below 1")
  for name, tasks in (("quotas", quotas), ("required_subtasks", required_subtasks)):
    if unknown := sorted((tasks or {}).keys() - set(TASKS)):
      raise ValueError(f"{name} of {unknown}: expected some of {list(TASKS)}")
  if short := {task: quota for task, quota in (quotas or {}).items() if quota < 0}:
    raise ValueError(f"quotas {short}: expected 0 or more entries")


def _shuffled(items: Sequence[T], seed: int, stage: int) -> list[T]:
  order = np.random.default_rng([seed, stage]).permutation(len(items))
  return [items[place] for place in order]


def _draw_images(
  offers: Mapping[str, Tasks],
  order: Sequence[str],
  num_images: int | None,
  min_tasks: int,
  quotas: Mapping[str, int],
) -> list[str]:
  """IMAX's images: enough of each quota's task, from the rarest on, then any."""
  unwanted = {task for task, quota in quotas.items() if not quota}
  pool = [image for image in order if len(offers[image].keys() - unwanted) >= min_tasks]
  if not pool:
    sizes = collections.Counter(len(tasks) for tasks in offers.values())
    raise ValueError(
      f"no image has min_tasks={min_tasks} tasks; images by their number of tasks: "
      f"{dict(sorted(sizes.items()))}. Lower min_tasks or the quotas, read more "
      "sources, or check views and required_subtasks."
    )
  limit = len(pool) if num_images is None else num_images
  counts = collections.Counter(task for image in pool for task in offers[image])
  rare_first = sorted(quotas, key=lambda task: (counts[task], TASKS.index(task)))
  chosen: dict[str, None] = {}  # a set that remembers its order
  offered: collections.Counter[str] = collections.Counter()
  for rank, task in enumerate([*rare_first, None]):
    rarer = set(rare_first[:rank])
    short = {name for name in quotas if offered[name] < quotas[name]}
    rest = [i for i in pool if i not in chosen and (task is None or task in offers[i])]
    # First what serves the most tasks (the paper's aim); but images of a rarer task of
    # which there are enough are left to DMAX.
    merit = {
      i: (not rarer.isdisjoint(offers[i]), -len(short & offers[i].keys())) for i in rest
    }
    for image in sorted(rest, key=merit.__getitem__):
      if len(chosen) >= limit or (task is not None and offered[task] >= quotas[task]):
        break
      chosen[image] = None
      offered.update({name: len(parts) for name, parts in offers[image].items()})
  return [image for image in pool if image in chosen]


def _share_out(
  offers: Mapping[str, Tasks],
  chosen: Sequence[str],
  min_tasks: int,
  quotas: Mapping[str, int],
  seed: int,
) -> tuple[dict[str, Tasks], dict[str, int]]:
  """The tasks each chosen image keeps under the quotas, and the room left in these.

  Each task is kept at the rate at which its quota is then used up exactly by the last
  image (selection sampling; Knuth, TAOCP 3.4.2, algorithm S).
  """
  room = dict(quotas)
  ahead: collections.Counter[str] = collections.Counter()
  for image in chosen:
    ahead.update({task: len(parts) for task, parts in offers[image].items()})
  draws = np.random.default_rng([seed, 3]).random((len(chosen), len(TASKS)))
  # While the quotas have room, an image that offers REC and REG keeps both or none.
  draws[:, TASKS.index("reg")] = draws[:, TASKS.index("rec")]
  kept: dict[str, Tasks] = {}
  for image, draw in zip(chosen, draws, strict=True):
    tasks = offers[image]
    rates = {t: room[t] / ahead[t] if t in room else 1.0 for t in tasks}
    fits = [t for t in tasks if t not in room or len(tasks[t]) <= room[t]]
    ahead.subtract({task: len(parts) for task, parts in tasks.items()})
    drawn = {task: draw[TASKS.index(task)] < rates[task] for task in fits}
    wanted: set[str] = set()
    for task in sorted(fits, key=lambda task: (not drawn[task], -rates[task])):
      if drawn[task] or len(wanted) < min_tasks:
        wanted |= {task, _PAIR.get(task, task)}.intersection(fits)
    if len(wanted) < min_tasks:
      continue
    kept[image] = {task: parts for task, parts in tasks.items() if task in wanted}
    for task in wanted & room.keys():
      room[task] -= len(tasks[task])
  return kept, room


def _test_units(units: Sequence[str], train_fraction: float, seed: int) -> set[str]:
  """Units, given one for each image, that hold the images not meant for training."""
  wanted = round((1 - train_fraction) * len(units))
  images = collections.Counter(units)
  test: set[str] = set()
  for unit in _shuffled(sorted(images), seed, 1):
    if images[unit] <= wanted:
      test.add(unit)
      wanted -= images[unit]
  return test


def _of_others(
  radiographs: Mapping[str, Radiograph],
  images: Iterable[str],
  imax: Mapping[str, Tasks],
  train: Mapping[str, Tasks],
  dmax_patients: str,
) -> list[str]:
  """Those outside IMAX whose patient may be in DMAX."""
  barred = {"not in test": imax.keys() - train.keys(), "not in imax": imax, "any": ()}
  patients = {radiographs[image].patient_id for image in barred[dmax_patients]}
  return [
    image
    for image in images
    if image not in imax and radiographs[image].patient_id not in patients
  ]


def _match(
  train: Mapping[str, Tasks],
  offers: Mapping[str, Tasks],
  spare: Sequence[str],
  num_images: int | None,
) -> tuple[dict[str, Tasks], dict[str, int]]:
  """DMAX: from `spare` images, as many entries of each sub-task as `train` has."""
  needed: dict[str, collections.Counter[str]] = {}
  for tasks in train.values():
    for task, parts in tasks.items():
      needed.setdefault(task, collections.Counter()).update(a.subtask for _, a in parts)
  counts = collections.Counter(task for image in spare for task in offers[image])
  taken: dict[str, Tasks] = {}
  for task in sorted(needed, key=lambda name: (counts[name], TASKS.index(name))):
    need = needed[task]
    missing = need.total()
    holders = [image for image in spare if task in offers[image]]
    used = [image for image in holders if image in taken]
    used.sort(key=lambda image: len(taken[image]))
    new = [image for image in holders if image not in taken]
    room = len(new) if num_images is None else max(num_images - len(taken), 0)
    for image in (*new[:room], *used, *new[room:]):
      if not missing:
        break
      kept = []
      for number, annotation in offers[image][task]:
        if need[annotation.subtask] > 0:
          need[annotation.subtask] -= 1
          kept.append((number, annotation))
      if kept:
        taken.setdefault(image, {})[task] = kept
        missing -= len(kept)
  shortfall = {
    f"{task}/{subtask}" if subtask else task: count
    for task, need in sorted(needed.items())
    for subtask, count in sorted(need.items())
    if count
  }
  return taken, shortfall


def _write_out(
  radiographs: Mapping[str, Radiograph], group: Mapping[str, Tasks]
) -> list[Selected]:
  return [
    Selected(radiographs[image], to_entries(group[image])) for image in sorted(group)
  ]
