"""Published connectors and LoRA: MiniGPT's family, LLaVA's, MedM-VL, HealthGPT and PEFT.

Names are derived from the code that wrote them: MiniGPT-4's minigpt_base.py, Uni-Med's
uni_med.py, LLaVA's llava_arch.py, MedM-VL's modeling_lvlm.py, HealthGPT's lora.py,
transformers' modeling_llava.py and modeling_gemma3.py, and PEFT.
"""

from __future__ import annotations

from imax_jax.weights.layouts import MATRIX
from imax_jax.weights.layouts import TABLE
from imax_jax.weights.layouts import VECTOR
from imax_jax.weights.layouts import VECTOR_OF_3
from imax_jax.weights.layouts import Beside
from imax_jax.weights.layouts import Layout
from imax_jax.weights.layouts import Row
from imax_jax.weights.layouts import affine
from imax_jax.weights.rows_of_decoders import BUFFERS
from imax_jax.weights.rows_of_decoders import EMBED
from imax_jax.weights.rows_of_decoders import HEAD
from imax_jax.weights.rows_of_decoders import LLAMA_LINEARS
from imax_jax.weights.rows_of_decoders import PHI_LINEARS

# What PEFT puts before every name, and HealthGPT with it.
_WRAPPED = "base_model.model."
_FIRST, _SECOND = "connector/dense_0", "connector/dense_1"


def _connector(there: str) -> tuple[Row, ...]:
  """A linear layer, or torch's Sequential of two with GELU between them."""
  first = affine(f"{there}.0", _FIRST, "kernel", MATRIX)
  return (
    *(row._replace(needs=f"{_SECOND}/kernel") for row in first),
    *affine(f"{there}.2", _SECOND, "kernel", MATRIX),
    *affine(there, _FIRST, "kernel", MATRIX),
  )


def _adapted(
  linears: tuple[tuple[str, str], ...], letters: tuple[tuple[str, str], ...]
) -> tuple[Row, ...]:
  return tuple(
    Row(
      f"{_WRAPPED}model.layers.{{i}}.{name}.lora_{theirs}.weight",
      f"decoder/layers/{path}/lora_{ours}",
      MATRIX,
    )
    for name, path in linears
    for theirs, ours in letters
  )


_PAIR = (("A", "a"), ("B", "b"))
_PAIRS = _adapted(tuple(dict((*LLAMA_LINEARS, *PHI_LINEARS)).items()), _PAIR)
_TRIPLES = _adapted(PHI_LINEARS, (*_PAIR, ("route", "route")))

# Uni-Med calls it llm where MiniGPT-4 says llama; PEFT names the adapter since 0.3.
_UNNAMED = ((r"\.lora_([AB]|route)\.default\.weight$", r".lora_\1.weight"),)
_NEWER_NAMES = ((r"^(llm|llama)_model\.base_model\.", "base_model."), *_UNNAMED)
# Frozen and taken from files of its own, but saved where it was a buffer or trained.
_LN_VISION = affine("ln_vision", "encoder/norm", "scale", VECTOR)

# Uni-Med's connector of experts. Its list of them stands in the file under two names.
_EXPERTS = (
  *(
    row._replace(needs="connector/experts/dense_1/kernel")
    for row in affine("moe_layers.{i}.0", "connector/experts/dense_0", "kernel", MATRIX)
  ),
  *affine("moe_layers.{i}.2", "connector/experts/dense_1", "kernel", MATRIX),
  # Experts of a single layer.
  *affine("moe_layers.{i}", "connector/experts/dense_0", "kernel", MATRIX),
  *affine("router.fc1", "connector/router/dense_0", "kernel", MATRIX),
  *affine("router.fc2", "connector/router/dense_1", "kernel", MATRIX),
  Row("task_tokens.{task}", "connector/task_tokens", VECTOR_OF_3),
)

