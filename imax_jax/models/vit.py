"""EVA-CLIP's vision transformer, as Uni-Med and MiniGPT-v2 use it (their eva_vit.py).

Pre-LN blocks, query and value biases but no key bias, exact GELU, learned absolute
positions, no final norm of its own; a separate LayerNorm (`ln_vision` there, `norm`
here) closes it, with an eps ten times the blocks'.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from imax_jax.models import attention
from imax_jax.models.lora import Dense

# OpenAI CLIP's RGB statistics of pixels in [0, 1].
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)


def _layer_norm(name: str, eps: float) -> nn.LayerNorm:
  # Flax's fast variance, E[x²] - E[x]², cancels where the mean is large.
  return nn.LayerNorm(eps, dtype=jnp.float32, use_fast_variance=False, name=name)


class Attention(nn.Module):
  num_heads: int
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[N, P, D] -> [N, P, D]."""
    images, tokens, width = x.shape
    dense = partial(Dense, dtype=self.dtype)
    q_bias = self.param("q_bias", nn.initializers.zeros, (width,))
    v_bias = self.param("v_bias", nn.initializers.zeros, (width,))
    bias = jnp.concatenate([q_bias, jnp.zeros_like(q_bias), v_bias])
    qkv = dense(3 * width, name="qkv")(x)
    qkv = (qkv + bias.astype(qkv.dtype)).reshape(images, tokens, 3, self.num_heads, -1)
    q, k, v = qkv.transpose(2, 0, 3, 1, 4)  # each [N, H, P, d]
    mixed = attention.attend(q, k, v, None).transpose(0, 2, 1, 3).reshape(x.shape)
    return dense(width, use_bias=True, name="out")(mixed)


class Block(nn.Module):
  num_heads: int
  mlp_width: int
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
    dense = partial(Dense, use_bias=True, dtype=self.dtype)
    y = _layer_norm("attn_norm", 1e-6)(x)
    x = x + Attention(self.num_heads, self.dtype, name="attn")(y)
    y = _layer_norm("mlp_norm", 1e-6)(x)
    y = nn.gelu(dense(self.mlp_width, name="up")(y), approximate=False)
    return x + dense(x.shape[-1], name="down")(y), None


class Encoder(nn.Module):
  """Pixels to patch features. Matrix products run in `dtype`, the rest in float32."""

  image_px: int
  patch_px: int
  width: int
  depth: int
  num_heads: int
  mlp_width: int
  channels: int = 3
  dtype: Any = "float32"
  remat: bool = False
  unroll: int = 1

  @nn.compact
  def __call__(self, pixels: jax.Array) -> jax.Array:
    """[N, image_px, image_px, C] -> float32[N, P, D], patches in row-major order.

    uint8 pixels are normalised with CLIP's statistics (their mean for one channel);
    float pixels are taken as normalised already.

    Raises:
      ValueError: pixels of another size or number of channels.
    """
    x = jnp.concatenate([self._class_token(pixels), self._patches(pixels)], axis=1)
    num_tokens = x.shape[1]
    init = nn.initializers.normal(0.02)
    x = x + self.param("positions", init, (num_tokens, self.width)).astype(jnp.float32)
    block = nn.remat(Block, prevent_cse=False) if self.remat else Block
    layers = nn.scan(
      block,
      variable_axes={"params": 0},
      split_rngs={"params": True},
      length=self.depth,
      unroll=self.unroll,
    )
    x, _ = layers(self.num_heads, self.mlp_width, self.dtype, name="layers")(x, None)
    # The class token is dropped after the norm, which is per token anyway.
    return _layer_norm("norm", 1e-5)(x)[:, 1:]

  def _class_token(self, pixels: jax.Array) -> jax.Array:
    token = self.param("class_token", nn.initializers.normal(0.02), (self.width,))
    shape = (pixels.shape[0], 1, self.width)
    return jnp.broadcast_to(token.astype(jnp.float32), shape)

  def _patches(self, pixels: jax.Array) -> jax.Array:
    """The patch convolution as a matrix product: kernel rows in (row, column, C) order."""
    expected = (self.image_px, self.image_px, self.channels)
    if (
      pixels.ndim != 4 or pixels.shape[1:] != expected or self.image_px % self.patch_px
    ):
      raise ValueError(
        f"encoder: expected pixels [N, {', '.join(map(str, expected))}] in patches of "
        f"{self.patch_px}, got {pixels.shape}. Resize the images, or set image_px, "
        "patch_px and channels to fit."
      )
    if pixels.dtype == jnp.uint8:
      mean, std = jnp.array(_MEAN), jnp.array(_STD)
      if self.channels == 1:
        mean, std = mean.mean(), std.mean()
      pixels = (pixels.astype(jnp.float32) / 255 - mean) / std
    side, patch = self.image_px // self.patch_px, self.patch_px
    x = pixels.reshape(-1, side, patch, side, patch, self.channels)
    x = x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, side * side, patch**2 * self.channels)
    dense = Dense(self.width, use_bias=True, dtype=self.dtype, name="embed")
    return dense(x).astype(jnp.float32)
