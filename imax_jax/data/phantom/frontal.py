"""The healthy frontal chest as a ray-sum of closed-form chords."""

from __future__ import annotations

import functools

import numpy as np

from imax_jax import schema
from imax_jax.data.phantom import textures
from imax_jax.data.phantom.anatomy import Case
from imax_jax.data.phantom.frame import Frame
from imax_jax.data.phantom.frame import Lung
from imax_jax.data.phantom.frame import box_of_mask
from imax_jax.data.phantom.frame import chord
from imax_jax.data.phantom.frame import index
from imax_jax.data.phantom.frame import ramp
from imax_jax.data.phantom.frame import tabulate

_RIB_STEPS = 512


class Chest:
  """The attenuation of a frontal film as it is built up, with the organs' masks.

  `attenuation` is in arbitrary units: a torso's middle is about 1, a lung takes away
  about .75 of it. `boxes` holds objects that the study never asks for.
  """

  def __init__(self, case: Case, size: int) -> None:
    self.case = case
    self.frame = Frame(case.geometry, case.study, size)
    self.rng = np.random.default_rng((case.seed, case.study.seed, 1))
    self.attenuation = np.zeros((size, size), np.float32)
    self.boxes: dict[str, schema.Box] = {}
    self.finding_masks: dict[str, np.ndarray] = {}
    heart = self._heart()
    self.heart = heart < 1
    self.heart_chord = chord(heart)
    # 1 above the diaphragm, less where liver and stomach drown what lies over them.
    self.above = np.ones_like(self.attenuation)
    # How much lung each ray crosses, before any finding: 0 … 1, soft at the edges.
    # The heart pushes the lungs aside, hence its solid silhouette.
    beside = 1.0 - 0.85 * np.sqrt(self.heart_chord)
    self.air = {lung.name: _air(lung) * beside for lung in self.frame.lungs}

  def masks(self) -> dict[str, np.ndarray]:
    left, right = (lung.inside & ~self.heart for lung in self.frame.lungs)
    return {"heart": self.heart, "left lung": left, "right lung": right}

  def put_box(self, name: str, box: schema.Box | None) -> None:
    if box is not None:
      self.boxes[name] = box

  def _heart(self) -> np.ndarray:
    """Multiples of the heart's ellipse. Its half-width on the film is half of CTR
    times the lungs' width; the tilted ellipse's long axis a follows from
    half_width^2 = a^2 (cos^2 t + ratio^2 sin^2 t).
    """
    frame, patient = self.frame, self.case.study.patient
    # A very large heart spreads sideways rather than up to the collarbones.
    huge = float(np.clip((self.case.ctr - 0.52) / 0.2, 0, 1))
    tilt = np.deg2rad(patient.heart_tilt * (1 - 0.4 * huge))
    on_film = tilt + frame.turn
    half = self.case.ctr * frame.lungs_width() / 2 / frame.geometry.scale
    ratio = patient.heart_ratio * (1 - 0.26 * huge)
    long = half / float(np.hypot(np.cos(on_film), ratio * np.sin(on_film)))
    tall = long * float(np.hypot(np.sin(tilt), ratio * np.cos(tilt)))
    floor = min(frame.geometry.dome) + 0.07
    self.heart_half = half
    self.heart_center = (
      0.05 + 0.21 * half + frame.geometry.turn,
      floor - 0.74 * tall / frame.geometry.aspect,
    )
    x = frame.across - np.float32(self.heart_center[0])
    y = frame.below - np.float32(self.heart_center[1] * frame.geometry.aspect)
    cos, sin = np.float32(np.cos(tilt)), np.float32(np.sin(tilt))
    along, aside = cos * x + sin * y, cos * y - sin * x
    return np.sqrt((along / long) ** 2 + (aside / (long * ratio)) ** 2)


def _air(lung: Lung) -> np.ndarray:
  return np.sqrt(ramp(lung.depth - 0.17, 0.40)) * ramp(lung.depth, 0.025)


