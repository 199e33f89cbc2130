"""The wiring: one short function a verb, from config to results.json.

    build ──▶ train ──▶ evaluate ──▶ report
                 └▶ pseudo ─┘ └▶ fisher ─┘

Every verb leaves stations in the ledger and finds the ones before it there.
"""

from __future__ import annotations

import functools
import shutil
import sys
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from imax_jax import build as build_lib
from imax_jax import choices
from imax_jax import deliver
from imax_jax import feed
from imax_jax import ledger
from imax_jax import parameters
from imax_jax import predict as predict_lib
from imax_jax import progress
from imax_jax import provenance
from imax_jax import results as results_lib
from imax_jax import runs
from imax_jax.costs import report as costs
from imax_jax.data import entries as entries_lib
from imax_jax.evaluate import run as evaluate_run
from imax_jax.fisher import gram
from imax_jax.fisher import measure
from imax_jax.ledger import plain
from imax_jax.ledger import write_json
from imax_jax.models import vlm
from imax_jax.pseudo import label
from imax_jax.pseudo import stages
from imax_jax.schema import ImageRecord
from imax_jax.study import Study
from imax_jax.study import UsageError as UsageError
from imax_jax.train.interrupt import EXIT_AGAIN as EXIT_AGAIN
from imax_jax.train.interrupt import Preempted as Preempted
from imax_jax.weights import bundle as bundle_lib
from imax_jax.weights import convert as convert_lib


def run(
  config: ConfigDict,
  workdir: str | Path,
  verbs: Sequence[str],
  request: Mapping[str, str | None],
) -> None:
  """Does the verbs in order.

  Raises:
    ValueError, FileNotFoundError: the user's mistake, in one line with its remedy.
  """
  progress.calm_logging()
  study = Study(config, workdir)
  chosen = functools.partial(evaluate, checkpoint=request.get("checkpoint"))
  stations = _STATIONS | {"evaluate": chosen}
  if "convert" in verbs and "published" in config:
    published(study)  # a wrong path is told now, and not when the data are built
  if {"train", "pseudo", "foundation"} & {*verbs}:
    choices.check_training(config.train)
  for verb in verbs:
    if "films" in config and verb != "foundation":
      raise UsageError(f"this config has the verb foundation only, not {verb}")
    if verb in _ASKED:
      _ASKED[verb](study, request)
      continue
    with study.ledger.lock():
      stations[verb](study)


# ── convert ───────────────────────────────────────────────────────────────────────


def convert(study: Study) -> None:
  """The config's published weights -> WORKDIR/foundation, its foundation "converted"."""
  if "published" not in study.config:
    raise UsageError(
      "convert: this config's model is not made of published weights; configs/imax_7b.py "
      "is an example of one that is"
    )
  sources = published(study)
  model = plain(study.config.model)
  inputs = {
    "sources": {part: ledger.stamps(path) for part, path in sources.items()},
    "model": bundle_lib.model_facts(model),
  }

  def make(folder: Path) -> None:
    with progress.bar("converting weights") as tick:
      convert_lib.convert(sources, model, study.parameters.abstract, folder, tick=tick)

  study.ledger.station(parameters.CONVERTED, inputs, make, aside=True)


def published(study: Study) -> dict[str, Path]:
  """{part: path} that the config's `published` names; "package" is what ships.

  Raises:
    FileNotFoundError: a path that is not there, or an encoder or decoder without one.
  """
  named = study.config.published
  flags = {part: f"--config.published.{part}" for part in named}
  for part in ("encoder", "decoder"):
    if not named[part]:
      raise FileNotFoundError(
        f"convert: no published {part}: give its file or folder by {flags[part]}=PATH"
      )
  found = {
    part: parameters.ASSETS if path == "package" else Path(path)
    for part, path in named.items()
    if path
  }
  lost = [f"{flags[part]}={path}" for part, path in found.items() if not path.exists()]
  if lost:
    raise FileNotFoundError(f"convert: no such file or folder: {', '.join(lost)}")
  return found


# ── train ─────────────────────────────────────────────────────────────────────────


def train(study: Study) -> None:
  """The config's runs of DMAX, IMAX and the step-matched control, once a seed."""
  names = [
    f"{run}-s{seed}" for seed in study.config.seeds for run in study.config.train.runs
  ]
  planned = {name: runs.plan(study, name) for name in names}  # all, before one begins
  for name, plan in planned.items():
    records, pixels = runs.examples_of(study, runs.split_of(name))
    runs.fit(study, name, records, pixels, **plan)


def pseudo(study: Study) -> None:
  """The three stages: label DMAX's missing tasks, pre-train on them, fine-tune."""
  choices.needs_thousandths(study.config.data, "pseudo")
  records, pixels = runs.examples_of(study, "dmax_train")
  for seed in study.config.seeds:
    primary = functools.partial(
      runs.weights_of, study, study.workdir / "runs" / f"dmax-s{seed}"
    )
    found = _pseudo_imax(study, seed, primary)
    begin = functools.partial(primary, together=True)
    name = f"pseudo_pretrain-s{seed}"
    planned = runs.plan(study, name)
    from_foundation = planned["inputs"]["start"] == stages.FOUNDATION
    start = None if from_foundation else begin
    runs.fit(study, name, found, pixels, start=start, **planned)
    pretrained = functools.partial(
      runs.weights_of, study, study.workdir / "runs" / name, together=True
    )
    name = f"pseudo-s{seed}"
    runs.fit(study, name, records, pixels, start=pretrained, **runs.plan(study, name))


