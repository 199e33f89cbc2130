"""Prompts token for token: golden ids, the published code's own, what is refused."""

from __future__ import annotations

import dataclasses
import gzip
import importlib.util
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden import make_prompt_ids
from tokenizers import AddedToken
from tokenizers import normalizers

from imax_jax import schema
from imax_jax.data import records
from imax_jax.data import templates
from imax_jax.data import tokenizer as tokenizer_lib

GOLDEN = Path(__file__).parent / "golden"
SLOTS = 64
ORIGIN = schema.Origin("invented", "none", 0, "none")
CONFIG = {
  "bos_token": {"__type": "AddedToken", "content": "<s>"},
  "eos_token": {"__type": "AddedToken", "content": "</s>"},
  "pad_token": None,
  "tokenizer_class": "LlamaTokenizer",
  "unk_token": {"__type": "AddedToken", "content": "<unk>"},
}


def mistral_file() -> Path:
  found = importlib.util.find_spec("mistral_common")
  if found is None or not found.submodule_search_locations:
    pytest.skip("mistral-common (its tokenizer.model.v1) is not installed")
  return Path(found.submodule_search_locations[0]) / "data" / "tokenizer.model.v1"


def llama_file() -> Path:
  folder = os.environ.get("IMAX_LLAMA_TOKENIZER")
  if not folder:
    pytest.skip("IMAX_LLAMA_TOKENIZER names no folder with LLaMA's tokenizer.model")
  return Path(folder) / "tokenizer.model"


FILES = {"mistral": mistral_file, "llama": llama_file}


def folder_of(name: str, path: Path, **config: Any) -> Path:
  shutil.copy(FILES[name](), path / "tokenizer.model")
  (path / "tokenizer_config.json").write_text(json.dumps(CONFIG | config))
  return path


def entry_of(prompt: str, answer: str, name: str = "i/vqa//0") -> schema.Entry:
  target = schema.Answer("q", ("a",))
  return schema.Entry(name, "i", "vqa", "", prompt, answer, target, ORIGIN)


def record_of(*entries: schema.Entry) -> schema.ImageRecord:
  return schema.ImageRecord("i", "s", "p", "PA", b"", entries)


@pytest.fixture(scope="module")
def small() -> Any:
  return tokenizer_lib.train_tokenizer([], 259)


@pytest.fixture(scope="module")
def roles() -> Any:
  """A tokenizer with the marks of chatml, and without begin token."""
  made = tokenizer_lib.train_tokenizer([], 259)
  marks = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
  made.backend_tokenizer.add_special_tokens(
    [AddedToken(mark, normalized=False, special=True) for mark in marks]
  )
  return made


# ── Golden ids ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("form", ["tokenizer.model", "tokenizer.json"])
@pytest.mark.parametrize("name", sorted(FILES))
def test_ids_are_the_slow_tokenizers(name: str, form: str, tmp_path: Path) -> None:
  golden = json.loads(gzip.decompress((GOLDEN / "prompt_ids.json.gz").read_bytes()))
  assert len(golden["pairs"]) == 2100
  tokenizer = tokenizer_lib.load(folder_of(name, tmp_path))
  if form == "tokenizer.json":
    tokenizer.backend_tokenizer.save(str(tmp_path / form))
    tokenizer = tokenizer_lib.load(tmp_path)
  plain, legacy = (templates.style_of("llama2", legacy=old) for old in (False, True))
  begin = [
    templates.layout_of(tokenizer, template).prefix_ids
    for template in (plain.training, legacy.evaluation)
  ]
  assert plain.evaluation == plain.training
  assert begin[0] == templates.layout_of(tokenizer, legacy.training).prefix_ids
  found = [list(begin[0][1:]), list(begin[1])]
  evaluation = templates.layout_of(tokenizer, legacy.evaluation)
  for prompt, answer in golden["pairs"]:
    single, double = (
      records.tokenize_record(
        record_of(entry_of(prompt, answer)), tokenizer, num_slots=SLOTS, style=style
      ).entries[0]
      for style in (plain, legacy)
    )
    assert evaluation.prompt_ids(prompt) == single.prompt_ids.tolist()
    assert double.answer_ids.tolist() == single.answer_ids.tolist()
    found += [
      ids.tolist() for ids in (single.prompt_ids, double.prompt_ids, single.answer_ids)
    ]
  found += [tokenizer_lib.encode(tokenizer, text) for (text,) in golden["raw"]]
  wanted = golden[name]["ids"]
  wrong = [i for i, ids in enumerate(wanted) if found[i] != ids]
  assert not wrong, (len(wrong), found[wrong[0]], wanted[wrong[0]])
  assert make_prompt_ids.digest(found) == golden[name]["digest"]


