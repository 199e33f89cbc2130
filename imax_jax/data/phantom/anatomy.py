"""Who is on the film: seeded patients, studies and cases of the phantom hospital.

    sample_patient(rng) -> Patient         what a person keeps: sex, heart, build
    sample_study(rng, patient) -> Study    what one visit shows: findings, devices
    make_case(study, view, seed) -> Case   one exposure: projection, position, noise

Everything a film shows follows from its `Case`, which holds numbers only, so the truth
of every label is known exactly. Left and right are the patient's. Lengths of the body
are in units of the thorax: 1 is half of the rib cage's inner width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Literal

import numpy as np

from imax_jax import schema

View = Literal["PA", "AP", "LATERAL"]
VIEWS: tuple[View, ...] = ("PA", "AP", "LATERAL")
SIDES: tuple[str, ...] = ("left", "right")
ZONES: tuple[str, ...] = ("upper", "mid", "lower")
DEVICES: tuple[str, ...] = ("pacemaker", "central line", "ecg leads")
# Any of these makes the derived label "Lung Opacity" true.
OPACITIES: tuple[str, ...] = (
  "Atelectasis", "Pneumonia", "Edema", "Consolidation", "Infiltration"
)  # fmt: skip
CTR_RANGE = (0.36, 0.72)

# Chances of a finding in a study; effusion and edema depend on heart failure below.
_PREVALENCE = {
  "Atelectasis": 0.18,
  "Pneumonia": 0.16,
  "Consolidation": 0.16,
  "Infiltration": 0.14,
  "Pneumothorax": 0.13,
  "Fracture": 0.14,
  "Nodule": 0.21,
}
_CHF_RATE = 0.35
_EDEMA_GRADE = {False: (0.63, 0.19, 0.11, 0.07), True: (0.12, 0.21, 0.32, 0.35)}
_EFFUSION = {False: 0.28, True: 0.60}


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
  """One lesion. `side` is "left", "right" or "" (both); `zone` may be ""."""

  name: str  # one of schema.FINDINGS, never the derived "Lung Opacity"
  side: str
  zone: str


@dataclasses.dataclass(frozen=True, slots=True)
class Patient:
  """What all films of a person share. Lengths are in units of the thorax."""

  sex: Literal["m", "f"]
  heart_failure: bool
  ctr: float  # the upright posterior-anterior film's cardiothoracic ratio
  aspect: float  # height of the rib cage by its width
  wall: float  # thickness of the chest wall
  heart_tilt: float  # of the long axis below the horizontal, degrees
  heart_ratio: float  # short by long axis
  rib_pitch: float
  spine_bend: float
  asymmetry: float  # left minus right half-width of the rib cage


@dataclasses.dataclass(frozen=True, slots=True)
class Study:
  """What one visit's views share."""

  patient: Patient
  ctr: float
  findings: tuple[Finding, ...]
  edema_grade: int  # index into schema.EDEMA_GRADES
  devices: tuple[str, ...]
  seed: int  # places lesions and branches alike in every view


@dataclasses.dataclass(frozen=True, slots=True)
class Geometry:
  """How one exposure lies on the plate: image fractions, degrees, thorax units."""

  center: tuple[float, float]  # of the rib cage, fractions of the image
  scale: float  # one thorax unit as a fraction of the image's width
  rotation: float  # degrees, clockwise on the film
  aspect: float
  half_width: tuple[float, float]  # left, right
  apex: tuple[float, float]  # left, right; downward from the center, hence negative
  dome: tuple[float, float]  # left, right; the diaphragm's highest points
  turn: float  # how far the patient is turned: shift of heart and trachea


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
  """All that `render` needs for one film.

  >>> case = sample_case(np.random.default_rng(7), view="PA")
  >>> case.label("Edema") == int(case.edema_grade >= 2)
  True
  """

  seed: int
  view: View
  sex: Literal["m", "f"]
  findings: tuple[Finding, ...]
  edema_grade: int
  devices: tuple[str, ...]
  marker_side: Literal["left", "right"]
  ctr: float  # as drawn; `Film.ctr` measures the masks
  geometry: Geometry
  exposure: float  # gamma of the film: below 1 bright, above 1 dark
  noise: float  # standard deviation of the quantum noise, attenuation units
  study: Study

  def label(self, name: str) -> int:
    """1 where the finding is present, else 0. Raises ValueError for a wrong name."""
    if name not in schema.FINDINGS:
      raise ValueError(
        f"finding: expected one of schema.FINDINGS, got {name!r}; check its spelling"
      )
    present = {finding.name for finding in self.findings}
    if name == "Lung Opacity":
      return int(any(opacity in present for opacity in OPACITIES))
    return int(name in present)

  @property
  def bits(self) -> tuple[int, ...]:
    """The labels in the order of `schema.FINDINGS`."""
    return tuple(self.label(name) for name in schema.FINDINGS)


