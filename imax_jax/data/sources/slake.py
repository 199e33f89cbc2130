"""SLAKE 1.0 (Liu et al., 2021): questions on radiographs, and boxes of what is seen.

    train.json, validate.json, test.json    JSON lists of items: img_name, question,
                                            answer, q_lang, location, modality,
                                            answer_type, base_type, content_type, …
    imgs/xmlab102/source.jpg                the image that img_name "xmlab102/source.jpg"
    imgs/xmlab102/detection.json            [{"Left Lung": [x, y, w, h]}, …] in pixels

Read are the English questions on X-ray images of lung or chest. They were taken from
NIH ChestX-ray14 under new names: a build that reads both may train on an image and test
on its double. The paper pools the splits; so does this.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator
from collections.abc import Mapping
from pathlib import Path

from imax_jax.data.sources.files import find_file
from imax_jax.data.sources.files import inside
from imax_jax.data.sources.intake import DamagedFile
from imax_jax.data.sources.intake import Tally
from imax_jax.data.sources.json_files import json_list
from imax_jax.data.sources.json_files import json_whole
from imax_jax.data.sources.questions import SUBTASK_RULE
from imax_jax.data.sources.questions import Item
from imax_jax.data.sources.questions import Questions
from imax_jax.data.sources.questions import find_images
from imax_jax.data.sources.questions import text_of
from imax_jax.data.sources.reading import is_text
from imax_jax.data.sources.reading import one_line
from imax_jax.data.sources.sides import ODD
from imax_jax.data.sources.sides import QUESTION
from imax_jax.data.sources.sides import find_sides
from imax_jax.schema import Annotation
from imax_jax.schema import Box
from imax_jax.schema import Radiograph
from imax_jax.schema import Region

SPLITS = (("train.json",), ("validate.json", "validation.json"), ("test.json",))
FOLDERS = ("", "Slake1.0/")
REMEDY = (
  "Point slake at the unpacked folder of https://www.med-vqa.com/slake/ that holds "
  "train.json, validate.json, test.json and imgs/ (open access)."
)
RULE = "slake/question"
IMAGE_RULE = "slake/image"
REGION_RULE = "slake/region"
RULES: dict[str, str] = {
  RULE: "English questions (q_lang en) on images of modality X-Ray whose location is "
  f"Lung or Chest. {SUBTASK_RULE}",
  IMAGE_RULE: "An image that such a question names, that is there and readable; its "
  "patient is itself.",
  REGION_RULE: "A box of detection.json inside its image, under its name in lower case "
  "(effusion: pleural effusion; infiltrate: infiltration). Left and right are made the patient's. REC leaves out names that an image has twice.",
}

# What SLAKE has from NIH's boxes, under the paper's names (as the reader of NIH has it).
_SPELLING = {"effusion": "pleural effusion", "infiltrate": "infiltration"}

# (row, name, box) of a detection.json.
Found = tuple[int, str, Box]


def read_radiographs(
  root: str | Path, *, tally: Tally | None = None
) -> dict[str, Radiograph]:
  """The radiographs of the chest, "slake/xmlab102", …; no view is given.

  Raises:
    FileNotFoundError: a JSON file, or every image, is missing.
    DamagedFile: a JSON file is damaged.
  """
  tally = Tally("slake images") if tally is None else tally
  # `read` judges and lists the items; here they only name images.
  radiographs = find_images(_items(root, tally, Tally("slake")), IMAGE_RULE, tally)
  tally.met("patient ids", "none: an image is its own patient")
  tally.log()
  if tally.rows and not radiographs:
    raise FileNotFoundError(
      f"{root}: none of the {tally.rows} radiographs can be read under imgs/. {REMEDY}"
    )
  return radiographs


def read(
  root: str | Path,
  radiographs: Mapping[str, Radiograph],
  *,
  tally: Tally | None = None,
) -> Iterator[Annotation]:
  """Yields an `Answer` a question, then a `Region` a box, for REC and for REG.

  Raises:
    FileNotFoundError, DamagedFile: a JSON file of questions is missing or damaged.
  """
  tally = Tally("slake") if tally is None else tally
  questions = Questions(radiographs, "content_type", RULE, tally)
  for item in _items(root, tally, tally):
    questions.add(item)
  yield from questions.annotations()
  asked = [radiographs[image_id] for image_id in questions.image_ids()]
  yield from _regions(asked, tally)
  tally.log()


def _items(root: str | Path, files: Tally, rows: Tally) -> Iterator[Item]:
  """The items to read; `files` gets the files that were opened, `rows` counts all."""
  for names in SPLITS:
    places = [f"{folder}{name}" for folder in FOLDERS for name in names]
    path = find_file(root, places, remedy=REMEDY, tally=files)
    for row, said in json_list(path):
      rows.rows += 1
      reason = _why_not(said)
      if reason is None:
        name = text_of(said["img_name"])
        # "xmlab102/source.jpg" -> "slake/xmlab102"
        image_id = f"slake/{name.rsplit('/', 1)[0]}"
        yield Item(path, row, image_id, "", f"imgs/{name}", said)
      elif reason == "no img_name":
        rows.reject(rows.name(path), row, reason, RULE)
      else:
        rows.leave_out(reason)


def _why_not(item: object) -> str | None:
  """Why an item is not to be read; None where it is."""
  if not isinstance(item, dict) or not text_of(item.get("img_name")):
    return "no img_name"
  if text_of(item.get("modality")).lower().replace("-", "") != "xray":
    return "modality is not X-Ray"
  if text_of(item.get("location")).lower() not in ("lung", "chest"):
    return "location neither Lung nor Chest"
  return None if text_of(item.get("q_lang")).lower() == "en" else "not in English"


# ── Boxes ─────────────────────────────────────────────────────────────────────────


def _regions(radiographs: list[Radiograph], tally: Tally) -> Iterator[Annotation]:
  boxes = {r.image_id: _detections(r, tally) for r in radiographs}
  sides = find_sides(
    (image_id, {name: (box[0] + box[2]) / 2 for _, name, box in found})
    for image_id, found in boxes.items()
  )
  tally.met(QUESTION, sides.case)
  for radiograph in radiographs:
    image_id, path = radiograph.image_id, _detection_file(radiograph)
    often = collections.Counter(name for _, name, _ in boxes[image_id])
    for task in ("rec", "reg"):
      for row, name, box in boxes[image_id]:
        if not sides.knows(image_id, name):
          tally.leave_out(ODD)
        elif task == "rec" and often[name] > 1:
          tally.leave_out("rec: several boxes of one name")
        else:
          tally.keep()
          region = Region(sides.name(name), box)
          origin = tally.origin(path, row, REGION_RULE)
          yield Annotation(image_id, task, region.name, region, origin)


def _detection_file(radiograph: Radiograph) -> Path:
  return Path(radiograph.path).with_name("detection.json")


def _detections(radiograph: Radiograph, tally: Tally) -> list[Found]:
  """The good boxes of an image; the others are rejected."""
  path = _detection_file(radiograph)
  if not path.is_file():
    tally.leave_out("detection.json absent")
    return []
  try:
    items = json_whole(inside(path.parent, tally.opened(path).name))
    if not isinstance(items, list):
      raise DamagedFile(path, "expected a JSON list, found something else")
  except DamagedFile as error:
    # One image's boxes, not the source's.
    tally.rows += 1
    tally.reject(tally.name(path), None, error.reason, REGION_RULE)
    return []
  found: list[Found] = []
  for row, item in enumerate(items):
    tally.rows += 1
    if not isinstance(item, dict) or len(item) != 1:
      tally.reject(tally.name(path), row, "not one name with one box", REGION_RULE)
      continue
    [(name, sides)] = item.items()
    box = _box(sides, radiograph)
    if isinstance(box, str) or not name.strip() or not is_text(name):
      reason = box if isinstance(box, str) else "a box without a name"
      tally.reject(tally.name(path), row, reason, REGION_RULE)
    else:
      name = one_line(name.lower())
      found.append((row, _SPELLING.get(name, name), box))
  return found


def _box(sides: object, radiograph: Radiograph) -> Box | str:
  """[x, y, w, h] in pixels -> fractions, or the reason why it is no box."""
  if (
    not isinstance(sides, list)
    or len(sides) != 4
    or not all(type(side) in (int, float) for side in sides)
    or not all(-1e6 < side < 1e6 for side in sides)  # neither NaN nor infinite
  ):
    return "box is not four numbers"
  x, y, w, h = sides
  if not (x >= 0 and y >= 0 and w > 0 and h > 0):
    return "box empty or outside the image"
  if x + w > radiograph.width or y + h > radiograph.height:
    return "box empty or outside the image"
  width, height = radiograph.width, radiograph.height
  return x / width, y / height, (x + w) / width, (y + h) / height
