"""The sections of a MIMIC-CXR report, as its authors' own scripts find them.

Source: MIT-LCP/mimic-cxr, txt/section_parser.py and create_section_files.py.
"""

from __future__ import annotations

import re

# Which of the official rules are implemented here.
RULES: tuple[tuple[str, bool], ...] = (
  ("a header is a new line, ONE space, capitals, a colon, white space", True),
  ("the next header is looked for after the next new line", True),
  ("header names are normalised: spellings, then parts of names, then views", True),
  ("empty impression and findings sections are dropped", True),
  ("without both, the last section's text after its first blank line", True),
  ("of several sections with one name the last counts", True),
  ("54 studies have hand-made sections and no row in mimic_cxr_sectioned.csv", False),
)

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
  report = report.replace("\r\n", "\n").replace("\r", "\n")
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
