"""What a train step takes on a mesh, before anybody has the cards: lowered and compiled,
never run, and without a single weight in memory.

    config, mesh ─▶ shapes and shardings ─▶ the loop's own step ─▶ XLA ─▶ Report ─▶ a page

Memory is XLA's plan. Products and collectives are counted in the program as it is right
after partitioning, which no backend has touched yet: bfloat16 is still bfloat16 there.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec

from imax_jax import mesh as mesh_lib
from imax_jax import runs
from imax_jax import tree as tree_lib
from imax_jax.costs import flaws as flaws_lib
from imax_jax.costs import hlo
from imax_jax.costs import products
from imax_jax.costs.page import Report
from imax_jax.costs.page import page
from imax_jax.models import vlm
from imax_jax.study import Study
from imax_jax.train.state import TrainState
from imax_jax.train.state import init_state
from imax_jax.train.step import make_train_step


def run(study: Study, request: Mapping[str, str | None]) -> None:
  """Prints the page; `request["rows"]` is the rows of each device, 1 unless given.

  Raises:
    ValueError: the step has a flaw that the page names.
  """
  found = measure(study, int(request.get("rows") or 1))
  sys.stdout.write(f"{page(found)}\n")
  if found.flaws:
    raise ValueError(
      f"compile_report: {len(found.flaws)} flaw(s) in this step, named above; "
      "training would work, and waste memory or time"
    )


def measure(study: Study, rows: int = 1) -> Report:
  """Compiles the train step of the study's config for the study's mesh.

  Raises:
    ValueError: a mesh or a sharding rule that does not fit the model.
  """
  config, mesh = study.config, study.mesh
  state, frozen, batch, step = _step(study, rows)
  began = time.perf_counter()
  lowered = step.lower(state, frozen, batch)
  lowered_at = time.perf_counter()
  compiled, partitioned, messages = _compile(lowered)
  done = time.perf_counter()
  program = hlo.read(partitioned, mesh.size)
  memory: Any = compiled.memory_analysis()
  cost = compiled.cost_analysis() or {}
  parameters = tree_lib.flatten(tree_lib.merge(state.trainable, frozen))
  every, tokens = batch["text"].shape
  line = (every // config.train.accumulate, tokens)  # of a turn
  groups = {
    "frozen weights": frozen,
    "trainable weights": state.trainable,
    "optimizer state": state.opt_state,
    "batch": batch,
  }
  return Report(
    title=config.title,
    platform=mesh.devices.flat[0].platform,
    mesh=dict(mesh.shape),
    batch={name: leaf.shape for name, leaf in batch.items()},
    turns=config.train.accumulate,
    held={name: _bytes(tree) for name, tree in groups.items()},
    counts={
      name: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
      for name, tree in (("frozen", frozen), ("trained", state.trainable))
    },
    whole={
      name: sum(
        math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)
      )
      for name, tree in groups.items()
    },
    temporaries=memory.temp_size_in_bytes
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes
    + memory.generated_code_size_in_bytes,
    copies=hlo.float_copies(compiled.as_text(), _stacks_of_bfloat16(parameters)),
    flops=program.flops,
    flops_formula=_formula(config, parameters, batch) / mesh.size,
    flops_xla=cost.get("flops", 0.0),
    collectives=program.collectives,
    unknown_loops=program.loops_of_unknown_length,
    lower_seconds=lowered_at - began,
    compile_seconds=done - lowered_at,
    flaws=flaws_lib.find(messages, parameters, line, program, mesh),
  )


# ── The step ──────────────────────────────────────────────────────────────────────


def _step(study: Study, rows: int) -> tuple[TrainState, Any, dict[str, Any], Any]:
  """(state, frozen, batch, step): shapes that say where they lie, and the loop's step."""
  mesh = study.mesh
  placed = tree_lib.unflatten(study.parameters.shardings)
  params = jax.tree.map(_shape, study.parameters.abstract, placed)
  trainable = study.parameters.trainable
  frozen = tree_lib.split(params, study.config.trainable)[1]
  optimizer = runs.optimizer(study, trainable, num_steps=1000)
  state = abstract_state(trainable, optimizer.update, mesh)
  shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
  step = make_train_step(
    vlm.batch_loss(study.model),
    optimizer,
    accumulate=study.config.train.accumulate,
    shardings=shardings,
  )
  return state, frozen, _batch(study, rows), step


def abstract_state(trainable: Any, update: Any, mesh: jax.sharding.Mesh) -> TrainState:
  """The shapes of the loop's state: moments lie as their weights, counters on all."""
  whole = NamedSharding(mesh, PartitionSpec())
  state = jax.eval_shape(lambda: init_state(_zeros(trainable), update, seed=0))
  return TrainState(
    step=_shape(state.step, whole),
    trainable=trainable,
    opt_state=optax.tree_map_params(
      update,
      lambda leaf, like: _shape(leaf, like.sharding),
      state.opt_state,
      trainable,
      transform_non_params=lambda leaf: _shape(leaf, whole),
    ),
    rng=_shape(state.rng, whole),
  )


