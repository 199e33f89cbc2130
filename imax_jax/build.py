"""The verbs `select`, `build` and `export`: raw files -> IMAX and DMAX -> JSON lines."""

from __future__ import annotations

import collections
import json
import shlex
import shutil
import sys
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import logging

from imax_jax import choices
from imax_jax import progress
from imax_jax import runs
from imax_jax import selection
from imax_jax.data import builder
from imax_jax.data import interchange
from imax_jax.data import manifest
from imax_jax.data import recipe
from imax_jax.data import shards
from imax_jax.data import statistics
from imax_jax.data import unfinished
from imax_jax.data.sources import intake
from imax_jax.ledger import write_json
from imax_jax.schema import FINDINGS
from imax_jax.schema import Bits
from imax_jax.selection import Selection
from imax_jax.study import Study
from imax_jax.study import UsageError

RECIPE = "recipe.jsonl.gz"
STATISTICS = "statistics.json"


def build(study: Study) -> None:
  """Raw files -> IMAX and DMAX on disk.

  Images that can not be read are left out, as if they had never been there: the entries
  are selected again without them.
  """
  unreadable: dict[str, str] = {}

  def make(folder: Path) -> None:
    if (folder / manifest.FILE).is_file() and not unfinished.is_left_in(folder):
      return None  # stopped behind its last line
    while True:
      selected = selection.select(study, unreadable)
      try:
        return _write(study, selected, folder)
      except shards.DamagedImages as error:
        logging.warning("%s\nselecting again without them", error)
        unreadable.update(error.reasons)

  _at_station(study, "data", make, resumable=True)


def _write(study: Study, selected: Selection, folder: Path) -> None:
  d = study.config.data
  made = selected.datasets

  def finish(written: list[manifest.ShardInfo]) -> None:
    _describe(study, selected, folder)
    manifest.write(folder, written, selection.inputs_of(selected.intake))

  total = sum(len(split) for split in made.splits.values())
  with progress.bar("writing the datasets") as tick:
    done = 0

    def count(images: int) -> None:
      nonlocal done
      done += images
      tick(done, total)

    builder.build(
      made,
      folder,
      image_px=d.image_px or None,
      geometry=choices.geometry_of(d),
      draft=d.draft,
      negative=d.negative,
      workers=choices.workers_of(d),
      beam_args=shlex.split(d.beam) if d.beam else None,
      progress=count,
      finish=finish,
    )


def select(study: Study) -> None:
  """Everything up to the selected entries: counts, recipe, quarantine. No image is read.

  A rehearsal of `build`, which then reads the tables again.
  """

  def make(folder: Path) -> None:
    selected = selection.select(study)
    _describe(study, selected, folder)
    manifest.write(folder, [], selection.inputs_of(selected.intake))

  _at_station(study, "selection", make)


def encode(study: Study) -> None:
  """The frozen encoder's features of all images: checks what is kept, makes the rest."""
  if not study.keeps_features:
    raise UsageError(
      "encode: --config.train.features=step keeps no features; give cache to keep them"
    )
  found = {split: study.records(split) for split in runs.splits_of(study)}
  store = study.store
  removed = store.check() if study.is_chief else 0
  study.ledger.meet("features/checked")
  for split in found:
    study.pixels(split)
  counts = ", ".join(f"{len(records):,} of {split}" for split, records in found.items())
  sys.stdout.write(
    f"{store.folder}: features of {counts} ({store.size() / 1e6:,.1f} MB); {removed} "
    "damaged shards made anew\n"
  )


