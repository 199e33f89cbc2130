"""The config's `data`: what it asks for, refused where it can not be had.

All that can be told without reading a source's file.
"""

from __future__ import annotations

import math
import os
from typing import Any

from ml_collections import ConfigDict

from imax_jax.data import construct
from imax_jax.data import controls
from imax_jax.data import eye
from imax_jax.data import order
from imax_jax.data import recipe
from imax_jax.data import sources
from imax_jax.data import weighting
from imax_jax.data.geometry import Geometry
from imax_jax.data.sources import intake as intake_lib
from imax_jax.ledger import plain
from imax_jax.pseudo import filters
from imax_jax.pseudo import label
from imax_jax.pseudo import stages
from imax_jax.report import arms
from imax_jax.schema import TASKS
from imax_jax.study import UsageError
from imax_jax.train import optim
from imax_jax.train import trackers

_BOX_ORDERS = ("xy", "yx")


def check(d: ConfigDict) -> None:
  """What can be refused before hours are spent on reading.

  Raises:
    UsageError: with the flag at fault.
  """
  geometry_of(d)
  for key in ("max_report_words", "workers"):
    if d[key] < 0:
      raise UsageError(f"--config.data.{key}={d[key]}: expected 0 or more")
  unknown = sorted(set(d.without) - sources.FOLDERS.keys())
  if unknown:
    raise UsageError(
      f"--config.data.without: no source {unknown[0]!r}; there are "
      f"{', '.join(sources.FOLDERS)}"
    )
  if d.boxes.order not in _BOX_ORDERS:
    raise UsageError(f"--config.data.boxes.order={d.boxes.order}: expected xy or yx")
  if d.boxes.scale < 0:
    raise UsageError(
      f"--config.data.boxes.scale={d.boxes.scale}: expected 1000, or 0 for pixels"
    )
  _check_study_of_films(d)
  try:
    intake_lib.check_share(d.max_quarantined)
  except ValueError as error:
    raise UsageError(f"--config.data.{error}") from None
  settings = plain(d.construct)
  names = settings.keys() - {"views"}
  try:
    construct.check_choices(**{name: settings[name] for name in names})
    sources.check_options(plain(d.options))
    if d.recipe:
      recipe.check_settings(recipe.read_recipe(d.recipe), settings_of(d))
  except FileNotFoundError:
    raise UsageError(
      f"--config.data.recipe={d.recipe}: no such file; give a build's recipe.jsonl.gz"
    ) from None
  except ValueError as error:
    raise UsageError(f"--config.data: {error}") from None


def _check_study_of_films(d: ConfigDict) -> None:
  """What spoils the data on purpose is for films that are drawn for it."""
  if not 0 <= d.noise <= 1:
    raise UsageError(f"--config.data.noise={d.noise}: expected a share from 0 to 1")
  unknown = sorted(set(d.negative) - {"imax", "dmax", *controls.ALL})
  if unknown:
    raise UsageError(f"--config.data.negative: no dataset {unknown[0]!r}")
  for key in ("noise", "negative"):
    if d[key] and d.source != "phantom":
      raise UsageError(
        f"--config.data.{key} spoils training data to study what that does; it is for "
        f"source phantom, not for {d.source}"
      )


def geometry_of(d: ConfigDict) -> Geometry:
  """How pictures become squares when they are stored.

  Raises:
    UsageError: an unknown one, or one that needs `data.image_px`.
  """
  try:
    geometry = Geometry(d.geometry)
  except ValueError as error:
    raise UsageError(f"--config.data.{error}") from None
  if geometry.kind != "stretch" and not d.image_px:
    raise UsageError(
      f"--config.data.geometry={d.geometry} is done when the images are stored: give "
      "their side, --config.data.image_px=224"
    )
  return geometry


def check_image(config: ConfigDict) -> None:
  """The config's `image`: how a model sees what is stored.

  Raises:
    UsageError: with the flag at fault.
  """
  image, d = config.image, config.data
  try:
    eye.of(plain(image), plain(config.model.encoder))
  except ValueError as error:
    raise UsageError(f"--config.image: {error}") from None
  if image.geometry != "stretch" and d.image_px:
    raise UsageError(
      f"--config.image.geometry={image.geometry}: with --config.data.image_px="
      f"{d.image_px} pictures are stored as squares ({d.geometry}), and nothing is left to "
      "pad or crop; give --config.data.image_px=0, or --config.image.geometry=stretch"
    )
  if image.boxes == "seen" and not d.boxes.scale:
    raise UsageError(
      "--config.image.boxes=seen: boxes in pixels (--config.data.boxes.scale=0) are the "
      "stored picture's; give a scale, 1000, or --config.image.boxes=picture"
    )


def workers_of(d: ConfigDict) -> int:
  """Processes to use; 0 in the config: one a core."""
  return int(d.workers) or os.cpu_count() or 1


