"""The frozen encoder by itself: what makes features, and what they are known by."""

from __future__ import annotations

import math
from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from imax_jax import mesh as mesh_lib
from imax_jax import tree as tree_lib
from imax_jax.data import features
from imax_jax.parameters import Parameters

AT_ONCE = 64  # images that are decoded, encoded and written together


def make(parameters: Parameters, dtype: Any) -> Callable[[np.ndarray], np.ndarray]:
  """uint8[n, H, W, C] -> `dtype`[n, P, D], on the devices of `parameters`.

  For n up to `AT_ONCE`; fewer are padded, so that it is compiled once.
  """
  where = mesh_lib.row_sharding(parameters.mesh)
  shards = mesh_lib.num_row_shards(parameters.mesh)
  rows = shards * math.ceil(AT_ONCE / shards)
  params = {"encoder": parameters.init(0)["encoder"]}
  model = parameters.model

  def apply(params: Any, pixels: jax.Array) -> jax.Array:
    found: Any = model.apply({"params": params}, pixels, method="encode")
    return found.astype(dtype)

  run = jax.jit(apply)

  def encode(pixels: np.ndarray) -> np.ndarray:
    padded = np.zeros((rows, *pixels.shape[1:]), pixels.dtype)
    padded[: len(pixels)] = pixels
    return np.asarray(run(params, jax.device_put(padded, where)))[: len(pixels)]

  return encode


def key_of(parameters: Parameters, fields: Mapping[str, Any]) -> str:
  """`features.encoder_key` of the weights that `make` runs. Reads them all."""
  flat = tree_lib.flatten(parameters.init(0)["encoder"])
  return features.encoder_key(
    fields, {path: np.asarray(leaf) for path, leaf in flat.items()}
  )
