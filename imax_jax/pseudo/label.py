"""Cross-task pseudo labels: DMAX's missing tasks, as the primary model answers them.

    records ─missing_requests─▶ requests ─generate─▶ texts ─┐
               (all but REG)                                ├─to_entries─▶ entries
    records ─region_requests──▶ requests ─generate─▶ texts ─┘
               (REG, on the boxes that REC gave)

(paper 4.2.2 and Figure 4). A request is an `Entry` whose target holds the question's
side only: classes, labels, the organ's name, the box, the question. What is true of the
image never enters it, so that the labels know no more than the model does.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from absl import logging

from imax_jax.data import prompts
from imax_jax.schema import EDEMA_GRADES
from imax_jax.schema import FINDINGS
from imax_jax.schema import ORGANS
from imax_jax.schema import TASKS
from imax_jax.schema import Annotation
from imax_jax.schema import Answer
from imax_jax.schema import Bits
from imax_jax.schema import Box
from imax_jax.schema import Entry
from imax_jax.schema import Grade
from imax_jax.schema import ImageRecord
from imax_jax.schema import Origin
from imax_jax.schema import Ratio
from imax_jax.schema import Region
from imax_jax.schema import Report
from imax_jax.schema import Target

ORIGIN = "pseudo"  # source, file and rule of what a model said
# What a request's target says where an answer would stand. `parse` reads none of it.
_ANYWHERE: Box = (0.0, 0.0, 1.0, 1.0)


class Question(NamedTuple):
  """A question that may be asked of any image."""

  text: str
  subtask: str  # "verify", "choose" or "query"
  content_type: str


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
  """What to ask of records[index]: `entry.prompt`. `entry.answer` is empty."""

  index: int
  entry: Entry


# The requests' answers, in their order.
Generate = Callable[[Sequence[Request]], Sequence[str]]


@dataclasses.dataclass(frozen=True, slots=True)
class Labelled:
  """`entries[i]` are the pseudo labels of records[i]; `dropped` counts by "task: why"."""

  entries: dict[int, tuple[Entry, ...]]
  dropped: dict[str, int]


class PseudoRecords(Sequence[ImageRecord]):
  """Pseudo-IMAX: the records, each with its pseudo labels behind its own entries.

  Records are read when they are asked for, as the wrapped ones are.
  """

  def __init__(
    self, records: Sequence[ImageRecord], entries: Mapping[int, tuple[Entry, ...]]
  ) -> None:
    self._records = records
    self._entries = dict(entries)

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> ImageRecord:  # type: ignore[override]
    index = range(len(self))[index]
    record = self._records[index]
    more = self._entries.get(index, ())
    return dataclasses.replace(record, entries=record.entries + more)


def question_pool(records: Sequence[ImageRecord]) -> tuple[Question, ...]:
  """All VQA questions of the training images, as often as they were asked.

  Training images only: a test question must not be seen before the test.
  """
  return tuple(
    Question(entry.target.question, entry.subtask, entry.target.content_type)
    for record in _each(records)
    for entry in record.entries
    if isinstance(entry.target, Answer)
  )


def missing_requests(
  records: Sequence[ImageRecord],
  questions: Sequence[Question],
  *,
  seed: int,
  questions_per_image: int,
  tasks: Collection[str] = TASKS,
) -> list[Request]:
  """What each image lacks, except REG, whose boxes are not known yet.

  Calculation and REC are looked at by sub-task (an image with CTR alone lacks CPAR), the
  others by task. An image without VQA gets `questions_per_image` distinct questions
  drawn from `questions` by the seed and its place, and by nothing that is known of it:
  questions made to fit its findings would tell the label. The paper does not say how
  its questions were chosen.

  Raises:
    ValueError: an unknown task, or no question to draw from.
  """
  unknown = sorted(set(tasks) - set(TASKS))
  if unknown:
    raise ValueError(f"pseudo: tasks {unknown} are unknown; expected some of {TASKS}")
  if "vqa" in tasks and questions_per_image > 0 and not questions:
    raise ValueError(
      "pseudo: no question to ask: the question pool is empty. Give question_pool() the "
      "training records, or leave 'vqa' out of the tasks."
    )
  # In order of first appearance; drawing from `questions` itself keeps frequencies.
  num_distinct = len(dict.fromkeys(questions))
  requests: list[Request] = []
  for index, record in enumerate(_each(records)):
    for task, subtask, target in _simple_questions(record, tasks):
      requests.append(Request(index, _ask(record.image_id, task, subtask, target, 0)))
    if "vqa" in tasks and not any(entry.task == "vqa" for entry in record.entries):
      rng = np.random.default_rng((seed, index))
      count = min(questions_per_image, num_distinct)
      numbers: collections.Counter[str] = collections.Counter()
      for question in _draw(questions, count, rng):
        target = Answer(question.text, (), question.content_type)
        number = numbers[question.subtask]
        numbers[question.subtask] += 1
        entry = _ask(record.image_id, "vqa", question.subtask, target, number)
        requests.append(Request(index, entry))
  return requests


def region_requests(
  records: Sequence[ImageRecord],
  requests: Sequence[Request],
  texts: Sequence[str],
) -> tuple[list[Request], dict[str, int]]:
  """REG of every organ that an image lacks, asked of the box that REC has for it.

  That is the image's own REC entry, else the model's answer to `requests`. Returns the
  requests and what could not be asked, counted: organs without a readable box.
  """
  _check_lengths(requests, texts)
  predicted: dict[tuple[int, str], Box] = {}
  for request, text in zip(requests, texts, strict=True):
    entry = request.entry
    if entry.task == "rec":
      try:
        target = prompts.parse(entry, text)
      except prompts.ParseError:
        continue  # counted as a REC label by `to_entries`, and below as a REG one
      assert isinstance(target, Region)
      predicted[request.index, entry.subtask] = target.box
  asked: list[Request] = []
  dropped: collections.Counter[str] = collections.Counter()
  for index, record in enumerate(_each(records)):
    have = {entry.subtask for entry in record.entries if entry.task == "reg"}
    own = {
      entry.subtask: entry.target.box
      for entry in record.entries
      if entry.task == "rec" and isinstance(entry.target, Region)
    }
    for organ in ORGANS:
      if organ in have:
        continue
      box = own.get(organ, predicted.get((index, organ)))
      if box is None:
        dropped["reg: no box from rec"] += 1
        continue
      entry = _ask(record.image_id, "reg", organ, Region(organ, box), 0)
      asked.append(Request(index, entry))
  return asked, dict(sorted(dropped.items()))


def to_entries(requests: Sequence[Request], texts: Sequence[str]) -> Labelled:
  """Answered requests as training entries, in the words that real ones have.

  An entry's id is the request's with ".pseudo" behind it and its origin is
  Origin("pseudo", …, place among the requests). A text that cannot be read is dropped and
  counted by task and reason; the text itself is nowhere kept.
  """
  _check_lengths(requests, texts)
  entries: dict[int, list[Entry]] = {}
  dropped: collections.Counter[str] = collections.Counter()
  for row, (request, text) in enumerate(zip(requests, texts, strict=True)):
    asked = request.entry
    try:
      target = prompts.parse(asked, text)
    except prompts.ParseError as error:
      dropped[f"{asked.task}: {error.reason}"] += 1
      continue
    number = int(asked.id.rsplit("/", 1)[1])
    annotation = Annotation(
      asked.image_id,
      asked.task,
      asked.subtask,
      target,
      Origin(ORIGIN, ORIGIN, row, ORIGIN),
    )
    try:
      entry = prompts.make_entry(annotation, number)
    except ValueError:
      dropped[f"{asked.task}: not a valid target"] += 1
      continue
    entry = dataclasses.replace(entry, id=f"{entry.id}.{ORIGIN}")
    entries.setdefault(request.index, []).append(entry)
  return Labelled(
    {index: tuple(found) for index, found in entries.items()},
    dict(sorted(dropped.items())),
  )


def to_records(
  records: Sequence[ImageRecord], requests: Sequence[Request], texts: Sequence[str]
) -> tuple[PseudoRecords, dict[str, int]]:
  """`to_entries`, put behind the records' own entries."""
  labelled = to_entries(requests, texts)
  return PseudoRecords(records, labelled.entries), labelled.dropped


