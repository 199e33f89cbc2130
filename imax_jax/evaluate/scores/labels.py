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

  Micro sums hits and errors over all labels; macro is the mean of the labels' own F1.
  Division by zero: a label that occurs neither in truth nor in prediction has no F1 and
  is left out of the macro mean; one that occurs in either but is never hit has F1 0; if
  no label occurs at all, both scores are 0.

  Raises:
    ValueError: the shapes differ or are not [N, labels].
  """
  want, got = np.asarray(truth, bool), np.asarray(predicted, bool)
  if want.ndim != 2 or want.shape != got.shape:
    raise ValueError(
      f"bits: expected two arrays [N, labels] of one shape, got {want.shape} and "
      f"{got.shape}; every prediction needs one bit for each label of its truth"
    )
  hits = (want & got).sum(axis=0)
  occurrences = want.sum(axis=0) + got.sum(axis=0)  # 2 TP + FP + FN
  occurs = occurrences > 0
  if not occurs.any():
    return F1(micro=0.0, macro=0.0)
  return F1(
    micro=float(2 * hits.sum() / occurrences.sum()),
    macro=float(np.mean(2 * hits[occurs] / occurrences[occurs])),
  )
