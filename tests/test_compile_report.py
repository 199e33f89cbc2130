"""The compile report, on eight simulated devices in a process of their own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

from imax_jax.costs import hlo
from imax_jax.costs import page as page_lib
from imax_jax.costs.accelerators import Card

PROGRAM = """
import json
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from configs import imax_7b
from imax_jax.costs import flaws as flaws_lib
from imax_jax.costs import page as page_lib
from imax_jax.costs import report as costs
from imax_jax.costs import hlo
from imax_jax import mesh as mesh_lib
from imax_jax import runs
from imax_jax import tree
from imax_jax.study import Study
from imax_jax.train import loop
from imax_jax.train.state import init_state

def study(axes, rules=mesh_lib.FSDP):
  config = imax_7b.get_config("tiny")
  config.foundation = ""
  config.mesh, config.sharding = axes, rules
  config.model.decoder.lora_dropout = 0.0  # its random bits are most of a compilation
  config.train.row_tokens = 24
  return Study(config, "unused")

def facts(report):
  kinds = {c.kind: 0 for c in report.collectives}
  for c in report.collectives:
    kinds[c.kind] += c.times
  gathered = [t.shape for c in report.collectives if c.kind == "all-gather"
              for t in c.tensors]
  return {
    "held": report.held, "flaws": report.flaws,
    "flops": [report.flops, report.flops_formula, report.flops_xla],
    "kinds": kinds, "gathered": gathered, "unknown": report.unknown_loops,
    "temporaries": report.temporaries, "batch": report.batch,
  }

found = {}
fsdp = study({"fsdp": 8})
report = costs.measure(fsdp, 2)
found["fsdp"] = facts(report)
found["page"] = page_lib.page(report)
found["leaves"] = {
  path: [leaf.shape, leaf.dtype.itemsize, str(fsdp.parameters.shardings[path].spec)]
  for path, leaf in tree.flatten(fsdp.parameters.abstract).items()}
found["data"] = facts(costs.measure(study({"data": 8}), 2))
turns = study({"data": 8})
turns.config.train.accumulate = 3
found["turns"] = facts(costs.measure(turns, 2))

# The loop's own state and the report's lie alike.
trainable, _ = fsdp.parameters.split(0)
optimizer = runs.optimizer(fsdp, trainable, 10)
real = loop._place(init_state(trainable, optimizer.update, seed=0), fsdp.mesh)
shapes = costs._step(fsdp, 2)[0]
found["alike"] = [
  left.shape == right.shape and left.dtype == right.dtype
  and left.sharding.is_equivalent_to(right.sharding, left.ndim)
  for left, right in zip(jax.tree.leaves(real), jax.tree.leaves(shapes), strict=True)]

# Planted flaws, in a loop over three layers that is quickly compiled.
flaws_lib._LARGE = 512
mesh = fsdp.mesh
rows, everywhere = mesh_lib.row_sharding(mesh), NamedSharding(mesh, P())
split = NamedSharding(mesh, P(None, "fsdp"))

def flaws(path, spec, before=lambda x: x, lie=rows):
  def step(x, kernel):
    turn = lambda x, layer: (jnp.tanh(x @ layer), None)
    return jax.lax.scan(turn, x, before(kernel))[0]
  kernel = jax.ShapeDtypeStruct((3, 16, 16), jnp.bfloat16, sharding=spec)
  x = jax.ShapeDtypeStruct((8, 24, 16), jnp.bfloat16, sharding=lie)
  _, program, messages = costs._compile(jax.jit(step).lower(x, kernel))
  program = hlo.read(program, mesh.size)
  return flaws_lib.find(messages, {path: kernel}, (8, 24), program, mesh)

def pinned(*where):
  def pin(x):
    for sharding in where:
      x = jax.lax.with_sharding_constraint(jnp.sin(x), sharding)
    return x
  return pin

cube = mesh_lib.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
turned = (P("data"), P(None, ("fsdp", "data", "tensor")))
layers = "decoder/layers/q/kernel"
found["none"] = flaws(layers, split)
found["replicated"] = flaws(layers, everywhere)
found["stack"] = flaws(layers, split, before=pinned(everywhere))
found["rows"] = flaws(layers, split, lie=everywhere)
turning = jax.jit(pinned(*(NamedSharding(cube, spec) for spec in turned)))
x = jax.ShapeDtypeStruct((8, 12), jnp.float32)
messages = costs._compile(turning.lower(x))[2]
found["rematerialised"] = flaws_lib.find(
  messages, {}, (8, 24), hlo.Program(0, (), (), 0), cube)
try:
  costs.measure(study({"fsdp": 8}, (("decoder/nobody", ()), *mesh_lib.FSDP)))
