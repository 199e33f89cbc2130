"""What is true of a phantom's film answers every question that the hospital asks of it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from imax_jax.data.phantom import anatomy
from imax_jax.data.phantom import chart
from imax_jax.data.phantom import inquiry
from imax_jax.data.phantom import questions
from imax_jax.data.phantom.truth import Truth
from imax_jax.data.phantom.truth import answers_to
from imax_jax.schema import FINDINGS
from imax_jax.schema import Answer
from imax_jax.schema import Bits
from imax_jax.schema import Entry
from imax_jax.schema import Grade
from imax_jax.schema import Origin
from imax_jax.schema import Ratio
from imax_jax.schema import Region
from imax_jax.schema import Report


@pytest.fixture(scope="module")
def facts() -> list[chart.Facts]:
  rng = np.random.default_rng(3)
  cases = [anatomy.sample_case(rng, view=("AP", "PA")[n % 2]) for n in range(150)]
  return [chart.Facts(case, case.ctr) for case in cases]


def test_every_question_of_the_hospital_has_its_own_answer(
  facts: list[chart.Facts],
) -> None:
  pool, rng = chart.pool_of(facts), np.random.default_rng(7)
  seen: set[tuple[int, bool]] = set()
  for _ in range(6):
    for one in facts:
      for number, question, asked in inquiry.questions_of(one, pool, rng):
        found = answers_to(question, one)
        assert found is not None, question
        assert set(found) == set(asked.answers), (question, one)
        seen.add((number, asked.opposite))
  every = {(n, False) for n in range(len(questions.TEMPLATES))}
  every |= {(n, True) for n, one in enumerate(questions.TEMPLATES) if one.opposites}
  assert seen == every


def test_a_question_asked_of_another_film_is_answered_by_this_one(
  facts: list[chart.Facts],
) -> None:
  """Pseudo labels' questions are drawn from all films: yes here, no there."""
  question = "Is there any sign of pneumonia in the left lung?"
  answers = {("Pneumonia", "left") in [(f.name, f.side) for f in one.case.findings]:
             answers_to(question, one) for one in facts}  # fmt: skip
  assert answers == {True: ("yes",), False: ("no",)}


@pytest.mark.parametrize(
  "question",
  [
    "Is there any sign of boredom in the left lung?",
    "Is the spleen abnormal?",
    "Does the moon show pneumonia?",
    "How old is this patient?",
    "Is this patient tall?",
  ],
)
def test_other_questions_have_no_answer(
  facts: list[chart.Facts], question: str
) -> None:
  assert answers_to(question, facts[0]) is None


FILM = {
  "image_id": "a", "view": "AP", "sex": "f", "devices": ["pacemaker"],
  "findings": [["Pneumonia", "left", "lower"], ["Edema", "", ""]], "edema_grade": 2,
  "ctr": 0.55, "cpar": 0.4,
  "organ_boxes": {"heart": [0.4, 0.5, 0.7, 0.8], "left lung": [0.6, 0.1, 0.9, 0.8]},
}  # fmt: skip


@pytest.fixture
def truth(tmp_path: Path) -> Truth:
  lateral = FILM | {"image_id": "b", "ctr": None, "cpar": None, "organ_boxes": {}}
  path = tmp_path / "truth.jsonl"
  path.write_text("".join(f"{json.dumps(film)}\n" for film in (FILM, lateral)))
  return Truth(path)


def asked(task: str, subtask: str, target: object, image: str = "a") -> Entry:
  origin = Origin("pseudo", "f00d", 0, "pseudo")
  return Entry(f"{image}/{task}", image, task, subtask, "", "", target, origin)  # type: ignore[arg-type]


def test_the_truth_of_each_task(truth: Truth) -> None:
  some = (0.61, 0.1, 0.9, 0.7)
  present = ("Lung Opacity", "Pneumonia", "Edema")
  bits = Bits(tuple(int(name in present) for name in FINDINGS))
  for entry, expected in (
    (asked("calculation", "ctr", Ratio(0.1)), Ratio(0.55)),
    (asked("calculation", "cpar", Ratio(0.1)), Ratio(0.4)),
    (asked("multi_class", "", Grade("none")), Grade("interstitial edema")),
    (asked("multi_label", "", Bits((0,) * 10)), bits),
    (asked("rec", "heart", Region("heart", some)),
     Region("heart", (0.4, 0.5, 0.7, 0.8))),
    (asked("reg", "heart", Region("heart", some)), Region("left lung", some)),
    (asked("reg", "heart", Region("heart", (0.0, 0.0, 0.1, 0.1))), None),
    (asked("vqa", "query", Answer("What is the view of this image?", ("pa",), "plane")),
     Answer("What is the view of this image?", ("ap",), "plane")),
    (asked("vqa", "query", Answer("Who?", ("pa",), "plane")), None),
    (asked("report", "", Report("clear")), None),
    (asked("rec", "right lung", Region("right lung", some)), None),
    (asked("calculation", "ctr", Ratio(0.1), "b"), None),
    (asked("reg", "heart", Region("heart", some), "b"), None),
    (asked("calculation", "ctr", Ratio(0.1), "unknown"), None),
  ):  # fmt: skip
    assert truth.target(entry) == expected, entry
    # What the entry itself answers is not looked at.
    other = dataclasses.replace(entry, answer="something else")
    assert truth.target(other) == expected
  assert truth.bits("a") == bits
  assert truth.bits("unknown") is None


def test_a_damaged_truth_is_refused(tmp_path: Path) -> None:
  path = tmp_path / "truth.jsonl"
  path.write_text(f"{json.dumps(FILM)}\nnot JSON\n")
  with pytest.raises(ValueError, match=r"truth.jsonl:2: damaged"):
    Truth(path)
  with pytest.raises(FileNotFoundError):
    Truth(tmp_path / "none.jsonl")
