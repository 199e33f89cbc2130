"""How many boxes of the data a model's eye sees whole, in part, or not.

    data ──▶ sight/imax_train, sight/imax_test, sight/dmax_train      boxes.json

Read of the pictures' headers once a split. An eye that stretches sees every box, and
nothing is counted.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from absl import logging

from imax_jax import progress
from imax_jax.data import builder
from imax_jax.data import eye as eye_lib
from imax_jax.data.geometry import MIN_SHARE
from imax_jax.ledger import write_json
from imax_jax.study import Study

BOXES = "boxes.json"


def count(study: Study) -> None:
  """Counts every split, a station each, and logs it; all processes must take part.

  Raises:
    ValueError: the data are not there, or of another config.
  """
  if study.eye.stretches:
    return
  kind, inputs = study.eye.geometry.kind, _inputs(study)
  for split in builder.splits_of(study.workdir / "data"):

    def make(folder: Path, split: str = split) -> None:
      write_json(folder / BOXES, _count(study, split))

    study.ledger.station(_station(split), inputs, make)
    said = eye_lib.words(_read(study, split)) or "none"
    logging.info("boxes of %s, as %s has them: %s", split, kind, said)


def told(study: Study) -> dict[str, Any]:
  """What results.json says of it: {"boxes_seen": {…}}, or {} of an eye that stretches.

  {"geometry": "crop", "boxes": "seen", "image_px": 224, "least": MIN_SHARE,
   "splits": {"imax_test": {"heart": {"whole": 30, "cut": 8, "unseen": 2}, …}, …}}

  Raises:
    ValueError: it was counted for another config or other data.
  """
  eye, found = study.eye, {}
  if eye.stretches:
    return {}
  for split in builder.splits_of(study.workdir / "data"):
    if study.ledger.is_done(_station(split)):
      study.ledger.digest(_station(split), _inputs(study))
      found[split] = _read(study, split)
  facts = {"geometry": eye.geometry.kind, "boxes": eye.boxes, "image_px": eye.image_px}
  return {"boxes_seen": {**facts, "least": MIN_SHARE, "splits": found}}


def _station(split: str) -> str:
  return f"sight/{split}"


def _inputs(study: Study) -> dict[str, Any]:
  eye = study.eye
  seen = {"geometry": eye.geometry.kind, "image_px": eye.image_px, "least": MIN_SHARE}
  return {"data": study.require_data(), **seen}


def _count(study: Study, split: str) -> eye_lib.Counts:
  records, counts = study.records(split), eye_lib.Counts()
  with progress.bar(f"boxes of {split}") as tick:
    for number in range(len(records)):
      study.eye.count(records[number], counts)
      tick(number + 1, len(records))
  return counts


def _read(study: Study, split: str) -> eye_lib.Counts:
  counts: eye_lib.Counts = json.loads(
    (study.workdir / _station(split) / BOXES).read_text("utf8")
  )
  return counts
