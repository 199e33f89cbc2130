"""Every style token for token: ids and labels are the published code's own."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import pytest
from golden import make_prompt_ids
from published_prompts import IMAGE
from published_prompts import MASKED
from published_prompts import RULES
from published_prompts import SLOTS
from published_prompts import Sample
from published_prompts import Tokens
from published_prompts import llava_v1
from test_templates import entry_of
from test_templates import folder_of
from test_templates import record_of
from tokenizers import AddedToken
from tokenizers import Regex
from tokenizers import Tokenizer
from tokenizers import decoders
from tokenizers import models
from tokenizers import normalizers
from tokenizers import pre_tokenizers
from tokenizers import processors
from tokenizers import trainers
from transformers import PreTrainedTokenizerFast

from imax_jax.data import packing
from imax_jax.data import records
from imax_jax.data import templates
from imax_jax.data import tokenizer as tokenizer_lib
from imax_jax.data.styles import LEGACY

PAIRS = [tuple(pair) for pair in make_prompt_ids.texts()["pairs"]]


def _words() -> list[str]:
  """What the toy vocabularies are trained on; "#" stands in none."""
  texts = [text for pair in PAIRS[:200] for text in pair]
  for style in templates.STYLES.values():
    texts += [style.training.opening, style.training.wrap(""), *[" yes", " no"] * 9]
  return [text.replace("#", "").replace("\n", " ") for text in texts]


def like_llama() -> PreTrainedTokenizerFast:
  """SentencePiece's kind: "###" is one piece behind a space, and two elsewhere."""
  made = Tokenizer(models.BPE())
  made.normalizer = normalizers.Sequence(
    [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
  )
  made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
  base = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
  trainer = trainers.BpeTrainer(
    vocab_size=900, special_tokens=base, show_progress=False, max_token_length=8
  )
  made.train_from_iterator(_words(), trainer)
  learned = json.loads(made.to_str())["model"]
  vocabulary = learned["vocab"]
  for piece in ("#", "##", "▁##", "▁###"):
    vocabulary.setdefault(piece, len(vocabulary))
  marks = [("#", "#"), ("▁", "##"), ("▁##", "#")]
  made = Tokenizer(
    models.BPE(
      vocab=vocabulary, merges=[*marks, *map(tuple, learned["merges"])],
      unk_token="<unk>", fuse_unk=True, byte_fallback=True,
    )
  )  # fmt: skip
  made.normalizer = normalizers.Sequence(
    [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
  )
  made.decoder = decoders.Sequence(
    [
      decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
      decoders.Strip(" ", 1, 0),
    ]
  )  # fmt: skip
  made.add_special_tokens(
    [AddedToken(mark, normalized=False, special=True) for mark in base[:3]]
  )
  return _wrapped(made)


def of_bytes() -> PreTrainedTokenizerFast:
  """The later systems' kind: text is cut as LLaMA-3's, Qwen's and phi-4's cut it."""
  made = Tokenizer(models.BPE())
  cut = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
  cut += r"|\s*[\r\n]+|\s+(?!\S)|\s+"
  made.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(Regex(cut), behavior="isolated"),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )
  made.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=900, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False,
    initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
  )  # fmt: skip
  made.train_from_iterator([*_words(), *["a\n\n\nb\n\nc"] * 99], trainer)
  return _wrapped(made)


def _wrapped(made: Tokenizer) -> PreTrainedTokenizerFast:
  return PreTrainedTokenizerFast(
    tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>",
    pad_token="<unk>", clean_up_tokenization_spaces=False,
  )  # fmt: skip


def ours(tokenizer: Any, style: templates.Style, question: str, answer: str) -> Sample:
  """One entry in a row of its own, as a step is fed with it."""
  image = records.tokenize_record(
    record_of(entry_of(question, answer)), tokenizer, num_slots=SLOTS, style=style
  )
  size = len(image.prefix_ids) + image.entries[0].length
  most = len(image.taught) + image.entries[0].supervised
  plan = packing.StepPlan((((0, (0,)),),), size)
  batch, _ = packing.assemble(plan, [image], packing.Shapes(1, 1, 1, size, most))
  ids = np.where(batch["slot"][0] >= 0, IMAGE, batch["text"][0])
  trained = np.roll(batch["loss_weight"][0] > 0, 1)
  assert trained.sum() == most
  return Sample(ids.tolist(), np.where(trained, ids, MASKED).tolist())


