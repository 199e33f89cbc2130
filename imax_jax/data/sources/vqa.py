"""MIMIC-Ext-MIMIC-CXR-VQA 1.0.0: questions on a radiograph.

    MIMIC-Ext-MIMIC-CXR-VQA/dataset/{train,valid,test}.json

Each file is one JSON list (not JSON lines) of objects with `image_id`, `question`,
`semantic_type`, `content_type` and `answer`, a list of lower-case strings: [] means
that nothing applies, two of a choice that both do; a patient's gender is "m" or "f".
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imax_jax.data.sources.reading import NOT_FRONTAL
from imax_jax.data.sources.reading import Counts
from imax_jax.data.sources.reading import find_file
from imax_jax.data.sources.reading import image_id_of
from imax_jax.data.sources.reading import log_counts
from imax_jax.data.sources.reading import readable
from imax_jax.schema import Annotation
from imax_jax.schema import Answer
from imax_jax.schema import Origin
from imax_jax.schema import Radiograph

REMEDY = (
  "Point vqa at the folder of https://physionet.org/content/"
  "mimic-ext-mimic-cxr-vqa/1.0.0/ (credentialed access)."
)
SPLITS = ("train", "valid", "test")
# The release's folder, that of the authors' build script, or the files themselves.
FOLDERS = ("MIMIC-Ext-MIMIC-CXR-VQA/dataset", "dataset", "mimiccxrvqa/dataset", "")
SEMANTIC_TYPES = ("verify", "choose", "query")
FIELDS = ("image_id", "question", "semantic_type", "content_type", "answer")


def read(
  root: str | Path,
  radiographs: Mapping[str, Radiograph],
  *,
  counts: Counts | None = None,
) -> Iterator[Annotation]:
  """Yields an `Answer` a question, splits pooled; the sub-task is the semantic type.

  Raises:
    FileNotFoundError: a split is missing.
    ValueError: not a JSON list, or objects without the fields (the repository's
      answer-less `_train_part1.json` has none).
  """
  counts = Counts() if counts is None else counts
  for split in SPLITS:
    names = [f"{folder}/{split}.json".lstrip("/") for folder in FOLDERS]
    path = find_file(root, names, remedy=REMEDY)
    for row, item in objects(path):
      annotation = _annotation(path, row, item, radiographs, counts)
      if annotation is not None:
        counts["kept"] += 1
        yield annotation
  log_counts("vqa", counts)


def objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
  """Yields (number, object) of a JSON list, decoding one object at a time.

  Only the text is held whole (some 260 MB for the release's train.json), not its
  hundreds of thousands of dictionaries.
  """
  with readable(path):
    text = path.read_text(encoding="utf-8")
  decoder = json.JSONDecoder()
  place = _skip(text, 0, " \t\r\n\ufeff")
  if text[place : place + 1] != "[":
    raise ValueError(f"{path}: expected a JSON list, found something else")
  place, number = _skip(text, place + 1, " \t\r\n,"), 0
  while text[place : place + 1] != "]":
    try:
      item, place = decoder.raw_decode(text, place)
    except json.JSONDecodeError as error:
      # The decoder's own message is safe, but the exception carries the whole text.
      raise ValueError(
        f"{path}: not JSON at line {error.lineno}: truncated or damaged; download it "
        "again"
      ) from None
    if not isinstance(item, dict):
      raise ValueError(f"{path}: item {number} is not an object; expected {FIELDS}")
    yield number, item
    place, number = _skip(text, place, " \t\r\n,"), number + 1


def _skip(text: str, place: int, characters: str) -> int:
  while place < len(text) and text[place] in characters:
    place += 1
  return place


def _annotation(
  path: Path,
  row: int,
  item: Mapping[str, Any],
  radiographs: Mapping[str, Radiograph],
  counts: Counts,
) -> Annotation | None:
  missing = [field for field in FIELDS if field not in item]
  if missing:
    raise ValueError(
      f"{path}: item {row} lacks {missing}; expected {list(FIELDS)}, found "
      f"{sorted(item)}. The repository's answer-less lists can not be used."
    )
  name = image_id_of(str(item["image_id"]))
  question, answers = item["question"], item["answer"]
  if name not in radiographs:
    counts[NOT_FRONTAL] += 1
  elif item["semantic_type"] not in SEMANTIC_TYPES:
    counts["unknown semantic type"] += 1
  elif not isinstance(answers, list) or not isinstance(question, str):
    counts["answer not a list, or question not a text"] += 1
  elif not question.strip():
    counts["question empty"] += 1
  else:
    answer = Answer(
      " ".join(question.split()),
      tuple(str(value) for value in answers),
      str(item["content_type"]),
    )
    return Annotation(
      name, "vqa", item["semantic_type"], answer, Origin(path.name, row)
    )
  return None
