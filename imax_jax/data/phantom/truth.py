"""What is exactly true of a phantom's films, as an answer to any of the seven tasks.

The hospital writes it beside the sources that see only a part of it. Nothing that trains
or labels may read it: it is what pseudo labels are measured by.
"""

from __future__ import annotations

import json
import re
import types
from collections.abc import Iterator
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imax_jax.data.phantom import questions
from imax_jax.data.phantom.anatomy import OPACITIES
from imax_jax.data.phantom.anatomy import SIDES
from imax_jax.data.phantom.anatomy import Finding
from imax_jax.data.phantom.chart import ATTRIBUTES
from imax_jax.data.phantom.chart import Facts
from imax_jax.data.phantom.chart import region
from imax_jax.schema import EDEMA_GRADES
from imax_jax.schema import FINDINGS
from imax_jax.schema import Answer
from imax_jax.schema import Bits
from imax_jax.schema import Box
from imax_jax.schema import Entry
from imax_jax.schema import Grade
from imax_jax.schema import Ratio
from imax_jax.schema import Region
from imax_jax.schema import Target

_GENDERS = {"male": "m", "female": "f"}


class Truth:
  """All films of a hospital's `phantom_truth.jsonl`, by image id.

  Raises:
    FileNotFoundError: no such file: the radiographs are not a phantom's.
    ValueError: it is damaged.
  """

  def __init__(self, path: Path) -> None:
    self._films: dict[str, Mapping[str, Any]] = {}
    with path.open(encoding="utf8") as file:
      for number, line in enumerate(file, start=1):
        try:
          film = json.loads(line)
          self._films[film["image_id"]] = film
        except (KeyError, TypeError, ValueError) as error:
          raise ValueError(
            f"{path}:{number}: damaged; remove the hospital's folder and build again"
          ) from error

  def bits(self, image_id: str) -> Bits | None:
    """The ten findings, which a right report names; None: no such film."""
    film = self._films.get(image_id)
    return None if film is None else Bits(tuple(_label(film, n) for n in FINDINGS))

  def target(self, entry: Entry) -> Target | None:
    """The right answer to what `entry` asks, of its kind; its own answer is not looked at.

    None: a report, for which there are many right ones (`bits`), a film without the
    thing, a box with no organ in it, or a question that no template of the phantom's is.
    """
    film = self._films.get(entry.image_id)
    if film is None:
      return None
    match entry.target:
      case Ratio() if film[entry.subtask] is not None:
        return Ratio(film[entry.subtask])
      case Grade(classes=classes) if classes == EDEMA_GRADES:
        return Grade(EDEMA_GRADES[film["edema_grade"]])
      case Bits(labels=labels) if labels == FINDINGS:
        return self.bits(entry.image_id)
      case Region(box=box) if entry.task == "reg":
        return _nearest(film["organ_boxes"], box)
      case Region() if entry.subtask in film["organ_boxes"]:
        return Region(entry.subtask, tuple(film["organ_boxes"][entry.subtask]))
      case Answer(question, _, content_type):
        answers = answers_to(question, _facts(film))
        return None if answers is None else Answer(question, answers, content_type)
    return None


def answers_to(question: str, facts: Facts) -> tuple[str, ...] | None:
  """All right answers to a question in the phantom's words, None for another's."""
  for template, blanks, opposite in _readings(question):
    answers = _answers(template, blanks, opposite, facts)
    if answers is not None:
      return answers
  return None


def _readings(
  question: str,
) -> Iterator[tuple[questions.Template, dict[str, Any], bool]]:
  """The templates whose words the question is, what stands in their blanks, and whether
  it is one of the contrary wordings."""
  for template, words, opposite in _WORDINGS:
    found = words.fullmatch(question)
    if found:
      yield template, found.groupdict(), opposite


