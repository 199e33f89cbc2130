"""What a `model_type` of a config.json is: where it says the sizes, and what they mean.

    {"model_type": "mistral", "hidden_size": 4096, …}                      a decoder alone
    {"model_type": "llava_llama", "hidden_size": 4096, "mm_vision_…": …}   with LLaVA's eye
    {"model_type": "gemma3", "text_config": {…}, "vision_config": {…}}     a class of parts

A family is a row. Sources: transformers' configuration files, LLaVA's llava_arch.py.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from typing import NamedTuple

from imax_jax.weights import eyes
from imax_jax.weights.eyes import Eye

# (theirs, ours). A key that the file lacks is not compared.
Pairs = tuple[tuple[str, str], ...]
DECODER: Pairs = (
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
ENCODER: Pairs = (
  ("hidden_size", "width"),
  ("num_hidden_layers", "depth"),
  ("num_attention_heads", "num_heads"),
  ("intermediate_size", "mlp_width"),
  ("patch_size", "patch_px"),
  ("num_channels", "channels"),
  ("hidden_act", "activation"),
  ("layer_norm_eps", "norm_eps"),
)
# Of Gemma 3's two kinds of layers: those that look everywhere, those with a window.
_KINDS = ("full_attention", "sliding_attention")
_GEMMA: Pairs = (
  ("rope_local_base_freq", "local_rope_base"), ("rope_factor", "rope_factor"),
  ("query_scale", "query_scale"), ("sliding_window_pattern", "global_every"),
  ("hidden_activation", "activation"),
)  # fmt: skip
ACTIVATIONS = {"gelu_pytorch_tanh": "gelu_tanh"}
# What no key of a config.json says, and a decoder has by its `model_type` alone.
SWITCHES = ("qkv_bias", "embed_scale", "norm_offset", "qk_norm", "post_norms")


def section(path: Path, config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
  """config[key], a JSON object; the whole for "".

  Raises:
    ValueError: it is something else; names the file `path`.
  """
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
  return {**config, **(section(path, config, key) if config.get(key) else {})}


def _gemma(path: Path, config: Mapping[str, Any]) -> dict[str, Any]:
  """Gemma 3's two kinds of layers, said as flat as others say one."""
  asked = {
    "rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_factor": 1.0,
    "tie_word_embeddings": True, **config,
  }  # fmt: skip
  parameters = asked.pop("rope_parameters", None) or {}
  both = [dict(section(path, parameters, key)) for key in parameters and _KINDS]
  if both:  # as transformers 5 keeps it
    asked["rope_theta"], asked["rope_local_base_freq"] = (
      kind.get("rope_theta", asked[key])
      for kind, key in zip(both, ("rope_theta", "rope_local_base_freq"), strict=True)
    )
  scaling = dict(both[0] if both else asked.pop("rope_scaling", None) or {})
  if scaling.get("rope_type") == "linear":
    asked["rope_factor"] = scaling["factor"]
  elif scaling.get("rope_type", "default") != "default":
    asked["rope_scaling"] = scaling  # which is not supported
  if "_sliding_window_pattern" in asked:
    asked["sliding_window_pattern"] = asked["_sliding_window_pattern"]
  if "query_pre_attn_scalar" in asked:
    asked["query_scale"] = asked["query_pre_attn_scalar"] ** -0.5
  act = asked.get("hidden_activation")
  asked["hidden_activation"] = ACTIVATIONS.get(str(act), act)
  return asked


class Family(NamedTuple):
  """A row.

  Args:
    sections: {layout of the tensors beside it: the key under which it says their sizes};
      "" is the top, None: it does not say them.
    flat: makes the keys of `DECODER` and the like of such a section.
    pairs: further keys of a decoder that are compared.
    switches: those of `SWITCHES` that its decoder has.
    untold: keys that its files have got wrong.
    eye: its keys about what is seen, if it has some.
  """

  sections: Mapping[str, str | None]
  flat: Callable[[Path, Mapping[str, Any]], dict[str, Any]] = _flat
  pairs: Pairs = ()
  switches: tuple[str, ...] = ()
  untold: tuple[str, ...] = ()
  eye: Eye | None = None


