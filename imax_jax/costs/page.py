"""What is known of a train step, and its page for a terminal; GB are 10^9 bytes."""

from __future__ import annotations

import resource
import textwrap
from collections.abc import Iterator
from collections.abc import Mapping
from typing import NamedTuple

import jax

from imax_jax.costs import hlo
from imax_jax.costs.accelerators import CARDS
from imax_jax.costs.accelerators import Card

# What JAX takes of a GPU unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise, and what
# may be asked for: the rest is the driver's and the collectives' own.
_USUAL, _MOST = 0.75, 0.95


class _Unit(NamedTuple):
  """One for a whole page, so that its numbers compare."""

  name: str
  size: float  # bytes

  def __call__(self, size: float) -> str:
    return f"{size / self.size:.3f}"


class Report(NamedTuple):
  """All sizes are one device's, in bytes, unless they say otherwise."""

  title: str
  platform: str
  mesh: Mapping[str, int]
  batch: Mapping[str, tuple[int, ...]]  # global shapes, of all turns
  turns: int
  counts: Mapping[str, int]  # values of "frozen" and "trained" weights, of all devices
  held: Mapping[str, Mapping[str, int]]  # frozen, trainable, optimizer, batch: by dtype
  whole: Mapping[str, int]  # the same on one device that would hold all
  temporaries: int
  copies: int  # float32 copies of bfloat16 kernels among them: only a CPU makes them
  flops: int  # counted
  flops_formula: float  # 4·P·T, and 2·P·T where remat is "inputs"
  flops_xla: float  # `cost_analysis`: a loop's body once
  collectives: tuple[hlo.Collective, ...]
  unknown_loops: int
  lower_seconds: float
  compile_seconds: float
  flaws: tuple[str, ...]

  @property
  def needed(self) -> int:
    held = sum(size for sizes in self.held.values() for size in sizes.values())
    return held + self.temporaries


_GB, _MB = _Unit("GB", 1e9), _Unit("MB", 1e6)


def page(report: Report) -> str:
  """The report, under 90 columns wide."""
  parts = (_head, _memory, _work, _collectives, _cards, _flaws)
  unit = _GB if report.needed >= 1e8 else _MB
  return "\n\n".join("\n".join(part(report, unit)) for part in parts)


def _head(report: Report, _: _Unit) -> Iterator[str]:
  devices = 1
  for size in report.mesh.values():
    devices *= size
  axes = " × ".join(f"{axis} {size}" for axis, size in report.mesh.items())
  rows, tokens = report.batch["text"]
  turns = f" in {report.turns} turns" if report.turns > 1 else ""
  images, *features = report.batch["pixels"]
  kind = "features" if len(features) == 2 else "pixels"
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  yield f"{report.title}: one train step on {devices} devices ({axes})"
  yield (
    f"  batch     {rows} rows of {tokens:,} tokens{turns}; {images} images as {kind} "
    f"{features}"
  )
  counts = ", ".join(f"{count:,} {name}" for name, count in report.counts.items())
  yield f"  weights   {counts}"
  yield (
    f"  compiled  in {report.compile_seconds:.1f} s, lowered in "
    f"{report.lower_seconds:.1f} s, with {_GB(peak)} GB, for {report.platform}, by jax "
    f"{jax.__version__}; nothing was run"
  )


def _memory(report: Report, unit: _Unit) -> Iterator[str]:
  a_device, in_all = f"{unit.name} a device", f"{unit.name} in all"
  yield f"{'Memory':<28}{a_device:>12}{in_all:>12}   by type"
  for name, sizes in report.held.items():
    own = sum(sizes.values())
    types = ", ".join(f"{dtype} {unit(size)}" for dtype, size in sizes.items())
    yield f"  {name:<26}{unit(own):>12}{unit(report.whole[name]):>12}   {types}"
  yield f"  {'temporaries':<26}{unit(report.temporaries):>12}{'':>12}   {_why(report, unit)}"
  yield f"  {'together':<26}{unit(report.needed):>12}{'':>12}   {_least(report, unit)}"


def _why(report: Report, unit: _Unit) -> str:
  if report.platform != "cpu":
    return f"as planned by XLA for {report.platform}"
  if not report.copies:
    return "at most: planned for a CPU, in float32"
  return f"at most: {unit(report.copies)} are a CPU's float32 kernels"


def _least(report: Report, unit: _Unit) -> str:
  if not report.copies:
    return ""
  return f"{unit(report.needed - report.copies)} without those kernels"


def _work(report: Report, _: _Unit) -> Iterator[str]:
  yield f"{'Matrix products':<28}{'TFLOP a device and step':>24}"
  least = "at least, " if report.unknown_loops else ""
  rows = (
    ("counted", report.flops, f"{least}loop bodies × their trips"),
    ("4·P·T, + 2·P·T for remat", report.flops_formula, "without attention and LoRA"),
    ("XLA's cost_analysis", report.flops_xla, "takes a loop's body once"),
  )
  for name, flops, note in rows:
    yield f"  {name:<26}{flops / 1e12:>24.3g}   {note}"


def _collectives(report: Report, unit: _Unit) -> Iterator[str]:
  of_data, on_wire = f"{unit.name} of data", f"{unit.name} sent"
  yield f"{'Collectives':<28}{'calls a step':>12}{of_data:>12}{on_wire:>12}"
  for kind in hlo.KINDS:
    found = [c for c in report.collectives if c.kind == kind]
    if found:
      calls, size = sum(c.times for c in found), sum(c.bytes for c in found)
      sent = sum(c.wire for c in found)
      yield f"  {kind:<26}{calls:>12,}{unit(size):>12}{unit(sent):>12}"
  if not report.collectives:
    yield "  none"


def _cards(report: Report, _: _Unit) -> Iterator[str]:
  yield f"{'Cards':<20}{'GB':>8}{'GB left':>10}{'s a step at peak':>18}   verdict"
  for card in CARDS:
    left = (card.memory - report.needed) / 1e9
    seconds = report.flops / card.peak
    yield (
      f"  {card.name:<18}{card.memory / 1e9:>8.0f}{left:>10.1f}{seconds:>18.3g}   "
      f"{verdict(card, report.needed, report.needed - report.copies)}"
    )


def verdict(card: Card, most: float, least: float) -> str:
  """Whether between `least` and `most` bytes fit."""
  gpu = not card.name.startswith("TPU")
  if most <= card.memory * (_USUAL if gpu else _MOST):
    return "fits"
  if most <= card.memory * _MOST:
    return f"fits with XLA_PYTHON_CLIENT_MEM_FRACTION={_MOST}"
  if least <= card.memory * _MOST:
    return f"may fit: {(card.memory - least) / 1e9:.1f} left without a CPU's copies"
  return f"does not fit, by {(least - card.memory * _MOST) / 1e9:.1f} GB"


def _flaws(report: Report, _: _Unit) -> Iterator[str]:
  if not report.flaws:
    yield (
      "No flaw: nothing rematerialised unasked, no large weight whole on every device, "
      "no stack\nof layers gathered at once, the rows split."
    )
  for flaw in report.flaws:
    yield textwrap.fill(f"FLAW  {flaw}", 88, subsequent_indent="      ")
