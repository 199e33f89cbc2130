"""MedM-VL-2D, a row of the paper's Table 1: SigLIP base at 256 px, Qwen2.5-3B-Instruct.

  python -m imax_jax.main --config configs/zoo/medm_vl_2d.py --workdir runs/medm_vl_2d \\
    --config.data.root=physionet.org/files \\
    --config.published.encoder=MedM-VL-2D-3B-en --config.published.decoder=MedM-VL-2D-3B-en \\
    --config.published.adapter=MedM-VL-2D-3B-en

Weights: the second stage's, as in the paper. One folder holds the three parts; the
tokenizer is fetched by the release, so put Qwen2.5-3B-Instruct's beside it.

The eye: 256 px, aspect not kept; 256 image tokens. The prompt (`medmvl`): "USER: …
ASSISTANT: …" on Qwen's vocabulary, no chat marks. Trained: everything, the encoder too,
which therefore runs in every step.

Recipe as released (finetune_en.sh, the one of three epochs on two GPUs): 2e-5, batch
128, no decay, rows of at most 2,048 tokens; no clipping, which is inferred. Its other
one for tasks of one's own is LoRA of rank 128 on queries and values at 2e-4 for one
epoch.

Not known: which of the two the paper means by the original configuration; which SigLIP
the released weights hold: `convert` tells a connector of 1,152 inputs from one of 768
(the page's argument `:so400m` is for those).
"""

from ml_collections import ConfigDict

from configs.zoo import baseline
from imax_jax.models import zoo


def get_config(arg: str = "") -> ConfigDict:
  """`arg` is "", or "so400m" for weights with that SigLIP, at 384 px."""
  c = baseline.start("MedM-VL-2D", "medm_vl_2d", "medmvl", arg, known=("so400m",))
  if arg:
    c.model.encoder = zoo.encoder("siglip_so400m_384")
  c.model.encoder.kernel_dtype = "float32"
  c.model.decoder.kernel_dtype = "float32"
  c.trainable = ((r".*", True),)
  c.train.features = "step"
  baseline.llava_recipe(c, peak_lr=2e-5, entries_per_step=128)
  c.train.clip_norm = 0.0
  c.publish.layout = "medmvl"
  c.publish.encoder = (
    "google/siglip-so400m-patch14-384"
    if arg
    else "google/siglip-base-patch16-256-multilingual"
  )
  c.publish.decoder = "Qwen/Qwen2.5-3B-Instruct"
  return c
