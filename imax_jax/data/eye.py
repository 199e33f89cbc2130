"""A model's eye: how it sees a stored picture, and how boxes are told to it and by it.

    record ──pixels──▶ the encoder's square            by the eye's `Geometry`
           ──spell───▶ entries as the model is asked    boxes in the eye's frame
           ──teach───▶ the same to be trained on        less what it can not see

Stored entries and pictures know of no eye: several models, each with its own, learn from
one dataset. An entry's target stays in fractions of the picture whatever the eye sees,
and what a model answers is brought back there when it is read (`spelling.parse_box`): an
IoU is always of the picture. Boxes are written in one of two frames:

    "picture"   in fractions of the picture, as all published systems have them. A model
                that is shown a padded or cropped square has to guess the picture's shape.
    "seen"      in fractions of the square that the model sees.

A stretched picture is its square, so that the two are the same.

Of a box that a crop cuts away, less than `MIN_SHARE` of its area may be left: it is
unseen. Written in the seen frame, what is left of it would teach another object, so its
entries are no training entries; written in the picture's frame they stay, as in the
published systems. Both are counted. A test entry is asked and scored in any case, against
the whole true box: all systems then answer the same questions, and what an eye cuts off
is a fault of that system and not of the question. REC is asked by a name, so that it can
be asked of any eye; the box of a REG question is cut to the square, and one that is all
outside of it becomes a line on the edge at which it is. None is counted as a miss
unanswered: the score says what the model said.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any
from typing import Literal
from typing import get_args

import numpy as np

from imax_jax.data import images
from imax_jax.data.geometry import MIN_SHARE
from imax_jax.data.geometry import Geometry
from imax_jax.data.spelling import respell
from imax_jax.schema import ORGANS
from imax_jax.schema import WHOLE
from imax_jax.schema import Box
from imax_jax.schema import Entry
from imax_jax.schema import ImageRecord
from imax_jax.schema import Region

Boxes = Literal["picture", "seen"]
# What is counted of boxes: seen whole, in part, and not (less than MIN_SHARE).
KINDS = ("whole", "cut", "unseen")
OTHER = (
  "other"  # an object that is no organ of the study; its name may be anybody's text
)
_ALL = 1 - 1e-9  # of a box's area
# {organ: {"whole": 3, "cut": 1, "unseen": 0}}
Counts = dict[str, dict[str, int]]


@dataclasses.dataclass(frozen=True, slots=True)
class Eye:
  """Raises a ValueError for an unknown way of writing boxes."""

  geometry: Geometry
  image_px: int
  channels: int
  boxes: Boxes = "picture"

  def __post_init__(self) -> None:
    if self.boxes not in get_args(Boxes):
      raise ValueError(
        f"boxes {self.boxes!r}: expected one of {', '.join(get_args(Boxes))}"
      )

  @property
  def stretches(self) -> bool:
    """Whether the square is the picture, so that nothing here makes a difference."""
    return self.geometry.kind == "stretch"

  @property
  def facts(self) -> dict[str, Any]:
    """What decides what a model learns of its pictures; {} of an eye that stretches."""
    return {} if self.stretches else {**self.pixel_facts, "boxes": self.boxes}

  @property
  def pixel_facts(self) -> dict[str, Any]:
    """What decides the pixels, beside their size; {} of an eye that stretches."""
    geometry = self.geometry
    if self.stretches:
      return {}
    fill = {"fill": list(geometry.fill)} if geometry.kind == "pad" else {}
    return {"geometry": geometry.kind, **fill}

  def pixels(self, data: bytes, *, name: str = "image") -> np.ndarray:
    """An encoded picture -> uint8[image_px, image_px, channels]; raises as `to_pixels`.

    The padding has its colour, a film none.
    """
    return images.to_pixels(
      data, self.image_px, self.channels, name=name, geometry=self.geometry,
      colour=self.geometry.kind == "pad" and self.channels == 3,
    )  # fmt: skip

  def frame(self, data: bytes, *, name: str = "image") -> Box:
    """Of what an encoded picture's boxes are fractions, in fractions of the picture."""
    if self.stretches or self.boxes == "picture":
      return WHOLE
    return self.geometry.window(*images.size_of(data, name=name), self.image_px)

  def spell(self, record: ImageRecord) -> ImageRecord:
    """The record with its entries as the model is asked; all of them.

    Raises:
      ValueError: an unreadable picture, or as `spelling.respell`.
    """
    frame = self.frame(record.image, name=record.image_id)
    if frame == WHOLE:
      return record
    entries = tuple(respell(entry, frame) for entry in record.entries)
    return dataclasses.replace(record, entries=entries)

  def teach(self, record: ImageRecord) -> ImageRecord:
    """The record with its entries as the model is taught; raises as `spell`.

    Without those of boxes that it does not see, if boxes are written in its frame.
    """
    spelt = self.spell(record)
    if spelt is record:
      return record
    hidden = {entry.id for entry, kind in self.look(record) if kind == "unseen"}
    kept = tuple(entry for entry in spelt.entries if entry.id not in hidden)
    return dataclasses.replace(spelt, entries=kept)

  def look(self, record: ImageRecord) -> Iterator[tuple[Entry, str]]:
    """(entry, one of `KINDS`) of the record's entries that have a box."""
    size = images.size_of(record.image, name=record.image_id)
    for entry in record.entries:
      if isinstance(entry.target, Region):
        share = self.geometry.share(entry.target.box, *size, self.image_px)
        kind = KINDS[0] if share > _ALL else KINDS[1 if share >= MIN_SHARE else 2]
        yield entry, kind

  def count(self, record: ImageRecord, counts: Counts) -> None:
    """Adds the record's boxes to the counts; a REC and a REG entry count each."""
    for entry, kind in self.look(record):
      name = entry.subtask if entry.subtask in ORGANS else OTHER
      of = counts.setdefault(name, dict.fromkeys(KINDS, 0))
      of[kind] += 1


def of(image: Mapping[str, Any], encoder: Mapping[str, Any]) -> Eye:
  """The eye of a config's `image` and `model.encoder`.

  A padded picture gets the mean colour of the encoder's normalisation, int(255 * mean).

  Raises:
    ValueError: an unknown geometry, or way of writing boxes.
  """
  red, green, blue = (int(255 * each) for each in encoder["pixel_mean"])
  geometry = Geometry(image["geometry"], fill=(red, green, blue))
  return Eye(geometry, encoder["image_px"], encoder["channels"], image["boxes"])


def words(counts: Mapping[str, Mapping[str, int]]) -> str:
  """ "heart 30 whole, 8 cut, 2 unseen; …"."""
  return "; ".join(
    f"{name} {', '.join(f'{count:,} {kind}' for kind, count in of.items())}"
    for name, of in sorted(counts.items())
  )
