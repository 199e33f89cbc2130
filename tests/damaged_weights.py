"""Published weights that must be refused, and what the refusal says.

Each case damages copies of good checkpoints on a `Bench`; test_convert.py converts them.
"""

from __future__ import annotations

import json
import os
import pathlib
import pickle
import shutil
from collections.abc import Callable
from typing import Any
from typing import Protocol

import numpy as np
import pytest
from published_weights import expected

from imax_jax.weights import files
from imax_jax.weights import load
from imax_jax.weights.convert import convert

EMBED = "model.embed_tokens.weight"
QUERY = "model.layers.1.self_attn.q_proj.weight"


class Bench:
  """Sources and model that fit each other, to be spoilt by a case."""

  def __init__(
    self,
    shelf: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    model: dict[str, Any],
  ) -> None:
    self.shelf, self.tmp_path, self.monkeypatch = shelf, tmp_path, monkeypatch
    self.model = model
    self.sources = {"encoder": shelf / "eva.safetensors", "decoder": shelf / "llama"}

  def take(self, name: str, part: str = "decoder") -> pathlib.Path:
    """A copy of a folder of the shelf, as the source of a part."""
    folder = self.tmp_path / name
    shutil.copytree(self.shelf / name, folder)
    self.sources[part] = folder
    return folder

  def edit(
    self, name: str, change: Callable[[dict[str, Any]], object], part: str = "decoder"
  ) -> pathlib.Path:
    """Changes the {name: array} of a copy's file."""
    path = self.take(name, part) / "model.safetensors"
    arrays = {key: np.array(value) for key, value in load.load_params(path).items()}
    change(arrays)
    files.write_tensors(path, arrays)
    return path

  def configure(self, name: str, part: str = "decoder", **settings: Any) -> None:
    """Changes config.json of a copy."""
    path = self.take(name, part) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))

  def shard(self) -> tuple[pathlib.Path, dict[str, str]]:
    """LLaMA in two shards: the folder and the index's weight_map."""
    folder = self.take("llama")
    arrays = load.load_params(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    index = {}
    for number in range(2):
      name = f"model-0000{number + 1}-of-00002.safetensors"
      part = dict(list(arrays.items())[number::2])
      files.write_tensors(folder / name, part)
      index |= dict.fromkeys(part, name)
    self.index(folder, index)
    return folder, index

  def index(self, folder: pathlib.Path, index: Any) -> None:
    text = json.dumps({"weight_map": index})
    (folder / "model.safetensors.index.json").write_text(text)

  def adapter(
    self, change: Callable[[dict[str, Any]], object], **settings: Any
  ) -> None:
    """A PEFT folder on q_proj and v_proj of rank 4."""
    folder = self.tmp_path / "adapter"
    folder.mkdir()
    arrays = {}
    for layer in range(2):
      for name, out in (("q", 32), ("v", 16)):
        stem = f"base_model.model.model.layers.{layer}.self_attn.{name}_proj.lora_"
        arrays[f"{stem}A.weight"] = np.ones((4, 32), np.float32)
        arrays[f"{stem}B.weight"] = np.ones((out, 4), np.float32)
    change(arrays)
    files.write_tensors(folder / "adapter_model.safetensors", arrays)
    config = {
      "peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none",
      "target_modules": ["q_proj", "v_proj"],
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config | settings))
    self.sources["adapter"] = folder
    self.model["decoder"] |= {
      "lora_rank": 4, "lora_alpha": 8.0, "lora_targets": "attn/(q|v)",
    }  # fmt: skip

  def torch_stub(self, text: str) -> None:
    """Another torch for the process that reads pickles."""
    (self.tmp_path / "torch.py").write_text(text)
    self.monkeypatch.setenv("PYTHONPATH", str(self.tmp_path))


class Case(Protocol):
  __name__: str
  says: tuple[str, ...]

  def __call__(self, bench: Bench) -> None: ...


CASES: list[Case] = []
# Those that start torch, which takes a while.
PICKLES: list[Case] = []


def case(*says: str, among: list[Case] = CASES) -> Callable[[Any], Any]:
  """Enters a case in a list; `says` are words of the refusal."""

  def add(function: Any) -> Any:
    function.says = says
    among.append(function)
    return function

  return add


def check(bench: Bench, case: Case) -> None:
  """Nothing but the refusal comes of it."""
  case(bench)
  out = bench.tmp_path / "out"
  with pytest.raises((ValueError, FileNotFoundError)) as caught:
    convert(bench.sources, bench.model, expected(bench.model), out)
  message = str(caught.value)
  for words in case.says:
    assert words in message, message
  assert message.count("\n") <= 11
  assert not out.exists() or not list(out.iterdir())
  assert not (bench.tmp_path / "fired").exists()