@functools.lru_cache(maxsize=1)
def _torso_tables() -> tuple[np.ndarray, np.ndarray]:
  """Half-width and thickness of neck, shoulders and trunk by how far down."""
  down = [-3, -1.45, -1.3, -1.16, -1.04, -0.9, -0.66, -0.4, -0.1, 0.6, 1.1, 3]
  half = [0.44, 0.44, 0.50, 0.80, 1.20, 1.50, 1.46, 1.22, 1.08, 1.09, 1.14, 1.2]
  thick = [0.62, 0.62, 0.62, 0.64, 0.70, 0.84, 0.98, 1.0, 1.0, 1.04, 1.12, 1.2]
  kernel = np.hanning(121)
  kernel /= kernel.sum()

  def smooth(values: list[float]) -> np.ndarray:
    rows = tabulate(lambda v: np.interp(v, down, values))
    padded = np.pad(rows, 60, mode="edge")
    return np.convolve(padded, kernel, mode="valid").astype(np.float32)

  return smooth(half), smooth(thick)


@functools.lru_cache(maxsize=1)
def _rib_profile() -> np.ndarray:
  """One period of ribs: a rounded band with a brighter cortex at both edges."""
  phase = (np.arange(_RIB_STEPS) + 0.5) / _RIB_STEPS
  off = np.abs(phase - 0.5) / 0.235
  body = 0.62 * np.clip((1.06 - off) / 0.16, 0, 1)
  cortex = 0.62 * np.exp(-(((off - 0.86) / 0.13) ** 2))
  return (body + cortex).astype(np.float32)


def rib_row(lateral: float, pitch: float, number: int) -> float:
  """How far below (metric) the middle of posterior rib `number` lies."""
  return float((number + 0.5) * pitch + _posterior(np.asarray([lateral]))[0])


def _posterior(lateral: np.ndarray) -> np.ndarray:
  u = np.clip(lateral, 0, 1.4)
  return 0.62 * u**2.1 - 0.16 * np.sin(np.clip(u / 0.55, 0, 1) * np.pi)


def _anterior(lateral: np.ndarray) -> np.ndarray:
  return 0.62 + 0.62 * np.clip(1.05 - lateral, 0, 1.4) ** 1.25


def _step(phase: np.ndarray) -> np.ndarray:
  """The row of `_rib_profile` at each phase; one period of ribs is a phase of 1."""
  return (phase * np.float32(_RIB_STEPS)).astype(np.int32) & (_RIB_STEPS - 1)


def draw_ribs(chest: Chest, slips: dict[str, np.ndarray]) -> None:
  """Adds all ribs as two periodic functions; `slips` shifts their phase locally."""
  frame = chest.frame
  pitch = np.float32(chest.case.study.patient.rib_pitch)
  profile = _rib_profile()
  posterior, anterior = tabulate(_posterior), tabulate(_anterior)
  for lung in frame.lungs:
    columns = index(lung.lateral)
    gate = ramp(lung.wall + 0.05 - lung.lateral, 0.05) * ramp(lung.lateral - 0.1, 0.1)
    gate *= ramp(frame.down - lung.apex, 0.08)
    gate *= 0.2 + 0.8 * ramp(lung.dome - frame.down + 0.05, 0.2)
    gate *= ramp(1.05 - frame.down, 0.3) * (1.0 - 0.6 * np.sqrt(chest.heart_chord))
    phase = (frame.below - posterior[columns]) / pitch
    if lung.name in slips:
      phase += slips[lung.name]
    rib = profile[_step(phase)]
    chest.attenuation += (0.15 * gate) * rib
    phase = (frame.below - anterior[columns]) / (pitch * np.float32(1.12)) + 0.3
    rib = profile[_step(phase)]
    front = gate * ramp(lung.lateral - 0.42, 0.25) * ramp(0.66 - frame.down, 0.3)
    chest.attenuation += (0.07 * front) * rib
    # The wall is seen edge-on: ribs add up to a bright rim.
    rim = 1 - np.abs(lung.lateral - lung.wall - 0.03) * np.float32(1 / 0.07)
    rim = np.clip(rim, 0, None) * ramp(frame.down - lung.apex, 0.2)
    chest.attenuation += 0.16 * rim * ramp(1.3 - frame.down, 0.3)


