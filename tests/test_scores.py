"""Scores: the published implementations' numbers, nltk, and hand-made cases."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from nltk.translate import bleu_score

from imax_jax.data import prompts
from imax_jax.evaluate import constants
from imax_jax.evaluate import metrics
from imax_jax.evaluate import predictions as predictions_lib
from imax_jax.evaluate import scoring
from imax_jax.evaluate.scores import boxes
from imax_jax.evaluate.scores import labels
from imax_jax.evaluate.scores import meteor
from imax_jax.evaluate.scores import text
from imax_jax.schema import EDEMA_GRADES
from imax_jax.schema import Annotation
from imax_jax.schema import Answer
from imax_jax.schema import Bits
from imax_jax.schema import Entry
from imax_jax.schema import Grade
from imax_jax.schema import Origin
from imax_jax.schema import Prediction
from imax_jax.schema import Ratio
from imax_jax.schema import Region
from imax_jax.schema import Report
from imax_jax.schema import Target

GOLDEN = json.loads(
  (Path(__file__).parent / "golden" / "metrics_unimed_40.json").read_text("utf-8")
)
WORDS = st.lists(
  st.sampled_from(["no", "left", "lung", "effusion", "heart", "size"]), max_size=8
)


def entry(task: str, subtask: str, target: Target, number: int = 0) -> Entry:
  origin = Origin("made", "invented.csv", number, "made")
  return prompts.make_entry(Annotation(f"i{number}", task, subtask, target, origin), 0)


def predict(*pairs: tuple[Entry, str]) -> list[Prediction]:
  return predictions_lib.predict_values([e for e, _ in pairs], [t for _, t in pairs])


# ── The published implementations ─────────────────────────────────────────────────


@pytest.mark.parametrize("pair", GOLDEN["pairs"], ids=lambda p: repr(p["ref"]))
def test_text_scores_are_the_published_ones(pair):
  truth, got = pair["ref"], pair["pred"]
  assert text.normalise(truth, legacy=True) == pair["norm_ref"]
  assert text.normalise(pair["raw_pred"], legacy=True) == pair["norm_pred"]
  assert text.is_match(truth, got, legacy=True) == pair["exact_acc_cls"]
  substring = text.is_match(truth, got, substring=True, legacy=True)
  assert substring == pair["vqa_substring_acc"]
  bleu = text.answer_bleu1(truth, got, legacy=True)
  assert bleu == pytest.approx(pair["nltk_bleu"]["bleu1"], abs=1e-12)


def test_meteor_is_the_published_nltk_one():
  for pair in GOLDEN["pairs"]:
    want, got = pair["norm_ref"].split(), pair["norm_pred"].split()
    assert meteor.meteor(want, got) == pytest.approx(
      pair["nltk_meteor_norm"], abs=1e-12
    )


@pytest.mark.parametrize("case", GOLDEN["iou_plus_one"])
def test_iou_with_plus_one_is_the_published_one(case):
  value = boxes.iou(case["box1"], case["box2"], plus_one=True)
  assert value == pytest.approx(case["iou"], abs=1e-12)


# ── Words ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
  ("raw", "words"),
  [
    ("The left-lung.", "left lung"),
    ("1,0,0,1", "1 0 0 1"),
    ("1, 0, 0, 1", "1 0 0 1"),
    ("none", "none"),
    ("0.494.", "0.494"),
    ("two <unk>nodules!", "2 nodules"),
    ("pleural - based x-ray", "pleural based x ray"),
    ("Don't", "dont"),
    ("Größe_3", "größe 3"),
    ("...", ""),
  ],
)
def test_strict_normalisation(raw, words):
  assert text.normalise(raw) == words


@given(st.text(alphabet="aA1.,-'<é one", max_size=20))
def test_strict_normalisation_settles(raw):
  # A second pass may still drop an article or a point that the first laid bare, and
  # after that nothing changes: no mark or space is left between the words.
  twice = text.normalise(text.normalise(raw))
  assert text.normalise(twice) == twice
  assert twice == " ".join(twice.split())


def test_each_metrics_words_are_as_the_document_says():
  said = "Don't <unk> the two none 3.5 a.b"
  assert text.report_words(said) == [
    "dont", "unk", "the", "two", "none", "3.5", "a", "b"
  ]  # fmt: skip
  assert text.normalise(said) == "dont 2 none 3.5 b"
  assert text.is_match("a", "the")
  assert text.rouge1("日本語", "日本語") == 0.0
  assert text.rouge1("œdème", "d me") == 1.0
  assert text.meteor("日本語", "日本語") > 0.0


def test_no_is_not_found_in_normal():
  assert not text.is_match("no", "normal")
  assert text.is_match("no", "normal", substring=True)


# nltk counts an empty text as one wrong word in a corpus; pycocoevalcap and we do not.
@pytest.mark.filterwarnings("ignore::UserWarning")  # of higher orders that count 0
@settings(max_examples=60)
@given(
  st.lists(st.tuples(WORDS, WORDS.filter(bool)), min_size=1, max_size=5),
)
def test_bleu1_is_nltks(pairs):
  truths, texts = [t for t, _ in pairs], [g for _, g in pairs]
  weights = (1.0, 0, 0, 0)
  want = bleu_score.corpus_bleu([[t] for t in truths], texts, weights=weights)
  assert text.bleu1(truths, texts) == pytest.approx(want, abs=1e-12)
  want = bleu_score.sentence_bleu([truths[0]], texts[0], weights=weights)
  assert text.bleu1(truths[:1], texts[:1]) == pytest.approx(want, abs=1e-12)
  assert text.bleu1([*truths, ["rib"]], [*texts, []]) <= text.bleu1(truths, texts)


def test_bleu1_sums_over_the_corpus_before_dividing():
  truths, texts = [["a", "b"], ["c"]], [["a", "b"], ["x"]]
  assert text.bleu1(truths, texts) == pytest.approx(2 / 3)
  brevity = math.exp(1 - 4 / 2)
  assert text.bleu1([["a", "b", "c", "d"]], [["a", "b"]]) == pytest.approx(brevity)


def test_rouge1_and_meteor_by_hand():
  assert text.rouge1("no effusion seen", "no effusion") == pytest.approx(0.8)
  assert text.meteor("no effusions", "no effusion") > 0.9  # by the stem
  assert text.meteor("right lung", "correct lung") > 0.9  # by a synonym
  assert text.meteor("large heart", "big heart") < 0.6  # whose stem is no word: larg
  assert text.meteor("heart", "") == 0.0


# ── Boxes, labels, ratios ─────────────────────────────────────────────────────────


def test_iou_by_hand():
  assert boxes.iou([0, 0, 10, 10], [5, 0, 15, 10]) == pytest.approx(1 / 3)
  assert boxes.iou([0, 0, 10, 10], [0, 0, 10, 10]) == 1.0
  assert boxes.iou([0, 0, 10, 10], [8, 8, 2, 2]) == 0.0  # reversed
  assert boxes.iou([5, 5, 5, 5], [5, 5, 5, 5]) == 0.0  # no area


@given(st.lists(st.lists(st.floats(0, 1000), min_size=8, max_size=8), min_size=1))
def test_iou_is_a_share_and_symmetric(rows):
  pairs = np.array(rows).reshape(-1, 2, 2, 2)
  pairs.sort(axis=2)
  a, b = pairs[:, 0].reshape(-1, 4), pairs[:, 1].reshape(-1, 4)
  value = boxes.iou(a, b)
  assert ((value >= 0) & (value <= 1 + 1e-9)).all()
  np.testing.assert_allclose(value, boxes.iou(b, a), rtol=1e-12)


def test_f1_by_hand_and_its_zero_division():
  truth = [[1, 0, 0, 0], [1, 1, 0, 0]]
  got = [[1, 1, 0, 0], [0, 0, 1, 0]]
  # TP FP FN: first 1 0 1, second 0 1 1, third 0 1 0; the fourth occurs nowhere.
  value = labels.f1(truth, got)
  assert value.micro == pytest.approx(2 * 1 / (2 * 1 + 2 + 2))
  assert value.macro == pytest.approx((2 / 3 + 0 + 0) / 3)
  assert labels.f1([[0, 0]], [[0, 0]]) == (0.0, 0.0)
  with pytest.raises(ValueError, match="bits"):
    labels.f1([[1, 0]], [[1]])


# ── All of Table 2 ────────────────────────────────────────────────────────────────

HEART = Region("heart", (0.3, 0.4, 0.7, 0.8))
EVERY_ENTRY = (
  entry("calculation", "ctr", Ratio(0.5), 0),
  entry("calculation", "cpar", Ratio(0.4), 1),
  entry("report", "", Report("No effusion. Heart size is normal."), 2),
  entry("multi_class", "", Grade(EDEMA_GRADES[1]), 3),
  entry("multi_label", "", Bits((1, 0, 1, 0, 0, 0, 0, 0, 0, 0)), 4),
  entry("rec", "heart", HEART, 5),
  entry("reg", "heart", HEART, 6),
  entry("vqa", "verify", Answer("is there an effusion?", ("yes",)), 7),
  entry("vqa", "choose", Answer("nodule or edema?", ("nodule",)), 8),
  entry("vqa", "query", Answer("where?", ("left lung", "right lung")), 9),
)


def test_right_answers_score_full_marks_in_the_papers_order():
  scores = scoring.score(predict(*((e, e.answer) for e in EVERY_ENTRY)))
  assert list(scores) == [metric.name for metric in metrics.STRICT]
  assert len(scores) == 16
  for metric in metrics.STRICT:
    want = 0.0 if metric.lower_is_better else 100.0
    # METEOR counts even one chunk as a little fragmentation.
    tolerance = 0.5 if metric.name == "report_meteor" else 1e-9
    assert scores[metric.name] == pytest.approx(want, abs=tolerance)


def test_unreadable_answers_count_and_are_counted():
  predictions = predict(*((e, "") for e in EVERY_ENTRY))
  scores = scoring.score(predictions)
  assert scores["ctr_mae"] == pytest.approx(50.0)  # as if it had said 0
  assert scores["cpar_rmse"] == pytest.approx(40.0)
  for metric in metrics.STRICT:
    if not metric.lower_is_better:
      assert scores[metric.name] == 0.0, metric.name
  counts = predictions_lib.count_unparsed(predictions)
  assert sum(counts["vqa"].values()) == 3
  assert set(counts) == {e.task for e in EVERY_ENTRY}


def test_wrong_answers_are_halved_not_hidden():
  good = entry("rec", "heart", HEART, 0)
  bad = entry("rec", "heart", HEART, 1)
  scores = scoring.score(predict((good, good.answer), (bad, "somewhere")))
  assert scores == {"rec_iou": pytest.approx(50.0), "rec_r50": pytest.approx(50.0)}


def test_errors_by_hand():
  pairs = ((0.5, "0.4"), (0.3, "0.5"))
  predictions = predict(*((entry("calculation", "ctr", Ratio(w)), g) for w, g in pairs))
  scores = scoring.score(predictions)
  assert scores["ctr_mae"] == pytest.approx(15.0)
  assert scores["ctr_rmse"] == pytest.approx(100 * math.sqrt(0.025))
  for metric in metrics.STRICT:
    with pytest.raises(ValueError, match=f"{metric.name}.*at least one"):
      metric.value([])


def test_a_task_without_entries_is_absent():
  scores = scoring.score(predict((EVERY_ENTRY[0], "0.4")))
  assert scores == {"ctr_mae": pytest.approx(10.0), "ctr_rmse": pytest.approx(10.0)}


def test_no_prediction_or_none_at_all_is_refused():
  for scored in (scoring.score, scoring.summary):
    with pytest.raises(ValueError, match="expected at least one, got none"):
      scored([])
    with pytest.raises(
      ValueError, match="prediction 0: expected a Prediction, got str"
    ):
      scored(["no effusion"])
  wrong = dataclasses.replace(EVERY_ENTRY[2], task="reprot")
  with pytest.raises(ValueError, match=r"i2/report.*expected a task.*'reprot'"):
    scoring.score([Prediction(wrong, "", None, "empty")])


def test_a_summary_says_all_of_an_evaluation():
  texts = ["?" if e.task == "rec" else e.answer for e in EVERY_ENTRY]
  said = scoring.summary(
    predictions_lib.predict_values(EVERY_ENTRY, texts), EVERY_ENTRY
  )
  assert json.loads(json.dumps(said, allow_nan=False)) == said
  names = [metric.name for metric in metrics.STRICT]
  assert list(said["scores"]) == names
  assert said["scores"]["rec_iou"] == said["legacy"]["rec_iou"] == 0
  assert sorted([*said["legacy"], *said["not_legacy"]]) == sorted(names)
  assert "meteor_jar" in said["not_legacy"]["report_meteor"]
  for kind, scores in (("strict", "scores"), ("legacy", "legacy")):
    assert list(said["definitions"][kind]) == list(said[scores])
    for words in said["definitions"][kind].values():
      assert list(words) == ["definition", "version", "unparsed"] and all(
        words.values()
      )
  assert said["asked"]["vqa"] == 3 and said["unparsed"] == {"rec": {"no box": 1}}
  assert (said["reports"]["distinct"], said["reports"]["of"]) == (1, 1)
  assert said["reports"]["findings_f1"]["each"]["Pleural Effusion"] is None
  one = scoring.summary(predict((EVERY_ENTRY[0], "0.4")))
  assert one["reports"] == {} and one["legacy"] == {}


def test_a_legacy_score_of_nothing_is_named_and_no_number():
  said = scoring.summary(predict((EVERY_ENTRY[2], "")))
  assert said["scores"]["report_rouge1"] == 0
  assert "report_rouge1" not in said["legacy"]
  assert "drops those" in said["not_legacy"]["report_rouge1"]


def test_predictions_of_other_entries_are_refused():
  predictions = predict(*((e, e.answer) for e in EVERY_ENTRY))
  for handed, asked, words in (
    (predictions, EVERY_ENTRY[1:], r"1 of entries that are not.*i0/calculation"),
    (predictions[1:], EVERY_ENTRY, r"1 missing of entries.*i0/calculation"),
    ([*predictions, predictions[3]], None, r"2 of 'i3/multi_class//0'.*each once"),
  ):
    with pytest.raises(ValueError, match=words):
      scoring.summary(handed, asked)


def test_unread_answers_cost_what_the_metric_says():
  """Half of every metric's answers cannot be read; each costs what `unparsed` says."""
  pairs = [(e, "") for e in EVERY_ENTRY] + [(e, e.answer) for e in EVERY_ENTRY]
  scores = scoring.score(predict(*pairs))
  brevity = math.exp(1 - 12 / 6)
  want = {
    "cpar_mae": 20, "cpar_rmse": 100 * math.sqrt(0.4**2 / 2), "ctr_mae": 25,
    "ctr_rmse": 100 * math.sqrt(0.5**2 / 2), "report_bleu1": 100 * brevity,
    "report_meteor": scoring.score(predict((EVERY_ENTRY[2], EVERY_ENTRY[2].answer)))[
      "report_meteor"] / 2,
    # Two labels missed, none invented.
    "multi_label_micro_f1": 100 * 4 / 6, "multi_label_macro_f1": 100 * 2 / 3,
  }  # fmt: skip
  for name, value in scores.items():
    assert value == pytest.approx(want.get(name, 50)), name


