"""A LLaMA-shaped decoder: RMSNorm, SwiGLU, rotary positions, grouped key/value heads."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from imax_jax.models import attention
from imax_jax.models.lora import Dense


class Cache(NamedTuple):
  """Keys and values of the tokens so far: each [L, B, K, J, d], J columns a row."""

  k: jax.Array
  v: jax.Array


class RmsNorm(nn.Module):
  eps: float

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, -1, keepdims=True) + self.eps)
    return (wide * scale).astype(x.dtype)


class Attention(nn.Module):
  num_heads: int
  num_kv_heads: int
  linear: Mapping[str, Any]

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    cache: Cache | None,
    layer: jax.Array,
    rotary: tuple[jax.Array, jax.Array],
    bias: jax.Array,
    start: jax.Array | int,
    deterministic: bool,
  ) -> tuple[jax.Array, Cache | None]:
    """x [B, T, D] -> the same, and the cache with x's keys in this layer's columns."""
    rows, tokens, width = x.shape
    dense: Any = partial(Dense, **self.linear)
    head_width = width // self.num_heads
    kv_width = self.num_kv_heads * head_width
    split = (rows, tokens, -1, head_width)
    q = dense(width, name="q")(x, deterministic).reshape(split)
    k = dense(kv_width, name="k")(x, deterministic).reshape(split)
    v = dense(kv_width, name="v")(x, deterministic).reshape(split)
    q, k = attention.rotate(q, rotary), attention.rotate(k, rotary)
    q, k, v = (heads.transpose(0, 2, 1, 3) for heads in (q, k, v))
    if cache is not None:
      # All layers' cache is carried whole, so that XLA writes these columns in place.
      at = (layer, 0, 0, start, 0)
      cache = Cache(
        jax.lax.dynamic_update_slice(cache.k, k[None].astype(cache.k.dtype), at),
        jax.lax.dynamic_update_slice(cache.v, v[None].astype(cache.v.dtype), at),
      )
      k, v = cache.k[layer], cache.v[layer]
    mixed = attention.attend(q, k, v, bias)
    mixed = mixed.transpose(0, 2, 1, 3).reshape(rows, tokens, width)
    return dense(width, name="o")(mixed, deterministic), cache


class Mlp(nn.Module):
  mlp_width: int
  linear: Mapping[str, Any]

  @nn.compact
  def __call__(self, x: jax.Array, deterministic: bool) -> jax.Array:
    dense: Any = partial(Dense, **self.linear)
    gate = dense(self.mlp_width, name="gate")(x, deterministic)
    up = dense(self.mlp_width, name="up")(x, deterministic)
    return dense(x.shape[-1], name="down")(nn.silu(gate) * up, deterministic)


class Block(nn.Module):
  """One layer. `deterministic` is a field, so that scan and remat see arrays only."""

  num_heads: int
  num_kv_heads: int
  mlp_width: int
  norm_eps: float
  linear: Mapping[str, Any]
  deterministic: bool

  @nn.compact
  def __call__(
    self,
    carry: tuple[jax.Array, Cache | None],
    layer: jax.Array,
    rotary: tuple[jax.Array, jax.Array],
    bias: jax.Array,
    start: jax.Array | int,
  ) -> tuple[tuple[jax.Array, Cache | None], None]:
    x, cache = carry
    y = RmsNorm(self.norm_eps, name="attn_norm")(x)
    attn = Attention(self.num_heads, self.num_kv_heads, self.linear, name="attn")
    y, cache = attn(y, cache, layer, rotary, bias, start, self.deterministic)
    x = x + y
    y = RmsNorm(self.norm_eps, name="mlp_norm")(x)
    y = Mlp(self.mlp_width, self.linear, name="mlp")(y, self.deterministic)
    return (x + y, cache), None


class Decoder(nn.Module):
  """Embeddings in, logits out. LoRA (`lora_rank` > 0) stands on all seven linears.

  Parameters: embed, layers/{attn/{q,k,v,o}, mlp/{gate,up,down}, attn_norm, mlp_norm}
  with a leading axis L, norm, and head unless `tied`.
  """

  width: int
  depth: int
  num_heads: int
  num_kv_heads: int
  mlp_width: int
  vocab_size: int
  rope_base: float
  norm_eps: float
  tied: bool = False
  lora_rank: int = 0
  lora_alpha: float = 16.0
  lora_dropout: float = 0.0
  fold: bool = False
  dtype: Any = "float32"
  remat: bool = False
  unroll: int = 1

  def setup(self) -> None:
    if self.width % self.num_heads or self.num_heads % self.num_kv_heads:
      raise ValueError(
        f"decoder: width={self.width} must be a multiple of num_heads={self.num_heads}, "
        f"and that of num_kv_heads={self.num_kv_heads}"
      )
    init = nn.initializers.normal(0.02)
    self.embedding = nn.Embed(
      self.vocab_size, self.width, dtype=self.dtype, embedding_init=init, name="embed"
    )
    self.final_norm = RmsNorm(self.norm_eps, name="norm")
    if not self.tied:
      self.to_logits = Dense(self.vocab_size, dtype=self.dtype, name="head")

  def embed(self, text: jax.Array) -> jax.Array:
    """int32[B, T] -> [B, T, D]."""
    return self.embedding(text)

  def head(self, x: jax.Array) -> jax.Array:
    """[..., D] after the last layer -> float32[..., V]."""
    x = self.final_norm(x)
    logits = self.embedding.attend(x) if self.tied else self.to_logits(x)
    return logits.astype(jnp.float32)

  def empty_cache(self, rows: int, columns: int) -> Cache:
    head_width = self.width // self.num_heads
    shape = (self.depth, rows, self.num_kv_heads, columns, head_width)
    return Cache(jnp.zeros(shape, self.dtype), jnp.zeros(shape, self.dtype))

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    position: jax.Array,
    mask: jax.Array,
    cache: Cache | None = None,
    start: jax.Array | int = 0,
    deterministic: bool = True,
  ) -> tuple[jax.Array, Any]:
    """x [B, T, D], position int32[B, T], mask bool[B, T, J] -> [B, T, D] before `head`.

    Without a cache, J is T. With one, x's keys and values are written into its columns
    `start` to `start` + T first, and J is its number of columns.
    """
    block = nn.remat(Block, prevent_cse=False) if self.remat else Block
    layers = nn.scan(
      block,
      variable_axes={"params": 0},
      split_rngs={"params": True, "dropout": True},
      in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast),
      length=self.depth,
      unroll=self.unroll,
    )
    linear = {
      "rank": self.lora_rank,
      "alpha": self.lora_alpha,
      "dropout": self.lora_dropout,
      "fold": self.fold,
      "dtype": self.dtype,
    }
    rotary = attention.rotary_table(
      position, self.width // self.num_heads, self.rope_base
    )
    sizes = (self.num_heads, self.num_kv_heads, self.mlp_width, self.norm_eps)
    stack = layers(*sizes, linear, deterministic, name="layers")
    index = jnp.arange(self.depth)
    (x, cache), _ = stack((x, cache), index, rotary, attention.mask_bias(mask), start)
    return x, cache
