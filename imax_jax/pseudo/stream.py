"""A split's missing labels, asked and written a few images at a time.

    labels.jsonl     what could be read               `labels.to_json`
    rejected.jsonl   {"id", "task", "reason", "log_prob"} of the rest
    written.json     how far it is, and counts by task

A chunk's REC is asked first, for REG is asked about the boxes that it answers. Chunks
begin at the same images however often the work was interrupted, so the same model gives
the same bytes. What stands in memory is one chunk.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imax_jax.data.spelling import respell
from imax_jax.pseudo import label as label_lib
from imax_jax.pseudo import labels as labels_lib
from imax_jax.pseudo.journal import Journal
from imax_jax.pseudo.journal import state_of
from imax_jax.pseudo.label import Label
from imax_jax.pseudo.label import Rejected
from imax_jax.pseudo.label import Request
from imax_jax.pseudo.label import Said
from imax_jax.pseudo.questions import Pool
from imax_jax.schema import TASKS
from imax_jax.schema import WHOLE
from imax_jax.schema import Box
from imax_jax.schema import ImageRecord

LABELS, REJECTED = "labels.jsonl", "rejected.jsonl"
# The requests' answers, in their order.
Generate = Callable[[Sequence[Request]], Sequence[Said]]
# Of what a picture's boxes are told to the model in fractions: `data.eye.Eye.frame`.
Frame = Callable[[ImageRecord], Box]


@dataclasses.dataclass(frozen=True, slots=True)
class Asking:
  """What is asked, and of whom. `model` is the hash of what answers."""

  model: str
  seed: int
  questions_per_image: int
  max_new_tokens: int
  tasks: tuple[str, ...] = TASKS
  images_at_once: int = 64


def write_labels(
  folder: Path,
  records: Sequence[ImageRecord],
  places: Sequence[int],
  generate: Generate,
  pool: Pool,
  asking: Asking,
  progress: Callable[[int, int], None] = lambda done, total: None,
  frame: Frame = lambda record: WHOLE,
) -> None:
  """Labels records[place] of every place; goes on from what the folder has.

  Args:
    places: ascending.
    generate: the primary model's greedy answers to requests, in their order.
    pool: `questions.pool_of` the training images.
    progress: called with (images done, all) after each chunk.
    frame: in which boxes are asked and answered; labels have them in the picture's.

  Raises:
    ValueError: tasks that cannot be labelled, an empty question pool, a `generate` that
      does not give one answer a request, or a damaged folder.
  """
  label_lib.check_tasks(asking.tasks)
  if asking.images_at_once < 1:
    raise ValueError(
      f"pseudo: images_at_once={asking.images_at_once}: expected 1 or more"
    )
  start = {"images": 0, "asked": {}, "made": {}, "rejected": {}}
  journal = Journal(folder, (LABELS, REJECTED), start)
  for begin in range(journal.state["images"], len(places), asking.images_at_once):
    chunk = places[begin : begin + asking.images_at_once]
    images = {place: records[place] for place in chunk}
    state = json.loads(json.dumps(journal.state))
    frames = {place: frame(record) for place, record in images.items()}
    labels, rejected = _answered(images, frames, generate, pool, asking, state["asked"])
    _count(state, labels, rejected)
    state["images"] += len(chunk)
    lines = {
      LABELS: [labels_lib.to_json(label) for label in labels],
      REJECTED: [json.dumps(one._asdict()) for one in rejected],
    }
    journal.append(lines, state)
    progress(state["images"], len(places))


def counts_of(folder: Path) -> dict[str, Any]:
  """{"asked": {task: labels wanted}, "made": …, "rejected": {task: {reason: …}}}.

  Raises:
    ValueError: the folder is damaged.
  """
  state = state_of(folder)
  return {key: state[key] for key in ("asked", "made", "rejected")}


def _answered(
  images: dict[int, ImageRecord],
  frames: dict[int, Box],
  generate: Generate,
  pool: Pool,
  asking: Asking,
  asked: dict[str, int],
) -> tuple[list[Label], list[Rejected]]:
  """A chunk's labels, in the order of its images, and what gave none."""

  def framed(requests: Sequence[Request]) -> list[Request]:
    return [Request(r.place, respell(r.entry, frames[r.place])) for r in requests]

  requests = label_lib.missing_requests(
    images,
    pool,
    seed=asking.seed,
    questions_per_image=asking.questions_per_image,
    tasks=asking.tasks,
  )
  requests = framed(requests)
  said = list(generate(requests)) if requests else []
  label_lib.check_lengths(requests, said)
  unasked: list[Rejected] = []
  if "reg" in asking.tasks:
    more, unasked = label_lib.region_requests(
      images, requests, said, max_new_tokens=asking.max_new_tokens
    )
    more = framed(more)
    requests, said = requests + more, said + (list(generate(more)) if more else [])
  labels, rejected = label_lib.to_labels(
    requests,
    said,
    model=asking.model,
    first_row=sum(asked.values()),
    max_new_tokens=asking.max_new_tokens,
  )
  labels.sort(key=lambda label: label.place)  # stable: REG comes behind the rest
  return labels, rejected + unasked


def _count(
  state: dict[str, Any], labels: Sequence[Label], rejected: Sequence[Rejected]
) -> None:
  """`asked` holds what could not be asked, too: it is `made` and `rejected` together."""
  asked, made, why = state["asked"], state["made"], state["rejected"]
  for label in labels:
    made[label.entry.task] = made.get(label.entry.task, 0) + 1
  for one in rejected:
    reasons = why.setdefault(one.task, {})
    reasons[one.reason] = reasons.get(one.reason, 0) + 1
  for task in [*(label.entry.task for label in labels), *(r.task for r in rejected)]:
    asked[task] = asked.get(task, 0) + 1
