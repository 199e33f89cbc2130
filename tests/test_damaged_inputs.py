"""Every damaged input is refused once, by name and reason, and costs no good row."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import logging
import shutil
import socket
import time
import traceback
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imax_jax.data import images
from imax_jax.data import shards
from imax_jax.data import sources
from imax_jax.data.sources.intake import Intake
from imax_jax.schema import Radiograph
from tests import damaged_inputs
from tests import damaged_open

OPTIONS = {"mimic_cxr_jpg": {"require_images": False}}
SECONDS = 5


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
  return damaged_inputs.write_healthy(tmp_path_factory.mktemp("hospital") / "files")


def read(roots: dict[str, Path], quarantine: Path):
  """(radiographs, annotations by image, quarantine lines, what finish() says)."""
  intake = Intake(quarantine, max_quarantined=0.0)
  radiographs = sources.read_radiographs(roots, intake=intake, options=OPTIONS)
  found = list(sources.read_all(roots, radiographs, intake=intake))
  said = None
  try:
    intake.finish()
  except ValueError as error:
    said = error
  lines = [json.loads(line) for line in quarantine.read_text().splitlines()]
  return radiographs, found, lines, said


def key(a):
  return a.image_id, a.task, a.subtask, repr(a.target)


def test_the_corpus_is_large(healthy):
  names = [case.name for case in damaged_inputs.cases(healthy)]
  names += [case.name for case in damaged_open.exact_cases(healthy["mimic_cxr_jpg"])]
  assert len(set(names)) == len(names) >= 500


def check(case, healthy, folder, whole):
  """Raises an AssertionError unless the case is refused as it says."""
  root = damaged_inputs.spoil(case, healthy, folder)
  roots = {"mimic_cxr_jpg": healthy["mimic_cxr_jpg"], case.source: root}
  start = time.perf_counter()
  radiographs, found, lines, said = read(roots, folder / "quarantine.jsonl")
  assert time.perf_counter() - start < SECONDS, "it hangs"
  assert len(lines) == case.listed, lines
  assert all(line["reason"].startswith(case.reason) for line in lines), lines
  file = case.file.rsplit("/", 1)[-1]
  if case.source == "mimic_cxr":
    assert len({line["row"] for line in lines}) == 1, lines
  elif case.row is None and case.source != "vqa":
    assert [line["row"] for line in lines] == [None], lines
  elif case.row is not None:
    assert case.row in [line["row"] for line in lines], lines
  assert all(file in line["file"] or case.source == "mimic_cxr" for line in lines), (
    lines
  )
  assert said is not None, "the build goes on"
  text = json.dumps(lines) + "".join(traceback.format_exception(said))
  assert damaged_inputs.SECRET not in text
  if case.row is None:
    return
  # No good row is lost: only images of the spoilt row may say less.
  before_images, before = whole
  spoilt = {
    a.image_id
    for a in before
    if (a.origin.source, a.origin.file, a.origin.row)
    == (case.source, case.file, case.row)
  }
  if case.source == "mimic_cxr_jpg":
    assert len(before_images) - len(radiographs) == 1
    return
  kept = {key(a) for a in found}
  lost = {a.image_id for a in before if key(a) not in kept}
  assert lost <= spoilt, f"{len(lost - spoilt)} images lost good rows"


@pytest.mark.parametrize("source", [*damaged_inputs.TABLES, "vqa", "mimic_cxr"])
def test_each_damage_is_listed_once_and_costs_no_good_row(
  healthy, source, tmp_path, monkeypatch, caplog, capfd
):
  def no_socket(*_: object, **__: object) -> None:
    raise AssertionError("a socket is opened")

  monkeypatch.setattr(socket, "socket", no_socket)
  roots = {name: healthy[name] for name in {"mimic_cxr_jpg", source}}
  radiographs = sources.read_radiographs(roots, options=OPTIONS)
  whole = radiographs, list(sources.read_all(roots, radiographs))
  wrong = {}
  with caplog.at_level(logging.DEBUG):
    for number, case in enumerate(damaged_inputs.cases(healthy)):
      if case.source == source:
        try:
          check(case, healthy, tmp_path / str(number), whole)
        except Exception as error:  # all of them are told, not the first
          wrong[case.name] = f"{type(error).__name__}: {error}"
  assert not wrong, "\n".join(f"{name}: {said}" for name, said in wrong.items())
  told = capfd.readouterr()
  assert damaged_inputs.SECRET not in caplog.text + told.out + told.err


# ── The open route, own images, other forms of reports ────────────────────────────

BASES = (
  "nih", "openi", "openi/packed", "vqa_rad", "slake", "vindr", "jsrt", "montgomery",
  "shenzhen", "own", "own/jsonl", "opencxr", "chexmask_nih", "mimic_cxr/folder",
  "mimic_cxr/sectioned", "mimic_cxr/captions", "mimic_cxr/annotation", "cxr_lt/2023",
  "mimic_cxr/zip", "cardiomegaly/gz",
)  # fmt: skip


@pytest.fixture(scope="module")
def bases(healthy, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
  root = tmp_path_factory.mktemp("bases")
  return damaged_open.write_bases(root, healthy["mimic_cxr_jpg"])


def exact_roots(case, root, bases, healthy) -> dict[str, Path]:
  """The case's source, the one that gives its images, and another, which is healthy."""
  other = "own" if case.source == "shenzhen" else "shenzhen"
  roots = {other: bases[other], case.source: root}
  images_of = damaged_open.IMAGES_OF.get(case.source)
  if images_of:
    roots[images_of] = (bases | healthy)[images_of]
  return roots


