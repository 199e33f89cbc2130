"""Which published tensor becomes which part of which leaf: all decided before a byte.

A plan accounts for every name of every source and for every leaf of the model, or there
is none: a mismatch lists both sides.
"""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Iterable
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
from imax_jax.weights import own
from imax_jax.weights import positions
from imax_jax.weights import signatures
from imax_jax.weights.checkpoints import Checkpoint
from imax_jax.weights.layouts import Layout
from imax_jax.weights.layouts import Row
from imax_jax.weights.own import group_of
from imax_jax.weights.own import part_of as part_of
from imax_jax.weights.vocabulary import AS_IT_IS
from imax_jax.weights.vocabulary import AXES
from imax_jax.weights.vocabulary import Vocabulary

# Which of a checkpoint's sources is asked first what a tensor is.
_ORDER = ("encoder", "decoder", "qformer", "adapter")


class Leaf(NamedTuple):
  """What is written of one of the model's parameters."""

  shape: tuple[int, ...]
  dtype: np.dtype


class Source(NamedTuple):
  checkpoint: Checkpoint
  layout: Layout


class Piece(NamedTuple):
  """A tensor that fills a slot of a leaf, or of one layer of it.

  `rows`: the first and the one after the last that it fills of a table of the vocabulary.
  """

  source: Source
  name: str
  row: Row
  rows: tuple[int, int] | None = None


@dataclass
class Plan:
  """`slabs` {(path, layer or None): pieces in the order of their slots}.

  Of a table of the vocabulary, pieces that lie over each other. `twins` are second names
  of a tensor, `tied` a head that is the embedding.
  """

  leaves: dict[str, Leaf]
  slabs: dict[tuple[str, int | None], list[Piece]]
  vocabulary: Vocabulary = AS_IT_IS
  filled: dict[str, float] = field(default_factory=dict)
  zeros: list[Piece] = field(default_factory=list)
  tied: list[tuple[Source, str, str]] = field(default_factory=list)
  twins: list[tuple[Source, str, str]] = field(default_factory=list)
  ignored: dict[str, list[str]] = field(default_factory=dict)
  absent: list[str] = field(default_factory=list)


class Problems:
  """What does not fit, and in which checkpoints."""

  def __init__(self) -> None:
    self.lines: list[str] = []
    self._checkpoints: dict[int, Checkpoint] = {}

  def add(self, line: str, checkpoints: Iterable[Checkpoint]) -> None:
    self.lines.append(line)
    self._checkpoints |= {id(checkpoint): checkpoint for checkpoint in checkpoints}

  def check(self) -> None:
    """Raises a ValueError if there are some."""
    if self.lines:
      paths = ", ".join(map(signatures.named, self._checkpoints.values()))
      raise ValueError(
        f"{paths}: {len(self.lines)} differences between files and model:\n"
        f"{tree_lib.listed(self.lines)}\nGive the files of this model, or the zoo row of "
        "these files."
      )


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


def make_plan(
  sources: Sequence[Source],
  leaves: Mapping[str, Leaf],
  vocabulary: Vocabulary = AS_IT_IS,
  whole: Collection[str] = (),
) -> Plan:
  """Accounts for everything, before anything is read.

  Sources with the same checkpoint share it: a tensor that one of them takes is taken.

  Args:
    vocabulary: how tables of another length are taken.
    whole: groups (`own.group_of`) of which the model's leaves may not start fresh.

  Raises:
    ValueError: a leaf that nothing fills, a tensor that nobody takes, or shapes that
      differ; both sides are printed.
  """
  plan = Plan(dict(leaves), {}, vocabulary)
  problems = Problems()
  for checkpoint in {
    id(source.checkpoint): source.checkpoint for source in sources
  }.values():
    layouts = [source for source in sources if source.checkpoint is checkpoint]
    asked = sorted(layouts, key=lambda source: _ORDER.index(source.layout.part))
    known: dict[tuple[str, str], str] = {}
    ignored = []
    for name in checkpoint.names:
      verdicts = set()
      for source in asked:
        verdicts.add(_place(plan, source, name, known, problems))
        if "taken" in verdicts:
          break
      if "taken" in verdicts:
        continue
      if "ignored" in verdicts:
        ignored.append(name)
        continue
      where = checkpoint.file(name).name
      problems.add(
        f"unexpected {name} {checkpoint.shape(name)} in {where}", [checkpoint]
      )
    parts = ", ".join(source.layout.part for source in layouts)
    plan.ignored[parts] = [*ignored, *checkpoint.beside]
  _close(plan, sources, whole, problems)
  problems.check()
  return plan


def _place(
  plan: Plan,
  source: Source,
  name: str,
  known: dict[tuple[str, str], str],
  problems: Problems,
) -> str:
  """Enters a tensor in the plan: "taken", "ignored" or "unexpected".

  `known` {(layout, canonical name): the name that was taken for it}.
  """
  layout, leaves = source.layout, plan.leaves
  plain = layout.canonical(name)
  rows = layout.rows_of(plain)
  if not rows:
    return "ignored" if layout.ignores(plain) else "unexpected"
  row, layer = next((row, layer) for row, layer in rows if row.path)
  if row.path not in leaves:
    if layout.tied and plain == layout.tied[0]:
      for other in source.checkpoint.names:
        if layout.canonical(other) == layout.tied[1]:
          plan.tied.append((source, name, other))
          return "taken"
    return "ignored" if layout.ignores(plain) else "unexpected"
  if layer is not None and layer >= leaves[row.path].shape[0]:
    spare = layer < leaves[row.path].shape[0] + layout.spare_blocks
    return "ignored" if spare else "unexpected"
  twin = known.setdefault((layout.name, plain), name)
  if twin != name and layout.repeats(name, twin):
    plan.twins.append((source, name, twin))
    return "taken"
  for row, layer in rows:
    piece = Piece(source, name, row, _rows(plan, source, name, row))
    if not row.path:
      plan.zeros.append(piece)
    elif row.path not in leaves:
      return "unexpected"
    else:
      problem = _misfit(piece, plan)
      if problem:
        problems.add(problem, [source.checkpoint])
      plan.slabs.setdefault((row.path, layer), []).append(piece)
  return "taken"


