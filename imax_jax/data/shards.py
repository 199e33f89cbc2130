"""A build is a plan, a list of shards; a shard's bytes are a function of its images.

Who writes which shard, when, in how many processes or on how many machines, leaves no
trace in the files. One example is one image with all its entries.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import errno
import functools
import hashlib
import io
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Generator
from collections.abc import Mapping
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeVar

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.core.example_serializer import ExampleSerializer

from imax_jax.data import images as images_lib
from imax_jax.data.construct import Selected
from imax_jax.data.entries import entry_values
from imax_jax.data.manifest import ShardInfo
from imax_jax.data.manifest import sha256_of
from imax_jax.data.sources.jsrt import RAW_SUFFIX
from imax_jax.data.sources.jsrt import raw_to_png
from imax_jax.ledger import whole

# 1.1.0 added origin_source and origin_rule to the entries.
VERSION = "1.1.0"
FORMAT = "array_record"
IMAGES_PER_SHARD = 1024
# As TFDS writes them: an example is found and unpacked without its neighbours.
_WRITER_OPTIONS = "group_size:1"
_THREADS = min(8, os.cpu_count() or 1)  # decoding releases the interpreter's lock

# A file that is away, and those that are there and cannot be read. Any other error is
# the machine's: too many open files, a server that has gone.
_ABSENT = (errno.ENOENT, errno.ENOTDIR)
_UNREADABLE = (
  errno.EIO, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG,
)  # fmt: skip
_SHOWN = 3

Result = TypeVar("Result")


class DamagedImages(ValueError):
  """Images that cannot be read or decoded.

  Attributes:
    reasons: image id -> what is wrong with its file, with none of the file's text.
    files: image id -> the file's path.
  """

  def __init__(self, reasons: Mapping[str, str], files: Mapping[str, str]) -> None:
    super().__init__(reasons, files)  # these, to be picklable
    self.reasons = dict(reasons)
    self.files = dict(files)

  @classmethod
  def all_of(cls, found: Sequence[DamagedImages]) -> DamagedImages:
    """As one, by image id."""
    reasons = {name: reason for one in found for name, reason in one.reasons.items()}
    files = {name: path for one in found for name, path in one.files.items()}
    return cls(dict(sorted(reasons.items())), dict(sorted(files.items())))

  def __str__(self) -> str:
    count = len(self.reasons)
    lines = [f"{count:,} {'image' if count == 1 else 'images'} cannot be read"]
    lines += (
      f"  {self.files[name]}: {reason}"
      for name, reason in list(self.reasons.items())[:_SHOWN]
    )
    if count > _SHOWN:
      lines.append(f"  … and {count - _SHOWN:,} more")
    return "\n".join(lines)


@dataclasses.dataclass(frozen=True, slots=True)
class Shard:
  """The `number`-th, from 0, of the `count` files of a split."""

  dataset: str  # as TFDS names it: "imax"
  split: str  # as TFDS names it: "train"
  number: int
  count: int
  images: tuple[Selected, ...]
  negative: bool = False  # whether black and white are exchanged when they are stored

  @property
  def name(self) -> str:
    """ "imax/1.1.0/imax-train.array_record-00000-of-00038": TFDS's own scheme."""
    place = f"{self.number:05d}-of-{self.count:05d}"
    file = f"{self.dataset}-{self.split}.{FORMAT}-{place}"
    return f"{self.dataset}/{VERSION}/{file}"


