"""Trained weights in the files of published systems: there, and back again to the bit."""

from __future__ import annotations

import importlib
import json
import math
import pathlib
from typing import Any

import numpy as np
import published_weights
import pytest

from configs.zoo import phantom as pages
from imax_jax import mesh
from imax_jax import tree
from imax_jax.ledger import plain
from imax_jax.parameters import Parameters
from imax_jax.weights import checkpoints
from imax_jax.weights import convert
from imax_jax.weights import editions
from imax_jax.weights import load
from imax_jax.weights import publish
from imax_jax.weights import published
from imax_jax.weights.own import group_of
from imax_jax.weights.own import part_of
from imax_jax.weights.rows_of_layouts import layout
from imax_jax.weights.settings import Facts

torch = pytest.importorskip("torch", reason="it reads what is published")
transformers = pytest.importorskip("transformers", reason="it reads the decoders")
peft = pytest.importorskip("peft", reason="it reads adapters")

LORA = {"lora_rank": 3, "lora_alpha": 7.0, "lora_targets": "attn/[qv]"}
LIGHT = r"connector|adapter"


def random_params(model: dict[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
  rng = np.random.default_rng(seed)
  return {
    path: (path.endswith("scale") + 0.2 * rng.normal(size=leaf.shape)).astype(
      leaf.dtype
    )
    for path, leaf in tree.flatten(published_weights.expected(model)).items()
  }


def facts_of(
  model: dict[str, Any], planned: list[publish.Planned], dtype: str, **more: Any
) -> Facts:
  values: dict[str, Any] = {
    "model": model, "dtype": dtype, "base": None, "special": {}, "style": "llama2",
    "names": {"encoder": "tower", "decoder": "words"}, "geometry": "pad",
    "added_tokens": (), "tensors": {found.file.name: found.names for found in planned},
  }  # fmt: skip
  return Facts(**values | more)


def write(
  folder: pathlib.Path,
  name: str,
  model: dict[str, Any],
  params: dict[str, Any],
  parts: tuple[str, ...],
  dtype: str = "",
  base: Any = None,
  own: pathlib.Path | None = None,
  **more: Any,
) -> float:
  """As the verb does, of a model of which these parts were trained."""
  edition = editions.edition(name)
  trained = {path for path in params if part_of(path) in parts}
  planned = publish.plan(edition, params, trained, model, dtype, base)
  facts = facts_of(model, planned, dtype or edition.dtype, base=own, **more)
  folder.mkdir(exist_ok=True)
  publish.write(folder, edition, planned, facts)
  return publish.check(folder, planned, model["decoder"], base)


def converted(
  folder: pathlib.Path, model: dict[str, Any], **sources: pathlib.Path
) -> dict[str, np.ndarray]:
  """What `convert` makes of published files."""
  convert.convert(sources, model, published_weights.expected(model), folder)
  return load.load_params(folder / "foundation.safetensors")


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  folder = tmp_path_factory.mktemp("shelf")
  return published_weights.make_shelf(folder, ("llama", "clip", "siglip"))


def equal(got: dict[str, Any], want: dict[str, Any], parts: str) -> None:
  chosen = [path for path in want if part_of(path) in parts.split("|")]
  assert chosen
  for path in chosen:
    np.testing.assert_array_equal(got[path], want[path], err_msg=path)


# ── MiniGPT's family ──────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("name", "depth"), [("minigpt", 1), ("unimed", 2)])
def test_checkpoints_of_lavis(
  tmp_path: pathlib.Path, shelf: pathlib.Path, name: str, depth: int
) -> None:
  model = published_weights.fields(**LORA)
  model["connector"]["depth"] = depth
  params = random_params(model)
  write(tmp_path / "out", name, model, params, ("connector", "adapter"))
  path = tmp_path / "out" / "checkpoint_0.pth"
  held = torch.load(path, weights_only=True)
  assert held["config"] == {} and held["epoch"] == 0
  llm, proj, ending = {
    "minigpt": ("llama_model", "llama_proj", ""),
    "unimed": ("llm_model", "llm_proj", ".default"),
  }[name]
  first = f"{proj}.0" if depth == 2 else proj
  layer = f"{llm}.base_model.model.model.layers.1.self_attn.v_proj"
  assert len(held["model"]) == 2 * depth + 2 * 2 * 2
  np.testing.assert_array_equal(
    held["model"][f"{first}.weight"].numpy(), params["connector/dense_0/kernel"].T
  )
  np.testing.assert_array_equal(
    held["model"][f"{layer}.lora_A{ending}.weight"].numpy(),
    params["decoder/layers/attn/v/lora_a"][1].T,
  )
  back = converted(
    tmp_path / "back", model,
    encoder=shelf / "eva.safetensors", decoder=shelf / "llama", adapter=path,
  )  # fmt: skip
  equal(back, params, LIGHT)


def test_a_trained_llm_lies_beside_the_checkpoint(
  tmp_path: pathlib.Path, shelf: pathlib.Path
) -> None:
  """XrayGPT's: connector in one file, the whole LLM in a folder, each by its own name."""
  model = published_weights.fields()
  params = random_params(model)
  out = tmp_path / "out"
  write(out, "minigpt", model, params, ("connector", "decoder"), "float32")
  llm = transformers.AutoModelForCausalLM.from_pretrained(
    out / "llm", dtype=torch.float32
  )
  np.testing.assert_array_equal(
    llm.lm_head.weight.detach().numpy(), params["decoder/head/kernel"].T
  )
  back = converted(
    tmp_path / "back", model, encoder=shelf / "eva.safetensors", decoder=out / "llm",
    adapter=out / "checkpoint_0.pth",
  )  # fmt: skip
  equal(back, params, "connector|decoder")


# ── LLaVA's ───────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
  ("name", "decoder", "kind"),
  [
    ("llava", "llama", "llava_llama"), ("llava", "mistral", "llava_llama"),
    ("llava_v0", "llama", "llava"),
  ],
)  # fmt: skip
def test_llava_folders(
  tmp_path: pathlib.Path, shelf: pathlib.Path, name: str, decoder: str, kind: str
) -> None:
  model = published_weights.fields(decoder, "clip")
  model["connector"]["depth"] = 1 if name == "llava_v0" else 2
  params = random_params(model)
  out = tmp_path / "out"
  write(out, name, model, params, ("connector", "decoder"), "float32")
  config = json.loads((out / "config.json").read_text())
  assert config["model_type"] == kind
  assert config["mm_vision_tower"] == "tower" and config["mm_hidden_size"] == 32
  assert config["image_aspect_ratio"] == "pad"
  assert config["mm_vision_select_layer"] == -2
  if name == "llava":
    assert config["mm_projector_type"] == "mlp2x_gelu"
    back = converted(
      tmp_path / "back", model, encoder=shelf / "clip", decoder=out, adapter=out
    )
    equal(back, params, "connector|decoder")


def test_lora_is_merged_in_a_llava_folder(tmp_path: pathlib.Path) -> None:
  """And a plain decoder's class, which the folder's config is made for, can read it."""
  model = published_weights.fields(**LORA)
  params = random_params(model)
  out = tmp_path / "out"
  write(out, "llava", model, params, ("connector", "adapter"), "float32")
  held: dict[str, Any] = {}
  for file in out.glob("*.safetensors"):
    held |= load.load_params(file)
  assert not any("lora" in name for name in held)
  a, b = (params[f"decoder/layers/attn/q/lora_{x}"][1] for x in "ab")
  kernel = params["decoder/layers/attn/q/kernel"][1] + np.float32(7 / 3) * (a @ b)
  got = held["model.layers.1.self_attn.q_proj.weight"]
  np.testing.assert_allclose(got, kernel.T, rtol=1e-6, atol=1e-6)
  np.testing.assert_array_equal(
    held["model.mm_projector.2.weight"], params["connector/dense_1/kernel"].T
  )


def test_differences_from_a_base(tmp_path: pathlib.Path, shelf: pathlib.Path) -> None:
  """LLaVA-Med 1.0's way: what `convert` adds up is the model, rounded twice."""
  model = published_weights.fields("llama", "clip", vocab_size=68)
  model["connector"]["depth"] = 1
  params = random_params(model)
  out = tmp_path / "out"
  with checkpoints.open_checkpoint(shelf / "llama", tmp_path) as base:
    error = write(out, "llava_v0", model, params, ("connector", "decoder"), base=base)
    [file] = out.glob("*.safetensors")
    held = load.load_params(file)
    name = "model.embed_tokens.weight"
    want = params["decoder/embed/embedding"].astype(np.float16)
    below = base.read(name).astype(np.float32)
    assert held[name].dtype == np.float16
    np.testing.assert_array_equal(held[name][64:], want[64:])
    np.testing.assert_array_equal(
      held[name][:64], (want[:64].astype(np.float32) - below).astype(np.float16)
    )
    np.testing.assert_array_equal(
      held["model.mm_projector.weight"],
      params["connector/dense_0/kernel"].T.astype(np.float16),
    )
    with pytest.raises(ValueError, match="layout llava holds no differences"):
      write(out, "llava", model, params, ("connector", "decoder"), base=base)
    wider = published_weights.fields("llama", "clip", mlp_width=52)
    with pytest.raises(ValueError, match=r"gate_proj.weight \(52, 32\), \(48, 32\) in"):
      write(out, "llava_v0", wider, random_params(wider), ("decoder",), base=base)
  assert 0 < error < 2e-3
  (out / "config.json").unlink()  # it names the architecture of LLaVA-Med
  back = converted(
    tmp_path / "back", model, encoder=shelf / "clip", decoder=out, adapter=out,
    base=shelf / "llama",
  )  # fmt: skip
  for path, leaf in params.items():
    if part_of(path) == "decoder":
      np.testing.assert_allclose(back[path], leaf, atol=2e-3, err_msg=path)
      assert np.any(back[path] != 0)


# ── PEFT's files, HealthGPT's and MedM-VL's ───────────────────────────────────────


def test_adapters_with_their_connector(
  tmp_path: pathlib.Path, shelf: pathlib.Path
) -> None:
  model = published_weights.fields("llama", "clip", **LORA)
  params = random_params(model)
  out = tmp_path / "out"
  write(out, "peft", model, params, ("connector", "adapter"))
  held = torch.load(out / "non_lora_trainables.bin", weights_only=True)
  assert sorted(held) == [
    f"base_model.model.model.mm_projector.{n}.{x}"
    for n in (0, 2)
    for x in ("bias", "weight")
  ]
  back = converted(
    tmp_path / "back",
    model,
    encoder=shelf / "clip",
    decoder=shelf / "llama",
    adapter=out,
  )
  equal(back, params, LIGHT)
  base = transformers.AutoModelForCausalLM.from_pretrained(shelf / "llama")
  loaded = peft.PeftModel.from_pretrained(base, out)
  name = "base_model.model.model.layers.1.self_attn.v_proj.lora_B.default.weight"
  np.testing.assert_array_equal(
    dict(loaded.named_parameters())[name].detach().numpy(),
    params["decoder/layers/attn/v/lora_b"][1].T,
  )


def test_medm_vl(tmp_path: pathlib.Path, shelf: pathlib.Path) -> None:
  """All three parts, of which the tower is trained too."""
  model = published_weights.fields("qwen2", "siglip")
  params = random_params(model)
  out = tmp_path / "out"
  parts = ("connector", "decoder", "encoder")
  write(out, "medmvl", model, params, parts, "float32")
  config = json.loads((out / "config.json").read_text())
  assert config["model_type"] == "lvlm" and config["lvlm_llm_type"] == "qwen2"
  assert config["lvlm_encoder_image_name_or_path"] == "tower"
  [file] = out.glob("*.safetensors")
  held = load.load_params(file)
  assert {name.split(".")[0] for name in held} == {
    "llm", "encoder_image", "connector_image"
  }  # fmt: skip
  tower = transformers.SiglipVisionModel.from_pretrained(shelf / "siglip")
  names = {name.removeprefix("vision_model.") for name in tower.state_dict()}
  ours = {
    name.removeprefix("encoder_image.encoder.vision_model.")
    for name in held
    if name.startswith("encoder_image.")
  }
  assert ours <= names
  assert all(name.startswith(("post_layernorm", "head")) for name in names - ours)
  back = converted(tmp_path / "back", model, encoder=out, decoder=out, adapter=out)
  equal(back, params, "connector|decoder|encoder")


# ── What is refused ───────────────────────────────────────────────────────────────


def test_what_has_no_name_is_refused() -> None:
  model = published_weights.fields("llama", "clip", **LORA)
  params = random_params(model)

  def plan(name: str, *parts: str) -> Any:
    trained = {path for path in params if part_of(path) in parts}
    return publish.plan(editions.edition(name), params, trained, model)

  with pytest.raises(ValueError, match=r"llava has no name for 19 trained .* encoder/"):
    plan("llava", "connector", "encoder")
  with pytest.raises(ValueError, match=r"peft has no name for .* decoder/embed"):
    plan("peft", "adapter", "decoder")
  with pytest.raises(ValueError, match=r"minigpt has no name for encoder/class_token"):
    plan("minigpt", "connector", "encoder")
  with pytest.raises(
    ValueError, match=r"no layout 'lava'; there are .*healthgpt, llava"
  ):
    plan("lava", "connector")


def test_a_file_that_differs_is_refused(tmp_path: pathlib.Path) -> None:
  """A bit that fell over between the writing and the reading."""
  model = published_weights.fields()
  params = random_params(model)
  edition = editions.edition("minigpt")
  trained = {path for path in params if part_of(path) == "connector"}
  planned = publish.plan(edition, params, trained, model)
  publish.write(tmp_path, edition, planned, facts_of(model, planned, "float32"))
  publish.check(tmp_path, planned, model["decoder"])
  params["connector/dense_1/bias"][3] += 1e-6
  with pytest.raises(
    ValueError, match=r"read back, connector/dense_1/bias is not what"
  ):
    publish.check(tmp_path, planned, model["decoder"])
  params["connector/dense_1/bias"][3] = np.nan
  with pytest.raises(ValueError, match=r"dense_1/bias.*nan, expected finite"):
    publish.write(tmp_path, edition, planned, facts_of(model, planned, "float32"))


# ── Parts that some systems have alone ───────────────────────────────────


def leaves(**shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
  rng = np.random.default_rng(1)
  return {
    path: rng.normal(size=shape).astype(np.float32) for path, shape in shapes.items()
  }


def test_a_trained_qformer_goes_along_and_a_frozen_one_does_not() -> None:
  model = published_weights.fields()
  params = random_params(model)
  params |= leaves(**{
    "connector/qformer/queries": (4, 8),
    "connector/qformer/layers_1/attn/q/kernel": (8, 8),
  })  # fmt: skip
  edition = editions.edition("minigpt")

  def names(*parts: str) -> set[str]:
    trained = {path for path in params if group_of(path) in parts}
    [found] = publish.plan(edition, params, trained, model)
    return {*found.names}

  more = {"query_tokens", "Qformer.bert.encoder.layer.1.attention.self.query.weight"}
  assert names("connector", "qformer") - names("connector") == more


@pytest.mark.parametrize("depth", [1, 2])
def test_experts_stand_there_twice(tmp_path: pathlib.Path, depth: int) -> None:
  model = published_weights.fields(**LORA)
  model["connector"] |= {"depth": depth, "tasks": ("vqa", "rec")}
  params = {
    path: leaf
    for path, leaf in random_params(published_weights.fields(**LORA)).items()
    if part_of(path) != "connector"
  }
  experts = {
    f"connector/experts/dense_{n}/{name}": (3, *shape)
    for n in range(depth)
    for name, shape in (("kernel", (256 if n == 0 else 32, 32)), ("bias", (32,)))
  }
  experts |= {
    "connector/router/dense_0/kernel": (512, 8), "connector/router/dense_0/bias": (8,),
    "connector/router/dense_1/kernel": (8, 3), "connector/router/dense_1/bias": (3,),
    "connector/task_tokens": (2, 256),
  }  # fmt: skip
  params |= leaves(**experts)
  write(tmp_path, "unimed", model, params, ("connector", "adapter"))
  held = torch.load(tmp_path / "checkpoint_0.pth", weights_only=True)["model"]
  inner = ".0" if depth == 2 else ""
  for name in ("moe_layers", "llm_proj"):
    np.testing.assert_array_equal(
      held[f"{name}.2{inner}.weight"].numpy(),
      params["connector/experts/dense_0/kernel"][2].T,
    )
  assert (
    held[f"llm_proj.1{inner}.bias"].data_ptr()
    == held[f"moe_layers.1{inner}.bias"].data_ptr()
  )
  np.testing.assert_array_equal(
    held["task_tokens.refer"].numpy(), params["connector/task_tokens"][1][None, None]
  )
  assert held["router.fc1.weight"].shape == (8, 512)
  assert len(held) == 2 * 3 * 2 * depth + 4 + 2 + 8


def test_h_lora_stays_as_it_is(tmp_path: pathlib.Path) -> None:
  model = published_weights.fields(
    "phi3", "clip", **LORA | {"lora_targets": "attn/qkv"}
  )
  params = random_params(model)
  pair = params["decoder/layers/attn/qkv/lora_a"]
  route = {"decoder/layers/attn/qkv/lora_route": (*pair.shape[:2], 3)}
  params |= leaves(**route)
  model["decoder"] |= {"lora_experts": 3}
  write(tmp_path, "healthgpt", model, params, ("connector", "adapter"), style="phi3")
  held = torch.load(tmp_path / "com_hlora_weights.bin", weights_only=True)
  layer = "base_model.model.model.layers.1.self_attn.qkv_proj"
  np.testing.assert_array_equal(
    held[f"{layer}.lora_route.weight"].numpy(),
    params["decoder/layers/attn/qkv/lora_route"][1].T,
  )
  assert "base_model.model.model.mm_projector.2.bias" in held
  assert len(held) == 3 * 2 + 4
  told = json.loads((tmp_path / "healthgpt.json").read_text())
  assert (told["hlora_r"], told["hlora_alpha"], told["hlora_nums"]) == (3, 7.0, 3)
  assert told["instruct_template"] == "phi3_instruct"
  path, table = tmp_path / "healthgpt.json", layout("healthgpt")
  assert (
    published.check_adapter(path, table, model["decoder"], frozenset(params)) == told
  )
  with pytest.raises(ValueError, match="hlora_alpha: 7.0, the model's lora_alpha is 8"):
    published.check_adapter(
      path, table, model["decoder"] | {"lora_alpha": 8.0}, frozenset(params)
    )
  assert "can not be merged" in told["note"]
  for name in ("llava", "medmvl"):
    with pytest.raises(
      ValueError, match=r"no name for .*lora_route: H-LoRA .* can not be"
    ):
      write(tmp_path, name, model, params, ("connector", "adapter"))
  with pytest.raises(ValueError, match=r"peft has no name for .*lora_route"):
    write(tmp_path, "peft", model, params, ("connector", "adapter"))


GEMMA = {
  "tied": True, "window": 4, "global_every": 2, "local_rope_base": 1e4, "rope_base": 1e6,
  "rope_factor": 8.0, "query_scale": 0.25, "activation": "gelu_tanh", "head_width": 8,
}  # fmt: skip


def gemma_params(model: dict[str, Any]) -> dict[str, np.ndarray]:
  """With the norms that a plain decoder, and a plain encoder and connector, have not."""
  fields = published_weights.fields("llama", "siglip", tied=True)
  fields["connector"]["depth"] = 1
  params = random_params(fields)
  del params["connector/dense_0/bias"]
  here = "decoder/layers"
  norms = {
    f"{here}/attn_post_norm/scale": (2, 32), f"{here}/mlp_post_norm/scale": (2, 32),
    f"{here}/attn/q_norm/scale": (2, 8), f"{here}/attn/k_norm/scale": (2, 8),
    "connector/norm/scale": (32,), "encoder/norm/scale": (32,), "encoder/norm/bias": (32,),
  }  # fmt: skip
  return params | leaves(**norms)


def test_gemma3_is_what_transformers_loads(tmp_path: pathlib.Path) -> None:
  model = published_weights.fields("llama", "siglip", **GEMMA)
  model["connector"] |= {"depth": 1, "pool": 2}
  params = gemma_params(model)
  base, out = tmp_path / "base", tmp_path / "out"
  base.mkdir()
  own = {"image_token_index": 63, "text_config": {"max_position_embeddings": 77}}
  (base / "config.json").write_text(json.dumps(own))
  parts = ("connector", "decoder", "encoder")
  write(out, "gemma3", model, params, parts, "float32", own=base)
  loaded, said = transformers.Gemma3ForConditionalGeneration.from_pretrained(
    out, output_loading_info=True, dtype=torch.float32
  )
  assert not any(said[key] for key in ("missing_keys", "unexpected_keys")), said
  text = loaded.config.text_config
  assert text.layer_types == ["sliding_attention", "full_attention"]
  assert text.query_pre_attn_scalar == 16 and text.sliding_window == 4
  assert text.max_position_embeddings == 77 and loaded.config.image_token_index == 63
  assert text.rope_parameters["full_attention"]["factor"] == 8.0
  assert text.rope_parameters["sliding_attention"]["rope_theta"] == 1e4
  held = {
    name.replace("model.language_model.", ""): x
    for name, x in loaded.state_dict().items()
  }
  np.testing.assert_array_equal(
    held["layers.1.post_feedforward_layernorm.weight"].numpy(),
    params["decoder/layers/mlp_post_norm/scale"][1],
  )
  name = "model.multi_modal_projector.mm_input_projection_weight"
  np.testing.assert_array_equal(held[name].numpy(), params["connector/dense_0/kernel"])


# ── Systems at their full size ────────────────────────────────────────────────────

# page: layout, {file: tensors, parameters}. Totals are the published ones; Uni-Med's row
# has two tasks more than Uni-Med.
SYSTEMS = {
  "healthgpt_m3": ("healthgpt", {"com_hlora_weights.bin": (388, 102_891_520 + 12_589_056)}),
  "uni_med": ("unimed", {"checkpoint_0.pth": (477 + 2, 727_068_165 + 2 * 5632)}),
  "minigpt_med": ("minigpt", {"checkpoint_0.pth": (130, 23_072_768 + 33_554_432)}),
  "xraygpt": (
    "minigpt", {"checkpoint_0.pth": (2, 3_149_824), "llm/": (291, 6_738_415_616)}
  ),
  "llava_tri": ("llava", {"/": (295, 8_030_261_248 + 29_368_320)}),
}  # fmt: skip


@pytest.mark.parametrize("name", pages.NAMES)
def test_what_a_page_trains_has_names(name: str, tmp_path: pathlib.Path) -> None:
  c = importlib.import_module(f"configs.zoo.{name}").get_config()
  parameters = Parameters(c, mesh.make_mesh(c.mesh), tmp_path)
  planned = publish.plan(
    editions.edition(c.publish.layout),
    tree.flatten(parameters.abstract),
    frozenset(tree.flatten(parameters.trainable)),
    plain(c.model),
  )
  written = {
    found.file.name: (
      len(found.items), sum(math.prod(item.tensor.shape) for item in found.items)
    )
    for found in planned
  }  # fmt: skip
  layout, want = SYSTEMS.get(name, (c.publish.layout, written))
  assert (c.publish.layout, written) == (layout, want)
