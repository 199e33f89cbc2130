"""What may be asked of a film, and what the hospital as a whole has to ask after."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from imax_jax.data.phantom.anatomy import SIDES
from imax_jax.data.phantom.anatomy import Case

# The words of MIMIC-Ext-MIMIC-CXR-VQA for the paper's findings.
ATTRIBUTES: dict[str, str] = {
  "Pleural Effusion": "pleural effusion",
  "Atelectasis": "atelectasis",
  "Pneumonia": "pneumonia",
  "Edema": "pulmonary edema/hazy opacity",
  "Consolidation": "consolidation",
  "Pneumothorax": "pneumothorax",
  "Fracture": "rib fracture",
  "Infiltration": "infiltration",
  "Nodule": "mass/nodule (not otherwise specified)",
}
EDEMA = ATTRIBUTES["Edema"]
Pair = tuple[str, str]  # (attribute, side)


def region(attribute: str, side: str) -> str:
  """The organ an attribute belongs to: "left lung", but "left chest wall" for a rib."""
  return f"{side} chest wall" if attribute == "rib fracture" else f"{side} lung"


@dataclasses.dataclass(frozen=True)
class Facts:
  """One film's case and its measured cardiothoracic ratio."""

  case: Case
  ctr: float

  @property
  def pairs(self) -> tuple[Pair, ...]:
    """(attribute, side) of every finding; edema is on both sides."""
    return tuple(
      (ATTRIBUTES[finding.name], side)
      for finding in self.case.findings
      for side in ((finding.side,) if finding.side else SIDES)
    )

  def within(self, side: str) -> set[str]:
    """The attributes of one lung: a broken rib is not in it."""
    return {name for name, at in self.pairs if at == side and name != "rib fracture"}

  def locations(self, attribute: str) -> tuple[str, ...]:
    """Where it is: the wider name and the narrower one, as the source gives both."""
    found = set()
    for finding in self.case.findings:
      if ATTRIBUTES[finding.name] != attribute:
        continue
      found |= {
        region(attribute, s) for s in ([finding.side] if finding.side else SIDES)
      }
      if attribute == "pleural effusion":
        found.add(f"{finding.side} costophrenic angle")
      elif attribute == "pneumothorax":
        found.add(f"{finding.side} apical zone")
      elif finding.zone and attribute != "rib fracture":
        found.add(f"{finding.side} {finding.zone} lung zone")
    return tuple(sorted(found))


@dataclasses.dataclass(frozen=True)
class Pool:
  """What is found in the hospital, and how often to draw it for a film without it.

  A pair's chance is its share among the findings asked after by the share of films
  that lack it, for only those can draw it: so it is denied as often as affirmed.
  """

  pairs: tuple[Pair, ...]
  chances: tuple[float, ...]
  devices: tuple[str, ...]
  pair_rate: float  # share of films with a finding
  device_rate: float  # share of films with a device


def pool_of(facts: Sequence[Facts]) -> Pool:
  """The pool of the films that questions are asked of."""
  number = max(len(facts), 1)
  pairs = tuple((name, side) for name in ATTRIBUTES.values() for side in SIDES)
  weights = np.full(len(pairs), 1e-3)  # a small hospital may lack a finding
  for index, pair in enumerate(pairs):
    having = [one for one in facts if pair in one.pairs]
    share = sum(1 / len(one.pairs) for one in having) / number
    weights[index] += share / max(1 - len(having) / number, 1 / number)
  return Pool(
    pairs=pairs,
    chances=tuple((weights / weights.sum()).tolist()),
    devices=tuple(d for one in facts for d in one.case.devices) or ("pacemaker",),
    pair_rate=sum(bool(one.pairs) for one in facts) / number,
    device_rate=sum(bool(one.case.devices) for one in facts) / number,
  )
