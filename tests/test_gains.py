"""Eq. 1, put to the paper's own Table 2, and its spread over seeds."""

from __future__ import annotations

import json

import pytest

from imax_jax.evaluate import gains
from imax_jax.evaluate.metrics import STRICT
from imax_jax.report import tables

PAPER = tables.PAPER_TABLE2


@pytest.mark.parametrize(
  ("run", "percent", "improved"), [("imax", 29.09, 15), ("pseudo", 16.26, 15)]
)
def test_the_papers_own_table(run, percent, improved):
  value = gains.gain(PAPER[run], PAPER["dmax"])
  assert round(value.mean_percent, 2) == percent
  assert value.mean_percent == pytest.approx(tables.PAPER_GAINS[run], abs=0.03)
  assert (value.improved, value.total) == (improved, 16)
  assert value.excluded == {}


def test_the_printed_reg_of_the_third_row_can_not_be_meant():
  printed = {**PAPER["pseudo"], "reg_acc": 3.41}
  assert gains.gain(printed, PAPER["dmax"]).mean_percent == pytest.approx(
    8.46, abs=0.01
  )


def test_a_falling_error_is_a_gain():
  value = gains.gain({"ctr_mae": 2.0, "rec_iou": 60.0}, {"ctr_mae": 4.0, "rec_iou": 50})
  assert value.per_metric == {
    "ctr_mae": pytest.approx(50),
    "rec_iou": pytest.approx(20),
  }
  assert value.mean_percent == pytest.approx(35)
  worse = gains.gain({"ctr_mae": 4.0}, {"ctr_mae": 2.0})
  assert worse.mean_percent == pytest.approx(-100)
  assert (worse.improved, worse.total) == (0, 1)


def test_what_has_no_relative_gain_is_left_out_and_named():
  base = {"ctr_mae": 0.0, "rec_iou": 50.0, "reg_acc": float("nan"), "rec_r50": None}
  new = {"ctr_mae": 1.0, "rec_iou": 55.0, "reg_acc": 3.0, "rec_r50": 9.0}
  value = gains.gain(new, base)
  assert value.mean_percent == pytest.approx(10)
  assert value.excluded["ctr_mae"] == "the base run scores 0"
  assert value.excluded["reg_acc"] == "not finite"
  assert value.excluded["rec_r50"] == "not measured in both runs"
  assert value.total + len(value.excluded) == len(STRICT)
  nothing = gains.gain({}, {})
  assert nothing.mean_percent is None
  assert nothing.total == 0


def test_spread():
  assert gains.spread([1.0, 2.0, 3.0]) == (2.0, 1.0)  # the sample's, not 0.816
  assert gains.spread([4.0]) == (4.0, None)
  with pytest.raises(ValueError, match="at least one"):
    gains.spread([])


def test_gains_are_paired_seed_by_seed():
  base = [{"rec_iou": 50.0, "ctr_mae": 4.0}, {"rec_iou": 80.0, "ctr_mae": 4.0}]
  new = [{"rec_iou": 60.0, "ctr_mae": 4.0}, {"rec_iou": 80.0, "ctr_mae": 5.0}]
  value = gains.paired_gains(new, base)
  assert value["per_seed"] == [pytest.approx(10.0), pytest.approx(-12.5)]
  assert value["mean"] == pytest.approx(-1.25)
  assert value["std"] == pytest.approx(15.909902576697319)
  assert (value["improved"], value["total"]) == (1, 2)
  json.dumps(value, allow_nan=False)
  json.dumps(gains.paired_gains([{}], [{}]), allow_nan=False)
  with pytest.raises(ValueError, match="same seeds"):
    gains.paired_gains(new, base[:1])


def test_seeds_are_averaged_over_the_same_metrics():
  base = [
    {"rec_iou": 50.0, "report_bleu1": 1.0},
    {"rec_iou": 50.0, "report_bleu1": 0.0},
  ]
  new = [{"rec_iou": 60.0, "report_bleu1": 9.0}, {"rec_iou": 60.0, "report_bleu1": 9.0}]
  value = gains.paired_gains(new, base)
  assert value["per_seed"] == [pytest.approx(20.0), pytest.approx(20.0)]
  assert value["total"] == 1
  assert value["excluded"]["report_bleu1"] == "the base run scores 0"


def test_a_base_near_zero_carries_the_mean_and_not_the_median():
  base = {"report_bleu1": 0.01, "rec_iou": 50.0, "reg_acc": 80.0}
  value = gains.paired_gains([{**base, "report_bleu1": 1.0, "rec_iou": 51.0}], [base])
  assert value["mean"] > 3000
  assert value["median"] == pytest.approx(2.0)
  assert gains.paired_gains([{}], [{}])["median"] is None


def test_mean_scores_over_the_seeds_that_measured():
  means, deviations = gains.mean_scores([{"rec_iou": 50.0}, {"rec_iou": 60.0}, {}])
  assert means == {"rec_iou": 55.0}
  assert deviations == {"rec_iou": pytest.approx(7.0710678)}


def test_the_report_and_the_scores_name_the_same_metrics():
  scored = [(metric.name, metric.lower_is_better) for metric in STRICT]
  shown = [(column.name, column.lower_is_better) for column in tables.COLUMNS]
  assert scored == shown
