"""Products of per-example gradients, taken where a gradient is made, and it thrown away.

A tap stands between a weight and all that reads it:

    weight ──tap──▶ weight          on the way back:   gradients of N examples [N, …]
    tap {entry, index, row} ─┘        row   [N, N]  their inner products
                                      entry [N]     one number of each, at `index`

It is the weight itself. What comes out is the gradient with respect to the tap, asked for
under `vmap(grad)`: example n's is row n of the Gram matrix of this weight's gradients. So
one backward pass over N examples gives all the products, and of the per-example gradients
only those of one weight of one layer are in memory at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from imax_jax import mesh as mesh_lib

NAME = "taps"  # the collection of variables beside "params"
# Of a weight: {"entry": float32[m], "index": int32[m], "row": float32[m, N]}, where the
# weight is m matrices (the layers of a stack), of each of which a number is picked out.
Tap = Mapping[str, Any]


def make(index: jax.Array, examples: int) -> dict[str, jax.Array]:
  """The tap of a weight that is len(index) matrices, each read at its flat index.

  What it is asked for is the gradient with respect to "entry" and "row".
  """
  count = len(index)
  return {"entry": jnp.zeros(count), "row": jnp.zeros((count, examples))}


def each(tap: Tap) -> dict[str, Any]:
  """The tap of L layers' matrices as what `nn.scan` hands out: one of [1] to each."""
  return {name: value[:, None] for name, value in tap.items()}


def tapped(params: Mapping[str, Any], taps: Mapping[str, Any]) -> dict[str, Any]:
  """The weights, each that has one behind its tap."""
  return {
    name: value
    if name not in taps
    else tapped(value, taps[name])
    if isinstance(value, Mapping)
    else _through(value, **taps[name])
    for name, value in params.items()
  }


def behind(block: Any) -> Any:
  """A module class whose own weights stand behind the taps handed in beside them."""

  def put(variables: Mapping[str, Any]) -> dict[str, Any]:
    return {"params": tapped(variables["params"], variables.get(NAME, {}))}

  return nn.map_variables(block, ["params", NAME], trans_in_fn=put)


@jax.custom_vjp
def _through(weight: jax.Array, entry: Any, index: Any, row: Any) -> jax.Array:
  del entry, index, row
  return weight


def _forward(weight: jax.Array, entry: Any, index: Any, row: Any) -> Any:
  del entry
  return weight, (index, row)


def _backward(tap: Any, gradient: jax.Array) -> tuple[Any, ...]:
  index, row = tap
  entry, row = _read(gradient, index, row)
  return None, entry, None, row


@jax.custom_batching.custom_vmap
def _read(gradient: Any, index: Any, row: Any) -> tuple[jax.Array, jax.Array]:
  """Of one example there is no product: NaN, so that it is not taken for one."""
  del gradient
  return jnp.full(index.shape, jnp.nan), jnp.full(row.shape, jnp.nan)


@_read.def_vmap
def _read_all(
  examples: int, batched: Sequence[bool], gradient: Any, index: Any, row: Any
) -> tuple[tuple[jax.Array, jax.Array], tuple[bool, bool]]:
  """gradient [N, *weight], index int32[m], row [m, N] -> entry [N, m], row [N, m, N]."""
  is_batched, *shared = batched
  if any(shared) or row.shape[-1] != examples:
    raise ValueError(
      f"taps: {examples} examples under vmap, but taps for {row.shape[-1]}; make the taps "
      "for as many, and map over the examples alone"
    )
  if not is_batched:  # it depends on no example, as where it is zero
    gradient = jnp.broadcast_to(gradient, (examples, *gradient.shape))
  return products(gradient, index), (True, True)


def products(gradient: jax.Array, index: Any) -> tuple[jax.Array, jax.Array]:
  """gradient [N, *weight] of m matrices, index int32[m] -> entry [N, m], row [N, m, N]."""
  flat = mesh_lib.lay_rows(gradient.astype(jnp.float32))
  flat = flat.reshape(len(flat), len(index), -1)
  entry = jnp.take_along_axis(flat, index[None, :, None], axis=2)[..., 0]
  # Highest: the default multiplies float32 as bfloat16 on a TPU and as TF32 on a GPU,
  # which drowns the small eigenvalues.
  highest = jax.lax.Precision.HIGHEST
  return entry, jnp.einsum("Nmp,Kmp->NmK", flat, flat, precision=highest)


_through.defvjp(_forward, _backward)