def _rows(plan: Plan, source: Source, name: str, row: Row) -> tuple[int, int] | None:
  """What a table of the vocabulary fills of the model's rows; None of anything else."""
  axis, leaf = AXES.get(row.path), plan.leaves.get(row.path)
  shape = row.shape(source.checkpoint.shape(name))
  if axis is None or leaf is None or shape is None or len(shape) != 2:
    return None
  over = source.layout.part == "adapter"
  return plan.vocabulary.rows(shape[axis], leaf.shape[axis], over=over)


def _misfit(piece: Piece, plan: Plan) -> str:
  """What is wrong with a tensor's shape or dtype; "" if nothing is."""
  (checkpoint, layout), name, row, rows = piece
  shape, dtype = checkpoint.shape(name), checkpoint.dtype(name)
  leaves = plan.leaves
  got, want = row.shape(shape), row.share(leaves[row.path].shape)
  where = f"{name} {shape} in {checkpoint.file(name).name}"
  if not jnp.issubdtype(dtype, jnp.floating):
    return f"dtype      {where}: expected floats, got {dtype}"
  axis = AXES.get(row.path)
  if got == want:
    return ""
  if rows and got and axis is not None and got[1 - axis] == want[1 - axis]:
    return ""
  if row.path == "encoder/positions" and got and got[1:] == want[1:]:
    class_token = "encoder/class_token" in leaves
    fits = positions.resizable(got[0], want[0], class_token=class_token)
    if fits and layout.resized:
      return ""
  line = f"shape      {where}: expected {want} for {row.path}, got {got or shape}"
  if axis is not None and got and got[axis] != want[axis]:
    line += plan.vocabulary.misfit(got[axis], want[axis])
  return line


def _close(
  plan: Plan, sources: Sequence[Source], whole: Collection[str], problems: Problems
) -> None:
  """What is left open, filled, or absent as a whole."""
  begun = {group_of(path) for path, _ in plan.slabs}
  # A Q-Former's file has the norm that other files may lack.
  held = {
    path
    for source in sources
    if source.layout.part == "qformer"
    for path in source.layout.paths
  }
  fill = {
    path: value
    for source in sources
    for path, value in source.layout.fill.items()
    if path not in held
  }
  names = {row.path: row for source in sources for row in reversed(source.layout.rows)}
  needed = set(whole) | {
    group_of(row.path)
    for source in sources
    for row in source.layout.rows
    if source.layout.whole and row.path in plan.leaves
  }
  given = {path for path, _ in plan.slabs}
  asked = [source.checkpoint for source in sources]
  for path, leaf in plan.leaves.items():
    part = group_of(path)
    if part in own.OPTIONAL and part not in begun | needed:
      plan.absent.append(path)
    elif path in fill and path not in given:
      plan.filled[path] = fill[path]
    else:
      own_row = names.get(path)
      meant = [s.checkpoint for s in sources if path in s.layout.paths]
      _close_leaf(plan, path, leaf, own_row, fill, meant or asked, problems)


def _close_leaf(
  plan: Plan,
  path: str,
  leaf: Leaf,
  row: Row | None,
  fill: Mapping[str, float],
  meant: Sequence[Checkpoint],
  problems: Problems,
) -> None:
  """Every slot of every layer once, in order."""
  layered = row is not None and row.layered
  for layer in range(leaf.shape[0]) if layered else [None]:
    pieces = plan.slabs.get((path, layer), [])
    pieces.sort(key=lambda piece: piece.row.slot)
    if path in AXES and _stacked(plan, path, pieces):
      continue
    slots = [piece.row.slot[0] for piece in pieces]
    count = pieces[0].row.slot[1] if pieces else 1
    where = path if layer is None else f"{path}[{layer}]"
    if slots == list(range(count)):
      continue
    twice = [piece.name for piece in pieces if slots.count(piece.row.slot[0]) > 1]
    if twice:
      line = f"twice      {where} from {' and '.join(twice)}"
      problems.add(line, [piece.source.checkpoint for piece in pieces])
      continue
    if where in fill and not pieces:
      plan.filled[where] = fill[where]
      continue
    wanted = f" from {row.name(layer)}" if row else ""
    shape = leaf.shape[1:] if layered else leaf.shape
    problems.add(f"missing    {where} {shape}{wanted}", meant)


def _stacked(plan: Plan, path: str, pieces: list[Piece]) -> bool:
  """Puts an adapter's table over the decoder's; False where they are no such two."""
  pieces.sort(key=lambda piece: piece.source.layout.part == "adapter")
  parts = [piece.source.layout.part for piece in pieces]
  whole = (0, plan.leaves[path].shape[AXES[path]])
  if parts == ["adapter"] and pieces[0].rows != whole:
    pieces.clear()  # the rest of the table is in no file
  if parts == ["decoder", "adapter"] and pieces[1].rows == whole:
    del pieces[0]
  return parts == ["decoder", "adapter"]
