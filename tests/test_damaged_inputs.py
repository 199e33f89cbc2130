"""Every damaged input is refused once, by name and reason, and costs no good row."""

from __future__ import annotations

import io
import json
import logging
import socket
import time
import traceback
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imax_jax.data import images
from imax_jax.data import sources
from imax_jax.data.sources.intake import Intake
from tests import damaged_inputs

OPTIONS = {"mimic_cxr_jpg": {"require_images": False}}
SECONDS = 5


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
  return damaged_inputs.write_healthy(tmp_path_factory.mktemp("hospital") / "files")


def read(roots: dict[str, Path], quarantine: Path):
  """(radiographs, annotations by image, quarantine lines, what finish() says)."""
  intake = Intake(quarantine, max_quarantined=0.0)
  try:
    radiographs = sources.read_radiographs(roots, intake=intake, options=OPTIONS)
  except sources.DamagedFile as error:  # without images there is nothing to build
    intake.close()
    line = {"source": "mimic_cxr_jpg", "file": error.path.name, "row": None}
    return {}, [], [line | {"reason": error.reason}], error
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
  assert len(set(names)) == len(names) >= 100


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


def _png_header(width: int, height: int) -> bytes:
  """A PNG that says it is that large, and holds a pixel."""
  buffer = io.BytesIO()
  Image.fromarray(np.zeros((1, 1), np.uint8)).save(buffer, "PNG")
  data = bytearray(buffer.getvalue())
  data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
  import zlib

  data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
  return bytes(data)


@pytest.mark.parametrize(
  "data",
  [
    _png_header(100_000, 100_000), _png_header(60_000, 3), b"", b"no image at all",
    b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0" + b"\0" * 100, b"GIF89a", b"%!PS-Adobe",
  ],
)  # fmt: skip
def test_a_damaged_image_is_refused_by_name(data):
  start = time.perf_counter()
  with pytest.raises(ValueError, match="film.png"):
    images.to_stored(data, 32, name="film.png")
  assert time.perf_counter() - start < SECONDS
