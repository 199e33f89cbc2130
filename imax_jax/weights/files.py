"""safetensors files: flat {name: array}, read one tensor at a time, written whole.

The format holds arrays and nothing else: reading one never runs code from it, which a
pickle (`.pth`, `.bin`) does. Those are refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors import safe_open
from safetensors.numpy import save_file

from imax_jax.ledger import whole


class TensorFile:
  """An open file: its names, shapes without reading, and arrays one by one."""

  def __init__(self, handle: Any) -> None:
    self._handle = handle
    self.names: tuple[str, ...] = tuple(sorted(handle.keys()))

  def shape(self, name: str) -> tuple[int, ...]:
    return tuple(self._handle.get_slice(name).get_shape())

  def read(self, name: str) -> np.ndarray:
    return self._handle.get_tensor(name)


@contextmanager
def open_tensors(path: str | Path) -> Iterator[TensorFile]:
  """Opens a safetensors file for lazy reading.

  Raises:
    FileNotFoundError: nothing there.
    ValueError: not a safetensors file, or a damaged one.
  """
  path = Path(path)
  if not path.is_file():
    raise FileNotFoundError(
      f"{path}: no weights file; expected a .safetensors file, check the path"
    )
  try:
    handle = safe_open(str(path), framework="np")
  except SafetensorError as error:
    raise ValueError(
      f"{path}: not a readable safetensors file ({error}). Copy or download it again; a "
      "torch checkpoint must be converted first"
    ) from error
  with handle:
    yield TensorFile(handle)


def write_tensors(path: str | Path, arrays: Mapping[str, np.ndarray]) -> None:
  """Writes {name: array}; a reader sees the old file or the new one, never a part."""
  # The format stores bytes in C order and does not look at strides.
  ordered = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
  with whole(path) as part:
    save_file(ordered, part)
