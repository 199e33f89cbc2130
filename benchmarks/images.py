"""Films a second from JPEG file to encoder's square: ours, and a torch DataLoader's.

  python -m benchmarks.images [--films 64] [--rounds 7] [--sizes 224 448]

Phantom films of 2544 x 3056 pixels, enlarged, with grain, written to a temporary folder.
Ours is `images.to_pixels` in a pool of 2 threads, as `data.builder` works, whole and in
draft. The others are PIL's bicubic resize, which is what torchvision's Resize calls on PIL
images, and a ToTensor, in a DataLoader of 2 processes that are warm and stay; in grey (the
least it can do) and in RGB (what the published transforms do). Where torch cannot be
imported, a pool of 2 processes stands in for the DataLoader. The ways take turns; each
figure is the median over the rounds, each ratio that of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from imax_jax.data import images
from imax_jax.data.phantom.anatomy import sample_case
from imax_jax.data.phantom.render import render

_SIZE = (2544, 3056)
_RENDERS, _RENDER_PX = 8, 768  # cases, each with as many grains as it takes
_GRAIN, _QUALITY = 1.5, 95
_WORKERS, _BATCH = 2, 8
_SEED = 5

Run = Callable[[], int]  # over all films; how many they were


def write_films(folder: Path, count: int) -> list[Path]:
  rng = np.random.default_rng(_SEED)
  drawn = []
  for n in range(min(_RENDERS, count)):
    film = render(sample_case(rng, view="AP" if n % 2 else "PA"), _RENDER_PX).pixels
    large = Image.fromarray(film).resize(_SIZE, Image.Resampling.BICUBIC)
    drawn.append(np.asarray(large, np.float32))
  paths = [folder / f"{n:03d}.jpg" for n in range(count)]
  for n, path in enumerate(paths):
    grain = rng.standard_normal(_SIZE[::-1], np.float32) * _GRAIN
    pixels = np.clip(drawn[n % len(drawn)] + grain, 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(path, quality=_QUALITY)
  return paths


def ours(paths: list[Path], image_px: int, *, draft: bool) -> Run:
  def read(path: Path) -> np.ndarray:
    return images.to_pixels(path.read_bytes(), image_px, draft=draft)

  def run() -> int:
    with concurrent.futures.ThreadPoolExecutor(_WORKERS) as pool:
      return sum(
        pixels.shape == (image_px, image_px, 3) for pixels in pool.map(read, paths)
      )

  return run


class Films:
  """A map-style dataset: PIL's own opening, colour and resize, then a ToTensor."""

  def __init__(self, paths: list[Path], image_px: int, mode: str, tensor: bool) -> None:
    self.paths, self.size, self.mode = paths, (image_px, image_px), mode
    self.tensor = tensor

  def __len__(self) -> int:
    return len(self.paths)

  def __getitem__(self, index: int) -> Any:
    with Image.open(self.paths[index]) as file:
      square = file.convert(self.mode).resize(self.size, Image.Resampling.BICUBIC)
    pixels = np.array(square)
    if not self.tensor:
      return pixels
    import torch

    channels = torch.from_numpy(pixels).view(*self.size, -1).permute(2, 0, 1)
    return channels.contiguous().float().div(255)


def theirs(paths: list[Path], image_px: int, mode: str) -> Run:
  import torch.utils.data

  loader: Any = torch.utils.data.DataLoader(
    Films(paths, image_px, mode, tensor=True),
    batch_size=_BATCH,
    num_workers=_WORKERS,
    persistent_workers=True,
  )
  return lambda: sum(len(batch) for batch in loader)


def processes(paths: list[Path], image_px: int, mode: str, pool: Any) -> Run:
  films = Films(paths, image_px, mode, tensor=False)
  return lambda: sum(1 for _ in pool.imap(films.__getitem__, range(len(paths))))


def time_in_turns(ways: dict[str, Run], rounds: int) -> dict[str, list[float]]:
  """Films a second of each way in each round, after one round that does not count."""
  rates: dict[str, list[float]] = {name: [] for name in ways}
  for number in range(rounds + 1):
    for name, run in ways.items():
      start = time.perf_counter()
      count = run()
      if number:
        rates[name].append(count / (time.perf_counter() - start))
  return rates


def table(rates: dict[str, list[float]], image_px: int) -> Iterator[str]:
  others = [name for name in rates if not name.startswith("ours")]
  for name, rate in rates.items():
    line = f"{image_px:5d}  {name:22s} {statistics.median(rate):6.1f} films/s"
    if name not in others:
      for other in others:
        ratios = [a / b for a, b in zip(rate, rates[other], strict=True)]
        line += f"   {statistics.median(ratios):.2f} x {other}"
    yield line + "\n"


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--films", type=int, default=64)
  parser.add_argument("--rounds", type=int, default=7)
  parser.add_argument("--sizes", type=int, nargs="+", default=[224, 448])
  args = parser.parse_args()
  try:
    import torch  # noqa: F401

    stands_in = None
  except ImportError:
    stands_in = multiprocessing.get_context("spawn").Pool(_WORKERS)
    sys.stdout.write("torch cannot be imported: a pool of 2 processes instead\n")
  with tempfile.TemporaryDirectory() as folder:
    paths = write_films(Path(folder), args.films)
    mean = statistics.mean(path.stat().st_size for path in paths) / 1e6
    sys.stdout.write(
      f"{len(paths)} films of {_SIZE[0]} x {_SIZE[1]}, {mean:.2f} MB each\n"
    )
    for image_px in args.sizes:
      ways = {
        "ours": ours(paths, image_px, draft=False),
        "ours, draft": ours(paths, image_px, draft=True),
      }
      for mode in ("L", "RGB"):
        if stands_in is None:
          ways[f"DataLoader {mode}"] = theirs(paths, image_px, mode)
        else:
          ways[f"processes {mode}"] = processes(paths, image_px, mode, stands_in)
      sys.stdout.writelines(table(time_in_turns(ways, args.rounds), image_px))


if __name__ == "__main__":
  main()