def label(
  records: Sequence[ImageRecord],
  generate: Generate,
  questions: Sequence[Question],
  *,
  seed: int,
  questions_per_image: int,
  tasks: Collection[str] = TASKS,
) -> tuple[PseudoRecords, dict[str, int]]:
  """Pseudo-IMAX of DMAX: asks, then asks REG on the boxes answered, and reads.

  Args:
    records: DMAX's training images.
    generate: the primary model's greedy answers to requests, in their order.
    questions: `question_pool` of the training images.

  Returns:
    (records with pseudo labels, {"task: why": labels dropped}).

  Raises:
    ValueError: an unknown task, an empty question pool, or a `generate` that does not
      give one text a request.
  """
  requests = missing_requests(
    records, questions, seed=seed, questions_per_image=questions_per_image, tasks=tasks
  )
  texts = list(generate(requests)) if requests else []
  unasked: dict[str, int] = {}
  if "reg" in tasks:
    more, unasked = region_requests(records, requests, texts)
    requests = requests + more
    texts += list(generate(more)) if more else []
  labelled, dropped = to_records(records, requests, texts)
  dropped = dict(sorted((dropped | unasked).items()))
  logging.info(
    "pseudo: %d labels asked for %d images, %d dropped",
    len(requests),
    len(records),
    sum(dropped.values()),
  )
  return labelled, dropped


