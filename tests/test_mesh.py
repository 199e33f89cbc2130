"""Meshes and placements; what needs several devices runs in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from imax_jax import mesh as mesh_lib
from imax_jax import tree
from imax_jax.models import zoo
from imax_jax.models.vlm import Vlm

# XLA reads the number of host devices once, before the first use of jax.
PROGRAM = """
import json
import jax
import jax.numpy as jnp
import numpy as np
from imax_jax import mesh as mesh_lib

def layout(array):
  return [str(tuple(array.sharding.spec)), array.addressable_shards[0].data.shape]

def refusal(call):
  try:
    call()
  except ValueError as error:
    return str(error)
  return "accepted"

found = {"devices": jax.device_count()}
mesh = mesh_lib.make_mesh({"tensor": 2, "data": -1})
found["shape"] = list(mesh.shape.items())
found["neighbours"] = [[device.id for device in row] for row in mesh.devices]
found["types"] = sorted({kind.name for kind in mesh.axis_types})
found["fixed"] = dict(mesh_lib.make_mesh({"data": 4}).shape)
found["some"] = dict(mesh_lib.make_mesh({"fsdp": -1}, jax.devices()[:2]).shape)
for name, axes in (("three", {"data": 3}), ("two", {"data": 2}), ("none", {"data": 0}),
                   ("both open", {"data": -1, "tensor": -1})):
  found[name] = refusal(lambda: mesh_lib.make_mesh(axes))
found["model"] = refusal(lambda: mesh_lib.make_mesh({"data": 2, "model": 2}))

params = {
  "layers": {"q": {"kernel": np.arange(24.0).reshape(3, 4, 2), "bias": np.zeros((3, 2))}},
  "embed": np.arange(32.0).reshape(8, 4),
  "scale": np.float32(2.0),
}
rules = ((".*/kernel", (None, "tensor")), ("embed", ("tensor", "fsdp")), (".*", ()))
where = mesh_lib.shardings(params, mesh, rules)
placed = mesh_lib.place(params, where)
found["kernel"] = layout(placed["layers"]["q"]["kernel"])
found["bias"] = layout(placed["layers"]["q"]["bias"])
found["embed"] = layout(placed["embed"])
found["scale"] = layout(placed["scale"])
found["values"] = bool(jax.tree.all(jax.tree.map(
  lambda left, right: np.array_equal(left, right), placed, params)))

rng = np.random.default_rng(0)
batch = {"text": rng.integers(0, 8, (4, 5)).astype(np.int32),
         "pixels": rng.normal(size=(4, 4)).astype(np.float32)}
on_mesh = mesh_lib.put_batch(batch, mesh)
found["text"] = layout(on_mesh["text"])
found["batch"] = all(np.array_equal(on_mesh[name], batch[name]) for name in batch)
both = mesh_lib.put_batch(batch, mesh_lib.make_mesh({"data": 2, "fsdp": 2}))
found["both"] = layout(both["text"])
same = mesh_lib.put_batch(batch, mesh_lib.make_mesh({"tensor": 4}))
found["same"] = layout(same["text"])
whole = mesh_lib.replicate(params, mesh)
found["whole"] = layout(whole["embed"])

@jax.jit
def loss(params, batch):
  x = params["embed"][batch["text"]].mean(1) + batch["pixels"]
  for layer in range(3):
    x = x + jnp.tanh(x @ params["layers"]["q"]["kernel"][layer]).sum(1, keepdims=True)
  return (params["scale"] * x).sum()

alone = loss(params, batch)
for name, tree in (("sharded", placed), ("replicated", whole)):
  value, gradient = jax.value_and_grad(loss)(tree, on_mesh)
  plain = jax.grad(loss)(params, batch)
  error = jax.tree.map(
    lambda left, right: float(np.abs(left - right).max() / (1 + np.abs(right).max())),
    gradient, plain)
  found[name] = [abs(float(value) / float(alone) - 1), max(jax.tree.leaves(error))]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def four() -> dict:
  """What PROGRAM found on four devices."""
  environment = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "JAX_NUM_CPU_DEVICES": "4",
  }
  done = subprocess.run(
    [sys.executable, "-c", PROGRAM],
    env=environment,
    capture_output=True,
    text=True,
    timeout=120,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout.splitlines()[-1])


def test_an_open_axis_takes_what_is_left(four):
  assert four["devices"] == 4
  assert four["fixed"] == {"data": 4}
  assert four["some"] == {"fsdp": 2}


