"""A user's own radiographs: a folder of images and one table of annotations.

    FOLDER/annotations.csv       or annotations.jsonl, a row an annotation
    FOLDER/…/film.png            PNG, JPEG, BMP, GIF, WebP or DICOM, anywhere below

`own_rows` reads the table, `own_answers` says what its rows mean. Only images that a row
names are read, and of these the header alone. `image` is the path below FOLDER; `patient`
should be given: without it nothing keeps a patient's images out of both train and test.
Rows of one image need give its patient, study and view once.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator
from collections.abc import Mapping
from pathlib import Path
from pathlib import PurePosixPath
from typing import Any

from imax_jax.data import dicom
from imax_jax.data.sources.dicom_header import size_and_view
from imax_jax.data.sources.files import inside
from imax_jax.data.sources.intake import DamagedFile
from imax_jax.data.sources.intake import Distinct
from imax_jax.data.sources.intake import Tally
from imax_jax.data.sources.own_answers import RULES as ANSWER_RULES
from imax_jax.data.sources.own_answers import Said
from imax_jax.data.sources.own_answers import targets
from imax_jax.data.sources.own_rows import REMEDY as REMEDY
from imax_jax.data.sources.own_rows import Row
from imax_jax.data.sources.own_rows import find
from imax_jax.data.sources.own_rows import rows as rows_in
from imax_jax.data.sources.pictures import size_of
from imax_jax.data.sources.reading import one_line
from imax_jax.schema import Annotation
from imax_jax.schema import Radiograph

RULE = "own/image"
RULES: dict[str, str] = {
  RULE: "An image is named by its path below the folder and is a PNG, JPEG, BMP, GIF, "
  "WebP or DICOM file. Its rows agree on its patient, study and view; an image without "
  "a patient is a patient of its own.",
} | ANSWER_RULES
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP")
_ABOUT = ("patient", "study", "view")
_MARK_BYTES = 132  # a DICOM file's preamble and mark


def read_radiographs(
  root: str | Path, *, tally: Tally | None = None
) -> dict[str, Radiograph]:
  """The images that rows name, by their path below `root`, in the order of the rows.

  Raises:
    FileNotFoundError: there is no annotation file.
    DamagedFile: there are two, or it can not be read (`rows_in`).
    ValueError: a DICOM file, and pydicom is not installed.
  """
  tally = Tally("own images") if tally is None else tally
  path = find(root, tally)
  rows_of: dict[str, list[tuple[int, Row]]] = {}
  seen = Tally("own images")  # `read` meets the rows again, and lists the bad ones
  for number, row in rows_in(path, seen):
    rows_of.setdefault(_image_id(row), []).append((number, row))
  tally.add(seen)
  radiographs: dict[str, Radiograph] = {}
  named = 0
  for name, rows in rows_of.items():
    try:
      file = _file(Path(root), name)
      about = _about([row for _, row in rows])
      radiographs[name] = _radiograph(name, file, about)
      named += bool(about["patient"])
    except DamagedFile as error:
      for number, _ in rows:
        tally.reject(tally.name(path), number, error.reason, RULE)
  tally.met("patients", _patients_known(named, len(radiographs)))
  tally.keep(len(radiographs))
  tally.log()
  return radiographs


def _patients_known(named: int, images: int) -> str:
  if named == images:
    return f"named for all {images} images"
  return (
    f"named for {named} of {images} images; every other image counts as a patient of its "
    "own, so train and test may have images of the same patient"
  )


def _image_id(row: Row) -> str:
  """ "p1\\film.png", "./p1/film.png" -> "p1/film.png"; "" for what is no path."""
  image = row.get("image", "")
  if not isinstance(image, str) or not image:
    return ""
  return str(PurePosixPath(image.replace("\\", "/")))


def _about(rows: list[Row]) -> dict[str, str]:
  """An image's patient, study and view, "" where no row says.

  Raises:
    DamagedFile: two rows say different things.
  """
  said: dict[str, set[str]] = {column: set() for column in _ABOUT}
  for row in rows:
    for column in said.keys() & row.keys():
      said[column].add(_plain(row[column]))
  said["view"] = {view.upper() for view in said["view"]}
  for column, values in said.items():
    if len(values) > 1:
      raise DamagedFile("", f"rows of one image differ in its {column}")
  return {column: next(iter(values), "") for column, values in said.items()}


def _plain(value: Any) -> str:
  """An id or view; JSON may have it as a number.

  Raises:
    DamagedFile: it is something else.
  """
  if isinstance(value, bool) or not isinstance(value, str | int):
    raise DamagedFile("", "patient, study or view neither text nor whole number")
  return one_line(str(value))


def _file(root: Path, name: str) -> Path:
  """An image's file.

  Raises:
    DamagedFile: its path leads out of `root`, or no file is there.
  """
  if not name:
    raise DamagedFile(root, "image empty or no text")
  path = inside(root, name)
  if not path.is_file():
    raise DamagedFile(path, "image file absent")
  return path


def _radiograph(name: str, path: Path, about: Mapping[str, str]) -> Radiograph:
  """Reads an image's header.

  Raises:
    DamagedFile: it has none that can be read.
  """
  try:
    with path.open("rb") as file:
      is_dicom = dicom.is_dicom(file.read(_MARK_BYTES))
  except OSError:
    raise DamagedFile(path, "image file may not be read") from None
  view = about["view"]
  if is_dicom:
    width, height, header_view = size_and_view(path)
    view = view or header_view.upper()
  else:
    width, height = size_of(path, FORMATS)
  patient = about["patient"] or name
  study = f"{patient}/{about['study']}" if about["study"] else name
  return Radiograph(name, study, patient, view, width, height, str(path))


def read(
  root: str | Path,
  radiographs: Mapping[str, Radiograph],
  *,
  tally: Tally | None = None,
) -> Iterator[Annotation]:
  """Yields what the rows say of `radiographs`; a row "box" gives a "rec" and a "reg".

  Raises:
    FileNotFoundError, DamagedFile: as `read_radiographs`.
  """
  tally = Tally("own") if tally is None else tally
  path = find(root, tally)
  found: Distinct[tuple[str, str, object], tuple[str, Said]] = Distinct(tally)
  for number, row in rows_in(path, tally):
    name = _image_id(row)
    if name not in radiographs:
      tally.absent(name)
      continue
    radiograph = radiographs[name]
    rule, said = targets(row, (radiograph.width, radiograph.height))
    if isinstance(said, str):
      tally.reject(tally.name(path), number, said, rule)
      continue
    for one in said:
      found.add((name, one.task, one.about), (rule, one), path, number)
  boxes = collections.Counter(
    (name, one.subtask) for (name, task, _), (_, one), _, _ in found.items()
    if task == "rec"
  )  # fmt: skip
  for (name, task, _), (rule, one), _, number in found.items():
    if task == "rec" and boxes[name, one.subtask] > 1:
      tally.leave_out("rec: several boxes of one name")
      continue
    tally.keep()
    origin = tally.origin(path, number, rule)
    yield Annotation(name, task, one.subtask, one.target, origin)
  tally.log()
