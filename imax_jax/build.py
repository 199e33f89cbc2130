"""The verbs `select`, `build` and `export`: raw files -> IMAX and DMAX -> JSON lines."""

from __future__ import annotations

import collections
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imax_jax import progress
from imax_jax import selection
from imax_jax.data import builder
from imax_jax.data import interchange
from imax_jax.data import manifest
from imax_jax.data import recipe
from imax_jax.data import statistics
from imax_jax.ledger import write_json
from imax_jax.schema import FINDINGS
from imax_jax.schema import Bits
from imax_jax.selection import Selection
from imax_jax.study import Study
from imax_jax.study import UsageError

RECIPE = "recipe.jsonl.gz"


def build(study: Study) -> None:
  """Raw files -> IMAX and DMAX on disk."""
  d = study.config.data

  def make(folder: Path) -> None:
    selected = selection.select(study)
    made = selected.datasets
    total = sum(len(split) for split in made.splits.values())
    with progress.bar("writing the datasets") as tick:
      done = 0

      def count(images: int) -> None:
        nonlocal done
        done += images
        tick(done, total)

      shards = builder.build(
        made,
        folder,
        image_px=d.image_px or None,
        geometry=selection.geometry_of(d),
        draft=d.draft,
        workers=selection.workers_of(d),
        beam_args=shlex.split(d.beam) if d.beam else None,
        progress=count,
      )
    _describe(study, selected, folder)
    manifest.write(folder, shards, selection.inputs_of(selected.intake))

  selection.roots_of(study)  # a phantom hospital is drawn before it is depended on
  study.ledger.station("data", study.data_inputs, make)


def select(study: Study) -> None:
  """Everything up to the selected entries: counts, recipe, quarantine. No image is read."""

  def make(folder: Path) -> None:
    selected = selection.select(study)
    _describe(study, selected, folder)
    manifest.write(folder, [], selection.inputs_of(selected.intake))

  selection.roots_of(study)
  study.ledger.station("selection", study.data_inputs, make)


def _describe(study: Study, selected: Selection, folder: Path) -> None:
  """Writes statistics.json, the recipe, a copy of the quarantine; prints the counts."""
  made, intake = selected.datasets, selected.intake
  described = {
    "splits": made.statistics(),
    "shortfall": made.shortfall,
    "quota_shortfall": made.quota_shortfall,
    "dropped": made.dropped,
    "boxes_cut_off": selected.boxes_cut_off,
    "intake": intake.summary(),
    "audit": _audit(selected),
  }
  write_json(folder / "statistics.json", described)
  recipe.write_recipe(made, folder / RECIPE)
  shutil.copy(study.workdir / selection.QUARANTINE, folder / selection.QUARANTINE)
  if study.config.data.source != "phantom":  # whose files are always whole
    real = study.config.data.source == "physionet"
    counts = statistics.table(described, with_paper=real)
    sys.stdout.write(f"\n{intake.table()}\n\n{counts}\n\n")


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
    },
    "chexpert": {
      label: {"agree": counts[True], "of": counts.total()}
      for label, counts in agree.items()
      if counts
    },
  }


def export(study: Study, request: Mapping[str, str | None]) -> None:
  """A built split -> WORKDIR/export/STYLE/SPLIT.jsonl with its images beside it.

  Raises:
    UsageError: no --split.
  """
  if not request["split"]:
    raise UsageError("export needs --split, e.g. --split=imax_train")
  assert study.data_digest
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
