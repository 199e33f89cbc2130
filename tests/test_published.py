"""The legacy scores are the published scripts' and the reference packages'.

golden/text_scores.json.gz holds what these say of 600 invented pairs and their edge cases
(golden/make_text_scores.py says which versions); nltk and rouge are asked here as well.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from nltk.translate import bleu_score

from benchmarks import invented
from imax_jax.evaluate import metrics
from imax_jax.evaluate import published
from imax_jax.evaluate.scores import java_meteor
from imax_jax.evaluate.scores import meteor
from imax_jax.evaluate.scores import ptb
from imax_jax.evaluate.scores import text
from imax_jax.evaluate.scores import wordnet
from imax_jax.schema import Entry
from imax_jax.schema import Origin
from imax_jax.schema import Prediction
from imax_jax.schema import Region
from imax_jax.schema import Report
from imax_jax.schema import Target

FOLDER = Path(__file__).parent / "golden"
GOLDEN = json.loads(gzip.decompress((FOLDER / "text_scores.json.gz").read_bytes()))
UNIMED = json.loads((FOLDER / "metrics_unimed_40.json").read_text("utf-8"))
PAIRS = [tuple(pair) for pair in GOLDEN["pairs"]]
LEGACY = {metric.name: metric for metric in metrics.LEGACY}
# METEOR 1.5 is run where its jar is: pycocoevalcap/meteor/meteor-1.5.jar.
JAR = os.environ.get("IMAX_JAX_METEOR_JAR", "")
EXACT = {"rel": 0, "abs": 1e-9}


def asked_of(
  task: str, subtask: str, answer: str, target: Target | None = None
) -> Entry:
  """An entry whose answer is `answer`, whatever its target says."""
  origin = Origin("made", "invented.csv", 0, "made")
  target = target or Report(answer)
  return Entry("i0/t/s/0", "i0", task, subtask, "?", answer, target, origin)


def reports(pairs: Iterable[tuple[str, str]]) -> list[Prediction]:
  return [
    Prediction(asked_of("report", "", truth), said, None, "not looked at")
    for truth, said in pairs
  ]


# ── Six hundred pairs ─────────────────────────────────────────────────────────────


def test_the_pairs_are_many_and_hold_the_edges():
  assert len(PAIRS) >= 500
  assert set(invented.EDGES) <= set(PAIRS)
  assert invented.pairs(200, seed=3) == invented.pairs(200, seed=3)
  assert sum(len(truth.split()) > 30 for truth, _ in PAIRS) > 200


def test_tokens_are_the_penn_treebank_tokenizers():
  truths, said = GOLDEN["ptb"]
  for (truth, text_said), a, b in zip(PAIRS, truths, said, strict=True):
    assert " ".join(ptb.report_tokens(truth)) == a, truth
    assert " ".join(ptb.report_tokens(text_said.lower())) == b, text_said


def test_bleu1_is_pycocoevalcaps():
  truths, said = ([" ".join(t.split()).split() for t in side] for side in GOLDEN["ptb"])
  rows = text.bleu1_counts(truths, said)
  want = np.multiply(100, GOLDEN["bleu1"]["each"])
  np.testing.assert_allclose(published.bleu1(rows), want, rtol=0, atol=1e-9)
  corpus = 100 * GOLDEN["bleu1"]["corpus"]
  assert published.bleu1(rows.sum(0)) == pytest.approx(corpus, **EXACT)


def test_rouge1_is_the_rouge_packages():
  compared = 0
  for (truth, said), want in zip(PAIRS, GOLDEN["rouge1"], strict=True):
    if want is not None:
      assert text.rouge1_of_sets(truth, said) == pytest.approx(want, **EXACT)
      compared += 1
  assert compared >= 500


def test_legacy_rouge_is_the_installed_packages_on_both_normalisations():
  rouge = pytest.importorskip("rouge").Rouge(metrics=["rouge-1"])
  # A longer reference is cut before.
  short = [pair for pair in PAIRS if len(pair[0].split()) <= published.MAX_WORDS]
  want = []
  for truth, said in short:
    a, b = (published._twice(t) for t in (truth, said.lower()))
    if truth.strip() and said.strip() and a and b:
      want.append(rouge.get_scores(b, a)[0]["rouge-1"]["f"])
  assert 300 < len(want) < len(short)
  metric = LEGACY["report_rouge1"]
  assert metric.value(reports(short)) == pytest.approx(100 * np.mean(want), **EXACT)


def test_strict_rouge1_is_the_f_measure_of_words_with_their_counts():
  for truth, said in PAIRS:
    want, got = (Counter(re.findall("[a-z0-9]+", t.lower())) for t in (truth, said))
    shared = (want & got).total()
    value = 2 * shared / (want.total() + got.total()) if shared else 0.0
    assert text.rouge1(truth, said) == pytest.approx(value, **EXACT)


@pytest.mark.filterwarnings("ignore::UserWarning")  # of higher orders that count 0
def test_bleu1_of_one_answer_is_nltks():
  for truth, said in PAIRS:
    want, got = (text.normalise(t, legacy=True).split() for t in (truth, said))
    value = bleu_score.sentence_bleu([want], got, weights=(1, 0, 0, 0))
    assert text.answer_bleu1(truth, said, legacy=True) == pytest.approx(value, **EXACT)


def test_meteor_is_nltks_with_wordnet():
  for (truth, said), want in zip(PAIRS, GOLDEN["meteor_nltk"], strict=True):
    assert text.meteor(truth, said) == pytest.approx(want, **EXACT)


def test_meteor_finds_the_synonyms_that_nltk_finds():
  golden, helped = GOLDEN["synonyms"], 0
  for (truth, said), want in zip(golden["pairs"], golden["meteor_nltk"], strict=True):
    a, b = truth.split(), said.split()
    assert meteor.meteor(a, b) == pytest.approx(want, **EXACT)
    found = dict(meteor._align(a, b))
    helped += any(meteor.stem(b[i]) != meteor.stem(a[j]) for i, j in found.items())
  assert helped > 30


def test_words_share_synsets_by_their_base_forms():
  assert "mouse" in wordnet.synonyms("mice")  # an irregular form
  assert {"effusion", "outburst"} <= wordnet.synonyms("Effusions")  # an ending
  assert "walk" in wordnet.synonyms("bases-on-balls")  # through a name of two words
  assert wordnet.synonyms("qwxz") == frozenset()


def test_meteor_15s_counts_make_its_score():
  golden = GOLDEN["meteor_java"]
  rows = np.array([line.split() for line in golden["counts"]], float)
  rows = java_meteor.without_whole(rows)
  each = java_meteor.score_of(rows)
  np.testing.assert_allclose(each, golden["each"], rtol=0, atol=1e-9)
  corpus = java_meteor.score_of(rows.sum(axis=0))
  assert corpus == pytest.approx(golden["corpus"], **EXACT)


@pytest.mark.skipif(not JAR or not shutil.which("java"), reason="no METEOR 1.5 jar")
def test_meteor_15_runs():
  (metric,) = (m for m in metrics.legacy(JAR) if m.name == "report_meteor")
  short = [p for p in PAIRS if len(p[0].split()) <= published.MAX_WORDS][:80]
  rows = metric.statistics(reports(short))
  where = {pair: i for i, pair in enumerate(PAIRS)}
  kept = [row.any() for row in rows]
  want = [GOLDEN["meteor_java"]["each"][where[pair]] for pair in short]
  got = java_meteor.score_of(rows)
  np.testing.assert_allclose(got[kept], np.array(want)[kept], rtol=0, atol=1e-9)
  assert 0 < sum(kept) < len(kept)  # pairs with an empty side are left out


def test_meteor_15_is_asked_of_the_users_jar(tmp_path, monkeypatch):
  jar = tmp_path / "meteor-1.5.jar"
  with pytest.raises(ValueError, match=r"meteor-1\.5\.jar.*found no file"):
    java_meteor.counts(jar, [("a", "a")])
  jar.write_bytes(b"")
  program(
    tmp_path / "java",
    'echo "$@" >>asked; while read -r line; do echo "$line" >>asked; echo 2 2 0 0 2 2 $(printf "0 %.0s" $(seq 14)) 1 2 2; done',
  )
  monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
  pairs = [("no effusion", "no effusion"), ("", "heart"), ("heart", "a  heart ||| x")]
  (metric,) = (m for m in metrics.legacy(jar) if m.name == "report_meteor")
  rows = metric.statistics(reports(pairs))
  assert not rows[1].any()
  assert metric.combine(rows[[0, 2]].sum(0)) == pytest.approx(100)
  asked = (tmp_path / "asked").read_text().splitlines()
  assert asked[0].endswith(f"-jar {jar} - - -stdio -l en -norm")
  assert asked[1:] == [
    "SCORE ||| no effusion ||| no effusion",
    "SCORE ||| heart ||| heart | | | x",
  ]
  program(tmp_path / "java", "echo Error: no paraphrases")
  with pytest.raises(ValueError, match=r"23 numbers for each of 2 pairs, got 1 rows"):
    metric.statistics(reports(pairs))
  (tmp_path / "java").unlink()
  monkeypatch.setenv("PATH", str(tmp_path))
  with pytest.raises(ValueError, match="java"):
    metric.statistics(reports(pairs))


def program(path: Path, text: str) -> None:
  path.write_text(f"#!/bin/bash\n{text}\n")
  path.chmod(0o755)


# ── The metrics that use them ─────────────────────────────────────────────────────


def test_the_rest_of_table_2_is_named_with_its_reason():
  names = [metric.name for metric in metrics.STRICT]
  assert {*LEGACY, *metrics.NOT_LEGACY} == set(names)
  assert not set(LEGACY) & set(metrics.NOT_LEGACY)
  assert list(LEGACY) == [name for name in names if name in LEGACY]
  for metric in (*metrics.STRICT, *metrics.LEGACY):
    assert metric.definition.endswith(".") and metric.unparsed and metric.version
  with_jar = metrics.legacy("meteor-1.5.jar")
  assert {m.name for m in with_jar} - set(LEGACY) == {"report_meteor"}


@pytest.mark.parametrize("pair", UNIMED["pairs"], ids=lambda p: repr(p["ref"]))
def test_answers_score_as_the_published_scripts_say(pair):
  """The forty worked pairs, through the metrics themselves."""
  for name, task, subtask, want in (
    ("vqa_verify_acc", "vqa", "verify", pair["vqa_substring_acc"]),
    ("reg_acc", "reg", "heart", pair["exact_acc_identify"]),
    ("multi_class_acc", "multi_class", "", pair["exact_acc_cls"]),
    ("vqa_choose_bleu1", "vqa", "choose", pair["nltk_bleu"]["bleu1"]),
    ("vqa_query_bleu1", "vqa", "query", pair["nltk_bleu"]["bleu1"]),
  ):
    asked = asked_of(task, subtask, pair["ref"])
    said = Prediction(asked, pair["raw_pred"], None, "not looked at")
    assert LEGACY[name].concerns(asked)
    assert LEGACY[name].value([said]) == pytest.approx(100 * want, **EXACT)


def test_reports_score_as_the_published_scripts_say():
  pairs = [(p["ref"], p["raw_pred"]) for p in UNIMED["pairs"]]
  metric = LEGACY["report_rouge1"]
  rows = metric.statistics(reports(pairs))
  for row, pair in zip(rows, UNIMED["pairs"], strict=True):
    if pair["rouge"] is None:
      assert not row.any(), pair["ref"]
    else:
      want = pair["rouge"]["rouge-1"]["f"]
      assert row.tolist() == pytest.approx([1, want], **EXACT)


def test_references_are_cut_and_empty_pairs_dropped():
  long = " ".join(f"w{i}" for i in range(60))
  whole, cut = reports([(long, long)]), reports([(long, " ".join(long.split()[:50]))])
  for name in ("report_bleu1", "report_rouge1"):
    metric = LEGACY[name]
    assert metric.value(whole) < metric.value(cut)
    assert metric.value(cut) == pytest.approx(100, abs=1e-5)
    kept = reports([("no effusion", "no effusion"), ("no effusion", "")])
    assert metric.value(kept) == pytest.approx(100, abs=1e-5)
  strict = {metric.name: metric for metric in metrics.STRICT}
  assert strict["report_rouge1"].value(kept) == pytest.approx(50)


@pytest.mark.parametrize(
  ("text_said", "want"),
  [
    ("<100><100><199><199>", 1.0),
    (" <100> <100><199><199> is the heart", 1.0),
    ("{<100><100><199><199>}", 1.0),
    ("<unk><100><100><199><149>", 0.5),
    ("the heart is at <100><100><199><199>", 0.0),
    ("<100><100><199>", 0.0),
    ("<10000><100><199><199>", 0.0),
    ("", 0.0),
  ],
)
def test_boxes_count_both_edges(text_said, want):
  asked = asked_of("rec", "heart", "", Region("heart", (0.1, 0.1, 0.199, 0.199)))
  said = [Prediction(asked, text_said, None, "not looked at")]
  assert LEGACY["rec_iou"].value(said) == pytest.approx(100 * want, **EXACT)
  assert LEGACY["rec_r50"].value(said) == (100.0 if want > 0.5 else 0.0)


def test_a_box_that_names_y_first_is_turned():
  region = Region("heart", (0.1, 0.2, 0.3, 0.5), order="yx")
  asked = asked_of("rec", "heart", "", region)
  said = [Prediction(asked, "<200><100><500><300>", None, "")]
  assert LEGACY["rec_iou"].value(said) == pytest.approx(100, **EXACT)


def test_the_documentation_has_every_definition():
  page = (FOLDER.parents[1] / "docs" / "metrics.md").read_text("utf-8")
  for metric in (*metrics.STRICT, *metrics.legacy("meteor-1.5.jar")):
    assert f"`{metric.name}`" in page
    assert metric.definition in page and metric.unparsed in page, metric.name
