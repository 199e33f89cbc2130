"""SLAKE's radiographs are NIH ChestX-ray14's under new names. Which, their boxes tell.

SLAKE gives NIH's boxes cut to whole pixels. Without this a split by patients would put
an image among the training images under one name and among the test images under the
other.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable
from collections.abc import Mapping

from imax_jax.schema import Annotation
from imax_jax.schema import Box
from imax_jax.schema import Radiograph
from imax_jax.schema import Region

# x and width are each cut by less than a pixel of NIH's 1024, so their sum by two.
_TOLERANCE = 2 / 1024


def find_doubles(
  slake: Iterable[Annotation], nih: Iterable[Annotation]
) -> dict[str, str]:
  """SLAKE's image id -> NIH's, where just one of NIH's images has all its findings' boxes.

  Of both only the boxes that REG names are looked at.
  """
  boxes: dict[str, list[tuple[str, Box]]] = collections.defaultdict(list)
  for annotation in nih:
    if annotation.task == "reg" and isinstance(annotation.target, Region):
      region = annotation.target
      boxes[region.name].append((annotation.image_id, region.box))
  fitting: dict[str, set[str]] = {}
  for annotation in slake:
    if annotation.task == "reg" and isinstance(annotation.target, Region):
      region, image_id = annotation.target, annotation.image_id
      found = {name for name, box in boxes[region.name] if _same(region.box, box)}
      fitting[image_id] = fitting.get(image_id, found) & found
  return {
    image_id: min(names) for image_id, names in fitting.items() if len(names) == 1
  }


def _same(one: Box, other: Box) -> bool:
  return all(abs(a - b) <= _TOLERANCE for a, b in zip(one, other, strict=True))


def join_patients(
  radiographs: Mapping[str, Radiograph], doubles: Mapping[str, str]
) -> dict[str, Radiograph]:
  """`radiographs` with each SLAKE image the patient's whose NIH image it is."""
  return {
    image_id: dataclasses.replace(
      radiograph, patient_id=radiographs[doubles[image_id]].patient_id
    )
    if doubles.get(image_id) in radiographs
    else radiograph
    for image_id, radiograph in radiographs.items()
  }
