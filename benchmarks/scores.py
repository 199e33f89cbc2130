"""Seconds that the text metrics take for the reports of IMAX, and beside the packages.

    python -m benchmarks.scores [--reports 45715] [--compared 2000]

Invented reports of about 50 words (`benchmarks/invented.py`) are scored by the metrics
themselves, one process, nothing kept from one metric to the next but what they keep on
their own. Prints seconds for each metric, their sum, and over a part of the reports how
many times as long the package takes whose number it is, in the same run; packages that
are not installed (pycocoevalcap with its Java, rouge) are named. Then what the two scorers
make of the same invented answers, and how well the rules that read findings agree with
the truth of the phantom's reports.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import random
import time
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import numpy as np
from nltk.translate import bleu_score
from nltk.translate import meteor_score
from rouge_score import rouge_scorer

from benchmarks import invented
from imax_jax.data import prompts
from imax_jax.data.phantom import reports as phantom_reports
from imax_jax.data.phantom import roster
from imax_jax.evaluate import metrics
from imax_jax.evaluate import predictions as predictions_lib
from imax_jax.evaluate import published
from imax_jax.evaluate import scoring
from imax_jax.evaluate.scores import findings
from imax_jax.evaluate.scores import labels
from imax_jax.evaluate.scores import text
from imax_jax.evaluate.scores import wordnet
from imax_jax.schema import EDEMA_GRADES
from imax_jax.schema import FINDINGS
from imax_jax.schema import Annotation
from imax_jax.schema import Answer
from imax_jax.schema import Entry
from imax_jax.schema import Grade
from imax_jax.schema import Origin
from imax_jax.schema import Prediction
from imax_jax.schema import Region
from imax_jax.schema import Report
from imax_jax.schema import Target

Pairs = Sequence[tuple[str, str]]
_ORIGIN = Origin("made", "invented.txt", 0, "made")


def predictions_of(pairs: Pairs) -> list[Prediction]:
  return [
    Prediction(
      Entry(
        f"i{n}/report//0", f"i{n}", "report", "", "?", truth, Report(truth), _ORIGIN
      ),
      said,
      Report(said),
      "",
    )
    for n, (truth, said) in enumerate(pairs)
  ]


# ── The packages ──────────────────────────────────────────────────────────────────


def _nltk_bleu(pairs: Pairs) -> float:
  words = [[text.report_words(t) for t in pair] for pair in pairs]
  return bleu_score.corpus_bleu(
    [[truth] for truth, _ in words], [said for _, said in words], weights=(1.0, 0, 0, 0)
  )


def _rouge_score(pairs: Pairs) -> float:
  scorer = rouge_scorer.RougeScorer(["rouge1"], use_stemmer=False)
  return float(np.mean([scorer.score(*pair)["rouge1"].fmeasure for pair in pairs]))


class _Table:
  """nltk's WordNet reader, with our table under it: quicker than its files."""

  def synsets(self, word: str) -> list[_Table]:
    self.names = wordnet.synonyms(word)
    return [self]

  def lemmas(self) -> list[Any]:
    return [_Lemma(name) for name in self.names]


class _Lemma(str):
  def name(self) -> str:
    return self


def _nltk_meteor(pairs: Pairs) -> float:
  words = [[text.report_words(t) for t in pair] for pair in pairs]
  return float(
    np.mean([meteor_score.meteor_score([a], b, wordnet=_Table()) for a, b in words])
  )


def _coco_bleu(pairs: Pairs) -> float:
  bleu = importlib.import_module("pycocoevalcap.bleu.bleu").Bleu(1)
  tokenizer = importlib.import_module("pycocoevalcap.tokenizer.ptbtokenizer")
  with contextlib.redirect_stdout(io.StringIO()):
    sides = [
      tokenizer.PTBTokenizer().tokenize(
        {n: [{"caption": pair[side]}] for n, pair in enumerate(pairs)}
      )
      for side in (0, 1)
    ]
    return bleu.compute_score(*sides)[0][0]


def _rouge(pairs: Pairs) -> float:
  rouge = importlib.import_module("rouge").Rouge(metrics=["rouge-1"])
  scores = []
  for pair in pairs:
    want, got = (published._twice(t) for t in pair)
    if want and got:
      scores.append(rouge.get_scores(got, want)[0]["rouge-1"]["f"])
  return float(np.mean(scores))


PACKAGES: dict[tuple[str, str], tuple[str, Callable[[Pairs], float]]] = {
  ("strict", "report_bleu1"): ("nltk", _nltk_bleu),
  ("strict", "report_rouge1"): ("rouge-score", _rouge_score),
  ("strict", "report_meteor"): ("nltk", _nltk_meteor),
  ("legacy", "report_bleu1"): ("pycocoevalcap", _coco_bleu),
  ("legacy", "report_rouge1"): ("rouge", _rouge),
}


def seconds(work: Callable[..., float], given: Sequence[Any]) -> tuple[float, float]:
  start = time.perf_counter()
  value = work(given)
  return time.perf_counter() - start, value


