"""Which published tensor becomes which part of which leaf: all decided before a byte.

A plan accounts for every name of every source and for every leaf of the model, or there
is none: a mismatch lists both sides.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import field
from typing import Any
from typing import NamedTuple

import jax.numpy as jnp
import ml_dtypes
import numpy as np

from imax_jax import tree as tree_lib
from imax_jax.weights import positions
from imax_jax.weights.checkpoints import Checkpoint
from imax_jax.weights.layouts import Form
from imax_jax.weights.layouts import Layout
from imax_jax.weights.layouts import Row
from imax_jax.weights.layouts import same
from imax_jax.weights.rows_of_layouts import LAYOUTS

# Parts of the model that a foundation may lack, as a whole: they start fresh.
OPTIONAL = ("connector", "adapter")
# The axis of the vocabulary.
_VOCABULARY = {"decoder/embed/embedding": 0, "decoder/head/kernel": 1}


class Leaf(NamedTuple):
  """What is written of one of the model's parameters."""

  shape: tuple[int, ...]
  dtype: np.dtype


class Source(NamedTuple):
  checkpoint: Checkpoint
  layout: Layout


class Piece(NamedTuple):
  """A tensor that fills a slot of a leaf, or of one layer of it."""

  source: Source
  name: str
  row: Row


@dataclass
class Plan:
  """`slabs` {(path, layer or None): pieces in the order of their slots}."""

  leaves: dict[str, Leaf]
  slabs: dict[tuple[str, int | None], list[Piece]]
  filled: dict[str, float] = field(default_factory=dict)
  zeros: list[Piece] = field(default_factory=list)
  tied: list[tuple[Source, str, str]] = field(default_factory=list)
  ignored: dict[str, list[str]] = field(default_factory=dict)
  absent: list[str] = field(default_factory=list)


def stored_leaves(flat: Mapping[str, Any]) -> dict[str, Leaf]:
  """{path: what a foundation keeps of it}.

  Quantised kernels are kept as the bfloat16 matrices that they are made from: int8 has
  their shape, NF4 packs two rows of theirs into one.
  """
  leaves = {}
  for path, leaf in flat.items():
    shape, dtype = tuple(leaf.shape), np.dtype(leaf.dtype)
    if path.endswith("/kernel_scale"):
      continue
    if f"{path}_scale" in flat:
      packed = 2 if dtype == np.uint8 else 1
      shape = (*shape[:-2], packed * shape[-2], shape[-1])
      dtype = np.dtype(ml_dtypes.bfloat16)
    leaves[path] = Leaf(shape, dtype)
  return leaves


def part_of(path: str) -> str:
  """The part of the model that a leaf belongs to."""
  return "adapter" if "/lora_" in path else path.split("/")[0]


def recognise(checkpoint: Checkpoint, part: str) -> Layout:
  """The layout of a checkpoint, by its tensors' names alone.

  Raises:
    ValueError: none fits, or it is one of another part.
  """
  fitting = [layout for layout in LAYOUTS if layout.fits(checkpoint.names)]
  for layout in fitting:
    if layout.part != part:
      continue
    if checkpoint.wrapper not in ("", layout.wrapper):
      place = f"under {layout.wrapper!r}" if layout.wrapper else "at the top"
      raise ValueError(
        f"{checkpoint.path}: its tensors stand under {checkpoint.wrapper!r}, expected "
        f"them {place} in a file of layout {layout.name}"
      )
    return layout
  own = _own(checkpoint, part)
  if own.rows:
    return own
  known = ", ".join(layout.name for layout in LAYOUTS if layout.part == part)
  what = (
    f"a file of the {fitting[0].part} ({fitting[0].name})"
    if fitting
    else f"{len(checkpoint.names)} tensors like {', '.join(checkpoint.names[:3])}"
  )
  raise ValueError(
    f"{checkpoint.path}: expected a published {part} ({known}), got {what}. Check which "
    "path was given for which part"
  )


def _own(checkpoint: Checkpoint, part: str) -> Layout:
  """One of our own foundations, of which a part is taken as it is."""
  parts = {"adapter": OPTIONAL}.get(part, (part,))
  rows = tuple(
    Row(name, name, Form(len(checkpoint.shape(name)), same, same))
    for name in checkpoint.names
    if part_of(name) in parts
  )
  return Layout("imax_jax", part, (), rows, ignored=(".*",))


