"""CXR-LT 2.0.0: findings present or absent, from the 2024 release or that of 2023.

    cxr-lt-2024/labels.csv           45 labels of all images
    cxr-lt-2024/train_labeled.csv    40 labels; development_…, test_labeled_task1.csv
    cxr-lt-2023/train.csv            26 labels, and development.csv, test.csv

All pool into one; the ten of `FINDINGS` are selected by name, for their order differs
between files. Study ids are "s50000001" in 2024 and 50000001 in 2023; images are
joined by dicom_id alone, so neither matters.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping
from pathlib import Path

from absl import logging

from imax_jax.data.sources.reading import NOT_FRONTAL
from imax_jax.data.sources.reading import Counts
from imax_jax.data.sources.reading import image_id_of
from imax_jax.data.sources.reading import log_counts
from imax_jax.data.sources.reading import table_header
from imax_jax.data.sources.reading import table_rows
from imax_jax.schema import FINDINGS
from imax_jax.schema import Annotation
from imax_jax.schema import Bits
from imax_jax.schema import Origin
from imax_jax.schema import Radiograph

REMEDY = (
  "Point cxr_lt at the folder of https://physionet.org/content/"
  "cxr-lt-iccv-workshop-cvamd/2.0.0/ (credentialed access)."
)
# The first release of which the first file exists is read, with the others it has.
RELEASES: tuple[tuple[tuple[str, ...], ...], ...] = (
  (("cxr-lt-2024/labels.csv", "labels.csv"),),
  (
    ("cxr-lt-2024/train_labeled.csv", "train_labeled.csv"),
    ("cxr-lt-2024/development_labeled_task1.csv", "development_labeled_task1.csv",
     "cxr-lt-2024/development.csv", "development.csv"),
    ("cxr-lt-2024/test_labeled_task1.csv", "test_labeled_task1.csv",
     "cxr-lt-2024/test.csv", "test.csv"),
  ),
  (
    ("cxr-lt-2023/train.csv", "train.csv"),
    ("cxr-lt-2023/development.csv", "development.csv"),
    ("cxr-lt-2023/test.csv", "test.csv"),
  ),
)  # fmt: skip
_BITS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1}


def label_files(root: str | Path) -> list[Path]:
  """The label files of the best release that `root` or a folder in it holds.

  Raises:
    FileNotFoundError: there is none.
  """
  places = [Path(root)]
  if Path(root).is_dir():  # an unzipped release sits one folder deeper
    places += sorted(path for path in Path(root).iterdir() if path.is_dir())
  for release in RELEASES:
    for place in places:
      paths = [_first(place, names) for names in release]
      if paths[0] is not None:
        return [path for path in paths if path is not None]
  raise FileNotFoundError(
    f"{root}: expected cxr-lt-2024/labels.csv, cxr-lt-2024/train_labeled.csv or "
    f"cxr-lt-2023/train.csv, which are not there. {REMEDY}"
  )


def _first(place: Path, names: tuple[str, ...]) -> Path | None:
  for name in names:
    for path in (place / name, place / f"{name}.gz"):
      if path.is_file():
        return path
  return None


def read(
  root: str | Path,
  radiographs: Mapping[str, Radiograph],
  *,
  counts: Counts | None = None,
) -> Iterator[Annotation]:
  """Yields one `Bits` over the ten `FINDINGS` an image.

  Raises:
    FileNotFoundError: no label file.
    ValueError: a file lacks some of the ten labels, or is damaged.
  """
  counts = Counts() if counts is None else counts
  given: set[str] = set()
  for place, path in enumerate(label_files(root)):
    if place and not set(FINDINGS) & set(table_header(path)):
      logging.info("cxr_lt: %s carries no labels and is passed over", path.name)
      continue
    for row, (dicom, *cells) in table_rows(path, ("dicom_id", *FINDINGS)):
      name = image_id_of(dicom)
      if name not in radiographs:
        counts[NOT_FRONTAL] += 1
      elif name in given:
        counts["repeated image id"] += 1
      elif any(cell not in _BITS for cell in cells):
        counts["label not 0 or 1"] += 1
      else:
        given.add(name)
        counts["kept"] += 1
        bits = Bits(tuple(_BITS[cell] for cell in cells))
        yield Annotation(name, "multi_label", "", bits, Origin(path.name, row))
  log_counts("cxr_lt", counts)
