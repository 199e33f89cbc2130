"""Answers to many questions about many images, greedy or drawn.

    image ─┐                                              ┌──────────────┐
           ├─ a line: prefix │ question │ question … ─read─▶ grid ─decode─▶ ids ─▶ text
    texts ─┘                                              └─ move: not ended yet

An image's prefix is computed once with all of its questions behind it, and what it left is
read by all of them (`grid`). Programs are compiled for few sizes of a grid (`lines`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerFast

from imax_jax.data import records
from imax_jax.data import templates
from imax_jax.data.features import Features
from imax_jax.evaluate import grid
from imax_jax.evaluate import lines
from imax_jax.evaluate.grid import Grid
from imax_jax.evaluate.grid import Sampling
from imax_jax.evaluate.lines import Piece
from imax_jax.models import stops
from imax_jax.models.vlm import Vlm

_FEWEST = 8  # rows of a grid: fewer would take as long, and a program of their own
_SHORTEST = 32  # tokens that there is room for of a question that goes on


class Generated(NamedTuple):
  """An answer.

  log_prob: mean natural logarithm of its tokens' probabilities, those of the end token or
    of the stop words included.
  num_tokens: how many these are; an answer that the budget ends has no end token.
  """

  text: str
  log_prob: float
  num_tokens: int


class _Going(NamedTuple):
  """An answer that has not ended.

  grid, line, row: where it stands.
  asked, last: how many tokens its question has, and where in the line read it ends.
  """

  number: int
  grid: Grid
  line: int
  row: int
  asked: int
  last: int


class Generator:
  """Decoding, equal to running every row whole through the model at each token.

  Args:
    model: any `Vlm`; it is told nothing about tasks.
    tokenizer: names the begin, end and pad tokens.
    num_slots: S, the image tokens of an image.
    max_new_tokens: the longest answer, its end token included.
    rows: answers that go on together, once those of a line do not.
    style: how a question is put; its evaluation half is used.
  """

  def __init__(
    self,
    model: Vlm,
    tokenizer: PreTrainedTokenizerFast,
    num_slots: int,
    max_new_tokens: int,
    *,
    rows: int = 64,
    style: templates.Style = templates.STYLES["llama2"],
  ) -> None:
    self.tokenizer = tokenizer
    self.max_new_tokens = max_new_tokens
    self.rows = rows
    prefix = records.prefix_of(tokenizer, num_slots, style.evaluation)
    self.prefix_ids, self.prefix_slot = prefix
    self._layout = templates.layout_of(tokenizer, style.evaluation)
    self._model = model
    self._programs = grid.Programs(model, self._layout.stop_ids, len(self.prefix_ids))
    self._answer_of = style.evaluation.answer_of
    self._programs = grid.Programs(model, self._layout.stops, len(self.prefix_ids))

  def __call__(
    self,
    params: Any,
    pixels: np.ndarray | Features,
    prompts: Sequence[tuple[int, str]],
    *,
    tasks: Sequence[str] = (),
    max_new_tokens: int | None = None,
    sampling: Sampling | None = None,
    progress: Callable[[int, int], None] | None = None,
  ) -> list[Generated]:
    """`stream`, in the order asked."""
    found = dict(
      self.stream(
        params, pixels, prompts, tasks=tasks, max_new_tokens=max_new_tokens,
        sampling=sampling, progress=progress,
      )
    )  # fmt: skip
    return [found[number] for number in range(len(prompts))]

  def stream(
    self,
    params: Any,
    pixels: np.ndarray | Features,
    prompts: Sequence[tuple[int, str]],
    *,
    tasks: Sequence[str] = (),
    max_new_tokens: int | None = None,
    sampling: Sampling | None = None,
    known: Collection[int] = (),
    progress: Callable[[int, int], None] | None = None,
  ) -> Iterator[tuple[int, Generated]]:
    """Answers (image number, "[vqa] Is …?"), each with its number among `prompts`.

    They come as they end, in an order that the prompts and the model decide.

    Args:
      params: the whole tree; without "encoder" if `pixels` holds features.
      pixels: uint8[N, H, W, C], or the frozen encoder's features float[N, P, D].
      prompts: what `Entry.prompt` holds, with the number of the image asked about.
      tasks: each prompt's; read only where image tokens depend on it. An image is then
        read once for each of its prompts' tasks.
      max_new_tokens: for this call, instead of the constructor's.
      sampling: None: the likeliest token each time.
      known: numbers whose answers are not asked for. The others are computed in the
        company they would have had: their answers are the same to the last bit.
      progress: called with (answered, all) as they come.

    Raises:
      ValueError: the number of an image that `pixels` does not hold, a task without a
        token, no room for an answer, a prompt that spells one, or a sampling out of range.
    """
    budget = self.max_new_tokens if max_new_tokens is None else max_new_tokens
    if budget < 1:
      raise ValueError(f"generate: max_new_tokens={budget}, expected at least 1")
    if sampling is not None:
      sampling.check()
    for image, _ in prompts:
      if not 0 <= image < len(pixels):
        raise ValueError(
          f"generate: a prompt asks about image {image}, pixels holds {len(pixels)}; "
          "number the images from 0"
        )
    try:
      ids = [self._layout.prompt_ids(text) for _, text in prompts]
    except ValueError as error:
      raise ValueError(f"generate: a prompt is refused: {error}") from None
    known, answered = frozenset(known), len(known)
    seen = self._seen([image for image, _ in prompts], tasks)
    for wave in lines.plan(seen, [*map(len, ids)], self.rows):
      if known.issuperset(number for piece in wave for number in piece.questions):
        continue
      for number, generated in self._answer(
        params, pixels, wave, ids, budget, sampling
      ):
        if number not in known:
          answered += 1
          yield number, generated
          if progress is not None:
            progress(answered, len(prompts))

  def _seen(self, images: Sequence[int], tasks: Sequence[str]) -> list[int]:
    """A number for each image and task that it is seen for: what shares a line."""
    known = self._model.tasks
    if not known:
      return list(images)
    if len(tasks) != len(images):
      raise ValueError(
        f"generate: {len(images)} prompts and {len(tasks)} tasks: this model's image "
        "tokens depend on the task; name each prompt's"
      )
    numbers = map(self._model.task_number, tasks)
    return [image * len(known) + n for image, n in zip(images, numbers, strict=True)]

  def _answer(
    self,
    params: Any,
    pixels: np.ndarray | Features,
    wave: Sequence[Piece],
    ids: Sequence[Sequence[int]],
    budget: int,
    sampling: Sampling | None,
  ) -> Iterator[tuple[int, Generated]]:
    """The answers of one wave, as they end."""
    levels = lines.levels(budget)
    waiting: list[list[_Going]] = [[] for _ in levels]

    def run(
      level: int, held: Grid, going: Sequence[_Going], step: int
    ) -> Iterator[Any]:
      """What ends in a level; what does not waits for the next."""
      rows, _ = self._programs.decode(params, held.lines, held.rows, step, sampling)
      said, total, done = map(np.asarray, (rows.said, rows.total, rows.done))
      held = held._replace(rows=rows)
      for one in going:
        at = one.line, one.row
        if done[at] or level + 1 == len(levels):
          yield one.number, self._generated(said[at], float(total[at]))
        else:
          waiting[level + 1].append(one._replace(grid=held))

    def go_on(level: int, least: int) -> Iterator[Any]:
      """Runs what waits for a level, while that is so many."""
      while len(waiting[level]) >= least:
        some, waiting[level] = waiting[level][: self.rows], waiting[level][self.rows :]
        held, going = self._together(some, levels[level])
        yield from run(level, held, going, levels[level - 1])

    for piece in wave:
      batch, last, asked, number = self._lay(pixels, piece, ids)
      held = self._programs.read(
        params, batch, last, asked, number, sampling, columns=levels[0]
      )
      going = [
        _Going(
          int(number[at]), held, int(at[0]), int(at[1]), int(asked[at]), int(last[at])
        )
        for at in zip(*np.nonzero(number >= 0), strict=True)
      ]
      yield from run(0, held, going, 1)
      for level in range(1, len(levels)):
        yield from go_on(level, self.rows)
    for level in range(1, len(levels)):
      yield from go_on(level, 1)

  def _together(
    self, some: Sequence[_Going], columns: int
  ) -> tuple[Grid, list[_Going]]:
    """The answers, each a line of one grid of no more rows than they need."""
    rows, room = self.rows, _SHORTEST
    while rows // 2 >= max(len(some), _FEWEST):
      rows //= 2
    while room < max(one.asked for one in some):
      room *= 2
    to = self._programs.empty(
      some[0].grid.lines.caches, rows=rows, room=room, columns=columns
    )
    at = 0
    for _, found in itertools.groupby(some, key=lambda one: id(one.grid)):
      part = [*found]
      place = np.zeros((3, self.rows), np.int32)
      for i, one in enumerate(part):
        place[:, i] = one.line, one.row, one.last
      to = self._programs.move(to, part[0].grid, place, len(part), at)
      at += len(part)
    return to, [one._replace(grid=to, line=at, row=0) for at, one in enumerate(some)]

  def _lay(
    self,
    pixels: np.ndarray | Features,
    piece: Piece,
    ids: Sequence[Sequence[int]],
  ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray]:
    """(`schema.Batch` of m lines; where questions end, their tokens and numbers).

    The latter are int32[m, Q]. What only fills the piece is padding: its questions end at
    -1, have no tokens and the number -1.
    """
    prefix, height = len(self.prefix_ids), piece.high
    shape = (height, prefix + piece.room)
    batch = {
      name: np.zeros(shape, np.int32) for name in ("text", "segment", "position")
    }
    batch |= {name: np.full(shape, -1, np.int32) for name in ("image", "slot")}
    last, number = np.full((2, height, piece.width), -1, np.int32)
    asked = np.zeros_like(last)
    for i, line in enumerate(piece.lines):
      batch["text"][i, :prefix] = self.prefix_ids
      batch["slot"][i, :prefix] = self.prefix_slot
      batch["position"][i, :prefix] = np.arange(prefix)
      start = prefix
      for j, question in enumerate(line.questions):
        end = start + len(ids[question])
        batch["text"][i, start:end] = ids[question]
        batch["segment"][i, start:end] = j + 1
        batch["position"][i, start:end] = prefix + np.arange(end - start)
        last[i, j], asked[i, j], number[i, j] = end - 1, end - start, question
        start = end
      batch["image"][i, :start] = i
    seen = [line.image for line in piece.lines]
    seen += seen[:1] * (height - len(seen))
    images, task = np.divmod(seen, max(1, len(self._model.tasks)))
    batch |= {"pixels": np.asarray(pixels[images]), "task": task.astype(np.int32)}
    return batch, last, asked, number

  def _generated(self, row: np.ndarray, log_prob: float) -> Generated:
    """Of an answer's ids, and the sum of their log-probabilities."""
    count = stops.length(row, self._layout.stops)
    ends = row[count - 1] in self._layout.stop_ids
    return Generated(self._text(row[: count - ends]), log_prob / count, count)

  def _text(self, ids: np.ndarray) -> str:
    """The answer's ids before its end token, as text; stop words are cut off."""
    said = str(self.tokenizer.decode(ids.tolist(), skip_special_tokens=True))
    return self._answer_of(said)
