"""Makes `text_scores.json.gz`: what the reference packages say of 600 invented pairs.

    pip install pycocoevalcap==1.2 rouge==1.0.1 nltk==3.9.1    # and a Java runtime
    NLTK_DATA=… python -m tests.golden.make_text_scores

from the repository's root. NLTK_DATA/corpora/wordnet holds WordNet 3.0 as nltk reads it:
Debian's wordnet-base 3.0 with a file `lexnames` of the 45 names in lexnames(5WN) and an
empty `index.sense`. The pairs are kept, so that the file outlives their generator.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import random
from importlib.metadata import version
from pathlib import Path

from nltk.corpus.reader.wordnet import WordNetCorpusReader
from nltk.translate import meteor_score
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer
from rouge import Rouge

from benchmarks import invented
from imax_jax.evaluate.scores import text
from imax_jax.evaluate.scores import wordnet

PAIRS, SYNONYM_PAIRS = 600, 150
GOLDEN = Path(__file__).parent / "text_scores.json.gz"


def tokens(texts: list[str]) -> list[str]:
  """pycocoevalcap's, which puts all texts into one file.

  One more keeps the last text from standing at the file's end.
  """
  captions = {i: [{"caption": t}] for i, t in enumerate([*texts, "the end"])}
  found = PTBTokenizer().tokenize(captions)
  return [found[i][0] for i in range(len(texts))]


def coco(scorer: Bleu | Meteor, truths: list[str], said: list[str]) -> tuple:
  with contextlib.redirect_stdout(io.StringIO()):
    return scorer.compute_score(
      {i: [t] for i, t in enumerate(truths)}, {i: [t] for i, t in enumerate(said)}
    )


def synonym_pairs() -> list[tuple[str, str]]:
  """Word lists in which synonyms and inflected forms are common."""
  rng = random.Random(0)
  roots = [
    "heart",
    "lung",
    "child",
    "big",
    "right",
    "left",
    "small",
    "clear",
    "line",
    "tube",
    "high",
    "low",
    "old",
    "new",
    "rib",
    "bone",
    "fluid",
    "air",
    "mass",
    "spot",
    "shadow",
    "growth",
    "swell",
    "mice",
    "men",
    "feet",
    "leaves",
    "better",
    "worst",
    "ran",
    "seen",
    "found",
    "area",
    "point",
    "top",
    "side",
    "base",
    "part",
    "size",
    "shape",
    "form",
    "mark",
    "sign",
    "change",
    "rise",
    "fall",
    "stop",
  ]
  made = []
  for _ in range(SYNONYM_PAIRS):
    pool = [rng.choice(roots) for _ in range(rng.randint(1, 12))]
    other = [rng.choice(sorted(wordnet.synonyms(w) | {w, f"{w}s"})) for w in pool]
    rng.shuffle(other)
    made.append((" ".join(pool), " ".join(other[: rng.randint(0, 12)])))
  return made


def main() -> None:
  pairs = [(a, b) for a, b in invented.pairs(PAIRS)]
  truths, said = (list(side) for side in zip(*pairs, strict=True))
  said_lower = [t.lower() for t in said]
  ptb_truths, ptb_said = tokens(truths), tokens(said_lower)
  bleu, bleus = coco(Bleu(4), ptb_truths, ptb_said)
  # METEOR is fed with the tokens of the texts that normalize_word has left.
  plain = [[text.normalise(t, legacy=True) for t in side] for side in (truths, said)]
  java_truths, java_said = (tokens(side) for side in plain)
  scorer = Meteor()
  counts = [scorer._stat(b, [a]) for a, b in zip(java_truths, java_said, strict=True)]
  meteor, meteors = coco(scorer, java_truths, java_said)
  rouge = Rouge(metrics=["rouge-1"])

  def rouge1(truth: str, got: str) -> float | None:
    if not (truth.replace(".", "") and got.replace(".", "")):
      return None  # the package refuses
    return rouge.get_scores(got, truth)[0]["rouge-1"]["f"]

  reader = WordNetCorpusReader(
    str(Path(os.environ["NLTK_DATA"]) / "corpora" / "wordnet"), None
  )

  def nltk_meteor(truth: list[str], got: list[str]) -> float:
    return meteor_score.meteor_score([truth], got, wordnet=reader)

  packages = ("pycocoevalcap", "rouge", "nltk")
  synonyms = synonym_pairs()
  golden = {
    "versions": {name: version(name) for name in packages} | {"wordnet": "3.0"},
    "pairs": pairs,
    "ptb": [ptb_truths, ptb_said],
    "bleu1": {"corpus": bleu[0], "each": bleus[0]},
    "rouge1": [rouge1(a, b) for a, b in pairs],
    "meteor_java": {"corpus": meteor, "each": meteors, "counts": counts},
    "meteor_nltk": [nltk_meteor(*map(text.report_words, pair)) for pair in pairs],
    "synonyms": {
      "pairs": synonyms,
      "meteor_nltk": [nltk_meteor(a.split(), b.split()) for a, b in synonyms],
    },
  }
  packed = json.dumps(golden, ensure_ascii=False, separators=(",", ":")).encode()
  GOLDEN.write_bytes(gzip.compress(packed, compresslevel=9, mtime=0))
  print(f"{GOLDEN}: {GOLDEN.stat().st_size} bytes, {golden['versions']}")


if __name__ == "__main__":
  main()
