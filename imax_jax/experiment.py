"""The wiring: one short function a verb, from config to results.json.

    build ──▶ train ──▶ evaluate ──▶ report
                 └▶ pseudo ─┘ └▶ fisher ─┘

Every verb leaves stations in the ledger and finds the ones before it there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from imax_jax import answers
from imax_jax import audit
from imax_jax import build as build_lib
from imax_jax import choices
from imax_jax import comparison
from imax_jax import conversion
from imax_jax import deliver
from imax_jax import predict as predict_lib
from imax_jax import progress
from imax_jax import provenance
from imax_jax import publication
from imax_jax import results as results_lib
from imax_jax import runs
from imax_jax import sight
from imax_jax import spectra
from imax_jax import strategy
from imax_jax.costs import report as costs
from imax_jax.study import Study
from imax_jax.study import UsageError as UsageError
from imax_jax.train.interrupt import EXIT_AGAIN as EXIT_AGAIN
from imax_jax.train.interrupt import Preempted as Preempted


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
  if "films" not in config:
    choices.check_image(config)
  study = Study(config, workdir)
  chosen = functools.partial(answers.evaluate, checkpoint=request.get("checkpoint"))
  shown = functools.partial(report, folders=request.get("runs"))
  stations = _STATIONS | {"evaluate": chosen, "report": shown}
  if "convert" in verbs and "published" in config:
    conversion.published(
      study
    )  # a wrong path is told now, and not when the data are built
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


# ── train ─────────────────────────────────────────────────────────────────────────


def train(study: Study) -> None:
  """The config's runs of DMAX, IMAX and the step-matched control, once a seed."""
  names = [
    f"{run}-s{seed}" for seed in study.config.seeds for run in study.config.train.runs
  ]
  planned = {name: runs.plan(study, name) for name in names}  # all, before one begins
  # Its rules over paths are wrong now, and not when every image is encoded.
  runs.optimizer(study, study.parameters.trainable, num_steps=1)
  sight.count(study)
  for name, plan in planned.items():
    records, pixels = runs.examples_of(study, runs.split_of(name))
    runs.fit(study, name, records, pixels, **plan)


# ── report ────────────────────────────────────────────────────────────────────────


def report(study: Study, folders: str | None = None) -> None:
  """Collects results.json, writes the page and shows the table.

  Args:
    folders: work directories, with commas between: theirs side by side, instead.
  """
  if study.is_chief and folders:
    comparison.write(study, [folder for folder in folders.split(",") if folder])
  elif study.is_chief:
    results_lib.write(study)
  if not folders:
    audit.write(study)


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
  "publish": publication.publish,
  "compile_report": costs.run,
  "explain": provenance.explain,
  "export": build_lib.export,
}
_STATIONS: dict[str, Callable[[Study], None]] = {
  "build": build_lib.build,
  "select": build_lib.select,
  "convert": conversion.convert,
  "encode": build_lib.encode,
  "train": train,
  "pseudo": strategy.pseudo,
  "evaluate": answers.evaluate,
  "fisher": spectra.fisher,
  "report": report,
  "foundation": foundation,
}
VERBS: tuple[str, ...] = (*_STATIONS, *_ASKED)
