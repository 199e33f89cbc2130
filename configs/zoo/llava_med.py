"""LLaVA-Med 1.0, a row of the paper's Table 1: CLIP ViT-L/14, a linear layer, LLaMA-7B.

  python -m imax_jax.main --config configs/zoo/llava_med.py --workdir runs/llava_med \\
    --config.data.root=physionet.org/files \\
    --config.published.encoder=clip-vit-large-patch14 \\
    --config.published.decoder=llava_med_in_text_60k_ckpt2_delta \\
    --config.published.adapter=llava_med_in_text_60k_ckpt2_delta \\
    --config.published.base=llama-7b

Weights: the second stage (60K instructions), released as a delta of 11 GB against the
original LLaMA-7B in Hugging Face's layout; the connector is inside it, whole. Its first
links are reported dead; microsoft/llava-med-7b-delta is named instead by its users. No
tower is in it: CLIP's is OpenAI's. Microsoft Research licence, and LLaMA's.

The eye: short side to 224 px, then the middle, so that boxes near the ends of a film
lie outside of what is seen: they are counted. 256 image tokens between two learned
tokens. The prompt (`vicuna_v0`): "### Human: … ### Assistant: …", whose marks are
trained too, no end token, "###" stops. Trained: connector and the whole decoder.

Recipe as released: 2e-5, batch 64 (8 GPUs x 1 x 8; its table says 128), no decay, rows
of at most 2,048 tokens, gradients clipped at 1 (Trainer's default under FSDP:
inferred).

Not known: the paper's batch on two GPUs; whether its boxes were moved with the crop.
Not verified without the real files: the tokenizer's ids (`<im_start>` 32002, `<im_end>`
32003, begin token `</s>`, seen in a descendant's log), the 32,004 rows. `convert`
compares every tensor's name and shape and the tokenizer's added tokens, and names what
differs; that LLaMA-7B's eps is 1e-6 is from memory and compared with the base's
config.json. Differences without --config.published.base are refused; a folder that
apply_delta has merged needs none.
"""

from ml_collections import ConfigDict

from configs.zoo import baseline


def get_config(arg: str = "") -> ConfigDict:
  """`arg` is ""."""
  c = baseline.start("LLaVA-Med", "llava_med", "vicuna_v0", arg)
  c.added_tokens = ("[PAD]", "<im_patch>", "<im_start>", "<im_end>")
  c.image.geometry = "crop"
  baseline.whole_decoder(c)
  baseline.llava_recipe(c, peak_lr=2e-5, entries_per_step=64)
  c.train.clip_norm = 1.0
  c.publish.layout = "llava_v0"
  c.publish.encoder = "openai/clip-vit-large-patch14"
  return c
