"""What a LLaVA's config.json says of its eye is compared with the model's, before a byte."""

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
from imax_jax.weights import files
from imax_jax.weights import llava_keys
from imax_jax.weights.convert import convert
from imax_jax.weights.llava_keys import Shown

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


def check(config: dict[str, Any], row: str, blocks: int | None = BLOCKS) -> None:
  shown = SHOWN.get(row, Shown("pad", ()))
  llava_keys.check(pathlib.Path("config.json"), config, zoo.model(row), shown, blocks)


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


def test_another_geometry_is_a_choice_and_told(
  caplog: pytest.LogCaptureFixture,
) -> None:
  with caplog.at_level(logging.WARNING):
    check({"image_aspect_ratio": "pad"}, "llava_15_7b")
    check({"image_aspect_ratio": "anyres"}, "llava_15_7b")
    assert not caplog.records
    check({"image_aspect_ratio": "square"}, "llava_15_7b")
  [record] = caplog.records
  assert "image.geometry is 'pad', LLaVA's code does what 'crop' does" in (
    record.getMessage()
  )


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


def test_what_is_published_of_a_llava_is_read_again() -> None:
  for name in ("llava_15_7b", "llava_med", "llava_tri"):
    c = phantom.get_config(name)
    model = c.model.to_dict()
    shown = Shown(c.image.geometry, tuple(c.added_tokens))
    keys = llava_keys.keys_of(model, shown)
    blocks = model["encoder"]["depth"] + 1
    llava_keys.check(pathlib.Path("config.json"), keys, model, shown, blocks)
