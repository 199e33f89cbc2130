"""Where an answer that is being said ends: at a token, or at tokens in turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# A token, or tokens that follow each other.
Stop = int | tuple[int, ...]


def ended(
  token: jax.Array, said: jax.Array, number: Any, stops: Sequence[Stop]
) -> jax.Array:
  """bool[...]: whether this token, and those before it, end the answer.

  Args:
    token: int32[...], which was said just now.
    said: int32[..., A], what was said before it, at places 0 … number - 1.
    number: how many tokens that is. What was asked is no part of a stop.
  """
  sequences = _sequences(stops)
  alone = np.array([ids[0] for ids in sequences if len(ids) == 1], np.int32)
  found = jnp.isin(token, alone)
  for *before, last in sequences:
    whole = token == last
    for back, wanted in enumerate(reversed(before), start=1):
      place = jnp.maximum(number - back, 0)
      there = jax.lax.dynamic_index_in_dim(said, place, said.ndim - 1, keepdims=False)
      whole &= (there == wanted) & (number >= back)
    if before:
      found |= whole
  return found


def length(said: np.ndarray, stops: Sequence[Stop]) -> int:
  """How many of the tokens int[A] are said until the first stop ends, it included.

  All of them if none does.
  """
  ends = [
    end
    for ids in _sequences(stops)
    for end in range(len(ids), len(said) + 1)
    if tuple(said[end - len(ids) : end].tolist()) == ids
  ]
  return min(ends, default=len(said))


def _sequences(stops: Sequence[Stop]) -> list[tuple[int, ...]]:
  return [stop if isinstance(stop, tuple) else (stop,) for stop in stops]
