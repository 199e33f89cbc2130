"""A disk that is full, read-only or broken: the run says so, and loses no checkpoint (R9)."""

from __future__ import annotations

import contextlib
import errno
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import test_checkpoint as checkpoints
import test_train as toy
import toy_hosts as hosts
from reliability import CHAOS
from reliability import record

from imax_jax.ledger import Ledger
from imax_jax.train import metrics

CUT, SAVE_STEPS, FAULTS = 7, 3, 20
Break = Callable[[], Callable[[], None]]  # breaks the disk; what it returns mends it

# ── An error at write n ───────────────────────────────────────────────────────────


class Disk:
  """Counts what is opened to be written, made, renamed and appended under a folder, in
  all threads, and fails once. Python tells its audit hooks of the first three."""

  folder, count, fails, at, path = "", 0, 0, 0, ""

  def audit(self, event: str, args: tuple[Any, ...]) -> None:
    writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT
    if event in ("os.mkdir", "os.rename") or (event == "open" and args[2] & writes):
      # A folder that is there already is not made, whatever mkdir says.
      there = event == "os.mkdir" and os.path.isdir(args[0])
      if isinstance(args[0], str | os.PathLike) and not there:
        self.write(os.fspath(args[0]))

  def write(self, path: str, named: bool = True) -> None:
    if not self.folder or not path.startswith(self.folder):
      return
    self.count += 1
    if self.count == self.fails:
      self.path, self.at = path, len(self.lines())
      # An open file that can not be written to raises without its name.
      raise OSError(errno.EIO, os.strerror(errno.EIO), *[path] * named)

  def lines(self) -> list[dict[str, float]]:
    return metrics.read_metrics(Path(self.folder) / "metrics.jsonl")


def _lives(folder: str, numbers: int | None) -> None:
  """A child: `numbers` lives from one checkpoint on, spread over all writes of a life;
  None: one for each write."""
  jax.config.update("jax_compilation_cache_dir", f"{folder}/programs")
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
  disk, real = Disk(), metrics.MetricsWriter.__init__

  def opened(self: Any, *args: Any, **kwargs: Any) -> None:
    real(self, *args, **kwargs)
    append = self._file.write

    def write(text: str) -> int:
      disk.write(str(self.path), named=False)
      return append(text)

    self._file.write = write

  metrics.MetricsWriter.__init__ = opened  # type: ignore[method-assign]
  sys.addaudithook(disk.audit)

  def life(fails: int) -> dict[str, Any]:
    workdir = Path(shutil.copytree(f"{folder}/cut", f"{folder}/life-{fails}"))
    disk.folder, disk.count, disk.fails, disk.path = str(workdir), 0, fails, ""
    error = ""
    try:
      toy.run(workdir)
    except OSError as found:
      error = str(found)
    lines = len(disk.lines())
    disk.folder = ""
    # The threads of a save that failed may not have ended: what they do is not looked at.
    kept = shutil.ignore_patterns("*orbax-checkpoint-tmp*")
    shutil.copytree(workdir, f"{folder}/after-{fails}", ignore=kept)
    late = lines - disk.at
    return {"life": fails, "error": error, "path": disk.path, "late": late}

  life(0)
  total = disk.count
  chosen = np.linspace(1, total, numbers or total).round().astype(int).tolist()
  done = [life(number) for number in chosen]
  Path(folder, "lives.json").write_text(json.dumps(done))
  os._exit(0)  # threads of orbax would wait on: see imax_jax.main


