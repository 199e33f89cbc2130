"""One row of a user's annotations as tasks, sub-tasks and targets.

    task         name                        answer
    calculation  ctr or cpar                 0.47
    report       –                           the text
    multi_class  none; mild; severe          mild
    multi_label  Edema; Nodule; Fracture     Edema; Nodule   (those present, or: none)
    box          heart                       310 402 655 760 (x0 y0 x1 y1, in pixels)
    vqa          Is the heart enlarged?      yes             (several: left lung; heart)

"box" is REC and REG at once; "rec" and "reg" are one of them. Where `name` is empty,
multi_class has the paper's four edema grades and multi_label its ten findings. JSONL may
have lists where the table has ";" and boxes as four numbers.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from imax_jax.data.sources.own_rows import Row
from imax_jax.data.sources.reading import one_line
from imax_jax.schema import EDEMA_GRADES
from imax_jax.schema import FINDINGS
from imax_jax.schema import Answer
from imax_jax.schema import Bits
from imax_jax.schema import Grade
from imax_jax.schema import Ratio
from imax_jax.schema import Region
from imax_jax.schema import Report
from imax_jax.schema import Target

RULES: dict[str, str] = {
  "own/task": "One of calculation, report, multi_class, multi_label, box, rec, reg, vqa.",
  "own/calculation": "A ratio named ctr or cpar, strictly between 0 and 1.",
  "own/report": "A text, white space collapsed.",
  "own/multi_class": "One of at least two classes, in any case.",
  "own/multi_label": "The names of the labels that are present, of at least two; none, or "
  "an empty list, where none is.",
  "own/box": "x0 y0 x1 y1 in pixels of the upright image, inside of it, x0 < x1 and "
  "y0 < y1. REC leaves out an object that an image has several boxes of.",
  "own/vqa": 'A question and its answers in lower case. The sub-task is the row\'s own, '
  'else "verify" where the answer is yes or no, "choose" where the question has the word '
  '"or" and names every answer, else "query".',
}  # fmt: skip
NONE = "none"
_SEMANTIC_TYPES = ("verify", "choose", "query")
_MIN_NAMES = 2
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
_THOUSANDS = re.compile(r"[1-9]\d{0,2},\d{3}", re.ASCII)


class Said(NamedTuple):
  """An annotation without its image and origin; `about` is what it answers."""

  task: str
  subtask: str
  about: object
  target: Target


class _BadRow(ValueError):
  """Why a row says nothing; never in the row's words."""


def targets(row: Row, size: tuple[int, int]) -> tuple[str, list[Said] | str]:
  """(rule, what the row says, or the reason why it says nothing).

  Args:
    size: the image's width and height in pixels.
  """
  task = row.get("task")
  task = (
    task.lower().replace("-", "_").replace(" ", "_") if isinstance(task, str) else ""
  )
  if task not in _READERS:
    return "own/task", "unknown task"
  rule = "own/box" if task in ("rec", "reg") else f"own/{task}"
  try:
    if "answer" not in row:
      raise _BadRow("answer empty")
    return rule, _READERS[task](row, size, task)
  except _BadRow as error:
    return rule, str(error)


# ── One function a task ───────────────────────────────────────────────────────────


def _calculation(row: Row, size: tuple[int, int], task: str) -> list[Said]:
  kind = _text(row, "name").lower()
  if kind not in ("ctr", "cpar"):
    raise _BadRow("name neither ctr nor cpar")
  value = _number(row["answer"])
  if not 0 < value < 1:
    raise _BadRow("answer not between 0 and 1")
  return [Said(task, kind, kind, Ratio(value))]


def _report(row: Row, size: tuple[int, int], task: str) -> list[Said]:
  return [Said(task, "", None, Report(_text(row, "answer")))]


def _multi_class(row: Row, size: tuple[int, int], task: str) -> list[Said]:
  classes = _names(row, EDEMA_GRADES)
  (answer,) = _spelt([_text(row, "answer")], classes)
  return [Said(task, "", classes, Grade(answer, classes))]


def _multi_label(row: Row, size: tuple[int, int], task: str) -> list[Said]:
  labels = _names(row, FINDINGS)
  if NONE in [label.lower() for label in labels]:
    raise _BadRow("none is no label: it says that no label is present")
  present = _spelt(_answers(row), labels)
  bits = tuple(int(label in present) for label in labels)
  return [Said(task, "", labels, Bits(bits, labels))]


