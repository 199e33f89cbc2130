"""A published system's structure at toy size: IMAX and DMAX on the phantom hospital.

  python -m imax_jax.main --config configs/zoo/phantom.py:llava_med \\
    --workdir runs/zoo/llava_med --config.data.root=runs/zoo/hospital
  … the other names …
  python -m imax_jax.main --config configs/zoo/phantom.py:llava_med --workdir runs/zoo/all \\
    report --runs runs/zoo/llava_med,runs/zoo/xraygpt,…

NAME is a page of this folder. What makes the system is kept: its connector, its fused
or apart projections, its kind of LoRA or none, what is trained, its prompt and its
marks, its eye's geometry, the shape of its recipe. Sizes and weights are the phantom's:
every row starts from the foundation that ships, what that has no weights for starts
fresh and is trained (a Q-Former, experts, marks). A decoder with other norms and scales
than LLaMA's (MedGemma's) starts from nothing, all of it. The report over all of them is
the paper's Table 1 and Figure 3 in form; its numbers say nothing of the systems.

A toy goes out by `publish` too, but for those of a SigLIP's layout (medm_vl_2d,
medgemma_4b): the phantom's encoder has a class token.

`NAME-tiny` is the same at the size of a test.
"""

import importlib
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from configs import phantom
from imax_jax.data import styles
from imax_jax.models import zoo

# Pages, and what else lies here.
NAMES = tuple(
  sorted(
    path.stem
    for path in Path(__file__).parent.glob("*.py")
    if path.stem not in ("phantom", "baseline")
  )
)
# Of the recipe: what is no size and no rate. Not `lr_scales`: a tenth of the rate is for
# a connector that was trained, and the toy's starts fresh.
_KEPT = (
  "shuffle", "weighting", "features", "clock", "may_rise", "weight_decay", "clip_norm",
  "warmup_fraction",
)  # fmt: skip
# The highest rate of LoRA and a connector, and of a whole decoder: the best of 3e-4,
# 1e-3, 3e-3, 7e-3.
_PEAK, _PEAK_WHOLE = 7e-3, 1e-3


def get_config(arg: str = "llava_med") -> ConfigDict:
  """`arg` is a page's name, or that with "-tiny" behind it."""
  name, _, size = arg.partition("-")
  if name not in NAMES or size not in ("", "tiny"):
    raise ValueError(
      f"configs/zoo/phantom.py:{arg}: expected one of {', '.join(NAMES)}, with -tiny "
      "behind it for a test"
    )
  page = importlib.import_module(f"configs.zoo.{name}").get_config()
  c = phantom.get_config()
  c.title = page.title
  c.seeds = (0,)
  c.verbs = ("build", "convert", "train", "evaluate", "report")
  c.prompt, c.image = page.prompt, page.image
  # What it is made of has no other name.
  c.publish = {
    "layout": page.publish.layout, "encoder": "phantom", "decoder": "phantom", "base": ""
  }  # fmt: skip
  marks = styles.style_of(c.prompt.style, legacy=c.prompt.legacy).marks
  c.added_tokens = tuple(dict.fromkeys((*page.added_tokens, *marks)))
  c.foundation = "converted"
  c.published = page.published
  c.published.needs = ("encoder", "decoder")
  c.published.encoder = c.published.decoder = "package"
  c.model = small(page.model, len(c.added_tokens))
  # Marks are in no file: LoRA alone would never learn to end an answer by one.
  marked = ((r"decoder/(embed|head)/.*", True),) if c.added_tokens else ()
  c.trainable = (
    (r"connector/.*", True),
    *marked,
    *(rule for rule in page.trainable if "connector" not in rule[0]),
  )
  t = c.train
  t.update({key: page.train[key] for key in _KEPT})
  t.runs = page.train.runs
  t.epochs = 1.0
  t.row_tokens = 640  # a toy tokenizer spells a system's words letter by letter
  highest = _PEAK if page.model.decoder.lora_rank else _PEAK_WHOLE
  scale = highest / max(page.train.peak_lr, page.train.final_lr)
  for rate in ("peak_lr", "final_lr", "warmup_start_lr"):
    t[rate] = page.train[rate] * scale
  c.fisher.runs = ()
  if c.model.decoder.norm_offset:  # the foundation's layers are of another kind
    c.foundation = ""
    c.verbs = ("build", "train", "evaluate", "report")
    c.trainable = ((r".*", True),)
    t.features = "step"
  if size:
    marks_in_vocabulary = (
      c.model.decoder.vocab_size - zoo.DECODERS["phantom"]["vocab_size"]
    )
    phantom.tiny(c)
    _see(c.model.encoder, len(c.model.encoder.scales))
    c.model.decoder.vocab_size += marks_in_vocabulary
    c.verbs = ("build", "train", "evaluate", "report")
  return c


def small(model: ConfigDict, num_marks: int) -> ConfigDict:
  """A model's structure with the phantom's sizes, which fit the foundation that ships.

  Args:
    num_marks: tokens that are added to the foundation's.
  """
  toy = zoo.model("toy")
  encoder = toy["encoder"] | {"keep_class": model.encoder.keep_class}
  _see(encoder, len(model.encoder.scales))
  connector = model.connector.to_dict() | {"dtype": "float32"}
  if connector["qformer"]:
    connector["qformer"] |= {
      "queries": 16, "width": 96, "depth": 4, "num_heads": 4, "mlp_width": 192
    }  # fmt: skip
  # The foundation's head is its own, and its keys are not shared by heads.
  sizes = zoo.DECODERS["phantom"] | {
    "dtype": "float32", "kernel_dtype": "float32", "remat": "", "tied": False,
    "vocab_size": zoo.DECODERS["phantom"]["vocab_size"] + num_marks,
  }  # fmt: skip
  decoder = model.decoder.to_dict() | sizes
  rank = min(decoder["lora_rank"], toy["decoder"]["lora_rank"])
  if rank:  # the same sum for each rank's share
    decoder["lora_alpha"] *= rank / decoder["lora_rank"]
    decoder["lora_rank"] = rank
    decoder["fold"] = not decoder["lora_experts"]
  return ConfigDict({"encoder": encoder, "connector": connector, "decoder": decoder})


def _see(encoder: Any, scales: int) -> None:
  """So many scales, of which the encoder's own side is the first."""
  side = encoder["image_px"]
  encoder["scales"] = tuple(side * (number + 1) for number in range(scales))
  encoder["image_px"] = side * max(scales, 1)
