"""Filters of pseudo labels, against labels of which we know what is wrong with them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from imax_jax.data import prompts
from imax_jax.pseudo import contradictions
from imax_jax.pseudo import filters
from imax_jax.pseudo import labels as labels_lib
from imax_jax.pseudo.filters import Filters
from imax_jax.pseudo.label import Label
from imax_jax.schema import FINDINGS
from imax_jax.schema import Annotation
from imax_jax.schema import Answer
from imax_jax.schema import Bits
from imax_jax.schema import Entry
from imax_jax.schema import Grade
from imax_jax.schema import ImageRecord
from imax_jax.schema import Origin
from imax_jax.schema import Ratio
from imax_jax.schema import Region
from imax_jax.schema import Report
from imax_jax.schema import Target

# CTR of these boxes is .3 / .8 = .375; heart .09, lungs .21 + .21 of the image.
HEART, RIGHT, LEFT = (0.4, 0.5, 0.7, 0.8), (0.1, 0.1, 0.4, 0.8), (0.6, 0.1, 0.9, 0.8)
BOXES = {"heart": HEART, "right lung": RIGHT, "left lung": LEFT}
CLEAR = Bits((0,) * 10)
EDEMA = Bits(tuple(int(name == "Edema") for name in FINDINGS))


def read_findings(text: str) -> dict[str, str]:
  """Of texts such as "edema, no nodule"."""
  found = {}
  for part in text.lower().rstrip(".?").split(", "):
    for name in FINDINGS:
      if name.lower() in part:
        found[name] = "absent" if part.startswith("no ") else "present"
  return found


def entry(
  task: str, target: Target, subtask: str = "", *, image: str = "a", number: int = 0
) -> Entry:
  origin = Origin("made", "file.csv", number, "made")
  return prompts.make_entry(Annotation(image, task, subtask, target, origin), number)


def pseudo(one: Entry) -> Entry:
  return dataclasses.replace(
    one, id=f"{one.id}.pseudo", origin=Origin("pseudo", "f00d", 0, "pseudo")
  )


def boxes(**changed: object) -> list[Entry]:
  found = BOXES | {name.replace("_", " "): box for name, box in changed.items()}
  return [entry("rec", Region(organ, box), organ) for organ, box in found.items()]


def record(*entries: Entry, image: str = "a") -> ImageRecord:
  return ImageRecord(image, "s", "p", "PA", b"jpeg", entries)


def contradicted(own: list[Entry], said: list[Entry]) -> dict[int, str]:
  labels = dict(enumerate(map(pseudo, said)))
  return contradictions.find(record(*own), labels, read_findings)


def ctr(value: float) -> Entry:
  return entry("calculation", Ratio(value), "ctr")


def cpar(value: float) -> Entry:
  return entry("calculation", Ratio(value), "cpar")


# ── Contradictions ────────────────────────────────────────────────────────────────


def test_the_arithmetic_of_boxes() -> None:
  assert contradictions.boxes_ctr(HEART, LEFT, RIGHT) == pytest.approx(0.375)
  ratio = contradictions.boxes_cpar(HEART, LEFT, RIGHT)
  assert ratio == pytest.approx(1.3 * 0.09 / 0.42)
  flat = (0.2, 0.2, 0.2, 0.2)
  assert contradictions.boxes_ctr(HEART, flat, flat) == 0
  assert contradictions.boxes_cpar(HEART, flat, flat) == 0


def test_ratios_that_the_boxes_deny() -> None:
  assert contradicted([], [*boxes(), ctr(0.41), cpar(0.3)]) == {}
  all_of_them = dict.fromkeys(range(4), contradictions.CTR)
  assert contradicted([], [*boxes(), ctr(0.45)]) == all_of_them
  all_of_them = dict.fromkeys(range(4), contradictions.CPAR)
  assert contradicted([], [*boxes(), cpar(0.4)]) == all_of_them
  assert contradicted([], [*boxes()[:2], ctr(0.9)]) == {}  # a box is not known


def test_what_is_original_is_right() -> None:
  wide = boxes(heart=(0.2, 0.5, 0.9, 0.8))
  assert contradicted(boxes(), [ctr(0.7)]) == {0: contradictions.CTR}
  assert contradicted([ctr(0.375)], wide) == dict.fromkeys(range(3), contradictions.CTR)
  assert contradicted([*wide, ctr(0.375)], []) == {}
  # The original's opponent goes, its friend stays.
  agreed = [entry("report", Report("edema")), entry("multi_class", Grade("none"))]
  assert contradicted([entry("multi_label", EDEMA)], agreed) == {
    1: contradictions.FINDING
  }


def test_an_organ_that_was_not_asked_for() -> None:
  said = [entry("reg", Region(name, HEART), "heart") for name in ("heart", "left lung")]
  assert contradicted([], said) == {1: contradictions.ORGAN}
  assert contradicted(said[1:], []) == {}


@pytest.mark.parametrize(
  ("one", "other", "agree"),
  [
    (entry("multi_label", CLEAR), entry("multi_class", Grade("alveolar edema")), False),
    (entry("multi_label", CLEAR), entry("multi_class", Grade("none")), True),
    (entry("multi_label", EDEMA), entry("multi_class", Grade("none")), False),
    (
      entry("multi_label", CLEAR),
      entry("multi_class", Grade("vascular congestion")),
      True,
    ),
    (entry("multi_label", CLEAR), entry("report", Report("edema")), False),
    (entry("multi_label", EDEMA), entry("report", Report("edema")), True),
    (entry("multi_label", EDEMA), entry("report", Report("no edema")), False),
    (entry("multi_label", EDEMA), entry("report", Report("the heart")), True),
    (entry("multi_label", EDEMA), entry("report", Report("lung opacity")), True),
  ],
)
def test_findings_that_two_labels_see_otherwise(
  one: Entry, other: Entry, agree: bool
) -> None:
  assert contradicted([], [one, other]) == (
    {} if agree else dict.fromkeys(range(2), contradictions.FINDING)
  )


@pytest.mark.parametrize(
  ("subtask", "question", "answers", "agree"),
  [
    ("verify", "Is there edema?", ("yes",), False),
    ("verify", "Is there edema?", ("no",), True),  # perhaps elsewhere
    ("verify", "Is there edema, nodule?", ("yes",), True),  # one of them
    ("verify", "Is the heart wide?", ("yes",), True),
    ("choose", "Edema or nodule?", ("edema",), False),
    ("choose", "Edema or nodule?", (), True),
    ("query", "What is seen?", ("heart", "nodule"), False),
    ("query", "Where is the edema?", ("left lung",), True),
  ],
)
def test_what_an_answer_affirms(
  subtask: str, question: str, answers: tuple[str, ...], agree: bool
) -> None:
  said = entry("vqa", Answer(question, answers, "presence"), subtask)
  found = contradicted([entry("multi_label", CLEAR)], [said])
  assert found == ({} if agree else {0: contradictions.FINDING})


# ── Filters ───────────────────────────────────────────────────────────────────────


def written(
  folder: Path, groups: list[list[tuple[Entry, float]]]
) -> labels_lib.LabelFile:
  """Of each image, its pseudo entries and their log-probabilities."""
  lines = [
    labels_lib.to_json(Label(place, pseudo(one), log_prob, 3))
    for place, group in enumerate(groups)
    for one, log_prob in group
  ]
  path = folder / "labels.jsonl"
  path.write_text("".join(f"{line}\n" for line in lines), encoding="utf8")
  return labels_lib.LabelFile(path)


def judged(
  folder: Path,
  groups: list[list[tuple[Entry, float]]],
  records: list[ImageRecord],
  **chosen: object,
) -> list[str]:
  labels = written(folder, groups)
  verdict = filters.judge(labels, records, Filters(**chosen), read_findings)
  assert verdict.dtype == np.uint8
  reasons = [filters.REASONS[number] for number in verdict]
  counts = filters.count(labels, verdict)
  assert sum(sum(c.values()) for c in counts.values()) == sum(map(bool, reasons))
  named = [reason for _, _, reason in filters.rejected(labels, verdict)]
  assert named == [reason for reason in reasons if reason]
  return reasons


def grade(name: str, image: str = "a") -> Entry:
  return entry("multi_class", Grade(name), image=image)


def test_all_stay_unless_asked(tmp_path: Path) -> None:
  group = [(one, -9.0) for one in (*boxes(), ctr(0.9))]
  assert judged(tmp_path, [group], [record()]) == [""] * 4


def test_the_least_confident_of_each_kind_go(tmp_path: Path) -> None:
  groups = [
    [(dataclasses.replace(ctr(0.4), image_id=str(n)), -1.0 - n),
     (dataclasses.replace(cpar(0.4), image_id=str(n)), -0.1 * n)]
    for n in range(8)
  ]  # fmt: skip
  records = [record(image=str(n)) for n in range(8)]
  reasons = judged(tmp_path, groups, records, confidence=0.25)
  low = [number for number, reason in enumerate(reasons) if reason]
  assert low == [12, 13, 14, 15]  # two of eight of each, though all CTRs are less sure
  assert {reasons[number] for number in low} == {"low confidence"}


def test_a_region_falls_with_its_box(tmp_path: Path) -> None:
  rec = entry("rec", Region("heart", HEART), "heart")
  reg = entry("reg", Region("heart", HEART), "heart")
  lung = entry("reg", Region("left lung", LEFT), "left lung")
  groups = [
    [(dataclasses.replace(one, image_id=str(n)), sure) for one, sure in
     ((rec, -n), (reg, 0.0), (lung, 0.0))]
    for n in range(2)
  ]  # fmt: skip
  records = [record(image=str(n)) for n in range(2)]
  # REG's own lowest half: the first of equals; the box of the second image is unsure.
  assert judged(tmp_path, groups, records, confidence=0.5) == [
    "", "low confidence", "low confidence",
    "low confidence", "its box from rec is rejected", "",
  ]  # fmt: skip


def test_agreement_is_of_what_confidence_left(tmp_path: Path) -> None:
  groups = [[(one, -0.5) for one in (*boxes(), ctr(0.9))]]
  assert (
    judged(tmp_path, groups, [record()], agreement=True) == [contradictions.CTR] * 4
  )
  both = [[(grade("none"), -0.1), (entry("multi_label", EDEMA), -0.2)],
          [(grade("none", "b"), -0.9),
           (dataclasses.replace(entry("multi_label", EDEMA), image_id="b"), -0.1)]]  # fmt: skip
  records = [record(), record(image="b")]
  # The other's grade and the first's labels went, so nothing is left to disagree.
  assert judged(tmp_path, both, records, agreement=True, confidence=0.5) == [
    "", "low confidence", "low confidence", "",
  ]  # fmt: skip


def test_no_class_comes_more_often_than_in_training(tmp_path: Path) -> None:
  own = [
    record(entry("multi_class", Grade(name), image=f"own{n}"), image=f"own{n}")
    for n, name in enumerate(["none"] * 6 + ["alveolar edema"] * 4)
  ]
  said = ["none"] * 9 + ["interstitial edema"] * 1
  groups: list[list[tuple[Entry, float]]] = [[] for _ in own]
  groups += [[(grade(name, str(n)), 0.1 * n - 1)] for n, name in enumerate(said)]
  records = [*own, *(record(image=str(n)) for n in range(10))]
  too_many = "more of its class than in training"
  # Six tenths of ten labels; one that training never had may stay.
  assert judged(tmp_path, groups, records, balance=1.0) == [
    *[too_many] * 3, *[""] * 7
  ]  # fmt: skip
  assert judged(tmp_path, groups, records, balance=1.4) == [
    too_many, *[""] * 9
  ]  # fmt: skip


def test_labels_of_other_records_are_refused(tmp_path: Path) -> None:
  with pytest.raises(ValueError, match="another version of the data"):
    judged(tmp_path, [[(ctr(0.4), 0.0)]], [record(image="b")], agreement=True)


@pytest.mark.parametrize("wrong", [{"confidence": 1.0}, {"confidence": -0.1}, {"balance": -1.0},
                                   {"balance": float("nan")}])  # fmt: skip
def test_values_that_mean_nothing_are_refused(wrong: dict[str, float]) -> None:
  with pytest.raises(ValueError, match=f"{next(iter(wrong))}=.*expected"):
    Filters(**wrong).check()
