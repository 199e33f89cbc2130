"""A build is a plan, a list of shards; a shard's bytes are a function of its images.

Who writes which shard, when, in how many processes or on how many machines, leaves no
trace in the files. One example is one image with all its entries.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import io
import os
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.core.example_serializer import ExampleSerializer

from imax_jax.data.construct import Selected
from imax_jax.data.entries import target_to_json
from imax_jax.data.manifest import ShardInfo
from imax_jax.data.manifest import sha256_of
from imax_jax.data.sources.jsrt import RAW_SUFFIX
from imax_jax.data.sources.jsrt import raw_to_png
from imax_jax.ledger import whole
from imax_jax.schema import Entry

# 1.1.0 added origin_source and origin_rule to the entries.
VERSION = "1.1.0"
FORMAT = "array_record"
IMAGES_PER_SHARD = 1024
# As TFDS writes them: an example is found and unpacked without its neighbours.
_WRITER_OPTIONS = "group_size:1"
_THREADS = min(8, os.cpu_count() or 1)  # decoding releases the interpreter's lock


@dataclasses.dataclass(frozen=True, slots=True)
class Shard:
  """The `number`-th, from 0, of the `count` files of a split."""

  dataset: str  # as TFDS names it: "imax"
  split: str  # as TFDS names it: "train"
  number: int
  count: int
  images: tuple[Selected, ...]

  @property
  def name(self) -> str:
    """ "imax/1.1.0/imax-train.array_record-00000-of-00038": TFDS's own scheme."""
    place = f"{self.number:05d}-of-{self.count:05d}"
    file = f"{self.dataset}-{self.split}.{FORMAT}-{place}"
    return f"{self.dataset}/{VERSION}/{file}"


def plan(splits: Mapping[str, Sequence[Selected]]) -> list[Shard]:
  """The shards of all splits: {"imax_train": […]} is split "train" of dataset "imax"."""
  made = []
  for name, group in splits.items():
    dataset, _, split = name.rpartition("_")
    count = -(-len(group) // IMAGES_PER_SHARD)
    for number in range(count):
      part = group[number * IMAGES_PER_SHARD : (number + 1) * IMAGES_PER_SHARD]
      made.append(Shard(dataset, split, number, count, tuple(part)))
  return made


def features() -> tfds.features.FeaturesDict:
  """What an example holds. An entry's `target` is JSON (`data.entries`)."""
  text = tfds.features.Text
  entry = {
    "id": text(), "task": text(), "subtask": text(), "prompt": text(),
    "answer": text(), "target": text(), "origin_source": text(), "origin_file": text(),
    "origin_row": np.int64, "origin_rule": text(),
  }  # fmt: skip
  return tfds.features.FeaturesDict(
    {
      "image_id": text(),
      "study_id": text(),
      "patient_id": text(),
      "view": text(),
      "image": tfds.features.Image(shape=(None, None, 1)),
      "entries": tfds.features.Sequence(entry),
    }
  )


# `images.to_stored` with all but data and name bound.
Store = Callable[..., bytes]


def read_file(path: str) -> bytes:
  return Path(path).read_bytes()


def write_shard(
  shard: Shard,
  folder: Path,
  store: Store,
  read: Callable[[str], bytes] = read_file,
) -> ShardInfo:
  """Reads the shard's images and writes its file below `folder`; whole or not at all.

  Args:
    store: makes what is kept of an image file's bytes.
    read: the bytes of the file at a radiograph's path; raises an OSError.

  Raises:
    ValueError: an image that cannot be read; names it, and never an entry's text.
  """
  path = folder / shard.name
  digests: dict[str, str] = {}
  num_bytes = 0
  with whole(path) as part:
    with contextlib.closing(ArrayRecordWriter(str(part), _WRITER_OPTIONS)) as writer:
      for selected, (digest, example) in _examples(shard, store, read):
        writer.write(example)
        digests[selected.radiograph.image_id] = digest
        num_bytes += len(example)
    size, digest = part.stat().st_size, sha256_of(part)
  return ShardInfo(shard.name, len(shard.images), num_bytes, size, digest, digests)


def _examples(
  shard: Shard, store: Store, read: Callable[[str], bytes]
) -> Iterator[tuple[Selected, tuple[str, bytes]]]:
  """What `_example` makes of the images, in their order, a few ahead in threads."""
  spec = features()
  make = functools.partial(
    _example,
    store=store,
    read=read,
    spec=spec,
    serializer=ExampleSerializer(spec.get_serialized_info()),
  )
  ahead: collections.deque[concurrent.futures.Future[tuple[str, bytes]]]
  ahead = collections.deque()
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    for place, selected in enumerate(shard.images):
      for item in shard.images[place + len(ahead) : place + 4 * _THREADS]:
        ahead.append(pool.submit(make, item))
      yield selected, ahead.popleft().result()


def _example(
  selected: Selected,
  *,
  store: Store,
  read: Callable[[str], bytes],
  spec: tfds.features.FeaturesDict,
  serializer: ExampleSerializer,
) -> tuple[str, bytes]:
  """The SHA-256 of the image's file, and the serialised example."""
  radiograph = selected.radiograph
  try:
    data = read(radiograph.path)
  except OSError as error:
    raise ValueError(
      f"image {radiograph.image_id}: cannot read {radiograph.path} "
      f"({error.strerror}); fetch the file, or leave the image out"
    ) from error
  # JSRT's raw files have no header, only a name, to be known by.
  raw = radiograph.path.lower().endswith(RAW_SUFFIX)
  png = raw_to_png(data, name=radiograph.path) if raw else data
  stored = store(png, name=radiograph.path)
  values = {
    "image_id": radiograph.image_id,
    "study_id": radiograph.study_id,
    "patient_id": radiograph.patient_id,
    "view": radiograph.view,
    "image": io.BytesIO(stored),
    "entries": [_values_of(entry) for entry in selected.entries],
  }
  try:
    example = serializer.get_tf_example(spec.encode_example(values))
  except (RuntimeError, TypeError, ValueError) as error:
    # Its words may be an entry's.
    raise ValueError(
      f"image {radiograph.image_id}: its entries do not fit the dataset's features "
      f"({type(error).__name__}); leave the image out"
    ) from None
  # Else the order of the fields is that of a hash table seeded by chance.
  return hashlib.sha256(data).hexdigest(), example.SerializeToString(deterministic=True)


def _values_of(entry: Entry) -> dict[str, Any]:
  return {
    "id": entry.id,
    "task": entry.task,
    "subtask": entry.subtask,
    "prompt": entry.prompt,
    "answer": entry.answer,
    "target": target_to_json(entry.target),
    "origin_source": entry.origin.source,
    "origin_file": entry.origin.file,
    "origin_row": entry.origin.row,
    "origin_rule": entry.origin.rule,
  }
