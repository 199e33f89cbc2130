"""IMAX and DMAX as TFDS datasets of ArrayRecord files, written without TensorFlow.

    data_dir/imax/1.0.0/    splits "train" and "test"
    data_dir/dmax/1.0.0/    split "train"

One example is one image with all its entries. `open_split` reads them as `ImageRecord`s;
anyone else can, without this package, by `tfds.data_source("imax", data_dir=data_dir)`.
"""

from __future__ import annotations

import collections
import concurrent.futures
import io
import itertools
import os
import shutil
import tempfile
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from imax_jax.data import images
from imax_jax.data.construct import Datasets
from imax_jax.data.construct import Selected
from imax_jax.data.entries import target_from_json
from imax_jax.data.entries import target_to_json
from imax_jax.schema import Entry
from imax_jax.schema import ImageRecord
from imax_jax.schema import Origin

VERSION = "1.0.0"
_SPLITS: dict[str, tuple[str, str]] = {  # ours -> TFDS dataset and split
  "imax_train": ("imax", "train"),
  "imax_test": ("imax", "test"),
  "dmax_train": ("dmax", "train"),
}
_FORMAT = "array_record"
_IMAGES_PER_FILE = 1024
_GROUP = 32  # images written at a time
_THREADS = min(8, os.cpu_count() or 1)  # decoding releases the interpreter's lock

_DESCRIPTION = """One chest radiograph an example, with all its question and answer
pairs. An entry's `target` is JSON: the structured answer, with the name of its class."""


# ── Builders ──────────────────────────────────────────────────────────────────────