def _at_station(
  study: Study, name: str, make: Callable[[Path], None], *, resumable: bool = False
) -> None:
  """Makes it or finds it made, and says what it holds."""
  d = study.config.data
  selection.roots_of(study)  # a phantom hospital is drawn before it is depended on
  begun = False

  def begin(folder: Path) -> None:
    nonlocal begun
    begun = True
    make(folder)

  folder = study.ledger.station(name, study.data_inputs, begin, resumable=resumable)
  described = json.loads((folder / STATISTICS).read_text(encoding="utf8"))
  intake.check(
    described["intake"], d.max_quarantined, folder / selection.QUARANTINE
  )  # again: it may be another share than when it was made
  if d.source == "phantom" and name == "data":
    return  # whose files are whole and whose counts are in the report
  counts = statistics.table(described, with_paper=d.source == "physionet")
  told = "\n".join(
    [intake.table(described["intake"]), *_audit_lines(described["audit"])]
  )
  sys.stdout.write(f"\n{told}\n\n{counts}\n")
  if not described["publishable"]:
    sys.stdout.write(
      f"{RECIPE} is not to be published: of so few images, its hashes tell answers\n"
    )
  done = (
    "made" if begun else "made before, of the same files and settings: nothing done"
  )
  sys.stdout.write(f"{folder}: {done}\n\n")


def _describe(study: Study, selected: Selection, folder: Path) -> None:
  """Writes statistics.json, the recipe and a copy of the quarantine."""
  made = selected.datasets
  described = {
    "splits": made.statistics(),
    "shortfall": made.shortfall,
    "quota_shortfall": made.quota_shortfall,
    "dropped": made.dropped,
    "boxes_cut_off": selected.boxes_cut_off,
    "intake": selected.intake.summary(),
    "audit": _audit(selected),
    "publishable": recipe.is_publishable(made),
  }
  write_json(folder / STATISTICS, described)
  recipe.write_recipe(made, folder / RECIPE, choices.settings_of(study.config.data))
  shutil.copy(study.workdir / selection.QUARANTINE, folder / selection.QUARANTINE)


def _audit(selected: Selection) -> dict[str, Any]:
  """The selection against what MIMIC-CXR-JPG says otherwise, where that was read.

  "official_splits": the images of each of our splits by MIMIC's own.
  "chexpert": by finding, how many of IMAX's labels CheXpert's labeller shares, of those
    on which it is certain.
  """
  if selected.checks is None:
    return {}
  official, chexpert = selected.checks
  splits = selected.datasets.splits
  agree: dict[str, collections.Counter[bool]] = {
    label: collections.Counter() for label in FINDINGS
  }
  for chosen in (*splits["imax_train"], *splits["imax_test"]):
    said = chexpert.get(chosen.radiograph.study_id, {})
    for entry in chosen.entries:
      if isinstance(entry.target, Bits):
        for label, bit in zip(entry.target.labels, entry.target.values, strict=True):
          if said.get(label) in (0, 1):
            agree[label][said[label] == bit] += 1
  return {
    "official_splits": {
      name: dict(
        collections.Counter(
          official.get(chosen.radiograph.image_id, "none") for chosen in split
        )
      )
      for name, split in splits.items()
      if official
    },
    "chexpert": {
      label: {"agree": counts[True], "of": counts.total()}
      for label, counts in agree.items()
      if counts
    },
  }


def _audit_lines(audit: Mapping[str, Any]) -> Iterator[str]:
  for split, found in audit.get("official_splits", {}).items():
    parts = ", ".join(f"{count:,} {name}" for name, count in sorted(found.items()))
    yield f"    {split} by the official splits: {parts}"
  agreed = [
    f"{label} {said['agree'] / said['of']:.0%} of {said['of']:,}"
    for label, said in audit.get("chexpert", {}).items()
  ]
  if agreed:
    yield f"    IMAX's labels that CheXpert's labeller shares: {', '.join(agreed)}"


def export(study: Study, request: Mapping[str, str | None]) -> None:
  """A built split -> WORKDIR/export/STYLE/SPLIT.jsonl with its images beside it.

  Raises:
    UsageError: no --split.
  """
  if not request["split"]:
    raise UsageError("export needs --split, e.g. --split=imax_train")
  study.require_data()
  style = str(request["style"])
  folder = study.workdir / "export" / style
  with progress.bar("exporting") as tick:
    lines = interchange.export_split(
      study.workdir / "data",
      request["split"],
      folder,
      style="conversations" if style == "llava" else style,
      per_image=bool(request["per_image"]),
      suffix=".json" if style == "llava" else ".jsonl",
      progress=tick,
    )
  sys.stdout.write(f"{lines:,} conversations in {folder}\n")
