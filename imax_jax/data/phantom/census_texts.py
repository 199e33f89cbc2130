"""The census's reports: one a study, from a pool that the phantom's writer makes.

What sections a report has, and in which of the headers' dialects, is MIMIC-CXR's; the
findings it tells of are nobody's, and not those of the study's other tables.
"""

from __future__ import annotations

import re
import textwrap
import zipfile
from pathlib import Path

import numpy as np

from imax_jax.data.phantom import reports
from imax_jax.data.phantom import roster
from imax_jax.data.phantom.census_people import People
from imax_jax.data.phantom.census_people import apportion

# How many of the released reports have which sections.
FORMS: dict[str, int] = {
  "both": 122_745,
  "impression only": 66_679,
  "findings only": 27_028,
  "neither": 11_382,
  "empty": 1,
}
_PATIENTS = (40, 1500)  # of the pool, fewest and most
_STUDIES_OF_PATIENT = 50  # of the census, for one in the pool
# A common spelling and rare ones that the authors' rules know as well.
_FINDINGS = (
  "FINDINGS", "FINDINGS", "FINDINGS", "FINDING", "FINDINS", "CHEST TWO VIEWS",
  "FRONTAL AND LATERAL VIEWS OF THE CHEST",
)  # fmt: skip
_IMPRESSION = (
  "IMPRESSION", "IMPRESSION", "IMPRESSION", "CONCLUSION", "IMPRESSON",
  "IMPRESSION AND RECOMMENDATION",
)  # fmt: skip
_IMPRESSION_ALONE = (*_IMPRESSION, "FINDINGS AND IMPRESSION")
_TITLES: dict[str, dict[str, tuple[str, ...]]] = {
  "both": {"FINDINGS": _FINDINGS, "IMPRESSION": _IMPRESSION},
  "impression only": {"IMPRESSION": _IMPRESSION_ALONE},
  "findings only": {"FINDINGS": _FINDINGS},
}
# Of the reports with both, too short for a caption: 8,055 of 122,745.
_SHORT = 0.066
_BOTH = re.compile(
  r"\n (?:FINDINGS|CHEST, PA AND LATERAL):.*?\n ((?:IMPRESSION|CONCLUSION):)", re.DOTALL
)
_SHORT_TEXT = ("As above.", "Unchanged.", "Lines and tubes as before.")


def _dialect(text: str, form: str, rng: np.random.Generator) -> str:
  for title, spellings in _TITLES.get(form, {}).items():
    spelling = spellings[int(rng.integers(len(spellings)))]
    if len(spelling) > len(title):  # a line of its own, for the text is wrapped
      text = text.replace(f"\n {title}:  ", f"\n {spelling}: \n \n ", 1)
    text = text.replace(f"\n {title}:", f"\n {spelling}:", 1)
  trap = rng.random()
  if trap < 0.02:  # the wet read comes before
    text = text.replace("\n EXAMINATION:", "\n WET READ: ___ 3:04 AM\n \n EXAMINATION:")
  elif trap < 0.06:  # a second header in a line belongs to the first
    text = text.replace(
      "\n COMPARISON:  ___", "\n TECHNIQUE: Frontal.  COMPARISON: ___"
    )
  elif trap < 0.10:  # small letters, or no space before it, make no header
    text = text.replace("\n COMPARISON:", "\n Comparison:")
  elif trap < 0.12:
    text = text.replace("\n COMPARISON:", "\nCOMPARISON:")
  return text


def _report(visit: roster.Visit, form: str, rng: np.random.Generator) -> str:
  if form == "empty":
    return ""
  text = reports.report_text(visit, visit.study.ctr, form, rng)
  if form == "neither":  # a paragraph without a header
    words = reports.findings_text(visit, visit.study.ctr, rng)
    lines = textwrap.wrap(words, 77, break_on_hyphens=False)
    return text + " \n" + "".join(f" {line}\n" for line in lines)
  if form == "both" and rng.random() < _SHORT:
    short = _SHORT_TEXT[int(rng.integers(len(_SHORT_TEXT)))]
    text = _BOTH.sub(rf"\n FINDINGS:  {short}\n \n \1", text)
  return _dialect(text, form, rng)


def draw_pool(people: People) -> dict[str, list[bytes]]:
  """Texts by form."""
  rng = people.rng(41)
  number = int(np.clip(len(people.study_ids) // _STUDIES_OF_PATIENT, *_PATIENTS))
  visits = roster.draw_roster(people.seed, number)
  return {form: [_report(v, form, rng).encode() for v in visits] for form in FORMS}


def write_reports(path: Path, people: People) -> int:
  """mimic-cxr-reports.zip: files/p10/p10000001/s50000001.txt of every study."""
  pool = list(draw_pool(people).values())
  rng = people.rng(42)
  number = len(people.study_ids)
  form = rng.permutation(
    np.repeat(range(len(FORMS)), apportion(number, [*FORMS.values()]))
  )
  pick = rng.integers(len(pool[0]), size=number).tolist()
  path.parent.mkdir(parents=True, exist_ok=True)
  with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
    for folder, kind, which in zip(people.folders, form.tolist(), pick, strict=True):
      # A fixed time, so that the same census is the same bytes.
      member = zipfile.ZipInfo(f"{folder}.txt", (1980, 1, 1, 0, 0, 0))
      member.compress_type = zipfile.ZIP_DEFLATED
      archive.writestr(member, pool[kind][which])
  return number
