"""Open radiographs with several annotations each, from manifests.

    SOURCE/manifest.json    {"source": …, "images": [{"id", "image", "size", "tasks",
                            "boxes": [{"name", "box" px}], "ctr", "cpar",
                            "multi_label", "multi_class", "report", "vqa", "patient",
                            "pseudo", …}]}
    derived_vqa.jsonl       {"id", "type", "question", "answer"} a line

Three layers, told apart by `Origin.file`: "native" annotations of people, "derived"
template questions computed from them, and "pseudo" masks of a small network. The last
two are only read when asked for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imax_jax.data.sources.files import find_file
from imax_jax.data.sources.files import inside
from imax_jax.data.sources.files import within
from imax_jax.data.sources.intake import DamagedFile
from imax_jax.data.sources.intake import Tally
from imax_jax.data.sources.json_files import json_whole
from imax_jax.data.sources.opencxr_items import Said
from imax_jax.data.sources.opencxr_items import class_names
from imax_jax.data.sources.opencxr_items import derived_target
from imax_jax.data.sources.opencxr_items import fault
from imax_jax.data.sources.opencxr_items import native_targets
from imax_jax.data.sources.opencxr_items import pseudo_targets
from imax_jax.data.sources.pictures import size_of
from imax_jax.schema import Annotation
from imax_jax.schema import Radiograph

REMEDY = "Point opencxr at the folder that holds SOURCE/manifest.json files."
LAYERS = ("native", "derived", "pseudo")
DERIVED = "derived_vqa.jsonl"
_LEAVE_OUT = 'Leave the layer "derived" out.'
RULES: dict[str, str] = {
  "opencxr/native": "What people annotated or published about the image.",
  "opencxr/derived": "A template question computed from a native annotation.",
  "opencxr/pseudo": "What the mask of a small network says, where no person has.",
}

Item = Mapping[str, Any]


def manifests(root: str | Path) -> dict[str, list[Item]]:
  """{"SOURCE/manifest.json": its images}, sources in the order of their names.

  Raises:
    FileNotFoundError: no manifest. DamagedFile: a manifest that is not one.
  """
  paths = sorted(Path(root).glob("*/manifest.json"))
  if not paths:
    raise FileNotFoundError(
      f"{root}: expected SOURCE/manifest.json, found none. {REMEDY}"
    )
  found: dict[str, list[Item]] = {}
  for path in paths:
    items = json_whole(within(root, path))
    images = items.get("images") if isinstance(items, dict) else None
    if not isinstance(images, list):
      raise DamagedFile(path, 'expected {"source": …, "images": […]}', REMEDY)
    for number, item in enumerate(images):
      reason = fault(item)
      if reason:
        raise DamagedFile(path, f"image {number} {reason}")
    found[f"{path.parent.name}/{path.name}"] = images
  return found


def _json(path: Path, text: str) -> Any:
  try:
    return json.loads(text)
  except json.JSONDecodeError as error:
    raise DamagedFile(path, f"is not JSON from line {error.lineno} on") from None
  except (RecursionError, ValueError):  # a ValueError: a number of 4,300 digits
    raise DamagedFile(path, "is nested or long beyond reason") from None


def read_radiographs(
  root: str | Path, *, tally: Tally | None = None
) -> dict[str, Radiograph]:
  """All images by id. The view is the manifest's, "" where it gives none.

  A patient is "SOURCE/NUMBER" where the manifest names one, else the case (VQA-RAD's
  `case_url`), else the image itself; patients linked by `near_duplicate_of` become
  one, so that no split parts them.

  Raises:
    FileNotFoundError: no manifest, or image files are missing (names the first).
    ValueError: an image can not be opened or has not the manifest's size.
  """
  tally = Tally("opencxr") if tally is None else tally
  items = [
    (file.split("/", maxsplit=1)[0], item)
    for file, images in manifests(root).items()
    for item in images
  ]
  patients = _patients(items)
  missing = [
    path for source, item in items if not (path := _path(root, source, item)).is_file()
  ]
  if missing:
    raise FileNotFoundError(
      f"{missing[0]}: expected the image a manifest names; {len(missing)} of "
      f"{len(items)} images are missing. Copy the whole folder again."
    )
  radiographs: dict[str, Radiograph] = {}
  for source, item in items:
    path = _path(root, source, item)
    width, height = item["size"]
    _check_image(path, (width, height))
    tally.keep()
    name = item["id"]
    view = item.get("view") or ""
    radiographs[name] = Radiograph(
      name, name, patients[name], view, width, height, str(path)
    )
  tally.log()
  return radiographs


def _path(root: str | Path, source: str, item: Item) -> Path:
  try:
    return within(root, inside(Path(root, source), item["image"]))
  except DamagedFile as error:
    raise DamagedFile(Path(root, source, "manifest.json"), error.reason) from None


def _check_image(path: Path, size: tuple[int, int]) -> None:
  try:
    found = size_of(path)
  except DamagedFile as error:
    raise DamagedFile(path, f"not a readable image ({error.reason})") from None
  if found != size:
    raise DamagedFile(
      path,
      f"is {found[0]} x {found[1]}, but the manifest's boxes are in "
      f"{size[0]} x {size[1]}",
      "Take image and manifest from the same copy",
    )


def _patients(items: Sequence[tuple[str, Item]]) -> dict[str, str]:
  """image id -> patient, near duplicates joined (the smallest name stands for all)."""
  patient: dict[str, str] = {}
  for source, item in items:
    number = item.get("patient")
    if number is None:
      number = item.get("case_url")
    patient[item["id"]] = item["id"] if number is None else f"{source}/{number}"
  parent = {name: name for name in patient.values()}

  def root(name: str) -> str:
    while parent[name] != name:
      name = parent[name]
    return name

  for _, item in items:
    twin = item.get("near_duplicate_of")
    if twin is not None and twin in patient:
      low, high = sorted((root(patient[item["id"]]), root(patient[twin])))
      parent[high] = low
  return {name: root(person) for name, person in patient.items()}


def read(
  root: str | Path,
  radiographs: Mapping[str, Radiograph],
  *,
  layers: Sequence[str] = ("native",),
  min_confidence: float = 0.0,
  tally: Tally | None = None,
) -> Iterator[Annotation]:
  """Yields what the chosen layers say of `radiographs`.

  Args:
    layers: some of "native", "derived", "pseudo". `Origin.file` is the manifest,
      `derived_vqa.jsonl`, or the manifest followed by "#pseudo".
    min_confidence: pseudo masks below it are left out.

  Raises:
    ValueError: an unknown layer, or a damaged file.
    FileNotFoundError: no manifest, or no derived questions though asked for.
  """
  unknown = [layer for layer in layers if layer not in LAYERS]
  if unknown or not layers:
    raise ValueError(f"layers: expected some of {LAYERS}, got {tuple(layers)}")
  tally = Tally("opencxr") if tally is None else tally
  for file, images in manifests(root).items():
    classes = class_names(images)
    for row, item in enumerate(images):
      if item["id"] not in radiographs:
        tally.leave_out("image not asked for")
        continue
      said: list[tuple[str, str, Said]] = []
      if "native" in layers:
        native = native_targets(item, classes, tally)
        said += [(file, "opencxr/native", one) for one in native]
      if "pseudo" in layers:
        pseudo = pseudo_targets(item, min_confidence, tally)
        said += [(f"{file}#pseudo", "opencxr/pseudo", one) for one in pseudo]
      for name, rule, (task, subtask, target) in said:
        tally.keep()
        origin = tally.origin(name, row, rule)
        yield Annotation(item["id"], task, subtask, target, origin)
  if "derived" in layers:
    yield from _derived(Path(root), radiographs, tally)
  tally.log()


def _derived(
  root: Path, radiographs: Mapping[str, Radiograph], tally: Tally
) -> Iterator[Annotation]:
  path = find_file(root, [DERIVED], remedy=_LEAVE_OUT, tally=tally)
  with path.open(encoding="utf-8") as lines:
    for row, line in enumerate(lines):
      tally.rows += 1
      item = _json(path, line)
      missing = [key for key in ("id", "type", "question", "answer") if key not in item]
      if missing:
        raise DamagedFile(
          path,
          f"line {row + 1} lacks {missing}; expected id, type, question, answer",
        )
      if item["id"] not in radiographs:
        tally.leave_out("image not asked for")
        continue
      task, subtask, target = derived_target(item)
      tally.keep()
      origin = tally.origin(path, row, "opencxr/derived")
      yield Annotation(item["id"], task, subtask, target, origin)
