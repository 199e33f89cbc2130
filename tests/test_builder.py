"""ArrayRecord on disk and back, its manifest, image bytes, targets as JSON, and JSONL."""

import dataclasses
import errno
import hashlib
import io
import json
import multiprocessing
import os
import pickle
import signal
import stat
import subprocess
import sys
import time
import traceback
from pathlib import Path

import grain.python as grain
import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from imax_jax.data import builder
from imax_jax.data import entries
from imax_jax.data import images
from imax_jax.data import interchange
from imax_jax.data import manifest
from imax_jax.data import prompts
from imax_jax.data import shards
from imax_jax.data import unfinished
from imax_jax.data.construct import Datasets
from imax_jax.data.construct import Selected
from imax_jax.data.shards import DamagedImages
from imax_jax.schema import Annotation
from imax_jax.schema import Answer
from imax_jax.schema import Bits
from imax_jax.schema import Grade
from imax_jax.schema import ImageRecord
from imax_jax.schema import Origin
from imax_jax.schema import Radiograph
from imax_jax.schema import Ratio
from imax_jax.schema import Region
from imax_jax.schema import Report

ORIGIN = Origin("made", "a/f.csv", 7, "made/row")
TARGETS = [
  ("calculation", "ctr", Ratio(0.1 + 0.2)),
  ("report", "", Report('Clear. "Größe" \n ___ \\ ')),
  ("multi_class", "", Grade("PA", ("PA", "AP"))),
  ("multi_label", "", Bits((0, 1) * 5)),
  ("rec", "heart", Region("heart", (1 / 3, 0.1, 0.7, 1.0))),
  ("reg", "heart", Region("heart", (1 / 3, 0.1, 0.7, 1.0))),
  ("vqa", "choose", Answer("Which?", (), "anatomy")),
  ("vqa", "query", Answer("Where?", ("left lung", "é/f (g)"))),
]


def encode(image, file_format="PNG", **options):
  buffer = io.BytesIO()
  image.save(buffer, file_format, **options)
  return buffer.getvalue()


def picture(seed, size=(20, 30)):
  return np.random.default_rng(seed).integers(0, 256, size, np.uint8)


def selected(folder, number, file_format="PNG"):
  path = folder / f"{number}.{file_format.lower()}"
  path.write_bytes(encode(Image.fromarray(picture(number)), file_format))
  image_id = f"i{number}"
  entries = [
    prompts.make_entry(Annotation(image_id, task, subtask, target, ORIGIN), number)
    for task, subtask, target in TARGETS[: number % len(TARGETS) + 1]
  ]
  radiograph = Radiograph(image_id, f"s{number}", f"p{number}", "PA", 30, 20, str(path))
  return Selected(radiograph, tuple(entries))


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
  folder = tmp_path_factory.mktemp("files")
  splits = {
    "imax_train": [selected(folder, n) for n in range(40)],
    "imax_test": [selected(folder, n, "JPEG") for n in range(40, 50)],
    "dmax_train": [selected(folder, n) for n in range(50, 60)],
  }
  return Datasets(splits, {}, {}, {})


@pytest.fixture(scope="module")
def built(datasets, tmp_path_factory):
  folder = tmp_path_factory.mktemp("built")
  done = []
  builder.build(datasets, folder / "data", progress=done.append)
  assert sum(done) == 60
  return folder / "data"


def test_what_is_built_is_read_back_whole(datasets, built):
  for name, group in datasets.splits.items():
    records = builder.open_split(built, name)
    assert len(records) == len(group)
    for got, want in zip(records, group, strict=True):
      radiograph = want.radiograph
      assert got.entries == want.entries
      assert got.image == Path(radiograph.path).read_bytes()
      for field in ("image_id", "study_id", "patient_id", "view"):
        assert getattr(got, field) == getattr(radiograph, field)


def test_records_are_random_access_and_picklable(built):
  records = builder.open_split(built, "imax_train")
  assert records[-1] == records[39]
  assert [record.image_id for record in records[3:5]] == ["i3", "i4"]
  assert records[np.int64(7)].image_id == "i7"
  with pytest.raises(IndexError, match="40 images"):
    records[40]
  copy = pickle.loads(pickle.dumps(records))
  assert copy[5] == records[5]
  assert repr(copy) == repr(records) == "Records(imax_train, 40 images)"
  assert len(pickle.dumps(records)) < 1000


def test_records_feed_grain(built):
  records = builder.open_split(built, "imax_train")
  source = grain.MapDataset.source(records).map(lambda record: record.image_id)
  assert list(source.shuffle(seed=3)) != list(source)
  assert sorted(source.shuffle(seed=3)) == sorted(record.image_id for record in records)