def _pseudo_imax(
  study: Study, seed: int, primary: Callable[[], Mapping[str, Any]]
) -> Sequence[ImageRecord]:
  p = study.config.pseudo
  records = study.records("dmax_train")

  def make(folder: Path) -> None:
    trained, pixels = primary(), study.pixels("dmax_train")
    order = np.random.default_rng(seed).permutation(len(records))
    chosen = sorted(order[: p.num_images or None].tolist())
    subset = [records[i] for i in chosen]

    def generate(requests: Sequence[label.Request]) -> list[str]:
      asked = [(chosen[request.index], request.entry.prompt) for request in requests]
      return study.answer(trained, pixels, asked, f"pseudo labels s{seed}")

    made, dropped = label.label(
      subset,
      generate,
      label.question_pool(records),
      seed=seed,
      questions_per_image=p.questions_per_image,
    )
    labels = [
      entry
      for i in range(len(made))
      for entry in made[i].entries
      if entry.origin.source == label.ORIGIN
    ]
    entries_lib.write_entries(folder / "labels.jsonl", labels)
    write_json(folder / "dropped.json", dropped)

  folder = study.ledger.station(
    f"pseudo/labels-s{seed}", runs.labels_inputs(study, seed), make
  )
  place = {records[i].image_id: i for i in range(len(records))}
  added: dict[int, tuple[Any, ...]] = {}
  for entry in entries_lib.read_entries(folder / "labels.jsonl"):
    index = place[entry.image_id]
    added[index] = (*added.get(index, ()), entry)
  return label.PseudoRecords(records, added)


# ── evaluate ──────────────────────────────────────────────────────────────────────


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
      "foundation": study.parameters.digest,
      "features": study.keeps_features,
      "prompt": plain(study.config.prompt),
      "data": study.require_data(),
      "max_new_tokens": study.config.evaluate.max_new_tokens,
    }
    weights = functools.partial(deliver.weights_from, study, folder)
    out = _evaluate(study, name, inputs, weights)
    sys.stdout.write((out / "scores.json").read_text("utf8"))
    return
  names = [
    f"{name}-s{seed}" for name in results_lib.RUNS for seed in study.config.seeds
  ]
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
    records = study.records("imax_test")
    asked = [
      (i, entry.prompt) for i in range(len(records)) for entry in records[i].entries
    ]
    texts = study.answer(weights(), study.pixels("imax_test"), asked, name)
    predictions = evaluate_run.predict_values(study.entries("imax_test"), texts)
    evaluate_run.write_predictions(folder / "predictions.jsonl", predictions)
    scores = evaluate_run.score(predictions)
    unparsed = evaluate_run.count_unparsed(predictions)
    write_json(folder / "scores.json", {"scores": scores, "unparsed": unparsed})

  return study.ledger.station(f"evaluations/{name}", inputs, make)


# ── fisher ────────────────────────────────────────────────────────────────────────


def fisher(study: Study) -> None:
  """Spectra of both runs at four phases, each on samples of its own training set."""
  f = study.config.fisher
  seed = study.config.seeds[0]
  _, frozen = study.own_parameters.split(seed)
  loss = vlm.row_loss(study.model)
  for name in f.runs:
    split = f"{name}_train"
    folder = study.workdir / "runs" / f"{name}-s{seed}"
    inputs = runs.fisher_inputs(study, f"{name}-s{seed}")

    def make(out: Path, split: str = split, run: Path = folder) -> None:
      batches = feed.samples(study, split, f.num_groups, f.group_size, f.seed)
      found = []
      for phase, _ in f.phases:
        trainable = runs.weights_of(study, run, phase)
        with progress.bar(f"fisher {split} {phase}") as tick:
          spectra = measure.measure(
            loss,
            trainable,
            frozen,
            batches,
            scalars=gram.choose_scalars(trainable, seed=f.seed),
            rows_at_once=f.rows_at_once,
            progress=tick,
          )
        found += [{"phase": phase, **spectrum} for spectrum in spectra]
      write_json(out / "spectra.json", found)

    study.ledger.station(f"fisher/{name}-s{seed}", inputs, make)


# ── report ────────────────────────────────────────────────────────────────────────


def report(study: Study) -> None:
  """Collects results.json, writes the page and shows the table."""
  if study.is_chief:
    results_lib.write(study)


def foundation(study: Study) -> None:
  """Makes the small pre-trained pair; only configs/foundation.py has what it needs."""
  from imax_jax import foundation as foundation_lib

  if "films" not in study.config:
    raise ValueError("the verb 'foundation' needs --config configs/foundation.py")
  foundation_lib.run(study.config, study)


# Those that are asked something, and only read the work directory.
_ASKED: dict[str, Callable[[Study, Mapping[str, str | None]], None]] = {
  "predict": predict_lib.run,
  "bundle": deliver.bundle,
  "merge": deliver.merge,
  "compile_report": costs.run,
  "explain": provenance.explain,
  "export": build_lib.export,
}
_STATIONS: dict[str, Callable[[Study], None]] = {
  "build": build_lib.build,
  "select": build_lib.select,
  "convert": convert,
  "encode": build_lib.encode,
  "train": train,
  "pseudo": pseudo,
  "evaluate": evaluate,
  "fisher": fisher,
  "report": report,
  "foundation": foundation,
}
VERBS: tuple[str, ...] = (*_STATIONS, *_ASKED)
