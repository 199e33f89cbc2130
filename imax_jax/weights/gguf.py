"""GGUF files of LLaMA's architecture -> a folder as Hugging Face would publish it.

    blk.0.attn_q.weight  4-bit blocks   ─▶  model.safetensors       float32
    llama.block_count    metadata       ─▶  config.json
    tokenizer.ggml.…     metadata       ─▶  tokenizer.json, tokenizer_config.json

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. What the package
`gguf` reads is made into names and shapes here; conversion then goes on as with any other
folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken
from tokenizers import Tokenizer
from tokenizers import decoders
from tokenizers import models
from tokenizers import pre_tokenizers

from imax_jax import ledger
from imax_jax.weights import files

_SHOWN = 4
# In a layer: their name, the published one.
_IN_A_LAYER = {
  "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
  "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
  "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
  "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
_HEAD = "output.weight"  # absent where the embedding is the head
_ONCE = {
  "token_embd.weight": "model.embed_tokens.weight",
  "output_norm.weight": "model.norm.weight",
  _HEAD: "lm_head.weight",
}
# Key without "llama." -> config.json's. The second table may be left out.
_SIZES = {
  "block_count": "num_hidden_layers",
  "embedding_length": "hidden_size",
  "feed_forward_length": "intermediate_size",
  "attention.head_count": "num_attention_heads",
  "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
_OPTIONAL = {
  "attention.head_count_kv": "num_key_value_heads",
  "attention.key_length": "head_dim",
  "context_length": "max_position_embeddings",
  "rope.freq_base": "rope_theta",
  "attention.sliding_window": "sliding_window",
}
_SPECIAL_TOKENS = {
  "bos_token": "bos_token_id", "eos_token": "eos_token_id",
  "unk_token": "unknown_token_id", "pad_token": "padding_token_id",
}  # fmt: skip
# Kinds of token (the format's document): those that are looked for before all merging.
_CONTROL, _USER_DEFINED = 3, 4


def _byte_level() -> Any:
  return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


# `tokenizer.ggml.pre`: how text is cut before merging. It is the publisher's name of a
# regular expression that the file itself does not hold.
_CUTS = {
  "gpt-2": _byte_level,
  "smollm": lambda: pre_tokenizers.Sequence(
    [pre_tokenizers.Digits(individual_digits=True), _byte_level()]
  ),
}


def to_folder(path: Path, folder: Path) -> Path:
  """Writes the four files into `folder`; returns the path of its weights.

  One tensor is in memory at a time; the folder takes four bytes a parameter.

  Raises:
    ValueError: the package `gguf` is missing, the file is damaged, of another
      architecture, or lacks a key or a tensor.
  """
  reader = _open(path)
  metadata = _Metadata(path, reader.fields)
  names = [tensor.name for tensor in reader.tensors]
  config = _config(metadata, names)
  table = _names(path, names, config["num_hidden_layers"])
  tokenizer, settings = _tokenizer(metadata)
  heads = {
    "attn_q": config["num_attention_heads"],
    "attn_k": config["num_key_value_heads"],
  }
  shapes = {table[t.name]: _shape(path, t) for t in reader.tensors}
  config["vocab_size"] = shapes["model.embed_tokens.weight"][0]
  weights = folder / "model.safetensors"
  stored = {name: (shape, np.float32) for name, shape in shapes.items()}
  with files.tensor_writer(weights, stored) as writer:
    for tensor in reader.tensors:
      values = _dequantised(path, tensor)
      part = tensor.name.split(".")[-2]
      if part in heads:
        values = _half_split(path, tensor.name, values, heads[part])
      writer.write(table[tensor.name], values)
  ledger.write_json(folder / "config.json", config)
  ledger.write_json(folder / "tokenizer_config.json", settings)
  tokenizer.save(str(folder / "tokenizer.json"))
  return weights


def _open(path: Path) -> Any:
  """The package's reader of the file."""
  try:
    import gguf
  except ImportError as error:
    raise ValueError(
      f"{path}: reading GGUF needs the package gguf; pip install 'imax_jax[gguf]'"
    ) from error

  class Reader(gguf.GGUFReader):
    """Ends where the file does; the package's own reads nothing there, for ever."""

    def _get(
      self, offset: int, dtype: Any, count: int = 1, override_order: Any = None
    ) -> Any:
      found = super()._get(offset, dtype, count, override_order)
      if len(found) < count:
        raise ValueError(f"{count} values should stand at byte {offset}")
      return found

  try:
    return Reader(path)
  except (ValueError, KeyError, IndexError, OverflowError) as error:
    raise ValueError(
      f"{path}: not a readable GGUF file of {path.stat().st_size} bytes ({error}); it is "
      "cut short or damaged, download it again"
    ) from error


