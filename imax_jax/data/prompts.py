"""The seven tasks in words: annotation -> prompt and answer, and back.

    Annotation("a1", "rec", "heart", Region("heart", (.25, .31, .52, .7)), …)
      -> Entry(id="a1/rec/heart/0",
               prompt="[rec] Based on the input image, could you tell me the location of the "
               "heart.",
               answer="<250><310><520><700>", …)
    parse(entry, "<250><310><520><700>") -> Region("heart", (.25, .31, .52, .7))

The wording is Figure 1's of arXiv 2504.09967 (legible there only through OCR; the words
it lost are the end of the report prompt, "image.", and the order of the edema classes,
which are asked in the order of their codes). Boxes are [x_min, y_min, x_max, y_max] in
thousandths (appendix A) unless a `Region` says otherwise: the figure's own boxes are
raw pixels and, as its lungs show, [y_min, x_min, y_max, x_max].
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re

from imax_jax.data.spelling import ParseError as ParseError
from imax_jax.data.spelling import box_text as box_text
from imax_jax.data.spelling import parse_box
from imax_jax.schema import EDEMA_GRADES
from imax_jax.schema import FINDINGS
from imax_jax.schema import ORGANS
from imax_jax.schema import TARGET_OF_TASK
from imax_jax.schema import Annotation
from imax_jax.schema import Answer
from imax_jax.schema import Bits
from imax_jax.schema import Entry
from imax_jax.schema import Grade
from imax_jax.schema import Ratio
from imax_jax.schema import Region
from imax_jax.schema import Report
from imax_jax.schema import Target

# Where a task has several wordings, an entry's id decides which one it gets.
TEMPLATES: dict[str, tuple[str, ...]] = {
  "calculation": (
    "[calculate] Based on the input image, calculate the {ratio} value.",
  ),
  "report": (
    "[caption] Provide a detailed description of findings and impressions about this "
    "image.",
  ),
  "multi_class": (
    "[cls] Based on the input image, analyze and determine which category of pulmonary "
    "edema severity belongs to: {classes}.",
  ),
  # For class sets other than the paper's.
  "multi_class/other": (
    "[cls] Based on the input image, analyze and determine which category it belongs "
    "to: {classes}.",
  ),
  "multi_label": (
    "[cls] Based on the input image, determine the presence or absence of the following "
    "conditions: {labels}. The output format should be a comma-separated string of "
    "{count} binary digits (0 or 1), where each digit corresponds to the presence (1) "
    "or absence (0) of the respective condition in the order listed above.",
  ),
  "rec": (
    "[rec] Based on the input image, could you tell me the location of the {name}.",
    "[rec] Based on the input image, where can I locate the {name}.",
  ),
  "reg": (
    "[reg] Based on the input image, the object in {box} is",
    "[reg] Based on the input image, what object is in this location {box}?",
  ),
  "vqa": ("[vqa] Based on the input image, {question}",),
}  # fmt: skip
RATIO_NAMES: dict[str, str] = {
  "ctr": "cardiothoracic ratio (CTR)",
  "cpar": "cardiopulmonary area ratio (CPAR)",
}
NO_ANSWER = "none"  # what a question to which nothing applies is answered with
BOX_SCALE = 1000  # a Region's own default


# ── Annotation -> text ────────────────────────────────────────────────────────────


def make_entry(annotation: Annotation, number: int) -> Entry:
  """The training pair of an annotation, the `number`-th of its image and sub-task.

  Raises:
    ValueError: a target that is not of the task's kind or cannot be put into words.
  """
  task, subtask, target = annotation.task, annotation.subtask, annotation.target
  entry_id = f"{annotation.image_id}/{task}/{subtask}/{number}"
  try:
    _check(task, target)
    prompt = prompt_of(task, subtask, target, entry_id=entry_id)
  except ValueError as error:
    origin = annotation.origin
    raise ValueError(f"{origin.file} row {origin.row}, {entry_id}: {error}") from None
  return Entry(
    id=entry_id,
    image_id=annotation.image_id,
    task=task,
    subtask=subtask,
    prompt=prompt,
    answer=answer_of(target, task),
    target=target,
    origin=annotation.origin,
  )


def prompt_of(
  task: str, subtask: str, target: Target | str | None = None, *, entry_id: str = ""
) -> str:
  """The prompt, without image marks or chat template.

  Args:
    task: one of `schema.TASKS`.
    subtask: "ctr" or "cpar" for calculation, the object's name for rec where `target`
      does not give it; not used elsewhere.
    target: what the question is about: a `Grade` or `Bits` for its classes or labels
      (None: the paper's), a `Region` for its name or box, an `Answer` or plain str for
      the question. What the target answers never enters the prompt.
    entry_id: chooses among several wordings, the same one in every process.

  Raises:
    ValueError: an unknown task or ratio, or a target the task cannot ask about.
  """
  words: dict[str, str] = {}
  match task, target:
    case "calculation", _:
      if subtask not in RATIO_NAMES:
        raise ValueError(f"ratio {subtask!r}: expected one of {sorted(RATIO_NAMES)}")
      words["ratio"] = RATIO_NAMES[subtask]
    case "report", _:
      pass
    case "multi_class", Grade() | None:
      classes = EDEMA_GRADES if target is None else target.classes
      words["classes"] = ", ".join(classes)
    case "multi_label", Bits() | None:
      labels = FINDINGS if target is None else target.labels
      words |= {"labels": _enumerate(labels), "count": str(len(labels))}
    case "rec", Region() | None:
      words["name"] = subtask if target is None else target.name
    case "reg", Region():
      words["box"] = box_text(target)
    case "vqa", Answer() | str():
      words["question"] = target if isinstance(target, str) else target.question
    case _:
      raise ValueError(
        f"task {task!r} cannot ask about a {type(target).__name__}; expected "
        f"{ {name: kind.__name__ for name, kind in TARGET_OF_TASK.items()} }"
      )
  templates = TEMPLATES[_key(task, target)]
  return templates[_choice(len(templates), entry_id)].format(**words)


def answer_of(target: Target, task: str) -> str:
  """The text a model is taught to say: the box for rec, the name for reg."""
  match target:
    case Ratio(value):
      return f"{abs(value):.4f}"  # abs: -0.0 passes for a ratio, "-0.0000" does not
    case Report(text):
      return text.strip()
    case Grade(name):
      return name
    case Bits(values):
      return ",".join(map(str, values))
    case Region():
      return target.name if task == "reg" else box_text(target)
    case Answer(answers=answers):
      # Figure 1 ends a list of several answers, and only such a list, with a period.
      return ", ".join(answers) + "." * (len(answers) > 1) or NO_ANSWER
  raise ValueError(f"{type(target).__name__} is no target of {sorted(TARGET_OF_TASK)}")


def template_id(entry: Entry) -> str:
  """Which wording of `TEMPLATES` an entry has: "rec/1"."""
  key = _key(entry.task, entry.target)
  return f"{key}/{_choice(len(TEMPLATES[key]), entry.id)}"


def _key(task: str, target: Target | str | None) -> str:
  """The key of `TEMPLATES`."""
  if isinstance(target, Grade) and target.classes != EDEMA_GRADES:
    return "multi_class/other"
  return task


def _check(task: str, target: Target) -> None:
  """Refuses a target whose answer `parse` could not read back."""
  if task not in TARGET_OF_TASK:
    raise ValueError(f"task {task!r}: expected one of {list(TARGET_OF_TASK)}")
  if not isinstance(target, TARGET_OF_TASK[task]):
    raise ValueError(
      f"expected a {TARGET_OF_TASK[task].__name__}, got a {type(target).__name__}"
    )
  match target:
    case Ratio(value) if not 0 <= value < 1000:
      raise ValueError(f"ratio {value}: expected a number from 0 to below 1000")
    case Grade(name, classes) if name not in classes:
      raise ValueError(f"grade {name!r}: expected one of {list(classes)}")
    case Bits(values, labels) if len(values) != len(labels) or set(values) - {0, 1}:
      raise ValueError(f"bits {values}: expected {len(labels)} of 0 or 1")
    case Region(name, box, scale, order):
      if order not in ("xy", "yx") or min(scale) < 1:
        raise ValueError(f"box order {order!r}, scale {scale}: expected xy or yx, > 0")
      if not (box[0] <= box[2] and box[1] <= box[3] and all(map(math.isfinite, box))):
        raise ValueError(f"box {box}: expected (x_min, y_min, x_max, y_max)")
      if not name.strip():
        raise ValueError("the region has no name")
    case Report(text) if not text.strip():
      raise ValueError("the report is empty; leave it out")
    case Answer(question, answers):
      if not question.strip() or not all(answer.strip() for answer in answers):
        raise ValueError("the question or one of its answers is empty; leave it out")


def _choice(count: int, entry_id: str) -> int:
  # Not hash(): Python salts it anew in every process.
  digest = hashlib.sha256(entry_id.encode()).digest()
  return int.from_bytes(digest[:8], "big") % count


def _enumerate(labels: tuple[str, ...]) -> str:
  """("A", "B", "C") -> "A, B, and C"."""
  if len(labels) < 3:
    return " and ".join(labels)
  return f"{', '.join(labels[:-1])}, and {labels[-1]}"


# ── Text -> target ────────────────────────────────────────────────────────────────


def parse(entry: Entry, text: str) -> Target:
  """What `text` answers to the entry's question, as a target of the entry's kind.

  Case, spaces around and one final period are forgiven, nothing else. The entry lends
  the question's side only (classes, labels, asked name or box, question) and the
  spelling of names, never a value.

  Raises:
    ParseError: with a short reason, such as "no number" or "expected 10 digits, got 9".
  """
  body = _body(text)
  if not body:
    raise ParseError("empty")
  match entry.target:
    case Ratio():
      return Ratio(_parse_number(body))
    case Report():
      return Report(text.strip())
    case Grade(classes=classes):
      for name in classes:
        if body.casefold() == _body(name).casefold():
          return Grade(name, classes)
      raise ParseError("not one of the classes")
    case Bits(labels=labels):
      return Bits(_parse_bits(body, len(labels)), labels)
    case Region() as region:
      if entry.task == "reg":
        name = _respell(body, (region.name, *ORGANS))
        return dataclasses.replace(region, name=name)
      return dataclasses.replace(region, box=parse_box(body, region))
    case Answer():
      return _parse_answer(entry.target, body)
  raise ValueError(f"{entry.id}: {type(entry.target).__name__} cannot be parsed")


def _body(text: str) -> str:
  return text.strip().removesuffix(".").rstrip()


def _respell(text: str, names: tuple[str, ...]) -> str:
  """`text` as one of `names` is spelt, where they differ in case only."""
  return next((name for name in names if name.casefold() == text.casefold()), text)


def _parse_number(body: str) -> float:
  # So few digits that no text becomes an infinity.
  if not re.fullmatch(r"[0-9]{0,15}(\.[0-9]{1,15})?", body):
    raise ParseError("no number")
  return float(body)


def _parse_bits(body: str, count: int) -> tuple[int, ...]:
  digits = body.split(",")
  if set(digits) - {"0", "1"}:
    raise ParseError("not binary digits")
  if len(digits) != count:
    raise ParseError(f"expected {count} digits, got {len(digits)}")
  return tuple(int(digit) for digit in digits)


def _parse_answer(target: Answer, body: str) -> Answer:
  # An answer may itself hold ", " or end with a period: the reference's own words are
  # recognised whole before the text is cut.
  if body.casefold() == _body(answer_of(target, "vqa")).casefold():
    return target
  answers: tuple[str, ...] = ()
  if body.casefold() != NO_ANSWER:
    answers = tuple(_respell(part, target.answers) for part in body.split(", "))
  return Answer(target.question, answers, target.content_type)