def draw_trunk(chest: Chest) -> None:
  """Soft tissue: torso, arms, breasts, the abdomen under the diaphragm."""
  frame, case = chest.frame, chest.case
  half_table, thick_table = _torso_tables()
  wall = case.study.patient.wall
  half = (half_table + np.float32(wall) * (half_table > 0.6))[frame.rows]
  depth = thick_table[frame.rows]
  trunk = depth * (1.0 - (frame.across / half) ** 2).clip(0) ** np.float32(0.42)
  chest.attenuation += trunk
  for sign in (-1.0, 1.0):
    top, low = (sign * 1.36, -0.78), (sign * 1.92, 0.75)
    arm = frame.capsule(top, low, 0.24 + wall / 3)
    chest.attenuation += 0.42 * chord(arm)
    bone = frame.capsule((sign * 1.30, -0.80), low, 0.085)
    chest.attenuation += 0.30 * chord(bone) + 0.16 * chord(
      frame.circle(sign * 1.24, -0.83, 0.17)
    )
    blade = frame.capsule((sign * 1.02, -0.72), (sign * 0.94, -0.12), 0.24)
    chest.attenuation += 0.10 * ramp(1 - blade, 0.25)
  air = np.maximum(*(chest.air[lung.name] for lung in frame.lungs))
  chest.attenuation -= 0.74 * air
  inner = [
    ramp((frame.down - lung.dome), 0.03)
    * ramp(lung.lateral + 0.02, 0.04)
    * ramp(lung.wall + 0.02 - lung.lateral, 0.08)
    for lung in frame.lungs
  ]
  left = frame.lung("left")
  chest.attenuation += 0.30 * inner[0] + 0.37 * inner[1]
  chest.above = 1.0 - 0.8 * np.maximum(inner[0], inner[1])
  if case.sex == "f":
    for sign in (-1.0, 1.0):
      breast = frame.circle(sign * 0.58, 0.24, 0.44)
      low_edge = ramp(1 - breast, 0.10) * ramp(frame.down - 0.05, 0.6)
      chest.attenuation += (0.22 + 0.4 * wall) * low_edge * chest.above
  chest.put_box("abdomen", box_of_mask((inner[0] + inner[1]) > 0.5))
  edges = [lung.sign * (lung.half_width + 0.06) for lung in frame.lungs]
  chest.put_box("thorax", frame.box([*edges, *edges], [-1.02, -1.02, 1.15, 1.15]))
  bubble = (0.42, left.top + 0.15)
  x = (frame.across - bubble[0]) / np.float32(0.23)
  y = (frame.below - bubble[1] * frame.geometry.aspect) / np.float32(0.10)
  gas = np.sqrt(x * x + y * y)
  chest.attenuation -= 0.34 * chord(gas) ** np.float32(0.7) * inner[0]
  chest.put_box("stomach bubble", box_of_mask((gas < 1) & (inner[0] > 0.5)))


def draw_middle(chest: Chest) -> None:
  """Spine, mediastinum, heart, great vessels, windpipe and collarbones."""
  frame, case = chest.frame, chest.case
  bend = np.float32(case.study.patient.spine_bend)
  middle = bend * np.sin(frame.down * np.float32(1.7))
  off = frame.across - middle
  disc = np.cos(frame.below * np.float32(2 * np.pi / 0.155))
  spine = chord(off / np.float32(0.125))
  chest.attenuation += spine * (0.20 + 0.04 * disc) * (0.4 + 0.6 * chest.above)
  chest.attenuation += 0.07 * np.exp(-((off / np.float32(0.03)) ** 2)) * (disc > 0.2)
  reach = np.linspace(-1.9, 1.9, 30)
  middles = case.study.patient.spine_bend * np.sin(1.7 * reach)
  chest.put_box(
    "spine", frame.box([*(middles - 0.125), *(middles + 0.125)], [*reach, *reach])
  )
  turn = np.float32(case.geometry.turn)
  knob = (0.20 + float(turn), -0.50)
  x, y = chest.heart_center
  half_width = tabulate(
    lambda v: np.interp(v, [-1.5, -0.75, -0.5, -0.1, y], [0.17, 0.16, 0.2, 0.24, 0.30])
  )[frame.rows]
  column = chord((frame.across - 0.35 * (np.float32(x))) / half_width)
  above = ramp(y - frame.down, 0.3) * ramp(frame.down + 1.25, 0.5)
  chest.attenuation += 0.27 * np.sqrt(column) * above
  chest.attenuation += 0.46 * np.sqrt(chest.heart_chord) * chest.above
  _draw_pedicle(chest, knob)
  chest.attenuation += 0.24 * np.sqrt(chord(frame.circle(*knob, 0.135)))
  aorta = frame.capsule(knob, (0.15, y + 0.3), 0.09)
  chest.attenuation += 0.12 * chord(aorta)
  chest.put_box(
    "aortic knob",
    frame.box(
      [knob[0] - 0.135, knob[0] + 0.135],
      [
        knob[1] - 0.135 / frame.geometry.aspect,
        knob[1] + 0.135 / frame.geometry.aspect,
      ],
    ),
  )
  carina = -0.33
  tube = frame.capsule((0.3 * float(turn), -1.6), (float(turn), carina), 0.062)
  pipes = chord(tube) * 0.34
  for sign, slope in ((-1.0, 0.17), (1.0, 0.13)):
    tip = (float(turn) + sign * 0.22, carina + slope)
    branch = chord(frame.capsule((float(turn), carina), tip, 0.042))
    pipes = np.maximum(pipes, 0.20 * branch)
  chest.attenuation -= pipes
  chest.put_box("trachea", box_of_mask((tube < 1) & (frame.down < carina)))
  _draw_collarbones(chest)


