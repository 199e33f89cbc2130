"""A run goes on with other processes and devices, and no record is lost or repeated."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import toy_hosts as hosts
from reliability import CHAOS
from reliability import record

from imax_jax.ledger import Ledger
from imax_jax.mesh import RowShare
from imax_jax.train import metrics

STEPS, SAVED, KILLED = 20, 10, 13
# (processes, devices of each) that save, and that go on.
CHANGES = [((2, 2), (1, 1)), ((1, 1), (2, 2))]
if CHAOS:
  CHANGES += [((2, 2), (1, 4)), ((2, 2), (4, 1)), ((4, 1), (2, 2))]


def go(workdir: Path, topology: tuple[int, int], **asked: int) -> None:
  """One life of the run; alone on one device it needs no process of its own."""
  toy = hosts.Toy(steps=STEPS, save_steps=SAVED, **asked)
  if topology == (1, 1):
    killed = pytest.raises(ValueError, match="killed, for the test")
    with killed if asked else contextlib.nullcontext():
      hosts.station(Ledger(workdir), toy)
    return
  processes, devices = topology
  for process in hosts.start(workdir, toy, processes=processes, devices=devices):
    code = process.wait(timeout=200)
    log = hosts.log_of(workdir, 0).read_text()
    assert code == ("stop_after" in asked), log
    assert not code or "killed, for the test" in log, log


def held(workdir: Path) -> dict[int, list[tuple[int, int]]]:
  """{step: (record, tokens of it that are trained on), sorted} over all processes, of
  the life that has done the step; then the files are removed."""
  found: dict[int, list[tuple[int, int]]] = {}
  for path in hosts.folder_of(workdir).glob("held-*.jsonl"):
    for line in map(json.loads, path.read_text().splitlines()):
      found.setdefault(line["step"], []).extend(map(tuple, line["held"]))
    path.unlink()
  return {step: sorted(records) for step, records in found.items()}


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, list[dict]]:
  workdir = tmp_path_factory.mktemp("straight")
  go(workdir, (1, 1))
  return held(workdir), metrics.read_metrics(hosts.folder_of(workdir) / "metrics.jsonl")


@pytest.mark.parametrize(("saved", "resumed"), CHANGES)
def test_the_same_records_and_losses_on_other_processes(
  tmp_path: Path, straight: tuple[dict, list[dict]], saved: tuple, resumed: tuple
) -> None:
  """Killed at a step after its checkpoint, in the midst of an epoch (R4)."""
  go(tmp_path, saved, stop_after=KILLED)
  before = held(tmp_path)
  assert sorted(before) == list(range(KILLED))
  go(tmp_path, resumed)
  after = held(tmp_path)
  assert sorted(after) == list(range(SAVED, STEPS))
  steps = {**before, **after}
  batches = hosts.make_batches(hosts.Toy(steps=STEPS), RowShare(1, 0, 1))
  first = np.cumsum([0, *(len(image.entries) for image in batches._images)])
  stream: list[int] = []
  for step in range(STEPS):
    planned = [int(first[i]) + e for i, e in batches.entries(step)]
    assert sorted(planned) == [number for number, _ in steps[step]]
    assert steps[step] == straight[0][step]
    stream += planned
  size = hosts.RECORDS
  counts = [Counter(stream[at : at + size]) for at in range(0, 3 * size, size)]
  lost = sum(size - len(count) for count in counts)
  again = sum(count.total() - len(count) for count in counts)
  assert len(stream) >= 3 * size > SAVED * hosts.PER_STEP > size
  lines = metrics.read_metrics(hosts.folder_of(tmp_path) / "metrics.jsonl")
  far = max(
    abs(one["loss"] / other["loss"] - 1)
    for one, other in zip(lines, straight[1], strict=True)
  )
  assert lines[0]["loss"] - lines[-1]["loss"] > 0.5
  (p, d), (q, e) = saved, resumed
  record(
    "R4", f"{p} x {d} processes x devices, then {q} x {e}",
    f"{lost} lost, {again} twice, losses within {far:.1e}",
    "0 lost, 0 twice, the same order, losses within 1e-6",
    lost == again == 0 and far < 1e-6,
  )  # fmt: skip
