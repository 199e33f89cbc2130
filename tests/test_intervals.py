"""Intervals over patients and paired tests: their mathematics, coverage and refusals."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest

from imax_jax.evaluate import gains
from imax_jax.evaluate import intervals
from imax_jax.evaluate import pooling
from imax_jax.evaluate.metrics import Metric
from imax_jax.schema import Answer
from imax_jax.schema import Entry
from imax_jax.schema import Origin
from imax_jax.schema import Prediction


def _numbers(predictions) -> np.ndarray:
  return np.array([[float(p.text), 1.0] for p in predictions])


def _mean(sums: np.ndarray) -> np.ndarray:
  """0 of no answers, as an F1 without labels: a draw without answers must not ask."""
  return 100.0 * sums[..., 0] / np.maximum(sums[..., 1], 1e-9)


def fake(name, subtask="verify", lower=False) -> Metric:
  return Metric(
    name, "vqa", subtask, name, lower, "The mean of invented numbers.", "1", "nothing",
    _numbers, _mean,
  )  # fmt: skip


UP, DOWN = fake("up"), fake("down", "query", lower=True)
BOTH = (UP, DOWN)


def answers(values, subtask="verify", per_patient=1) -> list[Prediction]:
  """Answer i is of image i, and says the number `values[i]`."""
  origin = Origin("made", "invented.csv", 0, "made")
  return [
    Prediction(
      Entry(f"i{i}/vqa/{subtask}/{n}", f"i{i}", "vqa", subtask, "q", "a",
            Answer("q", ("a",)), origin),
      repr(float(value)), Answer("q", ("a",)), "",
    )
    for i, value in enumerate(values) for n in range(per_patient)
  ]  # fmt: skip


def patients(count, images_each=1) -> dict[str, str]:
  return {f"i{i}": f"p{i // images_each}" for i in range(count)}


def made(up, down=None, per_patient=1, images_each=1) -> intervals.Tally:
  found = answers(up, per_patient=per_patient)
  found += answers(down, "query") if down is not None else []
  return intervals.tally(
    intervals.by_metric(found, BOTH), patients(len(up), images_each), BOTH
  )


def measured(up, down=None) -> pooling.Measured:
  scores = {"up": 100.0 * float(np.mean(up))}
  if down is not None:
    scores["down"] = 100.0 * float(np.mean(down))
  return pooling.Measured(scores, made(up, down))


# ── Sums by patient ───────────────────────────────────────────────────────────────


def test_the_sums_of_all_patients_are_the_metric():
  up = np.random.default_rng(0).random(30)
  found = made(up, images_each=4)
  assert len(found.patients) == 8
  total = intervals.scores(found.matrix.sum(0, keepdims=True), found, BOTH)
  assert total[0, 0] == pytest.approx(100 * up.mean(), rel=1e-12)
  assert math.isnan(total[0, 1])  # not measured
  assert found.widths == {"up": 3}


def test_the_order_of_the_answers_does_not_matter():
  """Some metrics' columns come as their entries do, as the labels of an F1."""

  def first_apart(predictions):
    return _numbers(predictions) - float(predictions[0].text)

  metric = dataclasses.replace(UP, statistics=first_apart)
  found = answers([0.1, 0.5, 0.9])
  one, other = (
    intervals.tally({"up": ps}, patients(3), [metric]) for ps in (found, found[::-1])
  )
  assert one.asked == other.asked
  assert np.array_equal(one.matrix, other.matrix)


