"""Pseudo labels on disk, a JSON line each, read an image at a time.

A line is an entry's (`data.entries`), with the place of its image in the split that was
labelled and what the model made of it:

    {"place": 17, "log_prob": -0.031, "num_tokens": 7, "id": "…/rec/heart/0.pseudo", …}

Lines are in the order of their images.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from imax_jax.data import entries as entries_lib
from imax_jax.pseudo.label import Label
from imax_jax.schema import ImageRecord


def to_json(label: Label) -> str:
  """One line, without its end."""
  head = {
    "place": label.place, "log_prob": label.log_prob, "num_tokens": label.num_tokens
  }  # fmt: skip
  return json.dumps(
    head | json.loads(entries_lib.entry_to_json(label.entry)), ensure_ascii=False
  )


def from_json(text: str) -> Label:
  """The inverse of `to_json`.

  Raises:
    ValueError: a line that is no label's.
  """
  try:
    fields = json.loads(text)
    head = [fields.pop(key) for key in ("place", "log_prob", "num_tokens")]
  except (AttributeError, KeyError, ValueError) as error:
    raise ValueError(
      f"a line of {len(text)} characters is no pseudo label ({type(error).__name__}); "
      "remove the file's folder and run the verb pseudo again"
    ) from None
  place, log_prob, num_tokens = head
  entry = entries_lib.entry_from_json(json.dumps(fields))
  return Label(int(place), entry, float(log_prob), int(num_tokens))


class LabelFile:
  """The labels of a file, or those of its lines that are `kept`.

  What stands in memory is where each image's lines begin.

  Args:
    kept: bool[lines], or None: all.

  Raises:
    ValueError: `kept` is of another file, or the file is damaged.
  """

  def __init__(self, path: Path, kept: np.ndarray | None = None) -> None:
    self._path = path
    self._first: dict[int, tuple[int, int, int]] = {}  # place: line, byte, lines
    number = offset = 0
    with path.open("rb") as file:
      for line in file:
        place = from_json(line.decode()).place if number == 0 else _place_of(line)
        start = self._first.get(place, (number, offset, 0))
        self._first[place] = (start[0], start[1], start[2] + 1)
        number, offset = number + 1, offset + len(line)
    self.num_lines = number
    if kept is not None and len(kept) != number:
      raise ValueError(
        f"{path}: {number} labels, but it is said of {len(kept)} whether to keep them; "
        "run the verb pseudo again"
      )
    self._kept = kept

  def __len__(self) -> int:
    """How many labels there are, or are kept."""
    return self.num_lines if self._kept is None else int(self._kept.sum())

  def at(self, place: int) -> list[Label]:
    """The labels of an image."""
    return [label for _, label in self._at(place)]

  def images(self) -> Iterator[tuple[int, list[tuple[int, Label]]]]:
    """(place, [(line, label), …]) of each image that has labels, in their order."""
    for place in self._first:
      yield place, self._at(place)

  def _at(self, place: int) -> list[tuple[int, Label]]:
    first, offset, count = self._first.get(place, (0, 0, 0))
    if not count:
      return []
    with self._path.open("rb") as file:
      file.seek(offset)
      lines = [file.readline().decode() for _ in range(count)]
    return [
      (number, from_json(line))
      for number, line in enumerate(lines, first)
      if self._kept is None or self._kept[number]
    ]


class PseudoRecords(Sequence[ImageRecord]):
  """Pseudo-IMAX: the records, each with its pseudo labels behind its own entries.

  Records and labels are read when they are asked for.
  """

  def __init__(self, records: Sequence[ImageRecord], labels: LabelFile) -> None:
    self._records = records
    self._labels = labels

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> ImageRecord:  # type: ignore[override]
    """Raises a ValueError where the labels are of other records."""
    index = range(len(self))[index]
    record = self._records[index]
    added = check_image(record, self._labels.at(index))
    return dataclasses.replace(record, entries=record.entries + added)


def check_image(record: ImageRecord, labels: Sequence[Label]) -> tuple:
  """The labels' entries; a ValueError if they are another image's."""
  for label in labels:
    if label.entry.image_id != record.image_id:
      raise ValueError(
        f"pseudo label {label.entry.id}: image {label.place} of the training records is "
        f"{record.image_id}; the labels are of another version of the data: run the verb "
        "pseudo again"
      )
  return tuple(label.entry for label in labels)


def _place_of(line: bytes) -> int:
  """Of a line of `to_json`, without reading all of it."""
  head, _, _ = line.partition(b",")
  name, _, number = head.partition(b":")
  if name != b'{"place"':
    raise ValueError(
      f"a line of {len(line)} bytes is no pseudo label; remove the file's folder and "
      "run the verb pseudo again"
    )
  return int(number)
