"""One training run in the ledger: `runs/NAME` with its checkpoint, snapshots, metrics."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from imax_jax import feed
from imax_jax import progress
from imax_jax import tree as tree_lib
from imax_jax.costs import accelerators
from imax_jax.costs import products
from imax_jax.data import controls
from imax_jax.data.features import Features
from imax_jax.data.pipeline import Batches
from imax_jax.data.pipeline import EntryBatches
from imax_jax.ledger import differing
from imax_jax.ledger import plain
from imax_jax.models import vlm
from imax_jax.pseudo import stages
from imax_jax.schema import ImageRecord
from imax_jax.study import Study
from imax_jax.train import interrupt
from imax_jax.train import loop
from imax_jax.train import optim
from imax_jax.train import snapshots as snapshots_lib
from imax_jax.train import speed as speed_lib
from imax_jax.train import validation

FINAL = "final"
# The runs that keep their weights at the phases of `config.fisher`.
WITH_PHASES = ("dmax", "imax", *controls.ALL)
# Keys of the config's `train` that do not decide a run's weights beside its steps.
_NOT_OF_A_RUN = (
  "runs", "epochs", "save_steps", "keep", "watchdog_seconds", "trackers", "profile",
  "features", "features_folder",
)  # fmt: skip
# Matrices decay; biases, norms and embeddings do not (Uni-Med's AdamW groups).
_MATRICES = r".*(kernel|lora_(a|b|route)|task_tokens)"


def fit(
  study: Study,
  name: str,
  found: Sequence[ImageRecord],
  pixels: Callable[[], np.ndarray | Features],
  *,
  seed: int,
  num_steps: int,
  inputs: Mapping[str, Any],
  start: Callable[[], Mapping[str, Any]] | None = None,
  snapshots: Mapping[str, int] | None = None,
) -> None:
  """Trains the run, or goes on with it, or finds it done.

  Args:
    found: the images and entries; `pixels()` has theirs, in the same order, and is asked
      when all entries are known to fit.
    start: gives the trainable weights to begin with, and is not called for a finished
      run; the study's initial ones unless given.
    inputs: what the run depends on beside the config's model and training.
    snapshots: {phase: step} to keep for the Fisher; `FINAL` is always kept: the last
      weights, or the best where patients are held out for validation.
  """
  t = study.config.train
  facts = _facts(study, seed, num_steps, inputs, snapshots)

  def make(folder: Path) -> None:
    initial, frozen = study.parameters.split(seed)
    trainable = initial if start is None else start()
    fed = feed.batches(study, found, pixels, num_steps=num_steps, seed=seed)
    with (
      progress.bar(f"training {name}") as tick,
      interrupt.Preemption().listening() as preempted,
      interrupt.Watchdog(t.watchdog_seconds).watching() as watchdog,
    ):
      _train(
        study, folder, trainable, frozen, facts, fed,
        tick=tick, preempted=preempted, watchdog=watchdog,
      )  # fmt: skip

  study.ledger.station(f"runs/{name}", facts, make, resumable=True, together=True)


def _train(
  study: Study,
  folder: Path,
  trainable: Mapping[str, Any],
  frozen: Mapping[str, Any],
  facts: Mapping[str, Any],
  fed: tuple[Batches, EntryBatches | None],
  *,
  tick: progress.Tick,
  preempted: Callable[[int], bool],
  watchdog: interrupt.Watchdog,
) -> None:
  """The run in its folder, with what watches over it."""
  t, (batches, held) = study.config.train, fed
  sizes = ", ".join(f"{size.rows} x {size.row_tokens}" for size in batches.shapes)
  logging.info("%s: batches of %s (rows x tokens)", folder.name, sizes)
  speed = _speed(study, batches)
  evaluators = {}
  if held is not None:
    loss = vlm.row_loss(study.model)
    evaluators["validation"] = validation.evaluator(loss, frozen, held, study.mesh)
  loop.train(
    model_loss=vlm.batch_loss(study.model),
    trainable=trainable,
    frozen=frozen,
    optimizer=optimizer(study, trainable, facts["num_steps"]),
    batches=batches,
    mesh=study.mesh,
    workdir=folder,
    seed=facts["seed"],
    accumulate=t.accumulate,
    save_steps=t.save_steps,
    keep=t.keep,
    snapshots=facts["snapshots"],
    evaluators=evaluators,
    evaluate_steps=t.validation.steps,
    choose=(t.validation.metric, t.validation.patience),
    max_skipped=t.max_skipped,
    watchdog=watchdog,
    preempted=preempted,
    on_step=lambda step, total, loss: tick(
      step, total, speed_lib.words(loss, speed(step))
    ),
    trackers=t.trackers,
    profile=tuple(t.profile),
  )
  if held is not None:
    best = snapshots_lib.restore(folder, validation.BEST, trainable)
    snapshots_lib.save(folder, FINAL, best)


def _speed(study: Study, batches: Batches) -> speed_lib.Speed:
  devices = study.mesh.devices.flat
  abstract = tree_lib.flatten(study.parameters.abstract)
  return speed_lib.Speed(
    batches.load,
    peak=sum(accelerators.peak_of(device.device_kind) for device in devices),
    **products.values_of(study.config.model.decoder, abstract)._asdict(),
  )


def _facts(
  study: Study,
  seed: int,
  num_steps: int,
  inputs: Mapping[str, Any],
  snapshots: Mapping[str, int] | None = None,
) -> dict[str, Any]:
  """All that decides a run's weights."""
  t = study.config.train
  return {
    "seed": seed,
    "num_steps": num_steps,
    "snapshots": {**(snapshots or {}), FINAL: num_steps},
    "train": plain({key: t[key] for key in t if key not in _NOT_OF_A_RUN}),
    "model": plain(study.config.model),
    "trainable": plain(study.config.trainable),
    "features": study.keeps_features,  # rounded; refused now where there can be none
    "prompt": study.prompt,
    "foundation": study.parameters.digest,
    **study.image_facts,
    **inputs,
  }