MADE = {"sentencepiece": like_llama, "bytes": of_bytes}


@pytest.fixture(scope="module", params=[*MADE, "mistral"])
def tokenizer(request: Any, tmp_path_factory: Any) -> Any:
  if request.param in MADE:
    made = MADE[request.param]()
  else:
    made = tokenizer_lib.load(
      folder_of(request.param, tmp_path_factory.mktemp(request.param))
    )
  styles = (*templates.STYLES.values(), *LEGACY.values())
  marks = dict.fromkeys(mark for style in styles for mark in style.marks)
  tokenizer_lib.add_tokens(made, tuple(marks), 10**6)
  return made


def as_published(tokenizer: Any, auto_bos: bool, pad: int | None = None) -> Tokens:
  def encode(text: str) -> list[int]:
    return tokenizer_lib.encode(tokenizer, text)

  begin = [tokenizer.bos_token_id] if auto_bos else []
  pad = tokenizer.pad_token_id if pad is None else pad
  return Tokens(encode, begin, tokenizer.bos_token, pad)


@pytest.mark.parametrize(("name", "legacy"), sorted(RULES))
def test_ids_and_labels_are_the_published_codes(
  tokenizer: Any, name: str, legacy: bool
) -> None:
  rule, auto_bos = RULES[name, legacy]
  published = as_published(tokenizer, auto_bos)
  style = templates.style_of(name, legacy=legacy)
  # That rule counts two tokens to the words "###": so many as LLaMA has for them.
  words = len(published.encode("x\n###")) - len(published.encode("x\n"))
  marks = ["#", *(token.content for token in tokenizer.added_tokens_decoder.values())]
  compared = 0
  for question, answer in PAIRS[::15]:
    if any(mark in question + answer for mark in marks) or answer != answer.strip():
      continue
    found, wanted = (
      ours(tokenizer, style, question, answer),
      rule(published, question, answer),
    )
    assert found.ids == wanted.ids
    if set(wanted.labels) == {MASKED}:  # by mistake: see below
      assert name == "mistral_instruct" and "[/INST]" in question + answer
    elif name != "vicuna_v0" or words == 2:
      assert found.labels == wanted.labels
    assert any(label != MASKED for label in found.labels)
    compared += 1
  assert compared > 90


def test_what_is_trained_is_said(tokenizer: Any) -> None:
  """The trained tokens as text: the specification's own words."""
  end = {
    "llama2": "</s>",
    "xraygpt": "###",
    "vicuna_v1": "</s>",
    "medmvl": "<|im_end|>",
  }
  end |= {"llama3": "<|eot_id|>", "phi3": "<|end|>", "phi4": "<|im_end|>"}
  end |= {
    "gemma3": "<end_of_turn>",
    "mistral_instruct": " </s>",
    "chatml": "<|im_end|>",
  }
  for name, words in end.items():
    sample = ours(tokenizer, templates.style_of(name), "[vqa] is it?", "yes")
    said = tokenizer.decode([i for i in sample.labels if i != MASKED])
    assert said.strip() == f"yes{words}", name
  sample = ours(tokenizer, templates.style_of("vicuna_v0"), "[vqa] is it?", "yes")
  said = tokenizer.decode([i for i in sample.labels if i != MASKED])
  assert said == "###### Assistant: yes\n### "


def test_no_sample_is_masked_by_mistake() -> None:
  """Published rules count a conversation's parts anew and give up where they differ."""
  made = like_llama()
  published = as_published(made, True)
  style = templates.style_of("vicuna_v1")
  plain = ("[vqa] who?", "no one")
  assert ours(made, style, *plain) == llava_v1(published, *plain)
  # A text that holds the separator, and a pad token that is the end token.
  spells = ("[vqa] who?", "it says ASSISTANT: no one")
  same = as_published(made, True, pad=made.eos_token_id)
  for tokens, pair in ((published, spells), (same, plain)):
    wanted, found = llava_v1(tokens, *pair), ours(made, style, *pair)
    assert found.ids == wanted.ids
    assert set(wanted.labels) == {MASKED}
    trained = [i for i in found.labels if i != MASKED]
    assert tokenizer_lib.decode(made, trained) == f"{pair[1]}</s>"


