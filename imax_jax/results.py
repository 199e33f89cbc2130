"""What a work directory has measured, as results.json, the page and the table."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import sys
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import logging

from imax_jax import evaluated
from imax_jax import runs
from imax_jax import sight
from imax_jax import spectra
from imax_jax.data import shards
from imax_jax.evaluate import intervals
from imax_jax.evaluate import pooling
from imax_jax.evaluate import predictions as predictions_lib
from imax_jax.evaluate import scoring
from imax_jax.fisher import compare
from imax_jax.ledger import plain
from imax_jax.ledger import write_json
from imax_jax.pseudo import stages
from imax_jax.report import arms
from imax_jax.report import examples
from imax_jax.report import page
from imax_jax.report import tables
from imax_jax.report import terminal
from imax_jax.study import Study

RUNS = arms.TRAINED
_PACKAGES = (
  "imax_jax", "jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy",
  "tensorflow-datasets", "transformers", "tokenizers",
)  # fmt: skip
_SAID_ONCE = ("definitions", "not_legacy")
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
  measured = evaluated.read(study)
  rows = stages.possible_rows(plain(study.config.pseudo))
  bare = [
    (run, seed)
    for run, seed in measured
    if run in rows and not evaluated.has_labels(study, run, seed)
  ]
  found = {key: one for key, one in measured.items() if key not in bare}
  pooled = pooling.pool(
    evaluated.seeds(study, found),
    {pair.name: (pair.new, pair.base) for pair in arms.PAIRS},
    blind=arms.BLIND,
  )
  config, (fisher, lacking) = study.config, _fisher(study)
  return {
    "about": _about(study),
    "scorer": "strict",
    "definitions": evaluated.definitions(found),
    **pooled,
    "seeds": {
      run: [seed for other, seed in found if other == run]
      for run in dict.fromkeys(run for run, _ in found)
    },
    **evaluated.told(
      [
        {"run": run, "seed": seed}
        | {k: v for k, v in one.items() if k not in _SAID_ONCE}
        for (run, seed), one in found.items()
      ]
    ),
    **of_spectra(fisher, lacking),
    **sight.told(study),
    "statistics": described["splits"],
    "construction": {key: described[key] for key in described if key != "splits"},
    "curves": _curves(study),
    "versions": _versions(),
    "timings": study.ledger.seconds(),
    "config": plain(config),
    "unlabelled": bare,
    "caveats": caveats(config.data.source, pooled["gains"], bare),
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


def _kind(source: str) -> str:
  return {"phantom": "phantom", "opencxr": "open"}.get(source, "physionet")


def _fisher(study: Study) -> tuple[list[dict[str, Any]], list[str]]:
  """The spectra of all seeds, and what is said of those that should stand beside them."""
  names, asked = study.config.fisher.runs, spectra.seeds_of(study)
  found: list[dict[str, Any]] = []
  unfinished, missing, old = [], [], []
  for seed in study.config.seeds:
    absent = []
    for name in names:
      run, title = f"{name}-s{seed}", f"{arms.ARM[name].title}, seed {seed}"
      folder = study.workdir / "fisher" / run
      if evaluated.is_current(study, f"fisher/{run}", runs.fisher_inputs, run):
        read = json.loads((folder / "spectra.json").read_text("utf8"))
        found += [{"run": name, "seed": seed, **spectrum} for spectrum in read]
        old += [title] if any(map(compare.lack_sums, read)) else []
      elif folder.exists():
        unfinished.append(title)
      else:
        absent.append(title)
    if seed in asked or len(absent) < len(names):
      missing += absent
  said = []
  if unfinished:
    said.append(
      f"The spectra of {'; '.join(unfinished)} are unfinished and not shown: run the verb "
      "fisher."
    )
  if missing and (found or unfinished):
    said.append(f"There are no spectra of {'; '.join(missing)}: run the verb fisher.")
  if old:
    said.append(
      f"An earlier version measured the spectra of {'; '.join(old)}: what tasks have to do "
      "with each other is not shown. Delete their folders and run the verb fisher."
    )
  return found, said


def of_spectra(
  rows: Sequence[Mapping[str, Any]], lacking: Sequence[str]
) -> dict[str, Any]:
  """All that is told of spectra, the `rows` of `compare.changes`, beside themselves.

  {"fisher": rows, "fisher_changes": `compare.changes` with "student": the 95 % interval
   over the seeds' own changes, or None for fewer than three, "fisher_tasks":
   `compare.meetings`, "fisher_caveats": `lacking`, what is not in them}
  """
  changes = [
    one
    | {"student": intervals.student(one["seeds"]) if len(one["seeds"]) > 2 else None}
    for one in compare.changes(rows)
  ]
  return {
    "fisher": list(rows),
    "fisher_changes": changes,
    "fisher_tasks": compare.meetings(rows),
    "fisher_caveats": list(lacking),
  }


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


def caveats(
  source: str,
  gained: Mapping[str, Mapping[str, Any]],
  unlabelled: Sequence[tuple[str, int]],
) -> list[str]:
  """What must be known before any gain is read; shown wherever a gain is.

  `unlabelled` are the (run, seed) of three stages for which no label was left.
  """
  found = []
  if source == "opencxr":
    found.append(
      "Images with many tasks come from other collections than the rest: here IMAX and "
      "DMAX differ in their patients and questions too, so no gain of IMAX is one of "
      "image-centricity alone."
    )
  found += [
    f"{arms.ARM[run].title}, seed {seed}: no label could be kept, so it trained on DMAX "
    "alone; it is no measurement of pseudo labels and is left out."
    for run, seed in unlabelled
  ]
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
  for name, gain in gained.items():
    shares = {m: s for m, s in gain["dropped"].items() if s > _RARELY_DROPPED}
    if shares:
      named = ", ".join(titles[metric] for metric in shares)
      found.append(
        f"{arms.PAIR[name].title}: in up to {100 * max(shares.values()):.0f} % of the draws "
        f"of patients the base of {named} is 0 or unanswered, and Δ is that of the others."
      )
  return found


def _examples(study: Study) -> list[examples.Example]:
  """Six a task, drawn by chance: what the first seed's IMAX run answered."""
  name = f"imax-s{study.config.seeds[0]}"
  if not study.ledger.is_done(f"evaluations/{name}"):
    logging.info("no examples: evaluations/%s has not run", name)
    return []
  records = study.records("imax_test")
  place = {records[i].image_id: i for i in range(len(records))}
  asked = {entry.id: entry for entry in study.asked("imax_test")}
  path = evaluated.answers_of(study, name)
  predictions = predictions_lib.read_predictions(path, asked)
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