def test_sums_over_patients_combine_to_the_same_values():
  texts = [e.answer if i % 3 else "no heart" for i, e in enumerate(EVERY_ENTRY * 4)]
  predictions = predictions_lib.predict_values(EVERY_ENTRY * 4, texts)
  rng = np.random.default_rng(0)
  for metric in (*metrics.STRICT, *metrics.LEGACY):
    concerned = [p for p in predictions if metric.concerns(p.entry)]
    rows = metric.statistics(concerned)
    assert rows.dtype == np.float64 and len(rows) == len(concerned)
    weights = rng.integers(1, 4, (5, len(concerned)))
    drawn = metric.combine(weights @ rows)
    assert drawn.shape == (5,)
    for w, value in zip(weights, drawn, strict=True):
      again = [p for p, n in zip(concerned, w, strict=True) for _ in range(n)]
      assert metric.value(again) == pytest.approx(value, abs=1e-9), metric.name


def test_labels_of_several_sources_are_counted_by_name():
  first = entry("multi_label", "", Bits((1, 0), ("Nodule", "Edema")), 0)
  second = entry("multi_label", "", Bits((1, 1), ("Edema", "Mass")), 1)
  scores = scoring.score(predict((first, "1,1"), (second, "1,0")))
  # Nodule 1 0 0, Edema 1 1 0, Mass 0 0 1.
  assert scores["multi_label_micro_f1"] == pytest.approx(100 * 4 / 6)
  assert scores["multi_label_macro_f1"] == pytest.approx(100 * (1 + 2 / 3 + 0) / 3)


