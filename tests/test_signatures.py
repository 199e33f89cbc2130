"""Files that are not those of the model: told by name, before anything is written."""

from __future__ import annotations

import json
import logging
import pathlib
import re
from typing import Any

import numpy as np
import published_systems as systems
import pytest
from published_systems import SYSTEMS

from imax_jax import tree
from imax_jax.models import zoo
from imax_jax.weights import files
from imax_jax.weights import load
from imax_jax.weights import published
from imax_jax.weights import signatures
from imax_jax.weights.checkpoints import open_checkpoint
from imax_jax.weights.convert import convert
from imax_jax.weights.rows_of_layouts import layout

WHAT = {
  "llava_med_1": "LLaVA-Med 1.0 (linear projector)",
  "llava_med_15": "LLaVA-1.5's kind (two-layer projector)",
  "medm_vl": "MedM-VL",
  "hf_llava": "LLaVA of the Hugging Face layout",
  "minigpt_v2": "MiniGPT-v2 or MiniGPT-Med (linear projector, LoRA)",
  "uni_med": "Uni-Med (two-layer projector, LoRA)",
  "uni_med_cmoe": "Uni-Med with experts (CMoE)",
  "healthgpt": "HealthGPT's H-LoRA",
  "llava_lora": "a LLaVA's LoRA with its projector",
  "medgemma": "Gemma 3 or MedGemma",
}
MODEL: dict[str, dict[str, Any]] = {
  "encoder": {"depth": 2, "width": 6}, "connector": {"depth": 2},
  "decoder": {"lora_rank": 2, "lora_alpha": 4.0},
}  # fmt: skip


@pytest.mark.parametrize("name", WHAT)
def test_files_are_called_what_they_are(name: str, tmp_path: pathlib.Path) -> None:
  sources = systems.write(tmp_path, SYSTEMS[name]())
  with open_checkpoint(sources["adapter"], tmp_path) as checkpoint:
    assert signatures.what_is(checkpoint) == WHAT[name]


def test_other_releases_are_told_apart(tmp_path: pathlib.Path) -> None:
  """By the config beside them, and by the width that a projector reads."""
  wide = np.zeros((8, 3072), np.float32)
  name = "model.mm_projector.0.weight"
  arrays = {name: wide, "model.mm_projector.2.weight": wide[:, :8]}
  files.write_tensors(tmp_path / "model.safetensors", arrays)
  with open_checkpoint(tmp_path, tmp_path) as checkpoint:
    assert "LLaVA-Tri" in signatures.what_is(checkpoint)
    settings = tmp_path / "config.json"
    settings.write_text(json.dumps({"model_type": "llava_mistral"}))
    assert signatures.what_is(checkpoint).startswith("LLaVA-Med 1.5")
    settings.write_text("{")
    assert "LLaVA-Tri" in signatures.what_is(checkpoint)


@pytest.mark.parametrize(
  ("model", "file", "says"),
  [
    ("llava_med_1", "llava_med_15", r"\[LLaVA-1.5's kind.*differences between"),
    ("llava_med_15", "llava_med_1", r"\[LLaVA-Med 1.0 \(linear projector\)\].*differences"),
    ("uni_med", "minigpt_v2", r"\[MiniGPT-v2 or MiniGPT-Med"),
    ("minigpt_v2", "uni_med_cmoe", r"\[Uni-Med with experts"),
    ("minigpt_v2", "hf_llava", r"expected a published adapter.*|\[LLaVA of the Hugging"),
  ],
)  # fmt: skip
def test_another_system_is_named_in_the_first_line(
  tmp_path: pathlib.Path, model: str, file: str, says: str
) -> None:
  found, other = SYSTEMS[model](), SYSTEMS[file]()
  parts = found.parts | {"adapter": other.parts["adapter"]}
  if len({id(arrays) for arrays in found.parts.values()}) < 3:
    parts["decoder"] = other.parts["decoder"]
  sources = systems.write(tmp_path, found._replace(parts=parts))
  with pytest.raises(ValueError) as caught:
    convert(sources, MODEL, tree.unflatten(found.ours), tmp_path / "out")
  first = str(caught.value).splitlines()[0]
  assert re.search(says, first), str(caught.value)
  if found.parts["encoder"] is not found.parts["decoder"]:
    assert f"{sources['encoder']}" not in first  # which fits


# ── Adapters ──────────────────────────────────────────────────────────────────────


