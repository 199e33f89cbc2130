"""What the gradients of different tasks have to do with each other, from Gram blocks.

With k_ij the inner product of the gradients of entries i and j, entries of tasks a and b
that stand in one group are pairs (i, j), i ≠ j: an entry is no pair with itself. Over all
pairs of all groups:

    cosine    mean of k_ij / √(k_ii k_jj)       do they pull the same way
    conflict  share of k_ij < 0                 how often one undoes the other
    overlap   m_ab / √(m_aa m_bb), m_ab the mean of k_ij²

The last estimates the cosine between the tasks' own Fisher matrices, ⟨F_a, F_b⟩ /
|F_a| |F_b|, since ⟨F_a, F_b⟩ = E k_ij²; leaving out i = j makes each of the three means
unbiased. The cosine is 0 where the tasks move different directions and 1 where they move
the same ones; its estimate, a ratio of means, leaves 0…1 by noise, and by any amount
where a task meets itself in few pairs: numbers of pairs go with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

from imax_jax.schema import TASKS

SUMS = ("cosine", "conflict", "square")


def between(
  grams: Sequence[np.ndarray], tasks: Sequence[Sequence[str]]
) -> dict[str, Any]:
  """Of groups' Gram matrices and the task of each of their rows, JSON-able:

      {"names": [task, …], "pairs": [[count]],
       "sums": {"cosine": [[x]], "conflict": …, "square": …}}

  for `pooled`: sums over ordered pairs, so that two entries of one task count twice.
  Names are in `TASKS`' order. A gradient of zero has no angle and is in no pair.

  Raises:
    ValueError: a group with another number of tasks than rows.
  """
  names = _ordered({task for group in tasks for task in group})
  sums = {key: np.zeros((len(names), len(names))) for key in SUMS}
  pairs = np.zeros((len(names), len(names)))
  for gram, group in zip(grams, tasks, strict=True):
    if len(group) != len(gram):
      raise ValueError(f"fisher: {len(group)} tasks of a group of {len(gram)} entries")
    place = np.array([[task == name for name in names] for task in group], float)
    length = np.sqrt(np.diag(gram))
    meet = np.outer(length > 0, length > 0) & ~np.eye(len(gram), dtype=bool)
    safe = np.where(length > 0, length, 1)
    for key, values in (
      ("cosine", gram / np.outer(safe, safe)), ("conflict", gram < 0), ("square", gram**2),
    ):  # fmt: skip
      sums[key] += place.T @ np.where(meet, values, 0.0) @ place
    pairs += place.T @ meet @ place
  return {
    "names": names,
    "pairs": pairs.astype(int).tolist(),
    "sums": {key: value.tolist() for key, value in sums.items()},
  }


def pooled(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """`between`'s sums of several seeds, added up before any ratio is taken, JSON-able:

      {"names": [task, …], "seeds": 3, "pairs": [[count]],
       "cosine": [[x]], "conflict": …, "overlap": …}

  Here `pairs` counts two entries once, on the diagonal too. There is None where no two
  entries of two tasks meet.
  """
  names = _ordered({name for one in found for name in one["names"]})
  sums = {key: np.zeros((len(names), len(names))) for key in ("pairs", *SUMS)}
  for one in found:
    place = np.ix_(*[[names.index(name) for name in one["names"]]] * 2)
    for key, values in (("pairs", one["pairs"]), *one["sums"].items()):
      sums[key][place] += np.asarray(values, float)
  pairs = sums.pop("pairs")
  with np.errstate(divide="ignore", invalid="ignore"):
    means = {key: value / pairs for key, value in sums.items()}
    own = np.diag(means["square"])
    overlap = means.pop("square") / np.sqrt(np.outer(own, own))
  distinct = pairs / (1 + np.eye(len(names)))
  return {
    "names": names,
    "seeds": len(found),
    "pairs": distinct.astype(int).tolist(),
    **{key: _plain(value) for key, value in (means | {"overlap": overlap}).items()},
  }


def _ordered(names: set[str]) -> list[str]:
  return [task for task in TASKS if task in names] + sorted(names - set(TASKS))


def _plain(values: np.ndarray) -> list[list[float | None]]:
  return [[float(x) if np.isfinite(x) else None for x in row] for row in values]
