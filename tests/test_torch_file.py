"""Torch's files written without torch: torch reads them, and so does `convert`'s child."""

from __future__ import annotations

import pathlib
import zipfile
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from imax_jax.weights import torch_file
from imax_jax.weights.checkpoints import open_checkpoint

torch = pytest.importorskip("torch", reason="its reader is what the files are for")

BESIDE = {"config": {"a": [1, 2.5, None]}, "epoch": 0, "big": -(2**40), "on": True}


def arrays() -> dict[str, np.ndarray]:
  rng = np.random.default_rng(0)
  return {
    "a.weight": rng.normal(size=(3, 5)).astype(np.float32),
    "half": rng.normal(size=(7,)).astype(np.float16),
    "brain": rng.normal(size=(2, 3, 4)).astype(ml_dtypes.bfloat16),
    "number": np.array(2**40, np.int64),
    "nothing": np.zeros((0, 4), np.float32),
  }


def write(path: pathlib.Path, held: dict[str, np.ndarray], **more: Any) -> None:
  table = {name: (array.shape, array.dtype) for name, array in held.items()}
  with torch_file.torch_writer(path, table, **more) as writer:
    for name in reversed(held):
      writer.write(name, held[name])


def numpy_of(tensor: Any) -> np.ndarray:
  if tensor.dtype == torch.bfloat16:
    return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
  return tensor.numpy()


def same(got: dict[str, Any], want: dict[str, np.ndarray]) -> None:
  assert got.keys() == want.keys()
  for name, array in want.items():
    back = numpy_of(got[name])
    assert back.dtype == array.dtype and back.shape == array.shape, name
    np.testing.assert_array_equal(back, array, err_msg=name)


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("wrapper", ["", "model"])
def test_torch_reads_it(tmp_path: pathlib.Path, wrapper: str, mapped: bool) -> None:
  path = tmp_path / "x.pth"
  write(path, arrays(), wrapper=wrapper, beside=BESIDE)
  held = torch.load(path, weights_only=True, mmap=mapped)
  if wrapper:
    assert {key: held[key] for key in BESIDE} == BESIDE
    held = held[wrapper]
  same(held, arrays())
  if mapped:  # where torch maps a file, all stand where a device reads them fastest
    assert all(held[name].data_ptr() % 64 == 0 for name in ("a.weight", "brain"))
  assert not list(tmp_path.glob(".*"))


def test_our_reader_reads_it(tmp_path: pathlib.Path) -> None:
  write(tmp_path / "x.pth", arrays(), wrapper="model", beside=BESIDE)
  with open_checkpoint(tmp_path / "x.pth", tmp_path) as checkpoint:
    assert checkpoint.wrapper == "model"
    assert sorted(checkpoint.beside) == sorted(BESIDE)
    for name, array in arrays().items():
      np.testing.assert_array_equal(checkpoint.read(name), array)
      assert checkpoint.dtype(name) == array.dtype


def test_twins_share_their_bytes(tmp_path: pathlib.Path) -> None:
  write(tmp_path / "x.pth", arrays(), twins={"b.weight": "a.weight"})
  held = torch.load(tmp_path / "x.pth", weights_only=True)
  assert held["b.weight"].data_ptr() == held["a.weight"].data_ptr()
  same(held, arrays() | {"b.weight": arrays()["a.weight"]})


def test_it_is_a_plain_archive(tmp_path: pathlib.Path) -> None:
  """Nothing is compressed, the sums are right, and two of them are equal."""
  for name in ("x.pth", "y.pth"):
    write(tmp_path / name, arrays())
  assert (tmp_path / "x.pth").read_bytes() == (tmp_path / "y.pth").read_bytes()
  with zipfile.ZipFile(tmp_path / "x.pth") as archive:
    assert archive.testzip() is None
    entries = archive.infolist()
  assert {entry.compress_type for entry in entries} == {zipfile.ZIP_STORED}
  assert entries[-1].filename == "archive/version"


@pytest.mark.parametrize("where", ["entries", "places"])
def test_long_fields(
  tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
  """What a tensor, or a file, of more than 4 GB needs, at the size of a test."""
  if where == "entries":
    monkeypatch.setattr(torch_file, "_ZIP64", 0)
  else:
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 300)
  write(tmp_path / "x.pth", arrays())
  for mapped in (False, True):
    same(torch.load(tmp_path / "x.pth", weights_only=True, mmap=mapped), arrays())


def test_a_broken_write_leaves_nothing(tmp_path: pathlib.Path) -> None:
  path, table = tmp_path / "x.pth", {"a": ((2,), np.float32)}

  def full() -> None:
    with torch_file.torch_writer(path, table) as writer:
      writer.write("a", np.zeros(2, np.float32))
      raise OSError("full")

  def short() -> None:
    with torch_file.torch_writer(path, table):
      pass

  with pytest.raises(OSError, match="full"):
    full()
  with pytest.raises(AssertionError, match="not all written"):
    short()
  assert not list(tmp_path.iterdir())


def test_only_plain_values_stand_beside(tmp_path: pathlib.Path) -> None:
  with pytest.raises(TypeError, match="not a Path|not a PosixPath"):
    write(tmp_path / "x.pth", arrays(), wrapper="model", beside={"config": tmp_path})
  assert not list(tmp_path.iterdir())
