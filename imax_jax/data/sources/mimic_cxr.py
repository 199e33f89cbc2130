"""MIMIC-CXR reports: findings and impression of a study, for each frontal image.

The first of these that the folder has is read:

    mimic_cxr_sectioned.csv   the official script's output: study,impression,findings,…
    mimic-cxr-reports.zip     members files/p10/p10000001/s50000001.txt
    files/p10/…               the same, unzipped
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Iterator
from collections.abc import Mapping
from pathlib import Path

from imax_jax.data.sources.reading import NOT_FRONTAL
from imax_jax.data.sources.reading import Counts
from imax_jax.data.sources.reading import find_file
from imax_jax.data.sources.reading import image_id_of
from imax_jax.data.sources.reading import images_by_study
from imax_jax.data.sources.reading import log_counts
from imax_jax.data.sources.reading import plain_id
from imax_jax.data.sources.reading import table_rows
from imax_jax.data.sources.sections import last_of_each
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
  counts: Counts | None = None,
) -> Iterator[Annotation]:
  """Yields "findings impression", white space collapsed, for every frontal image.

  A report counts with findings of at least 10 words and an impression of at least 2
  (XrayGPT's filters). `keep_blanks` keeps the "___" of de-identification.

  A `root` that is a .json file is read as XrayGPT's filter_cap.json, a caption for an
  image: the paper's Figure 1 quotes such summaries rather than MIMIC's sections.

  Raises:
    FileNotFoundError: none of the files is there.
    ValueError: a damaged file.
  """
  counts = Counts() if counts is None else counts
  if Path(root).suffix == ".json":
    yield from _captions(Path(root), radiographs, counts)
    return
  studies = images_by_study(radiographs)
  for origin, study, findings, impression in _studies(Path(root), studies, counts):
    if not keep_blanks:
      findings = findings.replace("___", " ")
      impression = impression.replace("___", " ")
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
  log_counts("mimic_cxr", counts)


def _studies(
  root: Path, studies: Mapping[str, list[str]], counts: Counts
) -> Iterator[_Study]:
  names = [SECTIONED, ZIP, "files"]
  path = root if root.is_file() else find_file(root, names, remedy=REMEDY)
  if path.suffix == ".zip":
    yield from _from_zip(path, studies, counts)
  elif path.is_dir():
    yield from _from_folder(path, studies, counts)
  else:
    yield from _from_sectioned(path, studies, counts)


def _from_sectioned(
  path: Path, studies: Mapping[str, list[str]], counts: Counts
) -> Iterator[_Study]:
  for row, (name, findings, impression) in table_rows(
    path, ("study", "findings", "impression")
  ):
    study = plain_id(name)
    if study not in studies:
      counts[NOT_FRONTAL] += 1
      continue
    yield Origin(path.name, row), study, findings, impression


def _from_zip(
  path: Path, studies: Mapping[str, list[str]], counts: Counts
) -> Iterator[_Study]:
  try:
    with zipfile.ZipFile(path) as archive:
      members = sorted(name for name in archive.namelist() if name.endswith(".txt"))
      for member in members:
        study = plain_id(Path(member).stem)
        if study not in studies:
          counts[NOT_FRONTAL] += 1
          continue
        text = archive.read(member).decode("utf-8", errors="replace")
        yield (Origin(member, 0), study, *_findings_and_impression(text))
  except (zipfile.BadZipFile, zlib.error, EOFError):
    raise ValueError(
      f"{path}: not a complete zip; download it again. {REMEDY}"
    ) from None


def _from_folder(
  path: Path, studies: Mapping[str, list[str]], counts: Counts
) -> Iterator[_Study]:
  found = False
  for file in sorted(path.glob("p*/p*/s*.txt")):
    found, study = True, plain_id(file.stem)
    if study not in studies:
      counts[NOT_FRONTAL] += 1
      continue
    text = file.read_text(encoding="utf-8", errors="replace")
    origin = Origin(file.relative_to(path.parent).as_posix(), 0)
    yield (origin, study, *_findings_and_impression(text))
  if not found:
    raise FileNotFoundError(
      f"{path}: expected reports p10/p10000001/s50000001.txt, found none. {REMEDY}"
    )


def _findings_and_impression(text: str) -> tuple[str, str]:
  found = last_of_each(text)
  findings, impression = found.get("findings", ""), found.get("impression", "")
  return " ".join(findings.split()), " ".join(impression.split())


def _captions(
  path: Path, radiographs: Mapping[str, Radiograph], counts: Counts
) -> Iterator[Annotation]:
  if not path.is_file():
    raise FileNotFoundError(f"{path}: expected XrayGPT's filter_cap.json. {REMEDY}")
  try:
    content = json.loads(path.read_text(encoding="utf-8"))
    items = [(item["image_id"], item["caption"]) for item in content["annotations"]]
  except (ValueError, KeyError, TypeError):
    raise ValueError(
      f'{path}: expected {{"annotations": [{{"image_id": …, "caption": …}}]}}'
    ) from None
  for row, (name, caption) in enumerate(items):
    image = image_id_of(str(name))
    if image not in radiographs:
      counts[NOT_FRONTAL] += 1
      continue
    counts["kept"] += 1
    report = Report(" ".join(str(caption).split()))
    yield Annotation(image, "report", "", report, Origin(path.name, row))
  log_counts("mimic_cxr", counts)
