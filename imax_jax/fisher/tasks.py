"""What the gradients of different tasks have to do with each other, from Gram blocks.

With k_ij the inner product of the gradients of entries i and j, entries of tasks a and b
that stand in one group are pairs (i, j), i ≠ j: an entry is no pair with itself. Over all
pairs of all groups:

    cosine    mean of k_ij / √(k_ii k_jj)       do they pull the same way
    conflict  share of k_ij < 0                 how often one undoes the other
    overlap   m_ab / √(m_aa m_bb), m_ab the mean of k_ij²

The last is the cosine between the tasks' own Fisher matrices, ⟨F_a, F_b⟩ / |F_a| |F_b|,
since ⟨F_a, F_b⟩ = E k_ij²; leaving out i = j makes each of the three means unbiased. It is
0 where the tasks move different directions and 1 where they move the same ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from imax_jax.schema import TASKS


def between(
  grams: Sequence[np.ndarray], tasks: Sequence[Sequence[str]]
) -> dict[str, Any]:
  """Of groups' Gram matrices and the task of each of their rows, JSON-able:

      {"names": [task, …], "pairs": [[count]], "cosine": [[x]], "conflict": …, "overlap": …}

  Names are in `TASKS`' order; where no two entries of two tasks meet, or a gradient is
  zero, there is None.

  Raises:
    ValueError: a group with another number of tasks than rows.
  """
  seen = {task for group in tasks for task in group}
  names = [task for task in TASKS if task in seen] + sorted(seen - set(TASKS))
  sums = {
    key: np.zeros((len(names), len(names))) for key in ("cosine", "conflict", "square")
  }
  pairs = np.zeros((len(names), len(names)))
  for gram, group in zip(grams, tasks, strict=True):
    if len(group) != len(gram):
      raise ValueError(f"fisher: {len(group)} tasks of a group of {len(gram)} entries")
    place = np.array([[task == name for name in names] for task in group], float)
    length = np.sqrt(np.diag(gram))
    # A pair with a gradient of zero has no angle.
    meet = np.outer(length > 0, length > 0) & ~np.eye(len(gram), dtype=bool)
    safe = np.where(length > 0, length, 1)
    for key, values in (
      ("cosine", gram / np.outer(safe, safe)), ("conflict", gram < 0), ("square", gram**2),
    ):  # fmt: skip
      sums[key] += place.T @ np.where(meet, values, 0.0) @ place
    pairs += place.T @ meet @ place
  with np.errstate(divide="ignore", invalid="ignore"):
    means = {key: value / pairs for key, value in sums.items()}
    own = np.diag(means["square"])
    overlap = means.pop("square") / np.sqrt(np.outer(own, own))
  return {
    "names": names,
    "pairs": pairs.astype(int).tolist(),
    **{key: _plain(value) for key, value in (means | {"overlap": overlap}).items()},
  }


def _plain(values: np.ndarray) -> list[list[float | None]]:
  return [[float(x) if np.isfinite(x) else None for x in row] for row in values]
