"""Tests and intervals of the changes, and what tasks have to do with each other."""

from __future__ import annotations

import itertools
import json
import types

import numpy as np
import pytest
from ml_collections import ConfigDict

from imax_jax import results
from imax_jax import runs
from imax_jax.fisher import compare
from imax_jax.fisher import tasks
from imax_jax.ledger import Ledger
from imax_jax.ledger import write_json


def rows_of(new, base, **fields) -> list[dict]:
  """One seed's rows of both arms, the same values for both indicators."""
  common = {"seed": 0, "phase": "mid", "kind": "exact", "answers": "data"} | fields
  return [
    {"run": run, "entropy": list(values), "dominant": list(values)} | common
    for run, values in (("imax", new), ("dmax", base))
  ]


def test_a_small_permutation_test_is_the_exhaustive_one():
  new, base = np.array([3.0, 4.1, 5.2, 4.4]), np.array([2.9, 3.1, 3.6, 2.7, 3.3])
  everything = np.concatenate([new, base])
  logs = []
  for chosen in itertools.combinations(range(9), 4):
    left = np.isin(np.arange(9), chosen)
    logs.append(abs(np.log(everything[left].mean() / everything[~left].mean())))
  observed = abs(np.log(new.mean() / base.mean()))
  exact = np.mean(np.array(logs) >= observed * (1 - 1e-12))
  found = compare.change([(new, base)])
  assert found["change"] == pytest.approx(100 * (new.mean() / base.mean() - 1))
  assert found["p"] == pytest.approx(exact, abs=0.012)
  assert compare.change([(base, new)])["p"] == pytest.approx(exact, abs=0.012)


def test_p_is_uniform_where_nothing_differs_and_intervals_cover():
  """50 groups an arm, as the paper has, of a skewed distribution."""
  rng = np.random.default_rng(0)
  low, covered, trials = 0, 0, 30
  for _ in range(trials):
    new, base = rng.gamma(4, 1.05, 50), rng.gamma(4, 1.0, 50)
    found = compare.change([(new, base)])
    covered += found["interval"][0] <= 5 <= found["interval"][1]
    low += compare.change([(rng.gamma(4, 1, 50), base)])["p"] < 0.1
  assert 0.8 <= covered / trials <= 1
  assert low / trials < 0.3


def test_a_seed_s_groups_are_exchanged_among_themselves():
  """Seeds that differ by much more than arms do hide nothing."""
  rng = np.random.default_rng(1)
  noise = rng.normal(0, 0.01, (2, 12))
  pairs = [(level + 0.05 + noise[0], level + noise[1]) for level in (1.0, 30.0)]
  assert compare.change(pairs)["p"] < 0.001
  mixed = tuple(np.concatenate(parts) for parts in zip(*pairs, strict=True))
  assert compare.change([mixed])["p"] > 0.5


def test_changes_are_of_each_kind_phase_and_indicator_that_both_arms_have():
  rng = np.random.default_rng(2)
  values = rng.normal(2, 0.1, (2, 9))
  rows = [
    *rows_of(*values), *rows_of(*values, kind="sampled"), *rows_of(*values, phase="late"),
    *rows_of(*values, answers="model"), *rows_of(*values, seed=1),
    *rows_of(*values, phase="early")[:1],
  ]  # fmt: skip
  found = compare.changes(rows)
  assert len(found) == 4 * 2
  assert {(c["kind"], c["answers"], c["phase"]) for c in found} == {
    ("exact", "data", "mid"), ("sampled", "data", "mid"), ("exact", "data", "late"),
    ("exact", "model", "mid"),
  }  # fmt: skip
  assert found == compare.changes(rows)
  for change in found:
    assert change["interval"][0] < change["change"] < change["interval"][1]
    assert 1 / 10_001 <= change["p"] <= 1
  assert compare.changes([]) == []
  # Each seed's own change, and not that of all groups together.
  halves = [*rows_of(*values), *rows_of(values[0], 2 * values[0], seed=1)]
  first = 100 * (values[0].mean() / values[1].mean() - 1)
  assert compare.changes(halves)[0]["seeds"] == pytest.approx([first, -50.0])


def test_tasks_overlap_as_their_fisher_matrices_do():
  """Many groups of gradients from known covariances, one of them shared."""
  rng = np.random.default_rng(0)
  roots = {"rec": np.diag([3.0, 1, 0, 0]), "reg": np.diag([1.0, 1, 2, 0]),
           "vqa": np.diag([0.0, 0, 0, 1])}  # fmt: skip
  names = ["vqa", "rec", "reg", "rec", "reg", "rec", "vqa", "reg"]
  grams = []
  for _ in range(600):
    gradients = np.stack([roots[name] @ rng.normal(size=4) for name in names])
    grams.append(gradients @ gradients.T / len(names))
  found = tasks.pooled([tasks.between(grams, [names] * len(grams))])
  assert found["names"] == ["rec", "reg", "vqa"]
  assert found["pairs"][0] == [3 * 600, 9 * 600, 6 * 600]
  matrices = [root @ root for root in roots.values()]
  for a, b in itertools.product(range(3), range(3)):
    one, other = matrices[a], matrices[b]
    wanted = (one * other).sum() / np.sqrt((one**2).sum() * (other**2).sum())
    assert found["overlap"][a][b] == pytest.approx(wanted, abs=0.06), (a, b)
    if "vqa" not in (found["names"][a], found["names"][b]):
      assert found["cosine"][a][b] == pytest.approx(0, abs=0.06)
      assert found["conflict"][a][b] == pytest.approx(0.5, abs=0.05)
  assert found["cosine"][0][2] == found["conflict"][0][2] == 0


