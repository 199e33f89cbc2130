"""Reads a partitioned XLA program's text: what one device multiplies, sends and carries.

The text is HLO as XLA prints it: computations in braces, an instruction a line, `while`
naming the computations of its body and of its condition. Shapes are one device's own.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from collections.abc import Mapping
from typing import NamedTuple

KINDS = (
  "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute"
)  # fmt: skip
# Bytes that a device sends and as many that it receives, a byte of result and of g
# devices; XLA's usual ring.
_ON_THE_WIRE = {
  "all-gather": lambda g: (g - 1) / g,
  "all-reduce": lambda g: 2 * (g - 1) / g,
  "reduce-scatter": lambda g: g - 1,
  "all-to-all": lambda g: (g - 1) / g,
  "collective-permute": lambda g: 1,
}
_BITS = {"pred": 8, "bf16": 16}  # the others' names end in theirs: f32, s8, u32

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^  (?:ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*)$")
_SHAPE = re.compile(r"\b(pred|bf16|[a-z]\d+\w*)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:to_apply|calls|body)=%?([\w.-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


class Tensor(NamedTuple):
  dtype: str
  shape: tuple[int, ...]

  @property
  def bytes(self) -> int:
    digits = re.findall(r"\d+", self.dtype)
    bits = _BITS.get(self.dtype) or int(digits[0])
    return math.prod(self.shape) * bits // 8


class Collective(NamedTuple):
  kind: str
  tensors: tuple[Tensor, ...]  # its results
  group: int  # devices that take part
  times: int  # a step

  @property
  def bytes(self) -> int:
    """Of the results, in a step."""
    return self.times * sum(tensor.bytes for tensor in self.tensors)

  @property
  def wire(self) -> float:
    """Bytes that a device sends in a step."""
    return self.bytes * _ON_THE_WIRE[self.kind](self.group)


class Program(NamedTuple):
  flops: int  # of matrix products, a device and step
  collectives: tuple[Collective, ...]
  carried: tuple[Tensor, ...]  # by loops from turn to turn, and a turn's slices' whole
  loops_of_unknown_length: int  # whose bodies are counted once


class _Instruction(NamedTuple):
  name: str
  result: str
  kind: str
  rest: str  # operands and attributes


def read(text: str, num_devices: int) -> Program:
  """What one device does in one run of the program.

  A loop's body counts as often as it runs: the constant that the loop's condition
  compares with, since jax's scans count from 0 by 1.

  Raises:
    ValueError: text without an entry computation.
  """
  computations, entry = _computations(text)
  times, unknown = _times(computations, entry)
  flops, collectives, carried = 0, [], []
  for name, count in times.items():
    shapes = {line.name: tensors(line.result) for line in computations[name]}
    for line in computations[name]:
      kind = line.kind.removesuffix("-start")
      if line.kind == "dot":
        flops += count * _dot_flops(line, shapes)
      elif line.kind == "while":
        carried += tensors(line.result)
      elif kind in KINDS:
        found = tensors(line.result)
        # An asynchronous one's result holds its operands first.
        found = found[len(found) // 2 :] if kind != line.kind else found
        group = _group(line.rest, num_devices)
        collectives.append(Collective(kind, tuple(found), group, count))
  return Program(flops, tuple(collectives), tuple(carried), unknown)


def tensors(result: str) -> list[Tensor]:
  """An instruction's result, a shape or a tuple of them.

  >>> tensors("(s32[], bf16[2,8]{1,0})")
  [Tensor(dtype='s32', shape=()), Tensor(dtype='bf16', shape=(2, 8))]
  """
  return [
    Tensor(dtype, tuple(int(size) for size in sizes.split(",") if size))
    for dtype, sizes in _SHAPE.findall(result)
  ]


def _computations(text: str) -> tuple[dict[str, list[_Instruction]], str]:
  found: dict[str, list[_Instruction]] = {}
  entry, lines = "", None
  for line in text.splitlines():
    head = _COMPUTATION.match(line)
    if head:
      lines = found.setdefault(head[2], [])
      entry = head[2] if head[1] else entry
    elif line.startswith("}"):
      lines = None
    elif lines is not None:
      match = _INSTRUCTION.match(line)
      if match:
        lines.append(_Instruction(*match.groups()))
  if not entry:
    raise ValueError("HLO text without an ENTRY computation: XLA's format has changed")
  return found, entry


def _times(
  computations: Mapping[str, list[_Instruction]], entry: str
) -> tuple[dict[str, int], int]:
  """({computation: how often it runs}, loops whose length is not known)."""
  times: dict[str, int] = defaultdict(int)
  unknown = 0

  def visit(name: str, count: int) -> None:
    nonlocal unknown
    times[name] += count
    for line in computations[name]:
      turns = count
      if line.kind == "while":
        length = _loop_length(line, computations)
        unknown += length is None
        turns = count * (length or 1)
      for called in _called(line.rest):
        if called in computations:
          visit(called, turns)

  visit(entry, 1)
  return times, unknown


def _called(rest: str) -> Iterator[str]:
  yield from _CALLED.findall(rest)
  for branches in _BRANCHES.findall(rest):
    yield from (name.strip().lstrip("%") for name in branches.split(","))


def _loop_length(
  line: _Instruction, computations: Mapping[str, list[_Instruction]]
) -> int | None:
  match = re.search(r"condition=%?([\w.-]+)", line.rest)
  condition = computations.get(match[1], []) if match else []
  constants = {
    part.name: int(part.rest.split(")")[0])
    for part in condition
    if part.kind == "constant" and re.match(r"\d+\)", part.rest)
  }
  for part in condition:
    if part.kind == "compare" and "direction=LT" in part.rest:
      bounds = [constants[name] for name in _operands(part) if name in constants]
      return bounds[0] if len(bounds) == 1 else None
  return None


def _operands(line: _Instruction) -> list[str]:
  return [name for name, _ in _places(line)]


def _places(line: _Instruction) -> list[tuple[str, int]]:
  """(name, number) of each operand; jax 0.12 writes a part of a tuple as %name#number."""
  found = re.findall(r"%([\w.-]+)(?:#(\d+))?", line.rest.split(")")[0])
  return [(name, int(number or 0)) for name, number in found]


