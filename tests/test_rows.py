"""The paper's baselines and today's row equal their references, whole, at reduced width."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="the references run in torch")
pytest.importorskip("peft", reason="LoRA's reference")

# After the two lines above: this imports what may be missing.
from tests import parity_rows as rows


@pytest.mark.parametrize("name", rows.ROWS)
def test_image_tokens_logits_and_gradients(name: str) -> None:
  for measure in rows.measures(name):
    assert measure.error <= measure.bound, measure


@pytest.mark.parametrize("name", rows.ROWS)
def test_greedy_answers(name: str) -> None:
  ours, theirs = rows.answers(name)
  assert ours == theirs
