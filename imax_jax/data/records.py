"""An image's record as token ids: the template of the sequence is written here, once.

    <s>[INST] <Img> 0 0 … 0 </Img> [reg] … [/INST]heart</s>
    └──── prefix, S slots ──┘└────── prompt ──────┘└ answer ┘

The pieces are tokenised separately (Uni-Med, and every MiniGPT before it, splits its
text at the image): a tokenizer that begins each piece with a space of its own, such as
LLaMA's, puts one before the answer too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from collections.abc import Iterator

import numpy as np
from transformers import PreTrainedTokenizerFast

from imax_jax.data import prompts
from imax_jax.data.tokenizer import encode
from imax_jax.schema import Entry
from imax_jax.schema import ImageRecord

PREFIX_TEXT = "[INST] <Img>"


def prompt_text(prompt: str) -> str:
  """ "[vqa] Is …?" -> "</Img> [vqa] Is …? [/INST]": what follows the image."""
  return f"</Img> {prompt} [/INST]"


def fixed_phrases() -> tuple[str, ...]:
  """The wordings that the study repeats: " [rec] Based on …, where can I locate the".

  Each begins with the space that `prompt_text` puts before it and ends where the
  template's own words end. As `phrases` of the tokenizer they cost one token each.
  """
  whole = [
    prompts.prompt_of("calculation", "ctr"),
    prompts.prompt_of("calculation", "cpar"),
    *(prompts.prompt_of(task, "") for task in ("report", "multi_class", "multi_label")),
  ]
  heads = [
    template.partition("{")[0].rstrip()
    for task in ("rec", "reg", "vqa")
    for template in prompts.TEMPLATES[task]
  ]
  return tuple(f" {phrase}" for phrase in whole + heads)


def training_texts(entries: Iterable[Entry]) -> Iterator[str]:
  """The pieces as they will be tokenised: what to train a tokenizer on."""
  for entry in entries:
    yield PREFIX_TEXT
    yield prompt_text(entry.prompt)
    yield entry.answer


@dataclasses.dataclass(frozen=True, slots=True)
class TokenizedEntry:
  prompt_ids: np.ndarray  # int32: "</Img> {prompt} [/INST]"
  answer_ids: np.ndarray  # int32: the answer and the end token; all are supervised
  entry: Entry

  @property
  def length(self) -> int:
    return len(self.prompt_ids) + len(self.answer_ids)


@dataclasses.dataclass(frozen=True, slots=True)
class TokenizedImage:
  image_id: str
  prefix_ids: np.ndarray  # int32: begin token, PREFIX_TEXT, 0 for each slot
  prefix_slot: np.ndarray  # int32: -1 for text, 0 … S - 1 for the slots
  entries: tuple[TokenizedEntry, ...]


def prefix_of(
  tokenizer: PreTrainedTokenizerFast, num_slots: int
) -> tuple[np.ndarray, np.ndarray]:
  """(ids, slots) of what all entries of an image share, as in `TokenizedImage`."""
  text = [tokenizer.bos_token_id, *encode(tokenizer, PREFIX_TEXT)]
  ids = np.array(text + [0] * num_slots, np.int32)
  slot = np.array([-1] * len(text) + list(range(num_slots)), np.int32)
  return ids, slot


def tokenize_record(
  record: ImageRecord,
  tokenizer: PreTrainedTokenizerFast,
  *,
  num_slots: int,
  row_tokens: int | None = None,
) -> TokenizedImage:
  """Tokenises all entries of an image; the pixels stay behind.

  Args:
    num_slots: S, image tokens of an image.
    row_tokens: T, if entries must fit a row together with the prefix.

  Raises:
    ValueError: an entry with an empty answer, with a begin or end token inside, or too
      long for a row. It names the entry's id, never its text.
  """
  prefix_ids, prefix_slot = prefix_of(tokenizer, num_slots)
  entries = []
  for entry in record.entries:
    tokenized = _tokenize_entry(entry, tokenizer)
    needed = len(prefix_ids) + tokenized.length
    if row_tokens is not None and needed > row_tokens:
      raise ValueError(
        f"entry {entry.id}: needs {needed} tokens with its image, a row has "
        f"{row_tokens}; raise row_tokens or drop the entry"
      )
    entries.append(tokenized)
  return TokenizedImage(record.image_id, prefix_ids, prefix_slot, tuple(entries))


def _tokenize_entry(entry: Entry, tokenizer: PreTrainedTokenizerFast) -> TokenizedEntry:
  prompt = encode(tokenizer, prompt_text(entry.prompt))
  answer = encode(tokenizer, entry.answer)
  if not answer:
    raise ValueError(
      f"entry {entry.id}: its answer has no token, expected at least one; drop the entry "
      "where the dataset is constructed"
    )
  ends = {tokenizer.bos_token_id, tokenizer.eos_token_id}
  if ends & {*prompt, *answer}:
    raise ValueError(
      f"entry {entry.id}: its text spells the begin or end token; remove the mark from "
      "the source's text"
    )
  return TokenizedEntry(
    np.array(prompt, np.int32),
    np.array([*answer, tokenizer.eos_token_id], np.int32),
    entry,
  )
