"""safetensors files: names and shapes without reading, one tensor at a time, both ways.

    8 bytes n | n bytes of JSON {name: {dtype, shape, data_offsets}} | the data

The format (https://huggingface.co/docs/safetensors) holds arrays and nothing else:
reading one never runs code from it, which a pickle (`.pth`, `.bin`) does. Since all
places are known from shapes and dtypes alone, a file larger than memory can be written
one slice at a time.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterator
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from typing import BinaryIO
from typing import NamedTuple

import ml_dtypes
import numpy as np

from imax_jax.ledger import whole

_DTYPES = {
  name: np.dtype(dtype)
  for name, dtype in (
    ("F64", np.float64), ("F32", np.float32), ("F16", np.float16),
    ("BF16", ml_dtypes.bfloat16), ("I64", np.int64), ("I32", np.int32),
    ("I16", np.int16), ("I8", np.int8), ("U64", np.uint64), ("U32", np.uint32),
    ("U16", np.uint16), ("U8", np.uint8), ("BOOL", np.bool_),
  )
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_LONGEST_HEADER = 100_000_000  # bytes; what the format's own library allows
_LFS = b"version https://git-lfs"


_CHUNK = 1 << 18  # elements looked at together
# The bits of an exponent: all set in infinities and NaNs, and in nothing else.
_EXPONENTS = {
  "float64": 0x7FF0_0000_0000_0000, "float32": 0x7F80_0000, "float16": 0x7C00,
  "bfloat16": 0x7F80,
}  # fmt: skip


class Spec(NamedTuple):
  """What a file says of a tensor: its shape, dtype and first byte in the file."""

  shape: tuple[int, ...]
  dtype: np.dtype
  start: int

  @property
  def size(self) -> int:
    """Bytes."""
    return math.prod(self.shape) * self.dtype.itemsize


def storable(dtype: Any) -> np.dtype:
  """The dtype as numpy's; a KeyError for one that the format does not know."""
  return _DTYPES[_NAMES[np.dtype(dtype)]]


class TensorFile:
  """An open file: `specs` of its tensors, and arrays one by one."""

  def __init__(self, path: Path, file: BinaryIO) -> None:
    self.path = path
    self._file = file
    self.specs, self.metadata = _read_header(path, file)
    self.names: tuple[str, ...] = tuple(sorted(self.specs))

  def shape(self, name: str) -> tuple[int, ...]:
    return self.specs[name].shape

  def read(self, name: str) -> np.ndarray:
    """The whole tensor, in memory of its own."""
    spec = self.specs[name]
    array = np.empty(spec.shape, spec.dtype)
    self._file.seek(spec.start)
    if self._file.readinto(array.reshape(-1).view(np.uint8)) != spec.size:  # type: ignore[attr-defined]
      raise ValueError(f"{self.path}: {name} ends early; the file changed while open")
    return array

  def view(self, name: str) -> np.ndarray:
    """The tensor as it lies in the file: only the parts that are looked at are read."""
    spec = self.specs[name]
    if not spec.size:
      return np.empty(spec.shape, spec.dtype)
    data = np.memmap(self.path, np.uint8, "r", spec.start, (spec.size,))
    return data.view(np.ndarray).view(spec.dtype).reshape(spec.shape)


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
  with path.open("rb") as file:
    yield TensorFile(path, file)


def _read_header(path: Path, file: BinaryIO) -> tuple[dict[str, Spec], dict[str, str]]:
  def refuse(reason: str) -> ValueError:
    return ValueError(
      f"{path}: not a readable safetensors file ({reason}). Copy or download it again; "
      "delete what is left of the old one"
    )

  total = os.fstat(file.fileno()).st_size
  start = file.read(len(_LFS))
  if start == _LFS:
    raise refuse("it is a Git LFS pointer to the file, not the file: git lfs pull")
  length = struct.unpack("<Q", start[:8])[0] if len(start) >= 8 else 0
  if not 2 <= length <= min(_LONGEST_HEADER, total - 8):
    raise refuse(f"no header of {length} bytes fits its {total} bytes")
  file.seek(8)
  try:
    header = json.loads(file.read(length), object_pairs_hook=_no_twins)
    metadata = header.pop("__metadata__", {})
    specs = {name: _spec(name, entry, 8 + length) for name, entry in header.items()}
  except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
    raise refuse(f"header: {error}") from error
  end = 8 + length
  for name, spec in sorted(
    specs.items(), key=lambda item: (item[1].start, item[1].size)
  ):
    if spec.start != end:
      raise refuse(f"{name} starts at byte {spec.start}, expected {end}")
    end += spec.size
  if end != total:
    raise refuse(f"expected {end} bytes, the file has {total}")
  return specs, metadata


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  found = dict(pairs)
  if len(found) != len(pairs):
    raise ValueError("a name stands in it twice")
  return found


