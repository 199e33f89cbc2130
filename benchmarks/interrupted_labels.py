"""Pseudo-labelling that is killed twenty times, and one that is not: the same bytes.

  python -m benchmarks.interrupted_labels [--kills 20] [--seed 0]

The program itself (configs/three_stage.py:tiny) trains a primary model until it has learnt
how answers look, then does the verb `pseudo` twice: at one go, and killed with kill -9 at
random instants of its labelling and started again with the same command. Prints each start
and compares the bytes of the labels, of what was rejected and kept, of the journal, and of
the losses of both runs that train on them; ends with 1 where anything differs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from imax_jax.pseudo import journal
from imax_jax.pseudo import stages
from imax_jax.pseudo import stream

_ROOT = Path(__file__).parent.parent
_LABELS = Path(stages.labels_station(0))
_COMPARED = (
  _LABELS / stream.LABELS,
  _LABELS / stream.REJECTED,
  _LABELS / journal.MARK,
  Path(stages.kept_station("pseudo", 0)) / "kept.npy",
  Path("runs") / "pseudo_pretrain-s0" / "metrics.jsonl",
  Path("runs") / "pseudo-s0" / "metrics.jsonl",
)
_MOST_IMAGES, _MOST_SECONDS = 4, 0.5  # that a start is left


def command(workdir: Path, *verbs: str) -> list[str]:
  return [
    sys.executable, "-m", "imax_jax.main", "--config", "configs/three_stage.py:tiny",
    "--workdir", str(workdir), "--config.train.runs=('dmax',)",
    "--config.train.epochs=60", "--config.train.save_steps=200",
    "--config.data.hospital.num_patients=100", "--config.pseudo.images_at_once=1",
    "--config.pseudo.pretrain_epochs=0.2", "--config.pseudo.finetune_epochs=0.2",
    "--config.evaluate.max_new_tokens=64", *verbs,
  ]  # fmt: skip


def images(workdir: Path) -> int | None:
  """How many are labelled; None: it has not begun."""
  if not (workdir / _LABELS / "station.json").is_file():
    return None
  try:
    return int(journal.state_of(workdir / _LABELS)["images"])
  except ValueError:
    return 0


def start(workdir: Path, rng: np.random.Generator | None) -> int:
  """Runs to its end, or is killed after a few more images; gives the exit code."""
  before = images(workdir) or 0
  more = before + int(rng.integers(0, _MOST_IMAGES)) if rng is not None else 0
  pause = float(rng.uniform(0, _MOST_SECONDS)) if rng is not None else 0.0
  with (
    tempfile.TemporaryFile("w+") as words,
    subprocess.Popen(
      command(workdir, "pseudo"), cwd=_ROOT, stdout=words, stderr=words
    ) as run,
  ):
    begun = False
    while rng is not None and run.poll() is None:
      words.seek(0)
      begun = begun or f"{_LABELS}: begun" in words.read()
      done = images(workdir)
      if begun and done is not None and done >= more:
        time.sleep(pause)
        run.kill()
        break
      time.sleep(0.005)
    code = run.wait()
    if code not in (0, -signal.SIGKILL):
      words.seek(0)
      sys.exit(f"interrupted_labels: exit code {code}\n{words.read()[-2000:]}")
  return code


def main() -> None:
  parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
  parser.add_argument("--kills", type=int, default=20)
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
    start(straight, None)
    counts = stream.counts_of(straight / _LABELS)
    made, asked = (sum(counts[key].values()) for key in ("made", "asked"))
    total = images(straight)
    sys.stdout.write(f"one go: {made} of {asked} labels made for {total} images\n")
    kills = 0
    while kills < options.kills:
      if start(cut, rng) == 0:
        sys.exit(f"interrupted_labels: ended after {kills} kills; give fewer --kills")
      kills += 1
      torn = [
        (cut / _LABELS / name).stat().st_size - size
        for name, size in _sizes(cut).items()
      ]
      sys.stdout.write(
        f"kill {kills}: {images(cut)} of {total} images, {sum(torn)} bytes behind them\n"
      )
      sys.stdout.flush()
    start(cut, None)
    differ = [
      str(path)
      for path in _COMPARED
      if (straight / path).read_bytes() != (cut / path).read_bytes()
    ]
  sys.stdout.write(
    f"{kills} kills: {len(_COMPARED)} files, "
    f"{'the same to the byte' if not differ else f'DIFFER: {differ}'}\n"
  )
  if differ:
    sys.exit(1)


def _sizes(workdir: Path) -> dict[str, int]:
  """What the journal says is written."""
  path = workdir / _LABELS / journal.MARK
  return dict(json.loads(path.read_text("utf8"))["sizes"]) if path.is_file() else {}


if __name__ == "__main__":
  main()
