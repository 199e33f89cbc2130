"""What a config.json says of its model's eye is compared with ours, before a byte."""

from __future__ import annotations

import json
import logging
import pathlib
from typing import Any

import published_systems as systems
import pytest
from published_systems import SYSTEMS

from configs.zoo import phantom
from imax_jax import tree
from imax_jax.models import zoo
from imax_jax.weights import eyes
from imax_jax.weights import families
from imax_jax.weights import files
from imax_jax.weights.convert import convert
from imax_jax.weights.eyes import Eye
from imax_jax.weights.eyes import Shown

# As LLaVA-1.5's config.json has them, and the others' that are known of.
LLAVA_15 = {
  "model_type": "llava_llama", "image_aspect_ratio": "pad", "mm_hidden_size": 1024,
  "mm_projector_type": "mlp2x_gelu", "mm_use_im_patch_token": False,
  "mm_use_im_start_end": False, "mm_vision_select_feature": "patch",
  "mm_vision_select_layer": -2, "mm_vision_tower": "openai/clip-vit-large-patch14-336",
}  # fmt: skip
S2 = LLAVA_15 | {
  "mm_hidden_size": 3072, "s2": True, "s2_scales": "336,672,1008"
}  # fmt: skip
LLAVA_MED_1 = {
  "model_type": "llava", "mm_hidden_size": 1024, "mm_use_im_start_end": True,
  "mm_vision_select_layer": -2, "mm_vision_tower": "openai/clip-vit-large-patch14",
}  # fmt: skip
MARKS = ("<im_patch>", "<im_start>", "<im_end>")
SHOWN = {"llava_med": Shown("crop", MARKS)}
BLOCKS = 24  # of CLIP ViT-L


def check(
  config: dict[str, Any], row: str, blocks: int | None = BLOCKS, eye: Eye = eyes.LLAVA
) -> None:
  shown = SHOWN.get(row, Shown("pad", ()))
  path, model = pathlib.Path("config.json"), zoo.model(row)
  eyes.check(eye, path, config, model, shown, blocks)


@pytest.mark.parametrize(
  ("config", "row"),
  [(LLAVA_15, "llava_15_7b"), (S2, "llava_tri"), (LLAVA_MED_1, "llava_med"), ({}, "llava_tri")],
)  # fmt: skip
def test_the_published_keys_are_the_rows(config: dict[str, Any], row: str) -> None:
  check(config, row)


@pytest.mark.parametrize(
  ("row", "config", "says"),
  [
    ("llava_15_7b", {"mm_vision_select_layer": -1}, r"select_layer: -1, -2 of"),
    ("llava_15_7b", {"mm_vision_select_feature": "cls_patch"}, "'cls_patch', 'patch' of"),
    ("xraygpt", {"mm_vision_select_feature": "patch"}, "'patch', 'cls_patch' of"),
    ("llava_15_7b", {"mm_projector_type": "linear"}, "'linear', 'mlp2x_gelu' of"),
    ("llava_15_7b", {"mm_projector_type": "qformer"}, "'qformer', 'mlp2x_gelu' of"),
    ("llava_15_7b", {"mm_use_im_start_end": True}, "mm_use_im_start_end: True, False of"),
    ("llava_med", {"mm_use_im_start_end": False}, "mm_use_im_start_end: False, True of"),
    ("llava_15_7b", {"s2": True}, "s2: True, False of"),
    ("llava_tri", {"s2_scales": "336,672"}, "s2_scales: '336,672', '336,672,1008' of"),
    ("llava_tri", {"mm_hidden_size": 1024}, "mm_hidden_size: 1024, 3072 of"),
    (
      "llava_15_7b", {"mm_vision_tower": "openai/clip-vit-large-patch14"},
      "side_px 224 where the model has 336",
    ),
    (
      "llava_med", {"mm_vision_tower": "/my/clip-vit-large-patch14-336/"},
      "side_px 336 where the model has 224",
    ),
  ],
)  # fmt: skip
def test_another_eye_is_refused(row: str, config: dict[str, Any], says: str) -> None:
  with pytest.raises(ValueError, match=f"saw images otherwise(.|\n)*{says}"):
    check(config, row)


