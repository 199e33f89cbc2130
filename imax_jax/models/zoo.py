"""The table of sizes: a model is a row, its parts are rows.

`phantom` sizes are this project's own and train on a CPU; the others are checked against
published configurations and parameter totals (tests/test_zoo.py says which).
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any
from typing import NamedTuple

from imax_jax.models.connector import Connector
from imax_jax.models.decoder import Decoder
from imax_jax.models.vit import Encoder
from imax_jax.schema import TASKS

_EVA_G: dict[str, Any] = {
  # 39 of the published file's 40 blocks: BLIP-2 reads the last but one.
  "image_px": 224, "patch_px": 14, "channels": 3,
  "width": 1408, "depth": 39, "num_heads": 16, "mlp_width": 6144,
  "dtype": "bfloat16", "kernel_dtype": "bfloat16",
}  # fmt: skip

_CLIP_L: dict[str, Any] = {
  # 23 of 24 blocks: LLaVA's select_layer -2. Its class token is dropped there too.
  "image_px": 224, "patch_px": 14, "channels": 3,
  "width": 1024, "depth": 23, "num_heads": 16, "mlp_width": 4096,
  "norm_eps": 1e-5, "post_norm_eps": 0.0, "pre_norm": True, "patch_bias": False,
  "biases": ("q", "k", "v"), "activation": "quick_gelu",
  "dtype": "bfloat16", "kernel_dtype": "bfloat16",
}  # fmt: skip

_SIGLIP: dict[str, Any] = {
  "channels": 3, "norm_eps": 1e-6, "post_norm_eps": 0.0, "class_token": False,
  "biases": ("q", "k", "v"), "activation": "gelu_tanh",
  "pixel_mean": (0.5, 0.5, 0.5), "pixel_std": (0.5, 0.5, 0.5),
  "dtype": "bfloat16", "kernel_dtype": "bfloat16",
}  # fmt: skip

ENCODERS: dict[str, dict[str, Any]] = {
  "phantom": {
    "image_px": 128, "patch_px": 16, "channels": 1,
    "width": 128, "depth": 4, "num_heads": 4, "mlp_width": 512,
    "unroll": 4,
  },
  "eva_vit_g14": _EVA_G,
  "eva_vit_g14_448": _EVA_G | {"image_px": 448},
  # What a Q-Former reads: the class token, too.
  "eva_vit_g14_class": _EVA_G | {"keep_class": True},
  "clip_vit_l14": _CLIP_L,
  "clip_vit_l14_336": _CLIP_L | {"image_px": 336},
  # S2: the same weights look at the whole, at 2 x 2 and at 3 x 3 tiles of it.
  "clip_vit_l14_336_s2": _CLIP_L | {"image_px": 1008, "scales": (336, 672, 1008)},
  "siglip_b16_256": _SIGLIP | {
    "image_px": 256, "patch_px": 16,
    "width": 768, "depth": 12, "num_heads": 12, "mlp_width": 3072,
  },
  "siglip_so400m_384": _SIGLIP | {
    "image_px": 384, "patch_px": 14, "ragged": True,
    "width": 1152, "depth": 27, "num_heads": 16, "mlp_width": 4304,
  },
  # Gemma 3's and MedGemma's, read after its last norm.
  "siglip_so400m_896": _SIGLIP | {
    "image_px": 896, "patch_px": 14, "post_norm_eps": 1e-6,
    "width": 1152, "depth": 27, "num_heads": 16, "mlp_width": 4304,
  },
}  # fmt: skip

_7B: dict[str, Any] = {
  "width": 4096, "depth": 32, "num_heads": 32, "num_kv_heads": 32,
  "mlp_width": 11008, "vocab_size": 32000, "rope_base": 1e4, "norm_eps": 1e-5,
  "dtype": "bfloat16", "kernel_dtype": "bfloat16", "remat": "inputs",
}  # fmt: skip

DECODERS: dict[str, dict[str, Any]] = {
  "phantom": {
    "width": 128, "depth": 4, "num_heads": 4, "num_kv_heads": 4, "mlp_width": 352,
    "vocab_size": 1024, "rope_base": 1e4, "norm_eps": 1e-5, "unroll": 4,
  },
  "llama2_7b": _7B,
  # v1.1; the eps is from memory of its config.json, the loader compares it.
  "vicuna_7b": _7B | {"norm_eps": 1e-6},
  # Instruct-v0.2, whose config.json switches the window of v0.1 off.
  "mistral_7b": _7B | {"num_kv_heads": 8, "mlp_width": 14336, "rope_base": 1e6},
  "llama3_8b": _7B | {
    "num_kv_heads": 8, "mlp_width": 14336, "vocab_size": 128256, "rope_base": 5e5,
  },
  "qwen25_3b": _7B | {
    "width": 2048, "depth": 36, "num_heads": 16, "num_kv_heads": 2,
    "vocab_size": 151936, "rope_base": 1e6, "norm_eps": 1e-6,
    "qkv_bias": True, "tied": True,
  },
  # Of 2,047 published, transformers 4.41, HealthGPT's, attends to one more.
  "phi3_mini": _7B | {
    "width": 3072, "mlp_width": 8192, "vocab_size": 32064, "fused": True, "window": 2048,
  },
  "phi4": _7B | {
    "width": 5120, "depth": 40, "num_heads": 40, "num_kv_heads": 10, "mlp_width": 17920,
    "vocab_size": 100352, "rope_base": 2.5e5, "fused": True,
  },
  # MedGemma's too. Of its rows of the embedding, 64 were added for the image's mark.
  "gemma3_4b": _7B | {
    "width": 2560, "depth": 34, "num_heads": 8, "num_kv_heads": 4, "head_width": 256,
    "mlp_width": 10240, "vocab_size": 262208, "norm_eps": 1e-6, "tied": True,
    "rope_base": 1e6, "rope_factor": 8.0, "local_rope_base": 1e4,
    "window": 1024, "global_every": 6, "query_scale": 256**-0.5,
    "activation": "gelu_tanh", "embed_scale": True, "norm_offset": True,
    "qk_norm": True, "post_norms": True, "image_both_ways": True,
  },
  "smollm2_135m": {
    "width": 576, "depth": 30, "num_heads": 9, "num_kv_heads": 3, "mlp_width": 1536,
    "vocab_size": 49152, "rope_base": 1e5, "norm_eps": 1e-5, "tied": True,
  },
}  # fmt: skip

# BLIP-2's: BERT-base with queries, every second layer looks at the image.
_QFORMER: dict[str, Any] = {
  "queries": 32, "width": 768, "depth": 12, "num_heads": 12, "mlp_width": 3072,
  "cross_every": 2, "norm_eps": 1e-12,
}  # fmt: skip


class Row(NamedTuple):
  """A model: the rows of its encoder and decoder, and what is its own of each part."""

  encoder: str
  decoder: str
  connector: dict[str, Any]
  own: dict[str, Any]  # of the decoder: LoRA, the rows of its embedding


_MLP: dict[str, Any] = {"merge": 1, "depth": 2}
_UNI_MED_LORA: dict[str, Any] = {
  "lora_rank": 8, "lora_alpha": 16.0, "lora_dropout": 0.05
}  # fmt: skip

MODELS: dict[str, Row] = {
  "toy": Row(
    "phantom", "phantom", {"merge": 4, "depth": 2},
    {"lora_rank": 8, "lora_alpha": 16.0, "fold": True},
  ),
  # Paper, section 4.2.2; alpha and dropout are Uni-Med's, the paper states none.
  "imax_7b": Row("eva_vit_g14", "llama2_7b", {"merge": 4, "depth": 2}, _UNI_MED_LORA),
  # The other reading of the paper's "2-layer MLP": every patch is a token.
  "imax_7b_256": Row("eva_vit_g14", "llama2_7b", _MLP, _UNI_MED_LORA),
  # The phantom's encoder before a decoder that has read the internet.
  "smollm2": Row(
    "phantom", "smollm2_135m", {"merge": 4, "depth": 2},
    {"lora_rank": 8, "lora_alpha": 16.0},
  ),
  # The systems of the paper's Table 1, in its order: configs/zoo says more of each.
  # LLaMA-7B is what Vicuna was tuned from; four tokens are added to its 32,000.
  "llava_med": Row(
    "clip_vit_l14", "vicuna_7b", {"merge": 1, "depth": 1}, {"vocab_size": 32004}
  ),
  "xraygpt": Row(
    "eva_vit_g14_class", "vicuna_7b", {"merge": 1, "depth": 1, "qformer": _QFORMER}, {}
  ),
  "minigpt_med": Row(
    "eva_vit_g14_448", "llama2_7b", {"merge": 4, "depth": 1},
    {
      "lora_rank": 64, "lora_alpha": 16.0, "lora_dropout": 0.05,
      "lora_targets": "attn/(q|v)",
    },
  ),
  "uni_med": Row(
    "eva_vit_g14", "llama2_7b",
    {
      "merge": 4, "depth": 2, "experts": 5, "routing": "soft",
      "route_by": "task_token", "tasks": TASKS,
    },
    _UNI_MED_LORA,
  ),
  "llava_tri": Row("clip_vit_l14_336_s2", "llama3_8b", _MLP, {}),
  "medm_vl_2d": Row("siglip_b16_256", "qwen25_3b", _MLP, {}),
  "healthgpt_m3": Row(
    "clip_vit_l14_336", "phi3_mini", _MLP,
    {"lora_rank": 64, "lora_alpha": 128.0, "lora_experts": 4},
  ),
  "healthgpt_l14": Row(
    "clip_vit_l14_336", "phi4", _MLP,
    {"lora_rank": 32, "lora_alpha": 64.0, "lora_experts": 4},
  ),
  # Not in the paper: what most of these descend from (Vicuna v1.5 is of LLaMA-2), …
  "llava_15_7b": Row("clip_vit_l14_336", "llama2_7b", _MLP, {}),
  # … and what a laboratory may choose now.
  "medgemma_4b": Row(
    "siglip_so400m_896", "gemma3_4b",
    {"merge": 1, "depth": 1, "pool": 4, "bias": False, "norm_eps": 1e-6},
    {"lora_rank": 16, "lora_alpha": 16.0, "lora_dropout": 0.05},
  ),
}  # fmt: skip


def model(name: str) -> dict[str, dict[str, Any]]:
  """The constructor's arguments: `Vlm(**zoo.model("toy"))`. A fresh copy each time.

  Defaults are written out, so that every field is a key of the config and a flag.

  Raises:
    ValueError: no row of that name.
  """
  if name not in MODELS:
    raise ValueError(f"zoo: no model {name!r}; there are {', '.join(sorted(MODELS))}")
  row = copy.deepcopy(MODELS[name])
  fields = copy.deepcopy(DECODERS[row.decoder]) | row.own
  dtype = {"dtype": fields["dtype"]} if "dtype" in fields else {}
  return {
    "encoder": encoder(row.encoder),
    "connector": defaults(Connector) | row.connector | dtype,
    "decoder": defaults(Decoder) | fields,
  }


def encoder(name: str) -> dict[str, Any]:
  """An encoder's row with its defaults written out."""
  return defaults(Encoder) | copy.deepcopy(ENCODERS[name])


def defaults(part: Any) -> dict[str, Any]:
  """{field: its default} of a part of the model; linen's own two are left out."""
  found = {}
  for field in dataclasses.fields(part):
    if field.name not in ("parent", "name"):
      if field.default is not dataclasses.MISSING:
        found[field.name] = field.default
      elif field.default_factory is not dataclasses.MISSING:
        found[field.name] = field.default_factory()
  return found
