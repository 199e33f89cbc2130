"""The decoder with its adapter merged, as a Hugging Face folder.

    kernel + alpha/R · A B, in float32   ──▶  model-00001-of-00003.safetensors, …
    the decoder's fields                 ──▶  config.json
                                              model.safetensors.index.json

A tensor of one layer at a time is made, turned and written. Encoder and connector have
no place in such a folder.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from typing import NamedTuple

import numpy as np

from imax_jax.ledger import write_json
from imax_jax.models import lora
from imax_jax.models import zoo
from imax_jax.models.decoder import Decoder
from imax_jax.weights import beside
from imax_jax.weights import delta
from imax_jax.weights import families
from imax_jax.weights import files
from imax_jax.weights import peft
from imax_jax.weights import plan as plan_lib
from imax_jax.weights import published
from imax_jax.weights.checkpoints import Checkpoint
from imax_jax.weights.checkpoints import open_checkpoint
from imax_jax.weights.layouts import Tensor
from imax_jax.weights.plan import Source
from imax_jax.weights.rows_of_layouts import layout
from imax_jax.weights.rows_of_layouts import recognise

INDEX, CONFIG = "model.safetensors.index.json", "config.json"
DTYPES = ("bfloat16", "float32")
SHARD_BYTES = 5_000_000_000

# (fused, qkv_bias, window) -> model_type and class.
_FAMILIES = {
  (False, False, False): ("llama", "LlamaForCausalLM"),
  (False, False, True): ("mistral", "MistralForCausalLM"),
  (False, True, False): ("qwen2", "Qwen2ForCausalLM"),
  (False, True, True): ("qwen2", "Qwen2ForCausalLM"),
  (True, False, False): ("phi3", "Phi3ForCausalLM"),
  (True, False, True): ("phi3", "Phi3ForCausalLM"),
}
# Fields of which all of them have the default.
_OF_NO_FAMILY = (
  "global_every", "rope_factor", "query_scale", "activation", "embed_scale",
  "norm_offset", "qk_norm", "post_norms",
)  # fmt: skip
# Of the base's own config.json: what our fields do not say and its users rely on.
_CARRIED = (
  "max_position_embeddings", "original_max_position_embeddings", "bos_token_id",
  "eos_token_id", "pad_token_id",
)  # fmt: skip
_GENERATION = "generation_config.json"


class Shards(NamedTuple):
  """What was written: how many files, and bytes of tensors in them."""

  num_files: int
  num_bytes: int


class Leaf:
  """A parameter as it is handed out: its low-rank pair added in, in the file's dtype.

  It is made and checked a layer at a time, where a layer is asked for.
  """

  def __init__(
    self, params: Mapping[str, Any], path: str, alpha: float, dtype: np.dtype
  ) -> None:
    stored = {path: params[path]}
    if f"{path}_scale" in params:
      stored[f"{path}_scale"] = params[f"{path}_scale"]
    self.shape = plan_lib.stored_leaves(stored)[path].shape
    self.dtype, self._params, self._path, self._alpha = dtype, params, path, alpha

  def __getitem__(self, layer: int | None) -> np.ndarray:
    """One layer, or all that there is.

    Raises:
      ValueError: a value that is no number, or none that the dtype holds.
    """
    value = np.asarray(lora.merged(self._params, self._path, self._alpha, layer))
    where = self._path if layer is None else f"{self._path}, layer {layer}"
    files.check_finite(value, where, peft.DIVERGED)
    with np.errstate(over="ignore"):
      kept = value.astype(self.dtype)
    if self.dtype != value.dtype:
      files.check_finite(kept, where, f"{self.dtype} cannot hold it: use a wider dtype")
    return kept

  def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
    return self[None]


class Item(NamedTuple):
  """A tensor to be written under `name`: made of `leaves` by a table.

  `base`: the published file and the name in it of what it is written as a difference
  from.
  """

  name: str
  tensor: Tensor
  leaves: Mapping[str, Leaf]
  base: tuple[Checkpoint, str] | None = None

  def value(self) -> np.ndarray:
    whole = self.tensor.value(self.leaves)
    if self.base is None:
      return whole
    checkpoint, name = self.base
    return delta.difference(whole, checkpoint.read(name))


def write_merged(
  folder: str | Path,
  params: Mapping[str, Any],
  decoder: Mapping[str, Any],
  *,
  dtype: str = "bfloat16",
  shard_bytes: int = SHARD_BYTES,
  base: Path | None = None,
  special: Mapping[str, int | None] | None = None,
) -> Shards:
  """Writes a folder that transformers' AutoModelForCausalLM loads.

  Args:
    folder: an existing one.
    params: {path: array} of the model, of which the decoder's are taken.
    decoder: its fields.
    dtype: "bfloat16" or "float32"; the sum itself is made in float32.
    shard_bytes: the most that a file's tensors take, but for a single larger one.
    base: the folder that the decoder came from, published or ours, if there is one: its
      tokenizer's and generation's files are copied.
    special: {"eos_token_id": 2, …} for config.json; what `base` says comes before it.

  Raises:
    ValueError: a decoder that no published family has, a value that is no number.
  """
  folder = Path(folder)
  if dtype not in DTYPES:
    raise ValueError(f"merge: dtype {dtype!r}, expected one of {DTYPES}")
  config = config_of(decoder, dtype) | dict(special or {}) | carried(base)
  leaves = decoder_leaves(params, decoder, np.dtype(dtype))
  table = layout("hf_phi3" if peft.filled(decoder)["fused"] else "hf_llama")
  lost = sorted(leaves.keys() - table.paths)
  assert not lost, f"{table.name} has no row for {lost}"
  items = [Item(tensor.name, tensor, leaves) for tensor in table.tensors(leaves)]
  copy_beside(base, folder)
  shards = write_shards(folder, items, np.dtype(dtype), shard_bytes)
  write_json(folder / CONFIG, config)
  return shards


def decoder_leaves(
  params: Mapping[str, Any], decoder: Mapping[str, Any], dtype: np.dtype
) -> dict[str, Leaf]:
  """{path: leaf} of the decoder without LoRA, its pairs added in."""
  alpha = peft.filled(decoder)["lora_alpha"]
  return {
    path: Leaf(params, path, alpha, dtype)
    for path in plan_lib.stored_leaves(params)
    if path.startswith("decoder/") and "/lora_" not in path
  }


def write_shards(
  folder: Path, items: Sequence[Item], dtype: np.dtype, most: int = SHARD_BYTES
) -> Shards:
  """Writes the tensors into files of at most so many bytes, and their index last."""
  shards = _divide(items, dtype.itemsize, most)
  weight_map: dict[str, str] = {}
  for number, held in enumerate(shards, start=1):
    file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
    table = {item.name: (item.tensor.shape, dtype) for item in held}
    with files.tensor_writer(folder / file, table, peft.TORCH) as writer:
      for item in held:
        writer.write(item.name, item.value())
    weight_map |= dict.fromkeys(table, file)
  size = sum(math.prod(item.tensor.shape) for item in items) * dtype.itemsize
  write_json(
    folder / INDEX, {"metadata": {"total_size": size}, "weight_map": weight_map}
  )
  return Shards(len(shards), size)


def read_merged(
  folder: str | Path, expected: Mapping[str, Any], decoder: Mapping[str, Any]
) -> dict[str, np.ndarray]:
  """{path: array} of a merged folder, for the model without LoRA.

  Args:
    expected: {path: array or stand-in} of that model's decoder.
    decoder: its fields.

  Raises:
    FileNotFoundError, ValueError: the folder is not whole, or another model's.
  """
  folder = Path(folder)
  with open_checkpoint(folder, folder) as checkpoint:
    table = recognise(checkpoint, "decoder")
    published.check_config(folder / CONFIG, table, decoder)
    return peft.read_leaves(Source(checkpoint, table), plan_lib.stored_leaves(expected))


def config_of(decoder: Mapping[str, Any], dtype: str) -> dict[str, Any]:
  """config.json of a decoder: what `published.check_config` takes for the same fields.

  Raises:
    ValueError: no published family has such a decoder, or its low-rank pairs stay apart.
  """
  fields = peft.filled(decoder)
  if fields["lora_experts"]:
    raise ValueError(f"merge: {lora.NOT_A_PAIR}")
  fused, biased, window = fields["fused"], fields["qkv_bias"], fields["window"]
  if (fused, biased, bool(window)) not in _FAMILIES:
    raise ValueError(
      f"merge: no published family has fused={fused} and qkv_bias={biased} together; "
      "hand out the bundle instead"
    )
  usual = zoo.defaults(Decoder)
  odd = [key for key in _OF_NO_FAMILY if fields[key] != usual[key]]
  if odd:
    raise ValueError(
      f"merge: of the families that can be written none has {', '.join(odd)}; hand out "
      "the bundle instead"
    )
  kind, name = _FAMILIES[fused, biased, bool(window)]
  fields["head_width"] = fields["head_width"] or fields["width"] // fields["num_heads"]
  return {
    "model_type": kind,
    "architectures": [name],
    **{theirs: fields[ours] for theirs, ours in families.DECODER},
    "vocab_size": fields["vocab_size"],
    # transformers 4 reads the one above, 5 this.
    "rope_parameters": {"rope_type": "default", "rope_theta": fields["rope_base"]},
    "hidden_act": "silu",
    "attention_bias": False,
    "sliding_window": window or None,
    # Qwen's own: the window is from which layer on.
    "use_sliding_window": bool(window),
    "max_window_layers": 0,
    "pad_token_id": None,
    "dtype": dtype,
    "torch_dtype": dtype,
  }


def copy_beside(base: Path | None, folder: Path) -> None:
  """Copies the tokenizer's and generation's files of a published folder or ours."""
  if base is not None:
    beside.copy(base, folder)
    if (base / _GENERATION).is_file():
      shutil.copyfile(base / _GENERATION, folder / _GENERATION)


def carried(base: Path | None) -> dict[str, Any]:
  """What the base's own config.json says beyond our fields."""
  if base is None or not (base / CONFIG).is_file():
    return {}
  found = published.read_json(base / CONFIG)
  return {key: found[key] for key in _CARRIED if key in found}


def _divide(items: Sequence[Item], itemsize: int, most: int) -> list[list[Item]]:
  """In shards of at most so many bytes, but for a single larger tensor."""
  shards: list[list[Item]] = [[]]
  room = most
  for item in items:
    size = math.prod(item.tensor.shape) * itemsize
    if shards[-1] and size > room:
      shards.append([])
      room = most
    shards[-1].append(item)
    room -= size
  return shards
