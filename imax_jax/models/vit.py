"""A family of vision transformers: EVA-CLIP, OpenAI's CLIP and SigLIP are rows of `zoo`.

Pre-LN blocks and learned absolute positions are common to all. A row says whether there
is a class token, a bias of the patch embedding, a norm before the first block or after
the last, which of queries, keys and values have biases, and which GELU is meant. Features
are those after the last block of the row: where a published system reads an earlier
block, the row ends there.

Sources: Uni-Med's eva_vit.py and base_model.py (`ln_vision` is `norm` here, with an eps
ten times the blocks'); transformers' modeling_clip.py and modeling_siglip.py.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from imax_jax import mesh as mesh_lib
from imax_jax.models import attention
from imax_jax.models import scales as scales_lib
from imax_jax.models import storage
from imax_jax.models.lora import Dense

# Statistics of pixels in [0, 1] that OpenAI's CLIP was trained with, and EVA after it.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

_ACTIVATIONS: dict[str, Any] = {
  "gelu": partial(nn.gelu, approximate=False),
  "gelu_tanh": partial(nn.gelu, approximate=True),
  "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
}


def layer_norm(name: str, eps: float) -> nn.LayerNorm:
  """In float32, whatever comes in."""
  # Flax's fast variance, E[x²] - E[x]², cancels where the mean is large.
  return nn.LayerNorm(eps, dtype=jnp.float32, use_fast_variance=False, name=name)


class Attention(nn.Module):
  """`biases` names those of "q", "k" and "v" that have one."""

  num_heads: int
  biases: tuple[str, ...]
  dense: Any

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[N, P, D] -> [N, P, D]."""
    images, tokens, width = x.shape
    bias = jnp.concatenate(
      [
        self.param(f"{name}_bias", nn.initializers.zeros, (width,))
        if name in self.biases
        else jnp.zeros(width)
        for name in ("q", "k", "v")
      ]
    )
    qkv = self.dense(3 * width, name="qkv")(x)
    qkv = (qkv + bias.astype(qkv.dtype)).reshape(images, tokens, 3, self.num_heads, -1)
    q, k, v = qkv.transpose(2, 0, 3, 1, 4)  # each [N, H, P, d]
    mixed = attention.attend(q, k, v, None).transpose(0, 2, 1, 3).reshape(x.shape)
    return self.dense(width, use_bias=True, name="out")(mixed)


class Block(nn.Module):
  num_heads: int
  mlp_width: int
  norm_eps: float
  activation: str
  biases: tuple[str, ...]
  dense: Any

  @nn.compact
  def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
    x = mesh_lib.lay_rows(x)
    y = layer_norm("attn_norm", self.norm_eps)(x)
    x = x + Attention(self.num_heads, self.biases, self.dense, name="attn")(y)
    y = layer_norm("mlp_norm", self.norm_eps)(x)
    y = self.dense(self.mlp_width, use_bias=True, name="up")(y)
    y = _ACTIVATIONS[self.activation](y)
    return x + self.dense(x.shape[-1], use_bias=True, name="down")(y), None


