"""The raw datasets, read in their own formats: one file a source.

Each source has `read(root, radiographs) -> Iterator[Annotation]`; MIMIC-CXR-JPG gives
the radiographs. A source whose key is absent from `roots` is not read.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path

from imax_jax.data.sources import cardiomegaly
from imax_jax.data.sources import chexmask
from imax_jax.data.sources import cxr_lt
from imax_jax.data.sources import mimic_cxr
from imax_jax.data.sources import mimic_cxr_jpg
from imax_jax.data.sources import opencxr
from imax_jax.data.sources import pe_severity
from imax_jax.data.sources import vqa
from imax_jax.schema import Annotation
from imax_jax.schema import Radiograph

Roots = Mapping[str, str | Path]
Reader = Callable[[str | Path, Mapping[str, Radiograph]], Iterator[Annotation]]

# PhysioNet's slug and version of each source, which is also its folder.
FOLDERS: dict[str, str] = {
  "mimic_cxr_jpg": "mimic-cxr-jpg/2.1.0",
  "mimic_cxr": "mimic-cxr/2.1.0",
  "cardiomegaly": "cxr-cardiomegaly/1.0.0",
  "pe_severity": "mimic-cxr-pe-severity/1.0.1",
  "cxr_lt": "cxr-lt-iccv-workshop-cvamd/2.0.0",
  "chexmask": "chexmask-cxr-segmentation-data/1.0.0",
  "vqa": "mimic-ext-mimic-cxr-vqa/1.0.0",
}
READERS: dict[str, Reader] = {
  "cardiomegaly": cardiomegaly.read,
  "mimic_cxr": mimic_cxr.read,
  "pe_severity": pe_severity.read,
  "cxr_lt": cxr_lt.read,
  "chexmask": chexmask.read,
  "vqa": vqa.read,
}


def roots_of(folder: str | Path) -> dict[str, Path]:
  """The roots of a folder in PhysioNet's layout (`wget` makes physionet.org/files).

  A phantom hospital has all seven; of real downloads those that are there are given.

  Raises:
    FileNotFoundError: MIMIC-CXR-JPG, which gives the images, is not there.
  """
  places = [Path(folder), Path(folder, "physionet.org/files"), Path(folder, "files")]
  for place in places:
    roots = {name: place / path for name, path in FOLDERS.items()}
    if roots["mimic_cxr_jpg"].is_dir():
      return {name: root for name, root in roots.items() if root.is_dir()}
  raise FileNotFoundError(
    f"{folder}: expected a folder with {FOLDERS['mimic_cxr_jpg']} in it (PhysioNet's "
    "layout), which is not there. Write a phantom hospital there, or give each "
    "source's root by its name."
  )


def read_radiographs(roots: Roots) -> dict[str, Radiograph]:
  """All radiographs of `roots`, by image id.

  Raises:
    ValueError: an unknown source, or none that gives images.
    FileNotFoundError: a file of a source is missing.
  """
  _check(roots)
  radiographs: dict[str, Radiograph] = {}
  if "mimic_cxr_jpg" in roots:
    radiographs |= mimic_cxr_jpg.read_radiographs(roots["mimic_cxr_jpg"])
  if "opencxr" in roots:
    radiographs |= opencxr.read_radiographs(roots["opencxr"])
  return radiographs


def read_all(
  roots: Roots,
  radiographs: Mapping[str, Radiograph],
  *,
  layers: Sequence[str] = ("native",),
) -> Iterator[Annotation]:
  """Every annotation of every source in `roots`, source after source.

  `layers` are opencxr's: "native", "derived" and "pseudo" annotations are kept apart.

  Raises:
    ValueError, FileNotFoundError: as `read_radiographs`, when the source is reached.
  """
  _check(roots)
  for name, read in READERS.items():
    if name in roots:
      yield from read(roots[name], radiographs)
  if "opencxr" in roots:
    yield from opencxr.read(roots["opencxr"], radiographs, layers=layers)


def _check(roots: Roots) -> None:
  known = [*FOLDERS, "opencxr"]
  unknown = sorted(set(roots) - set(known))
  if unknown:
    raise ValueError(f"roots: unknown source {unknown}; expected some of {known}")
  if not {"mimic_cxr_jpg", "opencxr"} & set(roots):
    raise ValueError(
      f"roots: {sorted(roots)} give no images; add mimic_cxr_jpg or opencxr"
    )
