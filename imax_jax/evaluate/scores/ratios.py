"""Scores of ratios (calculation of CTR and CPAR)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def mae(truth: npt.ArrayLike, predicted: npt.ArrayLike) -> float:
  """Mean absolute error, in the unit of its arguments."""
  return float(np.mean(np.abs(_errors(truth, predicted))))


def rmse(truth: npt.ArrayLike, predicted: npt.ArrayLike) -> float:
  """Root of the mean squared error, in the unit of its arguments."""
  return float(np.sqrt(np.mean(_errors(truth, predicted) ** 2)))


def _errors(truth: npt.ArrayLike, predicted: npt.ArrayLike) -> np.ndarray:
  want, got = np.asarray(truth, np.float64), np.asarray(predicted, np.float64)
  if want.shape != got.shape or not want.size:
    raise ValueError(
      f"ratios: expected two non-empty arrays of one shape, got {want.shape} and "
      f"{got.shape}"
    )
  return got - want
