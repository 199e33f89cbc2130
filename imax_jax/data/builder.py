"""IMAX, DMAX and their controls as TFDS datasets of ArrayRecord files, without TensorFlow.

    data_dir/imax/1.1.0/           splits "train" and "test"
    data_dir/dmax/1.1.0/           split "train"
    data_dir/same_images/1.1.0/    split "train", as core and same_count, where asked for

One example is one image with all its entries. `open_split` reads them as `ImageRecord`s;
anyone else can, without this package, by `tfds.data_source("imax", data_dir=data_dir)`.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from typing import NoReturn

import tensorflow_datasets as tfds

from imax_jax.data import images
from imax_jax.data import shards
from imax_jax.data import unfinished
from imax_jax.data.construct import Datasets
from imax_jax.data.entries import target_from_json
from imax_jax.data.geometry import STRETCH
from imax_jax.data.geometry import Geometry
from imax_jax.data.manifest import ShardInfo
from imax_jax.data.shards import Shard
from imax_jax.data.unfinished import Work
from imax_jax.schema import Entry
from imax_jax.schema import ImageRecord
from imax_jax.schema import Origin

_DESCRIPTION = """One chest radiograph an example, with all its question and answer
pairs. An entry's `target` is JSON: the structured answer, with the name of its class."""


# ── Builders ──────────────────────────────────────────────────────────────────────


class _Builder(  # type: ignore[call-arg]
  tfds.core.dataset_builder.FileReaderBuilder, skip_registration=True
):
  """Describes a dataset and reads it; `build` writes it."""

  VERSION = tfds.core.Version(shards.VERSION)

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description=_DESCRIPTION,
      features=shards.features(),
      disable_shuffling=True,
    )

  def download_and_prepare(self, **kwargs: Any) -> None:
    """Raises a ValueError unless the data is there, as `build` wrote it."""
    if not self.data_path.exists():
      self._download_and_prepare(**kwargs)

  def _download_and_prepare(self, *args: Any, **kwargs: Any) -> NoReturn:
    del args, kwargs
    raise ValueError(
      f"{self.name} {self.version} is not in data_dir, and there is nothing to download "
      "it from; build it from the raw files with this package's verb `build` (a control: "
      "with its name in --config.data.construct.controls)"
    )


class Imax(_Builder):
  """Image-centric: few images, many tasks each."""


class Dmax(_Builder):
  """Decentralized: as many entries, spread over many images."""


class SameImages(_Builder):
  """A control: IMAX-train's very images, one task each."""


class Core(_Builder):
  """A control: as many entries as SameImages, from as few of these images as can be."""


class SameCount(_Builder):
  """A control: DMAX cut down to as many images as IMAX-train has."""


_BUILDERS: dict[str, type[_Builder]] = {
  builder.name: builder for builder in (Imax, Dmax, SameImages, Core, SameCount)
}


def _parts(name: str) -> tuple[str, str]:
  """ "same_images_train" -> ("same_images", "train"): TFDS dataset and split."""
  dataset, _, split = name.rpartition("_")
  if dataset not in _BUILDERS or not split:
    raise ValueError(
      f"split {name!r}: expected DATASET_SPLIT, such as imax_train, with one of the "
      f"datasets {list(_BUILDERS)}"
    )
  return dataset, split


# ── Writing ───────────────────────────────────────────────────────────────────────


def build(
  datasets: Datasets,
  data_dir: str | Path,
  *,
  image_px: int | None = None,
  geometry: Geometry = STRETCH,
  draft: bool = False,
  negative: Collection[str] = (),
  workers: int = 1,
  beam_args: Sequence[str] | None = None,
  progress: Callable[[int], object] | None = None,
  finish: Callable[[list[ShardInfo]], object] | None = None,
) -> list[ShardInfo]:
  """Writes all splits below `data_dir`, for their owner only; gives what was written.

  A build that fails or is interrupted leaves no dataset behind, only the shards it had
  finished, hidden (`data.unfinished`): the next goes on from those that fit its own
  plan. What is written is the same, byte for byte, wherever, whenever, in however many
  goes and with however many workers it is built.

  Args:
    image_px: None keeps the images' own files (grey 8-bit PNG or JPEG; others become
      PNG); a number fits them to that many pixels squared, as grey PNG.
    geometry: how they are fitted; the entries' boxes must be the square's already.
    draft: large JPEGs are read smaller: faster, and pixels change a little.
    negative: datasets whose pictures are stored with black and white exchanged.
    workers: processes that write, a file each at a time.
    beam_args: have Apache Beam write instead, told this (`data.beam`).
    progress: called with the number of images just written, once for each finished
      file; for those of an earlier go at once.
    finish: called with what was written, in its place; stopped there, it can go on.

  Raises:
    DamagedImages: all images that cannot be read, after all others were.
    ValueError: an unknown or empty split, or a dataset that is already there.
    OSError: `data_dir` cannot be written to, or is full.
  """
  work = Work(Path(data_dir), repr((image_px, geometry, draft, sorted(negative))))
  work.take_back()
  _check(datasets, work.data_dir)
  store = functools.partial(
    images.to_stored, image_px=image_px, geometry=geometry, draft=draft
  )
  plan = shards.plan(datasets.splits, negative)
  names = dict.fromkeys(shard.dataset for shard in plan)
  work.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
  try:
    written = unfinished.write_all(plan, work, store, workers, beam_args, progress)
    for dataset in names:
      _describe(dataset, plan, written, work.folder)
      (work.folder / dataset).chmod(0o700)
  except BaseException:
    with contextlib.suppress(OSError):  # the first error is the one to tell
      work.tidy()
    raise
  work.end(names)
  if finish is not None:
    finish(written)
  work.remove()
  return written


