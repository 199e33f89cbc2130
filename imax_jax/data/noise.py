"""Label noise for a study of it: some training entries answer as another image does."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
from collections.abc import Hashable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from imax_jax.data.construct import Selected
from imax_jax.schema import Answer
from imax_jax.schema import Bits
from imax_jax.schema import Entry
from imax_jax.schema import Region

Splits = Mapping[str, Sequence[Selected]]


def exchange_answers(splits: Splits, share: float, seed: int) -> dict[str, Any]:
  """The splits with a `share` of the training entries answering as another of their kind.

  An entry keeps its prompt and gets answer and target of an entry of its split that has
  the same prompt, or asks the same of its own box, and another answer; its origin's rule
  then names whose. Whether an entry is chosen depends on seed and entry alone, so that
  it is the same in every split that has it. Test splits, and entries whose kind knows
  one answer only, stay as they are.

  Raises:
    ValueError: a share outside [0, 1].
  """
  if not 0 <= share <= 1:
    raise ValueError(f"noise {share}: expected a share of the entries, from 0 to 1")
  return {
    name: _exchanged(group, share, seed) if name.endswith("_train") else list(group)
    for name, group in splits.items()
  }


def _exchanged(group: Sequence[Selected], share: float, seed: int) -> list[Selected]:
  donors: dict[Hashable, list[Entry]] = collections.defaultdict(list)
  for selected in group:
    for entry in selected.entries:
      donors[_kind(entry)].append(entry)

  def changed(entry: Entry) -> Entry:
    if _draw(seed, "noisy", entry.id) >= share:
      return entry
    others = [d for d in donors[_kind(entry)] if d.answer != entry.answer]
    if not others:
      return entry
    donor = others[int(_draw(seed, "donor", entry.id) * len(others))]
    rule = f"{entry.origin.rule}; noise: the answer of {donor.id}"
    return dataclasses.replace(
      entry,
      answer=donor.answer,
      target=_target(entry, donor),
      origin=dataclasses.replace(entry.origin, rule=rule),
    )

  return [
    dataclasses.replace(selected, entries=tuple(map(changed, selected.entries)))
    for selected in group
  ]


def _kind(entry: Entry) -> Hashable:
  """What two entries share that may answer as each other."""
  if entry.task == "reg":
    return entry.task  # the prompt is the box
  if isinstance(entry.target, Bits):
    return entry.prompt, entry.target.labels
  return entry.prompt


def _target(entry: Entry, donor: Entry) -> Any:
  """The donor's side of the answer, the entry's own of the question."""
  mine, theirs = entry.target, donor.target
  if entry.task == "reg" and isinstance(mine, Region) and isinstance(theirs, Region):
    return dataclasses.replace(mine, name=theirs.name)
  if isinstance(mine, Answer) and isinstance(theirs, Answer):
    return dataclasses.replace(mine, answers=theirs.answers)
  return theirs


def _draw(seed: int, what: str, entry_id: str) -> float:
  """A number in [0, 1) that hangs on these three alone."""
  digest = hashlib.sha256(f"{seed}/{what}/{entry_id}".encode()).digest()
  return int.from_bytes(digest[:6], "big") / 2**48