def _keep(arrays: dict[str, Any]) -> None:
  del arrays


@case("model-00002-of-00002.safetensors", "expected", "bytes, the file has")
def truncated_shard(bench: Bench) -> None:
  folder, _ = bench.shard()
  path = folder / "model-00002-of-00002.safetensors"
  path.write_bytes(path.read_bytes()[:-7])


@case("model-00001-of-00002.safetensors: missing", "index.json expects 11", "Download")
def missing_shard(bench: Bench) -> None:
  folder, _ = bench.shard()
  (folder / "model-00001-of-00002.safetensors").unlink()


@case("index.json", "model.norm.weight lies in model-0000", "does not hold it")
def index_names_a_tensor_that_its_shard_lacks(bench: Bench) -> None:
  folder, index = bench.shard()
  other = {"1": "2", "2": "1"}[index["model.norm.weight"][10]]
  index["model.norm.weight"] = f"model-0000{other}-of-00002.safetensors"
  bench.index(folder, index)


@case("of-00002.safetensors: holds model.norm.weight", "says nothing")
def shard_holds_what_the_index_does_not_know(bench: Bench) -> None:
  folder, index = bench.shard()
  del index["model.norm.weight"]
  bench.index(folder, index)


@case("model.norm.weight is said to lie in '../llama/x'", "same folder")
def index_leads_out_of_the_folder(bench: Bench) -> None:
  folder, index = bench.shard()
  bench.index(folder, index | {"model.norm.weight": "../llama/x"})


@case("model.safetensors.index.json: expected an index", "download it again")
def index_is_something_else(bench: Bench) -> None:
  folder, _ = bench.shard()
  (folder / "model.safetensors.index.json").write_text("[1, 2]")


@case("2 shards (model-00001-of-00002.safetensors, …) and no index")
def shards_without_an_index(bench: Bench) -> None:
  folder, _ = bench.shard()
  (folder / "model.safetensors.index.json").unlink()


@case("llama: no weights in this folder", "pytorch_model.bin")
def folder_without_weights(bench: Bench) -> None:
  (bench.take("llama") / "model.safetensors").unlink()


@case("absent: nothing there")
def no_such_path(bench: Bench) -> None:
  bench.sources["decoder"] = bench.tmp_path / "absent"


@case("model.safetensors: not a readable", "git lfs pull")
def pointer_instead_of_a_file(bench: Bench) -> None:
  path = bench.take("llama") / "model.safetensors"
  path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")


@case("convert: no file for the encoder")
def no_encoder(bench: Bench) -> None:
  del bench.sources["encoder"]


@case("convert: no part ['projector']", "adapter")
def unknown_part(bench: Bench) -> None:
  bench.sources["projector"] = bench.shelf / "llama"


@case("llama: expected a published encoder", "a file of the decoder (hf_llama)")
def decoder_given_as_encoder(bench: Bench) -> None:
  bench.sources["encoder"] = bench.shelf / "llama"


@case(
  "config.json does not fit the model",
  "num_key_value_heads: 4, the model's num_kv_heads is 2",
  "rope_theta: 1000000.0, the model's rope_base is 10000.0",
  "sliding_window: 4096, the model's window is 0",
)
def another_family_of_the_same_layout(bench: Bench) -> None:
  bench.configure(
    "mistral", num_key_value_heads=4, rope_parameters=None, rope_theta=1e6,
    sliding_window=4096,
  )  # fmt: skip


@case("config.json", "model_type: 'qwen2', the model's qkv_bias is False")
def family_with_biases(bench: Bench) -> None:
  bench.take("qwen2")
  bench.model["decoder"] |= {"tied": True}


@case("config.json", "model_type 'llama'", "laid out as hf_phi3 (phi3)")
def config_of_another_layout(bench: Bench) -> None:
  bench.configure("phi3", model_type="llama")


@case("config.json: auto_map asks for", "trust_remote_code", "take auto_map out")
def code_in_the_repository(bench: Bench) -> None:
  bench.configure("llama", auto_map={"AutoModel": "modeling_llama.Llama"})


@case(
  "rope_scaling: {'type': 'linear', 'factor': 2.0} is not supported",
  "attention_bias: True is not supported",
  "partial_rotary_factor: 0.5 is not supported",
  "rms_norm_eps: 1e-06, the model's norm_eps is 1e-05",
)
def options_that_are_not_supported(bench: Bench) -> None:
  bench.configure(
    "llama", rope_scaling={"type": "linear", "factor": 2.0}, attention_bias=True,
    partial_rotary_factor=0.5, rms_norm_eps=1e-6,
  )  # fmt: skip


@case("rope_type: 'llama3' is not supported")
def rotary_scaling_in_its_newer_place(bench: Bench) -> None:
  bench.configure("llama", rope_parameters={"rope_theta": 1e4, "rope_type": "llama3"})


