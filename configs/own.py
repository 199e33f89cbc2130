"""The study's stations on your own radiographs and annotations.

A folder of images and one table, annotations.csv or annotations.jsonl, with a row an
annotation (README, "Your own images").

  python -m imax_jax.main --config configs/own.py --workdir runs/own \\
    --config.data.root=FOLDER

How long it takes and what to expect depend on your data. The sizes are those of
configs/open_cxr.py, which takes thirteen minutes on 2 cores for 1,438 images. IMAX draws
from images with at least `min_tasks` tasks, and DMAX needs several times as many others;
the page says how many entries DMAX falls short by. A row that can not be used is listed in
the quarantine; more than one in a hundred of them end the build, unless you raise
--config.data.max_quarantined. Name the patients: without them an image counts as a
patient of its own, and train and test may share people.

Differs from configs/phantom.py in: the source; reports cut at 50 words, as Uni-Med does;
images without a view are used, and images with a single organ or ratio.
"""

from ml_collections import ConfigDict

from configs import phantom


def get_config(arg: str = "") -> ConfigDict:
  """`arg` is "" or "tiny"."""
  c = phantom.get_config(arg)
  c.title = "Own radiographs"
  c.data.source = "own"
  c.data.max_report_words = 50
  c.data.construct.num_images = 40 if arg == "tiny" else 320
  c.data.construct.views = ("PA", "AP", "")
  c.data.construct.required_subtasks = {}
  if arg != "tiny":
    c.pseudo.num_images = 200
  c.evaluate.max_new_tokens = 8 if arg == "tiny" else 160
  return c
