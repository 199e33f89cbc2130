"""HealthGPT-M3, a row of the paper's Table 1: CLIP ViT-L/14 at 336 px, Phi-3-mini with H-LoRA.

  python -m imax_jax.main --config configs/zoo/healthgpt_m3.py --workdir runs/healthgpt_m3 \\
    --config.data.root=physionet.org/files \\
    --config.published.encoder=clip-vit-large-patch14-336 \\
    --config.published.decoder=Phi-3-mini-4k-instruct \\
    --config.published.adapter=com_hlora_weights.bin

Weights: those for comprehension, as in the paper: H-LoRA and connector in one file, on
the published decoder. Its generation of images is not part of the seven tasks.

The eye: padded to a square with the mean colour, 576 image tokens. The prompt (`phi3`)
is the released one, system text and all. Trained: connector, and H-LoRA: four experts
that share a rank of 64 on the fused projections, weighed for each token by a softmax.
It can not be merged into the decoder, since its sum depends on the token.

Recipe: no training code was released. Rates 2e-4 and, for the connector, 2e-5, batches
of 16 on each of two GPUs, 3 % warm-up and a cosine to 0 are those of LLaVA++, on which
its code builds; that there is neither decay nor clipping is assumed.

Not known: all of the recipe; whether the paper kept rank and alpha. Not verified
without the real file: whether it holds rows of the embedding beside adapters and
connector. All of both must be there. If it holds rows for its 8,195 image codes (behind
the tokenizer's 32,011), `convert` names the flag that leaves them out (--config.published.drop_rows=8195).
Phi-3's tokenizers differ between revisions in their begin token, of which `convert`
warns, and in the space behind marks, which nothing would notice.
"""

from ml_collections import ConfigDict

from configs.zoo import baseline
from imax_jax import mesh


def get_config(arg: str = "") -> ConfigDict:
  """`arg` is ""."""
  return page(
    "HealthGPT-M3", "healthgpt_m3", "phi3", "microsoft/Phi-3-mini-4k-instruct", arg
  )


def page(title: str, row: str, style: str, decoder: str, arg: str) -> ConfigDict:
  """Both releases differ in their rows alone, and in what their decoder is called."""
  c = baseline.start(title, row, style, arg)
  c.image.geometry = "pad"
  c.trainable = (
    (r"connector/.*", True),
    (r".*/lora_(a|b|route)", True),
    (r".*", False),
  )
  baseline.llava_recipe(c, peak_lr=2e-4, entries_per_step=32)
  c.train.lr_scales = ((r"connector/.*", 0.1), (r".*", 1.0))
  c.train.clip_norm = 0.0
  # Of such a rank a pair's long sides are worth splitting, as kernels are.
  c.sharding = (
    (r"decoder/.*/(qkv|gate_up)/lora_b", ("fsdp", "tensor")),
    (r"decoder/.*/down/lora_a", ("tensor", "fsdp")),
    *mesh.FSDP,
  )
  c.publish.layout = "healthgpt"
  c.publish.encoder = "openai/clip-vit-large-patch14-336"
  c.publish.decoder = decoder
  return c
