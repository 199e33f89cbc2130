"""The verb `fisher`: spectra of the runs at four phases of their training."""

from __future__ import annotations

import functools
import json
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imax_jax import feed
from imax_jax import progress
from imax_jax import runs
from imax_jax import tree as tree_lib
from imax_jax.data import templates
from imax_jax.data.pipeline import EntryBatches
from imax_jax.fisher import expected
from imax_jax.fisher import grads
from imax_jax.fisher import gram
from imax_jax.fisher import measure
from imax_jax.ledger import write_json
from imax_jax.models import vlm
from imax_jax.study import Study


def fisher(study: Study) -> None:
  """Spectra of both runs at four phases, each on samples of its own training set.

  WORKDIR/fisher/RUN/spectra.json is a list of `measure.measure`'s dicts, each with the
  "phase", whose "answers" they are ("data", "model") and how these were "normalised".

  Raises:
    ValueError: an unknown choice, a seed that is not the study's, groups that the mesh
      does not divide, more samples than there are entries, or a run that has not
      finished; before any spectrum that is there is touched.
  """
  f = study.config.fisher
  _check(study)
  asked = [(name, seed) for seed in seeds_of(study) for name in f.runs]
  made = [runs.fisher_inputs(study, f"{name}-s{seed}") for name, seed in asked]
  _check_entries(study)
  for (name, seed), inputs in zip(asked, made, strict=True):
    run = f"{name}-s{seed}"
    make = functools.partial(_make, study, f"{name}_train", seed, run)
    study.ledger.station(f"fisher/{run}", inputs, make, together=True)


def seeds_of(study: Study) -> Sequence[int]:
  """The seeds whose runs are measured."""
  return study.config.fisher.seeds or study.config.seeds[:1]


def _check(study: Study) -> None:
  f = study.config.fisher
  normalise = typing.get_args(grads.Normalise)
  for key, given, allowed in (
    ("answers", f.answers, ("data", "model")),
    ("seeds", seeds_of(study), study.config.seeds),
    ("normalise", (f.normalise,), normalise),
    ("runs", f.runs, runs.WITH_PHASES),
  ):
    unknown = [value for value in given if value not in allowed]
    if unknown or not given:
      raise ValueError(f"fisher.{key}: {unknown}, expected some of {tuple(allowed)}")
  names = [phase for phase, _ in f.phases]
  if not names or len(set(names)) < len(names):
    raise ValueError(f"fisher.phases: {names}, expected at least one, each name once")
  for key, least in (("group_size", 2), ("num_groups", 1), ("rows_at_once", 0)):
    if f[key] < least:
      raise ValueError(f"fisher.{key}: {f[key]}, expected {least} or more")
  gram.check_rows(f.group_size, study.mesh)


def _check_entries(study: Study) -> None:
  f = study.config.fisher
  described = json.loads((study.workdir / "data" / "statistics.json").read_text("utf8"))
  for split in (f"{name}_train" for name in f.runs):
    entries = described["splits"][split]["entries"]
    if f.num_groups * f.group_size > entries:
      raise ValueError(
        f"fisher.num_groups: {f.num_groups} groups of {f.group_size} different entries, "
        f"but {split} has {entries}; ask for fewer groups, or a smaller group_size"
      )


def _make(study: Study, split: str, seed: int, run: str, out: Path) -> None:
  f, found = study.config.fisher, []
  _, frozen = study.parameters.split(seed)
  batches = feed.samples(study, split, f.num_groups, f.group_size, f.seed)
  loss, sample = vlm.row_loss(study.model), _sampler(study)
  for phase, _ in f.phases:
    trainable = runs.weights_of(
      study, study.workdir / "runs" / run, phase, together=True
    )
    scalars = gram.choose_scalars(trainable, seed=f.seed)
    for answers in f.answers:
      fed: Any = batches
      if answers == "model":
        params = tree_lib.merge(trainable, frozen)
        fed = expected.Answered(batches, functools.partial(sample, params))
      with progress.bar(f"fisher {run} {phase} {answers}") as tick:
        spectra = measure.measure(
          loss,
          trainable,
          frozen,
          fed,
          scalars=scalars,
          normalise=f.normalise,
          rows_at_once=f.rows_at_once,
          tapped=vlm.TAPPED,
          mesh=study.mesh,
          tasks_of=functools.partial(_tasks, batches),
          progress=tick,
        )
      common = {"phase": phase, "answers": answers, "normalised": f.normalise}
      found += [common | spectrum for spectrum in spectra]
  if study.is_chief:
    write_json(out / "spectra.json", found)


def _sampler(study: Study) -> expected.Sample:
  layout = templates.layout_of(study.tokenizer, study.style.evaluation)
  return expected.make_sampler(
    study.model,
    layout.stops,
    study.config.evaluate.max_new_tokens,
    seed=study.config.fisher.seed,
    mesh=study.mesh,
  )


def _tasks(batches: EntryBatches, number: int) -> Sequence[str]:
  return [entry.task for entry in batches.entries(number)]
