"""The rules that read findings from reports: invented sentences, and the phantom's truth."""

from __future__ import annotations

import numpy as np
import pytest

from imax_jax.data.phantom import reports
from imax_jax.data.phantom import roster
from imax_jax.evaluate.scores import findings
from imax_jax.schema import FINDINGS

LEFT, RIGHT, NONE = {"left"}, {"right"}, set()
BOTH = LEFT | RIGHT


@pytest.mark.parametrize(
  ("sentence", "want"),
  [
    ("There is a left pleural effusion.", [("Pleural Effusion", "present", LEFT)]),
    ("Blunting of the right costophrenic angle.", [("Pleural Effusion", "present", RIGHT)]),
    ("Small pericardial effusion.", []),
    ("Bibasilar atelectasis.", [("Atelectasis", "present", BOTH)]),
    ("Pulmonary oedema has worsened.", [("Edema", "present", NONE)]),
    ("Nodular opacity in the Rt. apex", [("Nodule", "present", RIGHT)]),
    ("Vascular congestion. Heart size is normal.", []),
    # Denied, before or behind.
    ("No left effusion.", [("Pleural Effusion", "absent", LEFT)]),
    ("The lungs are clear without edema.", [("Edema", "absent", NONE)]),
    ("No consolidation to suggest pneumonia.",
     [("Consolidation", "absent", NONE), ("Pneumonia", "absent", NONE)]),
    ("Pneumothorax is not seen.", [("Pneumothorax", "absent", NONE)]),
    ("The right effusion has resolved.", [("Pleural Effusion", "absent", RIGHT)]),
    ("Fractures have been ruled out.", [("Fracture", "absent", NONE)]),
    ("Neither nodule nor infiltrate.",
     [("Nodule", "absent", NONE), ("Infiltration", "absent", NONE)]),
    # A denial's reach.
    ("No change in the left effusion.", [("Pleural Effusion", "present", LEFT)]),
    ("No pneumothorax, small left effusion.",
     [("Pneumothorax", "absent", LEFT), ("Pleural Effusion", "present", LEFT)]),
    ("No effusion, edema, or nodule.",
     [("Pleural Effusion", "absent", NONE), ("Edema", "absent", NONE),
      ("Nodule", "absent", NONE)]),
    ("No edema but there is consolidation.",
     [("Edema", "absent", NONE), ("Consolidation", "present", NONE)]),
    ("No fracture. Infiltration on the right.",
     [("Fracture", "absent", NONE), ("Infiltration", "present", RIGHT)]),
    ("Pneumonia on the left, effusion is not seen.",
     [("Pneumonia", "present", LEFT), ("Pleural Effusion", "absent", LEFT)]),
    # Doubted.
    ("Possible right pneumonia.", [("Pneumonia", "uncertain", RIGHT)]),
    ("Pneumonia cannot be excluded.", [("Pneumonia", "uncertain", NONE)]),
    ("A fracture is not entirely excluded.", [("Fracture", "uncertain", NONE)]),
    ("Opacity may represent pneumonia.",
     [("Lung Opacity", "present", NONE), ("Pneumonia", "uncertain", NONE)]),
    ("Atelectasis versus consolidation.",
     [("Atelectasis", "uncertain", NONE), ("Consolidation", "uncertain", NONE)]),
    ("No effusion, possible nodule.",
     [("Pleural Effusion", "absent", NONE), ("Nodule", "uncertain", NONE)]),
    # Sides.
    ("Left effusion and right pneumothorax.",
     [("Pleural Effusion", "present", LEFT), ("Pneumothorax", "present", RIGHT)]),
    ("Bilateral effusions with atelectasis.",
     [("Pleural Effusion", "present", BOTH), ("Atelectasis", "present", BOTH)]),
    ("", []),
  ],
)  # fmt: skip
def test_a_sentence_mentions(sentence, want):
  found = [
    (name, status, set(sides)) for name, status, sides in findings.mentions(sentence)
  ]
  assert found == want


def test_the_strongest_mention_counts_and_an_opacity_is_one():
  report = "No effusion. Later a left effusion. Possible pneumonia. No edema."
  assert findings.stated(report) == {
    "Lung Opacity": "uncertain",
    "Pleural Effusion": "present",
    "Pneumonia": "uncertain",
    "Edema": "absent",
  }
  assert findings.bits(report) == (1, 1, 0, 1, 0, 0, 0, 0, 0, 0)


def test_one_report_for_all_films_does_not_look_good():
  truths = ["Left effusion.", "Right nodule.", "Rib fracture.", "No effusion."]
  right = findings.f1(truths, truths)
  assert right["micro"] == right["macro"] == right["micro_with_sides"] == 100
  same = findings.f1(truths, ["Left effusion."] * 4)
  assert same["micro"] == pytest.approx(100 * 2 / (2 + 2 + 3))
  assert same["each"]["Pleural Effusion"] == pytest.approx(40)
  assert same["each"]["Edema"] is None and same["each"]["Nodule"] == 0
  wrong_side = findings.f1(["Left effusion."], ["Right effusion."])
  assert (wrong_side["micro"], wrong_side["micro_with_sides"]) == (100, 0)


def test_the_phantoms_reports_are_read_as_its_truth_is():
  visits, rng = roster.draw_roster(3, 60), np.random.default_rng(0)
  assert len(visits) > 60
  for visit in visits:
    words = reports.findings_text(visit, visit.study.ctr, rng)
    for text in (words, f"{words} {reports.impression_text(visit, rng)}"):
      assert findings.bits(text) == visit.exposures[0].case.bits, text
    sides = {(f.name, f.side) for f in visit.study.findings if f.side}
    said = {(n, s) for n, status, sides in findings.mentions(words) for s in sides
            if status != "absent" and n in {f.name for f in visit.study.findings}}  # fmt: skip
    assert sides == {pair for pair in said if pair[0] != "Edema"}, words
  assert len(FINDINGS) == 10
