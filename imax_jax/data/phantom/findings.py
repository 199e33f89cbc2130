"""The lesions of a frontal film, each with the mask of where it was drawn.

Every drawer adds its body to `chest.attenuation` and leaves a bool mask in
`chest.finding_masks`. Sizes are in thorax units (1 is half of the rib cage's width).
"""

from __future__ import annotations

import numpy as np

from imax_jax.data.phantom import textures
from imax_jax.data.phantom.anatomy import OPACITIES
from imax_jax.data.phantom.anatomy import Finding
from imax_jax.data.phantom.frame import Lung
from imax_jax.data.phantom.frame import chord
from imax_jax.data.phantom.frame import ramp
from imax_jax.data.phantom.frontal import Chest
from imax_jax.data.phantom.frontal import rib_row


def draw_findings(chest: Chest) -> dict[str, np.ndarray]:
  """Draws all findings of the case. Returns, for a side with a broken rib, the phase
  by which its ribs slip at each place.
  """
  case = chest.case
  drawers = {
    "Pleural Effusion": _effusion,
    "Atelectasis": _atelectasis,
    "Pneumonia": _pneumonia,
    "Consolidation": _consolidation,
    "Infiltration": _infiltration,
    "Nodule": _nodule,
    "Pneumothorax": _pneumothorax,
  }
  slips: dict[str, np.ndarray] = {}
  for number, finding in enumerate(case.findings):
    rng = np.random.default_rng((case.study.seed, 10 + number))
    if finding.name in drawers:
      lung = chest.frame.lung(finding.side)
      drawers[finding.name](chest, lung, finding, rng)
    elif finding.name == "Fracture":
      slips[finding.side] = _fracture(chest, finding, rng)
  if case.edema_grade:
    _edema(chest, np.random.default_rng((case.study.seed, 9)))
  opaque = [chest.finding_masks[n] for n in OPACITIES if n in chest.finding_masks]
  if opaque:
    chest.finding_masks["Lung Opacity"] = np.logical_or.reduce(opaque)
  return slips


def _mark(chest: Chest, name: str, mask: np.ndarray) -> None:
  known = chest.finding_masks.get(name)
  chest.finding_masks[name] = mask if known is None else known | mask


def _site(
  chest: Chest, lung: Lung, zone: str, rng: np.random.Generator, jitter: float = 0.05
) -> tuple[float, float]:
  """(lateral, down) of a lesion in a zone: between heart or hilum and the wall."""
  down = lung.row(zone) + rng.uniform(-jitter, jitter)
  wall = lung.wall_at(down)
  x, y = chest.heart_center
  tall = chest.heart_half / chest.frame.geometry.aspect * 0.9
  inner = 0.22
  if abs(down - y) < tall:
    inner = max(inner, chest.heart_half * 0.9 + lung.sign * x)
  inner = min(inner, wall - 0.45)
  return 0.5 * (inner + wall - 0.04) + rng.uniform(-jitter, jitter), down


def _effusion(
  chest: Chest, lung: Lung, finding: Finding, rng: np.random.Generator
) -> None:
  """Fluid with a meniscus: its surface climbs towards the chest wall."""
  height = rng.uniform(0.36, 0.80)
  part = np.clip(lung.lateral / lung.half_width, 0, 1.1)
  surface = lung.top + 0.16 - height * (0.30 + 0.95 * part**3)
  # Fluid fills the pleural space down to, and hides, the diaphragm.
  space = np.minimum(lung.wall - lung.lateral, lung.lateral - 0.14)
  space = np.minimum(space, lung.dome - chest.frame.down)
  fluid = ramp(chest.frame.down - surface, 0.07) * ramp(space, 0.03)
  depth = np.clip((chest.frame.down - surface) * np.float32(2.2), 0, 1)
  # The chord through the fluid replaces the air, so less aerated places gain less.
  air = chest.air[lung.name]
  chest.attenuation += fluid * (0.22 + 0.62 * air + 0.10 * depth)
  _mark(chest, "airless " + lung.name, fluid > 0.7)
  _mark(chest, "Pleural Effusion", (fluid > 0.3) & lung.inside)