def stages_of(study: Study) -> tuple[stages.Stage, ...]:
  """The paper's stages in the reading that the config's `pretrain_from` names."""
  return stages.reading(study.config.pseudo.pretrain_from)


def split_of(name: str) -> str:
  """The split that a run without pseudo labels trains on."""
  run = name.rsplit("-s", 1)[0]
  return f"{run}_train" if run in ("imax", *controls.ALL) else "dmax_train"


def examples_of(
  study: Study, split: str
) -> tuple[Sequence[ImageRecord], Callable[[], np.ndarray | Features]]:
  """What `fit` is given of a split."""
  return study.records(split), functools.partial(study.pixels, split)


def splits_of(study: Study) -> list[str]:
  """The splits whose images the config's verbs look at."""
  found = {split_of(f"{run}-s") for run in study.config.train.runs}
  asked = {"pseudo": "dmax_train", "evaluate": "imax_test"}
  return sorted(found | {asked[verb] for verb in study.config.verbs if verb in asked})


def stage_steps(study: Study) -> dict[str, int]:
  """{"primary": steps, "pretrain": …, "finetune": …}, all counted in DMAX's entries.

  Raises:
    ValueError: the data are not there, or of another config.
  """
  study.require_data()
  built = json.loads((study.workdir / "data" / "statistics.json").read_text("utf8"))
  entries = built["splits"]["dmax_train"]["entries"]
  p = study.config.pseudo
  epochs = {
    "primary": study.config.train.epochs,
    "pretrain": p.pretrain_epochs,
    "finetune": p.finetune_epochs,
  }
  return {stage: feed.num_steps(study, entries, each) for stage, each in epochs.items()}


def plan(study: Study, name: str) -> dict[str, Any]:
  """`fit`'s seed, num_steps, snapshots and inputs of one of the study's runs.

  Raises:
    ValueError: what it is made from is not there, or of another config.
  """
  run, seed = name.rsplit("-s", 1)
  steps = stage_steps(study)
  snapshots, num_steps = {}, steps["primary"]
  inputs: dict[str, Any] = {"data": study.require_data(), "split": split_of(name)}
  if run in WITH_PHASES:
    phases = study.config.fisher.phases
    snapshots = {phase: round(at * num_steps) for phase, at in phases}
  elif run == "dmax_long":
    num_steps = stages.control_steps(stages_of(study), steps)
  elif run in map(stages.pretraining_of, rows := _rows(study)):
    [stage] = [stage for stage in stages_of(study) if stage.name == "pretrain"]
    [row] = [row for row in rows if stages.pretraining_of(row) == run]
    labels = study.ledger.digest(
      stages.kept_station(row, seed), kept_inputs(study, row, seed)
    )
    num_steps, inputs = steps["pretrain"], {"labels": labels, "start": stage.start}
  elif run in rows:
    num_steps = steps["finetune"]
    inputs = {"pretrain": digest(study, f"{stages.pretraining_of(run)}-s{seed}")}
  else:
    raise ValueError(f"{name}: not a run of the study")
  return {
    "seed": int(seed), "num_steps": num_steps, "snapshots": snapshots, "inputs": inputs
  }  # fmt: skip


