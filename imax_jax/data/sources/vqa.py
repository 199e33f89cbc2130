"""MIMIC-Ext-MIMIC-CXR-VQA 1.0.0: questions on a radiograph.

    MIMIC-Ext-MIMIC-CXR-VQA/dataset/{train,valid,test}.json

Each file is one JSON list (not JSON lines) of objects with `image_id`, `question`,
`semantic_type`, `content_type`, `template_program` (one of 48) and `answer`, a list of
lower-case strings: [] means that nothing applies, two of a choice that both do; a
patient's gender is "m" or "f". `subject_id` and `study_id`, text or number, are the
image's where they are given.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imax_jax.data.sources.files import find_file
from imax_jax.data.sources.intake import Distinct
from imax_jax.data.sources.intake import Tally
from imax_jax.data.sources.json_files import json_list
from imax_jax.data.sources.mimic_ids import IDENTITY
from imax_jax.data.sources.mimic_ids import OF_ANOTHER
from imax_jax.data.sources.mimic_ids import image_id_of
from imax_jax.data.sources.mimic_ids import is_dicom_id
from imax_jax.data.sources.mimic_ids import is_of
from imax_jax.data.sources.options import Choices
from imax_jax.data.sources.options import check_choices
from imax_jax.data.sources.published import note_rows
from imax_jax.data.sources.reading import is_text
from imax_jax.data.sources.reading import one_line
from imax_jax.schema import Annotation
from imax_jax.schema import Answer
from imax_jax.schema import Radiograph

REMEDY = (
  "Point vqa at the folder of https://physionet.org/content/"
  "mimic-ext-mimic-cxr-vqa/1.0.0/ (credentialed access)."
)
SPLITS = ("train", "valid", "test")
# The release's folder, that of the authors' build script, or the files themselves.
FOLDERS = ("MIMIC-Ext-MIMIC-CXR-VQA/dataset", "dataset", "mimiccxrvqa/dataset", "")
SEMANTIC_TYPES = ("verify", "choose", "query")
CONTENT_TYPES = (
  "presence", "anatomy", "attribute", "abnormality", "size", "plane", "gender"
)  # fmt: skip
FIELDS = ("image_id", "question", "semantic_type", "content_type", "answer")
RULE = "vqa/question"
IDENTITY_RULE = "vqa/identity"
RULES: dict[str, str] = {
  RULE: "A question of one of three semantic and seven content types with its list of "
  "answers; the splits are pooled. An empty list means that nothing applies.",
  IDENTITY_RULE: "Where a question has subject_id or study_id, they are its image's.",
}
CHOICES: Choices = {"keep_empty": (True, False)}
# The longest question of the 48 templates has some 200 characters.
_MAX_TEXT = 2000
# What is asked: image, semantic type, content type, question.
_Key = tuple[str, str, str, str]


def check_options(**options: object) -> None:
  """Raises a ValueError if `read` does not take them."""
  check_choices("vqa", CHOICES, options)


def read(
  root: str | Path,
  radiographs: Mapping[str, Radiograph],
  *,
  keep_empty: bool = True,
  tally: Tally | None = None,
) -> Iterator[Annotation]:
  """Yields an `Answer` a question, splits pooled; the sub-task is the semantic type.

  `keep_empty` keeps the questions to which nothing applies (`prompts` answers "none").

  Raises:
    ValueError: as `check_options`.
    FileNotFoundError: a split is missing.
    DamagedFile: not a JSON list, or one of objects without answers (the repository's
      answer-less `_train_part1.json`).
  """
  check_options(keep_empty=keep_empty)
  tally = Tally("vqa") if tally is None else tally
  programs: collections.Counter[str | int] = collections.Counter()
  asked: Distinct[_Key, tuple[str, ...]] = Distinct(tally)
  for split in SPLITS:
    names = [f"{folder}/{split}.json".lstrip("/") for folder in FOLDERS]
    path = find_file(root, names, remedy=REMEDY, tally=tally)
    file, before = tally.name(path), tally.rows
    for row, item in json_list(path):
      tally.rows += 1
      reason = _fault(item)
      if reason:
        tally.reject(file, row, reason, RULE)
        continue
      name = image_id_of(item["image_id"])
      program = item.get("template_program", "not given")
      programs[program if isinstance(program, str | int) else "of no known form"] += 1
      if name not in radiographs:
        tally.absent(name)
      elif not _is_its(item, radiographs[name]):
        tally.reject(file, row, OF_ANOTHER, IDENTITY_RULE)
      elif not item["answer"] and not keep_empty:
        tally.leave_out("nothing applies")
      else:
        question = one_line(item["question"])
        key = (name, item["semantic_type"], item["content_type"], question)
        asked.add(key, tuple(item["answer"]), file, row)
    note_rows(tally, f"{split}.json", tally.rows - before)
  empty = 0
  for (name, kind, content, question), answers, file, row in asked.items():
    tally.keep()
    empty += not answers
    answer = Answer(question, answers, content)
    yield Annotation(name, "vqa", kind, answer, tally.origin(file, row, RULE))
  tally.met("template programs", str(len(programs)))
  tally.met("kept questions to which nothing applies", str(empty))
  tally.log()


def _is_its(item: Mapping[str, Any], radiograph: Radiograph) -> bool:
  """Whether the patient and study, if given, are the image's."""
  columns = [column for column in IDENTITY if column in item]
  ids = [item[column] for column in columns]
  # JSON's true is an int to Python, but its text is no id.
  return all(isinstance(one, str | int | float) for one in ids) and is_of(
    radiograph, columns, [str(one) for one in ids]
  )


def _fault(item: Any) -> str:
  """Why an item is no question, or ""."""
  if not isinstance(item, dict):
    return "not an object"
  if any(field not in item for field in FIELDS):
    return f"lacks one of {', '.join(FIELDS)}"
  answers, question = item["answer"], item["question"]
  name = item["image_id"]
  if not isinstance(name, str) or not is_dicom_id(image_id_of(name)):
    return "image id of the wrong form"
  if item["semantic_type"] not in SEMANTIC_TYPES:
    return "unknown semantic type"
  if item["content_type"] not in CONTENT_TYPES:
    return "unknown content type"
  if not is_text(question) or not question.strip():
    return "question empty or not a text"
  if not isinstance(answers, list) or not all(
    is_text(a) and a.strip() for a in answers
  ):
    return "answer not a list of texts"
  if len(question) > _MAX_TEXT or any(len(answer) > _MAX_TEXT for answer in answers):
    return f"a text of over {_MAX_TEXT} characters"
  return ""
