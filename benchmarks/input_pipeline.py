"""Records a second that the input pipeline delivers, and what a training step consumes.

  python -m benchmarks.input_pipeline [--records 10000] [--entries 16]

`Batches` through `make_iterator`, as the loop has them, at IMAX's mix of entries, with 64
image tokens. Two kinds of input: the frozen encoder's features from a memory map on disk,
float16[256, 1408] an image as of EVA-CLIP, and uint8 pixels of 224 x 224 x 3 from another.
The consumers: the toy model's step, measured here, and the 7B model's on two A800, computed
(benchmarks/paper_training.py). Asked: three times what a step consumes; a step's time and
the process's memory flat over 10,000 records, which are images with all their entries.

The memory is the process's own (RssAnon): pages of the map are the system's to take back.
They lie in its cache here; a slow disk is not measured.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import mix
from benchmarks import paper_training as paper
from imax_jax import mesh as mesh_lib
from imax_jax import tree as tree_lib
from imax_jax.data.pipeline import Batches
from imax_jax.data.pipeline import make_iterator
from imax_jax.models import zoo
from imax_jax.models.vlm import Vlm
from imax_jax.models.vlm import batch_loss
from imax_jax.train import optim
from imax_jax.train.state import init_state
from imax_jax.train.step import make_train_step

_ASKED = 3.0
_SLOTS = 64
_TOY_SLOTS = 16
_KINDS = {
  "features": ((256, 1408), np.float16),
  "pixels": ((224, 224, 3), np.uint8),
}
_BLOCK = 20  # steps that are timed together: what was read ahead comes in bursts
_AT_PEAK = 0.5  # the fastest of the assumed cards


def on_disk(folder: Path, name: str, count: int) -> np.ndarray:
  """A memory map as `Study.pixels` hands out, of noise."""
  shape, dtype = _KINDS[name]
  path = folder / f"{name}.npy"
  kept: Any = np.lib.format.open_memmap(path, "w+", dtype, (count, *shape))
  rng = np.random.default_rng(0)
  for image in kept:
    image[:] = rng.integers(0, 255, shape, np.uint8)
  kept.flush()
  return np.load(path, mmap_mode="r")


def own_memory() -> float:
  """MB that this process holds and no file backs."""
  status = Path("/proc/self/status").read_text(encoding="ascii")
  return int(status.split("RssAnon:")[1].split()[0]) / 1024


# ── What is delivered ───────────────────────────────────────────────────────────────


def deliver(batches: Batches, entries: int) -> float:
  """Entries a second, and whether time and memory stay as they are."""
  blocks, held = [], []
  iterator = make_iterator(batches)
  for _ in range(len(batches) // _BLOCK):
    began = time.perf_counter()
    for _ in range(_BLOCK):
      next(iterator)
    blocks.append((time.perf_counter() - began) / _BLOCK)
    held.append(own_memory())
  fifth = len(blocks) // 5
  ends = [1e3 * statistics.median(part) for part in (blocks[:fifth], blocks[-fifth:])]
  at = np.arange(len(blocks)) * _BLOCK * entries / mix.ENTRIES_PER_IMAGE / 1000
  slope = 1e3 * np.polyfit(at, blocks, 1)[0]
  # The first fifth fills the reader's buffers and the order's cache.
  grown = np.polyfit(at[fifth:], held[fifth:], 1)[0]
  rate = entries / statistics.mean(blocks)
  sys.stdout.write(
    f"{rate:,.0f} entries/s, {rate / mix.ENTRIES_PER_IMAGE:,.0f} records/s\n"
    f"{'':12}a step {ends[0]:.3f} ms in the first fifth, {ends[1]:.3f} in the last "
    f"({slope:+.4f} ms for 1,000 records)\n"
    f"{'':12}memory {held[fifth]:.1f} MB after a fifth, {held[-1]:.1f} at the end "
    f"({grown:+.3f} MB for 1,000 records)\n"
  )
  return rate


def lay_out() -> None:
  """How long a run of the paper's size takes to begin: all its steps are planned."""
  found = mix.images(paper.IMAGES, _SLOTS, paper.VOCAB)
  steps = round(paper.ENTRIES * paper.EPOCHS / 8)
  began = time.perf_counter()
  Batches(
    found, lambda _: np.zeros((256, 1408), np.float16), num_steps=steps,
    entries_per_step=8, row_tokens=1024, row_multiple=128, max_shapes=3, seed=0,
  )  # fmt: skip
  sys.stdout.write(
    f"  {steps:,} steps of 8 entries (the paper's run) are laid out in "
    f"{time.perf_counter() - began:.1f} s\n"
  )


