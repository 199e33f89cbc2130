"""Image features to image tokens of the decoder's width.

features [N, P, D] ─ queries │ pool ─ norm ─ merge ─┬─ MLP ──────────────────▶ [N, S, width]
                                                    └─ experts, weighed by the router

The paper's "2-layer MLP" (section 4.2.2) is Uni-Med's `mlp2x_gelu` (uni_med.py); it does
not say whether Uni-Med's `projection` resampling, four neighbours made one token, stands
before it. `merge` 4 with it, 64 tokens at 224 px; 1 without, 256. Depth 1 is MiniGPT-v2's
single linear layer. Pool and norm are Gemma 3's, the queries BLIP-2's (`qformer`).

The experts are Uni-Med's CMoE: each is an MLP that every token passes, and the result is
the sum of all, weighed for each token. There is no loss for balance, there as here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from imax_jax import schema
from imax_jax.models import scales
from imax_jax.models import storage
from imax_jax.models.block import RmsNorm
from imax_jax.models.lora import Dense
from imax_jax.models.qformer import QFormer

_TOP = 2  # experts of a token, where routing is sparse
ROUTINGS = ("soft", "sparse", "hard", "constant")
ROUTE_BY = ("task_token", "token", "task")


def _mlp(x: jax.Array, dense: Any, depth: int) -> jax.Array:
  """`depth` linear layers with exact GELU between them, parameters of whoever calls."""
  for number in range(depth):
    x = nn.gelu(x, approximate=False) if number else x
    x = dense(name=f"dense_{number}")(x)
  return x


class _Expert(nn.Module):
  """One MLP, its part added to the sum of those before it."""

  dense: Any
  depth: int

  @nn.compact
  def __call__(
    self, total: jax.Array, x: jax.Array, weight: jax.Array
  ) -> tuple[jax.Array, None]:
    """float32[N, S, width], [N, S, in], float32[N, S]."""
    said = _mlp(x, self.dense, self.depth).astype(jnp.float32)
    return total + weight[..., None] * said, None


class _Router(nn.Module):
  """Uni-Med's: a hidden layer four times as wide as what comes in, and exact GELU."""

  experts: int
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[N, S, in] -> float32 logits[N, S, E]."""
    dense = partial(Dense, use_bias=True, dtype=self.dtype)
    x = nn.gelu(dense(4 * x.shape[-1], name="dense_0")(x), approximate=False)
    return dense(self.experts, name="dense_1")(x).astype(jnp.float32)


class Connector(nn.Module):
  """`merge` patches that follow each other in a row become one image token.

  The MLP has `depth` linear layers of `width`, exact GELU between them.

  Args:
    pool: so many times so many neighbours of the map are averaged before that.
    norm_eps: an RMS norm with weight 1 + w before the linear layers; 0: none.
    qformer: fields of `QFormer`, whose queries are the tokens; none: the patches are.
    experts: of the CMoE; 0: one MLP.
    routing: how a token's experts are weighed: "soft", sigmoids over their sum;
      "sparse", a softmax of the two largest; "hard", the expert with the task's number;
      "constant", all alike.
    route_by: what soft and sparse go by: the "task"'s learned row, the "token", or both,
      the task's in front ("task_token").
    tasks: names of `schema.TASKS`, in the order of their numbers; () where the routing
      goes by none.
  """

  width: int
  merge: int = 4
  depth: int = 2
  bias: bool = True
  pool: int = 1
  norm_eps: float = 0.0
  qformer: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  experts: int = 0
  routing: str = "soft"
  route_by: str = "task_token"
  tasks: tuple[str, ...] = ()
  dtype: Any = "float32"

  def __post_init__(self) -> None:
    storage.check_dtype("connector", self.dtype)
    if min(self.merge, self.depth, self.pool) < 1 or self.experts < 0:
      raise ValueError(
        f"connector: merge={self.merge}, depth={self.depth}, pool={self.pool}: expected "
        f"1 or more, and experts={self.experts} 0 or more"
      )
    if self.qformer and (self.merge > 1 or self.pool > 1):
      raise ValueError(
        f"connector: merge={self.merge} and pool={self.pool} behind a qformer: its "
        "queries are no neighbours of each other; set both to 1"
      )
    self._check_routing()
    super().__post_init__()

  def _check_routing(self) -> None:
    for name, value, known in (
      ("routing", self.routing, ROUTINGS), ("route_by", self.route_by, ROUTE_BY)
    ):  # fmt: skip
      if value not in known:
        raise ValueError(
          f"connector: {name} {value!r}, expected one of {', '.join(known)}"
        )
    foreign = [name for name in self.tasks if name not in schema.TASKS]
    if foreign or len(set(self.tasks)) < len(self.tasks):
      raise ValueError(
        f"connector: tasks {tuple(self.tasks)}: expected different names of "
        f"{', '.join(schema.TASKS)}"
      )
    by_task = self.experts > 0 and (self.routing == "hard" or self._learns_tasks)
    if by_task != bool(self.tasks):
      raise ValueError(
        f"connector: tasks {tuple(self.tasks)} with experts={self.experts}, routing "
        f"{self.routing!r} by {self.route_by!r}: expected "
        f"{'the names of the tasks' if by_task else 'none, which nothing would read'}"
      )
    least = {"hard": len(self.tasks), "sparse": _TOP}.get(self.routing, 0)
    if 0 < self.experts < least:
      raise ValueError(
        f"connector: experts={self.experts}, routing {self.routing!r} needs {least} or "
        "more"
      )

  @property
  def _is_routed(self) -> bool:
    return self.experts > 0 and self.routing in ("soft", "sparse")

  @property
  def _learns_tasks(self) -> bool:
    return self._is_routed and self.route_by != "token"

  def num_slots(self, num_tokens: int) -> int:
    """S, the image tokens made of so many features.

    Raises:
      ValueError: pool or merge do not divide them.
    """
    if self.qformer:
      return QFormer(**self.qformer, parent=None).queries
    pooled = scales.pooled(num_tokens, self.pool)
    if pooled % self.merge:
      raise ValueError(
        f"connector: {pooled} patches an image are no multiple of merge={self.merge}. "
        "Choose a merge that divides them."
      )
    return pooled // self.merge

  @nn.compact
  def __call__(self, features: jax.Array, task: jax.Array | None = None) -> jax.Array:
    """[N, P, D] -> [N, S, width]; S is `num_slots(P)`.

    Args:
      task: int32[N], the number of each image's task in `tasks`, where there are some.

    Raises:
      ValueError: P is no multiple of `merge`, or no map that `pool` divides; no `task`.
    """
    slots, x = self.num_slots(features.shape[1]), features
    if self.qformer:
      x = QFormer(**{"dtype": self.dtype, **self.qformer}, name="qformer")(x)
    x = scales.averaged(x, self.pool)
    if self.norm_eps:
      x = RmsNorm(self.norm_eps, offset=True, name="norm")(x)
    x = x.reshape(len(x), slots, -1)
    dense = partial(Dense, self.width, use_bias=self.bias, dtype=self.dtype)
    if not self.experts:
      return _mlp(x, dense, self.depth)
    weights = self._weights(x, task)
    experts = nn.scan(
      _Expert,
      variable_axes={"params": 0},
      split_rngs={"params": True},
      in_axes=(nn.broadcast, 2),
      length=self.experts,
    )
    total = jnp.zeros((*x.shape[:2], self.width), jnp.float32)
    total, _ = experts(dense, self.depth, name="experts")(total, x, weights)
    return total.astype(self.dtype)

  def _weights(self, x: jax.Array, task: jax.Array | None) -> jax.Array:
    """What each expert weighs for each token: float32[N, S, E]."""
    shape = (*x.shape[:2], self.experts)
    if self.routing == "constant":
      return jnp.full(shape, 1 / self.experts, jnp.float32)
    if self.tasks and task is None:
      raise ValueError(
        "connector: its image tokens depend on the task; hand in each image's"
      )
    if self.routing == "hard":
      chosen = jax.nn.one_hot(task, self.experts, dtype=jnp.float32)
      return jnp.broadcast_to(chosen[:, None], shape)
    logits = _Router(self.experts, self.dtype, name="router")(self._routed_by(x, task))
    if self.routing == "soft":
      gates = nn.sigmoid(logits)
      return gates / gates.sum(-1, keepdims=True)
    _, top = jax.lax.top_k(logits, _TOP)
    kept = jax.nn.one_hot(top, self.experts, dtype=bool).any(-2)
    return nn.softmax(logits, where=kept)

  def _routed_by(self, x: jax.Array, task: jax.Array | None) -> jax.Array:
    """[N, S, in]: what the router looks at."""
    if self.route_by == "token":
      return x
    shape = (len(self.tasks), x.shape[-1])
    rows = self.param("task_tokens", nn.initializers.normal(0.02), shape)
    own = jnp.broadcast_to(rows[task][:, None], x.shape).astype(x.dtype)
    return own if self.route_by == "task" else jnp.concatenate([own, x], axis=-1)
