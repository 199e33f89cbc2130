"""The formats in which published systems are handed on, as rows.

    minigpt    checkpoint_0.pth: connector and LoRA; llm/ beside it, if that was trained
    llava      a folder: decoder and connector in shards, config.json, tokenizer
    peft       adapter_model.safetensors, and non_lora_trainables.bin for the rest
    healthgpt  com_hlora_weights.bin: H-LoRA and connector
    …

An edition says which parts stand in which file, by which of the tables that `convert`
reads (`rows_of_layouts`), and how its publisher spells their names; `publish` writes it.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field
from typing import Any
from typing import NamedTuple

import numpy as np

from imax_jax.weights import peft
from imax_jax.weights import settings

Spelling = tuple[tuple[str, str], ...]


class Section(NamedTuple):
  """Parts of the model in a file.

  `layouts`: the first that has names for all of it is taken. `spelling`: (pattern,
  replacement) that take a table's name to the file's; the table reads both.
  """

  parts: tuple[str, ...]
  layouts: tuple[str, ...]
  spelling: Spelling = ()


@dataclass(frozen=True)
class File:
  """A file, or for a name that ends in "/" a folder of shards ("/": the edition's own).

  Args:
    sections: what stands in it.
    whole: all of its parts' leaves, LoRA added into the decoder where no file of the
      edition holds it; otherwise connector, LoRA and what else was trained.
    always: it is written even if nothing in it was trained.
    wrapper: of a torch file: the key of its tensors.
    beside: of a torch file: what stands next to that.
    twins: (pattern, replacement): tensors that stand there under two names.
  """

  name: str
  sections: tuple[Section, ...]
  whole: bool = False
  always: bool = True
  wrapper: str = ""
  beside: Mapping[str, Any] = field(default_factory=dict)
  twins: tuple[str, str] | None = None

  @property
  def is_folder(self) -> bool:
    return self.name.endswith("/")


@dataclass(frozen=True)
class Edition:
  """A row.

  Args:
    dtype: what whole parts are kept as; trained ones are float32.
    differs: its decoder may be written as differences from a base.
    prefix: what its folder's name begins with, by which a loader knows it.
    named: parts that its settings name as their publishers do.
  """

  name: str
  files: tuple[File, ...]
  settings: Callable[[settings.Facts], settings.Settings]
  dtype: str = "bfloat16"
  about: str = ""
  differs: bool = False
  prefix: str = ""
  named: tuple[str, ...] = ()

  @property
  def merges(self) -> bool:
    """Whether LoRA is added into the decoder, for want of a place of its own."""
    sections = (section for file in self.files for section in file.sections)
    return not any("adapter" in section.parts for section in sections)

  def kept(self, file: File, dtype: str) -> np.dtype:
    return np.dtype((dtype or self.dtype) if file.whole else np.float32)


def edition(name: str) -> Edition:
  """The row of that name.

  Raises:
    ValueError: there is none.
  """
  found = {row.name: row for row in EDITIONS}
  if name not in found:
    raise ValueError(
      f"publish: no layout {name!r}; there are {', '.join(sorted(found))}"
    )
  return found[name]


# ── The rows ──────────────────────────────────────────────────────────────────────

_DECODERS = ("hf_llama", "hf_phi3")
_LAVIS: dict[str, Any] = {
  "wrapper": "model", "beside": {"config": {}, "epoch": 0}
}  # fmt: skip
_LLM_BESIDE = File(
  "llm/", (Section(("decoder",), _DECODERS),), whole=True, always=False
)
_TRAINED = ("connector", "adapter", "encoder")
_LLAVA = (
  File(
    "/",
    (Section(("decoder",), _DECODERS), Section(("connector",), ("llava",))),
    whole=True,
  ),
)

EDITIONS = (
  Edition(
    name="minigpt",
    files=(
      # PEFT 0.2's names, which MiniGPT-v2 and MiniGPT-Med pin; XrayGPT has no LoRA.
      File(
        "checkpoint_0.pth",
        (
          Section(
            _TRAINED, ("minigpt",), ((r"^base_model\.", "llama_model.base_model."),)
          ),
          Section(("qformer",), ("lavis_qformer",)),
        ),
        **_LAVIS,
      ),
      _LLM_BESIDE,
    ),
    settings=settings.minigpt,
    dtype="float16",
    about="Name checkpoint_0.pth as `ckpt`; if there is a folder llm/, as `llama_model`.",
  ),
  Edition(
    name="unimed",
    files=(
      File(
        "checkpoint_0.pth",
        (
          Section(
            _TRAINED,
            ("unimed_cmoe", "minigpt"),
            (  # It pins PEFT 0.7 and says llm.
              (r"^base_model\.", "llm_model.base_model."),
              (r"^llama_proj\.", "llm_proj."),
              (r"\.lora_([AB])\.weight$", r".lora_\1.default.weight"),
            ),
          ),
        ),
        **_LAVIS,
        # torch keeps a list of modules under each of its two names.
        twins=(r"^moe_layers\.", "llm_proj."),
      ),
      _LLM_BESIDE,
    ),
    settings=settings.minigpt,
    dtype="float16",
    about="Name checkpoint_0.pth as `ckpt`; if there is a folder llm/, as its LLM.",
  ),
  Edition(
    name="llava",
    files=_LLAVA,
    settings=settings.llava,
    dtype="float16",
    about=(
      "Its loader takes the kind of model from the path: keep llava in the folder's name, "
      "and put mistral there for a model of one."
    ),
    prefix="llava-",
    named=("encoder",),
  ),
  Edition(
    name="llava_v0",
    files=_LLAVA,
    settings=settings.first_llava,
    dtype="float16",
    about="Its loader takes the kind of model from config.json and the path: keep llava.",
    differs=True,
    prefix="llava-",
    named=("encoder",),
  ),
  Edition(
    name="peft",
    files=(
      File(peft.WEIGHTS, (Section(("adapter",), ("peft",)),)),
      File("non_lora_trainables.bin", (Section(("connector",), ("peft",)),)),
    ),
    settings=settings.with_adapter,
    about=(
      "Load it on its base: LLaVA's builder takes a folder with llava and lora in its "
      "name, and the base by its own."
    ),
    prefix="llava-lora-",
    named=("encoder", "decoder"),
  ),
  Edition(
    name="healthgpt",
    files=(
      File(
        "com_hlora_weights.bin",
        (Section(("adapter", "connector", "decoder"), ("healthgpt",)),),
      ),
    ),
    settings=settings.healthgpt,
    about=f"{settings.NOT_MERGED} What its demos are to be told is in healthgpt.json.",
    named=("encoder", "decoder"),
  ),
  Edition(
    name="medmvl",
    files=(
      File(
        "/",
        (
          Section(("decoder",), ("hf_llama",), ((r"^", "llm."),)),
          Section(
            ("encoder",),
            ("siglip_vision",),
            ((r"^", "encoder_image.encoder.vision_model."),),
          ),
          Section(("connector",), ("medmvl",)),
        ),
        whole=True,
      ),
    ),
    settings=settings.medmvl,
    named=("encoder", "decoder"),
    about="Its loader fetches the parts' settings and the tokenizer by their names.",
  ),
  Edition(
    name="gemma3",
    files=(
      File(
        "/",
        (
          Section(
            ("decoder",),
            ("hf_gemma3",),
            ((r"^(model|lm_head)\.", r"language_model.\1."),),
          ),
          Section(
            ("encoder",), ("siglip_vision",), ((r"^", "vision_tower.vision_model."),)
          ),
          Section(("connector",), ("gemma3",)),
        ),
        whole=True,
      ),
    ),
    settings=settings.gemma3,
    about="transformers loads the folder: Gemma3ForConditionalGeneration.",
  ),
)
