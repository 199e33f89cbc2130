"""What image-centricity does on the phantom hospital: five draws of four settings.

The experiment behind docs/phantom_study.md: at least 500 test images, five hospitals with
five seeds, every row beside a control of as many steps. A setting and a draw are a work
directory; the hospital of a draw is shared:

  launch/phantom_study.sh runs/phantom_study        all, and the tables at its end

or one by hand:

  python -m imax_jax.main --config configs/phantom_study.py:equal-0 \\
    --workdir runs/phantom_study/equal-0 --config.data.root=runs/phantom_study/hospital-0

    equal    IMAX and DMAX of as many entries; the three stages, with each of their filters
             too, and their step-matched control; the controls of data/controls.py; spectra
    few      a quarter of the images
    noise    three in ten training entries answer as another image does, in both datasets
    unseen   DMAX's films are negatives, of which the foundation has seen none

Minutes on a GPU, hours on 2 cores. Expect differences of the size of the draws' own: how
large, the page says. `:tiny` is `equal` at a size for tests.
"""

from ml_collections import ConfigDict

from configs import phantom

SETTINGS = ("equal", "few", "noise", "unseen")


def get_config(arg: str = "") -> ConfigDict:
  """`arg` is SETTING-DRAW, or "tiny"; "" is equal-0."""
  setting, _, draw = (arg or "equal-0").partition("-")
  tiny = arg == "tiny"
  if not tiny and (setting not in SETTINGS or not draw.isdigit()):
    raise ValueError(
      f"configs/phantom_study.py:{arg}: expected one of {', '.join(SETTINGS)} and a draw, "
      "such as equal-0"
    )
  c = phantom.get_config("tiny" if tiny else "")
  c.title = "Phantom study"
  c.row = "equal" if tiny else setting
  if not tiny:
    _study(c, int(draw))
  if c.row == "equal":
    c.pseudo.ablations = ("confidence", "agreement", "balance")
    c.data.construct.controls = ("same_images", "same_count")
    c.train.runs = ("dmax", "imax", "dmax_long", "same_images", "core", "same_count")
  else:
    c.verbs = ("build", "train", "evaluate", "report")
    c.train.runs = ("dmax", "imax")
  if c.row == "few":
    c.data.construct.update({"num_images": 580, "train_fraction": 80 / 580})
  if c.row == "noise":
    c.data.noise = 0.3
  if c.row == "unseen":
    c.data.negative = ("dmax",)
  return c


def _study(c: ConfigDict, draw: int) -> None:
  """The size of all settings, and what differs between draws: everything by chance."""
  c.seeds = (draw,)
  c.data.hospital.update({"seed": 100 + draw, "num_patients": 2200})
  c.data.construct.update(
    {"seed": draw, "num_images": 820, "train_fraction": 320 / 820}
  )
  # Chosen before any comparison: toys of three epochs learn formats and little else.
  c.train.epochs = 6.0
  c.train.max_shapes = 1  # a run of a minute is not worth compiling three
  c.pseudo.update({"num_images": 0, "pretrain_epochs": 3.0, "finetune_epochs": 3.0})
  c.fisher.num_groups, c.fisher.rows_at_once = 50, 0
