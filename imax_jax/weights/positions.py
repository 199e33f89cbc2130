"""A table of positions for another number of patches, by torch's bicubic.

torch.nn.functional.interpolate(mode="bicubic", align_corners=False) weighs four
neighbours by Keys' cubic with a = -0.75; jax.image.resize has a = -0.5, so the published
encoders' tables are resized here, once, when they are converted.
"""

from __future__ import annotations

import math

import numpy as np

_A = -0.75


def _weights(size: int, target: int) -> np.ndarray:
  """float64[target, size]: each new place as a mix of old ones."""
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


def resizable(rows: int, tokens: int, *, class_token: bool) -> bool:
  """Whether both are a square of patches, and the class token."""
  kept = int(class_token)
  return all(
    count > kept and math.isqrt(count - kept) ** 2 + kept == count
    for count in (rows, tokens)
  )


def resize(table: np.ndarray, tokens: int, *, class_token: bool) -> np.ndarray:
  """[T, D] -> float32[tokens, D]; the class token's row, the first, stays as it is.

  Raises:
    ValueError: patches that form no square, before or after.
  """
  if not resizable(len(table), tokens, class_token=class_token):
    raise ValueError(
      f"positions: {len(table)} rows for {tokens} tokens, expected a square of patches"
      f"{' and a class token' if class_token else ''} in both"
    )
  kept = int(class_token)
  size, target = (math.isqrt(count - kept) for count in (len(table), tokens))
  patches = table[kept:].astype(np.float64).reshape(size, size, -1)
  mix = _weights(size, target)
  patches = np.einsum("tr,uc,rcd->tud", mix, mix, patches, optimize=True)
  patches = patches.reshape(target**2, -1).astype(np.float32)
  return np.concatenate([table[:kept].astype(np.float32), patches])
