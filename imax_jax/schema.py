"""The nouns of the house: what a source says, what a model is asked, what it returns.

    raw files -> Radiograph, Annotation -> Entry -> ImageRecord -> Batch -> Output -> Prediction

Each is defined here once. (Two more pass between folders and are defined where they are
made: `data.records.TokenizedImage` and `data.construct.Datasets`.) One axis alphabet is
used in every einsum, comment and annotation of the project:

    N  images of a batch             B  rows of a batch        T  tokens of a row
    P  patches of an image           S  image tokens           V  vocabulary
    D  width (encoder or decoder)    H  heads                  K  key/value heads
    C  channels                      L  layers                 R  LoRA rank
    Z  shards of a batch's rows      M  supervised tokens of a shard
"""

from __future__ import annotations

import dataclasses
from typing import Any
from typing import NamedTuple
from typing import TypedDict

import numpy as np

TASKS: tuple[str, ...] = (
  "calculation", "report", "multi_class", "multi_label", "rec", "reg", "vqa"
)  # fmt: skip

# The order in which the paper's Figure 1 asks for the ten findings.
FINDINGS: tuple[str, ...] = (
  "Lung Opacity", "Pleural Effusion", "Atelectasis", "Pneumonia", "Edema",
  "Consolidation", "Pneumothorax", "Fracture", "Infiltration", "Nodule",
)  # fmt: skip
# MIMIC-CXR-PE-Severity's code is the index.
EDEMA_GRADES: tuple[str, ...] = (
  "none", "vascular congestion", "interstitial edema", "alveolar edema"
)  # fmt: skip
# Left and right are the patient's: the right lung is on the image's left.
ORGANS: tuple[str, ...] = ("heart", "left lung", "right lung")

# (x_min, y_min, x_max, y_max) as fractions of the image's width and height, in [0, 1].
Box = tuple[float, float, float, float]
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)


# ── What a source says ────────────────────────────────────────────────────────────


@dataclasses.dataclass(frozen=True, slots=True)
class Radiograph:
  """One image file and whose it is. `width` and `height` are the original pixels."""

  image_id: str
  study_id: str
  patient_id: str
  view: str  # "PA", "AP", "LATERAL", …; "" where the source does not say
  width: int
  height: int
  path: str


@dataclasses.dataclass(frozen=True, slots=True)
class Origin:
  """Where an annotation was read, and by which rule it became one.

  `file` is relative to the source's root; `row` counts its data rows (items, lines) from
  0; `rule` is a key of `data.sources.RULES`, which says it in words.
  """

  source: str
  file: str
  row: int
  rule: str


@dataclasses.dataclass(frozen=True, slots=True)
class Ratio:
  """A cardiothoracic (CTR) or cardiopulmonary area ratio (CPAR); dimensionless."""

  value: float


@dataclasses.dataclass(frozen=True, slots=True)
class Report:
  text: str


@dataclasses.dataclass(frozen=True, slots=True)
class Grade:
  """One of several exclusive classes. The paper's are `EDEMA_GRADES`."""

  name: str
  classes: tuple[str, ...] = EDEMA_GRADES


@dataclasses.dataclass(frozen=True, slots=True)
class Bits:
  """Presence (1) or absence (0) of each label. The paper's labels are `FINDINGS`."""

  values: tuple[int, ...]
  labels: tuple[str, ...] = FINDINGS


@dataclasses.dataclass(frozen=True, slots=True)
class Region:
  """A named object and the box around it: the target of REC and of REG.

  `box` is where it is, in fractions of the picture, always. The rest says how it is
  written: in how many parts width and height are counted, whether x or y comes first, and
  of which frame they are the width and height: all of the picture, or the square that a
  model sees, which may end within the picture or reach beyond it (`data.eye`).
  """

  name: str
  box: Box
  scale: tuple[int, int] = (1000, 1000)
  order: str = "xy"  # or "yx"
  frame: Box = WHOLE  # in fractions of the picture


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
  """A question and all its right answers; none means that nothing applies."""

  question: str
  answers: tuple[str, ...]
  content_type: str = ""


Target = Ratio | Report | Grade | Bits | Region | Answer
TARGET_OF_TASK: dict[str, type] = {
  "calculation": Ratio,
  "report": Report,
  "multi_class": Grade,
  "multi_label": Bits,
  "rec": Region,
  "reg": Region,
  "vqa": Answer,
}