def check_splits(datasets: Datasets) -> None:
  """Raises a ValueError for a split without images, which TFDS can not hold."""
  for name, group in datasets.splits.items():
    if not group:
      raise ValueError(
        f"{name} has no image. Give construct more images: a test set needs several "
        "patients, and DMAX needs images that IMAX leaves over (lower num_images)."
      )


def _check(datasets: Datasets, data_dir: Path) -> None:
  names = {_parts(name)[0] for name in datasets.splits}
  check_splits(datasets)
  for dataset in sorted(names):
    if (data_dir / dataset).exists():
      raise ValueError(
        f"{data_dir / dataset} is already there; remove it, or give another data_dir"
      )


def _describe(
  dataset: str, plan: Sequence[Shard], written: Sequence[ShardInfo], folder: Path
) -> None:
  """Writes TFDS's own files beside the shards: what the splits are, and the features."""
  # The builder looks for an earlier dataset, of which there is none.
  info = _BUILDERS[dataset](data_dir=folder, file_format=shards.FORMAT).info
  of_split: dict[str, list[ShardInfo]] = {}
  for shard, shard_info in zip(plan, written, strict=True):
    if shard.dataset == dataset:
      of_split.setdefault(shard.split, []).append(shard_info)
  info.set_splits(
    tfds.core.splits.SplitDict(
      [
        tfds.core.splits.SplitInfo(
          name=split,
          shard_lengths=[part.num_examples for part in parts],
          num_bytes=sum(part.num_bytes for part in parts),
          filename_template=tfds.core.ShardedFileTemplate(
            dataset_name=dataset,
            data_dir=info.data_dir,
            split=split,
            filetype_suffix=shards.FORMAT,
          ),
        )
        for split, parts in of_split.items()
      ]
    )
  )
  info.write_to_directory(info.data_dir)


# ── Reading ───────────────────────────────────────────────────────────────────────


class Records(Sequence[ImageRecord]):
  """A split on disk: `records[i]`, `len(records)`. Random access, picklable.

  Files are opened at the first read, and again in each process it is sent to. Its
  `repr` names the content and not the place, for grain compares it on resuming.
  """

  def __init__(self, data_dir: str | Path, name: str) -> None:
    dataset, self._split = _parts(name)
    self._name = name
    self._folder = Path(data_dir) / dataset / shards.VERSION
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


def splits_of(data_dir: str | Path) -> list[str]:
  """The names of the splits that lie in a folder: ["dmax_train", "imax_test", …]."""
  found = Path(data_dir).glob(f"*/{shards.VERSION}/dataset_info.json")
  return sorted(
    f"{path.parts[-3]}_{split}"
    for path in found
    for split in tfds.builder_from_directory(path.parent).info.splits
  )


def open_split(data_dir: str | Path, name: str) -> Records:
  """ "imax_train", "imax_test", "dmax_train", … as `build` wrote it.

  Raises:
    ValueError: a name that no split has.
    FileNotFoundError: no dataset there, or none with this split.
  """
  dataset, split = _parts(name)
  folder = Path(data_dir) / dataset / shards.VERSION
  whole = (folder / "dataset_info.json").is_file()
  if not whole or not any(folder.glob(f"{dataset}-{split}.*")):
    there = ", ".join(splits_of(data_dir)) or "none: build the data first"
    raise FileNotFoundError(f"{data_dir}: no split {name!r}; there are {there}")
  return Records(data_dir, name)


_COLUMNS = ("id", "task", "subtask", "prompt", "answer", "target")
_ORIGIN = ("origin_source", "origin_file", "origin_row", "origin_rule")


def _to_record(example: Mapping[str, Any]) -> ImageRecord:
  image_id = example["image_id"].decode()
  columns = example["entries"]
  rows: Iterable[tuple[Any, ...]] = zip(
    *(columns[key] for key in _COLUMNS + _ORIGIN), strict=True
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
        origin=Origin(source.decode(), file.decode(), int(row), rule.decode()),
      )
      for (
        entry_id, task, subtask, prompt, answer, target, source, file, row, rule,
      ) in rows
    ),
  )  # fmt: skip
