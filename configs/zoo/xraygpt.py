"""XrayGPT*, a row of the paper's Table 1: EVA-CLIP ViT-G/14, Q-Former, Vicuna-7B.

  python -m imax_jax.main --config configs/zoo/xraygpt.py --workdir runs/xraygpt \\
    --config.data.root=physionet.org/files \\
    --config.published.encoder=eva_vit_g.pth \\
    --config.published.qformer=blip2_pretrained_flant5xxl.pth \\
    --config.published.decoder=Vicuna_Radiology_fp16 \\
    --config.published.adapter=xraygpt_stage2.pth

Weights: the radiology Vicuna and the second stage's linear layer, as released; EVA's
encoder, Q-Former, its 32 queries and the norm between them from BLIP-2's files. The
README names MedCLIP as the encoder; the released code holds none, and builds what is
here.

The eye: 224 px, aspect not kept; 32 image tokens. (In training the released code crops
at random, which would make its boxes wrong: not done.) The prompt (`xraygpt`):
"###Patient: <Img>…</Img> … ###Doctor: ", no end token, "###" stops.

Trained: the linear layer, and the decoder, which XrayGPT itself freezes: the asterisk,
in the paper's words "we additionally unfreeze the LLM parameters". Whether whole or by
LoRA it does not say; here it is whole. Its embedding is not decayed, as it would be in
the release's groups if that trained it.

Recipe as released, second stage: 3e-5 to 1e-5, warm-up 200 of 2,501 steps from 1e-6,
decay 0.05, one entry on each of two GPUs a step. The release cuts texts at 160 tokens,
which hold captions alone: not done, a report here is longer.

Not known: the paper's batch. Not verified without the real files: Vicuna's release
(rows of its embedding, eps), the names in the checkpoint. `convert` compares them all;
a Vicuna with 32,001 rows needs --config.model.decoder.vocab_size=32001.
"""

from ml_collections import ConfigDict

from configs.zoo import baseline


def get_config(arg: str = "") -> ConfigDict:
  """`arg` is ""."""
  c = baseline.start(
    "XrayGPT*", "xraygpt", "xraygpt", arg, needs=("adapter", "qformer")
  )
  baseline.whole_decoder(c)
  c.trainable = ((r"connector/qformer/.*", False), *c.trainable)
  baseline.minigpt_recipe(c, peak_lr=3e-5, final_lr=1e-5)
  c.train.entries_per_step = 2
  c.train.warmup_fraction = 0.08
  c.publish.layout = "minigpt"
  return c
