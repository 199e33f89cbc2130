"""Adapters and merged decoders, as PEFT and transformers read them; and back."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np
import published_weights
import pytest

from imax_jax import tree
from imax_jax.models import storage
from imax_jax.models.decoder import Decoder
from imax_jax.weights import export
from imax_jax.weights import files
from imax_jax.weights import load
from imax_jax.weights import peft as adapters

torch = pytest.importorskip("torch", reason="torch runs the exported decoders")
transformers = pytest.importorskip("transformers", reason="it reads what is exported")
peft = pytest.importorskip("peft", reason="it reads and writes adapters")

IDS = np.arange(24).reshape(2, 12) * 5 % 64
LORA = {"lora_rank": 3, "lora_alpha": 7.0}
# A part of the linears, of a fused decoder too.
TARGETS = {"llama": ".*", "qwen2": "attn/[qv]|mlp/down", "phi3": "attn/qkv|mlp/gate_up"}


def decoder_of(name: str, **more: Any) -> dict[str, Any]:
  fields = published_weights.fields(name, **LORA, **more)["decoder"]
  return fields | {"lora_targets": TARGETS.get(name, ".*")}


def leaves_of(decoder: dict[str, Any]) -> dict[str, Any]:
  """{path: stand-in} of the decoder."""
  model = published_weights.fields() | {"decoder": decoder}
  flat = tree.flatten(published_weights.expected(model))
  return {path: leaf for path, leaf in flat.items() if path.startswith("decoder/")}


def random_params(decoder: dict[str, Any]) -> dict[str, np.ndarray]:
  rng = np.random.default_rng(0)
  return {
    path: (path.endswith("scale") + 0.2 * rng.normal(size=leaf.shape)).astype(
      leaf.dtype
    )
    for path, leaf in leaves_of(decoder).items()
  }


def pairs_of(params: dict[str, Any]) -> dict[str, Any]:
  return {path: leaf for path, leaf in params.items() if "/lora_" in path}


def base_of(params: dict[str, Any]) -> dict[str, Any]:
  return {path: leaf for path, leaf in params.items() if "/lora_" not in path}


def ours(decoder: dict[str, Any], params: dict[str, Any]) -> np.ndarray:
  rows, tokens = IDS.shape
  mask = jnp.tril(jnp.ones((rows, tokens, tokens), bool))
  position = jnp.tile(jnp.arange(tokens), (rows, 1))

  def run(self: Decoder) -> Any:
    x, _ = self(self.embed(jnp.array(IDS)), position, mask)
    return self.head(x)

  variables = {"params": tree.unflatten(params)["decoder"]}
  return np.asarray(Decoder(**decoder).apply(variables, method=run))


def theirs(model: Any) -> np.ndarray:
  with torch.no_grad():
    return model.eval()(torch.from_numpy(IDS)).logits.float().numpy()


def hugging_face(folder: pathlib.Path) -> Any:
  auto = transformers.AutoModelForCausalLM
  return auto.from_pretrained(folder, dtype=torch.float32)


def same(got: np.ndarray, want: np.ndarray) -> None:
  np.testing.assert_allclose(got, want, atol=2e-5 * np.abs(want).max(), rtol=0)


@pytest.fixture
def made(tmp_path: pathlib.Path) -> Any:
  """name -> (fields, parameters, base folder of Hugging Face's, adapter's folder)."""

  def make(name: str) -> tuple[dict[str, Any], dict[str, Any], pathlib.Path, Any]:
    decoder = decoder_of(name)
    params = random_params(decoder)
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    base.mkdir()
    adapter.mkdir()
    export.write_merged(base, base_of(params), decoder, dtype="float32")
    adapters.write_adapter(adapter, pairs_of(params), decoder, base="tiny")
    return decoder, params, base, adapter

  return make


@pytest.mark.parametrize("name", published_weights.DECODERS)
def test_base_and_adapter_speak_the_same_in_peft(made: Any, name: str) -> None:
  decoder, params, base, adapter = made(name)
  model = hugging_face(base)
  plain = theirs(model)
  same(plain, ours(decoder | {"lora_rank": 0}, base_of(params)))
  loaded = peft.PeftModel.from_pretrained(model, adapter)
  adapted = theirs(loaded)
  same(adapted, ours(decoder, params))
  assert np.abs(adapted - plain).max() > 1e-2 * np.abs(plain).max()


@pytest.mark.parametrize("name", published_weights.DECODERS)
def test_merged_is_the_adapter_model(
  made: Any, tmp_path: pathlib.Path, name: str
) -> None:
  decoder, params, _, _ = made(name)
  want = ours(decoder, params)
  bare = decoder | {"lora_rank": 0}
  for dtype in export.DTYPES:
    folder = tmp_path / dtype
    folder.mkdir()
    export.write_merged(folder, params, decoder, dtype=dtype)
    expected = base_of(leaves_of(decoder))
    back = export.read_merged(folder, expected, bare)
    got = ours(bare, back)
    same(theirs(hugging_face(folder)), got)
    difference = np.abs(got - want).max() / np.abs(want).max()
    assert difference < (2e-5 if dtype == "float32" else 0.05)
    if dtype == "bfloat16":
      assert difference > 1e-4


@pytest.mark.parametrize("kind", storage.QUANTIZED)
def test_merged_holds_what_the_integers_stand_for(
  tmp_path: pathlib.Path, kind: str
) -> None:
  """The pair was trained beside them, not beside what they were made from."""
  decoder = decoder_of("llama", width=64, mlp_width=64, head_width=16)
  params = random_params(decoder)
  want = leaves_of(decoder | {"kernel_dtype": kind})
  kept: dict[str, Any] = {}
  for path, leaf in params.items():
    if f"{path}_scale" in want:
      stored = storage.store(leaf, kind)
      kept |= {f"{path.rpartition('/')[0]}/{name}": x for name, x in stored.items()}
    elif path in want:
      kept[path] = jnp.asarray(leaf, want[path].dtype)
  export.write_merged(tmp_path, kept, decoder, dtype="float32")
  same(theirs(hugging_face(tmp_path)), ours(decoder | {"kernel_dtype": kind}, kept))


class Stack:
  """A leaf that gives a layer at a time, and never the whole."""

  def __init__(self, leaf: np.ndarray) -> None:
    self.shape, self.dtype, self._leaf = leaf.shape, leaf.dtype, leaf

  def __getitem__(self, layer: int) -> np.ndarray:
    assert isinstance(layer, int)
    return self._leaf[layer]

  def __array__(self, *_: Any, **__: Any) -> np.ndarray:
    raise AssertionError("all layers at once")


def test_shards_are_small_and_written_a_layer_at_a_time(
  tmp_path: pathlib.Path,
) -> None:
  decoder = decoder_of("llama")
  params = random_params(decoder)
  stacked = {
    path: Stack(leaf) if "/layers/" in path else leaf for path, leaf in params.items()
  }
  written = export.write_merged(tmp_path, stacked, decoder, shard_bytes=10_000)
  shards = sorted(tmp_path.glob("*.safetensors"))
  assert written.num_files == len(shards) > 3
  assert shards[-1].name == f"model-{len(shards):05d}-of-{len(shards):05d}.safetensors"
  index = json.loads((tmp_path / export.INDEX).read_text())
  sizes = []
  for shard in shards:
    with files.open_tensors(shard) as tensors:
      assert tensors.metadata == {"format": "pt"}
      sizes.append(sum(tensors.specs[name].size for name in tensors.names))
      assert all(index["weight_map"][name] == shard.name for name in tensors.names)
  assert max(sizes) <= 10_000
  assert sum(sizes) == written.num_bytes == index["metadata"]["total_size"]
  total = sum(leaf.size for leaf in base_of(params).values())
  assert written.num_bytes == 2 * total
  same(
    theirs(hugging_face(tmp_path)),
    ours(
      decoder | {"lora_rank": 0},
      export.read_merged(
        tmp_path, base_of(leaves_of(decoder)), decoder | {"lora_rank": 0}
      ),
    ),
  )


def test_files_beside_the_base_come_along(tmp_path: pathlib.Path) -> None:
  base, out = tmp_path / "base", tmp_path / "out"
  base.mkdir()
  out.mkdir()
  (base / "config.json").write_text(
    json.dumps({"max_position_embeddings": 77, "eos_token_id": 5, "vocab_size": 1})
  )
  (base / "tokenizer.json").write_text("{}")
  (base / "model.bin").write_text("not for us")
  decoder = decoder_of("llama")
  special = {"bos_token_id": 3, "eos_token_id": 4}
  export.write_merged(out, random_params(decoder), decoder, base=base, special=special)
  config = json.loads((out / "config.json").read_text())
  assert config["vocab_size"] == 64
  assert config["max_position_embeddings"] == 77
  assert (config["bos_token_id"], config["eos_token_id"]) == (3, 5)
  assert (out / "tokenizer.json").read_text() == "{}"
  assert not (out / "model.bin").exists()


def test_merge_refuses(tmp_path: pathlib.Path) -> None:
  decoder = decoder_of("llama")
  params = random_params(decoder)
  with pytest.raises(ValueError, match="fused=True and qkv_bias=True"):
    export.config_of(decoder | {"fused": True, "qkv_bias": True}, "float32")
  with pytest.raises(ValueError, match="dtype 'float16'"):
    export.write_merged(tmp_path, params, decoder, dtype="float16")
  params["decoder/layers/mlp/up/lora_b"][1, 0, 0] = np.nan
  with pytest.raises(ValueError, match=r"mlp/up/kernel, layer 1.* is nan"):
    export.write_merged(tmp_path, params, decoder)
  with pytest.raises(FileNotFoundError):
    export.read_merged(tmp_path, leaves_of(decoder), decoder)


# ── adapters, back in ─────────────────────────────────────────────────────────────


def test_adapter_there_and_back(made: Any) -> None:
  decoder, params, _, adapter = made("llama")
  back = adapters.read_adapter(adapter, pairs_of(leaves_of(decoder)), decoder)
  assert back.keys() == pairs_of(params).keys()
  for path, leaf in back.items():
    np.testing.assert_array_equal(leaf, params[path], err_msg=path)
  settings = json.loads((adapter / "adapter_config.json").read_text())
  assert settings["base_model_name_or_path"] == "tiny"
  assert settings["r"] == 3 and settings["lora_alpha"] == 7.0


@pytest.mark.parametrize("naming", ["today's", "0.2's"])
def test_adapters_that_peft_wrote(
  made: Any, tmp_path: pathlib.Path, naming: str
) -> None:
  decoder, params, base, _ = made("llama")
  settings = peft.LoraConfig(
    r=3, lora_alpha=7, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"
  )
  decoder["lora_targets"] = "attn/q|mlp/down"
  model = peft.get_peft_model(hugging_face(base), settings)
  torch.manual_seed(0)
  for name, parameter in model.named_parameters():
    if "lora_" in name:
      torch.nn.init.normal_(parameter, std=0.2)
  folder = tmp_path / "theirs"
  model.save_pretrained(folder)
  if naming != "today's":
    held = load.load_params(folder / adapters.WEIGHTS)
    files.write_tensors(
      folder / adapters.WEIGHTS,
      {name.replace(".weight", ".default.weight"): x for name, x in held.items()},
    )
  back = adapters.read_adapter(folder, pairs_of(leaves_of(decoder)), decoder)
  same(theirs(model), ours(decoder, base_of(params) | back))


def rename(held: dict[str, Any], settings: dict[str, Any]) -> None:
  name = next(name for name in held if "layers.1.mlp.up_proj.lora_B" in name)
  held[name.replace("up_proj", "uq_proj")] = held.pop(name)


def drop(held: dict[str, Any], settings: dict[str, Any]) -> None:
  held.pop(next(name for name in held if "layers.1.mlp.up_proj.lora_B" in name))


def widen(held: dict[str, Any], settings: dict[str, Any]) -> None:
  held.update({k: np.repeat(x, 2, 0 if "lora_A" in k else 1) for k, x in held.items()})


def diverge(held: dict[str, Any], settings: dict[str, Any]) -> None:
  held[next(iter(held))][0, 0] = np.inf


def other(key: str, value: Any) -> Any:
  return lambda held, settings: settings.update({key: value})


@pytest.mark.parametrize(
  ("damage", "message"),
  [
    (rename, r"(?s)unexpected .*1\.mlp\.uq_proj.*missing .*1\.mlp\.up_proj\.lora_B"),
    (drop, r"missing +decoder/layers/mlp/up/lora_b\[1\] .*up_proj\.lora_B"),
    (widen, r"expected \(32, 3\) for .*lora_a, got \(32, 6\)"),
    (diverge, "adapter_model.safetensors: .*lora_.*finite"),
    (other("r", 6), "r: 6, the model's lora_rank is 3"),
    (other("lora_alpha", 8), "lora_alpha: 8, the model's lora_alpha is 7.0"),
    (other("target_modules", ["q_proj"]), "target_modules: q_proj; the model's"),
    (other("use_dora", True), "use_dora: True is not supported"),
  ],
)
def test_other_adapters_are_refused(made: Any, damage: Any, message: str) -> None:
  decoder, _, _, folder = made("llama")
  held = load.load_params(folder / adapters.WEIGHTS)
  settings = json.loads((folder / adapters.SETTINGS).read_text())
  damage(held, settings)
  files.write_tensors(folder / adapters.WEIGHTS, held)
  (folder / adapters.SETTINGS).write_text(json.dumps(settings))
  with pytest.raises(ValueError, match=message):
    adapters.read_adapter(folder, pairs_of(leaves_of(decoder)), decoder)


def test_what_no_adapter_holds_is_not_written(tmp_path: pathlib.Path) -> None:
  decoder = decoder_of("llama")
  params = random_params(decoder)
  with pytest.raises(ValueError, match=r"decoder/head/kernel.* can not be kept"):
    adapters.write_adapter(tmp_path, params, decoder)
  pairs = pairs_of(params)
  pairs["decoder/layers/attn/q/lora_a"][0, 0, 0] = np.nan
  with pytest.raises(ValueError, match="attn/q/lora_a.* is nan"):
    adapters.write_adapter(tmp_path, pairs, decoder)
  assert not list(tmp_path.iterdir())
