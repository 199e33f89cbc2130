"""Pre-drawn patterns shared by all films: vessel trees and periodic noise.

Both are drawn once a process from fixed seeds, so that films do not depend on the
order in which they are rendered.
"""

from __future__ import annotations

import functools

import numpy as np

NUM_TREES = 16
NUM_FIELDS = 6
# A tree covers the half chest: 0 … TREE_WIDTH from the midline, ±TREE_HEIGHT about the
# centre, in thorax units; the hilum, where it is rooted, stands at HILUM.
TREE_WIDTH = 1.15
TREE_HEIGHT = 1.1
HILUM = (0.20, -0.06)
_TREE_PX = 224
_FIELD_PX = 160


def _stroke(
  canvas: np.ndarray,
  start: tuple[float, float],
  stop: tuple[float, float],
  radius: float,
) -> None:
  """Adds a round vessel: its chord length, in thorax units."""
  height, width = canvas.shape
  per_x, per_y = width / TREE_WIDTH, height / (2 * TREE_HEIGHT)
  reach = 2.2 * radius
  x0 = max(int((min(start[0], stop[0]) - reach) * per_x), 0)
  x1 = min(int((max(start[0], stop[0]) + reach) * per_x) + 2, width)
  y0 = max(int((min(start[1], stop[1]) - reach + TREE_HEIGHT) * per_y), 0)
  y1 = min(int((max(start[1], stop[1]) + reach + TREE_HEIGHT) * per_y) + 2, height)
  if x0 >= x1 or y0 >= y1:
    return
  x = ((np.arange(x0, x1) + 0.5) / per_x)[None, :]
  y = ((np.arange(y0, y1) + 0.5) / per_y - TREE_HEIGHT)[:, None]
  dx, dy = stop[0] - start[0], stop[1] - start[1]
  along = ((x - start[0]) * dx + (y - start[1]) * dy) / max(dx * dx + dy * dy, 1e-9)
  along = np.clip(along, 0.0, 1.0)
  gap2 = (x - start[0] - along * dx) ** 2 + (y - start[1] - along * dy) ** 2
  chord = np.exp(-gap2 / (0.5 * radius * radius + 4e-5)) * radius
  patch = canvas[y0:y1, x0:x1]
  np.maximum(patch, chord, out=patch)


@functools.lru_cache(maxsize=NUM_TREES)
def vessel_tree(number: int) -> np.ndarray:
  """float32[Y, X]: one branching tree of one lung; 1 is the widest vessel's middle."""
  rng = np.random.default_rng((1717, number))
  canvas = np.zeros((2 * _TREE_PX, _TREE_PX), np.float32)
  # Angles from straight up (-90°) over lateral (0°) to straight down.
  roots = np.linspace(-78, 86, 8) + rng.uniform(-7, 7, 8)
  queue = [(HILUM, angle, 0.030 + 0.009 * (angle > 0), 0.27) for angle in roots]
  while queue:
    (x, y), angle, radius, length = queue.pop()
    steps = 3
    for _ in range(steps):
      angle += rng.normal(0, 6)
      turn = np.deg2rad(angle)
      step = length / steps
      tip = (x + np.cos(turn) * step, y + np.sin(turn) * step)
      _stroke(canvas, (x, y), tip, radius)
      x, y = tip
      radius *= 0.93
    if radius > 0.0085 and x < TREE_WIDTH:
      spread = rng.uniform(16, 34)
      for sign in (-1, 1):
        shrink = rng.uniform(0.62, 0.82)
        queue.append(
          ((x, y), angle + sign * spread, radius * shrink, length * rng.uniform(0.7, 1))
        )
  return canvas / canvas.max()


def _filtered(rng: np.random.Generator, low: float, high: float) -> np.ndarray:
  """Periodic noise of unit deviation between `low` and `high` cycles a period."""
  spectrum = np.fft.fft2(rng.standard_normal((_FIELD_PX, _FIELD_PX)))
  freq = np.fft.fftfreq(_FIELD_PX) * _FIELD_PX
  radius = np.hypot(freq[:, None], freq[None, :])
  band = np.exp(-((radius / high) ** 2)) * (1 - np.exp(-((radius / low) ** 2)))
  field = np.fft.ifft2(spectrum * band).real
  return (field / field.std()).astype(np.float32)


@functools.lru_cache(maxsize=4 * NUM_FIELDS)
def field(kind: str, number: int) -> np.ndarray:
  """float32[Y, X], periodic. "cloud" is soft and signed; "clumps" (0 … 1) are fluffy
  patches; "mesh" (0 … 1) is a net of thin lines; "dots" (0 … 1) are small grains.
  """
  rng = np.random.default_rng((2929, number))
  if kind == "cloud":
    return _filtered(rng, 1.0, 4.0)
  if kind == "clumps":
    return np.clip(0.5 + 0.62 * _filtered(rng, 3.0, 8.0), 0, 1)
  if kind == "mesh":
    lines = np.exp(-((_filtered(rng, 5.0, 11.0) / 0.26) ** 2))
    return lines.astype(np.float32)
  if kind == "dots":
    return np.clip(_filtered(rng, 9.0, 15.0) - 0.9, 0, 1.4) / 1.4
  raise ValueError(f"field: expected cloud, clumps, mesh or dots, got {kind!r}")


def look_up(texture: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """Bilinear reading at texture pixels (x, y), repeated beyond its borders."""
  height, width = texture.shape
  x_floor, y_floor = np.floor(x), np.floor(y)
  fx, fy = x - x_floor, y - y_floor
  x0, y0 = x_floor.astype(np.int32) % width, y_floor.astype(np.int32) % height
  x1, y1 = (x0 + 1) % width, (y0 + 1) % height
  flat = texture.ravel()
  top = flat[y0 * width + x0] * (1 - fx) + flat[y0 * width + x1] * fx
  low = flat[y1 * width + x0] * (1 - fx) + flat[y1 * width + x1] * fx
  return top * (1 - fy) + low * fy


def read_tree(number: int, lateral: np.ndarray, down: np.ndarray) -> np.ndarray:
  """A tree at body positions: `lateral` from the midline, `down` from the centre."""
  tree = vessel_tree(number)
  height, width = tree.shape
  x = np.clip(lateral * (width / TREE_WIDTH), 0, width - 2)
  y = np.clip((down + TREE_HEIGHT) * (height / (2 * TREE_HEIGHT)), 0, height - 2)
  return look_up(tree, x, y)


def read_field(
  kind: str, number: int, x: np.ndarray, y: np.ndarray, period: float
) -> np.ndarray:
  """A noise field at body positions, one repetition every `period` thorax units."""
  per_unit = _FIELD_PX / period
  return look_up(field(kind, number), x * per_unit, y * per_unit)
