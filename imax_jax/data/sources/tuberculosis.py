"""What the Montgomery and Shenzhen sets share: images named after their diagnosis.

CXR_png/MCUCXR_0001_0.png    patient 1, normal
CXR_png/CHNCXR_0400_1.png    patient 400, tuberculosis
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from collections.abc import Mapping
from pathlib import Path

from imax_jax.data.sources.files import within
from imax_jax.data.sources.intake import DamagedFile
from imax_jax.data.sources.intake import Tally
from imax_jax.data.sources.pictures import size_of
from imax_jax.schema import Annotation
from imax_jax.schema import Grade
from imax_jax.schema import Radiograph

CLASSES = ("normal", "tuberculosis")
GRADE_TEXT = (
  "The last digit of the image's name: 0 is normal, 1 is tuberculosis (any "
  "manifestation, old ones too)."
)
IMAGE_TEXT = (
  "An image SET_NUMBER_CLASS.png that is readable; the number is the patient's."
)


def find_images(
  root: str | Path,
  source: str,
  prefix: str,
  folders: tuple[str, ...],
  *,
  view: str,
  remedy: str,
  tally: Tally,
) -> dict[str, Radiograph]:
  """The images "SOURCE/PREFIX_0001_0" of the first of `folders` that has CXR_png.

  Raises:
    FileNotFoundError: there is no image.
  """
  pattern = re.compile(rf"({prefix}_([0-9]{{4}})_[01])\.png")
  radiographs: dict[str, Radiograph] = {}
  places = [p for folder in folders if (p := Path(root, folder, "CXR_png")).is_dir()]
  for path in sorted(places[0].iterdir()) if places else ():
    if path.suffix != ".png":
      continue
    tally.rows += 1
    match = pattern.fullmatch(path.name)
    if match is None:
      tally.reject(
        tally.name(path), None, "image name of the wrong form", f"{source}/image"
      )
      continue
    try:
      width, height = size_of(within(root, path))
    except DamagedFile as error:
      tally.reject(tally.name(path), None, f"image {error.reason}", f"{source}/image")
      continue
    image_id, patient = f"{source}/{match[1]}", f"{source}/{match[2]}"
    radiographs[image_id] = Radiograph(
      image_id, image_id, patient, view, width, height, str(path)
    )
  tally.keep(len(radiographs))
  tally.log()
  if not radiographs:
    raise FileNotFoundError(
      f"{root}: expected {folders[0]}/CXR_png/{prefix}_0001_0.png, …, which can not be "
      f"read or are not there. {remedy}"
    )
  return radiographs


def grades(
  source: str, radiographs: Mapping[str, Radiograph], tally: Tally
) -> Iterator[Annotation]:
  """Yields the `Grade` of each of a source's images."""
  for image_id, radiograph in radiographs.items():
    if image_id.startswith(f"{source}/"):
      tally.rows += 1
      tally.keep()
      origin = tally.origin(Path(radiograph.path), 0, f"{source}/class")
      grade = Grade(CLASSES[int(image_id[-1])], CLASSES)
      yield Annotation(image_id, "multi_class", "", grade, origin)
