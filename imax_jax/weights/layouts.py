"""Published checkpoints as tables: their name of a tensor, our path, and what differs.

    model.layers.{i}.self_attn.q_proj.weight [out, in]  MATRIX
      <->  decoder/layers/attn/q/kernel [L, in, out], slice i

Conversion reads the tables from left to right, export from right to left. A variant is a
row; `rows_of_layouts` holds the tables themselves.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field
from dataclasses import replace
from functools import cached_property
from typing import Any
from typing import NamedTuple

import numpy as np

_CHANNELS = 3  # of every published encoder's patches
_TILE = 128


def transpose(matrix: np.ndarray) -> np.ndarray:
  """[a, b] -> a C-ordered [b, a], square by square: numpy's own copy misses the cache."""
  rows, columns = matrix.shape
  # Plain integers of the same size: numpy copies those fast, and bfloat16 one by one.
  items = matrix.view(f"u{matrix.dtype.itemsize}")
  turned = np.empty((columns, rows), items.dtype)
  for top in range(0, rows, _TILE):
    for left in range(0, columns, _TILE):
      block = items[top : top + _TILE, left : left + _TILE]
      turned[left : left + _TILE, top : top + _TILE] = block.T
  return turned.view(matrix.dtype)


def _from_convolution(kernel: np.ndarray) -> np.ndarray:
  """[O, C, h, w] -> [h·w·C, O]: what a patch in (row, column, channel) order meets."""
  return np.ascontiguousarray(kernel.transpose(2, 3, 1, 0).reshape(-1, len(kernel)))


