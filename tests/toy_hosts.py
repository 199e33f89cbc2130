"""A toy run as one of several processes, behind the program's own door.

    TOY=JSON python toy_hosts.py --config … --workdir DIR --distributed … train

Beside its metrics and checkpoints, the run's folder gets held-PROCESS.jsonl: which
records this process's arrays held at each step that was trained.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from imax_jax import experiment
from imax_jax import main
from imax_jax import mesh as mesh_lib
from imax_jax.data.pipeline import Batches
from imax_jax.data.pipeline import BatchIterator
from imax_jax.ledger import Ledger
from imax_jax.models.loss import example_loss
from imax_jax.models.loss import token_nll
from imax_jax.study import Study
from imax_jax.train import interrupt
from imax_jax.train import loop
from imax_jax.train import optim

ROOT = Path(__file__).parent.parent
RECORDS, PER_STEP, NAMES = 53, 8, 100
RUN = "imax-s0"


class Toy(NamedTuple):
  """What a test asks of the run."""

  steps: int = 20
  save_steps: int = 5
  step_seconds: float = 0.0
  stop_after: int | None = None
  watchdog: float = 0.0
  stuck: tuple[int, int] = (-1, -1)  # (process, step): there it sleeps for ever


class Stuck:
  """Batches of which one never comes."""

  def __init__(self, batches: Batches, step: int) -> None:
    self._batches, self._step, self.names = batches, step, batches.names
    self.examples_per_step = batches.examples_per_step

  def __len__(self) -> int:
    return len(self._batches)

  def __getitem__(self, step: int) -> Any:
    if step == self._step:
      time.sleep(1000)
    return self._batches[step]


def make_batches(toy: Toy, share: mesh_lib.RowShare) -> Any:
  from test_accounting import make_images

  batches = Batches(
    make_images(RECORDS), lambda index: np.zeros((1, 1, 1), np.uint8),
    num_steps=toy.steps, entries_per_step=PER_STEP, row_tokens=40, seed=3,
    **share._asdict(),
  )  # fmt: skip
  process, step = toy.stuck
  return Stuck(batches, step) if process == jax.process_index() else batches


@contextlib.contextmanager
def what_is_held(path: Path) -> Iterator[None]:
  """Writes the records of each batch that the loop takes."""
  from test_accounting import held

  real = BatchIterator.__next__

  def taken(self: BatchIterator) -> Any:
    step, batch = self.get_state()["example"] // PER_STEP, real(self)
    found = sorted(held(batch).elements())
    with path.open("a") as file:
      file.write(json.dumps({"step": step, "held": found}) + "\n")
    return batch

  BatchIterator.__next__ = taken  # type: ignore[method-assign]
  try:
    yield
  finally:
    BatchIterator.__next__ = real  # type: ignore[method-assign]


def loss(trainable: Any, frozen: Any, batch: Any, rng: Any) -> Any:
  """The next token from this one; no noise, which would be of the batch's shape."""
  logits = frozen["embed"][batch["text"]] @ trainable["kernel"]
  total, weight = example_loss(token_nll, logits, batch)
  return total.sum(), weight.sum()


def run(folder: Path, toy: Toy) -> None:
  """Trains with all devices of all processes."""
  mesh = mesh_lib.make_mesh({"data": -1})
  words = NAMES + RECORDS
  trainable = {"kernel": jnp.zeros((8, words))}
  embed = np.random.default_rng(1).normal(size=(words, 8)).astype(np.float32)
  schedule = optim.make_schedule(
    num_steps=toy.steps, peak_lr=0.05, final_lr=0.01, warmup_fraction=0.2,
    warmup_start_lr=0.01,
  )  # fmt: skip
  with (
    what_is_held(folder / f"held-{jax.process_index()}.jsonl"),
    interrupt.Preemption().listening() as preempted,
    interrupt.Watchdog(toy.watchdog, tick=0.1).watching() as watchdog,
  ):
    loop.train(
      model_loss=loss, trainable=trainable,
      frozen={"embed": mesh_lib.replicate(embed, mesh)},
      optimizer=optim.make_optimizer(trainable, schedule),
      batches=make_batches(toy, mesh_lib.row_share(mesh)), mesh=mesh, workdir=folder,
      seed=5, save_steps=toy.save_steps, snapshots={"final": toy.steps},
      watchdog=watchdog, preempted=preempted, stop_after=toy.stop_after,
      on_step=lambda *_: time.sleep(toy.step_seconds),
    )  # fmt: skip


def station(ledger: Ledger, toy: Toy) -> None:
  """The run in its place in a work directory."""

  def make(folder: Path) -> None:
    run(folder, toy)
    if toy.stop_after is not None:
      raise ValueError("killed, for the test")  # or the station would be finished

  ledger.station(f"runs/{RUN}", {}, make, resumable=True, together=True)


def train(study: Study) -> None:
  station(study.ledger, Toy(**json.loads(os.environ["TOY"])))


# ── What the tests start ──────────────────────────────────────────────────────────


def start(
  workdir: Path,
  toy: Toy,
  *,
  processes: int = 1,
  devices: int = 1,
  heartbeat: int = 100,
  through: Sequence[str] = (),
) -> list[subprocess.Popen[bytes]]:
  """The processes of a run; each writes its `log_of` anew."""
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{free.getsockname()[1]}"
  workdir.mkdir(exist_ok=True, mode=0o700)
  command = [
    *through, sys.executable, __file__, f"--config={ROOT}/configs/phantom.py:tiny",
    f"--workdir={workdir}", "train",
  ]  # fmt: skip
  env = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
    "TOY": json.dumps(toy._asdict()),
    "JAX_NUM_CPU_DEVICES": str(devices),
    "JAX_COORDINATOR_BIND_ADDRESS": address,
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }
  started = []
  for number in range(processes):
    joined = [
      "--distributed", f"--coordinator={address}", f"--num_processes={processes}",
      f"--process_id={number}", f"--heartbeat_seconds={heartbeat}",
    ]  # fmt: skip
    with log_of(workdir, number).open("w") as log:
      started.append(
        subprocess.Popen(
          command + (joined if processes > 1 else []), cwd=ROOT, env=env, stdout=log,
          stderr=subprocess.STDOUT,
        )
      )  # fmt: skip
  return started


def log_of(workdir: Path, number: int) -> Path:
  """Beside the work directory, which a test may make unwritable."""
  return workdir.with_name(f"{workdir.name}-log-{number}")


def folder_of(workdir: Path) -> Path:
  return workdir / "runs" / RUN


if __name__ == "__main__":
  experiment._STATIONS["train"] = train
  sys.exit(main.main())
