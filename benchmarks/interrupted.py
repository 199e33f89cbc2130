"""A run that is killed again and again, and one that is not: the same losses to the bit.

  python -m benchmarks.interrupted [--kills 7] [--seed 0] [--picture docs/interrupted.png]

The program itself (configs/phantom.py:tiny) trains twice. The second time it is killed at
random instants, with kill -9 and with SIGTERM in turn, and started again with the same
command. Every line of metrics, the loss of each start's every step (those it did again
included) and the trained weights are compared; ends with 1 where anything differs. Draws
both curves and the starts.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from typing import NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg

from imax_jax.report import style
from imax_jax.train.interrupt import EXIT_AGAIN
from imax_jax.train.metrics import read_metrics

_ROOT = Path(__file__).parent.parent
_EPOCHS, _SAVE_STEPS = 60, 20
_RUN = Path("runs") / "imax-s0"
_LEAST, _MOST = 25, 75  # steps that a start is left
_SIGNALS = (signal.SIGKILL, signal.SIGTERM)
_NAMES = {signal.SIGKILL: "kill −9", signal.SIGTERM: "SIGTERM"}
_COLOURS = {
  signal.SIGKILL: style.RUN_COLOURS["dmax"],
  signal.SIGTERM: style.RUN_COLOURS["pseudo"],
}


class Start(NamedTuple):
  """One start of the program: the steps it trained, and what ended it."""

  begin: int  # updates done before it
  losses: dict[int, float]
  killed_by: signal.Signals | None

  @property
  def end(self) -> int:
    return max(self.losses, default=self.begin)


def command(workdir: Path, verb: str) -> list[str]:
  return [
    sys.executable, "-m", "imax_jax.main", "--config", "configs/phantom.py:tiny",
    "--workdir", str(workdir), "--config.train.runs=('imax',)",
    f"--config.train.epochs={_EPOCHS}", f"--config.train.save_steps={_SAVE_STEPS}", verb,
  ]  # fmt: skip


def start(
  workdir: Path, kill: signal.Signals | None, rng: np.random.Generator
) -> Start:
  """Runs until it ends, or is killed somewhere after a random number of new steps."""
  metrics = workdir / _RUN / "metrics.jsonl"
  more, pause = int(rng.integers(_LEAST, _MOST)), float(rng.uniform(0, 0.2))
  with (
    tempfile.TemporaryFile("w+") as words,
    subprocess.Popen(
      command(workdir, "train"), cwd=_ROOT, stdout=words, stderr=words
    ) as run,
  ):
    begin = None
    while run.poll() is None and kill is not None:
      begin = _begin(words) if begin is None else begin
      if begin is not None and _last_step(metrics) >= begin + more:
        time.sleep(pause)
        run.send_signal(kill)
        break
      time.sleep(0.02)
    code = run.wait()
    begin = _begin(words)
    expected = {None: 0, signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: EXIT_AGAIN}
    if code != expected[kill] or begin is None:
      words.seek(0)
      sys.exit(f"interrupted: {kill} and exit code {code}\n{words.read()[-2000:]}")
  losses = {row["step"]: row["loss"] for row in read_metrics(metrics)}
  return Start(begin, {s: loss for s, loss in losses.items() if s > begin}, kill)


def _begin(words: Any) -> int | None:
  """Where the program said that it goes on; None until it has said a thing of training."""
  words.seek(0)
  text = words.read()
  found = re.search(r"resuming .* at step (\d+) of", text)
  return (
    int(found[1]) if found else 0 if "training" in text or "done in" in text else None
  )


def _last_step(metrics: Path) -> int:
  rows = read_metrics(metrics) if metrics.is_file() else []
  return int(rows[-1]["step"]) if rows else 0


def weights(workdir: Path) -> Any:
  with ocp.StandardCheckpointer() as reader:
    return jax.device_get(
      reader.restore((workdir / _RUN / "snapshots/final").absolute())
    )


# ── The picture ─────────────────────────────────────────────────────────────────────


def draw(
  whole: dict[int, float], starts: Sequence[Start], worst: float, path: Path
) -> None:
  with style.new_figure(8.6, 5.0) as figure:
    figure.patch.set_alpha(1.0)
    figure.set_facecolor(style.PAPER)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[2.6, 1.0])
    _curves(top, whole, starts)
    top.set_title(
      f"training loss: {len(whole)} steps at one go, and in {len(starts)} starts; "
      f"largest difference {worst:g}"
    )
    _bars(bottom, starts)
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_figure(str(path), dpi=180)


def _curves(axes: Axes, whole: dict[int, float], starts: Sequence[Start]) -> None:
  steps = np.array(sorted(whole))
  axes.plot(steps, [whole[s] for s in steps], color=style.RUN_COLOURS["dmax_long"],
            linewidth=5.0, alpha=0.55, solid_capstyle="round", label="not interrupted")  # fmt: skip
  for number, one in enumerate(starts):
    before = starts[number - 1].losses if number else {}
    losses = {s: loss for s, loss in before.items() if s == one.begin} | one.losses
    steps = np.array(sorted(losses))
    axes.plot(steps, [losses[s] for s in steps], color=style.RUN_COLOURS["imax"],
              linewidth=0.9, label="killed and started again" if not number else None)  # fmt: skip
  seen = set()
  for one in starts:
    if one.killed_by is None:
      continue
    name = _NAMES[one.killed_by]
    axes.axvline(one.end, color=_COLOURS[one.killed_by], linewidth=1.0,
                 linestyle=(0, (3, 2)), label=None if name in seen else name)  # fmt: skip
    seen.add(name)
  axes.grid(axis="y")
  axes.spines["left"].set_visible(False)
  axes.legend(loc="upper right", ncols=2, frameon=True, facecolor=style.PAPER,
              edgecolor="none", framealpha=1.0, borderpad=0.7)  # fmt: skip


def _bars(axes: Axes, starts: Sequence[Start]) -> None:
  """A line a start, from where it went on to where it was killed; what is done again, paler."""
  for place, one in enumerate(starts):
    kept = starts[place + 1].begin if place + 1 < len(starts) else one.end
    colour = style.RUN_COLOURS["imax"]
    axes.barh(place, kept - one.begin, 0.62, left=one.begin, color=colour)
    axes.barh(place, one.end - kept, 0.62, left=kept, color=colour, alpha=0.3)
    if one.killed_by is not None:
      axes.plot(one.end, place, "X", color=_COLOURS[one.killed_by], markersize=7,
                markeredgecolor=style.PAPER, markeredgewidth=0.8)  # fmt: skip
      lost = one.end - kept
      said = f"{_NAMES[one.killed_by]}, {lost or 'no'} step{'s' * (lost != 1)} again"
    else:
      said = "the end"
    left = one.end > 0.7 * starts[-1].end
    axes.annotate(
      said, (one.begin if left else one.end, place), xytext=(-7 if left else 9, 0),
      textcoords="offset points", va="center", ha="right" if left else "left",
      fontsize=8.0, color=style.MUTED,
    )  # fmt: skip
  axes.set_ylim(len(starts) - 0.4, -0.6)
  axes.set_yticks(range(len(starts)), [f"start {i + 1}" for i in range(len(starts))])
  axes.set_xlabel("step", color=style.MUTED)
  axes.set_xlim(0, starts[-1].end)
  axes.spines["left"].set_visible(False)


# ── Both runs ───────────────────────────────────────────────────────────────────────


def main() -> None:
  parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
  parser.add_argument("--kills", type=int, default=7)
  parser.add_argument("--seed", type=int, default=0, help="of the instants")
  parser.add_argument("--picture", type=Path, default=_ROOT / "docs/interrupted.png")
  options = parser.parse_args()
  os.environ["JAX_PLATFORMS"] = "cpu"
  rng = np.random.default_rng(options.seed)
  with tempfile.TemporaryDirectory() as folder:
    straight, cut = Path(folder) / "straight", Path(folder) / "cut"
    subprocess.run(
      command(straight, "build"), cwd=_ROOT, check=True, capture_output=True
    )
    shutil.copytree(straight, cut)
    whole = start(straight, None, rng).losses
    sys.stdout.write(f"one go: {len(whole)} steps\n")
    kills = [_SIGNALS[number % 2] for number in range(options.kills)]
    starts = []
    for kill in [*kills, None]:
      one = start(cut, kill, rng)
      starts.append(one)
      end = _NAMES[kill] if kill else "the end"
      sys.stdout.write(f"start {len(starts)}: steps {one.begin} to {one.end}, {end}\n")
      sys.stdout.flush()
    lines = [(path / _RUN / "metrics.jsonl").read_bytes() for path in (straight, cut)]
    trained = [weights(path) for path in (straight, cut)]
  done = [(step, loss) for one in starts for step, loss in one.losses.items()]
  worst = max(abs(loss - whole[step]) for step, loss in done)
  apart = max(
    float(np.abs(left - right).max())
    for left, right in zip(*map(jax.tree.leaves, trained), strict=True)
  )
  again = len(done) - len(whole)
  sys.stdout.write(
    f"{len(kills)} kills, {len(done)} steps for {len(whole)}, {again} of them again: "
    f"largest difference of a loss {worst:g}, of a weight {apart:g}; lines of metrics "
    f"{'the same to the byte' if lines[0] == lines[1] else 'DIFFER'}\n"
  )
  draw(whole, starts, worst, options.picture)
  if worst or apart or lines[0] != lines[1]:
    sys.exit("interrupted: the two runs differ")


if __name__ == "__main__":
  main()
