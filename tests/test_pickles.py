"""Torch's pickles and training checkpoints to a foundation."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import damaged_weights
import numpy as np
import pytest
from published_weights import expected
from published_weights import fields
from published_weights import make_shelf
from published_weights import part

from imax_jax import tree
from imax_jax.weights import convert as convert_lib
from imax_jax.weights import load
from imax_jax.weights.convert import convert
from imax_jax.weights.rows_of_layouts import layout

torch = pytest.importorskip("torch", reason="torch makes the published files")
transformers = pytest.importorskip("transformers", reason="the publishers' own code")


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """A folder of published checkpoints: eva.safetensors, llama/, clip/, …"""
  return make_shelf(tmp_path_factory.mktemp("shelf"), ("llama", "smol"))


def _rename(
  weights: dict[str, Any], was: str, now: str, dtype: Any = None
) -> dict[str, Any]:
  return {
    name.replace(was, now): tensor if dtype is None else tensor.to(dtype)
    for name, tensor in weights.items()
  }


def _tensors(path: pathlib.Path) -> dict[str, Any]:
  return {
    name: torch.from_numpy(array) for name, array in load.load_params(path).items()
  }


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before torch 1.6"])
def test_evas_pth(shelf: pathlib.Path, tmp_path: pathlib.Path, legacy: bool) -> None:
  """As published: no prefix, no ln_vision, a block and a head more, some of it halved."""
  weights = _rename(_tensors(shelf / "eva.safetensors"), "visual_encoder.", "")
  weights = {name: t for name, t in weights.items() if "ln_vision" not in name}
  more = {n: t for n, t in weights.items() if n.startswith("blocks.2.")}
  last = _rename(more, "blocks.2.", "blocks.3.")
  head = {"head.weight": torch.ones(3, 64), "norm.bias": torch.ones(64)}
  weights["blocks.0.mlp.fc1.weight"] = weights["blocks.0.mlp.fc1.weight"].half()
  source = tmp_path / "eva.pth"
  torch.save(weights | last | head, source, _use_new_zipfile_serialization=not legacy)
  (tmp_path / "config.json").write_text('{"model_type": "of another file"}')
  model, out = fields(), tmp_path / "out"
  record = convert(
    {"encoder": source, "decoder": shelf / "llama"}, model, expected(model), out
  )
  assert record["filled"] == {"encoder/norm/bias": 0.0, "encoder/norm/scale": 1.0}
  assert sorted(record["ignored"]["encoder"]) == sorted(last | head)
  assert record["sources"][0]["files"][0] == convert_lib.digests.describe(source)
  got = part(out, "encoder")
  np.testing.assert_array_equal(
    got["layers"]["up"]["kernel"][0],
    weights["blocks.0.mlp.fc1.weight"].float().numpy().T,
  )
  np.testing.assert_array_equal(got["norm"]["scale"], np.ones(64))
  assert sorted(file.name for file in out.iterdir()) == [
    "config.json", "foundation.json", "foundation.safetensors", "generation_config.json",
  ]  # fmt: skip


def test_shards_of_pickles_in_bfloat16(
  shelf: pathlib.Path, tmp_path: pathlib.Path
) -> None:
  """An early LLaMA folder: .bin shards, an index, buffers, tensors that share storage."""
  weights = _tensors(shelf / "smol" / "model.safetensors")
  weights = _rename(weights, "", "", torch.bfloat16)
  weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
  weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
  folder = tmp_path / "llama"
  folder.mkdir()
  index = {}
  for number in range(2):
    shard = f"pytorch_model-0000{number + 1}-of-00002.bin"
    part = dict(list(weights.items())[number::2])
    torch.save(part, folder / shard)
    index |= dict.fromkeys(part, shard)
  (folder / "pytorch_model.bin.index.json").write_text(
    json.dumps({"weight_map": index})
  )
  model = fields("smol", kernel_dtype="int8")
  sources = {"encoder": shelf / "eva.safetensors", "decoder": folder}
  record = convert(sources, model, expected(model), tmp_path / "out")
  assert len(record["sources"][1]["files"]) == 2
  got = load.load_params(tmp_path / "out" / "foundation.safetensors")
  kernel = got["decoder/layers/mlp/down/kernel"]
  assert (
    kernel.dtype == "bfloat16" and "decoder/layers/mlp/down/kernel_scale" not in got
  )
  np.testing.assert_array_equal(
    kernel[1].astype(np.float32),
    weights["model.layers.1.mlp.down_proj.weight"].float().numpy().T,
  )


@pytest.mark.parametrize("style", ["minigpt", "unimed"])
def test_training_checkpoints(
  shelf: pathlib.Path, tmp_path: pathlib.Path, style: str
) -> None:
  """checkpoint_N.pth: the trained parameters under "model", and much beside them."""
  rng = np.random.default_rng(0)
  depth = 1 if style == "minigpt" else 2
  targets = "attn/(q|v)" if style == "minigpt" else ".*"
  model = fields(lora_rank=4, lora_targets=targets)
  model["connector"]["depth"] = depth
  want = {
    path: rng.normal(size=leaf.shape).astype(np.float32)
    for path, leaf in tree.flatten(expected(model)).items()
    if path.startswith("connector/") or "lora_" in path
  }
  table = layout("minigpt")
  prefix, a_name = ("llama", "") if style == "minigpt" else ("llm", "default.")
  named = {}
  for name, array in table.publish(want):
    # The table's two names of a first layer: MiniGPT's stands alone.
    if name.startswith("llama_proj"):
      if ("proj.0" in name) == (style == "minigpt") and "proj.2" not in name:
        continue
      name = name.replace("llama_proj", f"{prefix}_proj")
    else:
      name = f"{prefix}_model.{name}".replace("weight", f"{a_name}weight")
    named[name] = torch.from_numpy(array)
  named[
    f"{prefix}_model.base_model.model.model.layers.0.self_attn.rotary_emb.inv_freq"
  ] = torch.ones(4)
  source = tmp_path / "checkpoint_2.pth"
  beside = {"optimizer": {"state": {0: {"step": torch.ones(1)}}}, "epoch": 2}
  torch.save({"model": named, "config": {"run": {"seed": 1}}, **beside}, source)
  sources = {
    "encoder": shelf / "eva.safetensors", "decoder": shelf / "llama", "adapter": source,
  }  # fmt: skip
  record = convert(sources, model, expected(model), tmp_path / "out")
  assert not record["absent"]
  # What is no tensor is listed, and nothing else is beside the tensors.
  assert {"config", "optimizer", "epoch"} <= set(record["ignored"]["adapter"])
  loose = {"model": named, "epoch": 2, "ln_vision.weight": torch.ones(8)}
  torch.save(loose, tmp_path / "loose.pth")
  sources["adapter"] = tmp_path / "loose.pth"
  with pytest.raises(ValueError, match=r"loose.pth: ln_vision.weight beside 'model'"):
    convert(sources, model, expected(model), tmp_path / "not")
  got = load.load_params(tmp_path / "out" / "foundation.safetensors")
  for path, array in want.items():
    np.testing.assert_array_equal(got[path], array, err_msg=path)


@pytest.mark.parametrize("pickled", [False, True], ids=["safetensors", "bin"])
def test_adapters_of_peft(
  shelf: pathlib.Path, tmp_path: pathlib.Path, pickled: bool
) -> None:
  peft = pytest.importorskip("peft", reason="writes the adapters")
  base = transformers.AutoModelForCausalLM.from_pretrained(shelf / "llama")
  config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"])
  adapted = peft.get_peft_model(base, config)
  for name, parameter in adapted.named_parameters():
    if "lora_" in name:
      torch.nn.init.normal_(parameter)
  adapted.save_pretrained(tmp_path / "adapter")
  if pickled:
    weights = _tensors(tmp_path / "adapter" / "adapter_model.safetensors")
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    renamed = _rename(weights, ".weight", ".default.weight")
    torch.save(renamed, tmp_path / "adapter" / "adapter_model.bin")
  model = fields(lora_rank=4, lora_alpha=8.0, lora_targets="attn/q|mlp/down")
  sources = {
    "encoder": shelf / "eva.safetensors",
    "decoder": shelf / "llama",
    "adapter": tmp_path / "adapter",
  }
  record = convert(sources, model, expected(model), tmp_path / "out")
  assert all(path.startswith("connector/") for path in record["absent"])
  got = part(tmp_path / "out", "decoder")["layers"]["mlp"]["down"]
  layer = adapted.base_model.model.model.layers[1].mlp.down_proj
  for leaf, pair in (("lora_a", layer.lora_A), ("lora_b", layer.lora_B)):
    want = pair["default"].weight.detach().numpy().T
    np.testing.assert_array_equal(got[leaf][1], want)


@pytest.mark.parametrize(
  "case", damaged_weights.PICKLES, ids=lambda case: case.__name__
)
def test_code_and_damage_are_refused(
  shelf: pathlib.Path,
  tmp_path: pathlib.Path,
  monkeypatch: pytest.MonkeyPatch,
  case: damaged_weights.Case,
) -> None:
  bench = damaged_weights.Bench(shelf, tmp_path, monkeypatch, fields())
  damaged_weights.check(bench, case)
