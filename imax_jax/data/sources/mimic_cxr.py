"""MIMIC-CXR reports: the text of a study, for each of its frontal images.

The first of these that the folder has is read:

    mimic-cxr-reports.zip     members files/p10/p10000001/s50000001.txt
    files/p10/…               the same, unzipped
    mimic_cxr_sectioned.csv   the official script's output: study,impression,findings,…

or one JSON file instead, told apart by what it holds (`report_files`): XrayGPT's
captions, which read like the target of the paper's Figure 1, or R2Gen's annotation.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from collections.abc import Mapping
from pathlib import Path

from imax_jax.data.sources.files import find_file
from imax_jax.data.sources.intake import Distinct
from imax_jax.data.sources.intake import Tally
from imax_jax.data.sources.mimic_ids import images_by_study
from imax_jax.data.sources.mimic_ids import is_mimic_number
from imax_jax.data.sources.mimic_ids import plain_id
from imax_jax.data.sources.options import Choices
from imax_jax.data.sources.options import check_choices
from imax_jax.data.sources.reading import one_line
from imax_jax.data.sources.reading import table_rows
from imax_jax.data.sources.report_files import RULES as FILE_RULES
from imax_jax.data.sources.report_files import read_file
from imax_jax.data.sources.report_members import FILE_RULE
from imax_jax.data.sources.report_members import REMEDY as REMEDY
from imax_jax.data.sources.report_members import read_members
from imax_jax.data.sources.sections import conclusion
from imax_jax.data.sources.sections import exception_text
from imax_jax.data.sources.sections import last_of_each
from imax_jax.schema import Annotation
from imax_jax.schema import Radiograph
from imax_jax.schema import Report

ZIP = "mimic-cxr-reports.zip"
SECTIONED = "mimic_cxr_sectioned.csv"
TEXTS = ("sections", "conclusion")
MIN_FINDINGS_WORDS = 10
MIN_IMPRESSION_WORDS = 2
CHOICES: Choices = {"text": TEXTS, "keep_blanks": (True, False)}
RULES: dict[str, str] = {
  FILE_RULE: "A report is a UTF-8 text of at most a mebibyte, named after its study.",
  "mimic_cxr/sections": "Findings then impression, by the authors' section rules: at "
  f"least {MIN_FINDINGS_WORDS} and {MIN_IMPRESSION_WORDS} words (XrayGPT's filters).",
  "mimic_cxr/conclusion": "The authors' conclusion: the first there is of impression, "
  "findings, last paragraph, comparison; by hand for 54 studies.",
  **FILE_RULES,
}
_ROW_START = re.compile(rb"\"?s?\d{8}\"?,")
# Where a study was read, its id, and its texts by section.
_Study = tuple[tuple[str, int], str, dict[str, str]]


def check_options(**options: object) -> None:
  """Raises a ValueError if `read` does not take them."""
  check_choices("mimic_cxr", CHOICES, options)


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
    ValueError: as `check_options`.
    FileNotFoundError: none of the files is there.
    DamagedFile: a zip or a table that can not be read to its end.
  """
  check_options(text=text, keep_blanks=keep_blanks)
  tally = Tally("mimic_cxr") if tally is None else tally
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
  for name, data in read_members(path, studies, tally):
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
