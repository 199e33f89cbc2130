"""Questions that are answered together: a grid of M lines, each an image with Q of them.

    line   prefix │ question │ question │ question │ padding     read by the whole line
    row                 └ its answer, token by token             read by itself

A line is computed once, in one pass, and never copied for its questions. All rows of a
grid have said as many tokens. When three quarters of them have ended, the others are packed
into a smaller grid.
"""

from __future__ import annotations

from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from imax_jax.models.block import Cache
from imax_jax.models.block import Past
from imax_jax.models.vlm import Vlm

# The sizes of grids are a quarter of each other, down to so many rows, and so are those of
# what is in them: a program is compiled for each size, and a few rows take as long as one.
STEP = 4
_SMALL = 32


class Sampling(NamedTuple):
  """Tokens are drawn from the `top_p` likeliest of the logits over `temperature`."""

  temperature: float = 1.0
  top_p: float = 1.0
  seed: int = 0

  def check(self) -> None:
    """Raises ValueError: a value out of its range."""
    if (
      not 0 < self.temperature < float("inf")
      or not 0 < self.top_p <= 1
      or not 0 <= self.seed < 2**31
    ):
      raise ValueError(
        f"sampling: temperature={self.temperature}, top_p={self.top_p}, seed="
        f"{self.seed}: expected temperature > 0, 0 < top_p <= 1 and 0 <= seed < 2^31; "
        "without sampling answers are greedy"
      )


class Lines(NamedTuple):
  """What the rows of a line share. J columns.

  cache: [L, M, K, J, d].
  position, segment: int32[M, J], as in `schema.Batch`; segment -1: padding.
  """

  cache: Cache
  position: jax.Array
  segment: jax.Array


class Rows(NamedTuple):
  """One answer each, of at most A tokens so far.

  said: int32[M, Q, A].
  own: [L, M, K, Q, A, d], of the tokens said.
  total: float32[M, Q], the sum of their log-probabilities.
  done: bool[M, Q].
  first: int32[M, Q], the position of an answer's first token.
  segment: int32[M, Q], that of its question in the line.
  number: int32[M, Q], which decides what is drawn.
  """

  said: jax.Array
  own: Cache
  total: jax.Array
  done: jax.Array
  first: jax.Array
  segment: jax.Array
  number: jax.Array


def choose(
  logits: jax.Array, number: jax.Array, step: Any, sampling: Sampling | None
) -> tuple[jax.Array, jax.Array]:
  """float32 logits[M, Q, V] -> tokens int32[M, Q] and their log-probabilities.

  What a row draws depends on the seed, its number and the step, not on its company. The
  log-probability is the model's own, whatever the temperature.
  """
  if sampling is None:
    token = jnp.argmax(logits, axis=-1)
  else:
    scaled = logits / sampling.temperature
    falling = -jnp.sort(-scaled, axis=-1)
    share = jax.nn.softmax(falling, axis=-1)
    # The likeliest always stays: nothing comes before it.
    stays = jnp.cumsum(share, axis=-1) - share < sampling.top_p
    least = jnp.where(stays, falling, jnp.inf).min(axis=-1, keepdims=True)

    def noise(number: jax.Array) -> jax.Array:
      key = jax.random.fold_in(jax.random.key(sampling.seed), number)
      return jax.random.gumbel(jax.random.fold_in(key, step), logits.shape[-1:])

    drawn = scaled + jax.vmap(jax.vmap(noise))(number)
    token = jnp.argmax(jnp.where(scaled >= least, drawn, -jnp.inf), axis=-1)
  picked = jnp.take_along_axis(logits, token[..., None], axis=-1)[..., 0]
  return token.astype(jnp.int32), picked - jax.nn.logsumexp(logits, axis=-1)


