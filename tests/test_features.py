"""Features on disk are the encoder's, or an error; none is made twice."""

from __future__ import annotations

import concurrent.futures
import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import phantom
from imax_jax import encoder as encoder_lib
from imax_jax import experiment
from imax_jax import feed
from imax_jax.data import features
from imax_jax.data.features import Features
from imax_jax.data.features import Store
from imax_jax.models import vlm
from imax_jax.study import SPLITS
from imax_jax.study import Study
from imax_jax.study import UsageError
from imax_jax.tree import merge

ROOT = Path(__file__).parent.parent
SHAPE = (16, 1024)
ENCODER = "ab" * 32
RNG = np.random.default_rng(0)


def image(number: int) -> str:
  return hashlib.sha256(bytes([number])).hexdigest()


IMAGES = [image(number) for number in range(12)]
ROWS = RNG.standard_normal((12, *SHAPE)).astype(features.DTYPE)


class Encoder:
  """Gives `rows` of the places asked for, and remembers them."""

  def __init__(self, rows: np.ndarray = ROWS, most: int = 10**9) -> None:
    self.rows, self.most = rows, most
    self.asked: list[int] = []

  def __call__(self, places: Sequence[int]) -> np.ndarray:
    if len(self.asked) + len(places) > self.most:
      raise KeyboardInterrupt
    self.asked += places
    return self.rows[list(places)]


def fill(store: Store, encode: Encoder, images: Sequence[str] = IMAGES) -> int:
  return store.fill(images, encode, at_once=2, progress=lambda done, total: None)


def made(folder: Path) -> Store:
  store = Store(folder, ENCODER, SHAPE)
  fill(store, Encoder())
  return store


def bits(array: np.ndarray) -> np.ndarray:
  return array.view(np.uint16 if array.dtype == features.DTYPE else np.uint32)


def test_every_bfloat16_comes_back_bit_for_bit(tmp_path: Path) -> None:
  """All 65,536: zeros of both signs, subnormals, infinities and every NaN."""
  rows = np.arange(2**16, dtype=np.uint16).view(features.DTYPE).reshape(1, 256, 256)
  store = Store(tmp_path, ENCODER, (256, 256))
  fill(store, Encoder(rows), IMAGES[:1])
  store.missing(IMAGES[:1])
  np.testing.assert_array_equal(bits(store.read(IMAGES[0])), bits(rows[0]))
  # As float32 they are the same numbers: the other 16 bits are zeros.
  wide = Features(store, IMAGES[:1])[0]
  numbers = ~np.isnan(rows[0].astype(np.float32))
  found = bits(wide)[numbers]
  np.testing.assert_array_equal(found, bits(rows[0])[numbers].astype(np.uint32) << 16)


def test_a_list_of_images_is_read_in_any_order(tmp_path: Path) -> None:
  store = made(tmp_path)
  order = [5, 0, 11, 5]
  found = Features(store, [IMAGES[i] for i in order])
  assert len(found) == 4 and found.dtype == found[0].dtype == np.float32
  np.testing.assert_array_equal(found[np.arange(4)], ROWS[order].astype(np.float32))
  with pytest.raises(ValueError, match="no features of 1 images; run the verb encode"):
    Features(store, [IMAGES[0], image(99)])
  with pytest.raises(ValueError, match=f"no features of image {image(99)[:12]}"):
    store.read(image(99))


# ── Built once ────────────────────────────────────────────────────────────────────


def test_equal_images_are_encoded_once(tmp_path: Path) -> None:
  store, encode = Store(tmp_path, ENCODER, SHAPE), Encoder()
  assert fill(store, encode, [IMAGES[i] for i in (0, 1, 0, 2, 1)]) == 3
  assert encode.asked == [0, 1, 3]
  # Another split, in which two of three are known.
  assert fill(store, encode, [IMAGES[i] for i in (2, 3, 0)]) == 1
  assert encode.asked == [0, 1, 3, 1]
  assert fill(store, encode, IMAGES[:4]) == 0


