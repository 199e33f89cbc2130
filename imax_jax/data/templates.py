"""How a question is put to a decoder: the table of prompt templates, and their ids.

    llama2   <s>[INST] <Img> 0 0 … 0 </Img> [reg] … [/INST]heart</s>
    chatml   <|im_start|>user⏎ 0 0 … 0 ⏎[reg] …<|im_end|>⏎<|im_start|>assistant⏎heart<|im_end|>
             └─ before ─────┘└ slots ┘└── after, around the prompt ──────────────┘└ answer ┘

A template is a row. `layout_of` says a row in a tokenizer's ids; training
(`data.records`) and evaluation (`evaluate.generate`) build their sequences from that and
from nothing else. The pieces before, after and the answer are tokenised separately, as
MiniGPT-4, MiniGPT-v2 and Uni-Med do, which split their text at the image: a tokenizer
that begins each piece with a space of its own, such as LLaMA's, puts one before the
answer too.
"""

from __future__ import annotations

import dataclasses
import functools

from transformers import PreTrainedTokenizerFast

from imax_jax.data.tokenizer import encode
from imax_jax.data.tokenizer import special_ids

_PROMPT = "{prompt}"


@dataclasses.dataclass(frozen=True, slots=True)
class Template:
  """A row.

  Attributes:
    before: what stands before the image.
    after: what follows it, around `{prompt}`.
    begins: how often the tokenizer's begin token stands in front.
    end: the token that ends an answer, and is trained; None: the tokenizer's own.
    stops: further tokens at which generation stops.
    specials: the special tokens that `before` and `after` spell. In anybody else's text
      special tokens are refused.
  """

  before: str
  after: str
  begins: int = 0
  end: str | None = None
  stops: tuple[str, ...] = ()
  specials: tuple[str, ...] = ()

  def wrap(self, prompt: str) -> str:
    """ "[vqa] Is …?" -> "</Img> [vqa] Is …? [/INST]": what follows the image."""
    return self.after.replace(_PROMPT, prompt)


@dataclasses.dataclass(frozen=True, slots=True)
class Style:
  """The templates of training and of evaluation: one and the same, but for legacy."""

  training: Template
  evaluation: Template


LLAMA2 = Template(before="[INST] <Img>", after="</Img> {prompt} [/INST]", begins=1)
_CHATML = Template(
  before="<|im_start|>user\n",
  after="\n{prompt}<|im_end|>\n<|im_start|>assistant\n",
  end="<|im_end|>",
  stops=("<|endoftext|>",),
  specials=("<|im_start|>", "<|im_end|>"),
)
STYLES: dict[str, Style] = {
  "llama2": Style(LLAMA2, LLAMA2),
  "chatml": Style(_CHATML, _CHATML),
}
# What published code did where it departs from its own layout, for numbers that must be
# compared with its own. Uni-Med (uni_med_base.py, eval_*.py): in training the
# instruction's trailing space comes before that of " [/INST]"; in evaluation the text
# says "<s>" and the tokenizer puts another before it.
LEGACY: dict[str, Style] = {
  "llama2": Style(
    training=dataclasses.replace(LLAMA2, after="</Img> {prompt}  [/INST]"),
    evaluation=dataclasses.replace(LLAMA2, begins=2),
  ),
}


def style_of(name: str, *, legacy: bool = False) -> Style:
  """A row of the table; `legacy`: as its published code has it.

  Raises:
    ValueError: no such style, or none whose published code departs from it.
  """
  table = LEGACY if legacy else STYLES
  if name not in table:
    raise ValueError(
      f"prompt style {name!r}, legacy={legacy}: expected one of {sorted(table)}"
      + (f" (without legacy: {sorted(STYLES)})" if legacy else "")
    )
  return table[name]


class Layout:
  """A template in a tokenizer's ids. Made by `layout_of`.

  Attributes:
    prefix_ids: the begin tokens and the text before the image.
    end_id: ends each answer.
    stop_ids: where generation stops, `end_id` among them.

  Raises:
    ValueError: the tokenizer lacks a token that the template needs.
  """

  def __init__(self, tokenizer: PreTrainedTokenizerFast, template: Template) -> None:
    self._tokenizer, self._template = tokenizer, template
    self._special = special_ids(tokenizer)
    self.end_id = self._id(template.end or tokenizer.eos_token, "end")
    self.stop_ids = (self.end_id, *(self._id(s, "stop") for s in template.stops))
    begins = [self._id(tokenizer.bos_token, "begin")] if template.begins else []
    self.prefix_ids = (*begins * template.begins, *encode(tokenizer, template.before))
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
        "model, or name the token in its tokenizer_config.json"
      )
    return int(found)

  def _marks(self, ids: list[int] | tuple[int, ...]) -> list[int]:
    return [i for i in ids if i in self._special]

  def prompt_ids(self, prompt: str) -> list[int]:
    """All between the image and the answer.

    Raises:
      ValueError: the prompt spells a special token. It does not say the text.
    """
    ids = encode(self._tokenizer, self._template.wrap(prompt))
    self._refuse(self._marks(ids) != self._after_marks)
    return ids

  def answer_ids(self, answer: str) -> list[int]:
    """The answer and its end token: what is supervised.

    Raises:
      ValueError: the answer has no token, or spells a special one. It does not say the
        text.
    """
    ids = encode(self._tokenizer, answer)
    if not ids:
      raise ValueError(
        "its answer has no token, expected at least one; drop the entry where the "
        "dataset is constructed"
      )
    self._refuse(bool(self._marks(ids)))
    return [*ids, self.end_id]

  @staticmethod
  def _refuse(refused: bool) -> None:
    if refused:
      raise ValueError(
        "its text spells a special token, such as the begin or end token; remove the "
        "mark from the source's text"
      )


@functools.lru_cache(maxsize=16)
def layout_of(tokenizer: PreTrainedTokenizerFast, template: Template) -> Layout:
  """The template in the tokenizer's ids; worked out once for each pair.

  Raises:
    ValueError: the tokenizer lacks a token that the template needs.
  """
  return Layout(tokenizer, template)
