"""What devices tell each other in a training step, beside what they should.

  python -m benchmarks.collectives

The step of a small model of the paper's form (LoRA on all seven linears, frozen kernels,
remat, bfloat16) is compiled for 1, 2 and 4 simulated devices along each axis of the mesh.
Its collectives are counted in the program as it is right after partitioning, a loop's body
by its trips; expected is what follows by hand from where the weights lie (`mesh.FSDP`).
A backend may merge some of them later: fewer calls, the same bytes. Ends with 1 where what
is counted differs from what is expected.
"""

from __future__ import annotations

import collections
import math
import sys
import textwrap
from collections.abc import Iterator
from typing import NamedTuple

import jax

from configs import imax_7b
from imax_jax import mesh as mesh_lib
from imax_jax.costs import hlo
from imax_jax.costs import report as costs
from imax_jax.study import Study

_DEVICES = (1, 2, 4)
# Sizes that differ, so that a shape says what it is of.
_L, _B, _T, _D, _MLP, _R, _V = 3, 4, 24, 32, 96, 4, 400
_IMAGES, _SLOTS, _FEATURES = 4, 4, 40
_COLUMNS = (("q", _D), ("k", _D), ("v", _D), ("gate", _MLP), ("up", _MLP))
_ROWS = (("o", _D), ("down", _MLP))

Key = tuple[str, str, tuple[int, ...]]  # kind, dtype, shape of the result


class Expected(NamedTuple):
  what: str
  kind: str
  dtype: str
  shape: tuple[int, ...]
  calls: int = 1  # a step

  @property
  def key(self) -> Key:
    return self.kind, self.dtype, self.shape


def study(axes: dict[str, int]) -> Study:
  config = imax_7b.get_config("tiny")
  config.foundation, config.mesh, config.sharding = "", axes, mesh_lib.FSDP
  decoder = config.model.decoder
  decoder.width, decoder.depth, decoder.mlp_width = _D, _L, _MLP
  decoder.num_heads = decoder.num_kv_heads = 4
  decoder.lora_rank, decoder.vocab_size, decoder.lora_dropout = _R, _V, 0.0
  config.model.encoder.width = _FEATURES
  config.train.row_tokens, config.train.entries_per_step = _T, _IMAGES
  found = Study(config, "unused")
  found.mesh = mesh_lib.make_mesh(axes, jax.devices()[: math.prod(axes.values())])
  return found


# ── What should be ──────────────────────────────────────────────────────────────────


def expected(axis: str, devices: int) -> Iterator[Expected]:
  if devices == 1:
    return
  if axis in ("data", "fsdp"):
    yield from of_rows()
  if axis == "data":
    yield from of_a_whole_connector()
  if axis == "fsdp":
    yield from of_split_weights(devices)
    yield from of_a_split_connector()
  if axis == "tensor":
    yield from of_split_work()


def of_rows() -> Iterator[Expected]:
  """Each device has its own rows: sums over them, and gradients, are of all devices."""
  reduce = "all-reduce"
  yield Expected("sum of losses, sum of weights", reduce, "f32", (), 2)
  yield Expected("tokens in the metrics", reduce, "s32", ())
  for name, width in _COLUMNS:
    yield Expected(f"gradient of {name}'s A", reduce, "f32", (_R, _D), _L)
    yield Expected(f"of {name}'s B", reduce, "f32", (_R, width), _L)
  for name, width in _ROWS:
    yield Expected(f"gradient of {name}'s A", reduce, "f32", (_R, width), _L)
    yield Expected(f"of {name}'s B", reduce, "f32", (_R, _D), _L)
  # A row's image is on its own device, which XLA cannot know.
  image_tokens = (_IMAGES, _SLOTS, _D)
  yield Expected("image tokens", "all-gather", "bf16", image_tokens)
  yield Expected("gradient of the image tokens", reduce, "bf16", image_tokens)


def of_a_whole_connector() -> Iterator[Expected]:
  for width in (4 * _FEATURES, _D):
    yield Expected(
      "gradient of a connector's kernel", "all-reduce", "bf16", (_D, width)
    )
    yield Expected("gradient of a connector's bias", "all-reduce", "bf16", (_D,))


def of_a_split_connector() -> Iterator[Expected]:
  """Of two operands XLA gathers the smaller: the images', not the kernels, of which each
  device then has the whole gradient of its own columns."""
  tokens = _IMAGES * _SLOTS
  yield Expected("features", "all-gather", "bf16", (tokens, 4 * _FEATURES))
  yield Expected("the connector's inside", "all-gather", "bf16", (tokens, _D))
  yield Expected("its way back", "all-reduce", "bf16", (tokens, _D))
  yield Expected("two biases, each with two moments", "all-gather", "f32", (_D,), 6)
  yield Expected("the norm's part of two biases", "all-reduce", "f32", (), 2)


