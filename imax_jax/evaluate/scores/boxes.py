"""Scores of boxes (referring expression comprehension)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def iou(
  truth: npt.ArrayLike, predicted: npt.ArrayLike, *, plus_one: bool = False
) -> np.ndarray:
  """Intersection over union of boxes [..., 4] = (x_min, y_min, x_max, y_max).

  `float64[...]` in [0, 1]; leading axes broadcast. A box whose sides are reversed or
  empty has no area, and two of no area have IoU 0. `plus_one` counts both edge pixels
  of integer boxes (width x_max - x_min + 1), as Uni-Med's computeIoU does; the study
  measures continuous boxes in units of 0…1000 and does not.
  """
  a = np.asarray(truth, np.float64)
  b = np.asarray(predicted, np.float64)
  edge = 1.0 if plus_one else 0.0

  def area(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    return np.prod(np.maximum(high - low + edge, 0.0), axis=-1)

  shared = area(np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., 2:], b[..., 2:]))
  joint = area(a[..., :2], a[..., 2:]) + area(b[..., :2], b[..., 2:]) - shared
  return np.where(joint > 0, shared / np.where(joint > 0, joint, 1.0), 0.0)
