"""The study's stations on public radiographs, each dataset in its own original layout.

For whoever has no access to PhysioNet's credentialed files. A folder with some of these
in it, as they were downloaded:

    nih/ chexmask_nih/ openi/ vqa_rad/ slake/ vindr/ chexmask_vindr/ jsrt/ montgomery/
    shenzhen/

  python -m imax_jax.main --config configs/open_cxr_public.py --workdir runs/open_public \\
    --config.data.root=FOLDER

NIH gives findings and boxes; CheXmask's NIH part the organs, and from its masks CTR and
CPAR; OpenI reports; VQA-RAD and SLAKE questions; VinDr-CXR findings and their boxes; JSRT,
Montgomery and Shenzhen organs. No public dataset grades edema. Few images carry reports or
people's questions together with anything else, so that IMAX is mostly calculation,
multi-label, REC and REG. How long it takes depends on what is there; nobody of this project
has run it on the real downloads, only on small ones in their formats.

Differs from configs/own.py in: the sources. Several of them do not say the view; OpenI's
laterals are among those.
"""

from ml_collections import ConfigDict

from configs import own


def get_config(arg: str = "") -> ConfigDict:
  """`arg` is "" or "tiny"."""
  c = own.get_config(arg)
  c.title = "Public radiographs"
  c.data.source = "open"
  for name in ("nih", "chexmask_nih", "openi", "vqa_rad", "slake", "vindr",
               "chexmask_vindr", "jsrt", "montgomery", "shenzhen"):  # fmt: skip
    c.data.roots[name] = ""
  if arg == "tiny":
    c.data.construct.num_images = 8
  return c