def test_neighbours_differ_in_tensor_whatever_the_order_of_the_config(four):
  assert four["shape"] == [["data", 2], ["tensor", 2]]
  assert four["neighbours"] == [[0, 1], [2, 3]]


def test_axes_are_automatic(four):
  assert four["types"] == ["Auto"]


@pytest.mark.parametrize("case", ["three", "two", "none", "both open"])
def test_a_mesh_that_does_not_fit_is_refused(four, case):
  assert "does not fit 4 devices" in four[case]


def test_an_unknown_axis_is_refused(four):
  assert "unknown axes ['model']; there are data, fsdp, tensor" in four["model"]


def test_parameters_lie_where_their_rule_says(four):
  # A rule speaks of the last dimensions: the scanned axis in front stays whole.
  assert four["kernel"] == ["(None, None, 'tensor')", [3, 4, 1]]
  # The mesh has no axis fsdp.
  assert four["embed"] == ["('tensor', None)", [4, 4]]
  assert four["bias"][1] == [3, 2]
  assert four["scale"][1] == []
  assert four["values"] is True


def test_a_batch_is_split_over_data_and_fsdp_and_a_replica_is_whole(four):
  assert four["text"] == ["('data',)", [2, 5]]
  assert four["both"] == ["(('data', 'fsdp'),)", [1, 5]]
  assert four["same"][1] == [4, 5]
  assert four["batch"] is True
  assert four["whole"][1] == [8, 4]


@pytest.mark.parametrize("placement", ["sharded", "replicated"])
def test_loss_and_gradient_do_not_depend_on_the_placement(four, placement):
  value, gradient = four[placement]
  assert value < 1e-5
  assert gradient < 1e-5


def test_a_mesh_of_this_process():
  count = jax.device_count()
  mesh = mesh_lib.make_mesh({"data": -1})
  assert dict(mesh.shape) == {"data": count}
  assert mesh_lib.own_mesh(mesh) is mesh
  with pytest.raises(ValueError, match=f"does not fit {count} devices"):
    mesh_lib.make_mesh({"data": count + 1})


# ── The rules of the family ───────────────────────────────────────────────────────

EIGHT = AbstractMesh((4, 2), ("fsdp", "tensor"))


def shapes_of(encoder: str, decoder: str, kernel_dtype: str = "") -> dict:
  """{path: shape} of a model of the family at full size with LoRA on all it may."""
  row = zoo.DECODERS[decoder] | {"lora_rank": 8}
  row |= {"kernel_dtype": kernel_dtype} if kernel_dtype else {}
  fields = zoo.ENCODERS[encoder]
  model = Vlm(encoder=fields, connector={"merge": 1, "depth": 2}, decoder=row)
  line = jnp.zeros((1, 4), jnp.int32)
  batch = dict.fromkeys(("text", "image", "slot", "segment", "position"), line)
  batch["loss_weight"] = jnp.zeros((1, 4))
  batch["pixels"] = jnp.zeros(
    (1, fields["image_px"], fields["image_px"], fields["channels"]), jnp.uint8
  )
  made = jax.eval_shape(lambda: model.init(jax.random.key(0), batch)["params"])
  return tree.flatten(made)


FAMILY = [
  *[(encoder, "phantom", "") for encoder in zoo.ENCODERS],
  *[("phantom", decoder, "") for decoder in zoo.DECODERS if decoder != "smollm2_135m"],
  ("phantom", "llama2_7b", "int8"),
  ("phantom", "llama2_7b", "nf4"),
]


@pytest.mark.parametrize(("encoder", "decoder", "kept"), FAMILY)
def test_every_matrix_of_the_family_is_split_over_eight_devices(encoder, decoder, kept):
  found = shapes_of(encoder, decoder, kept)
  where = tree.flatten(mesh_lib.shardings(found, EIGHT, mesh_lib.FSDP))
  assert where.keys() == found.keys()
  for path, leaf in found.items():
    parts = leaf.size // np.prod(where[path].shard_shape(leaf.shape), dtype=int)
    name = path.rsplit("/", 1)[-1]
    if path.startswith("decoder/") and name in ("kernel", "embedding"):
      assert parts == 8, path
    elif name in ("kernel", "lora_a", "lora_b"):
      assert parts in (2, 4), path
    elif name != "kernel_scale":
      assert leaf.size < 5e6, path


