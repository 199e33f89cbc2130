"""The Montgomery County set (Jaeger et al., 2014), with masks of the lungs.

    MontgomerySet/CXR_png/MCUCXR_0001_0.png
    MontgomerySet/ManualMask/leftMask/MCUCXR_0001_0.png    and rightMask

Masks of the heart are another release (Duvieusart et al., heart-lung-segmentations-data
1.0.0). How it lays them out was not known when this was written: any PNG file under the
root is taken whose name has that of an image in it, and that is called, or lies in a
folder that is called, after the heart. Which that was, the log says.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from collections.abc import Mapping
from pathlib import Path

from imax_jax.data.sources.intake import Tally
from imax_jax.data.sources.lung_masks import RATIO_TEXT
from imax_jax.data.sources.lung_masks import REGION_TEXT
from imax_jax.data.sources.lung_masks import Organs
from imax_jax.data.sources.tuberculosis import GRADE_TEXT
from imax_jax.data.sources.tuberculosis import IMAGE_TEXT
from imax_jax.data.sources.tuberculosis import find_images
from imax_jax.data.sources.tuberculosis import grades
from imax_jax.schema import ORGANS
from imax_jax.schema import Annotation
from imax_jax.schema import Radiograph

REMEDY = (
  "Point montgomery at the unpacked folder of https://openi.nlm.nih.gov/imgs/"
  "collections/NLM-MontgomeryCXRSet.zip (open access); for CTR and CPAR put https://"
  "physionet.org/content/heart-lung-segmentations-data/1.0.0/ (open access) beside it."
)
REGION_RULE = "montgomery/region"
RATIO_RULE = "montgomery/ratio"
RULES: dict[str, str] = {
  "montgomery/image": IMAGE_TEXT,
  "montgomery/class": GRADE_TEXT,
  REGION_RULE: REGION_TEXT,
  RATIO_RULE: RATIO_TEXT,
}
_FOLDERS = ("MontgomerySet", ".")
_HEART, _LEFT, _RIGHT = ORGANS
_LUNGS = {_LEFT: "leftMask", _RIGHT: "rightMask"}
_NAME = re.compile(r"MCUCXR_\d{4}_[01]")


def read_radiographs(
  root: str | Path, *, tally: Tally | None = None
) -> dict[str, Radiograph]:
  """The images, "montgomery/MCUCXR_0001_0", …, all PA.

  Raises:
    FileNotFoundError: there is no image.
  """
  tally = Tally("montgomery images") if tally is None else tally
  return find_images(
    root, "montgomery", "MCUCXR", _FOLDERS, view="PA", remedy=REMEDY, tally=tally
  )


def read(
  root: str | Path,
  radiographs: Mapping[str, Radiograph],
  *,
  tally: Tally | None = None,
) -> Iterator[Annotation]:
  """Yields each image's `Grade`, the regions that have masks, and CTR and CPAR."""
  tally = Tally("montgomery") if tally is None else tally
  yield from grades("montgomery", radiographs, tally)
  hearts = _hearts(Path(root), tally)
  organs = Organs(root, REGION_RULE, tally)
  for image_id, radiograph in radiographs.items():
    source, _, name = image_id.partition("/")
    if source != "montgomery":
      continue
    folder = Path(radiograph.path).parent.parent / "ManualMask"
    files = {organ: folder / part / f"{name}.png" for organ, part in _LUNGS.items()}
    if name in hearts:
      files[_HEART] = hearts[name]
    for organ, path in files.items():
      if not path.is_file():
        tally.leave_out(f"no mask of {organ}")
        continue
      mask = organs.load(path, radiograph)
      if mask is not None:
        organs.add(image_id, organ, path, mask)
  yield from organs.regions(organs.sides())
  yield from organs.ratios(RATIO_RULE)
  tally.log()


def _hearts(root: Path, tally: Tally) -> dict[str, Path]:
  """An image's name -> its heart's mask; an image with two of them has none."""
  found: dict[str, list[Path]] = {}
  for path in sorted(root.rglob("*.png")):
    place = path.relative_to(root)
    match = _NAME.search(path.name)
    if match and "heart" in place.as_posix().lower() and "CXR_png" not in place.parts:
      found.setdefault(match[0], []).append(path)
  folders = sorted(
    {p.parent.relative_to(root).as_posix() for g in found.values() for p in g}
  )
  tally.met("heart masks", " and ".join(folders) or "none, so no CTR and no CPAR")
  hearts = {}
  for name, paths in found.items():
    if len(paths) > 1:
      for path in paths:
        tally.rows += 1
        reason = "one of several heart masks of an image"
        tally.reject(tally.name(path), None, reason, REGION_RULE)
    else:
      hearts[name] = paths[0]
  return hearts