def _box(row: Row, size: tuple[int, int], task: str) -> list[Said]:
  name = _text(row, "name").lower()
  if not name:
    raise _BadRow("name of the object empty")
  x0, y0, x1, y1 = _four_numbers(row["answer"])
  width, height = size
  if not (x0 < x1 and y0 < y1):
    raise _BadRow("box without an inside: expected x0 < x1 and y0 < y1")
  if min(x0, y0) < 0 or x1 > width or y1 > height:
    raise _BadRow("box outside the image")
  region = Region(name, (x0 / width, y0 / height, x1 / width, y1 / height))
  tasks = ("rec", "reg") if task == "box" else (task,)
  return [Said(each, name, region, region) for each in tasks]


def _vqa(row: Row, size: tuple[int, int], task: str) -> list[Said]:
  question = _text(row, "name")
  if not question:
    raise _BadRow("question (name) empty")
  answers = tuple(answer.lower() for answer in _answers(row))
  subtask = _text(row, "subtask").lower() or _semantic_type(question, answers)
  if subtask not in _SEMANTIC_TYPES:
    raise _BadRow(f"subtask none of {', '.join(_SEMANTIC_TYPES)}")
  return [Said(task, subtask, question, Answer(question, answers))]


_READERS: dict[str, Callable[[Row, tuple[int, int], str], list[Said]]] = {
  "calculation": _calculation,
  "report": _report,
  "multi_class": _multi_class,
  "multi_label": _multi_label,
  "box": _box,
  "rec": _box,
  "reg": _box,
  "vqa": _vqa,
}


# ── Cells ─────────────────────────────────────────────────────────────────────────


def _text(row: Row, column: str) -> str:
  value = row.get(column, "")
  if not isinstance(value, str):
    raise _BadRow(f"{column} is no text")
  return one_line(value)


def _several(row: Row, column: str) -> list[str]:
  """A cell's parts between ";", or a list's texts."""
  value = row[column]
  if isinstance(value, str):
    value = value.split(";")
  if not isinstance(value, list) or not all(isinstance(part, str) for part in value):
    raise _BadRow(f"{column} is neither text nor a list of texts")
  return [part for part in map(one_line, value) if part]


def _names(row: Row, default: tuple[str, ...]) -> tuple[str, ...]:
  names = tuple(_several(row, "name")) if row.get("name") else default
  if len(names) < _MIN_NAMES or len({name.lower() for name in names}) < len(names):
    raise _BadRow("name: expected several different names with ; between them")
  return names


def _answers(row: Row) -> list[str]:
  """The answers, none of them where "none" is the only one."""
  answers = _several(row, "answer")
  if not answers and row["answer"] != []:
    raise _BadRow("answer empty")
  if len({answer.lower() for answer in answers}) < len(answers):
    raise _BadRow("answer says one thing twice")
  return [] if [answer.lower() for answer in answers] == [NONE] else answers


def _spelt(answers: list[str], names: tuple[str, ...]) -> list[str]:
  """Answers as `names` spell them."""
  spelling = {name.lower(): name for name in names}
  if not all(answer.lower() in spelling for answer in answers):
    raise _BadRow("answer is not among the names")
  return [spelling[answer.lower()] for answer in answers]


def _semantic_type(question: str, answers: tuple[str, ...]) -> str:
  if answers in (("yes",), ("no",)):
    return "verify"
  asked = question.lower()
  if " or " in asked and answers and all(answer in asked for answer in answers):
    return "choose"
  return "query"


def _number(value: object) -> float:
  """A JSON number, or a text; "0,47" is 0.47."""
  if isinstance(value, str):
    if _THOUSANDS.fullmatch(value):
      raise _BadRow("answer has a comma that may part thousands or decimals")
    value = value.replace(",", ".")
    if not _NUMBER.fullmatch(value):
      raise _BadRow("answer is no number")
  elif isinstance(value, bool) or not isinstance(value, int | float):
    raise _BadRow("answer is no number")
  try:
    return float(value)
  except OverflowError:  # JSON's integers have no bound
    raise _BadRow("answer is too large a number") from None


def _four_numbers(value: object) -> list[float]:
  """[1, 2, 3, 4], "1 2 3 4", "1,2,3,4", "1, 2, 3, 4" or "1,5 2 3 4" of 1.5."""
  if isinstance(value, str):
    parts = value.replace(";", " ").split()
    value = parts[0].split(",") if len(parts) == 1 else [p.rstrip(",") for p in parts]
  if not isinstance(value, list) or len(value) != 4:
    raise _BadRow("answer: expected four numbers, x0 y0 x1 y1")
  return [_number(part) for part in value]
