"""A dense layer with an optional low-rank update beside its kernel (LoRA, Hu et al. 2021)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from imax_jax import tree as tree_lib
from imax_jax.models import storage


def _uniform_fan_in(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
  """Uniform ±1/√in: PEFT's Kaiming rule with a = √5, written out."""
  bound = 1 / math.sqrt(shape[-2])
  return jax.random.uniform(key, shape, dtype, -bound, bound)


class Dense(nn.Module):
  """y = x W + b + (alpha / rank) · dropout(x) A B.

  The kernel is [in, out], `lora_a` [in, R], `lora_b` [R, out]; at the start B is zero,
  so that the layer is the base layer bit for bit. Rank 0 leaves the pair out. The kernel
  is kept as `kernel_dtype` says (see `storage`) and multiplied in `dtype`; bias and
  pair are kept in float32.

  `fold` computes x (W + scale · A B) instead of x W + scale · (x A) B wherever dropout
  is off. The two are equal. Folding asks for the gradient of a whole [in, out] matrix,
  which costs as much as a forward pass, and saves matrix products with a side of R,
  which a CPU does at a fraction of its speed: on a CPU it pays for narrow layers, on an
  accelerator it never does. With a bfloat16 kernel it would round the update away, so
  it is refused there.
  """

  features: int
  use_bias: bool = False
  rank: int = 0
  alpha: float = 16.0
  dropout: float = 0.0
  fold: bool = False
  dtype: Any = "float32"
  kernel_dtype: str = "float32"
  kernel_init: Callable[..., jax.Array] = nn.initializers.lecun_normal()

  @nn.compact
  def __call__(self, x: jax.Array, deterministic: bool = True) -> jax.Array:
    """[..., in] -> [..., out]. Asks for an rng named "dropout" where dropout is on."""
    dtype = jnp.dtype(self.dtype)
    *leading, width = x.shape
    # One plain matrix product: with the leading axes kept, XLA's CPU backward pass of a
    # layer with LoRA takes up to 3 times as long.
    x = x.astype(dtype).reshape(-1, width)
    kernel = self._kernel(width).astype(dtype)
    bias = None
    if self.use_bias:
      bias = self.param("bias", nn.initializers.zeros, (self.features,)).astype(dtype)
    low_rank: jax.Array | float = 0.0
    if self.rank:
      a = self.param("lora_a", _uniform_fan_in, (width, self.rank), jnp.float32)
      b = self.param("lora_b", nn.initializers.zeros, (self.rank, self.features))
      scale = self.alpha / self.rank
      drop = self.dropout > 0 and not deterministic
      if self.fold and not drop:
        if dtype != jnp.float32:
          raise ValueError(
            f"fold=True needs dtype float32, got {self.dtype}: a narrower kernel would "
            "round the low-rank update away. Set fold=False."
          )
        kernel = kernel + scale * (a @ b)
      else:
        hidden = nn.Dropout(self.dropout, deterministic=False)(x) if drop else x
        low_rank = scale * ((hidden @ a.astype(dtype)) @ b.astype(dtype))
    y = x @ kernel
    if self.rank and not isinstance(low_rank, float):
      y = y + low_rank
    y = y if bias is None else y + bias
    return y.reshape(*leading, self.features)

  def _kernel(self, width: int) -> jax.Array:
    """[in, out], restored from its integers where it is kept in them."""
    kind = self.kernel_dtype
    if kind not in storage.QUANTIZED:
      shape = (width, self.features)
      return self.param(
        "kernel", self.kernel_init, shape, jnp.dtype(storage.float_dtype(kind))
      )
    stored, scales = storage.shapes(kind, width, self.features)
    kernel = self.param("kernel", storage.random_integers, stored, kind)
    scale = self.param(
      "kernel_scale", lambda _: storage.random_scale(kind, scales, width)
    )
    return storage.restore(kernel, scale, self.dtype)


def merge(params: tree_lib.Tree, alpha: float) -> dict[str, Any]:
  """Adds every low-rank pair to its kernel and drops it: the tree of a rank 0 model.

  The scale is alpha over the pair's own rank. A kernel that is narrower than float32
  keeps its dtype, so the sum is rounded to it; one that is kept in integers becomes
  float32, for the sum has other integers.
  """
  flat = tree_lib.flatten(params)
  merged: dict[str, Any] = {}
  for path, leaf in flat.items():
    parent, _, name = path.rpartition("/")
    if name in ("lora_a", "lora_b", "kernel_scale"):
      continue
    if f"{parent}/kernel_scale" in flat and name == "kernel":
      leaf = storage.restore(leaf, flat[f"{parent}/kernel_scale"], jnp.float32)
    if name == "kernel" and f"{parent}/lora_a" in flat:
      # `@` also takes the leading axis of scanned layers: [L, in, R] [L, R, out].
      a, b = flat[f"{parent}/lora_a"], flat[f"{parent}/lora_b"]
      update = (alpha / a.shape[-1]) * (jnp.asarray(a) @ jnp.asarray(b))
      leaf = (leaf.astype(update.dtype) + update).astype(leaf.dtype)
    merged[path] = leaf
  return tree_lib.unflatten(merged)
