"""Config -> raw files -> the entries that IMAX and DMAX are made of; no image is read.

    roots ──sources──▶ annotations ──▶ their boxes and reports as asked ──construct──▶

What was rejected on the way is in WORKDIR/quarantine.jsonl.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import gc
import os
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from typing import NamedTuple

from ml_collections import ConfigDict

from imax_jax import choices
from imax_jax import progress
from imax_jax.data import builder
from imax_jax.data import construct
from imax_jax.data import manifest
from imax_jax.data import noise
from imax_jax.data import recipe
from imax_jax.data import sources
from imax_jax.data.construct import Datasets
from imax_jax.data.phantom import hospital
from imax_jax.data.sources import mimic_cxr_jpg
from imax_jax.data.sources.intake import DamagedFile
from imax_jax.data.sources.intake import Intake
from imax_jax.ledger import plain
from imax_jax.schema import Annotation
from imax_jax.schema import Radiograph
from imax_jax.schema import Region
from imax_jax.schema import Report
from imax_jax.study import Study
from imax_jax.study import UsageError

QUARANTINE = "quarantine.jsonl"
# What is made of the raw files, by the config's key below `data`.
SOURCES = ("phantom", "physionet", "open", "opencxr", "own")


class Checks(NamedTuple):
  """What MIMIC-CXR-JPG says beside its images; the study makes no task of it.

  Empty where the table is not there.
  """

  official_splits: dict[str, str]  # image id -> train, validate, test
  chexpert: dict[str, dict[str, int | None]]  # study id -> label -> 1, 0, -1, None


class Selection(NamedTuple):
  """What was selected, and what became of every row that was read for it."""

  datasets: Datasets
  intake: Intake
  boxes_cut_off: int  # by the config's geometry
  checks: Checks | None  # where MIMIC-CXR-JPG was read


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
  """Without the search for cycles in what was made so far.

  Millions of annotations have none, and each search walks through them all: a third of
  the time that reading takes.
  """
  was_on = gc.isenabled()
  gc.disable()
  try:
    yield
  finally:
    if was_on:
      gc.enable()


@uncollected()
def select(study: Study, unreadable: Mapping[str, str] | None = None) -> Selection:
  """The entries of all splits.

  Args:
    unreadable: image id -> what is wrong with its file, as writing it has shown; these
      are rejected.

  Raises:
    UsageError: the config names no source, or one that is not there.
    ValueError: too many rows were rejected, or nothing could be constructed of them.
    FileNotFoundError: a source's file is missing.
  """
  d = study.config.data
  roots = roots_of(study)
  intake = Intake(study.workdir / QUARANTINE, max_quarantined=d.max_quarantined)
  options = _options(d, roots)
  try:
    radiographs = sources.read_radiographs(roots, intake=intake, options=options)
    _reject(unreadable or {}, radiographs, roots, intake)
    annotations = list(
      sources.read_all(roots, radiographs, intake=intake, options=options)
    )
    if "nih" in roots and "slake" in roots:
      radiographs = sources.join_doubles(radiographs, annotations)
    _say_coverage(intake, radiographs, annotations)
    checks = _checks(roots, intake)
    intake.finish()
  finally:
    intake.close()
  written = _Written(d, radiographs)
  entries = written.each(_cut_reports(annotations, d.max_report_words))
  if d.recipe:
    made = recipe.select(radiographs, entries, recipe.read_recipe(d.recipe))
  else:
    made = construct.construct(radiographs, entries, **plain(d.construct))
  builder.check_splits(made)
  if d.noise:
    noisy = noise.exchange_answers(made.splits, d.noise, d.construct.seed)
    made = dataclasses.replace(made, splits=noisy)
  return Selection(made, intake, written.cut, checks)


def _reject(
  unreadable: Mapping[str, str],
  radiographs: dict[str, Radiograph],
  roots: Mapping[str, Path],
  intake: Intake,
) -> None:
  for image_id, reason in unreadable.items():
    path = Path(radiographs.pop(image_id).path)
    source = next(name for name, root in roots.items() if path.is_relative_to(root))
    images = intake.tallies.get(f"{source} {sources.IMAGES}") or intake.tallies[source]
    images.reject_image(image_id, path, reason)


def _say_coverage(
  intake: Intake, radiographs: Mapping[str, Any], annotations: Iterable[Annotation]
) -> None:
  """How many images each source speaks of: a table that is cut short speaks of few."""
  images: dict[str, set[str]] = collections.defaultdict(set)
  for annotation in annotations:
    images[annotation.origin.source].add(annotation.image_id)
  for source, tally in intake.tallies.items():
    if tally.unit == "annotations":
      share = f"{len(images[source]):,} of the {len(radiographs):,} radiographs"
      tally.met("speaks of", share)


def _checks(roots: Mapping[str, Path], intake: Intake) -> Checks | None:
  if "mimic_cxr_jpg" not in roots:
    return None
  root = roots["mimic_cxr_jpg"]
  tally = intake.tally("mimic_cxr_jpg", root, part="checks", unit="rows")
  found: list[dict[str, Any]] = []
  for name, read in (
    ("official splits", mimic_cxr_jpg.read_splits),
    ("CheXpert labels", mimic_cxr_jpg.read_labels),
  ):
    found.append({})
    try:
      found[-1] = read(root, tally=tally)
    except FileNotFoundError:
      tally.met(name, "not there: nothing to check against")
    except DamagedFile as error:
      tally.reject_file(error)
  return Checks(*found)


def inputs_of(intake: Intake) -> dict[str, str]:
  """{"chexmask/OriginalResolution/MIMIC-CXR-JPG.csv": SHA-256} of all that was read."""
  paths = {
    f"{tally.dataset}/{tally.name(path)}": path
    for tally in intake.tallies.values()
    for path in tally.inputs
  }
  found = {}
  with progress.bar("hashing the input tables") as tick:
    for done, (name, path) in enumerate(sorted(paths.items()), 1):
      found[name] = manifest.sha256_of(path)
      tick(done, len(paths))
  return found


def roots_of(study: Study) -> dict[str, Path]:
  """Where each source lies; a phantom hospital's are drawn first."""
  d = study.config.data
  choices.check(d)
  if d.source == "phantom":
    return sources.roots_of(_hospital(study) / "files")
  if d.source not in SOURCES:
    raise UsageError(
      f"--config.data.source={d.source}: expected one of {', '.join(SOURCES)}"
    )
  given = {name: Path(place) for name, place in d.roots.items() if place}
  if not d.root and not given:
    raise UsageError(
      f"data source {d.source!r} needs the folder of its files: --config.data.root=FOLDER"
    )
  for place in [*([Path(d.root)] if d.root else []), *given.values()]:
    if not place.exists():
      raise FileNotFoundError(
        f"{place}: no such folder; give the {d.source} files with --config.data.root="
        "FOLDER, or one source's with --config.data.roots.SOURCE=FOLDER"
      )
  if d.root and d.source in ("opencxr", "own"):
    return {d.source: Path(d.root), **given}
  if d.root and d.source == "physionet":
    return _all_of_physionet(d, sources.roots_of(d.root, given) | given)
  if d.root:
    below = {name: Path(d.root, name) for name in sources.OPEN}
    given = {name: place for name, place in below.items() if place.is_dir()} | given
  if not given:
    raise FileNotFoundError(
      f"{d.root}: expected a folder with some of {', '.join(sources.OPEN)} in it"
    )
  return given