def test_what_is_not_known_is_not_compared() -> None:
  check({"mm_vision_select_layer": -1}, "llava_15_7b", blocks=None)
  check({"mm_vision_tower": "my/own-tower"}, "llava_15_7b")
  # Of a tower whose last layers were cut off, the same block has another number.
  check({"mm_vision_select_layer": -1}, "llava_15_7b", blocks=BLOCKS - 1)


@pytest.mark.parametrize(
  ("there", "says"),
  [
    (None, ""),
    ("pad", ""),
    ("square", "image.geometry is 'pad', LLaVA's code does what 'crop' does here"),
    ("anyres", "'anyres'; this study's image.geometry is 'pad', and what is the same"),
  ],
)
def test_another_geometry_is_a_choice_and_told(
  there: str | None, says: str, caplog: pytest.LogCaptureFixture
) -> None:
  with caplog.at_level(logging.WARNING):
    check({"image_aspect_ratio": there}, "llava_15_7b")
  told = [record.getMessage() for record in caplog.records]
  assert len(told) == bool(says) and all(says in line for line in told), told


# ── Other families ────────────────────────────────────────────────────────────────

# As llava-1.5-7b-hf has them, MedM-VL's scripts, and Gemma 3's files.
HF_LLAVA = {
  "model_type": "llava", "text_config": {}, "vision_config": {}, "image_seq_length": 576,
  "projector_hidden_act": "gelu", "vision_feature_layer": -2,
  "vision_feature_select_strategy": "default",
}  # fmt: skip
MEDMVL = {
  "model_type": "lvlm", "lvlm_llm_type": "qwen2", "lvlm_encoder_image_type": "siglip",
  "lvlm_encoder_image_name_or_path": "google/siglip-base-patch16-256-multilingual",
  "lvlm_encoder_image_select_layer": -1,
  "lvlm_encoder_image_select_feature": "cls_patch",
  "lvlm_connector_image_type": "mlp", "lvlm_connector_image_name": "mlp2x_gelu",
}  # fmt: skip
GEMMA3 = {"model_type": "gemma3", "text_config": {}, "mm_tokens_per_image": 256}
# {row: (its config, the blocks of its tower)}
OTHERS: dict[str, tuple[dict[str, Any], int]] = {
  "llava_15_7b": (HF_LLAVA, 24), "medm_vl_2d": (MEDMVL, 12), "medgemma_4b": (GEMMA3, 27),
}  # fmt: skip


def compare(row: str, **said: Any) -> None:
  """A family's own config, with these keys said otherwise, against a row's model."""
  config, blocks = OTHERS[row]
  eye = families.eye_of(config)
  assert eye is not None
  check(config | said, row, blocks, eye)


@pytest.mark.parametrize("row", OTHERS)
def test_the_other_families_keys_are_the_rows(row: str) -> None:
  compare(row)


@pytest.mark.parametrize(
  ("row", "key", "value", "says"),
  [
    ("llava_15_7b", "vision_feature_layer", -1, "-1, -2 of"),
    ("llava_15_7b", "vision_feature_layer", 24, "24, -2 of"),
    ("llava_15_7b", "vision_feature_layer", [-2, -5], r"\[-2, -5\], -2 of"),
    ("llava_15_7b", "vision_feature_select_strategy", "full", "'full', 'default' of"),
    ("llava_15_7b", "projector_hidden_act", "relu", "'relu', 'gelu' of"),
    ("medm_vl_2d", "lvlm_encoder_image_select_layer", -2, "-2, -1 of"),
    ("medm_vl_2d", "lvlm_encoder_image_select_feature", "patch", "'patch', 'cls_patch'"),
    ("medm_vl_2d", "lvlm_encoder_image_type", "clip", "'clip', 'siglip' of"),
    ("medm_vl_2d", "lvlm_connector_image_type", "attn_pooling", "'attn_.*', 'mlp' of"),
    ("medm_vl_2d", "lvlm_connector_image_name", "linear", "'linear', 'mlp2x_gelu' of"),
    (
      "medm_vl_2d", "lvlm_encoder_image_name_or_path", "google/siglip-so400m-patch14-384",
      ".*, whose encoder has side_px 384 where the model has 256",
    ),
    ("medgemma_4b", "mm_tokens_per_image", 64, "64, 256 of"),
  ],
)  # fmt: skip
def test_another_eye_of_another_family_is_refused(
  row: str, key: str, value: Any, says: str
) -> None:
  with pytest.raises(ValueError, match=f"saw images otherwise(.|\n)*{key}: {says}"):
    compare(row, **{key: value})


