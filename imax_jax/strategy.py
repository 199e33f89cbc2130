"""The verb `pseudo`: the three-stage strategy of the paper's section 4.2.2.

    runs/dmax-s0 ─▶ pseudo/labels-s0 ─▶ pseudo/kept-s0 ─▶ runs/pseudo_pretrain-s0 ─▶ runs/pseudo-s0
                                     └▶ pseudo/kept_NAME-s0 ─▶ …   a row of each ablation

Each station's fingerprint holds those of the stations before it, so nothing is done twice
and nothing stale is used; `outlook` says at the start what there is to do.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from imax_jax import audit
from imax_jax import choices
from imax_jax import evaluated
from imax_jax import outlook
from imax_jax import progress
from imax_jax import runs
from imax_jax import tree as tree_lib
from imax_jax.evaluate.scores import findings
from imax_jax.ledger import plain
from imax_jax.ledger import write_json
from imax_jax.pseudo import filters
from imax_jax.pseudo import label
from imax_jax.pseudo import questions
from imax_jax.pseudo import stages
from imax_jax.pseudo import stream
from imax_jax.pseudo.labels import LabelFile
from imax_jax.pseudo.labels import PseudoRecords
from imax_jax.schema import Box
from imax_jax.schema import ImageRecord
from imax_jax.study import Study

_Weights = Callable[[], Mapping[str, Any]]


def pseudo(study: Study) -> None:
  """The three stages: label DMAX's missing tasks, pre-train on them, fine-tune.

  Raises:
    ValueError: no finished primary run of this config on these data.
  """
  choices.needs_thousandths(study.config.data, "pseudo")
  choices.check_pseudo(study.config.pseudo)
  if study.is_chief:
    sys.stdout.write(f"{outlook.text(study)}\n")
    sys.stdout.flush()
  records, pixels = runs.examples_of(study, "dmax_train")
  for seed in study.config.seeds:
    folder = study.workdir / "runs" / f"dmax-s{seed}"
    primary = functools.partial(runs.weights_of, study, folder)
    _label(study, seed, primary)
    for row in stages.rows(plain(study.config.pseudo)):
      found = _keep(study, seed, row)
      if not evaluated.has_labels(study, row, seed):
        logging.warning(
          "pseudo: no label is left for runs/%s-s%d, which trains on DMAX alone; the "
          "report leaves its row out", row, seed,
        )  # fmt: skip
      name = f"{stages.pretraining_of(row)}-s{seed}"
      planned = runs.plan(study, name)
      afresh = planned["inputs"]["start"] == stages.FOUNDATION
      start = None if afresh else functools.partial(primary, together=True)
      runs.fit(study, name, found, pixels, start=start, **planned)
      pretrained = functools.partial(
        runs.weights_of, study, study.workdir / "runs" / name, together=True
      )
      name = f"{row}-s{seed}"
      runs.fit(study, name, records, pixels, start=pretrained, **runs.plan(study, name))
  audit.write(study)


def _label(study: Study, seed: int, primary: _Weights) -> None:
  """The station of all labels that the primary model gives, whatever is kept of them."""
  p = study.config.pseudo
  records = study.records("dmax_train")

  def make(folder: Path) -> None:
    trained, pixels = primary(), study.pixels("dmax_train")
    _, frozen = study.own_parameters.split(study.config.seeds[0])
    params = tree_lib.merge(trained, frozen)

    def generate(requests: Sequence[label.Request]) -> Sequence[label.Said]:
      asked = [(request.place, request.entry.prompt) for request in requests]
      if not study.model.tasks:
        return study.generator(params, pixels, asked)
      tasks = [request.entry.task for request in requests]
      return study.generator(params, pixels, asked, tasks=tasks)

    def frame(record: ImageRecord) -> Box:
      return study.eye.frame(record.image, name=record.image_id)

    asking = stream.Asking(
      model=tree_lib.digest(trained, study.own_parameters.digest),
      seed=seed,
      questions_per_image=p.questions_per_image,
      max_new_tokens=study.config.evaluate.max_new_tokens,
      tasks=tuple(p.tasks),
      images_at_once=p.images_at_once,
    )
    order = np.random.default_rng(seed).permutation(len(records))
    places = sorted(order[: p.num_images or None].tolist())
    pool = questions.pool_of(records[i] for i in range(len(records)))
    with progress.bar(f"pseudo labels s{seed}") as tick:
      stream.write_labels(folder, records, places, generate, pool, asking, tick, frame)
    counts = stream.counts_of(folder)
    made, asked = (sum(counts[key].values()) for key in ("made", "asked"))
    logging.info(
      "pseudo: %d of %d missing labels made for %d images", made, asked, len(places)
    )

  inputs = runs.labels_inputs(study, seed)
  study.ledger.station(stages.labels_station(seed), inputs, make, resumable=True)


def _keep(study: Study, seed: int, row: str) -> PseudoRecords:
  """Pseudo-IMAX of a row: its filters' station, then DMAX with what that keeps."""
  records = study.records("dmax_train")
  path = study.workdir / stages.labels_station(seed) / stream.LABELS
  chosen = filters.Filters(**stages.rows(plain(study.config.pseudo))[row])

  def make(folder: Path) -> None:
    labels = LabelFile(path)
    verdict = filters.judge(labels, records, chosen, findings.stated)
    with (folder / stream.REJECTED).open("w", encoding="utf8") as file:
      for entry_id, task, reason in filters.rejected(labels, verdict):
        line = {"id": entry_id, "task": task, "reason": reason}
        file.write(f"{json.dumps(line)}\n")
    write_json(folder / "counts.json", {"rejected": filters.count(labels, verdict)})
    np.save(folder / stages.KEPT, verdict == 0)

  inputs = runs.kept_inputs(study, row, seed)
  folder = study.ledger.station(stages.kept_station(row, seed), inputs, make)
  return PseudoRecords(records, LabelFile(path, np.load(folder / stages.KEPT)))
