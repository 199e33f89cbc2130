"""Published files to a foundation: tiny models of the publishers' own code, converted."""

from __future__ import annotations

import collections
import contextlib
import json
import math
import pathlib
import tracemalloc
from typing import Any

import damaged_weights
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from ml_collections import ConfigDict
from published_weights import DECODERS
from published_weights import ENCODERS
from published_weights import GOLDEN
from published_weights import expected
from published_weights import fields
from published_weights import make_shelf
from published_weights import part
from published_weights import write_llama

from configs import phantom
from imax_jax import tree
from imax_jax.data import tokenizer as tokenizer_lib
from imax_jax.mesh import make_mesh
from imax_jax.models import zoo
from imax_jax.models.decoder import Decoder
from imax_jax.models.vit import Encoder
from imax_jax.parameters import Parameters
from imax_jax.weights import checkpoints
from imax_jax.weights import digests
from imax_jax.weights import files
from imax_jax.weights import load
from imax_jax.weights import plan as plan_lib
from imax_jax.weights import positions
from imax_jax.weights.convert import convert
from imax_jax.weights.rows_of_layouts import layout
from imax_jax.weights.rows_of_layouts import recognise

torch = pytest.importorskip("torch", reason="torch makes the published files")
transformers = pytest.importorskip("transformers", reason="the publishers' own code")


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """A folder of published checkpoints: eva.safetensors, llama/, clip/, …"""
  return make_shelf(tmp_path_factory.mktemp("shelf"), (*DECODERS, *ENCODERS))


@pytest.mark.parametrize("name", DECODERS)
def test_decoders_speak_as_the_reference(
  shelf: pathlib.Path, tmp_path: pathlib.Path, name: str
) -> None:
  model = fields(name)
  sources = {"encoder": shelf / "eva.safetensors", "decoder": shelf / name}
  record = convert(sources, model, expected(model), tmp_path)
  assert record == json.loads((tmp_path / "foundation.json").read_text())
  digests.check(tmp_path / "foundation.safetensors", record["foundation"], "")
  ids = np.arange(12)[None] * 5 % 64
  reference = transformers.AutoModelForCausalLM.from_pretrained(shelf / name)
  with torch.no_grad():
    want = reference(torch.from_numpy(ids)).logits.numpy()
  decoder = Decoder(**model["decoder"])
  variables = {"params": part(tmp_path, "decoder")}
  mask = jnp.tril(jnp.ones((1, 12, 12), bool))

  def run(self: Decoder) -> Any:
    x, _ = self(self.embed(jnp.array(ids)), jnp.arange(12)[None], mask)
    return self.head(x)

  got = decoder.apply(variables, method=run)
  np.testing.assert_allclose(got, want, atol=2e-5 * np.abs(want).max(), rtol=0)


@pytest.mark.parametrize("name", ENCODERS)
def test_encoders_see_as_the_reference(
  shelf: pathlib.Path, tmp_path: pathlib.Path, name: str
) -> None:
  model = fields(encoder=name)
  sources = {"encoder": shelf / name, "decoder": shelf / "llama"}
  convert(sources, model, expected(model), tmp_path)
  pixels = np.random.default_rng(0).normal(size=(2, 28, 28, 3)).astype(np.float32)
  kind = f"{ENCODERS[name][0]}Model"
  reference = getattr(transformers, kind).from_pretrained(shelf / name)
  with torch.no_grad():
    out = reference(
      torch.from_numpy(pixels.transpose(0, 3, 1, 2)), output_hidden_states=True
    )
  # CLIP's last but one; SigLIP's last before its own norm; BLIP-2's after it.
  states = {"clip": -2, "siglip": -1}
  want = out.hidden_states[states[name]] if name in states else out.last_hidden_state
  want = want.numpy()[:, 1:] if name != "siglip" else want.numpy()
  got = Encoder(**model["encoder"]).apply({"params": part(tmp_path, "encoder")}, pixels)
  np.testing.assert_allclose(got, want, atol=2e-5 * np.abs(want).max(), rtol=0)


