"""Accelerators as a table: what a device holds and how fast it multiplies.

NVIDIA's and Google's public data sheets: memory in GB of 10^9 bytes (what a GPU shows is a
little more), bfloat16 products summed in float32, without structured sparsity.
"""

from __future__ import annotations

from typing import NamedTuple


class Card(NamedTuple):
  name: str
  memory: float  # bytes
  peak: float  # bfloat16 FLOP a second


CARDS: tuple[Card, ...] = (
  Card("A100 / A800 80GB", 80e9, 312e12),
  Card("H100 80GB", 80e9, 989e12),
  Card("H200", 141e9, 989e12),
  Card("RTX 4090", 24e9, 165e12),
  Card("TPU v4", 32e9, 275e12),
  Card("TPU v5e", 16e9, 197e12),
  Card("TPU v5p", 95e9, 459e12),
  Card("TPU v6e", 32e9, 918e12),
)