class _Metadata:
  """The file's keys and values."""

  def __init__(self, path: Path, fields: Mapping[str, Any]) -> None:
    self.path = path
    self._fields = fields

  def get(self, key: str, kind: type | tuple[type, ...]) -> Any:
    """The value, or None if the file does not say."""
    if key not in self._fields:
      return None
    try:
      value = self._fields[key].contents()
    except ValueError as error:  # no UTF-8
      raise ValueError(f"{self.path}: {key}: {error}; download it again") from error
    if not isinstance(value, kind):
      raise ValueError(
        f"{self.path}: {key}: a {type(value).__name__}, which is not supported there"
      )
    return value

  def need(self, key: str, kind: type | tuple[type, ...]) -> Any:
    value = self.get(key, kind)
    if value is None:
      raise ValueError(f"{self.path}: {key}: missing; download the file again")
    return value

  def size(self, key: str) -> Any:
    """A number above zero."""
    value = self.need(key, (int, float))
    if not value > 0:
      raise ValueError(f"{self.path}: {key}: {value}, expected a number above 0")
    return value

  def strings(self, key: str) -> list[str]:
    value = self.need(key, list)
    if not all(isinstance(text, str) for text in value):
      raise ValueError(f"{self.path}: {key}: expected a list of strings")
    return list(value)


def _config(metadata: _Metadata, names: list[str]) -> dict[str, Any]:
  """config.json, but for vocab_size."""
  path = metadata.path
  architecture = metadata.need("general.architecture", str)
  if architecture != "llama":
    raise ValueError(
      f"{path}: general.architecture: expected 'llama', got {architecture!r}; give this "
      "model's safetensors files instead"
    )
  config = {ours: metadata.size(f"llama.{key}") for key, ours in _SIZES.items()}
  for key, ours in _OPTIONAL.items():
    value = metadata.get(f"llama.{key}", (int, float))
    if value is not None:
      config[ours] = value
  scaling = metadata.get("llama.rope.scaling.type", str)
  if scaling not in (None, "none"):
    config["rope_scaling"] = scaling
  config.setdefault("num_key_value_heads", config["num_attention_heads"])
  head = config.setdefault(
    "head_dim", config["hidden_size"] // config["num_attention_heads"]
  )
  turned = metadata.get("llama.rope.dimension_count", int)
  if turned not in (None, head):
    config["partial_rotary_factor"] = turned / head
  return {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "tie_word_embeddings": _HEAD not in names,
    **{key: _decimal(value) for key, value in config.items()},
  }


def _decimal(value: Any) -> Any:
  """A float32 as it was meant: 1e-05, not 9.999999747378752e-06."""
  return float(str(np.float32(value))) if isinstance(value, float) else value


def _names(path: Path, names: list[str], depth: int) -> dict[str, str]:
  """{name there: published name} of all tensors.

  Raises:
    ValueError: one is missing, or there is one that the architecture has not.
  """
  table = dict(_ONCE) | {
    f"blk.{i}.{theirs}.weight": f"model.layers.{i}.{ours}.weight"
    for i in range(min(depth, len(names)))  # a damaged depth may be any number
    for theirs, ours in _IN_A_LAYER.items()
  }
  for problem, found in (
    ("missing", table.keys() - {*names, _HEAD}),
    ("unexpected", set(names) - table.keys()),
  ):
    if found:
      listed = ", ".join(sorted(found)[:_SHOWN]) + (
        ", …" if len(found) > _SHOWN else ""
      )
      raise ValueError(
        f"{path}: {len(found)} tensors {problem} ({listed}); expected those of a LLaMA "
        f"of {depth} layers, without biases, experts or frequencies of its own"
      )
  return table