def _dot_flops(line: _Instruction, shapes: Mapping[str, list[Tensor]]) -> int:
  name, number = _places(line)[0]
  left = shapes[name][number]
  match = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", line.rest)
  axes = [int(axis) for axis in match[1].split(",") if axis] if match else []
  summed = math.prod(left.shape[axis] for axis in axes)
  return 2 * summed * math.prod(tensors(line.result)[0].shape)


def _group(rest: str, num_devices: int) -> int:
  """Devices of a group, in any of the forms that XLA writes it.

  {{0,1},{2,3}}   [2,4]<=[8]   mesh['a'=4,'b'=2] {'a'}, an axis also in parts: 'a':(1)2
  """
  match = re.search(
    r"replica_groups=(\{\{[^}]*\}|\[\d+,\d+\]|mesh\[[^\]]*\] ?\{[^}]*\})", rest
  )
  if not match:
    return num_devices
  groups = match[1]
  if groups.startswith("{{"):
    return len(groups.strip("{}").split(","))
  if groups.startswith("["):
    return int(groups.strip("[]").split(",")[1])
  axes, taken = groups.split("]")
  sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", axes)}
  parts = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", taken)
  return math.prod(int(part) if part else sizes[name] for name, part in parts)


def float_copies(text: str, shapes: set[tuple[int, ...]]) -> int:
  """Bytes of float32 tensors of these shapes that the entry converts its arguments to.

  A CPU multiplies in float32: XLA (of jax 0.10, not 0.12) takes the conversion of a
  loop's slices out of the loop, and so keeps the whole stack twice.
  """
  computations, entry = _computations(text)
  return sum(
    tensor.bytes
    for line in computations[entry]
    if line.kind in ("convert", "fusion") and "convert" in line.name
    for tensor in tensors(line.result)
    if tensor.dtype == "f32" and tensor.shape in shapes
  )
