"""A dense layer with an optional low-rank update beside its kernel.

    LoRA     x W + scale · (x A) B                          Hu et al. 2021
    H-LoRA   x W + (repeat(softmax(x route)) · scale · (x A)) B     Lin et al. 2025

H-LoRA is k experts of rank R/k side by side: of A's columns and B's rows, R/k in a row are
an expert's, and each token mixes the experts by weights of its own.
"""

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

# Why H-LoRA is kept as it is, wherever somebody asks for one kernel or for a plain pair.
NOT_A_PAIR = (
  "H-LoRA (lora_experts > 0) can not be merged or written as PEFT, because each token "
  "weighs the experts by itself and no one matrix says the same; publish it in a layout "
  "that has a place for its routes"
)


def _uniform_fan_in(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
  """Uniform ±1/√in: PEFT's Kaiming rule with a = √5, written out."""
  bound = 1 / math.sqrt(shape[-2])
  return jax.random.uniform(key, shape, dtype, -bound, bound)


@jax.custom_vjp
def _product(x: jax.Array, w: jax.Array) -> jax.Array:
  """x [T, in], w float32[in, out] -> [T, out], in x's dtype.

  Its gradients are autodiff's, but w's is summed over T in float32, and so over devices
  too; and it is made with its shorter side first: XLA's CPU product takes six times as
  long for a long one, of few columns.
  """
  return _product_forward(x, w)[0]


def _product_forward(x: jax.Array, w: jax.Array) -> tuple[Any, Any]:
  # What is kept is narrow already: on a mesh it is not gathered again on the way back.
  w = w.astype(x.dtype)
  return x @ w, (x, w)


def _product_backward(kept: Any, dy: jax.Array) -> tuple[jax.Array, ...]:
  x, w = kept
  wide = {"preferred_element_type": jnp.float32}
  if w.shape[0] <= w.shape[1]:
    dw = jnp.einsum("Ti,To->io", x, dy, **wide)
  else:
    # Behind the barrier XLA does not turn the product around again.
    dw = jax.lax.optimization_barrier(jnp.einsum("To,Ti->oi", dy, x, **wide)).T
  return jnp.einsum("To,io->Ti", dy, w), dw


_product.defvjp(_product_forward, _product_backward)


def _pair(x: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
  """x [T, in], A float32[in, R], B float32[R, out] -> x A B [T, out], in x's dtype."""
  return _product(_product(x, a), b)


class Dense(nn.Module):
  """y = x W + b + (alpha / rank) · dropout(x) A B.

  The kernel is [in, out], `lora_a` [in, R], `lora_b` [R, out]; at the start B is zero,
  so that the layer is the base layer bit for bit. Rank 0 leaves the pair out. The kernel
  is kept as `kernel_dtype` says (see `storage`) and multiplied in `dtype`; bias and
  pair are kept in float32.

  With k > 0 `experts` there is `lora_route` [in, k] beside the pair, and

    y = x W + b + (repeat(softmax(x route), R / k) · dropout(x A · alpha k / R)) B,

  all in `dtype`, the softmax too: HealthGPT's H-LoRA (its llava/peft/tuners/lora.py). It
  is the sum of k LoRAs of rank R / k, each by its weight, in two products and a small one.

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
  experts: int = 0
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
      dropout = nn.Dropout(self.dropout, deterministic=not drop)
      if self.experts:
        hidden = dropout(scale * self.experts * _product(x, a))
        low_rank = _product(self._shares(x) * hidden, b)
      elif self.fold and not drop:
        if dtype != jnp.float32:
          raise ValueError(
            f"fold=True needs dtype float32, got {self.dtype}: a narrower kernel would "
            "round the low-rank update away. Set fold=False."
          )
        kernel = kernel + scale * (a @ b)
      else:
        low_rank = scale * _pair(dropout(x), a, b)
    y = x @ kernel
    y = y if low_rank is None else y + low_rank
    y = y if bias is None else y + bias
    return y.reshape(*leading, self.features)

  def _shares(self, x: jax.Array) -> jax.Array:
    """[T, in] -> [T, R]: each expert's weight at each of its columns."""
    shape = (x.shape[-1], self.experts)
    route = self.param("lora_route", _uniform_fan_in, shape, jnp.float32)
    shares = jax.nn.softmax(_product(x, route), axis=-1)
    return jnp.repeat(shares, self.rank // self.experts, axis=-1)

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

  Raises:
    ValueError: the pair is H-LoRA's.
  """

  def part(name: str) -> Any:
    return params[name] if layer is None else params[name][layer]

  leaf, (parent, _, field) = part(path), path.rpartition("/")
  if f"{path}_scale" in params:
    leaf = storage.restore(leaf, part(f"{path}_scale"), np.float32)
  if field != "kernel" or f"{parent}/lora_a" not in params:
    return leaf
  if f"{parent}/lora_route" in params:
    raise ValueError(f"{path}: {NOT_A_PAIR}")
  # `@` also takes the leading axis: [L, in, R] [L, R, out].
  a, b = (np.asarray(part(f"{parent}/lora_{x}"), np.float32) for x in "ab")
  return np.asarray(leaf, np.float32) + np.float32(alpha / a.shape[-1]) * (a @ b)
