"""The paper's model at the paper's protocol: EVA-CLIP ViT-G/14, MLP, LLaMA-2-Chat 7B.

Section 4.2.2 of arXiv 2504.09967: frozen encoder at 224 px, LoRA of rank 8, three epochs,
linear warm-up over the first tenth to 1e-6, cosine to 1e-7, two A800 of 80 GB.

  python -m imax_jax.main --config configs/imax_7b.py:imax --workdir runs/imax_7b \\
    --config.data.root=physionet.org/files \\
    --config.published.encoder=eva_vit_g.pth --config.published.decoder=Llama-2-7b-chat-hf

`:imax`, `:dmax` and `:three_stage` train one row of Table 2 each, no argument all; in one
work directory they share what is built. Needed: the six sources of configs/imax_data.py,
both published weights, 16 GB of disk for them converted and 34 GB for IMAX's features
(98 GB for DMAX's). On two cards of 80 GB about nine hours a run of three epochs if they
reach 40 % of their peak: computed (104,760 steps of a row on each card, by
compile_report's count), since nobody of this project has run it. Eight entries fill a
third of two rows; with --config.train.entries_per_step=16 it is half the steps, and no
longer the assumption below. Expect the paper's Table 2; its shape at toy size is
configs/phantom.py's.

Stated assumptions, where the paper is silent: four neighbouring patches make one of 64
image tokens, as in Uni-Med (--config.model.connector.merge=1: 256); alpha 16, dropout
0.05, weight decay 0.05 and no clipping, Uni-Med's; eight entries a step, its four on each
of two cards; warm-up from 0; whole reports (Uni-Med cuts them:
--config.data.max_report_words=50).

`:tiny` is the same page at the size of a test: its numbers mean nothing.
"""

from ml_collections import ConfigDict

from configs import imax_data
from configs import phantom
from imax_jax.models import zoo

# argument -> the runs that it trains, and its verbs between training and report.
_RUNS = {
  "": (("dmax", "imax", "dmax_long"), ("pseudo", "evaluate", "fisher")),
  "imax": (("imax",), ("evaluate", "fisher")),
  "dmax": (("dmax",), ("evaluate", "fisher")),
  "three_stage": (("dmax", "dmax_long"), ("pseudo", "evaluate")),
}


def get_config(arg: str = "") -> ConfigDict:
  """`arg` is "", "imax", "dmax", "three_stage" or "tiny"."""
  if arg not in (*_RUNS, "tiny"):
    raise ValueError(
      f"configs/imax_7b.py:{arg}: expected one of {', '.join(_RUNS)[2:]}, tiny"
    )
  tiny = arg == "tiny"
  c = imax_data.get_config("tiny" if tiny else "")
  c.title = "IMAX, 7B"
  runs, verbs = _RUNS["" if tiny else arg]
  c.verbs = ("build", "convert", "train", *verbs, "report")
  c.seeds = (0,)
  c.mesh = {"data": 1, "fsdp": -1, "tensor": 1}
  data = c.data
  c.model = ConfigDict(zoo.model("imax_7b"))
  c.published = {
    "encoder": "", "decoder": "", "adapter": "", "base": "", "qformer": "",
    "needs": ("encoder", "decoder"), "drop_rows": 0,
  }  # fmt: skip
  c.foundation = "converted"
  t = c.train
  t.runs = runs
  t.epochs = 3.0
  t.entries_per_step = 8
  t.row_tokens = 1024
  t.weighting = "token"
  t.peak_lr, t.final_lr = 1e-6, 1e-7
  t.beta2 = 0.999
  t.clip_norm = 0.0
  t.save_steps = 1000
  c.pseudo.num_images = 38_080  # as many as IMAX has to train on
  c.pseudo.pretrain_epochs = c.pseudo.finetune_epochs = 3.0
  c.evaluate.update({"max_new_tokens": 512, "rows": 16})
  c.fisher.num_groups, c.fisher.rows_at_once = 50, 0
  c.fisher.runs = tuple(run for run in ("dmax", "imax") if run in runs)
  if tiny:
    phantom.tiny(c)
    c.data = data
    c.verbs = ("build", "train", *verbs, "report")
  return c
