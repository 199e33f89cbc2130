"""Answers to many questions about many images, greedy or drawn.

    image ─┐
           ├─ a line: prefix │ question │ question … ─prefill─▶ grid ─decode─▶ ids ─▶ text
    texts ─┘

An image's prefix is computed once with all of its questions behind it, and what it left is
read by all of them (`grid`). Programs are compiled for few sizes of a grid.
"""

from __future__ import annotations

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
from imax_jax.evaluate.grid import Sampling
from imax_jax.models.vlm import Vlm

_SHORTEST = 32
_COLUMNS = 32  # tokens of an answer that have room at first


class Generated(NamedTuple):
  """An answer.

  log_prob: mean natural logarithm of its tokens' probabilities, the end token's included.
  num_tokens: how many these are; an answer that the budget ends has no end token.
  """

  text: str
  log_prob: float
  num_tokens: int


class Line(NamedTuple):
  """An image and questions about it, by their numbers."""

  image: int
  questions: tuple[int, ...]


def _width(length: int) -> int:
  """The next power of two: the program compiled for it serves all that are shorter."""
  return max(_SHORTEST, 1 << (length - 1).bit_length())


def plan(images: Sequence[int], lengths: Sequence[int], rows: int) -> list[list[Line]]:
  """The lines of each grid.

  Lines of about as many questions and tokens stand together: a grid is as wide as its
  widest line.

  Args:
    images, lengths: the image and the number of tokens of each question.
    rows: how many questions a grid may hold.
  """
  most = 1 << (rows.bit_length() - 1)
  asked: dict[int, list[int]] = {}
  for number, image in enumerate(images):
    asked.setdefault(image, []).append(number)
  by_width: dict[int, list[Line]] = {}
  for image, numbers in sorted(asked.items()):
    for at in range(0, len(numbers), most):
      line = Line(image, tuple(numbers[at : at + most]))
      width = min(grid.stepped(len(line.questions)), most)
      by_width.setdefault(width, []).append(line)
  grids = []
  for width, lines in sorted(by_width.items(), reverse=True):
    lines.sort(key=lambda line: -sum(lengths[n] for n in line.questions))
    high = most // width
    grids += [lines[at : at + high] for at in range(0, len(lines), high)]
  return grids


def grid_shape(lines: Sequence[Line], rows: int) -> tuple[int, int]:
  """(M, Q) of the grid for some lines of `plan`: as few lines as a `STEP` allows."""
  most = 1 << (rows.bit_length() - 1)
  width = min(grid.stepped(max(len(line.questions) for line in lines)), most)
  height = most // width
  while len(lines) * grid.STEP <= height:
    height //= grid.STEP
  return height, width


