"""Greedy answers to many questions about many images.

    images ─prefill─▶ keys and values of each prefix ─┬─ question 1 ─extend─▶ ids ─▶ text
    (once an image)              gathered a question  └─ question 2 ─extend─▶ …

An image's prefix is computed once, however many questions are asked about it. Questions
run in chunks of fixed shape: `rows` questions, padded on the left to one of a few
lengths, so that few programs are compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from functools import partial
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from transformers import PreTrainedTokenizerFast

from imax_jax.data import records
from imax_jax.data import templates
from imax_jax.data.features import Features
from imax_jax.models.decoder import Cache
from imax_jax.models.vlm import Vlm

_SHORTEST_PROMPT = 16


class Generated(NamedTuple):
  """An answer.

  log_prob: mean natural logarithm of its tokens' probabilities, the end token's included.
  num_tokens: how many these are; an answer that the budget ends has no end token.
  """

  text: str
  log_prob: float
  num_tokens: int


def _padded_length(length: int) -> int:
  """The next power of two: the program compiled for it serves all that are shorter."""
  return max(_SHORTEST_PROMPT, 1 << (length - 1).bit_length())


class Generator:
  """Greedy decoding, equal to running every row whole through the model at each token.

  Args:
    model: any `Vlm`; it is told nothing about tasks.
    tokenizer: names the begin, end and pad tokens.
    num_slots: S, the image tokens of an image.
    max_new_tokens: the longest answer, its end token included.
    rows: questions that decode together.
    images: images whose prefixes are kept at a time.
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
    images: int = 64,
    style: templates.Style = templates.STYLES["llama2"],
  ) -> None:
    self.model = model
    self.tokenizer = tokenizer
    self.max_new_tokens = max_new_tokens
    self.rows = rows
    self.images = images
    self.prefix_ids, self.prefix_slot = records.prefix_of(
      tokenizer, num_slots, style.evaluation
    )
    self._layout = templates.layout_of(tokenizer, style.evaluation)
    self._prefill = jax.jit(self._prefill_images)
    self._decode = jax.jit(self._decode_rows, static_argnames="max_new_tokens")

  def __call__(
    self,
    params: Any,
    pixels: np.ndarray | Features,
    prompts: Sequence[tuple[int, str]],
    *,
    max_new_tokens: int | None = None,
    progress: Callable[[int, int], None] | None = None,
  ) -> list[Generated]:
    """Answers (image number, "[vqa] Is …?") in the order asked: `stream`, in order."""
    found = dict(
      self.stream(
        params, pixels, prompts, max_new_tokens=max_new_tokens, progress=progress
      )
    )
    return [found[number] for number in range(len(prompts))]

  def stream(
    self,
    params: Any,
    pixels: np.ndarray | Features,
    prompts: Sequence[tuple[int, str]],
    *,
    max_new_tokens: int | None = None,
    progress: Callable[[int, int], None] | None = None,
  ) -> Iterator[tuple[int, Generated]]:
    """Answers (image number, "[vqa] Is …?"), each with its place among `prompts`.

    They come as they are found, in an order that the prompts alone decide.

    Args:
      params: the whole tree; without "encoder" if `pixels` holds features.
      pixels: uint8[N, H, W, C], or the frozen encoder's features float[N, P, D].
      prompts: what `Entry.prompt` holds, with the number of the image asked about.
      max_new_tokens: for this call, instead of the constructor's.
      progress: called with (answered, all) after every chunk.

    Raises:
      ValueError: the number of an image that `pixels` does not hold, no room for an
        answer, or a prompt that spells a special token.
    """
    budget = self.max_new_tokens if max_new_tokens is None else max_new_tokens
    if budget < 1:
      raise ValueError(f"generate: max_new_tokens={budget}, expected at least 1")
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
    answered = 0
    for images, chunks in self._plan(prompts, ids):
      cache = self._prefill(params, self._take(pixels, images))
      place = {image: number for number, image in enumerate(images)}
      for chunk in chunks:
        held = [place[prompts[question][0]] for question in chunk]
        inputs = self._pad([ids[question] for question in chunk], held)
        out = self._decode(params, cache, *inputs, max_new_tokens=budget)
        for question, row, total in zip(chunk, *map(np.asarray, out), strict=False):
          yield question, self._generated(row, float(total))
        answered += len(chunk)
        if progress is not None:
          progress(answered, len(prompts))

  def _plan(
    self, prompts: Sequence[tuple[int, str]], ids: Sequence[Sequence[int]]
  ) -> Iterator[tuple[list[int], list[list[int]]]]:
    """(images whose prefixes are kept together, chunks of the questions about them)."""
    asked = sorted({image for image, _ in prompts})
    for start in range(0, len(asked), self.images):
      images = asked[start : start + self.images]
      inside = set(images)
      by_length: dict[int, list[int]] = {}
      for question, (image, _) in enumerate(prompts):
        if image in inside:
          length = _padded_length(len(ids[question]))
          by_length.setdefault(length, []).append(question)
      chunks: list[list[int]] = []
      for _, questions in sorted(by_length.items()):
        # A chunk decodes until its longest answer ends: prompts that begin alike, of
        # one task, have answers of like length.
        questions.sort(key=lambda question: (prompts[question][1], question))
        chunks += [
          questions[at : at + self.rows] for at in range(0, len(questions), self.rows)
        ]
      yield images, chunks

  def _take(self, pixels: np.ndarray | Features, images: Sequence[int]) -> np.ndarray:
    """These images, and the first again until there are `self.images`."""
    padded = [*images, *[images[0]] * (self.images - len(images))]
    return np.asarray(pixels[np.array(padded)])

  def _pad(
    self, prompts: Sequence[Sequence[int]], images: Sequence[int]
  ) -> tuple[np.ndarray, ...]:
    """text int32[B, T] padded on the left, length int32[B] and image int32[B].

    A row that is only there to fill the chunk has length 0.
    """
    length = max(_padded_length(len(prompt)) for prompt in prompts)
    text = np.full((self.rows, length), self.tokenizer.pad_token_id, np.int32)
    lengths, image = np.zeros(self.rows, np.int32), np.zeros(self.rows, np.int32)
    for row, prompt in enumerate(prompts):
      text[row, length - len(prompt) :] = prompt
      lengths[row], image[row] = len(prompt), images[row]
    return text, lengths, image

  def _generated(self, row: np.ndarray, log_prob: float) -> Generated:
    """Of an answer's ids, and the sum of their log-probabilities."""
    ends = np.flatnonzero(np.isin(row, self._layout.stop_ids))
    count = int(ends[0]) + 1 if len(ends) else len(row)
    text = self._text(row[: count - 1] if len(ends) else row)
    return Generated(text, log_prob / count, count)

  def _text(self, ids: np.ndarray) -> str:
    """The answer's ids before its end token, as text."""
    return str(self.tokenizer.decode(ids.tolist(), skip_special_tokens=True))

  def _prefill_images(self, params: Any, pixels: jax.Array) -> Cache:
    """One row for each image, holding its prefix alone."""
    shape = (pixels.shape[0], len(self.prefix_ids))
    image = jnp.broadcast_to(jnp.arange(shape[0])[:, None], shape)
    batch = {
      "pixels": pixels,
      "text": jnp.broadcast_to(self.prefix_ids, shape),
      "slot": jnp.broadcast_to(self.prefix_slot, shape),
      "position": jnp.broadcast_to(jnp.arange(shape[1]), shape),
      "image": image,
      "segment": jnp.zeros_like(image),
    }
    cache: Any = self.model.apply({"params": params}, batch, method="prefill")
    return cache

  def _decode_rows(
    self,
    params: Any,
    prefixes: Cache,
    text: jax.Array,
    length: jax.Array,
    image: jax.Array,
    *,
    max_new_tokens: int,
  ) -> tuple[jax.Array, jax.Array]:
    """Each row's answer int32[B, max_new_tokens], padded after its end token, and the sum
    of its tokens' log-probabilities, float32[B].
    """
    rows, prompt_columns = text.shape
    prefix = prefixes.k.shape[3]
    free = prompt_columns + max_new_tokens
    cache = jax.tree.map(
      lambda x: jnp.pad(x[:, image], ((0, 0),) * 3 + ((0, free), (0, 0))), prefixes
    )
    column = jnp.arange(prefix + free)
    padding_end = (prefix + prompt_columns - length)[:, None, None]
    stops = jnp.array(self._layout.stop_ids)
    extend: Any = partial(self.model.apply, {"params": params}, method="extend")

    def run(cache: Cache, text: jax.Array, start: Any) -> tuple[Any, Any, Cache]:
      own = start + jnp.arange(text.shape[1])
      mask = (column < prefix) | ((column >= padding_end) & (column <= own[:, None]))
      # The padding between prefix and prompt takes no positions.
      position = own - (prompt_columns - length)[:, None]
      logits, cache = extend(cache, text, position, mask, start)
      token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
      log_prob = logits.max(axis=-1) - jax.nn.logsumexp(logits, axis=-1)
      return token, log_prob, cache

    def more(state: Any) -> jax.Array:
      step, _, done, _, _, _ = state
      return (step < max_new_tokens) & ~done.all()

    def answer(state: Any) -> Any:
      step, token, done, out, total, cache = state
      start = prefix + prompt_columns + step - 1
      token, log_prob, cache = run(cache, token[:, None], start)
      token = jnp.where(done, self.tokenizer.pad_token_id, token)
      total += jnp.where(done, 0.0, log_prob)
      done |= jnp.isin(token, stops)
      return step + 1, token, done, out.at[:, step].set(token), total, cache

    token, log_prob, cache = run(cache, text, prefix)
    done = (length == 0) | jnp.isin(token, stops)
    out = jnp.full((rows, max_new_tokens), self.tokenizer.pad_token_id, jnp.int32)
    state = (1, token, done, out.at[:, 0].set(token), log_prob, cache)
    return jax.lax.while_loop(more, answer, state)[3:5]
