"""Several readers' boxes of one finding in one image, as the boxes they agree on.

VinDr-CXR's training images were read by three radiologists apart from each other. How
their boxes become one is left to the user; the rule here is this project's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from imax_jax.schema import Box

MIN_IOU = 0.4
RULE_TEXT = (
  "Of several readers' boxes of one name those belong together that overlap, between "
  f"two readers, with an IoU of at least {MIN_IOU}; where at least two readers are "
  "together, and none twice, their boxes' mean is the region (this project's own rule)."
)


class Drawn(NamedTuple):
  reader: str
  row: int
  box: Box


class Agreed(NamedTuple):
  """`regions`: (first row, mean box) each. Boxes left out: `alone` had no second
  reader, `unclear` were of a group with two boxes of one reader.
  """

  regions: list[tuple[int, Box]]
  alone: int
  unclear: int


def agree(drawn: Sequence[Drawn]) -> Agreed:
  """What the readers agree on, in the order of the rows."""
  agreed = Agreed([], 0, 0)
  for group in _groups(drawn):
    readers = {one.reader for one in group}
    if len(readers) < 2:
      agreed = agreed._replace(alone=agreed.alone + len(group))
    elif len(readers) < len(group):
      agreed = agreed._replace(unclear=agreed.unclear + len(group))
    else:
      corners = zip(*(one.box for one in group), strict=True)
      x_min, y_min, x_max, y_max = (sum(corner) / len(group) for corner in corners)
      agreed.regions.append((group[0].row, (x_min, y_min, x_max, y_max)))
  return agreed


def _groups(drawn: Sequence[Drawn]) -> list[list[Drawn]]:
  """The connected groups of boxes that overlap between two readers."""
  groups: list[list[Drawn]] = []
  for one in drawn:
    joined = [g for g in groups if any(_together(one, other) for other in g)]
    groups = [g for g in groups if g not in joined]
    groups.append([other for g in joined for other in g] + [one])
  for group in groups:
    group.sort(key=lambda one: one.row)
  return sorted(groups, key=lambda group: group[0].row)


def _together(one: Drawn, other: Drawn) -> bool:
  return one.reader != other.reader and iou(one.box, other.box) >= MIN_IOU


def iou(one: Box, other: Box) -> float:
  """Intersection over union of two boxes of more than no area."""
  width = min(one[2], other[2]) - max(one[0], other[0])
  height = min(one[3], other[3]) - max(one[1], other[1])
  both = max(width, 0.0) * max(height, 0.0)
  areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (one, other)]
  return both / (sum(areas) - both)
