"""config.json and adapter_config.json beside weights, checked against the model's fields.

Tensors of the right shapes are not enough: a wrong rope base, eps or activation gives a
model that talks nonsense fluently.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from typing import NamedTuple

from imax_jax import tree as tree_lib
from imax_jax.models import zoo
from imax_jax.models.decoder import Decoder
from imax_jax.models.vit import Encoder
from imax_jax.weights import signatures
from imax_jax.weights.layouts import Layout
from imax_jax.weights.own import part_of

_PARTS: dict[str, Any] = {"encoder": Encoder, "decoder": Decoder}


class Family(NamedTuple):
  """What a `model_type` is: where its config has the sizes of each layout beside it.

  `sections` {layout: key}; "" is the top, None: the config does not say. `qkv_bias`:
  whether its decoder's queries, keys and values have biases.
  """

  sections: Mapping[str, str | None]
  qkv_bias: bool = False


_TOWER = "vision_config"
_LLAVA: dict[str, str | None] = {"hf_llama": "", "clip_vision": None}
_FAMILIES = {
  "llama": Family({"hf_llama": ""}),
  "mistral": Family({"hf_llama": ""}),
  "qwen2": Family({"hf_llama": ""}, qkv_bias=True),
  "phi3": Family({"hf_phi3": ""}),
  "gemma3_text": Family({"hf_gemma3": ""}),
  # LLaVA's own classes, to begin with those of LLaVA-Med 1.0 ("llava").
  "llava": Family(_LLAVA),
  "llava_llama": Family(_LLAVA),
  "llava_mistral": Family(_LLAVA),
  # MedM-VL: it names its parts and does not describe them.
  "lvlm": Family({"hf_llama": None, "siglip_vision": None, "clip_vision": None}),
  "clip": Family({"clip_vision": _TOWER}),
  "clip_vision_model": Family({"clip_vision": ""}),
  "siglip": Family({"siglip_vision": _TOWER}),
  "siglip_vision_model": Family({"siglip_vision": ""}),
  "blip-2": Family({"blip2_vision": _TOWER}),
  "blip_2_vision_model": Family({"blip2_vision": ""}),
}
# transformers' own classes of several parts: each has a config of its own in this one,
# whose family is the class's where it does not say.
_NESTED = {
  "llava": ("text_config", "llama", "clip_vision_model"),
  "gemma3": ("text_config", "gemma3_text", "siglip_vision_model"),
}

# (theirs, ours). A key that the file lacks is not compared.
DECODER = (
  ("hidden_size", "width"),
  ("num_hidden_layers", "depth"),
  ("num_attention_heads", "num_heads"),
  ("num_key_value_heads", "num_kv_heads"),
  ("head_dim", "head_width"),
  ("intermediate_size", "mlp_width"),
  ("rms_norm_eps", "norm_eps"),
  ("rope_theta", "rope_base"),
  ("tie_word_embeddings", "tied"),
)
# Of two kinds of layers: those that look everywhere, and those with a window.
_KINDS = ("full_attention", "sliding_attention")
_GEMMA = (
  ("rope_local_base_freq", "local_rope_base"), ("rope_factor", "rope_factor"),
  ("query_scale", "query_scale"), ("sliding_window_pattern", "global_every"),
  ("hidden_activation", "activation"),
)  # fmt: skip
# What a model of the family must have, and no other.
_GEMMAS_OWN = ("embed_scale", "norm_offset", "qk_norm", "post_norms")
ENCODER = (
  ("hidden_size", "width"),
  ("num_hidden_layers", "depth"),
  ("num_attention_heads", "num_heads"),
  ("intermediate_size", "mlp_width"),
  ("patch_size", "patch_px"),
  ("num_channels", "channels"),
  ("hidden_act", "activation"),
  ("layer_norm_eps", "norm_eps"),
)
_ACTIVATIONS = {"gelu_pytorch_tanh": "gelu_tanh"}

# (key, the values that mean it is off). Anything else is asked for and not supported.
_OFF: tuple[Any, ...] = (None, False, [], {}, "")
_UNSUPPORTED = {
  "decoder": (
    ("attention_bias", _OFF), ("mlp_bias", _OFF), ("rope_scaling", _OFF),
    ("rope_type", (None, "default")), ("partial_rotary_factor", (None, 1.0)),
    ("hidden_act", (None, "silu")), ("quantization_config", _OFF),
    ("attn_logit_softcapping", _OFF), ("final_logit_softcapping", _OFF),
  ),
  "encoder": (("quantization_config", _OFF),),
  "adapter": (
    ("peft_type", (None, "LORA")), ("use_dora", _OFF), ("use_rslora", _OFF),
    ("use_qalora", _OFF), ("lora_bias", _OFF), ("fan_in_fan_out", _OFF),
    ("bias", (None, "none")), ("rank_pattern", _OFF), ("alpha_pattern", _OFF),
    ("modules_to_save", _OFF), ("layer_replication", _OFF),
    ("trainable_token_indices", _OFF), ("target_parameters", _OFF),
  ),
}  # fmt: skip


def read_json(path: Path) -> dict[str, Any]:
  """A JSON object. Raises a ValueError that names the file for anything else."""
  try:
    value = json.loads(path.read_text(encoding="utf8"))
  except ValueError as error:
    raise ValueError(
      f"{path}: not readable as JSON ({error}); download it again"
    ) from (error)
  if not isinstance(value, dict):
    raise ValueError(f"{path}: expected a JSON object, got a {type(value).__name__}")
  return value


def check_config(
  path: Path, layout: Layout, fields: Mapping[str, Any]
) -> dict[str, Any]:
  """Refuses a config.json that is not the model's; {} if there is none for it.

  Args:
    path: config.json beside the weights. Layouts that are published without one, EVA's,
      may lie beside another's.
    fields: of the model's encoder or decoder; defaults may be left out.

  Raises:
    ValueError: another family or other sizes, code of its own, unsupported options.
  """
  known = {name for family in _FAMILIES.values() for name in family.sections}
  if layout.name not in known or not path.is_file():
    return {}
  config = read_json(path)
  if config.get("auto_map"):
    raise ValueError(
      f"{path}: auto_map asks for the repository's own code to be run "
      "(trust_remote_code), which is never done. If its model_type is one of "
      f"{', '.join(_FAMILIES)}, take auto_map out: the model is built in"
    )
  family, asked = _described(path, config, layout)
  if asked is None:
    return config
  part = _PARTS[layout.part]
  mine = zoo.defaults(part) | dict(fields)
  lines = _unsupported(asked, layout.part)
  if layout.part == "decoder":
    lines += _differing_decoder(asked, mine, family)
  else:
    lines += _differing_encoder(asked, mine, layout)
  _refuse(path, lines, "Give the files of this model, or the zoo row of these files")
  return config


def _described(
  path: Path, config: Mapping[str, Any], layout: Layout
) -> tuple[Family, dict[str, Any] | None]:
  """The family of a layout's tensors, and what a config says of them; None: nothing."""
  kind = config.get("model_type")
  decoder, *kinds = _NESTED.get(str(kind), ("",))
  if decoder in config:
    which = ("decoder", "encoder").index(layout.part)
    asked = dict(_section(path, config, (decoder, _TOWER)[which]))
    return _described(path, {"model_type": kinds[which]} | asked, layout)
  family = _FAMILIES.get(str(kind or ""))
  if family is None:
    known = ", ".join(dict.fromkeys((*_FAMILIES, *_NESTED)))
    raise ValueError(f"{path}: model_type {kind!r} is not supported; there are {known}")
  if layout.name not in family.sections:
    others = (name for name, f in _FAMILIES.items() if layout.name in f.sections)
    raise ValueError(
      f"{path}: model_type {kind!r}, but the tensors beside it are laid out as "
      f"{layout.name} ({', '.join(others)})"
    )
  section = family.sections[layout.name]
  if section is None:
    return family, None
  said = _section(path, config, section)
  gemma = layout.name == "hf_gemma3"
  return family, _gemma(path, said) if gemma else _flat(path, said)


