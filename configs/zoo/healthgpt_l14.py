"""HealthGPT-L14, a row of the paper's Table 1: CLIP ViT-L/14 at 336 px, phi-4 with H-LoRA.

  python -m imax_jax.main --config configs/zoo/healthgpt_l14.py --workdir runs/healthgpt_l14 \\
    --config.data.root=physionet.org/files \\
    --config.published.encoder=clip-vit-large-patch14-336 \\
    --config.published.decoder=phi-4 --config.published.adapter=com_hlora_weights_phi4.bin

Weights: those for comprehension, as in the paper: H-LoRA and connector in one file, on
the published decoder. Its generation of images is not part of the seven tasks.

The eye: padded to a square with the mean colour, 576 image tokens. The prompt (`phi4`) is
the released one, system text and all. Trained: connector, and H-LoRA: four experts that
share a rank of 32 on the fused projections, weighed for each token by a softmax. It can not
be merged into the decoder, since its sum depends on the token.

Recipe: no training code was released. Rates 2e-4 and, for the connector, 2e-5, batches of
16 on each of two GPUs, 3 % warm-up and a cosine to 0 are those of LLaVA++, on which its
code builds; that there is neither decay nor clipping is assumed.

Not known: all of the recipe; whether the paper kept rank and alpha. Not verified without
the real file: whether it holds rows of the embedding beside adapters and connector. All of
both must be there. If it holds rows for its 8,195 image codes, `convert` names the flag
that leaves them out (--config.published.drop_rows=8195).
"""

from ml_collections import ConfigDict

from configs.zoo import healthgpt_m3


def get_config(arg: str = "") -> ConfigDict:
  """`arg` is ""."""
  return healthgpt_m3.page(
    "HealthGPT-L14", "healthgpt_l14", "phi4", "microsoft/phi-4", arg
  )
