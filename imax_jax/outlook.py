"""What the verb `pseudo` will do, told before it does it.

the three stages, seed 0
  primary   runs/dmax-s0               done     1,204 steps on 19,264 entries
  label     pseudo/labels-s0           goes on  64 of 320 images; about 3,700 requests
  keep      pseudo/kept-s0             to do    all valid labels
  pretrain  runs/pseudo_pretrain-s0    to do    301 steps, from the primary run
  finetune  runs/pseudo-s0             to do    301 steps, from pretrain
"""

from __future__ import annotations

import json
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any

from imax_jax import runs
from imax_jax.data import prompts
from imax_jax.ledger import plain
from imax_jax.pseudo import journal
from imax_jax.pseudo import stages
from imax_jax.schema import ORGANS
from imax_jax.study import Study

# Labels of an image that has nothing, by task; VQA's are the config's.
_OF_AN_IMAGE = {
  "calculation": len(prompts.RATIO_NAMES), "report": 1, "multi_class": 1,
  "multi_label": 1, "rec": len(ORGANS), "reg": len(ORGANS),
}  # fmt: skip


def text(study: Study) -> str:
  """A line a stage of each seed: where it is, whether it is done, how much it takes."""
  lines = []
  for seed in study.config.seeds:
    lines.append(f"  the three stages, seed {seed}")
    found = list(_stages(study, seed))
    width = max(len(station) for _, station, _, _ in found)
    for stage, station, state, words in found:
      lines.append(f"    {stage:<9} {station:<{width}} {state:<10} {words}")
  return "\n".join(lines)


def num_requests(config: Mapping[str, Any], statistics: Mapping[str, Any]) -> int:
  """About how many labels are missing, from the labelled split's statistics.

  Args:
    config: the config's `pseudo`.
    statistics: {"images": …, "entries_per_subtask": …, "images_per_task": …, …}.
  """
  images = statistics["images"]
  by_image, by_subtask = statistics["images_per_task"], statistics["entries_per_task"]
  whole = _OF_AN_IMAGE | {"vqa": config["questions_per_image"]}
  missing = 0
  for task in config["tasks"]:
    if task in ("calculation", "rec", "reg"):
      missing += images * whole[task] - by_subtask.get(task, 0)
    else:
      missing += whole[task] * (images - by_image.get(task, 0))
  return round(missing * min(config["num_images"] or images, images) / images)


def _stages(study: Study, seed: int) -> Iterator[tuple[str, str, str, str]]:
  """(stage, station, state, words), in the order in which they are done."""
  p, read = study.config.pseudo, study.workdir / "data" / "statistics.json"
  study.require_data()
  dmax = json.loads(read.read_text("utf8"))["splits"]["dmax_train"]
  steps = runs.stage_steps(study)
  each = study.config.train.entries_per_step

  def trained(stage: str, run: str) -> tuple[str, str, str, str]:
    done = steps[stage]
    state = _state(study, f"runs/{run}", lambda: runs.digest(study, run))
    words = f"{done:,} steps of {each} entries"
    return stage, f"runs/{run}", state, words

  yield trained("primary", f"dmax-s{seed}")
  station = stages.labels_station(seed)
  state = _state(
    study,
    station,
    lambda: study.ledger.digest(station, runs.labels_inputs(study, seed)),
  )
  images = min(p.num_images or dmax["images"], dmax["images"])
  words = f"{images:,} images, about {num_requests(plain(p), dmax):,} requests"
  if state == "begun" and (study.workdir / station / journal.MARK).is_file():
    done = journal.state_of(study.workdir / station)["images"]
    words += f"; {done:,} images are done"
  yield "label", station, state, words
  for row, chosen in stages.rows(plain(p)).items():
    kept = stages.kept_station(row, seed)

    def made_from(kept: str = kept, row: str = row) -> str:
      return study.ledger.digest(kept, runs.kept_inputs(study, row, seed))

    used = ", ".join(f"{key} {value}" for key, value in chosen.items() if value)
    yield "keep", kept, _state(study, kept, made_from), used or "all valid labels"
    yield trained("pretrain", f"{stages.pretraining_of(row)}-s{seed}")
    yield trained("finetune", f"{row}-s{seed}")


def _state(study: Study, station: str, digest: Callable[[], str]) -> str:
  """ "done", "begun", "to do", or "made again": it is of other settings or stations."""
  try:
    digest()
  except ValueError:
    if study.ledger.is_done(station):
      return "made again"
    return "begun" if (study.workdir / station).is_dir() else "to do"
  return "done"
