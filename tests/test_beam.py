"""Apache Beam writes what one process writes, to the byte. Needs the extra [beam]."""

import dataclasses
import hashlib
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imax_jax.data import builder
from imax_jax.data import prompts
from imax_jax.data import shards
from imax_jax.data.construct import Datasets
from imax_jax.data.construct import Selected
from imax_jax.schema import Annotation
from imax_jax.schema import Origin
from imax_jax.schema import Radiograph
from imax_jax.schema import Report

SECRET = "An invented sentence about nobody."


def selected(folder, number):
  grey = np.random.default_rng(number).integers(0, 256, (20, 30), np.uint8)
  buffer = io.BytesIO()
  Image.fromarray(grey).save(buffer, "PNG")
  path = folder / f"{number}.png"
  path.write_bytes(buffer.getvalue())
  origin = Origin("made", f"{number}.txt", number, "made/row")
  found = Annotation(f"i{number}", "report", "", Report(f"{SECRET} {number}"), origin)
  radiograph = Radiograph(found.image_id, "s", "p", "PA", 30, 20, str(path))
  return Selected(radiograph, (prompts.make_entry(found, 0),))


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
  folder = tmp_path_factory.mktemp("files")
  splits = {
    "imax_train": [selected(folder, n) for n in range(3)],
    "imax_test": [selected(folder, n) for n in range(3, 5)],
    "dmax_train": [selected(folder, n) for n in range(5, 9)],
  }
  return Datasets(splits, {}, {}, {})


def digests(root):
  return {
    path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
    for path in root.rglob("*")
    if path.is_file()
  }


def test_without_beam_the_extra_is_named(datasets, tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "apache_beam", None)
  monkeypatch.delitem(sys.modules, "imax_jax.data.beam", raising=False)
  with pytest.raises(ValueError, match=r"imax_jax\[beam\]"):
    builder.build(datasets, tmp_path, beam_args=[])
  assert list(tmp_path.iterdir()) == []


WHY = "the extra [beam] is not installed (its pins are older than constraints.txt)"


@pytest.fixture
def _beam():
  pytest.importorskip("apache_beam", reason=WHY)


@pytest.mark.usefixtures("_beam")
@pytest.mark.parametrize("where", ["beside", "elsewhere", "processes"])
def test_beam_writes_what_one_process_writes(datasets, tmp_path, monkeypatch, where):
  monkeypatch.setattr(shards, "IMAGES_PER_SHARD", 2)
  (tmp_path / "meet").mkdir()
  args = {
    "beside": [],
    "elsewhere": ["--runner=DirectRunner", f"--exchange={tmp_path / 'meet'}"],
    "processes": ["--direct_num_workers=2", "--direct_running_mode=multi_processing"],
  }[where]
  done = []
  mine = builder.build(datasets, tmp_path / "one")
  theirs = builder.build(
    datasets, tmp_path / "beam", beam_args=args, progress=done.append
  )
  assert theirs == mine
  assert done == [2, 1, 2, 2, 2]
  assert digests(tmp_path / "beam") == digests(tmp_path / "one")
  assert len(list((tmp_path / "beam").glob("*/*/*.array_record-*"))) == 5
  # Nothing is left of the exchange, which held what patients' reports say.
  assert list((tmp_path / "meet").iterdir()) == []
  assert sorted(path.name for path in (tmp_path / "beam").iterdir()) == ["dmax", "imax"]


@pytest.mark.usefixtures("_beam")
def test_workers_read_images_where_they_are_told(datasets, tmp_path):
  builder.build(datasets, tmp_path / "one")
  there = Path(datasets.splits["imax_train"][0].radiograph.path).parent
  moved = {
    name: [
      dataclasses.replace(
        s, radiograph=dataclasses.replace(s.radiograph, path=f"/here/{i}.png")
      )
      for i, s in ((int(s.radiograph.image_id[1:]), s) for s in group)
    ]
    for name, group in datasets.splits.items()
  }
  moved = dataclasses.replace(datasets, splits=moved)
  builder.build(moved, tmp_path / "beam", beam_args=[f"--images=/here={there}"])
  assert digests(tmp_path / "beam") == digests(tmp_path / "one")
  with pytest.raises(ValueError, match=r"/here/0\.png: expected.*--images"):
    builder.build(moved, tmp_path / "bad", beam_args=[f"--images=/hereabouts={there}"])
  with pytest.raises(ValueError, match="expected HERE=THERE"):
    builder.build(moved, tmp_path / "bad", beam_args=["--images=/here"])
  assert list((tmp_path / "bad").iterdir()) == []


