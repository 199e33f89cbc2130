"""All tables of published layouts; the first that fits a file is its own."""

from __future__ import annotations

from imax_jax.weights.layouts import Layout
from imax_jax.weights.rows_of_adapters import ADAPTERS
from imax_jax.weights.rows_of_decoders import DECODERS
from imax_jax.weights.rows_of_encoders import ENCODERS
from imax_jax.weights.rows_of_qformers import QFORMERS

LAYOUTS: tuple[Layout, ...] = (*DECODERS, *QFORMERS, *ENCODERS, *ADAPTERS)


def layout(name: str) -> Layout:
  """The layout of that name, for export."""
  return {found.name: found for found in LAYOUTS}[name]