def test_eva_sees_as_the_original(shelf: pathlib.Path, tmp_path: pathlib.Path) -> None:
  model = fields()
  sources = {"encoder": shelf / "eva.safetensors", "decoder": shelf / "llama"}
  record = convert(sources, model, expected(model), tmp_path)
  assert not record["filled"]
  with np.load(GOLDEN) as golden:
    pixels, want = golden["in/pixels"], golden["out/ln_vision"][:, 1:]
  got = Encoder(**model["encoder"]).apply(
    {"params": part(tmp_path, "encoder")}, pixels.transpose(0, 2, 3, 1)
  )
  np.testing.assert_allclose(got, want, atol=2e-5 * np.abs(want).max(), rtol=0)


def test_llavas_three_parts_and_one_of_ours(
  shelf: pathlib.Path, tmp_path: pathlib.Path
) -> None:
  """All of LLaVA in one folder; then its foundation's encoder for another decoder."""
  model = fields(encoder="clip")
  connector = {
    path: np.full(leaf.shape, 0.5, np.float32)
    for path, leaf in tree.flatten(expected(model)).items()
    if path.startswith("connector/")
  }
  pieces = dict(layout("llava").publish(connector))
  pieces = {
    name: pieces[name] for name in pieces if "projector.0" in name or ".2" in name
  }
  tower = load.load_params(shelf / "clip" / "model.safetensors")
  prefix = "model.vision_tower.vision_tower.vision_model."
  pieces |= {f"{prefix}{name}": array for name, array in tower.items()}
  pieces |= load.load_params(shelf / "llama" / "model.safetensors")
  folder = tmp_path / "llava"
  files.write_tensors(folder / "model.safetensors", pieces)
  config = json.loads((shelf / "llama" / "config.json").read_text())
  config |= {"model_type": "llava_llama"}
  (folder / "config.json").write_text(json.dumps(config))
  sources = dict.fromkeys(("encoder", "decoder", "adapter"), folder)
  record = convert(sources, model, expected(model), tmp_path / "one")
  # The last block, and the norm after it.
  assert len(record["ignored"]["encoder, decoder, adapter"]) == 16 + 2
  assert not record["absent"]
  model = fields("phi3", "clip")
  sources = {"encoder": tmp_path / "one", "decoder": shelf / "phi3"}
  record = convert(sources, model, expected(model), tmp_path / "two")
  assert record["sources"][0]["layout"] == "imax_jax"
  one, two = (part(tmp_path / name, "encoder") for name in ("one", "two"))
  jax.tree.map(np.testing.assert_array_equal, one, two)


def test_positions_of_other_pictures(
  shelf: pathlib.Path, tmp_path: pathlib.Path
) -> None:
  model = fields()
  model["encoder"] = model["encoder"] | {"image_px": 112}
  sources = {"encoder": shelf / "eva.safetensors", "decoder": shelf / "llama"}
  convert(sources, model, expected(model), tmp_path)
  with np.load(GOLDEN) as golden:
    table = golden["w/visual_encoder.pos_embed"][0]
  got = part(tmp_path, "encoder")["positions"]
  np.testing.assert_array_equal(got, positions.resize(table, 65, class_token=True))


@pytest.mark.parametrize("case", damaged_weights.CASES, ids=lambda case: case.__name__)
def test_what_does_not_fit_is_refused(
  shelf: pathlib.Path,
  tmp_path: pathlib.Path,
  monkeypatch: pytest.MonkeyPatch,
  case: damaged_weights.Case,
) -> None:
  bench = damaged_weights.Bench(shelf, tmp_path, monkeypatch, fields())
  damaged_weights.check(bench, case)


