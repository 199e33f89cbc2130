"""Learned queries that read an image's features: BLIP-2's Q-Former without its text half.

queries [Q, D] ─norm─┐
                     ├─ self-attention ─ cross-attention ─ feed-forward ─▶ … ─▶ [N, Q, D]
memory [N, P, M] ────┴────────────────────────┘ of every `cross_every`-th layer

Blocks are BERT's: the norm stands behind each residual sum. Source: LAVIS' Qformer.py and
blip2.py (Li et al. 2023, section 3.1), as XrayGPT uses them; dropout plays no part there.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from imax_jax.models import attention
from imax_jax.models import storage
from imax_jax.models import vit
from imax_jax.models.lora import Dense


class Attention(nn.Module):
  """Who asks and who is read may be of different widths."""

  num_heads: int
  dense: Any

  @nn.compact
  def __call__(self, x: jax.Array, memory: jax.Array) -> jax.Array:
    """[N, Q, D], [N, J, M] -> [N, Q, D]."""
    images, _, width = x.shape

    def heads(name: str, read: jax.Array) -> jax.Array:
      made = self.dense(width, name=name)(read)
      return made.reshape(images, read.shape[1], self.num_heads, -1).swapaxes(1, 2)

    q, k, v = heads("q", x), heads("k", memory), heads("v", memory)
    mixed = attention.attend(q, k, v, None).swapaxes(1, 2).reshape(x.shape)
    return self.dense(width, name="out")(mixed)


class Layer(nn.Module):
  num_heads: int
  mlp_width: int
  norm_eps: float
  cross: bool
  dense: Any

  @nn.compact
  def __call__(self, x: jax.Array, memory: jax.Array) -> jax.Array:
    """[N, Q, D] -> the same; `memory` [N, P, M] is read where `cross` says so."""

    def add(name: str, x: jax.Array, more: jax.Array) -> jax.Array:
      return vit.layer_norm(name, self.norm_eps)(x + more.astype(jnp.float32))

    attend = partial(Attention, self.num_heads, self.dense)
    x = add("attn_norm", x, attend(name="attn")(x, x))
    if self.cross:
      x = add("cross_norm", x, attend(name="cross")(x, memory))
    y = nn.gelu(self.dense(self.mlp_width, name="up")(x), approximate=False)
    return add("mlp_norm", x, self.dense(x.shape[-1], name="down")(y))


class QFormer(nn.Module):
  """`queries` learned queries of `width`; layers 0, cross_every, … read the features.

  Matrix products run in `dtype`, the rest in float32.
  """

  queries: int
  width: int
  depth: int
  num_heads: int
  mlp_width: int
  cross_every: int = 2
  norm_eps: float = 1e-12
  dtype: Any = "float32"

  def __post_init__(self) -> None:
    sizes = (self.queries, self.depth, self.num_heads, self.cross_every)
    if min(sizes) < 1 or self.width % self.num_heads:
      raise ValueError(
        f"qformer: queries={self.queries}, depth={self.depth}, cross_every="
        f"{self.cross_every}: expected 1 or more, and width={self.width} a multiple of "
        f"num_heads={self.num_heads}"
      )
    storage.check_dtype("qformer", self.dtype)
    super().__post_init__()

  @nn.compact
  def __call__(self, memory: jax.Array) -> jax.Array:
    """[N, P, M] -> float32[N, queries, width]."""
    shape = (self.queries, self.width)
    queries = self.param("queries", nn.initializers.normal(0.02), shape)
    x = vit.layer_norm("norm", self.norm_eps)(queries)
    x = jnp.broadcast_to(x, (len(memory), *shape))
    dense = partial(Dense, use_bias=True, dtype=self.dtype)
    # Not scanned: layers differ, and all of them compile in a few seconds.
    for number in range(self.depth):
      x = Layer(
        num_heads=self.num_heads,
        mlp_width=self.mlp_width,
        norm_eps=self.norm_eps,
        cross=number % self.cross_every == 0,
        dense=dense,
        name=f"layers_{number}",
      )(x, memory)
    return x
