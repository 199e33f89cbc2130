"""How varied the phantom is, how exact, how fast; and what the foundation sees in it.

  python -m benchmarks.phantom [--films 400] [--foundation runs/foundation]

Frontal films of as many patients: intersection over union of each organ's box with the
median box of all (what a model that never looks would score), spread of the ratios, films
a second on one core. With --foundation, the work directory of configs/foundation.py: for
fresh films, the area under the ROC curve of each finding from the encoder's per-patch
probe (score: mean of the two highest of 64 patches; present: over 2 % of a patch).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from configs import foundation as foundation_config
from imax_jax import mesh as mesh_lib
from imax_jax.data.phantom.anatomy import sample_case
from imax_jax.data.phantom.cohort import write_cohort
from imax_jax.data.phantom.render import Film
from imax_jax.data.phantom.render import render
from imax_jax.evaluate.scores import boxes as box_scores
from imax_jax.schema import FINDINGS
from imax_jax.schema import ORGANS
from imax_jax.study import Study
from imax_jax.train import dense
from imax_jax.train import snapshots

_PRESENT = 0.02  # of a patch
_SEED = 77  # of no other films


def geometry(num_films: int) -> None:
  rng = np.random.default_rng(_SEED)
  start = time.process_time()
  films: list[Film] = [
    render(sample_case(rng, view="AP" if n % 3 == 0 else "PA"))
    for n in range(num_films)
  ]
  rate = num_films / (time.process_time() - start)
  sys.stdout.write(f"{rate:.1f} films a second\n")
  for organ in ORGANS:
    drawn = np.array([film.organ_boxes[organ] for film in films])
    median = tuple(np.median(drawn, axis=0))
    mean = np.mean([box_scores.iou(tuple(box), median) for box in drawn])
    sys.stdout.write(f"IoU with the median box, {organ}: {mean:.3f}\n")
  for name in ("ctr", "cpar"):
    ratios = np.array([getattr(film, name) for film in films])
    error = np.abs(ratios - np.median(ratios)).mean()
    sys.stdout.write(
      f"{name}: {ratios.min():.3f} to {ratios.max():.3f}, the median is off by {error:.4f}\n"
    )


def probe(workdir: Path, num_films: int) -> None:
  config = foundation_config.get_config()
  px, patch = config.model.encoder.image_px, config.model.encoder.patch_px
  with tempfile.TemporaryDirectory() as folder:
    cohort, grid = Path(folder), px // patch
    write_cohort(
      cohort, seed=_SEED, num_images=num_films, film_px=256, model_px=px, grid=grid, workers=1
    )  # fmt: skip
    pixels = np.load(cohort / "pixels.npy")
    maps = np.load(cohort / "maps.npy").astype(np.float32)
    study = Study(config, cohort / "work")
    maps = maps.reshape(num_films, grid * grid, -1)
    width = config.model.encoder.width
    blank = {
      "encoder": study.parameters.init(0)["encoder"],
      "probe": dense.init_probe(0, width, maps.shape[-1]),
    }
    like = mesh_lib.replicate(blank, study.mesh)
    trained = snapshots.restore(workdir / "encoder", "final", like)
  encode = jax.jit(
    lambda x: study.model.apply(
      {"params": {"encoder": trained["encoder"]}}, x, method="encode"
    )
  )
  logits = np.asarray(
    encode(pixels) @ trained["probe"]["kernel"] + trained["probe"]["bias"]
  )
  covered = 1 / (1 + np.exp(-logits))
  organs = slice(0, len(ORGANS))
  error = np.abs(covered - maps)[..., organs].mean()
  sys.stdout.write(f"an organ's share of a patch is off by {error:.4f}\n")
  for number, name in enumerate(FINDINGS, start=len(ORGANS)):
    present = maps[..., number].max(1) > _PRESENT
    score = np.sort(logits[..., number], axis=1)[:, -2:].mean(1)
    area = (score[present][:, None] > score[~present]).mean()
    sys.stdout.write(f"AUC {name}: {area:.3f} ({present.sum()} films have it)\n")


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--films", type=int, default=400)
  parser.add_argument("--foundation", type=Path)
  args = parser.parse_args()
  geometry(args.films)
  if args.foundation:
    probe(args.foundation.resolve(), args.films)


if __name__ == "__main__":
  main()
