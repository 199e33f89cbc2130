"""Tiny published checkpoints, made by the publishers' own code, and models that fit."""

from __future__ import annotations

import json
import pathlib
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from imax_jax import tree
from imax_jax.models.vlm import Vlm
from imax_jax.weights import files
from imax_jax.weights import load
from imax_jax.weights.rows_of_layouts import layout

GOLDEN = pathlib.Path(__file__).parent / "golden" / "eva_vit_tiny_smallscale.npz"

# Fields of our models, and the arguments of the reference's configs.
DECODER: dict[str, Any] = {
  "width": 32, "depth": 2, "num_heads": 4, "num_kv_heads": 2, "mlp_width": 48,
  "vocab_size": 64, "rope_base": 1e4, "norm_eps": 1e-5,
}  # fmt: skip
LLM: dict[str, Any] = {
  "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
  "num_key_value_heads": 2, "intermediate_size": 48, "vocab_size": 64,
  "rms_norm_eps": 1e-5,
}  # fmt: skip
DECODERS = {
  "llama": ("Llama", {}, {}),
  "smol": ("Llama", {"tie_word_embeddings": True}, {"tied": True}),
  "mistral": ("Mistral", {"sliding_window": None}, {}),
  "qwen2": ("Qwen2", {"tie_word_embeddings": True}, {"tied": True, "qkv_bias": True}),
  "phi3": (
    "Phi3",
    {"pad_token_id": 0, "sliding_window": 9},
    {"fused": True, "window": 9},
  ),
}
EVA: dict[str, Any] = {
  "image_px": 56, "patch_px": 14, "channels": 3, "width": 64, "depth": 3,
  "num_heads": 4, "mlp_width": 279,
}  # fmt: skip
TOWER: dict[str, Any] = {
  "image_px": 28, "patch_px": 14, "width": 32, "depth": 2, "num_heads": 4,
  "mlp_width": 48,
}  # fmt: skip
VISION: dict[str, Any] = {
  "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
  "intermediate_size": 48, "image_size": 28, "patch_size": 14,
}  # fmt: skip
ENCODERS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
  "clip": (
    "CLIPVision",
    {"num_hidden_layers": 3},
    {
      "norm_eps": 1e-5, "post_norm_eps": 0, "pre_norm": True, "patch_bias": False,
      "biases": ("q", "k", "v"), "activation": "quick_gelu",
    },
  ),
  "siglip": (
    "SiglipVision",
    {},
    {
      "post_norm_eps": 0, "class_token": False, "biases": ("q", "k", "v"),
      "activation": "gelu_tanh",
    },
  ),
  "blip2": ("Blip2Vision", {"layer_norm_eps": 1e-6}, {"post_norm_eps": 1e-6}),
}  # fmt: skip


def fields(decoder: str = "llama", encoder: str = "eva", **more: Any) -> dict[str, Any]:
  own = TOWER | ENCODERS[encoder][2] if encoder in ENCODERS else EVA
  return {
    "encoder": own,
    "connector": {"merge": 1 if encoder in ENCODERS else 4, "depth": 2},
    "decoder": DECODER | DECODERS[decoder][2] | more,
  }


def expected(model: dict[str, Any]) -> Any:
  """The model's parameters, as shapes and dtypes."""
  return _expected(json.dumps(model))


@cache
def _expected(text: str) -> Any:
  model = json.loads(text)
  side = model["encoder"]["image_px"]
  line = jnp.zeros((1, 4), jnp.int32)
  batch = dict.fromkeys(("text", "image", "slot", "segment", "position"), line)
  batch["pixels"] = jnp.zeros((1, side, side, 3), jnp.uint8)
  vlm = Vlm(**model)
  return jax.eval_shape(lambda: vlm.init(jax.random.key(0), batch)["params"])


def make_shelf(folder: pathlib.Path, names: tuple[str, ...]) -> pathlib.Path:
  """Writes eva.safetensors and a folder for each name, of random weights."""
  import torch
  import transformers

  torch.manual_seed(0)
  for name in names:
    kind, settings, _ = (DECODERS | ENCODERS)[name]
    sizes, ending = (LLM, "ForCausalLM") if name in DECODERS else (VISION, "Model")
    config = getattr(transformers, f"{kind}Config")(**sizes | settings)
    model = getattr(transformers, f"{kind}{ending}")(config)
    for parameter in model.parameters():
      torch.nn.init.normal_(parameter, std=0.2)
    if name == "blip2":
      for layer in model.encoder.layers:
        layer.self_attn.qkv.bias.data[32:64] = 0
    model.save_pretrained(folder / name)
  with np.load(GOLDEN) as golden:
    weights = {name[2:]: golden[name] for name in golden if name.startswith("w/")}
  files.write_tensors(folder / "eva.safetensors", weights)
  return folder


def part(folder: pathlib.Path, name: str) -> Any:
  """The parameters of a part of the model, from a foundation."""
  params = load.load_params(folder / "foundation.safetensors")
  return tree.unflatten(params)[name]


def write_llama(folder: pathlib.Path, model: dict[str, Any]) -> dict[str, np.ndarray]:
  """A decoder of random weights and of any size, without config.json; its leaves."""
  rng = np.random.default_rng(0)
  leaves = {
    path: rng.normal(size=leaf.shape).astype(np.float32)
    for path, leaf in tree.flatten(expected(model)).items()
    if path.startswith("decoder/")
  }
  published = dict(layout("hf_llama").publish(leaves))
  files.write_tensors(folder / "model.safetensors", published)
  return leaves
