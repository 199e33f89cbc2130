"""How much faster is a step when an image's entries share its prefix?

  python benchmarks/shared_prefix.py [--entries_per_image 8] [--steps 20]

The same entries, the same model (configs/phantom.py), two layouts side by side in one run:
rows that share prefixes, and one entry a row. Both are checked to have the same loss first.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from imax_jax import tree
from imax_jax.data import records
from imax_jax.data import tokenizer as tokenizer_lib
from imax_jax.data.pipeline import Batches
from imax_jax.models import zoo
from imax_jax.models.vlm import Vlm
from imax_jax.parameters import ASSETS

_PROMPT, _ANSWER = (8, 40), (2, 24)  # tokens, about what the phantom's entries have


def images(count: int, entries: int, slots: int, vocab: int) -> list[Any]:
  """Images with random entries: what is said does not matter for the time."""
  rng = np.random.default_rng(0)
  tokenizer = tokenizer_lib.load(ASSETS / "tokenizer.json")
  prefix, slot = records.prefix_of(tokenizer, slots)

  def ids(bounds: tuple[int, int]) -> np.ndarray:
    return rng.integers(3, vocab, rng.integers(*bounds)).astype(np.int32)

  entry: Any = None
  return [
    records.TokenizedImage(
      f"image{i}", prefix, slot,
      tuple(
        records.TokenizedEntry(ids(_PROMPT), ids(_ANSWER), entry) for _ in range(entries)
      ),
    )
    for i in range(count)
  ]  # fmt: skip


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--entries_per_image", type=int, default=8)
  parser.add_argument("--steps", type=int, default=20)
  options = parser.parse_args()
  config = zoo.model("toy")
  model, slots = Vlm(**config), 16
  found = images(200, options.entries_per_image, slots, config["decoder"]["vocab_size"])
  width = config["encoder"]["width"]
  features = np.random.default_rng(1).normal(size=(200, 4 * slots, width))
  layouts = {
    name: Batches(
      found, lambda i: features[i].astype(np.float32), num_steps=options.steps,
      entries_per_step=64, row_tokens=row_tokens, seed=0, share_prefix=shared,
    )
    for name, row_tokens, shared in (("shared", 256, True), ("separate", 96, False))
  }  # fmt: skip
  params = jax.jit(model.init)(jax.random.key(0), layouts["shared"][0])["params"]
  rules = (("connector/.*", True), (".*/lora_[ab]", True), (".*", False))
  trainable, frozen = tree.split(params, rules)

  def loss(trainable: Any, frozen: Any, batch: Any) -> Any:
    params = tree.merge(trainable, frozen)
    found: Any = model.apply({"params": params}, batch, method="loss")
    return found[0].sum() / found[1].sum()

  step = jax.jit(jax.value_and_grad(loss))
  seconds: dict[str, list[float]] = {name: [] for name in layouts}
  for number in range(options.steps):
    values = {}
    for name, batches in layouts.items():  # in turn: noise falls on both
      batch = {key: jax.device_put(value) for key, value in batches[number].items()}
      start = time.perf_counter()
      values[name] = float(jax.block_until_ready(step(trainable, frozen, batch))[0])
      seconds[name].append(time.perf_counter() - start)
    np.testing.assert_allclose(values["shared"], values["separate"], rtol=1e-5)
  out = sys.stdout.write
  for name, batches in layouts.items():
    times = np.sort(seconds[name][1:])  # the first compiles
    shapes = dataclasses.asdict(batches.shapes[0])
    out(
      f"{name:9} median {np.median(times):.3f} s a step, min {times[0]:.3f}; {shapes}\n"
    )
  ratio = np.median(seconds["separate"][1:]) / np.median(seconds["shared"][1:])
  out(f"{Path(__file__).stem}: separate / shared = {ratio:.2f}\n")


if __name__ == "__main__":
  main()
