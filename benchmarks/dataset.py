"""From tables of the real size to the entries of IMAX and DMAX: how long, in how much?

  python -m benchmarks.dataset [--scale 0.1] [--root FOLDER]

Writes a census (imax_jax.data.phantom.census) of a tenth of the real size, or reads one
that lies in --root, and prints a line a stage, the peak of memory, and two ratios measured
in the same run: masks to boxes by arithmetic on the runs against the published way (decode
the mask, then np.where), and reading and joining the small tables against polars, where
that is installed. At scale 1 the mask file has 13 GB.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from configs import imax_data
from imax_jax.data import construct
from imax_jax.data import sources
from imax_jax.data.phantom import census
from imax_jax.data.sources import cardiomegaly
from imax_jax.data.sources import cxr_lt
from imax_jax.data.sources import mimic_cxr_jpg
from imax_jax.data.sources.intake import Intake
from imax_jax.data.sources.masks import parse_runs
from imax_jax.ledger import plain
from imax_jax.schema import Annotation

_MASKS = 60
_ROUNDS = 3


def say(text: str) -> None:
  sys.stdout.write(f"{text}\n")
  sys.stdout.flush()


def peak_gib() -> float:
  """Of this process and of its largest worker."""
  own, workers = (
    resource.getrusage(who).ru_maxrss
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
  )
  return (own + workers * (os.cpu_count() or 1)) / 2**20


def select(root: Path, scale: float) -> None:
  """Every source in turn, then the construction with the paper's quotas, scaled."""
  roots = sources.roots_of(root)
  intake = Intake()
  options = {
    "mimic_cxr_jpg": {"require_images": False},
    "chexmask": {"workers": os.cpu_count()},
  }
  begun = start = time.perf_counter()
  radiographs = sources.read_radiographs(roots, intake=intake, options=options)
  say(f"  {'mimic_cxr_jpg':16}{time.perf_counter() - start:8.1f} s")
  found: list[Annotation] = []
  for name in roots:
    if name == "mimic_cxr_jpg":
      continue
    start = time.perf_counter()
    one = {"mimic_cxr_jpg": roots["mimic_cxr_jpg"], name: roots[name]}
    found += sources.read_all(one, radiographs, intake=intake, options=options)
    rows = intake.tallies[name].rows
    say(f"  {name:16}{time.perf_counter() - start:8.1f} s{rows:12,} rows")
  intake.finish()
  start = time.perf_counter()
  settings = plain(imax_data.get_config().data.construct)
  settings["quotas"] = {k: round(v * scale) for k, v in settings["quotas"].items()}
  for key in ("num_images", "num_dmax_images"):
    settings[key] = round(settings[key] * scale)
  made = construct.construct(radiographs, found, **settings)
  end = time.perf_counter()
  counts = {name: len(split) for name, split in made.splits.items()}
  say(f"  {'construct':16}{end - start:8.1f} s   {counts}")
  say(f"  {'all':16}{end - begun:8.1f} s, at most {peak_gib():.2f} GiB")


def masks(root: Path) -> None:
  """Ours against decode-then-where, on the same masks, in turn."""
  path = root / sources.FOLDERS["chexmask"] / "OriginalResolution/MIMIC-CXR-JPG.csv"
  texts = []
  with path.open(encoding="utf-8") as file:
    file.readline()
    while len(texts) < _MASKS and (line := file.readline()):
      if line.rstrip().count(",") >= 5 and line.startswith(" ["):
        *cells, height, width = line.rstrip().split(",")
        texts += [(cell, int(height), int(width)) for cell in cells[-3:] if cell]
  ours, theirs = [], []
  for _ in range(_ROUNDS):
    start = time.perf_counter()
    boxes = [
      runs.box() for text, h, w in texts if (runs := parse_runs(text, h, w)) is not None
    ]
    ours.append(time.perf_counter() - start)
    start = time.perf_counter()
    decoded = [_decoded_box(text, h, w) for text, h, w in texts]
    theirs.append(time.perf_counter() - start)
    assert boxes == decoded, "the two ways disagree"
  fast, slow = (1e3 * statistics.median(times) / len(texts) for times in (ours, theirs))
  say(
    f"masks to boxes, {len(texts)} masks: {fast:.3f} ms each by the runs, {slow:.1f} ms "
    f"by decoding: {slow / fast:.0f} times as fast"
  )


def _decoded_box(text: str, height: int, width: int) -> tuple[int, int, int, int]:
  """The published way: runs -> pixels -> np.where -> box."""
  numbers = np.array(text.split(), dtype=int)
  mask = np.zeros(height * width, np.uint8)
  for start, length in zip(numbers[0::2] - 1, numbers[1::2], strict=True):
    mask[start : start + length] = 255
  rows, columns = np.where(mask.reshape(height, width) > 0)
  return (
    int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1
  )  # fmt: skip


def joins(root: Path) -> None:
  """Reading and joining metadata, ratios and labels: ours against polars, in turn."""
  try:
    import polars
  except ImportError:
    say("joins: polars is not installed, nothing to compare with")
    return
  roots = {name: root / folder for name, folder in sources.FOLDERS.items()}

  def ours() -> int:
    radiographs = mimic_cxr_jpg.read_radiographs(
      roots["mimic_cxr_jpg"], require_images=False
    )
    ratios = list(cardiomegaly.read(roots["cardiomegaly"], radiographs))
    return len(ratios) + sum(1 for _ in cxr_lt.read(roots["cxr_lt"], radiographs))

  def theirs() -> int:
    images = polars.read_csv(roots["mimic_cxr_jpg"] / mimic_cxr_jpg.METADATA).filter(
      polars.col("ViewPosition").is_in(["PA", "AP"])
    )
    ratios = images
    for name in ("CTR", "CPAR"):
      table = polars.read_csv(roots["cardiomegaly"] / f"{name}s.csv")
      table = table.filter(polars.col(name).is_between(0, 1, closed="none"))
      ratios = ratios.join(table, left_on="dicom_id", right_on="dicom_file")
    labels = polars.read_csv(cxr_lt.label_files(roots["cxr_lt"])[0])
    joined = images.join(labels, on="dicom_id")
    return 2 * ratios.height + joined.height

  times: dict[Callable[[], int], list[float]] = {ours: [], theirs: []}
  counts = set()
  for _ in range(_ROUNDS):
    for way in (ours, theirs):
      start = time.perf_counter()
      counts.add(way())
      times[way].append(time.perf_counter() - start)
  assert len(counts) == 1, f"the two ways disagree: {counts}"
  own, other = (statistics.median(times[way]) for way in (ours, theirs))
  say(
    f"joins, {counts.pop():,} annotations: {own:.2f} s here, every row checked and made "
    f"an annotation; {other:.2f} s with polars, unchecked and as columns: "
    f"{own / other:.1f} times polars' time"
  )


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--scale", type=float, default=0.1)
  parser.add_argument("--root", type=Path, help="a census that lies there already")
  asked = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    root = asked.root or Path(folder, "census")
    if asked.root is None:
      start = time.perf_counter()
      census.write_census(root, seed=0, scale=asked.scale)
      say(
        f"census of scale {asked.scale}: written in {time.perf_counter() - start:.1f} s"
      )
    size = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
    say(f"{size / 1e9:.2f} GB of tables, {os.cpu_count()} cores")
    select(root, asked.scale)
    masks(root)
    joins(root)


if __name__ == "__main__":
  main()
