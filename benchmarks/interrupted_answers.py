"""An evaluation that is killed again and again, and one that is not: the same bytes.

  python -m benchmarks.interrupted_answers [--kills 6] [--seed 0]

The program itself (configs/phantom.py:tiny) is built and trained once, then evaluated twice:
at one go, and killed with kill -9 when some more answers of a run are on its file, and
started again with the same command. Prints each start; compares the bytes of the answers and
of the scores, and ends with 1 where they differ.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

_ROOT = Path(__file__).parent.parent
_MOST_ANSWERS = 40  # that a start is left


def command(workdir: Path, *verbs: str) -> list[str]:
  return [
    sys.executable, "-m", "imax_jax.main", "--config", "configs/phantom.py:tiny",
    "--workdir", str(workdir), "--config.evaluate.rows=4", *verbs,
  ]  # fmt: skip


def lines(workdir: Path) -> int:
  """Answers on the files of all runs."""
  files = (workdir / "answers").glob("*/predictions.jsonl")
  return sum(path.read_bytes().count(b"\n") for path in files)


def start(workdir: Path, more: int) -> int | None:
  """Runs until so many more answers are there, or to its end; gives the exit code."""
  before = lines(workdir)
  with (
    tempfile.TemporaryFile() as words,
    subprocess.Popen(
      command(workdir, "evaluate"), cwd=_ROOT, stdout=words, stderr=words
    ) as run,
  ):
    while more and run.poll() is None and lines(workdir) < before + more:
      time.sleep(0.002)
    if run.poll() is None and more:
      run.kill()
      run.wait()
      return None
    code = run.wait()
    if code:
      words.seek(0)
      said = words.read().decode("utf8", "replace")
      sys.exit(f"interrupted_answers: exit code {code}\n{said[-2000:]}")
    return code


def main() -> None:
  parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
  parser.add_argument("--kills", type=int, default=6)
  parser.add_argument("--seed", type=int, default=0, help="of the instants")
  options = parser.parse_args()
  os.environ["JAX_PLATFORMS"] = "cpu"
  rng = np.random.default_rng(options.seed)
  with tempfile.TemporaryDirectory() as folder:
    straight, cut = Path(folder) / "straight", Path(folder) / "cut"
    subprocess.run(
      command(straight, "build", "train"), cwd=_ROOT, check=True, capture_output=True
    )
    shutil.copytree(straight, cut)
    start(straight, 0)
    total, kills = lines(straight), 0
    while kills < options.kills:
      if start(cut, int(rng.integers(1, _MOST_ANSWERS))) is not None:
        sys.exit(f"interrupted_answers: ended after {kills} kills; give fewer --kills")
      kills += 1
      sys.stdout.write(f"kill {kills}: {lines(cut)} of {total} answers\n")
      sys.stdout.flush()
    start(cut, 0)
    paths = sorted(
      path.relative_to(straight)
      for pattern in ("answers/*/predictions.jsonl", "evaluations/*/scores.json")
      for path in straight.glob(pattern)
    )
    differ = [
      str(path)
      for path in paths
      if (straight / path).read_bytes() != (cut / path).read_bytes()
    ]
  told = f"DIFFER: {differ}" if differ else "the same to the byte"
  sys.stdout.write(f"{kills} kills: {len(paths)} files, {told}\n")
  if differ or not paths:
    sys.exit(1)


if __name__ == "__main__":
  main()
