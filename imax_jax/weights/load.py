"""Parameters to a safetensors file and back, strictly.

A tensor's name in the file is its parameter's path: "decoder/layers/attn/q/kernel".
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

from imax_jax import tree as tree_lib
from imax_jax.models import storage
from imax_jax.weights import files
from imax_jax.weights import plan


def save_params(
  path: str | Path, params: tree_lib.Tree, dtype: Any = None
) -> dict[str, tuple[int, ...]]:
  """Writes a tree (or one already flat) atomically; returns {path: shape}.

  Args:
    dtype: what floating-point leaves are stored as, e.g. np.float16 to halve the file;
      None keeps theirs.

  Raises:
    ValueError: a finite value that `dtype` cannot hold (float16 ends at 65,504).
  """
  arrays = {}
  for name, leaf in tree_lib.flatten(params).items():
    array = np.asarray(leaf)
    if dtype is not None and jax.numpy.issubdtype(array.dtype, jax.numpy.floating):
      with np.errstate(over="ignore"):
        narrow = array.astype(dtype)
      if not np.array_equal(np.isfinite(array), np.isfinite(narrow)):
        raise ValueError(
          f"save_params: {name} has values beyond {np.dtype(dtype)}; use a wider dtype"
        )
      array = narrow
    arrays[name] = array
  files.write_tensors(path, arrays)
  return {name: array.shape for name, array in arrays.items()}


def load_params(path: str | Path) -> dict[str, np.ndarray]:
  """{path: array} of a whole file, in the dtypes it holds.

  Raises:
    FileNotFoundError: nothing there.
    ValueError: not a safetensors file, or a damaged one.
  """
  with files.open_tensors(path) as tensors:
    return {name: tensors.read(name) for name in tensors.names}


def load_into(path: str | Path, expected: tree_lib.Tree) -> dict[str, Any]:
  """The file's parameters as a tree, in the shapes and dtypes of `expected`.

  `expected` is a tree of arrays or of `jax.eval_shape`'s stand-ins: the whole model's or
  a part's. The file must hold exactly its paths and shapes, which is checked before
  anything is read.

  Raises:
    FileNotFoundError: nothing there.
    ValueError: missing, unexpected or misshapen parameters; both sides are printed.
  """
  want = tree_lib.flatten(expected)
  with files.open_tensors(path) as tensors:
    _check(tensors, want)
    return tree_lib.unflatten(
      {name: tensors.read(name).astype(leaf.dtype) for name, leaf in want.items()}
    )


def load_sharded(
  path: str | Path, expected: tree_lib.Tree, shardings: tree_lib.Tree
) -> dict[str, Any]:
  """`load_into`, straight onto devices: each process reads its devices' slices only.

  Kernels that the model keeps in integers are float in the file and become integers
  here, a layer at a time.

  Args:
    shardings: a tree like `expected` of `jax.sharding.Sharding`s.

  Raises:
    FileNotFoundError: nothing there.
    ValueError: missing, unexpected or misshapen parameters, of which both sides are
      printed; values that are not finite.
  """
  want, places = tree_lib.flatten(expected), tree_lib.flatten(shardings)
  with files.open_tensors(path) as tensors:
    _check(tensors, plan.stored_leaves(want))

    def part(name: str, leaf: Any, index: Any) -> np.ndarray:
      kernel = name.removesuffix("_scale")
      if f"{kernel}_scale" in want:
        kind = "int8" if want[kernel].dtype == np.int8 else "nf4"
        field = name.rpartition("/")[2]
        return _integers(tensors.view(kernel), kind, field, index)
      mapped = tensors.view(name)[index]
      if mapped.dtype.kind == "f" or mapped.dtype.name == "bfloat16":
        files.check_finite(mapped, f"{path}: {name}", "make the file again")
      return _copied(mapped, leaf.dtype)

    def place(name: str, leaf: Any) -> jax.Array:
      return jax.make_array_from_callback(
        leaf.shape, places[name], lambda index: part(name, leaf, index)
      )

    return tree_lib.unflatten({name: place(name, leaf) for name, leaf in want.items()})


def _copied(mapped: np.ndarray, dtype: Any) -> np.ndarray:
  """Out of the mapped file, since an array that is donated is written to.

  It begins at a multiple of 64 bytes, where JAX on a CPU takes it as it is; anywhere
  else it copies once more, and the largest leaf of a model stands in memory twice.
  """
  dtype = np.dtype(dtype)
  buffer = np.empty(mapped.size * dtype.itemsize + 64, np.uint8)
  start = -buffer.ctypes.data % 64
  copy = buffer[start : start + mapped.size * dtype.itemsize].view(dtype)
  copy = copy.reshape(mapped.shape)
  copy[...] = mapped
  return copy


def _integers(
  kernels: np.ndarray, kind: str, field: str, index: tuple[slice, ...]
) -> np.ndarray:
  """The part at `index` of a field of `storage.store` of float kernels [(L,) in, out]."""
  *layers, inputs, outputs = index
  if not layers:
    return np.asarray(storage.store(kernels[:, outputs], kind)[field][inputs])
  chosen = range(len(kernels))[layers[0]]
  # A scale is of all inputs, or of a block of them: they are read whole.
  parts = [storage.store(kernels[i][:, outputs], kind)[field][inputs] for i in chosen]
  return np.stack([np.asarray(part) for part in parts])


def _check(tensors: files.TensorFile, want: dict[str, Any]) -> None:
  have = {
    name: jax.ShapeDtypeStruct(tensors.shape(name), tensors.specs[name].dtype)
    for name in tensors.names
  }
  try:
    tree_lib.check_same(want, have, name=str(tensors.path))
  except ValueError as error:
    raise ValueError(
      f"{error}\nGive the file of this model, or the model of this file: its sizes are "
      "in the config it was saved with."
    ) from None