def _draw_collarbones(chest: Chest) -> None:
  frame = chest.frame
  for lung in frame.lungs:
    arch = -0.86 + 0.07 * np.cos(np.pi * np.clip((lung.lateral - 0.1) / 1.05, 0, 1))
    arch -= 0.10 * np.clip(lung.lateral - 0.5, 0, None)
    off = (frame.down - arch) * np.float32(frame.geometry.aspect / 0.062)
    gate = ramp(lung.lateral - 0.13, 0.05) * ramp(1.16 - lung.lateral, 0.06)
    bone = np.clip(1.1 - off * off, 0, 1) * 0.75 + 0.5 * np.exp(
      -(((np.abs(off) - 0.85) * 5) ** 2)
    )
    chest.attenuation += 0.27 * gate * bone
    chest.put_box(
      f"{lung.name} clavicle", box_of_mask((np.abs(off) < 1) & (gate > 0.5))
    )


def _draw_pedicle(chest: Chest, knob: tuple[float, float]) -> None:
  """The great vessels: a soft trapezoid from the knob down to the heart, without
  which the heart would float as a disc. It is narrower than the heart everywhere.
  """
  frame = chest.frame
  x, y = chest.heart_center
  half = chest.heart_half
  rows = [knob[1] - 0.2, knob[1], y - 0.35 * half, y]
  left = tabulate(
    lambda v: np.interp(v, rows, [0.13, 0.20, x + 0.48 * half, x + 0.7 * half])
  )[frame.rows]
  right = tabulate(
    lambda v: np.interp(v, rows, [0.13, 0.17, 0.60 * half - x, 0.75 * half - x])
  )[frame.rows]
  edge = np.minimum(left - frame.across, frame.across + right)
  body = ramp(edge - 0.02, 0.13) * ramp(frame.down - knob[1] + 0.15, 0.3)
  body *= ramp(y - frame.down + 0.05, 0.25)
  beside = body * (1.0 - np.sqrt(chest.heart_chord))
  air = np.maximum(*(chest.air[lung.name] for lung in frame.lungs))
  chest.attenuation += beside * (0.22 + 0.5 * air)


def draw_vessels(chest: Chest) -> None:
  """Vessels and the hila; congestion (grade 1 and more) fills the upper ones."""
  frame, case = chest.frame, chest.case
  rng = np.random.default_rng((case.study.seed, 2))
  grade = case.edema_grade
  stand = np.float32(0.5 * (sum(case.geometry.dome) / 2 - 0.66))
  for lung in frame.lungs:
    number = int(rng.integers(textures.NUM_TREES))
    tree = textures.read_tree(number, lung.lateral, frame.down - stand)
    # Upright, the lower vessels carry more; congestion evens them out and beyond.
    upper = ramp(0.05 + stand - frame.down, 0.4)
    gain = 0.30 - 0.08 * upper
    if grade:
      wide = textures.read_tree(
        number, lung.lateral * 0.97, (frame.down - stand) * 0.97
      )
      tree = np.maximum(tree, wide)
      gain = (0.36, 0.44, 0.42, 0.34)[grade] + 0.24 * upper
    airless = chest.finding_masks.get(f"airless {lung.name}")
    lit = np.sqrt(tree.clip(0, 0.6)) * ramp(lung.depth - 0.02, 0.08) * gain
    lit *= 1.0 - 0.85 * np.sqrt(chest.heart_chord)
    if airless is not None:
      lit = lit * ~airless
    chest.attenuation += lit
    root = frame.circle(
      lung.sign * 0.25 + case.geometry.turn, -0.07 + float(stand), 0.17 + 0.035 * grade
    )
    chest.attenuation += (0.16 + 0.04 * grade) * chord(root)