def _section(path: Path, config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
  """config[key], a JSON object; the whole for ""."""
  found = config.get(key) if key else config
  if not isinstance(found, Mapping):
    raise ValueError(
      f"{path}: {key} is {type(found).__name__}, expected an object with the sizes of "
      "the model; download it again"
    )
  return found


def _flat(path: Path, config: Mapping[str, Any]) -> dict[str, Any]:
  """transformers 5 keeps what is about rotary positions in `rope_parameters`."""
  key = "rope_parameters"
  return {**config, **(_section(path, config, key) if config.get(key) else {})}


def _gemma(path: Path, config: Mapping[str, Any]) -> dict[str, Any]:
  """Gemma 3's two kinds of layers, said as flat as others say one."""
  asked = {
    "rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_factor": 1.0,
    "tie_word_embeddings": True, **config,
  }  # fmt: skip
  parameters = asked.pop("rope_parameters", None) or {}
  both = [dict(_section(path, parameters, key)) for key in parameters and _KINDS]
  if both:  # as transformers 5 keeps it
    asked["rope_theta"], asked["rope_local_base_freq"] = (
      kind.get("rope_theta", asked[key])
      for kind, key in zip(both, ("rope_theta", "rope_local_base_freq"), strict=True)
    )
  scaling = dict(both[0] if both else asked.pop("rope_scaling", None) or {})
  if scaling.get("rope_type") == "linear":
    asked["rope_factor"] = scaling["factor"]
  elif scaling.get("rope_type", "default") != "default":
    asked["rope_scaling"] = scaling  # for `_unsupported`
  if "_sliding_window_pattern" in asked:
    asked["sliding_window_pattern"] = asked["_sliding_window_pattern"]
  if "query_pre_attn_scalar" in asked:
    asked["query_scale"] = asked["query_pre_attn_scalar"] ** -0.5
  act = asked.get("hidden_activation")
  asked["hidden_activation"] = _ACTIVATIONS.get(str(act), act)
  return asked


def _unsupported(asked: Mapping[str, Any], part: str) -> list[str]:
  return [
    f"{key}: {asked[key]!r} is not supported"
    for key, off in _UNSUPPORTED[part]
    if key in asked and asked[key] not in off
  ]


def _differing(
  asked: Mapping[str, Any], mine: Mapping[str, Any], pairs: tuple[tuple[str, str], ...]
) -> list[str]:
  return [
    f"{theirs}: {asked[theirs]!r}, the model's {ours} is {mine[ours]!r}"
    for theirs, ours in pairs
    if asked.get(theirs) is not None and asked[theirs] != mine[ours]
  ]


def _differing_decoder(
  asked: dict[str, Any], mine: dict[str, Any], family: Family
) -> list[str]:
  asked = {
    "num_key_value_heads": asked.get("num_attention_heads"),
    "rope_theta": 1e4,
  } | {key: value for key, value in asked.items() if value is not None}
  mine["head_width"] = mine["head_width"] or mine["width"] // mine["num_heads"]
  lines = _differing(asked, mine, DECODER)
  gemma = "hf_gemma3" in family.sections
  lines += _differing(asked, mine, _GEMMA) if gemma else []
  lines += [
    f"model_type: {asked.get('model_type')!r}, the model's {field} is {not gemma}"
    for field in _GEMMAS_OWN
    if bool(mine.get(field)) != gemma
  ]
  if family.qkv_bias != mine["qkv_bias"]:
    lines.append(
      f"model_type: {asked.get('model_type')!r}, the model's qkv_bias is {mine['qkv_bias']}"
    )
  window = asked.get("sliding_window") or 0
  if not asked.get("use_sliding_window", True):
    window = 0
  # transformers 4.41 and before let a token see one more: itself is not counted.
  if mine["window"] not in ({window, window + 1} if window else {0}):
    lines.append(
      f"sliding_window: {window or None}, the model's window is {mine['window']}"
    )
  return lines


def _differing_encoder(
  asked: dict[str, Any], mine: dict[str, Any], layout: Layout
) -> list[str]:
  act = asked.get("hidden_act")
  asked = {**asked, "hidden_act": _ACTIVATIONS.get(act, act)}  # type: ignore[arg-type]
  depth = asked.get("num_hidden_layers", 0)
  if mine["depth"] <= depth <= mine["depth"] + layout.spare_blocks:
    asked.pop("num_hidden_layers")
  if layout.name == "blip2_vision":
    # transformers' port said 1e-5 until version 4.31; the encoder always meant 1e-6.
    asked.pop("layer_norm_eps", None)
  return _differing(asked, mine, ENCODER)


def check_adapter(
  path: Path, layout: Layout, fields: Mapping[str, Any], leaves: frozenset[str]
) -> dict[str, Any]:
  """Refuses an adapter_config.json that is not the model's.

  Args:
    fields: of the model's decoder.
    leaves: paths of the model's parameters.

  Raises:
    FileNotFoundError: it is not there, and rank and alpha are in no other place.
    ValueError: other sizes or targets, or options that change the sum.
  """
  if not path.is_file():
    raise FileNotFoundError(
      f"{path}: missing; an adapter's alpha is in it alone, download it too"
    )
  config = read_json(path)
  mine = zoo.defaults(Decoder) | dict(fields)
  lines = _unsupported(config, "adapter")
  lines += _differing(config, mine, (("r", "lora_rank"), ("lora_alpha", "lora_alpha")))
  base = str(config.get("base_model_name_or_path") or "")
  other = signatures.other_base(base, mine)
  if other:
    lines.append(f"base_model_name_or_path: {base!r}, whose decoder has {other}")
  targets = config.get("target_modules")
  has = {
    row.published.split(".")[-3]
    for row in layout.rows
    if row.path in leaves and part_of(row.path) == "adapter"
  }
  # A string is a pattern over modules; the tensors themselves then decide.
  if isinstance(targets, list) and {name.split(".")[-1] for name in targets} != has:
    lines.append(
      f"target_modules: {', '.join(sorted(targets))}; the model's lora_targets are "
      f"{', '.join(sorted(has)) or 'none'}"
    )
  remedy = (
    "Give the adapter of this model, or set lora_rank, lora_alpha and lora_targets"
  )
  _refuse(path, lines, f"{remedy} to the adapter's")
  return config


def _refuse(path: Path, lines: list[str], remedy: str) -> None:
  if lines:
    listed = tree_lib.listed(lines)
    raise ValueError(f"{path} does not fit the model:\n{listed}\n{remedy}.")
