"""Parameters to a safetensors file and back, strictly.

A tensor's name in the file is its parameter's path: "decoder/layers/attn/q/kernel".
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

from imax_jax import tree as tree_lib
from imax_jax.weights import files


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
    have = {
      name: jax.ShapeDtypeStruct(tensors.shape(name), np.float32)
      for name in tensors.names
    }
    try:
      tree_lib.check_same(want, have, name=str(path))
    except ValueError as error:
      raise ValueError(
        f"{error}\nGive the file of this model, or the model of this file: its sizes are "
        "in the config it was saved with."
      ) from None
    return tree_lib.unflatten(
      {name: tensors.read(name).astype(leaf.dtype) for name, leaf in want.items()}
    )
