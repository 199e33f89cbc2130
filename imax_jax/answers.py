"""The verb `evaluate`: answers on the test split, and their scores."""

from __future__ import annotations

import functools
import shutil
import sys
from collections.abc import Callable
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import logging

from imax_jax import deliver
from imax_jax import evaluated
from imax_jax import ledger
from imax_jax import results
from imax_jax import runs
from imax_jax.evaluate import intervals
from imax_jax.evaluate import predictions as predictions_lib
from imax_jax.evaluate import scoring
from imax_jax.ledger import plain
from imax_jax.ledger import write_json
from imax_jax.schema import Prediction
from imax_jax.study import Study


def evaluate(study: Study, checkpoint: str | None = None) -> None:
  """Greedy answers on the IMAX test split, and their scores.

  Args:
    checkpoint: the folder of a run or of a bundle, whose scores are printed; without it
      every finished run of the work directory is evaluated.
  """
  if checkpoint:
    folder = Path(checkpoint)
    name = f"{folder.resolve().parent.name}-{folder.name}"
    inputs = {
      "checkpoint": ledger.stamps(folder),
      "model": plain(study.config.model),
      "foundation": study.parameters.digest,
      "features": study.keeps_features,
      "prompt": plain(study.config.prompt),
      "data": study.require_data(),
      "max_new_tokens": study.config.evaluate.max_new_tokens,
    }
    # Read before the station opens: what is refused leaves what is there as it is.
    weights = deliver.weights_from(study, folder)
    out = _evaluate(study, name, inputs, lambda: weights)
    sys.stdout.write((out / "scores.json").read_text("utf8"))
    return
  names = [f"{name}-s{seed}" for name in results.RUNS for seed in study.config.seeds]
  done = [name for name in names if study.ledger.is_done(f"runs/{name}")]
  if not done:
    raise ValueError(f"no run to evaluate in {study.workdir / 'runs'}: train first")
  # All are looked at before any is answered.
  wanted = {name: runs.evaluation_inputs(study, name) for name in done}
  for name, inputs in wanted.items():
    weights = functools.partial(runs.weights_of, study, study.workdir / "runs" / name)
    folder = _evaluate(study, name, inputs, weights)
    kept = study.workdir / "predictions" / f"{name}.jsonl"
    kept.parent.mkdir(exist_ok=True)
    if study.is_chief:
      shutil.copyfile(folder / "predictions.jsonl", kept)


def _evaluate(
  study: Study,
  name: str,
  inputs: Mapping[str, Any],
  weights: Callable[[], Mapping[str, Any]],
) -> Path:
  """The station of one set of weights: its predictions and its scores."""

  def make(folder: Path) -> None:
    predictions = _predictions(study, folder / "predictions.jsonl", weights, name)
    said = scoring.summary(
      predictions,
      study.entries("imax_test"),
      meteor_jar=study.config.evaluate.meteor_jar,
    )
    tally = intervals.tally(
      intervals.by_metric(predictions), study.patients("imax_test")
    )
    intervals.write_tally(folder / evaluated.TALLY, tally)
    write_json(folder / "scores.json", said | {"intervals": intervals.of(tally)})

  return study.ledger.station(f"evaluations/{name}", inputs, make, resumable=True)


def _predictions(
  study: Study, path: Path, weights: Callable[[], Mapping[str, Any]], name: str
) -> list[Prediction]:
  """Those of the test split, in its order, as their file keeps them.

  The file grows line by line as answers end, those on it already are not asked again,
  and at the end its lines are brought into the entries' order: however often it was
  interrupted, the same bytes.
  """
  records, asked, entries = study.records("imax_test"), [], {}
  for number in range(len(records)):
    for entry in records[number].entries:
      asked.append((number, entry.prompt))
      entries[entry.id] = entry
  if len(entries) < len(asked):
    raise ValueError("imax_test: two entries have one id: build the data again")
  known, ids = predictions_lib.read_whole_lines(path, entries), list(entries)
  if len(known) < len(asked):
    if known:
      logging.info("%s: %d of %d answers are there", name, len(known), len(asked))
    numbers = [number for number, name in enumerate(ids) if name in known]
    answers = study.stream(
      weights(), study.pixels("imax_test"), asked, name, known=numbers
    )
    with predictions_lib.appending(path) as add:
      for number, generated in answers:
        add(predictions_lib.predict_value(entries[ids[number]], generated.text))
  predictions = predictions_lib.read_predictions(path, entries)
  predictions_lib.write_predictions(path, predictions)
  return predictions