def labeller(patients: int) -> str:
  """How the rules agree with what the phantom's reports were written from."""
  rng = np.random.default_rng(0)
  want, got = [], []
  for visit in roster.draw_roster(0, patients):
    said = phantom_reports.findings_text(visit, visit.study.ctr, rng)
    said += " " + phantom_reports.impression_text(visit, rng)
    want.append(visit.exposures[0].case.bits)
    got.append(findings.bits(said))
  same = np.equal(want, got)
  value = labels.f1(want, got)
  return (
    f"findings of {len(want)} phantom reports: {100 * same.mean():.2f} % of "
    f"{len(FINDINGS)} labels right, {100 * same.all(axis=1).mean():.2f} % of reports, "
    f"micro F1 {100 * value.micro:.2f}, macro F1 {100 * value.macro:.2f}"
  )


def invented_answers(count: int) -> list[Prediction]:
  """Right, loose, wrong and unreadable answers of every task but reports and ratios."""
  rng = random.Random(1)
  asked: list[tuple[str, str, Target, tuple[str, ...]]] = [
    (
      "vqa",
      "verify",
      Answer("Seen?", ("no",)),
      ("no", "No.", "normal", "not seen", "yes"),
    ),
    ("vqa", "verify", Answer("Seen?", ("yes",)), ("yes", "yes, it is", "no", "")),
    (
      "vqa",
      "choose",
      Answer("Which?", ("left lung",)),
      ("left lung", "left", "right lung"),
    ),
    (
      "vqa",
      "query",
      Answer("What?", ("one nodule",)),
      ("1 nodule", "a nodule", "none"),
    ),
    ("vqa", "query", Answer("What?", ()), ("none", "0", "nothing")),
    (
      "multi_class",
      "",
      Grade(EDEMA_GRADES[0]),
      ("none", "None.", "0", "alveolar edema"),
    ),
    (
      "reg",
      "heart",
      Region("heart", (0.3, 0.4, 0.7, 0.8)),
      ("heart", "the heart", "lung"),
    ),
  ]
  made = []
  for number in range(count):
    task, subtask, target, texts = rng.choice(asked)
    made.append((number, task, subtask, target, rng.choice(texts)))
    x, y, size = rng.randint(0, 500), rng.randint(0, 500), rng.randint(5, 400)
    box = Region("heart", (x / 1000, y / 1000, (x + size) / 1000, (y + size) / 1000))
    a, b = x + rng.randint(-9, 60), y + rng.randint(-9, 60)
    said = f"<{max(a, 0)}><{max(b, 0)}><{a + size}><{b + size}>"
    loose = rng.choice((said, said, said, f"{said} is the heart", "the heart", ""))
    made.append((number, "rec", "heart", box, loose))
  entries = [
    prompts.make_entry(Annotation(f"i{n}", task, subtask, target, _ORIGIN), 0)
    for n, task, subtask, target, _ in made
  ]
  return predictions_lib.predict_values(entries, [text for *_, text in made])


def both_scorers(count: int) -> str:
  predictions = invented_answers(count)
  strict = scoring.score(predictions)
  legacy = scoring.score(predictions, metrics.LEGACY)
  rows = [f"{name:17} {strict[name]:6.2f} {legacy[name]:6.2f}" for name in legacy]
  return f"{'invented answers':17} strict legacy\n" + "\n".join(rows)


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument("--reports", type=int, default=45_715)
  parser.add_argument("--compared", type=int, default=2_000)
  asked = parser.parse_args()
  rng = random.Random(0)
  pairs = [invented.report_pair(rng) for _ in range(asked.reports)]
  predictions = predictions_of(pairs)
  words = np.mean([len(truth.split()) for truth, _ in pairs])
  print(f"{len(pairs)} reports of {words:.0f} words on average")
  # The packages refuse empty texts, and the published scripts cut long references.
  few = [
    (" ".join(truth.split()[: published.MAX_WORDS]), said.lower())
    for truth, said in pairs
    if said
  ][: asked.compared]
  chosen = {"strict": metrics.STRICT, "legacy": metrics.LEGACY}
  total = 0.0
  for (scorer, name), (package, theirs) in PACKAGES.items():
    metric = next(m for m in chosen[scorer] if m.name == name)
    taken, value = seconds(metric.value, predictions)
    total += taken
    line = f"{scorer} {name:14} {taken:6.1f} s  {value:6.2f}"
    if importlib.util.find_spec(package.replace("-", "_")):
      ours, value = seconds(metric.value, predictions_of(few))
      long, other = seconds(theirs, few)
      line += f"  {package} takes {long / ours:5.1f} times as long over {len(few)}"
      line += f", {100 * other - value:+.1e} apart"
    else:
      line += f"  {package} is not installed"
    print(line, flush=True)
  print(f"all five {total:6.1f} s")
  print(both_scorers(2000))
  print(labeller(1000))


if __name__ == "__main__":
  main()
