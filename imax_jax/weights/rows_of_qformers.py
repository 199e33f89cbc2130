"""Published Q-Formers: LAVIS' blip2_pretrained_*.pth, and BLIP-2 as transformers saves it.

The file holds what BLIP-2 trained: queries, Q-Former, the norm between encoder and
Q-Former (`ln_vision`), and a projection that XrayGPT and MiniGPT-4 replace.
"""

from __future__ import annotations

from imax_jax.weights.layouts import MATRIX
from imax_jax.weights.layouts import TABLE_OF_3
from imax_jax.weights.layouts import VECTOR
from imax_jax.weights.layouts import Layout
from imax_jax.weights.layouts import Row
from imax_jax.weights.layouts import affine

_HERE = "connector/qformer"
_DEPTH = 12  # BERT-base's, which all that were published have


def _attention(there: str, here: str, norm: str, inner: str) -> tuple[Row, ...]:
  return (
    *(
      row
      for name in ("query", "key", "value")
      for row in affine(
        f"{there}.{inner}.{name}", f"{here}/{name[0]}", "kernel", MATRIX
      )
    ),
    *affine(f"{there}.output.dense", f"{here}/out", "kernel", MATRIX),
    *affine(f"{there}.output.LayerNorm", norm, "scale", VECTOR),
  )


def _layer(there: str, number: int, inner: str) -> tuple[Row, ...]:
  there, here = f"{there}.{number}", f"{_HERE}/layers_{number}"
  return (
    *_attention(f"{there}.attention", f"{here}/attn", f"{here}/attn_norm", inner),
    *_attention(
      f"{there}.crossattention", f"{here}/cross", f"{here}/cross_norm", inner
    ),
    *affine(f"{there}.intermediate_query.dense", f"{here}/up", "kernel", MATRIX),
    *affine(f"{there}.output_query.dense", f"{here}/down", "kernel", MATRIX),
    *affine(f"{there}.output_query.LayerNorm", f"{here}/mlp_norm", "scale", VECTOR),
  )


def _rows(there: str, norm: str, inner: str, before: str) -> tuple[Row, ...]:
  """
  Args:
    there: what stands before a layer's number.
    norm: the name of the queries' own norm.
    inner: of the module that holds queries, keys and values.
    before: the norm of the encoder's features.
  """
  return (
    Row("query_tokens", f"{_HERE}/queries", TABLE_OF_3),
    *affine(norm, f"{_HERE}/norm", "scale", VECTOR),
    *(row for number in range(_DEPTH) for row in _layer(there, number, inner)),
    *affine(before, "encoder/norm", "scale", VECTOR),
  )


# The half that reads text, and heads and projections of BLIP-2's own stages.
_TEXT = (
  r".*\bposition_ids",
  r"Qformer\.(cls|bert\.pooler)\..*",
  r"Qformer\.bert\.embeddings\.(word|position)_embeddings\..*",
  r"Qformer\.bert\.encoder\.layer\.\d+\.(intermediate|output)\..*",
  r"(vision|text|t5|opt|llm|llama)_proj\..*",
  r"itm_head\..*",
  r"temp",
)

QFORMERS = (
  Layout(
    name="lavis_qformer",
    part="qformer",
    marks=(r"query_tokens", r"Qformer\.bert\.encoder\.layer\.\d+\.intermediate_query\..*"),
    rows=_rows(
      "Qformer.bert.encoder.layer", "Qformer.bert.embeddings.LayerNorm", "self", "ln_vision"
    ),
    ignored=(*_TEXT, r"visual_encoder\..*"),
    wrapper="model",
  ),
  Layout(
    name="hf_qformer",
    part="qformer",
    marks=(r"query_tokens", r"qformer\.encoder\.layer\.\d+\.intermediate_query\..*"),
    rows=_rows(
      "qformer.encoder.layer", "qformer.layernorm", "attention",
      "vision_model.post_layernorm",
    ),
    # All of a BLIP-2, as transformers' classes hold it in memory.
    rename=((r"^model\.(?=query_tokens|qformer\.|vision_model\.)", ""),),
    ignored=(
      r".*\bposition_ids",
      r"vision_model\.(embeddings|encoder)\..*",
      r"qformer\.encoder\.layer\.\d+\.(intermediate|output)\..*",
      r"(language_model|language_projection|embeddings|lm_head)\b.*",
    ),
  ),
)  # fmt: skip
