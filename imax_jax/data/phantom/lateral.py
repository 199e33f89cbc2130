"""The lateral film: spine behind, heart in front, both lungs laid over each other.

The patient looks to the image's left. The study asks nothing of lateral films, so they
have no organ masks; findings appear where the frontal film has them, by height.
"""

from __future__ import annotations

import numpy as np

from imax_jax import schema
from imax_jax.data.phantom import textures
from imax_jax.data.phantom.anatomy import OPACITIES
from imax_jax.data.phantom.anatomy import Case
from imax_jax.data.phantom.frame import Frame
from imax_jax.data.phantom.frame import box_of_mask
from imax_jax.data.phantom.frame import chord
from imax_jax.data.phantom.frame import ramp


class Profile:
  """The attenuation of a lateral film, with the same attributes as `frontal.Chest`."""

  def __init__(self, case: Case, size: int) -> None:
    self.case = case
    self.frame = Frame(case.geometry, case.study, size)
    self.attenuation = np.zeros((size, size), np.float32)
    self.boxes: dict[str, schema.Box] = {}
    self.finding_masks: dict[str, np.ndarray] = {}

  def masks(self) -> dict[str, np.ndarray]:
    shape = self.attenuation.shape
    return {name: np.zeros(shape, bool) for name in schema.ORGANS}

  def put_box(self, name: str, box: schema.Box | None) -> None:
    if box is not None:
      self.boxes[name] = box

  def ellipse(self, x: float, y: float, width: float, height: float) -> np.ndarray:
    """Multiples of an upright ellipse about (x, y) in body units."""
    across = (self.frame.across - np.float32(x)) * np.float32(1 / width)
    down = (self.frame.down - np.float32(y)) * np.float32(1 / height)
    return np.sqrt(across * across + down * down)


def draw(case: Case, size: int) -> Profile:
  """Draws a whole lateral case, ready for `render.develop`."""
  film = Profile(case, size)
  lung = _draw_trunk(film)
  _draw_bones(film, lung)
  _draw_findings(film, lung)
  return film


def _front(down: np.ndarray) -> np.ndarray:
  """The sternum's inner side: the chest deepens downward."""
  return -0.34 - 0.44 * np.clip((down + 0.95) / 1.4, 0, 1) ** np.float32(0.8)


def _back(down: np.ndarray) -> np.ndarray:
  return 0.62 + 0.16 * np.sin(np.clip((down + 1.1) / 2.2, 0, 1) * np.float32(np.pi))


def _draw_trunk(film: Profile) -> np.ndarray:
  frame, case = film.frame, film.case
  wall = case.study.patient.wall
  down = frame.down
  front, back = _front(down), _back(down)
  skin = np.minimum(
    frame.across - front + 0.16 + wall, back + 0.2 + wall - frame.across
  )
  # The trunk narrows into shoulders and neck.
  skin = skin - (1 - ramp(down + 1.1, 0.5)) * 0.34
  film.attenuation += (0.72 + 0.33 * ramp(down + 0.3, 1.2)) * np.sqrt(
    np.clip(skin * 2.2, 0, 1)
  )
  shoulder = film.ellipse(0.06, -1.0, 0.62, 0.46)
  film.attenuation += 0.36 * np.clip(1 - shoulder, 0, 1)
  if case.sex == "f":
    breast = film.ellipse(-0.88, 0.12, 0.30, 0.36)
    film.attenuation += 0.30 * chord(breast)
  dome = min(case.geometry.dome) + 0.05
  depth = np.minimum(frame.across - front, back - frame.across)
  lung = np.zeros_like(depth)
  for offset in (0.0, 0.09):  # two domes, hence two edges
    curve = dome + offset + 0.34 * ((frame.across + 0.12) / 0.8).clip(0) ** 2
    inner = np.minimum(depth, curve - down)
    crown = 1.0 - film.ellipse(0.18, 0.2, 0.78 + offset, 1.22)
    inner = np.minimum(inner, np.where(down < 0.2, crown, 1.0))
    lung += 0.5 * np.sqrt(ramp(inner - 0.09, 0.24)) * ramp(inner, 0.03)
    film.attenuation += 0.10 * ramp(down - curve, 0.03) * (skin > 0)
  film.attenuation -= 0.66 * lung
  film.put_box("thorax", box_of_mask(lung > 0.2))
  wide = 0.36 + 0.5 * (case.ctr - 0.4)
  heart = film.ellipse(wide - 0.80, dome - 0.22, wide, 0.46)
  film.attenuation += 0.40 * np.sqrt(chord(heart)) * ramp(lung, 0.2)
  hilum = frame.circle(0.02, -0.08, 0.17)
  film.attenuation += 0.22 * chord(hilum)
  tube = frame.capsule((-0.10, -1.5), (0.06, -0.22), 0.06)
  film.attenuation -= 0.22 * chord(tube)
  film.put_box("trachea", box_of_mask(tube < 1))
  arch = np.abs(film.ellipse(0.16, -0.36, 0.22, 0.20) - 1)
  film.attenuation += 0.12 * ramp(0.28 - arch, 0.2) * (down < -0.3)
  return lung