def plan(
  splits: Mapping[str, Sequence[Selected]], negative: Collection[str] = ()
) -> list[Shard]:
  """The shards of all splits: {"imax_train": […]} is split "train" of dataset "imax".

  `negative` names datasets.
  """
  made = []
  for name, group in splits.items():
    dataset, _, split = name.rpartition("_")
    count = -(-len(group) // IMAGES_PER_SHARD)
    for number in range(count):
      part = group[number * IMAGES_PER_SHARD : (number + 1) * IMAGES_PER_SHARD]
      images, dark = tuple(part), dataset in negative
      made.append(Shard(dataset, split, number, count, images, dark))
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
    DamagedImages: all images of the shard that cannot be read.
    ValueError: entries that do not fit; names the image, and never an entry's text.
    OSError: the disk is full, the folder cannot be written to, and the like.
  """
  path = folder / shard.name
  damaged: list[DamagedImages] = []
  digests: dict[str, str] = {}
  num_bytes = 0
  with whole(path) as part:
    with (
      contextlib.closing(ArrayRecordWriter(str(part), _WRITER_OPTIONS)) as writer,
      contextlib.closing(_examples(shard, store, read)) as examples,
    ):
      for selected, made in examples:
        try:
          digest, example = made.result()
        except DamagedImages as error:
          damaged.append(error)
        if damaged:
          continue  # the others are read too, to tell of all
        writer.write(example)
        digests[selected.radiograph.image_id] = digest
        num_bytes += len(example)
    if damaged:
      raise DamagedImages.all_of(damaged)
    size, digest = part.stat().st_size, sha256_of(part)
  return ShardInfo(shard.name, len(shard.images), num_bytes, size, digest, digests)


_Made = concurrent.futures.Future[tuple[str, bytes]]


def _examples(
  shard: Shard, store: Store, read: Callable[[str], bytes]
) -> Generator[tuple[Selected, _Made], None, None]:
  """What `_example` makes of the images, in their order, a few ahead in threads."""
  spec = features()
  make = functools.partial(
    _example,
    store=functools.partial(_in_negative, store) if shard.negative else store,
    read=read,
    spec=spec,
    serializer=ExampleSerializer(spec.get_serialized_info()),
  )
  ahead: collections.deque[_Made] = collections.deque()
  pool = concurrent.futures.ThreadPoolExecutor(_THREADS)
  try:
    for place, selected in enumerate(shard.images):
      for item in shard.images[place + len(ahead) : place + 4 * _THREADS]:
        ahead.append(pool.submit(make, item))
      yield selected, ahead.popleft()
  finally:
    pool.shutdown(cancel_futures=True)


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
  data, stored = _stored(radiograph.image_id, radiograph.path, store, read)
  values = {
    "image_id": radiograph.image_id,
    "study_id": radiograph.study_id,
    "patient_id": radiograph.patient_id,
    "view": radiograph.view,
    "image": io.BytesIO(stored),
    "entries": [entry_values(entry) for entry in selected.entries],
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


def _in_negative(store: Store, data: bytes, *, name: str) -> bytes:
  return images_lib.to_negative(store(data, name=name))


def _stored(
  image_id: str, path: str, store: Store, read: Callable[[str], bytes]
) -> tuple[bytes, bytes]:
  """The bytes of an image's file, and those to keep; raises `DamagedImages`."""
  try:
    data = read(path)
    # JSRT's raw files have no header, only a name, to be known by.
    raw = path.lower().endswith(RAW_SUFFIX)
    return data, store(raw_to_png(data, name=path) if raw else data, name=path)
  except OSError as error:
    if error.errno in _ABSENT:
      reason = "image file absent"
    elif error.errno in _UNREADABLE:
      reason = f"image file cannot be read ({os.strerror(error.errno)})"
    else:
      raise
  except ValueError as error:
    if isinstance(error.__cause__, ImportError):
      raise  # for want of what reads DICOM
    reason = str(error).removeprefix(f"{path}: ")
  raise DamagedImages({image_id: reason}, {image_id: path})


# ── In several processes ──────────────────────────────────────────────────────────


def in_processes(
  job: Callable[[Shard], Result], plan: Sequence[Shard], workers: int
) -> Generator[Result, None, None]:
  """`map(job, plan)`, by so many processes, which end at once when this is closed.

  Raises:
    ValueError: a process was killed. And whatever `job` raises.
  """
  # Not fork: the parent may hold jax's threads, which a forked child would inherit.
  context = multiprocessing.get_context("spawn")
  theirs, ours = context.Pipe(duplex=False)
  with (
    theirs,
    ours,
    concurrent.futures.ProcessPoolExecutor(
      workers, context, _be_worker, (theirs,)
    ) as pool,
  ):
    try:
      # Ctrl-C goes to all processes of a terminal: the parent alone is to answer. A new
      # process inherits what is blocked, and so is deaf before it has run a line.
      blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
      try:
        futures = [pool.submit(job, shard) for shard in plan]
      finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
      for future in futures:
        yield future.result()
    except BrokenProcessPool:
      raise ValueError(
        f"one of {workers} writing processes was killed, most likely for want of memory; "
        "build with fewer workers"
      ) from None
    except BaseException:
      ours.close()  # ends the workers, for whom the pool then waits
      raise


def _be_worker(parent: Connection) -> None:
  """Has this process end with its parent, or when that hangs up; deaf to Ctrl-C."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: Connection) -> None:
  with contextlib.suppress(EOFError, OSError):
    parent.recv()
  os._exit(1)
