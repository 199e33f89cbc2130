"""Images with entries as the paper's IMAX has them: how many, of which tasks, how long.

What is said does not matter to time: the tokens are drawn.
"""

from __future__ import annotations

import types
from typing import Any

import numpy as np

from imax_jax.data import records

# Entries of each task in IMAX (the paper's Figure 2), and about how many tokens a prompt
# and an answer of it have with LLaMA's tokenizer.
_TASKS = {
  "calculation": (54_684, 30, 7), "report": (45_715, 20, 90), "multi_class": (6_019, 45, 5),
  "multi_label": (45_186, 70, 20), "rec": (51_045, 25, 18), "reg": (51_045, 40, 4),
  "vqa": (100_901, 25, 4),
}  # fmt: skip
ENTRIES_PER_IMAGE = 7.46


def images(count: int, slots: int, vocab: int) -> list[records.TokenizedImage]:
  """Each of 7.46 entries on average, behind one prefix of `slots` image tokens."""
  rng = np.random.default_rng(0)
  share = np.array([count for count, _, _ in _TASKS.values()], float)
  nouns: list[Any] = [types.SimpleNamespace(task=task) for task in _TASKS]
  lengths = [sizes for _, *sizes in _TASKS.values()]
  prefix = np.array([1, 5, 6, 7, *[0] * slots, 8, 9], np.int32)
  slot = np.array([-1] * 4 + [*range(slots)] + [-1] * 2, np.int32)

  def ids(length: float) -> np.ndarray:
    size = max(2, round(rng.normal(length, length / 5)))
    return rng.integers(3, vocab, size).astype(np.int32)

  found = []
  for number in range(count):
    several = max(1, rng.poisson(ENTRIES_PER_IMAGE))
    tasks = rng.choice(len(share), several, p=share / share.sum())
    entries = tuple(
      records.TokenizedEntry(*map(ids, lengths[task]), nouns[task]) for task in tasks
    )
    found.append(records.TokenizedImage(str(number), prefix, slot, entries))
  return found


def longest(found: list[records.TokenizedImage]) -> int:
  """Tokens of the longest entry, its image's prefix not counted."""
  return max(entry.length for image in found for entry in image.entries)
