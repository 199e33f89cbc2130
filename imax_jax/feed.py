"""What a run is fed with: images and their entries -> batches, as the config says."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from collections.abc import Sequence

import numpy as np
from absl import logging

from imax_jax import mesh as mesh_lib
from imax_jax.data import pipeline
from imax_jax.data import records
from imax_jax.data import weighting
from imax_jax.data.features import Features
from imax_jax.data.pipeline import Batches
from imax_jax.data.pipeline import EntryBatches
from imax_jax.data.records import TokenizedImage
from imax_jax.pseudo import label
from imax_jax.schema import ImageRecord
from imax_jax.study import Study
from imax_jax.train import validation


def batches(
  study: Study,
  found: Sequence[ImageRecord],
  pixels: Callable[[], np.ndarray | Features],
  *,
  num_steps: int,
  seed: int,
) -> tuple[Batches, EntryBatches | None]:
  """The batches of a run over these images, and those of the patients held out of it.

  Each process has its own share of both.

  Args:
    pixels: gives the images' pixels; asked for after every entry was tokenised, since
      encoding takes hours and an entry that does not fit is found in seconds.
  """
  t = study.config.train
  patients: list[str] = []
  tokenized = _tokenized(study, found, patients)
  held = validation.held_out(patients, t.validation.fraction)
  reader: list[
    Callable[[int], np.ndarray]
  ] = []  # once all that is quickly told is told

  def read(index: int) -> np.ndarray:
    return reader[0](index)

  share = mesh_lib.row_share(study.mesh)
  trained = _trained(study, tokenized, held, read, num_steps, seed)
  chosen = _validated(tokenized, held, t.validation.entries)
  reader.append(_reader(pixels()))
  if not held:
    return trained, None
  return trained, EntryBatches(
    tokenized,
    read,
    chosen,
    group_size=math.ceil(t.entries_per_step / share.num_shards) * share.num_shards,
    weight_of=weighting.weigh(t.weighting, t.task_weights),
    process_index=share.process_index,
    process_count=share.process_count,
  )


def _trained(
  study: Study,
  images: Sequence[TokenizedImage],
  held: set[int],
  read: Callable[[int], np.ndarray],
  num_steps: int,
  seed: int,
) -> Batches:
  t = study.config.train
  return Batches(
    [
      dataclasses.replace(image, entries=()) if place in held else image
      for place, image in enumerate(images)
    ],
    read,
    num_steps=num_steps,
    entries_per_step=t.entries_per_step,
    row_tokens=t.row_tokens,
    row_multiple=t.row_multiple,
    max_shapes=t.max_shapes,
    seed=seed,
    shuffle=t.shuffle,
    sample_ratios=t.sample_ratios,
    weighting=t.weighting,
    task_weights=t.task_weights,
    share_prefix=t.share_prefix,
    accumulate=t.accumulate,
    **mesh_lib.row_share(study.mesh)._asdict(),
  )


def _validated(
  images: Sequence[TokenizedImage], held: set[int], most: int
) -> list[tuple[int, int]]:
  """(image, entry) of those held out, at most so many: the same ones at every start.

  Pseudo labels are left out: a model is not measured by what it said itself.
  """
  pairs = [
    (i, e)
    for i in sorted(held)
    for e, entry in enumerate(images[i].entries)
    if entry.entry.origin.source != label.ORIGIN
  ]
  if held and not pairs:
    raise ValueError(
      "validation: the patients held out have no entry but pseudo labels"
    )
  order = np.random.default_rng(0).permutation(len(pairs))
  return sorted(pairs[place] for place in order[: most or None])


def samples(
  study: Study, split: str, num_groups: int, size: int, seed: int
) -> EntryBatches:
  """Random entries of a split, for the Fisher information; each process has its rows."""
  tokenized = _tokenized(study, study.records(split), [])
  pairs = pipeline.draw(tokenized, num_groups, size, seed=seed)
  share = mesh_lib.row_share(study.mesh)
  return EntryBatches(
    tokenized,
    _reader(study.pixels(split)),
    pairs,
    group_size=size,
    answers_only=True,  # log p(answer | image, question): Eq. 2
    process_index=share.process_index,
    process_count=share.process_count,
  )


def num_steps(study: Study, num_entries: int, epochs: float) -> int:
  """Optimiser steps of so many passes over the entries, rounded up."""
  exact = num_entries * epochs / study.config.train.entries_per_step
  return max(1, math.ceil(exact - 1e-9))  # 1.1 epochs of 50 are 55, not 56


def _tokenized(
  study: Study, found: Sequence[ImageRecord], patients: list[str]
) -> list[TokenizedImage]:
  """Each record is read once; the ids of their patients are appended to `patients`.

  Entries are as the model's eye has them: what it can not see is not taught.
  """
  images, unseen = [], 0
  for i in range(len(found)):
    record = found[i]
    patients.append(record.patient_id)
    taught = study.eye.teach(record)
    unseen += len(record.entries) - len(taught.entries)
    tokenized = records.tokenize_record(
      taught,
      study.tokenizer,
      num_slots=study.num_slots,
      row_tokens=study.config.train.row_tokens,
      style=study.style,
    )
    images.append(_numbered(study, tokenized))
  if unseen:
    logging.info(
      "%d entries are of boxes that the model does not see: left out", unseen
    )
  return images


def _numbered(study: Study, image: TokenizedImage) -> TokenizedImage:
  """Each entry with the number of its task, where image tokens depend on it.

  Raises:
    ValueError: the model knows no such task; it names the entry.
  """
  if not study.model.tasks:
    return image
  entries = []
  for entry in image.entries:
    try:
      number = study.model.task_number(entry.entry.task)
    except ValueError as error:
      raise ValueError(f"entry {entry.entry.id}: {error}") from None
    entries.append(dataclasses.replace(entry, task=number))
  return dataclasses.replace(image, entries=tuple(entries))


def _reader(pixels: np.ndarray | Features) -> Callable[[int], np.ndarray]:
  """Pixels as they are; features, kept in half precision, as the encoder gives them."""
  dtype = np.uint8 if pixels.dtype == np.uint8 else np.float32
  return lambda i: np.asarray(pixels[i], dtype)