def test_tfds_reads_it_without_this_package_and_without_tensorflow(built):
  program = (
    "import sys\n"
    "from importlib.machinery import PathFinder\n"
    "find = PathFinder.find_spec\n"
    "PathFinder.find_spec = staticmethod(lambda name, *more: None\n"
    "  if name.split('.')[0] == 'tensorflow' else find(name, *more))\n"  # if there is one
    "import tensorflow_datasets as tfds\n"
    "source = tfds.data_source('imax', data_dir=sys.argv[1], split='test')\n"
    "print(len(source), source[2]['image'].shape, source[2]['image_id'].decode(),\n"
    "      len(source[2]['entries']['prompt']))\n"
    "other = tfds.builder_from_directory(sys.argv[1] + '/dmax/1.1.0')\n"
    "print(len(other.as_data_source('train')))\n"
    "print('tensorflow' in sys.modules, 'imax_jax' in sys.modules)\n"
  )
  done = subprocess.run(
    [sys.executable, "-c", program, str(built)], capture_output=True, text=True
  )
  assert done.stdout == "10 (20, 30, 1) i42 3\n10\nFalse False\n", done.stderr


def test_tfds_reads_it_beside_this_package(built):
  source = tfds.data_source("dmax", data_dir=str(built), split="train")
  assert source[0]["patient_id"] == b"p50"
  assert "tensorflow" not in sys.modules


def test_tfds_says_what_to_do_where_nothing_is(tmp_path):
  with pytest.raises(
    ValueError, match=r"core 1\.1\.0 is not in data_dir.*verb `build`"
  ):
    tfds.data_source("core", data_dir=str(tmp_path))


def digests(root):
  return {
    str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
    for path in root.rglob("*")
    if path.is_file()
  }


def test_building_twice_gives_the_same_bytes(datasets, built, tmp_path):
  builder.build(datasets, tmp_path)
  assert digests(tmp_path) == digests(built)
  assert sorted(path.name for path in tmp_path.iterdir()) == ["dmax", "imax"]


def test_the_number_of_workers_leaves_no_trace(datasets, tmp_path, monkeypatch):
  monkeypatch.setattr(shards, "IMAGES_PER_SHARD", 16)
  done = []
  one = builder.build(datasets, tmp_path / "one", workers=1)
  two = builder.build(datasets, tmp_path / "two", workers=2, progress=done.append)
  assert two == one
  assert done == [16, 16, 8, 10, 10]
  assert digests(tmp_path / "two") == digests(tmp_path / "one")


def build_here(folder):
  """What a process of its own builds; see the test below."""
  (folder / "files").mkdir()
  group = [selected(folder / "files", n) for n in range(9)]
  odd = dataclasses.replace(group[0].radiograph, image_id="é")
  group[0] = dataclasses.replace(group[0], radiograph=odd)
  splits = {"imax_train": group[:8], "imax_test": group[8:], "dmax_train": group[:3]}
  written = builder.build(Datasets(splits, {}, {}, {}), folder / "data")
  manifest.write(folder / "data", written, {"made/a é.csv": "0" * 64})


def test_hash_seed_locale_and_time_zone_leave_no_trace(tmp_path):
  tests = Path(__file__).parent
  program = (
    f"import sys; sys.path[:0] = [{str(tests)!r}, {str(tests.parent)!r}]\n"
    "import pathlib, test_builder\n"
    "test_builder.build_here(pathlib.Path(sys.argv[1]))\n"
  )
  # An ASCII locale, with which Python opens text files as ASCII.
  plain = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
  settings = [
    {"PYTHONHASHSEED": "1", "TZ": "Asia/Tokyo", **plain},
    {"PYTHONHASHSEED": "2", "TZ": "America/New_York", "LC_ALL": "C.UTF-8"},
  ]
  found = []
  for number, setting in enumerate(settings):
    folder = tmp_path / str(number)
    folder.mkdir()
    subprocess.run(
      [sys.executable, "-c", program, str(folder)],
      check=True,
      env=os.environ | setting,
      cwd=tmp_path if number else tests,
    )
    found.append(digests(folder / "data"))
  assert found[0] == found[1]
  assert len(found[0]) == 2 + 1 + 4 + 2


