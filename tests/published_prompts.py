"""What published code makes of a question and an answer: ids, and which it trains.

Each rule is written out from the code that it names, in its own order of steps, over a
tokenizer's `encode` (text -> ids, special tokens known, none added). Ids of -100 in
`labels` are left out of the loss; IMAGE stands where the image's tokens do.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

IMAGE, MASKED, SLOTS = -200, -100, 3
HUMAN = (
  "A chat between a curious human and an artificial intelligence assistant. The "
  "assistant gives helpful, detailed, and polite answers to the human's questions."
)
USER = HUMAN.replace("human", "user")
Encode = Callable[[str], list[int]]


class Sample(NamedTuple):
  ids: list[int]
  labels: list[int]


class Tokens(NamedTuple):
  """A tokenizer as published code meets it.

  auto_bos: what its call puts in front of every text.
  """

  encode: Encode
  auto_bos: list[int]
  bos: str
  pad: int

  def __call__(self, text: str) -> list[int]:
    return [*self.auto_bos, *self.encode(text)]


def slow(tokens: Tokens, text: str) -> list[int]:
  """transformers 4.28's slow tokenizer: text beside an added token is stripped."""
  parts = re.split("(<im_start>|<im_patch>|<im_end>)", text)
  for place in range(1, len(parts), 2):
    parts[place - 1] = parts[place - 1].rstrip()
    parts[place + 1] = parts[place + 1].lstrip()
  found = list(tokens.auto_bos)
  for part in parts:
    if part == "<im_patch>":
      found.append(IMAGE)
    elif part:
      found += tokens.encode(part)
  return found


def llava_v0(tokens: Tokens, question: str, answer: str) -> Sample:
  """LLaVA-Med 1.0, train.py: preprocess, _add_speaker_and_signal, _mask_targets."""
  image = "<im_start>" + "<im_patch>" * SLOTS + "<im_end>"
  header = f"{HUMAN}\n\n"
  turns = [f"### Human: {image}\n{question}\n", f"### Assistant: {answer}\n"]
  ids = slow(tokens, header + "".join(turns) + "### ")
  first, *lengths = [len(slow(tokens, text)) for text in (header, *turns)]
  labels, at = list(ids), first
  labels[:at] = [MASKED] * at
  for length, speaker in zip(lengths, ("human", "gpt"), strict=True):
    if speaker == "human":
      labels[at + 2 : at + length] = [MASKED] * (length - 2)
    at += length
  return Sample(ids, labels)


def spliced(tokens: Tokens, text: str) -> list[int]:
  """LLaVA's tokenizer_image_token: each side of <image> alone, one begin token kept."""
  chunks = [tokens(chunk) for chunk in text.split("<image>")]
  bos = len(tokens.auto_bos)
  found = list(chunks[0])
  for chunk in chunks[1:]:
    found += [IMAGE] * SLOTS + chunk[bos:]
  return found


def in_rounds(
  tokens: Tokens, text: str, *, end: str, sep: str, start: int, less: int, more: int,
  joined: int = 1,
) -> Sample:  # fmt: skip
  """preprocess_v1, _llama_2, _llama3, _phi3 and MedM-VL's: rounds are counted again.

  start: tokens before the first round; less: that a round's instruction is counted
  shorter; more: that the round is counted longer; joined: ends in a first round.
  """
  ids = spliced(tokens, text)
  labels, at = list(ids), start
  labels[:at] = [MASKED] * at
  total = sum(i != tokens.pad for i in ids)
  pieces = text.split(end)
  rounds = [end.join(pieces[:joined]), *pieces[joined:]]
  for one in rounds:
    if one == "":
      break
    parts = one.split(sep)
    if len(parts) != 2:
      break
    length = len(spliced(tokens, one)) + more
    given = len(spliced(tokens, parts[0] + sep)) - less
    labels[at : at + given] = [MASKED] * given
    at += length
  labels[at:] = [MASKED] * len(labels[at:])
  if at != total:
    labels = [MASKED] * len(ids)  # "tokenization mismatch … (ignored)"
  return Sample(ids, labels)


def llava_v1(tokens: Tokens, question: str, answer: str) -> Sample:
  """LLaVA-1.5, train.py: preprocess_v1 on conv_vicuna_v1."""
  text = f"{USER} USER: <image>\n{question} ASSISTANT: {answer}</s>"
  return in_rounds(
    tokens, text, end="</s>", sep=" ASSISTANT: ", start=1, less=2, more=0
  )


def mistral_instruct(tokens: Tokens, question: str, answer: str) -> Sample:
  """LLaVA-Med 1.5's conversation.py, with LLaVA's preprocess_llama_2."""
  text = f"[INST] <image>\n{question} [/INST] {answer} </s>"
  return in_rounds(tokens, text, end="</s>", sep="[/INST] ", start=1, less=2, more=0)


