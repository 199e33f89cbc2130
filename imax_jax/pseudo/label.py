"""Cross-task pseudo labels: DMAX's missing tasks, as the primary model answers them.

    images ─missing_requests─▶ requests ─generate─▶ answers ─┐
              (all but REG)                                  ├─to_labels─▶ labels
    images ─region_requests──▶ requests ─generate─▶ answers ─┘
              (REG, on the boxes that REC gave)

(paper 4.2.2 and Figure 4). A request is an `Entry` whose target holds the question's
side only: classes, labels, the organ's name, the box, the question. What is true of the
image never enters it, so that the labels know no more than the model does.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Collection
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import NamedTuple
from typing import Protocol

import numpy as np

from imax_jax.data import prompts
from imax_jax.pseudo.questions import Pool
from imax_jax.schema import EDEMA_GRADES
from imax_jax.schema import FINDINGS
from imax_jax.schema import ORGANS
from imax_jax.schema import TASKS
from imax_jax.schema import WHOLE
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

ORIGIN = "pseudo"  # source and rule of what a model said
# What a request's target says where an answer would stand. `parse` reads none of it.
_ANYWHERE: Box = (0.0, 0.0, 1.0, 1.0)
NO_BOX = "no box from rec"


class Said(Protocol):
  """What a model answers: `evaluate.generate.Generated`."""

  @property
  def text(self) -> str: ...
  @property
  def log_prob(self) -> float:
    """Mean natural log-probability of its tokens, the end token included."""

  @property
  def num_tokens(self) -> int: ...


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
  """What to ask of the image at `place`: `entry.prompt`. `entry.answer` is empty."""

  place: int
  entry: Entry


@dataclasses.dataclass(frozen=True, slots=True)
class Label:
  """A pseudo label: an answer that could be read, as a training entry."""

  place: int  # of its image in the split that is labelled
  entry: Entry
  log_prob: float  # rounded to 1e-6
  num_tokens: int


class Rejected(NamedTuple):
  """What was asked, or could not be, and gave no label. No word of an answer is kept."""

  id: str
  task: str
  reason: str
  log_prob: float | None  # None: it was not asked


def check_tasks(tasks: Collection[str]) -> None:
  """Raises a ValueError for tasks that cannot be labelled."""
  unknown = sorted(set(tasks) - set(TASKS))
  if unknown:
    raise ValueError(f"pseudo: tasks {unknown} are unknown; expected some of {TASKS}")
  if "reg" in tasks and "rec" not in tasks:
    raise ValueError(
      "pseudo: 'reg' is asked about the boxes that 'rec' answers: add 'rec' to the "
      "tasks, or leave 'reg' out"
    )


def missing_requests(
  images: Mapping[int, ImageRecord],
  pool: Pool,
  *,
  seed: int,
  questions_per_image: int,
  tasks: Collection[str] = TASKS,
) -> list[Request]:
  """What each image lacks, except REG, whose boxes are not known yet.

  Calculation and REC are looked at by sub-task (an image with CTR alone lacks CPAR), the
  others by task. An image without VQA gets `questions_per_image` distinct questions
  drawn from the pool by the seed and its place, and by nothing that is known of it:
  questions made to fit its findings would tell the label. The paper does not say how
  its questions were chosen.

  Args:
    images: {place in its split: image}, in the order in which they are asked.

  Raises:
    ValueError: an unknown task, REG without REC, or no question to draw from.
  """
  check_tasks(tasks)
  if "vqa" in tasks and questions_per_image > 0 and not pool:
    raise ValueError(
      "pseudo: no question to ask: the question pool is empty, since no training image "
      "has VQA entries. Leave 'vqa' out of the tasks, or give questions_per_image 0."
    )
  requests: list[Request] = []
  for place, record in images.items():
    for task, subtask, target in _simple_questions(record, tasks):
      requests.append(Request(place, _ask(record.image_id, task, subtask, target, 0)))
    if "vqa" in tasks and not any(entry.task == "vqa" for entry in record.entries):
      rng = np.random.default_rng((seed, place))
      numbers: collections.Counter[str] = collections.Counter()
      for question in pool.draw(questions_per_image, rng):
        target = Answer(question.text, (), question.content_type)
        number = numbers[question.subtask]
        numbers[question.subtask] += 1
        entry = _ask(record.image_id, "vqa", question.subtask, target, number)
        requests.append(Request(place, entry))
  return requests


def region_requests(
  images: Mapping[int, ImageRecord],
  requests: Sequence[Request],
  said: Sequence[Said],
  *,
  max_new_tokens: int,
) -> tuple[list[Request], list[Rejected]]:
  """REG of every organ that an image lacks, asked of the box that REC has for it.

  That is the image's own REC entry, else the model's answer to `requests`. Returns the
  requests and what could not be asked: organs without a valid box.
  """
  check_lengths(requests, said)
  predicted: dict[tuple[int, str], Box] = {}
  for request, answer in zip(requests, said, strict=True):
    if request.entry.task == "rec":
      target, _ = read(request.entry, answer, max_new_tokens)
      if isinstance(target, Region):
        predicted[request.place, request.entry.subtask] = target.box
  asked: list[Request] = []
  rejected: list[Rejected] = []
  for place, record in images.items():
    have = {entry.subtask for entry in record.entries if entry.task == "reg"}
    own = {
      entry.subtask: entry.target.box
      for entry in record.entries
      if entry.task == "rec" and isinstance(entry.target, Region)
    }
    for organ in ORGANS:
      if organ in have:
        continue
      box = own.get(organ, predicted.get((place, organ)))
      if box is None:
        entry_id = f"{record.image_id}/reg/{organ}/0.{ORIGIN}"
        rejected.append(Rejected(entry_id, "reg", NO_BOX, None))
        continue
      entry = _ask(record.image_id, "reg", organ, Region(organ, box), 0)
      asked.append(Request(place, entry))
  return asked, rejected


def to_labels(
  requests: Sequence[Request],
  said: Sequence[Said],
  *,
  model: str,
  first_row: int,
  max_new_tokens: int,
) -> tuple[list[Label], list[Rejected]]:
  """Answered requests as training entries, in the words that real ones have.

  An entry's id is the request's with ".pseudo" behind it; its origin is Origin("pseudo",
  the model's hash, its row among all that is wanted, "pseudo"). A text that cannot be read, or
  says what no label of its task says, is rejected by its reason.
  """
  check_lengths(requests, said)
  labels: list[Label] = []
  rejected: list[Rejected] = []
  for row, (request, answer) in enumerate(zip(requests, said, strict=True), first_row):
    asked, log_prob = request.entry, round(float(answer.log_prob), 6)
    target, reason = read(asked, answer, max_new_tokens)
    if target is None:
      rejected.append(Rejected(f"{asked.id}.{ORIGIN}", asked.task, reason, log_prob))
      continue
    origin = Origin(ORIGIN, model, row, ORIGIN)
    number = int(asked.id.rsplit("/", 1)[1])
    entry = prompts.make_entry(
      Annotation(asked.image_id, asked.task, asked.subtask, target, origin), number
    )
    entry = dataclasses.replace(entry, id=f"{entry.id}.{ORIGIN}")
    labels.append(Label(request.place, entry, log_prob, int(answer.num_tokens)))
  return labels, rejected


def read(asked: Entry, said: Said, max_new_tokens: int) -> tuple[Target | None, str]:
  """(what an answer says, "") if it can be a label of its task, else (None, why not).

  One of `max_new_tokens` was cut off before its end, and would teach to stop there.
  """
  try:
    target = prompts.parse(asked, said.text)
  except prompts.ParseError as error:
    return None, error.reason
  if said.num_tokens >= max_new_tokens:
    return None, "unfinished"
  match target:
    case Ratio(value) if not 0 < value < (1 if asked.subtask == "ctr" else 1000):
      return None, "no possible ratio"
    case Region(box=(x_min, y_min, x_max, y_max)) if x_min == x_max or y_min == y_max:
      return None, "box without area"
    case Region(name) if name not in ORGANS:
      return None, "no organ"
    case Answer(answers=answers) if not all(part.strip() for part in answers):
      return None, "an empty part"
    case Answer(answers=answers) if asked.subtask == "verify":
      if [part.casefold() for part in answers] not in (["yes"], ["no"]):
        return None, "neither yes nor no"
    case Region():  # a label is of the picture, whatever it was asked in
      target = dataclasses.replace(target, frame=WHOLE)
  return target, ""


def check_lengths(requests: Sequence[Request], said: Sequence[Said]) -> None:
  """Raises a ValueError unless each request has its answer."""
  if len(requests) != len(said):
    raise ValueError(
      f"pseudo: {len(requests)} requests but {len(said)} answers; generate must answer "
      "each request once, in order"
    )


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
