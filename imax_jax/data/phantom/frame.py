"""Where the body lies on the film: coordinate grids and the outlines of the lungs."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from imax_jax import schema
from imax_jax.data.phantom.anatomy import SIDES
from imax_jax.data.phantom.anatomy import Geometry
from imax_jax.data.phantom.anatomy import Study

_TABLE_STEPS = 4096
_TABLE_LOW, _TABLE_HIGH = -3.0, 3.0


def tabulate(curve: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
  """A curve of one body coordinate as a table for `bend`; powers on grids are slow."""
  return curve(np.linspace(_TABLE_LOW, _TABLE_HIGH, _TABLE_STEPS)).astype(np.float32)


def index(coordinate: np.ndarray) -> np.ndarray:
  """Rows of a `tabulate`d curve for each place of a coordinate grid."""
  scaled = (coordinate - _TABLE_LOW) * ((_TABLE_STEPS - 1) / (_TABLE_HIGH - _TABLE_LOW))
  return np.clip(scaled, 0, _TABLE_STEPS - 1).astype(np.int32)


def ramp(distance: np.ndarray, width: float) -> np.ndarray:
  """0 outside, 1 inside of an edge at distance 0 that is `width` wide."""
  return np.clip(distance * (1.0 / width) + 0.5, 0.0, 1.0)


def box_of_mask(mask: np.ndarray) -> schema.Box | None:
  """The tight box of a mask as fractions of the image, or None if it is empty."""
  rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
  if not rows.size:
    return None
  height, width = mask.shape
  return (
    float(columns[0] / width),
    float(rows[0] / height),
    float((columns[-1] + 1) / width),
    float((rows[-1] + 1) / height),
  )


@dataclasses.dataclass(frozen=True)
class Lung:
  """One lung's grids. `lateral` is the distance from the midline, outward."""

  name: str  # "left" or "right", the patient's
  sign: float  # +1 for the left, which lies on the image's right
  lateral: np.ndarray
  wall: np.ndarray  # lateral pleural edge at each row of the body
  medial: np.ndarray
  dome: np.ndarray  # how far down the diaphragm stands at each place
  depth: np.ndarray  # distance to the nearest edge, thorax units; negative outside
  apex: float
  top: float  # the dome's highest point
  half_width: float

  @property
  def inside(self) -> np.ndarray:
    return self.depth > 0

  def row(self, zone: str) -> float:
    """How far down the middle of a zone lies."""
    part = {"upper": 0.27, "mid": 0.53, "lower": 0.79}[zone]
    return self.apex + part * (self.top + 0.08 - self.apex)

  def wall_at(self, down: float) -> float:
    return float(_wall(np.asarray([down]), self.apex, self.half_width)[0])


def _rise(down: np.ndarray, apex: float, length: float) -> np.ndarray:
  return np.clip((down - apex) / length, 0.0, 1.0)


def _wall(down: np.ndarray, apex: float, half_width: float) -> np.ndarray:
  rise = _rise(down, apex, 1.35)
  return 0.36 + (half_width - 0.36) * (1 - (1 - rise) ** 2.4) ** 0.62


def _medial(down: np.ndarray, apex: float) -> np.ndarray:
  return 0.15 + 0.21 * (1 - _rise(down, apex, 0.34)) ** 2.2


def _dome(lateral: np.ndarray, top: float, half_width: float) -> np.ndarray:
  outer = np.clip((lateral - 0.44) / (half_width - 0.44), 0, 1.4)
  inner = np.clip((0.44 - lateral) / 0.44, 0, 1)
  return top + 0.36 * outer**2.3 + 0.10 * inner**2


