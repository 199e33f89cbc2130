"""Whose left is "left"? Told from where the lungs lie, where a release does not say.

A radiograph is shown facing the reader, so the patient's left lung is on the right of
the image. If most images of a release have its "left lung" on the left, the release
names the image's sides, and left and right are exchanged in all of it. An image that is
unlike most is mirrored or mislabelled: nothing is said of its sides.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Mapping
from typing import NamedTuple

from imax_jax.schema import ORGANS

QUESTION = "left and right"
ODD = "left and right lung the other way round than in most images"
_, LEFT, RIGHT = ORGANS
_OTHER = {"left": "right", "right": "left"}


class Sides(NamedTuple):
  """`exchanged`: the release names the image's sides. `odd`: images unlike most.
  `case`: what was found, in words.
  """

  exchanged: bool
  odd: frozenset[str]
  case: str

  def name(self, given: str) -> str:
    """The patient's name of what the release calls `given`: "left lung", "heart"."""
    side, space, rest = given.partition(" ")
    if self.exchanged and side in _OTHER:
      return f"{_OTHER[side]}{space}{rest}"
    return given

  def knows(self, image_id: str, given: str) -> bool:
    """Whether `given` says the right thing of this image."""
    return image_id not in self.odd or given.partition(" ")[0] not in _OTHER


def find_sides(images: Iterable[tuple[str, Mapping[str, float]]]) -> Sides:
  """From each image's id and the middles (x, rightwards) of what is named in it."""
  of_image = {
    image_id: middle[LEFT] < middle[RIGHT]
    for image_id, middle in images
    if LEFT in middle and RIGHT in middle
  }
  if not of_image:
    case = "not to be seen: no image has both lungs; kept as given"
    return Sides(False, frozenset(), case)
  exchanged = sum(of_image.values()) * 2 > len(of_image)
  odd = frozenset(name for name, said in of_image.items() if said != exchanged)
  whose = "the image's, made the patient's" if exchanged else "the patient's"
  agree = len(of_image) - len(odd)
  return Sides(exchanged, odd, f"{whose} (in {agree} of {len(of_image)} images)")
