"""A family of decoders: RMSNorm, a gated MLP, rotary positions, grouped key/value heads.

LLaMA, Vicuna, Mistral, Qwen2.5, Phi, SmolLM2 and Gemma 3 are rows of `zoo`. A row says
which heads share keys, whether queries, keys and values have biases, whether projections
are fused (Phi's `qkv` and `gate_up`), whether the head is the embedding, how far back a
token looks, and what Gemma has beside: more norms, and layers of two kinds. Source:
transformers' modeling_llama.py, modeling_qwen2.py, modeling_phi3.py, modeling_gemma3.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from imax_jax.models import attention
from imax_jax.models import storage
from imax_jax.models import taps
from imax_jax.models.block import ACTIVATIONS
from imax_jax.models.block import Block
from imax_jax.models.block import Cache
from imax_jax.models.block import Linears
from imax_jax.models.block import Past
from imax_jax.models.block import RmsNorm
from imax_jax.models.block import View
from imax_jax.models.lora import Dense


class Decoder(nn.Module):
  """Embeddings in, logits out; the residual stream and the norms are float32.

  Parameters: embed, layers/{attn/{q,k,v,o}, mlp/{gate,up,down}, attn_norm, mlp_norm}
  with a leading axis L, norm, and head unless `tied`; layers/attn/qkv and mlp/gate_up
  where `fused`; layers/attn/{q_norm,k_norm} where `qk_norm`, layers/{attn_post_norm,
  mlp_post_norm} where `post_norms`.

  Args:
    head_width: d; 0 is width / num_heads.
    window: a token attends to so many tokens, itself included; 0: to all before it.
    global_every: n: each n-th layer sees everything before it and turns by `rope_base`;
      the others have the window and turn by `local_rope_base`. 0: all have both alike.
    rope_factor: linear scaling of what turns by `rope_base`.
    query_scale: of the scores; 0 is 1 / sqrt(d).
    activation: of the gate, "silu" or "gelu_tanh".
    embed_scale: embedded text, not image tokens, is multiplied by sqrt(width).
    norm_offset: a norm's weights are 1 + its parameter.
    qk_norm: queries and keys are normed, each head by itself.
    post_norms: what attention and MLP give is normed too.
    image_both_ways: tokens of an image see those behind them too (`Vlm` asks for it).
    lora_targets: the linears that a LoRA pair of `lora_rank` stands on, a regular
      expression over "attn/q", "attn/k", "attn/v", "attn/o", "mlp/gate", "mlp/up" and
      "mlp/down", or "attn/qkv", "attn/o", "mlp/gate_up" and "mlp/down".
    lora_experts: k > 0 makes the pair H-LoRA: k experts of rank `lora_rank` / k.
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
  global_every: int = 0
  local_rope_base: float = 1e4
  rope_factor: float = 1.0
  query_scale: float = 0.0
  activation: str = "silu"
  embed_scale: bool = False
  norm_offset: bool = False
  qk_norm: bool = False
  post_norms: bool = False
  image_both_ways: bool = False
  lora_rank: int = 0
  lora_alpha: float = 16.0
  lora_dropout: float = 0.0
  lora_targets: str = ".*"
  lora_experts: int = 0
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
  def apart(self) -> bool:
    """Whether layers read a past one by one, with weights and caches of their own.

    Cut out of a stack, both would be copied for each token: XLA can not multiply by a
    part of an array.
    """
    return 1 < self.depth <= self.unroll

  @property
  def _head_width(self) -> int:
    return self.head_width or self.width // self.num_heads

  @property
  def _norm(self) -> Any:
    return partial(RmsNorm, self.norm_eps, self.norm_offset)

  def setup(self) -> None:
    if (
      not self.head_width and self.width % self.num_heads
    ) or self.num_heads % self.num_kv_heads:
      raise ValueError(
        f"decoder: width={self.width} must be a multiple of num_heads={self.num_heads}, "
        f"and that of num_kv_heads={self.num_kv_heads}"
      )
    storage.check_dtype("decoder", self.dtype)
    self._check_looks()
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
    self.final_norm = self._norm(name="norm")
    if not self.tied:
      self.to_logits = Dense(
        self.vocab_size, dtype=self.dtype, kernel_dtype=kept, name="head"
      )

  def _check_looks(self) -> None:
    if self.activation not in ACTIVATIONS:
      raise ValueError(
        f"decoder: activation {self.activation!r}, expected one of {list(ACTIVATIONS)}"
      )
    if self.global_every < 0 or (self.global_every and self.window <= 0):
      raise ValueError(
        f"decoder: global_every={self.global_every}, window={self.window}: expected "
        "global_every >= 0, and a window for the layers between"
      )
    positive = ("rope_base", "local_rope_base", "rope_factor")
    wrong = [name for name in positive if getattr(self, name) <= 0]
    wrong += ["query_scale"] * (self.query_scale < 0)
    if wrong:
      said = ", ".join(f"{name}={getattr(self, name)}" for name in wrong)
      raise ValueError(
        f"decoder: {said}: expected above 0 (query_scale 0: 1 / sqrt(d))"
      )

  def _check_lora(self) -> None:
    if self.lora_rank < 0 or self.lora_alpha <= 0 or not 0 <= self.lora_dropout < 1:
      raise ValueError(
        f"decoder: lora_rank={self.lora_rank}, lora_alpha={self.lora_alpha}, lora_dropout="
        f"{self.lora_dropout}: expected rank >= 0, alpha > 0 and 0 <= dropout < 1"
      )
    k = self.lora_experts
    if k and (k < 0 or not self.lora_rank or self.lora_rank % k or self.fold):
      raise ValueError(
        f"decoder: lora_experts={k} of lora_rank={self.lora_rank}, fold={self.fold}: "
        "expected a rank that is a multiple of the experts, and fold=False, since no one "
        "kernel holds what each token weighs by itself"
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
    x = self.embedding(text)
    # Rounded as the embedding is: in bfloat16 the square root of 2560 is 50.5.
    return x * jnp.asarray(self.width**0.5, x.dtype) if self.embed_scale else x

  def head(self, x: jax.Array) -> jax.Array:
    """[..., D] after the last layer -> float32[..., V]."""
    x = self.final_norm(x)
    logits = self.embedding.attend(x) if self.tied else self.to_logits(x)
    return logits.astype(jnp.float32)

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    position: jax.Array,
    mask: jax.Array | None,
    past: Past | None = None,
    *,
    ahead: int = 0,
    remember: bool = False,
    deterministic: bool = True,
  ) -> tuple[jax.Array, Any]:
    """x [B, T, D], position int32[B, T] -> [B, T, D] before `head`, and a cache.

    Without a past, mask is bool[B, T, T], in which no token sees one more than `ahead`
    places behind it, and the cache the tokens' own keys and values if they are to be
    remembered, else None. With one, x holds the next token of each of
    N rows' Q continuations, [N, Q, D]; mask bool[N, Q, J] says which columns of its row
    each reads (None: all), and the cache is `past.own` with theirs added.
    """
    views, x = self._views(mask, position, past), x.astype(jnp.float32)
    fields = self._fields(ahead, remember, deterministic)
    index = jnp.arange(self.depth)
    near = (index + 1) % (self.global_every or 1) > 0
    if past is not None and len(past.own) > 1:
      own = []
      for number, (shared, mine) in enumerate(zip(past.shared, past.own, strict=True)):
        layer: Any = Block(**fields, name=f"layers_{number}")
        read = Cache(shared.k[0], shared.v[0])
        (x, made), _ = layer((x, mine), 0, near[number], read, views, past.step)
        own.append(made)
      return x, tuple(own)
    layers = self._stack(fields)
    if past is None:
      (x, _), made = layers((x, None), index, near, None, views, 0)
      return x, made
    [shared], [mine] = past.shared, past.own
    (x, mine), _ = layers((x, mine), index, near, shared, views, past.step)
    return x, (mine,)

  def _fields(self, ahead: int, remember: bool, deterministic: bool) -> dict[str, Any]:
    """A block's."""
    linear = {
      "alpha": self.lora_alpha, "dropout": self.lora_dropout, "fold": self.fold,
      "experts": self.lora_experts, "dtype": self.dtype, "kernel_dtype": self.kernel_dtype,
    }  # fmt: skip
    return {
      "attention": {
        "num_heads": self.num_heads,
        "num_kv_heads": self.num_kv_heads,
        "head_width": self._head_width,
        "bias": self.qkv_bias,
        "fused": self.fused,
        "scale": self.query_scale,
        "ahead": ahead,
        "norm": self._norm if self.qk_norm else None,
      },
      "mlp": {
        "mlp_width": self.mlp_width, "activation": self.activation, "fused": self.fused,
      },
      "norm": self._norm,
      "post_norms": self.post_norms,
      "linear": Linears(tuple(linear.items()), self.lora_rank, self.lora_targets),
      "remember": remember,
      "deterministic": deterministic,
    }  # fmt: skip

  def _stack(self, fields: Mapping[str, Any]) -> Any:
    """All layers, one after the other, their weights stacked."""
    block = taps.behind(Block) if self.has_variable(taps.NAME, "layers") else Block
    layers = nn.scan(
      storage.keep(block, self.remat),
      variable_axes={"params": 0, taps.NAME: 0},
      split_rngs={"params": True, "dropout": True},
      in_axes=(0, 0, 0, nn.broadcast, nn.broadcast),
      length=self.depth,
      unroll=self.unroll,
    )
    return layers(**fields, name="layers")

  def _views(
    self, mask: jax.Array | None, position: jax.Array, past: Past | None
  ) -> tuple[View, ...]:
    """How all layers look around; or how the global ones do, and how the others."""

    def view(base: float, factor: float, window: int) -> View:
      rotary = attention.rotary_table(position, self._head_width, base, factor)
      return View(rotary, _bias(mask, position, past, window))

    if not self.global_every:
      return (view(self.rope_base, self.rope_factor, self.window),)
    if mask is None:  # both kinds of layers are given a bias
      columns = past.position if past else position
      mask = jnp.ones((1, 1, columns.shape[-1]), bool)
    far = view(self.rope_base, self.rope_factor, 0)
    return far, view(self.local_rope_base, 1.0, self.window)


def _bias(
  mask: jax.Array | None, position: jax.Array, past: Past | None, window: int
) -> Any:
  """`View.bias`: a token sees none that is `window` or more places before it."""
  before = position if past is None else past.position
  if window:
    near = position[:, :, None] - before[:, None, :] < window
    mask = near if mask is None else mask & near
  bias = None if mask is None else attention.mask_bias(mask)
  if past is None:
    return bias
  column = jnp.arange(past.own[0].k.shape[-2])
  own = (column >= past.first[..., None]) & (column < past.step)
  if window:
    own &= past.step - column < window
  return bias, attention.mask_bias(own)