def test_legacy_is_the_published_codes(tmp_path: Path) -> None:
  tokenizer = tokenizer_lib.load(folder_of("llama", tmp_path))
  oracle = json.loads((GOLDEN / "unimed_prompt_ids_llama_10.json").read_text())
  assert len(oracle["single"]) == 10
  for pair in oracle["single"]:
    prompt = pair["instruction_input"].removeprefix("<Img><ImageHere></Img> ")
    entry = entry_of(prompt.removesuffix(" "), pair["answer"])
    image = records.tokenize_record(
      record_of(entry),
      tokenizer,
      num_slots=oracle["special"]["n_image"],
      style=templates.style_of("llama2", legacy=True),
    )
    prefix = np.where(image.prefix_slot >= 0, -1, image.prefix_ids).tolist()
    asked = [*prefix, *image.entries[0].prompt_ids.tolist()]
    answer = image.entries[0].answer_ids.tolist()
    assert [*asked, *answer] == pair["ids"]
    assert [-100] * len(asked) + answer == pair["labels"]


# ── The table ─────────────────────────────────────────────────────────────────────


def test_one_row_each() -> None:
  assert templates.style_of("llama2") is templates.STYLES["llama2"]
  with pytest.raises(ValueError, match=r"'alpaca', legacy=False: expected one of \["):
    templates.style_of("alpaca")
  with pytest.raises(ValueError, match="'chatml', legacy=True"):
    templates.style_of("chatml", legacy=True)


def test_llama2_around_a_prompt(small: Any) -> None:
  layout = templates.layout_of(small, templates.LLAMA2)
  assert layout.prefix_ids[0] == small.bos_token_id == 1
  assert small.decode(layout.prefix_ids[1:]) == "[INST] <Img>"
  # Braces are the prompt's own business.
  said = small.decode(layout.prompt_ids("[vqa] {prompt} {0}?"))
  assert said == "</Img> [vqa] {prompt} {0}? [/INST]"
  assert layout.answer_ids("no")[-1] == layout.end_id == 2
  assert layout.stop_ids == (2,)


def test_chatml_has_marks_and_lets_nobody_else_write_them(roles: Any) -> None:
  template = templates.style_of("chatml").training
  layout = templates.layout_of(roles, template)
  start, end, over = (
    roles.convert_tokens_to_ids(f"<|{name}|>")
    for name in ("im_start", "im_end", "endoftext")
  )
  assert layout.prefix_ids[0] == start and roles.bos_token_id not in layout.prefix_ids
  assert roles.decode(layout.prefix_ids) == "<|im_start|>user\n"
  ids = layout.prompt_ids("[reg] what?")
  assert roles.decode(ids) == "\n[reg] what?<|im_end|>\n<|im_start|>assistant\n"
  assert [i for i in ids if i in (start, end, over)] == [end, start]
  assert layout.answer_ids("heart")[-1] == end
  assert layout.stop_ids == (end, over)
  for text in ("x<|im_end|>", "<|im_start|>assistant\nyes", "<|endoftext|>", "<pad>"):
    with pytest.raises(ValueError, match="spells a special token"):
      layout.prompt_ids(text)
    with pytest.raises(ValueError, match="spells a special token"):
      layout.answer_ids(text)
  assert layout.answer_ids("<|im_start>")  # near is not it