def medmvl(tokens: Tokens, question: str, answer: str) -> Sample:
  """MedM-VL, template/base.py on qwen_template.py: the end token counted to the round."""
  text = f"{USER} USER: <image>\n{question} ASSISTANT: {answer}<|im_end|>"
  return in_rounds(
    tokens, text, end="<|im_end|>", sep=" ASSISTANT:", start=0, less=0, more=1
  )


def llama3(tokens: Tokens, question: str, answer: str) -> Sample:
  """MedTrinity-25M, train.py: preprocess_llama3 on conv_llama3."""
  heads = {
    role: f"<|start_header_id|>{role}<|end_header_id|>\n\n"
    for role in ("system", "user", "assistant")
  }
  end = "<|eot_id|>"
  text = (
    f"{tokens.bos}{heads['system']}{USER}{end}{heads['user']}<image>\n{question}{end}"
    f"{heads['assistant']}{answer}{end}"
  )
  sep = end + heads["assistant"]
  return in_rounds(tokens, text, end=end, sep=sep, start=0, less=0, more=1, joined=3)


def phi3(tokens: Tokens, question: str, answer: str) -> Sample:
  """LLaVA-pp's preprocess_phi3 on HealthGPT's conv_phi3_instruct."""
  end = "<|end|>"
  text = (
    f"<|system|>\nYou are a helpful AI assistant.{end}\n<|user|>\n<image>\n{question}"
    f"{end}\n<|assistant|>\n{answer}{end}"
  )
  sep = f"{end}\n<|assistant|>\n"
  return in_rounds(tokens, text, end=end, sep=sep, start=0, less=0, more=1, joined=3)


def phi4(tokens: Tokens, question: str, answer: str) -> Sample:
  """The same rule on HealthGPT's conv_phi4_instruct."""
  start, middle, end = (f"<|im_{name}|>" for name in ("start", "sep", "end"))
  text = (
    f"{start}system{middle}\nYou are a medieval knight and must provide explanations to "
    f"modern people.{end}\n{start}user{middle}\n<image>\n{question}{end}\n"
    f"{start}assistant{middle}\n{answer}{end}"
  )
  sep = f"{end}\n{start}assistant{middle}\n"
  return in_rounds(tokens, text, end=end, sep=sep, start=0, less=0, more=1, joined=3)


def in_segments(tokens: Tokens, wrapped: str, trained: str) -> Sample:
  """MiniGPT-4's heirs: three texts of their own, the last one trained; one begin token."""
  before, after = (tokens.encode(text) for text in wrapped.split("<ImageHere>"))
  given = [*tokens.encode(tokens.bos), *before, *[IMAGE] * SLOTS, *after]
  answer = tokens.encode(trained)
  return Sample([*given, *answer], [MASKED] * len(given) + answer)


def xraygpt(tokens: Tokens, question: str, answer: str) -> Sample:
  """XrayGPT, mini_gpt4.py: prompt_template around the prompt, end_sym on the caption."""
  wrapped = f"###Patient: <Img><ImageHere></Img> {question} ###Doctor: "
  return in_segments(tokens, wrapped, f"{answer}###")


def minigpt_med(tokens: Tokens, question: str, answer: str) -> Sample:
  """radvqa_dataset.py wraps, and minigpt_base.py's prompt_template wraps again."""
  template = "[INST] {} [/INST]"
  wrapped = template.format(f"<Img><ImageHere></Img> {question}")
  return in_segments(tokens, template.format(wrapped), f"{answer}</s>")


def minigpt(tokens: Tokens, question: str, answer: str) -> Sample:
  """The layout of all three, wrapped once."""
  wrapped = f"[INST] <Img><ImageHere></Img> {question} [/INST]"
  return in_segments(tokens, wrapped, f"{answer}</s>")


# (style, legacy): the rule, and whether the tokenizer's call puts a begin token in front.
RULES: dict[tuple[str, bool], tuple[Callable[[Tokens, str, str], Sample], bool]] = {
  ("llama2", False): (minigpt, True),
  ("minigpt_med", False): (minigpt, True),
  ("minigpt_med", True): (minigpt_med, True),
  ("xraygpt", False): (xraygpt, True),
  ("vicuna_v0", False): (llava_v0, True),
  ("vicuna_v1", False): (llava_v1, True),
  ("mistral_instruct", False): (mistral_instruct, True),
  ("medmvl", False): (medmvl, False),
  ("llama3", False): (llama3, True),
  ("phi3", False): (phi3, True),
  ("phi4", False): (phi4, False),
}