def _atelectasis(
  chest: Chest, lung: Lung, finding: Finding, rng: np.random.Generator
) -> None:
  """A plate: a dense oblique band; the volume loss is in the case's geometry."""
  across, down = _site(chest, lung, finding.zone, rng)
  slope = rng.uniform(-0.16, 0.16)
  reach = rng.uniform(0.26, 0.34)
  frame = chest.frame
  start = (lung.sign * (across - reach), down - slope * reach)
  stop = (lung.sign * (across + reach), down + slope * reach)
  plate = _ellipse(chest, start, stop, 0.07)
  band = np.sqrt(chord(plate)) * ramp(lung.depth, 0.04)
  second = frame.capsule(
    (start[0] * 0.9, start[1] + 0.15), (stop[0] * 0.9, stop[1] + 0.15), 0.035
  )
  chest.attenuation += 0.62 * band + 0.30 * chord(second) * ramp(lung.depth, 0.04)
  haze = frame.capsule(start, stop, 0.17)
  chest.attenuation += 0.10 * chord(haze) * chest.air[lung.name]
  _mark(chest, "Atelectasis", ((plate < 1) | (second < 0.8)) & lung.inside)


def _ellipse(
  chest: Chest,
  start: tuple[float, float],
  stop: tuple[float, float],
  half_height: float,
) -> np.ndarray:
  """Multiples of an ellipse with its long axis from `start` to `stop`."""
  frame, aspect = chest.frame, chest.frame.geometry.aspect
  reach = np.array([stop[0] - start[0], (stop[1] - start[1]) * aspect]) / 2
  long = float(np.hypot(*reach))
  cos, sin = (reach / long).astype(np.float32)
  x = frame.across - np.float32((start[0] + stop[0]) / 2)
  y = frame.below - np.float32((start[1] + stop[1]) / 2 * aspect)
  along, aside = cos * x + sin * y, cos * y - sin * x
  return np.sqrt((along / long) ** 2 + (aside / half_height) ** 2)


def _blob(
  chest: Chest, lung: Lung, finding: Finding, rng: np.random.Generator, radius: float
) -> np.ndarray:
  """0 … 1: a soft irregular cloud about the site, of about `radius`."""
  frame = chest.frame
  across, down = _site(chest, lung, finding.zone, rng)
  x = (frame.across - np.float32(lung.sign * across)) / np.float32(radius * 0.92)
  y = (frame.below - np.float32(down * frame.geometry.aspect)) / np.float32(radius)
  cloud = textures.read_field(
    "cloud",
    int(rng.integers(textures.NUM_FIELDS)),
    frame.across + np.float32(rng.uniform(0, 2)),
    frame.below + np.float32(rng.uniform(0, 2)),
    1.5,
  )
  edge = 1.0 - np.sqrt(x * x + y * y) + 0.17 * cloud
  beside = 1.0 - 0.85 * np.sqrt(chest.heart_chord)
  return ramp(edge - 0.12, 0.45) * ramp(lung.depth, 0.03) * beside


def _texture(
  chest: Chest, kind: str, rng: np.random.Generator, period: float
) -> np.ndarray:
  return textures.read_field(
    kind,
    int(rng.integers(textures.NUM_FIELDS)),
    chest.frame.across + np.float32(rng.uniform(0, 2)),
    chest.frame.below + np.float32(rng.uniform(0, 2)),
    period,
  )


def _pneumonia(
  chest: Chest, lung: Lung, finding: Finding, rng: np.random.Generator
) -> None:
  """Fluffy patches that run together, with dark branching air bronchograms."""
  cloud = _blob(chest, lung, finding, rng, 0.42)
  clumps = _texture(chest, "clumps", rng, 1.6)
  tree = textures.read_tree(
    int(rng.integers(textures.NUM_TREES)), lung.lateral, chest.frame.down
  )
  chest.attenuation += cloud * (0.10 + 0.72 * clumps)
  chest.attenuation -= 0.30 * cloud * np.sqrt(tree)
  _mark(chest, "Pneumonia", cloud > 0.35)


