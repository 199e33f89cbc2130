"""Generated texts as predictions, and their file."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imax_jax.data import prompts
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
  predictions = []
  for entry, text in zip(entries, texts, strict=True):
    try:
      predictions.append(Prediction(entry, text, prompts.parse(entry, text), ""))
    except prompts.ParseError as error:
      predictions.append(Prediction(entry, text, None, error.reason))
  return predictions


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
  with whole(path) as part, part.open("w", encoding="utf-8") as file:
    for prediction in predictions:
      file.write(json.dumps(_as_json(prediction), ensure_ascii=False) + "\n")


def _as_json(prediction: Prediction) -> dict[str, Any]:
  entry = prediction.entry
  return {
    "id": entry.id,
    "task": entry.task,
    "subtask": entry.subtask,
    "prompt": entry.prompt,
    "answer": entry.answer,
    "text": prediction.text,
    "value": None if prediction.value is None else dataclasses.asdict(prediction.value),
    "reason": prediction.reason,
  }


def read_predictions(
  path: str | Path, entries: Mapping[str, Entry]
) -> list[Prediction]:
  """Reads `write_predictions`' file; `entries` maps ids to the entries asked.

  Raises:
    FileNotFoundError: no such file.
    ValueError: a line that is not a prediction, or an id that is not in `entries`.
  """
  asked, texts = [], []
  with Path(path).open(encoding="utf-8") as file:
    for number, line in enumerate(file, start=1):
      try:
        row = json.loads(line)
        asked.append(entries[row["id"]])
        texts.append(row["text"])
      except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
          f"{path}:{number}: expected a prediction of a known entry; the file is of "
          "another data set or damaged. Delete it and evaluate again."
        ) from error
  return predict_values(asked, texts)