@case("config.json", "hidden_act: 'gelu', the model's activation is 'quick_gelu'")
def encoder_with_another_activation(bench: Bench) -> None:
  bench.configure("clip", "encoder", hidden_act="gelu")
  bench.model["encoder"] = {
    "image_px": 28, "patch_px": 14, "width": 32, "depth": 2, "num_heads": 4,
    "mlp_width": 48, "norm_eps": 1e-5, "post_norm_eps": 0, "pre_norm": True,
    "patch_bias": False, "biases": ("q", "k", "v"), "activation": "quick_gelu",
  }  # fmt: skip


@case("config.json: model_type 'gpt2' is not supported; there are", "mistral, qwen2")
def unknown_family(bench: Bench) -> None:
  bench.configure("llama", model_type="gpt2")


@case("config.json: not readable as JSON")
def config_cut_short(bench: Bench) -> None:
  path = bench.take("llama") / "config.json"
  path.write_text(path.read_text()[:40])


@case(
  "2 differences",
  f"unexpected {QUERY}_renamed (32, 32) in model.safetensors",
  f"missing    decoder/layers/attn/q/kernel[1] (32, 32) from {QUERY}",
)
def renamed_key(bench: Bench) -> None:
  bench.edit("llama", lambda t: t.update({f"{QUERY}_renamed": t.pop(QUERY)}))


@case(
  "9 differences",
  "missing    decoder/layers/attn/k/kernel[2] (32, 16) from model.layers.2.self_attn",
  "… and 1 more",
)
def a_layer_too_few(bench: Bench) -> None:
  (bench.take("llama") / "config.json").unlink()
  bench.model["decoder"] |= {"depth": 3}


@case("unexpected model.layers.1.self_attn.k_proj.weight (16, 32)", "… and 1 more")
def a_layer_too_many(bench: Bench) -> None:
  (bench.take("llama") / "config.json").unlink()
  bench.model["decoder"] |= {"depth": 1}


@case(
  f"shape      {EMBED} (66, 32) in model.safetensors",
  "expected (64, 32) for decoder/embed/embedding, got (66, 32)",
  "(vocabulary: 66 rows there, vocab_size 64 here; --config.model.decoder.vocab_size=66 if",
  "drop_rows=COUNT if its last COUNT rows are of tokens that are not used here (2 leaves",
)
def vocabulary_of_other_length(bench: Bench) -> None:
  bench.edit("llama", lambda t: t.update({EMBED: np.ones((66, 32), np.float32)}))


@case(f"shape      {QUERY} (31, 32)", "expected (32, 32)", "got (32, 31)")
def misshapen(bench: Bench) -> None:
  bench.edit("llama", lambda t: t.update({QUERY: t[QUERY][1:]}))


@case(f"dtype      {QUERY} (32, 32)", "expected floats, got int8")
def quantised(bench: Bench) -> None:
  bench.edit("llama", lambda t: t.update({QUERY: t[QUERY].astype(np.int8)}))


@case(f"model.safetensors: {QUERY}[5, 7] is nan", "expected finite numbers")
def not_a_number(bench: Bench) -> None:
  def change(arrays: dict[str, Any]) -> None:
    arrays[QUERY][5, 7] = np.nan

  bench.edit("llama", change)


@case(f"model.safetensors: {QUERY}[0, 0] is inf")
def infinite(bench: Bench) -> None:
  def change(arrays: dict[str, Any]) -> None:
    arrays[QUERY] = arrays[QUERY].astype(np.float16)
    arrays[QUERY][0, 0] = np.inf

  bench.edit("llama", change)


@case(QUERY, "bfloat16 cannot hold it")
def beyond_the_models_dtype(bench: Bench) -> None:
  def change(arrays: dict[str, Any]) -> None:
    arrays[QUERY][0, 0] = 3.4e38

  bench.edit("llama", change)
  bench.model["decoder"] |= {"kernel_dtype": "bfloat16"}


@case("lm_head.weight differs from model.embed_tokens.weight", "tied=False")
def tied_but_different(bench: Bench) -> None:
  bench.edit("smol", lambda t: t.update({"lm_head.weight": t[EMBED] + 1}))
  bench.model["decoder"] |= {"tied": True}


@case("layers.0.self_attn.qkv.bias: part 2 of 3 should be zero", "largest value is 1.0")
def key_bias_in_eva(bench: Bench) -> None:
  name = "encoder.layers.0.self_attn.qkv.bias"
  bench.edit("blip2", lambda t: t.update({name: np.ones(96, np.float32)}), "encoder")
  bench.model["encoder"] = {
    "image_px": 28, "patch_px": 14, "width": 32, "depth": 2, "num_heads": 4,
    "mlp_width": 48,
  }  # fmt: skip


