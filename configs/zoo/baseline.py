"""What the paper's baselines have in common: where their pages begin.

Section 4.1.1 and appendix B of arXiv 2504.09967: the published weights of a system,
fine-tuned on DMAX and on IMAX, on all seven tasks together, for three epochs on two
A800 of 80 GB; "all other hyperparameters are retained as the original configuration".
What that configuration was is each page's own.
"""

from ml_collections import ConfigDict

from configs import imax_7b
from imax_jax.models import zoo


def start(
  title: str,
  row: str,
  style: str,
  arg: str,
  *,
  known: tuple[str, ...] = (),
  needs: tuple[str, ...] = ("adapter",),
) -> ConfigDict:
  """A page to be filled in, on the data of configs/imax_data.py.

  Args:
    title: as the paper's Table 1 has it, by which `report --runs` finds the paper's line.
    row: of imax_jax/models/zoo.py.
    style: of imax_jax/data/styles.py.
    needs: what the system's released weights have beside encoder and decoder, and which
      must be given.
    arg: of the page, one of `known`; its small form is configs/zoo/phantom.py:NAME.
  """
  if arg and arg not in known:
    raise ValueError(
      f"{title}: its page has the arguments {known or 'none'}, got {arg!r}; "
      f"configs/zoo/phantom.py:{row} is the same at toy size"
    )
  c = imax_7b.get_config()
  c.title = title
  c.verbs = ("build", "convert", "train", "evaluate", "report")
  c.model = ConfigDict(zoo.model(row))
  c.prompt.style = style
  c.published.needs = (*c.published.needs, *needs)
  c.train.runs = ("dmax", "imax")
  c.fisher.runs = ()
  return c


def llava_recipe(c: ConfigDict, *, peak_lr: float, entries_per_step: int) -> None:
  """LLaVA's own, which most of its descendants keep: Hugging Face's Trainer.

  Linear warm-up from 0 over 3 % of the steps, cosine to 0, AdamW without decay. Trainer
  rounds the warm-up up; ours rounds to the nearest step. A step in turns is the token
  mean over all of it: the pinned transformers averaged the turns' means. In a turn
  each of two cards has eight entries, an image's.
  """
  t = c.train
  t.entries_per_step = entries_per_step
  t.accumulate = max(1, entries_per_step // 16)
  t.peak_lr, t.final_lr = peak_lr, 0.0
  t.warmup_fraction, t.warmup_start_lr = 0.03, 0.0
  t.weight_decay = 0.0
  t.row_tokens = 2048


def minigpt_recipe(c: ConfigDict, *, peak_lr: float, final_lr: float) -> None:
  """The LAVIS lineage's: AdamW with decay 0.05, no clipping, a cosine since step 0.

  Its loaders draw one dataset for a whole batch, each GPU by itself: here a step is of
  one task on all of them. How often a task is drawn follows its entries, so that an epoch
  is every entry once (`train.sample_ratios` is the other way).
  """
  t = c.train
  t.peak_lr, t.final_lr = peak_lr, final_lr
  t.warmup_start_lr = 1e-6
  t.clock = "whole_run"
  t.shuffle = "task"
  t.weight_decay = 0.05


def whole_decoder(c: ConfigDict) -> None:
  """Connector and decoder are trained, the encoder is not: kernels in float32 then."""
  c.model.decoder.kernel_dtype = "float32"
  c.trainable = ((r"encoder/.*", False), (r".*", True))