def test_an_answer_that_grows_together_with_the_template_is_refused() -> None:
  made = of_bytes()
  style = templates.style_of("llama3")
  tokenizer_lib.add_tokens(made, style.marks, 10**6)
  for breaks in ("\n\n", "\n\n\n"):
    assert len(tokenizer_lib.encode(made, breaks)) == 1
  assert ours(made, style, "[vqa] q", "yes\n").ids
  with pytest.raises(ValueError, match="entry i/vqa//0: .*trained and words") as error:
    ours(made, style, "[vqa] q", "\nsecret")
  assert "secret" not in str(error.value)
  for pair in (("[vqa] ### q", "yes"), ("[vqa] q", "yes ###")):
    with pytest.raises(ValueError, match="'###', the words that end an answer"):
      ours(made, templates.style_of("xraygpt"), *pair)


def test_words_before_the_image_that_are_trained_need_a_token_of_their_own() -> None:
  made = tokenizer_lib.train_tokenizer([], 280, phrases=["### Human"])
  style = templates.style_of("vicuna_v0")
  tokenizer_lib.add_tokens(made, style.marks, 280)
  with pytest.raises(ValueError, match="holds both words that are trained and words"):
    templates.layout_of(made, style.training)


def test_stop_words_have_the_tokens_that_they_are_said_with(tokenizer: Any) -> None:
  layout = templates.layout_of(tokenizer, templates.style_of("xraygpt").evaluation)
  assert layout.end_id is None and layout.stop_ids == (tokenizer.eos_token_id,)
  words = [stop for stop in layout.stops if isinstance(stop, tuple)]
  for stop in words:
    assert tokenizer.decode(stop).strip() == "###"
  for text in ("yes", "0.5", "heart ", "a line\n", "it is.", "x)"):
    ids = tokenizer_lib.encode(tokenizer, f"{text}###")
    assert any(tuple(ids[-len(stop) :]) == stop for stop in words), text
  assert templates.layout_of(
    tokenizer, templates.style_of("llama3").evaluation
  ).stops == tuple(tokenizer.convert_tokens_to_ids(["<|eot_id|>", "<|end_of_text|>"]))


def test_llama_says_the_stop_words_in_two_ways() -> None:
  made = like_llama()
  layout = templates.layout_of(made, templates.style_of("xraygpt").evaluation)
  said = [
    tuple(made.convert_ids_to_tokens(list(stop)))
    for stop in layout.stops
    if isinstance(stop, tuple)
  ]
  assert sorted(said) == [("##", "#"), ("▁###",)]


@pytest.mark.parametrize("count", [0, 1, 2])
def test_begin_tokens_of_a_tokenizers_own_are_counted(
  tmp_path: pathlib.Path, count: int
) -> None:
  raw = Tokenizer.from_str(like_llama().backend_tokenizer.to_str())
  raw.post_processor = processors.TemplateProcessing(
    single=f"{'<s> ' * count}$A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
  )
  raw.save(str(tmp_path / "tokenizer.json"))
  settings = {"bos_token": "<s>", "eos_token": "</s>"}
  beside = tmp_path / "tokenizer_config.json"
  beside.write_text(json.dumps(settings))
  assert tokenizer_lib.own_begins(tmp_path) == count
  beside.write_text(json.dumps(settings | {"add_bos_token": True}))
  assert tokenizer_lib.own_begins(tmp_path) == 1
  beside.write_text(json.dumps(settings))
  silent = json.loads(raw.to_str()) | {"post_processor": None}
  (tmp_path / "tokenizer.json").write_text(json.dumps(silent))
  assert tokenizer_lib.own_begins(tmp_path) is None


