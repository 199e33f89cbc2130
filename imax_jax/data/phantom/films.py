"""Taking the films: pixels to JPEG, masks to CheXmask's text, in worker processes."""

from __future__ import annotations

import dataclasses
import multiprocessing
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image

from imax_jax.data.phantom.anatomy import Case
from imax_jax.data.phantom.render import Film
from imax_jax.data.phantom.render import render
from imax_jax.schema import ORGANS
from imax_jax.schema import Box

JPEG_QUALITY = 95
# CheXmask's 120 landmarks in their order.
LANDMARKS = (("right lung", 44), ("left lung", 50), ("heart", 26))
_CHUNK = 8


@dataclasses.dataclass(frozen=True, slots=True)
class Job:
  """One film to take: what, how large, and where the JPEG goes."""

  image_id: str
  case: Case
  image_px: int
  path: str


@dataclasses.dataclass(frozen=True, slots=True)
class Shot:
  """What is known of a film once it is taken; nan and empty on a LATERAL film."""

  image_id: str
  size: int
  ctr: float
  cpar: float
  runs: dict[str, str]  # organ -> run-length mask
  landmarks: str
  organ_boxes: dict[str, Box]
  practice_boxes: dict[str, Box]


def run_lengths(mask: np.ndarray) -> str:
  """CheXmask's mask: "start length …", starts from 1, row-major; "" if empty.

  run_lengths([[0, 1, 1], [1, 0, 0]]) -> "2 3"
  """
  flat = np.concatenate(([0], np.asarray(mask, np.int8).ravel(), [0]))
  edges = np.flatnonzero(np.diff(flat))
  starts, stops = edges[0::2], edges[1::2]
  pairs = np.stack((starts + 1, stops - starts), axis=1)
  return " ".join(str(number) for number in pairs.ravel())


def outline(mask: np.ndarray, num_points: int) -> np.ndarray:
  """int[num_points, 2]: (x, y) down the mask's left edge and up its right edge.

  The leftmost, rightmost, highest and lowest points are among them: a mask and its
  landmarks have one box.
  """
  ys = np.flatnonzero(mask.any(axis=1))
  if not ys.size:
    return np.zeros((num_points, 2), np.int64)
  part = mask[ys]
  left = part.argmax(axis=1)
  right = mask.shape[1] - 1 - part[:, ::-1].argmax(axis=1)
  xs = np.concatenate((left, right[::-1]))
  path = np.stack((xs, np.concatenate((ys, ys[::-1]))), axis=1)
  at = np.linspace(0, len(path) - 1, num_points).round().astype(int)
  x, y = path.T
  ends = {int(end) for end in (x.argmin(), x.argmax(), y.argmin(), y.argmax())}
  free = [number for number, place in enumerate(at) if place not in ends]
  for end in sorted(ends - set(at.tolist())):
    nearest = min(free, key=lambda number: abs(int(at[number]) - end))
    at[nearest] = end
    free.remove(nearest)
  return path[np.sort(at)]


def landmarks_text(points: np.ndarray) -> str:
  """numpy's own print of int[120, 2], as OriginalResolution has it: 119 newlines."""
  width = max(len(str(number)) for number in points.ravel())
  lines = [f"[{x:>{width}} {y:>{width}}]" for x, y in points.tolist()]
  return "[" + "\n ".join(lines) + "]"


def take(job: Job) -> Shot:
  """Renders a film, writes its JPEG (8-bit grey) and returns what is known of it."""
  film = render(job.case, job.image_px)
  path = Path(job.path)
  path.parent.mkdir(parents=True, exist_ok=True)
  PIL.Image.fromarray(film.pixels).save(path, "JPEG", quality=JPEG_QUALITY)
  return describe(job.image_id, film)


def describe(image_id: str, film: Film) -> Shot:
  """A film's truth without its pixels, small enough to send between processes."""
  points = [outline(film.masks[organ], number) for organ, number in LANDMARKS]
  return Shot(
    image_id=image_id,
    size=film.pixels.shape[0],
    ctr=float(film.ctr),
    cpar=float(film.cpar),
    runs={organ: run_lengths(film.masks[organ]) for organ in ORGANS},
    landmarks=landmarks_text(np.concatenate(points)),
    organ_boxes=_plain(film.organ_boxes),
    practice_boxes=_plain(film.boxes),
  )


def _plain(boxes: dict[str, Box]) -> dict[str, Box]:
  """Python floats, for numpy's print and pickle otherwise."""
  return {
    name: (float(x0), float(y0), float(x1), float(y1))
    for name, (x0, y0, x1, y1) in boxes.items()
  }


def take_all(
  jobs: Sequence[Job],
  *,
  workers: int,
  progress: Callable[[int, int], None] | None = None,
) -> dict[str, Shot]:
  """All films, in the order of `jobs` whatever the number of workers.

  Raises ValueError for a negative number of workers; 0 and 1 render in this process.
  """
  if workers < 0:
    raise ValueError(f"workers: expected 0 or more, got {workers}")
  shots: dict[str, Shot] = {}
  for shot in _in_order(jobs, workers):
    shots[shot.image_id] = shot
    if progress is not None:
      progress(len(shots), len(jobs))
  return shots


def _in_order(jobs: Sequence[Job], workers: int) -> Iterator[Shot]:
  workers = min(workers, -(-len(jobs) // _CHUNK))
  if workers <= 1:
    yield from map(take, jobs)
    return
  # Not fork: the parent may hold jax's threads, which a forked child would inherit.
  context = multiprocessing.get_context("spawn")
  with context.Pool(workers) as pool:
    yield from pool.imap(take, jobs, chunksize=_CHUNK)
