"""A dataset without its data: which rows it is made of. Whoever has these can remake it.

A recipe is gzip'd JSON lines: a header, then a line an entry, in the splits' order,

    {"id": "i7/rec/heart/0", "image": "i7", "split": "imax_train", "task": "rec",
     "subtask": "heart", "template": "rec/1", "source": "chexmask",
     "file": "…/MIMIC-CXR-JPG.csv", "row": 41, "rule": "chexmask/box"}

with no prompt, answer or target: nothing that a source keeps behind an agreement, beyond
that a row exists and what it is about (sub-tasks are names of objects or question types).

The header holds a SHA-256 for every `GROUP` images, over their entries whole. It is not
given for single entries, nor for fewer images beside others: the hash of an answer that
is yes or no is the answer. A dataset of fewer images than that has one group, and its
recipe should not leave the house: "publishable" in the header is false.

Also in the header: the settings that decide what an annotation says (how boxes are
written, where reports are cut, the readers' options).
"""

from __future__ import annotations

import collections
import dataclasses
import gzip
import hashlib
import io
import json
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from typing import NamedTuple

from imax_jax.data import offers
from imax_jax.data import prompts
from imax_jax.data.construct import Datasets
from imax_jax.data.construct import Selected
from imax_jax.data.controls import CONTROLS
from imax_jax.data.entries import entry_to_json
from imax_jax.data.sources.files import READ_ERRORS
from imax_jax.data.sources.files import open_bytes
from imax_jax.ledger import whole
from imax_jax.schema import Annotation
from imax_jax.schema import Entry
from imax_jax.schema import Radiograph

GROUP = 1024  # images
_FORMAT = 2
_KEYS = (
  "id", "image", "split", "task", "subtask", "template", "source", "file", "row", "rule",
)  # fmt: skip
_KINDS = tuple(int if key == "row" else str for key in _KEYS)
_HEADER = {
  "publishable": bool, "settings": dict, "splits": dict, "groups": list, "counts": dict
}  # fmt: skip
_COUNTED = {field.name for field in dataclasses.fields(Datasets)} - {"splits"}
_ALWAYS = {"imax_train", "imax_test", "dmax_train"}
_CONTROLS = {f"{name}_train" for names in CONTROLS.values() for name in names}
_SHOWN = 5  # ids that an error names


class Recipe(NamedTuple):
  """What `read_recipe` returns.

  header: "format", "publishable", "settings", "splits" (images and entries of each),
    "groups" (SHA-256 each) and "counts", what construct counted.
  entries: the lines.
  """

  header: dict[str, Any]
  entries: list[dict[str, Any]]


def is_publishable(datasets: Datasets) -> bool:
  """Whether there are images enough for a group's hash to give no answer away."""
  return sum(map(len, datasets.splits.values())) >= GROUP


def write_recipe(
  datasets: Datasets, path: str | Path, settings: Mapping[str, Any]
) -> None:
  """Writes what `datasets` is made of; equal datasets give equal bytes.

  Args:
    settings: {"boxes.order": "xy", …}, which `select` must be given entries made by.
  """
  splits = datasets.splits
  header = {
    "format": _FORMAT,
    "publishable": is_publishable(datasets),
    "settings": dict(settings),
    "splits": {
      name: {"images": len(group), "entries": sum(len(s.entries) for s in group)}
      for name, group in splits.items()
    },
    "groups": [group.sha256 for group in _groups(splits)],
    "counts": _counts(datasets),
  }
  lines = (_line(name, e) for name, s in _in_order(splits) for e in s.entries)
  with whole(path) as part, part.open("wb") as raw:
    # Neither the file's name nor the time is written into it.
    packed = gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0)
    with packed, io.TextIOWrapper(packed, encoding="ascii") as file:
      for line in (header, *lines):
        file.write(json.dumps(line) + "\n")


def read_recipe(path: str | Path) -> Recipe:
  """What `write_recipe` wrote; it may come from anyone, so all of it is checked.

  Raises:
    ValueError: it is none, is cut short, or contradicts itself.
  """
  try:
    with io.TextIOWrapper(open_bytes(Path(path)), encoding="ascii") as file:
      header, *entries = map(json.loads, file)
    _check_header(header)
    _check_entries(header, entries)
  except FileNotFoundError:
    raise
  except (*READ_ERRORS, RecursionError, ValueError) as error:
    raise ValueError(
      f"{path}: expected a whole recipe of format {_FORMAT} ({error}); copy it again"
    ) from None
  return Recipe(header, entries)


