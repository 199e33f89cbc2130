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

from imax_jax.data.sources.files import find_file
from imax_jax.data.sources.intake import Tally
from imax_jax.data.sources.json_files import json_list
from imax_jax.data.sources.questions import SUBTASK_RULE
from imax_jax.data.sources.questions import Item
from imax_jax.data.sources.questions import Questions
from imax_jax.data.sources.questions import find_images
from imax_jax.data.sources.questions import text_of
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
  # `read` judges and lists the items; here they only name images.
  radiographs = find_images(_items(path, Tally("vqa_rad")), IMAGE_RULE, tally)
  tally.log()
  if tally.rows and not radiographs:
    raise FileNotFoundError(
      f"{root}/{FOLDER}: none of the {tally.rows} images of the chest can be read. "
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
  questions = Questions(radiographs, "question_type", RULE, tally)
  for item in _items(path, tally):
    questions.add(item)
  yield from questions.annotations()
  tally.log()


def _items(path: Path, tally: Tally) -> Iterator[Item]:
  """The items about the chest; `tally` counts all."""
  for row, said in json_list(path):
    tally.rows += 1
    organ = name = ""
    if isinstance(said, dict):
      organ, name = text_of(said.get("image_organ")), text_of(said.get("image_name"))
    if not organ or not name:
      tally.reject(tally.name(path), row, "no image_name or image_organ", RULE)
    elif organ.upper() != "CHEST":
      tally.leave_out("organ is not the chest")
    else:
      case = text_of(said.get("image_case_url"))
      image_id, patient_id = PurePosixPath(name).stem, case and f"vqa_rad/{case}"
      yield Item(path, row, f"vqa_rad/{image_id}", patient_id, f"{FOLDER}/{name}", said)
