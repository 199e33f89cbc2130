"""The example radiographs of the report: which are shown, and what stands beside them."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image
from PIL import ImageDraw

from imax_jax.schema import TASKS
from imax_jax.schema import Bits
from imax_jax.schema import Box
from imax_jax.schema import Prediction
from imax_jax.schema import Region

# Outlines on a grey film: (red, green, blue) of `draw_boxes`, and the page's class names.
MARK_COLOURS: dict[str, tuple[int, int, int]] = {
  "truth": (126, 217, 154),
  "predicted": (255, 176, 84),
  "asked": (126, 190, 255),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Mark:
  """A box on an example's image: "truth", "predicted", or "asked" about (REG)."""

  box: Box
  kind: str
  label: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Example:
  """One radiograph with one question, its right answer and a model's."""

  task: str
  image: bytes  # an encoded JPEG or PNG
  prompt: str
  truth: str
  prediction: str
  boxes: tuple[Mark, ...] = ()
  correct: bool | None = None  # None where it is a matter of degree
  note: str = ""  # "IoU 0.83", "off by 0.021", …


def choose(
  predictions: Sequence[Prediction], *, per_task: int = 6, seed: int = 0
) -> list[Prediction]:
  """Up to `per_task` predictions of each task, drawn by chance and never by merit.

  Where possible each of a task's examples is of another image, and its sub-tasks
  take turns. Depends on the entries and the seed only, not on the order or the texts:
  two runs show the same questions.
  """
  rng = np.random.default_rng(seed)
  chosen = []
  for task in TASKS:
    pool = sorted(
      (p for p in predictions if p.entry.task == task), key=lambda p: p.entry.id
    )
    pool = [pool[i] for i in rng.permutation(len(pool))]
    images: set[str] = set()
    subtasks: dict[str, int] = {}
    for _ in range(min(per_task, len(pool))):
      # Python's min takes the first of equals: the one that chance put first.
      best = min(
        pool,
        key=lambda p: (
          p.entry.image_id in images,
          subtasks.setdefault(p.entry.subtask, 0),
        ),
      )
      pool.remove(best)
      images.add(best.entry.image_id)
      subtasks[best.entry.subtask] += 1
      chosen.append(best)
  return chosen


def make_example(
  image: bytes, prediction: Prediction, *, correct: bool | None = None, note: str = ""
) -> Example:
  """`correct` and `note` are what `evaluate.scoring.judge` says of the prediction."""
  entry, target = prediction.entry, prediction.entry.target
  boxes: tuple[Mark, ...] = ()
  truth, text = entry.answer, prediction.text.strip()
  if isinstance(target, Region):
    boxes = (
      Mark(target.box, "truth" if entry.task == "rec" else "asked", target.name),
    )
    if entry.task == "rec" and isinstance(prediction.value, Region):
      boxes += (Mark(prediction.value.box, "predicted"),)
    elif entry.task == "reg":
      boxes = (dataclasses.replace(boxes[0], label=""),)
  if isinstance(target, Bits):
    truth = f"{truth}\n{_present(target)}"
    if isinstance(prediction.value, Bits):
      text = f"{text}\n{_present(prediction.value)}"
  return Example(entry.task, image, entry.prompt, truth, text, boxes, correct, note)


def _present(bits: Bits) -> str:
  names = [name for name, bit in zip(bits.labels, bits.values, strict=True) if bit]
  return ", ".join(names) or "none present"


def draw_boxes(image: bytes, marks: Sequence[Mark]) -> bytes:
  """The picture as PNG with outlines in the colours of `MARK_COLOURS` and their labels.

  Raises:
    ValueError: the bytes are no image.
  """
  try:
    picture = Image.open(io.BytesIO(image)).convert("RGB")
  except OSError as error:
    raise ValueError(
      f"expected an encoded image, got {len(image)} other bytes"
    ) from error
  pen = ImageDraw.Draw(picture)
  width, height = picture.size
  line = max(1, round(min(width, height) / 160))
  for mark in marks:
    x_min, y_min, x_max, y_max = mark.box
    corners = [x_min * width, y_min * height, x_max * width, y_max * height]
    pen.rectangle(corners, outline=MARK_COLOURS[mark.kind], width=line)
    if mark.label:
      at = (corners[0] + 2 * line, corners[1] + line)
      pen.text(at, mark.label, fill=MARK_COLOURS[mark.kind])
  buffer = io.BytesIO()
  picture.save(buffer, format="PNG")
  return buffer.getvalue()