class Frame:
  """The film's body coordinates: `across` (to the image's right), `down` and `below`.

  `below` is `down` in the units of `across`, so that circles in (across, below) are
  circles on the film.
  """

  def __init__(self, geometry: Geometry, study: Study, size: int) -> None:
    self.geometry = geometry
    self.study = study
    self.size = size
    self.turn = np.deg2rad(geometry.rotation)
    x, y = _pixel_grid(size)
    x = (x - np.float32(geometry.center[0])) / np.float32(geometry.scale)
    y = (y - np.float32(geometry.center[1])) / np.float32(geometry.scale)
    cos, sin = np.float32(np.cos(self.turn)), np.float32(np.sin(self.turn))
    self.across = cos * x + sin * y
    self.below = cos * y - sin * x
    self.down = self.below / np.float32(geometry.aspect)
    self.rows = index(self.down)
    self.pixel = 1.0 / (size * geometry.scale)  # one pixel in thorax units
    self.lungs = tuple(self._lung(name) for name in SIDES)

  def _lung(self, name: str) -> Lung:
    number = SIDES.index(name)
    sign = 1.0 if name == "left" else -1.0
    apex = self.geometry.apex[number]
    top = self.geometry.dome[number]
    half_width = self.geometry.half_width[number]
    lateral = self.across if sign > 0 else -self.across
    wall = tabulate(lambda v: _wall(v, apex, half_width))[self.rows]
    medial = tabulate(lambda v: _medial(v, apex))[self.rows]
    dome = tabulate(lambda u: _dome(u, top, half_width))[index(lateral)]
    depth = np.minimum(wall - lateral, lateral - medial)
    depth = np.minimum(depth, (dome - self.down) * np.float32(self.geometry.aspect))
    depth = np.minimum(depth, (self.down - np.float32(apex)) * 4)
    return Lung(name, sign, lateral, wall, medial, dome, depth, apex, top, half_width)

  def lung(self, side: str) -> Lung:
    return self.lungs[SIDES.index(side)]

  def to_image(self, across: np.ndarray, down: np.ndarray) -> tuple:
    """Body positions to fractions of the image (x, y)."""
    below = np.asarray(down) * self.geometry.aspect
    cos, sin = np.cos(self.turn), np.sin(self.turn)
    x = self.geometry.center[0] + self.geometry.scale * (cos * across - sin * below)
    y = self.geometry.center[1] + self.geometry.scale * (sin * across + cos * below)
    return x, y

  def lungs_width(self) -> float:
    """Width of the joint lung box as a fraction of the image, from the outlines."""
    edges = []
    for lung in self.lungs:
      down = np.linspace(lung.apex, lung.top + 0.4, 400)
      wall = _wall(down, lung.apex, lung.half_width)
      seen = down < _dome(wall, lung.top, lung.half_width)
      edges.append(self.to_image(lung.sign * wall[seen], down[seen])[0])
    x = np.clip(np.concatenate(edges), 0.0, 1.0)
    return float(x.max() - x.min())

  def box(self, across: list[float], down: list[float]) -> schema.Box | None:
    """The box around body points, cut at the film's edge; None if nothing is left."""
    x, y = self.to_image(np.asarray(across), np.asarray(down))
    x, y = np.clip(x, 0.0, 1.0), np.clip(y, 0.0, 1.0)
    box = (float(x.min()), float(y.min()), float(x.max()), float(y.max()))
    return box if box[2] - box[0] > 0.01 and box[3] - box[1] > 0.01 else None

  def circle(self, across: float, down: float, radius: float) -> np.ndarray:
    """Distance from a point, as a multiple of `radius`, at each place."""
    x = self.across - np.float32(across)
    y = self.below - np.float32(down * self.geometry.aspect)
    return np.sqrt(x * x + y * y) * np.float32(1.0 / radius)

  def capsule(
    self,
    start: tuple[float, float],
    stop: tuple[float, float],
    radius: float,
  ) -> np.ndarray:
    """Distance from a segment of the body, as a multiple of `radius`."""
    aspect = self.geometry.aspect
    x0, y0 = start[0], start[1] * aspect
    dx, dy = stop[0] - x0, stop[1] * aspect - y0
    x, y = self.across - np.float32(x0), self.below - np.float32(y0)
    along = np.clip((x * dx + y * dy) * (1.0 / (dx * dx + dy * dy)), 0.0, 1.0)
    gap = np.hypot(x - along * dx, y - along * dy)
    return gap * np.float32(1.0 / radius)


@functools.lru_cache(maxsize=4)
def _pixel_grid(size: int) -> tuple[np.ndarray, np.ndarray]:
  """Pixel centres as fractions of the image."""
  centers = (np.arange(size, dtype=np.float32) + 0.5) / size
  y, x = np.meshgrid(centers, centers, indexing="ij")
  return x, y


def chord(multiple: np.ndarray) -> np.ndarray:
  """Length of the ray through a unit ball, 1 in its middle, from `Frame.circle`."""
  return np.sqrt(np.clip(1.0 - multiple * multiple, 0.0, None))