def test_a_file_of_sums_comes_back_and_a_damaged_one_is_refused(tmp_path):
  found = made([0.1, 0.5, 0.9], [1.0, 2.0, 3.0])
  path = tmp_path / "patients.npz"
  intervals.write_tally(path, found)
  again = intervals.read_tally(path)
  assert (again.patients, again.asked, again.widths) == (
    found.patients, found.asked, found.widths,
  )  # fmt: skip
  assert np.array_equal(again.matrix, found.matrix)
  whole = path.read_bytes()
  for content in (b"", b"no archive", whole[: len(whole) // 2]):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"patients\.npz.*evaluate again"):
      intervals.read_tally(path)
  np.savez(path, patients=np.array(["p"]))
  with pytest.raises(ValueError, match="KeyError"):
    intervals.read_tally(path)
  with pytest.raises(ValueError, match=r"gone\.npz"):
    intervals.read_tally(tmp_path / "gone.npz")


def test_no_prediction_and_an_unknown_patient_are_refused():
  with pytest.raises(ValueError, match="no prediction"):
    intervals.tally({}, {}, BOTH)
  with pytest.raises(ValueError, match="image i2: its patient is not known"):
    intervals.tally({"up": answers([1, 2, 3])}, patients(2), BOTH)


# ── Intervals ─────────────────────────────────────────────────────────────────────


def test_draws_of_patients():
  drawn = intervals.weights(7, 500, 3)
  assert drawn.shape == (500, 7)
  assert (drawn.sum(1) == 7).all()
  assert np.abs(drawn.mean(0) - 1).max() < 0.15
  assert np.array_equal(drawn, intervals.weights(7, 500, 3))
  assert not np.array_equal(drawn, intervals.weights(7, 500, 4))


def test_the_interval_of_a_mean_is_that_of_theory():
  values = np.random.default_rng(1).normal(0.5, 0.1, 400)
  low, high = intervals.of(made(values), BOTH)["up"]
  error = 100 * values.std() / math.sqrt(400)
  assert low == pytest.approx(100 * values.mean() - 1.96 * error, abs=0.1 * error)
  assert high == pytest.approx(100 * values.mean() + 1.96 * error, abs=0.1 * error)


def test_patients_are_drawn_and_not_answers():
  values = np.random.default_rng(1).random(50)
  once, ten = made(values), made(values, per_patient=10)
  one, many = (intervals.of(found, BOTH)["up"] for found in (once, ten))
  assert many == pytest.approx(one)  # ten times the same answer is no new patient
  grouped = made(np.repeat(values, 2), images_each=2)
  assert intervals.of(grouped, BOTH)["up"] == pytest.approx(one)


def test_intervals_cover_as_often_as_they_say():
  rng, hits, trials = np.random.default_rng(2), 0, 300
  for _ in range(trials):
    low, high = intervals.of(made(rng.random(60) < 0.6), BOTH, num_draws=600)["up"]
    hits += low <= 60.0 <= high
  assert 0.91 <= hits / trials <= 0.98


def test_what_has_no_interval_is_named():
  lone = made([0.5, 0.5], images_each=2)  # one patient
  assert intervals.of(lone, BOTH) == {}
  assert lone.too_few() == {"up": "1 test patient: nothing can be resampled"}
  assert intervals.percentiles(np.array([np.nan, np.nan, 1.0])) is None
  assert intervals.percentiles(np.array([np.nan, 1.0, 1.0])) == [1.0, 1.0]


def test_a_draw_without_an_answer_is_no_zero():
  found = intervals.tally(
    {"up": answers([1.0] * 30), "down": answers([2.0] * 3, "query")}, patients(30), BOTH
  )
  drawn = intervals.weights(30, 2000, 0) @ found.matrix
  values = intervals.scores(drawn, found, BOTH)[:, 1]
  assert 0 < np.isnan(values).sum() < 200  # (27 / 30)^30 of 2,000 is 85
  assert set(values[~np.isnan(values)]) == {200.0}


# ── Tests between runs ────────────────────────────────────────────────────────────


def test_p_values_by_hand():
  chance = np.array([-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0])
  assert intervals.p_value(6.0, chance) == pytest.approx(2 / 10)
  assert intervals.p_value(4.0, chance) == pytest.approx(2 * 3 / 10)
  assert intervals.p_value(-3.0, chance) == pytest.approx(2 * 2 / 10)
  assert intervals.p_value(1.0, chance) == 1.0
  assert intervals.p_value(0.0, np.zeros(99)) == 1.0
  assert intervals.p_of_signs([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx(2 / 32)
  assert intervals.p_of_signs([1.0, 2.0, -3.0]) == 1.0
  assert intervals.p_of_signs([1.0, -1.0, 3.0]) == pytest.approx(6 / 8)
  assert intervals.p_of_signs([1.0]) is None
  assert 0 < intervals.p_of_signs([1.0] * 17) < 0.001


def test_holm_by_hand():
  adjusted = intervals.holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.9})
  assert adjusted == pytest.approx({"a": 0.04, "b": 0.09, "c": 0.09, "d": 0.9})
  assert list(adjusted) == ["a", "b", "c", "d"]


def test_student_by_hand():
  low, high = intervals.student([1.0, 2.0, 3.0])
  assert (low, high) == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5))
  assert intervals.student([1.0]) is None