def _check_header(header: Any) -> None:
  if not isinstance(header, dict) or header.get("format") != _FORMAT:
    raise ValueError("another format, or none")
  for key, kind in _HEADER.items():
    if type(header.get(key)) is not kind:
      raise ValueError(f"no {key}, or of another kind")
  splits, groups, counts = header["splits"], header["groups"], header["counts"]
  if not _ALWAYS <= splits.keys() <= _ALWAYS | _CONTROLS or counts.keys() != _COUNTED:
    raise ValueError("other splits or counts")
  for numbers in (*splits.values(), *counts.values()):
    if not isinstance(numbers, dict) or not all(
      name.isprintable() and type(number) is int and number >= 0
      for name, number in numbers.items()
    ):
      raise ValueError("splits or counts of another kind")
  if any(split.keys() != {"images", "entries"} for split in splits.values()):
    raise ValueError("splits of another kind")
  expected = _num_groups(sum(split["images"] for split in splits.values()))
  if len(groups) != expected or {*map(type, groups)} - {str}:
    raise ValueError(f"groups other than {expected} hashes")


def _check_entries(header: Mapping[str, Any], entries: Sequence[Any]) -> None:
  ids: dict[str, set[str]] = {name: set() for name in header["splits"]}
  images: dict[str, set[str]] = {name: set() for name in ids}
  for entry in entries:
    if not isinstance(entry, dict) or tuple(entry) != _KEYS:
      raise ValueError("an entry with other fields")
    if tuple(map(type, entry.values())) != _KINDS:
      raise ValueError("an entry with fields of another kind")
    if entry["split"] not in ids:
      raise ValueError("an entry of a split that its header does not name")
    ids[entry["split"]].add(entry["id"])
    images[entry["split"]].add(entry["image"])
  if sum(map(len, ids.values())) != len(entries):
    raise ValueError("an entry that a split has twice")
  for name, split in header["splits"].items():
    if (len(images[name]), len(ids[name])) != (split["images"], split["entries"]):
      made = f"{len(ids[name])} entries of {len(images[name])} images"
      raise ValueError(f"{made} in {name}, not what its header says")


def check_settings(recipe: Recipe, settings: Mapping[str, Any]) -> None:
  """Raises a ValueError that names the settings which are not the recipe's."""
  asked = recipe.header["settings"]
  other = [
    f"{key}={asked[key]!r} (here {settings[key]!r})"
    for key in sorted(asked.keys() & settings.keys())
    if asked[key] != settings[key]
  ]
  if other:
    raise ValueError(f"the recipe was made with {', '.join(other)}; give the same")


def find(path: str | Path, entry_id: str) -> list[dict[str, Any]]:
  """Where an entry came from: its line in each split that has it.

  Raises:
    ValueError: no entry has this id.
  """
  found = [line for line in read_recipe(path).entries if line["id"] == entry_id]
  if not found:
    raise ValueError(
      f"{path}: no entry {entry_id!r}; an id is IMAGE_ID/TASK/SUBTASK/NUMBER"
    )
  return found


def select(
  radiographs: Mapping[str, Radiograph],
  annotations: Iterable[Annotation],
  recipe: Recipe,
) -> Datasets:
  """The very datasets that the recipe was written from, made from the same files.

  Args:
    radiographs: all that the sources have, or more than the recipe names.
    annotations: likewise, and cut or filtered as they were for construct.

  Raises:
    ValueError: an entry that is not there or comes from another row, or a group of
      images that says something else; counts them and names the first ids.
  """
  wanted = {line["image"] for line in recipe.entries}
  known = {image: radiographs[image] for image in wanted & radiographs.keys()}
  found, _ = offers.gather(
    known,
    (a for a in annotations if a.image_id in known),
    sorted({radiograph.view for radiograph in known.values()}),
    {},
  )
  ids = {line["id"] for line in recipe.entries}
  # Only those: of the others, some may be such as can not be put into words.
  entries = {
    entry_id: prompts.make_entry(a, number)
    for tasks in found.values()
    for parts in tasks.values()
    for number, a in parts
    if (entry_id := f"{a.image_id}/{a.task}/{a.subtask}/{number}") in ids
  }
  _check_origins(recipe.entries, entries)
  splits: dict[str, list[Selected]] = {name: [] for name in recipe.header["splits"]}
  of_image: dict[tuple[str, str], list[Entry]] = collections.defaultdict(list)
  for line in recipe.entries:
    of_image[line["split"], line["image"]].append(entries[line["id"]])
  for (split, image), group in of_image.items():
    splits[split].append(Selected(known[image], tuple(group)))
  _check_groups(splits, recipe.header["groups"])
  return Datasets(splits=splits, **recipe.header["counts"])


