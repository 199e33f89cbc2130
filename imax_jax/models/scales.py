"""A picture looked at in several sizes, and maps of features made smaller.

    pixels [N, 96, 96, C] ─tiles─▶ [N·14, 32, 32, C] ─tower─▶ [N·14, P, D] ─together─▶ [N, P, 3·D]

        96:  . . .      each size in tiles as large as the smallest, which the tower knows;
        64:  . .        a size's maps side by side again, and averaged down to the one map
        32:  .          of the smallest; the sizes' channels one after another

S2 (Shi et al. 2024), as scaling_on_scales' core.py and utils.py have it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

_A = -0.75  # of torch's cubic; jax.image.resize has -0.5


def bicubic(size: int, target: int) -> np.ndarray:
  """float64[target, size]: each new place as a mix of old ones.

  torch.nn.functional.interpolate(mode="bicubic", align_corners=False): four neighbours
  weighed by Keys' cubic with a = -0.75, however much smaller the target is.
  """
  matrix = np.zeros((target, size))
  # torch keeps places in float32, which is seen in the fifth digit; so do we.
  scale = float(np.float32(size) / np.float32(target))
  for number in range(target):
    # Pixels are areas: their centres lie at halves.
    place = float(np.float32(scale * (number + 0.5) - 0.5))
    first = math.floor(place) - 1
    for neighbour in range(first, first + 4):
      # Beyond the border the border's own value is repeated.
      matrix[number, min(max(neighbour, 0), size - 1)] += _cubic(abs(place - neighbour))
  return matrix


def _cubic(distance: float) -> float:
  d = distance
  if d <= 1:
    return (_A + 2) * d**3 - (_A + 3) * d**2 + 1
  return _A * d**3 - 5 * _A * d**2 + 8 * _A * d - 4 * _A if d < 2 else 0.0


def check(scales: Sequence[int], image_px: int) -> None:
  """Refuses sizes that do not divide into tiles of the smallest, up to the whole image.

  Raises:
    ValueError: not rising, no multiples of the first, or another last than `image_px`.
  """
  first = scales[0] if scales else 0
  rising = all(a < b for a, b in itertools.pairwise(scales))
  if scales and (
    first < 1 or not rising or any(s % first for s in scales) or scales[-1] != image_px
  ):
    raise ValueError(
      f"encoder: scales {tuple(scales)}: expected rising sides in pixels, multiples of "
      f"the first, the last of them image_px={image_px}"
    )


def tiles(pixels: jax.Array, scales: Sequence[int]) -> jax.Array:
  """float32[N, S, S, C], S the last scale -> [N·tiles, s, s, C], s the first.

  An image's tiles follow each other: scale by scale, each in row-major order.
  """
  images, side, _, channels = pixels.shape
  found = []
  for scale in scales:
    mix = bicubic(side, scale).astype(np.float32)
    x = pixels
    if scale != side:
      # An accelerator's default would round the pixels to eight bits and fewer.
      x = jnp.einsum("tr,Nrck->Ntck", mix, x, precision="highest")
      x = jnp.einsum("uc,Ntck->Ntuk", mix, x, precision="highest")
    count, tile = scale // scales[0], scales[0]
    x = x.reshape(images, count, tile, count, tile, channels).swapaxes(2, 3)
    found.append(x.reshape(images, count**2, tile, tile, channels))
  return jnp.concatenate(found, axis=1).reshape(-1, *found[0].shape[2:])


def together(features: jax.Array, scales: Sequence[int]) -> jax.Array:
  """What the tower gives for `tiles`, [N·tiles, P, D] -> [N, P, len(scales)·D]."""
  counts = [scale // scales[0] for scale in scales]
  _, patches, width = features.shape
  side = math.isqrt(patches)
  x = features.reshape(-1, sum(count**2 for count in counts), side, side, width)
  found, first = [], 0
  for count in counts:
    part = x[:, first : first + count**2]
    part = part.reshape(-1, count, count, side, side, width).swapaxes(2, 3)
    whole = part.reshape(-1, (count * side) ** 2, width)
    found.append(averaged(whole, count))
    first += count**2
  return jnp.concatenate(found, axis=-1)


def pooled(patches: int, size: int) -> int:
  """How many are left of a square map whose `size` x `size` neighbours are made one.

  Raises:
    ValueError: a map that is no square, or that such squares do not fill.
  """
  side = math.isqrt(patches)
  if size > 1 and (side**2 != patches or side % size):
    raise ValueError(
      f"{patches} patches an image are no square map in squares of {size} x {size}: "
      "choose a size that divides the map's side, and no class token"
    )
  return patches // size**2


def averaged(features: jax.Array, size: int) -> jax.Array:
  """A square map's neighbours, `size` x `size` made one by their mean.

  [N, P, D] -> [N, P / size², D]; raises as `pooled`.
  """
  if size == 1:
    return features
  images, patches, width = features.shape
  left, side = pooled(patches, size), math.isqrt(patches) // size
  x = features.reshape(images, side, size, side, size, width)
  return x.mean((2, 4)).reshape(images, left, width)
