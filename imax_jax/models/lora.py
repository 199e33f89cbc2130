"""A dense layer with an optional low-rank update beside its kernel (LoRA, Hu et al. 2021)."""

from __future__ import annotations

import math
from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from imax_jax.models import storage


def _uniform_fan_in(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
  """Uniform ±1/√in: PEFT's Kaiming rule with a = √5, written out."""
  bound = 1 / math.sqrt(shape[-2])
  return jax.random.uniform(key, shape, dtype, -bound, bound)


@jax.custom_vjp
def _pair(x: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
  """x [T, in], A float32[in, R], B float32[R, out] -> x A B [T, out], in x's dtype.

  Its gradients are autodiff's, but summed over T in float32, and so over devices too; and
  A's is made as [R, in]: XLA's CPU product takes six times as long for [in, R].
  """
  return _pair_forward(x, a, b)[0]


def _pair_forward(x: jax.Array, a: jax.Array, b: jax.Array) -> tuple[Any, Any]:
  # What is kept is narrow already: on a mesh it is not gathered again on the way back.
  a, b = a.astype(x.dtype), b.astype(x.dtype)
  hidden = x @ a
  return hidden @ b, (x, a, b, hidden)


def _pair_backward(kept: Any, dy: jax.Array) -> tuple[jax.Array, ...]:
  x, a, b, hidden = kept
  back = jnp.einsum("To,Ro->TR", dy, b)
  da = jnp.einsum("TR,Ti->Ri", back, x, preferred_element_type=jnp.float32)
  db = jnp.einsum("TR,To->Ro", hidden, dy, preferred_element_type=jnp.float32)
  # Behind the barrier XLA does not turn the product around again.
  return jnp.einsum("TR,iR->Ti", back, a), jax.lax.optimization_barrier(da).T, db


_pair.defvjp(_pair_forward, _pair_backward)


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
    low_rank: jax.Array | None = None
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
        low_rank = scale * _pair(hidden, a, b)
    y = x @ kernel
    y = y if low_rank is None else y + low_rank
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


def merged(
  params: Mapping[str, Any], path: str, alpha: float, layer: int | None = None
) -> Any:
  """A leaf with its low-rank pair added: what a model of rank 0 has at `path`.

  The scale is alpha over the pair's own rank. A kernel with a pair, and one that is
  kept in integers, comes as float32; every other leaf as it is.

  Args:
    params: {path: array}, of one layer or with the leading axis of scanned layers.
    layer: which layer to take, where only one is to be in memory.
  """

  def part(name: str) -> Any:
    return params[name] if layer is None else params[name][layer]

  leaf, (parent, _, field) = part(path), path.rpartition("/")
  if f"{path}_scale" in params:
    leaf = storage.restore(leaf, part(f"{path}_scale"), np.float32)
  if field != "kernel" or f"{parent}/lora_a" not in params:
    return leaf
  # `@` also takes the leading axis: [L, in, R] [L, R, out].
  a, b = (np.asarray(part(f"{parent}/lora_{x}"), np.float32) for x in "ab")
  return np.asarray(leaf, np.float32) + np.float32(alpha / a.shape[-1]) * (a @ b)