def test_a_stopped_build_goes_on_from_its_shards(
  tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  monkeypatch.setattr(features, "IMAGES_PER_SHARD", 4)
  with pytest.raises(KeyboardInterrupt):
    fill(Store(tmp_path, ENCODER, SHAPE), Encoder(most=10))
  assert len(list(tmp_path.glob("*.index"))) == 2
  assert not list(tmp_path.glob(".*.part"))
  again, store = Encoder(), Store(tmp_path, ENCODER, SHAPE)
  assert fill(store, again) == 4
  assert again.asked == [8, 9, 10, 11]
  np.testing.assert_array_equal(
    Features(store, IMAGES)[np.arange(12)], ROWS.astype(np.float32)
  )


SLOW = """
import sys, time
from pathlib import Path
import numpy as np
from imax_jax.data import features
folder, shard = Path(sys.argv[1]), int(sys.argv[2])
features.IMAGES_PER_SHARD = shard
images = sys.argv[3:]
def encode(places):
  print(*places, flush=True)
  time.sleep(0.02)
  rows = [np.full((16, 1024), place, features.DTYPE) for place in places]
  return np.stack(rows)
store = features.Store(folder, "ab" * 32, (16, 1024))
store.fill(images, encode, at_once=2, progress=lambda done, total: None)
time.sleep(60)  # for the kill to come
"""


def test_a_killed_build_goes_on_from_its_shards(tmp_path: Path) -> None:
  """kill -9 after 1, 2, … groups: what a finished shard holds is not encoded again."""
  images = [image(number) for number in range(24)]
  kills, kept = 0, []
  for after in (1, 2, 3, 5, 8, 10):
    folder = tmp_path / str(after)
    command = [sys.executable, "-c", SLOW, str(folder), "4", *images]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as run:
      assert run.stdout is not None
      for _ in range(after):
        run.stdout.readline()
      run.send_signal(signal.SIGKILL)
    assert run.returncode == -signal.SIGKILL
    kills += 1
    store = Store(folder, ENCODER, SHAPE)
    left = store.missing(images)
    kept.append(24 - len(left))
    # Whatever groups it went on with before the signal came.
    assert kept[-1] % 4 == 0 and kept[-1] >= 4 * ((after - 1) // 2)
    rows = np.stack([np.full(SHAPE, n, features.DTYPE) for n in range(24)])
    again = Encoder(rows)
    fill(store, again, images)
    assert again.asked == left
    found = Features(store, images)[np.arange(24)]
    np.testing.assert_array_equal(found, rows.astype(np.float32))
    assert not list(folder.glob(".*.part"))
    shards = {path.stem for path in folder.glob("*.array_record")}
    assert shards == {path.stem for path in folder.glob("*.index")}
  print(f"{kills} of {kills} kills: went on; images kept of 24: {kept}")
  assert max(kept) >= 16


def test_two_builds_of_one_folder_encode_nothing_twice(tmp_path: Path) -> None:
  inside, go_on = threading.Event(), threading.Event()
  first, second = Encoder(), Encoder()

  def slow(places: Sequence[int]) -> np.ndarray:
    inside.set()
    assert go_on.wait(30)
    return first(places)

  def build(encode: Any) -> int:
    store = Store(tmp_path, ENCODER, SHAPE)
    return store.fill(IMAGES, encode, at_once=2, progress=lambda done, total: None)

  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    one = pool.submit(build, slow)
    assert inside.wait(30)
    other = pool.submit(build, second)
    time.sleep(0.2)  # it waits, or would begin
    go_on.set()
    assert (one.result(), other.result()) == (12, 0)
  assert (len(first.asked), second.asked) == (12, [])


def test_threads_read_what_was_written(tmp_path: Path) -> None:
  found = Features(made(tmp_path), IMAGES)
  order = RNG.integers(0, 12, 2000)
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    rows = pool.map(
      lambda i: np.array_equal(found[i], ROWS[i].astype(np.float32)), order
    )
    assert all(rows)


# ── Damage ────────────────────────────────────────────────────────────────────────


def damages(data: bytes, flips: int) -> list[bytes | None]:
  """Of a file: bits flipped, ends cut off, and None: it is gone."""
  found: list[bytes | None] = [None]
  found += [data[:cut] for cut in np.linspace(0, len(data) - 1, 20).astype(int)]
  rng = np.random.default_rng(1)
  for bit in rng.choice(8 * len(data), flips, replace=False):
    flipped = bytearray(data)
    flipped[bit // 8] ^= 1 << (bit % 8)
    found.append(bytes(flipped))
  return found


def put(path: Path, data: bytes | None) -> None:
  path.unlink(missing_ok=True)
  if data is not None:
    path.write_bytes(data)


def refusal(folder: Path) -> str:
  """What reading all images says; "" if all their features are as they were written."""
  try:
    kept = Features(Store(folder, ENCODER, SHAPE), IMAGES)
    found = [kept[number] for number in range(12)]
  except ValueError as error:
    return str(error)
  np.testing.assert_array_equal(np.stack(found), ROWS.astype(np.float32))
  return ""


def test_damage_of_a_shard_is_found(tmp_path: Path) -> None:
  """By the verb's check in every case; by reading wherever a feature would change."""
  made(tmp_path)
  [shard], [index] = tmp_path.glob("*.array_record"), tmp_path.glob("*.index")
  good, entry = shard.read_bytes(), index.read_bytes()
  cases, flips = damages(good, 400), 400
  found = refused = 0
  for damaged in cases:
    put(shard, damaged)
    said = refusal(tmp_path)
    refused += bool(said)
    assert not said or (str(shard) in said and "run the verb encode" in said)
    store = Store(tmp_path, ENCODER, SHAPE)
    found += store.check()
    assert len(store.missing(IMAGES)) == 12  # all to be encoded again
    put(shard, good)
    put(index, entry)
  harmless = len(cases) - refused
  print(
    f"{found} of {len(cases)} damages of a shard found by encode; {refused} refused on "
    f"reading, {harmless} were of padding and changed no feature"
  )
  assert found == len(cases)
  padding = 1 - ROWS.nbytes / len(good)
  assert harmless <= 1.5 * padding * flips
  assert Store(tmp_path, ENCODER, SHAPE).check() == 0


def test_damage_of_an_index_is_found(tmp_path: Path) -> None:
  made(tmp_path)
  [shard], [index] = tmp_path.glob("*.array_record"), tmp_path.glob("*.index")
  good, entry = shard.read_bytes(), index.read_bytes()
  cases = damages(entry, 800)
  found = 0
  for damaged in cases:
    put(index, damaged)
    with pytest.raises(ValueError, match="encode"):
      Features(Store(tmp_path, ENCODER, SHAPE), IMAGES)
    found += 1
    store = Store(tmp_path, ENCODER, SHAPE)
    assert store.check() == (damaged is not None)
    assert len(store.missing(IMAGES)) == 12
    put(shard, good)
    put(index, entry)
  print(f"{found} of {len(cases)} damages of an index found")
  Features(Store(tmp_path, ENCODER, SHAPE), IMAGES)


def test_damage_under_an_open_store_is_found(tmp_path: Path) -> None:
  """Its size was looked at before: the record's own hash is all there is."""
  found = Features(made(tmp_path), IMAGES)
  [shard] = tmp_path.glob("*.array_record")
  data = shard.read_bytes()
  place = data.index(ROWS[7].tobytes()[:64])
  with shard.open("r+b") as file:  # the same file, which may be open
    file.seek(place + 9)
    file.write(bytes([data[place + 9] ^ 16]))
  for number in {*range(12)} - {7}:
    np.testing.assert_array_equal(found[number], ROWS[number].astype(np.float32))
  words = f"{shard}: the record of image {IMAGES[7][:12]}… "
  with pytest.raises(ValueError, match=words):
    found[7]


def test_features_of_another_encoder_are_refused(tmp_path: Path) -> None:
  made(tmp_path)
  other = "cd" * 32
  store = Store(tmp_path, other, SHAPE)
  for look in (
    lambda: store.missing(IMAGES),
    store.check,
    lambda: fill(store, Encoder()),
  ):
    with pytest.raises(
      ValueError, match="encoder abababababab…, expected cdcd.*move it"
    ):
      look()
  # A shard whose index says something else: each record knows whose it is.
  [index] = tmp_path.glob("*.index")
  facts = features.load(index, "")
  features.save(index, facts | {"encoder": other})
  with pytest.raises(
    ValueError, match="encoder abababababab…, .*expected encoder cdcd"
  ):
    Features(store, IMAGES)[0]
  features.save(index, facts | {"images": IMAGES[::-1]})
  with pytest.raises(ValueError, match=f"is of image {IMAGES[11][:12]}…"):
    Features(Store(tmp_path, ENCODER, SHAPE), IMAGES)[0]


def test_an_encoder_is_known_by_its_values() -> None:
  fields = {"image_px": 32, "dtype": "float32", "remat": False, "unroll": 1}
  weights = {"a": np.ones((3, 2), np.float32), "b": np.float32(1)}
  key = features.encoder_key(fields, weights)
  assert len(key) == 64
  assert features.encoder_key(fields | {"remat": True, "unroll": 4}, weights) == key
  assert features.encoder_key(fields, dict(reversed(weights.items()))) == key
  nudged = weights["a"].copy()
  nudged[2, 1] = np.nextafter(np.float32(1), np.float32(2))
  others = [
    features.encoder_key(fields | {"image_px": 64}, weights),
    features.encoder_key(fields | {"dtype": "bfloat16"}, weights),
    features.encoder_key(fields, weights | {"a": nudged}),
    features.encoder_key(fields, weights | {"a": weights["a"].reshape(2, 3)}),
    features.encoder_key(fields, {"a": weights["a"], "c": weights["b"]}),
  ]
  assert len({key, *others}) == 6


def test_a_full_disk_is_told(tmp_path: Path) -> None:
  script = (
    "import resource, signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n" + SLOW
  )
  command = [sys.executable, "-c", script, str(tmp_path), "12", *IMAGES]
  env = os.environ | {"PYTHONPATH": str(ROOT)}
  done = subprocess.run(
    command, env=env, capture_output=True, text=True, check=False, timeout=60
  )
  assert "OSError" in done.stderr and "make room, or give another" in done.stderr
  assert {path.name for path in tmp_path.iterdir()} == {".lock"}


# ── In a study ────────────────────────────────────────────────────────────────────


def config() -> ConfigDict:
  return phantom.get_config("tiny")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
  workdir = tmp_path_factory.mktemp("features")
  experiment.run(config(), workdir, ["build"], {})
  return workdir


def losses(study: Study) -> tuple[np.ndarray, np.ndarray]:
  """Mean nll of the first steps, and their pixels."""
  trainable, frozen = study.parameters.split(0)
  found = study.records("dmax_train")
  batches, _ = feed.batches(
    study, found, lambda: study.pixels("dmax_train"), num_steps=4, seed=0
  )
  loss = jax.jit(vlm.row_loss(study.model))
  values = []
  for step in range(4):
    total, weight = loss(trainable, frozen, batches[step])
    values.append(float(total.sum() / weight.sum()))
  return np.array(values), np.asarray(batches[0]["pixels"])


def test_a_loss_is_that_of_encoding_in_the_step(built: Path) -> None:
  """To bfloat16's rounding; and the features are the encoder's own, rounded."""
  kept, stepwise = config(), config()
  stepwise.train.features = "step"
  cached, rows = losses(Study(kept, built))
  stepped, pixels = losses(Study(stepwise, built))
  assert pixels.dtype == np.uint8 and rows.dtype == np.float32
  study = Study(kept, built)
  encode = encoder_lib.make(study.own_parameters, np.float32)
  real = pixels.any((1, 2, 3))  # the others are there to fill the batch
  exact, rows = encode(pixels)[real], rows[real]
  assert len(exact) >= 2
  np.testing.assert_array_equal(rows, exact.astype(features.DTYPE).astype(np.float32))
  difference = np.abs(cached / stepped - 1).max()
  print(f"losses {stepped}: differ by {difference:.2g} of themselves at most")
  assert 0 < difference < 2**-8
  # What a wrong image would do is larger by far.
  trainable, frozen = study.parameters.split(0)
  params = merge(trainable, frozen)

  def tokens(given: np.ndarray) -> np.ndarray:
    found: Any = study.model.apply({"params": params}, given, method="image_tokens")
    return np.asarray(found)

  want = tokens(exact)
  rounding = np.linalg.norm(tokens(rows) - want) / np.linalg.norm(want)
  other = np.linalg.norm(tokens(exact[::-1]) - want) / np.linalg.norm(want)
  print(f"image tokens: {rounding:.2g} of their norm off, another image's {other:.2g}")
  assert rounding < 2**-8 < other


def test_the_verb_makes_all_and_mends(
  built: Path, capsys: pytest.CaptureFixture[str]
) -> None:
  shared = config()
  shared.train.features_folder = str(built / "shared")
  experiment.run(shared, built, ["encode"], {})
  said = capsys.readouterr().out
  assert "30 of dmax_train, 10 of imax_test, 10 of imax_train" in said
  assert "0 damaged shards made anew" in said
  study = Study(shared, built)
  folder = study.store.folder
  assert folder.parent == built / "shared"
  shard = min(folder.glob("*.array_record"))
  before = {split: study.pixels(split)[np.arange(10)] for split in SPLITS}
  shard.write_bytes(shard.read_bytes()[:-1])
  with pytest.raises(ValueError, match=f"{shard}: .*run the verb encode"):
    Study(shared, built).pixels("dmax_train")
  experiment.run(shared, built, ["encode"], {})
  assert "1 damaged shards made anew" in capsys.readouterr().out
  for split, rows in before.items():
    again = Study(shared, built).pixels(split)
    np.testing.assert_array_equal(again[np.arange(10)], rows)


def test_damaged_lists_are_refused(built: Path) -> None:
  study = Study(config(), built)
  study.pixels("imax_test")
  for name in ("encoder_key/key", "images/imax_test/images"):
    path = built / name
    data = path.read_bytes()
    path.write_bytes(data.replace(b"a", b"b", 1))
    with pytest.raises(
      ValueError, match=f"{path}: was changed.*; delete {path.parent}"
    ):
      Study(config(), built).pixels("imax_test")
    path.write_bytes(data)


def test_kept_features_need_a_frozen_encoder(built: Path) -> None:
  trained = config()
  trained.trainable = ((r"(encoder|connector)/.*", True), (r".*", False))
  with pytest.raises(UsageError, match="cache: the encoder is trained.*=step"):
    experiment.run(trained, built, ["train"], {})
  assert not (built / "runs").exists()
  trained.train.features = "step"
  assert Study(trained, built).pixels("imax_test").dtype == np.uint8
  with pytest.raises(UsageError, match="encode: .*step keeps no features"):
    experiment.run(trained, built, ["encode"], {})
  trained.train.features = "disk"
  with pytest.raises(UsageError, match="features=disk: expected cache or step"):
    experiment.run(trained, built, ["train"], {})


def test_all_verbs_work_without_kept_features(built: Path) -> None:
  stepwise = config()
  stepwise.train.update({"features": "step", "runs": ("imax",), "epochs": 0.2})
  stepwise.fisher.update({"runs": ("imax",), "phases": (("late", 1.0),)})
  experiment.run(stepwise, built, ["train", "evaluate", "fisher"], {})
  ledger = Study(stepwise, built).ledger
  for station in ("runs/imax-s0", "evaluations/imax-s0", "fisher/imax-s0"):
    assert ledger.is_done(station)
  assert (built / "pixels" / "imax_train" / "pixels.npy").is_file()
