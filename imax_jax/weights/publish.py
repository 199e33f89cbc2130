"""Writes an edition: trained weights in the files that a published system's users load.

    our parameters ──Edition──▶ {file: tensors in its publisher's names} ──▶ folder
                                                     └── read back, to the bit ◀──┘

All is named before a byte is written; a tensor at a time is in memory.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from imax_jax.ledger import write_json
from imax_jax.models import lora
from imax_jax.weights import convert
from imax_jax.weights import delta
from imax_jax.weights import export
from imax_jax.weights import files
from imax_jax.weights import peft
from imax_jax.weights import plan as plan_lib
from imax_jax.weights import torch_file
from imax_jax.weights.checkpoints import Checkpoint
from imax_jax.weights.checkpoints import open_checkpoint
from imax_jax.weights.editions import Edition
from imax_jax.weights.editions import File
from imax_jax.weights.editions import Section
from imax_jax.weights.export import Item
from imax_jax.weights.export import Leaf
from imax_jax.weights.layouts import Layout
from imax_jax.weights.own import group_of
from imax_jax.weights.plan import Source
from imax_jax.weights.rows_of_layouts import layout
from imax_jax.weights.settings import Facts

# Parts that no base's own files hold: they go along, trained or not.
_OURS = ("connector", "adapter")


@dataclass(frozen=True)
class Planned:
  """A file to be written: what it is, its tensors, and the tables to read it by."""

  file: File
  dtype: np.dtype
  items: tuple[Item, ...]
  leaves: Mapping[str, Leaf]
  tables: tuple[Layout, ...]

  @property
  def names(self) -> tuple[str, ...]:
    return tuple(item.name for item in self.items)


def plan(
  edition: Edition,
  params: Mapping[str, Any],
  trained: AbstractSet[str],
  model: Mapping[str, Mapping[str, Any]],
  dtype: str = "",
  base: Checkpoint | None = None,
) -> list[Planned]:
  """Names everything; nothing is read.

  Args:
    params: {path: array or stand-in} of the whole model.
    trained: the paths of what training changed.
    model: the fields of the model's parts.
    dtype: what whole parts are kept as; "" is the edition's own.
    base: a published decoder, from which ours is written as differences.

  Raises:
    ValueError: something trained has no name in this edition, H-LoRA would have to be
      merged, or the base is not this model's.
  """
  if base is not None and not edition.differs:
    raise ValueError(
      f"publish: layout {edition.name} holds no differences; leave publish.base empty"
    )
  routed = sorted(path for path in params if path.endswith("/lora_route"))
  if edition.merges and routed:
    raise ValueError(
      f"publish: layout {edition.name} has no name for {routed[0]}: {lora.NOT_A_PAIR}"
    )
  planned = [
    _plan_file(edition, file, params, trained, model, dtype, base)
    for file in edition.files
  ]
  for found in planned:
    if found.file.always and not found.items:
      raise ValueError(
        f"publish: layout {edition.name} has a file {found.file.name}, and the model "
        "nothing to stand in it; choose the layout of a model like this one"
      )
  planned = [found for found in planned if found.items]
  named = {path for found in planned for path in found.leaves}
  if edition.merges:
    named |= {path for path in trained if group_of(path) == "adapter"}
  lost = sorted(set(trained) - named)
  if lost:
    raise ValueError(
      f"publish: layout {edition.name} has no name for {len(lost)} trained parameters: "
      f"{', '.join(lost[:4])}. Choose a layout that has, or train what it holds"
    )
  return planned


def _plan_file(
  edition: Edition,
  file: File,
  params: Mapping[str, Any],
  trained: AbstractSet[str],
  model: Mapping[str, Mapping[str, Any]],
  dtype: str,
  base: Checkpoint | None,
) -> Planned:
  kept = edition.kept(file, dtype)
  alpha = peft.filled(model["decoder"])["lora_alpha"]
  source = params if edition.merges else _without_pairs(params)
  items: list[Item] = []
  leaves: dict[str, Leaf] = {}
  tables: list[Layout] = []
  for section in file.sections:
    wanted = _wanted(section, file, params, trained)
    table = _table(edition, section, wanted, model)
    held = {
      path: Leaf(params if path not in source else source, path, alpha, kept)
      for path in wanted
    }
    tensors = tuple(table.tensors(held))
    below = {}
    if base is not None and "decoder" in section.parts:
      below = delta.stand_on(base, table, tensors)
    for tensor in tensors:
      under = (base, below[tensor.name]) if base and tensor.name in below else None
      items.append(Item(_spelt(tensor.name, section), tensor, held, under))
    leaves |= held
    if held and table not in tables:
      tables.append(table)
  if not file.always and not leaves.keys() & trained:
    items = []
  return Planned(file, kept, tuple(items), leaves if items else {}, tuple(tables))


def _without_pairs(params: Mapping[str, Any]) -> dict[str, Any]:
  """Kernels as they are, where LoRA stands beside them in a file of its own."""
  return {path: leaf for path, leaf in params.items() if group_of(path) != "adapter"}


def _wanted(
  section: Section, file: File, params: Mapping[str, Any], trained: AbstractSet[str]
) -> list[str]:
  return [
    path
    for path in plan_lib.stored_leaves(params)
    if group_of(path) in section.parts
    and (file.whole or group_of(path) in _OURS or path in trained)
  ]


def _table(
  edition: Edition,
  section: Section,
  wanted: list[str],
  model: Mapping[str, Mapping[str, Any]],
) -> Layout:
  tasks = tuple(model["connector"].get("tasks", ()))
  tables = [layout(name).of_tasks(tasks) for name in section.layouts]
  fitting = [table for table in tables if table.paths >= set(wanted)]
  if not fitting:
    lost = sorted(
      set(wanted) - max(tables, key=lambda t: len(t.paths & {*wanted})).paths
    )
    raise ValueError(
      f"publish: layout {edition.name} has no name for {lost[0]} "
      f"({len(lost)} such parameters); choose a layout that holds such a model"
    )
  return fitting[0]


def _spelt(name: str, section: Section) -> str:
  for pattern, replacement in section.spelling:
    name = re.sub(pattern, replacement, name)
  return name


# ── Written ───────────────────────────────────────────────────────────────────────


def write(folder: Path, edition: Edition, planned: list[Planned], facts: Facts) -> int:
  """Writes all files of an edition into an existing folder; returns bytes of tensors."""
  for found in planned:
    if found.file.is_folder:
      target = folder / found.file.name.strip("/")
      target.mkdir(exist_ok=True)
      export.copy_beside(facts.base, target)
      export.write_shards(target, found.items, found.dtype)
    else:
      _write_file(folder / found.file.name, found)
  for name, value in edition.settings(facts).items():
    write_json(folder / name, value)
  return sum(
    int(np.prod(item.tensor.shape)) * found.dtype.itemsize
    for found in planned
    for item in found.items
  )


def _write_file(path: Path, found: Planned) -> None:
  table = {item.name: (item.tensor.shape, found.dtype) for item in found.items}
  file = found.file
  if path.suffix == ".safetensors":
    with files.tensor_writer(path, table, peft.TORCH) as writer:
      for item in found.items:
        writer.write(item.name, item.value())
    return
  twins = {}
  if file.twins:
    pattern, replacement = file.twins
    spelt = {name: re.sub(pattern, replacement, name) for name in table}
    twins = {other: name for name, other in spelt.items() if other != name}
  with torch_file.torch_writer(
    path, table, twins=twins, wrapper=file.wrapper, beside=file.beside
  ) as torch_writer:
    for item in found.items:
      torch_writer.write(item.name, item.value())


# ── Read back ─────────────────────────────────────────────────────────────────────


def check(
  folder: Path,
  planned: list[Planned],
  decoder: Mapping[str, Any],
  base: Checkpoint | None = None,
) -> float:
  """Reads all files again, as `convert` does, and compares them to the bit.

  Differences are compared to the bit as they are written; what they and their base add
  up to is rounded twice. Returns the largest error of that, 0 where there is no base.

  Args:
    decoder: the fields of the model's.

  Raises:
    ValueError: a file that does not give back what was written.
  """
  error = 0.0
  for found in planned:
    path = folder / found.file.name.strip("/")
    with (
      tempfile.TemporaryDirectory(prefix=".unpickled-", dir=folder.parent) as scratch,
      open_checkpoint(path, Path(scratch)) as checkpoint,
    ):
      if base is not None:
        _check_items(path, checkpoint, found)
        checkpoint = delta.Sum.of(checkpoint, base, decoder)
      error = max(error, _check_leaves(path, checkpoint, planned, base is None))
  return error


def _check_items(path: Path, checkpoint: Checkpoint, found: Planned) -> None:
  for item in found.items:
    if not _same(checkpoint.read(item.name), item.value()):
      raise ValueError(_lost(path, [item.name]))


def _check_leaves(
  path: Path, checkpoint: Checkpoint, planned: list[Planned], exactly: bool
) -> float:
  """All that stands in one file, or in several that are read as one."""
  inside = [
    found for found in planned if not {*found.names}.isdisjoint(checkpoint.names)
  ]
  wanted = {name: leaf for found in inside for name, leaf in found.leaves.items()}
  tables = {table.name: table for found in inside for table in found.tables}
  leaves = {
    name: plan_lib.Leaf(leaf.shape, leaf.dtype) for name, leaf in wanted.items()
  }
  sources = [Source(checkpoint, table) for table in tables.values()]
  reading = plan_lib.make_plan(sources, leaves)
  lost = {*reading.filled, *reading.absent}
  error = 0.0
  for (leaf, layer), pieces in reading.slabs.items():
    back, was = convert.slab(pieces, reading), wanted[leaf][layer]
    if exactly and not _same(back, was):
      lost.add(leaf)
    apart = np.abs(back.astype(np.float32) - was.astype(np.float32))
    error = max(error, float(apart.max(initial=0.0)))
  if lost:
    raise ValueError(_lost(path, sorted(lost)))
  return error


def _lost(path: Path, names: list[str]) -> str:
  return (
    f"{path}: read back, {names[0]} is not what was written ({len(names)} such): the disk "
    "is damaged, or its table does not go both ways"
  )


def _same(one: np.ndarray, other: np.ndarray) -> bool:
  kind = f"u{one.dtype.itemsize}"
  return one.dtype == other.dtype and np.array_equal(
    np.ascontiguousarray(one).view(kind), np.ascontiguousarray(other).view(kind)
  )
