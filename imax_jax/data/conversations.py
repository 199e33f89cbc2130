"""An image's entries as one JSON object of a training file, and back.

    style "conversations": LLaVA, LLaMA-Factory (sharegpt), ms-swift
    {"image": "a1.png", "images": ["a1.png"],
     "conversations": [{"from": "human", "value": "<image>\\n[rec] Based on …"},
                       {"from": "gpt", "value": "<250><310><520><700>"}],
     "id": "a1/rec/heart/0", "task": "rec", "subtask": "heart",
     "target": "{\\"kind\\": \\"Region\\", …}", "origin": {…}, "image_id": "a1", …}

    style "messages": LLaMA-Factory (sharegpt with role tags), ms-swift
    {"images": ["a1.png"],
     "messages": [{"role": "user", "content": "<image>[rec] Based on …"},
                  {"role": "assistant", "content": "<250><310><520><700>"}], …}

Of several entries at once, "ids", "tasks", … are lists, and only the first turn has the
image. The fields behind the conversation bring the entries back whole. Each keeps one
type on all lines, so "target" is JSON in a string: Hugging Face's `datasets`, by which
two of the three read, takes a column's type from the file's first lines.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

from imax_jax.data.entries import target_from_json
from imax_jax.data.entries import target_to_json
from imax_jax.schema import Entry
from imax_jax.schema import ImageRecord
from imax_jax.schema import Origin


class Style(NamedTuple):
  """How a conversation is spelt."""

  turns: str  # the field that holds it
  who: str
  says: str
  asker: str
  answerer: str
  mark: str  # what stands for the image, before the first prompt


STYLES: dict[str, Style] = {
  "conversations": Style("conversations", "from", "value", "human", "gpt", "<image>\n"),
  "messages": Style("messages", "role", "content", "user", "assistant", "<image>"),
}
# What one of the readers counts, replaces or takes for a file wherever a text spells it.
MARKS = ("<image>", "<video>", "<audio>", "<img>", "<bbox>", "<ref-object>")
IMAGE_FIELDS = ("image_id", "study_id", "patient_id", "view")
_ENTRY_FIELDS = ("id", "task", "subtask", "target", "origin")


def to_object(
  record: ImageRecord, entries: Sequence[Entry], image: str, style: Style, many: bool
) -> dict[str, Any]:
  """Some of a record's entries as one conversation; of one entry alone unless `many`.

  Raises:
    ValueError: a text spells one of `MARKS`, or an answer is empty, which ms-swift drops
      the line for. Names the entry's id, never its text.
  """
  turns = []
  for number, entry in enumerate(entries):
    _check(entry)
    prompt = entry.prompt if number else style.mark + entry.prompt
    turns.append({style.who: style.asker, style.says: prompt})
    turns.append({style.who: style.answerer, style.says: entry.answer})
  fields: dict[str, Any] = {"images": [image], style.turns: turns}
  if style.turns == "conversations":
    fields = {"image": image} | fields
  rows = [
    (e.id, e.task, e.subtask, target_to_json(e.target), dataclasses.asdict(e.origin))
    for e in entries
  ]
  if many:
    columns = zip(_ENTRY_FIELDS, zip(*rows, strict=True), strict=True)
    fields["id"] = record.image_id
    fields |= {f"{field}s": list(column) for field, column in columns}
  else:
    fields |= zip(_ENTRY_FIELDS, rows[0], strict=True)
  return fields | {field: getattr(record, field) for field in IMAGE_FIELDS}


def from_object(line: Any) -> tuple[dict[str, str], list[Entry]]:
  """The inverse of `to_object`: {"image": its file, "image_id": …}, and the entries.

  Raises:
    ValueError: no such object; says what kind of fault it has, never its text.
  """
  try:
    style = next((style for style in STYLES.values() if style.turns in line), None)
    if style is None:
      raise ValueError("no conversation")
    (image,) = line["images"]
    about = {"image": image} | {field: line[field] for field in IMAGE_FIELDS}
    texts = _texts(line[style.turns], style)
    if not all(isinstance(text, str) for text in (*about.values(), *texts)):
      raise TypeError("no text")
    many = "ids" in line
    columns = [line[f"{f}s"] if many else [line[f]] for f in _ENTRY_FIELDS]
    entries = [
      Entry(
        id=entry_id,
        image_id=line["image_id"],
        task=task,
        subtask=subtask,
        prompt=prompt,
        answer=answer,
        target=target_from_json(target),
        origin=Origin(**origin),
      )
      for prompt, answer, entry_id, task, subtask, target, origin in zip(
        texts[::2], texts[1::2], *columns, strict=True
      )
    ]
  except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
    raise ValueError(
      f"expected a conversation with the fields that export_jsonl writes "
      f"({type(error).__name__}); export the data anew"
    ) from None
  return about, entries


def _check(entry: Entry) -> None:
  if not entry.answer:
    raise ValueError(
      f"entry {entry.id}: its answer is empty, expected at least a letter; drop the "
      "entry where the dataset is constructed"
    )
  if any(mark in entry.prompt or mark in entry.answer for mark in MARKS):
    raise ValueError(
      f"entry {entry.id}: its text spells one of {', '.join(MARKS)}, for which the "
      "readers would look for a file; remove the mark from the source's text"
    )


def _texts(turns: Sequence[dict[str, str]], style: Style) -> list[str]:
  """Prompts and answers in turn, without the image's mark."""
  for number, turn in enumerate(turns):
    if turn[style.who] != (style.answerer if number % 2 else style.asker):
      raise ValueError("turns out of order")
  texts = [turn[style.says] for turn in turns]
  if not texts[0].startswith(style.mark):
    raise ValueError("no image before the first prompt")
  return [texts[0].removeprefix(style.mark), *texts[1:]]