def _uniform(rng: np.random.Generator, low: float, high: float) -> float:
  return float(rng.uniform(low, high))


def _pick(rng: np.random.Generator, options: Iterable[str]) -> str:
  listed = tuple(options)
  return listed[int(rng.integers(len(listed)))]


def sample_patient(rng: np.random.Generator) -> Patient:
  """Draws a person; 35 % have heart failure and with it a larger heart."""
  failing = bool(rng.random() < _CHF_RATE)
  ctr = float(rng.normal(0.47, 0.06)) + (_uniform(rng, 0.02, 0.20) if failing else 0.0)
  return Patient(
    sex="f" if rng.random() < 0.5 else "m",
    heart_failure=failing,
    ctr=float(np.clip(ctr, *CTR_RANGE)),
    aspect=_uniform(rng, 0.86, 1.24),
    wall=_uniform(rng, 0.10, 0.26),
    heart_tilt=_uniform(rng, 22.0, 50.0),
    heart_ratio=_uniform(rng, 0.66, 0.86),
    rib_pitch=_uniform(rng, 0.20, 0.25),
    spine_bend=_uniform(rng, -0.07, 0.07),
    asymmetry=_uniform(rng, -0.14, 0.14),
  )


def _sites(ctr: float) -> list[tuple[str, str]]:
  """Where a lesion has room: behind a large heart the left base has none."""
  sites = [(side, zone) for side in SIDES for zone in ZONES]
  return [site for site in sites if site != ("left", "lower") or ctr < 0.58]


def sample_study(rng: np.random.Generator, patient: Patient) -> Study:
  """Draws one visit. Lesions of the lung take different (side, zone) sites."""
  ctr = float(np.clip(patient.ctr + rng.normal(0.0, 0.012), *CTR_RANGE))
  grade = int(rng.choice(4, p=_EDEMA_GRADE[patient.heart_failure]))
  found: list[Finding] = []
  if rng.random() < _EFFUSION[patient.heart_failure]:
    both = rng.random() < (0.4 if patient.heart_failure else 0.15)
    sides = SIDES if both else (_pick(rng, SIDES),)
    found.extend(Finding("Pleural Effusion", side, "lower") for side in sides)
  effused = {finding.side for finding in found}
  if grade >= 2:
    found.append(Finding("Edema", "", ""))
  sites = [s for s in _sites(ctr) if s[1] != "lower" or s[0] not in effused]
  for name in ("Consolidation", "Pneumonia", "Infiltration", "Atelectasis", "Nodule"):
    if rng.random() < _PREVALENCE[name] and sites:
      allowed = [s for s in sites if name != "Atelectasis" or s[1] != "upper"]
      if allowed:
        site = allowed[int(rng.integers(len(allowed)))]
        sites.remove(site)
        found.append(Finding(name, *site))
  if rng.random() < _PREVALENCE["Pneumothorax"]:
    found.append(Finding("Pneumothorax", _pick(rng, SIDES), "upper"))
  if rng.random() < _PREVALENCE["Fracture"]:
    # Not beside a nodule, which would look like a third piece of bone.
    taken = {(f.side, f.zone) for f in found if f.name == "Nodule"}
    free = [(s, z) for s in SIDES for z in ZONES if (s, z) not in taken]
    found.append(Finding("Fracture", *free[int(rng.integers(len(free)))]))
  order = {name: index for index, name in enumerate(schema.FINDINGS)}
  found.sort(key=lambda finding: order[finding.name])
  rates = (0.25 if patient.heart_failure else 0.10, 0.22, 0.22)
  devices = tuple(d for d, p in zip(DEVICES, rates, strict=True) if rng.random() < p)
  seed = int(rng.integers(2**31))
  return Study(patient, ctr, tuple(found), grade, devices, seed)


