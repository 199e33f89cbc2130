"""MIMIC-CXR's report files, in their zip or unzipped: names and contents.

A name is judged alike in both: `files/…/s50000001.txt` at any depth is read, what is no
text is left out, any other is rejected. So is what lies, overlaps or leads out.
"""

from __future__ import annotations

import collections
import itertools
import os
import re
import zipfile
import zlib
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from imax_jax.data.sources.files import AGAIN
from imax_jax.data.sources.files import Inside
from imax_jax.data.sources.intake import DamagedFile
from imax_jax.data.sources.intake import Distinct
from imax_jax.data.sources.intake import Tally
from imax_jax.data.sources.mimic_ids import is_mimic_number
from imax_jax.data.sources.mimic_ids import plain_id
from imax_jax.data.sources.published import note_rows

REMEDY = (
  "Point mimic_cxr at the folder of https://physionet.org/content/mimic-cxr/2.1.0/ "
  "(credentialed access); the reports are not part of MIMIC-CXR-JPG."
)
FILE_RULE = "mimic_cxr/file"
_MEMBER = re.compile(r"(?:[\w.-]+/)*s?\d+\.txt", re.ASCII)
# The longest report has some 20 kB.
_MAX_REPORT_BYTES = 2**20
_MAX_MEMBERS = 2_000_000
# What `unzip` knows, and what zlib can be told to unpack no more than so much of.
_PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_LOCAL_HEADER_BYTES = 30
_END_BYTES, _END64_BYTES, _LOCATOR_BYTES = 22, 56, 20


def read_members(
  path: Path, studies: Mapping[str, list[str]], tally: Tally
) -> Iterator[tuple[str, bytes]]:
  """Yields (name, content) of the reports about `studies`, by name.

  Args:
    path: the zip, or the folder `files`.
    studies: by id.

  Raises:
    FileNotFoundError: the folder has no report. DamagedFile: no whole zip of reports.
  """
  if path.suffix == ".zip":
    yield from _zip_members(path, studies, tally)
  else:
    yield from _folder_members(path, studies, tally)


class _Reports:
  """What becomes of the files, wherever they lie, whose names are reports'.

  Attributes:
    number: how many files are named after each study.
  """

  def __init__(
    self, names: Iterable[str], studies: Mapping[str, list[str]], tally: Tally
  ) -> None:
    self.number = collections.Counter(
      plain_id(Path(name).stem) for name in names if not _wrong_name(name)
    )
    self._studies, self._tally = studies, tally
    self._several: Distinct[str, bytes] = Distinct(tally)

  def take(
    self, name: str, wrong: str, read: Callable[[], bytes | str]
  ) -> Iterator[tuple[str, bytes]]:
    """The file if it can be told now that it is used.

    Args:
      wrong: why it is rejected without being read, or "".
      read: gives the content, or why there is none.
    """
    study = plain_id(Path(name).stem)
    if not wrong and study not in self._studies:
      self._tally.leave_out("study without a frontal radiograph here")
      return
    content = wrong or read()
    if isinstance(content, str):
      self._tally.reject(name, 0, content, FILE_RULE)
    elif self.number[study] > 1:
      self._several.add(study, content, name, 0)
    else:
      yield name, content

  def of_several(self) -> Iterator[tuple[str, bytes]]:
    """Of studies with several files, those that agree: once."""
    for _, content, name, _ in self._several.items():
      yield name, content


def _zip_members(
  path: Path, studies: Mapping[str, list[str]], tally: Tally
) -> Iterator[tuple[str, bytes]]:
  """(name, content) of the reports about `studies`, by name; read where they lie."""
  tally.opened(path)
  try:
    archive = zipfile.ZipFile(path)
  except (zipfile.BadZipFile, OSError, ValueError):
    raise DamagedFile(path, "is not a complete zip", AGAIN) from None
  with archive:
    members = sorted(archive.infolist(), key=lambda member: member.filename)
    _check_directory(path, members)
    overlapping = _overlapping(members)
    reports = _Reports((member.filename for member in members), studies, tally)
    note_rows(tally, "reports", reports.number.total())
    for place, member in enumerate(members):
      name = member.orig_filename  # `filename` ends at a NUL
      if member.is_dir() or not _is_report(name, place, path, tally):
        continue
      wrong = ""
      if member.file_size > _MAX_REPORT_BYTES:
        wrong = "too large for a report"
      elif member.header_offset in overlapping:
        wrong = "overlaps another member"
      yield from reports.take(name, wrong, partial(_unpacked, archive, member))
    yield from reports.of_several()


