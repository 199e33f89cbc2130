"""The whole study on the phantom hospital: radiographs that anyone can have.

Reproduces the protocol of arXiv 2504.09967 (sections 3 and 4.2, Table 2, Figures 2, 3
and 5) at toy size, not its numbers: every patient is synthetic.

  python -m imax_jax.main --config configs/phantom.py --workdir runs/phantom

Ten minutes on 2 cores, 1.2 GiB. Expect boxes (REC IoU about 64, constant 55) and the edema
grade (50 to 70, constant 34) to be learned; verify and choose a little on IMAX; ratios,
reports and open questions not beyond what can be said without the image. IMAX and DMAX are
expected to differ by no more than seeds do (±5 %). A third seed: --config.seeds=0,1,2.

`configs/phantom.py:tiny` is the same study at a size for tests (no shipped foundation,
one seed, a few steps): its numbers mean nothing.
"""

from ml_collections import ConfigDict

from imax_jax import mesh
from imax_jax import schema
from imax_jax.models import zoo


def get_config(arg: str = "") -> ConfigDict:
  """`arg` is "" or "tiny"."""
  if arg not in ("", "tiny"):
    raise ValueError(f"configs/phantom.py:{arg}: the argument is nothing or 'tiny'")
  c = ConfigDict()
  c.title = "Phantom hospital"
  # Work directories of one row are pooled by `report --runs`, as seeds; "": the title.
  c.row = ""
  c.verbs = ("build", "train", "pseudo", "evaluate", "fisher", "report")
  c.seeds = (0, 1)  # LoRA's first values and the order of the entries
  # Devices along each axis, -1: the rest. fsdp and tensor split the weights too.
  c.mesh = {"data": -1, "fsdp": 1, "tensor": 1}
  c.sharding = mesh.FSDP

  c.data = data()
  # Fewer masks than films: with them the share of each task comes near the paper's.
  c.data.hospital = {
    "seed": 11,
    "num_patients": 1000,
    "image_px": 256,
    "coverage": {"chexmask": 0.45},
  }
  c.data.construct = {
    "seed": 0,
    "num_images": 400,
    "min_tasks": 3,
    "train_fraction": 0.8,
  }

  c.model = model()
  # The words around image, prompt and answer: data/styles.py. legacy: as the style's
  # published code has them, where that departs from its own layout.
  c.prompt = {"style": "llama2", "legacy": False}
  # How a stored picture becomes the encoder's square: stretch, pad, crop (data/geometry.py);
  # of what boxes are told in fractions: the "picture", or what is "seen" (data/eye.py).
  c.image = {"geometry": "stretch", "boxes": "picture"}
  # Special tokens that the tokenizer gets behind its own, in order: each is a row of the
  # decoder's embedding.
  c.added_tokens = ()
  # "package" is the checkpoint that configs/foundation.py makes; "" starts from nothing.
  c.foundation = "package"
  # The verb publish: the layout that a system's own users load (weights/editions.py), what
  # its encoder and decoder are called where they were published, what a delta stands on.
  c.publish = {"layout": "", "encoder": "", "decoder": "", "base": ""}
  # First match wins. As in the paper, the encoder and the base decoder stay frozen.
  c.trainable = ((r"connector/.*", True), (r".*/lora_[ab]", True), (r".*", False))

  c.train = train()
  # Epochs are counted in DMAX's entries, so that steps compare. Pre-training sees less
  # than all pseudo labels of all images: as many images are labelled as IMAX has.
  c.pseudo = {
    "num_images": 320,  # drawn by the seed; 0: all
    "images_at_once": 160,  # asked about and written together: what a killed run repeats
    "tasks": schema.TASKS,
    "questions_per_image": 3,
    "pretrain_epochs": 0.75,
    "finetune_epochs": 0.75,
    "pretrain_from": "primary",  # or "foundation": the other reading of the paper
    # What the row "pseudo" leaves out (pseudo/filters.py): nothing, as the paper seems to.
    "filters": {"confidence": 0.0, "agreement": False, "balance": 0.0},
    # More rows, "pseudo_confidence" and so on: the same labels under these filters.
    "ablations": (),
    "named_filters": {
      "confidence": {"confidence": 0.25},
      "agreement": {"agreement": True},
      "balance": {"balance": 1.5},
    },
  }
  c.evaluate = {"max_new_tokens": 112, "rows": 128}  # the longest report has 102
  # METEOR 1.5's meteor-1.5.jar, `data` beside it: then the legacy METEOR is scored too.
  c.evaluate.meteor_jar = ""
  # Paper, section 4.2.2: 1,600 samples in groups of 32 at four phases of both runs.
  c.fisher = ConfigDict()
  c.fisher.runs = ("dmax", "imax")
  c.fisher.phases = (("initial", 0.0), ("early", 0.2), ("mid", 0.6), ("late", 1.0))
  c.fisher.seeds = ()  # of the study's; (): the first
  c.fisher.seed = 0  # draws the entries and the scalar of each matrix
  # An answer's log-likelihood, summed over its tokens as Eq. 2 has it, or their "mean".
  c.fisher.normalise = "sum"
  # Whose: "data" is the paper's, the empirical Fisher; "model", drawn, is the true one.
  c.fisher.answers = ("data",)
  # 0: all of a group, and their gradients one matrix after the other. 1 is fastest on a
  # CPU; it keeps the gradients of a group, 32 times the trainable parameters.
  c.fisher.rows_at_once = 1
  c.fisher.group_size = 32
  c.fisher.num_groups = 12
  c.report = {"examples_per_task": 6}
  return tiny(c) if arg == "tiny" else c