@pytest.mark.usefixtures("_beam")
def test_all_bad_images_are_told_and_the_good_shards_stay(
  datasets, tmp_path, monkeypatch, caplog
):
  monkeypatch.setattr(shards, "IMAGES_PER_SHARD", 2)
  (tmp_path / "text.png").write_text(SECRET)
  bad = {"i7": "none.png", "i1": "text.png"}
  splits = {
    name: [
      dataclasses.replace(
        s, radiograph=dataclasses.replace(s.radiograph, path=str(tmp_path / bad[i]))
      )
      if (i := s.radiograph.image_id) in bad
      else s
      for s in group
    ]
    for name, group in datasets.splits.items()
  }
  broken = dataclasses.replace(datasets, splits=splits)
  with pytest.raises(shards.DamagedImages) as error:
    builder.build(broken, tmp_path / "data", beam_args=[])
  assert error.value.reasons["i7"] == "image file absent"
  assert error.value.reasons["i1"].startswith("expected a whole PNG")
  assert SECRET not in str(error.value) + caplog.text
  assert [path.name for path in (tmp_path / "data").iterdir()] == [".unfinished"]
  # What stays has no exchange, which held what patients' reports say.
  assert not list((tmp_path / "data").rglob("*exchange*"))
  whole = {
    path: path.stat().st_ino
    for path in (tmp_path / "data").glob("*/*/*/*.array_record-*")
  }
  assert len(whole) == 3
  builder.build(datasets, tmp_path / "data", beam_args=[])
  builder.build(datasets, tmp_path / "one")
  assert digests(tmp_path / "data") == digests(tmp_path / "one")
  for path, inode in whole.items():
    place = tmp_path / "data" / path.relative_to(tmp_path / "data" / ".unfinished")
    assert place.stat().st_ino == inode


@pytest.mark.usefixtures("_beam")
def test_a_folder_that_is_not_shared_is_named(datasets, tmp_path, monkeypatch):
  from imax_jax.data import beam

  monkeypatch.setattr(beam, "_run_pipeline", lambda *args: None)
  with pytest.raises(ValueError, match="no worker has written it.*--exchange"):
    builder.build(datasets, tmp_path, beam_args=[])
  assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("_beam")
def test_a_shard_changed_on_its_way_is_refused(datasets, tmp_path, monkeypatch):
  from imax_jax.data import beam

  pipeline = beam._run_pipeline

  def spoil(*args):
    pipeline(*args)
    (shard,) = tmp_path.rglob("1.shard")
    shard.write_bytes(shard.read_bytes()[:-1])

  monkeypatch.setattr(beam, "_run_pipeline", spoil)
  with pytest.raises(ValueError, match="did not arrive as the worker wrote it"):
    builder.build(datasets, tmp_path, beam_args=[])


@pytest.mark.usefixtures("_beam")
def test_nothing_is_fetched_from_the_network(datasets, tmp_path):
  # In a process of its own: gRPC and the resolver must find only this machine.
  program = (
    "import socket, sys, urllib.request\n"
    "def refuse(*args, **kwargs): raise SystemExit('network')\n"
    "urllib.request.urlopen = refuse\n"
    "real = socket.getaddrinfo\n"
    "def near(host, *args, **kwargs):\n"
    "  if host not in (None, '', 'localhost', '127.0.0.1', '::1', '::'): refuse()\n"
    "  return real(host, *args, **kwargs)\n"
    "socket.getaddrinfo = near\n"
    "from pathlib import Path\n"
    "sys.path.insert(0, sys.argv[3])\n"
    "import test_beam\n"
    "from imax_jax.data import builder\n"
    "from imax_jax.data.construct import Datasets\n"
    "made = [test_beam.selected(Path(sys.argv[1]), 0)]\n"
    "made = Datasets({'imax_train': made}, {}, {}, {})\n"
    "builder.build(made, sys.argv[2], beam_args=['--runner=DirectRunner'])\n"
  )
  command = [sys.executable, "-c", program, tmp_path, tmp_path / "data"]
  done = subprocess.run(
    [*map(str, command), str(Path(__file__).parent)], capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr[-2000:]
  assert "rism" not in done.stderr
