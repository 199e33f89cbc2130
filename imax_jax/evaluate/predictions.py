"""Generated texts as predictions, and their file, which grows as they come."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imax_jax.data import prompts
from imax_jax.data.entries import target_fields
from imax_jax.ledger import whole
from imax_jax.schema import Entry
from imax_jax.schema import Prediction

Predictions = Sequence[Prediction]


def predict_values(entries: Sequence[Entry], texts: Sequence[str]) -> list[Prediction]:
  """Parses each generated text by its entry's prompt.

  Raises:
    ValueError: not exactly one text an entry.
  """
  if len(entries) != len(texts):
    raise ValueError(
      f"{len(entries)} entries but {len(texts)} texts: give one an entry"
    )
  return [predict_value(*pair) for pair in zip(entries, texts, strict=True)]


def predict_value(entry: Entry, text: str) -> Prediction:
  """Parses one generated text by its entry's prompt."""
  try:
    return Prediction(entry, text, prompts.parse(entry, text), "")
  except prompts.ParseError as error:
    return Prediction(entry, text, None, error.reason)


def count_unparsed(predictions: Iterable[Prediction]) -> dict[str, dict[str, int]]:
  """{task: {reason: how many}} of the answers that could not be parsed."""
  counts: dict[str, Counter[str]] = {}
  for prediction in predictions:
    if prediction.reason:
      counts.setdefault(prediction.entry.task, Counter())[prediction.reason] += 1
  return {task: dict(sorted(counts[task].items())) for task in sorted(counts)}


def write_predictions(path: str | Path, predictions: Iterable[Prediction]) -> None:
  """One JSON line an entry; the file appears whole or not at all.

  Keys: id, task, subtask, prompt, answer, text, value (what was parsed, or null),
  reason (why it could not be, or "").
  """
  with whole(path) as part, part.open("wb") as file:
    for prediction in predictions:
      file.write(_line(prediction))


@contextlib.contextmanager
def appending(path: str | Path) -> Iterator[Callable[[Prediction], None]]:
  """Yields what adds a prediction to the file; it is there when the call returns.

  What kills the program at any time leaves whole lines and at most a part of one, for
  `read_whole_lines`.
  """
  with Path(path).open("ab") as file:

    def add(prediction: Prediction) -> None:
      file.write(_line(prediction))
      file.flush()

    yield add


def _line(prediction: Prediction) -> bytes:
  return (json.dumps(_as_json(prediction), ensure_ascii=False) + "\n").encode()


def _as_json(prediction: Prediction) -> dict[str, Any]:
  entry = prediction.entry
  return {
    "id": entry.id,
    "task": entry.task,
    "subtask": entry.subtask,
    "prompt": entry.prompt,
    "answer": entry.answer,
    "text": prediction.text,
    "value": None if prediction.value is None else target_fields(prediction.value),
    "reason": prediction.reason,
  }


def read_predictions(
  path: str | Path, entries: Mapping[str, Entry]
) -> list[Prediction]:
  """Reads `write_predictions`' file.

  Args:
    entries: all that were asked, by id; the predictions come in their order.

  Raises:
    FileNotFoundError: no such file.
    ValueError: not exactly one prediction an entry, one of another entry or of another
      version of it, or a line that is no prediction.
  """
  found = _parse(path, Path(path).read_bytes(), entries)
  missing = [name for name in entries if name not in found]
  if missing or not entries:
    raise ValueError(
      f"{path}: {len(found)} predictions for {len(entries)} entries"
      + (f", none for {missing[0]}" if missing else "")
      + "; expected one each. Delete it and evaluate again."
    )
  return [found[name] for name in entries]


def read_whole_lines(
  path: str | Path, entries: Mapping[str, Entry]
) -> dict[str, Prediction]:
  """What `appending` wrote before it was killed, by id; a torn last line is cut off.

  No file is none. Raises ValueError as `read_predictions`, but for what is missing.
  """
  path = Path(path)
  content = path.read_bytes() if path.is_file() else b""
  whole_lines = content[: content.rfind(b"\n") + 1]
  if len(whole_lines) < len(content):
    with path.open("r+b") as file:
      file.truncate(len(whole_lines))
  return _parse(path, whole_lines, entries)


def _parse(
  path: str | Path, content: bytes, entries: Mapping[str, Entry]
) -> dict[str, Prediction]:
  found: dict[str, Prediction] = {}
  for number, line in enumerate(content.split(b"\n")[:-1], start=1):
    where = f"{path}:{number}"
    try:
      row = json.loads(line)
      name, asked, text = row["id"], (row["prompt"], row["answer"]), row["text"]
      entry = entries[name]
    except (ValueError, KeyError, TypeError) as error:
      raise ValueError(
        f"{where}: expected a prediction of a known entry; the file is of another data "
        "set or damaged. Delete it and evaluate again."
      ) from error
    if asked != (entry.prompt, entry.answer) or not isinstance(text, str):
      raise ValueError(
        f"{where}: entry {name} has another prompt or answer; the file is of another "
        "version of the data set. Delete it and evaluate again."
      )
    if name in found:
      raise ValueError(
        f"{where}: entry {name} has a prediction already, expected one each. Delete the "
        "file and evaluate again."
      )
    found[name] = predict_value(entry, text)
  if content and not content.endswith(b"\n"):
    raise ValueError(f"{path}: its last line is cut off. Delete it and evaluate again.")
  return found
