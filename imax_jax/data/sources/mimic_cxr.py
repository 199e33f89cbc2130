"""MIMIC-CXR reports: the text of a study, for each of its frontal images.

The first of these that the folder has is read:

    mimic-cxr-reports.zip     members files/p10/p10000001/s50000001.txt
    files/p10/…               the same, unzipped
    mimic_cxr_sectioned.csv   the official script's output: study,impression,findings,…

or one JSON file instead, told apart by what it holds (`report_files`): XrayGPT's
captions, which read like the target of the paper's Figure 1, or R2Gen's annotation.
"""

from __future__ import annotations

import collections
import itertools
import re
import zipfile
import zlib
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path

from imax_jax.data.sources.files import AGAIN
from imax_jax.data.sources.files import find_file
from imax_jax.data.sources.intake import DamagedFile
from imax_jax.data.sources.intake import Distinct
from imax_jax.data.sources.intake import Tally
from imax_jax.data.sources.mimic_ids import images_by_study
from imax_jax.data.sources.mimic_ids import is_mimic_number
from imax_jax.data.sources.mimic_ids import plain_id
from imax_jax.data.sources.reading import one_line
from imax_jax.data.sources.reading import table_rows
from imax_jax.data.sources.report_files import RULES as FILE_RULES
from imax_jax.data.sources.report_files import read_file
from imax_jax.data.sources.sections import conclusion
from imax_jax.data.sources.sections import exception_text
from imax_jax.data.sources.sections import last_of_each
from imax_jax.schema import Annotation
from imax_jax.schema import Radiograph
from imax_jax.schema import Report

REMEDY = (
  "Point mimic_cxr at the folder of https://physionet.org/content/mimic-cxr/2.1.0/ "
  "(credentialed access); the reports are not part of MIMIC-CXR-JPG."
)
ZIP = "mimic-cxr-reports.zip"
SECTIONED = "mimic_cxr_sectioned.csv"
TEXTS = ("sections", "conclusion")
MIN_FINDINGS_WORDS = 10
MIN_IMPRESSION_WORDS = 2
FILE_RULE = "mimic_cxr/file"
RULES: dict[str, str] = {
  FILE_RULE: "A report is a UTF-8 text of at most a mebibyte, named after its study.",
  "mimic_cxr/sections": "Findings then impression, by the authors' section rules: at "
  f"least {MIN_FINDINGS_WORDS} and {MIN_IMPRESSION_WORDS} words (XrayGPT's filters).",
  "mimic_cxr/conclusion": "The authors' conclusion: the first there is of impression, "
  "findings, last paragraph, comparison; by hand for 54 studies.",
  **FILE_RULES,
}
_MEMBER = re.compile(r"(?:[\w.-]+/)*s?\d+\.txt", re.ASCII)
# The header too, with which the second of two joined tables begins: it is a bad row by
# itself, not the end of the good one before it.
_ROW_START = re.compile(rb"\"?(?:s?\d{8}|study)\"?,")
# The longest report has some 20 kB.
_MAX_REPORT_BYTES = 2**20
_MAX_MEMBERS = 2_000_000
# What `unzip` knows, and what zlib can be told to unpack no more than so much of.
_PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_LOCAL_HEADER_BYTES = 30
_END_BYTES, _END64_BYTES, _LOCATOR_BYTES = 22, 56, 20
# Where a study was read, its id, and its texts by section.
_Study = tuple[tuple[str, int], str, dict[str, str]]


def read(
  root: str | Path,
  radiographs: Mapping[str, Radiograph],
  *,
  text: str = "sections",
  keep_blanks: bool = True,
  tally: Tally | None = None,
) -> Iterator[Annotation]:
  """Yields a study's text, white space collapsed, for every frontal image of it.

  Args:
    root: the release's folder, or a JSON file that `report_files` reads.
    text: "sections": findings and impression, both long enough; the 54 studies without
      sections of their own are left out. "conclusion": the authors' one text.
    keep_blanks: keeps the "___" of de-identification.

  Raises:
    ValueError: another `text`.
    FileNotFoundError: none of the files is there.
    DamagedFile: a zip or a table that can not be read to its end.
  """
  tally = Tally("mimic_cxr") if tally is None else tally
  if text not in TEXTS:
    raise ValueError(f"report text {text!r}: expected one of {TEXTS}")
  if Path(root).suffix == ".json":
    yield from read_file(Path(root), radiographs, tally=tally)
    return
  studies = images_by_study(radiographs)
  rule = f"mimic_cxr/{text}"
  for (file, row), study, found in _studies(Path(root), studies, text, tally):
    words = _sections(found, tally) if text == "sections" else found["conclusion"]
    if words is None:
      continue
    words = one_line(words if keep_blanks else words.replace("___", " "))
    if not words:
      tally.leave_out("no text")
      continue
    origin = tally.origin(file, row, rule)
    for name in studies[study]:
      tally.keep()
      yield Annotation(name, "report", "", Report(words), origin)
  tally.log()


def _sections(found: Mapping[str, str], tally: Tally) -> str | None:
  findings, impression = found.get("findings", ""), found.get("impression", "")
  if "by hand" in found:
    tally.leave_out("one of the 54 studies without sections of their own")
  elif not findings or not impression:
    tally.leave_out("no findings or no impression")
  elif len(findings.split()) < MIN_FINDINGS_WORDS:
    tally.leave_out("findings too short")
  elif len(impression.split()) < MIN_IMPRESSION_WORDS:
    tally.leave_out("impression too short")
  else:
    return f"{findings} {impression}"
  return None


