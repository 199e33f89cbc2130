"""Figure 1's wording, and the way back from text to targets."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imax_jax.data import prompts
from imax_jax.schema import EDEMA_GRADES
from imax_jax.schema import FINDINGS
from imax_jax.schema import ORGANS
from imax_jax.schema import Annotation
from imax_jax.schema import Answer
from imax_jax.schema import Bits
from imax_jax.schema import Grade
from imax_jax.schema import Origin
from imax_jax.schema import Ratio
from imax_jax.schema import Region
from imax_jax.schema import Report


def entry_of(task, subtask, target, image_id="a1", number=0):
  annotation = Annotation(
    image_id, task, subtask, target, Origin("made", "x.csv", 3, "made")
  )
  return prompts.make_entry(annotation, number)


HEART = Region("heart", (0.25, 0.3109, 0.52, 0.7))
BITS = Bits((1, 0, 0, 1, 0, 0, 0, 0, 0, 0))


@pytest.mark.parametrize(
  ("task", "subtask", "target", "prompts_allowed", "answer"),
  [
    (
      "calculation",
      "cpar",
      Ratio(0.39038),
      [
        "[calculate] Based on the input image, calculate the cardiopulmonary area ratio "
        "(CPAR) value."
      ],
      "0.3904",
    ),
    (
      "calculation",
      "ctr",
      Ratio(0.494),
      [
        "[calculate] Based on the input image, calculate the cardiothoracic ratio (CTR) "
        "value."
      ],
      "0.4940",
    ),
    (
      "report",
      "",
      Report(" The lungs are clear. "),
      [
        "[caption] Provide a detailed description of findings and impressions about "
        "this image."
      ],
      "The lungs are clear.",
    ),
    (
      "multi_class",
      "",
      Grade("vascular congestion"),
      [
        "[cls] Based on the input image, analyze and determine which category of "
        "pulmonary edema severity belongs to: none, vascular congestion, interstitial "
        "edema, alveolar edema."
      ],
      "vascular congestion",
    ),
    (
      "multi_label",
      "",
      BITS,
      [
        "[cls] Based on the input image, determine the presence or absence of the "
        "following conditions: Lung Opacity, Pleural Effusion, Atelectasis, Pneumonia, "
        "Edema, Consolidation, Pneumothorax, Fracture, Infiltration, and Nodule. The "
        "output format should be a comma-separated string of 10 binary digits (0 or 1), "
        "where each digit corresponds to the presence (1) or absence (0) of the "
        "respective condition in the order listed above."
      ],
      "1,0,0,1,0,0,0,0,0,0",
    ),
    (
      "rec",
      "heart",
      HEART,
      [
        "[rec] Based on the input image, could you tell me the location of the heart.",
        "[rec] Based on the input image, where can I locate the heart.",
      ],
      "<250><310><520><700>",
    ),
    (
      "reg",
      "heart",
      HEART,
      [
        "[reg] Based on the input image, the object in <250><310><520><700> is",
        "[reg] Based on the input image, what object is in this location "
        "<250><310><520><700>?",
      ],
      "heart",
    ),
    (
      "vqa",
      "query",
      Answer("point out {all} locations", ("left lung", "right lung")),
      ["[vqa] Based on the input image, point out {all} locations"],
      "left lung, right lung.",
    ),
    (
      "vqa",
      "verify",
      Answer("Is it?", ("yes",)),
      ["[vqa] Based on the input image, Is it?"],
      "yes",
    ),
    (
      "vqa",
      "choose",
      Answer("Which?", ()),
      ["[vqa] Based on the input image, Which?"],
      "none",
    ),
  ],
)
def test_wording_is_figure_1s(task, subtask, target, prompts_allowed, answer):
  seen = set()
  for number in range(40):
    entry = entry_of(task, subtask, target, number=number)
    assert entry.id == f"a1/{task}/{subtask}/{number}"
    assert entry.answer == answer
    seen.add(entry.prompt)
  assert seen == set(prompts_allowed)


def test_other_classes_and_labels_are_asked_alike():
  grade = entry_of("multi_class", "", Grade("PA", ("PA", "AP")))
  assert grade.prompt == (
    "[cls] Based on the input image, analyze and determine which category it belongs "
    "to: PA, AP."
  )
  assert "conditions: Mass and Hernia. The" in prompts.prompt_of(
    "multi_label", "", Bits((1, 0), ("Mass", "Hernia"))
  )
  assert "string of 2 binary digits" in prompts.prompt_of(
    "multi_label", "", Bits((1, 0), ("Mass", "Hernia"))
  )
  assert prompts.prompt_of("multi_class", "") == prompts.prompt_of(
    "multi_class", "", Grade("none")
  )
  assert " the left lung." in prompts.prompt_of("rec", "left lung", entry_id="2")


def test_wording_is_chosen_alike_in_every_process():
  program = (
    "from imax_jax.data import prompts\n"
    "print(''.join(str(len(prompts.prompt_of('rec', 'heart', entry_id=str(i))) % 2)"
    " for i in range(64)))"
  )
  runs = {
    subprocess.run(
      [sys.executable, "-c", program],
      env={"PYTHONHASHSEED": salt, "PATH": "", "PYTHONPATH": ":".join(sys.path)},
      check=True,
      capture_output=True,
    ).stdout
    for salt in ("1", "2")
  }
  assert len(runs) == 1
  assert len(set(runs.pop().strip())) == 2


def test_what_is_answered_never_enters_the_prompt():
  for one, two in [
    (("multi_class", "", Grade("none")), Grade("alveolar edema")),
    (("multi_label", "", BITS), Bits((0,) * 10)),
    (("rec", "heart", HEART), Region("heart", (0, 0, 1, 1))),
    (("reg", "heart", HEART), Region("left lung", HEART.box)),
    (("vqa", "verify", Answer("Is it?", ("yes",))), Answer("Is it?", ("no",))),
    (("calculation", "ctr", Ratio(0.4)), Ratio(0.6)),
    (("report", "", Report("clear")), Report("opacity")),
  ]:
    task, subtask, target = one
    assert entry_of(task, subtask, target).prompt == entry_of(task, subtask, two).prompt


@pytest.mark.parametrize(
  ("task", "subtask", "target", "message"),
  [
    ("calculation", "ctr", Ratio(float("nan")), "ratio nan"),
    ("calculation", "ctr", Ratio(-0.1), "ratio -0.1"),
    ("calculation", "width", Ratio(0.5), "ratio 'width'"),
    ("calculation", "ctr", Report("x"), "expected a Ratio, got a Report"),
    ("multi_class", "", Grade("severe"), "grade 'severe'"),
    ("multi_label", "", Bits((1, 0)), "expected 10"),
    ("multi_label", "", Bits((2,) * 10), "expected 10"),
    ("rec", "heart", Region("heart", (0.5, 0, 0.4, 1)), "x_min"),
    ("rec", "heart", Region("heart", (0, 0, float("nan"), 1)), "x_min"),
    ("reg", "", Region(" ", (0, 0, 1, 1)), "no name"),
    ("report", "", Report(" "), "empty"),
    ("vqa", "query", Answer("Q?", ("",)), "empty"),
    ("ct", "", Report("x"), "task 'ct'"),
  ],
)
def test_a_target_that_cannot_be_said_is_refused(task, subtask, target, message):
  with pytest.raises(ValueError, match=message) as error:
    entry_of(task, subtask, target)
  assert "x.csv row 3" in str(error.value)


WORDS = st.text(
  st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1
)
WORDS = WORDS.map(str.strip).filter(bool)


@given(st.floats(0, 999))
def test_round_trip_of_ratios(value):
  for subtask in ("ctr", "cpar"):
    entry = entry_of("calculation", subtask, Ratio(value))
    assert prompts.parse(entry, entry.answer).value == pytest.approx(value, abs=5.1e-5)


@given(WORDS)
def test_round_trip_of_reports(text):
  entry = entry_of("report", "", Report(text))
  if text == ".":
    return
  assert prompts.parse(entry, entry.answer) == Report(text)


@given(st.lists(WORDS, min_size=2, unique_by=lambda n: n.casefold().strip(". ")))
def test_round_trip_of_grades(names):
  names = tuple(name for name in names if name.strip(". "))
  for classes in (EDEMA_GRADES, names):
    for name in classes:
      entry = entry_of("multi_class", "", Grade(name, classes))
      assert prompts.parse(entry, entry.answer) == entry.target


@given(st.lists(st.integers(0, 1), min_size=10, max_size=10), st.integers(1, 10))
def test_round_trip_of_bits(values, count):
  target = Bits(tuple(values[:count]), FINDINGS[:count])
  entry = entry_of("multi_label", "", target)
  assert prompts.parse(entry, entry.answer) == target


@given(
  st.tuples(*[st.floats(0, 1)] * 4), st.sampled_from([*ORGANS, "Nodule", "Left Lung"])
)
def test_round_trip_of_boxes_and_names(sides, name):
  x, y = sorted(sides[::2]), sorted(sides[1::2])
  target = Region(name, (x[0], y[0], x[1], y[1]))
  rec, reg = entry_of("rec", name, target), entry_of("reg", name, target)
  parsed = prompts.parse(rec, rec.answer)
  assert parsed.name == name
  for got, given_side in zip(parsed.box, target.box, strict=True):
    assert 0 <= given_side - got < 1e-3 + 1e-12
  assert prompts.parse(reg, reg.answer) == target
  # Said again, a parsed box is the same text: rounding happens once.
  assert prompts.box_text(parsed) == rec.answer


def test_every_thousandth_survives():
  for side in range(1001):
    box = (side / 1000, 0, 1, 1)
    assert prompts.box_text(Region("heart", box)) == f"<{side}><0><1000><1000>"


def test_figure_1s_boxes_are_pixels_y_before_x():
  # The heart of Figure 1, "<1032><963><2151><2183>", in a film of 3056 x 2544 pixels.
  box = (963 / 2544, 1032 / 3056, 2183 / 2544, 2151 / 3056)
  heart = Region("heart", box, scale=(2544, 3056), order="yx")
  rec, reg = entry_of("rec", "heart", heart), entry_of("reg", "heart", heart)
  assert rec.answer == "<1032><963><2151><2183>"
  assert rec.answer in reg.prompt
  parsed = prompts.parse(rec, rec.answer)
  assert parsed.box == pytest.approx(box, abs=1 / 2544)
  assert prompts.parse(reg, "heart") == heart
  # 2600 is inside the height and outside the width.
  assert prompts.parse(rec, "<0><0><2600><10>").box[3] == 2600 / 3056
  with pytest.raises(prompts.ParseError, match=r"out of 0\.\.3056"):
    prompts.parse(rec, "<0><0><10><2600>")


def test_a_template_id_names_the_wording():
  for number in range(8):
    target = Region("heart", (0.1, 0.2, 0.3, 0.4))
    entry = prompts.make_entry(
      Annotation("a", "rec", "heart", target, Origin("made", "x", 0, "made")), number
    )
    key, choice = prompts.template_id(entry).split("/")
    wording = prompts.TEMPLATES[key][int(choice)]
    assert entry.prompt == wording.format(name="heart")
  other = Grade("mild", ("mild", "severe"))
  entry = entry_of("multi_class", "", other)
  assert prompts.template_id(entry) == "multi_class/other/0"


def test_boxes_are_clipped():
  assert (
    prompts.box_text(Region("heart", (-0.2, 0, 1.0001, 7.0))) == "<0><0><1000><1000>"
  )


@given(WORDS, st.lists(WORDS, max_size=4))
def test_round_trip_of_answers(question, answers):
  if any(not answer.strip(". ") for answer in answers) or answers == ["none"]:
    return
  target = Answer(question, tuple(answers), "presence")
  entry = entry_of("vqa", "query", target)
  assert prompts.parse(entry, entry.answer) == target


RATIO = entry_of("calculation", "ctr", Ratio(0.5))
GRADE = entry_of("multi_class", "", Grade("none"))
LABELS = entry_of("multi_label", "", BITS)
REC, REG = entry_of("rec", "heart", HEART), entry_of("reg", "heart", HEART)
QUERY = entry_of(
  "vqa", "query", Answer("Where?", ("left lung", "right lung"), "anatomy")
)


@pytest.mark.parametrize(
  ("entry", "text", "target"),
  [
    (RATIO, " 0.39. ", Ratio(0.39)),
    (RATIO, ".5", Ratio(0.5)),
    (RATIO, "1", Ratio(1.0)),
    (GRADE, "Interstitial EDEMA.", Grade("interstitial edema")),
    (LABELS, "0,1,0,1,0,0,0,0,0,0 .", Bits((0, 1, 0, 1, 0, 0, 0, 0, 0, 0))),
    (REC, " <1><2><3><4>.", Region("heart", (0.001, 0.002, 0.003, 0.004))),
    (REC, "<0><0><0><0>", Region("heart", (0, 0, 0, 0))),
    (REG, "Left Lung.", Region("left lung", HEART.box)),
    (REG, "spleen", Region("spleen", HEART.box)),
    (QUERY, "Left lung", Answer("Where?", ("left lung",), "anatomy")),
    (QUERY, "none.", Answer("Where?", (), "anatomy")),
    (QUERY, "right lung, heart", Answer("Where?", ("right lung", "heart"), "anatomy")),
  ],
)
def test_parse_forgives_case_spaces_and_a_period(entry, text, target):
  assert prompts.parse(entry, text) == target


@pytest.mark.parametrize(
  ("entry", "text", "reason"),
  [
    (RATIO, "about 0.5", "no number"),
    (RATIO, "-0.5", "no number"),
    (RATIO, "0.5..", "no number"),
    (RATIO, "nan", "no number"),
    (RATIO, "1e5", "no number"),
    (RATIO, "٣", "no number"),
    (RATIO, "9" * 400, "no number"),
    (RATIO, " . ", "empty"),
    (GRADE, "edema", "not one of the classes"),
    (GRADE, "none, vascular congestion", "not one of the classes"),
    (LABELS, "0,1,0,1,0,0,0,0,0", "expected 10 digits, got 9"),
    (LABELS, "0, 1,0,1,0,0,0,0,0,0", "not binary digits"),
    (LABELS, "2,1,0,1,0,0,0,0,0,0", "not binary digits"),
    (LABELS, "0101000000", "not binary digits"),
    (REC, "heart", "no box"),
    (REC, "<1><2><3>", "no box"),
    (REC, "{<1><2><3><4>}", "no box"),
    (REC, "<1><2><3><1001>", "box out of 0..1000"),
    (REC, "<-1><2><3><4>", "box out of 0..1000"),
    (REC, "<3><2><1><4>", "box corners reversed"),
    (REC, "<1><4><3><2>", "box corners reversed"),
    (REG, "", "empty"),
    (QUERY, "\n", "empty"),
  ],
)
def test_parse_forgives_nothing_else(entry, text, reason):
  with pytest.raises(prompts.ParseError) as error:
    prompts.parse(entry, text)
  assert error.value.reason == reason


@given(st.text(), st.sampled_from([RATIO, GRADE, LABELS, REC, REG, QUERY]))
def test_any_text_parses_or_gives_a_reason(text, entry):
  try:
    target = prompts.parse(entry, text)
  except prompts.ParseError as error:
    reason = error.reason
  else:
    assert type(target) is type(entry.target)
    return
  assert 0 < len(reason) < 40
