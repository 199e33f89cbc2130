"""Every config is a model whose rules all apply; the smaller ones run whole."""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path

import jax
import pytest

from configs.zoo import phantom as zoo_phantom
from imax_jax import experiment
from imax_jax import tree
from imax_jax.parameters import ASSETS
from imax_jax.study import Study

ROOT = Path(__file__).parent.parent
CONFIGS = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))
# The pages of published systems, whose small form is configs/zoo/phantom.py:NAME.
SYSTEMS = zoo_phantom.NAMES
OPENCXR = Path(
  os.environ.get("IMAX_JAX_OPENCXR", ROOT.parent / "shared" / "data" / "opencxr")
)


@pytest.mark.parametrize(
  ("name", "arg"),
  [
    *((name, arg) for name in CONFIGS for arg in ("", "tiny")),
    *((f"zoo.{name}", "") for name in SYSTEMS),
    *(("zoo.phantom", f"{name}{size}") for name in SYSTEMS for size in ("", "-tiny")),
  ],
)
def test_config_is_a_model_and_its_rules_apply(
  name: str, arg: str, tmp_path: Path
) -> None:
  module = importlib.import_module(f"configs.{name}")
  config = module.get_config(arg)
  config.lock()
  study = Study(config, tmp_path)
  trainable, frozen = tree.split(study.parameters.abstract, config.trainable)
  assert tree.flatten(trainable)
  assert tree.merge(trainable, frozen) == study.parameters.abstract
  assert all(verb in experiment.VERBS for verb in config.verbs)
  assert "python -m imax_jax.main --config configs/" in module.__doc__
  with pytest.raises(ValueError, match="nosuch"):
    module.get_config("nosuch")


@pytest.mark.parametrize("name", CONFIGS)
def test_the_forward_pass_has_the_shapes_it_says(name: str, tmp_path: Path) -> None:
  """Output as `schema` draws it, by abstract evaluation: no number is computed."""
  config = importlib.import_module(f"configs.{name}").get_config("tiny")
  study = Study(config, tmp_path)
  encoder, px = config.model.encoder, config.model.encoder.image_px
  rows, tokens, images = 2, 24, 3
  line = jax.ShapeDtypeStruct((rows, tokens), "int32")
  batch = dict.fromkeys(("text", "image", "slot", "segment", "position"), line)
  batch["loss_weight"] = jax.ShapeDtypeStruct((rows, tokens), "float32")
  batch["pixels"] = jax.ShapeDtypeStruct((images, px, px, encoder.channels), "uint8")
  out = jax.eval_shape(
    lambda p, b: study.model.apply({"params": p}, b), study.parameters.abstract, batch
  )
  assert out.logits.shape == (rows, tokens, config.model.decoder.vocab_size)
  assert out.logits.dtype == "float32"
  width = config.model.decoder.width
  assert out.image_tokens.shape == (images, study.num_slots, width)


def test_the_shipped_foundation_fits_and_is_small() -> None:
  files = sorted(ASSETS.iterdir())
  pair = {"foundation.safetensors", "tokenizer.json"}
  assert {f.name for f in files} == pair | {"wordnet.json.gz", "wordnet_licence.txt"}
  assert sum(file.stat().st_size for file in files) <= 10e6


def test_the_foundation_is_made(tmp_path: Path) -> None:
  config = importlib.import_module("configs.foundation").get_config("tiny")
  experiment.run(config, tmp_path, config.verbs, {})
  study = importlib.import_module("configs.phantom").get_config("tiny")
  study.foundation = str(tmp_path / "foundation")
  made = Study(study, tmp_path / "w")
  assert made.parameters.given.keys() == {
    path for path in tree.flatten(made.parameters.abstract) if "lora_" not in path
  }
  assert len(made.tokenizer) <= study.model.decoder.vocab_size
  study.model.decoder.width = 32
  with pytest.raises(ValueError, match="does not fit the model"):
    Study(study, tmp_path / "w").parameters.init(0)


@pytest.mark.skipif(
  not (OPENCXR / "index.json").is_file(),
  reason="the open radiographs are not here: set IMAX_JAX_OPENCXR to their folder",
)
def test_open_radiographs_go_through_all_stations(tmp_path: Path) -> None:
  config = importlib.import_module("configs.open_cxr").get_config("tiny")
  config.data.root = str(OPENCXR)
  experiment.run(config, tmp_path, config.verbs, {})
  results = json.loads((tmp_path / "results.json").read_text("utf8"))
  assert results["tables"]["imax"].keys() >= {"ctr_mae", "rec_iou", "vqa_verify_acc"}
  assert "small numbers" in (tmp_path / "report" / "index.html").read_text("utf8")
