"""What a work directory has measured, as results.json, the page and the table."""

from __future__ import annotations

import importlib.metadata
import json
import math
import platform
import sys
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from imax_jax import runs
from imax_jax.data import shards
from imax_jax.evaluate import constants
from imax_jax.evaluate import gains
from imax_jax.evaluate import intervals
from imax_jax.evaluate import metrics
from imax_jax.evaluate import pooling
from imax_jax.evaluate import predictions as predictions_lib
from imax_jax.evaluate import scoring
from imax_jax.ledger import plain
from imax_jax.ledger import write_json
from imax_jax.report import arms
from imax_jax.report import examples
from imax_jax.report import page
from imax_jax.report import tables
from imax_jax.report import terminal
from imax_jax.study import Study

RUNS = arms.TRAINED
# What an evaluation keeps for intervals and tests, beside its scores.
TALLY = "patients.npz"
_PACKAGES = (
  "imax_jax", "jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy",
  "tensorflow-datasets", "transformers", "tokenizers",
)  # fmt: skip
_CURVE_POINTS = 200
_CARRIES_THE_MEAN = 200.0  # percent
_RARELY_DROPPED = 0.01  # of the draws


def write(study: Study) -> None:
  """WORKDIR/results.json and WORKDIR/report/index.html; prints the study's table."""
  results = collect(study)
  write_json(study.workdir / "results.json", results)
  path = study.workdir / "report" / "index.html"
  page.write_report(results, _examples(study), path)
  sys.stdout.write(f"\n{terminal.text_table(results)}\n\nReport: {path}\n")
  sys.stdout.flush()


def collect(study: Study) -> dict[str, Any]:
  """The content of results.json; what has not run is absent."""
  study.require_data()
  described = json.loads((study.workdir / "data" / "statistics.json").read_text("utf8"))
  found = _evaluations(study)
  pooled = pooling.pool(
    _seeds(study, found),
    {pair.name: (pair.new, pair.base) for pair in arms.PAIRS},
    blind=arms.BLIND,
  )
  config = study.config
  return {
    "about": _about(study),
    "scorer": "strict",
    "metrics": {
      m.name: {key: getattr(m, key) for key in ("definition", "version", "unparsed")}
      for m in metrics.STRICT
    },
    **pooled,
    "seeds": {
      run: [seed for other, seed in found if other == run]
      for run in dict.fromkeys(run for run, _ in found)
    },
    **told([{"run": run, "seed": seed, **one} for (run, seed), one in found.items()]),
    "fisher": _fisher(study),
    "statistics": described["splits"],
    "construction": {key: described[key] for key in described if key != "splits"},
    "curves": _curves(study),
    "versions": _versions(),
    "timings": study.ledger.seconds(),
    "config": plain(config),
    "caveats": caveats(config.data.source, pooled["gains"]),
    "notes": _notes(study, described, sorted({seed for _, seed in found})),
  }


def _about(study: Study) -> dict[str, Any]:
  config = study.config
  return {
    "title": config.title,
    "row": config.row or config.title,
    "data": _kind(config.data.source),
    "dataset": {"version": shards.VERSION, "built": study.require_data()},
    "examples": f"IMAX, seed {config.seeds[0]}",
  }


