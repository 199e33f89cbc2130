"""Answers that go on together: rows of a grid, which all have said as many tokens.

    read    prefix │ question │ question │ question …    a line, an image's: one pass, and
              └────────┴─ answer ─┘                      no question sees another
    later   prefix │ padding │ question │ answer …       a row of its own

A line is read once, and all of its questions are first answered from what it left, which
is not copied for them. Answers that have not ended after a few tokens, from many lines, are
moved to a grid in which each has its own columns, and so on to longer and longer ones.
"""

from __future__ import annotations

from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp

from imax_jax.models import stops as stops_lib
from imax_jax.models import vlm
from imax_jax.models.block import Cache
from imax_jax.models.block import Caches
from imax_jax.models.block import Past
from imax_jax.models.stops import Stop
from imax_jax.models.vlm import Vlm


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
  """What the rows of a line share: M lines of J columns.

  caches: [L, M, K, J, d].
  position: int32[M, J], as in `schema.Batch`.
  segment: int32[M, J], likewise, -1 where padding is; None where all rows read all of it.
  """

  caches: Caches
  position: jax.Array
  segment: jax.Array | None


class Rows(NamedTuple):
  """One answer each, of at most A tokens so far, to a question of `asked` tokens.

  said: int32[M, Q, A].
  own: [L, M, K, Q, W + A, d], of the question, which ends at W, and of the tokens said;
    W is 0 where the question stands in the line.
  total: float32[M, Q], the sum of their log-probabilities.
  done: bool[M, Q].
  asked: int32[M, Q].
  segment: int32[M, Q], that of the question in the line.
  number: int32[M, Q], which decides what is drawn.
  """

  said: jax.Array
  own: Caches
  total: jax.Array
  done: jax.Array
  asked: jax.Array
  segment: jax.Array
  number: jax.Array