def test_a_target_of_another_kind_is_named():
  wrong = dataclasses.replace(EVERY_ENTRY[0], target=HEART)
  with pytest.raises(ValueError, match=r"i0/calculation.*Ratio.*Region"):
    scoring.score([Prediction(wrong, "", None, "empty")])
  with pytest.raises(ValueError, match="10 entries but 1 texts"):
    predictions_lib.predict_values(EVERY_ENTRY, [""])


@pytest.mark.parametrize(
  ("number", "answer", "correct", "note"),
  [
    (0, "0.4790", None, "off by 0.021"),
    (3, "vascular congestion", True, ""),
    (3, "none", False, ""),
    (4, "1,0,0,0,0,0,0,0,0,0", None, "9 of 10 labels right"),
    (5, "<300><400><700><800>", True, "IoU 1.00"),
    (5, "<0><0><100><100>", False, "IoU 0.00"),
    (5, "heart", False, "unreadable: no box"),
    (7, "yes", True, ""),
  ],
)
def test_verdict_of_one_prediction(number, answer, correct, note):
  (prediction,) = predict((EVERY_ENTRY[number], answer))
  assert scoring.judge(prediction) == scoring.Verdict(correct, note)


def test_predictions_file_round_trip(tmp_path):
  texts = [e.answer if i % 2 else "?" for i, e in enumerate(EVERY_ENTRY)]
  predictions = predictions_lib.predict_values(EVERY_ENTRY, texts)
  path = tmp_path / "runs" / "imax.jsonl"
  predictions_lib.write_predictions(path, predictions)
  rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
  assert list(rows[0]) == [
    "id", "task", "subtask", "prompt", "answer", "text", "value", "reason"
  ]  # fmt: skip
  assert rows[0]["value"] is None
  assert rows[0]["reason"]
  assert rows[5]["value"]["box"] == [0.3, 0.4, 0.7, 0.8]
  assert (
    predictions_lib.read_predictions(path, {e.id: e for e in EVERY_ENTRY})
    == predictions
  )
  with pytest.raises(ValueError, match=r"imax\.jsonl:1"):
    predictions_lib.read_predictions(path, {})


