"""A checkpoint's distribution of spectra: what one violin of the paper's Figure 5 shows."""

from __future__ import annotations

import math
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any
from typing import Protocol

from imax_jax import tree as tree_lib
from imax_jax.fisher import grads
from imax_jax.fisher import gram
from imax_jax.fisher.spectrum import spectrum
from imax_jax.schema import Batch


class Batches(Protocol):
  """Batches by number."""

  def __len__(self) -> int: ...

  def __getitem__(self, number: int, /) -> Batch: ...


def measure(
  loss: grads.Loss,
  trainable: tree_lib.Tree,
  frozen: tree_lib.Tree,
  batches: Batches,
  *,
  kinds: Sequence[gram.Kind] = gram.KINDS,
  scalars: gram.Scalars | None = None,
  normalise: grads.Normalise = "mean",
  rows_at_once: int | None = None,
  progress: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:
  """One spectrum for each batch and kind (paper 4.2.2: 1,600 samples, 50 batches of 32).

  Returns a JSON-able dict for each kind:

      {"kind": "sampled", "parameters": 450, "entropy_limit": 3.466,   # ln N
       "entropy": [nats, …], "dominant": [percent, …], "rank": [d, …]}  # one a batch

  `scalars` are `gram.choose_scalars`' and are only needed for "sampled". `progress` is
  called with (batches done, all batches). `batches` is read by index, one at a time.

  Raises:
    ValueError: no batch, batches of different N (their entropies have different
      limits), gradients that all vanish, or what `gram.gram_matrices` raises.
  """
  if not len(batches):
    raise ValueError("fisher: no batch to measure; give it at least one of N entries")
  results = _empty(trainable, kinds, scalars)
  sizes: set[int] = set()
  for number in range(len(batches)):
    batch = batches[number]
    sizes.add(int(batch["text"].shape[0]))
    if len(sizes) > 1:
      raise ValueError(
        f"fisher: batches have different numbers of rows {sorted(sizes)}; entropies are "
        "comparable only at one N. Drop the incomplete batch."
      )
    matrices = gram.gram_matrices(
      loss, trainable, frozen, batch,
      kinds=kinds, scalars=scalars, normalise=normalise, rows_at_once=rows_at_once,
    )  # fmt: skip
    for kind, matrix in matrices.items():
      found = spectrum(matrix)
      results[kind]["entropy"].append(found.entropy)
      results[kind]["dominant"].append(found.dominant)
      results[kind]["rank"].append(len(found.eigenvalues))
    if progress is not None:
      progress(number + 1, len(batches))
  for result in results.values():
    result["entropy_limit"] = math.log(min(*sizes, result["parameters"]))
  return list(results.values())


def _empty(
  trainable: tree_lib.Tree, kinds: Sequence[gram.Kind], scalars: gram.Scalars | None
) -> dict[str, dict[str, Any]]:
  leaves = tree_lib.flatten(trainable).values()
  parameters = {
    "sampled": gram.num_scalars(scalars or {}),
    "exact": sum(math.prod(leaf.shape) for leaf in leaves),
  }
  return {
    kind: {
      "kind": kind,
      "parameters": parameters[kind],
      "entropy_limit": 0.0,
      "entropy": [],
      "dominant": [],
      "rank": [],
    }
    for kind in kinds
  }