class Grid(NamedTuple):
  lines: Lines
  rows: Rows

  @property
  def room(self) -> int:
    """W, the columns of a question."""
    return int(self.rows.own[0].k.shape[-2] - self.rows.said.shape[-1])


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
  """What is compiled, anew for each size of a grid.

  Args:
    stops: what ends an answer.
    prefix: tokens before a question.
  """

  def __init__(self, model: Vlm, stops: tuple[Stop, ...], prefix: int) -> None:
    self._model, self._stops, self._prefix = model, stops, prefix
    self.read = jax.jit(self._read, static_argnames="columns")
    # On the devices of the grid that is moved from.
    self.empty = jax.jit(
      self._empty, static_argnames=("rows", "room", "columns"), keep_unused=True
    )
    self.move = jax.jit(self._move, donate_argnames="to")
    self.decode = jax.jit(self._decode, donate_argnames="rows")

  def _read(
    self,
    params: Any,
    batch: Any,
    last: jax.Array,
    asked: jax.Array,
    number: jax.Array,
    sampling: Sampling | None,
    *,
    columns: int,
  ) -> Grid:
    """Reads lines and says each row's first token.

    Args:
      batch: M rows of `schema.Batch`, each an image's prefix and its questions.
      last: int32[M, Q], where each question ends; -1 where there is none.
      asked, number: int32[M, Q], as in `Rows`.
      columns: A.
    """
    made: Any = self._model.apply(
      {"params": params}, batch, jnp.maximum(last, 0), method="prefill"
    )
    logits, cache = made
    token, log_prob = choose(logits, number, 0, sampling)
    caches: Caches = (cache,)
    if self._model.apart:
      caches = tuple(
        Cache(k[None], v[None]) for k, v in zip(cache.k, cache.v, strict=True)
      )
    depth, lines, heads, _, width = caches[0].k.shape
    own = jnp.zeros((depth, lines, heads, last.shape[1], columns, width), cache.k.dtype)
    segment = jnp.where(batch["image"] < 0, -1, batch["segment"])
    said = jnp.zeros((*last.shape, columns), jnp.int32)
    return Grid(
      Lines(caches, batch["position"], segment),
      Rows(
        said=said.at[..., 0].set(token),
        own=tuple(Cache(own, own) for _ in caches),
        total=log_prob,
        done=(last < 0) | stops_lib.ended(token, said, 0, self._stops),
        asked=asked,
        segment=jnp.take_along_axis(segment, jnp.maximum(last, 0), axis=1),
        number=number,
      ),
    )

  def _empty(self, like: Caches, *, rows: int, room: int, columns: int) -> Grid:
    """A grid of lines of a row each, all done; W and A are `room` and `columns`."""
    depth, _, heads, _, width = like[0].k.shape
    counts = jnp.zeros((rows, 1), jnp.int32)

    def empty(*columns: int) -> Caches:
      zeros = jnp.zeros((depth, rows, heads, *columns, width), like[0].k.dtype)
      return tuple(Cache(zeros, zeros) for _ in like)

    return Grid(
      Lines(empty(self._prefix), jnp.arange(self._prefix)[None], None),
      Rows(
        said=jnp.zeros((rows, 1, columns), jnp.int32),
        own=empty(1, room + columns),
        total=jnp.zeros((rows, 1), jnp.float32),
        done=jnp.ones((rows, 1), bool),
        asked=counts,
        segment=counts,
        number=counts,
      ),
    )

  def _move(
    self, to: Grid, source: Grid, place: jax.Array, count: Any, at: Any
  ) -> Grid:
    """`to` with the first `count` of some rows of `source`, from its line `at` on.

    Args:
      place: int32[3, R]: a row's line, its number there, and where in the line its
        question ends (for a `source` that was just read).
    """
    room = to.room

    def question(x: jax.Array, line: Any, last: Any) -> jax.Array:
      # Columns before a question belong to others; `Past.first` hides them.
      columns = jnp.maximum(last + jnp.arange(1 - room, 1), 0)
      return x[:, line][:, :, columns][:, None, :, None]

    def own(x: jax.Array, line: Any, row: Any) -> jax.Array:
      size = (x.shape[0], 1, x.shape[2], 1, *x.shape[4:])
      x = jax.lax.dynamic_slice(x, (0, line, 0, row, 0, 0), size)
      # Questions end at `room`; what is in front of the longest is cut off.
      return x[..., max(0, source.room - room) :, :]

    def put(whole: jax.Array, x: jax.Array, *start: Any) -> jax.Array:
      start += (0,) * (whole.ndim - len(start))
      return jax.lax.dynamic_update_slice(whole, x, start)

    def one(i: Any, to: Grid) -> Grid:
      line, row, last = place[:, i]

      def prefix(whole: jax.Array, x: jax.Array) -> jax.Array:
        x = jax.lax.dynamic_index_in_dim(x, line, 1)[..., : self._prefix, :]
        return put(whole, x, 0, at + i)

      def columns(whole: jax.Array, x: jax.Array, answer: jax.Array) -> jax.Array:
        if not source.room:
          whole = put(whole, question(x, line, last), 0, at + i)
        where = (0, at + i, 0, 0, max(0, room - source.room))
        return put(whole, own(answer, line, row), *where)

      values = {
        name: put(
          getattr(to.rows, name),
          getattr(source.rows, name)[line, row][None, None],
          at + i,
        )
        for name in ("said", "total", "done", "asked", "number")
      }
      caches = source.lines.caches
      rows = to.rows._replace(
        own=jax.tree.map(columns, to.rows.own, caches, source.rows.own), **values
      )
      shared = jax.tree.map(prefix, to.lines.caches, caches)
      return Grid(to.lines._replace(caches=shared), rows)

    moved: Grid = jax.lax.fori_loop(0, count, one, to)
    return moved

  def _decode(
    self, params: Any, lines: Lines, rows: Rows, step: Any, sampling: Sampling | None
  ) -> tuple[Rows, jax.Array]:
    """Says on until A tokens are said or all have ended.

    `step`, returned too, is how many tokens each row has said.
    """
    room = Grid(lines, rows).room
    if self._model.apart:
      params = vlm.by_layer(params)
    mask = None
    if lines.segment is not None:
      own = lines.segment[:, None] == rows.segment[..., None]
      mask = own | (lines.segment == 0)[:, None]

    def more(state: tuple[Rows, jax.Array]) -> jax.Array:
      rows, step = state
      return (step < rows.said.shape[-1]) & ~rows.done.all()

    def say(state: tuple[Rows, jax.Array]) -> tuple[Rows, jax.Array]:
      rows, step = state
      past = Past(
        lines.caches, lines.position, rows.own, room - rows.asked, room + step - 1
      )
      before = jax.lax.dynamic_index_in_dim(rows.said, step - 1, 2, keepdims=False)
      position = self._prefix + rows.asked + step - 1
      made: Any = self._model.apply(
        {"params": params}, past, before, position, mask, method="extend"
      )
      logits, own = made
      token, log_prob = choose(logits, rows.number, step, sampling)
      return rows._replace(
        said=jax.lax.dynamic_update_index_in_dim(rows.said, token, step, 2),
        own=own,
        total=rows.total + jnp.where(rows.done, 0.0, log_prob),
        done=rows.done | stops_lib.ended(token, rows.said, step, self._stops),
      ), step + 1

    found: Any = jax.lax.while_loop(more, say, (rows, jnp.asarray(step, jnp.int32)))
    return found