def _shape(path: Path, tensor: Any) -> tuple[int, ...]:
  """The format counts axes from the innermost."""
  shape = tuple(int(n) for n in reversed(tensor.shape))
  axes = 1 if "norm" in tensor.name else 2
  if len(shape) != axes:
    raise ValueError(f"{path}: {tensor.name}: shape {shape}, expected {axes} axes")
  return shape


def _dequantised(path: Path, tensor: Any) -> np.ndarray:
  """A tensor as float32."""
  from gguf import quants

  try:
    values = quants.dequantize(tensor.data, tensor.tensor_type)
  except NotImplementedError as error:
    raise ValueError(
      f"{path}: {tensor.name}: stored as {tensor.tensor_type.name}, which the package "
      "gguf cannot turn into numbers; give a file of another quantisation"
    ) from error
  return np.asarray(values, np.float32).reshape(_shape(path, tensor))


def _half_split(path: Path, name: str, matrix: np.ndarray, heads: int) -> np.ndarray:
  """[out, in] of q or k with the rows in the published order.

  The format keeps the two numbers that RoPE turns together side by side; the published
  layout keeps them half a head apart.
  """
  rows, columns = matrix.shape
  if rows % (2 * heads):
    raise ValueError(
      f"{path}: {name}: {rows} rows do not make {heads} heads of an even width"
    )
  return matrix.reshape(heads, -1, 2, columns).swapaxes(1, 2).reshape(rows, columns)


# ── tokenizer ─────────────────────────────────────────────────────────────────────


def _tokenizer(metadata: _Metadata) -> tuple[Tokenizer, dict[str, Any]]:
  """The byte-pair tokenizer, and what tokenizer_config.json says of it."""
  path, ggml = metadata.path, "tokenizer.ggml"
  kind, cut = metadata.need(f"{ggml}.model", str), metadata.get(f"{ggml}.pre", str)
  if kind != "gpt2" or cut not in _CUTS:
    raise ValueError(
      f"{path}: {ggml}.model is {kind!r} and {ggml}.pre {cut!r}, expected 'gpt2' and one "
      f"of {sorted(_CUTS)}; give this model's safetensors files and tokenizer instead"
    )
  tokens = metadata.strings(f"{ggml}.tokens")
  kinds = metadata.need(f"{ggml}.token_type", list)
  merges = metadata.strings(f"{ggml}.merges")
  if len(set(tokens)) != len(tokens) or len(kinds) != len(tokens):
    raise ValueError(
      f"{path}: {ggml}.tokens: {len(tokens)} tokens, {len(set(tokens))} different ones "
      f"and {len(kinds)} in {ggml}.token_type; expected three equal numbers"
    )
  pairs = [(a, b) for a, _, b in (merge.partition(" ") for merge in merges)]
  try:
    found = Tokenizer(
      models.BPE(vocab={text: i for i, text in enumerate(tokens)}, merges=pairs)
    )
  except Exception as error:  # the library raises no narrower class
    raise ValueError(
      f"{path}: {ggml}.merges: do not fit {ggml}.tokens ({error}); download it again"
    ) from error
  found.pre_tokenizer = _CUTS[cut]()
  found.decoder = decoders.ByteLevel()
  found.add_tokens(
    [
      AddedToken(text, special=kind == _CONTROL, normalized=False)
      for text, kind in zip(tokens, kinds, strict=True)
      if kind in (_CONTROL, _USER_DEFINED)
    ]
  )
  return found, _settings(metadata, tokens)


def _settings(metadata: _Metadata, tokens: list[str]) -> dict[str, Any]:
  settings: dict[str, Any] = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "clean_up_tokenization_spaces": False,
  }
  for role, name in _SPECIAL_TOKENS.items():
    key = f"tokenizer.ggml.{name}"
    number = metadata.get(key, int)
    if number is None:
      continue
    if not 0 <= number < len(tokens):
      raise ValueError(
        f"{metadata.path}: {key}: {number}, expected an id below {len(tokens)}"
      )
    settings[role] = tokens[number]
  template = metadata.get("tokenizer.chat_template", str)
  return settings | ({"chat_template": template} if template else {})
