"""OpenI, the chest radiographs of Indiana University: reports, and findings as headings.

    ecgen-radiology/1.xml … 3999.xml    a report each, or
    NLMCXR_reports.tgz                  the same as downloaded, read in place
    NLMCXR_png/CXR1_1_IM-0001-3001.png  7,470 images, or right in the folder

    <eCitation>
      <uId id="CXR1"/>
      <AbstractText Label="FINDINGS">…</AbstractText>   IMPRESSION, INDICATION, …
      <MeSH><major>Opacity/lung/base/left</major>…</MeSH>
      <parentImage id="CXR1_1_IM-0001-3001"/>…
    </eCitation>

Of a patient nothing is said: each report is a study and a patient of its own, and a
patient who came twice may fall on both sides of a split. Nor is it said reliably which
of a report's images is frontal: views are "", and laterals are among the images.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterator
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from imax_jax.data.sources.files import AGAIN
from imax_jax.data.sources.files import READ_ERRORS
from imax_jax.data.sources.files import open_bytes
from imax_jax.data.sources.files import within
from imax_jax.data.sources.intake import DamagedFile
from imax_jax.data.sources.intake import Distinct
from imax_jax.data.sources.intake import Tally
from imax_jax.data.sources.mimic_cxr import MIN_FINDINGS_WORDS
from imax_jax.data.sources.mimic_cxr import MIN_IMPRESSION_WORDS
from imax_jax.data.sources.openi_xml import MAX_XML_BYTES
from imax_jax.data.sources.openi_xml import Rejected
from imax_jax.data.sources.openi_xml import tree_of
from imax_jax.data.sources.pictures import size_of
from imax_jax.data.sources.reading import one_line
from imax_jax.schema import FINDINGS
from imax_jax.schema import Annotation
from imax_jax.schema import Bits
from imax_jax.schema import Radiograph
from imax_jax.schema import Report

REMEDY = (
  "Point openi at a folder with NLMCXR_reports.tgz, or ecgen-radiology/ unpacked from "
  "it, and NLMCXR_png/, unpacked from NLMCXR_png.tgz (https://openi.nlm.nih.gov/faq)."
)
FOLDER, ARCHIVE = "ecgen-radiology", "NLMCXR_reports.tgz"
IMAGE_FOLDER = "NLMCXR_png"
# The findings that a heading states, by its first part in lower case.
HEADINGS: dict[str, tuple[str, ...]] = {
  "opacity": ("Lung Opacity",),
  "airspace disease": ("Lung Opacity",),
  "pleural effusion": ("Pleural Effusion",),
  "pulmonary atelectasis": ("Atelectasis",),
  "pneumonia": ("Pneumonia",),
  "pulmonary edema": ("Edema",),
  "consolidation": ("Consolidation",),
  "pneumothorax": ("Pneumothorax",),
  "hydropneumothorax": ("Pneumothorax", "Pleural Effusion"),
  "fractures, bone": ("Fracture",),
  "infiltrate": ("Infiltration",),
  "nodule": ("Nodule",),
}
# "Opacity/ribs/right" is none of the lung; "Opacity/lung/base/left" is.
_ONLY_IN_LUNG = ("opacity", "nodule")
_NORMAL = "normal"
# With one of these, a heading that is absent says nothing.
_NOT_INDEXED = ("no indexing", "technical quality of image unsatisfactory")

FILE_RULE = "openi/file"
IMAGE_RULE = "openi/image"
REPORT_RULE = "openi/report"
BITS_RULE = "openi/bits"
RULES: dict[str, str] = {
  FILE_RULE: "A report is a UTF-8 XML file of at most a mebibyte without a document type "
  "or entities, its root eCitation, with a uId. Each is a patient of its own.",
  IMAGE_RULE: "An image that a report names and that is there, of any view.",
  REPORT_RULE: f"Findings of at least {MIN_FINDINGS_WORDS} words, then the impression, of "
  f"at least {MIN_IMPRESSION_WORDS}; a study's report is each of its images'.",
  BITS_RULE: "The paper's ten findings by the report's major headings, set by people: 0 "
  "means that no heading states it. Left out are reports without headings, not indexed, "
  "or with an opacity or nodule not said to be the lung's.",
}

# NLM's has 3,955 reports and, unpacked, some 20 MB.
_MAX_ARCHIVE_BYTES = 256 * 2**20
_MEMBER = re.compile(r"(?:[\w-]+/)*[\w-]+\.xml", re.ASCII)
_ID = re.compile(r"[\w-]{1,64}", re.ASCII)
_BLANK = re.compile(r"\bXXXX+\b")


class _Study(NamedTuple):
  path: Path  # of the XML file, as if it were unpacked in the root
  study_id: str
  images: tuple[str, ...]
  findings: str
  impression: str
  headings: tuple[tuple[str, ...], ...]  # ("opacity", "lung", "base", "left")


def read_radiographs(
  root: str | Path, *, tally: Tally | None = None
) -> dict[str, Radiograph]:
  """The images that reports name, by id, "CXR1_1_IM-0001-3001"; sizes as the files'.

  Raises:
    FileNotFoundError: the reports, or every image, are missing.
    DamagedFile: the archive can not be read to its end.
  """
  tally = Tally("openi images") if tally is None else tally
  images: Distinct[str, str] = Distinct(tally)
  files = Tally("openi images")  # `read` meets them again, and lists the bad ones
  for study in _studies(Path(root), files):
    for name in study.images:
      images.add(name, study.study_id, study.path, 0)
  tally.add(files)
  tally.met("patient ids", "none: each report is a patient of its own")
  tally.met("views", "not given: laterals are among the images")
  radiographs: dict[str, Radiograph] = {}
  for name, study_id, _, _ in images.items():
    path = _image_file(Path(root), name)
    if path is None:
      tally.leave_out_image(name, "image file absent")
      continue
    try:
      width, height = size_of(within(root, path))
    except DamagedFile as error:
      tally.reject(tally.name(path), None, error.reason, IMAGE_RULE)
      continue
    radiographs[name] = Radiograph(
      name, study_id, study_id, "", width, height, str(path)
    )
  tally.keep(len(radiographs))
  tally.log()
  if tally.counts["image file absent"] and not radiographs:
    raise FileNotFoundError(
      f"{root}: none of the {tally.counts['image file absent']} images that reports name "
      f"is there, expected {IMAGE_FOLDER}/CXR1_1_IM-0001-3001.png …. {REMEDY}"
    )
  return radiographs


def _image_file(root: Path, name: str) -> Path | None:
  places = (root / IMAGE_FOLDER / f"{name}.png", root / f"{name}.png")
  return next((path for path in places if path.is_file()), None)


def read(
  root: str | Path,
  radiographs: Mapping[str, Radiograph],
  *,
  keep_blanks: bool = True,
  tally: Tally | None = None,
) -> Iterator[Annotation]:
  """Yields for each image its study's `Report`, and `Bits` over the ten `FINDINGS`.

  `keep_blanks` keeps the "XXXX" of de-identification.

  Raises:
    FileNotFoundError, DamagedFile: as `read_radiographs`.
  """
  tally = Tally("openi") if tally is None else tally
  for study in _studies(Path(root), tally):
    images = [name for name in study.images if name in radiographs]
    for name in study.images:
      if name not in radiographs:
        tally.absent(name)
    if not study.images:
      tally.leave_out("report of no image")
    if not images:
      continue
    found = [
      ("report", REPORT_RULE, _report(study, keep_blanks)),
      ("multi_label", BITS_RULE, _bits(study.headings)),
    ]
    for task, rule, target in found:
      if isinstance(target, str):
        tally.leave_out(target)
        continue
      origin = tally.origin(study.path, 0, rule)
      for name in images:
        tally.keep()
        yield Annotation(name, task, "", target, origin)
  tally.log()


def _report(study: _Study, keep_blanks: bool) -> Report | str:
  """The report, or why there is none."""
  findings, impression = study.findings, study.impression
  if not keep_blanks:
    findings, impression = (_BLANK.sub(" ", text) for text in (findings, impression))
  findings, impression = one_line(findings), one_line(impression)
  if not findings or not impression:
    return "report: no findings or no impression"
  if len(findings.split()) < MIN_FINDINGS_WORDS:
    return "report: findings too short"
  if len(impression.split()) < MIN_IMPRESSION_WORDS:
    return "report: impression too short"
  return Report(f"{findings} {impression}")


def _bits(headings: tuple[tuple[str, ...], ...]) -> Bits | str:
  """The ten findings, or why the headings do not tell."""
  firsts = {heading[0] for heading in headings}
  if not firsts:
    return "headings: none"
  if firsts & set(_NOT_INDEXED):
    return "headings: not indexed, or the image is poor"
  if any(first in _ONLY_IN_LUNG and "lung" not in rest for first, *rest in headings):
    return "headings: opacity or nodule not said to be the lung's"
  found = {name for first in firsts for name in HEADINGS.get(first, ())}
  if found and _NORMAL in firsts:
    return "headings: normal beside a finding"
  return Bits(tuple([int(name in found) for name in FINDINGS]))


# ── XML ───────────────────────────────────────────────────────────────────────────


def _studies(root: Path, tally: Tally) -> Iterator[_Study]:
  """The good reports in the order of their numbers; the others are rejected."""
  if (root / FOLDER).is_dir():
    files = _from_folder(root, tally)
  elif (root / ARCHIVE).is_file():
    files = _from_archive(tally.opened(within(root, root / ARCHIVE)), tally)
  else:
    raise FileNotFoundError(
      f"{root}: expected {FOLDER}/ or {ARCHIVE}, which is not there. {REMEDY}"
    )
  studies: Distinct[str, _Study] = Distinct(tally)
  for path, content in files:
    tally.rows += 1
    try:
      study = _study(path, content)
    except Rejected as error:
      tally.reject(tally.name(path), None, str(error), FILE_RULE)
    else:
      studies.add(study.study_id, study, path, 0)
  found = [study for _, study, _, _ in studies.items()]
  yield from sorted(found, key=lambda study: (len(study.path.stem), study.path))


def _from_folder(root: Path, tally: Tally) -> Iterator[tuple[Path, bytes]]:
  paths = sorted((root / FOLDER).glob("*.xml"))
  if not paths:
    raise FileNotFoundError(f"{root / FOLDER}: expected 1.xml …, found none. {REMEDY}")
  for path in paths:
    try:
      with within(root, path).open("rb") as file:
        yield tally.opened(path), file.read(MAX_XML_BYTES + 1)
    except (DamagedFile, OSError) as error:
      tally.rows += 1
      reason = error.reason if isinstance(error, DamagedFile) else "cannot be read"
      tally.reject(tally.name(path), None, reason, FILE_RULE)


def _from_archive(archive: Path, tally: Tally) -> Iterator[tuple[Path, bytes]]:
  """The archive's regular files named like reports; nothing is written to disk."""
  try:
    with open_bytes(archive) as packed:
      content = packed.read(_MAX_ARCHIVE_BYTES + 1)
    if len(content) > _MAX_ARCHIVE_BYTES:
      raise DamagedFile(archive, f"unpacks to over {_MAX_ARCHIVE_BYTES} bytes")
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as members:
      for member in members:
        name = member.name.removeprefix("./")
        if member.isdir() or not name.endswith(".xml"):
          continue
        file = members.extractfile(member) if member.isreg() else None
        if file is None or _MEMBER.fullmatch(name) is None:
          reason = "a member of the archive is a link, or named like no report"
          tally.reject(tally.name(archive), None, reason, FILE_RULE)
        else:
          yield archive.parent / name, file.read(MAX_XML_BYTES + 1)
      # tarfile takes a member's broken header for the archive's end.
      if content[members.offset :].strip(b"\0"):
        raise DamagedFile(archive, "has something behind its last member", AGAIN)
  except DamagedFile:
    raise
  except (*READ_ERRORS, tarfile.TarError, ValueError) as error:
    raise DamagedFile(
      archive, f"cannot be read to its end ({type(error).__name__})", AGAIN
    ) from None


def _study(path: Path, content: bytes) -> _Study:
  tree = tree_of(content)
  uid = tree.find(".//uId")
  study_id = "" if uid is None else uid.get("id", "")
  if _ID.fullmatch(study_id) is None:
    raise Rejected("has no uId of the usual form")
  images = [image.get("id", "") for image in tree.iter("parentImage")]
  if not all(map(_ID.fullmatch, images)):
    raise Rejected("names an image by no usual id")
  sections = {"FINDINGS": "", "IMPRESSION": ""}
  for part in tree.iter("AbstractText"):
    label = part.get("Label", "")
    if label in sections:
      sections[label] += " " + "".join(part.itertext())
  headings = [
    tuple(part.strip() for part in (major.text or "").lower().split("/"))
    for major in tree.iter("major")
  ]
  return _Study(
    path, study_id, tuple(dict.fromkeys(images)), sections["FINDINGS"],
    sections["IMPRESSION"], tuple(heading for heading in headings if heading[0]),
  )  # fmt: skip
