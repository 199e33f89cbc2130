"""CheXmask's file in its real size: outlines from the phantom's anatomy, filled.

    OriginalResolution/MIMIC-CXR-JPG.csv     one row a frontal image, some 53 kB each

A pool of bodies is drawn small, their lungs and hearts are followed by CheXmask's 120
landmarks, and the landmarks' polygons are filled in each size of film. An image gets one
triple of the pool, so 13 GB cost little more than their writing. What is exactly true:

    census_truth/masks.jsonl      a line each triple: height, width, boxes and areas by organ
    census_truth/images.csv.gz    dicom_id,triple: the line's number from 0
"""

from __future__ import annotations

import json
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from imax_jax.data.phantom import anatomy
from imax_jax.data.phantom.census_people import People
from imax_jax.data.phantom.census_tables import write_lines
from imax_jax.data.phantom.films import LANDMARKS
from imax_jax.data.phantom.films import landmarks_text
from imax_jax.data.phantom.frontal import Chest

HEADER = (
  "dicom_id,Dice RCA (Mean),Dice RCA (Max),Landmarks,Left Lung,Right Lung,Heart,Height,"
  "Width"
)
_COLUMNS = ("left lung", "right lung", "heart")
# 237,498 of the released 243,334 rows pass the publishers' gate.
GATE, PASSING = 0.7, 237_498 / 243_334
_BODY_PX = 256
_HOLLOW = 0.12  # of the film's height: how high a lung's base may rise
_BODIES = (24, 400)  # fewest and most
_IMAGES_OF_BODY = 50
# A mean row is then as long as the release's, which has 13.0 GB.
_ZOOM = 0.93
_BATCH = 256  # rows written at once


class Triple(NamedTuple):
  """The masks of one body at one size: the row's end, and what is true of it.

  Boxes are in pixels, ends exclusive.
  """

  text: bytes
  height: int
  width: int
  boxes: dict[str, tuple[int, int, int, int]]
  areas: dict[str, int]


def follow(mask: np.ndarray, number: int) -> np.ndarray:
  """float[number, 2]: points (x, y) around a mask, fractions of the image.

  Down its left edge to the lowest point of its left half, along its base, which may be
  hollow as a lung's is, and up its right edge; evenly spaced.
  """
  rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
  left = mask[rows].argmax(axis=1)
  right = mask.shape[1] - 1 - mask[rows, ::-1].argmax(axis=1)
  base = mask.shape[0] - 1 - mask[::-1, columns].argmax(axis=0)
  middle = columns.size // 2
  first, last = int(base[:middle].argmax()), middle + int(base[middle:].argmax())
  # Above the heart a lung's column ends too, but that is not its base.
  floor = min(base[first], base[last]) - _HOLLOW * mask.shape[0]
  shown = np.flatnonzero(base >= floor)
  shown = shown[(shown >= first) & (shown <= last)]
  down, up = rows <= base[first], rows <= base[last]
  path = np.concatenate(
    (
      np.stack((left[down], rows[down]), axis=1),
      np.stack((columns[shown], base[shown]), axis=1),
      np.stack((right[up], rows[up]), axis=1)[::-1],
    )
  )
  along = np.cumsum(np.hypot(*np.diff(path, axis=0, prepend=path[:1]).T))
  wanted = np.linspace(0, along[-1], number)
  points = np.stack([np.interp(wanted, along, part) for part in path.T], axis=1)
  return (points + 0.5) / mask.shape[::-1]


