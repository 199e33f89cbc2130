"""The verb `fisher`: spectra of the runs at four phases of their training."""

from __future__ import annotations

from pathlib import Path

from imax_jax import feed
from imax_jax import progress
from imax_jax import runs
from imax_jax.fisher import gram
from imax_jax.fisher import measure
from imax_jax.ledger import write_json
from imax_jax.models import vlm
from imax_jax.study import Study


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
