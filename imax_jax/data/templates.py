"""A prompt template in a tokenizer's ids.

    before the image     <s> …               given, but for what is `taught`
    after it             </Img> [reg] …      given; its last tokens may be trained (`lead`)
    the answer           heart </s>          trained

The rows are `data.styles`'. Training (`data.records`) and evaluation
(`evaluate.generate`) build their sequences from a `Layout` and from nothing else. Which
tokens are trained is read from where they stand in the text, never counted by tokenising
a part of it again: tokens of a part need not be those of the whole, and the published
code that counts so masks a whole sample where they are not.
"""

from __future__ import annotations

import functools
import itertools
from typing import NamedTuple

from transformers import PreTrainedTokenizerFast

from imax_jax.data.styles import LLAMA2 as LLAMA2
from imax_jax.data.styles import STYLES as STYLES
from imax_jax.data.styles import Style as Style
from imax_jax.data.styles import Template as Template
from imax_jax.data.styles import style_of as style_of
from imax_jax.data.tokenizer import encode
from imax_jax.data.tokenizer import encode_with_places
from imax_jax.data.tokenizer import special_ids

# What may stand before the words that end an answer: the same words are other tokens
# behind a space, and at a text's beginning.
_BEFORE_THE_END = ("", "a", "1", ".", "a ", "a\n")


class Said(NamedTuple):
  """An entry in ids.

  prompt: all between the image and the answer: what generation is given.
  lead: how many of its last tokens are trained.
  answer: the answer, the words that close it and its end token; all are trained.
  """

  prompt: list[int]
  lead: int
  answer: list[int]