def raised_alone(roots) -> str:
  """What a caller without an intake gets to see of a damaged file."""
  try:
    radiographs = sources.read_radiographs(roots, options=OPTIONS)
    list(sources.read_all(roots, radiographs))
  except ValueError as error:
    return "".join(traceback.format_exception(error))
  return ""


def check_exact(case, root, before, roots):
  quarantine = root.parent / "quarantine.jsonl"
  start = time.perf_counter()
  _, found, lines, said = read(roots, quarantine)
  assert time.perf_counter() - start < SECONDS, "it hangs"
  assert quarantine.stat().st_mode & 0o077 == 0, "others may read the quarantine"
  listed = [(x["source"], x["file"], x["row"]) for x in lines]
  assert sorted(listed, key=str) == sorted((x[:3] for x in case.lines), key=str)
  for line in lines:
    reasons = [x[3] for x in case.lines if x[1:3] == (line["file"], line["row"])]
    assert line["reason"].startswith(reasons[0]), line
    assert line["rule"] in sources.RULES, line
  assert (said is not None) == bool(case.lines), "finish() does not say so"
  if case.lost is None:  # a file is given up: nothing is made up, nor others lost
    depending = (case.source, "chexmask_nih")
    others = [a for a in before if a.origin.source not in depending]
    assert [a for a in found if a.origin.source not in depending] == others
    assert set(map(repr, found)) <= set(map(repr, before))
  else:
    kept = [moved(a, case.inserted) for a in before if not case.lost(a)]
    assert found == kept, f"{len(found)} annotations, expected {len(kept)}"
  text = json.dumps(lines) + "".join(traceback.format_exception(said))
  assert not told(text + raised_alone(roots)), "a patient's text is told"


def moved(a, inserted):
  """The annotation as it is where a row was inserted: its own may be one further on."""
  if inserted is None or a.origin.file != inserted[0] or a.origin.row < inserted[1]:
    return a
  origin = dataclasses.replace(a.origin, row=a.origin.row + 1)
  return dataclasses.replace(a, origin=origin)


def told(text: str) -> bool:
  """Whether any part of the planted sentence is in `text`, in any case."""
  return any(part in text.lower() for part in ("ada invented", "secret lane"))


@pytest.mark.parametrize("base", BASES)
def test_each_damage_costs_what_it_must_and_no_more(
  healthy, bases, base, tmp_path, monkeypatch, caplog, capfd
):
  def no_socket(*_: object, **__: object) -> None:
    raise AssertionError("a socket is opened")

  monkeypatch.setattr(socket, "socket", no_socket)
  wrong, before = {}, None
  with caplog.at_level(logging.DEBUG):
    for number, case in enumerate(damaged_open.exact_cases(healthy["mimic_cxr_jpg"])):
      if case.base != base:
        continue
      if before is None:
        root = bases[base] / damaged_open.ROOTS.get(base, "")
        roots = exact_roots(case, root, bases, healthy)
        _, before, lines, _ = read(roots, tmp_path / "healthy.jsonl")
        assert before
        assert not lines
      try:
        root = damaged_open.spoil(case, bases, tmp_path / str(number))
        check_exact(case, root, before, exact_roots(case, root, bases, healthy))
      except Exception as error:  # all of them are told, not the first
        wrong[case.name] = f"{type(error).__name__}: {error}"
  assert before, "no case is of this base"
  assert not wrong, "\n".join(f"{name}: {said}" for name, said in wrong.items())
  output = capfd.readouterr()
  assert not told(caplog.text + output.out + output.err)


def test_the_default_threshold_is_one_percent(bases, tmp_path):
  """Of 200 rows one may be bad, three may not; the error names count and file."""
  rows = "".join(f"bo.png,bo,vqa,Question {n}?,no\n" for n in range(200))
  for bad in (1, 3):
    root = tmp_path / str(bad)
    shutil.copytree(bases["own"], root)
    table = "image,patient,task,name,answer\n" + rows.replace(",no", ",", bad)
    (root / "annotations.csv").write_text(table)
    intake = Intake(root / "quarantine.jsonl")
    radiographs = sources.read_radiographs({"own": root}, intake=intake)
    found = list(sources.read_all({"own": root}, radiographs, intake=intake))
    assert len(found) == 200 - bad
    if bad == 1:
      intake.finish()
    else:
      with pytest.raises(
        ValueError, match=r"3 rejected of 200 .*3 × answer empty.*qua"
      ):
        intake.finish()


