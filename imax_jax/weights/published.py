"""config.json and adapter_config.json beside weights, checked against the model's fields.

Tensors of the right shapes are not enough: a wrong rope base, eps or activation gives a
model that talks nonsense fluently.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imax_jax import tree as tree_lib
from imax_jax.models import zoo
from imax_jax.models.decoder import Decoder
from imax_jax.models.vit import Encoder
from imax_jax.weights import families
from imax_jax.weights import signatures
from imax_jax.weights.families import FAMILIES
from imax_jax.weights.families import Family
from imax_jax.weights.layouts import Layout
from imax_jax.weights.own import part_of

_PARTS: dict[str, Any] = {"encoder": Encoder, "decoder": Decoder}

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
  known = {name for family in FAMILIES.values() for name in family.sections}
  if layout.name not in known or not path.is_file():
    return {}
  config = read_json(path)
  if config.get("auto_map"):
    raise ValueError(
      f"{path}: auto_map asks for the repository's own code to be run "
      "(trust_remote_code), which is never done. If its model_type is one of "
      f"{', '.join(FAMILIES)}, take auto_map out: the model is built in"
    )
  family, asked = families.described(path, config, layout.name, layout.part)
  if asked is None:
    return config
  mine = zoo.defaults(_PARTS[layout.part]) | dict(fields)
  lines = _unsupported(asked, layout.part)
  if layout.part == "decoder":
    lines += _differing_decoder(asked, mine, family)
  else:
    lines += _differing_encoder(asked, mine, family, layout.spare_blocks)
  _refuse(path, lines, "Give the files of this model, or the zoo row of these files")
  return config


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
  lines = _differing(asked, mine, (*families.DECODER, *family.pairs))
  lines += [
    f"model_type: {asked.get('model_type')!r}, the model's {switch} is {mine[switch]}"
    for switch in families.SWITCHES
    if bool(mine[switch]) != (switch in family.switches)
  ]
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
  asked: dict[str, Any], mine: dict[str, Any], family: Family, spare_blocks: int
) -> list[str]:
  act = asked.get("hidden_act")
  asked = {**asked, "hidden_act": families.ACTIVATIONS.get(str(act), act)}
  depth = asked.get("num_hidden_layers", 0)
  if mine["depth"] <= depth <= mine["depth"] + spare_blocks:
    asked.pop("num_hidden_layers")
  told = [pair for pair in families.ENCODER if pair[0] not in family.untold]
  return _differing(asked, mine, tuple(told))


def check_adapter(
  path: Path, layout: Layout, fields: Mapping[str, Any], leaves: frozenset[str]
) -> dict[str, Any]:
  """Refuses settings beside an adapter that are not the model's; {} if there are none.

  Args:
    path: adapter_config.json, or what the layout has in its place.
    fields: of the model's decoder.
    leaves: paths of the model's parameters.

  Raises:
    FileNotFoundError: they are not there, and rank and alpha are in no other place.
    ValueError: other sizes or targets, or options that change the sum.
  """
  beside = layout.settings
  if not path.is_file():
    if not beside.must:
      return {}
    raise FileNotFoundError(
      f"{path}: missing; an adapter's alpha is in it alone, download it too"
    )
  config = read_json(path)
  mine = zoo.defaults(Decoder) | dict(fields)
  lines = _unsupported(config, "adapter")
  lines += _differing(config, mine, beside.pairs)
  base = str(config.get(beside.base) or "")
  other = signatures.other_base(base, mine)
  if other:
    lines.append(f"{beside.base}: {base!r}, whose decoder has {other}")
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
  own = ", ".join(ours for _, ours in beside.pairs)
  remedy = (
    f"Give the adapter of this model, or set {own} and lora_targets to the adapter's"
  )
  _refuse(path, lines, remedy)
  return config


def _refuse(path: Path, lines: list[str], remedy: str) -> None:
  if lines:
    listed = tree_lib.listed(lines)
    raise ValueError(f"{path} does not fit the model:\n{listed}\n{remedy}.")
