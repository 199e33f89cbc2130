"""Scores of several yes-or-no labels an image (multi-label classification)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class F1(NamedTuple):
  """Fractions in [0, 1]."""

  micro: float
  macro: float


def f1(truth: npt.ArrayLike, predicted: npt.ArrayLike) -> F1:
  """Micro and macro F1 of bits [N, labels], 1 where the label is present.

  Raises:
    ValueError: the shapes differ or are not [N, labels].
  """
  sums = counts(truth, predicted).sum(axis=0)
  return F1(micro=float(micro_f1(sums)), macro=float(macro_f1(sums)))


def counts(truth: npt.ArrayLike, predicted: npt.ArrayLike) -> np.ndarray:
  """What each row of bits [N, labels] adds: float64[N, 2 * labels].

  First the hits of each label (TP), then its occurrences (2 TP + FP + FN).

  Raises:
    ValueError: the shapes differ or are not [N, labels].
  """
  want, got = np.asarray(truth, bool), np.asarray(predicted, bool)
  if want.ndim != 2 or want.shape != got.shape:
    raise ValueError(
      f"bits: expected two arrays [N, labels] of one shape, got {want.shape} and "
      f"{got.shape}; every prediction needs one bit for each label of its truth"
    )
  occurrences = want.astype(np.float64) + got
  return np.concatenate([want & got, occurrences], axis=1)


def micro_f1(sums: np.ndarray) -> np.ndarray:
  """Hits and errors summed over all labels; float64[...] of sums [..., 2 * labels].

  0 if no label occurs in truth or prediction.
  """
  hits, occurrences = (half.sum(axis=-1) for half in np.split(sums, 2, axis=-1))
  return np.where(
    occurrences > 0, 2 * hits / np.where(occurrences > 0, occurrences, 1), 0
  )


def macro_f1(sums: np.ndarray) -> np.ndarray:
  """The mean of the labels' own F1; float64[...] of sums [..., 2 * labels].

  A label that occurs neither in truth nor in prediction has no F1 and is left out of the
  mean; one that occurs in either but is never hit has F1 0; if no label occurs at all,
  the score is 0.
  """
  hits, occurrences = np.split(sums, 2, axis=-1)
  occurs = occurrences > 0
  each = np.where(occurs, 2 * hits / np.where(occurs, occurrences, 1), 0)
  return each.sum(axis=-1) / np.maximum(occurs.sum(axis=-1), 1)
