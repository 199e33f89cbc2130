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

import flax.linen as nn
import jax
import jax.numpy as jnp

from imax_jax.models import attention
from imax_jax.models import storage
from imax_jax.models import taps
from imax_jax.models.block import Block
from imax_jax.models.block import Cache
from imax_jax.models.block import Linears
from imax_jax.models.block import Past
from imax_jax.models.block import RmsNorm
from imax_jax.models.lora import Dense


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
  def _heads(self) -> dict[str, Any]:
    return {
      "num_heads": self.num_heads,
      "num_kv_heads": self.num_kv_heads,
      "head_width": self._head_width,
      "bias": self.qkv_bias,
      "fused": self.fused,
    }

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
    return self.embedding(text)

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
    remember: bool = False,
    deterministic: bool = True,
  ) -> tuple[jax.Array, Any]:
    """x [B, T, D], position int32[B, T] -> [B, T, D] before `head`, and a cache.

    Without a past, mask is bool[B, T, T], and the cache the tokens' own keys and values
    if they are to be remembered, else None. With one, x holds the next token of each of
    N rows' Q continuations, [N, Q, D]; mask bool[N, Q, J] says which columns of its row
    each reads (None: all), and the cache is `past.own` with theirs added.
    """
    linear = Linears(
      (
        ("alpha", self.lora_alpha),
        ("dropout", self.lora_dropout),
        ("fold", self.fold),
        ("experts", self.lora_experts),
        ("dtype", self.dtype),
        ("kernel_dtype", self.kernel_dtype),
      ),
      self.lora_rank,
      self.lora_targets,
    )
    fields: dict[str, Any] = {
      "attention": self._heads, "mlp_width": self.mlp_width, "fused": self.fused,
      "norm_eps": self.norm_eps, "linear": linear, "deterministic": deterministic,
      "remember": remember,
    }  # fmt: skip
    rotary = attention.rotary_table(position, self._head_width, self.rope_base)
    bias, x = self._bias(mask, position, past), x.astype(jnp.float32)
    if past is not None and len(past.own) > 1:
      own = []
      for number, (shared, mine) in enumerate(zip(past.shared, past.own, strict=True)):
        layer: Any = Block(**fields, name=f"layers_{number}")
        read = Cache(shared.k[0], shared.v[0])
        (x, made), _ = layer((x, mine), 0, read, rotary, bias, past.step)
        own.append(made)
      return x, tuple(own)
    layers = self._stack(fields)
    index = jnp.arange(self.depth)
    if past is None:
      (x, _), made = layers((x, None), index, None, rotary, bias, 0)
      return x, made
    [shared], [mine] = past.shared, past.own
    (x, mine), _ = layers((x, mine), index, shared, rotary, bias, past.step)
    return x, (mine,)

  def _stack(self, fields: Mapping[str, Any]) -> Any:
    """All layers, one after the other, their weights stacked."""
    block = taps.behind(Block) if self.has_variable(taps.NAME, "layers") else Block
    layers = nn.scan(
      storage.keep(block, self.remat),
      variable_axes={"params": 0, taps.NAME: 0},
      split_rngs={"params": True, "dropout": True},
      in_axes=(0, 0, nn.broadcast, nn.broadcast, nn.broadcast),
      length=self.depth,
      unroll=self.unroll,
    )
    return layers(**fields, name="layers")

  def _bias(
    self, mask: jax.Array | None, position: jax.Array, past: Past | None
  ) -> Any:
    """What is added to the scores; with a past, of its shared and of its own columns.

    A token sees none that is `window` or more places before it.
    """
    before = position if past is None else past.position
    if self.window:
      near = position[:, :, None] - before[:, None, :] < self.window
      mask = near if mask is None else mask & near
    bias = None if mask is None else attention.mask_bias(mask)
    if past is None:
      return bias
    column = jnp.arange(past.own[0].k.shape[-2])
    own = (column >= past.first[..., None]) & (column < past.step)
    if self.window:
      own &= past.step - column < self.window
    return bias, attention.mask_bias(own)