def _studies(
  root: Path, studies: Mapping[str, list[str]], text: str, tally: Tally
) -> Iterator[_Study]:
  # The authors' own table holds no conclusions, and not the 54 studies.
  names = [ZIP, "files", SECTIONED] if text == "sections" else [ZIP, "files"]
  path = root if root.is_file() else find_file(root, names, remedy=REMEDY)
  tally.met("reports read from", path.name)
  if path.name.startswith(SECTIONED):
    tally.opened(path)
    yield from _from_sectioned(path, studies, tally)
    return
  members = _zip_members if path.suffix == ".zip" else _folder_members
  for name, data in members(path, studies, tally):
    study = plain_id(Path(name).stem)
    report = _decoded(name, data, tally)
    if report is not None:
      yield (name, 0), study, _texts(report, study, text)


def _texts(report: str, study: str, text: str) -> dict[str, str]:
  if text == "conclusion":
    return {"conclusion": conclusion(report, study)}
  by_hand = exception_text(report, study)
  return last_of_each(report) if by_hand is None else {"by hand": by_hand}


def _decoded(name: str, data: bytes, tally: Tally) -> str | None:
  if b"\0" in data:
    tally.reject(name, 0, "has a NUL byte", FILE_RULE)
    return None
  try:
    return data.decode("utf-8-sig")
  except UnicodeDecodeError:
    tally.reject(name, 0, "is not UTF-8", FILE_RULE)
    return None


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
    reports = _reports_of(member.filename for member in members)
    several: Distinct[str, bytes] = Distinct(tally)
    for place, member in enumerate(members):
      name = member.orig_filename  # `filename` ends at a NUL
      if member.is_dir():
        continue
      tally.rows += 1
      if not name.endswith(".txt") and "\0" not in name:
        tally.leave_out("a member that is no text")
        continue
      wrong = _wrong_name(name)
      if wrong:  # the name itself may be anything
        tally.reject(tally.name(path), place, wrong, FILE_RULE)
        continue
      study = plain_id(Path(name).stem)
      if member.file_size > _MAX_REPORT_BYTES:
        wrong = "too large for a report"
      elif member.header_offset in overlapping:
        wrong = "overlaps another member"
      if wrong:
        tally.reject(name, 0, wrong, FILE_RULE)
      elif study not in studies:
        tally.leave_out("study without a frontal radiograph here")
      else:
        data = _unpacked(archive, member)
        if data is None:
          tally.reject(name, 0, "cannot be unpacked", FILE_RULE)
        elif reports[study] > 1:
          several.add(study, data, name, 0)
        else:
          yield name, data
    for _, data, name, _ in several.items():
      yield name, data


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


def _unpacked(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes | None:
  """A member's bytes; None if they are encrypted, or not what its check sum says.

  No more is unpacked than a report may have, whatever size the directory gives.
  """
  if member.compress_type not in _PACKED:
    return None
  try:
    with archive.open(member) as file:
      return file.read(_MAX_REPORT_BYTES + 1)
  except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError,
          NotImplementedError):  # fmt: skip
    return None


def _reports_of(names: Iterable[str]) -> collections.Counter[str]:
  """How many files are named after each study."""
  return collections.Counter(
    plain_id(Path(name).stem) for name in names if not _wrong_name(name)
  )


def _wrong_name(name: str) -> str:
  if name.startswith("/") or ".." in name.split("/") or not _MEMBER.fullmatch(name):
    return "a name that is no report's"
  return (
    "" if is_mimic_number(plain_id(Path(name).stem)) else "study id of another form"
  )


def _folder_members(
  path: Path, studies: Mapping[str, list[str]], tally: Tally
) -> Iterator[tuple[str, bytes]]:
  files = sorted(path.glob("p*/p*/s*.txt"))
  if not files:
    raise FileNotFoundError(
      f"{path}: expected reports p10/p10000001/s50000001.txt, found none. {REMEDY}"
    )
  root, reports = path.resolve(), _reports_of(file.name for file in files)
  several: Distinct[str, bytes] = Distinct(tally)
  for place, file in enumerate(files):
    tally.rows += 1
    name = file.relative_to(path.parent).as_posix()
    wrong = _wrong_name(name)
    if wrong:
      tally.reject(path.name, place, wrong, FILE_RULE)
      continue
    study = plain_id(file.stem)
    if not file.resolve().is_relative_to(root):
      wrong = "a link that leads out of its folder"
    elif not file.is_file():
      wrong = "no file"
    elif file.stat().st_size > _MAX_REPORT_BYTES:
      wrong = "too large for a report"
    if wrong:
      tally.reject(name, 0, wrong, FILE_RULE)
    elif study not in studies:
      tally.leave_out("study without a frontal radiograph here")
    elif reports[study] > 1:
      several.add(study, tally.opened(file).read_bytes(), name, 0)
    else:
      yield name, tally.opened(file).read_bytes()
  for _, data, name, _ in several.items():
    yield name, data


def _from_sectioned(
  path: Path, studies: Mapping[str, list[str]], tally: Tally
) -> Iterator[_Study]:
  columns = ("study", "findings", "impression")
  found: Distinct[str, tuple[str, str]] = Distinct(tally)
  for row, (name, *texts) in table_rows(path, columns, tally, row_start=_ROW_START):
    study = plain_id(name)
    if not is_mimic_number(study):
      tally.reject(tally.name(path), row, "study id of another form", FILE_RULE)
    elif study not in studies:
      tally.leave_out("study without a frontal radiograph here")
    else:
      found.add(study, (one_line(texts[0]), one_line(texts[1])), path, row)
  for study, (findings, impression), file, row in found.items():
    yield (file, row), study, {"findings": findings, "impression": impression}