class Generator:
  """Decoding, equal to running every row whole through the model at each token.

  Args:
    model: any `Vlm`; it is told nothing about tasks.
    tokenizer: names the begin, end and pad tokens.
    num_slots: S, the image tokens of an image.
    max_new_tokens: the longest answer, its end token included.
    rows: questions that decode together.
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
    self._programs = grid.Programs(model, self._layout.stop_ids)

  def __call__(
    self,
    params: Any,
    pixels: np.ndarray | Features,
    prompts: Sequence[tuple[int, str]],
    *,
    max_new_tokens: int | None = None,
    sampling: Sampling | None = None,
    progress: Callable[[int, int], None] | None = None,
  ) -> list[Generated]:
    """`stream`, in the order asked."""
    found = dict(
      self.stream(
        params, pixels, prompts, max_new_tokens=max_new_tokens, sampling=sampling,
        progress=progress,
      )
    )  # fmt: skip
    return [found[number] for number in range(len(prompts))]

  def stream(
    self,
    params: Any,
    pixels: np.ndarray | Features,
    prompts: Sequence[tuple[int, str]],
    *,
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
      max_new_tokens: for this call, instead of the constructor's.
      sampling: None: the likeliest token each time.
      known: numbers whose answers are not asked for. The others are computed in the
        company they would have had: their answers are the same to the last bit.
      progress: called with (answered, all) as they come.

    Raises:
      ValueError: the number of an image that `pixels` does not hold, no room for an
        answer, a prompt that spells a special token, or a sampling out of range.
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
    known = frozenset(known)
    answered = len(known)
    for lines in plan([image for image, _ in prompts], list(map(len, ids)), self.rows):
      if all(number in known for line in lines for number in line.questions):
        continue
      for number, generated in self._answer(
        params, pixels, lines, ids, budget, sampling
      ):
        if number not in known:
          answered += 1
          yield number, generated
          if progress is not None:
            progress(answered, len(prompts))

  def _answer(
    self,
    params: Any,
    pixels: np.ndarray | Features,
    held: Sequence[Line],
    ids: Sequence[Sequence[int]],
    budget: int,
    sampling: Sampling | None,
  ) -> Iterator[tuple[int, Generated]]:
    """The answers of one grid, as they end."""
    batch, last, number = self._lay(pixels, held, ids)
    columns = min(_COLUMNS, budget)
    lines, rows = self._programs.prefill(
      params, batch, last, number, sampling, columns=columns
    )
    step, going = 1, last >= 0
    while True:
      rows, step = self._programs.decode(
        params, lines, rows, step, grid.fewer(going), sampling
      )
      said, total, done = map(np.asarray, (rows.said, rows.total, rows.done))
      ended = going & (done | (int(step) == budget))
      for at in sorted(zip(*np.nonzero(ended), strict=True), key=lambda at: number[at]):
        yield int(number[at]), self._generated(said[at][: int(step)], float(total[at]))
      going &= ~ended
      if not going.any():
        return
      if int(step) == columns:
        columns = min(grid.STEP * columns, budget)
      line, row = grid.packed(going)
      lines, rows = self._programs.pack(lines, rows, line, row, columns=columns)
      number = np.take_along_axis(number[line], np.maximum(row, 0), axis=1)
      going = row >= 0

  def _lay(
    self,
    pixels: np.ndarray | Features,
    lines: Sequence[Line],
    ids: Sequence[Sequence[int]],
  ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """(`schema.Batch` of M lines, where questions end, their numbers; int32[M, Q]).

    What only fills the grid is padding, and ends at -1.
    """
    height, width = grid_shape(lines, self.rows)
    prefix = len(self.prefix_ids)
    longest = max(sum(len(ids[n]) for n in line.questions) for line in lines)
    shape = (height, prefix + _width(longest))
    batch = {
      name: np.zeros(shape, np.int32) for name in ("text", "segment", "position")
    }
    batch |= {name: np.full(shape, -1, np.int32) for name in ("image", "slot")}
    last, number = np.full((2, height, width), -1, np.int32)
    for i, line in enumerate(lines):
      batch["text"][i, :prefix] = self.prefix_ids
      batch["slot"][i, :prefix] = self.prefix_slot
      batch["position"][i, :prefix] = np.arange(prefix)
      start = prefix
      for j, question in enumerate(line.questions):
        end = start + len(ids[question])
        batch["text"][i, start:end] = ids[question]
        batch["segment"][i, start:end] = j + 1
        batch["position"][i, start:end] = prefix + np.arange(end - start)
        last[i, j], number[i, j], start = end - 1, question, end
      batch["image"][i, :start] = i
    images = [line.image for line in lines]
    images += images[:1] * (height - len(lines))
    return batch | {"pixels": np.asarray(pixels[np.array(images)])}, last, number

  def _generated(self, row: np.ndarray, log_prob: float) -> Generated:
    """Of an answer's ids, and the sum of their log-probabilities."""
    ends = np.flatnonzero(np.isin(row, self._layout.stop_ids))
    count = int(ends[0]) + 1 if len(ends) else len(row)
    text = self._text(row[: count - 1] if len(ends) else row)
    return Generated(text, log_prob / count, count)

  def _text(self, ids: np.ndarray) -> str:
    """The answer's ids before its end token, as text."""
    return str(self.tokenizer.decode(ids.tolist(), skip_special_tokens=True))