def test_conflict_and_missing_pairs_are_told_apart():
  gradients = np.array([[1.0, 0], [2, 0.1], [-1, 0], [-3, 0.2], [0, 0]])
  made = tasks.between(
    [gradients @ gradients.T], [["report", "report", "vqa", "vqa", "rec"]]
  )
  assert json.loads(json.dumps(made, allow_nan=False)) == made
  found = tasks.pooled([made])
  assert found["names"] == ["report", "rec", "vqa"]
  assert found["conflict"][0][2] == 1
  assert found["cosine"][0][2] < -0.98
  assert found["conflict"][0][0] == 0
  assert found["cosine"][0][1] is None  # a gradient of zero has no angle
  assert found["pairs"][1] == [0, 0, 0]
  with pytest.raises(ValueError, match="2 tasks of a group of 5"):
    tasks.between([gradients @ gradients.T], [["vqa", "rec"]])


def test_tasks_of_seeds_are_added_up_before_any_ratio():
  """Groups in two parts are as the same groups in one, whatever tasks each part has."""
  rng = np.random.default_rng(3)
  groups = [["rec", "rec", "vqa"]] * 3 + [["vqa", "report", "rec"]] * 2
  grams = []
  for _ in groups:
    gradients = rng.normal(size=(3, 4))
    grams.append(gradients @ gradients.T)
  whole = tasks.pooled([tasks.between(grams, groups)])
  parts = [
    tasks.between(grams[:3], groups[:3]), tasks.between(grams[3:], groups[3:])
  ]  # fmt: skip
  found = tasks.pooled(parts)
  assert found["names"] == ["report", "rec", "vqa"]
  assert (whole["seeds"], found["seeds"]) == (1, 2)
  assert found["pairs"] == whole["pairs"] == [[0, 2, 2], [2, 3, 8], [2, 8, 0]]
  for key in ("cosine", "conflict", "overlap"):
    for one, other in zip(found[key], whole[key], strict=True):
      assert one == pytest.approx(other)
  assert found["cosine"][0][0] is None


def test_seeds_of_one_number_in_two_folders_are_two_seeds():
  values = np.random.default_rng(4).normal(2, 0.1, (2, 9))
  rows = [
    *rows_of(*values, folder="a"), *rows_of(values[0], 2 * values[0], folder="b")
  ]  # fmt: skip
  first = 100 * (values[0].mean() / values[1].mean() - 1)
  [found, _] = compare.changes(rows)
  assert found["seeds"] == pytest.approx([first, -50.0])
  # No pair over folders: one has IMAX only, the other DMAX only.
  assert compare.changes([rows[0], rows[3]]) == []


class Interrupted(Exception):
  pass


def test_spectra_that_are_not_there_are_told(tmp_path, monkeypatch):
  monkeypatch.setattr(runs, "fisher_inputs", lambda study, run: {"run": run})
  study = types.SimpleNamespace(
    workdir=tmp_path,
    ledger=Ledger(tmp_path),
    config=ConfigDict(
      {"seeds": (0, 1, 2), "fisher": {"runs": ("dmax", "imax"), "seeds": (0, 1)}}
    ),
  )

  def measured(run, spectrum):
    study.ledger.station(
      f"fisher/{run}",
      {"run": run},
      lambda out: write_json(out / "spectra.json", [spectrum]),
    )

  def stop(folder):
    raise Interrupted

  assert results._fisher(study) == ([], [])  # the verb was not run
  measured("imax-s0", {"tasks": {"sums": {}}})
  with pytest.raises(Interrupted):
    study.ledger.station("fisher/dmax-s0", {"run": "dmax-s0"}, stop)
  rows, said = results._fisher(study)
  assert [(row["run"], row["seed"]) for row in rows] == [("imax", 0)]
  assert said == [
    "The spectra of DMAX, seed 0 are unfinished and not shown: run the verb fisher.",
    "There are no spectra of DMAX, seed 1; IMAX, seed 1: run the verb fisher.",
  ]
  for run in ("dmax-s0", "dmax-s1", "imax-s1"):
    measured(run, {})
  assert results._fisher(study)[1] == []
  measured("dmax-s2", {"tasks": {"overlap": [[1.0]]}})
  old, missing = sorted(results._fisher(study)[1])
  assert old.startswith("An earlier version measured the spectra of DMAX, seed 2: ")
  assert missing == "There are no spectra of IMAX, seed 2: run the verb fisher."
  assert compare.meetings([{"answers": "data", "tasks": {"overlap": [[1.0]]}}]) == {}