def data() -> ConfigDict:
  """Every choice between the raw files and the datasets, but for `construct`'s own."""
  d = ConfigDict()
  d.source = "phantom"  # physionet, open, opencxr, own
  # The folder of the files; of a phantom hospital: where it is drawn, if not in the work
  # directory, for several studies to share.
  d.root = ""
  d.roots = ConfigDict()  # a source's own folder: --config.data.roots.chexmask=FOLDER
  d.without = ()  # sources of PhysioNet to do without; any other absent one is an error
  d.options = ConfigDict()  # arguments of a source's reader
  d.max_quarantined = 0.01  # more rejected rows of a source than this end the build
  d.max_report_words = 0  # whole
  d.boxes = {
    "order": "xy",
    "scale": 1000,
  }  # Figure 1: "yx", 0 (pixels of the stored image)
  d.image_px = (
    0  # images are stored as they are; else fitted to this side, in `geometry`
  )
  d.geometry = "stretch"  # pad, crop
  d.draft = False  # large JPEGs read at half or a quarter of their size where they may
  # What a study of the phantom may spoil on purpose: the share of training entries that
  # get another image's answer; datasets whose films are stored as negatives.
  d.noise = 0.0
  d.negative = ()
  d.recipe = ""  # a published recipe: its very entries instead of `construct`'s
  d.workers = 0  # processes; 0: one a core
  d.beam = ""  # options of Apache Beam, which then writes: "--runner=DirectRunner"
  return d


def model() -> ConfigDict:
  """The phantom's vision-language model: every part of the full one, small."""
  return ConfigDict(zoo.model("toy"))


def train() -> ConfigDict:
  """The paper's recipe (linear warm-up over 10 %, cosine to a tenth), toy rates."""
  t = ConfigDict()
  t.runs = ("dmax", "imax", "dmax_long")
  t.epochs = 3.0
  t.entries_per_step = 16
  t.accumulate = 1  # turns in which a step goes through its entries: less memory
  # Batching. All entries of an image behind one image prefix, or an entry a row.
  t.share_prefix = True
  t.row_tokens = 384  # the longest a row may be; rows are multiples of row_multiple
  t.row_multiple = 128
  t.max_shapes = 3  # sizes of batch, each of them compiled; more pad less
  # "image": images are shuffled, their entries stay together. "global": all entries.
  # "task": steps of one task each, drawn by sample_ratios; all 0: as many as there are.
  t.shuffle = "image"
  t.sample_ratios = dict.fromkeys(schema.TASKS, 0.0)
  t.weighting = "entry"  # or "token": what an answer's tokens weigh together, or each
  t.task_weights = dict.fromkeys(schema.TASKS, 1.0)
  # "cache": a frozen encoder runs once an image, its output is kept on disk in bfloat16;
  # "step": it runs in every step.
  t.features = "cache"
  t.features_folder = ""  # in the work directory; or one that several share
  t.peak_lr = 7e-3
  t.final_lr = 7e-4
  t.warmup_fraction = 0.1
  t.warmup_start_lr = 0.0
  t.clock = "after_warmup"  # "whole_run": as Uni-Med's and MiniGPT-v2's code
  t.may_rise = False  # whether final_lr may be above peak_lr
  # A part's own rate, as rules: ((r"connector/.*", 0.1), (r".*", 1.0)). (): one for all.
  t.lr_scales = ()
  t.weight_decay = 0.05
  t.beta2 = 0.99
  t.clip_norm = 1.0  # 0: not clipped
  t.max_skipped = (
    0  # steps of a run whose gradient may be no number; 0: the first ends it
  )
  # Patients held out of training (`epochs` counts their entries too), and every how many
  # steps the loss on so many of their entries (0: all) is taken, weighed as in training.
  # The run's weights are then those with the least `metric`: "loss", or "loss_rec" and so
  # on; without a better one for `patience` times it ends early (0: never).
  t.validation = {
    "fraction": 0.0,
    "steps": 250,
    "entries": 512,
    "metric": "loss",
    "patience": 0,
  }
  t.save_steps = 250
  t.keep = 2  # of the latest checkpoints, to go on from
  t.watchdog_seconds = 60.0  # a step that takes longer, and ten times the median: hangs
  t.trackers = ()  # beside metrics.jsonl and TensorBoard: "wandb", "trackio"
  t.profile = (0, 0)  # the updates to be traced into the run's folder: (10, 15)
  return t


def tiny(c: ConfigDict) -> ConfigDict:
  c.seeds = (0,)
  c.data.hospital = {"seed": 11, "num_patients": 30, "image_px": 64, "coverage": {}}
  c.data.construct.num_images = 20
  c.data.construct.train_fraction = 0.5  # a test split in which every task stands
  c.foundation = ""
  c.model.encoder.update({"image_px": 32, "patch_px": 8, "width": 16, "depth": 2})
  c.model.encoder.update({"num_heads": 2, "mlp_width": 32})
  c.model.decoder.update({"width": 16, "depth": 2, "num_heads": 2, "num_kv_heads": 2})
  c.model.decoder.update({"mlp_width": 32, "vocab_size": 400})
  c.train.epochs = 1.0
  c.train.save_steps = 2
  c.pseudo.update({"num_images": 8, "pretrain_epochs": 0.2, "finetune_epochs": 0.5})
  c.evaluate.update({"max_new_tokens": 8, "rows": 32})
  c.fisher.group_size = 4
  c.fisher.num_groups = 2
  c.pseudo.images_at_once = 3
  return c
