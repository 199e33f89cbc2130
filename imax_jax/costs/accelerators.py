"""Accelerators as a table: what a device holds and how fast it multiplies.

NVIDIA's and Google's public data sheets: memory in GB of 10^9 bytes (what a GPU shows is a
little more), bfloat16 products summed in float32, without structured sparsity.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Card(NamedTuple):
  name: str
  kind: str  # a pattern of JAX's device_kind
  memory: float  # bytes
  peak: float  # bfloat16 FLOP a second


CARDS: tuple[Card, ...] = (
  Card("A100 / A800 80GB", r"A[18]00", 80e9, 312e12),
  Card("H100 80GB", r"H[18]00", 80e9, 989e12),
  Card("H200", r"H200", 141e9, 989e12),
  Card("RTX 4090", r"RTX 4090", 24e9, 165e12),
  Card("TPU v4", r"TPU v4$", 32e9, 275e12),
  Card("TPU v5e", r"TPU v5 ?(e|lite)", 16e9, 197e12),
  Card("TPU v5p", r"TPU v5p?$", 95e9, 459e12),
  Card("TPU v6e", r"TPU v6 ?(e|lite)", 32e9, 918e12),
)


def peak_of(device_kind: str) -> float:
  """bfloat16 FLOP a second of one device; 0.0 for one that is not in the table.

  >>> peak_of("NVIDIA A100-SXM4-80GB")
  312000000000000.0
  """
  found = [card.peak for card in CARDS if re.search(card.kind, device_kind)]
  return found[0] if found else 0.0