def test_exchanged_answers_keep_what_both_said_together():
  new, base = made([0.1, 0.5, 0.9]), made([0.4, 0.4, 0.4])
  after, before = intervals.swapped(new, base, 50, 0)
  together = new.matrix.sum(0) + base.matrix.sum(0)
  assert np.allclose(after + before, together)
  assert len(np.unique(after[:, 0].round(9))) == 8  # all 2^3 ways occur


def test_the_test_is_honest_and_sees_an_effect():
  rng, alarms, trials = np.random.default_rng(3), 0, 200
  for _ in range(trials):
    patient = rng.normal(1.0, 0.3, 40)
    one, other = (patient + rng.normal(0, 0.2, 40) for _ in range(2))
    found = pooling.paired(
      [{"a": measured(one), "b": measured(other)}],
      "a",
      "b",
      metrics=BOTH,
      num_draws=400,
    )
    alarms += found["p_patients"] <= 0.05
  assert alarms / trials <= 0.1
  assert alarms > 0
  found = pooling.paired(
    [{"a": measured(patient + 0.2 + rng.normal(0, 0.1, 40)), "b": measured(patient)}],
    "a", "b", metrics=BOTH,
  )  # fmt: skip
  assert found["p_patients"] < 0.001
  assert found["interval"][0] > 0


def test_pairs_of_other_entries_or_metrics_are_refused():
  base = made([1.0, 2.0, 3.0])
  with pytest.raises(
    ValueError, match="imax and dmax cannot be .* they answered other entries"
  ):
    intervals.check_pair(made([1.0, 2.0]), base, ("imax", "dmax"))
  other = intervals.tally({"up": answers([1, 2, 3], "query")}, patients(3), BOTH)
  with pytest.raises(
    ValueError, match="imax and dmax cannot be .* they answered other entries"
  ):
    intervals.check_pair(other, base, ("imax", "dmax"))
  wide = intervals.Tally(base.patients, base.asked, {"up": 2, "down": 1}, base.matrix)
  with pytest.raises(ValueError, match=r"other metrics \(down, up\)"):
    intervals.check_pair(wide, base, ("imax", "dmax"))


# ── Seeds together ────────────────────────────────────────────────────────────────


def test_delta_is_recomputed_in_every_draw():
  """A run that is 10 % better for every patient has Δ = 10 % in every draw of them."""
  rng = np.random.default_rng(4)
  up, down = rng.random(50) + 0.5, rng.random(50) + 0.5
  seed = {"new": measured(1.1 * up, 0.9 * down), "base": measured(up, down)}
  found = pooling.paired([seed], "new", "base", metrics=BOTH)
  assert found["mean"] == pytest.approx(10.0)
  assert found["interval"] == pytest.approx([10.0, 10.0])
  assert found["over_seeds"] is None
  assert found["p_seeds"] is None
  assert found["tests"]["up"]["gain_interval"] == pytest.approx([10.0, 10.0])
  assert found["tests"]["up"]["interval"][0] < found["tests"]["up"]["interval"][1]
  assert found["tests"]["down"]["difference"] < 0 < found["tests"]["down"]["gain"]
  assert found["tests"]["up"]["p_holm"] >= found["tests"]["up"]["p"]
  json.dumps(found, allow_nan=False)


def test_delta_of_draws_is_that_of_gains():
  rng = np.random.default_rng(5)
  new, base = rng.random((4, 2)) + 1, rng.random((4, 2)) + 1
  base[1, 0] = 0.0
  terms = gains.relative(new, base, BOTH)
  for row in range(4):
    asked = [
      dict(zip(("up", "down"), scores[row], strict=True)) for scores in (new, base)
    ]
    said = gains.gain(*asked, BOTH)
    assert np.nanmean(terms[row]) == pytest.approx(said.mean_percent)
    assert np.isnan(terms[row]).sum() == len(said.excluded)


def test_a_base_of_zero_is_left_out_and_named():
  up = [0.0] * 20
  seed = {"new": measured([0.5] * 20, [1.0] * 20), "base": measured(up, [2.0] * 20)}
  found = pooling.paired([seed], "new", "base", metrics=BOTH)
  assert found["excluded"] == {"up": "the base run scores 0"}
  assert list(found["tests"]) == ["down"]
  assert found["interval"] == pytest.approx([50.0, 50.0])
  seed = {"new": measured([0.5] * 20), "base": measured(up)}
  found = pooling.paired([seed], "new", "base", metrics=BOTH)
  assert (found["mean"], found["interval"], found["tests"]) == (None, None, {})
  # One patient of 20 carries the base: without it, in a third of the draws, it is 0.
  rare = [1.0] + [0.0] * 19
  seed = {"new": measured(rare, [1.0] * 20), "base": measured(rare, [2.0] * 20)}
  found = pooling.paired([seed], "new", "base", metrics=BOTH)
  assert found["dropped"] == {"up": pytest.approx(0.95**20, abs=0.05)}
  json.dumps(found, allow_nan=False)


