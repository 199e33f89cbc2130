"""Which words share a synset with a word: what METEOR asks of WordNet 3.0.

The table ships with the package (`assets/wordnet.json.gz`, its licence beside it), so
that nothing is downloaded; `tests/golden/make_wordnet.py` makes it of WordNet's files.
"""

from __future__ import annotations

import functools
import gzip
import json
from collections import defaultdict
from pathlib import Path

_TABLE = Path(__file__).parents[2] / "assets" / "wordnet.json.gz"
# Endings of inflected forms and what they stand for, by part of speech.
_ENDINGS: dict[str, tuple[tuple[str, str], ...]] = {
  "n": (
    ("s", ""), ("ses", "s"), ("ves", "f"), ("xes", "x"), ("zes", "z"), ("ches", "ch"),
    ("shes", "sh"), ("men", "man"), ("ies", "y"),
  ),
  "v": (
    ("s", ""), ("ies", "y"), ("es", "e"), ("es", ""), ("ed", "e"), ("ed", ""),
    ("ing", "e"), ("ing", ""),
  ),
  "a": (("er", ""), ("est", ""), ("er", "e"), ("est", "e")),
  "r": (),
}  # fmt: skip


class _Part:
  """The words of one part of speech."""

  def __init__(self, synsets: list[list[str]], exceptions: dict[str, list[str]]):
    self.exceptions = exceptions
    self.sharing: dict[str, set[str]] = defaultdict(set)
    for names in synsets:
      words = [name for name in names if "_" not in name]
      for name in names:
        self.sharing[name.lower()].update(words)


@functools.cache
def _parts() -> dict[str, _Part]:
  with gzip.open(_TABLE, "rt", encoding="utf-8") as file:
    table = json.load(file)
  return {letter: _Part(**part) for letter, part in table.items()}


@functools.cache
def synonyms(word: str) -> frozenset[str]:
  """The single-word names, as WordNet spells them, of all synsets of a word.

  Those of nltk's `wordnet.synsets(word)`: of the word in lower case and of its base
  forms, found by WordNet's lists of irregular forms or else by its endings, for every
  part of speech. Empty for a word that WordNet lacks.
  """
  word = word.lower()
  found: set[str] = set()
  for letter, part in _parts().items():
    bases = part.exceptions.get(word)
    if bases is None:
      endings = _ENDINGS[letter]
      bases = [word[: -len(a)] + b for a, b in endings if word.endswith(a)]
    for form in (word, *bases):
      found |= part.sharing.get(form, set())
  return frozenset(found)