def test_a_killed_file_goes_on_and_a_wrong_one_is_refused(tmp_path):
  entries = {e.id: e for e in EVERY_ENTRY}
  predictions = predictions_lib.predict_values(
    EVERY_ENTRY, [f"{e.answer}\r\u2028\n" for e in EVERY_ENTRY]
  )
  path = tmp_path / "imax.jsonl"
  assert predictions_lib.read_whole_lines(path, entries) == {}
  predictions_lib.write_predictions(path, predictions)
  whole = path.read_bytes()
  # Killed after any byte, it goes on behind the last whole line.
  for cut in [*range(0, len(whole), 37), len(whole) - 1, len(whole)]:
    path.write_bytes(whole[:cut])
    known = predictions_lib.read_whole_lines(path, entries)
    assert list(known.values()) == predictions[: whole[:cut].count(b"\n")]
    with predictions_lib.appending(path) as add:
      for prediction in predictions[len(known) :]:
        add(prediction)
    assert path.read_bytes() == whole, cut
  # In whatever order they came, they are read in the entries'.
  lines = whole.splitlines(keepends=True)
  path.write_bytes(b"".join(lines[::-1]))
  assert predictions_lib.read_predictions(path, entries) == predictions

  def refused(content, match, among=entries):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=match) as caught:
      predictions_lib.read_predictions(path, among)
    assert "imax.jsonl" in str(caught.value)

  refused(b"", "0 predictions for .* expected one each")
  refused(b"", "0 predictions for 0 entries", {})
  refused(b"".join(lines[:-1]), f"none for {EVERY_ENTRY[-1].id}")
  refused(whole + lines[0], "has a prediction already")
  refused(whole[:-1], "cut off")
  other = {
    **entries,
    EVERY_ENTRY[0].id: dataclasses.replace(EVERY_ENTRY[0], answer="9"),
  }
  refused(whole, r"imax\.jsonl:1: .*another version of the data set", other)
  refused(whole.replace(b'"text"', b'"test"', 1), "damaged")


