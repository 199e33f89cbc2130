"""LLaVA-1.5-7B, which is not in the paper: CLIP ViT-L/14 at 336 px, Vicuna-7B v1.5.

  python -m imax_jax.main --config configs/zoo/llava_15_7b.py --workdir runs/llava_15_7b \\
    --config.data.root=physionet.org/files \\
    --config.published.encoder=clip-vit-large-patch14-336 \\
    --config.published.decoder=llava-v1.5-7b --config.published.adapter=llava-v1.5-7b

What most of the paper's systems descend from, without their medical training: how much
of a gain is the base's own.

Weights: one folder holds decoder and connector, in LLaVA's names or in transformers'
(llava-1.5-7b-hf, which holds the tower, too, and, from memory, 32,064 rows:
--config.model.decoder.vocab_size=32064).

The eye: padded to a square with the mean colour, 576 image tokens. The prompt
(`vicuna_v1`): "USER: … ASSISTANT: …</s>". Trained: connector and the whole decoder.

Recipe as released (finetune.sh): 2e-5, batch 128, no decay, rows of at most 2,048
tokens; no clipping, which is inferred as for its descendants; its one epoch is three
here, as for the paper's systems.

Not verified without the real files: that Vicuna v1.5, tuned from LLaMA-2, has its eps
of 1e-5. `convert` compares config.json and says both.
"""

from ml_collections import ConfigDict

from configs.zoo import baseline


def get_config(arg: str = "") -> ConfigDict:
  """`arg` is ""."""
  c = baseline.start("LLaVA-1.5-7B", "llava_15_7b", "vicuna_v1", arg)
  c.image.geometry = "pad"
  baseline.whole_decoder(c)
  baseline.llava_recipe(c, peak_lr=2e-5, entries_per_step=128)
  c.train.clip_norm = 0.0
  c.publish.layout = "llava"
  c.publish.encoder = "openai/clip-vit-large-patch14-336"
  return c