def _rows(study: Study) -> dict[str, dict[str, Any]]:
  """Those of earlier commands, too: what an ablation no longer asked for is made from."""
  return stages.possible_rows(plain(study.config.pseudo))


def labels_inputs(study: Study, seed: int | str) -> dict[str, Any]:
  """What the pseudo labels of a seed are made from."""
  p = study.config.pseudo
  asked = ("num_images", "images_at_once", "tasks", "questions_per_image")
  return {
    "primary": digest(study, f"dmax-s{seed}"),
    "max_new_tokens": study.config.evaluate.max_new_tokens,
    **{key: plain(p[key]) for key in asked},
  }


def kept_inputs(study: Study, row: str, seed: int | str) -> dict[str, Any]:
  """What decides which of a seed's labels a row keeps."""
  labels = study.ledger.digest(stages.labels_station(seed), labels_inputs(study, seed))
  return {"labels": labels, "filters": _rows(study)[row]}


def answers_inputs(study: Study, name: str) -> dict[str, Any]:
  """What a run's answers on the test split are made from."""
  return {
    "run": digest(study, name),
    "data": study.require_data(),
    "max_new_tokens": study.config.evaluate.max_new_tokens,
  }


def fisher_inputs(study: Study, name: str) -> dict[str, Any]:
  """What the spectra of a run are made from."""
  f = study.config.fisher
  return {
    "run": digest(study, name),
    "groups": [f.num_groups, f.group_size],
    "seed": f.seed,
    "normalise": f.normalise,
    "answers": plain(f.answers),
    "max_new_tokens": study.config.evaluate.max_new_tokens
    if "model" in f.answers
    else 0,
  }


def digest(study: Study, name: str) -> str:
  """The fingerprint of a finished run of this config.

  Raises:
    ValueError: it has not finished, or was trained with other settings; names them.
  """
  made = study.ledger.inputs(f"runs/{name}")
  differ = differing(made, _facts(study, **plan(study, name)))
  if differ:
    verb = "pseudo" if name.startswith("pseudo") else "train"
    raise ValueError(
      f"{study.workdir / 'runs' / name} was trained with another config "
      f"({', '.join(differ[:4])}): run the verb {verb} again, or give the config it was "
      "trained with"
    )
  return study.ledger.digest(f"runs/{name}")


def optimizer(study: Study, trainable: Any, num_steps: int) -> optim.Optimizer:
  t = study.config.train
  schedule = optim.make_schedule(
    num_steps=num_steps, peak_lr=t.peak_lr, final_lr=t.final_lr,
    warmup_fraction=t.warmup_fraction, warmup_start_lr=t.warmup_start_lr,
    clock=t.clock, may_rise=t.may_rise,
  )  # fmt: skip
  return optim.make_optimizer(
    trainable,
    schedule,
    b2=t.beta2,
    weight_decay=t.weight_decay,
    decay=((_MATRICES, True), (r".*", False)),
    clip_norm=t.clip_norm or None,
    lr_scales=t.lr_scales,
  )


def weights_of(
  study: Study, folder: Path, snapshot: str = FINAL, *, together: bool = False
) -> dict[str, Any]:
  """The trainable weights of a run's folder at a phase.

  They are placed on the mesh if all processes ask `together`, else on one's own devices.

  Raises:
    FileNotFoundError: no such snapshot.
    ValueError: the weights are of another model, or damaged.
  """
  parameters = study.parameters if together else study.own_parameters
  return snapshots_lib.restore(folder, snapshot, parameters.trainable)