def test_seeds_that_answered_the_same_patients_share_a_draw():
  values = np.random.default_rng(6).random(30)
  alike = [{"a": measured(values)}, {"a": measured(values)}]
  drawn = pooling._draw(alike, ["a"], 200, BOTH)["a"]
  assert np.array_equal(drawn[:, 0, 0], drawn[:, 1, 0])
  assert np.ptp(drawn[:, 0, 0]) > 0
  apart = [{"a": measured(values)}, {"a": measured(np.append(values, 0.5))}]
  drawn = pooling._draw(apart, ["a"], 200, BOTH)["a"]
  assert not np.allclose(drawn[:, 0, 0], drawn[:, 1, 0])


def test_seeds_widen_the_interval():
  rng = np.random.default_rng(7)
  base = rng.random(60) + 1
  calm, wild = [
    [{"new": measured(base * (1 + shift)), "base": measured(base)} for shift in shifts]
    for shifts in ([0.05, 0.05, 0.05], [-0.1, 0.05, 0.2])
  ]
  calm, wild = (pooling.paired(s, "new", "base", metrics=BOTH) for s in (calm, wild))
  assert calm["interval"] == pytest.approx([5.0, 5.0])
  assert wild["mean"] == pytest.approx(5.0)
  assert wild["interval"] == pytest.approx([-10.0, 20.0])  # one seed three times
  assert wild["over_seeds"] == pytest.approx(
    [5 - 4.302653 * 15 / 3**0.5, 5 + 4.302653 * 15 / 3**0.5]
  )
  assert wild["p_seeds"] == pytest.approx(6 / 8)
  assert wild["p_patients"] < 0.01  # these three models do differ; the recipes may not


def test_pooling_holds_what_a_page_shows():
  rng = np.random.default_rng(8)
  seeds = [
    {"dmax": measured(rng.random(80)), "imax": measured(rng.random(80) + shift),
     "constant": measured([0.3] * 80)}
    for shift in (0.5, 0.6)
  ]  # fmt: skip
  del seeds[1]["dmax"]
  pairs = {"imax": ("imax", "dmax"), "pseudo": ("pseudo", "dmax")}
  found = pooling.pool(seeds, pairs, blind=["constant"], metrics=BOTH, num_draws=500)
  assert found["tables"]["imax"]["up"] == pytest.approx(
    np.mean([seed["imax"].scores["up"] for seed in seeds])
  )
  low, high = found["intervals"]["imax"]["up"]
  assert low < found["tables"]["imax"]["up"] < high
  assert found["intervals"]["constant"]["up"] == pytest.approx([30.0, 30.0])
  assert found["ahead"] == {"dmax": {"up": True}, "imax": {"up": True}}
  assert list(found["gains"]) == ["imax"]
  assert len(found["gains"]["imax"]["per_seed"]) == 1
  assert list(found["noise"]) == ["imax"]
  json.dumps(found, allow_nan=False)


def test_a_seed_of_two_test_splits_is_refused():
  seed = {"dmax": measured([0.1, 0.2, 0.3]), "constant": measured([0.1, 0.2])}
  with pytest.raises(ValueError, match="constant and dmax cannot be compared"):
    pooling.pool([seed], {}, blind=["constant"], metrics=BOTH)


def test_ahead_asks_for_more_than_a_better_mean():
  rng = np.random.default_rng(9)
  seed = {"dmax": measured(rng.random(12)), "constant": measured([0.45] * 12)}
  assert seed["dmax"].scores["up"] > 45
  found = pooling.pool([seed], {}, blind=["constant"], metrics=BOTH)
  assert found["ahead"] == {"dmax": {"up": False}}
  low = {"dmax": measured([1.0] * 12, rng.random(12) / 9)}
  low["constant"] = measured([0.5] * 12, [0.5] * 12)
  found = pooling.pool([low], {}, blind=["constant"], metrics=BOTH)
  assert found["ahead"] == {
    "dmax": {"up": True, "down": True}
  }  # an error that is lower