class Encoder(nn.Module):
  """Pixels to patch features. Matrix products run in `dtype`, the rest in float32.

  `post_norm_eps` 0 leaves the norm after the last block out. `ragged` leaves out the
  pixels beyond the last whole patch, as an unpadded convolution does. `keep_class` keeps
  the class token in front of the patches. `scales` are sides in pixels: the image is seen
  in each, in tiles of the first, which the positions are for (see `scales.tiles`).
  """

  image_px: int
  patch_px: int
  width: int
  depth: int
  num_heads: int
  mlp_width: int
  channels: int = 3
  norm_eps: float = 1e-6
  post_norm_eps: float = 1e-5
  pre_norm: bool = False
  class_token: bool = True
  patch_bias: bool = True
  biases: tuple[str, ...] = ("q", "v")
  activation: str = "gelu"
  ragged: bool = False
  keep_class: bool = False
  scales: tuple[int, ...] = ()
  pixel_mean: tuple[float, ...] = CLIP_MEAN
  pixel_std: tuple[float, ...] = CLIP_STD
  dtype: Any = "float32"
  kernel_dtype: str = "float32"
  remat: str = ""
  unroll: int = 1

  def __post_init__(self) -> None:
    if self.activation not in _ACTIVATIONS:
      raise ValueError(
        f"encoder: activation {self.activation!r}, expected one of {list(_ACTIVATIONS)}"
      )
    if not set(self.biases) <= {"q", "k", "v"} or self.width % self.num_heads:
      raise ValueError(
        f"encoder: biases {self.biases} must be among q, k and v, and width={self.width} "
        f"a multiple of num_heads={self.num_heads}"
      )
    if self.keep_class and (self.scales or not self.class_token):
      raise ValueError(
        f"encoder: keep_class with class_token={self.class_token} and scales "
        f"{tuple(self.scales)}: expected a class token to keep, and one tile an image"
      )
    scales_lib.check(self.scales, self.image_px)
    storage.check_dtype("encoder", self.dtype)
    super().__post_init__()

  @property
  def num_tokens(self) -> int:
    """P of the output."""
    return self._side**2 + int(self.keep_class)

  @property
  def out_width(self) -> int:
    """D of the output."""
    return self.width * max(1, len(self.scales))

  @property
  def _side(self) -> int:
    """How many patches a tile is wide; without scales, the image."""
    return (self.scales[0] if self.scales else self.image_px) // self.patch_px

  @nn.compact
  def __call__(self, pixels: jax.Array) -> jax.Array:
    """[N, image_px, image_px, C] -> float32[N, num_tokens, out_width].

    Patches in row-major order, behind the class token where that is kept.

    uint8 pixels are normalised with the row's statistics (their mean for one channel);
    float pixels are taken as normalised already.

    Raises:
      ValueError: pixels of another size or number of channels.
    """
    dense = partial(Dense, dtype=self.dtype, kernel_dtype=self.kernel_dtype)
    x = self._normalised(pixels)
    if self.scales:
      x = scales_lib.tiles(x.astype(jnp.float32), self.scales)
    x = dense(self.width, use_bias=self.patch_bias, name="embed")(self._patches(x))
    x = x.astype(jnp.float32)
    if self.class_token:
      x = jnp.concatenate([self._class_token(x), x], axis=1)
    init = nn.initializers.normal(0.02)
    x = x + self.param("positions", init, x.shape[1:]).astype(jnp.float32)
    if self.pre_norm:
      x = layer_norm("pre_norm", self.norm_eps)(x)
    block = storage.keep(Block, self.remat)
    layers = nn.scan(
      block,
      variable_axes={"params": 0},
      split_rngs={"params": True},
      length=self.depth,
      unroll=self.unroll,
    )
    stack = layers(
      num_heads=self.num_heads,
      mlp_width=self.mlp_width,
      norm_eps=self.norm_eps,
      activation=self.activation,
      biases=self.biases,
      dense=dense,
      name="layers",
    )
    x, _ = stack(x, None)
    if self.post_norm_eps:
      x = layer_norm("norm", self.post_norm_eps)(x)
    # Dropped after the norm, which is per token anyway.
    x = x[:, 1:] if self.class_token and not self.keep_class else x
    return scales_lib.together(x, self.scales) if self.scales else x

  def _class_token(self, patches: jax.Array) -> jax.Array:
    token = self.param("class_token", nn.initializers.normal(0.02), (self.width,))
    shape = (patches.shape[0], 1, self.width)
    return jnp.broadcast_to(token.astype(jnp.float32), shape)

  def _normalised(self, pixels: jax.Array) -> jax.Array:
    """uint8 pixels by the row's statistics; float ones as they are."""
    expected = (self.image_px, self.image_px, self.channels)
    left = (self.scales[0] if self.scales else self.image_px) % self.patch_px
    if pixels.ndim != 4 or pixels.shape[1:] != expected or (left and not self.ragged):
      raise ValueError(
        f"encoder: expected pixels [N, {', '.join(map(str, expected))}] in patches of "
        f"{self.patch_px}, got {pixels.shape}. Resize the images, or set image_px, "
        "patch_px and channels to fit."
      )
    if pixels.dtype == jnp.uint8:
      mean, std = jnp.array(self.pixel_mean), jnp.array(self.pixel_std)
      if self.channels == 1:
        mean, std = mean.mean(), std.mean()
      pixels = (pixels.astype(jnp.float32) / 255 - mean) / std
    return pixels

  def _patches(self, pixels: jax.Array) -> jax.Array:
    """[N, P, patch_px² C]: what the patch convolution multiplies, (row, column, C)."""
    side, patch = self._side, self.patch_px
    x = pixels[:, : side * patch, : side * patch]
    x = x.reshape(-1, side, patch, side, patch, self.channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(
      -1, side * side, patch**2 * self.channels
    )
