"""The true Fisher information: gradients of answers that the model itself gives.

Eq. 2 takes its expectation over the model's own p(y | x). With the data's answers in its
place it is the "empirical" Fisher matrix, which the paper computes; the two part where the
model does not fit its data (Kunstner et al. 2019, arXiv 1905.12558). Here each entry's
answer is replaced by one drawn from the model, token after token until its end token, each
token given those drawn before it: a sample of the answer's whole distribution. (Tokens
drawn along the data's answer would be samples of something else: of next tokens after
prefixes that the model may never say.) An answer is cut at `max_new_tokens`, so that it is
the Fisher information of the first so many tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence
from typing import Any
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec

from imax_jax import mesh as mesh_lib
from imax_jax.data import packing
from imax_jax.models import stops as stops_lib
from imax_jax.models.block import Cache
from imax_jax.models.block import Past
from imax_jax.models.stops import Stop
from imax_jax.models.vlm import Vlm
from imax_jax.schema import Batch

NO_TOKEN = -1
_MULTIPLE = 64  # rows' lengths, so that few programs are compiled
# (weights, batch of one-entry rows, number) -> int32[B, A] tokens, NO_TOKEN behind the end.
Sample = Callable[[Any, Batch, int], np.ndarray]


class Answered:
  """Batches as they are but for their answers, which `sample` gives.

  Args:
    batches: of one-entry rows, by number.
    sample: (batch, its number) -> tokens.
  """

  def __init__(self, batches: Any, sample: Callable[[Batch, int], np.ndarray]) -> None:
    self._batches, self._sample = batches, sample

  def __len__(self) -> int:
    return len(self._batches)

  def __getitem__(self, number: int) -> Batch:
    batch = self._batches[number]
    return replace_answers(batch, self._sample(batch, number))


def prompt_lengths(batch: Batch) -> np.ndarray:
  """int64[B]: places before each row's answer; `loss_weight` begins one place earlier."""
  return np.argmax(np.asarray(batch["loss_weight"]) > 0, axis=1) + 1


def replace_answers(batch: Batch, answers: np.ndarray) -> Batch:
  """One-entry rows with other answers, int32[B, A], NO_TOKEN behind their end.

  Raises:
    ValueError: a row without a token.
  """
  starts, lengths = prompt_lengths(batch), (answers != NO_TOKEN).sum(axis=1)
  if not lengths.all():
    raise ValueError(
      f"fisher: {int((lengths == 0).sum())} sampled answers have no token"
    )
  rows = len(starts)
  longest = int((starts + lengths).max())
  size = (rows, -(-longest // _MULTIPLE) * _MULTIPLE)
  place = np.arange(size[1])
  is_prompt = place < starts[:, None]
  is_answer = ~is_prompt & (place < (starts + lengths)[:, None])

  def laid(name: str, filler: int) -> np.ndarray:
    """The prompt's values, and `filler` behind it."""
    old = np.asarray(batch[name])  # type: ignore[literal-required]
    wide = np.full(size, filler, old.dtype)
    width = min(size[1], old.shape[1])
    wide[:, :width] = old[:, :width]
    return np.where(is_prompt, wide, filler).astype(old.dtype)

  text, position = laid("text", 0), laid("position", 0)
  text[is_answer] = answers[answers != NO_TOKEN]  # row after row in both
  last = np.take_along_axis(position, starts[:, None] - 1, axis=1)
  position = np.where(is_answer, last + 1 + place - starts[:, None], position)
  owner = np.asarray(batch["image"]).max(axis=1)[:, None]
  predicts = (place >= starts[:, None] - 1) & (place < (starts + lengths)[:, None] - 1)
  weight = predicts.astype(np.float32)
  return cast(
    Batch,
    {
      **batch,
      "text": text,
      "slot": laid("slot", -1),
      "image": np.where(is_answer, owner, laid("image", -1)).astype(np.int32),
      "segment": np.where(is_answer, 1, laid("segment", 0)).astype(np.int32),
      "position": position.astype(np.int32),
      "loss_weight": weight,
      "supervised": packing.supervised(weight, rows, answers.shape[1]),
    },
  )


def make_sampler(
  model: Vlm, stops: Sequence[Stop], max_new_tokens: int, *, seed: int, mesh: Mesh
) -> Sample:
  """Ancestral sampling at temperature 1 of the whole vocabulary, for `Answered`.

  Args:
    stops: what ends an answer; it is part of it.
    seed: with a batch's number it decides the draws.
    mesh: rows are split over it; every process gets its own rows' answers.
  """
  whole = NamedSharding(mesh, PartitionSpec())

  def draw(params: Any, batch: Any, starts: jax.Array, key: jax.Array) -> jax.Array:
    rows, tokens = batch["text"].shape
    shown = jnp.arange(tokens) < starts[:, None]
    hidden = batch | {"image": jnp.where(shown, batch["image"], -1)}
    last = starts[:, None] - 1
    found: Any = model.apply({"params": params}, hidden, last, method="prefill")
    logits, shared = found
    layers, _, heads, _, width = shared.k.shape
    room = jnp.zeros((layers, rows, heads, 1, max_new_tokens, width), shared.k.dtype)
    position = jnp.take_along_axis(batch["position"], last, axis=1)
    none = jnp.zeros((rows, 1), jnp.int32)

    def step(state: Any) -> Any:
      number, logits, done, out, own = state
      said = jax.random.categorical(jax.random.fold_in(key, number), logits[:, 0])
      ends = stops_lib.ended(said, out, number, stops)
      out = out.at[:, number].set(jnp.where(done, NO_TOKEN, said))
      done |= ends
      past = Past((shared,), batch["position"], own, none, number)
      found: Any = model.apply(
        {"params": params}, past, said[:, None].astype(jnp.int32), position + 1 + number,
        shown[:, None], method="extend",
      )  # fmt: skip
      logits, own = found
      return number + 1, logits, done, out, own

    out = jnp.full((rows, max_new_tokens), NO_TOKEN, jnp.int32)
    state = (0, logits, jnp.zeros(rows, bool), out, (Cache(room, room),))
    return jax.lax.while_loop(
      lambda state: (state[0] < max_new_tokens) & ~state[2].all(), step, state
    )[3]

  drawn = jax.jit(draw, out_shardings=whole)

  def sample(params: Any, batch: Batch, number: int) -> np.ndarray:
    starts = prompt_lengths(batch)
    fed: Any = {**batch, "starts": starts.astype(np.int32)}
    fed.pop("supervised")
    placed = mesh_lib.put_batch(fed, mesh)
    starts_placed = placed.pop("starts")
    key = jax.random.fold_in(jax.random.key(seed), number)
    answers = np.asarray(drawn(params, placed, starts_placed, key))
    first = mesh_lib.row_share(mesh).process_index * len(starts)
    return answers[first : first + len(starts)]

  return sample