def test_control_datasets_are_built_where_there_are_some(datasets, tmp_path):
  group = datasets.splits["imax_test"]
  splits = {
    f"{name}_train": group[n:] for n, name in enumerate(("same_images", "core", "imax"))
  }
  builder.build(dataclasses.replace(datasets, splits=splits), tmp_path)
  for name, want in splits.items():
    records = builder.open_split(tmp_path, name)
    assert [r.image_id for r in records] == [s.radiograph.image_id for s in want]
  source = tfds.data_source("same_images", data_dir=str(tmp_path), split="train")
  assert len(source) == 10
  with pytest.raises(
    FileNotFoundError, match="no split 'imax_test'; there are core_train"
  ):
    builder.open_split(tmp_path, "imax_test")


def test_images_are_resized_when_asked(datasets, tmp_path):
  builder.build(datasets, tmp_path, image_px=16)
  for name, group in datasets.splits.items():
    for record, want in zip(builder.open_split(tmp_path, name), group, strict=True):
      original = Path(want.radiograph.path).read_bytes()
      # Resized then, or now: the model sees the same pixels.
      stored = images.to_pixels(record.image, 16, 1)
      np.testing.assert_array_equal(stored, images.to_pixels(original, 16, 1))
      assert images.decode(record.image).shape == (16, 16)


def test_many_images_go_to_several_files(datasets, tmp_path, monkeypatch):
  monkeypatch.setattr(shards, "IMAGES_PER_SHARD", 16)
  builder.build(datasets, tmp_path)
  assert len(list(tmp_path.glob("imax/*/imax-train*"))) == 3
  records = builder.open_split(tmp_path, "imax_train")
  assert [record.image_id for record in records] == [f"i{n}" for n in range(40)]


def test_only_the_owner_reads_it(built):
  for folder in (built, built / "imax", built / "dmax"):
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def moved_to(chosen, path):
  radiograph = dataclasses.replace(chosen.radiograph, path=str(path))
  return dataclasses.replace(chosen, radiograph=radiograph)


def whole_shards(folder):
  """The shards that a build which was stopped has left for the next: name -> path."""
  notes = (folder / unfinished.FOLDER).glob("whole/*.json")
  shard = {note.name.removesuffix(".json") for note in notes}
  return {p.name: p for p in folder.rglob("*.array_record-*") if p.name in shard}


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("damage", ["missing", "cut", "text"])
def test_a_bad_image_is_named_and_leaves_no_dataset(
  datasets, built, tmp_path, damage, workers
):
  path = tmp_path / "bad.png"
  whole = encode(Image.fromarray(picture(0, (200, 200))))
  if damage != "missing":
    path.write_bytes(whole[:5000] if damage == "cut" else b"no image")
  group = list(datasets.splits["dmax_train"])
  group[6] = moved_to(group[6], path)
  broken = dataclasses.replace(datasets, splits=datasets.splits | {"dmax_train": group})
  with pytest.raises(DamagedImages, match=r"1 image cannot.*\n.*bad\.png: ") as error:
    builder.build(broken, tmp_path / "data", workers=workers)
  assert list(error.value.reasons) == ["i56"]
  assert "Clear." not in str(error.value)
  assert os.listdir(tmp_path / "data") == [unfinished.FOLDER]
  assert stat.S_IMODE((tmp_path / "data" / unfinished.FOLDER).stat().st_mode) == 0o700
  assert builder.splits_of(tmp_path / "data") == []
  # Nothing stands in the way of the next try, and nothing is left by it.
  builder.build(datasets, tmp_path / "data")
  assert digests(tmp_path / "data") == digests(built)
  assert sorted(os.listdir(tmp_path / "data")) == ["dmax", "imax"]


@pytest.mark.parametrize("workers", [1, 2])
def test_all_bad_images_are_told(datasets, tmp_path, monkeypatch, workers):
  monkeypatch.setattr(shards, "IMAGES_PER_SHARD", 8)
  (tmp_path / "text.png").write_text("A secret sentence.")
  (tmp_path / "cut.png").write_bytes(encode(Image.fromarray(picture(0)))[:300])
  (tmp_path / "folder.png").mkdir()
  bad = {
    "i2": ("text.png", "expected a whole PNG or JPEG, got 18 bytes"),
    "i7": ("absent.png", "image file absent"),
    "i30": ("cut.png", "expected a whole PNG or JPEG, got 300 bytes"),
    "i49": ("folder.png", "image file cannot be read (Is a directory)"),
    "i50": ("text.png/x.png", "image file absent"),
  }
  splits = {
    name: [
      moved_to(chosen, tmp_path / bad[image][0]) if image in bad else chosen
      for chosen in group
      if (image := chosen.radiograph.image_id)
    ]
    for name, group in datasets.splits.items()
  }
  splits["same_images_train"] = splits["imax_train"][:3]  # an image in two splits
  done = []
  with pytest.raises(DamagedImages, match="^5 images cannot be read") as error:
    builder.build(
      dataclasses.replace(datasets, splits=splits),
      tmp_path / "data",
      workers=workers,
      progress=done.append,
    )
  assert error.value.reasons.keys() == bad.keys()
  for image, (file, reason) in bad.items():
    assert error.value.reasons[image].startswith(reason)
    assert error.value.files[image] == str(tmp_path / file)
    assert str(tmp_path) not in error.value.reasons[image]
  told = str(error.value).splitlines()
  assert len(told) == 5 and told[-1] == "  … and 2 more"
  assert "secret" not in "".join(traceback.format_exception(error.value))
  # The good shards are whole, and stay.
  assert done == [8] * 4 + [2]
  assert len(whole_shards(tmp_path / "data")) == 5
  copy = pickle.loads(pickle.dumps(error.value))
  assert (copy.reasons, str(copy)) == (error.value.reasons, str(error.value))