class _Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
  """`selected` maps this dataset's split names to their images; only writing needs it."""

  VERSION = tfds.core.Version(VERSION)

  def __init__(
    self,
    *,
    selected: Mapping[str, Sequence[Selected]] | None = None,
    image_px: int | None = None,
    **kwargs: Any,
  ) -> None:
    self._selected = selected or {}
    self._image_px = image_px
    super().__init__(**kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    text = tfds.features.Text
    entry = {
      "id": text(), "task": text(), "subtask": text(), "prompt": text(),
      "answer": text(), "target": text(), "origin_file": text(), "origin_row": np.int64,
    }  # fmt: skip
    features = {
      "image_id": text(), "study_id": text(), "patient_id": text(), "view": text(),
      "image": tfds.features.Image(shape=(None, None, 1)),
      "entries": tfds.features.Sequence(entry),
    }  # fmt: skip
    return tfds.core.DatasetInfo(
      builder=self,
      description=_DESCRIPTION,
      features=tfds.features.FeaturesDict(features),
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[Any]]:
    del dl_manager  # nothing is ever downloaded
    return {name: self._generate_examples(name) for name in self._selected}

  def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Reads the images a few ahead, in threads; yields them in their order."""
    ahead: collections.deque[concurrent.futures.Future[dict[str, Any]]]
    ahead = collections.deque()
    rest = iter(self._selected[split])
    number = 0
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
      while True:
        while len(ahead) < 4 * _THREADS and (item := next(rest, None)) is not None:
          ahead.append(pool.submit(_example, item, self._image_px))
        if not ahead:
          return
        yield number, ahead.popleft().result()
        number += 1


class Imax(_Builder):
  """Image-centric: few images, many tasks each."""


class Dmax(_Builder):
  """Decentralized: as many entries, spread over many images."""


_BUILDERS: dict[str, type[_Builder]] = {"imax": Imax, "dmax": Dmax}


def _example(selected: Selected, image_px: int | None) -> dict[str, Any]:
  radiograph = selected.radiograph
  try:
    data = Path(radiograph.path).read_bytes()
  except OSError as error:
    raise ValueError(
      f"image {radiograph.image_id}: cannot read {radiograph.path} "
      f"({error.strerror}); fetch the file, or leave the image out"
    ) from error
  return {
    "image_id": radiograph.image_id,
    "study_id": radiograph.study_id,
    "patient_id": radiograph.patient_id,
    "view": radiograph.view,
    "image": io.BytesIO(images.to_stored(data, image_px, name=radiograph.path)),
    "entries": [
      {
        "id": entry.id,
        "task": entry.task,
        "subtask": entry.subtask,
        "prompt": entry.prompt,
        "answer": entry.answer,
        "target": target_to_json(entry.target),
        "origin_file": entry.origin.file,
        "origin_row": entry.origin.row,
      }
      for entry in selected.entries
    ],
  }


def build(
  datasets: Datasets,
  data_dir: str | Path,
  *,
  image_px: int | None = None,
  progress: Callable[[int], object] | None = None,
) -> None:
  """Writes the three splits below `data_dir`, readable by their owner only.

  A build that fails or is interrupted leaves no dataset behind. What is written is the
  same, byte for byte, wherever and whenever it is built.

  Args:
    image_px: None keeps the images' own files (grey 8-bit PNG or JPEG; others become
      PNG); a number stretches them to that many pixels squared, as grey PNG.
    progress: called with the number of images just written, as tqdm's `update` is.

  Raises:
    ValueError: an empty split, a dataset that is already there, or an image that cannot
      be read.
  """
  data_dir = Path(data_dir)
  for name, (dataset, _) in _SPLITS.items():
    if not datasets.splits[name]:
      raise ValueError(
        f"{name} has no image. Give construct more images: a test set needs several "
        "patients, and DMAX needs images that IMAX leaves over (lower num_images)."
      )
    if (data_dir / dataset).exists():
      raise ValueError(
        f"{data_dir / dataset} is already there; remove it, or give another data_dir"
      )
  data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
  work = Path(tempfile.mkdtemp(prefix=".incomplete-", dir=data_dir))
  try:
    for dataset in _BUILDERS:
      ours = {
        split: datasets.splits[name]
        for name, (owner, split) in _SPLITS.items()
        if owner == dataset
      }
      make = _BUILDERS[dataset]
      _write(
        make(selected=ours, image_px=image_px, data_dir=work, file_format=_FORMAT),
        progress,
      )
      (work / dataset).chmod(0o700)
    for dataset in _BUILDERS:
      (work / dataset).rename(data_dir / dataset)
  finally:
    shutil.rmtree(work, ignore_errors=True)


def _write(builder: _Builder, progress: Callable[[int], object] | None) -> None:
  # Not download_and_prepare(): past 1 GB it sorts on disk, which needs TensorFlow, it
  # talks on the terminal, and its errors print whole examples.
  Path(builder.data_dir).mkdir(parents=True)
  writer = tfds.core.SequentialWriter(
    builder.info, max_examples_per_shard=_IMAGES_PER_FILE, file_format=_FORMAT
  )
  generators = builder._split_generators(None)
  writer.initialize_splits(list(generators))
  for split, examples in generators.items():
    # In groups, for each call also rewrites the metadata.
    while group := [example for _, example in itertools.islice(examples, _GROUP)]:
      writer.add_examples({split: group})
      if progress is not None:
        progress(len(group))
    writer.close_splits([split])


# ── Reading ───────────────────────────────────────────────────────────────────────


class Records(Sequence[ImageRecord]):
  """A split on disk: `records[i]`, `len(records)`. Random access, picklable.

  Files are opened at the first read, and again in each process it is sent to. Its
  `repr` names the content and not the place, for grain compares it on resuming.
  """

  def __init__(self, data_dir: str | Path, name: str) -> None:
    dataset, self._split = _SPLITS[name]
    self._name = name
    self._folder = Path(data_dir) / dataset / VERSION
    self._builder = tfds.builder_from_directory(self._folder)
    self._source: Any = None

  def __len__(self) -> int:
    return int(self._builder.info.splits[self._split].num_examples)

  def __getitem__(self, index: Any) -> Any:
    if isinstance(index, slice):
      return [self[i] for i in range(*index.indices(len(self)))]
    place = index.__index__()
    if not -len(self) <= place < len(self):
      raise IndexError(f"{self._name} has {len(self)} images, none at {place}")
    if self._source is None:
      self._source = self._builder.as_data_source(
        self._split, decoders={"image": tfds.decode.SkipDecoding()}
      )
    return _to_record(self._source[place % len(self)])

  def __getstate__(self) -> dict[str, Any]:
    return {"data_dir": self._folder.parent.parent, "name": self._name}

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.__init__(**state)  # type: ignore[misc]

  def __repr__(self) -> str:
    return f"Records({self._name}, {len(self)} images)"


def open_split(data_dir: str | Path, name: str) -> Records:
  """ "imax_train", "imax_test" or "dmax_train" as `build` wrote it.

  Raises:
    ValueError: another name.
    FileNotFoundError: no dataset there.
  """
  if name not in _SPLITS:
    raise ValueError(f"split {name!r}: expected one of {list(_SPLITS)}")
  folder = Path(data_dir) / _SPLITS[name][0] / VERSION
  if not (folder / "dataset_info.json").is_file():
    raise FileNotFoundError(f"{folder}: no dataset here; build the data first")
  return Records(data_dir, name)


def _to_record(example: Mapping[str, Any]) -> ImageRecord:
  image_id = example["image_id"].decode()
  columns = example["entries"]
  rows: Iterable[tuple[Any, ...]] = zip(
    *(columns[key] for key in ("id", "task", "subtask", "prompt", "answer")),
    *(columns[key] for key in ("target", "origin_file", "origin_row")),
    strict=True,
  )
  return ImageRecord(
    image_id=image_id,
    study_id=example["study_id"].decode(),
    patient_id=example["patient_id"].decode(),
    view=example["view"].decode(),
    image=example["image"],
    entries=tuple(
      Entry(
        id=entry_id.decode(),
        image_id=image_id,
        task=task.decode(),
        subtask=subtask.decode(),
        prompt=prompt.decode(),
        answer=answer.decode(),
        target=target_from_json(target),
        origin=Origin(file.decode(), int(row)),
      )
      for entry_id, task, subtask, prompt, answer, target, file, row in rows
    ),
  )
