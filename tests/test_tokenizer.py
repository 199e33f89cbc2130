"""The trained tokenizer: round trips, determinism, what isolation and phrases do."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from imax_jax.data import records
from imax_jax.data import templates
from imax_jax.data import tokenizer as tokenizer_lib
from imax_jax.data.tokenizer import count_tokens
from imax_jax.data.tokenizer import encode
from imax_jax.data.tokenizer import train_tokenizer

_SENTENCES = (
  "A nodule is seen in the {} upper lung zone.",
  "There is consolidation at the {} base.",
  "The {} costophrenic angle is blunted.",
  "No focal consolidation is identified.",
  "The cardiac silhouette is normal.",
  "The heart is enlarged.",
)


def _report(rng: random.Random) -> str:
  chosen = rng.sample(_SENTENCES, 3)
  return " ".join(s.format(rng.choice(("left", "right"))) for s in chosen)


def _texts() -> list[str]:
  rng = random.Random(0)
  texts = []
  for _ in range(200):
    texts += [
      templates.LLAMA2.wrap(phrase.strip()) for phrase in records.fixed_phrases()
    ]
    texts += [templates.LLAMA2.before, _report(rng), f"{rng.random():.4f}", "yes", "no"]
    texts.append("".join(f"<{rng.randint(0, 1000)}>" for _ in range(4)))
  return texts


@pytest.fixture(scope="module")
def tokenizer():
  return train_tokenizer(_texts(), 700, phrases=records.fixed_phrases())


@pytest.fixture(scope="module")
def superword():
  return train_tokenizer(_texts(), 1024)


def test_special_ids(tokenizer):
  ids = (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id)
  assert ids == (0, 1, 2)
  assert len(tokenizer) <= 700


@settings(max_examples=200)
@given(st.text())
def test_any_text_comes_back(tokenizer, text):
  if any(special in text for special in ("<pad>", "<s>", "</s>")):
    return
  assert tokenizer.decode(encode(tokenizer, text)) == text


def test_phrases_and_marks_come_back(tokenizer, superword):
  for text in {*_texts(), "  two  spaces\n", "45 < 7 > [x], é 肺"}:
    assert tokenizer.decode(encode(tokenizer, text)) == text
    assert superword.decode(encode(superword, text)) == text


def test_order_of_the_texts_does_not_matter(tokenizer):
  again = train_tokenizer(_texts()[::-1], 700, phrases=records.fixed_phrases()[::-1])
  assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()


def test_digits_and_marks_stand_alone(superword):
  tokens = superword.convert_ids_to_tokens(encode(superword, "<250><31><5>"))
  assert tokens == list("<250><31><5>")
  assert superword.convert_ids_to_tokens(encode(superword, "0,1,1")) == list("0,1,1")
  vocabulary = superword.get_vocab()
  assert not [t for t in vocabulary if len(t) > 1 and any(c.isdigit() for c in t)]


def test_tokens_span_words_but_no_sentence(superword):
  tokens = [t for t in superword.get_vocab() if t not in ("<pad>", "<s>", "</s>")]
  assert any("Ġ" in token.strip("Ġ") for token in tokens)
  assert max(map(len, tokens)) <= 24
  assert not [t for t in tokens if "." in t and t != "."]
  report = _report(random.Random(1))
  assert len(encode(superword, report)) >= 2 * report.count(".")


def test_a_fixed_prompt_costs_at_most_six_tokens(tokenizer):
  prompts = [
    templates.LLAMA2.wrap(phrase.strip()) for phrase in records.fixed_phrases()
  ]
  counts = count_tokens(tokenizer, prompts)
  assert len(counts) == 10
  assert max(counts.values()) <= 6, counts
  assert len(encode(tokenizer, templates.LLAMA2.before)) == 2


@pytest.mark.parametrize("name", ["tokenizer.json", "folder"])
def test_saved_and_loaded(tokenizer, tmp_path, name):
  tokenizer_lib.save(tokenizer, tmp_path / name)
  loaded = tokenizer_lib.load(tmp_path / name)
  text = templates.LLAMA2.wrap("[reg] Based on the input image, the object in <12> is")
  assert encode(loaded, text) == encode(tokenizer, text)
  assert loaded.decode(encode(loaded, text)) == text
  assert (loaded.bos_token_id, loaded.eos_token_id) == (1, 2)
  assert len(loaded) == len(tokenizer)


def test_errors_name_the_remedy(tmp_path):
  with pytest.raises(ValueError, match="expected at least 261"):
    train_tokenizer(["a"], 260, phrases=["two", "words"])
  with pytest.raises(FileNotFoundError, match=r"tokenizer\.json"):
    tokenizer_lib.load(tmp_path)


# ── Published tokenizers ──────────────────────────────────────────────────────────

LLAMA_TRAINER, LLAMA_NORMALIZER = {3: 2, 35: 1}, {1: b"identity", 3: 1, 4: 0}


def message(fields: list[tuple[int, Any]]) -> bytes:
  """Protocol-buffer bytes of (field number, int, float or bytes)."""

  def varint(number: int) -> bytes:
    low = bytes([number & 0x7F | (0x80 if number > 0x7F else 0)])
    return low + varint(number >> 7) if number > 0x7F else low

  made = b""
  for field, value in fields:
    if isinstance(value, float):
      made += varint(field << 3 | 5) + struct.pack("<f", value)
    elif isinstance(value, int):
      made += varint(field << 3) + varint(value)
    else:
      made += varint(field << 3 | 2) + varint(len(value)) + value
  return made


def model_file(
  folder: Path, trainer: Any = LLAMA_TRAINER, normalizer: Any = LLAMA_NORMALIZER
) -> Path:
  """A tokenizer.model of 3 + 256 + 12 pieces, as SentencePiece writes them."""
  pieces = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
  pieces += [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
  words = ("▁▁", "▁h", "aa", "▁he", "aaa", "aaaa", "▁", "h", "e", "a", "r", "t")
  pieces += [(word, -float(rank), 1) for rank, word in enumerate(words)]
  fields: list[tuple[int, Any]] = [
    (1, message([(1, text.encode()), (2, score), (3, kind)]))
    for text, score, kind in pieces
  ]
  fields += [(2, message([*trainer.items()])), (3, message([*normalizer.items()]))]
  (folder / "tokenizer.model").write_bytes(message(fields))
  return folder


def test_sentencepiece_model_alone(tmp_path):
  found = tokenizer_lib.load(model_file(tmp_path))
  tokens = found.convert_ids_to_tokens(encode(found, "  heart\né"))
  assert tokens == ["▁▁", "▁he", "a", "r", "t", "<0x0A>", "<0xC3>", "<0xA9>"]
  assert (found.bos_token_id, found.eos_token_id, len(found)) == (1, 2, 271)
  # No pad token is named: the unknown one, never a word.
  assert found.pad_token_id == found.unk_token_id == 0
  assert encode(found, "a<unk>a</s>") == [265, 268, 0, 265, 268, 2]
  assert tokenizer_lib.decode(found, encode(found, " a a ")) == " a a "


def test_sentencepiece_agrees(tmp_path):
  real = pytest.importorskip("sentencepiece", reason="compares with sentencepiece")
  found = tokenizer_lib.load(model_file(tmp_path))
  model = real.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
  rng = random.Random(0)
  for _ in range(3000):
    text = "".join(rng.choice("aaaah er\n▁é") for _ in range(rng.randint(0, 30)))
    assert encode(found, text) == model.encode(text), text


@pytest.mark.parametrize(
  ("trainer", "normalizer", "named"),
  [
    ({3: 1}, {}, "model_type"),
    ({35: 0}, {}, "byte_fallback is 0, expected 1"),
    ({24: 1}, {}, "treat_whitespace_as_suffix"),
    ({}, {2: b"map"}, "precompiled_charsmap .* is 3 bytes"),
    ({}, {3: 0}, "add_dummy_prefix"),
    ({}, {4: 1}, "remove_extra_whitespaces"),
    ({}, {5: 0}, "escape_whitespaces"),
  ],
)
def test_sentencepiece_of_another_kind(tmp_path, trainer, normalizer, named):
  model_file(tmp_path, LLAMA_TRAINER | trainer, LLAMA_NORMALIZER | normalizer)
  with pytest.raises(ValueError, match=rf"tokenizer\.model: {named}"):
    tokenizer_lib.load(tmp_path)


def test_a_cut_sentencepiece_model(tmp_path):
  file = model_file(tmp_path) / "tokenizer.model"
  whole = file.read_bytes()
  for size in (0, 1, 500, len(whole) - 30, len(whole) - 2, len(whole) - 1):
    file.write_bytes(whole[:size])
    with pytest.raises(ValueError, match="tokenizer.model: no SentencePiece model"):
      tokenizer_lib.load(tmp_path)


def test_tokens_beside_a_sentencepiece_model(tmp_path):
  model_file(tmp_path)
  (tmp_path / "added_tokens.json").write_text('{"[PAD]": 271, "<image>": 272}')
  (tmp_path / "special_tokens_map.json").write_text('{"pad_token": "[PAD]"}')
  (tmp_path / "tokenizer_config.json").write_text(
    '{"bos_token": {"content": "</s>"}, "eos_token": "", "trust_remote_code": false}'
  )
  found = tokenizer_lib.load(tmp_path)
  names = (found.bos_token, found.eos_token, found.pad_token, found.unk_token)
  assert names == ("</s>", "</s>", "[PAD]", "<unk>")
  assert encode(found, "a<image>[PAD]") == [265, 268, 272, 271]
  (tmp_path / "added_tokens.json").write_text('{"[PAD]": 273}')
  with pytest.raises(ValueError, match=r"'\[PAD\]' has id 273, expected 271"):
    tokenizer_lib.load(tmp_path)
  (tmp_path / "added_tokens.json").write_text("{}")
  with pytest.raises(ValueError, match=r"pad_token '\[PAD\]' is no token"):
    tokenizer_lib.load(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "config.json"])
@pytest.mark.parametrize(
  "words", [{"auto_map": {"x": "y.Z"}}, {"trust_remote_code": 1}]
)
@pytest.mark.parametrize("published", [True, False])
def test_code_of_a_repository_is_refused(tokenizer, tmp_path, name, words, published):
  if published:
    tokenizer_lib.save(tokenizer, tmp_path)
  else:
    model_file(tmp_path)
  (tmp_path / name).write_text(json.dumps(words))
  with pytest.raises(ValueError, match=rf"{name}: '{next(iter(words))}' asks"):
    tokenizer_lib.load(tmp_path)
  (tmp_path / name).write_text("{")
  with pytest.raises(ValueError, match=rf"{name}: no JSON"):
    tokenizer_lib.load(tmp_path)


def test_published_files_may_ask_for_cutting_and_are_not_obeyed(tokenizer, tmp_path):
  tokenizer_lib.save(tokenizer, tmp_path)
  file = tmp_path / "tokenizer.json"
  asked = json.loads(file.read_text())
  asked["truncation"] = {
    "direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0
  }  # fmt: skip
  file.write_text(json.dumps(asked))
  text = "consolidation at the base, 123"
  assert encode(tokenizer_lib.load(tmp_path), text) == encode(tokenizer, text)


def test_a_tokenizer_json_of_others_needs_its_folder(tokenizer, tmp_path):
  model = tokenizer_lib.load(model_file(tmp_path))  # it has no <pad>
  model.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
  with pytest.raises(ValueError, match="give the published directory"):
    tokenizer_lib.load(tmp_path / "tokenizer.json")
  (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<s>"}')
  with pytest.raises(ValueError, match="without end token"):
    tokenizer_lib.load(tmp_path)
  (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
  found = tokenizer_lib.load(tmp_path)
  assert found.pad_token == "</s>"  # neither pad nor unknown token is named
  with pytest.raises(ValueError, match="which the prompt style uses as begin token"):
    templates.layout_of(found, templates.LLAMA2)


def test_vocabulary_fits_the_embedding(tokenizer):
  ids = len(tokenizer)
  tokenizer_lib.check_vocabulary(tokenizer, ids)
  tokenizer_lib.check_vocabulary(tokenizer, ids + 64)
  with pytest.raises(ValueError, match=rf"up to {ids - 1}.* has {ids - 1} rows"):
    tokenizer_lib.check_vocabulary(tokenizer, ids - 1)


# ── Added tokens ──────────────────────────────────────────────────────────────────

ADDED = ("[PAD]", "<im_patch>", "<im_start>", "<im_end>")


def test_added_tokens_follow_each_other(tmp_path):
  made = train_tokenizer([], 259)
  tokenizer_lib.add_tokens(made, ADDED, 263)
  assert made.convert_tokens_to_ids(list(ADDED)) == [259, 260, 261, 262]
  assert {259, 260, 261, 262} <= tokenizer_lib.special_ids(made)
  assert encode(made, "a<im_start>b") == [*encode(made, "a"), 261, *encode(made, "b")]
  # A file that has them, or some of them, is as good; and none may be wanted.
  tokenizer_lib.save(made, tmp_path / "tokenizer.json")
  again = tokenizer_lib.load(tmp_path / "tokenizer.json")
  tokenizer_lib.add_tokens(again, ADDED, 263)
  assert again.get_vocab() == made.get_vocab()
  some = train_tokenizer([], 259)
  tokenizer_lib.add_tokens(some, ADDED[:2], 263)
  tokenizer_lib.add_tokens(some, ADDED, 263)
  assert some.get_vocab() == made.get_vocab()
  before = len(some)
  tokenizer_lib.add_tokens(some, (), 1)
  assert len(some) == before


def test_other_added_tokens_are_named():
  def made(*present, phrases=()):
    found = train_tokenizer([], 259 + len(phrases), phrases=phrases)
    tokenizer_lib.add_tokens(found, present, 10**6)
    return found

  with pytest.raises(ValueError, match=r"'\[PAD\]': expected id 259, .* got 260"):
    tokenizer_lib.add_tokens(made("<im_patch>"), ADDED, 300)
  with pytest.raises(ValueError, match=r"'\[PAD\]': expected id 259, .* got 260"):
    tokenizer_lib.add_tokens(made("<im_patch>", "[PAD]"), ADDED[:2], 300)
  with pytest.raises(ValueError, match=r"'\[PAD\]': expected id 261, .* got 259"):
    tokenizer_lib.add_tokens(made("[PAD]", "<image>"), ADDED[:2], 300)
  said = r"file are .* '\[PAD\]' 259, '<image>' 260, added_tokens names '\[PAD\]', '<im_patch>':"
  with pytest.raises(ValueError, match=said):
    tokenizer_lib.add_tokens(made("[PAD]", "<image>"), ADDED[:2], 300)
  with pytest.raises(ValueError, match=r"'<im_end>': got id 263, .* the 263 rows"):
    tokenizer_lib.add_tokens(made("<image>"), ADDED, 263)
  with pytest.raises(ValueError, match="special token's"):  # mere words
    tokenizer_lib.add_tokens(made(phrases=("[PAD]",)), ADDED[:1], 300)
