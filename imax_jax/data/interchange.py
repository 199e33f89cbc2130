"""Datasets as the files that LLaVA, LLaMA-Factory and ms-swift train on, and back.

    FOLDER/imax_train.jsonl     a conversation a line: one entry, or all of an image's
    FOLDER/images/a1.png        …
    FOLDER/dataset_info.json    by which LLaMA-Factory finds the file

`data.conversations` shows the lines. What the three ask for, by their documentation and
loaders:

    LLaVA           a JSON list (suffix ".json"); `image` lies below --image_folder
    LLaMA-Factory   dataset_dir FOLDER; `images` lie below media_dir; as many "<image>",
                    in all turns together, as images
    ms-swift        "<image>" likewise; `images` lie below $ROOT_IMAGE_DIR

All three are to be given FOLDER/images for that.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import re
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from typing import TextIO

from imax_jax.data import builder
from imax_jax.data.conversations import IMAGE_FIELDS
from imax_jax.data.conversations import STYLES
from imax_jax.data.conversations import Style
from imax_jax.data.conversations import from_object
from imax_jax.data.conversations import to_object
from imax_jax.data.sources.files import inside
from imax_jax.data.sources.json_files import json_list
from imax_jax.schema import ImageRecord

SUFFIXES = (".jsonl", ".json")
_IMAGES = "images"
_INFO = "dataset_info.json"
# ms-swift takes a longer string for an image in base64.
_MAX_NAME = 200


# ── Out ───────────────────────────────────────────────────────────────────────────


def export_split(
  data_dir: str | Path,
  name: str,
  folder: str | Path,
  *,
  style: str = "conversations",
  per_image: bool = False,
  suffix: str = ".jsonl",
  progress: Callable[[int, int], object] | None = None,
) -> int:
  """A built split -> FOLDER/NAME.jsonl, images and dataset_info.json; gives the lines.

  Args:
    name: "imax_train", …, as for `builder.open_split`.
    style, per_image: as for `export_jsonl`.
    suffix: ".jsonl", or ".json" for LLaVA.
    progress: called with the images done and those of the split.

  Raises:
    ValueError: an unknown suffix or split, or as `export_jsonl`.
    FileNotFoundError: the split is not in `data_dir`.
  """
  if suffix not in SUFFIXES:
    raise ValueError(f"suffix {suffix!r}: expected one of {', '.join(SUFFIXES)}")
  records = builder.open_split(data_dir, name)

  def counted() -> Iterator[ImageRecord]:
    for done, record in enumerate(records, 1):
      yield record
      if progress is not None:
        progress(done, len(records))

  path = Path(folder, name + suffix)
  images = Path(folder, _IMAGES)
  count = export_jsonl(counted(), path, images, style=style, per_image=per_image)
  _describe(path, STYLES[style])
  return count


def export_jsonl(
  records: Iterable[ImageRecord],
  path: str | Path,
  image_folder: str | Path,
  *,
  style: str = "conversations",
  per_image: bool = False,
) -> int:
  """Writes `path` and one file an image into `image_folder`; gives the lines' number.

  All are readable by their owner only. `path` appears when it is complete; if its name
  ends in .json it is one JSON list, else a JSON object a line.

  Args:
    style: a key of `conversations.STYLES`.
    per_image: a conversation has all entries of an image, not one.

  Raises:
    ValueError: an unknown style, an image that comes twice or has no entry, or an entry
      that the readers would misread (`conversations.to_object`).
  """
  if style not in STYLES:
    raise ValueError(f"style {style!r}: expected one of {', '.join(STYLES)}")
  path, image_folder = Path(path), Path(image_folder)
  for folder in (path.parent, image_folder):
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
  first, between, last = "", "\n", "\n"
  if path.suffix == ".json":
    first, between, last = "[\n", ",\n", "\n]\n"
  count = 0
  with _written(path) as file:
    file.write(first)
    for record in _distinct(records):
      image = _image_name(record)
      with open(image_folder / image, "wb", opener=_open_private) as image_file:
        image_file.write(record.image)
      groups = [record.entries] if per_image else [(entry,) for entry in record.entries]
      for entries in groups:
        line = to_object(record, entries, image, STYLES[style], per_image)
        # In ASCII: LLaVA opens the file in whatever encoding the machine's locale has.
        file.write((between if count else "") + json.dumps(line))
        count += 1
    file.write(last)
  return count


def _distinct(records: Iterable[ImageRecord]) -> Iterator[ImageRecord]:
  seen: set[str] = set()
  for record in records:
    if record.image_id in seen:
      raise ValueError(f"image {record.image_id}: comes twice; join its records")
    if not record.entries:
      raise ValueError(f"image {record.image_id}: has no entry; leave it out")
    seen.add(record.image_id)
    yield record


def _image_name(record: ImageRecord) -> str:
  """An id may hold any character; a file's name is safe, distinct and not too long."""
  suffix = ".png" if record.image.startswith(b"\x89PNG") else ".jpg"
  name = re.sub(r"[^\w-]", lambda c: f"%{ord(c[0]):x}%", record.image_id, flags=re.A)
  if len(name + suffix) > _MAX_NAME:
    name = hashlib.sha256(record.image_id.encode()).hexdigest()
  return name + suffix


