"""What the evaluations of a work directory say, read and checked.

answers/RUN-sSEED/predictions.jsonl   what a run answered on the test split
evaluations/RUN-sSEED/scores.json     scores by both scorers, what was not read
                     /patients.npz    sums by test patient: intervals and tests
baselines/NAME.npz                    the same of answers given without the image

Answers cost a model, scores nothing: other scorers score the answers that are there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imax_jax import runs
from imax_jax.evaluate import constants
from imax_jax.evaluate import gains
from imax_jax.evaluate import intervals
from imax_jax.evaluate import pooling
from imax_jax.evaluate import scoring
from imax_jax.evaluate.scores import java_meteor
from imax_jax.ledger import differing
from imax_jax.pseudo import stages
from imax_jax.report import arms
from imax_jax.study import Study
from imax_jax.weights import digests

ANSWERS = "predictions.jsonl"
SCORES, TALLY = "scores.json", "patients.npz"
_SAID = (
  "scores",
  "legacy",
  "definitions",
  "not_legacy",
  "asked",
  "unparsed",
  "reports",
)


def has_labels(study: Study, row: str, seed: int | str) -> bool:
  """Whether a finished row kept any label of a seed; else it is DMAX alone, again."""
  station = stages.kept_station(row, seed)
  return bool(np.load(study.workdir / station / stages.KEPT).any())


def answers_of(study: Study, name: str) -> Path:
  """The file of a run's answers.

  Raises:
    FileNotFoundError: it is not there.
  """
  path = study.workdir / "answers" / name / ANSWERS
  if not path.is_file():
    raise FileNotFoundError(f"{path}: missing; run the verb evaluate again")
  return path


def score_inputs(
  study: Study, name: str, asked: Mapping[str, Any] | None = None
) -> dict[str, Any]:
  """What the scores of finished answers are made from.

  Args:
    asked: what the answers are made from; unless given, those of a run of the study.

  Raises:
    FileNotFoundError: the answers are gone.
    ValueError: they are of other weights or settings, or the config's jar is not there.
  """
  asked = runs.answers_inputs(study, name) if asked is None else asked
  station, jar = f"answers/{name}", study.config.evaluate.meteor_jar
  return {
    "answers": study.ledger.digest(station, asked),
    "predictions": digests.describe(answers_of(study, name))["sha256"],
    "meteor_jar": digests.describe(java_meteor.check(jar))["sha256"] if jar else "",
    "metrics": scoring.definitions(),
  }


def is_current(
  study: Study, station: str, inputs: Callable[[Study, str], dict[str, Any]], run: str
) -> bool:
  """Whether the station has measured the run as it is now; False if it has not run.

  Raises:
    ValueError: it has measured an earlier run of that name, or by another config.
  """
  if not study.ledger.is_done(station):
    return False
  study.ledger.digest(station, inputs(study, run))
  return True


def read(study: Study) -> dict[tuple[str, int], dict[str, Any]]:
  """{(run, seed): the content of its scores.json}.

  Raises:
    ValueError: it was evaluated by an earlier version.
  """
  found: dict[tuple[str, int], dict[str, Any]] = {}
  for run in arms.TRAINED:
    for seed in study.config.seeds:
      name = f"evaluations/{run}-s{seed}"
      if is_current(study, name, score_inputs, f"{run}-s{seed}"):
        path = study.workdir / name / SCORES
        if not path.is_file():
          raise FileNotFoundError(f"{path}: missing; run the verb evaluate again")
        found[run, seed] = json.loads(path.read_text("utf8"))
        lacks = [key for key in _SAID if key not in found[run, seed]]
        if lacks:
          raise ValueError(
            f"{path} lacks {', '.join(lacks)}: an earlier version wrote it; delete its "
            "folder and evaluate again"
          )
  return found


def definitions(
  found: Mapping[tuple[str, int], Mapping[str, Any]],
) -> dict[str, Any]:
  """What the scores are by, as all evaluations say.

  {"strict": {metric: {"definition", "version", "unparsed"}}, "legacy": the same,
   "not_legacy": {metric: why the published scripts give none}}

  Raises:
    ValueError: two evaluations that were scored by different versions.
  """
  said = {
    name: {**one["definitions"], "not_legacy": one["not_legacy"]}
    for name, one in found.items()
  }
  first = next(iter(said.values()), {})
  for (run, seed), one in said.items():
    for scorer in ("strict", "legacy"):
      keys = differing(first[scorer], one[scorer])
      if keys:
        raise ValueError(
          f"evaluations/{run}-s{seed} was scored otherwise than those before it ({scorer}: "
          f"{', '.join(keys[:4])}): delete its folder and evaluate again"
        )
  return first


def seeds(
  study: Study, found: Mapping[tuple[str, int], Mapping[str, Any]]
) -> list[dict[str, pooling.Measured]]:
  """What each seed's runs measured, and both baselines beside them."""
  known, asked = study.entries("imax_train"), study.entries("imax_test")
  patients, without_image = study.patients("imax_test"), {}
  for name, answered in (
    ("constant", constants.constant_predictions(known, asked)),
    ("blind", constants.blind_predictions(known, asked)),
  ):
    tally = intervals.tally(answered, patients)
    intervals.write_tally(study.workdir / "baselines" / f"{name}.npz", tally)
    without_image[name] = pooling.Measured(intervals.totals(tally), tally)
  found_seeds = []
  for seed in sorted({seed for _, seed in found}, key=list(study.config.seeds).index):
    here = {run: scores for (run, other), scores in found.items() if other == seed}
    found_seeds.append(without_image | {
      run: measured(study.workdir, f"{run}-s{seed}", scores["scores"])
      for run, scores in here.items()
    })  # fmt: skip
  return found_seeds or [without_image]