def adapter(folder: pathlib.Path, **settings: Any) -> dict[str, Any]:
  """LLaVA's LoRA folder; what its adapter_config.json and config.json say changed."""
  found = SYSTEMS["llava_lora"]()
  sources = systems.write(folder, found)
  path = sources["adapter"] / "adapter_config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | settings))
  (sources["adapter"] / "config.json").write_text('{"model_type": "llava_llama"}')
  return {"found": found, "sources": sources}


def test_the_projector_beside_a_lora_is_read(tmp_path: pathlib.Path) -> None:
  torch = pytest.importorskip("torch", reason="torch writes LLaVA's second file")
  made = adapter(tmp_path)
  found, folder = made["found"], made["sources"]["adapter"]
  arrays = found.parts["adapter"]
  beside = {name: arrays.pop(name) for name in [*arrays] if "mm_projector" in name}
  files.write_tensors(folder / "adapter_model.safetensors", arrays)
  expected = tree.unflatten(found.ours)
  with pytest.raises(ValueError, match=r"no non_lora_trainables\.bin beside it"):
    convert(made["sources"], MODEL, expected, tmp_path / "out")
  tensors = {name: torch.from_numpy(array) for name, array in beside.items()}
  torch.save(tensors, folder / "non_lora_trainables.bin")
  record = convert(made["sources"], MODEL, expected, tmp_path / "out")
  got = load.load_params(tmp_path / "out" / "foundation.safetensors")
  for path, array in found.ours.items():
    np.testing.assert_array_equal(got[path], array, err_msg=path)
  assert [file["name"] for file in record["sources"][2]["files"]] == [
    "adapter_model.safetensors", "non_lora_trainables.bin"
  ]  # fmt: skip


def test_a_connector_that_is_asked_for_may_not_start_fresh(
  tmp_path: pathlib.Path,
) -> None:
  """A LoRA alone, with no config.json that says whose it is."""
  found = SYSTEMS["llava_lora"]()
  arrays = found.parts["adapter"]
  for name in [name for name in arrays if "mm_projector" in name]:
    del arrays[name]
  sources = systems.write(tmp_path, found)
  expected = tree.unflatten(found.ours)
  record = convert(sources, MODEL, expected, tmp_path / "out")
  assert {path.split("/")[0] for path in record["absent"]} == {"connector"}
  with pytest.raises(ValueError, match=r"missing +connector/dense_0/kernel"):
    convert(sources, MODEL, expected, tmp_path / "not", whole=("connector",))


def test_a_tensor_in_both_files_is_refused(tmp_path: pathlib.Path) -> None:
  torch = pytest.importorskip("torch", reason="torch writes LLaVA's second file")
  made = adapter(tmp_path)
  name = "base_model.model.model.mm_projector.0.bias"
  torch.save(
    {name: torch.zeros(8)}, made["sources"]["adapter"] / "non_lora_trainables.bin"
  )
  with pytest.raises(ValueError, match=rf"{name} stands in two of adapter_model"):
    convert(
      made["sources"], MODEL, tree.unflatten(made["found"].ours), tmp_path / "out"
    )


@pytest.mark.parametrize(
  ("base", "row", "says"),
  [
    ("mistralai/Mistral-7B-Instruct-v0.2", "llama2_7b", "num_kv_heads 8 where .* 32"),
    ("/data/vicuna-7b-v1.1/", "llama2_7b", "norm_eps 1e-06 where the model has 1e-05"),
    ("/data/vicuna-7b-v1.5/", "llama2_7b", ""),
    ("huggyllama/llama-7b", "llama2_7b", "norm_eps 1e-06 where"),
    ("google/medgemma-4b-it", "llama2_7b", "width 2560 where"),
    ("meta-llama/Llama-2-7b-chat-hf", "llama3_8b", "mlp_width 11008 where"),
    ("meta-llama/Llama-2-7b-chat-hf", "llama2_7b", ""),
    ("my/own", "llama2_7b", ""),
  ],
)  # fmt: skip
def test_an_adapter_of_another_base(
  tmp_path: pathlib.Path, base: str, row: str, says: str
) -> None:
  path = tmp_path / "adapter_config.json"
  path.write_text(json.dumps({"base_model_name_or_path": base, "r": 8}))
  fields = zoo.DECODERS[row] | {"lora_rank": 8}
  if not says:
    published.check_adapter(path, layout("peft"), fields, frozenset())
    return
  with pytest.raises(ValueError, match=rf"base_model_name_or_path: '{base}'.*{says}"):
    published.check_adapter(path, layout("peft"), fields, frozenset())


