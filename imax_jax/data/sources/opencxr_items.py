"""One image of an open-radiograph manifest as tasks, sub-tasks and targets."""

from __future__ import annotations

import collections
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from imax_jax.data.sources.intake import Tally
from imax_jax.data.sources.reading import is_text
from imax_jax.schema import FINDINGS
from imax_jax.schema import ORGANS
from imax_jax.schema import Answer
from imax_jax.schema import Bits
from imax_jax.schema import Box
from imax_jax.schema import Grade
from imax_jax.schema import Ratio
from imax_jax.schema import Region
from imax_jax.schema import Report
from imax_jax.schema import Target

Item = Mapping[str, Any]
# An annotation without its image and origin: task, sub-task, target.
Said = tuple[str, str, Target]
# multi_class's own name -> its classes.
Classes = Mapping[str, tuple[str, ...]]

# NIH's spelling where it is not that of the paper's FINDINGS.
_SPELLING = {"Pleural Effusion": "Effusion"}
_SEMANTIC_TYPES = ("verify", "choose", "query")
# One bit alone is a yes-no question, not a multi-label task.
_MIN_LABELS = 2
_REQUIRED = ("id", "image", "size", "tasks")


def fault(item: object) -> str:
  """Why an item is none of a manifest's, in no word of it; "" where it is one."""
  if not isinstance(item, dict):
    return "is not an object"
  missing = [key for key in _REQUIRED if key not in item]
  if missing:
    return f"lacks {missing}; expected {', '.join(_REQUIRED)}"
  size = item["size"]
  if not (is_text(item["id"]) and is_text(item["image"])):
    return "has an id or image that is no text"
  if not isinstance(size, list) or [type(side) for side in size] != [int, int]:
    return "has a size that is not two whole numbers"
  try:
    if not all(map(is_text, item.get("multi_class", {}).values())):
      return "has a class that is no text"
    # What the layers would make of it; what fails here would fail there.
    native_targets(item, class_names([item]), Tally("opencxr"))
    pseudo_targets(item, 0.0, Tally("opencxr"))
  except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
    return f"has annotations of another form ({type(error).__name__})"
  return ""


def class_names(images: Sequence[Item]) -> dict[str, tuple[str, ...]]:
  """The classes of each multi-class label of a source, sorted: {"rsna_class": (…)}."""
  found: dict[str, set[str]] = {}
  for item in images:
    for name, value in item.get("multi_class", {}).items():
      found.setdefault(name, set()).add(value)
  return {name: tuple(sorted(values)) for name, values in sorted(found.items())}


def native_targets(item: Item, classes: Classes, tally: Tally) -> list[Said]:
  """What `tasks` lists: a clinical note outside it is no native report."""
  said: list[Said] = []
  for task in item["tasks"]:
    if task == "calculation":
      said += _ratios(item, tally)
    elif task in ("rec", "reg"):
      boxes = [(box["name"], box["box"]) for box in item["boxes"]]
      said += _regions(task, boxes, item["size"], tally)
    elif task == "multi_label":
      said += _bits(item, tally)
    elif task == "multi_class":
      said += [
        (task, "", Grade(value, classes[name]))
        for name, value in item["multi_class"].items()
      ]
    elif task == "report":
      said.append((task, "", Report(" ".join(item["report"].split()))))
    elif task == "vqa":
      said += [_question(question) for question in item["vqa"]]
    else:
      tally.leave_out(f"unknown task {task}")
  return said


def pseudo_targets(item: Item, min_confidence: float, tally: Tally) -> list[Said]:
  """Organs and ratios of the network's masks, where no person has given them."""
  masks = item.get("pseudo")
  if masks is None:
    return []
  if masks["confidence"] < min_confidence:
    tally.leave_out("pseudo mask below the asked confidence")
    return []
  said: list[Said] = []
  if "calculation" not in item["tasks"]:
    said += _ratios(masks, tally)
  known = {box["name"] for box in item["boxes"]}
  boxes = [
    (box["name"], box["box"])
    for box in masks["boxes"]
    if box["name"] in ORGANS and box["name"] not in known
  ]
  for task in ("rec", "reg"):
    said += _regions(task, boxes, item["size"], tally)
  return said


def derived_target(item: Item) -> Said:
  """A template question; its answers are joined by ", ", "none" where there is none."""
  answers = tuple(item["answer"].lower().split(", "))
  answer = Answer(item["question"], () if answers == ("none",) else answers)
  return ("vqa", _semantic_type(item["type"]), answer)


def _question(item: Item) -> Said:
  """A person's question; the answer is kept whole, for its commas mean nothing sure."""
  content = item.get("content_type") or item.get("question_type") or ""
  answer = Answer(
    " ".join(item["question"].split()),
    (" ".join(item["answer"].lower().split()),),
    content.lower(),
  )
  return ("vqa", _semantic_type(item.get("paper_type") or item.get("type")), answer)


def _semantic_type(name: str | None) -> str:
  return name if name in _SEMANTIC_TYPES else "query"


def _ratios(item: Item, tally: Tally) -> Iterator[Said]:
  for kind in ("ctr", "cpar"):
    value = item.get(kind)
    if value is not None and 0 < value < 1:
      yield ("calculation", kind, Ratio(float(value)))
    else:
      tally.leave_out(f"{kind} absent or outside (0, 1)")


def _regions(
  task: str,
  boxes: Sequence[tuple[str, Sequence[float]]],
  size: Sequence[int],
  tally: Tally,
) -> Iterator[Said]:
  """Boxes as fractions under lower-case names.

  "Where is the lung opacity?" has no single answer where there are two of them, so
  REC leaves those out; REG, which is given the box, does not.
  """
  often = collections.Counter(name.lower() for name, _ in boxes)
  width, height = size
  for name, (x0, y0, x1, y1) in boxes:
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
      tally.leave_out("box outside the image")
    elif task == "rec" and often[name.lower()] > 1:
      tally.leave_out("rec: several boxes of one name")
    else:
      box: Box = (x0 / width, y0 / height, x1 / width, y1 / height)
      yield (task, name.lower(), Region(name.lower(), box))


def _bits(item: Item, tally: Tally) -> Iterator[Said]:
  """The labels that the paper's FINDINGS have too, in their order (NIH: eight)."""
  given = item.get("multi_label", {})
  labels = [name for name in FINDINGS if _SPELLING.get(name, name) in given]
  if len(labels) < _MIN_LABELS:
    tally.leave_out("multi_label: labels are not the paper's")
    return
  values = tuple(int(given[_SPELLING.get(name, name)]) for name in labels)
  yield ("multi_label", "", Bits(values, tuple(labels)))