def _draw_bones(film: Profile, lung: np.ndarray) -> None:
  frame, case = film.frame, film.case
  off = frame.across - _back(frame.down) + np.float32(0.02)
  disc = np.cos(frame.below * np.float32(2 * np.pi / 0.2))
  film.attenuation += chord(off / np.float32(0.13)) * (0.30 + 0.10 * disc)
  film.put_box("spine", box_of_mask(np.abs(off) < 0.13))
  plate = frame.across - _front(frame.down) + np.float32(0.05)
  bone = np.exp(-((plate / np.float32(0.04)) ** 2))
  film.attenuation += 0.22 * bone * ramp(frame.down + 0.9, 0.1) * (frame.down < 0.3)
  pitch = np.float32(case.study.patient.rib_pitch)
  for tilt, amount in ((0.75, 0.07), (0.55, 0.05)):
    wave = (frame.below + np.float32(tilt) * frame.across) / pitch
    ribs = np.clip(np.cos(wave * np.float32(2 * np.pi)), 0, 1)
    film.attenuation += amount * ribs * ramp(lung - 0.1, 0.3)
  rng = np.random.default_rng((case.study.seed, 2))
  for sign in (-1.0, 1.0):
    number = int(rng.integers(textures.NUM_TREES))
    tree = textures.read_tree(number, sign * frame.across + 0.2, frame.down)
    film.attenuation += (0.11 + 0.05 * case.edema_grade) * np.sqrt(tree) * lung


def _draw_findings(film: Profile, lung: np.ndarray) -> None:
  """Lesions at their zone's height; the depth in the chest follows the study's seed."""
  case, frame = film.case, film.frame
  dome = min(case.geometry.dome)
  for number, finding in enumerate(case.findings):
    rng = np.random.default_rng((case.study.seed, 10 + number))
    part = {"upper": 0.25, "mid": 0.53, "lower": 0.80, "": 0.5}[finding.zone]
    down = -0.9 + part * (dome + 0.9)
    x = float(rng.uniform(-0.3, 0.35))
    body = _body(film, finding.name, x, down, rng)
    if finding.name not in ("Fracture", "Pneumothorax"):
      body = body * ramp(lung - 0.1, 0.2)
    film.attenuation += body
    mask = np.abs(body) > 0.08
    known = film.finding_masks.get(finding.name)
    film.finding_masks[finding.name] = mask if known is None else known | mask
  opaque = [film.finding_masks[n] for n in OPACITIES if n in film.finding_masks]
  if opaque:
    film.finding_masks["Lung Opacity"] = np.logical_or.reduce(opaque)
  film.put_box("abdomen", box_of_mask(frame.down > dome + 0.12))


def _body(
  film: Profile, name: str, x: float, down: float, rng: np.random.Generator
) -> np.ndarray:
  """The attenuation that a lesion adds about (x, down)."""
  frame = film.frame
  number = int(rng.integers(textures.NUM_FIELDS))
  soft = ramp(1 - film.ellipse(x, down, 0.36, 0.34), 0.5)
  if name == "Pleural Effusion":
    surface = min(film.case.geometry.dome) + 0.16 - 0.5 * frame.across.clip(0) ** 2
    return 0.5 * ramp(frame.down - surface, 0.06)
  if name == "Atelectasis":
    plate = frame.capsule((x - 0.3, down), (x + 0.3, down + 0.06), 0.05)
    return 0.40 * np.sqrt(chord(plate))
  if name == "Pneumonia":
    clumps = textures.read_field("clumps", number, frame.across, frame.below, 1.25)
    return soft * (0.1 + 0.5 * clumps)
  if name == "Edema":
    wide = ramp(1 - film.ellipse(0.0, down, 0.62, 0.7), 0.6)
    mesh = textures.read_field("mesh", number, frame.across, frame.below, 1.8)
    return wide * (0.12 + 0.14 * mesh + 0.14 * (film.case.edema_grade - 2))
  if name == "Consolidation":
    return 0.45 * ramp(1 - film.ellipse(x, down, 0.4, 0.24), 0.08)
  if name == "Pneumothorax":
    rim = ramp(0.16 - np.abs(frame.down + 0.78), 0.03)
    return -0.2 * rim * ramp(0.5 - np.abs(frame.across), 0.05)
  if name == "Fracture":
    return 0.42 * chord(frame.circle(0.5, down, 0.11))
  if name == "Infiltration":
    mesh = textures.read_field("mesh", number, frame.across, frame.below, 1.3)
    return soft * (0.04 + 0.3 * mesh)
  return 0.5 * np.sqrt(chord(frame.circle(x, down, 0.11)))  # a nodule
