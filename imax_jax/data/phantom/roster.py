"""Who is in the hospital, and which films are taken of them. All ids are invented.

Subjects count from 10000001 and studies from 50000001; an image's id has the form of
MIMIC's, five groups of eight hexadecimal digits, but starts with "aaaaaaaa-":

    aaaaaaaa-SEED    -PATIENT -STUDY   -IMAGE
"""

from __future__ import annotations

import dataclasses

import numpy as np

from imax_jax.data.phantom import anatomy

FIRST_SUBJECT = 10_000_001
FIRST_STUDY = 50_000_001
# Beyond it a subject's folder would no longer be p10.
MAX_PATIENTS = 900_000

_STUDIES_OF_PATIENT = (0.60, 0.28, 0.12)  # chances of 1, 2, 3
_TWO_FRONTALS = 0.15
_UPRIGHT = {False: 0.65, True: 0.40}  # PA rather than AP, by heart failure
_LATERAL_OF_PA = 0.24
_VIEW_MISSING = 0.02
_SPLITS = (("train", 0.90), ("validate", 0.04), ("test", 0.06))
_LT_SPLITS = (("train", 0.69), ("development", 0.10), ("test", 0.21))


@dataclasses.dataclass(frozen=True, slots=True)
class Exposure:
  """One film to take. `view_position` is the metadata's cell, at times empty."""

  image_id: str
  case: anatomy.Case
  view_position: str

  @property
  def frontal(self) -> bool:
    """Whether the metadata calls it frontal, as every source does."""
    return self.view_position in ("AP", "PA")


@dataclasses.dataclass(frozen=True, slots=True)
class Visit:
  """A study: one visit of a patient, one report, one to four films."""

  subject_id: str
  study_id: str
  number: int  # of the study, from 0: seeds what is written about it
  study: anatomy.Study
  exposures: tuple[Exposure, ...]
  split: str  # MIMIC's: train, validate, test
  lt_split: str  # CXR-LT's own: train, development, test
  date: int  # YYYYMMDD, in MIMIC's shifted future
  time: float  # HHMMSS.fff, leading zeros lost

  @property
  def frontals(self) -> tuple[Exposure, ...]:
    return tuple(exposure for exposure in self.exposures if exposure.frontal)

  @property
  def folder(self) -> str:
    return f"files/p{self.subject_id[:2]}/p{self.subject_id}/s{self.study_id}"

  def path(self, exposure: Exposure) -> str:
    """The JPEG's path in MIMIC-CXR-JPG: files/p10/p10000001/s50000001/….jpg"""
    return f"{self.folder}/{exposure.image_id}.jpg"


def draw_roster(seed: int, num_patients: int) -> tuple[Visit, ...]:
  """All visits, in the order of subject and study.

  Patient i is drawn from (seed, i) alone: a larger hospital begins with the smaller.

  Raises:
    ValueError: a seed that is not 32 bits, or too few or too many patients.
  """
  if not 0 <= seed < 2**32:
    raise ValueError(f"seed: expected 0 to 2**32 - 1, got {seed}")
  if not 1 <= num_patients <= MAX_PATIENTS:
    raise ValueError(f"num_patients: expected 1 to {MAX_PATIENTS}, got {num_patients}")
  visits: list[Visit] = []
  for index in range(num_patients):
    rng = np.random.default_rng((seed, 11, index))
    patient = anatomy.sample_patient(rng)
    split, lt_split = _choice(rng, _SPLITS), _choice(rng, _LT_SPLITS)
    for _ in range(1 + int(rng.choice(3, p=_STUDIES_OF_PATIENT))):
      study = anatomy.sample_study(rng, patient)
      number = len(visits)
      visits.append(
        Visit(
          subject_id=str(FIRST_SUBJECT + index),
          study_id=str(FIRST_STUDY + number),
          number=number,
          study=study,
          exposures=_exposures(rng, study, (seed, index, number)),
          split=split,
          lt_split=lt_split,
          date=int(rng.integers(2110, 2205)) * 10_000
          + int(rng.integers(1, 13)) * 100
          + int(rng.integers(1, 29)),
          time=int(rng.integers(24)) * 10_000
          + int(rng.integers(60)) * 100
          + int(rng.integers(60_000)) / 1000,
        )
      )
  return tuple(visits)


def _choice(rng: np.random.Generator, options: tuple[tuple[str, float], ...]) -> str:
  return options[int(rng.choice(len(options), p=[chance for _, chance in options]))][0]


def _exposures(
  rng: np.random.Generator, study: anatomy.Study, ids: tuple[int, int, int]
) -> tuple[Exposure, ...]:
  upright = rng.random() < _UPRIGHT[study.patient.heart_failure]
  frontal: anatomy.View = "PA" if upright else "AP"
  views: list[anatomy.View] = [frontal]
  if rng.random() < _TWO_FRONTALS:
    views.append(frontal)
  if upright and rng.random() < _LATERAL_OF_PA:
    views.append("LATERAL")
  exposures = []
  for image, view in enumerate(views):
    case = anatomy.make_case(study, view, int(rng.integers(2**31)))
    position: str = view
    if view == "LATERAL" and rng.random() < 0.3:
      position = "LL"
    if rng.random() < _VIEW_MISSING:
      position = ""
    name = "-".join(f"{number:08x}" for number in (0xAAAAAAAA, *ids, image))
    exposures.append(Exposure(name, case, position))
  return tuple(exposures)
