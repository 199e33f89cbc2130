"""How a question is put to a decoder: the table of prompt templates.

    llama2   <s>[INST] <Img> 0 0 … 0 </Img> [reg] … [/INST]heart</s>
    chatml   <|im_start|>user⏎ 0 0 … 0 ⏎[reg] …<|im_end|>⏎<|im_start|>assistant⏎heart<|im_end|>
             └─ before ─────┘└ slots ┘└── after, around the prompt ──────────────┘└ answer ┘

    vicuna_v0  … ### Human:<im_start> 0 … 0 <im_end>[reg] …⏎### Assistant: heart⏎###
                 ‾‾‾                                        ‾‾‾‾‾‾‾‾‾‾‾‾‾‾ ‾‾‾‾‾ ‾‾‾
                 taught                                     lead           says

A template is a row; `data.templates` says it in a tokenizer's ids. What stands before the
image is a text of its own to the tokenizer. What follows is tokenised as the published
code does it: the question and the answer apart, as MiniGPT-4, MiniGPT-v2 and Uni-Med have
them, where a tokenizer that begins each piece with a space of its own, such as LLaMA's,
puts one before the answer too; or as one text (`joint`), as LLaVA's heirs have it.
"""

from __future__ import annotations

import dataclasses

_PROMPT, _ANSWER, _SYSTEM = "{prompt}", "{answer}", "{system}"


@dataclasses.dataclass(frozen=True, slots=True)
class Template:
  """A row.

  Attributes:
    before: what stands before the image; `{system}` is `system`.
    after: what follows it, around `{prompt}`.
    begins: how often the tokenizer's begin token stands in front.
    spelled: how many of these the published template spells. What is left is put there by
      the tokenizer itself.
    end: the token that ends an answer, and is trained; None: the tokenizer's own; "":
      none is, and the tokenizer's own only stops generation.
    stops: further tokens at which generation stops.
    specials: the special tokens that `before`, `after` and `lead` spell. In anybody
      else's text special tokens are refused.
    system: what the decoder is told before all else.
    lead: words behind `after` that generation is given, and that are trained; only where
      `joint`.
    says: the answer as it is trained, around `{answer}`, without the end token.
    stop_text: words at which generation stops, part of `says`; "": there are none. What
      follows them is no answer; a question or an answer with them is refused.
    joint: what follows the image, answer and all, is one text to the tokenizer.
    taught: words of `before` that are trained, where they first stand: once for each
      entry of the image.
  """

  before: str
  after: str
  begins: int = 0
  spelled: int = 0
  end: str | None = None
  stops: tuple[str, ...] = ()
  specials: tuple[str, ...] = ()
  system: str = ""
  lead: str = ""
  says: str = _ANSWER
  stop_text: str = ""
  joint: bool = False
  taught: str = ""

  @property
  def opening(self) -> str:
    """All words before the image."""
    return self.before.replace(_SYSTEM, self.system)

  def wrap(self, prompt: str) -> str:
    """ "[vqa] Is …?" -> "</Img> [vqa] Is …? [/INST]": what follows the image."""
    return self.after.replace(_PROMPT, prompt) + self.lead

  def answer(self, answer: str) -> str:
    """ "yes" -> " yes": the answer as it is trained."""
    return self.says.replace(_ANSWER, answer)

  def answer_of(self, said: str) -> str:
    """The answer in what a model said; the inverse of `answer`, but for space around it.

    Published code cuts at the stop words and strips what is left.
    """
    if self.says == _ANSWER:
      return said
    return (said.partition(self.stop_text)[0] if self.stop_text else said).strip()


@dataclasses.dataclass(frozen=True, slots=True)
class Style:
  """The templates of training and of evaluation: one and the same, but for legacy."""

  training: Template
  evaluation: Template

  @property
  def marks(self) -> tuple[str, ...]:
    """The special tokens that a tokenizer must have, beside its begin and end token."""
    found = [
      mark
      for template in (self.training, self.evaluation)
      for mark in (*template.specials, template.end, *template.stops)
      if mark
    ]
    return tuple(dict.fromkeys(found))


# ── The rows ──────────────────────────────────────────────────────────────────────