def test_the_machines_faults_are_no_damaged_images(datasets, tmp_path, monkeypatch):
  (shard, *_) = shards.plan({"imax_test": datasets.splits["imax_test"]})
  for code in (errno.EMFILE, errno.ESTALE):

    def read(path, code=code):
      raise OSError(code, os.strerror(code), path)

    with pytest.raises(OSError, match=os.strerror(code)):
      shards.write_shard(shard, tmp_path, lambda data, name: data, read)

  def store(data, name):
    raise ValueError(f"{name}: needs pydicom 3") from ImportError("pydicom")

  with pytest.raises(ValueError, match="needs pydicom") as error:
    shards.write_shard(shard, tmp_path, store)
  assert not isinstance(error.value, DamagedImages)

  class Full:
    def __init__(self, path, options):
      pass

    def write(self, example):
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self):
      pass

  monkeypatch.setattr(shards, "ArrayRecordWriter", Full)
  with pytest.raises(OSError, match="No space left") as error:
    builder.build(datasets, tmp_path / "full")
  assert os.listdir(tmp_path / "full") == []


class Deadly:
  """Kills the process that unpickles it."""

  def __reduce__(self):
    return os._exit, (1,)


def test_a_killed_worker_is_an_error_that_says_what_to_do(datasets, tmp_path):
  group = [*datasets.splits["imax_test"], Deadly()]
  splits = {"imax_train": group, "imax_test": group}
  with pytest.raises(ValueError, match="one of 2 writing processes was killed"):
    builder.build(dataclasses.replace(datasets, splits=splits), tmp_path, workers=2)
  assert list(tmp_path.iterdir()) == []


def test_an_entry_that_does_not_fit_is_not_shown(datasets, tmp_path):
  group = datasets.splits["imax_test"]
  entry = dataclasses.replace(group[0].entries[0], answer="Clear. \ud800")
  bad = dataclasses.replace(group[0], entries=(entry,))
  splits = {"imax_train": [bad]}
  with pytest.raises(ValueError, match="image i40: its entries do not fit") as error:
    builder.build(dataclasses.replace(datasets, splits=splits), tmp_path)
  assert "Clear" not in str(error.value)
  assert error.value.__cause__ is None and error.value.__suppress_context__


def test_mistakes_are_named(datasets, built, tmp_path):
  with pytest.raises(ValueError, match="already there"):
    builder.build(datasets, built)
  empty = dataclasses.replace(datasets, splits=datasets.splits | {"imax_test": []})
  with pytest.raises(ValueError, match="imax_test has no image"):
    builder.build(empty, tmp_path)
  other = dataclasses.replace(datasets, splits={"zmax_train": []})
  with pytest.raises(ValueError, match="split 'zmax_train'"):
    builder.build(other, tmp_path)
  with pytest.raises(ValueError, match="split 'train'"):
    builder.open_split(built, "train")
  with pytest.raises(FileNotFoundError, match="build the data first"):
    builder.open_split(tmp_path, "imax_train")


# ── Stopped, and gone on with ─────────────────────────────────────────────────────


class Stop:
  """A `progress` that stops the build, like Ctrl-C, at its n-th call."""

  def __init__(self, calls):
    self.calls = calls

  def __call__(self, count):
    self.calls -= 1
    if not self.calls:
      raise KeyboardInterrupt


def identity(path):
  """Another for a file that was written again, be it with the same bytes."""
  return path.stat().st_ino, path.stat().st_mtime_ns