def settings_of(d: ConfigDict) -> dict[str, Any]:
  """What decides how an annotation reads, {"boxes.order": "xy", …}, below `data`."""
  found = {
    "boxes.order": d.boxes.order,
    "boxes.scale": d.boxes.scale,
    "geometry": d.geometry,
    "max_report_words": d.max_report_words,
  }
  if d.geometry != "stretch" or not d.boxes.scale:  # else no box depends on it
    found["image_px"] = d.image_px
  for source, options in plain(d.options).items():
    found |= {
      f"options.{source}.{key}": value
      for key, value in options.items()
      if key != "require_images"  # which of them are there
    }
  return found


def needs_thousandths(d: ConfigDict, verb: str) -> None:
  """Raises a UsageError where boxes are written otherwise: `verb` makes up its own."""
  if (d.boxes.order, d.boxes.scale) != ("xy", 1000):
    raise UsageError(
      f"{verb} asks about boxes in thousandths, x before y; this config writes them "
      f"otherwise (data.boxes: order {d.boxes.order}, scale {d.boxes.scale})"
    )


def check_pseudo(p: ConfigDict) -> None:
  """The config's `pseudo`: what can be refused before an image is labelled.

  Raises:
    UsageError: with the flag at fault.
  """
  for key, least in {
    "num_images": 0,
    "images_at_once": 1,
    "questions_per_image": 0,
  }.items():
    if p[key] < least:
      raise UsageError(f"--config.pseudo.{key}={p[key]}: expected {least} or more")
  try:
    label.check_tasks(p.tasks)
    for row, chosen in stages.rows(plain(p)).items():
      try:
        filters.Filters(**chosen).check()
      except (TypeError, ValueError) as error:
        raise ValueError(f"pseudo: the filters of the row {row}: {error}") from None
      if row not in arms.TRAINED:
        raise ValueError(
          f"pseudo.ablations: {row} would be trained and shown nowhere; give it a line "
          "of ARMS in imax_jax/report/arms.py"
        )
  except ValueError as error:
    raise UsageError(f"--config.{error}") from None


# Keys of the config's `train`, and the least that each may be.
_LEAST = {
  "entries_per_step": 1, "accumulate": 1, "row_tokens": 1, "row_multiple": 0,
  "max_shapes": 1, "save_steps": 0, "keep": 2, "max_skipped": 0, "watchdog_seconds": 0,
  "clip_norm": 0, "weight_decay": 0, "peak_lr": 0, "final_lr": 0, "warmup_start_lr": 0,
  "beta2": 0, "epochs": 0,
}  # fmt: skip
_LEAST_OF_VALIDATION = {"fraction": 0, "steps": 1, "patience": 0, "entries": 0}


def check_training(t: ConfigDict) -> None:
  """The config's `train`: what can be refused before an image is encoded.

  Raises:
    UsageError: with the flag at fault.
  """

  def refuse(key: str, value: Any, expected: str) -> None:
    raise UsageError(f"--config.train.{key}={value}: expected {expected}")

  for keys, at in ((_LEAST, ""), (_LEAST_OF_VALIDATION, "validation.")):
    for key, least in keys.items():
      value = t.validation[key] if at else t[key]
      if not least <= value < math.inf:
        refuse(at + key, value, f"{least} or more")
  for key in ("epochs", "beta2"):
    if (key == "epochs" and not t.epochs) or (key == "beta2" and t.beta2 >= 1):
      refuse(key, t[key], "more than 0" if key == "epochs" else "less than 1")
  if len(t.profile) != 2 or not 0 <= t.profile[0] <= t.profile[1]:
    refuse("profile", t.profile, "the first update and the one behind the last, 10,15")
  if any(t.sample_ratios.values()) and t.shuffle != "task":
    refuse("shuffle", t.shuffle, "task: sample_ratios say how often each is drawn")
  v = t.validation
  if v.metric.removeprefix("loss_") not in ("loss", *TASKS):
    refuse("validation.metric", v.metric, "loss, or loss_ and a task: loss_rec")
  if v.patience and not v.fraction:
    refuse("validation.patience", v.patience, "0, or patients in validation.fraction")
  if v.patience and "dmax_long" in t.runs:
    refuse(
      "validation.patience", v.patience,
      "0, or train.runs without dmax_long, which is to have as many steps as pseudo's",
    )  # fmt: skip
  try:
    optim.make_schedule(
      num_steps=1, peak_lr=t.peak_lr, final_lr=t.final_lr,
      warmup_fraction=t.warmup_fraction, warmup_start_lr=t.warmup_start_lr,
      clock=t.clock, may_rise=t.may_rise,
    )  # fmt: skip
    weighting.weigh(t.weighting, t.task_weights)
    order.Stream(
      [TASKS], entries_per_step=1, seed=0, shuffle=t.shuffle,
      sample_ratios=t.sample_ratios,
    )  # fmt: skip
    trackers.check(t.trackers)
  except ValueError as error:
    raise UsageError(f"--config.train: {error}") from None
