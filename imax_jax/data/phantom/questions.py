"""Questions on the phantom's films, in MIMIC-Ext-MIMIC-CXR-VQA's types and style.

A question must not answer itself. Those on findings are "yes" in half of the cases, and
what a "no" asks after is drawn from what other films have, so that neither name nor
side tells. Where the film alone sets the answer (heart size, sex, view, a lung's
health), the answer is drawn first and the wording made to fit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from imax_jax.data.phantom.anatomy import SIDES
from imax_jax.data.phantom.chart import EDEMA
from imax_jax.data.phantom.chart import Facts
from imax_jax.data.phantom.chart import Pair
from imax_jax.data.phantom.chart import Pool
from imax_jax.data.phantom.chart import region

_T = TypeVar("_T")
# Above a half, for a film's few findings are soon asked after and repeats discarded.
_ASK_YES = 0.55
_MAX_YES = 0.95
_VIEWS = ("AP", "PA")
_SEX = {"m": "male", "f": "female"}
# How often a choice or a list is asked to which the answer is that nothing applies.
_NOTHING = 0.1
_TRIES = 20


@dataclasses.dataclass(frozen=True)
class Asked:
  """The blanks of a wording (also template_arguments: object, attribute, …) and the
  answers. `wording` picks among the template's pair of opposite wordings.
  """

  blanks: Mapping[str, tuple[str, ...]]
  answers: tuple[str, ...]
  opposite: bool = False


Ask = Callable[[Facts, Pool, np.random.Generator], Asked | None]


@dataclasses.dataclass(frozen=True)
class Template:
  """One kind of question. `opposites` ask for the contrary of `wordings`."""

  semantic_type: str
  content_type: str
  text: str
  weight: float
  ask: Ask
  wordings: tuple[str, ...]
  opposites: tuple[str, ...] = ()


def _one(rng: np.random.Generator, options: Sequence[_T]) -> _T:
  return options[int(rng.integers(len(options)))]


def _yes(value: bool) -> tuple[str]:
  return ("yes" if value else "no",)


def _half(rate: float, possible: bool, rng: np.random.Generator) -> bool:
  """Whether to ask for a yes, so that half of all films' answers are."""
  return possible and rng.random() < min(_ASK_YES / max(rate, _ASK_YES), _MAX_YES)


def _other(pool: Pool, rng: np.random.Generator) -> Pair:
  return pool.pairs[int(rng.choice(len(pool.pairs), p=pool.chances))]


def _absent(facts: Facts, pool: Pool, rng: np.random.Generator) -> Pair | None:
  """A finding of others which this film has not, on that side."""
  for _ in range(_TRIES):
    pair = _other(pool, rng)
    if pair not in facts.pairs:
      return pair
  return None


def _presence(facts: Facts, pool: Pool, rng: np.random.Generator) -> Asked | None:
  present = _half(pool.pair_rate, bool(facts.pairs), rng)
  pair = _one(rng, facts.pairs) if present else _absent(facts, pool, rng)
  if pair is None:
    return None
  return Asked({"attribute": pair[:1], "object": (region(*pair),)}, _yes(present))


def _presence_anywhere(
  facts: Facts, pool: Pool, rng: np.random.Generator
) -> Asked | None:
  present = _half(pool.pair_rate, bool(facts.pairs), rng)
  pair = _one(rng, facts.pairs) if present else _absent(facts, pool, rng)
  if pair is None or (not present and facts.locations(pair[0])):
    return None
  return Asked({"attribute": pair[:1]}, _yes(present))


def _presence_either(
  facts: Facts, pool: Pool, rng: np.random.Generator
) -> Asked | None:
  side = _one(rng, SIDES)
  here = sorted(facts.within(side))
  wanted = _half(pool.pair_rate, bool(here), rng)
  names = {_one(rng, here)} if wanted else set()
  for _ in range(_TRIES):
    name = _other(pool, rng)[0]
    if name not in here and name != "rib fracture":
      names.add(name)
    if len(names) == 2:
      order = rng.permutation(sorted(names)).tolist()
      blanks = {"attribute": tuple(order), "object": (f"{side} lung",)}
      return Asked(blanks, _yes(wanted))
  return None


def _device(facts: Facts, pool: Pool, rng: np.random.Generator) -> Asked | None:
  devices = facts.case.devices
  present = _half(pool.device_rate, bool(devices), rng)
  name = _one(rng, devices if present else pool.devices)
  if not present and name in devices:
    return None
  return Asked({"attribute": (name,)}, _yes(present))


