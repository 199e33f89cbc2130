"""The connector's parts against arithmetic written out in float64."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="gradients of the written-out arithmetic")
pytest.importorskip("peft", reason="tests.parity_models imports it")

# After the two lines above: these import what may be missing.
from imax_jax import tree  # noqa: E402
from imax_jax.models.connector import Connector  # noqa: E402
from tests import parity_models as models  # noqa: E402

TASKS = ("vqa", "rec", "report")
FEATURES = np.random.default_rng(0).standard_normal((4, 16, 3)).astype(np.float32)
TASK = np.array([2, 0, 1, 2], np.int32)
# (routing, route_by): those that a task has a part in, and those without.
BY_TASK = (
  ("soft", "task_token"), ("soft", "task"), ("sparse", "task_token"), ("hard", "task"),
)  # fmt: skip
BY_NONE = (("soft", "token"), ("sparse", "token"), ("constant", "token"))


def make(routing: str, route_by: str, **fields: Any) -> Connector:
  tasks = TASKS if (routing, route_by) in BY_TASK else ()
  fields = {"merge": 2, "experts": 4, "tasks": tasks} | fields
  return Connector(8, routing=routing, route_by=route_by, **fields)


def drawn(connector: Connector, features: np.ndarray = FEATURES) -> dict[str, Any]:
  """Random throughout: no zero of an initialisation hides a parameter."""
  shapes = jax.eval_shape(connector.init, jax.random.key(0), features, TASK)["params"]
  rng = np.random.default_rng(1)
  return tree.map_paths(
    lambda _, leaf: (0.6 * rng.standard_normal(leaf.shape)).astype(np.float32), shapes
  )


def gelu(x: Any) -> Any:
  return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def linear(flat: dict[str, Any], path: str, x: Any, expert: int | None = None) -> Any:
  kernel, bias = (flat[f"{path}/{name}"] for name in ("kernel", "bias"))
  return x @ (kernel if expert is None else kernel[expert]) + (
    bias if expert is None else bias[expert]
  )


def weights(flat: dict[str, Any], c: Connector, token: Any, task: int) -> list[Any]:
  """What each expert weighs for one token, as section 4.1 of the specification has it."""
  if c.routing == "constant":
    return [1 / c.experts] * c.experts
  if c.routing == "hard":
    return [float(number == task) for number in range(c.experts)]
  looked_at = [token] if c.route_by != "task" else []
  if c.route_by != "token":
    looked_at.insert(0, flat["task_tokens"][task])
  hidden = gelu(linear(flat, "router/dense_0", torch.cat(looked_at)))
  logits = linear(flat, "router/dense_1", hidden)
  if c.routing == "soft":
    gates = 1 / (1 + torch.exp(-logits))
    return list(gates / gates.sum())
  top = sorted(range(c.experts), key=lambda number: -float(logits[number].detach()))[:2]
  total = sum(torch.exp(logits[number]) for number in top)
  return [
    torch.exp(logits[number]) / total if number in top else 0.0
    for number in range(c.experts)
  ]


def written_out(flat: dict[str, Any], c: Connector, features: Any) -> Any:
  images = []
  for image, task in zip(features, TASK, strict=True):
    tokens = []
    for start in range(0, len(image), c.merge):
      token = torch.cat([image[start + place] for place in range(c.merge)])
      said = [
        linear(
          flat, "experts/dense_1",
          gelu(linear(flat, "experts/dense_0", token, expert)), expert,
        )
        for expert in range(c.experts)
      ]  # fmt: skip
      parts = zip(weights(flat, c, token, int(task)), said, strict=True)
      tokens.append(sum(weight * part for weight, part in parts))
    images.append(torch.stack(tokens))
  return torch.stack(images)


@pytest.mark.parametrize(("routing", "route_by"), BY_TASK + BY_NONE)
def test_experts_and_their_gradients(routing: str, route_by: str) -> None:
  connector = make(routing, route_by)
  params = drawn(connector)
  flat = {
    path: torch.tensor(leaf, dtype=torch.float64, requires_grad=True)
    for path, leaf in tree.flatten(params).items()
  }
  assert any(path.startswith("router") for path in flat) == connector._is_routed
  features = torch.tensor(FEATURES, dtype=torch.float64, requires_grad=True)
  want = written_out(flat, connector, features)
  weigh = np.random.default_rng(2).standard_normal(want.shape).astype(np.float32)
  (want * torch.tensor(weigh)).sum().backward()

  def total(params: Any, features: jax.Array) -> tuple[jax.Array, jax.Array]:
    got = connector.apply(
      {"params": params}, features, TASK if connector.tasks else None
    )
    return (got * weigh).sum(), got

  value = models.jit(jax.grad(total, argnums=(0, 1), has_aux=True))
  (grads, back), got = value(params, FEATURES)
  assert models.far(got, want.detach()) <= models.EXACT
  assert models.length(back, features.grad) <= models.GRADIENT
  for path, leaf in tree.flatten(grads).items():
    assert np.linalg.norm(flat[path].grad) > 0, path
    assert models.length(leaf, flat[path].grad) <= models.GRADIENT, path


def test_a_task_is_what_an_image_is_seen_for() -> None:
  """The other routings are seen to be others, and another task to be another."""
  got = {}
  for routing, route_by in BY_TASK:
    connector = make(routing, route_by)
    params, apply = drawn(connector), models.jit(connector.apply)
    for task in range(len(TASKS)):
      one = apply({"params": params}, FEATURES[:1], TASK[:1] * 0 + task)
      got[routing, route_by, task] = np.asarray(one)
    with pytest.raises(ValueError, match="depend on the task"):
      connector.apply({"params": params}, FEATURES)
  values = list(got.values())
  for number, one in enumerate(values):
    for other in values[:number]:
      assert models.far(one, other) > 1e-2


def test_pool_norm_and_no_bias_are_gemmas() -> None:
  """AvgPool2d, RMS norm with 1 + w, one product."""
  features = np.random.default_rng(3).standard_normal((2, 36, 5)).astype(np.float32)
  connector = Connector(8, merge=1, depth=1, bias=False, pool=3, norm_eps=1e-2)
  params = drawn(connector, features)
  assert set(tree.flatten(params)) == {"norm/scale", "dense_0/kernel"}
  x = torch.tensor(features, dtype=torch.float64).transpose(1, 2).reshape(2, 5, 6, 6)
  x = torch.nn.functional.avg_pool2d(x, 3).flatten(2).transpose(1, 2)
  x = x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-2)
  scale, kernel = (
    torch.tensor(params[a][b], dtype=torch.float64)
    for a, b in (("norm", "scale"), ("dense_0", "kernel"))
  )
  got = models.jit(connector.apply)({"params": params}, features)
  assert models.far(got, (x * (1 + scale)) @ kernel) <= models.EXACT


def test_one_expert_is_the_mlp() -> None:
  """And what a connector of today's fields has is named as it was."""
  one = make("constant", "token", experts=1)
  params = drawn(one)
  plain = jax.tree.map(lambda leaf: leaf[0], params["experts"])
  mlp = Connector(8, merge=2)
  shapes = jax.eval_shape(mlp.init, jax.random.key(0), FEATURES)["params"]
  tree.check_same(shapes, plain, name="one expert")
  got, want = (
    models.jit(c.apply)({"params": p}, FEATURES)
    for c, p in ((one, params), (mlp, plain))
  )
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_slots_are_what_comes_out() -> None:
  for fields in ({"merge": 4}, {"merge": 1, "pool": 2}, {"merge": 2, "pool": 2}):
    connector = Connector(8, **fields)
    made = jax.eval_shape(
      lambda c=connector: c.init_with_output(jax.random.key(0), FEATURES)
    )
    assert made[0].shape == (4, connector.num_slots(16), 8)
  for count, fields, words in (
    (15, {"merge": 4}, "15 patches an image are no multiple of merge=4"),
    (17, {"merge": 1, "pool": 4}, "17 patches an image are no square map"),
    (36, {"merge": 1, "pool": 4}, "squares of 4 x 4"),
  ):
    with pytest.raises(ValueError, match=words):
      Connector(8, **fields).num_slots(count)


