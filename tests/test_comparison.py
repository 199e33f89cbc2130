"""`report --runs`: work directories pooled as seeds of a row, or refused by name."""

from __future__ import annotations

import json
import types

import numpy as np
import pytest

from imax_jax import comparison
from imax_jax.evaluate import additive
from imax_jax.evaluate import intervals
from imax_jax.evaluate.metrics import STRICT
from imax_jax.report import arms

ACCURACIES = tuple(
  m.name for m in STRICT if m.combine is additive.mean and not m.lower_is_better
)
LEVELS = {"constant": 0.3, "blind": 0.3, "dmax": 0.5, "imax": 0.7}


def tally(level, rng, patients=40, prefix="p", names=ACCURACIES):
  """Invented answers: a share `level` of each patient's is right."""
  parts = []
  for _ in names:
    count = rng.integers(1, 4, patients)
    parts.append(np.stack([count, rng.binomial(count, level), count], axis=1))
  return intervals.Tally(
    tuple(f"{prefix}{i:02d}" for i in range(patients)), f"asked {prefix}",
    dict.fromkeys(names, 3), np.concatenate(parts, axis=1).astype(float),
  )  # fmt: skip


def workdir(root, name, row, seed, *, change=None, **others):
  """A work directory with what `report` and `evaluate` leave, invented."""
  folder, rng = root / name, np.random.default_rng(seed)
  made = {run: tally(at, rng, prefix=f"s{seed}-") for run, at in LEVELS.items()}
  made |= others
  per_seed = {}
  for run, sums in made.items():
    if run in arms.BLIND:
      path = folder / "baselines" / f"{run}.npz"
    else:
      path = folder / "evaluations" / f"{run}-s{seed}" / "patients.npz"
      per_seed[run] = [intervals.totals(sums)]
    intervals.write_tally(path, sums)
  results = {
    "about": {
      "title": "Invented", "row": row, "data": "phantom",
      "dataset": {"version": "1.0.0", "built": f"data of {seed}"},
    },
    "scorer": "strict",
    "definitions": {"strict": {name: {"version": "1"} for name in ACCURACIES}},
    "seeds": {run: [seed] for run in per_seed},
    "per_seed": per_seed,
    "unlabelled": [],
    "evaluations": [
      {"run": run, "seed": seed, "unparsed": {"rec": {"no box": 2}}, "asked": {"rec": 9},
       "legacy": {"rec_iou": 40.0 + seed}, "reports": {}} for run in per_seed
    ],
    "fisher": [],
    "fisher_caveats": [],
    "config": {
      "seeds": [seed], "row": row, "train": {"peak_lr": 1.0},
      "data": {"source": "phantom", "root": str(folder), "hospital": {"seed": seed}},
    },
  }  # fmt: skip
  if change:
    change(results)
  (folder / "results.json").write_text(json.dumps(results), encoding="utf8")
  return folder


def test_work_directories_of_a_row_are_its_seeds(tmp_path):
  folders = [workdir(tmp_path, f"equal-{s}", "equal", s) for s in range(3)]
  folders.append(workdir(tmp_path, "few-0", "few", 7))
  found = comparison.collect(folders)
  json.dumps(found, allow_nan=False)
  assert list(found["rows"]) == ["equal", "few"]
  equal, few = found["rows"].values()
  assert equal["seeds"]["imax"] == ["equal-0/s0", "equal-1/s1", "equal-2/s2"]
  gain = equal["gains"]["imax"]
  assert list(equal["gains"]) == ["imax"]
  assert len(gain["per_seed"]) == 3
  assert gain["mean"] == pytest.approx(np.mean(gain["per_seed"]))
  assert gain["over_seeds"][0] < gain["mean"] < gain["over_seeds"][1]
  assert gain["p_seeds"] == pytest.approx(2 / 8)
  assert (gain["improved"], gain["total"]) == (len(ACCURACIES),) * 2
  assert set(gain["tests"]) == set(ACCURACIES)
  assert equal["unparsed"]["imax"] == {"rec": {"no box": 6}}
  assert equal["asked"]["imax"] == {"rec": 27}
  assert equal["legacy"]["imax"] == {"rec_iou": pytest.approx(41.0)}
  assert equal["ahead"]["imax"] == dict.fromkeys(ACCURACIES, True)
  assert few["gains"]["imax"]["over_seeds"] is None
  alone = comparison.collect(folders[:1])["rows"]["equal"]["gains"]["imax"]
  assert alone["per_seed"] == gain["per_seed"][:1]


