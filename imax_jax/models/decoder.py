"""A family of decoders: RMSNorm, SwiGLU, rotary positions, grouped key/value heads.

LLaMA, Vicuna, Mistral, Qwen2.5, Phi and SmolLM2 are rows of `zoo`. A row says which heads
share keys, whether queries, keys and values have biases, whether projections are fused
(Phi's `qkv` and `gate_up`), whether the head is the embedding, and how far back a token
looks. Source: transformers' modeling_llama.py, modeling_qwen2.py and modeling_phi3.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from imax_jax import mesh as mesh_lib
from imax_jax.models import attention
from imax_jax.models import storage
from imax_jax.models import taps
from imax_jax.models.lora import Dense


class Cache(NamedTuple):
  """Keys and values of the tokens so far: each [L, B, K, J, d], J columns a row."""

  k: jax.Array
  v: jax.Array


class RmsNorm(nn.Module):
  eps: float

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """float32[..., D] -> the same; the layer that reads it narrows it."""
    scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, -1, keepdims=True) + self.eps)
    return wide * scale


class Linears(NamedTuple):
  """The linear layers of a block: all alike, but LoRA stands on those that match.

  `targets` is a regular expression over their paths: "attn/q", "mlp/down".
  """

  fields: tuple[tuple[str, Any], ...]
  rank: int
  targets: str

  def __call__(self, path: str, features: int, *, use_bias: bool = False) -> Dense:
    rank = self.rank if re.fullmatch(self.targets, path) else 0
    name = path.rpartition("/")[2]
    return Dense(features, use_bias, rank, **dict(self.fields), name=name)


class Attention(nn.Module):
  num_heads: int
  num_kv_heads: int
  head_width: int
  bias: bool
  fused: bool
  linear: Linears

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
    q, k, v = (
      part.reshape(rows, tokens, -1, self.head_width)
      for part in self._project(x, deterministic)
    )
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
    attend = attention.attend_causal if cache is None else attention.attend
    mixed = attend(q, k, v, bias)
    mixed = mixed.transpose(0, 2, 1, 3).reshape(rows, tokens, -1)
    return self.linear("attn/o", width)(mixed, deterministic), cache

  def _project(self, x: jax.Array, deterministic: bool) -> list[jax.Array]:
    """Queries, keys and values, each [B, T, heads · d]."""
    q_width = self.num_heads * self.head_width
    kv_width = self.num_kv_heads * self.head_width

    def dense(path: str, features: int) -> jax.Array:
      return self.linear(path, features, use_bias=self.bias)(x, deterministic)

    if self.fused:
      fused = dense("attn/qkv", q_width + 2 * kv_width)
      return jnp.split(fused, (q_width, q_width + kv_width), axis=-1)
    widths = {"q": q_width, "k": kv_width, "v": kv_width}
    return [dense(f"attn/{name}", width) for name, width in widths.items()]


class Mlp(nn.Module):
  mlp_width: int
  fused: bool
  linear: Linears

  @nn.compact
  def __call__(self, x: jax.Array, deterministic: bool) -> jax.Array:
    if self.fused:
      both = self.linear("mlp/gate_up", 2 * self.mlp_width)(x, deterministic)
      gate, up = jnp.split(both, 2, axis=-1)
    else:
      gate = self.linear("mlp/gate", self.mlp_width)(x, deterministic)
      up = self.linear("mlp/up", self.mlp_width)(x, deterministic)
    return self.linear("mlp/down", x.shape[-1])(nn.silu(gate) * up, deterministic)


class Block(nn.Module):
  """One layer. `deterministic` is a field, so that scan and remat see arrays only."""

  attention: Mapping[str, Any]
  mlp_width: int
  fused: bool
  norm_eps: float
  linear: Linears
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
    if cache is None:
      x = mesh_lib.lay_rows(x)
    y = RmsNorm(self.norm_eps, name="attn_norm")(x)
    attn = Attention(**self.attention, linear=self.linear, name="attn")
    y, cache = attn(y, cache, layer, rotary, bias, start, self.deterministic)
    x = x + y
    y = RmsNorm(self.norm_eps, name="mlp_norm")(x)
    y = Mlp(self.mlp_width, self.fused, self.linear, name="mlp")(y, self.deterministic)
    return (x + y, cache), None


class Decoder(nn.Module):
  """Embeddings in, logits out; the residual stream and the norms are float32.

  Parameters: embed, layers/{attn/{q,k,v,o}, mlp/{gate,up,down}, attn_norm, mlp_norm}
  with a leading axis L, norm, and head unless `tied`; layers/attn/qkv and mlp/gate_up
  where `fused`.

  Args:
    head_width: d; 0 is width / num_heads.
    window: a token attends to so many tokens, itself included; 0: to all before it.
    lora_targets: the linears that a LoRA pair of `lora_rank` stands on, a regular
      expression over "attn/q", "attn/k", "attn/v", "attn/o", "mlp/gate", "mlp/up" and
      "mlp/down", or "attn/qkv", "attn/o", "mlp/gate_up" and "mlp/down".
    remat: what a layer keeps for the way back (`storage.keep`).
    kernel_dtype: how the layers' kernels are kept (`storage`); embedding and head are
      bfloat16 where they are integers.
  """

  width: int
  depth: int
  num_heads: int
  num_kv_heads: int
  mlp_width: int
  vocab_size: int
  rope_base: float
  norm_eps: float
  head_width: int = 0
  qkv_bias: bool = False
  fused: bool = False
  tied: bool = False
  window: int = 0
  lora_rank: int = 0
  lora_alpha: float = 16.0
  lora_dropout: float = 0.0
  lora_targets: str = ".*"
  fold: bool = False
  dtype: Any = "float32"
  kernel_dtype: str = "float32"
  remat: str = ""
  unroll: int = 1

  @property
  def linears(self) -> tuple[str, ...]:
    """Paths of a block's linear layers."""
    attn = ("qkv",) if self.fused else ("q", "k", "v")
    mlp = ("gate_up",) if self.fused else ("gate", "up")
    return (
      *(f"attn/{name}" for name in (*attn, "o")), *(f"mlp/{n}" for n in (*mlp, "down"))
    )  # fmt: skip

  @property
  def _head_width(self) -> int:
    return self.head_width or self.width // self.num_heads

  def setup(self) -> None:
    if (
      not self.head_width and self.width % self.num_heads
    ) or self.num_heads % self.num_kv_heads:
      raise ValueError(
        f"decoder: width={self.width} must be a multiple of num_heads={self.num_heads}, "
        f"and that of num_kv_heads={self.num_kv_heads}"
      )
    storage.check_dtype("decoder", self.dtype)
    self._check_lora()
    init = nn.initializers.normal(0.02)
    kept = storage.float_dtype(self.kernel_dtype)
    self.embedding = nn.Embed(
      self.vocab_size,
      self.width,
      dtype=self.dtype,
      param_dtype=jnp.dtype(kept),
      embedding_init=init,
      name="embed",
    )
    self.final_norm = RmsNorm(self.norm_eps, name="norm")
    if not self.tied:
      self.to_logits = Dense(
        self.vocab_size, dtype=self.dtype, kernel_dtype=kept, name="head"
      )

  def _check_lora(self) -> None:
    if self.lora_rank < 0 or self.lora_alpha <= 0 or not 0 <= self.lora_dropout < 1:
      raise ValueError(
        f"decoder: lora_rank={self.lora_rank}, lora_alpha={self.lora_alpha}, lora_dropout="
        f"{self.lora_dropout}: expected rank >= 0, alpha > 0 and 0 <= dropout < 1"
      )
    try:
      targets = [path for path in self.linears if re.fullmatch(self.lora_targets, path)]
    except re.error as error:
      raise ValueError(
        f"decoder: lora_targets={self.lora_targets!r} is no regular expression ({error})"
      ) from error
    if self.lora_rank and not targets:
      raise ValueError(
        f"decoder: lora_targets={self.lora_targets!r} matches none of {self.linears}"
      )

  def embed(self, text: jax.Array) -> jax.Array:
    """int32[B, T] -> [B, T, D]."""
    return self.embedding(text)

  def head(self, x: jax.Array) -> jax.Array:
    """[..., D] after the last layer -> float32[..., V]."""
    x = self.final_norm(x)
    logits = self.embedding.attend(x) if self.tied else self.to_logits(x)
    return logits.astype(jnp.float32)

  def empty_cache(self, rows: int, columns: int) -> Cache:
    shape = (self.depth, rows, self.num_kv_heads, columns, self._head_width)
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

    Raises:
      ValueError: a cache of more columns than `window`.
    """
    block = taps.behind(Block) if self.has_variable(taps.NAME, "layers") else Block
    layers = nn.scan(
      storage.keep(block, self.remat),
      variable_axes={"params": 0, taps.NAME: 0},
      split_rngs={"params": True, "dropout": True},
      in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast),
      length=self.depth,
      unroll=self.unroll,
    )
    heads = {
      "num_heads": self.num_heads,
      "num_kv_heads": self.num_kv_heads,
      "head_width": self._head_width,
      "bias": self.qkv_bias,
      "fused": self.fused,
    }
    linear = Linears(
      (
        ("alpha", self.lora_alpha),
        ("dropout", self.lora_dropout),
        ("fold", self.fold),
        ("dtype", self.dtype),
        ("kernel_dtype", self.kernel_dtype),
      ),
      self.lora_rank,
      self.lora_targets,
    )
    rotary = attention.rotary_table(position, self._head_width, self.rope_base)
    bias = attention.mask_bias(self._near(mask, position, cached=cache is not None))
    stack = layers(
      attention=heads,
      mlp_width=self.mlp_width,
      fused=self.fused,
      norm_eps=self.norm_eps,
      linear=linear,
      deterministic=deterministic,
      name="layers",
    )
    index = jnp.arange(self.depth)
    x = x.astype(jnp.float32)
    (x, cache), _ = stack((x, cache), index, rotary, bias, start)
    return x, cache

  def _near(self, mask: jax.Array, position: jax.Array, *, cached: bool) -> jax.Array:
    """The mask less the tokens that are too far back."""
    if not self.window:
      return mask
    if not cached:
      return mask & (position[:, :, None] - position[:, None, :] < self.window)
    # The cache does not know its tokens' positions; with no more of them than this the
    # window hides none.
    if mask.shape[-1] > self.window:
      raise ValueError(
        f"decoder: {mask.shape[-1]} columns of prefix, prompt and answer, but a token "
        f"attends to {self.window}; shorten them"
      )
    return mask