class Programs:
  """What is compiled, anew for each size of a grid. `stops`: ids that end an answer."""

  def __init__(self, model: Vlm, stops: tuple[int, ...]) -> None:
    self._model, self._stops = model, np.array(stops, np.int32)
    self.prefill = jax.jit(self._prefill, static_argnames="columns")
    self.decode = jax.jit(self._decode, donate_argnames="rows")
    self.pack = jax.jit(self._pack, static_argnames="columns")

  def _is_end(self, token: jax.Array) -> jax.Array:
    return jnp.isin(token, self._stops)

  def _prefill(
    self,
    params: Any,
    batch: Any,
    last: jax.Array,
    number: jax.Array,
    sampling: Sampling | None,
    *,
    columns: int,
  ) -> tuple[Lines, Rows]:
    """Reads lines and says each row's first token.

    Args:
      batch: M rows of `schema.Batch`, each an image's prefix and its questions.
      last: int32[M, Q], where each question ends; -1 where there is none.
      number: int32[M, Q].
      columns: A.
    """
    made: Any = self._model.apply(
      {"params": params}, batch, jnp.maximum(last, 0), method="prefill"
    )
    logits, cache = made

    def at_last(x: jax.Array) -> jax.Array:
      return jnp.take_along_axis(x, jnp.maximum(last, 0), axis=1)

    token, log_prob = choose(logits, number, 0, sampling)
    depth, lines, heads, _, width = cache.k.shape
    own = jnp.zeros((depth, lines, heads, last.shape[1], columns, width), cache.k.dtype)
    said = jnp.zeros((*last.shape, columns), jnp.int32).at[..., 0].set(token)
    segment = jnp.where(batch["image"] < 0, -1, batch["segment"])
    return Lines(cache, batch["position"], segment), Rows(
      said,
      Cache(own, own),
      log_prob,
      (last < 0) | self._is_end(token),
      at_last(batch["position"]) + 1,
      at_last(segment),
      number,
    )

  def _decode(
    self,
    params: Any,
    lines: Lines,
    rows: Rows,
    step: Any,
    fewer: Any,
    sampling: Sampling | None,
  ) -> tuple[Rows, jax.Array]:
    """Says on until no more than `fewer` rows go on, or A tokens are said.

    `step`, returned too, is how many tokens each row has said.
    """
    own = lines.segment[:, None] == rows.segment[..., None]
    mask = own | (lines.segment == 0)[:, None]

    def more(state: tuple[Rows, jax.Array]) -> jax.Array:
      rows, step = state
      return (step < rows.said.shape[-1]) & ((~rows.done).sum() > fewer)

    def say(state: tuple[Rows, jax.Array]) -> tuple[Rows, jax.Array]:
      rows, step = state
      past = Past(lines.cache, lines.position, rows.own, step - 1)
      before = jax.lax.dynamic_index_in_dim(rows.said, step - 1, 2, keepdims=False)
      made: Any = self._model.apply(
        {"params": params}, past, before, rows.first + step - 1, mask, method="extend"
      )
      logits, own = made
      token, log_prob = choose(logits, rows.number, step, sampling)
      return rows._replace(
        said=jax.lax.dynamic_update_index_in_dim(rows.said, token, step, 2),
        own=own,
        total=rows.total + jnp.where(rows.done, 0.0, log_prob),
        done=rows.done | self._is_end(token),
      ), step + 1

    found: Any = jax.lax.while_loop(more, say, (rows, jnp.asarray(step, jnp.int32)))
    return found

  def _pack(
    self, lines: Lines, rows: Rows, line: jax.Array, row: jax.Array, *, columns: int
  ) -> tuple[Lines, Rows]:
    """The grid of other lines and rows.

    Args:
      line: int32[M'], which line stands where.
      row: int32[M', Q'], which of its rows; -1: none.
      columns: A', no less than A.
    """
    kept, more = jnp.maximum(row, 0), columns - rows.said.shape[-1]

    def own(x: jax.Array) -> jax.Array:
      x = jnp.take_along_axis(x[:, line], kept[None, :, None, :, None, None], axis=3)
      return jnp.pad(x, ((0, 0),) * 4 + ((0, more), (0, 0)))

    picked = {
      name: jnp.take_along_axis(getattr(rows, name)[line], kept, axis=1)
      for name in ("total", "done", "first", "segment", "number")
    }
    said = jnp.take_along_axis(rows.said[line], kept[..., None], axis=1)
    picked["done"] |= row < 0
    return Lines(
      Cache(lines.cache.k[:, line], lines.cache.v[:, line]),
      lines.position[line],
      lines.segment[line],
    ), Rows(
      said=jnp.pad(said, ((0, 0), (0, 0), (0, more))),
      own=Cache(own(rows.own.k), own(rows.own.v)),
      **picked,
    )


def fewer(alive: np.ndarray) -> int:
  """How many rows of bool[M, Q] may still go on when the grid is packed."""
  return alive.size // STEP if alive.size > _SMALL else 0


def stepped(count: int) -> int:
  """The next power of `STEP`."""
  size = 1
  while size < count:
    size *= STEP
  return size


def packed(alive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """bool[M, Q] -> (line int32[M'], row int32[M', Q']): the smallest grid that holds them.

  Of the grids of so many rows the one with the fewest lines; where none is smaller, the
  same.
  """
  size, count = alive.size, alive.sum(1)
  while size > _SMALL and count.sum() <= size // STEP:
    size //= STEP
  if size == alive.size:
    lines, questions = alive.shape
    return np.arange(lines), np.where(alive, np.arange(questions), -1)
  questions = stepped(alive.shape[1])
  while questions > size or (-(-count // questions)).sum() > size // questions:
    questions //= STEP
  line = np.zeros(size // questions, np.int32)
  row = np.full((size // questions, questions), -1, np.int32)
  at = 0
  for number, those in enumerate(alive):
    places = np.flatnonzero(those)
    for start in range(0, len(places), questions):
      part = places[start : start + questions]
      line[at], row[at, : len(part)] = number, part
      at += 1
  return line, row
