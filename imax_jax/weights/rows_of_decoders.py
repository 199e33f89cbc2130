"""Published decoders: the names of transformers' modeling files, and ours.

A system's folder holds its decoder under a name of its own: MedM-VL's `llm`, the
`language_model` of transformers' own classes. That is taken off first.
"""

from __future__ import annotations

from imax_jax.weights.layouts import MATRIX
from imax_jax.weights.layouts import TABLE
from imax_jax.weights.layouts import VECTOR
from imax_jax.weights.layouts import Layout
from imax_jax.weights.layouts import Row

# Buffers that some versions of the publishers' code saved with the weights.
BUFFERS = (r".*rotary_emb\.inv_freq", r".*\bposition_ids")

# The attention's linears, then the MLP's: their name in a layer, and ours.
LLAMA_LINEARS = (
  ("self_attn.q_proj", "attn/q"), ("self_attn.k_proj", "attn/k"),
  ("self_attn.v_proj", "attn/v"), ("self_attn.o_proj", "attn/o"),
  ("mlp.gate_proj", "mlp/gate"), ("mlp.up_proj", "mlp/up"),
  ("mlp.down_proj", "mlp/down"),
)  # fmt: skip
PHI_LINEARS = (
  ("self_attn.qkv_proj", "attn/qkv"), ("self_attn.o_proj", "attn/o"),
  ("mlp.gate_up_proj", "mlp/gate_up"), ("mlp.down_proj", "mlp/down"),
)  # fmt: skip
_NORMS = (
  ("input_layernorm", "attn_norm"), ("post_attention_layernorm", "mlp_norm")
)  # fmt: skip

# Gemma 3 has one after attention and MLP too, and one of each head's queries and keys.
_GEMMA_NORMS = (
  ("input_layernorm", "attn_norm"), ("post_attention_layernorm", "attn_post_norm"),
  ("pre_feedforward_layernorm", "mlp_norm"),
  ("post_feedforward_layernorm", "mlp_post_norm"),
  ("self_attn.q_norm", "attn/q_norm"), ("self_attn.k_norm", "attn/k_norm"),
)  # fmt: skip

EMBED = Row("model.embed_tokens.weight", "decoder/embed/embedding", TABLE)
HEAD = Row("lm_head.weight", "decoder/head/kernel", MATRIX)
_TIED = (HEAD.published, EMBED.published)


def _decoder(
  linears: tuple[tuple[str, str], ...], norms: tuple[tuple[str, str], ...] = _NORMS
) -> tuple[Row, ...]:
  there, here = "model.layers.{i}", "decoder/layers"
  return (
    EMBED,
    *(
      Row(f"{there}.{name}.weight", f"{here}/{path}/kernel", MATRIX)
      for name, path in linears
    ),
    *(
      Row(f"{there}.{name}.bias", f"{here}/{path}/bias", VECTOR)
      for name, path in linears
      if path in ("attn/q", "attn/k", "attn/v")
    ),
    *(
      Row(f"{there}.{name}.weight", f"{here}/{path}/scale", VECTOR)
      for name, path in norms
    ),
    Row("model.norm.weight", "decoder/norm/scale", VECTOR),
    HEAD,
  )


_RENAMED = (
  (r"^llm\.(model|lm_head)\.", r"\1."),
  (r"^language_model\.(model|lm_head)\.", r"\1."),
  # In memory since transformers 4.52; some tools save what is in memory.
  (r"^model\.language_model\.", "model."),
)

DECODERS = (
  # Before LLaMA's, whose marks its names have too.
  Layout(
    name="hf_gemma3",
    part="decoder",
    marks=(r"model\.layers\.\d+\.pre_feedforward_layernorm\.weight",),
    rows=_decoder(LLAMA_LINEARS, _GEMMA_NORMS),
    rename=_RENAMED,
    ignored=BUFFERS,
    tied=_TIED,
  ),
  Layout(
    name="hf_llama",
    part="decoder",
    marks=(r"model\.layers\.\d+\.self_attn\.q_proj\.weight",),
    rows=_decoder(LLAMA_LINEARS),
    rename=_RENAMED,
    ignored=BUFFERS,
    tied=_TIED,
  ),
  Layout(
    name="hf_phi3",
    part="decoder",
    marks=(r"model\.layers\.\d+\.self_attn\.qkv_proj\.weight",),
    rows=_decoder(PHI_LINEARS),
    rename=_RENAMED,
    ignored=BUFFERS,
    tied=_TIED,
  ),
)
