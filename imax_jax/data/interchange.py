"""LLaVA-style conversations: one JSON line an entry, with the images in a folder beside.

    {"id": "a1/rec/heart/0", "image": "a1.png",
     "conversations": [{"from": "human", "value": "<image>\\n[rec] Based on …"},
                       {"from": "gpt", "value": "<250><310><520><700>"}],
     "task": "rec", "subtask": "heart", "target": {"kind": "Region", …}, …}

LLaVA and its kin read the first three fields; the others bring an export back whole.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Iterable
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from imax_jax.data.entries import target_from_json
from imax_jax.data.entries import target_to_json
from imax_jax.schema import Entry
from imax_jax.schema import ImageRecord
from imax_jax.schema import Origin

_IMAGE_MARK = "<image>\n"
_IMAGE_FIELDS = ("image_id", "study_id", "patient_id", "view")


def export_jsonl(
  records: Iterable[ImageRecord], path: str | Path, image_folder: str | Path
) -> int:
  """Writes `path` and one file an image into `image_folder`; gives the lines' number.

  Both are readable by their owner only. `path` appears when it is complete.
  """
  path, image_folder = Path(path), Path(image_folder)
  for folder in (path.parent, image_folder):
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
  unfinished = path.with_name(path.name + ".incomplete")
  count = 0
  with open(unfinished, "w", encoding="utf-8", opener=_open_private) as file:
    for record in records:
      # An id may hold any character; this keeps file names safe and distinct.
      suffix = ".png" if record.image.startswith(b"\x89PNG") else ".jpg"
      image = re.sub(r"[^\w-]", lambda c: f"%{ord(c[0]):x}%", record.image_id) + suffix
      with open(image_folder / image, "wb", opener=_open_private) as image_file:
        image_file.write(record.image)
      for entry in record.entries:
        line = _to_line(record, entry, image)
        file.write(json.dumps(line, ensure_ascii=False) + "\n")
        count += 1
  unfinished.replace(path)
  return count


def import_jsonl(path: str | Path, image_folder: str | Path) -> Iterator[ImageRecord]:
  """Reads what `export_jsonl` wrote; the lines of an image must follow one another.

  Raises:
    ValueError: a line that is not an export's; names the line, never its text.
    FileNotFoundError: no such file, or an image that is not in the folder.
  """
  with open(path, encoding="utf-8") as file:
    lines = (_parse_line(text, f"{path} line {n}") for n, text in enumerate(file, 1))
    key = ("image", *_IMAGE_FIELDS)
    for ids, group in itertools.groupby(lines, lambda line: [line[k] for k in key]):
      image, *fields = ids
      yield ImageRecord(
        **dict(zip(_IMAGE_FIELDS, fields, strict=True)),
        image=(Path(image_folder) / image).read_bytes(),
        entries=tuple(line["entry"] for line in group),
      )


def _open_private(path: str, flags: int) -> int:
  return os.open(path, flags, mode=0o600)


def _to_line(record: ImageRecord, entry: Entry, image: str) -> dict[str, Any]:
  return {
    "id": entry.id,
    "image": image,
    "conversations": [
      {"from": "human", "value": _IMAGE_MARK + entry.prompt},
      {"from": "gpt", "value": entry.answer},
    ],
    "task": entry.task,
    "subtask": entry.subtask,
    "target": json.loads(target_to_json(entry.target)),
    "origin": {"file": entry.origin.file, "row": entry.origin.row},
    **{field: getattr(record, field) for field in _IMAGE_FIELDS},
  }


def _parse_line(text: str, place: str) -> dict[str, Any]:
  """A line's image fields, and its `Entry` as "entry"."""
  try:
    line = json.loads(text)
    human, gpt = line["conversations"]
    if Path(line["image"]).name != line["image"]:
      raise ValueError("an image outside its folder")
    line["entry"] = Entry(
      id=line["id"],
      image_id=line["image_id"],
      task=line["task"],
      subtask=line["subtask"],
      prompt=human["value"].removeprefix(_IMAGE_MARK),
      answer=gpt["value"],
      target=target_from_json(json.dumps(line["target"])),
      origin=Origin(**line["origin"]),
    )
    return {key: line[key] for key in ("entry", "image", *_IMAGE_FIELDS)}
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise ValueError(
      f"{place}: expected a conversation with the fields that export_jsonl writes "
      f"({type(error).__name__}); export the data anew"
    ) from None
