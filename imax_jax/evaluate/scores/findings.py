"""Which of the ten findings a report states, by rules.

Words, not meaning, so it is a measure beside the others and no judge of a report: but one
report for all films, which BLEU may like, states the same findings of everybody.

A sentence is cut into clauses at "but", "however" and the like. In a clause every mention
of a finding is present, unless a denial stands before it ("no", "without", …: up to a
comma that a new statement follows) or behind it ("is not seen"), or a doubt does
("possible", "cannot be excluded", "versus", …): then it is absent or uncertain. A denial of
change ("no change in the effusion") denies nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any
from typing import Literal
from typing import NamedTuple

import numpy as np

from imax_jax.evaluate.scores import labels
from imax_jax.schema import FINDINGS

Status = Literal["present", "uncertain", "absent"]


class Mention(NamedTuple):
  """`sides`: "left" and "right" as the clause names them; both where it says bilateral."""

  finding: str
  status: Status
  sides: frozenset[str]


_TERMS: dict[str, str] = {
  # A nodular opacity is a nodule.
  "Lung Opacity": r"(?<!nodular )opaci\w+|air-?\s?space disease",
  "Pleural Effusion": (
    r"(?<!pericardial )effusions?|pleural fluid|h(?:ydro|aemo|emo)thorax"
    r"|blunt\w* of (?:the )?(?:\w+ )?(?:costophrenic|cp) angles?"
  ),
  "Atelectasis": r"(?:sub)?(?:segmental )?atelecta\w+|volume loss|collapsed? lobe",
  "Pneumonia": r"(?:broncho)?pneumonias?|pneumonic",
  "Edema": r"o?edema(?:tous)?",
  "Consolidation": r"consolidat\w+",
  "Pneumothorax": r"(?:hydro)?pneumothora(?:x|ces|xes)",
  "Fracture": r"fractur\w+",
  "Infiltration": r"infiltrat\w+",
  "Nodule": r"nodul\w+",
}
# Any of these is an opacity of the lung, too.
_OPACITIES = ("Atelectasis", "Pneumonia", "Edema", "Consolidation", "Infiltration")

_SENTENCES = re.compile(r"[.;:!?](?=\s|$)|\n\s*\n")
_CLAUSES = re.compile(
  r"\b(?:but|however|although|though|whereas|while|except(?: for)?|apart from|aside from"
  r"|other than)\b"
)
# Denials that deny no finding, and denials of certainty.
_NO_CHANGE = re.compile(
  r"\b(?:no|without|not) (?:\w+ ){0,2}?"
  r"(?:change|increase|decrease|difference|progression|improvement|worsening|only)\w*\b"
)
_UNSURE = re.compile(
  r"\b(?:cannot|can not|can't|could not|not|difficult to|hard to) (?:be )?"
  r"(?:entirely |completely |fully )?(?:excluded?|ruled? out)\b"
)
_DENIAL = re.compile(
  r"\b(?:no|without|not|never|neither|nor|denies|free of|clear of|negative for|absent"
  r"|(?:absence|resolution|lack) of|resolved|rather than)\b"
)
_DENIED_BEHIND = re.compile(
  r"^[^,]*?\b(?:(?:is|are|was|were|has|have) (?:been |now |completely )*"
  r"(?:not|no longer|absent|excluded|resolved|cleared|ruled out)\b"
  r"|not (?:seen|identified|present|evident|visible|visuali[sz]ed)\b)"
)
_DOUBT = re.compile(
  r"\b(?:possibl[ey]|probabl[ey]|potential\w*|presum\w+|likely|may|might|could|perhaps"
  r"|suspect\w*|suspicious for|suspicion of|concern\w* (?:for|of)|worrisome for|suggest\w*"
  r"|question\w*|equivocal|versus|vs|differential|consider\w*|exclude|rule out|if)\b"
)
_DOUBTED_BEHIND = re.compile(
  r"^[^,]*?\b(?:possible|(?:is|are) (?:also )?"
  r"(?:probable|likely|suspected|questionable|questioned|considered)|versus|vs)\b"
)
# A denial does not reach into the statement that these open.
_NEW_STATEMENT = re.compile(
  r", (?=(?:and |with )?(?:there|a|an|the|small|large|tiny|mild\w*|moderate\w*|minimal\w*"
  r"|severe\w*|new|stable|persistent|unchanged|left|right|bilateral|possibl[ey]"
  r"|probabl[ey]|likely)\b)|\bthere (?:is|are)\b"
)
_SIDES = {
  "left": re.compile(
    r"\b(?:left|lt|bilateral(?:ly)?|both|biapical|bibasilar|bibasal)\b"
  ),
  "right": re.compile(
    r"\b(?:right|rt|bilateral(?:ly)?|both|biapical|bibasilar|bibasal)\b"
  ),
}
_FINDING = {name: re.compile(rf"\b(?:{words})\b") for name, words in _TERMS.items()}
_STRENGTH: tuple[Status, ...] = ("absent", "uncertain", "present")


def mentions(report: str) -> list[Mention]:
  """Every mention of a finding, clause by clause; see the top of the file."""
  return [
    mention
    for sentence in _SENTENCES.split(report.lower())
    for clause in _CLAUSES.split(sentence)
    for mention in _mentions_of(" ".join(clause.split()))
  ]


def _mentions_of(clause: str) -> list[Mention]:
  spans = sorted(
    (match.start(), match.end(), name)
    for name, pattern in _FINDING.items()
    for match in pattern.finditer(clause)
  )
  found: list[Mention] = []
  for number, (start, end, name) in enumerate(spans):
    last = spans[number - 1][1] if number else 0
    after = spans[number + 1][0] if number + 1 < len(spans) else len(clause)
    # The side named on the way to the finding; else behind it; else the last one's.
    sides = _sides(clause[last:start]) or _sides(clause[end:after])
    if not sides and found:
      sides = found[-1].sides
    found.append(Mention(name, _status(clause[:start], clause[end:]), sides))
  return found


def _sides(words: str) -> frozenset[str]:
  return frozenset(side for side, pattern in _SIDES.items() if pattern.search(words))


def _status(before: str, behind: str) -> Status:
  before, behind = (
    _NO_CHANGE.sub("", _UNSURE.sub("possible", words)) for words in (before, behind)
  )
  before = _NEW_STATEMENT.split(before)[-1]
  if _DENIAL.search(before) or _DENIED_BEHIND.search(behind):
    return "absent"
  doubted = _DOUBT.search(before) or _DOUBTED_BEHIND.search(behind)
  return "uncertain" if doubted else "present"


def stated(report: str) -> dict[str, Status]:
  """{finding: the strongest status of its mentions}; unmentioned ones are left out.

  Present is stronger than uncertain, and uncertain than absent. A finding that is an
  opacity makes "Lung Opacity" at least as strong as itself, unless it is absent.
  """
  best: dict[str, Status] = {}

  def strengthen(name: str, status: Status) -> None:
    if _STRENGTH.index(status) >= _STRENGTH.index(best.get(name, "absent")):
      best[name] = status

  for name, status, _ in mentions(report):
    strengthen(name, status)
    if name in _OPACITIES and status != "absent":
      strengthen("Lung Opacity", status)
  return {name: best[name] for name in FINDINGS if name in best}


def bits(report: str) -> tuple[int, ...]:
  """1 for each of `schema.FINDINGS` that the report states, doubts included."""
  found = stated(report)
  return tuple(int(found.get(name, "absent") != "absent") for name in FINDINGS)


def _sided(report: str) -> list[bool]:
  """Of every finding: stated of the left, of the right, of no side."""
  said = {
    (name, side)
    for name, status, sides in mentions(report)
    if status != "absent"
    for side in (sides or {""})
  }
  return [(name, side) in said for name in FINDINGS for side in ("left", "right", "")]


def f1(truths: Sequence[str], reports: Sequence[str]) -> dict[str, Any]:
  """F1 × 100 of the findings that reports state against those of their references.

  {"micro", "macro", "micro_with_sides", "each": {finding: F1, or None where neither side
  ever states it}}. With sides, a finding of the wrong side is a miss and an invention.
  """
  want, got = (np.array([bits(r) for r in side], bool) for side in (truths, reports))
  hits, occurrences = np.split(labels.counts(want, got).sum(axis=0), 2)
  value = labels.f1(want, got)
  sided = labels.f1([_sided(r) for r in truths], [_sided(r) for r in reports])
  each = {
    name: 200.0 * float(hit) / float(occurrence) if occurrence else None
    for name, hit, occurrence in zip(FINDINGS, hits, occurrences, strict=True)
  }
  return {
    "micro": 100.0 * value.micro,
    "macro": 100.0 * value.macro,
    "micro_with_sides": 100.0 * sided.micro,
    "each": each,
  }
