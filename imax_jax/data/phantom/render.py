"""From a case to a film: `render(case) -> Film`, pixels with their exact truth.

The film is a two-dimensional ray-sum (Beer-Lambert): lengths of rays through bodies of
closed form are added up, scatter and quantum noise are laid on, and the sum is shown
through a window and a sigmoid look-up table, as a digital radiograph is.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from imax_jax import schema
from imax_jax.data.phantom import devices
from imax_jax.data.phantom import findings
from imax_jax.data.phantom import frontal
from imax_jax.data.phantom import lateral
from imax_jax.data.phantom.anatomy import Case
from imax_jax.data.phantom.frame import box_of_mask


@dataclasses.dataclass(frozen=True)
class Film:
  """A rendered case. Left and right are the patient's.

  `masks` has the three of `schema.ORGANS` (the lungs without the heart; all empty on a
  LATERAL film); `boxes` the objects that only practice asks for; `finding_masks` where
  each present finding was drawn, by its name in `schema.FINDINGS`.
  """

  case: Case
  pixels: np.ndarray  # uint8[H, W]
  masks: dict[str, np.ndarray]  # bool[H, W] each
  boxes: dict[str, schema.Box]
  finding_masks: dict[str, np.ndarray]  # bool[H, W] each

  @functools.cached_property
  def organ_boxes(self) -> dict[str, schema.Box]:
    """The tight boxes of the organs that are on the film."""
    found = {name: box_of_mask(mask) for name, mask in self.masks.items()}
    return {name: box for name, box in found.items() if box is not None}

  @property
  def ctr(self) -> float:
    """Heart box width by the width of the lungs' joint box; nan on a LATERAL film."""
    if not self.organ_boxes:
      return float("nan")
    heart = self.organ_boxes["heart"]
    left, right = self.organ_boxes["left lung"], self.organ_boxes["right lung"]
    width = max(left[2], right[2]) - min(left[0], right[0])
    return (heart[2] - heart[0]) / width

  @property
  def cpar(self) -> float:
    """Heart area by lung area, both from the masks; nan on a LATERAL film."""
    lungs = self.masks["left lung"].sum() + self.masks["right lung"].sum()
    return float(self.masks["heart"].sum() / lungs) if lungs else float("nan")


def render(case: Case, size: int = 256) -> Film:
  """Draws a case at `size` by `size` pixels; the same case gives the same film.

  >>> film = render(sample_case(np.random.default_rng(7)), size=128)
  >>> film.pixels.shape, film.masks["heart"].dtype
  ((128, 128), dtype('bool'))

  Raises ValueError for a size below 32.
  """
  if size < 32:
    raise ValueError(f"size: expected at least 32 pixels, got {size}; ask for more")
  if case.view == "LATERAL":
    return _film(case, lateral.draw(case, size))
  chest = frontal.Chest(case, size)
  frontal.draw_trunk(chest)
  frontal.draw_middle(chest)
  slips = findings.draw_findings(chest)
  frontal.draw_vessels(chest)
  frontal.draw_ribs(chest, slips)
  devices.draw_devices(chest)
  return _film(case, chest)


def _film(case: Case, body: frontal.Chest | lateral.Profile) -> Film:
  pixels = develop(body.attenuation, case)
  devices.stamp_marker(pixels, body.boxes, case)
  found = {n: m for n, m in body.finding_masks.items() if n in schema.FINDINGS}
  return Film(case, pixels, body.masks(), body.boxes, found)


def _blur(values: np.ndarray, radius: int) -> np.ndarray:
  """Three box filters, close to a Gaussian; edges repeat."""
  for axis in (0, 1, 0, 1, 0, 1):
    pad = [(0, 0), (0, 0)]
    pad[axis] = (radius + 1, radius)
    total = np.cumsum(np.pad(values, pad, mode="edge"), axis=axis, dtype=np.float32)
    width = 2 * radius + 1
    length = values.shape[axis]
    top = np.take(total, np.arange(width, width + length), axis=axis)
    values = (top - np.take(total, np.arange(length), axis=axis)) / width
  return values


def develop(attenuation: np.ndarray, case: Case) -> np.ndarray:
  """Attenuation float32[H, W] to grey levels uint8[H, W]: more is brighter."""
  size = attenuation.shape[0]
  rng = np.random.default_rng((case.seed, 3))
  fold = 4 if size % 4 == 0 else 1
  small = attenuation.reshape(size // fold, fold, size // fold, fold).mean((1, 3))
  scatter = _blur(small, max(round(size / fold * 0.04), 1))
  scatter = scatter.repeat(fold, 0).repeat(fold, 1)
  if fold > 1:
    scatter = _blur(scatter, fold // 2)
  seen = 0.88 * attenuation + 0.12 * scatter
  grain = rng.standard_normal(attenuation.shape, np.float32)
  # Fewer quanta arrive behind more tissue, hence more noise there. A film of more
  # pixels has fewer a pixel.
  seen += grain * np.exp(0.45 * seen) * np.float32(case.noise * np.sqrt(size / 256))
  low, high = np.percentile(seen[::3, ::3], (3.0, 99.0))
  seen = (seen - np.float32(low)) * np.float32(1.0 / (high - low))
  seen = 1.0 / (1.0 + np.exp(-4.6 * (seen - 0.52)))
  seen = np.clip((seen - 0.085) * (1 / 0.83), 0.0, 1.0) ** np.float32(case.exposure)
  return (seen * 255 + 0.5).astype(np.uint8)
