"""Every row of the zoo at full size: the published number of parameters, no weight made."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.zoo import phantom
from imax_jax import tree
from imax_jax.models import zoo
from imax_jax.models.connector import Connector
from imax_jax.models.decoder import Decoder
from imax_jax.models.vit import Encoder
from imax_jax.models.vlm import Vlm

# A CLIP or SigLIP tower's published total less what its row leaves out: the last block
# and the norm that only the pooled token passes.
_CLIP_BLOCK = 12 * 1024**2 + 13 * 1024
ENCODERS = {
  "eva_vit_g14": 985_894_528,
  # 1,024 patches instead of 256.
  "eva_vit_g14_448": 985_894_528 + 768 * 1408,
  "clip_vit_l14": 303_179_776 - _CLIP_BLOCK - 2 * 1024,
  "clip_vit_l14_336": 303_507_456 - _CLIP_BLOCK - 2 * 1024,
  # More scales and a token that is kept need no number more.
  "eva_vit_g14_class": 985_894_528,
  "clip_vit_l14_336_s2": 303_507_456 - _CLIP_BLOCK - 2 * 1024,
  "siglip_b16_256": 85_843_200 - 2 * 768,
  "siglip_so400m_384": 412_987_248 - 2 * 1152,
  # tests/test_gemma.py counts both with transformers' classes.
  "siglip_so400m_896": 416_866_032 - 2 * 1152,
}
DECODERS = {
  "llama2_7b": 6_738_415_616,
  "vicuna_7b": 6_738_415_616,
  "mistral_7b": 7_241_732_096,
  "llama3_8b": 8_030_261_248,
  "qwen25_3b": 3_085_938_688,
  "phi3_mini": 3_821_079_552,
  "phi4": 14_659_507_200,
  "gemma3_4b": 3_880_263_168,
  "smollm2_135m": 134_515_008,
}


def sizes(fields: dict[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
  """{path: shape} of a whole model."""
  encoder = fields["encoder"]
  image = (1, encoder["image_px"], encoder["image_px"], encoder["channels"])
  line = jnp.zeros((1, 8), jnp.int32)
  names = ("text", "image", "slot", "segment", "position")
  batch = dict.fromkeys(names, line) | {
    "pixels": jnp.zeros(image, jnp.uint8),
    "task": jnp.zeros(1, jnp.int32),
  }
  made = jax.eval_shape(Vlm(**fields).init, jax.random.key(0), batch)
  return tree.flatten(made["params"])


def count(shapes: dict[str, jax.ShapeDtypeStruct], pattern: str) -> int:
  found = [path for path in shapes if pattern in f"/{path}"]
  return sum(int(np.prod(shapes[path].shape)) for path in found)


def test_every_row_is_counted() -> None:
  assert {*ENCODERS, "phantom"} == set(zoo.ENCODERS)
  assert {*DECODERS, "phantom"} == set(zoo.DECODERS)


@pytest.mark.parametrize("name", ENCODERS)
def test_encoder(name: str) -> None:
  fields = zoo.ENCODERS[name]
  pixels = jnp.zeros((1, fields["image_px"], fields["image_px"], 3), jnp.uint8)
  made = jax.eval_shape(Encoder(**fields).init, jax.random.key(0), pixels)["params"]
  shapes = tree.flatten(made)
  assert count(shapes, "/") - count(shapes, "/norm/") == ENCODERS[name]


@pytest.mark.parametrize("name", DECODERS)
def test_decoder(name: str) -> None:
  def whole(decoder: Any, text: jax.Array) -> jax.Array:
    x, _ = decoder(decoder.embed(text), text, jnp.ones((1, 4, 4), bool))
    return decoder.head(x)

  def init(key: jax.Array) -> Any:
    model = Decoder(**zoo.DECODERS[name])
    return model.init(key, jnp.zeros((1, 4), jnp.int32), method=whole)["params"]

  assert (
    count(tree.flatten(jax.eval_shape(init, jax.random.key(0))), "/")
    == (DECODERS[name])
  )


def test_the_papers_model() -> None:
  shapes = sizes(zoo.model("imax_7b"))
  assert count(shapes, "/connector/") == 39_854_080
  assert count(shapes, "/lora_") == 19_988_480
  assert count(sizes(zoo.model("imax_7b_256")), "/connector/") == 22_552_576
  # One matrix of each of the scanned layers: what the paper calls 450 parameters.
  matrices = sum(
    shape.shape[0] if "/layers/" in path else 1
    for path, shape in shapes.items()
    if "/lora_" in path or (path.startswith("connector/") and path.endswith("kernel"))
  )
  assert matrices == 450


# BLIP-2's: BERT-base's sizes. Its text half, embeddings and head are not ours.
_QFORMER: dict[str, Any] = {
  "queries": 32, "width": 768, "depth": 12, "num_heads": 12, "mlp_width": 3072,
}  # fmt: skip
_TASKS = ("vqa", "rec", "reg", "report", "multi_class")  # Uni-Med has as many


# Of each row: what its published files hold of the connector and of LoRA, and its
# decoder's total (arch_llava_family 2.4, 3.2, 8.2; arch_minigpt_family 4.1, 5, 7.3).
SYSTEMS = {
  "llava_med": (4_198_400, 0, 6_738_415_616 + 2 * 4 * 4096),
  # Q-Former and queries are BLIP-2's, counted below.
  "xraygpt": (768 * 4096 + 4096, 0, 6_738_415_616),
  "minigpt_med": (23_072_768, 33_554_432, 6_738_415_616),
  # Seven task tokens where its own paper has five.
  "uni_med": (199_270_400 + 507_781_125 + 7 * 5632, 19_988_480, 6_738_415_616),
  "llava_tri": (29_368_320, 0, 8_030_261_248),
  "medm_vl_2d": (5_771_264, 0, 3_085_938_688),
  "healthgpt_m3": (12_589_056, 102_891_520, 3_821_079_552),
  "healthgpt_l14": (31_467_520, 116_736_000, 14_659_507_200),
  "llava_15_7b": (20_979_712, 0, 6_738_415_616),
  # A norm and a matrix; of 34 layers the pairs of q and o, of k and v, of the MLP.
  "medgemma_4b": (
    1152 + 1152 * 2560,
    34 * 16 * (2 * (2560 + 2048) + 2 * (2560 + 1024) + 3 * (2560 + 10240)),
    3_880_263_168,
  ),
}


def test_every_page_has_totals() -> None:
  assert set(SYSTEMS) == set(phantom.NAMES)


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_rows_totals(name: str) -> None:
  shapes = sizes(zoo.model(name))
  connector, lora, decoder = SYSTEMS[name]
  assert count(shapes, "/connector/") - count(shapes, "/qformer/") == connector
  assert count(shapes, "/lora_") == lora
  assert count(shapes, "/decoder/") - lora == decoder


def test_uni_meds_trained_total() -> None:
  """With the five task tokens of its own code."""
  fields = zoo.model("uni_med")
  fields["connector"]["tasks"] = _TASKS
  shapes = sizes(fields)
  assert count(shapes, "/connector/") + count(shapes, "/lora_") == 727_068_165


def connector_sizes(
  shape: tuple[int, int], **fields: Any
) -> dict[str, jax.ShapeDtypeStruct]:
  """{path: shape} of a connector that reads features of this shape."""
  features, task = jnp.zeros((1, *shape)), jnp.zeros(1, jnp.int32)
  made = jax.eval_shape(Connector(**fields).init, jax.random.key(0), features, task)
  return tree.flatten(made["params"])


@pytest.mark.parametrize(
  ("shape", "fields", "total"),
  [
    ((256, 1024), {"width": 4096, "depth": 1}, 4_198_400),  # LLaVA-Med 1.0
    ((576, 1024), {"width": 4096}, 20_979_712),  # 1.5
    ((576, 3072), {"width": 4096}, 29_368_320),  # LLaVA-Tri, of three scales
    ((256, 768), {"width": 2048}, 5_771_264),  # MedM-VL
    ((729, 1152), {"width": 2048}, 6_557_696),  # with its larger tower
    ((576, 1024), {"width": 3072}, 12_589_056),  # HealthGPT-M3
    ((576, 1024), {"width": 5120}, 31_467_520),  # -L14
    ((1024, 1408), {"width": 4096, "merge": 4, "depth": 1}, 23_072_768),  # MiniGPT-v2
    ((256, 1408), {"width": 4096, "merge": 4}, 39_854_080),  # Uni-Med without experts
  ],
)
def test_published_connectors(
  shape: tuple[int, int], fields: dict[str, Any], total: int
) -> None:
  assert count(connector_sizes(shape, **{"merge": 1, **fields}), "/") == total


def test_uni_meds_experts() -> None:
  shapes = connector_sizes((256, 1408), width=4096, experts=5, tasks=_TASKS)
  for part, total in (
    ("experts", 199_270_400), ("router", 507_781_125), ("task_tokens", 28_160)
  ):  # fmt: skip
    assert count(shapes, f"/{part}") == total
  assert count(shapes, "/") == 727_068_165 - 19_988_480  # of all, LoRA left out


def test_blip2s_queries() -> None:
  """32 queries of a frozen encoder with its class token, then XrayGPT's linear layer."""
  fields: dict[str, Any] = {
    "width": 4096, "merge": 1, "depth": 1, "qformer": _QFORMER,
  }  # fmt: skip
  shapes = connector_sizes((257, 1408), **fields)
  attention = 4 * 768 * 768 + 4 * 768
  cross = attention + 2 * (1408 - 768) * 768
  mlp = 2 * 768 * 3072 + 3072 + 768
  norm = 2 * 768
  total = 12 * (attention + mlp + 2 * norm) + 6 * (cross + norm) + norm + 32 * 768
  assert count(shapes, "/qformer/") == total == 105_162_240
  assert count(shapes, "/dense_0/") == 768 * 4096 + 4096
  assert Connector(**fields).num_slots(257) == 32


def test_several_scales_are_one_tower() -> None:
  fields = zoo.ENCODERS["clip_vit_l14_336"]
  s2 = Encoder(**fields | {"image_px": 1008, "scales": (336, 672, 1008)})
  assert (s2.num_tokens, s2.out_width) == (576, 3072)
  pixels = jnp.zeros((1, 1008, 1008, 3), jnp.uint8)
  out, made = jax.eval_shape(s2.init_with_output, jax.random.key(0), pixels)
  assert out.shape == (1, 576, 3072)
  assert count(tree.flatten(made["params"]), "/") == ENCODERS["clip_vit_l14_336"]


def test_a_row_is_a_copy_and_an_unknown_one_is_named() -> None:
  assert count(sizes(zoo.model("toy")), "/") < 2_200_000
  zoo.model("toy")["decoder"]["depth"] = 99
  assert zoo.model("toy")["decoder"]["depth"] == 4
  with pytest.raises(ValueError, match="no model 'toi'; there are healthgpt_l14, "):
    zoo.model("toi")
