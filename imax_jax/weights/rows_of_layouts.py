"""All tables of published layouts; the first that fits a file is its own."""

from __future__ import annotations

from collections.abc import Collection

from imax_jax.weights import own
from imax_jax.weights import signatures
from imax_jax.weights.checkpoints import Checkpoint
from imax_jax.weights.layouts import Layout
from imax_jax.weights.rows_of_adapters import ADAPTERS
from imax_jax.weights.rows_of_decoders import DECODERS
from imax_jax.weights.rows_of_encoders import ENCODERS
from imax_jax.weights.rows_of_qformers import QFORMERS

LAYOUTS: tuple[Layout, ...] = (*DECODERS, *QFORMERS, *ENCODERS, *ADAPTERS)


def layout(name: str) -> Layout:
  """The layout of that name, for export."""
  return {found.name: found for found in LAYOUTS}[name]


def recognise(checkpoint: Checkpoint, part: str, paths: Collection[str] = ()) -> Layout:
  """The layout of a checkpoint, by its tensors' names alone.

  Args:
    paths: the model's, which one of our own foundations is laid out for.

  Raises:
    ValueError: none fits, or it is one of another part.
  """
  fitting = [layout for layout in LAYOUTS if layout.fits(checkpoint.names)]
  for layout in fitting:
    if layout.part != part:
      continue
    if checkpoint.wrapper not in ("", layout.wrapper):
      place = f"under {layout.wrapper!r}" if layout.wrapper else "at the top"
      raise ValueError(
        f"{checkpoint.path}: its tensors stand under {checkpoint.wrapper!r}, expected "
        f"them {place} in a file of layout {layout.name}"
      )
    return layout
  ours = own.layout(checkpoint, part, paths)
  if ours.rows:
    return ours
  known = ", ".join(layout.name for layout in LAYOUTS if layout.part == part)
  what = (
    f"a file of the {fitting[0].part} ({fitting[0].name})"
    if fitting
    else f"{len(checkpoint.names)} tensors like {', '.join(checkpoint.names[:3])}"
  )
  is_ = signatures.what_is(checkpoint)
  what += f", {is_} by its names" if is_ else ""
  raise ValueError(
    f"{checkpoint.path}: expected a published {part} ({known}), got {what}. Check which "
    "path was given for which part"
  )
