"""Weights to a file and back: strict, exact, atomic, and never by unpickling."""

from __future__ import annotations

import json
import os
import pathlib
import pickle
import struct
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from imax_jax import tree
from imax_jax.weights import files
from imax_jax.weights import load

PARAMS = {
  "encoder": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)},
  "decoder": {"layers": {"q": {"kernel": np.full((4, 2, 2), 0.1, np.float32)}}},
}


def test_round_trip(tmp_path: pathlib.Path) -> None:
  path = tmp_path / "new" / "weights.safetensors"
  # A transposed view: the format would store its bytes in the wrong order.
  params = PARAMS | {"view": np.arange(6, dtype=np.float32).reshape(2, 3).T}
  shapes = load.save_params(path, jax.tree.map(jnp.asarray, PARAMS) | params)
  assert shapes["decoder/layers/q/kernel"] == (4, 2, 2)
  got = load.load_params(path)
  want = tree.flatten(params)
  assert got.keys() == want.keys()
  for name, array in want.items():
    assert got[name].dtype == np.float32
    np.testing.assert_array_equal(got[name], array)
  assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_a_narrow_file_loads_in_the_models_dtype(
  tmp_path: pathlib.Path, dtype: type
) -> None:
  path = tmp_path / "half.safetensors"
  params = PARAMS | {"step": np.array([3], np.int32)}
  load.save_params(path, params, dtype)
  assert load.load_params(path)["encoder/kernel"].dtype == dtype
  assert load.load_params(path)["step"].dtype == np.int32
  expected = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, params))
  got = load.load_into(path, expected)
  leaf = got["decoder"]["layers"]["q"]["kernel"]
  assert leaf.dtype == np.float32
  np.testing.assert_array_equal(leaf, np.float32(dtype(0.1)))


def test_values_beyond_the_dtype_are_refused(tmp_path: pathlib.Path) -> None:
  with pytest.raises(ValueError, match="a/b has values beyond float16"):
    load.save_params(tmp_path / "x", {"a": {"b": np.array([7e4])}}, np.float16)
  load.save_params(tmp_path / "x", {"a": np.array([np.inf])}, np.float16)


def test_a_file_must_fit_exactly(tmp_path: pathlib.Path) -> None:
  path = tmp_path / "weights.safetensors"
  wrong = {"encoder": {"kernel": np.zeros((3, 2))}, "probe": np.zeros(1)}
  load.save_params(path, wrong)
  with pytest.raises(ValueError) as caught:
    load.load_into(path, PARAMS)
  message = str(caught.value)
  for part in (
    str(path),
    "missing    decoder/layers/q/kernel (4, 2, 2)",
    "unexpected probe (1,)",
    "encoder/kernel: expected (2, 3), got (3, 2)",
    "Give the file of this model",
  ):
    assert part in message
  load.save_params(path, PARAMS)
  assert load.load_into(path, PARAMS).keys() == PARAMS.keys()


def test_bad_files_are_named_and_never_unpickled(tmp_path: pathlib.Path) -> None:
  with pytest.raises(FileNotFoundError, match="absent.*check the path"):
    load.load_params(tmp_path / "absent")
  whole = tmp_path / "whole"
  load.save_params(whole, PARAMS)
  cut = tmp_path / "cut"
  cut.write_bytes(whole.read_bytes()[:-5])
  fired = tmp_path / "fired"

  class Trap:
    def __reduce__(self) -> tuple[object, tuple[str]]:
      return pathlib.Path.touch, (fired,)  # type: ignore[return-value]

  trap = tmp_path / "trap"
  trap.write_bytes(pickle.dumps(Trap()))
  for path in (cut, trap):
    with pytest.raises(ValueError, match=rf"{path.name}: not a readable safetensors"):
      load.load_params(path)
  assert not fired.exists()


def test_a_failed_write_leaves_the_old_file(tmp_path: pathlib.Path) -> None:
  path = tmp_path / "weights.safetensors"
  load.save_params(path, PARAMS)

  def write(indices: tuple[int, ...], error: Exception | None = None) -> None:
    with files.tensor_writer(path, {"a": ((2, 3), np.float32)}) as writer:
      for index in indices:
        writer.write("a", np.ones(3, np.float32), index)
      if error:
        raise error

  with pytest.raises(OSError, match="no space"):
    write((0, 1), OSError("no space left on device"))
  with pytest.raises(AssertionError, match="not all written: .'a'"):
    write((1,))
  with pytest.raises(AssertionError, match=r"a\[0\] is written twice"):
    write((0, 0))
  assert load.load_params(path).keys() == tree.flatten(PARAMS).keys()
  assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_tensors_are_read_one_at_a_time(tmp_path: pathlib.Path) -> None:
  path = tmp_path / "weights.safetensors"
  load.save_params(path, PARAMS)
  with files.open_tensors(path) as tensors:
    assert tensors.names == ("decoder/layers/q/kernel", "encoder/kernel")
    assert tensors.shape("encoder/kernel") == (2, 3)
    np.testing.assert_array_equal(
      tensors.read("encoder/kernel"), PARAMS["encoder"]["kernel"]
    )