ADAPTERS = (
  Layout(
    name="unimed_cmoe",
    part="adapter",
    whole=True,
    marks=(r"moe_layers\.\d+\..*", r"(router|task_tokens)\..*"),
    rows=(*_EXPERTS, *_PAIRS, *_LN_VISION),
    rename=(
      (r"^(llm|llama)_proj\.(?=\d+\.)", "moe_layers."),
      *_NEWER_NAMES,
    ),
    twins=(r"(llm|llama)_proj\.\d+\..*",),
    ignored=BUFFERS,
    wrapper="model",
    tasks={
      "vqa": "vqa",
      "rec": "refer",
      "reg": "identify",
      "report": "caption",
      "multi_class": "cls",
    },
  ),
  Layout(
    name="minigpt",
    part="adapter",
    whole=True,
    marks=(r"llama_proj\..*",),
    rows=(*_connector("llama_proj"), *_PAIRS, *_LN_VISION),
    rename=((r"^llm_proj\.", "llama_proj."), *_NEWER_NAMES),
    ignored=BUFFERS,
    wrapper="model",
  ),
  # In a LLaVA checkpoint, which holds all three parts, or alone: mm_projector.bin has the
  # embedding beside it where marks of the image were trained with it.
  Layout(
    name="llava",
    part="adapter",
    whole=True,
    marks=(r"model\.mm_projector\..*",),
    rows=(*_connector("model.mm_projector"), EMBED),
  ),
  Layout(
    name="hf_llava",
    part="adapter",
    whole=True,
    marks=(r"multi_modal_projector\.linear_1\.weight",),
    rows=(
      *affine("multi_modal_projector.linear_1", _FIRST, "kernel", MATRIX),
      *affine("multi_modal_projector.linear_2", _SECOND, "kernel", MATRIX),
    ),
    rename=((r"^model\.multi_modal_projector\.", "multi_modal_projector."),),
  ),
  Layout(
    name="gemma3",
    part="adapter",
    whole=True,
    marks=(r"multi_modal_projector\.mm_input_projection_weight",),
    rows=(
      # Multiplied from the right, as ours.
      Row(
        "multi_modal_projector.mm_input_projection_weight", f"{_FIRST}/kernel", TABLE
      ),
      Row(
        "multi_modal_projector.mm_soft_emb_norm.weight", "connector/norm/scale", VECTOR
      ),
    ),
    rename=((r"^model\.multi_modal_projector\.", "multi_modal_projector."),),
  ),
  Layout(
    name="medmvl",
    part="adapter",
    whole=True,
    marks=(r"connector_image\.connector\..*",),
    rows=_connector("connector_image.connector"),
  ),
  Layout(
    name="healthgpt",
    part="adapter",
    whole=True,
    marks=(r"base_model\..*\.lora_route\.weight",),
    rows=(
      *_TRIPLES,
      *_connector(f"{_WRAPPED}model.mm_projector"),
      *(row._replace(published=_WRAPPED + row.published) for row in (EMBED, HEAD)),
    ),
    rename=_UNNAMED,
    ignored=BUFFERS,
    # Ours: its publisher's demos are told this on the command line.
    settings=Beside(
      "healthgpt.json",
      (
        ("hlora_r", "lora_rank"),
        ("hlora_alpha", "lora_alpha"),
        ("hlora_nums", "lora_experts"),
      ),
      "model_name_or_path",
    ),
  ),
  # With LLaVA's non_lora_trainables.bin, where one lies beside it.
  Layout(
    name="peft",
    part="adapter",
    marks=(r"base_model\.model\.model\.layers\.\d+\..*\.lora_A\.weight",),
    rows=(*_PAIRS, *_connector(f"{_WRAPPED}model.mm_projector")),
    rename=_UNNAMED,
    ignored=BUFFERS,
    settings=Beside(
      "adapter_config.json",
      (("r", "lora_rank"), ("lora_alpha", "lora_alpha")),
      "base_model_name_or_path",
      must=True,
    ),
  ),
)
