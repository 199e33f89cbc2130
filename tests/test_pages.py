"""Pages of published systems say what was released; the specs' numbers, typed again."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from configs.zoo import phantom
from imax_jax import experiment
from imax_jax.models.vit import Encoder

# page: prompt style, geometry, rates, entries a step, decay, clipping, warm-up (its share,
# its start), shuffle, whether the encoder runs in each step.
PAGES: dict[str, tuple[Any, ...]] = {
  "llava_med": ("vicuna_v0", "crop", 2e-5, 0.0, 64, 0.0, 1.0, 0.03, 0.0, "image", "cache"),
  "xraygpt": ("xraygpt", "stretch", 3e-5, 1e-5, 2, 0.05, 0.0, 0.08, 1e-6, "task", "cache"),
  "minigpt_med": (
    "minigpt_med", "stretch", 1e-5, 8e-5, 12, 0.05, 0.0, 0.01, 1e-6, "task", "cache",
  ),
  "uni_med": ("llama2", "stretch", 1e-5, 1e-7, 8, 0.05, 0.0, 0.1, 1e-6, "task", "cache"),
  "llava_tri": ("llama3", "pad", 2e-5, 0.0, 256, 0.0, 0.0, 0.03, 0.0, "image", "cache"),
  "medm_vl_2d": ("medmvl", "stretch", 2e-5, 0.0, 128, 0.0, 0.0, 0.03, 0.0, "image", "step"),
  "healthgpt_m3": ("phi3", "pad", 2e-4, 0.0, 32, 0.0, 0.0, 0.03, 0.0, "image", "cache"),
  "healthgpt_l14": ("phi4", "pad", 2e-4, 0.0, 32, 0.0, 0.0, 0.03, 0.0, "image", "cache"),
  "medgemma_4b": ("gemma3", "stretch", 2e-4, 0.0, 16, 0.0, 0.3, 0.03, 0.0, "image", "cache"),
  "llava_15_7b": ("vicuna_v1", "pad", 2e-5, 0.0, 128, 0.0, 0.0, 0.03, 0.0, "image", "cache"),
}  # fmt: skip


def test_every_page_is_looked_at() -> None:
  assert set(PAGES) == set(phantom.NAMES)


@pytest.mark.parametrize("name", PAGES)
def test_what_was_released(name: str) -> None:
  c = importlib.import_module(f"configs.zoo.{name}").get_config()
  t = c.train
  assert PAGES[name] == (
    c.prompt.style, c.image.geometry, t.peak_lr, t.final_lr, t.entries_per_step,
    t.weight_decay, t.clip_norm, t.warmup_fraction, t.warmup_start_lr, t.shuffle,
    t.features,
  )  # fmt: skip
  assert t.epochs == 3.0 and t.beta2 == 0.999 and t.weighting == "token"
  assert t.may_rise == (t.final_lr > t.peak_lr)
  assert (t.clock == "whole_run") == (t.shuffle == "task")
  halved = name.startswith("healthgpt")
  assert (dict(t.lr_scales).get("connector/.*") == 0.1) == halved


@pytest.mark.parametrize(
  ("name", "arg", "px", "width"),
  [("llava_tri", "one_scale", 336, 1024), ("medm_vl_2d", "so400m", 384, 1152)],
)
def test_the_other_encoder_that_a_release_may_have(
  name: str, arg: str, px: int, width: int
) -> None:
  page = importlib.import_module(f"configs.zoo.{name}")
  encoder = Encoder(**page.get_config(arg).model.encoder)
  assert (encoder.image_px, encoder.out_width) == (px, width)
  with pytest.raises(ValueError, match=f"has the arguments .*{arg}"):
    page.get_config("another")


def test_one_goes_through_all_verbs(tmp_path: Path) -> None:
  """Task by task, by experts, in "###"'s stead an end token: Uni-Med at a test's size."""
  c = phantom.get_config("uni_med-tiny")
  experiment.run(c, tmp_path, c.verbs, {})
  results = json.loads((tmp_path / "results.json").read_text("utf8"))
  assert results["tables"].keys() >= {"imax", "dmax"}
  assert results["gains"]["imax"]["total"] > 0