def _geometry(rng: np.random.Generator, study: Study, view: View) -> Geometry:
  """Places the body on the plate: shifts, zoom and tilt wide enough that no constant
  box is a good guess, but clipped so that the rib cage stays on the film.
  """
  portable = view == "AP"
  patient = study.patient
  aspect = patient.aspect * _uniform(rng, 0.95, 1.05)
  scale = min(0.36 * _uniform(rng, 0.75, 1.15), 0.48 / aspect)
  room_x = max(0.02, 0.495 - scale * 1.06)
  room_y = max(0.02, 0.51 - scale * aspect * 0.95)
  reach = 0.15 if portable else 0.12
  shift_x = np.clip(_uniform(rng, -reach, reach), -room_x, room_x)
  shift_y = np.clip(_uniform(rng, -reach, reach), -room_y, room_y)
  breath = _uniform(rng, 0.36, 0.74) if portable else _uniform(rng, 0.46, 0.92)
  high = [0.0, 0.0]  # a collapsed lung draws its diaphragm up
  for finding in study.findings:
    if finding.name == "Atelectasis":
      high[SIDES.index(finding.side)] = 0.16
  dome = (
    breath + _uniform(rng, -0.02, 0.12) - high[0],
    breath - _uniform(rng, 0.0, 0.14) - high[1],
  )
  return Geometry(
    center=(0.5 + float(shift_x), 0.5 + float(shift_y)),
    scale=scale,
    rotation=_uniform(rng, -8.0, 8.0) if portable else _uniform(rng, -6.0, 6.0),
    aspect=aspect,
    half_width=(
      1.0 + patient.asymmetry / 2 + _uniform(rng, -0.04, 0.04),
      1.0 - patient.asymmetry / 2 + _uniform(rng, -0.04, 0.04),
    ),
    apex=(-1.0 + _uniform(rng, 0.0, 0.16), -1.0 + _uniform(rng, 0.0, 0.16)),
    dome=dome,
    turn=_uniform(rng, -0.08, 0.08) if portable else _uniform(rng, -0.03, 0.03),
  )


def make_case(study: Study, view: View, seed: int) -> Case:
  """One exposure of a study; a portable AP film magnifies the heart by .035 of CTR.

  Raises ValueError for an unknown view.
  """
  if view not in VIEWS:
    raise ValueError(f"view: expected one of {VIEWS}, got {view!r}; use one of these")
  rng = np.random.default_rng((seed, study.seed))
  portable = view == "AP"
  return Case(
    seed=seed,
    view=view,
    sex=study.patient.sex,
    findings=study.findings,
    edema_grade=study.edema_grade,
    devices=study.devices,
    marker_side="left" if rng.random() < 0.5 else "right",
    ctr=float(np.clip(study.ctr + 0.035 * portable, *CTR_RANGE)),
    geometry=_geometry(rng, study, view),
    exposure=_uniform(rng, 0.75, 1.35),
    noise=_uniform(rng, 0.014, 0.026) if portable else _uniform(rng, 0.005, 0.011),
    study=study,
  )


def sample_case(
  rng: np.random.Generator, *, view: View = "PA", patient: Patient | None = None
) -> Case:
  """A case of a new study, of `patient` if given, else of a new person."""
  person = sample_patient(rng) if patient is None else patient
  study = sample_study(rng, person)
  return make_case(study, view, int(rng.integers(2**31)))
