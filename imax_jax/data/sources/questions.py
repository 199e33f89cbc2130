"""Questions that people asked about a radiograph: VQA-RAD's and SLAKE's.

Both give `question`, `answer` and `answer_type`, OPEN or CLOSED. The paper's sub-tasks
follow from the last two:

    answer "Yes", "no", …               -> verify
    CLOSED, answer "PA", "Left", …      -> choose
    OPEN                                -> query
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from typing import NamedTuple

from imax_jax.data.sources.files import inside
from imax_jax.data.sources.intake import DamagedFile
from imax_jax.data.sources.intake import Distinct
from imax_jax.data.sources.intake import Tally
from imax_jax.data.sources.pictures import size_of
from imax_jax.data.sources.reading import is_text
from imax_jax.data.sources.reading import one_line
from imax_jax.schema import Annotation
from imax_jax.schema import Answer
from imax_jax.schema import Radiograph

SUBTASK_RULE = (
  'A question is "verify" where its answer is yes or no, else "choose" where its '
  'answer_type is CLOSED, else "query". The answer is kept whole, in lower case.'
)


class Item(NamedTuple):
  """The item in the row `row` of `path`, about the image `file` of the same folder.

  `patient_id` is "" where none is given. `said` are the item's own fields.
  """

  path: Path
  row: int
  image_id: str
  patient_id: str
  file: str
  said: Mapping[str, Any]


def find_images(
  items: Iterable[Item], rule: str, tally: Tally
) -> dict[str, Radiograph]:
  """The images that items name, that are there and readable; no view is given.

  An image without a patient is its own. Counted in `tally.rows` is each image once.
  """
  patients: dict[str, str] = {}
  radiographs: dict[str, Radiograph] = {}
  for path, row, image_id, patient_id, name, _ in items:
    if image_id in patients:
      if patient_id != patients[image_id]:
        tally.met("an image under two cases", "yes: the first counts")
      continue
    patients[image_id] = patient_id
    tally.rows += 1
    try:
      file = inside(path.parent, name)
      if not file.is_file():
        tally.leave_out_image(image_id, "image file absent")
        continue
      width, height = size_of(file)
    except DamagedFile as error:
      tally.reject(tally.name(path), row, f"image {error.reason}", rule)
      continue
    radiographs[image_id] = Radiograph(
      image_id, image_id, patient_id or image_id, "", width, height, str(file)
    )
  tally.keep(len(radiographs))
  return radiographs


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

  Args:
    content_field: which field of an item has the kind of its content.
  """

  def __init__(
    self,
    radiographs: Mapping[str, Radiograph],
    content_field: str,
    rule: str,
    tally: Tally,
  ) -> None:
    self._radiographs = radiographs
    self._content_field = content_field
    self._rule, self._tally = rule, tally
    self._answers: Distinct[tuple[str, str], tuple[str, ...]] = Distinct(tally)
    self._first: dict[tuple[str, str], tuple[str, Answer]] = {}

  def add(self, item: Item) -> None:
    """Of an item that is none, or about another image, the tally is told."""
    found = asked(item.said, self._content_field)
    if isinstance(found, str):
      self._tally.reject(self._tally.name(item.path), item.row, found, self._rule)
    elif item.image_id not in self._radiographs:
      self._tally.absent(item.image_id)
    else:
      key = item.image_id, found[1].question.lower()
      self._first.setdefault(key, found)
      self._answers.add(key, found[1].answers, item.path, item.row)

  def image_ids(self) -> list[str]:
    """The images that have a question, contradicted ones too."""
    return list(dict.fromkeys(image_id for image_id, _ in self._first))

  def annotations(self) -> Iterator[Annotation]:
    """In the order of the rows."""
    for key, _, file, row in self._answers.items():
      subtask, answer = self._first[key]
      self._tally.keep()
      origin = self._tally.origin(file, row, self._rule)
      yield Annotation(key[0], "vqa", subtask, answer, origin)
