"""The spectrum of a Fisher information matrix, and the paper's two numbers about it."""

from __future__ import annotations

import dataclasses

import numpy as np

# An eigenvalue below this part of the largest is rounding: gradients are float32.
NONZERO_RATIO = 1e-7


@dataclasses.dataclass(frozen=True, slots=True)
class Spectrum:
  """`eigenvalues` are the d non-zero ones, float64[d], largest first."""

  eigenvalues: np.ndarray
  entropy: float  # nats; at most ln d, and d is at most the number of examples
  dominant: float  # percent


def spectral_entropy(eigenvalues: np.ndarray) -> float:
  """SE of non-zero eigenvalues (Eq. 4), in nats.

  d equal eigenvalues give ln d and a single one gives 0: [2.0, 2.0] -> 0.693.
  """
  parts = _parts(eigenvalues)
  parts = parts[parts > 0]
  return float(max(0.0, -np.sum(parts * np.log(parts))))


def dominant_ratio(eigenvalues: np.ndarray) -> float:
  """The largest eigenvalue's share of their sum (Eq. 3), in percent: [3, 1] -> 75."""
  return float(100 * _parts(eigenvalues).max())


def spectrum(gram: np.ndarray) -> Spectrum:
  """The non-zero eigenvalues of a symmetric, positive semi-definite matrix [N, N].

  Raises:
    ValueError: not square, not finite, or without any non-zero eigenvalue.
  """
  matrix = np.asarray(gram, dtype=np.float64)
  if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
    raise ValueError(f"fisher: a Gram matrix is [N, N], got shape {matrix.shape}")
  if not np.isfinite(matrix).all():
    raise ValueError(
      "fisher: the Gram matrix holds NaN or infinity: the gradients overflowed. Compute "
      "in float32 or bfloat16 and look at this checkpoint's loss."
    )
  values = np.linalg.eigvalsh((matrix + matrix.T) / 2)[::-1]
  if not matrix.any() or values[0] <= 0:
    raise ValueError(
      "fisher: all eigenvalues are zero, so no chosen parameter has a gradient. Measure "
      "kind 'exact' or choose the scalars with another seed: while LoRA's B is zero, all "
      "gradients of its A vanish."
    )
  values = values[values > NONZERO_RATIO * values[0]]
  return Spectrum(values, spectral_entropy(values), dominant_ratio(values))


def _parts(eigenvalues: np.ndarray) -> np.ndarray:
  values = np.asarray(eigenvalues, dtype=np.float64)
  if values.size == 0 or (values < 0).any() or not values.sum() > 0:
    raise ValueError(
      f"fisher: expected non-negative eigenvalues with a positive sum, got {values.size} "
      "of them; pass the eigenvalues of spectrum()"
    )
  return values / values.sum()