def _abnormality(facts: Facts, pool: Pool, rng: np.random.Generator) -> Asked | None:
  side, yes = _one(rng, SIDES), bool(rng.random() < 0.5)
  abnormal = bool(facts.within(side))
  return Asked({"object": (f"{side} lung",)}, _yes(yes), opposite=yes != abnormal)


def _size(facts: Facts, pool: Pool, rng: np.random.Generator) -> Asked | None:
  yes = bool(rng.random() < 0.5)
  blanks = {"object": ("cardiac silhouette",)}
  return Asked(blanks, _yes(yes), opposite=yes != (facts.ctr > 0.5))


def _plane(facts: Facts, pool: Pool, rng: np.random.Generator) -> Asked | None:
  view = _one(rng, _VIEWS)
  return Asked({"viewpos": (view,)}, _yes(view == facts.case.view))


def _gender(facts: Facts, pool: Pool, rng: np.random.Generator) -> Asked | None:
  sex = _one(rng, tuple(_SEX))
  return Asked({"gender": (_SEX[sex],)}, _yes(sex == facts.case.sex))


def _choose_side(facts: Facts, pool: Pool, rng: np.random.Generator) -> Asked | None:
  """Left or right; rarely a finding on neither. Edema, always on both, is not asked."""
  present = [pair for pair in facts.pairs if pair[0] != EDEMA]
  if rng.random() < _NOTHING:
    name = _other(pool, rng)[0]
  elif present:
    name = _one(rng, present)[0]
  else:
    return None
  if name == EDEMA:
    return None
  places = tuple(region(name, side) for side in SIDES)
  answers = sorted({region(*pair) for pair in facts.pairs if pair[0] == name})
  blanks = {"attribute": (name,), "object": tuple(rng.permutation(places).tolist())}
  return Asked(blanks, tuple(answers))


def _choose_finding(facts: Facts, pool: Pool, rng: np.random.Generator) -> Asked | None:
  """A finding of the lung against one of other films; rarely neither or both apply."""
  side = _one(rng, SIDES)
  here = facts.within(side)
  if not here and rng.random() > _NOTHING:
    return None
  first = _one(rng, sorted(here)) if here else _other(pool, rng)[0]
  # One draw: going on until an absent one comes would favour what is common.
  second = _other(pool, rng)[0]
  unfit = second == first or "rib fracture" in (first, second)
  if unfit or (second in here and rng.random() > _NOTHING):
    return None
  order = tuple(rng.permutation((first, second)).tolist())
  blanks = {"attribute": order, "object": (f"{side} lung",)}
  return Asked(blanks, tuple(sorted({first, second} & here)))


def _choose_plane(facts: Facts, pool: Pool, rng: np.random.Generator) -> Asked | None:
  order = tuple(rng.permutation(_VIEWS).tolist())
  return Asked({"viewpos": order}, (facts.case.view.lower(),))


def _choose_gender(facts: Facts, pool: Pool, rng: np.random.Generator) -> Asked | None:
  order = tuple(rng.permutation(tuple(_SEX.values())).tolist())
  return Asked({"gender": order}, (facts.case.sex,))


def _where(facts: Facts, pool: Pool, rng: np.random.Generator) -> Asked | None:
  if rng.random() < _NOTHING:
    name = _other(pool, rng)[0]
  elif facts.pairs:
    name = _one(rng, facts.pairs)[0]
  else:
    return None
  return Asked({"attribute": (name,)}, facts.locations(name))


def _what(facts: Facts, pool: Pool, rng: np.random.Generator) -> Asked | None:
  side = _one(rng, SIDES)
  if not facts.within(side) and rng.random() > _NOTHING:
    return None
  return Asked({"object": (f"{side} lung",)}, tuple(sorted(facts.within(side))))


def _abnormal_places(
  facts: Facts, pool: Pool, rng: np.random.Generator
) -> Asked | None:
  places = {f"{side} lung" for side in SIDES if facts.within(side)}
  if facts.ctr > 0.5:
    places.add("cardiac silhouette")
  return Asked({}, tuple(sorted(places)))


def _devices(facts: Facts, pool: Pool, rng: np.random.Generator) -> Asked | None:
  if not facts.case.devices and rng.random() > _NOTHING:
    return None
  return Asked({"category": ("device",)}, tuple(sorted(facts.case.devices)))


def _which_plane(facts: Facts, pool: Pool, rng: np.random.Generator) -> Asked | None:
  return Asked({}, (facts.case.view.lower(),))


