"""What a checkpoint's names, shapes and config say it is, in words for a message.

A guess for people, never a rule: what fits is decided by names and shapes alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any
from typing import NamedTuple

from imax_jax.models import zoo
from imax_jax.weights.checkpoints import Checkpoint


class Signature(NamedTuple):
  """A system: patterns that some of its names match, with the sizes of the last axis where
  they tell it from others, and what its config.json has.
  """

  what: str
  names: tuple[str, ...] = ()
  widths: Mapping[str, int] = {}
  config: Mapping[str, str] = {}


_ONE, _TWO = r"(model\.)?mm_projector\.weight", r"model\.mm_projector\.2\.weight"
_K = r"model\.layers\.0\.self_attn\.k_proj\.weight"
_PAIR = r".*lora_A(\.default)?\.weight"
# The first that fits.
SIGNATURES = (
  Signature("HealthGPT's H-LoRA", (r".*\.lora_route\.weight",)),
  Signature("Uni-Med with experts (CMoE)", (r"moe_layers\..*",)),
  Signature("Uni-Med (two-layer projector, LoRA)", (r"llm_proj\.2\.weight",)),
  Signature("XrayGPT (linear projector behind a Q-Former)", (), {r"llama_proj\.weight": 768}),
  Signature(
    "MiniGPT-v2 or MiniGPT-Med (linear projector, LoRA)", (r"llama_proj\.weight", _PAIR)
  ),
  Signature("MiniGPT-4's family without LoRA", (r"(llama|llm)_proj\..*",)),
  Signature("BLIP-2's Q-Former", (r"Qformer\.bert\..*",)),
  Signature("BLIP-2 of the Hugging Face layout", (r"qformer\..*",)),
  Signature("MedM-VL", (r"connector_image\..*",)),
  Signature("Gemma 3 or MedGemma", (r".*mm_soft_emb_norm\.weight",)),
  Signature("LLaVA of the Hugging Face layout", (r".*multi_modal_projector\.linear_1\..*",)),
  Signature("a LLaVA's LoRA with its projector", (_PAIR, r".*mm_projector\..*")),
  Signature(
    "LLaVA-Med 1.5 (Mistral, two-layer projector)", (_TWO,),
    config={"model_type": "llava_mistral"},
  ),
  Signature(
    "LLaVA-Tri or another LLaVA of three scales (projector of 3072)", (_TWO,),
    {r"model\.mm_projector\.0\.weight": 3072},
  ),
  Signature("LLaVA-1.5's kind (two-layer projector)", (_TWO,)),
  Signature("LLaVA-Med 1.0 (linear projector)", (_ONE,)),
  Signature("LoRA in PEFT's layout", (_PAIR,)),
  Signature("a decoder of Phi's kind (fused linears)", (r".*\.self_attn\.qkv_proj\.weight",)),
  Signature("a decoder of LLaMA's kind", (_K,)),
  Signature("EVA-CLIP", (r"(visual_encoder\.)?blocks\.\d+\.attn\.q_bias",)),
  Signature("CLIP", (r".*pre_layrnorm\.weight",)),
  Signature("SigLIP", (r".*embeddings\.patch_embedding\.bias",)),
)  # fmt: skip


def what_is(checkpoint: Checkpoint) -> str:
  """ "LLaVA-Med 1.5 (Mistral, two-layer projector)"; "" for what no row fits."""
  config = _config(checkpoint)
  for signature in SIGNATURES:
    if _fits(signature, checkpoint, config):
      return signature.what
  return ""


def named(checkpoint: Checkpoint) -> str:
  """The path, and in brackets what lies there."""
  what = what_is(checkpoint)
  return f"{checkpoint.path} [{what}]" if what else str(checkpoint.path)


def _config(checkpoint: Checkpoint) -> dict[str, Any]:
  try:
    value = json.loads((checkpoint.folder / "config.json").read_text(encoding="utf8"))
  except (OSError, ValueError):
    return {}  # who needs it has checked it, or will
  return value if isinstance(value, dict) else {}


def _fits(
  signature: Signature, checkpoint: Checkpoint, config: Mapping[str, Any]
) -> bool:
  def some(pattern: str) -> list[str]:
    return [name for name in checkpoint.names if re.fullmatch(pattern, name)]

  return (
    all(some(pattern) for pattern in signature.names)
    and all(
      any(checkpoint.shape(name)[-1:] == (width,) for name in some(pattern))
      for pattern, width in signature.widths.items()
    )
    and all(config.get(key) == value for key, value in signature.config.items())
  )


# What publishers call the decoders of the zoo, in paths and in adapter_config.json.
_BASES = (
  # Vicuna v1.5 was tuned from LLaMA-2, the earlier ones from LLaMA.
  (r"llama[-_ ]?2.*7b", "llama2_7b"), (r"vicuna.*7b.*v1\.5", "llama2_7b"),
  (r"(vicuna.*|^llama-)7b", "vicuna_7b"), (r"mistral-7b", "mistral_7b"),
  (r"llama-3-8b", "llama3_8b"), (r"gemma-?3?-4b", "gemma3_4b"),
  (r"qwen2\.5-3b", "qwen25_3b"), (r"phi-3-mini-4k", "phi3_mini"), (r"phi-4$", "phi4"),
  (r"smollm2-135m", "smollm2_135m"),
)  # fmt: skip
# … and the encoders, in `eyes.Eye.tower`.
_TOWERS = (
  (r"clip-vit-large-patch14-336$", "clip_vit_l14_336"),
  (r"clip-vit-large-patch14$", "clip_vit_l14"),
  (r"siglip-base-patch16-256(-multilingual)?$", "siglip_b16_256"),
  (r"siglip-so400m-patch14-384$", "siglip_so400m_384"),
)
# Which of their sizes differ between them; a study may choose others.
_SIZES = (
  "width", "depth", "num_heads", "num_kv_heads", "mlp_width", "rope_base", "norm_eps"
)  # fmt: skip
_SEEN = ("side_px", "patch_px", "width")


def other_base(name: str, decoder: Mapping[str, Any]) -> str:
  """How the decoder called `name` differs from a model's; "" if nothing is known of it.

  Args:
    name: of a folder or of a hub's repository.
    decoder: the fields of the model's.
  """
  return _other(name, decoder, _BASES, zoo.DECODERS, _SIZES)


def other_tower(name: str, encoder: Mapping[str, Any]) -> str:
  """The same of an encoder; of one of several scales, its tiles'."""
  towers = {row: _tile(zoo.ENCODERS[row]) for _, row in _TOWERS}
  return _other(name, _tile(encoder), _TOWERS, towers, _SEEN)


def _tile(encoder: Mapping[str, Any]) -> dict[str, Any]:
  """With the side that the positions are for."""
  sides = (*encoder.get("scales", ()), encoder.get("image_px"))
  return {**encoder, "side_px": sides[0]}


def _other(
  name: str,
  mine: Mapping[str, Any],
  known: tuple[tuple[str, str], ...],
  rows: Mapping[str, Mapping[str, Any]],
  sizes: tuple[str, ...],
) -> str:
  last = name.rstrip("/").rpartition("/")[2].lower()
  for pattern, row in known:
    if re.search(pattern, last):
      fields = rows[row]
      return ", ".join(
        f"{key} {fields[key]} where the model has {mine[key]}"
        for key in sizes
        if mine.get(key, fields[key]) != fields[key]
      )
  return ""