# ── What is consumed ────────────────────────────────────────────────────────────────


def toy_rate(entries: int, steps: int) -> float:
  """Entries a second of the toy's training step on this CPU, its batches at hand."""
  fields = zoo.model("toy")
  found = mix.images(200, _TOY_SLOTS, fields["decoder"]["vocab_size"])
  features = np.zeros((4 * _TOY_SLOTS, fields["encoder"]["width"]), np.float32)
  batches = Batches(
    found, lambda _: features, num_steps=steps, entries_per_step=entries,
    row_tokens=512, seed=0,
  )  # fmt: skip
  model, mesh = Vlm(**fields), mesh_lib.make_mesh({"data": 1})
  params: Any = jax.jit(model.init)(jax.random.key(0), batches[0])["params"]
  rules = (("connector/.*", True), (".*/lora_[ab]", True), (".*", False))
  trainable, frozen = tree_lib.split(mesh_lib.replicate(params, mesh), rules)
  schedule = optim.make_schedule(
    num_steps=steps, peak_lr=1e-3, final_lr=1e-4, warmup_fraction=0.1, warmup_start_lr=0
  )
  optimizer = optim.make_optimizer(trainable, schedule)
  state = mesh_lib.replicate(init_state(trainable, optimizer.update, seed=0), mesh)
  step = make_train_step(batch_loss(model), optimizer)
  times = []
  for number in range(steps):
    batch = mesh_lib.put_batch(dict(batches[number]), mesh)
    began = time.perf_counter()
    state, _ = jax.block_until_ready(step(state, frozen, batch))
    times.append(time.perf_counter() - began)
  return entries / statistics.median(times[2:])


def paper_rate(entries: int) -> float:
  """Entries a second of the 7B model, features kept, on both cards together."""
  batches = paper.layout(_SLOTS, share_prefix=True, entries=entries, steps=50)
  work = paper.Model(_SLOTS).work(batches)
  return entries / paper.seconds(work.step, _AT_PEAK)


def main() -> None:
  parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
  parser.add_argument("--records", type=int, default=10_000, help="images in all")
  parser.add_argument("--entries", type=int, default=16, help="a step")
  parser.add_argument("--images", type=int, default=1000, help="on disk")
  options = parser.parse_args()
  found = mix.images(options.images, _SLOTS, paper.VOCAB)
  steps = round(options.records * mix.ENTRIES_PER_IMAGE / options.entries)
  rates = {}
  with tempfile.TemporaryDirectory() as folder:
    for name in _KINDS:
      kept = on_disk(Path(folder), name, options.images)
      read: Callable[[int], np.ndarray] = kept.__getitem__
      batches = Batches(
        found, read, num_steps=steps, entries_per_step=options.entries,
        row_tokens=1024, row_multiple=128, max_shapes=3, seed=0,
      )  # fmt: skip
      sys.stdout.write(f"  {name:<10}")
      sys.stdout.flush()
      rates[name] = deliver(batches, options.entries)
  lay_out()
  slowest = min(rates.values())
  consumers = {
    "the toy's step, this CPU, measured": toy_rate(options.entries, 22),
    f"7B, two A800 at {_AT_PEAK:.0%} of their peak, computed": paper_rate(
      options.entries
    ),
  }
  for name, rate in consumers.items():
    sys.stdout.write(
      f"  {name}: {rate:,.0f} entries/s;\n{'':12}the slower input delivers "
      f"{slowest / rate:.0f} times that (asked: {_ASKED:.0f})\n"
    )


if __name__ == "__main__":
  main()
