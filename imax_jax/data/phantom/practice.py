"""What the foundation stage teaches: words, boxes and digits, but none of the study.

Practice asks about the film (view, devices, marker, build) and about objects that the
study never asks for (spine, trachea, …), in prompts of its own. Heart and lung boxes,
the two ratios, the edema grade and the ten bits stay unseen, so that what a model
answers to them later was learned from the study's own data sets.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from imax_jax import schema
from imax_jax.data.phantom.anatomy import DEVICES
from imax_jax.data.phantom.render import Film

TASK = "practice"
NUM_ENTRIES = 9
NUM_MAPS = len(schema.ORGANS) + len(schema.FINDINGS) + 1
_NAMES = {"m": "man", "f": "woman"}
_RATIOS: tuple[tuple[str, str], ...] = (
  ("spine", "width"), ("spine", "height"), ("trachea", "height"), ("thorax", "width"),
  ("thorax", "height"), ("thorax", "area"), ("abdomen", "area"), ("abdomen", "height"),
  ("aortic knob", "width"), ("left clavicle", "width"), ("right clavicle", "width"),
  ("stomach bubble", "width"), ("side marker", "height"),
)  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class _Item:
  subtask: str
  prompt: str
  answer: str
  target: schema.Target


def practice_entries(
  film: Film, rng: np.random.Generator, image_id: str
) -> tuple[schema.Entry, ...]:
  """About nine entries of one film: two captions, then a random choice of exercises.

  prompt "[practice] Find the spine."        answer "<441><0><563><1000>"
  prompt "[practice] Is any pacemaker seen?"   answer "no"
  """
  makers: tuple[Callable[[Film, np.random.Generator], _Item | None], ...] = (
    _box, _box, _box, _name, _ratio, _ratio, _pair, _pair, _pair, _verify, _verify,
    _choose, _where, _bits, _copy, _compare,
  )  # fmt: skip
  items = [_caption(film), _remark(film, rng)]
  for number in rng.permutation(len(makers)):
    if len(items) == NUM_ENTRIES:
      break
    item = makers[number](film, rng)
    if item is not None and all(item.prompt != known.prompt for known in items):
      items.append(item)
  return tuple(
    schema.Entry(
      id=f"{image_id}/{TASK}/{item.subtask}/{number}",
      image_id=image_id,
      task=TASK,
      subtask=item.subtask,
      prompt=f"[practice] {item.prompt}",
      answer=item.answer,
      target=item.target,
      origin=schema.Origin(TASK, TASK, number, TASK),
    )
    for number, item in enumerate(items)
  )


def coverage_maps(film: Film, grid: int = 8) -> np.ndarray:
  """float32[grid, grid, 14], each 0 … 1: the share of each patch that is covered by
  heart, left lung, right lung and each of `schema.FINDINGS`; last, the edema grade
  divided by three times the share of lung.

  Raises ValueError if `grid` does not divide the film's size.
  """
  size = film.pixels.shape[0]
  if size % grid:
    raise ValueError(
      f"grid: expected a divisor of the film's {size} pixels, got {grid}; change either"
    )
  empty = np.zeros(film.pixels.shape, bool)
  layers = [film.masks[name] for name in schema.ORGANS]
  layers += [film.finding_masks.get(name, empty) for name in schema.FINDINGS]
  lungs = film.masks["left lung"] | film.masks["right lung"]
  if film.case.view == "LATERAL":
    lungs = film.finding_masks.get("Edema", empty)
  layers.append(lungs)
  side = size // grid
  maps = np.stack(
    [m.reshape(grid, side, grid, side).mean((1, 3), dtype=np.float32) for m in layers],
    axis=-1,
  )
  maps[..., -1] *= film.case.edema_grade / 3.0
  return maps


def _answer(subtask: str, prompt: str, answer: str) -> _Item:
  return _Item(subtask, prompt, answer, schema.Answer(prompt, (answer,)))


def _view(film: Film) -> str:
  return "side view" if film.case.view == "LATERAL" else f"{film.case.view} view"


def _devices(film: Film) -> list[str]:
  """The devices that lie on the film; side views show none."""
  return [device for device in film.case.devices if device in film.boxes]


def _words(film: Film) -> list[str]:
  """["left pleural effusion", "right nodule", …]."""
  words = []
  for finding in film.case.findings:
    word = finding.name.lower()
    words.append(f"{finding.side} {word}" if finding.side else word)
  return words


def _remark(film: Film, rng: np.random.Generator) -> _Item:
  """A shorter caption: what is seen, in any order."""
  words = _words(film)
  shown = [words[number] for number in rng.permutation(len(words))]
  text = ", ".join(shown) or "nothing of note"
  return _Item("caption", "In a few words.", text, schema.Report(text))


def _caption(film: Film) -> _Item:
  case = film.case
  parts = [f"{_view(film)} of a {_NAMES[case.sex]}"]
  tall = case.geometry.aspect
  if tall > 1.12 or tall < 0.95:
    parts.append("long chest" if tall > 1 else "wide chest")
  if case.exposure > 1.15 or case.exposure < 0.9:
    parts.append("dark film" if case.exposure > 1 else "bright film")
  parts.append(f"{case.marker_side[0].upper()} marker")
  parts.extend(_devices(film))
  for finding in case.findings:
    if not film.finding_masks[finding.name].any():
      continue
    # A side view lays left over right, so it shows no side.
    side = "" if case.view == "LATERAL" else finding.side
    text = f"{side} {finding.name.lower()}".strip()
    if text not in parts:
      parts.append(text)
  text = ", ".join(parts)
  return _Item("caption", "Caption.", text, schema.Report(text))


def _box_text(box: schema.Box) -> str:
  return "".join(f"<{int(1000 * edge)}>" for edge in box)


def _object(film: Film, rng: np.random.Generator) -> tuple[str, schema.Box]:
  names = sorted(film.boxes)
  name = names[int(rng.integers(len(names)))]
  return name, film.boxes[name]


def _box(film: Film, rng: np.random.Generator) -> _Item:
  name, box = _object(film, rng)
  return _Item("box", f"Find the {name}.", _box_text(box), schema.Region(name, box))


def _name(film: Film, rng: np.random.Generator) -> _Item:
  name, box = _object(film, rng)
  prompt = f"Name the thing in {_box_text(box)}."
  return _Item("name", prompt, name, schema.Region(name, box))


def _ratio(film: Film, rng: np.random.Generator) -> _Item | None:
  options = [option for option in _RATIOS if option[0] in film.boxes]
  name, extent = options[int(rng.integers(len(options)))]
  x_min, y_min, x_max, y_max = film.boxes[name]
  width, height = x_max - x_min, y_max - y_min
  value = {"width": width, "height": height, "area": width * height}[extent]
  prompt = f"The {extent} of the {name}'s box by the {extent} of the film?"
  return _Item("ratio", prompt, f"{value:.4f}", schema.Ratio(value))


def _pair(film: Film, rng: np.random.Generator) -> _Item | None:
  """One object's extent by another's: a ratio that has to be measured twice."""
  first, _ = _object(film, rng)
  second, _ = _object(film, rng)
  extent = ("width", "height")[int(rng.integers(2))]
  sizes = []
  for name in (first, second):
    x_min, y_min, x_max, y_max = film.boxes[name]
    sizes.append(x_max - x_min if extent == "width" else y_max - y_min)
  if not 0 < sizes[0] < sizes[1]:
    return None
  value = sizes[0] / sizes[1]
  prompt = f"The {extent} of the {first} by that of the {second}?"
  return _Item("ratio", prompt, f"{value:.4f}", schema.Ratio(value))


def _facts(film: Film) -> dict[str, bool]:
  """Short statements about the film that are never evaluated."""
  case, shown = film.case, _devices(film)
  facts = {f"any {device} seen": device in shown for device in DEVICES}
  facts["this a side view"] = case.view == "LATERAL"
  facts["this a portable film"] = case.view == "AP"
  facts["this a woman"] = case.sex == "f"
  facts["the marker an R"] = case.marker_side == "right"
  facts["the chest long"] = case.geometry.aspect > 1.04
  facts["the film dark"] = case.exposure > 1.05
  return facts


def _verify(film: Film, rng: np.random.Generator) -> _Item | None:
  """A yes or a no with equal chance, as far as the film allows."""
  wanted = bool(rng.random() < 0.5)
  options = [fact for fact, true in _facts(film).items() if true == wanted]
  if not options:
    return None
  fact = options[int(rng.integers(len(options)))]
  # "any pacemaker seen" -> "Is any pacemaker seen?"
  return _answer("verify", f"Is {fact}?", "yes" if wanted else "no")


def _choose(film: Film, rng: np.random.Generator) -> _Item:
  """Which of two, in either order."""
  case = film.case
  other = {"PA": ("AP", "side"), "AP": ("PA", "side"), "LATERAL": ("PA", "AP")}
  shown = "side" if case.view == "LATERAL" else str(case.view)
  present = _devices(film)
  absent = [device for device in DEVICES if device not in present]
  pairs = [
    (_NAMES[case.sex], _NAMES["m" if case.sex == "f" else "f"]),
    (case.marker_side[0].upper(), "R" if case.marker_side == "left" else "L"),
    (shown, other[case.view][int(rng.integers(2))]),
  ]
  if present and absent:
    first, second = int(rng.integers(len(present))), int(rng.integers(len(absent)))
    pairs.append((present[first], absent[second]))
  right, wrong = pairs[int(rng.integers(len(pairs)))]
  named = (right, wrong) if rng.random() < 0.5 else (wrong, right)
  return _answer("choose", f"Which fits, {named[0]} or {named[1]}?", right)


def _where(film: Film, rng: np.random.Generator) -> _Item:
  """Which quarter of the picture the middle of a thing lies in."""
  name, (x_min, y_min, x_max, y_max) = _object(film, rng)
  row = "top" if y_min + y_max < 1 else "bottom"
  column = "left" if x_min + x_max < 1 else "right"
  return _answer("where", f"Which quarter has the {name}?", f"picture's {row} {column}")


def _bits(film: Film, rng: np.random.Generator) -> _Item:
  facts = _facts(film)
  names = [list(facts)[number] for number in rng.permutation(len(facts))[:5]]
  text = ",".join(str(int(facts[name])) for name in names)
  return _answer("bits", f"1 or 0 for each: {', '.join(names)}.", text)


def _number(rng: np.random.Generator) -> str:
  return f"{rng.random():.4f}"


def _copy(film: Film, rng: np.random.Generator) -> _Item:
  """Needs no film: a number, a box or a list of digits to say again."""
  kind = int(rng.integers(3))
  if kind == 0:
    text = _number(rng)
  elif kind == 1:
    text = "".join(f"<{int(edge)}>" for edge in rng.integers(0, 1001, 4))
  else:
    text = ",".join(str(int(digit)) for digit in rng.integers(0, 2, 7))
  return _answer("copy", f"Say again: {text}", text)


def _compare(film: Film, rng: np.random.Generator) -> _Item:
  """Needs no film: the larger of two numbers."""
  first, second = _number(rng), _number(rng)
  larger = max(first, second)
  return _answer("compare", f"The larger, {first} or {second}?", larger)