def _to_convolution(matrix: np.ndarray) -> np.ndarray:
  """The inverse, of square patches of three channels."""
  rows, outputs = matrix.shape
  side = math.isqrt(rows // _CHANNELS)
  return matrix.reshape(side, side, _CHANNELS, outputs).transpose(3, 2, 0, 1)


def same(array: np.ndarray) -> np.ndarray:
  return array


class Form(NamedTuple):
  """How a tensor is laid out there (`rank` axes) and here."""

  rank: int
  to_ours: Callable[[np.ndarray], np.ndarray]
  to_published: Callable[[np.ndarray], np.ndarray]


VECTOR = Form(1, same, same)
TABLE = Form(2, same, same)
MATRIX = Form(2, transpose, transpose)  # torch keeps a linear layer as [out, in]
CONVOLUTION = Form(4, _from_convolution, _to_convolution)
VECTOR_OF_3 = Form(3, lambda array: array.reshape(-1), lambda array: array[None, None])
TABLE_OF_3 = Form(3, lambda array: array[0], lambda array: array[None])
WHOLE = (0, 1)


class Row(NamedTuple):
  """One published tensor, or one share of it.

  `published` has "{i}" where the number of a layer, or of an expert, stands; the leaf at
  `path` then has a leading axis of them. `stems` are words that stand there instead. An
  empty path: the share must be zero and is not kept.

  `slot` (k, n): it is the k-th of n equal parts of our leaf's last axis.
  `cut` (k, n): our leaf is the k-th of n equal parts of its last axis, as laid out here.
  `needs`: the path of a leaf without which ours has the name of a later row.
  """

  published: str
  path: str
  form: Form
  slot: tuple[int, int] = WHOLE
  cut: tuple[int, int] = WHOLE
  stems: tuple[str, ...] = ()
  needs: str = ""

  @property
  def layered(self) -> bool:
    return "{i}" in self.published

  def name(self, layer: int | None) -> str:
    if layer is None:
      return self.published
    return self.published.format(i=self.stems[layer] if self.stems else layer)

  @property
  def pattern(self) -> re.Pattern[str]:
    """What its names match; the one group is what stands for the layer."""
    stem = "|".join(map(re.escape, self.stems)) or r"\d+"
    return re.compile(re.escape(self.published).replace(r"\{i\}", f"({stem})"))

  def layer(self, match: re.Match[str]) -> int | None:
    """The layer of a name that `pattern` matched."""
    if not self.layered:
      return None
    stem = match.group(1)
    return self.stems.index(stem) if self.stems else int(stem)

  def to_ours(self, array: np.ndarray) -> np.ndarray:
    """The published tensor -> this row's share of our leaf (of one layer's slice)."""
    return _part(self.form.to_ours(array), self.cut)

  def shape(self, published: tuple[int, ...]) -> tuple[int, ...] | None:
    """What `to_ours` makes of a shape; None for one of another rank."""
    if len(published) != self.form.rank:
      return None
    # One byte seen at every index: forms are applied, nothing is held.
    *leading, last = self.form.to_ours(np.broadcast_to(np.uint8(0), published)).shape
    return (*leading, last // self.cut[1])

  def share(self, leaf: tuple[int, ...]) -> tuple[int, ...]:
    """The part of a leaf's shape that this row fills, without its leading layers."""
    *leading, last = leaf[1:] if self.layered else leaf
    return (*leading, last // self.slot[1])

  def published_shape(self, leaf: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the published tensor (of one layer's) that a leaf has a part in."""
    *leading, last = self.share(leaf)
    own = (*leading, last * self.cut[1])
    if self.form is MATRIX:  # which would be copied, and is most of a model
      return own[::-1]
    return self.form.to_published(np.broadcast_to(np.uint8(0), own)).shape


class Tensor(NamedTuple):
  """A published tensor: the rows that share it, its layer, and its shape."""

  name: str
  rows: tuple[Row, ...]
  layer: int | None
  shape: tuple[int, ...]

  def value(self, leaves: Mapping[str, Any]) -> np.ndarray:
    """Made of our leaves, of which one layer is taken; C-ordered."""
    return _published(self.rows, leaves, self.layer)


def affine(
  there: str, here: str, weight: str, form: Form, slot: tuple[int, int] = WHOLE
) -> tuple[Row, Row]:
  """A layer with a bias: `weight` is what we call its other parameter."""
  return (
    Row(f"{there}.weight", f"{here}/{weight}", form, slot),
    Row(f"{there}.bias", f"{here}/bias", VECTOR, slot),
  )


def _kind(name: str) -> str:
  return re.sub(r"\d+", "#", name)


def _part(array: np.ndarray, part: tuple[int, int]) -> np.ndarray:
  number, count = part
  width = array.shape[-1] // count
  return array if count == 1 else array[..., number * width : (number + 1) * width]


class Beside(NamedTuple):
  """What lies beside an adapter: `pairs` of its key and our decoder's field, and the key
  of its `base`'s name. `must`: it has to, since rank and alpha are in no other place.
  """

  name: str = ""
  pairs: tuple[tuple[str, str], ...] = ()
  base: str = ""
  must: bool = False


NOTHING = Beside()


@dataclass(frozen=True)
class Layout:
  """A family of files: how to tell them, their rows, and what in them is not ours.

  Args:
    part: what it fills: "encoder", "decoder", "adapter" (LoRA and connector) or
      "qformer" (Q-Former and the norm before it).
    marks: patterns, each of which fits some name of a file that has this layout.
    rename: (pattern, replacement) that take a name to the one in the rows: prefixes of
      wrappers, older spellings.
    twins: patterns of names, as they stand in the file, that are second names of tensors
      that other names stand for too: both must be equal.
    ignored: patterns of names that carry nothing for the model.
    wrapper: the key of a pickle under which its tensors stand; "" at the top.
    spare_blocks: how many blocks after the model's last are ignored.
    fill: what a leaf, or "leaf[layer]", is filled with if the file lacks it.
    tied: (name, name): the first may be left out, or equals the second, where the model
      has one leaf for both.
    resized: whether positions of pictures of another size are interpolated, as the
      publishers' code does; otherwise they are another model's.
    tasks: our name of a task, and the publisher's.
    whole: its system's files hold connector and LoRA together: what the model has of
      both must be there. Otherwise one that is absent as a whole starts fresh.
    settings: the file of settings that lies beside an adapter.
  """

  name: str
  part: str
  marks: tuple[str, ...]
  rows: tuple[Row, ...]
  rename: tuple[tuple[str, str], ...] = ()
  twins: tuple[str, ...] = ()
  ignored: tuple[str, ...] = ()
  wrapper: str = ""
  spare_blocks: int = 0
  fill: Mapping[str, float] = field(default_factory=dict)
  tied: tuple[str, str] | None = None
  resized: bool = False
  tasks: Mapping[str, str] = field(default_factory=dict)
  whole: bool = False
  settings: Beside = NOTHING

  def of_tasks(self, tasks: tuple[str, ...]) -> Layout:
    """The same with a tensor for each of a model's tasks where a row has "{task}".

    A task of ours that the publisher does not have starts with zeros if the file has
    nothing of its name.
    """
    if not any("{task}" in row.published for row in self.rows):
      return self
    rows, fill = [], dict(self.fill)
    for row in self.rows:
      if "{task}" in row.published:
        stems = tuple(self.tasks.get(task, task) for task in tasks)
        published = row.published.replace("{task}", "{i}")
        row = row._replace(published=published, stems=stems)
        new = (n for n, task in enumerate(tasks) if task not in self.tasks)
        fill |= dict.fromkeys((f"{row.path}[{number}]" for number in new), 0.0)
      rows.append(row)
    return replace(self, rows=tuple(rows), fill=fill)

  def canonical(self, name: str) -> str:
    for pattern, replacement in self.rename:
      name = re.sub(pattern, replacement, name)
    return name

  def fits(self, names: tuple[str, ...]) -> bool:
    """Whether files with these tensors have this layout."""
    own = [self.canonical(name) for name in names]
    return all(any(re.fullmatch(mark, name) for name in own) for mark in self.marks)

  def ignores(self, name: str) -> bool:
    """For a canonical name."""
    return any(re.fullmatch(pattern, name) for pattern in self.ignored)

  def repeats(self, name: str, other: str) -> bool:
    """For two names of one canonical name: whether a file of it holds both."""
    return any(re.fullmatch(p, n) for p in self.twins for n in (name, other))

  @cached_property
  def _patterns(self) -> dict[str, list[tuple[re.Pattern[str], Row]]]:
    """By what a name is without its numbers."""
    found: dict[str, list[tuple[re.Pattern[str], Row]]] = {}
    for row in self.rows:
      layers = range(len(row.stems) or 1) if row.layered else (None,)
      for kind in dict.fromkeys(_kind(row.name(layer)) for layer in layers):
        found.setdefault(kind, []).append((row.pattern, row))
    return found

  def rows_of(self, name: str) -> list[tuple[Row, int | None]]:
    """The rows that a canonical name has a part in, and its layer."""
    found = []
    for pattern, row in self._patterns.get(_kind(name), ()):
      match = pattern.fullmatch(name)
      if match:
        found.append((row, row.layer(match)))
    return found

  def tensors(self, leaves: Mapping[str, Any]) -> Iterator[Tensor]:
    """What {our path: leaf} makes, the way back: nothing is read, shapes are enough.

    Rows whose leaf is not there are left out; leaves without a row are the caller's to
    look after (`paths`).
    """
    groups: dict[str, list[Row]] = {}
    named: dict[tuple[str, tuple[int, int]], str] = {}
    for row in self.rows:
      if row.needs and row.needs not in leaves:
        continue
      first = named.setdefault((row.path, row.slot), row.published)
      if not row.path or first == row.published:
        groups.setdefault(row.published, []).append(row)
    for rows in groups.values():
      held = [row for row in rows if row.path in leaves]
      if not held:
        continue
      shape = leaves[held[0].path].shape
      turned = held[0].published_shape(shape)
      for layer in range(shape[0]) if held[0].layered else [None]:
        yield Tensor(held[0].name(layer), tuple(rows), layer, turned)

  def publish(
    self, leaves: Mapping[str, np.ndarray]
  ) -> Iterator[tuple[str, np.ndarray]]:
    """{our path: leaf} -> (published name, tensor), one at a time, the way back."""
    for tensor in self.tensors(leaves):
      yield tensor.name, tensor.value(leaves)

  @property
  def paths(self) -> frozenset[str]:
    """Every path of ours that the rows know."""
    return frozenset(row.path for row in self.rows if row.path)


def _published(
  rows: tuple[Row, ...], leaves: Mapping[str, Any], layer: int | None
) -> np.ndarray:
  """One published tensor from the rows that share it."""
  shares: dict[int, np.ndarray] = {}
  for row in rows:
    if row.path:
      leaf = leaves[row.path]
      own = np.asarray(leaf if layer is None else leaf[layer])
      shares[row.cut[0]] = _part(own, row.slot)
  blank = np.zeros_like(next(iter(shares.values())))
  parts = [shares.get(number, blank) for number in range(rows[0].cut[1])]
  whole = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)
  return np.ascontiguousarray(rows[0].form.to_published(whole))
