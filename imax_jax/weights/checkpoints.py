"""Published checkpoints: one file, or a folder of shards with its index; read lazily.

An adapter's folder may have a second file: what was trained beside it.

Pickles are made into safetensors files in a scratch folder first, by another process;
GGUF files, which hold config.json and tokenizer too, into a whole folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from imax_jax.weights import files
from imax_jax.weights import gguf
from imax_jax.weights import pickles

# What a folder is looked through for, in this order. An index names the shards.
_IN_A_FOLDER = (
  "model.safetensors.index.json",
  "model.safetensors",
  "adapter_model.safetensors",
  "foundation.safetensors",
  "pytorch_model.bin.index.json",
  "pytorch_model.bin",
  "adapter_model.bin",
  "mm_projector.bin",
)

# LLaVA's: connector, and tower if it was trained, beside an adapter.
BESIDE_AN_ADAPTER = "non_lora_trainables.bin"


class Checkpoint:
  """Open files as one: `names`, and each tensor's shape, dtype, file and array.

  `files` are the published ones (what to name in a message and to take a hash of), even
  where a pickle's tensors are read from the scratch folder. `wrapper` is the key under
  which a pickle held its tensors, "" if they stood at the top; `beside` names what it
  held that is no tensor (optimizer, epoch). `folder` is where config.json and the like
  would lie.
  """

  def __init__(
    self, path: Path, shards: dict[Path, files.TensorFile], folder: Path
  ) -> None:
    names = [name for shard in shards.values() for name in shard.names]
    if len(set(names)) != len(names):
      twice = next(name for name in names if names.count(name) > 1)
      raise ValueError(
        f"{path}: {twice} stands in two of {', '.join(file.name for file in shards)}; "
        "expected each tensor once. Give the files of one version"
      )
    self.path = path
    self.folder = folder
    self.files = tuple(shards)
    self._home = {
      name: (file, shard) for file, shard in shards.items() for name in shard.names
    }
    self.names: tuple[str, ...] = tuple(sorted(self._home))
    self.wrapper = max(
      (shard.metadata.get("wrapper", "") for shard in shards.values()), default=""
    )
    held = (pickles.beside(shard.metadata) for shard in shards.values())
    self.beside: tuple[str, ...] = tuple(name for names in held for name in names)

  def file(self, name: str) -> Path:
    return self._home[name][0]

  def shape(self, name: str) -> tuple[int, ...]:
    return self._home[name][1].shape(name)

  def dtype(self, name: str) -> np.dtype:
    return self._home[name][1].specs[name].dtype

  def read(self, name: str) -> np.ndarray:
    return self._home[name][1].read(name)

  def view(self, name: str) -> np.ndarray:
    """The tensor as it lies in the file."""
    return self._home[name][1].view(name)


@contextmanager
def open_checkpoint(path: str | Path, scratch: Path) -> Iterator[Checkpoint]:
  """Opens a published file or folder.

  Args:
    scratch: a folder for what becomes of pickles, as large as they are, and of GGUF
      files: four bytes a parameter.

  Raises:
    FileNotFoundError: nothing there, no weights in the folder, a shard is missing.
    ValueError: a damaged file, an index and shards that disagree, a pickle that holds
      more than tensors.
  """
  path = Path(path)
  source = _find(path)
  index = _read_index(source) if source.name.endswith(".index.json") else None
  found = [source] if index is None else _shards(source, index)
  folder = path if path.is_dir() else path.parent
  second = folder / BESIDE_AN_ADAPTER
  if source.name.startswith("adapter_model.") and second.is_file():
    found.append(second)
  readable = dict(zip(found, found, strict=True))
  if source.suffix == ".gguf":
    readable, folder = {source: gguf.to_folder(source, scratch)}, scratch
  pickled = [file for file in found if file.suffix not in (".safetensors", ".gguf")]
  if pickled:
    readable |= pickles.to_safetensors(pickled, scratch)
  with ExitStack() as stack:
    shards = {}
    for file, tensors in readable.items():
      shards[file] = stack.enter_context(files.open_tensors(tensors))
    if index is not None:
      _check_index(source, index, shards)
    yield Checkpoint(path, shards, folder)


def _find(path: Path) -> Path:
  """The weights file or index that a path stands for."""
  if not path.is_dir():
    if not path.exists():
      raise FileNotFoundError(f"{path}: nothing there; check the path of the weights")
    return path
  for name in _IN_A_FOLDER:
    if (path / name).is_file():
      return path / name
  orphans = sorted(path.glob("model-*.safetensors")) + sorted(
    path.glob("pytorch_model-*.bin")
  )
  if orphans:
    raise FileNotFoundError(
      f"{path}: {len(orphans)} shards ({orphans[0].name}, …) and no index; expected "
      f"{_IN_A_FOLDER[0]} beside them, download it too"
    )
  raise FileNotFoundError(
    f"{path}: no weights in this folder; expected one of {', '.join(_IN_A_FOLDER)}. "
    "Give the folder that holds them, or the file itself"
  )


def _read_index(path: Path) -> dict[str, str]:
  """{tensor's name: shard's file name}."""
  try:
    index = json.loads(path.read_text(encoding="utf8"))["weight_map"]
    if not index or not all(isinstance(shard, str) for shard in index.values()):
      raise ValueError("names without files")
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise ValueError(
      f'{path}: expected an index {{"weight_map": {{tensor: file}}}}, got something '
      "else; download it again"
    ) from error
  for name, shard in index.items():
    if Path(shard).name != shard:
      raise ValueError(
        f"{path}: {name} is said to lie in {shard!r}; expected a file of the same folder"
      )
  return index


def _shards(path: Path, index: dict[str, str]) -> list[Path]:
  shards = sorted({path.with_name(shard) for shard in index.values()})
  for shard in shards:
    if not shard.is_file():
      names = [name for name, file in index.items() if file == shard.name]
      raise FileNotFoundError(
        f"{shard}: missing; {path.name} expects {len(names)} tensors in it ({names[0]}, "
        "…). Download it"
      )
  return shards


def _check_index(
  path: Path, index: dict[str, str], shards: dict[Path, files.TensorFile]
) -> None:
  for name, shard in index.items():
    if name not in shards[path.with_name(shard)].specs:
      raise ValueError(
        f"{path}: says that {name} lies in {shard}, which does not hold it; download "
        "index and shards of the same version"
      )
  for file, tensors in shards.items():
    for name in tensors.names:
      if index.get(name) != file.name:
        raise ValueError(
          f"{file}: holds {name}, which {path.name} does not know there (it says "
          f"{index.get(name, 'nothing')}); download index and shards of the same version"
        )
