"""The table of sizes: a model is a row, its parts are rows.

`phantom` sizes are this project's own and train on a CPU; the others are checked
against the published configurations (Uni-Med's eva_vit.py, meta-llama/Llama-2-7b-chat-hf
config.json).
"""

from __future__ import annotations

import copy
from typing import Any

ENCODERS: dict[str, dict[str, Any]] = {
  "phantom": {
    "image_px": 128, "patch_px": 16, "channels": 1,
    "width": 128, "depth": 4, "num_heads": 4, "mlp_width": 512,
    "unroll": 4,
  },
  # 39 of the published file's 40 blocks: BLIP-2 reads the last but one.
  "eva_vit_g14": {
    "image_px": 224, "patch_px": 14, "channels": 3,
    "width": 1408, "depth": 39, "num_heads": 16, "mlp_width": 6144,
    "dtype": "bfloat16",
  },
}  # fmt: skip

DECODERS: dict[str, dict[str, Any]] = {
  "phantom": {
    "width": 128, "depth": 4, "num_heads": 4, "num_kv_heads": 4, "mlp_width": 352,
    "vocab_size": 1024, "rope_base": 1e4, "norm_eps": 1e-5, "unroll": 4,
  },
  "llama2_7b": {
    "width": 4096, "depth": 32, "num_heads": 32, "num_kv_heads": 32,
    "mlp_width": 11008, "vocab_size": 32000, "rope_base": 1e4, "norm_eps": 1e-5,
    "dtype": "bfloat16", "remat": True,
  },
}  # fmt: skip

# name -> encoder, decoder, and the fields of the connector and of LoRA.
MODELS: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
  "toy": (
    "phantom", "phantom", {"merge": 4, "depth": 2},
    {"lora_rank": 8, "lora_alpha": 16.0, "fold": True},
  ),
  # Paper, section 4.2.2; alpha and dropout are Uni-Med's, the paper states none.
  "imax_7b": (
    "eva_vit_g14", "llama2_7b", {"merge": 4, "depth": 2},
    {"lora_rank": 8, "lora_alpha": 16.0, "lora_dropout": 0.05},
  ),
}  # fmt: skip


def model(name: str) -> dict[str, dict[str, Any]]:
  """The constructor's arguments: `Vlm(**zoo.model("toy"))`. A fresh copy each time.

  Raises:
    ValueError: no row of that name.
  """
  if name not in MODELS:
    raise ValueError(f"zoo: no model {name!r}; there are {', '.join(sorted(MODELS))}")
  encoder, decoder, connector, lora = MODELS[name]
  fields = copy.deepcopy(DECODERS[decoder]) | lora
  dtype = {"dtype": fields["dtype"]} if "dtype" in fields else {}
  return {
    "encoder": copy.deepcopy(ENCODERS[encoder]),
    "connector": connector | dtype,
    "decoder": fields,
  }
