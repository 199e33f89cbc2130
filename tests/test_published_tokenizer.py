"""A decoder's tokenizer goes out in files that its system's own, older code can read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import published_weights
import pytest
from test_tokenizer import model_file

from imax_jax import tree
from imax_jax.data import tokenizer as tokenizer_lib
from imax_jax.data.tokenizer import encode
from imax_jax.parameters import Foundation
from imax_jax.weights import beside
from imax_jax.weights import convert
from imax_jax.weights import editions
from imax_jax.weights import export
from imax_jax.weights import files
from imax_jax.weights import load
from imax_jax.weights import publish
from imax_jax.weights.settings import Facts

ROWS = 280  # 271 pieces, and room for more
MODEL = published_weights.fields(vocab_size=ROWS)
ADDED = ("[PAD]", "<im_patch>")
SENTENCES = ("the heart", "  a  heart\n", "aaaa<im_patch>[PAD]he", "é</s>r<unk>[PAD]a ")
BARE: dict[str, Any] = {}
# As the first conversions of LLaMA say it: no mark is named.
NAMELESS = {
  "tokenizer_config.json": {
    "bos_token": "", "eos_token": "", "unk_token": "", "add_bos_token": True,
    "tokenizer_class": "LLaMATokenizer", "model_max_length": 10**30,
  },
  "special_tokens_map.json": {"bos_token": "", "eos_token": "</s>"},
}  # fmt: skip
PADDED = {
  "tokenizer_config.json": {"add_bos_token": True, "legacy": True},
  "special_tokens_map.json": {
    "bos_token": {"content": "<s>", "lstrip": False, "normalized": True,
                  "rstrip": False, "single_word": False},
    "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "[PAD]",
  },
  "added_tokens.json": {"[PAD]": 271},
}  # fmt: skip
DECODED = {
  "tokenizer_config.json": {
    "add_bos_token": True, "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
    "pad_token": "[PAD]", "tokenizer_class": "LlamaTokenizer",
    "added_tokens_decoder": {
      str(i): {"content": text, "lstrip": False, "normalized": i > 2, "rstrip": False,
               "single_word": False, "special": True}
      for i, text in ((0, "<unk>"), (1, "<s>"), (2, "</s>"), (271, "[PAD]"))
    },
  },
}  # fmt: skip
FORMS = {"bare": BARE, "nameless": NAMELESS, "padded": PADDED, "decoded": DECODED}


def put(folder: Path, found: dict[str, Any]) -> None:
  for name, value in found.items():
    (folder / name).write_text(json.dumps(value))


def read(file: Path) -> Any:
  return json.loads(file.read_text())


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
  """eva.safetensors, and a LLaMA without any tokenizer."""
  folder = tmp_path_factory.mktemp("weights")
  published_weights.write_llama(folder / "llama", MODEL)
  with np.load(published_weights.GOLDEN) as golden:
    held = {name[2:]: golden[name] for name in golden if name.startswith("w/")}
  files.write_tensors(folder / "eva.safetensors", held)
  return folder


@pytest.fixture
def source(weights: Path, tmp_path: Path) -> Path:
  """A published decoder with SentencePiece's tokenizer.model alone."""
  folder = tmp_path / "llama"
  folder.mkdir()
  (folder / "model.safetensors").symlink_to(weights / "llama" / "model.safetensors")
  return model_file(folder)


def converted(weights: Path, source: Path) -> Path:
  """A foundation of it."""
  out = source.parent / "foundation"
  sources = {"encoder": weights / "eva.safetensors", "decoder": source}
  convert.convert(sources, MODEL, published_weights.expected(MODEL), out)
  return out


def merged(foundation: Path) -> Path:
  out = foundation.parent / "merged"
  out.mkdir()
  params = load.load_params(foundation / convert.WEIGHTS)
  export.write_merged(out, params, MODEL["decoder"], base=foundation)
  return out


def published(foundation: Path) -> Path:
  """Its decoder beside a MiniGPT's checkpoint."""
  params = load.load_params(foundation / convert.WEIGHTS)
  params |= {  # which no file of the source has
    path: np.ones(leaf.shape, leaf.dtype)
    for path, leaf in tree.flatten(published_weights.expected(MODEL)).items()
    if path.startswith("connector/")
  }
  trained = {path for path in params if not path.startswith("encoder/")}
  edition = editions.edition("minigpt")
  planned = publish.plan(edition, params, trained, MODEL)
  facts = Facts(
    model=MODEL, dtype="float16", names={}, base=foundation, special={}, style="llama2",
    geometry="pad", added_tokens=(), tensors={f.file.name: f.names for f in planned},
  )  # fmt: skip
  out = foundation.parent / "published"
  out.mkdir()
  publish.write(out, edition, planned, facts)
  return out / "llm"


def trained_with(foundation: Path) -> Any:
  """The tokenizer that a study has of a foundation."""
  return tokenizer_lib.load(tokenizer_lib.source_of(foundation / "tokenizer.json"))


def same(one: Any, other: Any) -> None:
  assert one.get_vocab() == other.get_vocab()
  assert [encode(one, text) for text in SENTENCES] == [
    encode(other, text) for text in SENTENCES
  ]
  for role in ("bos_token", "eos_token", "unk_token", "pad_token"):
    assert getattr(one, role) == getattr(other, role)


