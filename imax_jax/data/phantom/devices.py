"""Metal and plastic on the film, and the side marker's letter."""

from __future__ import annotations

import itertools

import numpy as np

from imax_jax import schema
from imax_jax.data.phantom.anatomy import Case
from imax_jax.data.phantom.frame import box_of_mask
from imax_jax.data.phantom.frontal import Chest

_LETTERS = {
  "left": ("10000", "10000", "10000", "10000", "10000", "10000", "11111"),
  "right": ("11110", "10001", "10001", "11110", "10100", "10010", "10001"),
}


def draw_devices(chest: Chest) -> None:
  """Adds the case's devices to the attenuation and their boxes to `chest.boxes`."""
  drawers = {
    "pacemaker": _pacemaker,
    "central line": _central_line,
    "ecg leads": _ecg_leads,
  }
  for number, device in enumerate(chest.case.devices):
    rng = np.random.default_rng((chest.case.study.seed, 40 + number))
    metal = drawers[device](chest, rng)
    chest.put_box(device, box_of_mask(metal))


def _wire(
  chest: Chest, points: list[tuple[float, float]], radius: float, amount: float
) -> np.ndarray:
  """Adds a polyline; returns where it lies."""
  radius = max(radius, 0.75 * chest.frame.pixel)
  near = chest.frame.capsule(points[0], points[1], radius)
  for start, stop in itertools.pairwise(points[1:]):
    near = np.minimum(near, chest.frame.capsule(start, stop, radius))
  chest.attenuation += amount * np.clip(1.3 - near, 0, 1)
  return near < 1


def _curve(
  start: tuple[float, float],
  pull: tuple[float, float],
  stop: tuple[float, float],
  steps: int = 7,
) -> list[tuple[float, float]]:
  """A quadratic Bézier curve as a polyline."""
  t = np.linspace(0, 1, steps)
  x = (1 - t) ** 2 * start[0] + 2 * t * (1 - t) * pull[0] + t * t * stop[0]
  y = (1 - t) ** 2 * start[1] + 2 * t * (1 - t) * pull[1] + t * t * stop[1]
  return list(zip(x.tolist(), y.tolist(), strict=True))


def _pacemaker(chest: Chest, rng: np.random.Generator) -> np.ndarray:
  """A can under the left collarbone, with a lead to the right ventricle's tip."""
  middle = (0.72 + rng.uniform(-0.05, 0.05), -0.60 + rng.uniform(-0.05, 0.05))
  frame = chest.frame
  x = (frame.across - np.float32(middle[0])) / np.float32(0.15)
  y = (frame.down - np.float32(middle[1])) / np.float32(0.13)
  can = (x**4 + y**4) ** np.float32(0.25)
  chest.attenuation += 0.95 * np.clip((1.0 - can) * 8, 0, 1)
  heart_x, heart_y = chest.heart_center
  _wire(chest, _curve((0.60, -0.62), (0.30, -0.95), (0.02, -0.70)), 0.013, 0.7)
  tip = (heart_x + 0.5 * chest.heart_half, heart_y + 0.16)
  _wire(chest, _curve((0.02, -0.70), (-0.32, heart_y), tip), 0.013, 0.7)
  return can < 1


def _central_line(chest: Chest, rng: np.random.Generator) -> np.ndarray:
  """A catheter from the right side of the neck to the superior vena cava."""
  tip = (-0.13, -0.12 + rng.uniform(-0.08, 0.08))
  course = _curve((-0.30, -1.5), (-0.10, -1.0), tip, 6)
  return _wire(chest, course, 0.017, 0.5)


def _ecg_leads(chest: Chest, rng: np.random.Generator) -> np.ndarray:
  """Discs on the skin, each with a wire that leaves the film below."""
  places = [(-0.78, -0.66), (0.80, -0.70), (0.78, 0.62)]
  metal = np.zeros(chest.attenuation.shape, bool)
  for across, down in places:
    spot = (across + rng.uniform(-0.08, 0.08), down + rng.uniform(-0.08, 0.08))
    ring = chest.frame.circle(*spot, 0.06)
    chest.attenuation += 0.75 * np.clip((1.0 - ring) * 6, 0, 1)
    metal |= ring < 1
    away = (spot[0] * 1.2, 1.6)
    pull = (spot[0] * 0.75, spot[1] + 0.8)
    metal |= _wire(chest, _curve(spot, pull, away, 5), 0.009, 0.34)
  return metal


def stamp_marker(pixels: np.ndarray, boxes: dict[str, schema.Box], case: Case) -> None:
  """Writes a lead letter, "L" or "R", at the patient's side of the film, in place."""
  size = pixels.shape[0]
  rng = np.random.default_rng((case.seed, 5))
  dot = max(round(size * 0.0125), 1)
  rows = np.array([[c == "1" for c in row] for row in _LETTERS[case.marker_side]])
  glyph = rows.repeat(dot, 0).repeat(dot, 1)
  top = int(size * rng.uniform(0.03, 0.14))
  inset = int(size * rng.uniform(0.025, 0.06))
  left = inset if case.marker_side == "right" else size - inset - glyph.shape[1]
  if case.view == "LATERAL":
    left = size - inset - glyph.shape[1]
  patch = pixels[top : top + glyph.shape[0], left : left + glyph.shape[1]]
  patch[glyph] = 250
  height, width = glyph.shape
  boxes["side marker"] = (
    left / size, top / size, (left + width) / size, (top + height) / size
  )  # fmt: skip
