"""VQA-RAD (Lau et al., 2018): clinicians' questions on radiographs of MedPix.

    VQA_RAD Dataset Public.json     one JSON list of items: image_name, image_case_url,
                                    image_organ, question, answer, question_type,
                                    answer_type, phrase_type, …
    VQA_RAD Image Folder/           synpic676.jpg, …

Only the images of the chest are read. An answer may be a number, or end with a tab.
Paraphrases of a question (phrase_type "para") are kept: a patient is a MedPix case, so
no split parts them. The release's own test marks ("test_freeform") are not used: the
paper pools the splits.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping
from pathlib import Path
from pathlib import PurePosixPath
from typing import Any

from imax_jax.data.sources.intake import DamagedFile
from imax_jax.data.sources.intake import Tally
from imax_jax.data.sources.json_files import json_list
from imax_jax.data.sources.pictures import size_of
from imax_jax.data.sources.questions import SUBTASK_RULE
from imax_jax.data.sources.questions import Questions
from imax_jax.data.sources.questions import asked
from imax_jax.data.sources.questions import text_of
from imax_jax.data.sources.reading import find_file
from imax_jax.data.sources.reading import inside
from imax_jax.schema import Annotation
from imax_jax.schema import Radiograph

ITEMS = "VQA_RAD Dataset Public.json"
FOLDER = "VQA_RAD Image Folder"
REMEDY = (
  f"Point vqa_rad at the folder of https://osf.io/89kps that holds {ITEMS!r} and "
  f"{FOLDER!r} (open access)."
)
RULE = "vqa_rad/question"
IMAGE_RULE = "vqa_rad/image"
RULES: dict[str, str] = {
  RULE: f"Questions on images whose image_organ is CHEST. {SUBTASK_RULE}",
  IMAGE_RULE: "An image of the chest that is there and readable; its patient is its "
  "MedPix case, or itself where no case is given.",
}


def read_radiographs(
  root: str | Path, *, tally: Tally | None = None
) -> dict[str, Radiograph]:
  """The images of the chest, "vqa_rad/synpic676", …; no view is given.

  Raises:
    FileNotFoundError: the JSON file, or every image, is missing.
    DamagedFile: the JSON file is damaged.
  """
  tally = Tally("vqa_rad images") if tally is None else tally
  path = find_file(root, [ITEMS], remedy=REMEDY, tally=tally)
  cases: dict[str, str] = {}
  radiographs: dict[str, Radiograph] = {}
  for row, name, item in _items(path):
    image_id, case = _image_id(name), text_of(item.get("image_case_url"))
    if image_id in cases:
      if case != cases[image_id]:
        tally.met("an image under two cases", "yes: the first counts")
      continue
    cases[image_id] = case
    tally.rows += 1
    try:
      file = inside(root, f"{FOLDER}/{name}")
      if not file.is_file():
        tally.leave_out_image(image_id, "image file absent")
        continue
      width, height = size_of(file)
    except DamagedFile as error:
      tally.reject(tally.name(path), row, f"image {error.reason}", IMAGE_RULE)
      continue
    patient = f"vqa_rad/{case}" if case else image_id
    radiographs[image_id] = Radiograph(
      image_id, image_id, patient, "", width, height, str(file)
    )
  tally.keep(len(radiographs))
  tally.log()
  if cases and not radiographs:
    raise FileNotFoundError(
      f"{root}/{FOLDER}: none of the {len(cases)} images of the chest can be read. "
      f"{REMEDY}"
    )
  return radiographs


def read(
  root: str | Path,
  radiographs: Mapping[str, Radiograph],
  *,
  tally: Tally | None = None,
) -> Iterator[Annotation]:
  """Yields an `Answer` a question; content_type is the question_type in lower case.

  Raises:
    FileNotFoundError, DamagedFile: the JSON file is missing or damaged.
  """
  tally = Tally("vqa_rad") if tally is None else tally
  path = find_file(root, [ITEMS], remedy=REMEDY, tally=tally)
  said = Questions(tally)
  for row, name, item in _items(path, tally):
    found = asked(item, "question_type")
    if isinstance(found, str):
      tally.reject(tally.name(path), row, found, RULE)
    elif _image_id(name) not in radiographs:
      tally.absent(_image_id(name))
    else:
      said.add(_image_id(name), *found, path, row)
  yield from said.annotations(RULE)
  tally.log()


def _items(
  path: Path, tally: Tally | None = None
) -> Iterator[tuple[int, str, dict[str, Any]]]:
  """(row, image_name, item) of the chest's items; `tally` gets the others."""
  for row, item in json_list(path):
    organ = name = ""
    if isinstance(item, dict):
      organ, name = text_of(item.get("image_organ")), text_of(item.get("image_name"))
    if organ and name and organ.upper() == "CHEST":
      if tally is not None:
        tally.rows += 1
      yield row, name, item
    elif tally is not None:
      tally.rows += 1
      if organ and name:
        tally.leave_out("organ is not the chest")
      else:
        tally.reject(tally.name(path), row, "no image_name or image_organ", RULE)


def _image_id(name: str) -> str:
  return f"vqa_rad/{PurePosixPath(name).stem}"