def _simple_questions(
  record: ImageRecord, tasks: Collection[str]
) -> Iterator[tuple[str, str, Target]]:
  """(task, sub-task, question's side) that the image lacks, but REG and VQA."""
  have_subtask = {(entry.task, entry.subtask) for entry in record.entries}
  have_task = {entry.task for entry in record.entries}
  if "calculation" in tasks:
    for ratio in prompts.RATIO_NAMES:
      if ("calculation", ratio) not in have_subtask:
        yield "calculation", ratio, Ratio(0.0)
  if "report" in tasks and "report" not in have_task:
    yield "report", "", Report("")
  if "multi_class" in tasks and "multi_class" not in have_task:
    yield "multi_class", "", Grade(EDEMA_GRADES[0])
  if "multi_label" in tasks and "multi_label" not in have_task:
    yield "multi_label", "", Bits((0,) * len(FINDINGS))
  if "rec" in tasks:
    for organ in ORGANS:
      if ("rec", organ) not in have_subtask:
        yield "rec", organ, Region(organ, _ANYWHERE)


def _ask(image_id: str, task: str, subtask: str, target: Target, number: int) -> Entry:
  entry_id = f"{image_id}/{task}/{subtask}/{number}"
  return Entry(
    id=entry_id,
    image_id=image_id,
    task=task,
    subtask=subtask,
    prompt=prompts.prompt_of(task, subtask, target, entry_id=entry_id),
    answer="",
    target=target,
    origin=Origin(ORIGIN, ORIGIN, 0, ORIGIN),
  )


def _draw(
  questions: Sequence[Question], count: int, rng: np.random.Generator
) -> list[Question]:
  """`count` distinct questions, the frequent ones more often; count <= the distinct."""
  drawn: dict[Question, None] = {}
  while len(drawn) < count:
    drawn[questions[int(rng.integers(len(questions)))]] = None
  return list(drawn)


def _each(records: Sequence[ImageRecord]) -> Iterator[ImageRecord]:
  """By index: records on disk need not be iterable."""
  return (records[index] for index in range(len(records)))


def _check_lengths(requests: Sequence[Request], texts: Sequence[str]) -> None:
  if len(requests) != len(texts):
    raise ValueError(
      f"pseudo: {len(requests)} requests but {len(texts)} texts; generate must answer "
      "each request once, in order"
    )
