"""Labels of one image that cannot all be right.

rec against calculation   CTR is the width of the heart's box over the joint width of
                          the lungs' boxes, exactly. CPAR is an
                          area ratio: 1.3 times that of the boxes, within a factor
                          of 1.35 (1,265 open radiographs of three collections with
                          masks: 1.06 to 1.57 times for nine in ten of each)
reg against rec           the organ that the box was asked for, and the one it is said
                          to hold
findings                  present by one label and absent by another. Multi-label says
                          all ten; a report and a grade of edema say some; an answer
                          to a question says what it affirms
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence

from imax_jax.schema import EDEMA_GRADES
from imax_jax.schema import ORGANS
from imax_jax.schema import Answer
from imax_jax.schema import Bits
from imax_jax.schema import Box
from imax_jax.schema import Entry
from imax_jax.schema import Grade
from imax_jax.schema import ImageRecord
from imax_jax.schema import Ratio
from imax_jax.schema import Region
from imax_jax.schema import Report

CTR, CPAR = "ctr and rec disagree", "cpar and rec disagree"
ORGAN, FINDING = "reg and rec disagree", "findings disagree"
REASONS = (CTR, CPAR, ORGAN, FINDING)
# Text -> {finding: "present", "absent" or "uncertain"}.
ReadFindings = Callable[[str], Mapping[str, str]]
# Wider than the other nine and labelled by other rules, so texts say nothing of it.
_WIDER = "Lung Opacity"
MOST_OFF_CTR = 0.05
# The heart fills more of its box than a lung.
CPAR_OF_BOXES, MOST_TIMES_CPAR = 1.3, 1.35


def find(
  record: ImageRecord,
  labels: Mapping[int, Entry],
  read_findings: ReadFindings,
) -> dict[int, str]:
  """{number: reason} of the labels that another label or an original entry contradicts.

  Of two pseudo labels both are named: which of them is wrong is not known.
  """
  entries: list[tuple[int | None, Entry]] = [
    *((None, entry) for entry in record.entries), *labels.items()
  ]  # fmt: skip
  found: dict[int, str] = {}

  def reject(reason: str, members: Sequence[int | None]) -> None:
    for number in members:
      if number is not None:
        found.setdefault(number, reason)

  boxes: dict[str, tuple[int | None, Box]] = {}
  for number, entry in entries:
    if entry.task == "rec" and isinstance(entry.target, Region):
      boxes.setdefault(entry.subtask, (number, entry.target.box))
  for number, entry in entries:
    target = entry.target
    if isinstance(target, Ratio) and all(organ in boxes for organ in ORGANS):
      organs = [boxes[organ] for organ in ORGANS]
      if not _fits(entry.subtask, target.value, *(box for _, box in organs)):
        reason = CTR if entry.subtask == "ctr" else CPAR
        reject(reason, [number, *(member for member, _ in organs)])
    if entry.task == "reg" and isinstance(target, Region):
      reject(ORGAN, [number] * (target.name != entry.subtask))
  present: dict[str, list[int | None]] = {}
  absent: dict[str, list[int | None]] = {}
  for number, entry in entries:
    for finding, is_there in _findings(entry, read_findings).items():
      (present if is_there else absent).setdefault(finding, []).append(number)
  for finding in sorted(present.keys() & absent.keys()):
    # An original entry contradicts the pseudo labels; it does not clear their opponents.
    reject(FINDING, _wrong(present[finding], absent[finding]))
  return found


def boxes_ctr(heart: Box, left: Box, right: Box) -> float:
  """Width of the heart over the joint width of the lungs; 0 where these have none."""
  width = max(left[2], right[2]) - min(left[0], right[0])
  return (heart[2] - heart[0]) / width if width else 0.0


def boxes_cpar(heart: Box, left: Box, right: Box) -> float:
  """CPAR as the boxes have it; 0 where the lungs have no area."""
  lungs = _area(left) + _area(right)
  return CPAR_OF_BOXES * _area(heart) / lungs if lungs else 0.0


def _fits(ratio: str, value: float, heart: Box, left: Box, right: Box) -> bool:
  if ratio == "ctr":
    return abs(value - boxes_ctr(heart, left, right)) <= MOST_OFF_CTR
  expected = boxes_cpar(heart, left, right)
  return expected / MOST_TIMES_CPAR <= value <= expected * MOST_TIMES_CPAR


def _area(box: Box) -> float:
  return (box[2] - box[0]) * (box[3] - box[1])


def _wrong(
  present: Sequence[int | None], absent: Sequence[int | None]
) -> list[int | None]:
  """Which of two camps to believe: the one with an original entry, else neither."""
  if None in present and None not in absent:
    return list(absent)
  if None in absent and None not in present:
    return list(present)
  return [*present, *absent]


def _findings(entry: Entry, read_findings: ReadFindings) -> dict[str, bool]:
  """What an entry says is there (True) or is not (False)."""
  match entry.target:
    case Bits(values, labels):
      return dict(zip(labels, map(bool, values), strict=True))
    case Grade(name, classes) if classes == EDEMA_GRADES:
      # Vascular congestion is not yet edema, and often labelled so.
      known = {EDEMA_GRADES[0]: False, EDEMA_GRADES[2]: True, EDEMA_GRADES[3]: True}
      return {"Edema": known[name]} if name in known else {}
    case Report(text):
      return _stated(read_findings(text))
    case Answer(question, answers):
      affirmed = ", ".join(answers)
      if entry.subtask == "verify":
        affirmed = question if affirmed.casefold() == "yes" else ""
      said = _stated(read_findings(affirmed))
      named = [finding for finding, is_there in said.items() if is_there]
      # "Is there A or B?" affirms neither by itself.
      if entry.subtask == "verify" and len(named) != 1:
        return {}
      return dict.fromkeys(named, True)
  return {}


def _stated(said: Mapping[str, str]) -> dict[str, bool]:
  """What is said without a doubt."""
  return {
    finding: status == "present"
    for finding, status in said.items()
    if status != "uncertain" and finding != _WIDER
  }