def test_all_differences_are_listed() -> None:
  said = {"vision_feature_layer": -1, "projector_hidden_act": "relu"}
  with pytest.raises(ValueError, match="feature_layer: -1(.|\n)*hidden_act: 'relu'"):
    compare("llava_15_7b", **said)


def test_other_spellings_of_the_same_eye() -> None:
  for layer in ([-2], 23, None):
    compare("llava_15_7b", vision_feature_layer=layer)
  # Some releases of MedM-VL's code leave the prefix out.
  short = {key.removeprefix("lvlm_"): value for key, value in MEDMVL.items()}
  check(short, "medm_vl_2d", 12, eyes.MEDMVL)
  short["encoder_image_select_layer"] = -2
  with pytest.raises(ValueError, match="\n *encoder_image_select_layer: -2, -1 of"):
    check(short, "medm_vl_2d", 12, eyes.MEDMVL)
  # MedM-VL's code takes a CLIP as well, and drops its class token for "patch".
  clip = {"encoder_image_type": "clip", "encoder_image_select_feature": "patch"}
  check(clip, "llava_15_7b", BLOCKS, eyes.MEDMVL)
  # All of a tower without a class token are its patches.
  said = HF_LLAVA | {"vision_feature_layer": -1}
  with pytest.raises(ValueError, match="'default', 'full' of"):
    check(said, "medm_vl_2d", 12, eyes.HF_LLAVA)


@pytest.mark.parametrize("row", ["llava_15_7b", "medm_vl_2d"])
def test_the_layer_is_counted_in_the_towers_file(row: str) -> None:
  """Of one with a block more, the same block's number from the end is one less."""
  config, blocks = OTHERS[row]
  eye = families.eye_of(config)
  assert eye is not None
  layer = config[eye.layer]
  check(config | {eye.layer: layer - 1}, row, blocks + 1, eye)
  with pytest.raises(ValueError, match=f"{eye.layer}: {layer}, {layer - 1} of"):
    check(config, row, blocks + 1, eye)


def test_which_configs_speak_of_an_eye() -> None:
  for config, eye in (
    (LLAVA_MED_1, eyes.LLAVA), (HF_LLAVA, eyes.HF_LLAVA), (MEDMVL, eyes.MEDMVL),
    (GEMMA3, eyes.GEMMA3), ({"model_type": "llama"}, None), ({}, None),
  ):  # fmt: skip
    assert families.eye_of(config) is eye


# ── As `convert` and `publish` do it ──────────────────────────────────────────────

MODEL: dict[str, dict[str, Any]] = {
  "encoder": {"depth": systems.DEPTH, "width": systems.TOWER},
  "connector": {"depth": 2},
  "decoder": {
    "depth": systems.DEPTH, "width": systems.WIDTH, "num_heads": 2, "num_kv_heads": 1,
    "mlp_width": systems.MLP, "vocab_size": systems.ROWS, "rope_base": 1e4,
  },
}  # fmt: skip


