"""Who is in a census: patients, studies and images in MIMIC-CXR-JPG's numbers.

Drawn as arrays, for there are hundreds of thousands. All ids are invented: patients
from 10000001 and studies from 50000001 up in wide steps, so that they spread over p10 …
p19; an image's id starts with "aaaaaaaa-".
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

NUM_PATIENTS, NUM_STUDIES, NUM_IMAGES = 65_379, 227_835, 377_110
# How often each ViewPosition is met (specs: counted in the released metadata).
VIEW_COUNTS: dict[str, int] = {
  "AP": 147_173, "PA": 96_161, "LATERAL": 82_853, "LL": 35_133, "": 15_769,
  "PA LLD": 4, "LAO": 3, "RAO": 3, "AP AXIAL": 2, "XTABLE LATERAL": 2, "LPO": 2,
  "SWIMMERS": 2, "AP LLD": 1, "AP RLD": 1, "PA RLD": 1,
}  # fmt: skip
VIEWS = tuple(VIEW_COUNTS)
AP, PA, LATERAL, LL, MISSING = range(5)
# (rows, columns, share): three of five films are upright.
SIZES: tuple[tuple[int, int, float], ...] = (
  (3056, 2544, 0.545), (2544, 3056, 0.335), (3050, 2539, 0.030), (2539, 3050, 0.030),
  (2828, 2320, 0.020), (2320, 2828, 0.015), (2022, 2022, 0.015), (2140, 1760, 0.010),
)  # fmt: skip
FIRST_SUBJECT, LAST_SUBJECT = 10_000_001, 19_999_999
FIRST_STUDY = 50_000_001
# Meets none of the 54 studies that the authors' section rules treat by their number.
_STUDY_STEP = 43
# Shares of the studies that have no frontal image: a side view alone, no view given.
_LATERAL_ALONE, _MISSING_ALONE = 0.012, 0.03
_FIRST_OF_PA = 0.94  # of the PA images, the others are a study's second
_LATERAL_OF_PA = 0.93  # of the studies with a PA image
_SPREAD_OF_STUDIES = 1.1  # of the logarithm of a patient's studies: some have dozens


def scaled(count: int, scale: float) -> int:
  """A released count at `scale`, at least one."""
  return max(round(count * scale), 1)


def apportion(total: int, weights: Sequence[float]) -> list[int]:
  """Whole numbers that sum to `total`, near the weights (largest remainders).

  apportion(10, (2, 1, 1)) -> [5, 3, 2]
  """
  exact = np.asarray(weights, float) * total / sum(weights)
  counts = np.floor(exact).astype(int)
  order = np.argsort(counts - exact, kind="stable")
  counts[order[: total - counts.sum()]] += 1
  return counts.tolist()


def portions(total: int, parts: int, most: int, rng: np.random.Generator) -> np.ndarray:
  """int[parts] that sum to `total`, each from 1 to `most`.

  Raises:
    ValueError: there is no such division.
  """
  if not parts <= total <= parts * most:
    raise ValueError(f"portions: {total} in {parts} parts of 1 to {most} does not go")
  counts = np.ones(parts, np.int64)
  while (left := total - counts.sum()) > 0:
    room = counts < most
    counts += rng.multinomial(left, room / room.sum())
    counts = np.minimum(counts, most)
  return counts


@dataclasses.dataclass(frozen=True, eq=False)
class People:
  """P patients, S studies, N images in the order of subject, study and image.

  patient[S] and study[N] say whose a study and of which study an image is; view[N]
  points into `VIEWS`, size[N] into `sizes`, (rows, columns).
  """

  seed: int
  scale: float
  subject_ids: list[str]
  study_ids: list[str]
  image_ids: list[str]
  patient: np.ndarray
  study: np.ndarray
  view: np.ndarray
  size: np.ndarray
  sizes: tuple[tuple[int, int], ...]

  def rng(self, code: int) -> np.random.Generator:
    """The draws of one table, apart from those of every other."""
    return np.random.default_rng((self.seed, 61, code))

  @functools.cached_property
  def frontal(self) -> np.ndarray:
    """The images whose ViewPosition is exactly AP or PA."""
    return np.flatnonzero((self.view == AP) | (self.view == PA))

  @functools.cached_property
  def first_frontal(self) -> np.ndarray:
    """int[S]: each study's first frontal image, -1 where it has none."""
    first = np.full(len(self.study_ids), -1)
    images = self.frontal[::-1]
    first[self.study[images]] = images
    return first

  @functools.cached_property
  def subject_of_study(self) -> list[str]:
    return [self.subject_ids[patient] for patient in self.patient.tolist()]

  @functools.cached_property
  def folders(self) -> list[str]:
    """Of each study: files/p10/p10000001/s50000001"""
    pairs = zip(self.subject_of_study, self.study_ids, strict=True)
    return [f"files/p{subject[:2]}/p{subject}/s{study}" for subject, study in pairs]

  @functools.cached_property
  def paths(self) -> list[str]:
    """Of each image, in MIMIC-CXR-JPG: files/p10/p10000001/s50000001/….jpg"""
    pairs = zip(self.study.tolist(), self.image_ids, strict=True)
    return [f"{self.folders[study]}/{image}.jpg" for study, image in pairs]

  def split(self, names: Sequence[str], counts: Sequence[int], code: int) -> list[str]:
    """A split's name for each patient; images by `counts`, to a patient's few."""
    images = np.bincount(self.patient[self.study], minlength=len(self.subject_ids))
    order = self.rng(code).permutation(images.size)
    # A patient belongs where the middle of their images falls.
    middle = (np.cumsum(images[order]) - images[order] / 2) / images.sum()
    edges = np.cumsum(counts)[:-1] / sum(counts)
    part = np.empty(images.size, int)
    part[order] = np.searchsorted(edges, middle)
    return [names[place] for place in part.tolist()]


