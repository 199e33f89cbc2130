"""The tables of published layouts. Names are those of the files, derived from the code
that wrote them: transformers' modeling files, LAVIS' and MiniGPT-4's eva_vit.py, Uni-Med's
uni_med.py, and PEFT.
"""

from __future__ import annotations

from imax_jax.weights.layouts import CONVOLUTION
from imax_jax.weights.layouts import MATRIX
from imax_jax.weights.layouts import TABLE
from imax_jax.weights.layouts import TABLE_OF_3
from imax_jax.weights.layouts import VECTOR
from imax_jax.weights.layouts import VECTOR_OF_3
from imax_jax.weights.layouts import Form
from imax_jax.weights.layouts import Layout
from imax_jax.weights.layouts import Row

# Buffers that some versions of the publishers' code saved with the weights.
_BUFFERS = (r".*rotary_emb\.inv_freq", r".*\bposition_ids")

# The attention's linears, then the MLP's: their name in a layer, and ours.
_LLAMA_LINEARS = (
  ("self_attn.q_proj", "attn/q"), ("self_attn.k_proj", "attn/k"),
  ("self_attn.v_proj", "attn/v"), ("self_attn.o_proj", "attn/o"),
  ("mlp.gate_proj", "mlp/gate"), ("mlp.up_proj", "mlp/up"),
  ("mlp.down_proj", "mlp/down"),
)  # fmt: skip
_PHI_LINEARS = (
  ("self_attn.qkv_proj", "attn/qkv"), ("self_attn.o_proj", "attn/o"),
  ("mlp.gate_up_proj", "mlp/gate_up"), ("mlp.down_proj", "mlp/down"),
)  # fmt: skip


def _decoder(linears: tuple[tuple[str, str], ...]) -> tuple[Row, ...]:
  there, here = "model.layers.{i}", "decoder/layers"
  return (
    Row("model.embed_tokens.weight", "decoder/embed/embedding", TABLE),
    *(
      Row(f"{there}.{name}.weight", f"{here}/{path}/kernel", MATRIX)
      for name, path in linears
    ),
    *(
      Row(f"{there}.{name}.bias", f"{here}/{path}/bias", VECTOR)
      for name, path in linears
      if path in ("attn/q", "attn/k", "attn/v")
    ),
    Row(f"{there}.input_layernorm.weight", f"{here}/attn_norm/scale", VECTOR),
    Row(f"{there}.post_attention_layernorm.weight", f"{here}/mlp_norm/scale", VECTOR),
    Row("model.norm.weight", "decoder/norm/scale", VECTOR),
    Row("lm_head.weight", "decoder/head/kernel", MATRIX),
  )


def _affine(there: str, here: str, weight: str, form: Form) -> tuple[Row, Row]:
  """A layer with a bias: `weight` is what we call its other parameter."""
  return (
    Row(f"{there}.weight", f"{here}/{weight}", form),
    Row(f"{there}.bias", f"{here}/bias", VECTOR),
  )


def _blocks(there: str, names: dict[str, str]) -> tuple[Row, ...]:
  """The rows that all encoders' blocks share."""
  here = "encoder/layers"
  return (
    *_affine(f"{there}.{names['attn_norm']}", f"{here}/attn_norm", "scale", VECTOR),
    *_affine(f"{there}.{names['mlp_norm']}", f"{here}/mlp_norm", "scale", VECTOR),
    *_affine(f"{there}.{names['out']}", f"{here}/attn/out", "kernel", MATRIX),
    *_affine(f"{there}.mlp.fc1", f"{here}/up", "kernel", MATRIX),
    *_affine(f"{there}.mlp.fc2", f"{here}/down", "kernel", MATRIX),
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
  *_affine("patch_embed.proj", "encoder/embed", "kernel", CONVOLUTION),
  *_blocks("blocks.{i}", _EVA_BLOCK),
  Row("blocks.{i}.attn.qkv.weight", "encoder/layers/attn/qkv/kernel", MATRIX),
  Row("blocks.{i}.attn.q_bias", "encoder/layers/attn/q_bias", VECTOR),
  Row("blocks.{i}.attn.v_bias", "encoder/layers/attn/v_bias", VECTOR),
  *_affine("ln_vision", "encoder/norm", "scale", VECTOR),
)

# The Hugging Face port of the same encoder. Its one bias is q | k | v; the original has
# no k bias, so that third is zero.
_BLIP2 = (
  Row("embeddings.class_embedding", "encoder/class_token", VECTOR_OF_3),
  Row("embeddings.position_embedding", "encoder/positions", TABLE_OF_3),
  *_affine("embeddings.patch_embedding", "encoder/embed", "kernel", CONVOLUTION),
  *_blocks(_HF_BLOCKS, _HF_BLOCK | {"out": "self_attn.projection"}),
  Row(f"{_HF_ATTENTION}.qkv.weight", "encoder/layers/attn/qkv/kernel", MATRIX),
  Row(f"{_HF_ATTENTION}.qkv.bias", "encoder/layers/attn/q_bias", VECTOR, cut=(0, 3)),
  Row(f"{_HF_ATTENTION}.qkv.bias", "", VECTOR, cut=(1, 3)),
  Row(f"{_HF_ATTENTION}.qkv.bias", "encoder/layers/attn/v_bias", VECTOR, cut=(2, 3)),
  *_affine("post_layernorm", "encoder/norm", "scale", VECTOR),
)

