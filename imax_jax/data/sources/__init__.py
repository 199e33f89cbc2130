"""The raw datasets, read in their own formats: one file a source.

Each source has `read(root, radiographs, tally=…, …) -> Iterator[Annotation]`; those
that bring images have `read_radiographs(root, tally=…) -> {image id: Radiograph}`. A
source whose key is absent from `roots` is not read.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from typing import NamedTuple

from imax_jax.data.sources import cardiomegaly
from imax_jax.data.sources import chexmask
from imax_jax.data.sources import cxr_lt
from imax_jax.data.sources import intake as intake_lib
from imax_jax.data.sources import jsrt
from imax_jax.data.sources import mimic_cxr
from imax_jax.data.sources import mimic_cxr_jpg
from imax_jax.data.sources import montgomery
from imax_jax.data.sources import nih
from imax_jax.data.sources import opencxr
from imax_jax.data.sources import openi
from imax_jax.data.sources import own
from imax_jax.data.sources import pe_severity
from imax_jax.data.sources import shenzhen
from imax_jax.data.sources import slake
from imax_jax.data.sources import vindr
from imax_jax.data.sources import vqa
from imax_jax.data.sources import vqa_rad
from imax_jax.data.sources.intake import DamagedFile
from imax_jax.data.sources.intake import Intake
from imax_jax.data.sources.slake_doubles import find_doubles
from imax_jax.data.sources.slake_doubles import join_patients
from imax_jax.schema import Annotation
from imax_jax.schema import Radiograph

Roots = Mapping[str, str | Path]
# {source: keyword arguments of its reader}
Options = Mapping[str, Mapping[str, Any]]


class Source(NamedTuple):
  """A source's readers, and where PhysioNet's layout has it ("": it is elsewhere)."""

  read: Callable[..., Iterator[Annotation]] | None
  read_radiographs: Callable[..., dict[str, Radiograph]] | None = None
  folder: str = ""
  check_options: Callable[..., None] | None = None  # of `read`'s values


SOURCES: dict[str, Source] = {
  "mimic_cxr_jpg": Source(
    None, mimic_cxr_jpg.read_radiographs, folder="mimic-cxr-jpg/2.1.0"
  ),
  "cardiomegaly": Source(
    cardiomegaly.read,
    folder="cxr-cardiomegaly/1.0.0",
    check_options=cardiomegaly.check_options,
  ),
  "mimic_cxr": Source(
    mimic_cxr.read, folder="mimic-cxr/2.1.0", check_options=mimic_cxr.check_options
  ),
  "pe_severity": Source(pe_severity.read, folder="mimic-cxr-pe-severity/1.0.1"),
  "cxr_lt": Source(
    cxr_lt.read,
    folder="cxr-lt-iccv-workshop-cvamd/2.0.0",
    check_options=cxr_lt.check_options,
  ),
  "chexmask": Source(
    chexmask.read,
    folder="chexmask-cxr-segmentation-data/1.0.0",
    check_options=chexmask.check_options,
  ),
  "vqa": Source(
    vqa.read, folder="mimic-ext-mimic-cxr-vqa/1.0.0", check_options=vqa.check_options
  ),
  "opencxr": Source(opencxr.read, opencxr.read_radiographs),
  "own": Source(own.read, own.read_radiographs),
  # The open route: each on its original layout.
  "nih": Source(nih.read, nih.read_radiographs),
  "chexmask_nih": Source(functools.partial(chexmask.read, of="nih", ratios=True)),
  "openi": Source(openi.read, openi.read_radiographs),
  "vqa_rad": Source(vqa_rad.read, vqa_rad.read_radiographs),
  "slake": Source(slake.read, slake.read_radiographs),
  "vindr": Source(vindr.read, vindr.read_radiographs),
  "chexmask_vindr": Source(functools.partial(chexmask.read, of="vindr", ratios=True)),
  "jsrt": Source(jsrt.read, jsrt.read_radiographs),
  "montgomery": Source(montgomery.read, montgomery.read_radiographs),
  "shenzhen": Source(shenzhen.read, shenzhen.read_radiographs),
}
FOLDERS: dict[str, str] = {
  name: source.folder for name, source in SOURCES.items() if source.folder
}
# What the rule of an `Origin` says, in words.
RULES: dict[str, str] = {
  rule: words
  for module in (
    intake_lib, mimic_cxr_jpg, cardiomegaly, mimic_cxr, pe_severity, cxr_lt, chexmask,
    vqa, opencxr, own, nih, openi, vqa_rad, slake, vindr, jsrt, montgomery, shenzhen,
  )
  for rule, words in module.RULES.items()
}  # fmt: skip


# Which may lie beside one another in a folder, each under its own name.
OPEN: tuple[str, ...] = (
  "nih", "chexmask_nih", "openi", "vqa_rad", "slake", "vindr", "chexmask_vindr", "jsrt",
  "montgomery", "shenzhen",
)  # fmt: skip
# The part of a source's tally that is its images', where it has annotations as well.
IMAGES = "images"
# Tables are looked for no deeper than mimic-cxr-jpg/2.1.0/files/p10.
_DEPTH = 3
_TABLES = (".csv", ".gz", ".json", ".jsonl", ".zip", ".tgz", ".xml", ".txt")


def roots_of(folder: str | Path, given: Collection[str] = ()) -> dict[str, Path]:
  """The roots of a folder in PhysioNet's layout (`wget` makes physionet.org/files).

  A phantom hospital has all seven; of real downloads those that are there are given.
  MIMIC-CXR-JPG may be absent where it is `given` otherwise.

  Raises:
    FileNotFoundError: MIMIC-CXR-JPG, which gives the images, is not there.
  """
  places = [Path(folder), Path(folder, "physionet.org/files"), Path(folder, "files")]
  for place in places:
    roots = {name: place / path for name, path in FOLDERS.items()}
    found = [root for root in roots.values() if root.is_dir()]
    if roots["mimic_cxr_jpg"].is_dir() or (found and "mimic_cxr_jpg" in given):
      return {name: root for name, root in roots.items() if root.is_dir()}
  raise FileNotFoundError(
    f"{folder}: expected a folder with {FOLDERS['mimic_cxr_jpg']} in it (PhysioNet's "
    "layout), which is not there. Write a phantom hospital there, or give each "
    "source's root by its name."
  )


def stamps(roots: Roots) -> list[list[Any]]:
  """[source, file, bytes, time of last change] of every table: whether one is another.

  Of each root that is not "" also [source, its path, 0, 0]. Files that lie deeper (images, unzipped
  reports) are not looked at.
  """
  found = []
  for name, root in sorted(roots.items()):
    if not root:
      continue
    place = Path(root).resolve()
    found.append([name, str(place), 0, 0])
    paths = [place] if place.is_file() else _tables(place, _DEPTH)
    for path in paths:
      stat, file = path.stat(), path.relative_to(place).as_posix()
      found.append([name, file, stat.st_size, stat.st_mtime_ns])
  return sorted(found)


def _tables(folder: Path, depth: int) -> Iterator[Path]:
  with os.scandir(folder) as entries:
    for entry in entries:
      if entry.is_dir():
        if depth > 1:
          yield from _tables(Path(entry.path), depth - 1)
      elif entry.name.endswith(_TABLES) and entry.is_file():
        yield Path(entry.path)


def join_doubles(
  radiographs: Mapping[str, Radiograph], annotations: Iterable[Annotation]
) -> dict[str, Radiograph]:
  """SLAKE's radiographs that are NIH's under another name become NIH's patients'."""
  of: dict[str, list[Annotation]] = {"slake": [], "nih": []}
  for annotation in annotations:
    if annotation.origin.source in of:
      of[annotation.origin.source].append(annotation)
  return join_patients(radiographs, find_doubles(of["slake"], of["nih"]))


def read_radiographs(
  roots: Roots, *, intake: Intake | None = None, options: Options | None = None
) -> dict[str, Radiograph]:
  """All radiographs of `roots`, by image id.

  With an `intake` a damaged file is listed in its quarantine and the next source is
  read; `intake.finish()` then says so. Without one it is raised.

  Raises:
    ValueError: an unknown source or option, none that gives images, one image id in two
      sources, or a damaged file.
    FileNotFoundError: a file of a source is missing.
  """
  chosen = _arguments(options)
  _check(roots)
  radiographs: dict[str, Radiograph] = {}
  for name, source in SOURCES.items():
    if name not in roots or source.read_radiographs is None:
      continue
    part = IMAGES if source.read else ""
    tally = (intake or Intake()).tally(name, roots[name], part=part, unit="images")
    arguments = chosen.get((name, "read_radiographs"), {})
    try:
      found = source.read_radiographs(roots[name], tally=tally, **arguments)
    except DamagedFile as error:
      if intake is None:
        raise
      tally.reject_file(error)
      tally.log()
      continue
    twice = radiographs.keys() & found.keys()
    if twice:
      raise ValueError(
        f"{name}: {len(twice)} image ids are another source's too, such as "
        f"{min(twice)!r}; read the two apart"
      )
    radiographs |= found
  return radiographs


def read_all(
  roots: Roots,
  radiographs: Mapping[str, Radiograph],
  *,
  intake: Intake | None = None,
  options: Options | None = None,
) -> Iterator[Annotation]:
  """Every annotation of every source in `roots`, source after source.

  A damaged file is listed or raised as by `read_radiographs`. A source whose images
  could not be read for one is passed over: it is listed already.

  Args:
    options: {"mimic_cxr": {"text": "conclusion"}}: keyword arguments of the readers.

  Raises:
    ValueError, FileNotFoundError: as `read_radiographs`, when the source is reached.
  """
  chosen = _arguments(options)
  _check(roots)
  for name, source in SOURCES.items():
    if name not in roots or source.read is None:
      continue
    tally = (intake or Intake()).tally(name, roots[name])
    images = intake.tallies.get(f"{name} {IMAGES}") if intake is not None else None
    if images is not None and images.damaged_files:
      continue
    arguments = chosen.get((name, "read"), {})
    try:
      yield from source.read(roots[name], radiographs, tally=tally, **arguments)
    except DamagedFile as error:
      if intake is None:
        raise
      tally.reject_file(error)
      tally.log()


def check_options(options: Options) -> None:
  """Raises a ValueError for an option that no reader has, or a value that it refuses."""
  for (name, reader), given in _arguments(options).items():
    check = SOURCES[name].check_options
    if check is not None and reader == "read":
      try:
        check(**given)
      except ValueError as error:
        raise ValueError(f"options.{name}: {error}") from None


def _arguments(options: Options | None) -> dict[tuple[str, str], dict[str, Any]]:
  """{(source, "read" or "read_radiographs"): keyword arguments}."""
  found: dict[tuple[str, str], dict[str, Any]] = {}
  for name, given in (options or {}).items():
    if name not in SOURCES:
      raise ValueError(f"options: unknown source {name!r}; expected {list(SOURCES)}")
    known: dict[str, str] = {}
    for reader in ("read", "read_radiographs"):
      known |= dict.fromkeys(_keywords(getattr(SOURCES[name], reader)), reader)
    for key, value in given.items():
      if key not in known:
        raise ValueError(f"options of {name}: no {key!r}; expected {sorted(known)}")
      found.setdefault((name, known[key]), {})[key] = value
  return found


def _keywords(reader: Callable[..., Any] | None) -> list[str]:
  if reader is None:
    return []
  parameters = inspect.signature(reader).parameters.values()
  return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "tally"]


def _check(roots: Roots) -> None:
  unknown = sorted(set(roots) - set(SOURCES))
  if unknown:
    raise ValueError(f"roots: unknown source {unknown}; expected some of {[*SOURCES]}")
  giving = [name for name, source in SOURCES.items() if source.read_radiographs]
  if not set(giving) & set(roots):
    raise ValueError(
      f"roots: {sorted(roots)} give no images; add one of {', '.join(giving)}"
    )
