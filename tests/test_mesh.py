"""Meshes and placements, on four CPU devices in a process of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import jax
import pytest

from imax_jax import mesh as mesh_lib

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
mesh = mesh_lib.make_mesh({"data": -1, "model": 2})
found["shape"] = dict(mesh.shape)
found["types"] = sorted({kind.name for kind in mesh.axis_types})
found["fixed"] = dict(mesh_lib.make_mesh({"data": 4}).shape)
found["three"] = refusal(lambda: mesh_lib.make_mesh({"data": 3}))
found["two"] = refusal(lambda: mesh_lib.make_mesh({"data": 2}))
found["both open"] = refusal(lambda: mesh_lib.make_mesh({"data": -1, "model": -1}))

params = {
  "layers": {"q": {"kernel": np.arange(24.0).reshape(3, 4, 2), "bias": np.zeros((3, 2))}},
  "embed": np.arange(32.0).reshape(8, 4),
  "scale": np.float32(2.0),
}
rules = ((".*/kernel", (None, "model")), ("embed", ("model", None)), (".*", ()))
placed = mesh_lib.shard_params(params, mesh, rules)
found["kernel"] = layout(placed["layers"]["q"]["kernel"])
found["bias"] = layout(placed["layers"]["q"]["bias"])
found["embed"] = layout(placed["embed"])
found["scale"] = layout(placed["scale"])
found["values"] = bool(jax.tree.all(jax.tree.map(
  lambda left, right: np.array_equal(left, right), placed, params)))
found["uncovered"] = refusal(lambda: mesh_lib.shard_params(params, mesh, rules[:2]))

rng = np.random.default_rng(0)
batch = {"text": rng.integers(0, 8, (4, 5)).astype(np.int32),
         "pixels": rng.normal(size=(4, 4)).astype(np.float32)}
on_mesh = mesh_lib.put_batch(batch, mesh)
found["text"] = layout(on_mesh["text"])
found["batch"] = all(np.array_equal(on_mesh[name], batch[name]) for name in batch)
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
    "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
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
  assert four["shape"] == {"data": 2, "model": 2}
  assert four["fixed"] == {"data": 4}


def test_axes_are_automatic(four):
  assert four["types"] == ["Auto"]


@pytest.mark.parametrize("case", ["three", "two", "both open"])
def test_a_mesh_that_does_not_fit_is_refused(four, case):
  assert "does not fit 4 devices" in four[case]


def test_parameters_lie_where_their_rule_says(four):
  # A rule speaks of the last dimensions: the scanned axis in front stays whole.
  assert four["kernel"] == ["(None, None, 'model')", [3, 4, 1]]
  assert four["embed"] == ["('model', None)", [4, 4]]
  assert four["bias"][1] == [3, 2]
  assert four["scale"][1] == []
  assert four["values"] is True


def test_every_parameter_needs_a_rule(four):
  assert "sharding: no rule matches parameter 'layers/q/bias'" in four["uncovered"]


def test_a_batch_is_split_over_data_and_a_replica_is_whole(four):
  assert four["text"] == ["('data',)", [2, 5]]
  assert four["batch"] is True
  assert four["whole"][1] == [8, 4]


@pytest.mark.parametrize("placement", ["sharded", "replicated"])
def test_loss_and_gradient_do_not_depend_on_the_placement(four, placement):
  value, gradient = four[placement]
  assert value < 1e-5
  assert gradient < 1e-5


def test_a_mesh_of_this_process():
  count = jax.device_count()
  assert dict(mesh_lib.make_mesh({"data": -1}).shape) == {"data": count}
  with pytest.raises(ValueError, match=f"does not fit {count} devices"):
    mesh_lib.make_mesh({"data": count + 1})
