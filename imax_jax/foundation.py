"""The phantom's stand-in for EVA-CLIP and LLaMA-2: a small pre-trained pair.

    films of people whom the study never meets
      ├─ coverage maps ─▶ encoder          (dense pre-training)
      └─ practice ──────▶ connector, decoder (captions, boxes of other objects, words)

The study's seven tasks, its prompts and its patients are not in it; see
`data.phantom.practice`. `configs/foundation.py` makes the checkpoint that ships.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from imax_jax import encoder as encoder_lib
from imax_jax import mesh as mesh_lib
from imax_jax import progress
from imax_jax import runs
from imax_jax import tree as tree_lib
from imax_jax.data import entries as entries_lib
from imax_jax.data import prompts
from imax_jax.data import records
from imax_jax.data import sources
from imax_jax.data import tokenizer as tokenizer_lib
from imax_jax.data.phantom import cohort
from imax_jax.data.phantom import hospital
from imax_jax.data.phantom import practice
from imax_jax.encoder import AT_ONCE
from imax_jax.ledger import plain
from imax_jax.schema import TASKS
from imax_jax.schema import Entry
from imax_jax.schema import ImageRecord
from imax_jax.study import Study
from imax_jax.train import dense
from imax_jax.train import loop
from imax_jax.train import optim
from imax_jax.train import snapshots
from imax_jax.weights import load as weights

_DENSE_DECAY = ((r".*kernel", True), (r".*", False))


def run(config: ConfigDict, study: Study) -> None:
  """All stations; ends with WORKDIR/foundation, to be named in `--config.foundation`."""
  _make_films(config, study)
  _make_words(config, study)
  _make_tokenizer(config, study)
  _train_encoder(config, study)
  _train_decoder(config, study)
  _export(study)


def _make_films(config: ConfigDict, study: Study) -> None:
  f, encoder = config.films, config.model.encoder
  inputs = {**plain(f), "model_px": encoder.image_px, "patch_px": encoder.patch_px}

  def make(folder: Path) -> None:
    with progress.bar("rendering practice films") as tick:
      cohort.write_cohort(
        folder,
        seed=f.seed,
        num_images=f.num_images,
        film_px=f.film_px,
        model_px=encoder.image_px,
        grid=encoder.image_px // encoder.patch_px,
        workers=os.cpu_count() or 1,
        progress=tick,
      )

  study.ledger.station("films", inputs, make)


def _make_words(config: ConfigDict, study: Study) -> None:
  """What a hospital of other patients writes: for the tokenizer and to say again."""
  inputs = plain(config.words)

  def make(folder: Path) -> None:
    root = folder / "hospital"
    with progress.bar("rendering a hospital for its words") as tick:
      hospital.write_hospital(
        root, **config.words, workers=os.cpu_count() or 1, progress=tick
      )
    roots = sources.roots_of(root)
    radiographs = sources.read_radiographs(roots)
    made = [
      prompts.make_entry(annotation, number)
      for number, annotation in enumerate(sources.read_all(roots, radiographs))
    ]
    entries_lib.write_entries(folder / "entries.jsonl", made)
    shutil.rmtree(root)

  study.ledger.station("words", inputs, make)


def _make_tokenizer(config: ConfigDict, study: Study) -> None:
  size = config.model.decoder.vocab_size
  inputs = {
    "vocab_size": size,
    "films": study.ledger.digest("films"),
    "words": study.ledger.digest("words"),
  }

  def make(folder: Path) -> None:
    words = entries_lib.read_entries(study.workdir / "words" / "entries.jsonl")
    exercises = entries_lib.read_entries(study.workdir / "films" / "entries.jsonl")
    texts = records.training_texts([*words, *exercises[: 2 * len(words)]])
    made = tokenizer_lib.train_tokenizer(texts, size, phrases=records.fixed_phrases())
    tokenizer_lib.save(made, folder / "tokenizer.json")

  folder = study.ledger.station("tokenizer", inputs, make)
  study.tokenizer = tokenizer_lib.load(folder / "tokenizer.json")


def _optimizer(settings: ConfigDict, trainable: Any, decay: Any) -> optim.Optimizer:
  schedule = optim.make_schedule(
    num_steps=settings.num_steps,
    peak_lr=settings.peak_lr,
    final_lr=0.0,
    warmup_fraction=0.05,
    warmup_start_lr=0.0,
  )
  return optim.make_optimizer(
    trainable, schedule, weight_decay=0.05, decay=decay, clip_norm=1.0
  )


def _train_encoder(config: ConfigDict, study: Study) -> None:
  settings = config.dense
  inputs = {
    "dense": plain(settings),
    "encoder": plain(config.model.encoder),
    "films": study.ledger.digest("films"),
  }
  width = config.model.encoder.width
  start = {
    "encoder": study.parameters.init(0)["encoder"],
    "probe": dense.init_probe(0, width, practice.NUM_MAPS),
  }

  def encode(params: Any, pixels: jax.Array) -> Any:
    return study.model.apply({"params": {"encoder": params}}, pixels, method="encode")

  def make(folder: Path) -> None:
    films = study.workdir / "films"
    batches = dense.DenseBatches(
      np.load(films / "pixels.npy", mmap_mode="r"),
      np.load(films / "maps.npy", mmap_mode="r"),
      num_steps=settings.num_steps,
      images_per_step=settings.images_per_step,
      seed=settings.seed,
    )
    with progress.bar("training the encoder") as tick:
      loop.train(
        model_loss=dense.make_loss(encode),
        trainable=start,
        frozen={},
        optimizer=_optimizer(settings, start, _DENSE_DECAY),
        batches=batches,
        mesh=study.mesh,
        workdir=folder,
        seed=settings.seed,
        save_steps=250,
        snapshots={"final": settings.num_steps},
        on_step=lambda step, total, _: tick(step, total),
      )

  folder = study.ledger.station("encoder", inputs, make, resumable=True)
  like = mesh_lib.replicate(start, study.mesh)
  trained = snapshots.restore(folder, "final", like)
  study.parameters.given = tree_lib.flatten({"encoder": trained["encoder"]})


def _language(
  words: list[Entry], count: int, rng: np.random.Generator
) -> list[tuple[str, str]]:
  """(prompt, answer) pairs that teach words and need no film: say again, go on."""
  texts = sorted(
    {text for e in words for text in (e.answer, e.prompt) if len(text) < 240}
  )
  pairs = []
  for number in rng.integers(len(texts), size=count):
    text = texts[number].split("image, ")[-1]
    pieces = text.split(" ")
    if len(pieces) > 5 and rng.random() < 0.6:
      cut = int(rng.integers(2, len(pieces) - 2))
      start, end = max(0, cut - 12), cut + 12
      asked, said = " ".join(pieces[start:cut]), " ".join(pieces[cut:end])
      pairs.append((f"Go on: {asked}", said))
    else:
      said = " ".join(pieces[:14])
      pairs.append((f"Say again: {said}", said))
  return pairs


def practice_records(config: ConfigDict, study: Study) -> list[ImageRecord]:
  """The films' exercises, and among them exercises in the words of the hospital."""
  words = entries_lib.read_entries(study.workdir / "words" / "entries.jsonl")
  words = [entry for entry in words if entry.task in TASKS]
  by_image: dict[str, list[Entry]] = {}
  for entry in entries_lib.read_entries(study.workdir / "films" / "entries.jsonl"):
    by_image.setdefault(entry.image_id, []).append(entry)
  rng = np.random.default_rng(config.decoder.seed)
  pairs = iter(_language(words, 2 * len(by_image), rng))
  found = []
  for image_id, entries in by_image.items():
    for number in range(2):
      prompt, answer = next(pairs)
      like = entries[0]
      spoken = Entry(
        f"{image_id}/practice/words/{number}", image_id, like.task, "words",
        f"[practice] {prompt}", answer, like.target, like.origin,
      )  # fmt: skip
      entries.append(spoken)
    found.append(ImageRecord(image_id, image_id, image_id, "", b"", tuple(entries)))
  return found


