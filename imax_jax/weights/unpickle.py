"""`python -m imax_jax.weights.unpickle SOURCE TARGET …`: pickles to safetensors files.

The only module that imports torch, and no other imports it: `pickles` starts it as a
process. weights_only=True lets a pickle build tensors, dicts and plain values and
nothing else; torch before 2.10 had ways around that (CVE-2025-32434 and later ones).
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from imax_jax.weights import files
from imax_jax.weights.pickles import REFUSED

_OLDEST = (2, 10)
# A training checkpoint's tensors stand under one of these; LAVIS and MiniGPT-4: "model".
_WRAPPERS = ("model", "state_dict", "module")


class Refused(Exception):
  """With a message for the user."""


def _load_torch() -> Any:
  asked = (
    f"install 'torch>={_OLDEST[0]}.{_OLDEST[1]}' into this environment (its CPU build "
    "is enough), or give the safetensors files if the publisher has them"
  )
  try:
    import torch
  except ImportError as error:
    raise Refused(
      f"reading a pickle needs torch, which is not here: {asked}"
    ) from error
  numbers = re.findall(r"\d+", torch.__version__)[:2]
  if tuple(map(int, numbers)) < _OLDEST:
    raise Refused(
      f"torch {torch.__version__} is too old to read pickles safely: {asked}"
    )
  return torch


def _read(torch: Any, path: Path) -> Any:
  def load(mmap: bool) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)

  try:
    try:
      return load(mmap=True)
    except RuntimeError as error:
      # Files from before torch 1.6 are no zip archives and cannot be mapped.
      if "mmap" not in str(error):
        raise
      return load(mmap=False)
  except Exception as error:
    text = " ".join(str(error).split())
    if isinstance(error, OSError):  # a map that is longer than the file
      text += f"; the file has {path.stat().st_size:,} bytes, perhaps not all"
    named = re.search(r"GLOBAL (\S+)", text)
    if named or "nsupported" in text:
      what = named.group(1).rstrip(".,:") if named else "an unknown instruction"
      raise Refused(
        f"{path}: this pickle holds more than tensors ({what}) and is refused, since "
        "loading it would run its code. Ask its publisher for a safetensors file"
      ) from error
    raise Refused(
      f"{path}: not a readable torch file ({type(error).__name__}: {text[:160]}). Copy "
      "or download it again"
    ) from error


def _unwrap(
  torch: Any, path: Path, value: Any
) -> tuple[str, dict[str, Any], list[str]]:
  """(wrapper, {name: tensor}, the names of what is no tensor)."""
  wrapper = ""
  if isinstance(value, Mapping):
    for key in _WRAPPERS:
      if isinstance(value.get(key), Mapping):
        wrapper = key
        break
  held = value[wrapper] if wrapper else value
  if not isinstance(held, Mapping):
    raise Refused(f"{path}: expected a dict of tensors, got a {type(value).__name__}")
  tensors = {k: v for k, v in held.items() if isinstance(v, torch.Tensor)}
  if not tensors or not all(isinstance(name, str) for name in held):
    raise Refused(
      f"{path}: expected a dict of named tensors, got one of {len(held)} entries "
      f"({', '.join(map(str, list(held)[:4]))}). Give the file of the weights"
    )
  beside = [key for key in value if key != wrapper] if wrapper else []
  loose = [key for key in beside if isinstance(value[key], torch.Tensor)]
  if loose:
    raise Refused(
      f"{path}: {', '.join(map(str, loose[:4]))} beside {wrapper!r}, which holds the "
      "other tensors: expected all in one place. Ask its publisher what they are"
    )
  return wrapper, tensors, [*beside, *(k for k in held if k not in tensors)]


def _array(torch: Any, path: Path, name: str, tensor: Any) -> np.ndarray:
  """A view of a CPU tensor where it is contiguous."""
  if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
    raise Refused(f"{path}: {name} is a {tensor.dtype} tensor without plain values")
  tensor = tensor.detach().contiguous()
  if tensor.dtype == torch.bfloat16:
    return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
  return tensor.numpy()


def convert(torch: Any, source: Path, target: Path) -> None:
  """One tensor in memory at a time; tensors that share storage are written out each."""
  wrapper, tensors, beside = _unwrap(torch, source, _read(torch, source))
  narrow = {torch.bfloat16: np.dtype(ml_dtypes.bfloat16)}
  table = {}
  for name, tensor in tensors.items():
    try:
      dtype = (
        narrow.get(tensor.dtype) or torch.empty(0, dtype=tensor.dtype).numpy().dtype
      )
      table[name] = (tuple(tensor.shape), files.storable(dtype))
    except (TypeError, KeyError, RuntimeError) as error:
      raise Refused(
        f"{source}: {name} is stored as {tensor.dtype}, which is not supported; give "
        "the unquantised weights"
      ) from error
  metadata = {"wrapper": wrapper, "beside": json.dumps([*map(str, beside)])}
  with files.tensor_writer(target, table, metadata) as writer:
    for name, tensor in tensors.items():
      writer.write(name, _array(torch, source, name, tensor))


def main(arguments: list[str]) -> int:
  try:
    torch = _load_torch()
    for source, target in zip(arguments[::2], arguments[1::2], strict=True):
      convert(torch, Path(source), Path(target))
  except Refused as refused:
    print(refused, file=sys.stderr)
    return REFUSED
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
