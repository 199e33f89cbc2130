"""The trained tokenizer: round trips, determinism, what isolation and phrases do."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from imax_jax.data import records
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
    texts += [records.prompt_text(phrase.strip()) for phrase in records.fixed_phrases()]
    texts += [records.PREFIX_TEXT, _report(rng), f"{rng.random():.4f}", "yes", "no"]
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
  prompts = [records.prompt_text(phrase.strip()) for phrase in records.fixed_phrases()]
  counts = count_tokens(tokenizer, prompts)
  assert len(counts) == 10
  assert max(counts.values()) <= 6, counts
  assert len(encode(tokenizer, records.PREFIX_TEXT)) == 2


@pytest.mark.parametrize("name", ["tokenizer.json", "folder"])
def test_saved_and_loaded(tokenizer, tmp_path, name):
  tokenizer_lib.save(tokenizer, tmp_path / name)
  loaded = tokenizer_lib.load(tmp_path / name)
  text = records.prompt_text("[reg] Based on the input image, the object in <12> is")
  assert encode(loaded, text) == encode(tokenizer, text)
  assert loaded.decode(encode(loaded, text)) == text
  assert (loaded.bos_token_id, loaded.eos_token_id) == (1, 2)
  assert len(loaded) == len(tokenizer)


def test_errors_name_the_remedy(tmp_path):
  with pytest.raises(ValueError, match="expected at least 261"):
    train_tokenizer(["a"], 260, phrases=["two", "words"])
  with pytest.raises(FileNotFoundError, match=r"tokenizer\.json"):
    tokenizer_lib.load(tmp_path)
