"""MedGemma 4B, a row for today beside the paper's: SigLIP at 896 px, Gemma 3 4B.

  python -m imax_jax.main --config configs/zoo/medgemma_4b.py --workdir runs/medgemma_4b \\
    --config.data.root=physionet.org/files \\
    --config.published.encoder=medgemma-4b-it --config.published.decoder=medgemma-4b-it \\
    --config.published.adapter=medgemma-4b-it

What a laboratory may choose now (google/medgemma-4b-it, Health AI Developer
Foundations' terms): Gemma 3's structure with a SigLIP that has seen radiographs. One
folder holds the three parts.

The eye: 896 px, aspect not kept; 4 x 4 neighbours of 4,096 are averaged to one of 256
image tokens, which see each other both ways. The prompt (`gemma3`) is Gemma's own.
Trained: LoRA of rank 16 on the decoder's linears, embedding and connector.

Recipe: that of Google's fine-tuning notebook where ours has the same choice: 2e-4, 16
entries a step, 3 % warm-up, gradients clipped at 0.3, no decay. Its rate falls
linearly, ours by a cosine; it puts pairs on the encoder's linears too, where ours
trains the connector whole; it keeps the base in four bits
(--config.model.decoder.kernel_dtype=nf4).

Not verified without the real files: that they name their tensors and sizes as Gemma 3's
classes of transformers do. `convert` compares names, shapes and config.json.
"""

from ml_collections import ConfigDict

from configs.zoo import baseline


def get_config(arg: str = "") -> ConfigDict:
  """`arg` is ""."""
  c = baseline.start("MedGemma 4B", "medgemma_4b", "gemma3", arg)
  c.trainable = (
    (r"connector/.*", True),
    (r".*/lora_[ab]", True),
    (r"decoder/embed/.*", True),
    (r".*", False),
  )
  baseline.llava_recipe(c, peak_lr=2e-4, entries_per_step=16)
  c.train.clip_norm = 0.3
  c.publish.layout = "gemma3"
  return c
