"""Weights to a file and back: strict, exact, atomic, and never by unpickling."""

from __future__ import annotations

import pathlib
import pickle

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

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


def test_a_failed_write_leaves_the_old_file(
  tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  path = tmp_path / "weights.safetensors"
  load.save_params(path, PARAMS)

  def fail(arrays: object, file: pathlib.Path) -> None:
    file.write_bytes(b"half of it")
    raise OSError("no space left on device")

  monkeypatch.setattr(files, "save_file", fail)
  with pytest.raises(OSError, match="no space"):
    load.save_params(path, {"other": np.zeros(1)})
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