@pytest.mark.parametrize(
  ("fields", "words"),
  [
    ({"routing": "softt"}, "routing 'softt', expected one of soft, sparse, hard"),
    ({"route_by": "tokens"}, "route_by 'tokens', expected one of task_token"),
    ({"experts": 0}, r"tasks \('vqa', 'rec', 'report'\) with experts=0.*none"),
    ({"routing": "constant"}, "'constant' by 'task_token': expected none"),
    ({"route_by": "token"}, "'soft' by 'token': expected none"),
    ({"tasks": ()}, r"tasks \(\) with experts=4.*expected the names of the tasks"),
    ({"tasks": (), "routing": "hard"}, "routing 'hard'.*expected the names"),
    ({"tasks": ("vqa", "refer")}, r"\('vqa', 'refer'\): expected different names of "),
    ({"tasks": ("vqa", "vqa")}, "expected different names"),
    ({"experts": 2, "routing": "hard"}, "experts=2, routing 'hard' needs 3"),
    ({"experts": 1, "routing": "sparse"}, "experts=1, routing 'sparse' needs 2"),
    ({"experts": -1}, "experts=-1 0 or more"),
    ({"pool": 0}, "pool=0: expected 1 or more"),
    ({"dtype": "float8"}, "connector: dtype 'float8'"),
  ],
)
def test_fields_that_mean_nothing_are_refused(
  fields: dict[str, Any], words: str
) -> None:
  with pytest.raises(ValueError, match=words):
    dataclasses.replace(make("soft", "task_token"), **fields)
