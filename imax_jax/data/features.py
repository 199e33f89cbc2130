"""A frozen encoder's outputs on disk, read at random by the SHA-256 of an image's bytes.

    FOLDER/features-00000.array_record   a record an image, at most IMAGES_PER_SHARD
    FOLDER/features-00000.index          the shard's size and SHA-256, and its images

    record: SHA-256 of the rest │ image │ encoder │ P, D │ bfloat16[P, D]

A shard without its index is unfinished, and is made anew. What is read is checked: a
record of other bytes, another image or another encoder is an error, never a feature.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import struct
import threading
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from absl import logging
from array_record.python.array_record_module import ArrayRecordReader
from array_record.python.array_record_module import ArrayRecordWriter

from imax_jax.data.manifest import sha256_of
from imax_jax.ledger import whole

# What a killed build repeats at most: 370 MB of the largest encoder's. Every shard that
# is read from is an open file.
IMAGES_PER_SHARD = 512
DTYPE = np.dtype(ml_dtypes.bfloat16)
_SHARD, _INDEX = ".array_record", ".index"
# Zstandard would save a fifth of the room, and take two thirds of the reading's speed.
_WRITER_OPTIONS = "group_size:1,uncompressed"
_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
_HEADER = struct.Struct("<32s32sII")  # image, encoder, P, D
_DIGEST_BYTES = 32
# To be raised when `images.to_pixels` makes other pixels of the same bytes.
_PIXELS = 1
# How an encoder is run, and not what comes out.
_HOW = ("remat", "unroll")
_DIGITS = 12  # of a hash that a person is shown
_REMEDY = (
  "run the verb encode, which checks all shards and makes those anew that are damaged"
)

# Numbers of images -> bfloat16[n, P, D].
Encode = Callable[[Sequence[int]], np.ndarray]


def encoder_key(fields: Mapping[str, Any], weights: Mapping[str, np.ndarray]) -> str:
  """64 hexadecimal digits that change with what an encoder gives for an image.

  Args:
    fields: the config's `model.encoder`, JSON-able.
    weights: {path: array}; their values count, and not where they came from.
  """
  kept = {name: value for name, value in fields.items() if name not in _HOW}
  facts = json.dumps({"pixels": _PIXELS, "encoder": kept}, sort_keys=True)
  digest = hashlib.sha256(facts.encode())
  for path in sorted(weights):
    leaf = np.ascontiguousarray(weights[path])
    digest.update(f"\n{path} {leaf.dtype} {leaf.shape}\n".encode())
    digest.update(leaf.reshape(-1).view(np.uint8).data)
  return digest.hexdigest()


def save(path: Path, value: Any) -> None:
  """JSON below a line with its SHA-256, whole or not at all."""
  text = json.dumps(value)
  with whole(path) as part:
    part.write_text(f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}")


def load(path: Path, remedy: str) -> Any:
  """What `save` wrote.

  Raises:
    ValueError: other bytes than were written; says what to do, the `remedy`.
  """
  said, _, text = path.read_bytes().partition(b"\n")
  if hashlib.sha256(text).hexdigest().encode() != said:
    raise ValueError(f"{path}: was changed since it was made; {remedy}")
  return json.loads(text)


class Store:
  """One encoder's features of any images. One process writes, any threads read.

  Args:
    folder: need not be there before something is written.
    encoder: its `encoder_key`.
    shape: P, D.
  """

  def __init__(self, folder: Path, encoder: str, shape: tuple[int, int]) -> None:
    self.folder = folder
    self._encoder = encoder
    self._shape = shape
    self._places: dict[str, tuple[Path, int]] = {}
    self._readers: dict[Path, ArrayRecordReader] = {}
    self._lock = threading.Lock()

  # ── Writing ─────────────────────────────────────────────────────────────────────

  def fill(
    self,
    images: Sequence[str],
    encode: Encode,
    *,
    at_once: int,
    progress: Callable[[int, int], None],
  ) -> int:
    """Encodes those of the images that are not there; returns how many they were.

    Args:
      images: SHA-256 of each; one that occurs twice is encoded once.
      encode: called with the places in `images` of at most `at_once`.
      progress: called with (images there, all images).

    Raises:
      ValueError: a shard was changed, or is another encoder's.
    """
    if not self.missing(images):
      return 0
    with self._writing():
      todo = self.missing(images)  # again: others may have encoded while we waited
      done = len(set(images)) - len(todo)
      total = done + len(todo)

      def encode_some(places: Sequence[int]) -> np.ndarray:
        nonlocal done
        found = encode(places)
        done += len(places)
        progress(done, total)
        return found

      for start in range(0, len(todo), IMAGES_PER_SHARD):
        places = todo[start : start + IMAGES_PER_SHARD]
        groups = [places[at : at + at_once] for at in range(0, len(places), at_once)]
        self._write(self._next(), images, groups, encode_some)
    return len(todo)

  def missing(self, images: Sequence[str]) -> list[int]:
    """Where in `images` those stand, once each, that are not there; raises as `fill`."""
    self._places = self._load()
    first: dict[str, int] = {}
    for place, image in enumerate(images):
      if image not in self._places:
        first.setdefault(image, place)
    return list(first.values())

  def check(self) -> int:
    """Reads all there is, and removes the shards that were changed; how many they were.

    Raises:
      ValueError: a shard of another encoder.
    """
    removed, removing = 0, "removed, its images are to be encoded again"
    if not self.folder.exists():
      return removed
    with self._writing():
      for index in sorted(self.folder.glob(f"*{_INDEX}")):
        shard = index.with_suffix(_SHARD)
        try:
          facts = self._facts(index, removing)
          if sha256_of(shard) != facts["sha256"]:
            raise ValueError(f"{shard}: was changed since it was made; {removing}")
        except ValueError as error:
          logging.warning("%s", error)
          self._readers.pop(shard, None)
          index.unlink()
          shard.unlink(missing_ok=True)
          removed += 1
        else:
          self._check_encoder(index, facts)
    return removed

  def size(self) -> int:
    """Bytes of all shards."""
    return sum(path.stat().st_size for path in self.folder.glob(f"*{_SHARD}"))

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    """Waits until no other process writes, and clears what a killed one left."""
    self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (self.folder / ".lock").open("w") as file:
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        logging.info("%s: waiting for another process that writes there", self.folder)
        fcntl.flock(file, fcntl.LOCK_EX)
      for left in self.folder.glob(".*.part"):
        left.unlink()
      for shard in self.folder.glob(f"*{_SHARD}"):
        if not shard.with_suffix(_INDEX).exists():
          shard.unlink()
      yield

  def _next(self) -> Path:
    """The first free shard."""
    taken = {path.stem for path in self.folder.glob(f"*{_INDEX}")}
    number = 0
    while f"features-{number:05d}" in taken:
      number += 1
    return self.folder / f"features-{number:05d}{_SHARD}"

  def _write(
    self,
    shard: Path,
    images: Sequence[str],
    groups: Sequence[Sequence[int]],
    encode: Encode,
  ) -> None:
    with whole(shard) as part:
      writer = ArrayRecordWriter(str(part), _WRITER_OPTIONS)
      for places in groups:
        for place, features in zip(places, encode(places), strict=True):
          writer.write(self._record(images[place], features))
      try:
        writer.close()
      except RuntimeError as error:  # in words, what the disk said
        raise OSError(
          f"{shard}: can not be written ({error}); make room, or give another folder "
          "with --config.train.features_folder, and run the same again"
        ) from error
      facts = {"size": part.stat().st_size, "sha256": sha256_of(part)}
    held = [images[place] for places in groups for place in places]
    save(shard.with_suffix(_INDEX), {"encoder": self._encoder, **facts, "images": held})

  def _record(self, image: str, features: np.ndarray) -> bytes:
    assert features.dtype == DTYPE and features.shape == self._shape, features.shape
    header = self._header(image)
    payload = features.tobytes()
    digest = hashlib.sha256(header)
    digest.update(payload)
    return digest.digest() + header + payload

  def _header(self, image: str) -> bytes:
    keys = bytes.fromhex(image), bytes.fromhex(self._encoder)
    return _HEADER.pack(*keys, *self._shape)

  # ── Reading ─────────────────────────────────────────────────────────────────────

  def read(self, image: str) -> np.ndarray:
    """bfloat16[P, D] of an image by its SHA-256, which `missing` was asked about before.

    Raises:
      ValueError: it is not there, or is not what was written; names shard and image.
    """
    if image not in self._places:
      raise ValueError(
        f"{self.folder}: no features of image {image[:_DIGITS]}…; {_REMEDY}"
      )
    shard, number = self._places[image]
    try:
      record = memoryview(self._reader(shard).read([number])[0])
    except (OSError, ValueError, RuntimeError, IndexError) as error:
      raise self._refused(shard, image, "can not be read") from error
    said, rest = record[:_DIGEST_BYTES], record[_DIGEST_BYTES:]
    if hashlib.sha256(rest).digest() != said:
      raise self._refused(shard, image, "was changed since it was made")
    if rest[: _HEADER.size] != self._header(image):
      found, encoder, *shape = _HEADER.unpack(rest[: _HEADER.size])
      raise self._refused(
        shard, image,
        f"is of image {found.hex()[:_DIGITS]}…, encoder {encoder.hex()[:_DIGITS]}…, "
        f"shape {shape}; expected encoder {self._encoder[:_DIGITS]}…, {[*self._shape]}",
      )  # fmt: skip
    return np.frombuffer(rest[_HEADER.size :], DTYPE).reshape(self._shape)

  @staticmethod
  def _refused(shard: Path, image: str, why: str) -> ValueError:
    return ValueError(
      f"{shard}: the record of image {image[:_DIGITS]}… {why}; {_REMEDY}"
    )

  def _reader(self, shard: Path) -> ArrayRecordReader:
    with self._lock:
      if shard not in self._readers:
        self._readers[shard] = ArrayRecordReader(str(shard), _READER_OPTIONS)
      return self._readers[shard]

  def _load(self) -> dict[str, tuple[Path, int]]:
    """{image: (shard, record)} of all finished shards."""
    places: dict[str, tuple[Path, int]] = {}
    for index in sorted(self.folder.glob(f"*{_INDEX}")):
      facts = self._facts(index, _REMEDY)
      self._check_encoder(index, facts)
      for number, image in enumerate(facts["images"]):
        places.setdefault(image, (index.with_suffix(_SHARD), number))
    return places

  def _facts(self, index: Path, remedy: str) -> dict[str, Any]:
    """What the index says of its shard; raises a ValueError if either was changed."""
    facts = load(index, remedy)
    shard = index.with_suffix(_SHARD)
    size = shard.stat().st_size if shard.is_file() else 0
    if size != facts["size"]:
      raise ValueError(f"{shard}: {size:,} bytes, expected {facts['size']:,}; {remedy}")
    return dict(facts)

  def _check_encoder(self, index: Path, facts: Mapping[str, Any]) -> None:
    if facts["encoder"] != self._encoder:
      raise ValueError(
        f"{index}: features of encoder {facts['encoder'][:_DIGITS]}…, expected "
        f"{self._encoder[:_DIGITS]}…; move it and its shard out of this folder"
      )


class Features:
  """The features of a list of images, a split's: `len`, `[number]`, `[numbers]`.

  They come as float32, as the encoder gives them, rounded to bfloat16.

  Raises:
    ValueError: the store has not all of them.
  """

  dtype = np.dtype(np.float32)

  def __init__(self, store: Store, images: Sequence[str]) -> None:
    lacking = store.missing(images)
    if lacking:
      raise ValueError(
        f"{store.folder}: no features of {len(lacking)} images; {_REMEDY}"
      )
    self._store = store
    self._images = images

  def __len__(self) -> int:
    return len(self._images)

  def __getitem__(self, index: Any) -> np.ndarray:
    """float32[P, D] of a number, float32[n, P, D] of an array of them."""
    if np.ndim(index):
      return np.stack([self[number] for number in index])
    return self._store.read(self._images[index]).astype(np.float32)