def fill(
  points: np.ndarray, height: int, width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Rows, first and last columns of the runs inside a closed polygon int[n, 2] (x, y).

  Even-odd, over the whole-numbered grid. A pixel that an edge touches is inside, so the
  mask has the points' own box.
  """
  points = np.clip(points, 0, (width - 1, height - 1))
  start, stop = points, np.roll(points, -1, axis=0)
  down = start[:, 1] <= stop[:, 1]
  low, high = np.where(down[:, None], (start, stop), (stop, start))
  lengths = high[:, 1] - low[:, 1]
  edge = np.repeat(np.arange(len(points)), lengths)
  step = np.arange(edge.size) - np.repeat(np.cumsum(lengths) - lengths, lengths)
  slope = (high[:, 0] - low[:, 0]) / np.maximum(lengths, 1)
  row, cross = low[edge, 1] + step, low[edge, 0] + step * slope[edge]
  order = np.lexsort((cross, row))
  inner = np.floor(cross[order][0::2]), np.ceil(cross[order][1::2])
  # An edge has no crossing in its last row: its end there, or all of a level edge.
  level = np.where((lengths == 0)[:, None], (start[:, [0]], stop[:, [0]]), high[:, [0]])
  ends = level.min(axis=0)[:, 0], level.max(axis=0)[:, 0]
  # Runs as numbers that tell rows apart, so that those which touch are merged at once.
  pitch = width + 2
  rows = np.concatenate((row[order][0::2], high[:, 1])) * pitch
  first = rows + np.concatenate((inner[0], ends[0])).astype(np.int64)
  last = rows + np.concatenate((inner[1], ends[1])).astype(np.int64)
  order = np.argsort(first, kind="stable")
  first, last = first[order], last[order]
  apart = first[1:] > np.maximum.accumulate(last)[:-1] + 1
  begins = np.flatnonzero(np.append(True, apart))
  first, last = first[begins], np.maximum.reduceat(last, begins)
  return first // pitch, first % pitch, last % pitch


def _triple(outlines: dict[str, np.ndarray], height: int, width: int) -> Triple:
  pixels = {
    organ: (points * (width, height)).astype(np.int64)
    for organ, points in outlines.items()
  }
  cells, boxes, areas = {}, {}, {}
  for organ, points in pixels.items():
    row, first, last = fill(points, height, width)
    runs = np.stack((row * width + first + 1, last - first + 1), axis=1)
    cells[organ] = " ".join(map(str, runs.ravel().tolist()))
    boxes[organ] = (
      int(first.min()), int(row[0]), int(last.max()) + 1, int(row[-1]) + 1
    )  # fmt: skip
    areas[organ] = int((last - first + 1).sum())
  landmarks = landmarks_text(np.concatenate([pixels[organ] for organ, _ in LANDMARKS]))
  masks = ",".join(cells[organ] for organ in _COLUMNS)
  text = f'"{landmarks}",{masks},{height},{width}\n'
  return Triple(text.encode(), height, width, boxes, areas)


def _outlines(rng: np.random.Generator, number: int) -> Iterator[dict[str, np.ndarray]]:
  views: tuple[anatomy.View, ...] = ("PA", "AP")
  for index in range(number):
    case = anatomy.sample_case(rng, view=views[index % len(views)])
    masks = Chest(case, _BODY_PX).masks()
    yield {
      organ: 0.5 + _ZOOM * (follow(masks[organ], points) - 0.5)
      for organ, points in LANDMARKS
    }


def draw_pool(people: People) -> list[list[Triple]]:
  """Triples by size, in the order of `people.sizes`; the rarer the size, the fewer."""
  number = int(np.clip(people.frontal.size // _IMAGES_OF_BODY, *_BODIES))
  outlines = list(_outlines(people.rng(1), number))
  shares = np.bincount(people.size[people.frontal], minlength=len(people.sizes))
  wanted = np.ceil(number * shares / max(shares.max(), 1)).astype(int)
  return [
    [_triple(body, *size) for body in outlines[: max(count, 1)]]
    for size, count in zip(people.sizes, wanted.tolist(), strict=True)
  ]


def write_chexmask(
  root: Path, people: People, truth: Path, tick: Callable[[int], None]
) -> int:
  """The masks of every frontal image, and their truth; returns the number of rows.

  `tick` is called with the number of rows written since the last call.
  """
  rng = people.rng(2)
  pool = draw_pool(people)
  number = people.frontal.size
  offsets = np.cumsum([0, *map(len, pool)])
  sizes = people.size[people.frontal]
  triples = offsets[sizes] + rng.integers(np.diff(offsets)[sizes])
  poor = rng.permutation(number) >= round(PASSING * number)
  mean = np.where(poor, rng.uniform(0.3, GATE, number), rng.uniform(GATE, 0.97, number))
  most = np.minimum(mean + rng.uniform(0, 0.12, number), 0.995)
  flat = [triple for triples in pool for triple in triples]
  ids = [people.image_ids[image] for image in people.frontal.tolist()]
  rows = list(zip(ids, mean.tolist(), most.tolist(), triples.tolist(), strict=True))
  path = root / "OriginalResolution" / "MIMIC-CXR-JPG.csv"
  path.parent.mkdir(parents=True)
  with path.open("wb", buffering=0) as file:
    file.write(f"{HEADER}\n".encode())
    for start in range(0, number, _BATCH):
      batch = rows[start : start + _BATCH]
      parts = [
        part
        for image, low, high, triple in batch
        for part in (f"{image},{low!r},{high!r},".encode(), flat[triple].text)
      ]
      data = memoryview(b"".join(parts))
      while data:  # an unbuffered write may stop short
        data = data[file.write(data) :]
      tick(len(batch))
  _write_truth(truth, flat, [(image, triple) for image, *_, triple in rows])
  return number


def _write_truth(
  folder: Path, triples: list[Triple], rows: list[tuple[str, int]]
) -> None:
  lines = (
    json.dumps({name: value for name, value in one._asdict().items() if name != "text"})
    for one in triples
  )
  write_lines(folder / "masks.jsonl", None, lines)
  images = (f"{image},{triple}" for image, triple in rows)
  write_lines(folder / "images.csv.gz", "dicom_id,triple", images)