# ── Images ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
  "data",
  [
    damaged_open.png_header(100_000, 100_000), damaged_open.png_header(60_000, 3),
    damaged_open.png_header(60_000, 60_000), b"", b"no image at all",
    b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0" + b"\0" * 100, b"GIF89a", b"%!PS-Adobe",
  ],
)  # fmt: skip
def test_a_damaged_image_is_refused_by_name(data):
  start = time.perf_counter()
  with pytest.raises(ValueError, match="film.png"):
    images.to_stored(data, 32, name="film.png")
  assert time.perf_counter() - start < SECONDS


def jpeg(**options) -> bytes:
  """A grey film of 64 x 64 with grain, which leaves 2 kB of data to be cut."""
  pixels = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
  buffer = io.BytesIO()
  Image.fromarray(pixels).save(buffer, "JPEG", **options)
  return buffer.getvalue()


SPOILT_FILMS = {
  "cut in half": jpeg()[: len(jpeg()) // 2],
  "without its last byte": jpeg()[:-1],
  "progressive, cut": jpeg(progressive=True)[:-500],
  "of 0 bytes": b"",
  "a PNG of 60,000 x 60,000": damaged_open.png_header(60_000, 60_000),
  "a text": damaged_inputs.SECRET.encode(),
  "EXIF longer than the file": jpeg(exif=b"Exif\0\0x").replace(
    b"\xff\xe1\0\x09", b"\xff\xe1\xff\xff"
  ),
}


@pytest.mark.parametrize("px", [None, 32, 64])
@pytest.mark.parametrize("what", SPOILT_FILMS)
def test_a_spoilt_film_stops_the_writing_by_name(what, px, tmp_path):
  """Nothing is quarantined here: what was selected is written whole, or not at all."""
  path = tmp_path / "film.jpg"
  path.write_bytes(SPOILT_FILMS[what])
  radiograph = Radiograph("i0", "s0", "p0", "PA", 64, 64, str(path))
  shard = shards.Shard("imax", "train", 0, 1, (shards.Selected(radiograph, ()),))
  store = functools.partial(images.to_stored, image_px=px)
  start = time.perf_counter()
  with pytest.raises(ValueError, match=r"film\.jpg: expected") as error:
    shards.write_shard(shard, tmp_path / "data", store)
  assert time.perf_counter() - start < SECONDS, "it hangs"
  assert damaged_inputs.SECRET not in "".join(traceback.format_exception(error.value))
  assert not [p for p in tmp_path.rglob("*") if p.is_file() and p != path]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF", "ignore:Tag data larger")
@pytest.mark.parametrize(
  "part",
  [
    b"", b"garbage", b"MM\0*\0\0\0\x08\xff\xff", b"II*\0\xff\xff\xff\x7f",
    # Orientation 99; and one that is a text of 2 GB.
    b"MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0\x63\0\0\0\0\0\0",
    b"II*\0\x08\0\0\0\1\0\x12\1\2\0\xff\xff\xff\x7f\x08\0\0\0\0\0\0\0",
  ],
)  # fmt: skip
def test_a_film_with_a_broken_exif_part_is_kept(part):
  data = jpeg(exif=b"Exif\0\0" + part)
  assert images.to_stored(data, None) == images.to_stored(data, 64) == data
  np.testing.assert_array_equal(
    images.decode(images.to_stored(data, 32)),
    images.decode(images.to_stored(jpeg(), 32)),
  )


# ── Memory ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("size", [1000, 2**20])
def test_no_more_is_unpacked_than_a_report_may_have(healthy, bases, tmp_path, size):
  """50 MB of spaces in 50 kB, of which the zip says that they are `size` bytes."""
  name = "mimic_cxr/zip/50 MB of spaces said to be "
  cases = damaged_open.exact_cases(healthy["mimic_cxr_jpg"])
  case = next(one for one in cases if one.name == f"{name}{size}")
  root = damaged_open.spoil(case, bases, tmp_path)
  roots = {"mimic_cxr_jpg": healthy["mimic_cxr_jpg"], "mimic_cxr": root}
  radiographs = sources.read_radiographs(roots, options=OPTIONS)
  tracemalloc.start()
  try:
    assert list(sources.read_all(roots, radiographs))
    most = tracemalloc.get_traced_memory()[1]
  finally:
    tracemalloc.stop()
  assert most < 8 * 2**20
