"""Uni-Med, a row of the paper's Table 1: EVA-CLIP ViT-G/14, five experts, LLaMA-2-Chat 7B.

  python -m imax_jax.main --config configs/zoo/uni_med.py --workdir runs/uni_med \\
    --config.data.root=physionet.org/files \\
    --config.published.encoder=eva_vit_g.pth --config.published.decoder=Llama-2-7b-chat-hf

Weights: none were released; as in the paper, connector and LoRA start fresh.

The eye: 224 px, aspect not kept; four neighbours make one of 64 image tokens. The
connector is a mixture of five MLPs (CMoE): a router reads the task's learned token
beside each image token, its sigmoids sum to 1, every expert is computed, nothing
balances them. An image's tokens so depend on the task, and are shared by its entries of
one task only. The prompt: "[INST] <Img>…</Img> … [/INST]". Trained: connector, and LoRA
of rank 8 on all linears: 727,068,165 numbers with the five task tokens of its code.

Recipe as released: 1e-5 to 1e-7, warm-up from 1e-6 over a tenth of the steps, decay
0.05, batches of one task, four entries on each of two GPUs here.

Not known: whether the paper kept the release's cut of reports at 50 words
(--config.data.max_report_words=50), and the names of its task tokens: here the seven
tasks' own.
"""

from ml_collections import ConfigDict

from configs.zoo import baseline


def get_config(arg: str = "") -> ConfigDict:
  """`arg` is ""."""
  c = baseline.start("Uni-Med", "uni_med", "llama2", arg, needs=())
  baseline.minigpt_recipe(c, peak_lr=1e-5, final_lr=1e-7)
  c.train.entries_per_step = 8
  c.train.warmup_fraction = 0.1
  c.publish.layout = "unimed"
  return c
