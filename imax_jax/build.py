"""The verb `build`: raw files -> annotations -> IMAX and DMAX on disk."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable
from collections.abc import Iterator
from pathlib import Path

from imax_jax import progress
from imax_jax.data import builder
from imax_jax.data import construct
from imax_jax.data import sources
from imax_jax.data.phantom import hospital
from imax_jax.ledger import plain
from imax_jax.ledger import write_json
from imax_jax.schema import Annotation
from imax_jax.schema import Report
from imax_jax.study import Study
from imax_jax.study import UsageError


def build(study: Study) -> None:
  """Raw files -> IMAX and DMAX."""
  d = study.config.data
  roots = _roots(study)

  def make(folder: Path) -> None:
    radiographs = sources.read_radiographs(roots)
    annotations = sources.read_all(roots, radiographs, layers=d.layers)
    made = construct.construct(
      radiographs,
      _cut_reports(annotations, d.max_report_words),
      **{key: d.construct[key] for key in d.construct},
    )
    total = sum(len(split) for split in made.splits.values())
    with progress.bar("writing IMAX and DMAX") as tick:
      done = 0

      def count(images: int) -> None:
        nonlocal done
        done += images
        tick(done, total)

      builder.build(made, folder, progress=count)
    described = {
      "splits": made.statistics(),
      "shortfall": made.shortfall,
      "quota_shortfall": made.quota_shortfall,
      "dropped": made.dropped,
    }
    write_json(folder / "statistics.json", described)

  study.ledger.station("data", study.data_inputs, make)


def _cut_reports(
  annotations: Iterable[Annotation], max_words: int
) -> Iterator[Annotation]:
  """Reports of at most so many words; 0 leaves them whole.

  Uni-Med cuts targets and references at 50 (blip_processors.py); the paper is silent.
  """
  for annotation in annotations:
    target = annotation.target
    if max_words and isinstance(target, Report):
      text = " ".join(target.text.split()[:max_words])
      yield dataclasses.replace(annotation, target=Report(text))
    else:
      yield annotation


def _roots(study: Study) -> dict[str, Path]:
  """Where the raw files are; a phantom hospital's are drawn first."""
  d = study.config.data
  if d.source == "phantom":
    settings = plain(d.hospital)

    def make(folder: Path) -> None:
      with progress.bar("rendering the phantom hospital") as tick:
        hospital.write_hospital(
          folder / "files", **settings, workers=os.cpu_count() or 1, progress=tick
        )

    folder = study.ledger.station("hospital", settings, make)
    return sources.roots_of(folder / "files")
  if d.source not in ("opencxr", "physionet"):
    raise UsageError(
      f"--config.data.source={d.source}: expected phantom, opencxr or physionet"
    )
  if not d.root:
    raise UsageError(
      f"data source {d.source!r} needs the folder of its files: --config.data.root=FOLDER"
    )
  root = Path(d.root)
  if not root.is_dir():
    raise FileNotFoundError(
      f"{root}: no such folder; give the {d.source} files with --config.data.root=FOLDER"
    )
  return {"opencxr": root} if d.source == "opencxr" else sources.roots_of(root)