def test_an_adapters_alpha_has_to_be_there(tmp_path: pathlib.Path) -> None:
  made = adapter(tmp_path)
  (made["sources"]["adapter"] / "adapter_config.json").unlink()
  with pytest.raises(FileNotFoundError, match="adapter's alpha is in it alone"):
    convert(
      made["sources"], MODEL, tree.unflatten(made["found"].ours), tmp_path / "out"
    )


@pytest.mark.parametrize(
  ("name", "file", "key"),
  [
    ("llava_lora", "adapter_config.json", "base_model_name_or_path"),
    ("healthgpt", "healthgpt.json", "model_name_or_path"),
  ],
)
def test_the_base_of_an_adapter_is_told(
  tmp_path: pathlib.Path,
  caplog: pytest.LogCaptureFixture,
  name: str,
  file: str,
  key: str,
) -> None:
  """Of a name that nothing is known of, people may still see that it is another."""
  found = SYSTEMS[name]()
  sources, expected = systems.write(tmp_path, found), tree.unflatten(found.ours)
  path = sources["adapter"] / file
  for base in ("my/own", None):
    path.write_text(json.dumps({key: base}))
    caplog.clear()
    with caplog.at_level(logging.INFO):
      convert(sources, MODEL, expected, tmp_path / "out")
    told = [r.getMessage() for r in caplog.records if "trained on" in r.getMessage()]
    says = f"{path}: adapter trained on my/own; it is put on {sources['decoder']}"
    assert told == ([says] if base else [])


@pytest.mark.parametrize(
  ("key", "value", "says"),
  [
    ("hlora_alpha", 8, "hlora_alpha: 8, the model's lora_alpha is 4.0"),
    ("hlora_r", 4, "hlora_r: 4, the model's lora_rank is 2"),
    ("hlora_nums", 4, "hlora_nums: 4, the model's lora_experts is 2"),
    ("model_name_or_path", "microsoft/phi-4", "whose decoder has width 5120 where"),
  ],
)
def test_healthgpts_settings_are_compared_where_they_lie(
  tmp_path: pathlib.Path, key: str, value: Any, says: str
) -> None:
  found = SYSTEMS["healthgpt"]()
  sources, expected = systems.write(tmp_path, found), tree.unflatten(found.ours)
  model = MODEL | {"decoder": MODEL["decoder"] | {"lora_experts": 2, "width": 8}}
  convert(sources, model, expected, tmp_path / "out")  # its publisher has no such file
  told = {"hlora_r": 2, "hlora_alpha": 4.0, "hlora_nums": 2}
  path = sources["adapter"] / "healthgpt.json"
  path.write_text(json.dumps(told))
  convert(sources, model, expected, tmp_path / "out")
  path.write_text(json.dumps(told | {key: value}))
  with pytest.raises(
    ValueError, match=f"(.|\n)*{says}(.|\n)*set lora_rank, lora_alpha"
  ):
    convert(sources, model, expected, tmp_path / "out")


# ── config.json of systems ────────────────────────────────────────────────────────

SIZES = {
  "width": 32, "depth": 2, "num_heads": 4, "num_kv_heads": 2, "mlp_width": 48,
  "vocab_size": 64, "norm_eps": 1e-6,
}  # fmt: skip
TEXT = {
  "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
  "num_key_value_heads": 2, "intermediate_size": 48, "rms_norm_eps": 1e-6,
}  # fmt: skip
GEMMA = SIZES | {
  "head_width": 8, "rope_base": 1e6, "rope_factor": 8.0, "local_rope_base": 1e4,
  "window": 16, "global_every": 6, "query_scale": 0.25, "activation": "gelu_tanh",
  "embed_scale": True, "norm_offset": True, "qk_norm": True, "post_norms": True,
  "tied": True,
}  # fmt: skip
# As the hub's files say it (transformers 4), and as transformers 5 does.
GEMMA_4 = {
  "model_type": "gemma3",
  "text_config": TEXT | {
    "model_type": "gemma3_text", "sliding_window": 16, "query_pre_attn_scalar": 16,
    "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "head_dim": 8,
  },
  "vision_config": {"hidden_size": 6, "model_type": "siglip_vision_model"},
}  # fmt: skip
GEMMA_5 = {
  "model_type": "gemma3",
  "text_config": TEXT | {
    "model_type": "gemma3_text", "sliding_window": 16, "query_pre_attn_scalar": 16,
    "_sliding_window_pattern": 6, "hidden_activation": "gelu_pytorch_tanh",
    "rope_parameters": {
      "full_attention": {"rope_theta": 1e6, "factor": 8.0, "rope_type": "linear"},
      "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
    },
    "final_logit_softcapping": None, "tie_word_embeddings": True,
  },
}  # fmt: skip


