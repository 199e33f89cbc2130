"""CXR-LT 2.0.0: findings present or absent, from the 2024 release or that of 2023.

    cxr-lt-2024/labels.csv           45 labels of all images
    cxr-lt-2024/train_labeled.csv    40 labels; development_…, test_labeled_task1.csv
    cxr-lt-2023/train.csv            26 labels, and development.csv, test.csv

All pool into one; the ten of `FINDINGS` are selected by name, for their order differs
between files. Images are joined by dicom_id; a row's patient and study must be its own
("s50000001" in 2024, 50000001 in 2023).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from collections.abc import Mapping
from pathlib import Path

from imax_jax.data.sources.files import within
from imax_jax.data.sources.intake import Distinct
from imax_jax.data.sources.intake import Tally
from imax_jax.data.sources.mimic_ids import OF_ANOTHER
from imax_jax.data.sources.mimic_ids import identity_columns
from imax_jax.data.sources.mimic_ids import image_id_of
from imax_jax.data.sources.mimic_ids import is_dicom_id
from imax_jax.data.sources.mimic_ids import is_of
from imax_jax.data.sources.options import Choices
from imax_jax.data.sources.options import check_choices
from imax_jax.data.sources.published import note_rows
from imax_jax.data.sources.reading import table_header
from imax_jax.data.sources.reading import table_rows
from imax_jax.schema import FINDINGS
from imax_jax.schema import Annotation
from imax_jax.schema import Bits
from imax_jax.schema import Radiograph

REMEDY = (
  "Point cxr_lt at the folder of https://physionet.org/content/"
  "cxr-lt-iccv-workshop-cvamd/2.0.0/ (credentialed access)."
)
RULE = "cxr_lt/bits"
IDENTITY_RULE = "cxr_lt/identity"
RULES: dict[str, str] = {
  RULE: "The ten columns named as the paper's findings, each 0 or 1. The labels are a "
  "study's, mined from its report, and copied to each of its images.",
  IDENTITY_RULE: "Where a row has subject_id or study_id, they are those of its image.",
}
# Of each: the files of a release, each by the names it has had.
Release = tuple[tuple[str, ...], ...]
RELEASES: dict[str, tuple[Release, ...]] = {
  "2024": (
    (("cxr-lt-2024/labels.csv", "labels.csv"),),
    (
      ("cxr-lt-2024/train_labeled.csv", "train_labeled.csv"),
      ("cxr-lt-2024/development_labeled_task1.csv", "development_labeled_task1.csv",
       "cxr-lt-2024/development.csv", "development.csv"),
      ("cxr-lt-2024/test_labeled_task1.csv", "test_labeled_task1.csv",
       "cxr-lt-2024/test.csv", "test.csv"),
    ),
  ),
  "2023": (
    (
      ("cxr-lt-2023/train.csv", "train.csv"),
      ("cxr-lt-2023/development.csv", "development.csv"),
      ("cxr-lt-2023/test.csv", "test.csv"),
    ),
  ),
}  # fmt: skip
CHOICES: Choices = {"release": ("", *RELEASES)}
_BITS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1}


def check_options(**options: object) -> None:
  """Raises a ValueError if `read` does not take them."""
  check_choices("cxr_lt", CHOICES, options)


def label_files(root: str | Path, release: str = "") -> list[Path]:
  """The label files of `release`, "2024" or "2023"; "": the newest that is there.

  Raises:
    ValueError: as `check_options`.
    FileNotFoundError: there is none.
  """
  check_options(release=release)
  places = [Path(root)]
  if Path(root).is_dir():  # an unzipped release sits one folder deeper
    places += sorted(path for path in Path(root).iterdir() if path.is_dir())
  for files in [f for r in RELEASES if release in ("", r) for f in RELEASES[r]]:
    for place in places:
      paths = [_first(Path(root), place, names) for names in files]
      if paths[0] is not None:
        return [path for path in paths if path is not None]
  wanted = "cxr-lt-2024/labels.csv, cxr-lt-2024/train_labeled.csv"
  wanted = {"2024": wanted, "2023": "cxr-lt-2023/train.csv"}.get(
    release, f"{wanted} or cxr-lt-2023/train.csv"
  )
  raise FileNotFoundError(f"{root}: expected {wanted}, not there. {REMEDY}")


def _first(root: Path, place: Path, names: tuple[str, ...]) -> Path | None:
  for name in names:
    for candidate in (name, f"{name}.gz"):
      if (place / candidate).is_file():
        return within(root, place / candidate)
  return None


def read(
  root: str | Path,
  radiographs: Mapping[str, Radiograph],
  *,
  release: str = "",
  tally: Tally | None = None,
) -> Iterator[Annotation]:
  """Yields one `Bits` over the ten `FINDINGS` an image.

  Raises:
    ValueError, FileNotFoundError: as `label_files`.
    DamagedFile: a file lacks some of the ten labels, or can not be read to its end.
  """
  tally = Tally("cxr_lt") if tally is None else tally
  labels: Distinct[str, Bits] = Distinct(tally)
  bits_of = functools.cache(_bits)  # few of the 1,024 combinations occur
  paths = label_files(root, release)
  tally.met("label files", ", ".join(tally.name(path) for path in paths))
  before = tally.rows
  for place, path in enumerate(paths):
    header = table_header(tally.opened(path))
    if place and not set(FINDINGS) & set(header):
      tally.met(tally.name(path), "carries no labels and is passed over")
      continue
    file, whose = tally.name(path), identity_columns(header)
    first = 1 + len(whose)
    for row, cells in table_rows(path, ("dicom_id", *whose, *FINDINGS), tally):
      name, bits = image_id_of(cells[0]), bits_of(cells[first:])
      known = name in radiographs
      if not known and not is_dicom_id(name):
        tally.reject(file, row, "image id of the wrong form", RULE)
      elif bits is None:
        tally.reject(file, row, "label not 0 or 1", RULE)
      elif not known:
        tally.absent(name)
      elif not is_of(radiographs[name], whose, cells[1:first]):
        tally.reject(file, row, OF_ANOTHER, IDENTITY_RULE)
      else:
        labels.add(name, bits, file, row)
  note_rows(tally, "label files", tally.rows - before)
  for name, bits, file, row in labels.items():
    tally.keep()
    yield Annotation(name, "multi_label", "", bits, tally.origin(file, row, RULE))
  tally.log()


def _bits(cells: tuple[str, ...]) -> Bits | None:
  if any(cell not in _BITS for cell in cells):
    return None
  return Bits(tuple([_BITS[cell] for cell in cells]))
