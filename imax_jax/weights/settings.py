"""What stands beside published weights: config.json and the like, of the model's fields.

Keys and values are those that the publishers' loaders ask for; what they look up by name
on their hub is named and not described.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from typing import NamedTuple

from imax_jax.models import zoo
from imax_jax.models.vit import Encoder
from imax_jax.weights import export
from imax_jax.weights import eyes
from imax_jax.weights import families
from imax_jax.weights import peft
from imax_jax.weights import published
from imax_jax.weights.eyes import Eye
from imax_jax.weights.eyes import Shown
from imax_jax.weights.rows_of_layouts import layout

# {file: what stands in it}
Settings = dict[str, dict[str, Any]]
NOT_MERGED = (
  "H-LoRA can not be merged into the decoder's kernels: each token weighs the experts by "
  "itself. Serve it beside the base, by HealthGPT's own code."
)


class Facts(NamedTuple):
  """What settings are made of.

  `names`: {"encoder", "decoder"}, what their publishers call them. `base`: the folder of
  the decoder's tokenizer and settings. `tensors`: {file: names in it}.
  """

  model: Mapping[str, Mapping[str, Any]]
  dtype: str
  names: Mapping[str, str]
  base: Path | None
  special: Mapping[str, int | None]
  style: str
  geometry: str
  added_tokens: tuple[str, ...]
  tensors: Mapping[str, tuple[str, ...]]


def _decoder(facts: Facts) -> dict[str, Any]:
  own = export.config_of(facts.model["decoder"], facts.dtype)
  return own | dict(facts.special) | export.carried(facts.base)


def minigpt(facts: Facts) -> Settings:
  """The decoder's beside it, if it was trained."""
  return {"llm/config.json": _decoder(facts)} if "llm/" in facts.tensors else {}


def _seen(facts: Facts, eye: Eye) -> dict[str, Any]:
  return eyes.keys_of(eye, facts.model, Shown(facts.geometry, facts.added_tokens))


def _vision_keys(facts: Facts) -> dict[str, Any]:
  return {
    "mm_vision_tower": facts.names["encoder"],
    **_seen(facts, eyes.LLAVA),
    "use_mm_proj": True,
    "tokenizer_padding_side": "right",
  }


def llava(facts: Facts) -> Settings:
  config = _decoder(facts) | _vision_keys(facts)
  kind = config["model_type"]
  config["model_type"] = f"llava_{kind}"
  config["architectures"] = [f"Llava{kind.capitalize()}ForCausalLM"]
  return {"config.json": config}


def first_llava(facts: Facts) -> Settings:
  """Of the release whose projector was always one layer and had no type."""
  config = _decoder(facts) | _vision_keys(facts)
  config |= {"model_type": "llava", "architectures": ["LlavaLlamaForCausalLM"]}
  del config["mm_projector_type"]
  return {"config.json": config}


def with_adapter(facts: Facts) -> Settings:
  names = facts.tensors[peft.WEIGHTS]
  adapter = peft.settings_of(names, facts.model["decoder"], facts.names["decoder"])
  config = llava(facts)["config.json"]
  return {peft.SETTINGS: adapter, "config.json": config}


# Our styles, and what its demos call them.
_TEMPLATES = {"phi3": "phi3_instruct", "phi4": "phi4_instruct"}


def healthgpt(facts: Facts) -> Settings:
  """What its demos are told on the command line (com_infer.py).

  Raises:
    ValueError: a prompt style that they do not have.
  """
  if facts.style not in _TEMPLATES:
    raise ValueError(
      f"publish: prompt style {facts.style!r}, layout healthgpt knows {list(_TEMPLATES)}; "
      "its users could not ask this model as it was trained"
    )
  decoder, beside = peft.filled(facts.model["decoder"]), layout("healthgpt").settings
  vision = _vision_keys(facts)
  return {
    beside.name: {
      **{theirs: decoder[ours] for theirs, ours in beside.pairs},
      "instruct_template": _TEMPLATES[facts.style],
      beside.base: facts.names["decoder"],
      "vit_path": facts.names["encoder"],
      "mm_projector_type": vision["mm_projector_type"],
      "mm_vision_select_layer": vision["mm_vision_select_layer"],
      "merged": False,
      "note": NOT_MERGED,
    }
  }


def medmvl(facts: Facts) -> Settings:
  """LVLMConfig's keys (lvlm/model/configuration_lvlm.py); it loads the parts' own by name."""
  llm = _decoder(facts)
  config = {
    "model_type": "lvlm",
    "architectures": ["LVLMForConditionalGeneration"],
    "lvlm_llm_type": llm["model_type"],
    "lvlm_llm_name_or_path": facts.names["decoder"],
    "lvlm_llm_max_length": 2048,
    "lvlm_llm_padding_side": "right",
    "lvlm_llm_attn_implementation": "sdpa",
    "lvlm_encoder_image_name_or_path": facts.names["encoder"],
    **_seen(facts, eyes.MEDMVL),
    "hidden_size": llm["hidden_size"],
    "dtype": facts.dtype,
    "torch_dtype": facts.dtype,
  }
  return {"config.json": config}


def gemma3(facts: Facts) -> Settings:
  """Gemma3Config's; what our fields do not say is the base's own.

  Rotary bases stand there twice: transformers 4 reads them apart, 5 together.
  """
  fields = peft.filled(facts.model["decoder"])
  encoder = zoo.defaults(Encoder) | dict(facts.model["encoder"])
  text = {theirs: fields[ours] for theirs, ours in families.DECODER}
  every, depth = fields["global_every"], fields["depth"]
  linear = {"rope_type": "linear", "factor": fields["rope_factor"]}
  far = linear if fields["rope_factor"] != 1 else {"rope_type": "default"}
  near = {"rope_type": "default", "rope_theta": fields["local_rope_base"]}
  text |= {
    "model_type": "gemma3_text",
    "vocab_size": fields["vocab_size"],
    "head_dim": fields["head_width"] or fields["width"] // fields["num_heads"],
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": round(fields["query_scale"] ** -2),
    "sliding_window": fields["window"],
    "sliding_window_pattern": every,
    "layer_types": [
      "sliding_attention" if number % every else "full_attention"
      for number in range(1, depth + 1)
    ],
    "rope_local_base_freq": fields["local_rope_base"],
    "rope_scaling": linear if fields["rope_factor"] != 1 else None,
    "rope_parameters": {
      "full_attention": {**far, "rope_theta": fields["rope_base"]},
      "sliding_attention": near,
    },
  }
  vision = {theirs: encoder[ours] for theirs, ours in families.ENCODER}
  vision |= {
    "model_type": "siglip_vision_model",
    "image_size": encoder["image_px"],
    "hidden_act": "gelu_pytorch_tanh",
    "vision_use_head": False,
  }
  config = {
    "model_type": "gemma3",
    "architectures": ["Gemma3ForConditionalGeneration"],
    "text_config": text,
    "vision_config": vision,
    **_seen(facts, eyes.GEMMA3),
    "tie_word_embeddings": fields["tied"],
    "dtype": facts.dtype,
    "torch_dtype": facts.dtype,
    **facts.special,
  }
  own = facts.base / "config.json" if facts.base else None
  if own and own.is_file():
    config = _filled(config, published.read_json(own))
  return {"config.json": config}


def _filled(config: dict[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
  """What the base's own says of keys that are not in ours, in its sections too."""
  for key, value in own.items():
    if key not in config:
      config[key] = value
    elif isinstance(value, Mapping) and isinstance(config[key], dict):
      config[key] = _filled(config[key], value)
  return config