def _consolidation(
  chest: Chest, lung: Lung, finding: Finding, rng: np.random.Generator
) -> None:
  """A lobe without air: even, dense, and cut off straight at a fissure."""
  frame = chest.frame
  _, down = _site(chest, lung, finding.zone, rng, 0.02)
  slope = rng.uniform(0.10, 0.22) * (1 if rng.random() < 0.5 else -1)
  tilt = (lung.lateral - 0.55) * np.float32(slope)
  half = rng.uniform(0.22, 0.27)
  cloud = 0.05 * _texture(chest, "cloud", rng, 1.2)
  upper = frame.down - (down - half) - tilt
  lower = (down + half) + tilt - frame.down
  if finding.zone == "upper":
    block = ramp(upper + cloud + 0.1, 0.2) * ramp(
      lower, 0.02
    )  # above the minor fissure
  elif finding.zone == "mid":
    block = ramp(upper, 0.02) * ramp(lower + cloud, 0.08)
  else:
    block = ramp(upper, 0.02) * ramp(lower + cloud + 0.1, 0.2)
  block = block * ramp(lung.depth, 0.03)
  block *= 1.0 - 0.85 * np.sqrt(chest.heart_chord)
  chest.attenuation += block * (0.14 + 0.62 * chest.air[lung.name])
  _mark(chest, "airless " + lung.name, block > 0.6)
  _mark(chest, "Consolidation", block > 0.4)


def _infiltration(
  chest: Chest, lung: Lung, finding: Finding, rng: np.random.Generator
) -> None:
  """An ill-defined net with fine grains over a thin haze, wider than pneumonia."""
  cloud = _blob(chest, lung, finding, rng, 0.60)
  mesh = _texture(chest, "mesh", rng, 2.0)
  dots = _texture(chest, "dots", rng, 2.0)
  chest.attenuation += cloud * (0.06 + 0.40 * mesh + 0.46 * dots)
  _mark(chest, "Infiltration", cloud > 0.3)


def _nodule(
  chest: Chest, lung: Lung, finding: Finding, rng: np.random.Generator
) -> None:
  """A sharp ball."""
  across, down = _site(chest, lung, finding.zone, rng, 0.07)
  ball = chest.frame.circle(lung.sign * across, down, rng.uniform(0.10, 0.15))
  chest.attenuation += 0.85 * np.sqrt(chord(ball)) * ramp(lung.depth, 0.03)
  _mark(chest, "Nodule", (ball < 1) & lung.inside)


def _pneumothorax(
  chest: Chest, lung: Lung, finding: Finding, rng: np.random.Generator
) -> None:
  """Free air along the wall, widest above, up to the thin line of the lung's pleura."""
  down = chest.frame.down
  widest = rng.uniform(0.20, 0.32)
  share = np.clip((down - lung.apex) / (lung.top - lung.apex), 0, 1)
  gap = widest * (1.05 - 0.75 * share)
  edge = lung.wall - gap - lung.lateral  # positive inside the collapsed lung
  edge = np.minimum(edge, down - (lung.apex + 0.9 * widest))
  free = ramp(-edge, 0.02) * ramp(lung.depth, 0.02)
  line = np.exp(-((edge / np.float32(0.017)) ** 2)) * ramp(lung.depth - 0.02, 0.02)
  chest.attenuation += 0.34 * line - 0.40 * free
  chest.attenuation += 0.05 * (1 - free) * chest.air[lung.name]
  _mark(chest, "airless " + lung.name, free > 0.5)
  _mark(chest, "Pneumothorax", ((free > 0.5) | (line > 0.5)) & lung.inside)


