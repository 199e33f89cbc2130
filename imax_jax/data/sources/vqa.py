"""MIMIC-Ext-MIMIC-CXR-VQA 1.0.0: questions on a radiograph.

    MIMIC-Ext-MIMIC-CXR-VQA/dataset/{train,valid,test}.json

Each file is one JSON list (not JSON lines) of objects with `image_id`, `question`,
`semantic_type`, `content_type`, `template_program` (one of 48) and `answer`, a list of
lower-case strings: [] means that nothing applies, two of a choice that both do; a
patient's gender is "m" or "f". Ids may be strings or numbers.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imax_jax.data.sources.files import find_file
from imax_jax.data.sources.intake import CONTRADICTS
from imax_jax.data.sources.intake import TWICE_RULE
from imax_jax.data.sources.intake import Tally
from imax_jax.data.sources.json_files import json_list
from imax_jax.data.sources.mimic_ids import image_id_of
from imax_jax.data.sources.mimic_ids import is_dicom_id
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
RULES: dict[str, str] = {
  RULE: "A question of one of three semantic and seven content types with its list of "
  "answers; the splits are pooled. An empty list means that nothing applies."
}
# The longest question of the 48 templates has some 200 characters.
_MAX_TEXT = 2000
# What is asked: image, semantic type, content type, question.
_Key = tuple[str, str, str, str]


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
    FileNotFoundError: a split is missing.
    DamagedFile: not a JSON list, or one of objects without answers (the repository's
      answer-less `_train_part1.json`).
  """
  tally = Tally("vqa") if tally is None else tally
  programs: collections.Counter[str | int] = collections.Counter()
  said: dict[_Key, tuple[str, ...]] = {}
  disputed: set[_Key] = set()
  asked: list[tuple[_Key, Annotation]] = []
  empty = 0
  for split in SPLITS:
    names = [f"{folder}/{split}.json".lstrip("/") for folder in FOLDERS]
    path = find_file(root, names, remedy=REMEDY, tally=tally)
    for row, item in json_list(path):
      tally.rows += 1
      reason = _fault(item)
      if reason:
        tally.reject(tally.name(path), row, reason, RULE)
        continue
      name = image_id_of(item["image_id"])
      program = item.get("template_program", "not given")
      programs[program if isinstance(program, str | int) else "of no known form"] += 1
      if name not in radiographs:
        tally.absent(name)
      elif not item["answer"] and not keep_empty:
        tally.leave_out("nothing applies")
      else:
        question, answers = one_line(item["question"]), tuple(item["answer"])
        answer = Answer(question, answers, item["content_type"])
        kind, origin = item["semantic_type"], tally.origin(path, row, RULE)
        key = (name, kind, answer.content_type, question)
        if said.setdefault(key, answers) != answers:
          disputed.add(key)
        asked.append((key, Annotation(name, "vqa", kind, answer, origin)))
        empty += not answers
  for key, annotation in asked:
    if key in disputed:
      origin = annotation.origin
      tally.reject(origin.file, origin.row, CONTRADICTS, TWICE_RULE)
    else:
      tally.keep()
      yield annotation
  tally.met("template programs", str(len(programs)))
  tally.met("kept questions to which nothing applies", str(empty))
  tally.log()


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