@pytest.fixture
def stopped(datasets, tmp_path, monkeypatch):
  """The folder of a build that was stopped after 3 shards of 5, and their identities."""
  monkeypatch.setattr(shards, "IMAGES_PER_SHARD", 16)
  folder = tmp_path / "data"
  with pytest.raises(KeyboardInterrupt):
    builder.build(datasets, folder, progress=Stop(3))
  left = {name: identity(path) for name, path in whole_shards(folder).items()}
  assert [name[-14:] for name in sorted(left)] == [
    f"0000{n}-of-00003" for n in range(3)
  ]
  return folder, left


def rewritten(folder, left):
  """Which of the shards that a build had left, by number, another wrote again."""
  now = {path.name: path for path in folder.rglob("*.array_record-*")}
  return [n for n, name in enumerate(sorted(left)) if identity(now[name]) != left[name]]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_stopped_build_goes_on(datasets, tmp_path, stopped, workers):
  folder, left = stopped
  assert unfinished.is_left_in(folder)
  assert builder.splits_of(folder) == []
  done = []
  want = builder.build(datasets, tmp_path / "want")
  got = builder.build(datasets, folder, workers=workers, progress=done.append)
  assert got == want
  assert done == [16, 16, 8, 10, 10]
  assert rewritten(folder, left) == []
  assert digests(folder) == digests(tmp_path / "want")
  assert sorted(os.listdir(folder)) == ["dmax", "imax"]
  assert not unfinished.is_left_in(folder)
  with pytest.raises(ValueError, match="already there"):
    builder.build(datasets, folder)


def test_what_is_left_is_counted_before_anything_is_written(datasets, stopped):
  folder, _ = stopped
  done = []

  def count(images):
    done.append(images)
    assert len(whole_shards(folder)) == max(3, len(done))

  builder.build(datasets, folder, progress=count)
  assert len(done) == 5


def test_it_can_be_stopped_at_every_shard(datasets, tmp_path, monkeypatch):
  monkeypatch.setattr(shards, "IMAGES_PER_SHARD", 16)
  for calls in range(1, 6):
    with pytest.raises(KeyboardInterrupt):
      builder.build(datasets, tmp_path / "data", progress=Stop(calls))
    assert len(whole_shards(tmp_path / "data")) == calls
  builder.build(datasets, tmp_path / "data")
  builder.build(datasets, tmp_path / "want")
  assert digests(tmp_path / "data") == digests(tmp_path / "want")


def test_a_stopped_build_leaves_no_process(datasets, tmp_path, monkeypatch):
  monkeypatch.setattr(shards, "IMAGES_PER_SHARD", 16)
  with pytest.raises(KeyboardInterrupt) as stopped:
    builder.build(datasets, tmp_path, workers=2, progress=Stop(1))
  assert stopped.value.__traceback__ is not None  # which holds all that is not closed
  assert multiprocessing.active_children() == []
  assert not list(tmp_path.rglob("*.part"))