def _spec(name: str, entry: Mapping[str, Any], origin: int) -> Spec:
  if entry["dtype"] not in _DTYPES:
    raise ValueError(
      f"{name} is stored as {entry['dtype']!r}, expected one of {', '.join(_DTYPES)}"
    )
  shape, (first, last) = tuple(entry["shape"]), entry["data_offsets"]
  if not all(isinstance(n, int) and n >= 0 for n in (*shape, first, last)):
    raise ValueError(f"{name} has a negative size or offset")
  spec = Spec(shape, _DTYPES[entry["dtype"]], origin + first)
  if last - first != spec.size:
    raise ValueError(f"{name}: {shape} does not fill {last - first} bytes")
  return spec


class TensorWriter:
  """Writes tensors, or slices of them, in any order to places known beforehand."""

  def __init__(
    self,
    file: BinaryIO,
    table: Mapping[str, tuple[tuple[int, ...], Any]],
    metadata: Mapping[str, str],
  ) -> None:
    self._file = file
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    self._specs: dict[str, Spec] = {}
    # Wide dtypes first, so that every tensor starts at a multiple of its item's size.
    order = sorted(table, key=lambda name: (-np.dtype(table[name][1]).itemsize, name))
    for name in order:
      shape, dtype = table[name]
      spec = Spec(tuple(shape), np.dtype(dtype), end)
      self._specs[name] = spec
      end += spec.size
      header[name] = {
        "dtype": _NAMES[spec.dtype],
        "shape": list(spec.shape),
        "data_offsets": [spec.start, end],
      }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    self._origin = 8 + len(text)
    self._left = {name: spec.size for name, spec in self._specs.items()}
    self._written: set[tuple[str, int | None]] = set()
    file.write(struct.pack("<Q", len(text)) + text)
    file.truncate(self._origin + end)

  def write(self, name: str, array: np.ndarray, index: int | None = None) -> None:
    """A whole tensor, or with `index` the slice [index] of one, once each."""
    spec = self._specs[name]
    expected = spec.shape if index is None else spec.shape[1:]
    assert array.shape == expected and array.dtype == spec.dtype, (
      f"{name}: expected {expected} {spec.dtype}, got {array.shape} {array.dtype}"
    )
    assert (name, index) not in self._written, f"{name}[{index}] is written twice"
    self._written.add((name, index))
    # The format stores bytes in C order and does not look at strides.
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    self._file.seek(self._origin + spec.start + (index or 0) * data.size)
    self._file.write(data.data)
    self._left[name] -= data.size

  def close(self) -> None:
    open_ = [name for name, left in self._left.items() if left]
    assert not open_, f"not all written: {open_[:5]}"


@contextmanager
def tensor_writer(
  path: str | Path,
  table: Mapping[str, tuple[tuple[int, ...], Any]],
  metadata: Mapping[str, str] | None = None,
) -> Iterator[TensorWriter]:
  """Opens a file of {name: (shape, dtype)}; a reader sees it when all is written.

  Args:
    metadata: what the header says of the file besides, {str: str}.
  """
  with whole(path) as part:
    with part.open("wb") as file:
      writer = TensorWriter(file, table, metadata or {})
      yield writer
    writer.close()


def check_finite(array: np.ndarray, where: str, remedy: str) -> None:
  """Refuses infinities and NaNs.

  Raises:
    ValueError: `where`, the index, the value, and `remedy`.
  """
  mask = np.array(_EXPONENTS[array.dtype.name], f"u{array.dtype.itemsize}")
  bits = np.ascontiguousarray(array).reshape(-1).view(mask.dtype)
  for start in range(0, bits.size, _CHUNK):
    bad = (bits[start : start + _CHUNK] & mask) == mask
    if bad.any():
      flat = start + int(bad.argmax())
      index = tuple(int(n) for n in np.unravel_index(flat, array.shape))
      raise ValueError(
        f"{where}{list(index)} is {array[index]}, expected finite numbers; {remedy}"
      )


def write_tensors(path: str | Path, arrays: Mapping[str, np.ndarray]) -> None:
  """Writes {name: array}; a reader sees the old file or the new one, never a part."""
  table = {name: (array.shape, array.dtype) for name, array in arrays.items()}
  with tensor_writer(path, table) as writer:
    for name, array in arrays.items():
      writer.write(name, array)