def measured(workdir: Path, name: str, scores: Mapping[str, float]) -> pooling.Measured:
  """A run's scores with its sums by patient, of which they must be.

  Raises:
    ValueError: the sums are missing, damaged or say something else than the scores.
  """
  path = workdir / "evaluations" / name / TALLY
  tally = intervals.read_tally(path)
  said = intervals.totals(tally)
  differ = [
    metric
    for metric in said.keys() | scores.keys()
    if not math.isclose(said.get(metric, -1), scores.get(metric, -1), rel_tol=1e-6)
  ]
  if differ:
    raise ValueError(
      f"{path}: its {', '.join(sorted(differ))} are not those of the scores beside it: "
      "other predictions or another scorer; delete the folder and evaluate again"
    )
  return pooling.Measured(scores, tally)


def told(evaluations: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """What evaluations say beside scores, the seeds of each run together.

  {"unparsed": {run: {task: {reason: count}}}, "asked": {run: {task: count}},
   "legacy": {run: {metric: mean}}, "reports": {run: [of each seed]},
   "evaluations": what it was made of}
  """
  unparsed: dict[str, dict[str, dict[str, int]]] = {}
  asked: dict[str, dict[str, int]] = {}
  legacy: dict[str, list[Mapping[str, float]]] = {}
  reports: dict[str, list[Any]] = {}
  for one in evaluations:
    run = one["run"]
    for task, reasons in one["unparsed"].items():
      _add(unparsed.setdefault(run, {}).setdefault(task, {}), reasons)
    _add(asked.setdefault(run, {}), one["asked"])
    legacy.setdefault(run, []).append(one["legacy"])
    if one["reports"]:
      reports.setdefault(run, []).append(one["reports"])
  means = {run: gains.mean_scores(rows)[0] for run, rows in legacy.items()}
  return {
    "unparsed": unparsed,
    "asked": asked,
    "legacy": means,
    "reports": reports,
    "evaluations": list(evaluations),
  }


def _add(counts: dict[str, int], more: Mapping[str, int]) -> None:
  for key, count in more.items():
    counts[key] = counts.get(key, 0) + count
