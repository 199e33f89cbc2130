"""How many values of the decoder a token is multiplied with."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any
from typing import NamedTuple

import jax.numpy as jnp


class Values(NamedTuple):
  """Of the layers' kernels, which every token meets, and of the head, which only
  supervised ones do (a tied one is the embedding)."""

  layers: int
  head: int


def values_of(decoder: Mapping[str, Any], parameters: Mapping[str, Any]) -> Values:
  """Counts them.

  Args:
    decoder: the decoder's fields.
    parameters: {path: array or stand-in} of the model.
  """
  layers = sum(
    # NF4 keeps two values a byte.
    math.prod(leaf.shape) * (2 if leaf.dtype == jnp.uint8 else 1)
    for path, leaf in parameters.items()
    if re.fullmatch(r"decoder/layers/.*kernel", path)
  )
  return Values(layers, decoder["vocab_size"] * decoder["width"])
