"""An image's record as token ids: `data.templates` says with what words around it.

    <s>[INST] <Img> 0 0 … 0 </Img> [reg] … [/INST]heart</s>
    └──── prefix, S slots ──┘└────── prompt ──────┘└ answer ┘

What is made is checked here, before a step is trained: a text that would not come back,
an answer without tokens, a row that would cut an image are errors.
"""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerFast

from imax_jax.data import prompts
from imax_jax.data import templates
from imax_jax.data.tokenizer import decode
from imax_jax.schema import Entry
from imax_jax.schema import ImageRecord


def fixed_phrases() -> tuple[str, ...]:
  """The wordings that the study repeats: " [rec] Based on …, where can I locate the".

  Each begins with the space that the template puts before it and ends where the
  wording's own words end. As `phrases` of the tokenizer they cost one token each.
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
  """The pieces as llama2 has them tokenised: what to train a tokenizer of one's own on.

  (Styles with marks of their own come with a tokenizer that has them.)
  """
  for entry in entries:
    yield templates.LLAMA2.before
    yield templates.LLAMA2.wrap(entry.prompt)
    yield entry.answer


@dataclasses.dataclass(frozen=True, slots=True)
class TokenizedEntry:
  prompt_ids: np.ndarray  # int32: "</Img> {prompt} [/INST]"
  answer_ids: np.ndarray  # int32: the answer and the end token; all are supervised
  entry: Entry
  task: int = 0  # its number, where image tokens depend on the task

  @property
  def length(self) -> int:
    return len(self.prompt_ids) + len(self.answer_ids)


@dataclasses.dataclass(frozen=True, slots=True)
class TokenizedImage:
  image_id: str
  prefix_ids: np.ndarray  # int32: the words before the image, 0 for each slot
  prefix_slot: np.ndarray  # int32: -1 for text, 0 … S - 1 for the slots
  entries: tuple[TokenizedEntry, ...]

  def task_of(self, chosen: Sequence[int]) -> int:
    """The number of the task that these entries, which share a prefix, are of."""
    return self.entries[chosen[0]].task


def prefix_of(
  tokenizer: PreTrainedTokenizerFast,
  num_slots: int,
  template: templates.Template = templates.LLAMA2,
) -> tuple[np.ndarray, np.ndarray]:
  """(ids, slots) of what all entries of an image share, as in `TokenizedImage`."""
  text = templates.layout_of(tokenizer, template).prefix_ids
  ids = np.array([*text, *[0] * num_slots], np.int32)
  slot = np.array([*[-1] * len(text), *range(num_slots)], np.int32)
  return ids, slot


def tokenize_record(
  record: ImageRecord,
  tokenizer: PreTrainedTokenizerFast,
  *,
  num_slots: int,
  row_tokens: int | None = None,
  style: templates.Style = templates.STYLES["llama2"],
) -> TokenizedImage:
  """Tokenises all entries of an image for training; the pixels stay behind.

  Args:
    num_slots: S, image tokens of an image.
    row_tokens: T, if entries must fit a row together with the prefix.
    style: its training half is used.

  Raises:
    ValueError: a text that spells a special token, and all that `check_image` refuses.
      It names the entry's id, never its text.
  """
  layout = templates.layout_of(tokenizer, style.training)
  entries = []
  for entry in record.entries:
    try:
      prompt, answer = layout.prompt_ids(entry.prompt), layout.answer_ids(entry.answer)
    except ValueError as error:
      raise ValueError(f"entry {entry.id}: {error}") from None
    entries.append(
      TokenizedEntry(np.array(prompt, np.int32), np.array(answer, np.int32), entry)
    )
  prefix = prefix_of(tokenizer, num_slots, style.training)
  image = TokenizedImage(record.image_id, *prefix, tuple(entries))
  check_image(image, tokenizer, num_slots=num_slots, row_tokens=row_tokens, style=style)
  return image


def check_image(
  image: TokenizedImage,
  tokenizer: PreTrainedTokenizerFast,
  *,
  num_slots: int,
  row_tokens: int | None = None,
  style: templates.Style = templates.STYLES["llama2"],
) -> None:
  """Refuses a tokenised image that would teach something else than its entries say.

  Raises:
    ValueError: the prefix does not end in S slots in order; a row would cut the image
      or the entry; nothing is supervised; what is supervised is not the answer and the
      end token. It names the entry's id, never its text.
  """
  slots, prefix = image.prefix_slot, len(image.prefix_ids)
  text = prefix - num_slots
  if text < 0 or slots.tolist() != [*[-1] * text, *range(num_slots)]:
    raise ValueError(
      f"image {image.image_id}: its prefix of {prefix} tokens has "
      f"{int((slots >= 0).sum())} image slots, expected {num_slots} in order at its "
      "end; tokenise it for this model"
    )
  if row_tokens is not None and prefix > row_tokens:
    raise ValueError(
      f"image {image.image_id}: its prefix has {prefix} tokens, {num_slots} of them the "
      f"image's, a row of {row_tokens} would cut it; raise row_tokens"
    )
  end_id = templates.layout_of(tokenizer, style.training).end_id
  for tokenized in image.entries:
    problem = _problem(tokenized, tokenizer, end_id)
    if problem:
      raise ValueError(f"entry {tokenized.entry.id}: {problem}")
    needed = prefix + tokenized.length
    if row_tokens is not None and needed > row_tokens:
      raise ValueError(
        f"entry {tokenized.entry.id}: needs {needed} tokens with its image, a row has "
        f"{row_tokens}; raise row_tokens or drop the entry"
      )


def _problem(
  tokenized: TokenizedEntry, tokenizer: PreTrainedTokenizerFast, end_id: int
) -> str:
  """Why the supervised tokens are not the entry's answer and the end token, or ""."""
  ids = tokenized.answer_ids.tolist()
  if len(ids) < 2 or ids[-1] != end_id:
    return (
      f"{len(ids)} supervised tokens, expected an answer and the end token {end_id} "
      "behind it; tokenise it for this model"
    )
  said, answer = decode(tokenizer, ids[:-1]), tokenized.entry.answer
  # The space that some tokenizers put before a piece; and accents, which some compose.
  if answer in (said, said.removeprefix(" ")) or (
    unicodedata.normalize("NFC", said) == unicodedata.normalize("NFC", answer)
  ):
    return ""
  return (
    f"its answer of {len(answer)} characters comes back from its tokens as another text "
    f"of {len(said)}; the tokenizer cannot spell it: remove what is unusual in the "
    "source's text, or take another tokenizer"
  )