def test_spectra_of_one_number_in_two_folders_are_those_of_two_seeds(tmp_path):
  """Hospitals may share a seed's number; three of them give an interval over trainings."""

  def spectra(number):
    def change(results):
      results["about"]["dataset"]["built"] = f"data of folder {number}"
      results["seeds"] = {run: [0] for run in results["seeds"]}
      results["fisher"] = [
        {"run": run, "seed": 0, "phase": "late", "kind": "exact", "answers": "data",
         "entropy": [level, level], "dominant": [level, level],
         "tasks": {"names": ["rec"], "pairs": [[100]],
                   "sums": {key: [[50.0]] for key in ("cosine", "conflict", "square")}}}
        for run, level in (("dmax", 1.0), ("imax", 1.0 + number))
      ]  # fmt: skip
      results["fisher_caveats"] = ["invented"] if number == 2 else []

    return change

  folders = [
    workdir(tmp_path, f"equal-{n}", "equal", 0, change=spectra(n)) for n in range(1, 4)
  ]
  found = comparison.collect(folders)["rows"]["equal"]
  assert [row["folder"] for row in found["fisher"]] == [
    str(folder) for folder in folders for _ in range(2)
  ]
  entropy = found["fisher_changes"][0]
  assert entropy["seeds"] == pytest.approx([100.0, 200.0, 300.0])
  # t of two degrees of freedom: 4.3027 standard errors.
  half = 4.302653 * 100 / np.sqrt(3)
  assert entropy["student"] == pytest.approx([200 - half, 200 + half], rel=1e-6)
  late = found["fisher_tasks"]["late"]["imax"]
  assert (late["seeds"], late["pairs"]) == (3, [[150]])
  assert found["fisher_caveats"] == ["equal-2: invented"]
  two = comparison.collect(folders[:2])["rows"]["equal"]["fisher_changes"][0]
  assert two["student"] is None


def refused(folders, match):
  with pytest.raises(ValueError, match=match):
    comparison.collect(folders)


def test_what_is_missing_damaged_or_old_is_refused(tmp_path):
  good = workdir(tmp_path, "good", "equal", 0)
  refused([], "expected work directories")
  refused([good, tmp_path / "gone"], r"gone/results\.json: no results there")
  refused([good, good / ".." / "good"], "is named twice")
  old = workdir(tmp_path, "old", "equal", 1, change=lambda r: r.pop("scorer"))
  refused([good, old], r"old/results\.json lacks scorer: an earlier version")
  old = workdir(tmp_path, "old", "equal", 1, change=lambda r: r["about"].pop("row"))
  refused([good, old], r"old/results\.json lacks row")
  (old / "results.json").write_text("{", encoding="utf8")
  refused([good, old], r"old/results\.json is damaged")
  none = workdir(tmp_path, "none", "equal", 1, change=lambda r: r["seeds"].clear())
  refused([good, none], r"none/results\.json: no run was evaluated")
  (good / "evaluations" / "imax-s0" / "patients.npz").unlink()
  refused([good], r"imax-s0/patients\.npz: expected the sums")


def test_a_row_is_one_experiment(tmp_path):
  like = workdir(tmp_path, "like", "equal", 0)

  def other(change, row="equal"):
    return workdir(tmp_path, "other", row, 1, change=change)

  def version(results):
    results["about"]["dataset"]["version"] = "2.0.0"

  def rate(results):
    results["config"]["train"]["peak_lr"] = 2.0

  def again(results):
    results["about"]["dataset"]["built"] = "data of 0"
    results["seeds"] = {run: [0] for run in results["seeds"]}

  refused(
    [like, other(version)], r"row 'equal': .*like has dataset version 1\.0\.0 and"
  )
  refused(
    [like, other(rate)], r"differs from .*like in more than seeds \(train\.peak_lr\)"
  )
  refused([like, other(again)], "both hold seed 0 of the same data")
  comparison.collect([like, other(rate, row="faster")])  # a row of its own


