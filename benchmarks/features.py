"""Features on disk: bytes an image, images a second written and read, beside encoding.

  python -m benchmarks.features [--images 400] [--patches 257] [--width 1408] [--rounds 5]

First random features of the paper's encoder's size, written by `features.Store` and read
in random order as training reads them, SHA-256 checked, to float32. Then the encoder that
configs/phantom.py and configs/open_cxr_smollm2.py share, in batches of 64, from uint8
pixels, and its features read. The ways take turns; each figure is the median over the
rounds. What is read was just written: it comes from the page cache, not from the disk.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import hashlib
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from imax_jax.data import features
from imax_jax.models import zoo
from imax_jax.models.vit import Encoder

_AT_ONCE = 64
_ENCODER = "ab" * 32

Run = Callable[[], object]  # over all images


def rates(ways: dict[str, Run], count: int, rounds: int) -> dict[str, float]:
  """Images a second of each, after one round that does not count."""
  found: dict[str, list[float]] = {name: [] for name in ways}
  for number in range(rounds + 1):
    for name, run in ways.items():
      start = time.perf_counter()
      run()
      if number:
        found[name].append(count / (time.perf_counter() - start))
  return {name: statistics.median(values) for name, values in found.items()}


def store_ways(folder: Path, rows: np.ndarray) -> tuple[features.Store, dict[str, Run]]:
  images = [hashlib.sha256(str(n).encode()).hexdigest() for n in range(len(rows))]
  order = np.random.default_rng(1).permutation(len(rows))
  shape = (rows.shape[1], rows.shape[2])
  store = features.Store(folder, _ENCODER, shape)

  def write() -> None:
    shutil.rmtree(folder, ignore_errors=True)
    store.fill(
      images,
      lambda places: rows[list(places)],
      at_once=_AT_ONCE,
      progress=lambda done, total: None,
    )

  def read(threads: int) -> None:
    found = features.Features(features.Store(folder, _ENCODER, shape), images)
    if threads == 1:
      for number in order:
        found[number]
      return
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
      for _ in pool.map(found.__getitem__, order):
        pass

  def check() -> None:
    assert store.check() == 0

  ways: dict[str, Run] = {
    "written": write,
    "read, 1 thread": lambda: read(1),
    "read, 2 threads": lambda: read(2),
    "checked by encode": check,
  }
  return store, ways


def encoder_way(pixels: np.ndarray) -> tuple[np.ndarray, Run]:
  """The toy encoder's features, bfloat16[n, P, D], and the run that makes them."""
  encoder = Encoder(**zoo.model("toy")["encoder"])
  params = jax.jit(encoder.init)(jax.random.key(0), pixels[:1])
  apply = jax.jit(lambda p, x: encoder.apply(p, x).astype(features.DTYPE))

  def run() -> list[np.ndarray]:
    starts = range(0, len(pixels), _AT_ONCE)
    return [np.asarray(apply(params, pixels[at : at + _AT_ONCE])) for at in starts]

  return np.concatenate(run()), run


def report(
  title: str, folder: Path, rows: np.ndarray, more: dict[str, Run], rounds: int
) -> dict[str, float]:
  store, ways = store_ways(folder, rows)
  found = rates(ways | more, len(rows), rounds)
  payload = rows[0].nbytes
  size = store.size() / len(rows)
  sys.stdout.write(
    f"{title}: {len(rows)} images of {list(rows.shape[1:])}, {size:,.0f} bytes an image ({size / payload - 1:.2%} over the numbers)\n"
  )
  for name, rate in found.items():
    sys.stdout.write(
      f"  {name:20s} {rate:10,.1f} images/s {rate * payload / 1e6:10,.1f} MB/s\n"
    )
  return found


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--images", type=int, default=400)
  parser.add_argument("--patches", type=int, default=257)
  parser.add_argument("--width", type=int, default=1408)
  parser.add_argument("--rounds", type=int, default=5)
  args = parser.parse_args()
  rng = np.random.default_rng(0)
  shape = (args.images, args.patches, args.width)
  rows = rng.standard_normal(shape, np.float32).astype(features.DTYPE)
  fields = zoo.model("toy")["encoder"]
  count = -(-args.images // _AT_ONCE) * _AT_ONCE
  side, channels = fields["image_px"], fields["channels"]
  pixels = rng.integers(0, 256, (count, side, side, channels), np.uint8)
  with tempfile.TemporaryDirectory() as folder:
    report("the paper's encoder", Path(folder) / "paper", rows, {}, args.rounds)
    made, run = encoder_way(pixels)
    found = report(
      "the phantom's", Path(folder) / "toy", made, {"encoded": run}, args.rounds
    )
  ratio = found["read, 1 thread"] / found["encoded"]
  sys.stdout.write(
    f"{Path(__file__).stem}: the phantom's read / encoded = {ratio:.1f} on {os.cpu_count()} cores\n"
  )


if __name__ == "__main__":
  main()