def view_counts(scale: float) -> list[int]:
  """How many images have each of `VIEWS`; at least one has an odd one."""
  counts = [round(VIEW_COUNTS[view] * scale) for view in VIEWS[:MISSING]]
  odd = [VIEW_COUNTS[view] for view in VIEWS[MISSING + 1 :]]
  odd = apportion(scaled(sum(odd), scale), odd)
  missing = round(NUM_IMAGES * scale) - sum(counts) - sum(odd)
  return [*counts, missing, *odd]


def draw_people(seed: int, scale: float, image_size: tuple[int, int]) -> People:
  """The census's people.

  Args:
    image_size: rows and columns of the commonest film; the other sizes follow.
  """
  rng = np.random.default_rng((seed, 60))
  num_patients, num_studies = scaled(NUM_PATIENTS, scale), scaled(NUM_STUDIES, scale)
  weights = np.exp(rng.normal(0, _SPREAD_OF_STUDIES, num_patients))
  extra = rng.multinomial(num_studies - num_patients, weights / weights.sum())
  patient = np.repeat(np.arange(num_patients), 1 + extra)
  numbers = FIRST_STUDY + _STUDY_STEP * rng.permutation(num_studies)
  numbers = numbers[np.lexsort((numbers, patient))]
  study, view = _films(rng, num_studies, view_counts(scale))
  step = (LAST_SUBJECT - FIRST_SUBJECT) // num_patients
  groups = rng.integers(2**32, size=(study.size, 3)).tolist()
  shares = np.array([share for *_, share in SIZES])
  rows, columns = (side / of for side, of in zip(image_size, SIZES[0], strict=False))
  return People(
    seed=seed,
    scale=scale,
    subject_ids=[str(FIRST_SUBJECT + step * number) for number in range(num_patients)],
    study_ids=[str(number) for number in numbers.tolist()],
    image_ids=[
      f"aaaaaaaa-{a:08x}-{b:08x}-{c:08x}-{image:08x}"
      for image, (a, b, c) in enumerate(groups)
    ],
    patient=patient,
    study=study,
    view=view,
    size=rng.choice(len(SIZES), study.size, p=shares / shares.sum()),
    sizes=tuple(
      (round(rows * height), round(columns * width)) for height, width, _ in SIZES
    ),
  )


def _films(
  rng: np.random.Generator, num_studies: int, counts: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
  """(study[N], view[N]): one to four images a study, at most two of them frontal."""
  left = np.array(counts)
  sides = rng.permutation(np.repeat((LATERAL, LL), left[[LATERAL, LL]]))
  alone = round(_LATERAL_ALONE * num_studies)
  missing = round(_MISSING_ALONE * num_studies)
  odd = np.repeat(np.arange(MISSING + 1, left.size), left[MISSING + 1 :])
  of_pa = round(_FIRST_OF_PA * left[PA])
  of_ap = num_studies - of_pa - alone - missing - odd.size
  first = np.concatenate(
    (np.repeat((PA, AP, MISSING), (of_pa, of_ap, missing)), sides[:alone], odd)
  )
  first = rng.permutation(first)
  has_pa, has_ap = np.flatnonzero(first == PA), np.flatnonzero(first == AP)
  sides = sides[alone:]
  beside_pa = min(round(_LATERAL_OF_PA * has_pa.size), sides.size)
  studies, views = [np.arange(num_studies)], [first]
  for among, added in (
    (has_pa, np.full(left[PA] - of_pa, PA)),
    (has_ap, np.full(left[AP] - of_ap, AP)),
    (has_pa, sides[:beside_pa]),
    (has_ap, sides[beside_pa:]),
    (np.concatenate((has_pa, has_ap)), np.full(left[MISSING] - missing, MISSING)),
  ):
    studies.append(rng.choice(among, added.size, replace=False))
    views.append(added)
  study = np.concatenate(studies)
  order = np.argsort(study, kind="stable")
  return study[order], np.concatenate(views)[order]