def _check_directory(path: Path, members: Sequence[zipfile.ZipInfo]) -> None:
  """Raises a DamagedFile if members are missing from the archive's directory.

  `zipfile` reads as many as the directory holds, whatever number its end record gives.
  """
  if len(members) > _MAX_MEMBERS:
    raise DamagedFile(path, f"has over {_MAX_MEMBERS} members")
  with path.open("rb") as file:
    size = file.seek(0, 2)
    file.seek(max(0, size - 2**16 - _END_BYTES - _LOCATOR_BYTES - _END64_BYTES))
    tail = file.read()
  end = tail.rfind(b"PK\5\6")
  promised = int.from_bytes(tail[end + 10 : end + 12], "little")
  end64 = end - _LOCATOR_BYTES - _END64_BYTES
  if end64 >= 0 and tail[end64 : end64 + 4] == b"PK\6\6":
    promised = int.from_bytes(tail[end64 + 32 : end64 + 40], "little")
  if promised > len(members) or any(member.header_offset < 0 for member in members):
    raise DamagedFile(path, "is not a complete zip: its directory lacks members", AGAIN)
  if not any(member.filename.endswith(".txt") for member in members):
    raise DamagedFile(path, "has no report files/p10/p10000001/s50000001.txt", AGAIN)


def _overlapping(members: Sequence[zipfile.ZipInfo]) -> set[int]:
  """Where the members begin that reach into another, as in a bomb of few bytes.

  The `zipfile` of some Python releases refuses them by itself, of others it does not.
  """
  places = sorted((m.header_offset, m.compress_size) for m in members)
  return {
    start
    for (start, size), (following, _) in itertools.pairwise(places)
    if start + _LOCAL_HEADER_BYTES + size > following
  }


def _unpacked(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes | str:
  """A member's bytes; or why not: they are encrypted, or not what its check sum says.

  No more is unpacked than a report may have, whatever size the directory gives.
  """
  refused = "cannot be unpacked"
  if member.compress_type not in _PACKED:
    return refused
  try:
    with archive.open(member) as file:
      return file.read(_MAX_REPORT_BYTES + 1)
  except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError,
          NotImplementedError):  # fmt: skip
    return refused


def _is_report(name: str, place: int, path: Path, tally: Tally) -> bool:
  """Counts the `place`-th file of `path`; False: it is left out, or rejected."""
  tally.rows += 1
  if not name.lower().endswith(".txt") and "\0" not in name:
    tally.leave_out("a file that is no text")
    return False
  wrong = _wrong_name(name)
  if wrong:  # the name itself may be anything
    tally.reject(tally.name(path), place, wrong, FILE_RULE)
  return not wrong


def _wrong_name(name: str) -> str:
  if name.startswith("/") or ".." in name.split("/") or not _MEMBER.fullmatch(name):
    return "a name that is no report's"
  return (
    "" if is_mimic_number(plain_id(Path(name).stem)) else "study id of another form"
  )


def _folder_members(
  path: Path, studies: Mapping[str, list[str]], tally: Tally
) -> Iterator[tuple[str, bytes]]:
  names, linked = _names_below(path)
  reports = _Reports(names, studies, tally)
  if not reports.number:
    raise FileNotFoundError(
      f"{path}: expected reports p10/p10000001/s50000001.txt, found none. {REMEDY}"
    )
  note_rows(tally, "reports", reports.number.total())
  leads_inside, above = Inside(path), path.parent
  for place, name in enumerate(names):
    if name in linked:
      tally.rows += 1
      tally.reject(tally.name(path), place, "a link to a folder", FILE_RULE)
      continue
    if not _is_report(name, place, path, tally):
      continue
    file, wrong = f"{above}/{name}", ""
    if not leads_inside(file):
      wrong = "a link that leads out of its folder"
    elif not os.path.isfile(file):
      wrong = "no file"
    elif os.path.getsize(file) > _MAX_REPORT_BYTES:
      wrong = "too large for a report"
    yield from reports.take(name, wrong, partial(_content, Path(file), tally))
  yield from reports.of_several()


def _content(path: Path, tally: Tally) -> bytes | str:
  try:
    data = path.read_bytes()
  except OSError:
    return "may not be read"
  tally.opened(path)
  return data


def _names_below(path: Path) -> tuple[list[str], set[str]]:
  """All files, "files/p10/…", in order; and which of them are links to folders.

  A folder with a report's name counts as a file.

  Raises:
    DamagedFile: a folder may not be read.
  """

  def refuse(error: OSError) -> None:
    raise DamagedFile(path, f"has a folder that cannot be read ({error.strerror})")

  above = len(str(path.parent)) + 1
  names: list[str] = []
  linked: set[str] = set()
  for place, folders, files in os.walk(path, onerror=refuse):
    inner = place[above:]
    names += [f"{inner}/{name}" for name in files]
    for folder in folders:
      name = f"{inner}/{folder}"
      if os.path.islink(f"{place}/{folder}"):
        linked.add(name)
        names.append(name)
      elif not _wrong_name(name):
        names.append(name)
  return sorted(names), linked