except ValueError as error:
  found["missed"] = str(error)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict:
  """What PROGRAM found; a cache of programs is on, and must not be used."""
  cache = tmp_path_factory.mktemp("cache")
  environment = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "JAX_NUM_CPU_DEVICES": "8",
    "JAX_COMPILATION_CACHE_DIR": str(cache),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "TF_CPP_MIN_LOG_LEVEL": "1",
  }
  done = subprocess.run(
    [sys.executable, "-c", PROGRAM],
    env=environment,
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  kept = [path.name for path in cache.iterdir() if path.name.startswith("jit_step")]
  return {**json.loads(done.stdout.splitlines()[-1]), "kept": kept}


def shared(found: dict, chosen) -> int:
  """Bytes on one of eight devices of the leaves that are chosen by path."""
  return sum(
    size * numbers(shape) // (8 if "fsdp" in spec else 1)
    for path, (shape, size, spec) in found["leaves"].items()
    if chosen(path)
  )


def numbers(shape: list[int]) -> int:
  count = 1
  for size in shape:
    count *= size
  return count


def is_trained(path: str) -> bool:
  return path.startswith("connector/") or "/lora_" in path


def test_a_device_holds_its_part_of_every_tensor(found):
  held = {name: sum(sizes.values()) for name, sizes in found["fsdp"]["held"].items()}
  trained = shared(found, is_trained)
  assert held["frozen weights"] == shared(found, lambda path: not is_trained(path))
  assert held["trainable weights"] == trained
  counters = 8  # Adam's and the schedule's
  assert held["optimizer state"] == 2 * trained + counters
  # Two rows of 24: five int32 and a float32; places of half of them; 8 entries make one
  # image a device, with its task's number.
  assert held["batch"] == 2 * 24 * 6 * 4 + 24 * 4 + 16 * 16 * 4 + 4
  # By hand: q [2, 16, 16] in bfloat16, an eighth of its rows.
  assert found["leaves"]["decoder/layers/attn/q/kernel"] == [
    [2, 16, 16], 2, "P(None, 'fsdp', None)"
  ]  # fmt: skip


def test_a_batch_has_the_rows_asked_for_on_each_shard(found):
  assert found["fsdp"]["batch"]["text"] == [16, 24]
  assert found["fsdp"]["batch"]["pixels"] == [8, 16, 16]


def test_a_step_in_turns_does_all_of_them_and_keeps_one(found):
  one, three = found["data"], found["turns"]
  assert three["batch"]["text"] == [48, 24] and three["flaws"] == one["flaws"] == []
  assert three["flops"][0] == pytest.approx(3 * one["flops"][0], rel=1e-3)
  # Beside one turn's, the sum of the gradients so far.
  more = three["temporaries"] - one["temporaries"]
  assert more < 0.5 * one["temporaries"]


def test_split_weights_are_gathered_a_layer_at_a_time_and_whole_ones_never(found):
  kernels = [
    shape[1:]
    for path, (shape, _, _) in found["leaves"].items()
    if path.startswith("decoder/layers/") and len(shape) == 3
  ]
  gathered = found["fsdp"]["gathered"]
  assert [16, 32] in gathered and [32, 16] in gathered  # up, down
  assert [2, 16, 32] not in gathered
  # Each of two layers gathers at least its seven kernels, forward and backward.
  assert found["fsdp"]["kinds"]["all-gather"] >= 2 * 2 * 7
  assert [shape for shape in found["data"]["gathered"] if shape in kernels] == []
  assert found["data"]["kinds"]["all-reduce"] > 0  # of the gradients


def test_products_are_counted_once_a_layer(found):
  counted, formula, xla = found["fsdp"]["flops"]
  assert found["fsdp"]["unknown"] == 0
  assert counted > xla
  # The toy's rank of 8 is half its width, and its head, the rest, meets half of the tokens.
  assert 1 < counted / formula < 2.2


def test_the_state_lies_as_the_loop_lays_it(found):
  assert len(found["alike"]) > 10
  assert all(found["alike"])


def test_a_good_step_has_no_flaw(found):
  # Without `lay_rows` in the decoder, all rows would be on every device.
  assert found["fsdp"]["flaws"] == found["data"]["flaws"] == found["none"] == []


@pytest.mark.parametrize(
  ("flaw", "said"),
  [
    ("replicated", "decoder/layers/q/kernel [3, 16, 16], 0.00 GB, lies whole on"),
    ("stack", "decoder/layers/q/kernel: all 3 layers are gathered at once"),
    ("rematerialised", "XLA: Involuntary full rematerialization. The compiler cannot"),
    ("rows", "all 8 rows are on every device"),
  ],
)
def test_a_planted_flaw_is_named(found, flaw, said):
  assert any(sentence.startswith(said) for sentence in found[flaw]), found[flaw]


def test_a_rule_that_decides_nothing_is_refused(found):
  assert "['decoder/nobody'] decide no parameter" in found["missed"]


def test_the_cache_of_programs_is_not_used(found):
  assert found["kept"] == []


def test_the_page_fits_a_screen(found):
  lines = found["page"].splitlines()
  assert len(lines) < 45
  assert max(map(len, lines)) < 100
  assert "one train step on 8 devices (fsdp 8)" in lines[0]
  assert "No flaw" in found["page"]
  # A toy's sizes can be read too: no column of zeros.
  assert "MB a device" in found["page"] and "MB sent" in found["page"]
  table = lines[lines.index("") :]
  assert not [line for line in table if line.startswith("  fr") and " 0.000" in line]
  assert re.search(r"weights   [\d,]+ frozen, [\d,]+ trained", found["page"])


LOOP = """HloModule f

%body (p: (s32[], bf16[2,8])) -> (s32[], bf16[2,8]) {
  %p = (s32[], bf16[2,8]{1,0}) parameter(0)
  %k = bf16[4,8]{1,0} constant({...})
  %g = bf16[8,8]{1,0} all-gather(%k), replica_groups=[2,2]<=[4], dimensions={0}
  %x = bf16[2,8]{1,0} get-tuple-element(%p), index=1
  %dot = bf16[2,8]{1,0} dot(%x, %g), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %t = (s32[], bf16[2,8]{1,0}) tuple(%i, %dot)
}

%cond (p.1: (s32[], bf16[2,8])) -> pred[] {
  %p.1 = (s32[], bf16[2,8]{1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%p.1), index=0
  %n = s32[] constant(BOUND)
  ROOT %lt = pred[] compare(%i.1, %n), direction=LT
}

ENTRY %main (a: bf16[2,8]) -> bf16[2,8] {
  %a = bf16[2,8]{1,0} parameter(0)
  %w = (s32[], bf16[2,8]{1,0}) while(%t.0), condition=%cond, body=%body
  %r = f32[6]{0} all-reduce(%q), replica_groups={{0,1,2,3}}, to_apply=%sum
  ROOT %o = bf16[2,8]{1,0} get-tuple-element(%w), index=1
}
"""


def test_a_loop_counts_as_often_as_it_turns():
  program = hlo.read(LOOP.replace("BOUND", "5"), 4)
  assert program.flops == 5 * 2 * 2 * 8 * 8
  gather, reduce = sorted(program.collectives)
  assert (gather.times, gather.group, gather.bytes) == (5, 2, 5 * 8 * 8 * 2)
  assert gather.wire == gather.bytes / 2
  assert (reduce.times, reduce.group, reduce.wire) == (1, 4, 24 * 2 * 3 / 4)
  assert hlo.Tensor("bf16", (2, 8)) in program.carried


def test_a_part_of_a_tuple_is_an_operand():
  """As jax 0.12 writes it, without an instruction that takes it out."""
  taken = "  %x = bf16[2,8]{1,0} get-tuple-element(%p), index=1\n"
  text = LOOP.replace(taken, "").replace("dot(%x, %g)", "dot(%p#1, %g)")
  program = hlo.read(text.replace("BOUND", "5"), 4)
  assert program.flops == 5 * 2 * 2 * 8 * 8


def test_a_loop_of_unknown_length_is_told():
  program = hlo.read(LOOP.replace("constant(BOUND)", "get-tuple-element(%p.1)"), 4)
  assert program.loops_of_unknown_length == 1
  assert program.flops == 2 * 2 * 8 * 8


@pytest.mark.parametrize(
  ("groups", "size"),
  [
    ("{{0,1},{2,3}}", 2),
    ("[2,4]<=[4,2]T(1,0)", 4),
    ("mesh['axis_0'=4,'axis_1'=2] {'axis_0'}", 4),
    ("mesh['axis_0'=2,'axis_1'=4] {'axis_0','axis_1':(1)2}", 4),
  ],
)
def test_every_way_to_write_a_group(groups, size):
  text = LOOP.replace("{{0,1,2,3}}", groups)
  assert max(hlo.read(text, 8).collectives).group == size


def test_text_that_is_no_program_is_refused():
  with pytest.raises(ValueError, match="without an ENTRY"):
    hlo.read("HloModule f", 1)


@pytest.mark.parametrize(
  ("most", "least", "said"),
  [
    (50e9, 40e9, "fits"),
    (70e9, 40e9, "fits with XLA_PYTHON_CLIENT_MEM_FRACTION=0.95"),
    (90e9, 40e9, "may fit: 40.0 left without a CPU's copies"),
    (90e9, 86e9, "does not fit, by 10.0 GB"),
  ],
)
def test_verdicts(most, least, said):
  assert page_lib.verdict(Card("H100", r"H100", 80e9, 1.0), most, least) == said