def spoil(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


@pytest.mark.parametrize(
  "change", ["bytes", "cut", "note", "no note", "image", "entry", "pixels", "absent"]
)
def test_a_shard_that_does_not_fit_is_written_again(
  datasets, tmp_path, stopped, change
):
  folder, left = stopped
  second = whole_shards(folder)[sorted(left)[1]]
  note = folder / unfinished.FOLDER / "whole" / f"{second.name}.json"
  group, options = list(datasets.splits["imax_train"]), {}
  if change == "bytes":
    spoil(second)
  if change == "cut":
    os.truncate(second, 100)
  if change == "note":
    note.write_text(note.read_text()[:-100])
  if change == "no note":
    note.unlink()
  if change == "absent":
    second.unlink()
  if change == "image":
    path = tmp_path / "same.png"
    path.write_bytes(Path(group[20].radiograph.path).read_bytes())
    group[20] = moved_to(group[20], path)
    again = dataclasses.replace(
      datasets, splits=datasets.splits | {"imax_train": group}
    )
    with pytest.raises(KeyboardInterrupt):
      builder.build(again, folder, progress=Stop(3))
    left = {name: identity(path) for name, path in whole_shards(folder).items()}
    path.write_bytes(encode(Image.fromarray(picture(99))))
  if change == "entry":
    entry = dataclasses.replace(group[20].entries[0], answer="Another.")
    group[20] = dataclasses.replace(group[20], entries=(entry,))
  if change == "pixels":
    options = {"image_px": 16}
  changed = dataclasses.replace(
    datasets, splits=datasets.splits | {"imax_train": group}
  )
  builder.build(changed, folder, **options)
  builder.build(changed, tmp_path / "want", **options)
  assert rewritten(folder, left) == ([0, 1, 2] if change == "pixels" else [1])
  assert digests(folder) == digests(tmp_path / "want")
  assert sorted(os.listdir(folder)) == ["dmax", "imax"]


def test_strays_are_removed_and_fewer_images_leave_no_shard_over(
  datasets, tmp_path, stopped
):
  folder, _ = stopped
  work = folder / unfinished.FOLDER
  (work / "exchange-1").mkdir()
  (work / "exchange-1" / "0.plan").write_text("A sentence.")
  (work / "imax" / shards.VERSION / ".x.array_record-0.abcd.part").write_text("half")
  (work / "imax" / shards.VERSION / "dataset_info.json").write_text("{}")
  fewer = dataclasses.replace(
    datasets,
    splits=datasets.splits | {"imax_train": datasets.splits["imax_train"][:32]},
  )
  seen = []

  def look(count):
    seen.append({path.name for path in work.rglob("*") if path.is_file()})

  builder.build(fewer, folder, progress=look)
  assert len(seen[0]) == 2  # a shard of the two that there are now, and its note
  builder.build(fewer, tmp_path / "want")
  assert digests(folder) == digests(tmp_path / "want")
  assert sorted(os.listdir(folder)) == ["dmax", "imax"]


@pytest.mark.parametrize("where", ["moving", "finish"])
def test_stopped_at_the_very_end_it_goes_on(
  datasets, tmp_path, stopped, monkeypatch, where
):
  folder, left = stopped
  rename = Path.rename

  def stop(path, target):
    if path.name == "dmax":
      raise KeyboardInterrupt
    return rename(path, target)

  def finish(written):
    assert {path.name for path in folder.iterdir()} >= {"dmax", "imax"}
    manifest.write(folder, written, {})
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    if where == "moving":
      patch.setattr(Path, "rename", stop)
    with pytest.raises(KeyboardInterrupt):
      builder.build(datasets, folder, finish=finish)
  assert unfinished.is_left_in(folder)
  assert (folder / "imax").exists()
  done = []
  written = builder.build(datasets, folder, progress=done.append)
  assert done == [16, 16, 8, 10, 10]
  assert rewritten(folder, left) == []
  manifest.write(folder, written, {})
  written = builder.build(
    datasets,
    tmp_path / "want",
    finish=lambda written: manifest.write(tmp_path / "want", written, {}),
  )
  assert digests(folder) == digests(tmp_path / "want")
  assert manifest.verify(folder) == []
  assert sorted(os.listdir(folder)) == sorted(os.listdir(tmp_path / "want"))


def sleep_here(folder):
  """Two processes that are long at work; see the test below."""

  plan = [folder / str(number) for number in range(200)]
  for _ in shards.in_processes(sleep, plan, 2):
    pass


def sleep(path):
  path.write_text(str(os.getpid()) + " " * 100_000)
  time.sleep(60)


@pytest.mark.parametrize("when", ["starting", "at work"])
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_ctrl_c_ends_all_processes_soon_and_in_silence(tmp_path, how, when):
  tests = Path(__file__).parent
  program = (
    f"import sys; sys.path[:0] = [{str(tests)!r}, {str(tests.parent)!r}]\n"
    "import pathlib, signal, test_builder\n"
    # Ignored where the tests themselves run in the background of a shell.
    "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    "print('imported', flush=True)\n"
    "test_builder.sleep_here(pathlib.Path(sys.argv[1]))\n"
  )
  process = subprocess.Popen(
    [sys.executable, "-c", program, str(tmp_path)],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    start_new_session=True,
  )
  assert process.stdout.readline() == "imported\n"
  time.sleep(0.5)
  while when == "at work" and len(list(tmp_path.iterdir())) < 2:
    time.sleep(0.1)
  start = time.perf_counter()
  if how == signal.SIGINT:
    os.killpg(process.pid, how)  # as a terminal does
  else:
    process.kill()
  # To the end of the workers, who have the same standard error.
  _, told = process.communicate(timeout=30)
  assert time.perf_counter() - start < 20
  if how == signal.SIGINT:
    assert told.count("Traceback") == 1, told
    assert told.rstrip().endswith("KeyboardInterrupt"), told
  else:
    assert "Traceback" not in told, told


# ── The manifest ──────────────────────────────────────────────────────────────────


@pytest.fixture
def listed(datasets, tmp_path):
  folder = tmp_path / "listed"
  written = builder.build(datasets, folder)
  manifest.write(folder, written, {"made/f.csv": "0" * 64})
  (folder / "statistics.json").write_text("{}")  # no part of the dataset
  return folder


def test_the_manifest_lists_inputs_shards_and_images(datasets, listed):
  content = manifest.read(listed)
  assert content["inputs"] == {"made/f.csv": "0" * 64}
  name = f"imax/{shards.VERSION}/imax-train.array_record-00000-of-00001"
  data = (listed / name).read_bytes()
  assert content["shards"][name] == {
    "bytes": len(data), "examples": 40, "sha256": hashlib.sha256(data).hexdigest()
  }  # fmt: skip
  assert len(content["shards"]) == 3
  assert f"imax/{shards.VERSION}/dataset_info.json" in content["metadata"]
  lines = (listed / "images.sha256").read_text().splitlines()
  assert lines == sorted(lines, key=lambda line: line[66:])
  want = {
    s.radiograph.image_id: Path(s.radiograph.path).read_bytes()
    for group in datasets.splits.values()
    for s in group
  }
  assert {line[66:]: line[:64] for line in lines} == {
    image: hashlib.sha256(data).hexdigest() for image, data in want.items()
  }
  assert content["images"]["count"] == len(lines) == 60
  assert str(listed) not in (listed / "manifest.json").read_text()


def test_verify_tells_what_differs(listed):
  assert manifest.verify(listed) == []
  stem = f"imax/{shards.VERSION}/imax"
  train = listed / f"{stem}-train.array_record-00000-of-00001"
  data = bytearray(train.read_bytes())
  data[len(data) // 2] ^= 1
  train.write_bytes(data)
  (listed / f"{stem}-test.array_record-00000-of-00001").unlink()
  (listed / f"{stem}-train.array_record-00001-of-00002").write_bytes(b"")
  (listed / "core").mkdir()
  (listed / "core" / "core-train.array_record-00000-of-00001").write_bytes(b"")
  (listed / "images.sha256").write_text("")
  assert manifest.verify(listed) == [
    "core/core-train.array_record-00000-of-00001: not in the manifest",
    "images.sha256: changed",
    f"{stem}-test.array_record-00000-of-00001: missing",
    f"{stem}-train.array_record-00000-of-00001: changed",
    f"{stem}-train.array_record-00001-of-00002: not in the manifest",
  ]


def test_a_file_that_is_no_manifest_is_named(listed, built):
  with pytest.raises(FileNotFoundError, match="no manifest here"):
    manifest.verify(built)
  for text in ("", "[]", "{}", '{"format": 2, "images": {"sha256": ""}}'):
    (listed / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match=r"manifest\.json: expected a manifest"):
      manifest.verify(listed)


def test_an_image_that_changed_during_the_build_is_named(tmp_path):
  infos = [
    manifest.ShardInfo(f"imax/1.1.0/{n}", 1, 1, 1, "0" * 64, {"i7": str(n)})
    for n in range(2)
  ]
  with pytest.raises(ValueError, match="'i7': its file differs from shard to shard"):
    manifest.write(tmp_path, infos, {})


# ── Targets as JSON ───────────────────────────────────────────────────────────────

FLOATS = st.floats(allow_nan=False)
TEXTS = st.text()
STRATEGIES = st.one_of(
  st.builds(Ratio, FLOATS),
  st.builds(Report, TEXTS),
  st.builds(Grade, TEXTS, st.lists(TEXTS).map(tuple)),
  st.builds(Bits, st.lists(st.integers(0, 1)).map(tuple), st.lists(TEXTS).map(tuple)),
  st.builds(Region, TEXTS, st.tuples(FLOATS, FLOATS, FLOATS, FLOATS)),
  st.builds(Answer, TEXTS, st.lists(TEXTS).map(tuple), TEXTS),
)


@given(STRATEGIES)
def test_targets_survive_json_exactly(target):
  assert entries.target_from_json(entries.target_to_json(target)) == target


@pytest.mark.parametrize(
  "text", ["", "[]", "3", '{"kind": "Secret"}', '{"kind": "Ratio", "secret": 1}', "{}"]
)
def test_json_that_is_no_target_is_refused_unseen(text):
  with pytest.raises(ValueError, match="expected an object") as error:
    entries.target_from_json(text)
  assert "ecret" not in str(error.value)


# ── Images ────────────────────────────────────────────────────────────────────────


def test_grey_images_decode_to_their_pixels():
  grey = picture(1)
  np.testing.assert_array_equal(images.decode(encode(Image.fromarray(grey))), grey)
  np.testing.assert_array_equal(images.decode(images.encode_png(grey)), grey)


def test_colour_palette_alpha_and_bilevel_become_grey():
  grey = Image.fromarray(picture(2))
  for mode in ("RGB", "RGBA", "LA", "P", "CMYK"):
    kind = "TIFF" if mode == "CMYK" else "PNG"
    got = images.decode(encode(grey.convert(mode), kind))
    assert got.dtype == np.uint8
    np.testing.assert_allclose(got.astype(int), np.asarray(grey).astype(int), atol=1)
  assert set(np.unique(images.decode(encode(grey.convert("1"))))) == {0, 255}


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_sixteen_bit_containers_keep_their_range(bits):
  values = np.linspace(0, 2**bits - 1, 600).astype(np.uint16).reshape(20, 30)
  got = images.decode(encode(Image.fromarray(values)))
  np.testing.assert_array_equal(got, values >> (bits - 8))
  assert (got.min(), got.max()) == (0, 255)


def test_to_pixels_stretches_and_repeats():
  grey = picture(3, (10, 40))
  got = images.to_pixels(images.encode_png(grey), 16, 3)
  assert got.shape == (16, 16, 3)
  want = Image.fromarray(grey).resize((16, 16), Image.Resampling.BICUBIC)
  for channel in range(3):
    np.testing.assert_array_equal(got[:, :, channel], np.asarray(want))


def test_what_is_stored_is_eight_bit_grey():
  jpeg = encode(Image.fromarray(picture(4)), "JPEG")
  assert images.to_stored(jpeg, None) == jpeg
  deep = encode(Image.fromarray(picture(4).astype(np.uint16) * 257))
  colour = encode(Image.fromarray(picture(4)).convert("RGB"))
  for data in (deep, colour):
    stored = images.to_stored(data, None)
    assert Image.open(io.BytesIO(stored)).mode == "L"
    np.testing.assert_array_equal(images.decode(stored), picture(4))


WHOLE = [encode(Image.fromarray(picture(5)), kind) for kind in ("PNG", "JPEG")]


@given(st.sampled_from(WHOLE), st.data())
def test_damaged_files_raise_only_value_errors(whole, data):
  cut = data.draw(st.integers(0, len(whole)))
  noise = data.draw(st.binary(max_size=40))
  try:
    grey = images.decode(whole[:cut] + noise + whole[cut + len(noise) :])
  except ValueError as error:
    told = str(error)
  else:
    assert grey.ndim == 2
    return
  assert "expected a whole PNG or JPEG" in told


def test_an_unreadable_image_is_named():
  with pytest.raises(ValueError, match=r"^p10/x\.jpg: .*Copy the file again"):
    images.to_pixels(b"", 8, 1, name="p10/x.jpg")


# ── LLaVA-style JSONL ─────────────────────────────────────────────────────────────


def test_jsonl_round_trip(built, tmp_path):
  records = [
    dataclasses.replace(record, image_id=f"a/{record.image_id} é")
    for record in builder.open_split(built, "imax_test")
  ]
  records = [
    dataclasses.replace(
      record,
      entries=tuple(
        dataclasses.replace(entry, image_id=record.image_id) for entry in record.entries
      ),
    )
    for record in records
  ]
  path, folder = tmp_path / "out" / "x.jsonl", tmp_path / "out" / "images"
  count = interchange.export_jsonl(records, path, folder)
  lines = path.read_text().splitlines()
  assert count == len(lines) == sum(len(record.entries) for record in records)
  assert list(interchange.import_jsonl(path, folder)) == records
  assert isinstance(records[0], ImageRecord)

  line, entry = json.loads(lines[0]), records[0].entries[0]
  assert line["id"] == entry.id
  assert (folder / line["image"]).read_bytes() == records[0].image
  assert line["conversations"] == [
    {"from": "human", "value": f"<image>\n{entry.prompt}"},
    {"from": "gpt", "value": entry.answer},
  ]
  assert (line["task"], line["subtask"]) == (entry.task, entry.subtask)
  assert stat.S_IMODE(path.stat().st_mode) == 0o600
  assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize("change", ["cut", "task", "kind", "image"])
def test_a_bad_line_is_named_and_not_shown(built, tmp_path, change):
  records = builder.open_split(built, "imax_test")[:1]
  path = tmp_path / "x.jsonl"
  interchange.export_jsonl(records, path, tmp_path / "images")
  line = json.loads(path.read_text().splitlines()[0])
  if change == "task":
    del line["task"]
  if change == "kind":
    line["target"] = json.dumps({"kind": "Other"})
  if change == "image":
    line |= {"image": "../x.png", "images": ["../x.png"]}
  text = json.dumps(line)
  path.write_text(text[:-9] if change == "cut" else text)
  with pytest.raises(ValueError, match=r"x\.jsonl line 1: expected|outside") as error:
    list(interchange.import_jsonl(path, tmp_path / "images"))
  assert "Based on" not in str(error.value)
