"""Published encoders: LAVIS' and MiniGPT-4's eva_vit.py, its port in transformers, CLIP
and SigLIP, alone or inside of a system's folder.
"""

from __future__ import annotations

from imax_jax.weights.layouts import CONVOLUTION
from imax_jax.weights.layouts import MATRIX
from imax_jax.weights.layouts import TABLE
from imax_jax.weights.layouts import TABLE_OF_3
from imax_jax.weights.layouts import VECTOR
from imax_jax.weights.layouts import VECTOR_OF_3
from imax_jax.weights.layouts import Layout
from imax_jax.weights.layouts import Row
from imax_jax.weights.layouts import affine
from imax_jax.weights.rows_of_decoders import BUFFERS


def _blocks(there: str, names: dict[str, str]) -> tuple[Row, ...]:
  """The rows that all encoders' blocks share."""
  here = "encoder/layers"
  return (
    *affine(f"{there}.{names['attn_norm']}", f"{here}/attn_norm", "scale", VECTOR),
    *affine(f"{there}.{names['mlp_norm']}", f"{here}/mlp_norm", "scale", VECTOR),
    *affine(f"{there}.{names['out']}", f"{here}/attn/out", "kernel", MATRIX),
    *affine(f"{there}.mlp.fc1", f"{here}/up", "kernel", MATRIX),
    *affine(f"{there}.mlp.fc2", f"{here}/down", "kernel", MATRIX),
  )


def _separate_qkv(there: str) -> tuple[Row, ...]:
  """q, k and v of their own -> our one kernel, and a bias each."""
  here = "encoder/layers/attn"
  return tuple(
    row
    for number, name in enumerate("qkv")
    for row in (
      Row(f"{there}.{name}_proj.weight", f"{here}/qkv/kernel", MATRIX, (number, 3)),
      Row(f"{there}.{name}_proj.bias", f"{here}/{name}_bias", VECTOR),
    )
  )


_EVA_BLOCK = {"attn_norm": "norm1", "mlp_norm": "norm2", "out": "attn.proj"}
_HF_BLOCK = {"attn_norm": "layer_norm1", "mlp_norm": "layer_norm2"}
_HF_BLOCKS = "encoder.layers.{i}"
_HF_ATTENTION = f"{_HF_BLOCKS}.self_attn"

_EVA = (
  Row("cls_token", "encoder/class_token", VECTOR_OF_3),
  Row("pos_embed", "encoder/positions", TABLE_OF_3),
  *affine("patch_embed.proj", "encoder/embed", "kernel", CONVOLUTION),
  *_blocks("blocks.{i}", _EVA_BLOCK),
  Row("blocks.{i}.attn.qkv.weight", "encoder/layers/attn/qkv/kernel", MATRIX),
  Row("blocks.{i}.attn.q_bias", "encoder/layers/attn/q_bias", VECTOR),
  Row("blocks.{i}.attn.v_bias", "encoder/layers/attn/v_bias", VECTOR),
  *affine("ln_vision", "encoder/norm", "scale", VECTOR),
)

# The Hugging Face port of the same encoder. Its one bias is q | k | v; the original has
# no k bias, so that third is zero.
_BLIP2 = (
  Row("embeddings.class_embedding", "encoder/class_token", VECTOR_OF_3),
  Row("embeddings.position_embedding", "encoder/positions", TABLE_OF_3),
  *affine("embeddings.patch_embedding", "encoder/embed", "kernel", CONVOLUTION),
  *_blocks(_HF_BLOCKS, _HF_BLOCK | {"out": "self_attn.projection"}),
  Row(f"{_HF_ATTENTION}.qkv.weight", "encoder/layers/attn/qkv/kernel", MATRIX),
  Row(f"{_HF_ATTENTION}.qkv.bias", "encoder/layers/attn/q_bias", VECTOR, cut=(0, 3)),
  Row(f"{_HF_ATTENTION}.qkv.bias", "", VECTOR, cut=(1, 3)),
  Row(f"{_HF_ATTENTION}.qkv.bias", "encoder/layers/attn/v_bias", VECTOR, cut=(2, 3)),
  *affine("post_layernorm", "encoder/norm", "scale", VECTOR),
)

_CLIP = (
  Row("embeddings.class_embedding", "encoder/class_token", VECTOR),
  Row("embeddings.position_embedding.weight", "encoder/positions", TABLE),
  Row("embeddings.patch_embedding.weight", "encoder/embed/kernel", CONVOLUTION),
  # The publisher's spelling.
  *affine("pre_layrnorm", "encoder/pre_norm", "scale", VECTOR),
  *_blocks(_HF_BLOCKS, _HF_BLOCK | {"out": "self_attn.out_proj"}),
  *_separate_qkv(_HF_ATTENTION),
)

# Gemma 3 reads features after the last norm, MedM-VL before it.
_SIGLIP = (
  Row("embeddings.position_embedding.weight", "encoder/positions", TABLE),
  *affine("embeddings.patch_embedding", "encoder/embed", "kernel", CONVOLUTION),
  *_blocks(_HF_BLOCKS, _HF_BLOCK | {"out": "self_attn.out_proj"}),
  *_separate_qkv(_HF_ATTENTION),
  # Gemma 3 takes what comes after it; the others what comes before.
  *affine("post_layernorm", "encoder/norm", "scale", VECTOR),
)

# Before transformers 5 a tower was "vision_model."; LLaVA puts two names before it, MedM-VL
# two of its own, transformers' LLaVA and Gemma 3 one.
_TOWER = (
  (
    r"^((model\.)?vision_tower\.(vision_tower\.)?|encoder_image\.encoder\.)?"
    r"(vision_model\.)?(embeddings|pre_layrnorm|encoder|post_layernorm|head)\.",
    r"\5.",
  ),
)

ENCODERS = (
  Layout(
    name="eva",
    part="encoder",
    marks=(r"blocks\.\d+\.attn\.q_bias", r"cls_token"),
    rows=_EVA,
    rename=((r"^visual_encoder\.", ""),),
    # The classifier of the file that the encoder was taken from.
    ignored=(*BUFFERS, r"(norm|fc_norm|head)\..*"),
    spare_blocks=1,
    resized=True,
    fill={"encoder/norm/scale": 1.0, "encoder/norm/bias": 0.0},
  ),
  Layout(
    name="blip2_vision",
    part="encoder",
    marks=(r"encoder\.layers\.\d+\.self_attn\.qkv\.weight",),
    rows=_BLIP2,
    rename=_TOWER,
    ignored=(
      *BUFFERS,
      r"(qformer|language_model|language_projection|embeddings\.(word|token)).*",
      r"query_tokens",
    ),
    resized=True,
  ),
  Layout(
    name="clip_vision",
    part="encoder",
    marks=(r"pre_layrnorm\.weight", r"encoder\.layers\.\d+\.self_attn\.q_proj\.weight"),
    rows=_CLIP,
    rename=_TOWER,
    # The features are the last but one block's: what comes after that is not used.
    ignored=(
      *BUFFERS,
      r"post_layernorm\..*",
      r"text_model\..*",
      r"(text|visual)_projection\..*",
      r"logit_scale",
    ),
    spare_blocks=1,
  ),
  Layout(
    name="siglip_vision",
    part="encoder",
    marks=(
      r"embeddings\.patch_embedding\.bias",
      r"encoder\.layers\.\d+\.self_attn\.q_proj\.weight",
    ),
    rows=_SIGLIP,
    rename=_TOWER,
    ignored=(
      *BUFFERS,
      r"(post_layernorm|head|text_model)\..*",
      r"logit_(scale|bias)",
    ),
  ),
)
