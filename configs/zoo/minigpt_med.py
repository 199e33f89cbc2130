"""MiniGPT-Med, a row of the paper's Table 1: EVA-CLIP ViT-G/14 at 448 px, LLaMA-2-Chat 7B.

  python -m imax_jax.main --config configs/zoo/minigpt_med.py --workdir runs/minigpt_med \\
    --config.data.root=physionet.org/files \\
    --config.published.encoder=eva_vit_g.pth \\
    --config.published.decoder=Llama-2-7b-chat-hf \\
    --config.published.adapter=minigptv2_checkpoint.pth

Weights: as the paper has it, the final ones of MiniGPT-v2 (a checkpoint of the linear
layer and LoRA alone); MiniGPT-Med's own load by the same flag. The norm behind the
encoder was never trained: it stays at 1 and 0 unless the file holds it.

The eye: 448 px, aspect not kept; four neighbours make one of 256 image tokens. (The
released code crops at random in training and leaves the boxes as they are: not done.)
The prompt: MiniGPT-v2's, "[INST] <Img>…</Img> … [/INST]". In most of MiniGPT-Med's
training texts these marks stand twice: --config.prompt.legacy=True.

Trained: the linear layer, and LoRA of rank 64 on queries and values.

Recipe as released: warm-up from 1e-6 over 1 % of the steps, batches of 6, decay 0.05,
and a rate that rises from 1e-5 to 8e-5: MiniGPT-v2's configuration had the mistake
once, and MiniGPT-Med's still has it. Whether the paper kept it is not known:
--config.train.final_lr=1e-6 --config.train.may_rise=False is MiniGPT-v2's later one.
The release draws its datasets equally often; here a task is drawn as often as it has
entries, so that three epochs are three times every entry.

Not known: which of MiniGPT-v2's three files is "final"; the paper's batch (here 6 on
each of two GPUs). Not verified without the real files: their names of LoRA, which
differ between versions of PEFT: both are read, and all 128 tensors must be there. That
the decoder is the chat model and not LLaMA-2's base nothing would notice: their sizes
are the same.
"""

from ml_collections import ConfigDict

from configs.zoo import baseline


def get_config(arg: str = "") -> ConfigDict:
  """`arg` is ""."""
  c = baseline.start("MiniGPT-Med", "minigpt_med", "minigpt_med", arg)
  baseline.minigpt_recipe(c, peak_lr=1e-5, final_lr=8e-5)
  c.train.may_rise = True
  c.train.entries_per_step = 12
  c.train.warmup_fraction = 0.01
  c.publish.layout = "minigpt"
  return c
