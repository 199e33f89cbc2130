"""The verb `pseudo`: the three-stage strategy of the paper's section 4.2.2."""

from __future__ import annotations

import functools
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imax_jax import choices
from imax_jax import runs
from imax_jax.data import entries as entries_lib
from imax_jax.ledger import write_json
from imax_jax.pseudo import label
from imax_jax.pseudo import stages
from imax_jax.schema import ImageRecord
from imax_jax.study import Study


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
      found = study.answer(trained, pixels, asked, f"pseudo labels s{seed}")
      return [generated.text for generated in found]

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
