"""People whom the study never meets: films, maps and practice for the foundation stage.

Each person has one film. Numbers of persons are drawn from a seed space of their own, so
no film of a phantom hospital is among them.
"""

from __future__ import annotations

import io
import multiprocessing
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from imax_jax.data import entries as entries_lib
from imax_jax.data import images
from imax_jax.data.phantom.anatomy import View
from imax_jax.data.phantom.anatomy import make_case
from imax_jax.data.phantom.anatomy import sample_patient
from imax_jax.data.phantom.anatomy import sample_study
from imax_jax.data.phantom.practice import NUM_MAPS
from imax_jax.data.phantom.practice import coverage_maps
from imax_jax.data.phantom.practice import practice_entries
from imax_jax.data.phantom.render import render
from imax_jax.schema import Entry

_SPACE = 0x0F0F0F  # apart from the seeds of hospitals
_VIEWS: tuple[View, ...] = ("PA", "AP", "LATERAL")
_VIEW_CHANCES = (0.52, 0.40, 0.08)

Job = tuple[int, int, int, int, int]  # seed, number, film_px, model_px, grid
Film = tuple[np.ndarray, np.ndarray, tuple[Entry, ...]]


def draw(job: Job) -> Film:
  """(uint8[model_px, model_px, 1], float16[grid, grid, 14], practice entries)."""
  seed, number, film_px, model_px, grid = job
  rng = np.random.default_rng((_SPACE, seed, number))
  study = sample_study(rng, sample_patient(rng))
  view = _VIEWS[int(rng.choice(len(_VIEWS), p=_VIEW_CHANCES))]
  film = render(make_case(study, view, int(rng.integers(2**31))), film_px)
  # The study's films pass through a JPEG file too.
  file = io.BytesIO()
  Image.fromarray(film.pixels).save(file, "JPEG", quality=92)
  pixels = images.to_pixels(file.getvalue(), model_px, 1)
  maps = coverage_maps(film, grid).astype(np.float16)
  return pixels, maps, practice_entries(film, rng, f"practice-{number:06d}")


def write_cohort(
  folder: Path,
  *,
  seed: int,
  num_images: int,
  film_px: int,
  model_px: int,
  grid: int,
  workers: int,
  progress: Callable[[int, int], None] | None = None,
) -> None:
  """pixels.npy uint8[n, model_px, model_px, 1], maps.npy float16[n, grid, grid, 14] and
  entries.jsonl. The same for any number of workers.
  """
  jobs = [(seed, number, film_px, model_px, grid) for number in range(num_images)]
  pixels = np.zeros((num_images, model_px, model_px, 1), np.uint8)
  maps = np.zeros((num_images, grid, grid, NUM_MAPS), np.float16)
  with (folder / "entries.jsonl").open("w", encoding="utf8") as lines:
    for number, (film, cover, entries) in enumerate(_films(jobs, workers)):
      pixels[number], maps[number] = film, cover
      lines.writelines(entries_lib.entry_to_json(entry) + "\n" for entry in entries)
      if progress is not None:
        progress(number + 1, num_images)
  np.save(folder / "pixels.npy", pixels)
  np.save(folder / "maps.npy", maps)


def _films(jobs: list[Job], workers: int) -> Iterator[Film]:
  if workers <= 1:
    yield from map(draw, jobs)
    return
  # Not fork: the parent may hold threads of jax or grain.
  with multiprocessing.get_context("spawn").Pool(workers) as pool:
    yield from pool.imap(draw, jobs, chunksize=8)
