"""HealthGPT-L14, a row of the paper's Table 1: CLIP ViT-L/14 at 336 px, phi-4 with H-LoRA.

  python -m imax_jax.main --config configs/zoo/healthgpt_l14.py --workdir runs/healthgpt_l14 \\
    --config.data.root=physionet.org/files \\
    --config.published.encoder=clip-vit-large-patch14-336 \\
    --config.published.decoder=phi-4 --config.published.adapter=com_hlora_weights_phi4.bin

All else that is known of it, and what is not, stands in configs/zoo/healthgpt_m3.py:
only the decoder, its prompt (`phi4`, released system text and all) and the rank that
the four experts share, 32, are others.
"""

from ml_collections import ConfigDict

from configs.zoo import healthgpt_m3


def get_config(arg: str = "") -> ConfigDict:
  """`arg` is ""."""
  return healthgpt_m3.page(
    "HealthGPT-L14", "healthgpt_l14", "phi4", "microsoft/phi-4", arg
  )