def test_pairs_lie_as_their_kernels_do():
  found = shapes_of("phantom", "llama2_7b", "int8")
  where = tree.flatten(mesh_lib.shardings(found, EIGHT, mesh_lib.FSDP))
  for names, inputs, outputs in (
    (("attn/q", "attn/k", "attn/v", "mlp/gate", "mlp/up"), "fsdp", "tensor"),
    (("attn/o", "mlp/down"), "tensor", "fsdp"),
  ):
    for name in names:
      at = f"decoder/layers/{name}"
      assert where[f"{at}/kernel"].spec == P(None, inputs, outputs)
      assert where[f"{at}/kernel_scale"].spec == P(None, None, outputs)
      assert where[f"{at}/lora_a"].spec == P(None, inputs, None)
      assert where[f"{at}/lora_b"].spec == P(None, None, outputs)
  assert where["decoder/embed/embedding"].spec == P("tensor", "fsdp")
  assert where["decoder/head/kernel"].spec == P("fsdp", "tensor")


LEAVES = {"decoder": {"embed": {"embedding": np.zeros((10, 8))}}, "odd": np.zeros(6)}


@pytest.mark.parametrize(
  ("rules", "message"),
  [
    (mesh_lib.FSDP, "no rule matches parameter 'odd'"),
    ((("old", ()), ("odd", ()), *mesh_lib.FSDP), r"\['old'\] decide no parameter"),
    ((("[", ()), *mesh_lib.FSDP), "'\\[' is no regular expression"),
    ((("odd", ("model",)), *mesh_lib.FSDP), "odd: unknown axis 'model'"),
    (
      (("odd", ("fsdp",)), *mesh_lib.FSDP),
      r"odd \[6\]: dimension 0 of 6 does not divide over mesh axis 'fsdp' of 4",
    ),
    ((("odd", (None, "fsdp")), *mesh_lib.FSDP), r"odd \[6\] has fewer dimensions"),
  ],
)
def test_rules_that_do_not_fit_are_refused(rules, message):
  with pytest.raises(ValueError, match=message):
    mesh_lib.shardings(LEAVES, EIGHT, rules)


def test_rules_of_ones_own_stand_before_the_familys():
  rules = (("odd", ("tensor",)), ("decoder/.*", ()), *mesh_lib.FSDP)
  where = mesh_lib.shardings(LEAVES, EIGHT, rules)
  assert where["odd"].spec == P("tensor")
  assert where["decoder"]["embed"]["embedding"].spec == P(None, None)


# ── Rows ──────────────────────────────────────────────────────────────────────────


def hosts(axes: dict[str, int], processes: list[int]) -> SimpleNamespace:
  """A mesh whose devices, in its order, are those of these processes."""
  devices = np.empty(len(processes), object)
  devices[:] = [SimpleNamespace(process_index=process) for process in processes]
  return SimpleNamespace(shape=axes, devices=devices.reshape(*axes.values()))


@pytest.mark.parametrize(
  ("axes", "processes", "shares"),
  [
    ({"data": 4}, [0, 0, 1, 1], [(4, 0, 2), (4, 1, 2)]),
    ({"data": 2, "fsdp": 2}, [0, 0, 1, 1], [(4, 0, 2), (4, 1, 2)]),
    # On a TPU the first devices need not be the first process's.
    ({"fsdp": 4}, [1, 1, 0, 0], [(4, 1, 2), (4, 0, 2)]),
    # Two processes work on the same rows.
    ({"fsdp": 2, "tensor": 4}, [0, 0, 1, 1, 2, 2, 3, 3], [(2, i // 2, 2) for i in range(4)]),
    ({"tensor": 2}, [0, 1], [(1, 0, 1), (1, 0, 1)]),
  ],
)  # fmt: skip
def test_each_process_knows_its_rows(axes, processes, shares):
  mesh = hosts(axes, processes)
  found = [tuple(mesh_lib.row_share(mesh, i)) for i in range(len(shares))]
  assert found == shares


@pytest.mark.parametrize("processes", [[0, 1, 0, 1], [0, 1, 1, 0]])
def test_rows_that_are_no_block_are_refused(processes):
  with pytest.raises(ValueError, match=r"process 0 holds row shards \[0, [23]\] of 4"):
    mesh_lib.row_share(hosts({"data": 4}, processes), 0)
