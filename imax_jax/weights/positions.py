"""A table of positions for another number of patches, by torch's bicubic.

The published encoders' tables are resized once, when they are converted.
"""

from __future__ import annotations

import math

import numpy as np

from imax_jax.models import scales


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
  mix = scales.bicubic(size, target)
  patches = np.einsum("tr,uc,rcd->tud", mix, mix, patches, optimize=True)
  patches = patches.reshape(target**2, -1).astype(np.float32)
  return np.concatenate([table[:kept].astype(np.float32), patches])