_TOWER = "vision_config"
_LLAMA: dict[str, str | None] = {"hf_llama": ""}
# Its tower is named, and described elsewhere.
_LLAVA: dict[str, str | None] = {"hf_llama": "", "clip_vision": None}
# transformers' port said 1e-5 until version 4.31; the encoder always meant 1e-6.
_BLIP2_EPS = ("layer_norm_eps",)

FAMILIES: dict[str, Family] = {
  "llama": Family(_LLAMA),
  "mistral": Family(_LLAMA),
  "qwen2": Family(_LLAMA, switches=("qkv_bias",)),
  "phi3": Family({"hf_phi3": ""}),
  "gemma3_text": Family(
    {"hf_gemma3": ""}, _gemma, _GEMMA,
    ("embed_scale", "norm_offset", "qk_norm", "post_norms"),
  ),
  # LLaVA's own classes, to begin with those of LLaVA-Med 1.0 ("llava"). A Mistral without
  # a window is a LLaMA, and taken for one.
  "llava": Family(_LLAVA, eye=eyes.LLAVA),
  "llava_llama": Family(_LLAVA, eye=eyes.LLAVA),
  "llava_mistral": Family(_LLAVA, eye=eyes.LLAVA),
  # MedM-VL: it names its parts and does not describe them.
  "lvlm": Family(
    {"hf_llama": None, "siglip_vision": None, "clip_vision": None}, eye=eyes.MEDMVL
  ),
  "clip": Family({"clip_vision": _TOWER}),
  "clip_vision_model": Family({"clip_vision": ""}),
  "siglip": Family({"siglip_vision": _TOWER}),
  "siglip_vision_model": Family({"siglip_vision": ""}),
  "blip-2": Family({"blip2_vision": _TOWER}, untold=_BLIP2_EPS),
  "blip_2_vision_model": Family({"blip2_vision": ""}, untold=_BLIP2_EPS),
}  # fmt: skip


class Parts(NamedTuple):
  """A class of transformers with a config for each of its parts, "decoder" and "encoder":
  the section, and the family where the section does not say its `model_type`; and what it
  says of what is seen.
  """

  decoder: tuple[str, str]
  encoder: tuple[str, str]
  eye: Eye


# "llava" is the name of LLaVA-Med 1.0's own class as well, which has no sections.
CLASSES = {
  "llava": Parts(
    ("text_config", "llama"), (_TOWER, "clip_vision_model"), eyes.HF_LLAVA
  ),
  "gemma3": Parts(
    ("text_config", "gemma3_text"), (_TOWER, "siglip_vision_model"), eyes.GEMMA3
  ),
}


def described(
  path: Path, config: Mapping[str, Any], layout: str, part: str
) -> tuple[Family, dict[str, Any] | None]:
  """The family of a layout's tensors, and what a config says of them; None: nothing.

  Args:
    path: where the config lies, for messages.
    layout: the name of the tensors' layout.
    part: "encoder" or "decoder", which that layout fills.

  Raises:
    ValueError: a `model_type` that is not known, or whose tensors are laid out otherwise.
  """
  kind = str(config.get("model_type") or "")
  parts = _parts(config)
  if parts:
    key, default = getattr(parts, part)
    own = {"model_type": default} | dict(section(path, config, key))
    return described(path, own, layout, part)
  family = FAMILIES.get(kind)
  if family is None:
    known = ", ".join(dict.fromkeys((*FAMILIES, *CLASSES)))
    raise ValueError(f"{path}: model_type {kind!r} is not supported; there are {known}")
  if layout not in family.sections:
    others = (name for name, f in FAMILIES.items() if layout in f.sections)
    raise ValueError(
      f"{path}: model_type {kind!r}, but the tensors beside it are laid out as "
      f"{layout} ({', '.join(others)})"
    )
  key = family.sections[layout]
  return family, None if key is None else family.flat(path, section(path, config, key))


def _parts(config: Mapping[str, Any]) -> Parts | None:
  found = CLASSES.get(str(config.get("model_type") or ""))
  return found if found and found.decoder[0] in config else None


def eye_of(config: Mapping[str, Any]) -> Eye | None:
  """What a config.json's keys about what is seen are; None: it has none."""
  row = _parts(config) or FAMILIES.get(str(config.get("model_type") or ""))
  return row.eye if row else None