def _seeds(
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
  seeds = []
  for seed in sorted({seed for _, seed in found}, key=list(study.config.seeds).index):
    here = {run: scores for (run, other), scores in found.items() if other == seed}
    seeds.append(without_image | {
      run: measured(study.workdir, f"{run}-s{seed}", scores["scores"])
      for run, scores in here.items()
    })  # fmt: skip
  return seeds or [without_image]


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


def _kind(source: str) -> str:
  return {"phantom": "phantom", "opencxr": "open"}.get(source, "physionet")


def _is_current(
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


def _evaluations(study: Study) -> dict[tuple[str, int], dict[str, Any]]:
  """{(run, seed): the content of its scores.json}."""
  found: dict[tuple[str, int], dict[str, Any]] = {}
  for run in RUNS:
    for seed in study.config.seeds:
      name = f"evaluations/{run}-s{seed}"
      if _is_current(study, name, runs.evaluation_inputs, f"{run}-s{seed}"):
        path = study.workdir / name / "scores.json"
        found[run, seed] = json.loads(path.read_text("utf8"))
  return found


def told(evaluations: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """What evaluations say beside scores, the seeds of each run together.

  {"unparsed": {run: {task: {reason: count}}}, "legacy": {run: {metric: mean}},
   "reports": {run: [of each seed]}, "evaluations": what it was made of}
  """
  unparsed: dict[str, dict[str, dict[str, int]]] = {}
  legacy: dict[str, list[Mapping[str, float]]] = {}
  reports: dict[str, list[Any]] = {}
  for one in evaluations:
    for task, reasons in one["unparsed"].items():
      counts = unparsed.setdefault(one["run"], {}).setdefault(task, {})
      for reason, count in reasons.items():
        counts[reason] = counts.get(reason, 0) + count
    if "legacy" in one:
      legacy.setdefault(one["run"], []).append(one["legacy"])
    if "reports" in one:
      reports.setdefault(one["run"], []).append(one["reports"])
  means = {run: gains.mean_scores(rows)[0] for run, rows in legacy.items()}
  return {
    "unparsed": unparsed,
    "legacy": means,
    "reports": reports,
    "evaluations": list(evaluations),
  }


def _fisher(study: Study) -> list[dict[str, Any]]:
  found = []
  for name in study.config.fisher.runs:
    for seed in study.config.seeds:
      station = f"fisher/{name}-s{seed}"
      if _is_current(study, station, runs.fisher_inputs, f"{name}-s{seed}"):
        spectra = json.loads(
          (study.workdir / station / "spectra.json").read_text("utf8")
        )
        found += [{"run": name, "seed": seed, **spectrum} for spectrum in spectra]
  return found


def _curves(study: Study) -> dict[str, list[list[float]]]:
  """{"imax-s0": [[step, loss], …]}, thinned to means of equal stretches."""
  curves = {}
  for run in RUNS:
    for seed in study.config.seeds:
      path = study.workdir / "runs" / f"{run}-s{seed}" / "metrics.jsonl"
      if not study.ledger.is_done(f"runs/{run}-s{seed}"):
        continue
      rows = [json.loads(line) for line in path.read_text("utf8").splitlines()]
      points = np.array([[row["step"], row["loss"]] for row in rows if "loss" in row])
      parts = np.array_split(points, min(len(points), _CURVE_POINTS))
      curves[f"{run}-s{seed}"] = [part.mean(0).round(5).tolist() for part in parts]
  return curves


def _versions() -> dict[str, str]:
  found = {name: importlib.metadata.version(name) for name in _PACKAGES}
  device = jax.devices()[0]
  return found | {
    "python": platform.python_version(),
    "device": f"{jax.device_count()} x {device.device_kind}",
  }


def _notes(
  study: Study, described: Mapping[str, Any], seeds: Sequence[int]
) -> list[str]:
  notes = [
    f"Seeds {', '.join(map(str, seeds))}: a seed draws LoRA's first values and the order "
    "of the entries; images, split and foundation are the same in all. The spread over "
    "seeds therefore leaves out what another draw of training images would change.",
  ]
  if described["shortfall"]:
    missing = ", ".join(f"{n} {name}" for name, n in described["shortfall"].items())
    notes.append(
      f"DMAX could not match all of IMAX's training entries; it lacks {missing}."
    )
  if study.config.foundation == "package":
    notes.append(
      "The foundation was pre-trained on practice films of other phantom patients. It has "
      "seen none of the seven tasks' prompts and no heart or lung box, but its captions name "
      "findings, and naming, yes/no and which-of-two are forms it knows from other objects."
    )
  return notes


def caveats(source: str, gained: Mapping[str, Mapping[str, Any]]) -> list[str]:
  """What must be known before any gain is read; shown wherever a gain is."""
  found = []
  if source == "opencxr":
    found.append(
      "Images with many tasks come from other collections than the rest: here IMAX and "
      "DMAX differ in their patients and questions too, so no gain of IMAX is one of "
      "image-centricity alone."
    )
  # Eq. 1 is a mean of ratios: one metric that starts near zero can be all of it.
  titles = {column.name: column.label for column in tables.COLUMNS}
  found += [
    f"{arms.PAIR[name].title}: {titles[metric]} alone changes by "
    f"{tables.signed(change)} %, from a base near zero, and carries the mean: read the "
    "median."
    for name, gain in gained.items()
    for metric, change in gain["per_metric"].items()
    if abs(change) > _CARRIES_THE_MEAN
  ]
  found += [
    f"{arms.PAIR[name].title}: in {100 * share:.0f} % of the draws of patients the base of "
    f"{titles[metric]} is 0 or unanswered, and Δ is that of the other metrics."
    for name, gain in gained.items()
    for metric, share in gain["dropped"].items()
    if share > _RARELY_DROPPED
  ]
  return found


def _examples(study: Study) -> list[examples.Example]:
  """Six a task, drawn by chance: what the first seed's IMAX run answered."""
  name = f"evaluations/imax-s{study.config.seeds[0]}"
  if not study.ledger.is_done(name):
    logging.info("no examples: %s has not run", name)
    return []
  records = study.records("imax_test")
  place = {records[i].image_id: i for i in range(len(records))}
  asked = {entry.id: entry for entry in study.entries("imax_test")}
  predictions = predictions_lib.read_predictions(
    Path(study.workdir) / name / "predictions.jsonl", asked
  )
  shown = []
  for prediction in examples.choose(
    predictions, per_task=study.config.report.examples_per_task
  ):
    image = records[place[prediction.entry.image_id]].image
    verdict = scoring.judge(prediction)
    shown.append(
      examples.make_example(
        image, prediction, correct=verdict.correct, note=verdict.note
      )
    )
  return shown