def _zeros(tree: Any) -> Any:
  return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), tree)


def _shape(leaf: Any, where: Any) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)


def _batch(study: Study, rows: int) -> dict[str, Any]:
  """`schema.Batch` of so many rows a shard, each entry of another image as in DMAX.

  A shard is what a device goes through in one turn.
  """
  config, mesh = study.config, study.mesh
  shards = mesh_lib.num_row_shards(mesh) * config.train.accumulate
  where = mesh_lib.row_sharding(mesh)
  line = (shards * rows, config.train.row_tokens)
  dtypes = dict.fromkeys(("text", "image", "slot", "segment", "position"), jnp.int32)
  images = shards * math.ceil(config.train.entries_per_step / shards)
  encoder = config.model.encoder
  pixels = (
    jax.ShapeDtypeStruct((images, *study.model.features_shape), jnp.float32)
    if study.keeps_features
    else jax.ShapeDtypeStruct(
      (images, encoder.image_px, encoder.image_px, encoder.channels), jnp.uint8
    )
  )
  arrays = {
    name: jax.ShapeDtypeStruct(line, dtype)
    for name, dtype in {**dtypes, "loss_weight": jnp.float32}.items()
  }
  arrays["task"] = jax.ShapeDtypeStruct((images,), jnp.int32)
  # No data are built here. The paper's answers fill a third of a row or less.
  most = rows * config.train.row_tokens // 2
  arrays["supervised"] = jax.ShapeDtypeStruct((shards, most), jnp.int32)
  return {n: _shape(leaf, where) for n, leaf in {**arrays, "pixels": pixels}.items()}


def _compile(lowered: Any) -> tuple[Any, str, str]:
  """(compiled, the program just after partitioning, what XLA said on stderr)."""
  with tempfile.TemporaryDirectory() as folder, _without_cache(), _stderr() as said:
    compiled = lowered.compile(
      compiler_options={
        "xla_dump_to": folder,
        "xla_dump_hlo_as_text": True,
        "xla_dump_hlo_pass_re": "spmd-partitioning",
      }
    )
    files = sorted(Path(folder).glob("*.after_spmd-partitioning.*"))
    files += sorted(Path(folder).glob("*.before_optimizations.txt"))  # of one device
    return compiled, files[0].read_text(encoding="utf8"), said()


@contextlib.contextmanager
def _without_cache() -> Iterator[None]:
  """A program from the cache is not partitioned again: it would tell us nothing."""
  before = jax.config.values["jax_enable_compilation_cache"]
  jax.config.update("jax_enable_compilation_cache", False)
  compilation_cache.reset_cache()
  try:
    yield
  finally:
    jax.config.update("jax_enable_compilation_cache", before)
    compilation_cache.reset_cache()


@contextlib.contextmanager
def _stderr() -> Iterator[Any]:
  """Collects what the process writes to file descriptor 2, XLA's C++ included."""
  kept = os.dup(2)
  with tempfile.TemporaryFile() as file:

    def said() -> str:
      file.seek(0)
      return file.read().decode("utf8", "replace")

    os.dup2(file.fileno(), 2)
    try:
      yield said
    except BaseException:
      os.write(kept, said().encode())
      raise
    finally:
      os.dup2(kept, 2)
      os.close(kept)


# ── What is counted ───────────────────────────────────────────────────────────────


def _bytes(tree: Any) -> dict[str, int]:
  """{dtype: bytes on a device}."""
  found: dict[str, int] = {}
  for leaf in jax.tree.leaves(tree):
    size = math.prod(flaws_lib.local_shape(leaf)) * leaf.dtype.itemsize
    found[str(leaf.dtype)] = found.get(str(leaf.dtype), 0) + size
  return found


def _stacks_of_bfloat16(parameters: Mapping[str, Any]) -> set[tuple[int, ...]]:
  return {
    flaws_lib.local_shape(leaf)
    for leaf in parameters.values()
    if leaf.dtype == jnp.bfloat16 and len(leaf.shape) == 3
  }


def _formula(
  config: Any, parameters: Mapping[str, Any], batch: Mapping[str, Any]
) -> float:
  """4·P·T: forward and the gradient of the inputs; frozen kernels have none of their own.

  P counts the decoder's kernels and, for supervised tokens only, its head. Attention,
  LoRA and the connector are not in it: at 1,024 tokens a row some 5 % of a 7B model.
  """
  decoder = config.model.decoder
  layers, head = products.values_of(decoder, parameters)
  tokens, supervised = (math.prod(batch[name].shape) for name in ("text", "supervised"))
  return (
    4 + 2 * (decoder["remat"] == "inputs")
  ) * layers * tokens + 4 * head * supervised
