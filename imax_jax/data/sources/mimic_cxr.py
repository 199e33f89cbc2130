"""MIMIC-CXR reports: findings and impression of a study, for each frontal image.

mimic-cxr-reports.zip     members files/p10/p10000001/s50000001.txt
files/p10/…               or the same, unzipped
mimic_cxr_sectioned.csv   or the official script's output: study,impression,findings,…
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from collections.abc import Mapping
from pathlib import Path

from imax_jax.data.sources import reading
from imax_jax.data.sources import sections
from imax_jax.schema import Annotation
from imax_jax.schema import Origin
from imax_jax.schema import Radiograph
from imax_jax.schema import Report

REMEDY = (
  "Point mimic_cxr at the folder of https://physionet.org/content/mimic-cxr/2.1.0/ "
  "(credentialed access); the reports are not part of MIMIC-CXR-JPG."
)
ZIP = "mimic-cxr-reports.zip"
SECTIONED = "mimic_cxr_sectioned.csv"
MIN_FINDINGS_WORDS = 10
MIN_IMPRESSION_WORDS = 2
# Lines of a study: where they were read, and its findings and impression.
_Study = tuple[Origin, str, str, str]


def read(
  root: str | Path,
  radiographs: Mapping[str, Radiograph],
  *,
  keep_blanks: bool = True,
  counts: reading.Counts | None = None,
) -> Iterator[Annotation]:
  """Yields "findings impression", white space collapsed, for every frontal image.

  A report counts with findings of at least 10 words and an impression of at least 2
  (XrayGPT's filters, whose reports the paper's Figure 1 resembles). `keep_blanks`
  keeps the "___" of de-identification.

  Raises:
    FileNotFoundError: neither the zip, nor unzipped reports, nor the sectioned csv.
    ValueError: a damaged file.
  """
  counts = reading.Counts() if counts is None else counts
  studies = reading.by_study(radiographs)
  for origin, study, findings, impression in _studies(Path(root), studies, counts):
    if not keep_blanks:
      findings, impression = (
        findings.replace("___", " "),
        impression.replace("___", " "),
      )
    if not findings or not impression:
      counts["no findings or no impression"] += 1
    elif len(findings.split()) < MIN_FINDINGS_WORDS:
      counts["findings too short"] += 1
    elif len(impression.split()) < MIN_IMPRESSION_WORDS:
      counts["impression too short"] += 1
    else:
      report = Report(" ".join(f"{findings} {impression}".split()))
      for name in studies[study]:
        counts["kept"] += 1
        yield Annotation(name, "report", "", report, origin)
  reading.log_counts("mimic_cxr", counts)


def _studies(
  root: Path, studies: Mapping[str, list[str]], counts: reading.Counts
) -> Iterator[_Study]:
  names = [ZIP, SECTIONED, "files"]
  path = root if root.is_file() else reading.find(root, names, remedy=REMEDY)
  if path.suffix == ".zip":
    yield from _from_zip(path, studies, counts)
  elif path.is_dir():
    yield from _from_folder(path, studies, counts)
  else:
    yield from _from_sectioned(path, studies, counts)


def _from_sectioned(
  path: Path, studies: Mapping[str, list[str]], counts: reading.Counts
) -> Iterator[_Study]:
  for row, (name, findings, impression) in reading.rows(
    path, ("study", "findings", "impression")
  ):
    study = reading.plain_id(name)
    if study not in studies:
      counts[reading.NOT_FRONTAL] += 1
      continue
    yield Origin(path.name, row), study, findings, impression


def _from_zip(
  path: Path, studies: Mapping[str, list[str]], counts: reading.Counts
) -> Iterator[_Study]:
  try:
    with zipfile.ZipFile(path) as archive:
      members = sorted(name for name in archive.namelist() if name.endswith(".txt"))
      for member in members:
        study = reading.plain_id(Path(member).stem)
        if study not in studies:
          counts[reading.NOT_FRONTAL] += 1
          continue
        text = archive.read(member).decode("utf-8", errors="replace")
        yield (Origin(member, 0), study, *_findings_and_impression(text))
  except zipfile.BadZipFile:
    raise ValueError(
      f"{path}: not a complete zip; download it again. {REMEDY}"
    ) from None


def _from_folder(
  path: Path, studies: Mapping[str, list[str]], counts: reading.Counts
) -> Iterator[_Study]:
  found = False
  for file in sorted(path.glob("p*/p*/s*.txt")):
    found, study = True, reading.plain_id(file.stem)
    if study not in studies:
      counts[reading.NOT_FRONTAL] += 1
      continue
    text = file.read_text(encoding="utf-8", errors="replace")
    origin = Origin(file.relative_to(path.parent).as_posix(), 0)
    yield (origin, study, *_findings_and_impression(text))
  if not found:
    raise FileNotFoundError(
      f"{path}: expected reports p10/p10000001/s50000001.txt, found none. {REMEDY}"
    )


def _findings_and_impression(text: str) -> tuple[str, str]:
  found = sections.last_of_each(text)
  return tuple(
    " ".join(found[n].split()) if n in found else "" for n in ("findings", "impression")
  )  # type: ignore[return-value]