def _fracture(chest: Chest, finding: Finding, rng: np.random.Generator) -> np.ndarray:
  """A lateral rib breaks: its outer end slips, a dark gap opens between two knobs of
  callus. Returns the slip of the rib's phase.
  """
  frame = chest.frame
  lung = frame.lung(finding.side)
  pitch = chest.case.study.patient.rib_pitch
  aspect = frame.geometry.aspect
  want = lung.row(finding.zone)
  lateral = lung.wall_at(want) - rng.uniform(0.10, 0.17)
  number = round((want * aspect - rib_row(lateral, pitch, 0)) / pitch)
  down = rib_row(lateral, pitch, number) / aspect
  lateral = min(lateral, lung.wall_at(down) - 0.08)
  slope = (rib_row(lateral + 0.05, pitch, 0) - rib_row(lateral - 0.05, pitch, 0)) / 0.1
  length = float(np.hypot(1.0, slope))
  across = lung.sign * lateral
  near = frame.circle(across, down, 0.20)
  x = (lung.lateral - np.float32(lateral)) / np.float32(length)
  y = (frame.below - np.float32(down * aspect)) / np.float32(length)
  along, aside = x + slope * y, y - slope * x
  outer = ramp(along, 0.02) * ramp(1 - near, 0.5)
  for step, shift in ((-0.105, -0.02), (0.105, 0.065)):
    knob = np.sqrt(((along - step) / 0.115) ** 2 + ((aside - shift) / 0.07) ** 2)
    chest.attenuation += 0.80 * np.sqrt(chord(knob))
  cleft = (along - 0.3 * aside) / np.float32(0.026)
  gap = np.exp(-(cleft**2)) * ramp(0.13 - np.abs(aside), 0.05)
  chest.attenuation -= 0.40 * gap
  _mark(
    chest,
    "Fracture",
    (np.abs(along) < 0.21) & (np.abs(aside - 0.02) < 0.125),
  )
  return -0.36 * outer


def _edema(chest: Chest, rng: np.random.Generator) -> None:
  """Grade 2 adds a net, Kerley lines and haze; grade 3 perihilar bat wings. The
  congestion of grade 1 is drawn with the vessels.
  """
  frame, grade = chest.frame, chest.case.edema_grade
  if grade < 2:
    return
  mesh = _texture(chest, "mesh", rng, 2.0)
  for lung in frame.lungs:
    field = ramp(lung.depth, 0.05)
    base = ramp(frame.down + 0.25, 0.6)
    chest.attenuation += field * (0.07 + 0.17 * mesh) * (0.5 + 0.5 * base)
    # Kerley's lines: short, level, at the lateral base.
    comb = np.cos(frame.below * np.float32(2 * np.pi / 0.105)) - np.float32(0.35)
    short = ramp(0.20 - lung.wall + lung.lateral, 0.03) * ramp(frame.down, 0.2)
    chest.attenuation += 0.34 * np.clip(comb, 0, None) * short * field
    mask = field > 0.5
    if grade == 3:
      wing = _wing(chest, lung, rng)
      chest.attenuation += 0.60 * wing * chest.air[lung.name] * field
      mask = (wing > 0.35) & lung.inside
    _mark(chest, "Edema", mask)


def _wing(chest: Chest, lung: Lung, rng: np.random.Generator) -> np.ndarray:
  """0 … 1: a fluffy confluent cloud about the hilum that spares the periphery."""
  frame = chest.frame
  middle = 0.5 * (lung.apex + lung.top) + 0.10
  x = (lung.lateral - 0.40) / np.float32(0.46)
  y = (frame.down - np.float32(middle)) / np.float32(0.52)
  cloud = _texture(chest, "cloud", rng, 1.3)
  clumps = _texture(chest, "clumps", rng, 1.6)
  edge = ramp(1.0 - np.sqrt(x * x + y * y) + 0.15 * cloud, 0.5)
  return edge * (0.62 + 0.50 * clumps)