def test_a_refusal_leaves_the_foundation_before_it(
  shelf: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  bench = damaged_weights.Bench(shelf, tmp_path, monkeypatch, fields())
  out = tmp_path / "out"
  convert(bench.sources, bench.model, expected(bench.model), out)
  before = {file.name: file.read_bytes() for file in out.iterdir()}
  damaged_weights.not_a_number(bench)
  with pytest.raises(ValueError, match="is nan"):
    convert(bench.sources, bench.model, expected(bench.model), out)
  assert {file.name: file.read_bytes() for file in out.iterdir()} == before


def test_one_tensor_is_in_memory_at_a_time(
  shelf: pathlib.Path, tmp_path: pathlib.Path
) -> None:
  model = fields(width=128, mlp_width=1024, depth=24, vocab_size=2048)
  leaves = write_llama(tmp_path / "llama", model)
  largest = max(leaf[0].nbytes for leaf in leaves.values())
  assert sum(leaf.nbytes for leaf in leaves.values()) > 40 * largest
  sources = {"encoder": shelf / "eva.safetensors", "decoder": tmp_path / "llama"}
  tracemalloc.start()
  convert(sources, model, expected(model), tmp_path / "out")
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  # The tensor, the tensor turned round, and what is looked at for NaN: three at most.
  assert peak < 3.5 * 2048 * 128 * 4
  got = load.load_params(tmp_path / "out" / "foundation.safetensors")
  for path, leaf in leaves.items():
    np.testing.assert_array_equal(got[path], leaf, err_msg=path)


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_quantised_kernels_are_kept_as_they_were(
  shelf: pathlib.Path, tmp_path: pathlib.Path, kind: str
) -> None:
  model = fields(width=64, mlp_width=128)
  leaves = write_llama(tmp_path / "llama", model)
  model["decoder"]["kernel_dtype"] = kind
  sources = {"encoder": shelf / "eva.safetensors", "decoder": tmp_path / "llama"}
  convert(sources, model, expected(model), tmp_path / "out")
  got = load.load_params(tmp_path / "out" / "foundation.safetensors")
  assert not any(path.endswith("kernel_scale") for path in got)
  for path, leaf in leaves.items():
    kept = ml_dtypes.bfloat16 if not path.endswith("scale") else np.float32
    np.testing.assert_array_equal(got[path], leaf.astype(kept), err_msg=path)


def test_sentencepieces_model_becomes_a_tokenizer(
  shelf: pathlib.Path, tmp_path: pathlib.Path
) -> None:
  sentencepiece = pytest.importorskip("sentencepiece", reason="trains the model")
  model = fields(vocab_size=300)
  folder = tmp_path / "llama"
  write_llama(folder, model)
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(["the heart is large", "no effusion, no nodule"] * 9),
    model_prefix=str(folder / "tokenizer"), model_type="bpe", vocab_size=300,
    byte_fallback=True, normalization_rule_name="identity",
    remove_extra_whitespaces=False, hard_vocab_limit=False, minloglevel=2,
  )  # fmt: skip
  sources = {"encoder": shelf / "eva.safetensors", "decoder": folder}
  convert(sources, model, expected(model), tmp_path / "out")
  got = tokenizer_lib.load(tmp_path / "out")
  want = tokenizer_lib.load(folder)
  assert got.get_vocab() == want.get_vocab()
  assert got.encode("no large heart") == want.encode("no large heart")