def check(folder: pathlib.Path, config: Any, name: str, fields: Any) -> dict[str, Any]:
  (folder / "config.json").write_text(json.dumps(config))
  return published.check_config(folder / "config.json", layout(name), fields)


@pytest.mark.parametrize("config", [GEMMA_4, GEMMA_5], ids=["4", "5"])
def test_gemmas_config_is_compared(tmp_path: pathlib.Path, config: Any) -> None:
  assert check(tmp_path, config, "hf_gemma3", GEMMA)
  for field, value, says in (
    ("rope_base", 1e4, "rope_theta: 1000000.0, the model's rope_base is 10000.0"),
    ("rope_factor", 1.0, "rope_factor: 8.0, the model's rope_factor is 1.0"),
    ("local_rope_base", 1e5, "rope_local_base_freq: 10000.0"),
    ("query_scale", 0.0, "query_scale: 0.25"),
    ("window", 32, "sliding_window: 16"),
    ("norm_offset", False, "the model's norm_offset is False"),
    ("tied", False, "tie_word_embeddings: True"),
  ):
    with pytest.raises(ValueError, match=says):
      check(tmp_path, config, "hf_gemma3", GEMMA | {field: value})


def test_gemmas_config_with_what_is_not_supported(tmp_path: pathlib.Path) -> None:
  for key, value in (
    ("final_logit_softcapping", 30.0), ("rope_scaling", {"rope_type": "yarn"})
  ):  # fmt: skip
    config = GEMMA_4 | {"text_config": GEMMA_4["text_config"] | {key: value}}
    with pytest.raises(ValueError, match=f"{key}: .* is not supported"):
      check(tmp_path, config, "hf_gemma3", GEMMA)
  for field, value in (("activation", "silu"), ("global_every", 4)):
    with pytest.raises(ValueError, match=f"the model's {field} is"):
      check(tmp_path, GEMMA_5, "hf_gemma3", GEMMA | {field: value})


def test_llavas_own_config_and_transformers_of_the_same_name(
  tmp_path: pathlib.Path,
) -> None:
  fields = SIZES | {"rope_base": 1e4}
  flat = TEXT | {"model_type": "llava", "mm_hidden_size": 6}
  assert check(tmp_path, flat, "hf_llama", fields)
  assert check(tmp_path, flat, "clip_vision", {})  # it says nothing of its tower
  nested = {
    "model_type": "llava",
    "text_config": TEXT,
    "vision_config": {"hidden_size": 6},
  }
  assert check(tmp_path, nested, "hf_llama", fields)
  for config in (flat, nested):
    with pytest.raises(ValueError, match="hidden_size: 32, the model's width is 16"):
      check(tmp_path, config, "hf_llama", fields | {"width": 16})
  with pytest.raises(ValueError, match="hidden_size: 6, the model's width is 8"):
    check(tmp_path, nested, "clip_vision", {"width": 8, "depth": 1, "num_heads": 1,
                                            "mlp_width": 8, "patch_px": 2})  # fmt: skip
  qwen = nested | {"text_config": TEXT | {"model_type": "qwen2"}}
  with pytest.raises(ValueError, match="'qwen2', the model's qkv_bias is False"):
    check(tmp_path, qwen, "hf_llama", fields)


def test_medmvls_config_describes_nothing(tmp_path: pathlib.Path) -> None:
  config = {"model_type": "lvlm", "lvlm_llm_type": "qwen2", "hidden_size": 2048}
  for name in ("hf_llama", "siglip_vision"):
    assert check(tmp_path, config, name, {}) == config
  with pytest.raises(ValueError, match="model_type 'lvlm', but .* laid out as hf_phi3"):
    check(tmp_path, config, "hf_phi3", {})


def test_blip2s_port_had_the_wrong_eps(tmp_path: pathlib.Path) -> None:
  """1e-5 until transformers 4.31, where the encoder always meant 1e-6."""
  fields = {"width": 8, "depth": 1, "num_heads": 1, "mlp_width": 8, "patch_px": 2}
  sizes = {"hidden_size": 8, "layer_norm_eps": 1e-5}
  ported = {"model_type": "blip-2", "vision_config": sizes}
  assert check(tmp_path, ported, "blip2_vision", fields | {"norm_eps": 1e-6})
  clip = sizes | {"model_type": "clip_vision_model"}
  with pytest.raises(
    ValueError, match="layer_norm_eps: 1e-05, the model's norm_eps is"
  ):
    check(tmp_path, clip, "clip_vision", fields | {"norm_eps": 1e-6})
