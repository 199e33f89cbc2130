"""IMAX and DMAX from the PhysioNet files, as downloaded.

The dataset of arXiv 2504.09967, section 3, with its counts: 47,600 images and 354,595
entries in IMAX, DMAX matched to its training entries task by task. Every choice that the
paper does not state is here by name, with the default that comes nearest to its counts.

  python -m imax_jax.main --config configs/imax_data.py --workdir runs/imax_data \\
    --config.data.root=physionet.org/files [select]

`select` stops before the images: counts, the recipe, the quarantine. The folder is what
`wget -r` makes; a source that lies elsewhere is given by its name,
--config.data.roots.chexmask=FOLDER. Needed: MIMIC-CXR-JPG 2.1.0 and the others of
imax_jax/data/sources, each with its PhysioNet slug. `select` takes two to five minutes on
2 cores with the 13 GB mask file, and 4 GiB; storing the images takes as long as your disk
needs to read them.

Expect IMAX near the paper in every count, and DMAX to lack grades of edema: there are
fewer labelled images than both together need (the shortfall is printed). Nobody of this
project has run it on the real files: what could not be verified without them is looked at
as they are read, and printed.

`:tiny` asks for counts that a small phantom hospital can meet.
"""

from ml_collections import ConfigDict

from configs import phantom

# Section 3.2 of the paper: entries of IMAX, train and test together.
QUOTAS = {
  "vqa": 100_901,
  "calculation": 54_684,
  "rec": 51_045,
  "reg": 51_045,
  "report": 45_715,
  "multi_label": 45_186,
  "multi_class": 6_019,
}


def get_config(arg: str = "") -> ConfigDict:
  """`arg` is "" or "tiny"."""
  c = phantom.get_config(arg)
  c.title = "IMAX"
  c.verbs = ("build",)
  c.data.source = "physionet"
  for name in ("mimic_cxr_jpg", "mimic_cxr", "cardiomegaly", "pe_severity", "cxr_lt",
               "chexmask", "vqa"):  # fmt: skip
    c.data.roots[name] = ""
  o = c.data.options
  # False also takes images that are not on disk, to count before downloading them.
  o.mimic_cxr_jpg = {"require_images": True}
  # Sections: findings and impression. A JSON file in roots.mimic_cxr (XrayGPT's captions,
  # which read like the paper's Figure 1, or R2Gen's) is used instead.
  o.mimic_cxr = {"text": "sections", "keep_blanks": True}
  # An image gives both ratios or none: 54,684 is twice 27,342.
  o.cardiomegaly = {"require_both": True}
  o.cxr_lt = {"release": ""}  # the newest that is there
  o.chexmask = {"min_dice": 0.7}  # the publishers' own gate; the paper's text: > 0.7
  o.vqa = {"keep_empty": True}  # a question to which nothing applies is answered "none"
  c.data.construct = ConfigDict()
  c.data.construct.seed = 0
  c.data.construct.num_images = 20 if arg == "tiny" else 47_600
  c.data.construct.min_tasks = 3
  c.data.construct.train_fraction = 0.5 if arg == "tiny" else 0.8
  c.data.construct.quotas = {} if arg == "tiny" else QUOTAS
  c.data.construct.views = ("PA", "AP")
  c.data.construct.split_unit = "patient"  # or study, image
  c.data.construct.dmax_patients = "not in test"  # or not in imax, any
  # Without it DMAX would have an image for almost every task of an image, some 153,000.
  c.data.construct.num_dmax_images = 40 if arg == "tiny" else 136_218
  c.data.construct.controls = ()  # same_images, same_count
  return c