def written(folder: pathlib.Path, layer: int | None) -> dict[str, pathlib.Path]:
  """LLaVA-Med 1.5's folders, of a config that reads that layer of its tower."""
  sources = systems.write(folder, SYSTEMS["llava_med_15"]())
  config = {"model_type": "llava_mistral", "mm_vision_select_layer": layer}
  (sources["adapter"] / "config.json").write_text(json.dumps(config))
  return sources


@pytest.mark.parametrize(
  ("layer", "fits"), [(-2, True), (-1, False), (-3, False), (None, True)]
)
def test_convert_counts_the_towers_blocks(
  tmp_path: pathlib.Path, layer: int | None, fits: bool
) -> None:
  sources = written(tmp_path, layer)
  expected = tree.unflatten(SYSTEMS["llava_med_15"]().ours)
  if fits:
    convert(sources, MODEL, expected, tmp_path / "out")
    return
  with pytest.raises(ValueError, match=f"mm_vision_select_layer: {layer}, -2 of"):
    convert(sources, MODEL, expected, tmp_path / "out")


def test_of_our_own_tower_the_layer_is_not_compared(tmp_path: pathlib.Path) -> None:
  """Its blocks were cut off when it was converted."""
  found = SYSTEMS["llava_med_1"]()
  sources = systems.write(tmp_path, found)
  config = {"model_type": "llava", "mm_vision_select_layer": -1}
  (sources["adapter"] / "config.json").write_text(json.dumps(config))
  model, expected = MODEL | {"connector": {"depth": 1}}, tree.unflatten(found.ours)
  with pytest.raises(ValueError, match="mm_vision_select_layer: -1, -2 of"):
    convert(sources, model, expected, tmp_path / "out")
  tower = {p: leaf for p, leaf in found.ours.items() if p.startswith("encoder/")}
  sources["encoder"] = tmp_path / "foundation.safetensors"
  files.write_tensors(sources["encoder"], tower)
  convert(sources, model, expected, tmp_path / "out")


@pytest.mark.parametrize(
  ("name", "kind", "key", "layers", "fields"),
  [
    (
      "hf_llava", {"model_type": "llava", "text_config": {}, "vision_config": {}},
      "vision_feature_layer", (-2, -1), {},
    ),
    (
      "medm_vl", {"model_type": "lvlm"}, "lvlm_encoder_image_select_layer", (-1, -2),
      {"qkv_bias": True, "tied": True},
    ),
  ],
)  # fmt: skip
def test_convert_compares_other_families(
  tmp_path: pathlib.Path,
  name: str,
  kind: dict[str, Any],
  key: str,
  layers: tuple[int, int],
  fields: dict[str, Any],
) -> None:
  """Of a tower of three blocks the second is read, of SigLIP's two the last."""
  found = SYSTEMS[name]()
  sources = systems.write(tmp_path, found)
  model = MODEL | {"decoder": MODEL["decoder"] | fields}
  expected, (right, wrong) = tree.unflatten(found.ours), layers
  path = sources["adapter"] / "config.json"
  path.write_text(json.dumps(kind | {key: right}))
  convert(sources, model, expected, tmp_path / "out")
  path.write_text(json.dumps(kind | {key: wrong}))
  with pytest.raises(ValueError, match=f"{key}: {wrong}, {right} of the model"):
    convert(sources, model, expected, tmp_path / "out")


@pytest.mark.parametrize(
  ("name", "eye"),
  [
    ("llava_15_7b", eyes.LLAVA), ("llava_med", eyes.LLAVA), ("llava_tri", eyes.LLAVA),
    ("medm_vl_2d", eyes.MEDMVL), ("medgemma_4b", eyes.GEMMA3),
  ],
)  # fmt: skip
def test_what_is_published_is_read_again(name: str, eye: Eye) -> None:
  c = phantom.get_config(name)
  model = c.model.to_dict()
  shown = Shown(c.image.geometry, tuple(c.added_tokens))
  keys = eyes.keys_of(eye, model, shown)
  blocks = model["encoder"]["depth"] + eye.spare
  eyes.check(eye, pathlib.Path("config.json"), keys, model, shown, blocks)