def test_other_metrics_or_scorers_are_refused(tmp_path):
  like = workdir(tmp_path, "like", "equal", 0)

  def version(results):
    results["definitions"]["strict"][ACCURACIES[0]]["version"] = "2"

  def scorer(results):
    results["scorer"] = "legacy"

  for change, said in (
    (version, rf"other definitions \(strict\.{ACCURACIES[0]}"),
    (scorer, "scorer"),
  ):
    other = workdir(tmp_path, "other", "few", 1, change=change)
    refused([like, other], said)


def test_predictions_of_other_entries_or_scores_are_refused(tmp_path):
  rng = np.random.default_rng(0)
  other = workdir(tmp_path, "a", "equal", 0, imax=tally(0.7, rng, prefix="another-"))
  refused([other], r"a, seed 0: imax and constant cannot .*answered other entries")
  other = workdir(
    tmp_path, "b", "equal", 0, imax=tally(0.7, rng, 40, "s0-", ACCURACIES[1:])
  )
  refused([other], r"imax and constant were scored by other metrics \(report_rouge1\)")

  def better(results):
    results["per_seed"]["imax"][0][ACCURACIES[0]] += 1.0

  other = workdir(tmp_path, "c", "equal", 0, change=better)
  refused([other], r"patients\.npz: its report_rouge1 are not those of the scores")


def test_rows_are_written_in_the_papers_order_with_their_files(tmp_path, capsys):
  """Whichever the order of --runs; a row that lacks DMAX keeps its line."""

  def only_imax(results):
    for key in ("seeds", "per_seed"):
      results[key].pop("dmax")

  folders = [
    workdir(tmp_path, "mine", "Mine", 0),
    workdir(tmp_path, "uni", "Uni-Med", 1, change=only_imax),
    workdir(tmp_path, "llava", "LLaVA-Med", 2),
  ]
  study = types.SimpleNamespace(workdir=tmp_path / "table1")
  comparison.write(study, [str(folder) for folder in folders])
  found = json.loads((tmp_path / "table1" / "comparison.json").read_text("utf8"))
  assert list(found["rows"]) == ["LLaVA-Med", "Uni-Med", "Mine"]
  assert found["rows"]["Uni-Med"]["gains"] == {}
  assert "boxes_seen" not in found["rows"]["Mine"]
  told = capsys.readouterr().out
  places = [told.index(f"\n{name} ") for name in ("LLaVA-Med", "Uni-Med", "Mine")]
  assert places == sorted(places)
  assert "! Uni-Med: DMAX was not evaluated" in told
  assert "Δ compares two runs of one row" in told  # each has its own data
  assert "Beside it: table1.csv, table1.tex, metrics.csv, figure3.svg" in told
  assert (tmp_path / "table1" / "report" / "figure3.png").is_file()


def test_boxes_that_are_not_seen_are_counted_once_a_dataset(tmp_path):
  def seen(built, whole):
    def change(results):
      results["about"]["dataset"]["built"] = built
      results["boxes_seen"] = {
        "geometry": "crop", "least": 0.5,
        "splits": {"imax_test": {"heart": {"whole": whole, "cut": 2, "unseen": 1}}},
      }  # fmt: skip

    return change

  folders = [
    workdir(tmp_path, f"w{seed}", "equal", seed, change=seen(built, whole))
    for seed, (built, whole) in enumerate((("x", 10), ("x", 10), ("y", 20)))
  ]
  row = comparison.collect(folders)["rows"]["equal"]
  json.dumps(row)
  assert row["datasets"] == ["x", "y"]
  assert row["boxes_seen"]["geometry"] == "crop"
  heart = row["boxes_seen"]["splits"]["imax_test"]["heart"]
  assert heart == {"whole": 30, "cut": 4, "unseen": 2}
