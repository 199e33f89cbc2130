"""The Shenzhen set (Jaeger et al., 2014), and masks of the lungs from elsewhere.

    ChinaSet_AllFiles/CXR_png/CHNCXR_0001_0.png            three equal channels
    ChinaSet_AllFiles/ClinicalReadings/CHNCXR_0001_0.txt   age, sex, finding: not read
    mask/CHNCXR_0001_0_mask.png                            both lungs in one mask

The masks (Stirenko et al., 2018) are a separate download for 566 of the 662 images, met
in folders of several names. There are none of hearts, so there are no ratios.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from imax_jax.data.sources.intake import Tally
from imax_jax.data.sources.lung_masks import REGION_TEXT
from imax_jax.data.sources.lung_masks import Organs
from imax_jax.data.sources.masks import box_of
from imax_jax.data.sources.sides import QUESTION
from imax_jax.data.sources.sides import Sides
from imax_jax.data.sources.tuberculosis import GRADE_TEXT
from imax_jax.data.sources.tuberculosis import IMAGE_TEXT
from imax_jax.data.sources.tuberculosis import find_images
from imax_jax.data.sources.tuberculosis import grades
from imax_jax.schema import ORGANS
from imax_jax.schema import Annotation
from imax_jax.schema import Radiograph

REMEDY = (
  "Point shenzhen at the unpacked folder of https://openi.nlm.nih.gov/imgs/collections/"
  "ChinaSet_AllFiles.zip (open access), with the lungs' masks in mask/ if you have them."
)
REGION_RULE = "shenzhen/region"
RULES: dict[str, str] = {
  "shenzhen/image": IMAGE_TEXT,
  "shenzhen/class": GRADE_TEXT,
  REGION_RULE: f"{REGION_TEXT} One mask holds both lungs: it is parted at its empty "
  "columns nearest to its middle; the part on the image's left is the right lung.",
}
_FOLDERS = ("ChinaSet_AllFiles", ".")
_MASK_FOLDERS = tuple(
  f"{folder}{name}"
  for folder in ("", "ChinaSet_AllFiles/")
  for name in ("mask", "masks", "mask/mask")
)
# The mask of an image is called after it, with "_mask" or without.
_NAME = re.compile(r"(CHNCXR_\d{4}_[01])(_mask)?\.png")
_, _LEFT, _RIGHT = ORGANS


def read_radiographs(
  root: str | Path, *, tally: Tally | None = None
) -> dict[str, Radiograph]:
  """The images, "shenzhen/CHNCXR_0001_0", …; no view is given (a few are AP).

  Raises:
    FileNotFoundError: there is no image.
  """
  tally = Tally("shenzhen images") if tally is None else tally
  return find_images(
    root, "shenzhen", "CHNCXR", _FOLDERS, view="", remedy=REMEDY, tally=tally
  )


def read(
  root: str | Path,
  radiographs: Mapping[str, Radiograph],
  *,
  tally: Tally | None = None,
) -> Iterator[Annotation]:
  """Yields each image's `Grade`, and the lungs that have a mask, for REC and REG."""
  tally = Tally("shenzhen") if tally is None else tally
  yield from grades("shenzhen", radiographs, tally)
  files = _mask_files(root, tally)
  organs = Organs(root, REGION_RULE, tally)
  for image_id, radiograph in radiographs.items():
    source, _, name = image_id.partition("/")
    if source != "shenzhen":
      continue
    if name not in files:
      tally.leave_out("no mask of the lungs")
      continue
    mask = organs.load(files[name], radiograph)
    if mask is None:
      continue
    halves = part(mask)
    if halves is None:
      tally.leave_out("lungs' mask has no gap between them")
      continue
    for organ, half in zip((_RIGHT, _LEFT), halves, strict=True):
      organs.add(image_id, organ, files[name], half)
  tally.met(QUESTION, "not said by one mask of both: taken to face the reader")
  yield from organs.regions(Sides(exchanged=False, odd=frozenset(), case=""))
  tally.log()


def _mask_files(root: str | Path, tally: Tally) -> dict[str, Path]:
  """An image's name -> its mask's file, of the first folder that has any."""
  for folder in _MASK_FOLDERS:
    place, found = Path(root, folder), dict[str, Path]()
    for path in sorted(place.iterdir()) if place.is_dir() else ():
      if match := _NAME.fullmatch(path.name):
        found[match[1]] = path
    if found:
      tally.met("masks", f"{len(found)} in {folder}")
      return found
  tally.met("masks", "none")
  return {}


def part(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
  """A mask of both lungs, bool[H, W] -> (the image's left one, the right one).

  None where no column between them is empty, so that they can not be told apart.
  """
  box = box_of(mask)
  if box is None:
    return None
  middle = (box[0] + box[2]) / 2
  gaps = np.flatnonzero(~mask.any(axis=0))
  gaps = gaps[(gaps > box[0]) & (gaps < box[2])]
  if not gaps.size:
    return None
  gap = gaps[np.argmin(np.abs(gaps + 0.5 - middle))]
  left, right = mask.copy(), mask.copy()
  left[:, gap:], right[:, :gap] = False, False
  return left, right
