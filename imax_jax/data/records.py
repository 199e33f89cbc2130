"""An image's record as token ids: `data.templates` says with what words around it.

    <s>[INST] <Img> 0 0 … 0 </Img> [reg] … [/INST]heart</s>
    └──── prefix, S slots ──┘└────── prompt ──────┘└ answer ┘

What is made is checked here, before a step is trained: a text that would not come back,
an answer without tokens, a row that would cut an image are errors.
"""

from __future__ import annotations

import dataclasses
import re
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


def fixed_phrases(
  template: templates.Template = templates.LLAMA2,
) -> tuple[str, ...]:
  """The wordings that the study repeats: " [rec] Based on …, where can I locate the".

  Each begins with the space that the template may put before it and ends where the
  wording's own words end. What the template tells the decoder before all else and the
  words that end its answers are among them. As `phrases` of the tokenizer they cost one
  token each, and are one wherever they stand.
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
  space = " " * template.wrap("|").partition("|")[0].endswith(" ")
  own = filter(None, (template.system, template.stop_text))
  return (*own, *(f"{space}{phrase}" for phrase in whole + heads))


def training_texts(
  entries: Iterable[Entry], template: templates.Template = templates.LLAMA2
) -> Iterator[str]:
  """The pieces as the template has them: what to train a tokenizer of one's own on.

  Special tokens are left out. The words around an answer are a piece of their own, so
  that no token holds both.
  """
  marks = "|".join(map(re.escape, template.specials)) or "$^"
  around = template.answer("\0").split("\0")
  for entry in entries:
    for text in (template.opening, template.wrap(entry.prompt)):
      yield from filter(None, re.split(marks, text))
    yield entry.answer
    yield from filter(None, around)


@dataclasses.dataclass(frozen=True, slots=True)
class TokenizedEntry:
  prompt_ids: np.ndarray  # int32: "</Img> {prompt} [/INST]"
  answer_ids: np.ndarray  # int32: the answer and the end token; all are supervised
  entry: Entry
  task: int = 0  # its number, where image tokens depend on the task
  lead: int = 0  # of prompt_ids, how many at the end are supervised too

  @property
  def length(self) -> int:
    return len(self.prompt_ids) + len(self.answer_ids)

  @property
  def supervised(self) -> int:
    return self.lead + len(self.answer_ids)


@dataclasses.dataclass(frozen=True, slots=True)
class TokenizedImage:
  image_id: str
  prefix_ids: np.ndarray  # int32: the words before the image, 0 for each slot
  prefix_slot: np.ndarray  # int32: -1 for text, 0 … S - 1 for the slots
  entries: tuple[TokenizedEntry, ...]
  # Places of the prefix whose tokens are supervised, as often as there are entries.
  taught: tuple[int, ...] = ()

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
    ValueError: what `Layout.said` and `check_image` refuse. It names the entry's id, never its text.
  """
  layout = templates.layout_of(tokenizer, style.training)
  entries = []
  for entry in record.entries:
    try:
      prompt, lead, answer = layout.said(entry.prompt, entry.answer)
    except ValueError as error:
      raise ValueError(f"entry {entry.id}: {error}") from None
    ids = (np.array(prompt, np.int32), np.array(answer, np.int32))
    entries.append(TokenizedEntry(*ids, entry, lead=lead))
  prefix = prefix_of(tokenizer, num_slots, style.training)
  image = TokenizedImage(record.image_id, *prefix, tuple(entries), taught=layout.taught)
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
      or the entry; nothing is supervised; what is supervised is not the answer and what
      the template ends it with. It names the entry's id, never its text.
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
  layout = templates.layout_of(tokenizer, style.training)
  if image.taught != layout.taught:
    raise ValueError(
      f"image {image.image_id}: supervised tokens at {list(image.taught)} of its prefix, "
      f"expected {list(layout.taught)}; tokenise it for this model"
    )
  for tokenized in image.entries:
    problem = _problem(tokenized, tokenizer, style.training, layout.end_id)
    if problem:
      raise ValueError(f"entry {tokenized.entry.id}: {problem}")
    needed = prefix + tokenized.length
    if row_tokens is not None and needed > row_tokens:
      raise ValueError(
        f"entry {tokenized.entry.id}: needs {needed} tokens with its image, a row has "
        f"{row_tokens}; raise row_tokens or drop the entry"
      )


def _problem(
  tokenized: TokenizedEntry,
  tokenizer: PreTrainedTokenizerFast,
  template: templates.Template,
  end_id: int | None,
) -> str:
  """Why the supervised tokens are not the entry's answer and what ends it, or ""."""
  ids = tokenized.answer_ids.tolist()
  if end_id is not None and (len(ids) < 2 or ids[-1] != end_id):
    return (
      f"{len(ids)} supervised tokens, expected an answer and the end token {end_id} "
      "behind it; tokenise it for this model"
    )
  lead = tokenized.prompt_ids[len(tokenized.prompt_ids) - tokenized.lead :].tolist()
  for part, found, wanted in (
    ("the words before its answer", lead, template.lead),
    (
      "its answer",
      ids if end_id is None else ids[:-1],
      template.answer(tokenized.entry.answer),
    ),
  ):
    said = decode(tokenizer, found)
    if not _same(said, wanted):
      return (
        f"{part} of {len(wanted)} characters comes back from its tokens as another text "
        f"of {len(said)}; the tokenizer cannot spell it: remove what is unusual in the "
        "source's text, or take another tokenizer"
      )
  return ""


def _same(said: str, wanted: str) -> bool:
  """But for a space that some tokenizers put before a piece and others leave out; and
  accents, which some compose."""
  return said.removeprefix(" ") == wanted.removeprefix(" ") or (
    unicodedata.normalize("NFC", said) == unicodedata.normalize("NFC", wanted)
  )