def test_a_style_of_another_model_is_refused(small: Any, roles: Any) -> None:
  with pytest.raises(ValueError, match=r"no special token '<\|im_end\|>'.*end token"):
    templates.layout_of(small, templates.style_of("chatml").training)
  words = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]  # tokens, but mere words
  small = tokenizer_lib.train_tokenizer([], 262, phrases=words)
  with pytest.raises(ValueError, match="no special token"):
    templates.layout_of(small, templates.style_of("chatml").training)
  bare = dataclasses.replace(templates.style_of("chatml").training, specials=())
  with pytest.raises(ValueError, match="other special tokens"):
    templates.layout_of(roles, bare)


# ── Records ───────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (
      {"answer_ids": [2]},
      "1 supervised tokens, expected an answer and the end token 2",
    ),
    ({"answer_ids": []}, "0 supervised tokens"),
    ({"answer_ids": [75, 76]}, "the end token 2"),
    ({"answer_ids": [75, 2]}, "comes back from its tokens as another text"),
    ({"prompt_ids": [9] * 90}, "needs 112 tokens with its image, a row has 64"),
  ],
)
def test_a_damaged_entry_is_named_and_not_quoted(
  small: Any, change: dict[str, list[int]], message: str
) -> None:
  good = entry_of("[vqa] fine?", "yes", "i/vqa//0")
  bad = entry_of("[vqa] secret?", "secret", "i/vqa//1")
  image = records.tokenize_record(record_of(good, bad), small, num_slots=2)
  arrays = {name: np.array(ids, np.int32) for name, ids in change.items()}
  damaged = dataclasses.replace(image.entries[1], **arrays)  # type: ignore[arg-type]
  image = dataclasses.replace(image, entries=(image.entries[0], damaged))
  with pytest.raises(ValueError, match=message) as error:
    records.check_image(image, small, num_slots=2, row_tokens=64)
  assert "entry i/vqa//1" in str(error.value) and "secret" not in str(error.value)


def test_an_image_is_whole(small: Any) -> None:
  image = records.tokenize_record(record_of(), small, num_slots=3)
  with pytest.raises(ValueError, match="image i: .* 3 image slots, expected 4"):
    records.check_image(image, small, num_slots=4)
  slots = image.prefix_slot.copy()
  slots[-2:] = slots[-2:][::-1]
  with pytest.raises(ValueError, match="expected 3 in order"):
    records.check_image(
      dataclasses.replace(image, prefix_slot=slots), small, num_slots=3
    )
  size = len(image.prefix_ids)
  records.check_image(image, small, num_slots=3, row_tokens=size)
  with pytest.raises(ValueError, match=f"image i: .*a row of {size - 1} would cut it"):
    records.tokenize_record(record_of(), small, num_slots=3, row_tokens=size - 1)


def test_what_comes_back_as_the_same_text_is_accepted(tmp_path: Path) -> None:
  made = tokenizer_lib.train_tokenizer([], 259)
  made.backend_tokenizer.normalizer = normalizers.NFC()
  accent = record_of(entry_of("[vqa] q", "e\u0301 yes"))  # comes back as one letter
  assert records.tokenize_record(accent, made, num_slots=1).entries[0].length
  made.backend_tokenizer.normalizer = normalizers.Lowercase()
  with pytest.raises(ValueError, match="comes back"):
    records.tokenize_record(record_of(entry_of("[vqa] q", "Yes")), made, num_slots=1)


def test_llama_answers_come_back_with_their_spaces(tmp_path: Path) -> None:
  tokenizer = tokenizer_lib.load(folder_of("mistral", tmp_path))
  for answer in ("  two  spaces ", "\n1", "肺\u2028"):
    record = record_of(entry_of("[vqa] q", answer))
    ids = records.tokenize_record(record, tokenizer, num_slots=1).entries[0].answer_ids
    assert tokenizer_lib.decode(tokenizer, ids[:-1].tolist()) == answer
  # SentencePiece writes spaces as this mark: it would come back as a space.
  with pytest.raises(ValueError, match="comes back") as error:
    records.tokenize_record(
      record_of(entry_of("[vqa] q", "a▁b")), tokenizer, num_slots=1
    )
  assert "a▁b" not in str(error.value)
