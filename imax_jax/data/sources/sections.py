"""The sections of a MIMIC-CXR report, as its authors' own scripts find them.

A header is a new line, ONE space, capitals, a colon, white space; the next one is looked
for after the next new line. Names are normalised: spellings, then parts of names, then
views. Empty impression and findings are dropped; without both, the last section's text
after its first blank line counts. Of several sections with one name the last counts.

54 studies do not follow these rules. For 23 the authors name the section that holds the
findings, for 31 the characters; 8 of these have none. The authors' own table
mimic_cxr_sectioned.csv leaves all 54 out.

Source: MIT-LCP/mimic-cxr, txt/section_parser.py and create_section_files.py.
"""

from __future__ import annotations

import re

_HEADER = re.compile(r"\n ([A-Z ()/,-]+):\s", re.DOTALL)
_SPELLINGS: dict[str, tuple[str, ...]] = {
  "impression": (
    "conclusion", "findings and impression", "findings/impression",
    "findings/ impression", "impresson", "imprression", "imoression", "impressoin",
    "imprssion", "impresion", "imperssion", "mpression", "impession", "ndication",
  ),
  "findings": (
    "chest, two views", "finding", "findins", "findindgs", "findgings", "findngs",
    "findnings", "finidngs", "reference findings",
  ),
  "comparison": (
    "comparisons", "reference exam", "comparison exam", "comparison film",
    "comparision", "comparsion", "comparrison", "comparisions",
  ),
  "indication": (
    "reason for examination", "reason for exam", "clinical indication", "idication",
  ),
  "history": ("clinical history", "clinical information", "patient history", "pfi"),
  "examination": ("exam", "type of examination"),
  "recommendations": ("recommendation", "recommendation(s)"),
  "wet read": ("wetread",),
  "technique": (), "notification": (), "addendum": (), "date": (), "comment": (),
  "preamble": (),
}  # fmt: skip
_NAME_OF = {
  spelling: name
  for name, spellings in _SPELLINGS.items()
  for spelling in (name, *spellings)
}
_PARTS = ("impression", "findings", "history", "comparison", "addendum")
_VIEWS = (
  "chest", "portable", "pa and lateral", "lateral and pa", "ap and lateral",
  "lateral and ap", "frontal and", "two views", "frontal view", "pa view", "ap view",
  "one view", "lateral view", "bone window", "frontal upright",
  "frontal semi-upright", "ribs", "pa and lat",
)  # fmt: skip


def sections(report: str) -> list[tuple[str, str]]:
  """(normalised name, stripped text) in the order of the report.

  sections("x\\n FINDINGS: Clear.\\n") -> [("preamble", "x"), ("findings", "Clear.")]
  """
  report = _unix(report)
  match = _HEADER.search(report)
  if match is None:
    return [("full report", report.strip())]
  found = [("preamble", report[: match.start()].strip())]
  while match is not None:
    name, start = _normalised(match.group(1)), match.end()
    # A second header on the same line belongs to this section's text.
    line_end = report.find("\n", start)
    following = None if line_end < 0 else _HEADER.search(report, line_end)
    end = len(report) if following is None else following.start()
    found.append((name, report[start:end].strip()))
    match = following
  found = [
    (name, text)
    for name, text in found
    if text or name not in ("impression", "findings")
  ]
  if not {"impression", "findings"} & {name for name, _ in found}:
    _, text = found[-1]
    if "\n \n" in text:
      found.append(("last_paragraph", text.split("\n \n", 1)[1].strip()))
  return found


# Study -> the section that the authors take for the whole conclusion.
SECTION_OF_STUDY: dict[str, str] = {
  "50913680": "recommendations", "59363654": "examination", "59279892": "technique",
  "59768032": "recommendations", "57936451": "indication", "50058765": "indication",
  "53356173": "examination", "53202765": "technique", "50808053": "technique",
  "51966317": "indication", "50743547": "examination", "56451190": "note",
  "59067458": "recommendations", "59215320": "examination", "55124749": "indication",
  "54365831": "indication", "59087630": "recommendations",
  "58157373": "recommendations", "56482935": "recommendations",
  "58375018": "recommendations", "54654948": "indication", "55157853": "examination",
  "51491012": "history",
}  # fmt: skip
# Study -> the characters [start, end) of its report, new lines as "\n", that they take.
CHARACTERS_OF_STUDY: dict[str, tuple[int, int]] = {
  "50525523": (201, 349), "57564132": (233, 554), "59982525": (313, 717),
  "53488209": (149, 475), "54875119": (234, 988), "50196495": (59, 399),
  "56579911": (59, 218), "52648681": (292, 631), "59889364": (172, 453),
  "53514462": (73, 377), "59505494": (59, 450), "53182247": (59, 412),
  "51410602": (47, 320), "56412866": (522, 822), "54986978": (59, 306),
  "59003148": (262, 505), "57150433": (61, 394), "56760320": (219, 457),
  "59562049": (158, 348), "52674888": (145, 296), "55258338": (192, 568),
  "59330497": (140, 655), "52119491": (179, 454), "58235663": (0, 0),
  "50798377": (0, 0), "54168089": (0, 0), "53071062": (0, 0), "56724958": (0, 0),
  "54231141": (0, 0), "53607029": (0, 0), "52035334": (0, 0),
}  # fmt: skip


def exception_text(report: str, study_id: str) -> str | None:
  """What the authors take by hand from one of the 54 studies; None for any other."""
  if study_id in SECTION_OF_STUDY:
    return last_of_each(report).get(SECTION_OF_STUDY[study_id], "")
  if study_id in CHARACTERS_OF_STUDY:
    start, end = CHARACTERS_OF_STUDY[study_id]
    return _unix(report)[start:end].strip()
  return None


def conclusion(report: str, study_id: str = "") -> str:
  """The one text of the authors' create_section_files.py: by hand for the 54 studies,
  else the first there is of impression, findings, last paragraph, comparison, or "".
  """
  by_hand = exception_text(report, study_id)
  if by_hand is not None:
    return by_hand
  found = last_of_each(report)
  for name in ("impression", "findings", "last_paragraph", "comparison"):
    if name in found:
      return found[name]
  return ""


def _unix(report: str) -> str:
  return report.replace("\r\n", "\n").replace("\r", "\n")


def last_of_each(report: str) -> dict[str, str]:
  """The text of the last section of each name."""
  return dict(sections(report))


def _normalised(title: str) -> str:
  name = title.strip().lower()
  if name in _NAME_OF:
    return _NAME_OF[name]
  for part in _PARTS:
    if part in name:
      return part
  if any(view in name for view in _VIEWS):
    return "findings"
  return name
