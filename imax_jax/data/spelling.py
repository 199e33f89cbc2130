"""Boxes in words, and back: the one place that writes them.

    Region("heart", (.25, .31, .52, .7))                        <250><310><520><700>
    the same with the frame (0, .084, 1, .916) of a centre crop  <250><271><520><740>

What is written counts from the frame's corner, in parts of the frame's sides; what is
read comes back in fractions of the picture.
"""

from __future__ import annotations

import dataclasses
import re

from imax_jax.schema import WHOLE
from imax_jax.schema import Box
from imax_jax.schema import Entry
from imax_jax.schema import Region


class ParseError(ValueError):
  """A generated text does not say what its task asks for. `reason` is short."""

  def __init__(self, reason: str) -> None:
    super().__init__(reason)
    self.reason = reason


def box_text(region: Region) -> str:
  """Of the box (0.25, 0.3109, 0.52, 0.7): "<250><310><520><700>"; cut, not rounded.

  What lies outside of the region's frame is cut off: a box that is all outside becomes a
  line on the frame's edge.
  """
  box = _to_frame(region.box, region.frame)
  sides = [
    min(max(int(scale * side), 0), scale)
    for scale, side in zip(2 * region.scale, box, strict=True)
  ]
  return "".join(f"<{side}>" for side in _ordered(sides, region.order))


def parse_box(text: str, region: Region) -> Box:
  """What a text says as `box_text` would, in fractions of the picture.

  Raises:
    ParseError: it says no box, or one out of the frame.
  """
  found = re.fullmatch(r"<(-?[0-9]{1,9})>" * 4, text)
  if not found:
    raise ParseError("no box")
  x_min, y_min, x_max, y_max = _ordered(
    [int(side) for side in found.groups()], region.order
  )
  width, height = region.scale
  if not (min(x_min, x_max) >= 0 and max(x_min, x_max) <= width) or not (
    min(y_min, y_max) >= 0 and max(y_min, y_max) <= height
  ):
    raise ParseError(f"box out of 0..{max(width, height)}")
  if x_min > x_max or y_min > y_max:
    raise ParseError("box corners reversed")
  box = (x_min / width, y_min / height, x_max / width, y_max / height)
  return from_frame(box, region.frame)


def from_frame(box: Box, frame: Box) -> Box:
  """A box in fractions of a frame -> in fractions of the picture, cut to the picture.

  One that lies all beside the picture, in its padding, becomes a line on its edge: a box
  without area, which no true box overlaps.
  """
  if frame == WHOLE:
    return box
  left, top, right, bottom = frame
  x_min, x_max = (left + side * (right - left) for side in box[::2])
  y_min, y_max = (top + side * (bottom - top) for side in box[1::2])
  x_min, y_min, x_max, y_max = (
    min(max(side, 0.0), 1.0) for side in (x_min, y_min, x_max, y_max)
  )
  return x_min, y_min, x_max, y_max


def _to_frame(box: Box, frame: Box) -> Box:
  """A box in fractions of the picture -> of a frame, and beyond it."""
  if frame == WHOLE:
    return box
  left, top, right, bottom = frame
  # What a model has said comes back as it said it: a side that is off by a rounding error
  # would be cut to the part before.
  x_min, x_max = (round((side - left) / (right - left), 9) for side in box[::2])
  y_min, y_max = (round((side - top) / (bottom - top), 9) for side in box[1::2])
  return x_min, y_min, x_max, y_max


def respell(entry: Entry, frame: Box) -> Entry:
  """The entry with its box written in fractions of another frame, in its own wording.

  Only REC's answer and REG's prompt change; a request's empty answer stays empty.

  Raises:
    ValueError: the box does not stand where its task has it, as `box_text` writes it.
  """
  if not isinstance(entry.target, Region) or entry.target.frame == frame:
    return entry
  target = dataclasses.replace(entry.target, frame=frame)
  before, after = box_text(entry.target), box_text(target)
  if entry.task == "rec":
    if entry.answer not in ("", before):
      raise ValueError(f"{entry.id}: its answer is not its box; build the data anew")
    answer = after if entry.answer else ""
    return dataclasses.replace(entry, answer=answer, target=target)
  if before not in entry.prompt:
    raise ValueError(f"{entry.id}: its prompt has not its box; build the data anew")
  prompt = entry.prompt.replace(before, after)
  return dataclasses.replace(entry, prompt=prompt, target=target)


def _ordered(sides: list[int], order: str) -> list[int]:
  """From x, y, x, y to the order asked for, or back."""
  if order == "xy":
    return sides
  x_min, y_min, x_max, y_max = sides
  return [y_min, x_min, y_max, x_max]