def test_begin_tokens_are_explicit() -> None:
  made = like_llama()
  styles = ("llama3", "vicuna_v0")
  for style in map(templates.style_of, styles):
    tokenizer_lib.add_tokens(
      made, [m for m in style.marks if m not in made.get_vocab()], 10**6
    )
  made.bos_token = "</s>"  # LLaMA-Med 1.0's
  twice, once = (
    templates.layout_of(made, templates.style_of(name).training) for name in styles
  )
  assert made.bos_token_id == made.eos_token_id == 2
  assert twice.prefix_ids[:3].count(2) == 2 and twice.prefix_ids[2] != 2
  assert once.prefix_ids[:2].count(2) == 1
  assert once.end_id is None and once.stop_ids == (2,)
  sample = ours(made, templates.style_of("vicuna_v0"), "[vqa] q", "yes")
  assert sample.ids[0] == 2 and 2 not in sample.labels


def test_gemma_is_its_own_processors() -> None:
  """Gemma3Processor's `full_image_sequence` in the chat template of Gemma 3."""
  from transformers.models.gemma3 import processing_gemma3

  tokenizer = like_llama()
  tokenizer_lib.add_tokens(tokenizer, templates.style_of("gemma3").marks, 10**6)

  class Words:
    boi_token, eoi_token = "<start_of_image>", "<end_of_image>"
    image_token = "<image_soft_token>"
    boi_token_id = image_token_id = 0

  class Processor(processing_gemma3.Gemma3Processor):
    def check_argument_for_proper_class(self, name: str, value: Any) -> Any:
      return type(value)

  try:
    made = Processor(Words(), Words(), image_seq_length=SLOTS)  # type: ignore[arg-type]
  except (AttributeError, TypeError) as error:
    pytest.skip(f"this transformers builds it otherwise: {error}")
  chat = "<bos><start_of_turn>user\n<start_of_image>[vqa] q<end_of_turn>\n"
  chat += "<start_of_turn>model\n"
  text = chat.replace("<start_of_image>", made.full_image_sequence)
  before, after = text.removeprefix("<bos>").split("<image_soft_token>" * SLOTS)
  layout = templates.layout_of(tokenizer, templates.style_of("gemma3").evaluation)
  assert list(layout.prefix_ids[1:]) == tokenizer_lib.encode(tokenizer, before)
  assert layout.prompt_ids("[vqa] q") == tokenizer_lib.encode(tokenizer, after)
  assert layout.prefix_ids[0] == tokenizer.bos_token_id
  assert layout.stops == tuple(
    tokenizer.convert_tokens_to_ids(["<end_of_turn>", "<eos>"])
  )


def test_a_style_names_the_tokens_that_it_needs() -> None:
  for name, style in (*templates.STYLES.items(), *LEGACY.items()):
    made = tokenizer_lib.train_tokenizer([], 270)
    tokenizer_lib.add_tokens(made, style.marks, 270 + len(style.marks))
    for template in (style.training, style.evaluation):
      assert templates.layout_of(made, template).prefix_ids, name
    if style.marks:
      made = tokenizer_lib.train_tokenizer([], 270)
      tokenizer_lib.add_tokens(made, style.marks[1:], 400)
      with pytest.raises(ValueError, match=r"no special token .*added_tokens"):
        templates.layout_of(made, style.training)


def test_a_tokenizer_of_ones_own_learns_a_styles_words() -> None:
  entries = [entry_of(q, a.replace("#", "")) for q, a in PAIRS[:60]]
  for name in ("vicuna_v0", "vicuna_v1", "phi4"):
    style = templates.style_of(name)
    made = tokenizer_lib.train_tokenizer(
      records.training_texts(entries, style.training), 420,
      phrases=records.fixed_phrases(style.training),
    )  # fmt: skip
    tokenizer_lib.add_tokens(made, style.marks, 430)
    layout = templates.layout_of(made, style.training)
    assert len(layout.prefix_ids) < 32  # of more than 150 characters
    assert made.get_vocab()[style.training.system] in layout.prefix_ids
    assert ours(made, style, "[vqa] q", "yes").ids