# MiniGPT-v2, MiniGPT-Med and Uni-Med.
LLAMA2 = Template(before="[INST] <Img>", after="</Img> {prompt} [/INST]", begins=1)
# XrayGPT (prompt_template, end_sym): caption and "###" are one text, and no end token is
# trained.
_XRAYGPT = Template(
  before="###Patient: <Img>",
  after="</Img> {prompt} ###Doctor: ",
  begins=1,
  end="",
  says="{answer}###",
  stop_text="###",
)
_CHATML = Template(
  before="<|im_start|>user\n",
  after="\n{prompt}<|im_end|>\n<|im_start|>assistant\n",
  end="<|im_end|>",
  stops=("<|endoftext|>",),
  specials=("<|im_start|>", "<|im_end|>"),
)
_CURIOUS = (
  "A chat between a curious {0} and an artificial intelligence assistant. The assistant "
  "gives helpful, detailed, and polite answers to the {0}'s questions."
)
# LLaVA-Med 1.0 (train.py, version "v0"): the loss leaves out the header and the human's
# turn but for its "###", which ends the turn before it; the assistant's turn is trained
# with its name. The image first, of the two orders that its data have; its evaluation
# (model_vqa_med.py, "simple"), with the image behind the question and other turns, is not
# among the rows: no prefix of it could be shared. The space before
# <im_start> and the line's end behind <im_end> are not there: the tokenizer of its time
# (transformers 4.28) strips the text around added tokens.
_VICUNA_V0 = Template(
  system=_CURIOUS.format("human"),
  before="{system}\n\n### Human:<im_start>",
  after="<im_end>{prompt}\n",
  lead="### Assistant:",
  says=" {answer}\n### ",
  begins=1,
  end="",
  stop_text="###",
  joint=True,
  taught="###",
  specials=("<im_start>", "<im_end>"),
)
# LLaVA-1.5, and LLaVA-Med 1.0's --version v1 (conv_vicuna_v1_1).
_VICUNA_V1 = Template(
  system=_CURIOUS.format("user"),
  before="{system} USER: ",
  after="\n{prompt} ASSISTANT:",
  says=" {answer}",
  begins=1,
  joint=True,
)
# MedM-VL (template/qwen_template.py): Vicuna's words on Qwen, which has no begin token.
_MEDMVL = dataclasses.replace(
  _VICUNA_V1, begins=0, end="<|im_end|>", stops=("<|endoftext|>",)
)
# LLaVA-Tri (conv_llama3): the template spells the begin token and the tokenizer, on whose
# doing so its labels rely, puts another before it.
_LLAMA3 = Template(
  system=_CURIOUS.format("user"),
  before="<|start_header_id|>system<|end_header_id|>\n\n{system}<|eot_id|>"
  "<|start_header_id|>user<|end_header_id|>\n\n",
  after="\n{prompt}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
  begins=2,
  spelled=1,
  end="<|eot_id|>",
  stops=("<|end_of_text|>",),
  joint=True,
  specials=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
)
# HealthGPT-M3 (conv_phi3_instruct). Whether a begin token stands in front depends on the
# revision of Phi-3's tokenizer; that one does is an assumption.
_PHI3 = Template(
  system="You are a helpful AI assistant.",
  before="<|system|>\n{system}<|end|>\n<|user|>\n",
  after="\n{prompt}<|end|>\n<|assistant|>\n",
  begins=1,
  end="<|end|>",
  stops=("<|endoftext|>",),
  joint=True,
  specials=("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
)
# HealthGPT-L14 (conv_phi4_instruct). The knight is the example of phi-4's model card: the
# published code has left it in, and so, it is assumed, were the weights trained.
_PHI4 = Template(
  system="You are a medieval knight and must provide explanations to modern people.",
  before="<|im_start|>system<|im_sep|>\n{system}<|im_end|>\n<|im_start|>user<|im_sep|>\n",
  after="\n{prompt}<|im_end|>\n<|im_start|>assistant<|im_sep|>\n",
  end="<|im_end|>",
  stops=("<|endoftext|>",),
  joint=True,
  specials=("<|im_start|>", "<|im_sep|>", "<|im_end|>"),
)
# LLaVA-Med 1.5 (conversation.py, LLAMA_2 with empty separators). Its training code was
# not released: labels are LLaVA's (preprocess_llama_2), which train the space before </s>.
_MISTRAL_INSTRUCT = Template(
  before="[INST] ",
  after="\n{prompt} [/INST]",
  says=" {answer} ",
  begins=1,
  joint=True,
)
# Gemma 3 and MedGemma: the chat template with the image first, as transformers'
# Gemma3Processor writes it out. Only the answer is trained.
_GEMMA3 = Template(
  before="<start_of_turn>user\n\n\n<start_of_image>",
  after="<end_of_image>\n\n{prompt}<end_of_turn>\n<start_of_turn>model\n",
  begins=1,
  end="<end_of_turn>",
  stops=("<eos>",),
  joint=True,
  specials=("<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>"),
)
STYLES: dict[str, Style] = {
  name: Style(template, template)
  for name, template in {
    "llama2": LLAMA2,
    "minigpt_med": LLAMA2,
    "xraygpt": _XRAYGPT,
    "vicuna_v0": _VICUNA_V0,
    "vicuna_v1": _VICUNA_V1,
    "llama3": _LLAMA3,
    "medmvl": _MEDMVL,
    "phi3": _PHI3,
    "phi4": _PHI4,
    "mistral_instruct": _MISTRAL_INSTRUCT,
    "gemma3": _GEMMA3,
    "chatml": _CHATML,
  }.items()
}
# What published code did where it departs from its own layout, for numbers that must be
# compared with its own.
_TWICE = dataclasses.replace(LLAMA2, begins=2)
LEGACY: dict[str, Style] = {
  # Uni-Med (uni_med_base.py, eval_*.py): in training the instruction's trailing space
  # comes before that of " [/INST]"; in evaluation the text says "<s>" and the tokenizer
  # puts another before it.
  "llama2": Style(
    training=dataclasses.replace(LLAMA2, after="</Img> {prompt}  [/INST]"),
    evaluation=_TWICE,
  ),
  # MiniGPT-Med (radvqa_dataset.py): the dataset has put its instruction between [INST]
  # and [/INST] already when the model does so again; evaluation does it once.
  "minigpt_med": Style(
    training=Template(
      before="[INST] [INST] <Img>", after="</Img> {prompt} [/INST] [/INST]", begins=1
    ),
    evaluation=_TWICE,
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
