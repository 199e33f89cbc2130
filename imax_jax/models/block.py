"""One layer of a decoder, and what it remembers of the tokens it has seen."""

from __future__ import annotations

import re
from collections.abc import Callable
from collections.abc import Mapping
from functools import partial
from typing import Any
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from imax_jax import mesh as mesh_lib
from imax_jax.models import attention
from imax_jax.models.lora import Dense


class Cache(NamedTuple):
  """Keys and values of tokens: each [L, N, K, J, d], J columns a row."""

  k: jax.Array
  v: jax.Array


# Of all layers, [L, …]; or of each by itself, [1, …], where `Decoder.apart`.
Caches = tuple[Cache, ...]


class Past(NamedTuple):
  """What Q continuations of each of N rows look back on; all have said as many tokens.

  shared: [L, N, K, J, d], of the row: what all of its continuations read.
  position: int32[N, J], the rotary positions of its columns.
  own: [L, N, K, Q, A, d], of each continuation's own tokens. Room for A of them.
  first: int32[N, Q], the first of the A columns that is the continuation's.
  step: the column of the next; those from `first` to it are there.
  """

  shared: Caches
  position: jax.Array
  own: Caches
  first: jax.Array
  step: jax.Array | int


class View(NamedTuple):
  """How a layer looks around: one of two, where not all layers do alike.

  rotary: `attention.rotary_table`.
  bias: what is added to the scores; with a past, of its shared and of its own columns.
  """

  rotary: tuple[jax.Array, jax.Array]
  bias: Any


def view_of(views: tuple[View, ...], which: jax.Array) -> View:
  """The only one, or the second where `which` is true."""
  if len(views) == 1:
    return views[0]
  found: View = jax.tree.map(lambda a, b: jnp.where(which, b, a), *views)
  return found


ACTIVATIONS: dict[str, Any] = {
  "silu": nn.silu,
  "gelu_tanh": partial(nn.gelu, approximate=True),
}


class RmsNorm(nn.Module):
  """With `offset` the weights are 1 + scale, as Gemma's files keep them."""

  eps: float
  offset: bool = False

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """float32[..., D] -> the same; the layer that reads it narrows it."""
    start = nn.initializers.zeros if self.offset else nn.initializers.ones
    scale = self.param("scale", start, (x.shape[-1],))
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, -1, keepdims=True) + self.eps)
    return wide * (1 + scale if self.offset else scale)


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
  """`norm` makes the norms of queries and keys, if they have one; `ahead` and `scale` are
  `attention`'s."""

  num_heads: int
  num_kv_heads: int
  head_width: int
  bias: bool
  fused: bool
  scale: float
  ahead: int
  norm: Callable[..., RmsNorm] | None
  linear: Linears

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    view: View,
    deterministic: bool,
    layer: jax.Array,
    shared: Cache | None,
    own: Cache | None,
    step: jax.Array | int,
  ) -> tuple[jax.Array, Cache | None, Cache]:
    """x [B, T, D] -> the same, `own` with x's keys in this layer, x's keys and values.

    `shared` is this layer's, `own` that of all layers; without them x sees itself only.
    """
    rows, tokens, width = x.shape
    q, k, v = (
      part.reshape(rows, tokens, -1, self.head_width)
      for part in self._project(x, deterministic)
    )
    if self.norm:
      q, k = (
        self.norm(name=f"{name}_norm")(heads).astype(heads.dtype)
        for name, heads in (("q", q), ("k", k))
      )
    q, k = attention.rotate(q, view.rotary), attention.rotate(k, view.rotary)
    q, k, v = (heads.transpose(0, 2, 1, 3) for heads in (q, k, v))
    if shared is None or own is None:
      mixed = attention.attend_causal(
        q, k, v, view.bias, ahead=self.ahead, scale=self.scale
      )
    else:
      mixed = attention.attend_both(
        q, (k, v), shared, (own.k[layer], own.v[layer]), view.bias, scale=self.scale
      )
      # XLA writes them in place if it knows that the old ones have been read by then; it
      # drops a barrier before it asks.
      read = 0 * mixed[:, :: self.num_heads // self.num_kv_heads]
      k, v = k + read, v + read
      at = (layer, 0, 0, 0, step, 0)
      own = Cache(
        jax.lax.dynamic_update_slice(own.k, k[None, ..., None, :], at),
        jax.lax.dynamic_update_slice(own.v, v[None, ..., None, :], at),
      )
    mixed = mixed.transpose(0, 2, 1, 3).reshape(rows, tokens, -1)
    return self.linear("attn/o", width)(mixed, deterministic), own, Cache(k, v)

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
  activation: str
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
    act = ACTIVATIONS[self.activation]
    return self.linear("mlp/down", x.shape[-1])(act(gate) * up, deterministic)


class Block(nn.Module):
  """One layer. `deterministic` is a field, so that scan and remat see arrays only.

  With `post_norms` what attention and MLP give is normed too before it is added.
  """

  attention: Mapping[str, Any]
  mlp: Mapping[str, Any]
  norm: Callable[..., RmsNorm]
  post_norms: bool
  linear: Linears
  deterministic: bool
  remember: bool

  @nn.compact
  def __call__(
    self,
    carry: tuple[jax.Array, Cache | None],
    layer: jax.Array,
    which: jax.Array,
    shared: Cache | None,
    views: tuple[View, ...],
    step: jax.Array | int,
  ) -> tuple[tuple[jax.Array, Cache | None], Cache | None]:
    """`layer` is its place in `own`, `which` its view's number."""
    x, own = carry
    if own is None and not self.remember:
      x = mesh_lib.lay_rows(x)
    y = self.norm(name="attn_norm")(x)
    attn = Attention(**self.attention, linear=self.linear, name="attn")
    view = view_of(views, which)
    y, own, made = attn(y, view, self.deterministic, layer, shared, own, step)
    x = x + (self.norm(name="attn_post_norm")(y) if self.post_norms else y)
    y = self.norm(name="mlp_norm")(x)
    y = Mlp(**self.mlp, linear=self.linear, name="mlp")(y, self.deterministic)
    x = x + (self.norm(name="mlp_post_norm")(y) if self.post_norms else y)
    return (x, own), made if self.remember else None