def of_split_weights(devices: int) -> Iterator[Expected]:
  """A layer's weights are gathered where they work, and again on the way back (remat)."""
  gather = "all-gather"
  for name, width in _COLUMNS:
    yield Expected(f"{name}'s kernel", gather, "bf16", (_D, width), 2 * _L)
    yield Expected(f"{name}'s A", gather, "bf16", (_D, _R), 2 * _L)
  for name, width in _ROWS:
    yield Expected(f"{name}'s kernel", gather, "bf16", (width, _D), 2 * _L)
    yield Expected(f"{name}'s B", gather, "bf16", (_R, _D), 2 * _L)
  yield Expected("the head", gather, "bf16", (_D, _V))
  # The embedding is split by width: each device looks up its columns of all rows.
  columns = (devices, _B // devices, _T, _D // devices)
  yield Expected("whose columns are looked up", gather, "s32", (_B, _T, 1))
  yield Expected("their columns to the rows' devices", "all-to-all", "bf16", columns)
  # A split leaf's gradient is on several devices.
  yield Expected("of seven of LoRA, two kernels", "all-reduce", "f32", (), 9)


def of_split_work() -> Iterator[Expected]:
  """A pair of matrices needs one sum; those before it one each on the way back."""
  reduce = "all-reduce"
  x, hidden, places = (_B * _T, _D), (_B * _T, _R), _B * _T // 2
  yield Expected("o, down: sums of a layer's halves", reduce, "bf16", x, 2 * _L)
  yield Expected("o once more (remat)", reduce, "bf16", x, _L)
  yield Expected("q, k, v, gate, up: the way back", reduce, "bf16", x, 5 * _L)
  yield Expected("x A of o, down; and again (remat)", reduce, "bf16", hidden, 4 * _L)
  yield Expected("the way back through five B", reduce, "bf16", hidden, 5 * _L)
  yield Expected("rows of the embedding", reduce, "bf16", (_B, _T, _D))
  yield Expected("the head's way back", reduce, "bf16", (places, _D))
  yield Expected("a word's logit; sum of exponents", reduce, "f32", (1, places), 2)
  yield Expected("largest logit", reduce, "f32", (1, places, 1))
  # Five B and two A are split.
  yield Expected("parts of the gradient's norm", reduce, "f32", (), 7)


# ── What is ─────────────────────────────────────────────────────────────────────────


def counted(report: costs.Report) -> dict[Key, int]:
  found: dict[Key, int] = collections.Counter()
  for collective in report.collectives:
    for tensor in collective.tensors:
      found[collective.kind, tensor.dtype, tensor.shape] += collective.times
  return found


def compare(axis: str, devices: int) -> bool:
  """Prints both, and whether they agree."""
  report = costs.measure(
    study({axis: devices}), _B if axis == "tensor" else _B // devices
  )
  wanted: dict[Key, list[Expected]] = {}
  for line in expected(axis, devices):
    wanted.setdefault(line.key, []).append(line)
  found = counted(report)
  calls, size = sum(found.values()), sum(c.bytes for c in report.collectives)
  sent = sum(c.wire for c in report.collectives)
  sys.stdout.write(
    f"{axis} {devices}: {calls} calls a step, {size / 1e3:.1f} kB of results, "
    f"{sent / 1e3:.1f} kB sent by each device\n"
  )
  same = True
  for key in dict.fromkeys([*wanted, *found]):
    kind, dtype, shape = key
    should = sum(line.calls for line in wanted.get(key, []))
    agrees = should == found[key]
    same &= agrees
    size = hlo.Tensor(dtype, shape).bytes * found[key]
    what = "; ".join(dict.fromkeys(line.what for line in wanted.get(key, [])))
    sys.stdout.write(
      f"  {'' if agrees else 'DIFFERS '}{kind:<11}{dtype + str(list(shape)):<18}"
      f"{found[key]:>4} of {should:<4}{size / 1e3:>8.1f} kB  {_short(what)}\n"
    )
  return same


def _short(what: str) -> str:
  return textwrap.shorten(what or "nothing", 60, placeholder=" …")


def main() -> None:
  jax.config.update("jax_num_cpu_devices", max(_DEVICES))
  agree = [
    compare(axis, devices)
    for devices in _DEVICES
    for axis in (("data",) if devices == 1 else mesh_lib.AXES)
  ]
  if not all(agree):
    sys.exit("collectives: the step's differ from those expected")
  sys.stdout.write(f"{len(agree)} meshes: the collectives are those expected\n")


if __name__ == "__main__":
  main()