_CLIP = (
  Row("embeddings.class_embedding", "encoder/class_token", VECTOR),
  Row("embeddings.position_embedding.weight", "encoder/positions", TABLE),
  Row("embeddings.patch_embedding.weight", "encoder/embed/kernel", CONVOLUTION),
  # The publisher's spelling.
  *_affine("pre_layrnorm", "encoder/pre_norm", "scale", VECTOR),
  *_blocks(_HF_BLOCKS, _HF_BLOCK | {"out": "self_attn.out_proj"}),
  *_separate_qkv(_HF_ATTENTION),
)

_SIGLIP = (
  Row("embeddings.position_embedding.weight", "encoder/positions", TABLE),
  *_affine("embeddings.patch_embedding", "encoder/embed", "kernel", CONVOLUTION),
  *_blocks(_HF_BLOCKS, _HF_BLOCK | {"out": "self_attn.out_proj"}),
  *_separate_qkv(_HF_ATTENTION),
)

# transformers 5 saves a tower without "vision_model."; LLaVA puts two names before it.
_TOWER = ((r"^(model\.vision_tower\.vision_tower\.)?vision_model\.", ""),)


def _connector(there: str) -> tuple[Row, ...]:
  """A linear layer, or torch's Sequential of two with GELU between them."""
  return (
    *_affine(there, "connector/dense_0", "kernel", MATRIX),
    *_affine(f"{there}.0", "connector/dense_0", "kernel", MATRIX),
    *_affine(f"{there}.2", "connector/dense_1", "kernel", MATRIX),
  )


_PAIRS = tuple(
  Row(
    f"base_model.model.model.layers.{{i}}.{name}.lora_{letter.upper()}.weight",
    f"decoder/layers/{path}/lora_{letter}",
    MATRIX,
  )
  for name, path in dict((*_LLAMA_LINEARS, *_PHI_LINEARS)).items()
  for letter in "ab"
)
# Uni-Med calls it llm where MiniGPT-4 says llama; PEFT names the adapter since 0.3.
_NEWER_NAMES = (
  (r"^(llm|llama)_model\.base_model\.", "base_model."),
  (r"^llm_proj\.", "llama_proj."),
  (r"\.lora_([AB])\.default\.weight$", r".lora_\1.weight"),
)

LAYOUTS = (
  Layout(
    name="hf_llama",
    part="decoder",
    marks=(r"model\.layers\.\d+\.self_attn\.q_proj\.weight",),
    rows=_decoder(_LLAMA_LINEARS),
    ignored=_BUFFERS,
    tied=("lm_head.weight", "model.embed_tokens.weight"),
  ),
  Layout(
    name="hf_phi3",
    part="decoder",
    marks=(r"model\.layers\.\d+\.self_attn\.qkv_proj\.weight",),
    rows=_decoder(_PHI_LINEARS),
    ignored=_BUFFERS,
    tied=("lm_head.weight", "model.embed_tokens.weight"),
  ),
  Layout(
    name="eva",
    part="encoder",
    marks=(r"blocks\.\d+\.attn\.q_bias", r"cls_token"),
    rows=_EVA,
    rename=((r"^visual_encoder\.", ""),),
    # The classifier of the file that the encoder was taken from.
    ignored=(*_BUFFERS, r"(norm|fc_norm|head)\..*"),
    spare_blocks=1,
    fill={"encoder/norm/scale": 1.0, "encoder/norm/bias": 0.0},
  ),
  Layout(
    name="blip2_vision",
    part="encoder",
    marks=(r"encoder\.layers\.\d+\.self_attn\.qkv\.weight",),
    rows=_BLIP2,
    rename=_TOWER,
    ignored=(
      *_BUFFERS,
      r"(qformer|language_model|language_projection|embeddings\.(word|token)).*",
      r"query_tokens",
    ),
  ),
  Layout(
    name="clip_vision",
    part="encoder",
    marks=(r"pre_layrnorm\.weight", r"encoder\.layers\.\d+\.self_attn\.q_proj\.weight"),
    rows=_CLIP,
    rename=_TOWER,
    # The features are the last but one block's: what comes after that is not used.
    ignored=(
      *_BUFFERS,
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
      *_BUFFERS,
      r"(post_layernorm|head|text_model)\..*",
      r"logit_(scale|bias)",
    ),
  ),
  Layout(
    name="minigpt",
    part="adapter",
    marks=(r"llama_proj\..*",),
    rows=(*_connector("llama_proj"), *_PAIRS),
    rename=_NEWER_NAMES,
    ignored=_BUFFERS,
    wrapper="model",
  ),
  # In a LLaVA checkpoint, which holds all three parts, or alone (mm_projector.bin).
  Layout(
    name="llava",
    part="adapter",
    marks=(r"model\.mm_projector\..*",),
    rows=_connector("model.mm_projector"),
  ),
  Layout(
    name="peft",
    part="adapter",
    marks=(r"base_model\.model\.model\.layers\.\d+\..*\.lora_A\.weight",),
    rows=_PAIRS,
    rename=_NEWER_NAMES[2:],
    ignored=_BUFFERS,
  ),
)


def layout(name: str) -> Layout:
  """The layout of that name, for export."""
  return {found.name: found for found in LAYOUTS}[name]