def _published_sizes() -> dict[str, dict[str, tuple[int, ...]]]:
  """Names and shapes of eva_vit_g.pth and of Llama-2-7b-chat-hf, as published."""
  width, mlp = 1408, 6144
  eva: dict[str, tuple[int, ...]] = {
    "cls_token": (1, 1, width), "pos_embed": (1, 257, width),
    "patch_embed.proj.weight": (width, 3, 14, 14), "patch_embed.proj.bias": (width,),
    "norm.weight": (width,), "norm.bias": (width,),
    "head.weight": (1024, width), "head.bias": (1024,),
  }  # fmt: skip
  for block in range(40):
    eva |= {
      f"blocks.{block}.{name}": shape
      for name, shape in {
        "norm1.weight": (width,), "norm1.bias": (width,),
        "attn.q_bias": (width,), "attn.v_bias": (width,),
        "attn.qkv.weight": (3 * width, width),
        "attn.proj.weight": (width, width), "attn.proj.bias": (width,),
        "norm2.weight": (width,), "norm2.bias": (width,),
        "mlp.fc1.weight": (mlp, width), "mlp.fc1.bias": (mlp,),
        "mlp.fc2.weight": (width, mlp), "mlp.fc2.bias": (width,),
      }.items()
    }  # fmt: skip
  width, mlp = 4096, 11008
  llama: dict[str, tuple[int, ...]] = {
    "model.embed_tokens.weight": (32000, width), "lm_head.weight": (32000, width),
    "model.norm.weight": (width,),
  }  # fmt: skip
  for layer in range(32):
    stem = f"model.layers.{layer}"
    llama |= {f"{stem}.self_attn.{n}_proj.weight": (width, width) for n in "qkvo"}
    llama |= {f"{stem}.mlp.{n}_proj.weight": (mlp, width) for n in ("gate", "up")}
    llama |= {
      f"{stem}.mlp.down_proj.weight": (width, mlp),
      f"{stem}.input_layernorm.weight": (width,),
      f"{stem}.post_attention_layernorm.weight": (width,),
      f"{stem}.self_attn.rotary_emb.inv_freq": (64,),
    }
  return {"encoder": eva, "decoder": llama}


def test_the_papers_model_is_accounted_for(tmp_path: pathlib.Path) -> None:
  """At full size: headers alone, in files of holes."""
  plan = None
  with contextlib.ExitStack() as stack:
    sources = []
    for name, shapes in _published_sizes().items():
      path = tmp_path / f"{name}.safetensors"
      table = {tensor: (shape, np.float16) for tensor, shape in shapes.items()}
      with path.open("wb") as file:
        files.TensorWriter(file, table, {})
      checkpoint = stack.enter_context(checkpoints.open_checkpoint(path, tmp_path))
      table_of = recognise(checkpoint, name)
      sources.append(plan_lib.Source(checkpoint, table_of))
    leaves = plan_lib.stored_leaves(tree.flatten(expected(zoo.model("imax_7b"))))
    plan = plan_lib.make_plan(sources, leaves)
  total = collections.Counter[str]()
  for path, (shape, _) in leaves.items():
    total[plan_lib.part_of(path)] += math.prod(shape)
  assert total["encoder"] - 2 * 1408 == 985_894_528
  assert total["decoder"] == 6_738_415_616
  assert total["adapter"] == 19_988_480 and total["connector"] == 39_854_080
  ignored = plan.ignored["encoder"]
  assert len(ignored) == 13 + 4 and all("39" in n or n[0] in "nh" for n in ignored)
  assert len(plan.ignored["decoder"]) == 32
  assert list(plan.filled) == ["encoder/norm/bias", "encoder/norm/scale"]
  assert len(plan.absent) == 4 + 14


def test_a_foundation_that_changed_is_told(
  shelf: pathlib.Path, tmp_path: pathlib.Path
) -> None:
  model = fields()
  sources = {"encoder": shelf / "eva.safetensors", "decoder": shelf / "llama"}
  convert(sources, model, expected(model), tmp_path)
  (tmp_path / "tokenizer.json").write_text("{}")
  c = phantom.get_config("tiny")
  c.foundation = str(tmp_path)
  c.model = ConfigDict(model)
  assert "encoder/norm/scale" in Parameters(c, make_mesh(c.mesh), tmp_path).given
  with (tmp_path / "foundation.safetensors").open("r+b") as file:
    file.seek(-1, 2)
    [last] = file.read(1)
    file.seek(-1, 2)
    file.write(bytes([last ^ 1]))  # another number, and a good one
  with pytest.raises(ValueError, match=r"s: was changed since .*\d bytes with SHA-256"):
    _ = Parameters(c, make_mesh(c.mesh), tmp_path).given