def _train_decoder(config: ConfigDict, study: Study) -> None:
  settings = config.decoder
  inputs = {
    "decoder": plain(settings),
    "encoder": study.ledger.digest("encoder"),
    "tokenizer": study.ledger.digest("tokenizer"),
  }

  def encode(folder: Path) -> None:
    pixels = np.load(study.workdir / "films" / "pixels.npy", mmap_mode="r")
    encode = encoder_lib.make(study.own_parameters, np.float16)
    with progress.bar("encoding practice films") as tick:
      features = []
      for start in range(0, len(pixels), AT_ONCE):
        features.append(encode(pixels[start : start + AT_ONCE]))
        tick(start + len(features[-1]), len(pixels))
    np.save(folder / "pixels.npy", np.concatenate(features))

  features = study.ledger.station("features", inputs, encode)
  runs.fit(
    study,
    "decoder",
    practice_records(config, study),
    lambda: np.load(features / "pixels.npy", mmap_mode="r"),
    seed=settings.seed,
    num_steps=settings.num_steps,
    inputs=inputs,
  )


def _export(study: Study) -> None:
  """foundation.safetensors in half precision (10 MB at most), and its tokenizer."""
  inputs = {
    "decoder": study.ledger.digest("runs/decoder"),
    "tokenizer": study.ledger.digest("tokenizer"),
  }

  def make(folder: Path) -> None:
    _, frozen = study.parameters.split(0)
    params = tree_lib.merge(
      runs.weights_of(study, study.workdir / "runs" / "decoder"), frozen
    )
    flat = {
      path: np.asarray(leaf)
      for path, leaf in tree_lib.flatten(params).items()
      if "lora_" not in path
    }
    weights.save_params(folder / "foundation.safetensors", flat, np.float16)
    shutil.copy(
      study.workdir / "tokenizer" / "tokenizer.json", folder / "tokenizer.json"
    )

  study.ledger.station("foundation", inputs, make)