@case("tokenizer.json: its largest id is 64, but the embedding has 64 rows")
def tokenizer_with_more_ids(bench: Bench) -> None:
  vocab = {"<pad>": 0, "<s>": 1, "</s>": 2, "b": 64}
  words = {"type": "WordLevel", "vocab": vocab, "unk_token": "b"}
  text = json.dumps({"version": "1.0", "model": words})
  (bench.take("llama") / "tokenizer.json").write_text(text)


@case("tokenizer.json: not a readable tokenizer")
def tokenizer_cut_short(bench: Bench) -> None:
  (bench.take("llama") / "tokenizer.json").write_text('{"version": ')


class _Trap:
  def __init__(self, file: pathlib.Path) -> None:
    self._file = file

  def __reduce__(self) -> Any:
    return os.mkdir, (str(self._file),)


@case(
  "trap.bin: this pickle holds more than tensors", "Ask its publisher", among=PICKLES
)
def pickle_with_code(bench: Bench) -> None:
  path = bench.tmp_path / "trap.bin"
  path.write_bytes(pickle.dumps({"a": _Trap(bench.tmp_path / "fired")}))
  bench.sources["decoder"] = path


@case(
  "trap.pth: this pickle holds more than tensors (posix.mkdir)",
  "is refused",
  among=PICKLES,
)
def archive_with_code(bench: Bench) -> None:
  import torch

  path = bench.tmp_path / "trap.pth"
  torch.save({"a": torch.ones(1), "b": _Trap(bench.tmp_path / "fired")}, path)
  bench.sources["encoder"] = path


def _save_eva(bench: Bench, wrap: Callable[[Any], Any] = lambda t: t) -> pathlib.Path:
  import torch

  path = bench.tmp_path / "eva.pth"
  arrays = load.load_params(bench.shelf / "eva.safetensors")
  torch.save(wrap({n: torch.from_numpy(a) for n, a in arrays.items()}), path)
  bench.sources["encoder"] = path
  return path


@case("eva.pth: not a readable torch file", "Copy or download it again", among=PICKLES)
def truncated_archive(bench: Bench) -> None:
  path = _save_eva(bench)
  path.write_bytes(path.read_bytes()[:-2000])


@case("eva.pth: expected a dict of tensors, got a list", among=PICKLES)
def pickle_of_something_else(bench: Bench) -> None:
  _save_eva(bench, lambda tensors: list(tensors.values()))


@case(
  "eva.pth: its tensors stand under 'model', expected them at the top",
  "eva",
  among=PICKLES,
)
def wrapped_where_it_should_not_be(bench: Bench) -> None:
  _save_eva(bench, lambda tensors: {"model": tensors, "epoch": 3})


@case("torch 2.6.0 is too old", "install 'torch>=2.10'", among=PICKLES)
def torch_too_old(bench: Bench) -> None:
  _save_eva(bench)
  bench.torch_stub('__version__ = "2.6.0"')


@case("needs torch, which is not here", "install 'torch>=2.10'", among=PICKLES)
def torch_missing(bench: Bench) -> None:
  _save_eva(bench)
  bench.torch_stub("raise ImportError")


@case("adapter_config.json does not fit", "r: 8, the model's lora_rank is 4")
def adapter_of_another_rank(bench: Bench) -> None:
  bench.adapter(_keep, r=8)


@case(
  "use_dora: True is not supported",
  "modules_to_save: ['lm_head'] is not supported",
  "lora_alpha: 16, the model's lora_alpha is 8.0",
  "target_modules: q_proj; the model's lora_targets are q_proj, v_proj",
)
def adapter_with_other_options(bench: Bench) -> None:
  bench.adapter(
    _keep, use_dora=True, modules_to_save=["lm_head"], lora_alpha=16,
    target_modules=["q_proj"],
  )  # fmt: skip


@case("layers.1.self_attn.v_proj.lora_B.weight (32, 4)", "attn/v/lora_b", "(4, 16)")
def adapter_for_other_shapes(bench: Bench) -> None:
  name = "base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"
  bench.adapter(lambda t: t.update({name: np.ones((32, 4), np.float32)}))


@case("twice      decoder/layers/attn/v/lora_b[1] from", "lora_B.default.weight")
def adapter_with_both_names(bench: Bench) -> None:
  name = "base_model.model.model.layers.1.self_attn.v_proj.lora_B."
  bench.adapter(lambda t: t.update({f"{name}default.weight": t[f"{name}weight"]}))


@case("adapter_config.json: missing", "alpha")
def adapter_without_its_settings(bench: Bench) -> None:
  bench.adapter(_keep)
  (bench.tmp_path / "adapter" / "adapter_config.json").unlink()
