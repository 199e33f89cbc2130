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
from pathlib import Path
from typing import Any
from typing import NamedTuple

import numpy as np

from imax_jax.ledger import write_json
from imax_jax.models import lora
from imax_jax.weights import files
from imax_jax.weights import peft
from imax_jax.weights import plan as plan_lib
from imax_jax.weights import published
from imax_jax.weights.checkpoints import open_checkpoint
from imax_jax.weights.layouts import Row
from imax_jax.weights.plan import Source
from imax_jax.weights.rows_of_layouts import layout

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
# Of the base's own config.json: what our fields do not say and its users rely on.
_CARRIED = (
  "max_position_embeddings", "original_max_position_embeddings", "bos_token_id",
  "eos_token_id", "pad_token_id",
)  # fmt: skip
_BESIDE = (
  "generation_config.json", "tokenizer.json", "tokenizer.model",
  "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
  "merges.txt", "chat_template.jinja",
)  # fmt: skip


class Shards(NamedTuple):
  """What was written: how many files, and bytes of tensors in them."""

  num_files: int
  num_bytes: int


class _Tensor(NamedTuple):
  """One to be written: a row's share of a leaf, or of one layer of it."""

  row: Row
  layer: int | None
  shape: tuple[int, ...]


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
    base: the published folder that the decoder came from, if there is one: its
      tokenizer's and generation's files are copied.
    special: {"eos_token_id": 2, …} for config.json; what `base` says comes before it.

  Raises:
    ValueError: a decoder that no published family has, a value that is no number.
  """
  folder = Path(folder)
  if dtype not in DTYPES:
    raise ValueError(f"merge: dtype {dtype!r}, expected one of {DTYPES}")
  config = config_of(decoder, dtype) | dict(special or {}) | _carried(base)
  kept, alpha = np.dtype(dtype), peft.filled(decoder)["lora_alpha"]
  tensors = _tensors(params, decoder)
  shards = _divide(tensors, kept.itemsize, shard_bytes)
  weight_map: dict[str, str] = {}
  for number, names in enumerate(shards, start=1):
    file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
    table = {name: (tensors[name].shape, kept) for name in names}
    with files.tensor_writer(folder / file, table, peft.TORCH) as writer:
      for name in names:
        row, layer, _ = tensors[name]
        value = np.asarray(lora.merged(params, row.path, alpha, layer))
        files.check_finite(value, f"{row.path}, layer {layer}", peft.DIVERGED)
        writer.write(name, row.form.to_published(value.astype(kept)))
    weight_map |= dict.fromkeys(names, file)
  size = sum(math.prod(tensor.shape) for tensor in tensors.values()) * kept.itemsize
  if base is not None:
    for name in _BESIDE:
      if (base / name).is_file():
        shutil.copyfile(base / name, folder / name)
  write_json(folder / CONFIG, config)
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
    table = plan_lib.recognise(checkpoint, "decoder")
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
  kind, name = _FAMILIES[fused, biased, bool(window)]
  fields["head_width"] = fields["head_width"] or fields["width"] // fields["num_heads"]
  return {
    "model_type": kind,
    "architectures": [name],
    **{theirs: fields[ours] for theirs, ours in published.DECODER},
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


def _carried(base: Path | None) -> dict[str, Any]:
  """What the base's own config.json says beyond our fields."""
  if base is None or not (base / CONFIG).is_file():
    return {}
  found = published.read_json(base / CONFIG)
  return {key: found[key] for key in _CARRIED if key in found}


def _tensors(
  params: Mapping[str, Any], decoder: Mapping[str, Any]
) -> dict[str, _Tensor]:
  """{published name: tensor} of all that is written, in the order of the table."""
  leaves = {
    path: leaf
    for path, leaf in plan_lib.stored_leaves(params).items()
    if path.startswith("decoder/") and "/lora_" not in path
  }
  table = layout("hf_phi3" if peft.filled(decoder)["fused"] else "hf_llama")
  lost = sorted(leaves.keys() - table.paths)
  assert not lost, f"{table.name} has no row for {lost}"
  found: dict[str, _Tensor] = {}
  for row in table.rows:
    if row.path not in leaves:
      continue
    shape = leaves[row.path].shape
    layers: Any = range(shape[0]) if row.layered else (None,)
    # One byte seen at every index: the form is applied, nothing is read.
    one = np.broadcast_to(np.uint8(0), shape[1:] if row.layered else shape)
    turned = row.form.to_published(one).shape
    found |= {row.name(layer): _Tensor(row, layer, turned) for layer in layers}
  return found


def _divide(
  tensors: Mapping[str, _Tensor], itemsize: int, most: int
) -> list[list[str]]:
  """Names in shards of at most so many bytes, but for a single larger tensor."""
  shards: list[list[str]] = [[]]
  room = most
  for name, tensor in tensors.items():
    size = math.prod(tensor.shape) * itemsize
    if shards[-1] and size > room:
      shards.append([])
      room = most
    shards[-1].append(name)
    room -= size
  return shards
