"""JSRT (Shiraishi et al., 2000), and its organs' masks, SCR (van Ginneken et al., 2006).

    All247images/JPCLN001.IMG, JPCNN001.IMG, …    with and without a nodule
    scratch/fold1/masks/heart/JPCLN001.gif        and fold2; "left lung", "right lung",
                                                  "left clavicle", "right clavicle"

An .IMG file is 2048 x 2048 pixels of two bytes, the high one first, without a header; 12
bits are used and 0 is white. The masks are 1024 x 1024. Converted images (.png) are read
too. All are PA, one of each patient.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from imax_jax.data.images import encode_png
from imax_jax.data.sources.files import within
from imax_jax.data.sources.intake import DamagedFile
from imax_jax.data.sources.intake import Tally
from imax_jax.data.sources.lung_masks import RATIO_TEXT
from imax_jax.data.sources.lung_masks import REGION_TEXT
from imax_jax.data.sources.lung_masks import Organs
from imax_jax.data.sources.pictures import size_of
from imax_jax.schema import ORGANS
from imax_jax.schema import Annotation
from imax_jax.schema import Radiograph

REMEDY = (
  "Point jsrt at a folder with All247images/ of http://db.jsrt.or.jp/eng.php and "
  "scratch/ of the SCR database (both after registration)."
)
IMAGE_RULE = "jsrt/image"
REGION_RULE = "jsrt/region"
RATIO_RULE = "jsrt/ratio"
RULES: dict[str, str] = {
  IMAGE_RULE: "An image JPCLN or JPCNN and three digits, of 2048 x 2048 raw pixels, or "
  "converted; a patient each.",
  REGION_RULE: f"{REGION_TEXT} Clavicles too.",
  RATIO_RULE: RATIO_TEXT,
}
RAW_SUFFIX = ".img"
RAW_PX = 2048
RAW_BITS = 12
MASKED = (*ORGANS, "left clavicle", "right clavicle")
_IMAGE_FOLDERS = ("All247images", "images", ".")
_MASK_FOLDERS = (
  "scratch/fold1/masks", "scratch/fold2/masks", "fold1/masks", "fold2/masks", "masks"
)  # fmt: skip
_NAME = re.compile(r"(JPC[LN]N\d{3})\.(img|png)", re.IGNORECASE)
# Enough to see which way round the grey scale is, without reading 2 GB.
_NUM_LOOKED_AT = 5


def raw_to_png(data: bytes, *, name: str = "image") -> bytes:
  """An .IMG file's bytes -> an 8-bit grey PNG where the lungs are dark.

  The upper 8 of the 12 bits, turned round: 0 -> 255, 4095 -> 0. Nothing is stretched.

  Raises:
    ValueError: not 2048 x 2048 pixels of two bytes, or values of over 12 bits.
  """
  values = _raw(data)
  if values is None:
    raise ValueError(
      f"{name}: expected {RAW_PX} x {RAW_PX} pixels of two bytes with {RAW_BITS} bits, "
      f"got {len(data)} bytes or larger values. Copy the file again"
    )
  return encode_png((255 - (values >> (RAW_BITS - 8))).astype(np.uint8))


def encoded(path: str | Path) -> bytes:
  """An image file's bytes; of a raw file those of a PNG of its pixels.

  Raises:
    OSError: it can not be read. ValueError: a raw file that is none.
  """
  data = Path(path).read_bytes()
  raw = Path(path).suffix.lower() == RAW_SUFFIX
  return raw_to_png(data, name=str(path)) if raw else data


def _raw(data: bytes) -> np.ndarray | None:
  """uint16[2048, 2048] as stored; None where the bytes are no such image."""
  if len(data) != 2 * RAW_PX * RAW_PX:
    return None
  values = np.frombuffer(data, ">u2").reshape(RAW_PX, RAW_PX)
  return None if values.max() >= 1 << RAW_BITS else values


def read_radiographs(
  root: str | Path, *, tally: Tally | None = None
) -> dict[str, Radiograph]:
  """The images, "jsrt/JPCLN001", …; a raw file is taken before a converted one.

  Raises:
    FileNotFoundError: there is no image.
  """
  tally = Tally("jsrt images") if tally is None else tally
  radiographs: dict[str, Radiograph] = {}
  kinds: set[str] = set()
  for name, path in _images(root).items():
    image_id = f"jsrt/{name}"
    tally.rows += 1
    try:
      within(root, path)
      width, height = _size(path)
    except DamagedFile as error:
      tally.reject(tally.name(path), None, f"image {error.reason}", IMAGE_RULE)
      continue
    kinds.add(f"{path.parent.name}/*{path.suffix}")
    radiographs[image_id] = Radiograph(
      image_id, image_id, image_id, "PA", width, height, str(path)
    )
  tally.met("image files", " and ".join(sorted(kinds)) or "none")
  tally.met("patient ids", "none: an image is its own patient")
  tally.keep(len(radiographs))
  tally.log()
  if not radiographs:
    raise FileNotFoundError(
      f"{root}: expected All247images/JPCLN001.IMG, …, which can not be read or are not "
      f"there. {REMEDY}"
    )
  return radiographs


def _images(root: str | Path) -> dict[str, Path]:
  """The first folder with images: name -> file."""
  for folder in _IMAGE_FOLDERS:
    place, found = Path(root, folder), dict[str, Path]()
    # ".IMG" comes before ".png", so that what the release brought wins.
    for path in sorted(place.iterdir()) if place.is_dir() else ():
      if match := _NAME.fullmatch(path.name):
        found.setdefault(match[1].upper(), path)
    if found:
      return found
  return {}


def _size(path: Path) -> tuple[int, int]:
  if path.suffix.lower() != RAW_SUFFIX:
    return size_of(path)
  if path.stat().st_size != 2 * RAW_PX * RAW_PX:
    raise DamagedFile(path, f"is not {RAW_PX} x {RAW_PX} pixels of two bytes")
  return RAW_PX, RAW_PX


def read(
  root: str | Path,
  radiographs: Mapping[str, Radiograph],
  *,
  tally: Tally | None = None,
) -> Iterator[Annotation]:
  """Yields the regions of five organs, for REC and REG, and CTR and CPAR.

  Raises:
    FileNotFoundError: there are no masks.
    DamagedFile: the raw images' grey scale is the other way round.
  """
  tally = Tally("jsrt") if tally is None else tally
  places = [p for f in _MASK_FOLDERS if (p := Path(root, f)).is_dir()]
  if not places:
    raise FileNotFoundError(
      f"{root}: expected scratch/fold1/masks/heart/JPCLN001.gif, …, which are not there. "
      f"{REMEDY}"
    )
  tally.met("masks", " and ".join(p.relative_to(root).as_posix() for p in places))
  organs = Organs(root, REGION_RULE, tally)
  shades: list[bool] = []
  for image_id, radiograph in radiographs.items():
    if not image_id.startswith("jsrt/"):
      continue
    drawn = _masks(places, radiograph, organs, tally)
    for organ, (path, mask) in drawn.items():
      organs.add(image_id, organ, path, mask)
    if len(shades) < _NUM_LOOKED_AT:
      shades += _lung_over_heart(radiograph, drawn)
  _check_grey_scale(root, shades, tally)
  yield from organs.regions(organs.sides())
  yield from organs.ratios(RATIO_RULE)
  tally.log()


def _masks(
  places: list[Path], radiograph: Radiograph, organs: Organs, tally: Tally
) -> dict[str, tuple[Path, np.ndarray]]:
  """Organ -> its file and mask, of an image."""
  drawn: dict[str, tuple[Path, np.ndarray]] = {}
  for organ in MASKED:
    path = _mask_file(places, organ, radiograph.image_id.removeprefix("jsrt/"))
    if path is None:
      tally.leave_out(f"no mask of {organ}")
      continue
    mask = organs.load(path, radiograph)
    if mask is not None:
      drawn[organ] = (path, mask)
  return drawn


def _mask_file(places: list[Path], organ: str, name: str) -> Path | None:
  for place in places:
    for folder in (organ, organ.replace(" ", "_")):
      for suffix in (".gif", ".png"):
        path = place / folder / f"{name}{suffix}"
        if path.is_file():
          return path
  return None


def _lung_over_heart(
  radiograph: Radiograph, drawn: Mapping[str, tuple[Path, np.ndarray]]
) -> list[bool]:
  """[whether a raw image's left lung has higher values than its heart], or []."""
  path = Path(radiograph.path)
  if path.suffix.lower() != RAW_SUFFIX or not {*ORGANS[:2]} <= drawn.keys():
    return []
  values = _raw(path.read_bytes())
  shades: list[float] = []
  for organ in ORGANS[:2]:
    rows, columns = np.nonzero(drawn[organ][1])
    height, width = drawn[organ][1].shape
    if values is None or not rows.size:
      return []
    inner = values[rows * RAW_PX // height, columns * RAW_PX // width]
    shades.append(float(inner.mean()))
  return [shades[1] > shades[0]]


def _check_grey_scale(root: str | Path, shades: list[bool], tally: Tally) -> None:
  """That 0 is white is what those say who converted the files; here it is seen."""
  if not shades:
    return
  if sum(shades) * 2 < len(shades):
    raise DamagedFile(
      root,
      "has raw images whose lungs have lower values than their hearts, so that 0 is not "
      f"white as in JSRT ({len(shades) - sum(shades)} of {len(shades)} looked at)",
      "Convert them to PNG with dark lungs, and put those in the place of the .IMG files",
    )
  tally.met("raw grey scale", f"0 is white ({sum(shades)} of {len(shades)} looked at)")