@dataclasses.dataclass(frozen=True, slots=True)
class Annotation:
  """What a source says about one image for one task.

  `subtask` is what the metrics are split by: "ctr" or "cpar" (calculation), the
  organ (rec, reg), "verify", "choose" or "query" (vqa), "" elsewhere.
  """

  image_id: str
  task: str
  subtask: str
  target: Target
  origin: Origin


# ── What is trained on ────────────────────────────────────────────────────────────


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
  """An annotation as a training pair. `target` is kept so that scoring never
  re-parses its own reference. `id` is "IMAGE_ID/TASK/SUBTASK/NUMBER".
  """

  id: str
  image_id: str
  task: str
  subtask: str
  prompt: str  # "[rec] Based on the input image, …": without image marks or template
  answer: str
  target: Target
  origin: Origin


@dataclasses.dataclass(frozen=True, slots=True)
class ImageRecord:
  """One image with all its entries: the unit on disk and of random access."""

  image_id: str
  study_id: str
  patient_id: str
  view: str
  image: bytes  # an encoded JPEG or PNG
  entries: tuple[Entry, ...]


# ── What a device sees ────────────────────────────────────────────────────────────


class Batch(TypedDict):
  """Fixed-shape arrays. A row holds one image's entries, or several images' in turn
  (the begin token, which opens each image's prefix, is left out of the drawing):

      text      [INST] <Img>  0  0  0 </Img> [rec] … [/INST] <1>.. </s> </Img> [reg] …
      slot         -1    -1   0  1  2   -1     -1      -1      -1   -1    -1     -1
      image         0     0   0  0  0    0      0       0       0    0     0      0
      segment       0     0   0  0  0    1      1       1       1    1     2      2
      position      0     1   2  3  4    5      6       7       8    9     5      6
      loss_weight   0     0   0  0  0    0      0       1       1    0     0      0

  Token i attends to token j when j <= i, image[j] == image[i] >= 0 and (segment[j] == 0
  or segment[j] == segment[i]). Segment 0 is the prefix that all entries of an image
  share; each entry's positions go on from the end of that prefix, so loss and
  gradients are those of separate rows. `loss_weight[t]` weighs the prediction of token
  t + 1 from token t: it stands one place left of the answer. `supervised` lists the places
  where it is not zero: few of a row's, and the only ones that need a logit.

  Where image tokens depend on the task (`models.connector`'s `tasks`), a picture counts
  as as many of the N images as its entries have tasks, each with the same pixels, and
  `task[n]` is the number of the one that image n is seen for:

      text      [INST] <Img>  0  0  0 </Img> [rec] … </s>   [INST] <Img>  0  0  0 </Img> …
      image         0     0   0  0  0    0      0      0        1     1   1  1  1    1
      segment       0     0   0  0  0    1      1      1        0     0   0  0  0    1
  """

  pixels: (
    np.ndarray
  )  # uint8[N, H, W, C], or float[N, P, D]: the frozen encoder's output
  task: np.ndarray  # int32[N] what each image is seen for; 0 where that plays no part
  text: np.ndarray  # int32[B, T] token ids; 0 where an image token stands
  image: np.ndarray  # int32[B, T] which of the N images; -1: padding
  slot: np.ndarray  # int32[B, T] which of the S image tokens stands here; -1: text
  segment: np.ndarray  # int32[B, T] 0: the image's shared prefix; 1…: its entries
  position: np.ndarray  # int32[B, T] rotary position
  loss_weight: np.ndarray  # float32[B, T]
  # int32[Z, M]: of each of Z equal shards of rows, the places where loss_weight is not
  # zero, counted through the shard's B / Z rows of T; -1: padding
  supervised: np.ndarray


class Output(NamedTuple):
  """What the model returns for a batch."""

  logits: Any  # float32[B, T, V]
  image_tokens: Any  # float[N, S, D]


@dataclasses.dataclass(frozen=True, slots=True)
class Prediction:
  """A generated answer. Exactly one of `value` and `reason` is set."""

  entry: Entry
  text: str
  value: Target | None  # what the text says, parsed
  reason: str  # why it could not be parsed, or ""
