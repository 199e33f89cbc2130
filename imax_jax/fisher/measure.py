"""A checkpoint's distribution of spectra: what one violin of the paper's Figure 5 shows."""

from __future__ import annotations

import math
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

from absl import logging

from imax_jax import tree as tree_lib
from imax_jax.fisher import grads
from imax_jax.fisher import gram
from imax_jax.fisher.spectrum import spectrum
from imax_jax.schema import Batch


def measure(
  loss: grads.Loss,
  trainable: tree_lib.Tree,
  frozen: tree_lib.Tree,
  batches: Sequence[Batch],
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
  num_trainable = sum(
    math.prod(leaf.shape) for leaf in tree_lib.flatten(trainable).values()
  )
  parameters = {
    "sampled": gram.num_scalars(scalars or {}),
    "exact": num_trainable,
  }
  results: dict[str, dict[str, Any]] = {
    kind: {
      "kind": kind,
      "parameters": parameters[kind],
      "entropy_limit": 0.0,
      "entropy": [],
      "dominant": [],
      "rank": [],
    }
    for kind in kinds
    if kind in parameters
  }
  sizes: set[int] = set()
  if not len(batches):
    raise ValueError("fisher: no batch to measure; give it at least one of N entries")
  for number in range(len(batches)):
    batch = batches[number]
    sizes.add(int(batch["text"].shape[0]))
    if len(sizes) > 1:
      raise ValueError(
        f"fisher: batches have different numbers of rows {sorted(sizes)}; entropies are "
        "comparable only at one N. Drop the incomplete batch."
      )
    matrices = gram.gram_matrices(
      loss,
      trainable,
      frozen,
      batch,
      kinds=kinds,
      scalars=scalars,
      normalise=normalise,
      rows_at_once=rows_at_once,
    )
    for kind, matrix in matrices.items():
      found = spectrum(matrix)
      results[kind]["entropy"].append(found.entropy)
      results[kind]["dominant"].append(found.dominant)
      results[kind]["rank"].append(len(found.eigenvalues))
    if progress is not None:
      progress(number + 1, len(batches))
  for result in results.values():
    result["entropy_limit"] = math.log(min(*sizes, result["parameters"]))
  logging.info("fisher: %d spectra of %d examples", len(batches), *sizes)
  return list(results.values())
