"""METEOR of tokenised texts, as nltk computes it with WordNet 3.0.

Words are matched in three rounds: equal words, equal Porter stems, synonyms. Each round
goes through the words generated from the last to the first and gives each the last
reference word that is left. As in nltk, the third round sees the stems that the second
one left, so only synonyms that are their own stems are ever found; this is kept, for the
number to be nltk's.
"""

from __future__ import annotations

import functools
import itertools
from collections import defaultdict
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence

from nltk.stem import porter

from imax_jax.evaluate.scores import wordnet

_ALPHA, _BETA, _GAMMA = 0.9, 3.0, 0.5

Words = list[tuple[int, str]]  # (place in its text, word)


def meteor(truth: Sequence[str], text: Sequence[str]) -> float:
  """The score of one generated text against one reference, in [0, 1].

  (1 - γ (chunks / matches)^β) · P R / (α P + (1 - α) R) with α 0.9, β 3, γ 0.5 (Lavie and
  Agarwal 2007); 0 where no word matches.
  """
  pairs = _align(truth, text)
  if not pairs:
    return 0.0
  precision, recall = len(pairs) / len(text), len(pairs) / len(truth)
  mean = precision * recall / (_ALPHA * precision + (1 - _ALPHA) * recall)
  chunks = 1 + sum(
    (i + 1, j + 1) != after for (i, j), after in itertools.pairwise(pairs)
  )
  return (1 - _GAMMA * (chunks / len(pairs)) ** _BETA) * mean


def _align(truth: Sequence[str], text: Sequence[str]) -> list[tuple[int, int]]:
  """(place in the text, place in the truth) of every match, in the text's order."""
  got = [(i, word.lower()) for i, word in enumerate(text)]
  want = [(j, word.lower()) for j, word in enumerate(truth)]
  pairs, got, want = _round(got, want, lambda word: (word,))
  if got and want:
    got = [(i, stem(word)) for i, word in got]
    want = [(j, stem(word)) for j, word in want]
    more, got, want = _round(got, want, lambda word: (word,))
    pairs += more
  if got and want:
    more, _, _ = _round(got, want, _alike)
    pairs += more
  return sorted(pairs)


def _round(
  got: Words, want: Words, alike: Callable[[str], Iterable[str]]
) -> tuple[list[tuple[int, int]], Words, Words]:
  """Pairs of places, and the words of both sides that no pair holds."""
  places: dict[str, list[int]] = defaultdict(list)
  for j, word in want:
    places[word].append(j)
  pairs, left = [], []
  for i, word in reversed(got):
    left_of = [places[other] for other in alike(word) if places.get(other)]
    if left_of:
      pairs.append((i, max(left_of, key=lambda found: found[-1]).pop()))
    else:
      left.append((i, word))
  taken = {j for _, j in pairs}
  return pairs, left[::-1], [(j, word) for j, word in want if j not in taken]


stem = functools.cache(porter.PorterStemmer().stem)


@functools.cache
def _alike(word: str) -> frozenset[str]:
  return wordnet.synonyms(word) | {word}