@contextlib.contextmanager
def _written(path: Path) -> Iterator[TextIO]:
  """A private text file that takes its place once it is complete."""
  unfinished = path.with_name(path.name + ".incomplete")
  try:
    with open(unfinished, "w", encoding="utf-8", opener=_open_private) as file:
      yield file
    unfinished.replace(path)
  finally:
    unfinished.unlink(missing_ok=True)


def _open_private(path: str, flags: int) -> int:
  descriptor = os.open(path, flags, mode=0o600)
  os.fchmod(descriptor, 0o600)  # of a file that was there before, too
  return descriptor


def _describe(path: Path, style: Style) -> None:
  """Enters an exported file into the dataset_info.json beside it."""
  info = path.with_name(_INFO)
  known = json.loads(info.read_text(encoding="utf-8")) if info.exists() else {}
  known[path.stem] = {
    "file_name": path.name,
    "formatting": "sharegpt",
    "columns": {"messages": style.turns, "images": "images"},
    "tags": {
      "role_tag": style.who,
      "content_tag": style.says,
      "user_tag": style.asker,
      "assistant_tag": style.answerer,
    },
  }
  with _written(info) as file:
    json.dump(known, file, indent=2)
    file.write("\n")


# ── In ────────────────────────────────────────────────────────────────────────────


def import_jsonl(path: str | Path, image_folder: str | Path) -> Iterator[ImageRecord]:
  """Reads what `export_jsonl` wrote, in either style, by entry or by image.

  Raises:
    ValueError: a line that is not an export's (names the line, never its text), or the
      lines of an image are not together.
    FileNotFoundError: no such file, or an image that is not in the folder.
  """
  path = Path(path)
  seen: set[str] = set()
  for about, group in itertools.groupby(_lines(path), lambda line: line[0]):
    fields = {field: about[field] for field in IMAGE_FIELDS}
    image = inside(image_folder, about["image"])
    if not image.is_file():
      raise FileNotFoundError(f"{image}: expected an image that {path.name} names")
    if fields["image_id"] in seen:
      raise ValueError(
        f"{path}: expected the lines of an image together and alike, found those of "
        f"{fields['image_id']} apart; sort the lines by image_id"
      )
    seen.add(fields["image_id"])
    entries = tuple(entry for _, some in group for entry in some)
    yield ImageRecord(**fields, image=image.read_bytes(), entries=entries)


def _lines(path: Path) -> Iterator[tuple[dict[str, str], list[Any]]]:
  """`from_object` of each line or item."""
  for place, line in _objects(path):
    try:
      yield from_object(line)
    except ValueError as error:
      raise ValueError(f"{path} {place}: {error}") from None


def _objects(path: Path) -> Iterator[tuple[str, Any]]:
  """(where, JSON value); None where a line is no JSON."""
  if path.suffix == ".json":
    for number, item in json_list(path):
      yield f"item {number + 1}", item
    return
  with open(path, encoding="utf-8") as file:
    for number, text in enumerate(file, 1):
      yield f"line {number}", _value(text)


def _value(text: str) -> Any:
  try:
    return json.loads(text)
  except (ValueError, RecursionError):
    return None