def make_plan(sources: Sequence[Source], leaves: Mapping[str, Leaf]) -> Plan:
  """Accounts for everything, before anything is read.

  Sources with the same checkpoint share it: a tensor that one of them takes is taken.

  Raises:
    ValueError: a leaf that nothing fills, a tensor that nobody takes, or shapes that
      differ; both sides are printed.
  """
  plan = Plan(dict(leaves), {})
  problems: list[str] = []
  for checkpoint in {
    id(source.checkpoint): source.checkpoint for source in sources
  }.values():
    layouts = [source for source in sources if source.checkpoint is checkpoint]
    ignored = []
    for name in checkpoint.names:
      verdicts = {_place(plan, source, name, problems) for source in layouts}
      if "taken" in verdicts:
        continue
      if "ignored" in verdicts:
        ignored.append(name)
        continue
      problems.append(
        f"unexpected {name} {checkpoint.shape(name)} in {checkpoint.file(name).name}"
      )
    parts = ", ".join(source.layout.part for source in layouts)
    plan.ignored[parts] = [*ignored, *checkpoint.beside]
  _close(plan, sources, problems)
  if problems:
    paths = ", ".join(str(source.checkpoint.path) for source in sources)
    raise ValueError(
      f"{paths}: {len(problems)} differences between files and model:\n"
      f"{tree_lib.listed(problems)}\nGive the files of this model, or the zoo row of these files."
    )
  return plan


def _place(plan: Plan, source: Source, name: str, problems: list[str]) -> str:
  """Enters a tensor in the plan: "taken", "ignored" or "unexpected"."""
  layout, leaves = source.layout, plan.leaves
  own = layout.canonical(name)
  rows = layout.rows_of(own)
  if not rows:
    return "ignored" if layout.ignores(own) else "unexpected"
  row, layer = next((row, layer) for row, layer in rows if row.path)
  if row.path not in leaves:
    twin = layout.tied[1] if layout.tied and own == layout.tied[0] else None
    if twin in source.checkpoint.names:
      plan.tied.append((source, name, twin))
      return "taken"
    return "unexpected"
  if layer is not None and layer >= leaves[row.path].shape[0]:
    spare = layer < leaves[row.path].shape[0] + layout.spare_blocks
    return "ignored" if spare else "unexpected"
  for row, layer in rows:
    piece = Piece(source, name, row)
    if not row.path:
      plan.zeros.append(piece)
    elif row.path not in leaves:
      return "unexpected"
    else:
      problem = _misfit(piece, leaves)
      if problem:
        problems.append(problem)
      plan.slabs.setdefault((row.path, layer), []).append(piece)
  return "taken"


def _misfit(piece: Piece, leaves: Mapping[str, Leaf]) -> str:
  """What is wrong with a tensor's shape or dtype; "" if nothing is."""
  (checkpoint, _), name, row = piece
  shape, dtype = checkpoint.shape(name), checkpoint.dtype(name)
  got, want = row.shape(shape), row.share(leaves[row.path].shape)
  where = f"{name} {shape} in {checkpoint.file(name).name}"
  if not jnp.issubdtype(dtype, jnp.floating):
    return f"dtype      {where}: expected floats, got {dtype}"
  if got == want:
    return ""
  if row.path == "encoder/positions" and got and got[1:] == want[1:]:
    class_token = "encoder/class_token" in leaves
    if positions.resizable(got[0], want[0], class_token=class_token):
      return ""
  line = f"shape      {where}: expected {want} for {row.path}, got {got or shape}"
  axis = _VOCABULARY.get(row.path)
  if axis is not None and got and got[axis] != want[axis]:
    line += f" (vocabulary: {got[axis]} rows there, vocab_size {want[axis]} here)"
  return line


def _close(plan: Plan, sources: Sequence[Source], problems: list[str]) -> None:
  """What is left open, filled, or absent as a whole."""
  begun = {part_of(path) for path, _ in plan.slabs}
  fill = {
    path: value for source in sources for path, value in source.layout.fill.items()
  }
  names = {row.path: row for source in sources for row in reversed(source.layout.rows)}
  given = {path for path, _ in plan.slabs}
  for path, leaf in plan.leaves.items():
    part = part_of(path)
    if part in OPTIONAL and part not in begun:
      plan.absent.append(path)
    elif path in fill and path not in given:
      plan.filled[path] = fill[path]
    else:
      _close_leaf(plan, path, leaf, names.get(path), problems)


def _close_leaf(
  plan: Plan, path: str, leaf: Leaf, row: Row | None, problems: list[str]
) -> None:
  """Every slot of every layer once, in order."""
  layered = row is not None and row.layered
  for layer in range(leaf.shape[0]) if layered else [None]:
    pieces = plan.slabs.get((path, layer), [])
    pieces.sort(key=lambda piece: piece.row.slot)
    slots = [piece.row.slot[0] for piece in pieces]
    count = pieces[0].row.slot[1] if pieces else 1
    where = path if layer is None else f"{path}[{layer}]"
    if slots == list(range(count)):
      continue
    twice = [piece.name for piece in pieces if slots.count(piece.row.slot[0]) > 1]
    if twice:
      problems.append(f"twice      {where} from {' and '.join(twice)}")
      continue
    wanted = f" from {row.name(layer)}" if row else ""
    problems.append(
      f"missing    {where} {leaf.shape[1:] if layered else leaf.shape}{wanted}"
    )
