"""The legacy scores are the published scripts' and the reference packages'.

golden/text_scores.json.gz holds what these say of 600 invented pairs and their edge cases
(golden/make_text_scores.py says which versions); nltk and rouge are asked here as well.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from benchmarks import invented
from imax_jax.data import prompts
from imax_jax.evaluate import metrics
from imax_jax.evaluate import published
from imax_jax.evaluate.scores import java_meteor
from imax_jax.evaluate.scores import meteor
from imax_jax.evaluate.scores import ptb
from imax_jax.evaluate.scores import text
from imax_jax.evaluate.scores import wordnet
from imax_jax.schema import Annotation
from imax_jax.schema import Entry
from imax_jax.schema import Origin
from imax_jax.schema import Prediction
from imax_jax.schema import Report

FOLDER = Path(__file__).parent / "golden"
GOLDEN = json.loads(gzip.decompress((FOLDER / "text_scores.json.gz").read_bytes()))
UNIMED = json.loads((FOLDER / "metrics_unimed_40.json").read_text("utf-8"))
PAIRS = [tuple(pair) for pair in GOLDEN["pairs"]]
LEGACY = {metric.name: metric for metric in metrics.LEGACY}
# METEOR 1.5 is run where its jar is: pycocoevalcap/meteor/meteor-1.5.jar.
JAR = os.environ.get("IMAX_JAX_METEOR_JAR", "")
EXACT = {"rel": 0, "abs": 1e-9}


def entry(task: str, subtask: str, target, answer: str = "") -> Entry:
  origin = Origin("made", "invented.csv", 0, "made")
  made = prompts.make_entry(Annotation("i0", task, subtask, target, origin), 0)
  return made if not answer else Entry(*[*_fields(made)[:5], answer, target, origin])


def _fields(made: Entry) -> list:
  return [
    getattr(made, name) for name in ("id", "image_id", "task", "subtask", "prompt")
  ]


def reports(pairs) -> list[Prediction]:
  """As predictions, their references not cut."""
  asked = entry("report", "", Report("x"))
  head = _fields(asked)
  return [
    Prediction(Entry(*head, truth, Report(truth), asked.origin), said, None, "?")
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
