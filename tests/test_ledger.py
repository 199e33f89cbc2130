"""A station is done once, from its own inputs; nothing half-written looks done."""

from __future__ import annotations

import concurrent.futures
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from reliability import record

from imax_jax.ledger import Ledger
from imax_jax.ledger import fingerprint


class Work:
  """Counts its runs and writes one file."""

  def __init__(self, fail: bool = False) -> None:
    self.runs = 0
    self.fail = fail

  def __call__(self, folder: Path) -> None:
    self.runs += 1
    (folder / f"part{self.runs}").write_text("x")
    if self.fail:
      raise RuntimeError("cut")


def test_done_once_and_again_when_inputs_change(tmp_path: Path) -> None:
  work = Work()
  for _ in range(2):
    Ledger(tmp_path).station("a/b", {"rate": 0.1}, work)
  assert work.runs == 1
  Ledger(tmp_path).station("a/b", {"rate": 0.2}, work)
  assert work.runs == 2
  assert sorted(p.name for p in (tmp_path / "a/b").glob("part*")) == ["part2"]


@pytest.mark.parametrize("resumable", [False, True])
def test_interrupted_is_not_done(tmp_path: Path, resumable: bool) -> None:
  ledger, work = Ledger(tmp_path), Work(fail=True)
  with pytest.raises(RuntimeError):
    ledger.station("a", {}, work, resumable=resumable)
  assert not ledger.is_done("a")
  with pytest.raises(ValueError, match="not finished"):
    ledger.digest("a")
  work.fail = False
  ledger.station("a", {}, work, resumable=resumable)
  kept = sorted(path.name for path in (tmp_path / "a").glob("part*"))
  assert kept == (["part1", "part2"] if resumable else ["part2"])
  assert ledger.seconds().keys() == {"a"}


def test_interrupted_with_other_inputs_starts_from_nothing(tmp_path: Path) -> None:
  ledger, work = Ledger(tmp_path), Work(fail=True)
  with pytest.raises(RuntimeError):
    ledger.station("a", {"v": 1}, work, resumable=True)
  work.fail = False
  ledger.station("a", {"v": 2}, work, resumable=True)
  assert [p.name for p in (tmp_path / "a").glob("part*")] == ["part2"]


def test_foreign_files_are_left_alone(tmp_path: Path) -> None:
  (tmp_path / "a").mkdir()
  (tmp_path / "a" / "thesis.txt").write_text("mine")
  with pytest.raises(ValueError, match="did not make"):
    Ledger(tmp_path).station("a", {}, Work())
  assert (tmp_path / "a" / "thesis.txt").read_text() == "mine"


def test_a_folder_that_can_not_be_written_is_named(tmp_path: Path) -> None:
  (tmp_path / "file").write_text("")
  with pytest.raises(ValueError, match=r"file/work.*--workdir"):
    Ledger(tmp_path / "file" / "work")


def test_workdir_is_private(tmp_path: Path) -> None:
  Ledger(tmp_path / "work")
  assert os.stat(tmp_path / "work").st_mode & 0o777 == 0o700


def test_fingerprint_ignores_order_and_sees_values() -> None:
  assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1})
  assert fingerprint({"a": 1}) != fingerprint({"a": 2})
  with pytest.raises(ValueError, match=r"JSON|compliant"):
    fingerprint({"a": float("nan")})


@pytest.mark.parametrize("together", [False, True])
def test_processes_share_a_ledger(tmp_path: Path, together: bool) -> None:
  """Two processes as threads: the chief alone keeps the books."""
  gate, done = threading.Barrier(2, timeout=20), []

  def process(chief: bool) -> None:
    ledger = Ledger(tmp_path, chief=chief, barrier=lambda name: (gate.wait(), None)[1])
    for _ in range(2):
      ledger.station("a", {}, lambda folder: done.append(chief), together=together)
    assert ledger.is_done("a")

  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    for result in [pool.submit(process, chief) for chief in (True, False)]:
      result.result()
  assert sorted(done) == ([False, True] if together else [True])


def test_many_open_a_work_directory_at_once(tmp_path: Path) -> None:
  """Also with equal process ids, as threads have and processes in containers."""
  gate = threading.Barrier(8, timeout=20)

  def open_often(_: int) -> None:
    gate.wait()
    for _ in range(100):
      Ledger(tmp_path / "work")

  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    list(pool.map(open_often, range(8)))
  assert list((tmp_path / "work").iterdir()) == []


HOLDS = """
import sys, time
from imax_jax.ledger import Ledger
with Ledger(sys.argv[1]).lock():
  print("held", flush=True)
  time.sleep(float(sys.argv[2]))
"""


def hold(workdir: Path, seconds: float) -> subprocess.Popen[str]:
  """A process that holds a work directory."""
  command = [sys.executable, "-c", HOLDS, str(workdir), str(seconds)]
  return subprocess.Popen(
    command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
  )


def test_two_at_once_are_refused(tmp_path: Path) -> None:
  """The second says who has it, and does no harm; a killed one has it no more (R28)."""
  first = hold(tmp_path, 100)
  assert first.stdout is not None and first.stdout.readline() == "held\n"
  named = 0
  for _ in range(3):
    out, words = hold(tmp_path, 0).communicate(timeout=60)
    assert not out
    named += f"(process {first.pid} on {socket.gethostname()}): wait for it" in words
  with pytest.raises(ValueError, match=f"process {first.pid} on "):
    Ledger(tmp_path).lock().__enter__()
  # One of several processes, which do not keep the ledger, is no second run.
  with Ledger(tmp_path, chief=False).lock():
    pass
  first.kill()
  first.communicate()
  out, words = hold(tmp_path, 0).communicate(timeout=60)
  assert out == "held\n", words
  record(
    "R28", "the second run is refused by host and process id; a killed one holds nothing",
    f"{named} of 3", "3 of 3", named == 3,
  )  # fmt: skip


def test_what_is_made_aside_replaces_only_when_it_is_whole(tmp_path: Path) -> None:
  ledger, work = Ledger(tmp_path), Work()
  ledger.station("a", {"v": 1}, work, aside=True)
  work.fail = True
  with pytest.raises(RuntimeError):
    ledger.station("a", {"v": 2}, work, aside=True)
  assert ledger.is_done("a") and ledger.inputs("a") == {"v": 1}
  assert [path.name for path in (tmp_path / "a").glob("part*")] == ["part1"]
  work.fail = False
  assert ledger.station("a", {"v": 2}, work, aside=True) == tmp_path / "a"
  assert ledger.inputs("a") == {"v": 2}
  assert [path.name for path in (tmp_path / "a").glob("part*")] == ["part3"]
  assert not list(tmp_path.glob(".a*"))
