"""Targets and entries as JSON, exactly: what is on disk wherever an entry is on disk."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from imax_jax.schema import TARGET_OF_TASK
from imax_jax.schema import WHOLE
from imax_jax.schema import Entry
from imax_jax.schema import Origin
from imax_jax.schema import Region
from imax_jax.schema import Target

_TARGETS: dict[str, type] = {kind.__name__: kind for kind in TARGET_OF_TASK.values()}


def target_fields(target: Target) -> dict[str, Any]:
  """A target's fields; a box's frame only where it is not the whole picture."""
  fields = {f.name: getattr(target, f.name) for f in dataclasses.fields(target)}
  if isinstance(target, Region) and target.frame == WHOLE:
    del fields["frame"]
  return fields


def target_to_json(target: Target) -> str:
  """Ratio(0.5) -> '{"kind": "Ratio", "value": 0.5}'; exact."""
  return json.dumps({"kind": type(target).__name__} | target_fields(target))


def target_from_json(text: str | bytes) -> Target:
  """The inverse of `target_to_json`.

  Raises:
    ValueError: JSON that is not a target's.
  """
  try:
    fields = json.loads(text)
    kind = _TARGETS[fields.pop("kind")]
    # Targets hold tuples, never lists; JSON knows lists only.
    return kind(
      **{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    )
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    # The text may be a report's: it is not shown.
    raise ValueError(
      f"target of {len(text)} characters: expected an object with 'kind' among "
      f"{sorted(_TARGETS)} and its fields ({type(error).__name__}); build the data anew"
    ) from None


def entry_values(entry: Entry) -> dict[str, Any]:
  """The entry as `shards.features` has it; its target is JSON."""
  return {
    "id": entry.id,
    "task": entry.task,
    "subtask": entry.subtask,
    "prompt": entry.prompt,
    "answer": entry.answer,
    "target": target_to_json(entry.target),
    "origin_source": entry.origin.source,
    "origin_file": entry.origin.file,
    "origin_row": entry.origin.row,
    "origin_rule": entry.origin.rule,
  }


def entry_to_json(entry: Entry) -> str:
  """One line: the entry's fields, its target as an object."""
  fields = {f.name: getattr(entry, f.name) for f in dataclasses.fields(entry)}
  fields["target"] = json.loads(target_to_json(entry.target))
  fields["origin"] = list(dataclasses.astuple(entry.origin))
  return json.dumps(fields, ensure_ascii=False)


def entry_from_json(text: str) -> Entry:
  """The inverse of `entry_to_json`.

  Raises:
    ValueError: JSON that is not an entry's.
  """
  try:
    fields = json.loads(text)
    fields["target"] = target_from_json(json.dumps(fields["target"]))
    fields["origin"] = Origin(*fields["origin"])
    return Entry(**fields)
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise ValueError(
      f"a line of {len(text)} characters is no entry ({type(error).__name__}); "
      "remove the file and make it anew"
    ) from None


def write_entries(path: Path, entries: Iterable[Entry]) -> None:
  """One JSON line an entry."""
  with path.open("w", encoding="utf8") as file:
    file.writelines(f"{entry_to_json(entry)}\n" for entry in entries)


def read_entries(path: Path) -> list[Entry]:
  """What `write_entries` wrote."""
  with path.open(encoding="utf8") as file:
    return [entry_from_json(line) for line in file]