def _answers(
  template: questions.Template, blanks: Mapping[str, str], opposite: bool, facts: Facts
) -> tuple[str, ...] | None:
  """None where the blanks hold other words than the template's."""
  attributes = [blanks[key] for key in ("attribute", "attribute_2") if key in blanks]
  known = all(name in ATTRIBUTES.values() for name in attributes)
  place, case = blanks.get("object", ""), facts.case
  side = place.split(" ")[0]
  here = facts.within(side)
  match template.semantic_type, template.content_type:
    case "verify", "presence" if template.ask is questions._device:
      return None if known else _yes(attributes[0] in case.devices)
    case "verify", "presence" if known and place:
      held = {name for name, at in facts.pairs if region(name, at) == place}
      return _yes(bool(held & set(attributes))) if side in SIDES else None
    case "verify", "presence" if known:
      return _yes(any(name == attributes[0] for name, _ in facts.pairs))
    case "verify", "abnormality" if place in _LUNGS:
      return _yes(bool(here) != opposite)
    case "verify", "size" if place == "cardiac silhouette":
      return _yes((facts.ctr > 0.5) != opposite)
    case "verify", "plane" if blanks["viewpos"] in ("AP", "PA"):
      return _yes(blanks["viewpos"] == case.view)
    case "verify", "gender" if blanks["gender"] in _GENDERS:
      return _yes(_GENDERS[blanks["gender"]] == case.sex)
    case "choose", "anatomy" if known:
      found = {region(*pair) for pair in facts.pairs if pair[0] == attributes[0]}
      return tuple(sorted(found & {place, blanks["object_2"]}))
    case "choose", "attribute" if known and place in _LUNGS:
      return tuple(sorted(here & set(attributes)))
    case "query", "anatomy" if known:
      return facts.locations(attributes[0])
    case "query", "attribute" if place in _LUNGS:
      return tuple(sorted(here))
    case "query", "attribute" if blanks.get("category") == "device":
      return tuple(sorted(case.devices))
    case "query", "abnormality":
      lungs = [f"{side} lung" for side in SIDES if facts.within(side)]
      return tuple(sorted([*lungs, *["cardiac silhouette"] * (facts.ctr > 0.5)]))
    case (("choose" | "query"), "plane"):
      return (case.view.lower(),)
    case (("choose" | "query"), "gender") if set(blanks.values()) <= _GENDERS.keys():
      return (case.sex,)
  return None


def _yes(value: bool) -> tuple[str]:
  return ("yes" if value else "no",)


def _words(wording: str) -> re.Pattern[str]:
  """ "Is the {object} normal?" -> "Is the (?P<object>.+) normal\\?"."""
  return re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>.+)", re.escape(wording)))


_WORDINGS = [
  (template, _words(wording), opposite)
  for template in questions.TEMPLATES
  for opposite, wordings in ((False, template.wordings), (True, template.opposites))
  for wording in wordings
]
_LUNGS = tuple(f"{side} lung" for side in SIDES)


def _facts(film: Mapping[str, Any]) -> Facts:
  case: Any = types.SimpleNamespace(
    findings=tuple(Finding(*finding) for finding in film["findings"]),
    devices=tuple(film["devices"]),
    view=film["view"],
    sex=film["sex"],
  )
  return Facts(case, film["ctr"] or 0.0)


def _label(film: Mapping[str, Any], name: str) -> int:
  """As `anatomy.Case.label`."""
  present = {finding[0] for finding in film["findings"]}
  if name == "Lung Opacity":
    return int(bool(present & set(OPACITIES)))
  return int(name in present)


def _nearest(organs: Mapping[str, Box], asked: Box) -> Region | None:
  """The organ whose true box shares most with the box asked about; None if none does."""
  if not organs:
    return None
  best, name = max((_overlap(box, asked), name) for name, box in organs.items())
  return Region(name, asked) if best else None


def _overlap(one: Box, other: Box) -> float:
  """Intersection over union."""
  width = min(one[2], other[2]) - max(one[0], other[0])
  height = min(one[3], other[3]) - max(one[1], other[1])
  shared = max(width, 0.0) * max(height, 0.0)
  areas = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (one, other)]
  return shared / (sum(areas) - shared) if shared else 0.0