DTYPES = ("float64", "float32", "float16", "int64", "int8", "uint8", "bool")


@pytest.mark.parametrize("dtype", [*DTYPES, ml_dtypes.bfloat16])
def test_the_formats_own_library_agrees(tmp_path: pathlib.Path, dtype: object) -> None:
  ours, theirs = tmp_path / "ours", tmp_path / "theirs"
  arrays = {
    "x.y": np.arange(-3, 3).reshape(2, 3).astype(dtype),  # type: ignore[call-overload]
    "empty": np.zeros((0, 2), np.float32),
    "scalar": np.array(3, np.int16),
  }
  files.write_tensors(ours, arrays)
  safetensors_numpy.save_file(arrays, theirs)
  for path in (ours, theirs):
    got, known = load.load_params(path), safetensors_numpy.load_file(path)
    for name, array in arrays.items():
      np.testing.assert_array_equal(got[name], array)
      np.testing.assert_array_equal(known[name], array)
      assert got[name].dtype == known[name].dtype == array.dtype
  with files.open_tensors(ours) as tensors:
    np.testing.assert_array_equal(tensors.view("x.y"), arrays["x.y"])
    assert tensors.view("empty").shape == (0, 2)


def _file_of(header: object, data: bytes = b"") -> bytes:
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  return struct.pack("<Q", len(text)) + text + data


def _entry(first: int, last: int, shape: object = (1,), dtype: str = "F32") -> object:
  return {"dtype": dtype, "shape": shape, "data_offsets": [first, last]}


BAD_FILES = {
  "empty": (b"", "no header of 0 bytes fits its 0 bytes"),
  "huge header": (struct.pack("<Q", 1 << 40) + b"{}", "no header of 1099511627776"),
  "no json": (_file_of(b"{]"), "header: Expecting"),
  "a list": (_file_of([1]), "header: "),
  "no offsets": (_file_of({"a": {"dtype": "F32", "shape": [1]}}), "data_offsets"),
  "eight bits": (_file_of({"a": _entry(0, 1, [1], "F8_E4M3")}, b"."), "F8_E4M3"),
  "negative": (_file_of({"a": _entry(0, 4, [-1])}, b"...."), "negative"),
  "wrong size": (_file_of({"a": _entry(0, 4, [2])}, b"...."), "does not fill 4 bytes"),
  "overlap": (
    _file_of({"a": _entry(0, 4), "b": _entry(0, 4)}, b"...."), "b starts at byte",
  ),
  "hole": (_file_of({"a": _entry(4, 8)}, b"........"), "a starts at byte"),
  "too short": (_file_of({"a": _entry(0, 4)}, b"..."), "the file has"),
  "too long": (_file_of({"a": _entry(0, 4)}, b"....."), "the file has"),
  "twins": (_file_of(b'{"a": 1, "a": 2}'), "stands in it twice"),
  "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_FILES)
def test_damaged_headers_are_refused(tmp_path: pathlib.Path, kind: str) -> None:
  path = tmp_path / "weights"
  data, message = BAD_FILES[kind]
  path.write_bytes(data)
  with pytest.raises(ValueError) as caught:
    load.load_params(path)
  assert f"{path}: not a readable safetensors" in str(caught.value)
  assert message in str(caught.value)


# XLA reads the number of host devices once, before the first use of jax.
ON_A_MESH = """
import sys
import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
from imax_jax.weights import files
from imax_jax.weights import load

path, looked, view = sys.argv[1], [], files.TensorFile.view

class Watched(np.ndarray):
  def __getitem__(self, index):
    looked.append(super().__getitem__(index).nbytes)
    return super().__getitem__(index)

files.TensorFile.view = lambda self, name: view(self, name).view(Watched)
mesh = jax.make_mesh((2, 2), ("data", "model"))
split = NamedSharding(mesh, PartitionSpec("data", "model"))
whole = NamedSharding(mesh, PartitionSpec())
params = load.load_params(path)
expected = {name: jax.ShapeDtypeStruct(x.shape, np.float32) for name, x in params.items()}
got = load.load_sharded(path, expected, {"a": split, "b": whole})
assert got["a"].dtype == np.float32 and got["a"].sharding == split
assert got["a"].addressable_shards[0].data.shape == (2, 1)
for name in params:
  np.testing.assert_array_equal(got[name], params[name])
assert looked[:4] == [4] * 4, looked
"""


def test_loading_onto_a_mesh_reads_slices(tmp_path: pathlib.Path) -> None:
  path = tmp_path / "weights"
  params = {"a": np.arange(8.0).reshape(4, 2).astype(np.float16), "b": np.ones(2)}
  load.save_params(path, params)
  environment = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
  }
  done = subprocess.run(
    [sys.executable, "-c", ON_A_MESH, str(path)],
    env=environment,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  expected = jax.eval_shape(lambda: params | {"c": jnp.zeros(1)})
  with pytest.raises(ValueError, match="missing    c"):
    load.load_sharded(path, expected, {})
