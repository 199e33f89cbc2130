"""Does the time to construct IMAX and DMAX grow in line with the number of images?

  python benchmarks/construct.py [--images 20000 80000 320000]

Invented annotations, about as frequent as those of MIMIC-CXR; one image in eight is asked
for. Prints a line a size: seconds, and microseconds for each image, which stay the same if
the growth is linear.
"""

from __future__ import annotations

import argparse
import sys
import time

import numpy as np

from imax_jax.data import construct
from imax_jax.schema import ORGANS
from imax_jax.schema import Annotation
from imax_jax.schema import Answer
from imax_jax.schema import Bits
from imax_jax.schema import Grade
from imax_jax.schema import Origin
from imax_jax.schema import Radiograph
from imax_jax.schema import Ratio
from imax_jax.schema import Region
from imax_jax.schema import Report

_BOX = (100, 100, 400, 400)
# {task: (share of the images that have it, [(sub-task, target)])}
_TARGETS = {
  "calculation": (0.4, [("ctr", Ratio(0.5)), ("cpar", Ratio(0.4))]),
  "report": (0.8, [("", Report("clear"))]),
  "multi_class": (0.03, [("", Grade("none"))]),
  "multi_label": (1.0, [("", Bits((0,) * 10))]),
  "rec": (0.95, [(organ, Region(organ, _BOX)) for organ in ORGANS]),
  "reg": (0.95, [(organ, Region(organ, _BOX)) for organ in ORGANS]),
  "vqa": (0.5, [("verify", Answer(f"question {n}?", ("yes",))) for n in range(3)]),
}


def hospital(images: int) -> tuple[dict[str, Radiograph], list[Annotation]]:
  rng = np.random.default_rng(0)
  radiographs = {
    f"i{n}": Radiograph(f"i{n}", f"s{n}", f"p{n // 3}", "PA", 8, 8, "")
    for n in range(images)
  }
  annotations = [
    Annotation(image, task, subtask, target, Origin("made", f"{task}.csv", row, "made"))
    for task, (share, targets) in _TARGETS.items()
    for row, (image, draw) in enumerate(
      zip(radiographs, rng.random(images), strict=True)
    )
    if draw < share
    for subtask, target in targets
  ]
  return radiographs, annotations


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--images", type=int, nargs="+", default=[20000, 80000, 320000])
  for images in parser.parse_args().images:
    radiographs, annotations = hospital(images)
    start = time.perf_counter()
    datasets = construct.construct(
      radiographs, annotations, seed=0, num_images=images // 8
    )
    seconds = time.perf_counter() - start
    made = {split: len(records) for split, records in datasets.splits.items()}
    sys.stdout.write(
      f"{images:7d} images, {len(annotations):8d} annotations: {seconds:6.2f} s, "
      f"{1e6 * seconds / images:6.1f} µs an image; {made}\n"
    )


if __name__ == "__main__":
  main()
