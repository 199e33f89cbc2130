"""The study's stations on 1,438 real, openly licensed radiographs.

Real films, few of them, and not all seven tasks on each: it shows that the protocol runs
on real images, not how well a model of this size reads them. The folder is not part of
the project; --config.data.root says where it lies.

  python -m imax_jax.main --config configs/open_cxr.py --workdir runs/open_cxr \\
    --config.data.root=FOLDER

Thirteen minutes on 2 cores, 2.1 GiB. Expect REG (about 95, blind 89) and the multi-class
grade (about 50, constant 37) to be learned; boxes (REC IoU about 62) not beyond the best
constant box (65), ratios and reports not at all. Images with three or more tasks come from
other collections than the rest, so IMAX and DMAX differ in more than their make-up: the
large gain of IMAX is mostly VQA: 119 of the 187 test questions are about images of two
collections from which DMAX has 4 questions in all.

Differs from configs/phantom.py in: the source; reports cut at 50 words, as Uni-Med does.
"""

from ml_collections import ConfigDict

from configs import phantom


def get_config(arg: str = "") -> ConfigDict:
  """`arg` is "" or "tiny"."""
  c = phantom.get_config(arg)
  c.title = "Open radiographs"
  c.data.source = "opencxr"
  c.data.options.opencxr = {"layers": ("native", "derived")}
  c.data.max_report_words = 50
  c.data.construct.num_images = 40 if arg == "tiny" else 320
  # No view is given for many of them; all are frontal (the folder's README).
  c.data.construct.views = ("PA", "AP", "AP Supine", "")
  # Most images have one organ, or findings, boxed: an image need not have all three.
  c.data.construct.required_subtasks = {}
  if arg != "tiny":
    c.pseudo.num_images = 200
  c.evaluate.max_new_tokens = 8 if arg == "tiny" else 160
  return c