def _all_of_physionet(d: ConfigDict, roots: dict[str, Path]) -> dict[str, Path]:
  """`roots` less those that are not wanted.

  Raises:
    FileNotFoundError: a wanted one is not there: a whole task would be missing.
  """
  absent = sources.FOLDERS.keys() - roots.keys() - set(d.without)
  if absent:
    places = ", ".join(f"{name} ({sources.FOLDERS[name]})" for name in sorted(absent))
    raise FileNotFoundError(
      f"{d.root}: not there: {places}. Fetch them, give a folder of another name or "
      "version with --config.data.roots.SOURCE=FOLDER, or do without: "
      f"--config.data.without=\"('{min(absent)}',)\""
    )
  return {name: place for name, place in roots.items() if name not in d.without}


def _hospital(study: Study) -> Path:
  settings, drawn_in = plain(study.config.data.hospital), study.hospital
  if drawn_in is not study.ledger and drawn_in.is_done("hospital"):
    drawn_in.digest("hospital", settings)  # never redrawn under those who share it
    return drawn_in.workdir / "hospital"

  def make(folder: Path) -> None:
    with progress.bar("rendering the phantom hospital") as tick:
      hospital.write_hospital(
        folder / "files", **settings, workers=os.cpu_count() or 1, progress=tick
      )

  shared = drawn_in is not study.ledger
  with drawn_in.lock() if shared else contextlib.nullcontext():
    return drawn_in.station("hospital", settings, make)


def _options(d: ConfigDict, roots: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
  """The readers' keyword arguments: the config's, and how many processes they have."""
  options = {name: dict(given) for name, given in d.options.items() if name in roots}
  for name in ("chexmask", "chexmask_nih", "chexmask_vindr"):
    if name in roots:
      options.setdefault(name, {}).setdefault("workers", choices.workers_of(d))
  return options


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


class _Written:
  """Boxes in the config's geometry, order and scale; counts those that are cut off."""

  def __init__(self, d: ConfigDict, radiographs: Mapping[str, Radiograph]) -> None:
    self._order, self._scale = d.boxes.order, int(d.boxes.scale)
    self._geometry, self._px = choices.geometry_of(d), int(d.image_px)
    self._radiographs = radiographs
    self.cut = 0

  def each(self, annotations: Iterable[Annotation]) -> Iterator[Annotation]:
    plain_boxes = self._geometry.kind == "stretch" and (self._order, self._scale) == (
      "xy",
      1000,
    )
    for a in annotations:
      if plain_boxes or not isinstance(a.target, Region):
        yield a
        continue
      r = self._radiographs[a.image_id]
      box = self._geometry.to_square(a.target.box, r.width, r.height, self._px or 1)
      if box is None:
        self.cut += 1
        continue
      # Pixels are those of the picture that is stored.
      side = self._scale or self._px
      scale = (side, side) if side else (r.width, r.height)
      target = Region(a.target.name, box, scale, self._order)
      yield dataclasses.replace(a, target=target)
