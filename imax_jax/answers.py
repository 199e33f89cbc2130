"""The verb `evaluate`: answers on the test split, and their scores.

runs/imax-s0 ──▶ answers/imax-s0 ──▶ evaluations/imax-s0
"""

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
from imax_jax.evaluate.scores import java_meteor
from imax_jax.ledger import plain
from imax_jax.ledger import write_json
from imax_jax.study import Study


def evaluate(study: Study, checkpoint: str | None = None) -> None:
  """Greedy answers on the IMAX test split, and their scores.

  Args:
    checkpoint: the folder of a run or of a bundle, whose scores are printed; without it
      every finished run of the work directory is evaluated.
  """
  jar = study.config.evaluate.meteor_jar
  if jar:
    java_meteor.check(jar)  # now, and not when all is answered
  if checkpoint:
    folder = Path(checkpoint)
    name = f"{folder.resolve().parent.name}-{folder.name}"
    inputs = {
      "checkpoint": ledger.stamps(folder),
      "model": plain(study.config.model),
      "foundation": study.parameters.digest,
      "features": study.keeps_features,
      "prompt": study.prompt,
      **study.image_facts,
      "data": study.require_data(),
      "max_new_tokens": study.config.evaluate.max_new_tokens,
    }
    # Read before the station opens: what is refused leaves what is there as it is.
    loaded = deliver.weights_from(study, folder)
    out = _evaluate(study, name, inputs, lambda: loaded)
    sys.stdout.write((out / evaluated.SCORES).read_text("utf8"))
    return
  names = [f"{name}-s{seed}" for name in results.RUNS for seed in study.config.seeds]
  done = [name for name in names if study.ledger.is_done(f"runs/{name}")]
  if not done:
    raise ValueError(f"no run to evaluate in {study.workdir / 'runs'}: train first")
  # All are looked at before any is answered.
  wanted = {name: runs.answers_inputs(study, name) for name in done}
  for name, inputs in wanted.items():
    weights = functools.partial(runs.weights_of, study, study.workdir / "runs" / name)
    _evaluate(study, name, inputs, weights)
    kept = study.workdir / "predictions" / f"{name}.jsonl"
    kept.parent.mkdir(exist_ok=True)
    if study.is_chief:
      shutil.copyfile(evaluated.answers_of(study, name), kept)


def _evaluate(
  study: Study,
  name: str,
  inputs: Mapping[str, Any],
  weights: Callable[[], Mapping[str, Any]],
) -> Path:
  """The two stations of one set of weights, its answers and their scores."""

  def answer(folder: Path) -> None:
    _answer(study, folder / evaluated.ANSWERS, weights, name)

  def score(folder: Path) -> None:
    entries = study.asked("imax_test")
    predictions = predictions_lib.read_predictions(
      evaluated.answers_of(study, name), {entry.id: entry for entry in entries}
    )
    jar = study.config.evaluate.meteor_jar
    said = scoring.summary(predictions, entries, meteor_jar=jar)
    tally = intervals.tally(
      intervals.by_metric(predictions), study.patients("imax_test")
    )
    intervals.write_tally(folder / evaluated.TALLY, tally)
    scores = said | {"intervals": intervals.of(tally)}
    write_json(folder / evaluated.SCORES, scores)

  station = f"answers/{name}"
  _begin_what_lacks(study, station, evaluated.ANSWERS)
  study.ledger.station(station, inputs, answer, resumable=True)
  made_from = evaluated.score_inputs(study, name, inputs)
  station = f"evaluations/{name}"
  _begin_what_lacks(study, station, evaluated.SCORES, evaluated.TALLY)
  return study.ledger.station(station, made_from, score)


def _begin_what_lacks(study: Study, station: str, *files: str) -> None:
  """A finished station one of whose files was deleted is none; a person was told to."""
  folder = study.workdir / station
  gone = not all((folder / file).is_file() for file in files)
  if study.is_chief and gone and study.ledger.is_done(station):
    logging.info("%s: files are gone; doing it again", station)
    shutil.rmtree(folder)
  study.ledger.meet(f"{station}/looked")


def _answer(
  study: Study, path: Path, weights: Callable[[], Mapping[str, Any]], name: str
) -> None:
  """Those of the test split into their file, in the split's order.

  The file grows line by line as answers end, those on it already are not asked again,
  and at the end its lines are brought into the entries' order: however often it was
  interrupted, the same bytes.
  """
  records, asked, entries = study.records("imax_test"), [], {}
  for number in range(len(records)):
    for entry in study.eye.spell(records[number]).entries:
      asked.append((number, entry.prompt))
      entries[entry.id] = entry
  if len(entries) < len(asked):
    raise ValueError("imax_test: two entries have one id: build the data again")
  known, ids = predictions_lib.read_whole_lines(path, entries), list(entries)
  if len(known) < len(asked):
    if known:
      logging.info("%s: %d of %d answers are there", name, len(known), len(asked))
    numbers = [number for number, name in enumerate(ids) if name in known]
    tasks = [entry.task for entry in entries.values()]
    answers = study.stream(
      weights(), study.pixels("imax_test"), asked, name, known=numbers, tasks=tasks
    )
    with predictions_lib.appending(path) as add:
      for number, generated in answers:
        add(predictions_lib.predict_value(entries[ids[number]], generated.text))
  predictions = predictions_lib.read_predictions(path, entries)
  predictions_lib.write_predictions(path, predictions)
