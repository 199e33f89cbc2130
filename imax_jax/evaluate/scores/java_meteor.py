"""METEOR 1.5 by the user's own copy of its Java program, as the published scripts run it.

The program (LGPL) and its paraphrase table are not part of this package; pycocoevalcap
1.2 has both, `meteor-1.5.jar` with the folder `data` beside it. Nothing leaves the
machine. What it counts of each pair can be summed, and `score_of` makes the score of
the sums (Denkowski and Lavie 2014), equal to the program's own.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np

# Of English, as the program's `-l en` sets them.
_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.2, 0.6, 0.75
_WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])  # exact, stem, synonym, paraphrase
# Words and function words of both sides, four matched counts for each of the four kinds
# of match, chunks, matched words of both sides.
COUNTS = 23
_SECONDS = 600.0


def counts(jar: str | Path, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
  """What each (reference, text) pair adds to the program's counts: float64[N, 23].

  Texts are tokens with spaces between, on one line.

  Raises:
    ValueError: no such file, no Java, or the program's answer is not its counts.
  """
  jar = check(jar).absolute()
  lines = [
    " ||| ".join(("SCORE", truth, text.replace("|||", "").replace("  ", " ")))
    for truth, text in pairs
  ]
  rows = _run(jar, "".join(f"{line}\n" for line in lines)).splitlines()
  try:
    found = np.array([row.split() for row in rows], np.float64).reshape(
      len(pairs), COUNTS
    )
  except ValueError:
    raise ValueError(
      f"meteor_jar {str(jar)!r}: expected {COUNTS} numbers for each of {len(pairs)} "
      f"pairs, got {len(rows)} rows; METEOR 1.5 needs its folder `data` beside the jar"
    ) from None
  return without_whole(found)


def check(jar: str | Path) -> Path:
  """The program's file; raises a ValueError if it, or Java, is not there."""
  if not Path(jar).is_file():
    raise ValueError(
      f"meteor_jar {str(jar)!r}: expected METEOR 1.5's jar, found no file"
    )
  if not shutil.which("java"):
    raise ValueError(
      "meteor_jar: METEOR 1.5 needs `java` on the PATH; install a Java runtime or leave "
      "config.evaluate.meteor_jar empty"
    )
  return Path(jar)


def without_whole(rows: np.ndarray) -> np.ndarray:
  """`rows` without the chunk of pairs that match as a whole.

  That is no fragmentation, neither of the pair's own score nor of a sum's.
  """
  whole = (rows[:, 20] == 1) & (rows[:, 21:23] == rows[:, 0:2]).all(axis=-1)
  rows = rows.copy()
  rows[whole, 20] = 0.0
  return rows


def _run(jar: Path, lines: str) -> str:
  command = ["java", "-Xmx2G", "-Dfile.encoding=UTF-8", "-jar", str(jar)]
  command += ["-", "-", "-stdio", "-l", "en", "-norm"]
  done = subprocess.run(
    command,
    input=lines.encode(),
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,  # it may repeat the texts
    cwd=jar.parent,
    check=False,
    timeout=_SECONDS + len(lines) / 1000,
  )
  return done.stdout.decode()


def score_of(sums: np.ndarray) -> np.ndarray:
  """METEOR 1.5, float64[...] in [0, 1], of summed counts float64[..., 23]."""
  matched = sums[..., 4:20].reshape(*sums.shape[:-1], 4, 4)  # kind, (side and sort)
  content, function = matched[..., 0:2], matched[..., 2:4]
  weighed = _WEIGHTS @ (_DELTA * content + (1 - _DELTA) * function)  # text, reference
  words, functions = sums[..., 0:2], sums[..., 2:4]
  length = _DELTA * (words - functions) + (1 - _DELTA) * functions
  precision, recall = np.moveaxis(_ratio(weighed, length), -1, 0)
  mean = _ratio(precision * recall, _ALPHA * precision + (1 - _ALPHA) * recall)
  chunks, pairs = sums[..., 20], sums[..., 21:23]
  fragmentation = _ratio(chunks, pairs.mean(axis=-1))
  return mean * (1 - _GAMMA * fragmentation**_BETA)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
  return np.where(whole > 0, part / np.where(whole > 0, whole, 1.0), 0.0)