def _which_gender(facts: Facts, pool: Pool, rng: np.random.Generator) -> Asked | None:
  return Asked({}, (facts.case.sex,))


TEMPLATES: tuple[Template, ...] = (
  Template(
    "verify", "presence", "Is there ${attribute} in the ${object}?", 5.0, _presence,
    ("Is there any sign of {attribute} in the {object}?",
     "Does the {object} show {attribute}?",
     "Is there evidence of {attribute} in the {object}?"),
  ),
  Template(
    "verify", "presence", "Is there ${attribute}?", 2.0, _presence_anywhere,
    ("Is there any evidence of {attribute}?", "Can {attribute} be seen?"),
  ),
  Template(
    "verify", "presence",
    "Is there ${attribute_1} or ${attribute_2} in the ${object}?", 1.0,
    _presence_either,
    ("Is there either {attribute} or {attribute_2} in the {object}?",
     "Does the {object} show {attribute} or {attribute_2}?"),
  ),
  Template(
    "verify", "presence", "Is there ${attribute}?", 1.0, _device,
    ("Is there any {attribute} in this image?", "Does the film show any {attribute}?"),
  ),
  Template(
    "verify", "abnormality", "Is the ${object} abnormal?", 1.0, _abnormality,
    ("Is the {object} abnormal?", "Are there any abnormalities in the {object}?"),
    ("Is the {object} normal?", "Is the {object} free of abnormalities?"),
  ),
  Template(
    "verify", "size",
    "Is the width of the ${object} wider than 1/2 of the thorax width?", 1.0, _size,
    ("Is the width of the {object} wider than 1/2 of the thorax width?",
     "Is the {object} wider than half of the thorax?"),
    ("Is the width of the {object} at most 1/2 of the thorax width?",
     "Is the {object} no wider than half of the thorax?"),
  ),
  Template(
    "verify", "plane", "Is this X-ray taken in the ${viewpos} view?", 0.5, _plane,
    ("Was this X-ray taken in the {viewpos} view?",
     "Is this image in the {viewpos} view?"),
  ),
  Template(
    "verify", "gender", "Is this a ${gender} patient?", 0.5, _gender,
    ("Is this patient {gender}?", "Does this image belong to a {gender} patient?"),
  ),
  Template(
    "choose", "anatomy",
    "Which location is related to ${attribute}, ${object_1} or ${object_2}?", 3.0,
    _choose_side,
    ("Which anatomical location is related to {attribute}, the {object} or the "
     "{object_2}?",
     "Where is the {attribute}, in the {object} or the {object_2}?"),
  ),
  Template(
    "choose", "attribute",
    "Which disease is related to ${object}, ${attribute_1} or ${attribute_2}?", 4.5,
    _choose_finding,
    ("Which disease is related to the {object}, {attribute} or {attribute_2}?",
     "What does the {object} show, {attribute} or {attribute_2}?"),
  ),
  Template(
    "choose", "plane", "Is the view ${viewpos_1} or ${viewpos_2}?", 0.4, _choose_plane,
    ("Which view is this image taken in, {viewpos} or {viewpos_2}?",),
  ),
  Template(
    "choose", "gender", "Is the patient ${gender_1} or ${gender_2}?", 0.4,
    _choose_gender, ("Is this patient {gender} or {gender_2}?",),
  ),
  Template(
    "query", "anatomy", "Where is the ${attribute}?", 3.0, _where,
    ("List all anatomical locations related to {attribute}.",
     "What are all the locations where {attribute} is seen?"),
  ),
  Template(
    "query", "attribute", "List all diseases related to the ${object}.", 1.5, _what,
    ("List all diseases related to the {object}.",
     "What findings are seen in the {object}?"),
  ),
  Template(
    "query", "abnormality", "List all abnormal locations.", 1.0, _abnormal_places,
    ("List all anatomical locations with any abnormality.",
     "Which anatomical locations are abnormal?"),
  ),
  Template(
    "query", "attribute", "List all ${category}.", 0.7, _devices,
    ("List every {category} in this image.", "Which {category} can be seen?"),
  ),
  Template(
    "query", "plane", "What is the view of this image?", 0.4, _which_plane,
    ("What is the view of this image?", "In which view was this X-ray taken?"),
  ),
  Template(
    "query", "gender", "What is the gender of the patient?", 0.4, _which_gender,
    ("What is the gender of this patient?",),
  ),
)  # fmt: skip
