"""Rows of the vocabulary: where a table of another length than the model's stands in it.

    decoder's file   ├────────── its own rows ──────────┤
    adapter's file                              ├ marks ┤   or all rows: then it is taken
    the model        ├────────── its own rows ──┼ added ┤

Rows of added tokens that no file has are the mean of the others, as in HealthGPT (demo
/utils.py, add_special_tokens_and_resize_model).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# The axis of the vocabulary.
AXES = {"decoder/embed/embedding": 0, "decoder/head/kernel": 1}


class Vocabulary(NamedTuple):
  """How a table of the vocabulary becomes the model's.

  Args:
    added: how many tokens the model has beyond its tokenizer's file; the last rows.
    dropped: how many last rows of a table that is too long are left out.
  """

  added: int = 0
  dropped: int = 0

  def rows(self, there: int, here: int, *, over: bool) -> tuple[int, int] | None:
    """(first, one after the last) of the model's `here` rows that a table fills.

    Args:
      there: its rows.
      over: whether it stands over the decoder's own table, an adapter's does.

    None where it does not fit.
    """
    if there > here and self.dropped:
      there -= self.dropped
      if over and 0 < there <= here:
        return 0, there
    own = here - self.added
    if there == here:
      return 0, here
    if over:
      return (own, here) if there == self.added else None
    return (0, own) if own <= there < here else None

  def misfit(self, there: int, here: int) -> str:
    """Words about a table that does not fit."""
    words = f"vocabulary: {there} rows there, vocab_size {here} here"
    words += f" with {self.added} added tokens" if self.added else ""
    words += f", {self.dropped} to be dropped" if self.dropped else ""
    if there > here and not self.dropped:
      words += (
        f"; --config.model.decoder.vocab_size={there} if the tokenizer of these weights "
        "has ids for them; --config.published.drop_rows=COUNT if its last COUNT rows are "
        f"of tokens that are not used here ({there - here} leaves as many as the model has)"
      )
    return f" ({words})"


AS_IT_IS = Vocabulary()


def mixed(
  tables: Sequence[tuple[np.ndarray, tuple[int, int]]], size: int, axis: int
) -> np.ndarray:
  """The model's table of tables and the rows that they fill; later ones lie over.

  Rows that none fills are the mean of the first table's, in float32.
  """
  first = tables[0][0]
  shape = (*first.shape[:axis], size, *first.shape[axis + 1 :])
  out = np.empty(shape, first.dtype)
  view = np.moveaxis(out, axis, 0)
  filled = 0
  for number, (table, (start, stop)) in enumerate(tables):
    rows = np.moveaxis(table, axis, 0)[: stop - start]
    view[start:stop] = rows
    if number == 0 and stop < size:
      view[stop:] = rows.mean(0, dtype=np.float32).astype(out.dtype)
    filled = max(filled, stop)
  return out
