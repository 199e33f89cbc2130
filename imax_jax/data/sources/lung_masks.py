"""What masks drawn by people say of an image: where its organs are, and the two ratios.

JSRT, Montgomery and Shenzhen each give some of these masks as image files; this is what
their readers share. Areas and widths are taken on the mask's own pixels, which may be
fewer than the image's.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from imax_jax.data.sources.files import within
from imax_jax.data.sources.intake import DamagedFile
from imax_jax.data.sources.intake import Tally
from imax_jax.data.sources.masks import DEFINITIONS
from imax_jax.data.sources.masks import PixelBox
from imax_jax.data.sources.masks import area_of
from imax_jax.data.sources.masks import box_of
from imax_jax.data.sources.masks import cpar
from imax_jax.data.sources.masks import ctr
from imax_jax.data.sources.masks import fractions
from imax_jax.data.sources.pictures import read_mask
from imax_jax.data.sources.sides import ODD
from imax_jax.data.sources.sides import QUESTION
from imax_jax.data.sources.sides import Sides
from imax_jax.data.sources.sides import find_sides
from imax_jax.schema import ORGANS
from imax_jax.schema import Annotation
from imax_jax.schema import Radiograph
from imax_jax.schema import Ratio
from imax_jax.schema import Region

REGION_TEXT = (
  "The box around the pixels of an organ's mask, which has the shape of its image, for "
  "REC and for REG. Left and right are made the patient's."
)
RATIO_TEXT = (
  f"{DEFINITIONS['ctr']} {DEFINITIONS['cpar']} Of images with masks of the "
  "heart and of both lungs, strictly between 0 and 1."
)
# A mask's pixels may be fewer than its image's, but as wide for their height.
_MAX_STRETCH = 0.01


class Organ(NamedTuple):
  """A mask, measured: its box and area in pixels of a mask width x height."""

  path: Path
  box: PixelBox
  area: int
  width: int
  height: int


class Organs:
  """The measured masks of a source's images; `rule` is that of their regions."""

  def __init__(self, root: str | Path, rule: str, tally: Tally) -> None:
    self._root, self._rule, self._tally = root, rule, tally
    # image id -> what the release calls an organ -> its mask, measured.
    self._found: dict[str, dict[str, Organ]] = {}

  def load(self, path: Path, radiograph: Radiograph) -> np.ndarray | None:
    """A mask, bool[H, W]; None where it is rejected, which costs this mask only."""
    self._tally.rows += 1
    try:
      within(self._root, path)
      mask = read_mask(self._tally.opened(path))
      height, width = mask.shape
      stretch = width * radiograph.height / (height * radiograph.width)
      if abs(stretch - 1) > _MAX_STRETCH:
        raise DamagedFile(path, "mask has another shape than its image")
    except DamagedFile as error:
      self._tally.reject(self._tally.name(path), None, error.reason, self._rule)
      return None
    return mask

  def add(self, image_id: str, organ: str, path: Path, mask: np.ndarray) -> None:
    """Takes a mask's box and area; an empty mask is left out."""
    box = box_of(mask)
    if box is None:
      self._tally.leave_out("mask empty")
      return
    height, width = mask.shape
    measured = Organ(path, box, area_of(mask), width, height)
    self._found.setdefault(image_id, {})[organ] = measured

  def sides(self) -> Sides:
    """Whose left the masks of "left lung" are, from where they lie."""
    sides = find_sides(
      (name, {k: (o.box[0] + o.box[2]) / 2 / o.width for k, o in organs.items()})
      for name, organs in self._found.items()
    )
    self._tally.met(QUESTION, sides.case)
    return sides

  def regions(self, sides: Sides) -> Iterator[Annotation]:
    """Yields a `Region` an organ, for REC and for REG."""
    for image_id, organs in self._found.items():
      for given, organ in organs.items():
        if not sides.knows(image_id, given):
          self._tally.leave_out(ODD)
          continue
        self._tally.keep(2)
        name = sides.name(given)
        region = Region(name, fractions(organ.box, organ.width, organ.height))
        origin = self._tally.origin(organ.path, 0, self._rule)
        for task in ("rec", "reg"):
          yield Annotation(image_id, task, name, region, origin)

  def ratios(self, rule: str) -> Iterator[Annotation]:
    """Yields CTR and CPAR, for which left and right need not be told apart."""
    for image_id, organs in self._found.items():
      yield from _ratios(image_id, organs, self._tally, rule)


def _ratios(
  image_id: str, found: Mapping[str, Organ], tally: Tally, rule: str
) -> Iterator[Annotation]:
  if not all(organ in found for organ in ORGANS):
    tally.leave_out("ratio: not all three organs")
    return
  used = {organ: found[organ] for organ in ORGANS}
  if len({(organ.width, organ.height) for organ in used.values()}) > 1:
    tally.leave_out("ratio: masks of different sizes")
    return
  values = {
    "ctr": ctr({name: organ.box for name, organ in used.items()}),
    "cpar": cpar({name: organ.area for name, organ in used.items()}),
  }
  for kind, value in values.items():
    if 0 < value < 1:
      tally.keep()
      origin = tally.origin(used["heart"].path, 0, rule)
      yield Annotation(image_id, "calculation", kind, Ratio(value), origin)
    else:
      tally.leave_out(f"{kind} outside (0, 1)")
