"""The example radiographs as HTML: picture, boxes, prompt, truth and answer."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from PIL import Image

from imax_jax.report import figures
from imax_jax.report import markup
from imax_jax.report.examples import Example
from imax_jax.report.examples import Mark
from imax_jax.schema import TASKS

_MAX_PICTURE_PX = 384
_MAX_PICTURE_BYTES = 60_000


def films(examples: Sequence[Example], about: Mapping[str, Any]) -> str:
  """Examples by task; `about` may say whose answers they are."""
  if not examples:
    return markup.ABSENT
  keys = "".join(
    f'<span><span class="key {kind}" style="border-color:var(--{kind})"></span>{label}'
    "</span>&ensp; "
    for kind, label in (
      ("truth", "true box"), ("predicted", "predicted box"), ("asked", "box asked about")
    )
  )  # fmt: skip
  run = markup.text(about.get("examples") or "")
  whose = f" The answers are of {run}." if run else ""
  parts = [
    f"<p>Drawn by chance from the test split, not by merit.{whose} Left and right are "
    "the patient’s: the right lung is on the picture’s left.</p>",
    f'<p class="small">{keys}</p>',
  ]
  for task in TASKS:
    shown = [example for example in examples if example.task == task]
    if not shown:
      continue
    prompts = {example.prompt for example in shown}
    once = shown[0].prompt if len(prompts) == 1 else ""
    parts.append(f"<h3>{figures.TASK_TITLES[task]}</h3>")
    if once:
      parts.append(f'<p class="asked-once">{markup.text(once)}</p>')
    films = "".join(_film(example, with_prompt=not once) for example in shown)
    parts.append(f'<div class="films">{films}</div>')
  return "".join(parts)


def _film(example: Example, *, with_prompt: bool) -> str:
  prompt = f'<p class="prompt">{markup.text(example.prompt)}</p>' if with_prompt else ""
  mark = {True: '<span class="mark right">right</span>',
          False: '<span class="mark wrong">wrong</span>'}  # fmt: skip
  verdict = " · ".join(
    part for part in (mark.get(bool(example.correct)) if example.correct is not None else "",
                      markup.text(example.note)) if part
  )  # fmt: skip
  judged = f"<dt>result</dt><dd>{verdict}</dd>" if verdict else ""
  boxes = "".join(_rect(mark) for mark in example.boxes)
  overlay = (
    f'<svg viewBox="0 0 1 1" preserveAspectRatio="none" aria-hidden="true">{boxes}</svg>'
    if boxes
    else ""
  )
  alt = markup.text(f"Chest radiograph. {_in_words(example.boxes)}")
  return (
    f'<figure class="film"><div class="picture"><img alt="{alt}" '
    f'src="{_picture(example.image)}">{overlay}</div><figcaption>{prompt}<dl>'
    f"<dt>truth</dt><dd>{markup.text(example.truth)}</dd>"
    f"<dt>model</dt><dd>{markup.text(example.prediction) or '<i>nothing</i>'}</dd>{judged}</dl>"
    "</figcaption></figure>"
  )


def _rect(mark: Mark) -> str:
  x_min, y_min, x_max, y_max = mark.box
  return (
    f'<rect class="{mark.kind}" x="{x_min:.4f}" y="{y_min:.4f}" '
    f'width="{max(x_max - x_min, 0):.4f}" height="{max(y_max - y_min, 0):.4f}" '
    f'stroke="var(--{mark.kind})"/>'
  )


def _in_words(marks: Sequence[Mark]) -> str:
  return " ".join(
    f"{mark.kind.capitalize()} box {' '.join(f'{100 * side:.0f}' for side in mark.box)} "
    "percent from the left, top, left, top."
    for mark in marks
  )


def _picture(image: bytes) -> str:
  """A data URI of at most `_MAX_PICTURE_PX` a side; small pictures stay as they are."""
  picture = Image.open(io.BytesIO(image))
  kind = (picture.format or "").lower()
  small = max(picture.size) <= _MAX_PICTURE_PX and len(image) <= _MAX_PICTURE_BYTES
  if not small or kind not in ("jpeg", "png"):
    grey = picture.convert("L")
    grey.thumbnail((_MAX_PICTURE_PX, _MAX_PICTURE_PX))
    buffer = io.BytesIO()
    grey.save(buffer, format="JPEG", quality=88)
    image, kind = buffer.getvalue(), "jpeg"
  return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"
