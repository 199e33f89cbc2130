"""Torch's own files (`.pth`, `.bin`), written without torch, a tensor at a time.

    archive/data.pkl        what stands where: a pickle of names, shapes and storages
    archive/byteorder       "little"
    archive/data/0, …       the bytes of one tensor each, not compressed, 64-byte aligned
    archive/version         "3"

The format is that of torch.save since version 1.6 (torch/serialization.py). Of the
pickle's language (CPython, Lib/pickletools.py) a dozen instructions are needed, which are
written here one by one: nothing is pickled, so no object's own code has a say in it.
`torch.load(weights_only=True)` reads the files and so does `unpickle`.
"""

from __future__ import annotations

import math
import struct
import sys
import zipfile
from collections.abc import Iterator
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from typing import BinaryIO

import ml_dtypes
import numpy as np

from imax_jax.ledger import whole
from imax_jax.weights.files import Spec

# The dtypes that can be written, and torch's names of what keeps their bytes.
STORAGES = {
  np.dtype(np.float32): "FloatStorage",
  np.dtype(np.float16): "HalfStorage",
  np.dtype(ml_dtypes.bfloat16): "BFloat16Storage",
  np.dtype(np.int64): "LongStorage",
}
_ROOT = "archive"
_ALIGNED = 64  # bytes; torch maps a file from there without a copy
_ZIP64 = 1 << 31  # bytes; from here on an entry's header has long fields
_LOCAL_HEADER, _LONG_FIELDS, _FILLER = 30, 20, 4  # bytes


# ── The pickle ────────────────────────────────────────────────────────────────────

_MARK, _TUPLE, _DICT, _PUT_ALL, _LIST, _APPEND_ALL = b"(", b"t", b"}", b"u", b"]", b"e"
_BEGIN, _END, _CALL, _PERSISTENT = b"\x80\x02", b".", b"R", b"Q"
_ORDERED = b"ccollections\nOrderedDict\n" + b")" + _CALL
_REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"


def _integer(value: int) -> bytes:
  """BININT where 32 bits hold it, else LONG1: its bytes, little end first."""
  if -(1 << 31) <= value < 1 << 31:
    return b"J" + struct.pack("<i", value)
  size = value.bit_length() // 8 + 1
  return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)


def _text(value: str) -> bytes:
  data = value.encode()
  return b"X" + struct.pack("<I", len(data)) + data


def _tuple(*values: bytes) -> bytes:
  return _MARK + b"".join(values) + _TUPLE


def _plain(value: Any) -> bytes:
  """What a checkpoint keeps beside its tensors.

  Raises:
    TypeError: something else than None, numbers, texts, lists and dicts of texts.
  """
  match value:
    case None:
      return b"N"
    case bool():
      return b"\x88" if value else b"\x89"
    case int():
      return _integer(value)
    case float():
      return b"G" + struct.pack(">d", value)
    case str():
      return _text(value)
    case list() | tuple():
      return _LIST + _MARK + b"".join(map(_plain, value)) + _APPEND_ALL
    case Mapping():
      return _items({key: _plain(held) for key, held in value.items()})
  raise TypeError(f"a torch file keeps plain values, not a {type(value).__name__}")


def _items(values: Mapping[str, bytes], start: bytes = _DICT) -> bytes:
  pairs = (_text(name) + value for name, value in values.items())
  return start + _MARK + b"".join(pairs) + _PUT_ALL


def _tensor(number: int, spec: Spec) -> bytes:
  """_rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks)."""
  storage = b"ctorch\n" + STORAGES[spec.dtype].encode() + b"\n"
  count = math.prod(spec.shape)
  place = _tuple(
    _text("storage"), storage, _text(str(number)), _text("cpu"), _integer(count)
  )
  strides = [math.prod(spec.shape[axis + 1 :]) for axis in range(len(spec.shape))]
  arguments = _tuple(
    place + _PERSISTENT,
    _integer(0),
    _tuple(*map(_integer, spec.shape)),
    _tuple(*map(_integer, strides)),
    _plain(False),
    _ORDERED,
  )
  return _REBUILD + arguments + _CALL


# ── The archive ───────────────────────────────────────────────────────────────────


class TorchWriter:
  """Writes whole tensors in any order; a tensor's twins are written with it."""

  def __init__(
    self,
    archive: zipfile.ZipFile,
    file: BinaryIO,
    table: Mapping[str, tuple[tuple[int, ...], Any]],
    twins: Mapping[str, str],
    wrapper: str,
    beside: Mapping[str, Any],
  ) -> None:
    self._archive, self._file = archive, file
    self._specs = {
      name: Spec(tuple(shape), np.dtype(dtype), 0)
      for name, (shape, dtype) in table.items()
    }
    self._numbers = {name: number for number, name in enumerate(self._specs)}
    tensors = {
      name: _tensor(self._numbers[name], spec) for name, spec in self._specs.items()
    }
    tensors |= {twin: tensors[name] for twin, name in twins.items()}
    held = _items(tensors, _ORDERED)
    if wrapper:
      held = _items({wrapper: held} | {key: _plain(v) for key, v in beside.items()})
    self._add("data.pkl", _BEGIN + held + _END)
    self._add("byteorder", b"little")
    self._left = set(self._specs)

  def write(self, name: str, array: np.ndarray) -> None:
    """A whole tensor, once each."""
    spec = self._specs[name]
    assert array.shape == spec.shape and array.dtype == spec.dtype, (
      f"{name}: expected {spec.shape} {spec.dtype}, got {array.shape} {array.dtype}"
    )
    self._left.remove(name)
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    if sys.byteorder != "little":
      data = data.reshape(-1, spec.dtype.itemsize)[:, ::-1].reshape(-1)
    self._add(f"data/{self._numbers[name]}", data)

  def close(self) -> None:
    assert not self._left, f"not all written: {sorted(self._left)[:5]}"
    self._add("version", b"3\n")

  def _add(self, name: str, data: Any) -> None:
    """An entry whose bytes begin at a multiple of `_ALIGNED`."""
    size = len(data)
    entry = zipfile.ZipInfo(f"{_ROOT}/{name}")
    entry.file_size = size
    long = size >= _ZIP64
    head = _LOCAL_HEADER + len(entry.filename) + (_LONG_FIELDS if long else 0) + _FILLER
    short = -(self._file.tell() + head) % _ALIGNED
    # A field of the header that nobody reads, as torch fills the room.
    entry.extra = b"FB" + struct.pack("<H", short) + b"Z" * short
    with self._archive.open(entry, "w", force_zip64=long) as out:
      out.write(data)


@contextmanager
def torch_writer(
  path: str | Path,
  table: Mapping[str, tuple[tuple[int, ...], Any]],
  *,
  twins: Mapping[str, str] | None = None,
  wrapper: str = "",
  beside: Mapping[str, Any] | None = None,
) -> Iterator[TorchWriter]:
  """Opens a file of {name: (shape, dtype)}; a reader sees it when all is written.

  Args:
    table: dtypes of `STORAGES`.
    twins: {other name: name}: tensors that share a storage, as torch keeps those that a
      module holds twice.
    wrapper: the key of the dict of tensors; "": it is the file's own value.
    beside: {key: plain value} next to the wrapper: {"config": {}, "epoch": 0}.
  """
  with (
    whole(path) as part,
    part.open("wb") as file,
    zipfile.ZipFile(file, "w") as archive,
  ):
    writer = TorchWriter(archive, file, table, twins or {}, wrapper, beside or {})
    yield writer
    writer.close()