def test_a_failed_write_leaves_nothing(tmp_path):
  def broken():
    yield predict((EVERY_ENTRY[0], "0.5"))[0]
    raise OSError("disk full")

  predictions_lib.write_predictions(tmp_path / "imax.jsonl", [])
  with pytest.raises(OSError, match="disk full"):
    predictions_lib.write_predictions(tmp_path / "imax.jsonl", broken())
  assert [p.name for p in tmp_path.iterdir()] == ["imax.jsonl"]
  assert (tmp_path / "imax.jsonl").read_text() == ""


# ── Constants ─────────────────────────────────────────────────────────────────────


def scores_of(answered):
  return {
    m.name: m.value(answered[m.name]) for m in metrics.STRICT if m.name in answered
  }


def constant_texts(train, test):
  """Each test entry's constant by the first metric that concerns it."""
  answer = constants.constant_answers(train)
  return [answer(next(m for m in metrics.STRICT if m.concerns(e)), e) for e in test]


def test_constants_are_best_by_each_metrics_own_criterion():
  values = (0.4, 0.4, 0.4, 0.8)
  train = [entry("calculation", "ctr", Ratio(v), i) for i, v in enumerate(values)]
  test = [entry("calculation", "ctr", Ratio(v), 9) for v in (0.4, 0.5)]
  scores = scores_of(constants.constant_predictions(train, test))
  assert scores["ctr_mae"] == pytest.approx(5.0)  # the median, 0.4
  assert scores["ctr_rmse"] == pytest.approx(100 * math.sqrt(0.005))  # the mean, 0.5
  assert constant_texts(train, test) == ["0.4000", "0.4000"]


