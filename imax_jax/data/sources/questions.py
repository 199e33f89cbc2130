"""Questions that people asked about a radiograph: VQA-RAD's and SLAKE's.

Both give `question`, `answer` and `answer_type`, OPEN or CLOSED. The paper's sub-tasks
follow from the last two:

    answer "Yes", "no", …               -> verify
    CLOSED, answer "PA", "Left", …      -> choose
    OPEN                                -> query
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imax_jax.data.sources.intake import Distinct
from imax_jax.data.sources.intake import Tally
from imax_jax.data.sources.reading import is_text
from imax_jax.data.sources.reading import one_line
from imax_jax.schema import Annotation
from imax_jax.schema import Answer

SUBTASK_RULE = (
  'A question is "verify" where its answer is yes or no, else "choose" where its '
  'answer_type is CLOSED, else "query". The answer is kept whole, in lower case.'
)


def text_of(value: object) -> str:
  """A JSON value as one line: "PA\\t" -> "PA", 2.0 -> "2"; "" for what is no such value."""
  if isinstance(value, float):
    if not math.isfinite(value):
      return ""
    value = int(value) if value.is_integer() else value
  if isinstance(value, bool) or not isinstance(value, str | int | float):
    return ""
  text = str(value)
  return one_line(text) if is_text(text) else ""


def asked(item: Mapping[str, Any], content_field: str) -> tuple[str, Answer] | str:
  """(sub-task, question and answer) of an item, or the reason why it has none.

  An answer is one answer though it hold commas: what they part is not said anywhere.
  """
  question, answer = text_of(item.get("question")), text_of(item.get("answer")).lower()
  kind = text_of(item.get("answer_type")).upper()
  if not question:
    return "question empty or no text"
  if not answer:
    return "answer empty, or neither text nor number"
  if kind not in ("OPEN", "CLOSED"):
    return "answer_type neither OPEN nor CLOSED"
  if answer.rstrip(".") in ("yes", "no"):
    subtask = "verify"
  else:
    subtask = "choose" if kind == "CLOSED" else "query"
  content = text_of(item.get(content_field)).lower()
  return subtask, Answer(question, (answer,), content)


class Questions:
  """The questions of a source; what is asked of an image twice counts once.

  Two are the same whose words are, in any case; if their answers differ, neither counts.
  """

  def __init__(self, tally: Tally) -> None:
    self._tally = tally
    self._answers: Distinct[tuple[str, str], tuple[str, ...]] = Distinct(tally)
    self._first: dict[tuple[str, str], tuple[str, Answer, Path]] = {}

  def add(
    self, image_id: str, subtask: str, answer: Answer, path: Path, row: int
  ) -> None:
    key = image_id, answer.question.lower()
    self._first.setdefault(key, (subtask, answer, path))
    self._answers.add(key, answer.answers, path, row)

  def annotations(self, rule: str) -> Iterator[Annotation]:
    """In the order of the rows."""
    for key, _, _, row in self._answers.items():
      subtask, answer, path = self._first[key]
      self._tally.keep()
      origin = self._tally.origin(path, row, rule)
      yield Annotation(key[0], "vqa", subtask, answer, origin)
