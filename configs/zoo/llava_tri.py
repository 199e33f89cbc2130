"""LLaVA-Tri, a row of the paper's Table 1: CLIP ViT-L/14 at three scales, LLaMA-3-8B.

  python -m imax_jax.main --config configs/zoo/llava_tri.py --workdir runs/llava_tri \\
    --config.data.root=physionet.org/files \\
    --config.published.encoder=clip-vit-large-patch14-336 \\
    --config.published.decoder=LLaVA-Tri-SLAKE --config.published.adapter=LLaVA-Tri-SLAKE

Weights: those fine-tuned on SLAKE, as in the paper: what was trained on MedTrinity-25M
alone was not released. One folder holds decoder and connector.

The eye: padded to a square with the mean colour, seen whole at 336 px, in 4 tiles at
672 and 9 at 1,008 (S2), 576 image tokens of 3,072 channels. The prompt (`llama3`) with
two begin tokens. Trained: connector and the whole decoder.

Recipe as released: 2e-5, batch 256, no decay, rows of at most 4,096 tokens; no
clipping, which is inferred (its DeepSpeed file names none). The names of its released
logs hint at other epochs than its scripts.

Not known: whether the released weights are of three scales: its start model is, and
`convert` refuses a connector of 1,024 inputs (the page's argument `:one_scale` is for
those); whether the tokenizer puts a begin token in front by itself, which its labels
rely on: here there are two in any case, and `convert` warns of one that puts none;
128,256 or 128,257 rows of the embedding, which the released loader makes of them:
--config.model.decoder.vocab_size, both numbers are told.
"""

from ml_collections import ConfigDict

from configs.zoo import baseline
from imax_jax.models import zoo


def get_config(arg: str = "") -> ConfigDict:
  """`arg` is "", or "one_scale" for weights that look at 336 px alone."""
  c = baseline.start("LLaVA-Tri", "llava_tri", "llama3", arg, known=("one_scale",))
  if arg:
    c.model.encoder = zoo.encoder("clip_vit_l14_336")
  c.image.geometry = "pad"
  baseline.whole_decoder(c)
  baseline.llava_recipe(c, peak_lr=2e-5, entries_per_step=256)
  c.train.clip_norm = 0.0
  c.train.row_tokens = 4096
  c.publish.layout = "llava"
  c.publish.encoder = "openai/clip-vit-large-patch14-336"
  return c
