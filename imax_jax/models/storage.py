"""What is kept, and how: frozen kernels as they are, in eight bits or in four; and of a
layer's activations, what the way back needs.

    float kernel [in, out] ─store─▶ {kernel, kernel_scale} ─restore─▶ float kernel

int8: a scale for each output, its largest weight over 127. nf4: blocks of 64 inputs of an
output share a scale, their largest weight, and each weight is the nearest of sixteen
levels, quantiles of a normal distribution (QLoRA, Dettmers et al. 2023, appendix E).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

QUANTIZED = ("int8", "nf4")
_BLOCK = 64
# bitsandbytes' table, to the digits it prints.
_LEVELS = (
  -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
  -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
  0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
  0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


def check_dtype(part: str, dtype: Any) -> None:
  """Refuses a dtype that a part's products cannot be made in.

  Raises:
    ValueError: not float32, bfloat16 or float64.
  """
  try:
    name = jnp.dtype(dtype).name
  except TypeError:
    name = str(dtype)
  if name not in ("float32", "bfloat16", "float64"):
    raise ValueError(
      f"{part}: dtype {name!r}, expected float32 or bfloat16 (float16 is not supported: "
      "it overflows at 65,504)"
    )


def keep(block: Any, kept: str) -> Any:
  """A module class whose layer keeps for the way back only what `kept` says.

    ""        what autodiff asks for: the fastest, and the most memory
    "dots"    the products with kernels; norms, activations and attention are made again
    "inputs"  the layer's inputs: all of it is made again, 2·P·T more

  Raises:
    ValueError: another word.
  """
  policies = {"dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}
  if kept not in ("", "dots", "inputs"):
    raise ValueError(f"remat {kept!r}: expected '', 'dots' or 'inputs'")
  if not kept:
    return block
  return nn.remat(block, prevent_cse=False, policy=policies.get(kept))


def float_dtype(kind: str) -> str:
  """The dtype of what is not quantised beside a kernel kept as `kind`: embedding, head.

  Raises:
    ValueError: an unknown kind.
  """
  if kind not in ("float32", "bfloat16", *QUANTIZED):
    raise ValueError(
      f"kernel_dtype {kind!r}: expected float32, bfloat16, int8 or nf4 (float16 is not "
      "supported: it overflows at 65,504)"
    )
  return "bfloat16" if kind in QUANTIZED else kind


def shapes(
  kind: str, width: int, features: int
) -> tuple[tuple[int, int], tuple[int, int]]:
  """Shapes of the stored integers and of their scales for a kernel [width, features].

  Raises:
    ValueError: `nf4` of a width that blocks of 64 do not divide.
  """
  if kind == "int8":
    return (width, features), (1, features)
  if width % _BLOCK:
    raise ValueError(
      f"kernel_dtype 'nf4': an input width of {width} is no multiple of the block of "
      f"{_BLOCK}; use int8 or bfloat16"
    )
  return (width // 2, features), (width // _BLOCK, features)


@partial(jax.jit, static_argnames="kind")
def store(kernel: jax.Array, kind: str) -> dict[str, jax.Array]:
  """float[..., in, out] -> "kernel" and "kernel_scale", rounding to nearest.

  >>> store(np.array([[1.0], [-2.0]]), "int8")["kernel"].tolist()
  [[64], [-127]]
  """
  *layers, width, features = kernel.shape
  stored, scales = shapes(kind, width, features)
  blocks = kernel.astype(jnp.float32).reshape(*layers, scales[0], -1, features)
  scale = jnp.abs(blocks).max(axis=-2)
  unit = blocks / jnp.where(scale == 0, 1, scale)[..., None, :]
  if kind == "int8":
    whole = jnp.rint(unit * 127).astype(jnp.int8)
    return {"kernel": whole.reshape(kernel.shape), "kernel_scale": scale / 127}
  # The nearest level: how many of the fifteen midpoints lie below.
  levels = np.array(_LEVELS, np.float32)
  middles = (levels[1:] + levels[:-1]) / 2
  index = sum((unit > middle).astype(jnp.uint8) for middle in middles)
  pairs = jnp.asarray(index).reshape(*layers, width // 2, 2, features)
  # Two neighbouring inputs a byte, the first in the high half.
  packed = (pairs[..., 0, :] << 4) | pairs[..., 1, :]
  return {"kernel": packed.reshape(*layers, *stored), "kernel_scale": scale}


def restore(kernel: Any, scale: Any, dtype: Any) -> jax.Array:
  """What `store` made, as a float kernel [..., in, out] of `dtype`."""
  if kernel.dtype == jnp.int8:
    return (kernel.astype(jnp.float32) * scale).astype(dtype)
  *layers, half, features = kernel.shape
  index = jnp.stack([kernel >> 4, kernel & 15], axis=-2)
  blocks = jnp.asarray(_LEVELS, jnp.float32)[index]
  blocks = blocks.reshape(*layers, scale.shape[-2], -1, features)
  whole = blocks * scale[..., None, :]
  return whole.reshape(*layers, 2 * half, features).astype(dtype)


def random_integers(key: jax.Array, shape: tuple[int, ...], kind: str) -> jax.Array:
  """Initial stored integers: with `random_scale`, weights of variance about 1 / in."""
  if kind == "int8":
    return jax.random.randint(key, shape, -127, 128, jnp.int8)
  return jax.random.randint(key, shape, 0, 256, jnp.int32).astype(jnp.uint8)


def random_scale(kind: str, shape: tuple[int, ...], width: int) -> jax.Array:
  """See `random_integers`."""
  spread = 127 / 3**0.5 if kind == "int8" else float(np.std(_LEVELS))
  return jnp.full(shape, 1 / (spread * width**0.5), jnp.float32)