def _check_origins(
  lines: Sequence[Mapping[str, Any]], entries: Mapping[str, Entry]
) -> None:
  missing = [line["id"] for line in lines if line["id"] not in entries]
  other = [
    line["id"]
    for line in lines
    if line["id"] in entries and _line(line["split"], entries[line["id"]]) != line
  ]
  told = [
    f"{len(ids)} of {len(lines)} entries {what}, first {ids[:_SHOWN]}"
    for what, ids in (("are not there", missing), ("come from another row", other))
    if ids
  ]
  if told:
    raise ValueError(
      f"these files are not those of the recipe: {'; '.join(told)}. Read the same "
      "releases of the same sources, with the same settings"
    )


def _check_groups(
  splits: Mapping[str, Sequence[Selected]], expected: Sequence[str]
) -> None:
  made = list(_groups(splits))
  other = [
    f"group {number} ({group.first} … {group.last})"
    for number, (group, digest) in enumerate(zip(made, expected, strict=True))
    if group.sha256 != digest
  ]
  if other:
    raise ValueError(
      f"{len(other)} of {len(made)} groups of images say something else than the "
      f"recipe's, though they have the same rows: {', '.join(other[:_SHOWN])}. A source "
      "file was changed"
    )


# ── Lines and hashes ──────────────────────────────────────────────────────────────


class _Group(NamedTuple):
  first: str  # "imax_train/i7"
  last: str
  sha256: str


def _line(split: str, entry: Entry) -> dict[str, Any]:
  origin = entry.origin
  return {
    "id": entry.id,
    "image": entry.image_id,
    "split": split,
    "task": entry.task,
    "subtask": entry.subtask,
    "template": prompts.template_id(entry),
    "source": origin.source,
    "file": origin.file,
    "row": origin.row,
    "rule": origin.rule,
  }


def _counts(datasets: Datasets) -> dict[str, Any]:
  return {
    field.name: getattr(datasets, field.name)
    for field in dataclasses.fields(datasets)
    if field.name != "splits"
  }


def _in_order(
  splits: Mapping[str, Sequence[Selected]],
) -> Iterator[tuple[str, Selected]]:
  for name, group in splits.items():
    for selected in group:
      yield name, selected


def _num_groups(images: int) -> int:
  return max(images // GROUP, 1) if images else 0


def _groups(splits: Mapping[str, Sequence[Selected]]) -> Iterator[_Group]:
  """Groups of `GROUP` images, whatever their split; the last one has up to twice that."""
  images = list(_in_order(splits))
  count = _num_groups(len(images))
  for number in range(count):
    stop = len(images) if number == count - 1 else (number + 1) * GROUP
    part = images[number * GROUP : stop]
    digest = hashlib.sha256()
    for name, selected in part:
      digest.update(f"{_canonical(name, selected)}\n".encode())
    first, last = (f"{name}/{s.radiograph.image_id}" for name, s in (part[0], part[-1]))
    yield _Group(first, last, digest.hexdigest())


def _canonical(split: str, selected: Selected) -> str:
  """All that the dataset says about an image, as JSON with sorted keys."""
  radiograph = selected.radiograph
  content = {
    "split": split,
    "image": radiograph.image_id,
    "study": radiograph.study_id,
    "patient": radiograph.patient_id,
    "view": radiograph.view,
    "entries": [json.loads(entry_to_json(entry)) for entry in selected.entries],
  }
  return json.dumps(content, sort_keys=True, separators=(",", ":"))