def test_constant_bits_differ_for_micro_and_macro():
  rows = [(1, 0, 0), (1, 0, 0), (1, 1, 0), (1, 0, 0), (0, 0, 0)]
  names = ("Edema", "Nodule", "Fracture")
  train = [entry("multi_label", "", Bits(row, names), i) for i, row in enumerate(rows)]
  scores = scores_of(constants.constant_predictions(train, train))
  assert scores["multi_label_micro_f1"] == pytest.approx(100 * 2 * 4 / (5 + 4 + 1))
  want = (2 * 4 / (5 + 4) + 2 * 1 / (5 + 1)) / 2
  assert scores["multi_label_macro_f1"] == pytest.approx(100 * want)


def test_constants_by_question_and_never_from_the_test_entries():
  organs = {"heart": (0.3, 0.4, 0.7, 0.8), "left lung": (0.5, 0.1, 0.9, 0.7)}
  train, test = [], []
  for i in range(6):
    for name, box in organs.items():
      region = Region(name, tuple(side + 0.01 * (i - 3) for side in box))
      train += [entry(task, name, region, i) for task in ("rec", "reg")]
      test += [entry(task, name, Region(name, box), 100 + i) for task in ("rec", "reg")]
    train.append(entry("vqa", "verify", Answer("seen?", ("yes" if i else "no",)), i))
    test.append(entry("vqa", "verify", Answer("seen?", ("no",)), 100 + i))
  scores = scores_of(constants.constant_predictions(train, test))
  assert scores["rec_iou"] > 90  # each organ has its own box
  assert scores["reg_acc"] == 50  # but one name for all: its sub-task is the answer
  assert scores["vqa_verify_acc"] == 0  # the majority of training
  other = constant_texts(train, [entry("report", "", Report("Clear."))])
  assert other == [""]  # training has no report


def test_constant_report_is_the_one_most_like_the_others():
  said = ["no effusion seen today", "no effusion seen", "no effusion", "broken rib"]
  train = [entry("report", "", Report(text), i) for i, text in enumerate(said)]
  assert constant_texts(train, train[:1]) == ["no effusion seen"]
  assert set(scores_of(constants.constant_predictions(train, train[:1]))) == {
    "report_bleu1", "report_rouge1", "report_meteor"
  }  # fmt: skip


def test_constants_do_not_depend_on_the_order_of_training_entries():
  rng = np.random.default_rng(0)
  train = [
    entry("vqa", "query", Answer("where?", (f"zone {rng.integers(9)}",)), i)
    for i in range(60)
  ]
  want = constant_texts(train, EVERY_ENTRY[-1:])
  assert constant_texts(train[::-1], EVERY_ENTRY[-1:]) == want


def test_a_prompt_alone_gives_away_organs_and_usual_answers():
  organs = {"heart": (0.3, 0.4, 0.7, 0.8), "left lung": (0.5, 0.1, 0.9, 0.7)}
  train = [entry("reg", name, Region(name, box)) for name, box in organs.items()]
  for i, (question, reply) in enumerate((("A?", "yes"), ("B?", "no"), ("C?", "no"))):
    train.append(entry("vqa", "verify", Answer(question, (reply,)), i))
  near = {name: tuple(x + 0.02 for x in box) for name, box in organs.items()}
  test = [entry("reg", name, Region(name, box), 9) for name, box in near.items()]
  test += [entry("vqa", "verify", Answer(q, ("yes",)), 9) for q in ("A?", "new?")]
  constant, blind = (
    scores_of(constants.constant_predictions(train, test)), scores_of(constants.blind_predictions(train, test))
  )  # fmt: skip
  assert (constant["reg_acc"], blind["reg_acc"]) == (50, 100)
  # A question never asked before gets the constant: no.
  assert (constant["vqa_verify_acc"], blind["vqa_verify_acc"]) == (0, 50)