def test_an_error_at_any_write_stops_the_run_and_loses_nothing(tmp_path: Path) -> None:
  """Of checkpoints, snapshots, seals and metrics; the error names the file."""
  states = {}

  def keep(trainable: Any) -> dict[str, float]:
    states[len(states) + 1] = jax.device_get(trainable)
    return {}

  straight = toy.run(tmp_path / "straight", evaluators={"keep": keep}, evaluate_steps=1)
  toy.run(tmp_path / "cut", stop_after=CUT)
  context = multiprocessing.get_context("forkserver")
  context.set_forkserver_preload(["test_train"])
  child = context.Process(
    target=_lives, args=(str(tmp_path), None if CHAOS else FAULTS)
  )
  child.start()
  child.join()
  assert child.exitcode == 0
  lives = json.loads((tmp_path / "lives.json").read_text())
  named = intact = 0
  for life in lives:
    assert life["path"], "nothing failed"
    clear = "Input/output error" in life["error"] and str(tmp_path) in life["error"]
    named += clear and life["late"] <= SAVE_STEPS
    found = checkpoints.restore(tmp_path / f"after-{life['life']}")
    step = int(found.state.step)
    assert step >= 6
    toy.assert_same_bits(found.state.trainable, states[step])
    intact += 1
  assert len({life["path"].split("/")[-1] for life in lives}) > 4
  for life in lives[:: len(lives) // 4]:
    toy.assert_same_bits(toy.run(tmp_path / f"after-{life['life']}"), straight)
  record(
    "R9", "I/O error at write n of a run: stopped within one save interval, file named",
    f"{named} of {len(lives)}", "all", named == len(lives),
  )  # fmt: skip
  record(
    "R9", "I/O error at write n of a run: the checkpoint before it bit-equal",
    f"{intact} of {len(lives)}", "all", intact == len(lives),
  )  # fmt: skip


# ── Whole disks, and the program's door ───────────────────────────────────────────


@contextlib.contextmanager
def full(workdir: Path) -> Iterator[Break]:
  """A file system of its own, which a large file fills."""
  workdir.mkdir()
  mount = ["mount", "-t", "tmpfs", "-o", "size=8m,mode=0700", "tmpfs", str(workdir)]
  if subprocess.run(mount, capture_output=True, check=False).returncode:
    pytest.skip("only root may mount a small disk")

  def fill() -> Callable[[], None]:
    ballast = workdir / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
      while True:
        file.write(bytes(1 << 12))
    return ballast.unlink

  try:
    yield fill
  finally:
    subprocess.run(["umount", "-l", str(workdir)], check=True)


@contextlib.contextmanager
def read_only(workdir: Path) -> Iterator[Break]:
  """The folder of the checkpoints may not be written to any more."""
  if AS_A_USER and not shutil.which(AS_A_USER[0]):
    pytest.skip("root may write where nobody may")
  latest = hosts.folder_of(workdir) / "latest"

  def forbid() -> Callable[[], None]:
    latest.chmod(0o500)
    return lambda: latest.chmod(0o700)

  yield forbid


DISKS = {"disk full": full, "folder read-only": read_only}
# Modes of files hold for root as well, where the right to pass over them is not handed on.
AS_A_USER = ("setpriv", "--bounding-set=-dac_override") if os.getuid() == 0 else ()


@pytest.mark.parametrize("name", DISKS)
def test_the_program_ends_and_goes_on_when_there_is_room(
  tmp_path: Path, name: str
) -> None:
  """It ends at once, though orbax's threads would wait for five minutes."""
  workdir, straight = tmp_path / "work", tmp_path / "straight"
  asked = hosts.Toy(steps=40, save_steps=5, step_seconds=0.05)
  with DISKS[name](workdir) as break_it:
    (run,) = hosts.start(workdir, asked, through=AS_A_USER)
    while checkpoints._sealed(hosts.folder_of(workdir)) < 10:
      assert run.poll() is None, hosts.log_of(workdir, 0).read_text()
      time.sleep(0.02)
    mend_it = break_it()
    began = time.monotonic()
    code = run.wait(timeout=400)
    seconds = time.monotonic() - began
    said = hosts.log_of(workdir, 0).read_text().strip().splitlines()[-1]
    mend_it()
    for folder in (workdir, straight):
      hosts.station(Ledger(folder), asked._replace(step_seconds=0.0))
    lines, others = (
      metrics.read_metrics(hosts.folder_of(folder) / "metrics.jsonl")
      for folder in (workdir, straight)
    )
  same = len(lines) == 40 and lines == others
  clear = re.search(r"(no space left|Permission denied).*", said, re.IGNORECASE)
  record(
    "R9", f"{name}, as the program meets it",
    f"ends with {code} after {seconds:.1f} s; resumed, its losses are "
    f"{'' if same else 'not '}those of an undisturbed run",
    "1, a clear error, the same losses",
    code == 1 and same and clear is not None and str(hosts.folder_of(workdir)) in said,
  )  # fmt: skip
