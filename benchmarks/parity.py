"""How far is each row of the model's tables from its reference implementation?

  python -m benchmarks.parity > parity.md

Reduced sizes, seeded random weights, float32 on the CPU: transformers and PEFT in torch
beside ours, with the measures and the bounds of tests/test_parity.py. Needs the test extra.
Ends with status 1 if a bound does not hold.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator

import jax
import peft
import torch
import transformers

from tests import parity_models as models
from tests import parity_rows as rows
from tests import parity_vlm as vlm
from tests.parity_models import Measure


def measures() -> Iterator[Measure]:
  for name in models.ENCODERS:
    yield from models.encoder_measures(name)
  for name in models.DECODERS:
    yield from models.decoder_measures(name)
  for name in models.ADAPTERS:
    yield from models.adapter_measures(name)
  yield from vlm.whole_measures()
  ours, theirs, gap = vlm.answers()
  wrong = sum(one != other for one, other in zip(ours, theirs, strict=True))
  said = (
    f"greedy answers that differ, of {len(theirs)} (nearest second choice {gap:.1e})"
  )
  yield Measure(vlm.ROW, said, wrong, 0)
  for name in rows.ROWS:
    yield from rows.measures(name)
    ours, theirs = rows.answers(name)
    wrong = sum(one != other for one, other in zip(ours, theirs, strict=True))
    yield Measure(name, f"greedy answers that differ, of {len(theirs)}", wrong, 0)
  yield from models.narrow_measures()


def main() -> None:
  warnings.filterwarnings("ignore", category=FutureWarning)
  libraries = (jax, torch, transformers, peft)
  print(", ".join(f"{lib.__name__} {lib.__version__}" for lib in libraries))
  print("\n| row | quantity | error | bound |\n|---|---|---:|---:|", flush=True)
  failed = False
  for row, quantity, error, bound in measures():
    fits = error <= bound  # NaN does not
    failed |= not fits
    mark = "" if fits else " **above**"
    print(f"| {row} | {quantity} | {error:.1e}{mark} | {bound:.0e} |", flush=True)
  sys.exit(failed)


if __name__ == "__main__":
  main()