# ── As it came ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("form", FORMS)
def test_a_tokenizer_goes_out_as_it_came(
  weights: Path, source: Path, form: str
) -> None:
  """Also through a foundation that was made of a foundation."""
  put(source, FORMS[form])
  first = converted(weights, source)
  again = first.parent / "again" / "foundation"
  sources = {"encoder": weights / "eva.safetensors", "decoder": first}
  convert.convert(sources, MODEL, published_weights.expected(MODEL), again)
  want = {name for name in beside.FILES if (source / name).is_file()}
  assert "tokenizer.model" in want
  for foundation in (first, again):
    same(trained_with(foundation), tokenizer_lib.load(source))
    for out in (merged(foundation), published(foundation)):
      assert {file.name for file in out.iterdir()} & {*beside.FILES} == want
      for name in want:
        assert (out / name).read_bytes() == (source / name).read_bytes(), name
      same(tokenizer_lib.load(out), tokenizer_lib.load(source))


def test_all_of_its_files_come_along(weights: Path, source: Path) -> None:
  """None of them, but for tokenizer.json, makes it another foundation."""
  tokenizer_lib.save(tokenizer_lib.load(source), source / "tokenizer.json")
  put(source, DECODED)
  digests = set()
  others = (
    "vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json",
    "preprocessor_config.json", "processor_config.json", "added_tokens.json",
    "special_tokens_map.json",
  )  # fmt: skip
  for words in ("", "{}"):
    for name in others:
      (source / name).write_text(words)
    foundation = converted(weights, source)
    kept = {file.name for file in (foundation / beside.FOLDER).iterdir()}
    own = {"tokenizer.json", "tokenizer.model", "tokenizer_config.json"}
    assert kept == own | ({*others} if words else set())  # an empty file is none
    found = Foundation.find(str(foundation), source)
    assert found is not None
    digests.add(found.digest())
  assert len(digests) == 1
  (source / "merges.txt").unlink()
  assert not (converted(weights, source) / beside.FOLDER / "merges.txt").exists()


# ── With tokens added ─────────────────────────────────────────────────────────────


def handed_out(foundation: Path) -> tuple[Path, Any]:
  """A merged folder with tokens that the decoder's files have not, and its tokenizer."""
  out, tokenizer = merged(foundation), trained_with(foundation)
  tokenizer_lib.add_tokens(tokenizer, ADDED, ROWS)
  beside.add(out, tokenizer, ADDED)
  return out, tokenizer


@pytest.mark.parametrize("form", FORMS)
def test_added_tokens_are_where_older_code_looks(
  weights: Path, source: Path, form: str
) -> None:
  put(source, FORMS[form])
  out, tokenizer = handed_out(converted(weights, source))
  told = FORMS[form].get("tokenizer_config.json", {})
  assert (out / "tokenizer.model").read_bytes() == (
    source / "tokenizer.model"
  ).read_bytes()
  assert read(out / "added_tokens.json") == {"[PAD]": 271, "<im_patch>": 272}
  config, special = (
    read(out / name) for name in ("tokenizer_config.json", "special_tokens_map.json")
  )
  assert config["tokenizer_class"] == told.get("tokenizer_class", "LlamaTokenizer")
  assert config.get("add_bos_token") == told.get("add_bos_token")
  assert {*ADDED} <= {*special["additional_special_tokens"]}
  assert not any("Backend" in (out / n).read_text() for n in beside.FILES[2:4])
  decoder = config.get("added_tokens_decoder", {})
  assert bool(decoder) == (form == "decoded")
  if decoder:
    assert decoder["272"]["content"] == "<im_patch>" and decoder["272"]["special"]
    assert [*decoder] == ["0", "1", "2", "271", "272"]
  merges = read(out / "tokenizer.json")["model"]["merges"]
  assert "▁h e" in merges and len(merges) == len({*merges})
  # Ours reads the same of tokenizer.json, and of what a slow tokenizer reads.
  same(tokenizer_lib.load(out), tokenizer)
  assert {271, 272} <= tokenizer_lib.special_ids(tokenizer_lib.load(out))
  (out / "tokenizer.json").unlink()
  same(tokenizer_lib.load(out), tokenizer)


@pytest.mark.parametrize("slow", [True, False])
def test_no_class_of_a_newer_library_is_named(
  weights: Path, source: Path, slow: bool
) -> None:
  """Of a decoder that transformers 5 has saved, with or without a slow tokenizer."""
  tokenizer = tokenizer_lib.load(source)
  tokenizer.add_special_tokens({"additional_special_tokens": ["<own>"]})
  tokenizer_lib.save(tokenizer, source)
  saved = read(source / "tokenizer_config.json")
  assert saved["tokenizer_class"].endswith("Backend")
  assert saved["extra_special_tokens"] == ["<own>"] and "backend" in saved
  if not slow:
    (source / "tokenizer.model").unlink()
  out, tokenizer = handed_out(converted(weights, source))
  config = read(out / "tokenizer_config.json")
  name = "LlamaTokenizer" if slow else "PreTrainedTokenizerFast"
  assert config["tokenizer_class"] == name
  assert not {"backend", "extra_special_tokens"} & config.keys()
  assert config["additional_special_tokens"] == ["<own>", *ADDED]
  numbers = {text: 271 + i for i, text in enumerate(("<own>", *ADDED))}
  assert read(out / "added_tokens.json") == numbers
  back = tokenizer_lib.load(out)
  same(back, tokenizer)
  assert {*numbers.values()} <= tokenizer_lib.special_ids(back)
