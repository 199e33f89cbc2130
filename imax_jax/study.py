"""Config and work directory -> the objects that the verbs work with.

Each is made when it is first asked for. A station's fingerprint holds its own part of
the config and the fingerprints of what it stands on, so a changed config redoes only
what depends on the change.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Collection
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict
from transformers import PreTrainedTokenizerFast

from imax_jax import encoder as encoder_lib
from imax_jax import ledger as ledger_lib
from imax_jax import mesh as mesh_lib
from imax_jax import progress
from imax_jax import tree as tree_lib
from imax_jax.data import builder
from imax_jax.data import eye as eye_lib
from imax_jax.data import features as features_lib
from imax_jax.data import records
from imax_jax.data import sources
from imax_jax.data import templates
from imax_jax.data import tokenizer as tokenizer_lib
from imax_jax.data.features import Features
from imax_jax.evaluate import generate
from imax_jax.evaluate.generate import Generated
from imax_jax.evaluate.grid import Sampling
from imax_jax.ledger import Ledger
from imax_jax.ledger import plain
from imax_jax.models.vlm import Vlm
from imax_jax.parameters import Parameters
from imax_jax.schema import ImageRecord

# The keys of the config's `data` that do not decide what is built.
_HOW_AND_WHERE = {"root", "roots", "hospital", "workers", "beam", "max_quarantined"}
SPLITS = ("imax_train", "imax_test", "dmax_train")


class UsageError(ValueError):
  """The command line is at fault: exit code 2."""


class Study:
  """One config in one work directory."""

  def __init__(self, config: ConfigDict, workdir: str | Path) -> None:
    self.config = config
    several = jax.process_count() > 1
    self.is_chief = jax.process_index() == 0
    self._barrier = multihost_utils.sync_global_devices if several else None
    self.ledger = Ledger(workdir, chief=self.is_chief, barrier=self._barrier)
    self.workdir = self.ledger.workdir

  @cached_property
  def hospital(self) -> Ledger:
    """Where the phantom hospital is drawn: here, or in `data.root`, for several studies."""
    root = self.config.data.root
    if not root:
      return self.ledger
    return Ledger(root, chief=self.is_chief, barrier=self._barrier)

  # ── What everything stands on ───────────────────────────────────────────────────

  @cached_property
  def mesh(self) -> jax.sharding.Mesh:
    return mesh_lib.make_mesh(self.config.mesh)

  @cached_property
  def parameters(self) -> Parameters:
    """For what all processes do together: training."""
    return Parameters(self.config, self.mesh, self.workdir)

  @cached_property
  def own_parameters(self) -> Parameters:
    """For what one process does by itself, on its own devices: all other stations."""
    own = mesh_lib.own_mesh(self.mesh)
    if own is self.mesh:
      return self.parameters
    return Parameters(self.config, own, self.workdir)

  @property
  def model(self) -> Vlm:
    return self.parameters.model

  def fit_tokenizer(self, found: PreTrainedTokenizerFast) -> None:
    """Adds the config's tokens to a decoder's tokenizer.

    Raises:
      ValueError: their ids or rows are taken, or the prompt style needs other marks.
    """
    size = self.config.model.decoder.vocab_size
    tokenizer_lib.add_tokens(found, tuple(self.config.added_tokens), size)
    tokenizer_lib.check_vocabulary(found, size)
    for template in (self.style.training, self.style.evaluation):
      templates.layout_of(found, template)

  @property
  def num_slots(self) -> int:
    """S, the image tokens of an image."""
    return self.model.num_slots

  @cached_property
  def tokenizer(self) -> PreTrainedTokenizerFast:
    """The foundation's, or one trained on the training entries."""
    size = self.config.model.decoder.vocab_size
    words, added = self.style.training, tuple(self.config.added_tokens)
    if self.parameters.foundation is not None:
      found = tokenizer_lib.load(
        tokenizer_lib.source_of(self.parameters.foundation.tokenizer)
      )
      self.fit_tokenizer(found)
      return found

    def make(folder: Path) -> None:
      entries = [e for split in SPLITS if "train" in split for e in self.entries(split)]
      made = tokenizer_lib.train_tokenizer(
        records.training_texts(entries, words),
        size - len(added),
        phrases=records.fixed_phrases(words),
      )
      tokenizer_lib.add_tokens(made, added, size)
      tokenizer_lib.save(made, folder / "tokenizer.json")

    inputs: dict[str, Any] = {"vocab_size": size, "data": self.require_data()}
    if words != templates.LLAMA2 or added:  # else as ever, and what was made is kept
      inputs |= {"template": dataclasses.asdict(words), "added_tokens": list(added)}
    folder = self.ledger.station("tokenizer", inputs, make)
    return tokenizer_lib.load(folder / "tokenizer.json")

  @property
  def prompt(self) -> dict[str, Any]:
    """What decides how questions are put, for fingerprints: of tokens added, if any."""
    added = list(self.config.added_tokens)
    return plain(self.config.prompt) | ({"added_tokens": added} if added else {})

  @property
  def style(self) -> templates.Style:
    """The words around image, prompt and answer."""
    p = self.config.prompt
    return templates.style_of(p.style, legacy=p.legacy)

  @cached_property
  def eye(self) -> eye_lib.Eye:
    """How the model sees the stored pictures."""
    return eye_lib.of(plain(self.config.image), plain(self.config.model.encoder))

  @property
  def image_facts(self) -> dict[str, Any]:
    """What a run's inputs say of the eye: nothing of one that stretches."""
    return {"image": self.eye.facts} if self.eye.facts else {}

  # ── Data ────────────────────────────────────────────────────────────────────────

  @property
  def data_inputs(self) -> dict[str, Any]:
    """What the built data depends on."""
    d = self.config.data
    files: Any = sources.stamps({"": d.root, **d.roots})
    if d.source == "phantom":
      files = self.hospital.digest("hospital", plain(d.hospital))
    asked = {k: plain(d[k]) for k in d if k not in _HOW_AND_WHERE}
    return {"files": files, "recipe file": sources.stamps({"": d.recipe}), **asked}

  def require_data(self) -> str:
    """The built data's fingerprint; a ValueError names the verb if they are not built."""
    self.ledger.digest("data")
    return self.ledger.digest("data", self.data_inputs)

  def records(self, split: str) -> Sequence[ImageRecord]:
    """A split on disk; raises as `require_data`."""
    self.require_data()
    return builder.open_split(self.workdir / "data", split)

  def entries(self, split: str) -> list[Any]:
    return [entry for record in self.records(split) for entry in record.entries]

  def asked(self, split: str) -> list[Any]:
    """The same, their boxes as the model is told them."""
    return [entry for r in self.records(split) for entry in self.eye.spell(r).entries]

  def patients(self, split: str) -> dict[str, str]:
    """{image id: patient id} of a split on disk."""
    found = self.records(split)
    return {r.image_id: r.patient_id for r in (found[i] for i in range(len(found)))}

  def pixels(self, split: str) -> np.ndarray | Features:
    """uint8[n, H, W, C] of a split's images, or features of them, float32[n, P, D].

    Both are kept on disk, made and written a few at a time; what is stopped goes on.

    Raises:
      ValueError: kept features were damaged.
    """
    return self._features(split) if self.keeps_features else self._decoded(split)

  @cached_property
  def keeps_features(self) -> bool:
    """Whether an encoder that never changes runs once an image, and not at every step.

    Raises:
      UsageError: it is trained, or `train.features` is neither "cache" nor "step".
    """
    said = self.config.train.features
    if said not in ("cache", "step"):
      raise UsageError(f"--config.train.features={said}: expected cache or step")
    if said == "cache" and not self.parameters.encoder_is_frozen:
      raise UsageError(
        "--config.train.features=cache: the encoder is trained, so what it gives changes "
        "with every step; give --config.train.features=step, or freeze encoder/.* in "
        "trainable"
      )
    return bool(said == "cache")

  def _decoded(self, split: str) -> np.ndarray:
    encoder, found = self.config.model.encoder, self.records(split)
    size = (encoder.image_px, encoder.image_px, encoder.channels)

    def make(folder: Path) -> None:
      path, mark = folder / "pixels.npy", folder / "written.json"
      done = json.loads(mark.read_text("utf8"))["images"] if mark.is_file() else 0
      kept = np.lib.format.open_memmap(
        path, mode="r+" if done else "w+", dtype=np.uint8, shape=(len(found), *size)
      )
      with progress.bar(f"decoding {split}") as tick:
        for start in range(done, len(found), encoder_lib.AT_ONCE):
          stop = min(start + encoder_lib.AT_ONCE, len(found))
          for i in range(start, stop):
            kept[i] = self.eye.pixels(found[i].image)
          kept.flush()
          ledger_lib.write_json(mark, {"images": stop})
          tick(stop, len(found))

    inputs = {"data": self.require_data(), "size": size, **self.eye.pixel_facts}
    folder = self.ledger.station(f"pixels/{split}", inputs, make, resumable=True)
    return np.load(folder / "pixels.npy", mmap_mode="r")

  @cached_property
  def store(self) -> features_lib.Store:
    """The features of the frozen encoder, of whatever images."""
    encoder, t = self.config.model.encoder, self.config.train
    fields = {**plain(encoder), **self.eye.pixel_facts}
    inputs = {"encoder": fields, "foundation": self.parameters.digest}

    def make(folder: Path) -> None:
      key = encoder_lib.key_of(self.own_parameters, fields)
      features_lib.save(folder / "key", key)

    folder = self.ledger.station("encoder_key", inputs, make)
    key = features_lib.load(folder / "key", f"delete {folder} and run again")
    around = Path(t.features_folder or self.workdir / "features")
    return features_lib.Store(around / key[:16], key, self.model.features_shape)

  def _features(self, split: str) -> Features:
    found, store = self.records(split), self.store
    encoder = functools.cache(
      lambda: encoder_lib.make(self.own_parameters, features_lib.DTYPE)
    )

    def make(folder: Path) -> None:
      hashes = [hashlib.sha256(found[i].image).hexdigest() for i in range(len(found))]
      features_lib.save(folder / "images", hashes)

    def encode(numbers: Sequence[int]) -> np.ndarray:
      return encoder()(np.stack([self.eye.pixels(found[i].image) for i in numbers]))

    inputs = {"data": self.require_data()}
    folder = self.ledger.station(f"images/{split}", inputs, make)
    hashes = features_lib.load(folder / "images", f"delete {folder} and run again")
    if self.is_chief:
      with progress.bar(f"encoding {split}") as tick:
        store.fill(hashes, encode, at_once=encoder_lib.AT_ONCE, progress=tick)
    self.ledger.meet(f"features/{split}")
    return Features(store, hashes)

  def release(self) -> None:
    """Lets go of all weights, for work that needs the room."""
    for name in ("parameters", "own_parameters"):
      self.__dict__.pop(name, None)

  # ── Answers ─────────────────────────────────────────────────────────────────────

  @cached_property
  def generator(self) -> generate.Generator:
    e = self.config.evaluate
    return generate.Generator(
      self.model,
      self.tokenizer,
      self.num_slots,
      e.max_new_tokens,
      rows=e.rows,
      style=self.style,
    )

  def answer(
    self,
    trainable: Mapping[str, Any],
    pixels: np.ndarray | Features,
    asked: Sequence[tuple[int, str]],
    title: str,
    sampling: Sampling | None = None,
    tasks: Sequence[str] = (),
  ) -> list[Generated]:
    """Answers to (image number, prompt), in the order asked; greedy without `sampling`.

    Args:
      tasks: each prompt's (see `Generator.stream`).
    """
    found = dict(self.stream(trainable, pixels, asked, title, sampling, tasks=tasks))
    return [found[number] for number in range(len(asked))]

  def stream(
    self,
    trainable: Mapping[str, Any],
    pixels: np.ndarray | Features,
    asked: Sequence[tuple[int, str]],
    title: str,
    sampling: Sampling | None = None,
    known: Collection[int] = (),
    tasks: Sequence[str] = (),
  ) -> Iterator[tuple[int, Generated]]:
    """The same as they end, each with its number among those asked, but for `known`."""
    _, frozen = self.own_parameters.split(self.config.seeds[0])
    params = tree_lib.merge(trainable, frozen)
    with progress.bar(f"answering: {title}") as tick:
      yield from self.generator.stream(
        params,
        pixels,
        asked,
        tasks=tasks,
        sampling=sampling,
        known=known,
        progress=tick,
      )