class Layout:
  """A template in a tokenizer's ids. Made by `layout_of`.

  Attributes:
    prefix_ids: the begin tokens and the text before the image.
    taught: places of those of them that are trained.
    end_id: ends each answer; None where words do.
    stop_ids: where generation stops, `end_id` among them.
    stops: these, and the template's stop words, each way that their tokens may be.

  Raises:
    ValueError: the tokenizer lacks a token that the template needs, or has one across
      the border of what is trained.
  """

  def __init__(self, tokenizer: PreTrainedTokenizerFast, template: Template) -> None:
    self._tokenizer, self._template = tokenizer, template
    self._special = special_ids(tokenizer)
    end = self._id(template.end or tokenizer.eos_token, "end")
    self.end_id = None if template.end == "" else end
    self.stop_ids = (end, *(self._id(s, "stop") for s in template.stops))
    self.stops: tuple[int | tuple[int, ...], ...] = (
      *self.stop_ids,
      *self._stop_words(),
    )
    begins = [self._id(tokenizer.bos_token, "begin")] if template.begins else []
    words, self.taught = self._words_before(template.begins)
    self.prefix_ids = (*begins * template.begins, *words)
    own = [self._id(text, "role") for text in template.specials]
    after = encode(tokenizer, template.wrap(""))
    self._after_marks = self._marks(after)
    if {*self._after_marks, *self._marks(self.prefix_ids)} != {*own, *begins}:
      raise ValueError(
        f"tokenizer of {len(tokenizer)} ids: the template's words hold other special "
        f"tokens than {list(template.specials)}; choose the prompt style of its model"
      )

  def _id(self, token: str | None, use: str) -> int:
    """The id of a token, which must be a special one of this tokenizer."""
    found = None if token is None else self._tokenizer.convert_tokens_to_ids(token)
    if found not in self._special:
      raise ValueError(
        f"tokenizer of {len(self._tokenizer)} ids: it has no special token {token!r}, "
        f"which the prompt style uses as {use} token; choose the prompt style of its "
        "model, name the token in its tokenizer_config.json, or add it (added_tokens)"
      )
    return int(found)

  def _marks(self, ids: list[int] | tuple[int, ...]) -> list[int]:
    return [i for i in ids if i in self._special]

  def _words_before(self, begins: int) -> tuple[list[int], tuple[int, ...]]:
    """(ids of the text before the image, places of those taught behind the begins)."""
    text, taught = self._template.opening, self._template.taught
    ids, places = encode_with_places(self._tokenizer, text)
    if not taught:
      return ids, ()
    start = text.index(taught)
    first, last = (self._cut(places, at) for at in (start, start + len(taught)))
    assert begins + first, "a row's first token is predicted from nothing"
    return ids, tuple(range(begins + first, begins + last))

  def _cut(self, places: list[tuple[int, int]], at: int) -> int:
    """How many tokens stand before a place of the text, where one must end."""
    count = sum(begin < at for begin, _ in places)
    if any(end > at for _, end in places[:count]):
      raise ValueError(
        f"tokenizer of {len(self._tokenizer)} ids: one of its tokens holds both words "
        "that are trained and words that are given; remove the space or the mark at "
        "which they meet"
      )
    return count

  def _stop_words(self) -> tuple[tuple[int, ...], ...]:
    """The stop words' tokens, wherever they may stand; a space before them is theirs."""
    words = self._template.stop_text
    if not words:
      return ()
    found: dict[tuple[int, ...], None] = {}
    behind = self._template.says.rpartition(words)[2]
    for before, after in itertools.product(_BEFORE_THE_END, {"": 0, behind: 0}):
      ids, places = encode_with_places(self._tokenizer, before + words + after)
      first = sum(end <= len(before) for _, end in places)
      last = sum(begin < len(before + words) for begin, _ in places)
      found[tuple(ids[first:last])] = None
    return tuple(found)

  def prompt_ids(self, prompt: str) -> list[int]:
    """All between the image and the answer.

    Raises:
      ValueError: the prompt spells a special token or stop words. It does not say the
        text.
    """
    ids = encode(self._tokenizer, self._template.wrap(prompt))
    self._refuse(prompt, self._marks(ids) != self._after_marks)
    return ids

  def answer_ids(self, answer: str) -> list[int]:
    """The answer and what ends it: what is supervised."""
    return self.said("", answer).answer

  def said(self, prompt: str, answer: str) -> Said:
    """An entry in ids.

    Raises:
      ValueError: the answer has no token, either text spells a special token or stop
        words, or the answer's first characters are one token with the template's last.
        It does not say the text.
    """
    template, given = self._template, self.prompt_ids(prompt)
    closed = template.answer(answer)
    if template.joint:
      ids, lead = self._jointly(prompt, closed, given)
    else:
      ids, lead = encode(self._tokenizer, closed), 0
    if not ids or not answer:
      raise ValueError(
        "its answer has no token, expected at least one; drop the entry where the "
        "dataset is constructed"
      )
    self._refuse(answer, bool(self._marks(ids)))
    return Said(given, lead, ids if self.end_id is None else [*ids, self.end_id])

  def _jointly(
    self, prompt: str, closed: str, given: list[int]
  ) -> tuple[list[int], int]:
    """(the answer's ids, tokens of the lead) in the one text that both are part of."""
    text = self._template.wrap(prompt)
    ids, places = encode_with_places(self._tokenizer, text + closed)
    count = self._cut(places, len(text))
    if ids[:count] != given:
      raise ValueError(
        "its question has other tokens with its answer behind it than alone, as "
        "generation is given it; take another tokenizer or prompt style"
      )
    before = self._cut(places, len(text) - len(self._template.lead))
    return ids[count:], count - before

  def _refuse(self, text: str, spells_special: bool) -> None:
    if spells_special:
      raise ValueError(
        "its text spells a special token, such as the begin or end token; remove the "
        "mark from the source's text"
      )
    if self._template.stop_text and self._template.stop_text in text:
      raise ValueError(
        f"its text spells {self._template.stop_text!r}, the words that end an answer; "
        "remove them from the source's text"
      )


@functools.lru_cache(maxsize=16)
def layout_of(tokenizer: PreTrainedTokenizerFast, template: Template) -> Layout:
  """The template in the tokenizer's ids; worked out once for each pair.

  Raises:
    ValueError: as `Layout`.
  """
  return Layout(tokenizer, template)
