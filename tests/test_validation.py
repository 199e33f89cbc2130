"""Held-out patients, the best weights, early stopping; trackers and traces."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboard_events import scalars_in
from test_train import assert_same_bits
from test_train import bigram_params
from test_train import make_batches
from test_train import make_images
from test_train import pixels_of
from test_train import run

from configs import phantom
from imax_jax import experiment
from imax_jax import feed
from imax_jax import mesh as mesh_lib
from imax_jax.data.pipeline import EntryBatches
from imax_jax.models.loss import example_loss
from imax_jax.models.loss import token_nll
from imax_jax.pseudo import label
from imax_jax.study import Study
from imax_jax.study import UsageError
from imax_jax.train import snapshots
from imax_jax.train import trackers
from imax_jax.train import validation
from imax_jax.train.metrics import read_metrics
from imax_jax.train.validation import Best

PATIENTS = [f"p{number // 3}" for number in range(900)]


def test_a_patient_is_held_out_whole_and_everywhere():
  held = validation.held_out(PATIENTS, 0.2)
  assert len(held) / 900 == pytest.approx(0.2, abs=0.05)
  people = {PATIENTS[place] for place in held}
  assert held == {place for place, name in enumerate(PATIENTS) if name in people}
  # Another data set with some of the same people holds out the same of them.
  others = PATIENTS[::7]
  again = {others[place] for place in validation.held_out(others, 0.2)}
  assert again == people & set(others)
  assert validation.held_out(PATIENTS, 0.0) == set()


@pytest.mark.parametrize(
  ("fraction", "patients", "message"),
  [
    (1.0, PATIENTS, "expected 0"), (-0.1, PATIENTS, "expected 0"),
    (0.5, ["p1"] * 4, "holds out . of 4 images"),
  ],
)  # fmt: skip
def test_fractions_that_hold_out_nobody_or_all(fraction, patients, message):
  with pytest.raises(ValueError, match=message):
    validation.held_out(patients, fraction)


def _row_loss(trainable, frozen, batch):
  logits = frozen["embed"][batch["text"]] @ trainable["kernel"] + trainable["bias"]
  return example_loss(token_nll, logits, batch)


@pytest.mark.parametrize("group_size", [4, 100])
def test_the_loss_on_held_out_entries_is_that_of_each_alone(group_size):
  images, (trainable, frozen) = make_images(), bigram_params()
  trainable = jax.tree.map(lambda leaf: leaf + 0.1, trainable)
  trainable["kernel"] += jnp.arange(24.0) / 10
  pairs = [(i, e) for i in (1, 4, 5) for e in range(len(images[i].entries))]
  assert len(pairs) % 4, "the last batch must have padding"
  batches = EntryBatches(images, pixels_of, pairs, group_size=group_size)
  mesh = mesh_lib.make_mesh({"data": -1})
  found = validation.evaluator(_row_loss, frozen, batches, mesh)(trainable)
  total = weight = 0.0
  for pair in pairs:
    [batch] = list(EntryBatches(images, pixels_of, [pair], group_size=1))
    one, answer = _row_loss(trainable, frozen, batch)
    total, weight = total + float(one.sum()), weight + float(answer.sum())
  assert found == {
    "loss": pytest.approx(total / weight, rel=1e-6),
    "loss_vqa": pytest.approx(total / weight, rel=1e-6),
  }


def test_processes_share_the_held_out_rows():
  images = make_images()
  pairs = [(i, 0) for i in range(7)]
  whole = EntryBatches(images, pixels_of, pairs, group_size=4)
  parts = [
    EntryBatches(
      images, pixels_of, pairs, group_size=4, process_index=p, process_count=2
    )
    for p in range(2)
  ]
  for group in range(2):
    for name, array in whole[group].items():
      halves = [part[group][name] for part in parts]
      np.testing.assert_array_equal(np.concatenate(halves), array, err_msg=name)


# ── The best weights, and an early end ──────────────────────────────────────────────

LOSSES = {3: 0.9, 6: 0.5, 9: 0.7, 12: 0.6}  # by step


def _evaluator(trained: list, losses: dict = LOSSES):
  values = iter(losses.values())

  def evaluate(trainable):
    trained.append(jax.device_get(trainable))
    return {"loss": next(values)}

  return {"validation": evaluate}


def test_the_best_weights_are_kept(tmp_path):
  seen: list = []
  run(tmp_path, evaluators=_evaluator(seen), evaluate_steps=3)
  like = bigram_params()[0]
  assert_same_bits(snapshots.restore(tmp_path, "best", like), seen[1])
  assert_same_bits(snapshots.restore(tmp_path, "late", like), seen[3])


@pytest.mark.parametrize("cut", [None, 8, 9])
def test_a_run_ends_when_nothing_gets_better(tmp_path, cut):
  """And so it does if it is killed in between, or after the evaluation that ends it."""
  seen: list = []
  worse = {3: 0.5, 6: 0.6, 9: 0.7, 12: 0.4}
  settings = {"evaluate_steps": 3, "choose": ("loss", 2)}
  if cut is not None:
    run(tmp_path, evaluators=_evaluator(seen, worse), stop_after=cut, **settings)
    done = [line["step"] for line in _lines(tmp_path) if "validation/loss" in line]
    worse = {step: loss for step, loss in worse.items() if step > done[-1]}
    seen = seen[:1]
    assert cut == 9 or done == [3, 6]
  run(tmp_path, evaluators=_evaluator(seen, worse), **settings)
  lines = _lines(tmp_path)
  assert max(line["step"] for line in lines) == 9
  like = bigram_params()[0]
  assert_same_bits(snapshots.restore(tmp_path, "best", like), seen[0])
  # What was to be kept at a later step is kept at the last one.
  undisturbed = tmp_path / "other"
  run(undisturbed, snapshots={"nine": 9})
  nine = snapshots.restore(undisturbed, "nine", like)
  assert_same_bits(snapshots.restore(tmp_path, "late", like), nine)


def _lines(folder: Path) -> list[dict[str, float]]:
  return read_metrics(folder / "metrics.jsonl")


def test_a_metric_that_is_not_there_is_named():
  best = Best("loss_rec", 0)
  assert not best.look({"step": 1, "loss": 0.3})
  with pytest.raises(ValueError, match=r"'loss_rec': there are loss, loss_vqa"):
    best.look({"step": 1, "validation/loss": 1.0, "validation/loss_vqa": 1.0})


# ── Trackers and traces ─────────────────────────────────────────────────────────────


def test_tensorboard_has_the_lines_of_metrics_and_a_resume_takes_back_its_own(tmp_path):
  run(tmp_path, stop_after=8)
  run(tmp_path)
  found = scalars_in(tmp_path / "tensorboard")
  lines = _lines(tmp_path)
  assert len(lines) == 12
  for line in lines:
    for name in ("loss", "grad_norm", "lr", "tokens"):
      assert found[name][line["step"]] == pytest.approx(line[name], rel=1e-6)
  assert set(found["loss"]) == set(range(1, 13))


def test_what_a_killed_run_wrote_too_much_is_taken_back(tmp_path):
  for start, stop in ((0, 8), (6, 7)):
    board = trackers.TensorBoard(tmp_path / "board", step=start)
    for step in range(start + 1, stop + 1):
      board.write(step, {"loss": float(start)})
    board.close()
  steps = {**dict.fromkeys(range(1, 7), 0.0), 7: 6.0}
  assert scalars_in(tmp_path / "board") == {"loss": steps}


@pytest.mark.parametrize("name", trackers.NAMES)
def test_others_are_told_the_same_and_stay_here(tmp_path, monkeypatch, name):
  calls: list = []
  module = types.ModuleType(name)
  module.init = lambda **options: calls.append(("init", options))
  module.log = lambda values, step: calls.append(("log", step, values))
  module.finish = lambda: calls.append(("finish",))
  monkeypatch.setitem(sys.modules, name, module)
  monkeypatch.delenv("WANDB_MODE", raising=False)
  trackers.check([name])
  run(tmp_path / "imax-s0", trackers=(name,))
  (_, options), *logged, end = calls
  assert end == ("finish",)
  assert options["name"] == "imax-s0"
  if name == "wandb":
    assert options["mode"] == "offline"
  lines = _lines(tmp_path / "imax-s0")
  assert [{"step": step, **values} for _, step, values in logged] == lines


def test_an_unknown_tracker_or_one_that_is_missing(monkeypatch):
  with pytest.raises(ValueError, match="no 'mlflow'; there are wandb, trackio"):
    trackers.check(["mlflow"])
  monkeypatch.setitem(sys.modules, "wandb", None)
  with pytest.raises(ValueError, match=r"pip install 'imax_jax\[wandb\]'"):
    trackers.check(["wandb"])


def test_a_trace_of_some_updates(tmp_path):
  run(tmp_path, batches=make_batches(), profile=(3, 5), save_steps=0)
  [trace] = (tmp_path / "profile").rglob("*.xplane.pb")
  assert trace.stat().st_size > 1000
  run(tmp_path / "none")
  assert not (tmp_path / "none" / "profile").exists()


# ── In a study ──────────────────────────────────────────────────────────────────────


def test_a_run_does_not_see_whom_it_is_validated_on_and_ends_as_its_best(tmp_path):
  config = phantom.get_config("tiny")
  config.train.runs = ("imax",)
  config.train.epochs = 20.0
  config.train.peak_lr = config.train.final_lr = 3.0  # in the end it gets worse
  config.train.validation.update({"fraction": 0.3, "steps": 3, "patience": 2})
  experiment.run(config, tmp_path, ["build", "train"], {})
  study = Study(config, tmp_path)
  records = study.records("imax_train")
  batches, held = feed.batches(
    study, records, lambda: study.pixels("imax_train"), num_steps=9, seed=0
  )
  patients = {r.patient_id: {e.id for e in r.entries} for r in records}
  trained = {name for step in range(9) for name in batches.names(step)}
  seen = [entry.id for group in range(len(held)) for entry in held.entries(group)]
  assert len(seen) == len(set(seen))
  kinds = {
    (bool(ids & trained), bool(ids & set(seen)), ids <= trained | set(seen))
    for ids in patients.values()
  }
  assert kinds == {(True, False, True), (False, True, True)}
  run_folder = tmp_path / "runs" / "imax-s0"
  losses = [x["validation/loss"] for x in _lines(run_folder) if "validation/loss" in x]
  assert len(losses) > 1
  like = study.parameters.trainable
  final, best, last = (
    jax.device_get(snapshots.restore(run_folder, name, like))
    for name in ("final", "best", "late")
  )
  assert_same_bits(final, best)
  assert losses[-1] > min(losses)
  assert any(map(np.any, jax.tree.leaves(jax.tree.map(np.not_equal, final, last))))


@pytest.mark.parametrize(
  ("key", "value", "message"),
  [
    ("clip_norm", -1.0, "clip_norm=-1.0: expected 0 or more"),
    ("beta2", 2.0, "beta2=2.0: expected less than 1"),
    ("entries_per_step", 0, "entries_per_step=0: expected 1 or more"),
    ("epochs", 0.0, "epochs=0.0: expected more than 0"),
    ("weight_decay", float("nan"), "weight_decay=nan: expected 0 or more"),
    ("keep", 1, "keep=1: expected 2 or more"),
    ("profile", (3, 1), "profile=.*expected the first update"),
    ("clock", "x", "clock 'x'"),
    ("weighting", "x", "weighting 'x'"),
    ("shuffle", "x", "shuffle 'x'"),
    ("trackers", ("mlflow",), "no 'mlflow'"),
    ("sample_ratios.rec", 2.0, "shuffle=image: expected task"),
    ("task_weights.rec", float("nan"), "task_weights"),
    ("validation.patience", -1, "validation.patience=-1: expected 0 or more"),
    ("validation.patience", 2, "validation.patience=2: expected 0, or patients"),
    ("validation.metric", "accuracy", "validation.metric=accuracy: expected loss"),
  ],
)
def test_training_is_refused_before_anything_is_made(tmp_path, key, value, message):
  config = phantom.get_config("tiny")
  *above, name = key.split(".")
  part = config.train[above[0]] if above else config.train
  part[name] = value
  with pytest.raises(UsageError, match=message):
    experiment.run(config, tmp_path, ["train"], {})
  assert not (tmp_path / "runs").exists()


def test_a_control_of_as_many_steps_may_not_end_early(tmp_path):
  config = phantom.get_config("tiny")
  config.train.validation.update({"fraction": 0.3, "patience": 2})
  assert "dmax_long" in config.train.runs
  with pytest.raises(UsageError, match="without dmax_long"):
    experiment.run(config, tmp_path, ["train"], {})


def test_pseudo_labels_do_not_validate_and_most_entries_are_the_same_at_every_start():
  def image(origins):
    entries = [
      types.SimpleNamespace(
        entry=types.SimpleNamespace(origin=types.SimpleNamespace(source=source))
      )
      for source in origins
    ]
    return types.SimpleNamespace(entries=entries)

  images = [image(["made", label.ORIGIN, "made"]), image(["made"] * 9), image(["made"])]
  assert feed._validated(images, {0, 2}, 0) == [(0, 0), (0, 2), (2, 0)]
  some = feed._validated(images, {0, 1}, 4)
  assert len(some) == 4 and some == feed._validated(images, {0, 1}, 4)
  with pytest.raises(ValueError, match="no entry but pseudo labels"):
    feed._validated([image([label.ORIGIN])], {0}, 0)


def test_fewer_than_two_checkpoints_are_refused(tmp_path):
  with pytest.raises(ValueError, match="keep 1: expected two"):
    run(tmp_path, keep=1)
