"""A checkpoint's distribution of spectra: what one violin of the paper's Figure 5 shows."""

from __future__ import annotations

import math
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any
from typing import Protocol

import numpy as np
from jax.sharding import Mesh

from imax_jax import tree as tree_lib
from imax_jax.fisher import grads
from imax_jax.fisher import gram
from imax_jax.fisher import tasks
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
  scalars: gram.Scalars,
  normalise: grads.Normalise = "sum",
  rows_at_once: int = 0,
  tapped: str = "",
  mesh: Mesh | None = None,
  tasks_of: Callable[[int], Sequence[str]] | None = None,
  progress: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:
  """One spectrum for each batch and kind (paper 4.2.2: 1,600 samples, 50 batches of 32).

  Returns a JSON-able dict for each kind:

      {"kind": "sampled", "parameters": 450, "entropy_limit": 3.466,   # ln N
       "entropy": [nats, …], "dominant": [percent, …], "rank": [d, …],  # one a batch
       "vanishing": 224}     # scalars, or parameters' matrices, that have no gradient

  and for "exact" also

       "trace": {path: [percent, …]}   # what each of its matrices adds to the trace
       "tasks": …                      # `tasks.between`, with `tasks_of`

  Args:
    batches: read by index, one at a time.
    tasks_of: the task of each of a batch's rows.
    progress: called with (batches done, all batches).

  The others are `gram.measure_gram`'s.

  Raises:
    ValueError: no batch, batches of different N (their entropies have different
      limits), gradients that all vanish, or what `gram.measure_gram` raises.
  """
  if not len(batches):
    raise ValueError("fisher: no batch to measure; give it at least one of N entries")
  found: list[gram.Gram] = []
  for number in range(len(batches)):
    one = gram.measure_gram(
      loss, trainable, frozen, batches[number], scalars=scalars, normalise=normalise,
      rows_at_once=rows_at_once, tapped=tapped, mesh=mesh,
    )  # fmt: skip
    found.append(one)
    sizes = sorted({len(gram.exact) for gram in found})
    if len(sizes) > 1:
      raise ValueError(
        f"fisher: batches have different numbers of rows {sizes}; entropies are "
        "comparable only at one N. Drop the incomplete batch."
      )
    if progress is not None:
      progress(number + 1, len(batches))
  names = tasks_of and [tasks_of(number) for number in range(len(batches))]
  return [
    _sampled(found, gram.num_scalars(scalars)),
    _exact(found, trainable, names or None),
  ]


def _sampled(found: Sequence[gram.Gram], scalars: int) -> dict[str, Any]:
  largest = np.max([np.abs(one.entries).max(axis=0) for one in found], axis=0)
  spectra = _spectra("sampled", scalars, [one.sampled for one in found])
  return spectra | {"vanishing": int((largest == 0).sum())}


def _exact(
  found: Sequence[gram.Gram],
  trainable: tree_lib.Tree,
  names: Sequence[Sequence[str]] | None,
) -> dict[str, Any]:
  sizes = [math.prod(leaf.shape) for leaf in tree_lib.flatten(trainable).values()]
  grams = [one.exact for one in found]
  traces = {
    path: np.mean([one.traces[path] for one in found], axis=0)
    for path in found[0].traces
  }
  total = sum(float(part.sum()) for part in traces.values())
  return {
    **_spectra("exact", sum(sizes), grams),
    "vanishing": sum(int((part == 0).sum()) for part in traces.values()),
    "trace": {path: (100 * part / total).tolist() for path, part in traces.items()},
    **({} if names is None else {"tasks": tasks.between(grams, names)}),
  }


def _spectra(kind: str, parameters: int, grams: Sequence[np.ndarray]) -> dict[str, Any]:
  spectra = [spectrum(one) for one in grams]
  return {
    "kind": kind,
    "parameters": parameters,
    "entropy_limit": math.log(min(len(grams[0]), parameters)),
    "entropy": [one.entropy for one in spectra],
    "dominant": [one.dominant for one in spectra],
    "rank": [len(one.eigenvalues) for one in spectra],
  }
