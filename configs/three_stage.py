"""The three-stage strategy by itself: DMAX alone, made better by its own pseudo labels.

Section 4.2.2 and Figure 4 of arXiv 2504.09967, the last row of Table 2, with the paper's
model (configs/imax_7b.py) and all of DMAX's training images: 136,218, each asked for the
tasks it lacks, which is about a million requests.

  python -m imax_jax.main --config configs/three_stage.py --workdir runs/three_stage \\
    --config.data.root=physionet.org/files \\
    --config.published.encoder=eva_vit_g.pth --config.published.decoder=Llama-2-7b-chat-hf

Needed: what configs/imax_7b.py needs, 98 GB for the features and a gigabyte for the
labels. It begins by saying what is done and what there is to do; killed anywhere, the same
command goes on. Then WORKDIR/report/audit.html says what the labels are worth. Nobody of
this project has run it at this size. Expect the paper's third row against its first:
+16.25 %. Is it more than longer training? `dmax_long` trains on DMAX alone for as many
steps. Filters are off, as the paper seems to have it; each of these adds a row:
--config.pseudo.ablations="('confidence','agreement','balance')".

`:phantom` is the same on the phantom hospital, all of whose DMAX images are labelled.
`:tiny` is for tests: its numbers mean nothing.
"""

from ml_collections import ConfigDict

from configs import imax_7b
from configs import phantom


def get_config(arg: str = "") -> ConfigDict:
  """`arg` is "", "phantom" or "tiny"."""
  if arg not in ("", "phantom", "tiny"):
    raise ValueError(f"configs/three_stage.py:{arg}: expected phantom, tiny or nothing")
  if arg:
    c = phantom.get_config("tiny" if arg == "tiny" else "")
    c.train.runs = ("dmax", "dmax_long")
    c.verbs = ("build", "train", "pseudo", "evaluate", "report")
  else:
    c = imax_7b.get_config("three_stage")
  c.title = f"Three stages, {'7B' if not arg else 'phantom hospital'}"
  c.pseudo.num_images = 0  # all that DMAX trains on
  return c
