"""The Fisher information of the real model: taps in its layers, devices, its own answers."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import fisher as benchmark
from imax_jax import mesh as mesh_lib
from imax_jax import tree as tree_lib
from imax_jax.data import records
from imax_jax.data.pipeline import EntryBatches
from imax_jax.fisher import expected
from imax_jax.fisher import grads
from imax_jax.fisher import gram
from imax_jax.models import taps
from imax_jax.models import vlm
from imax_jax.models import zoo
from imax_jax.models.vlm import Vlm

ROWS, SLOTS, VOCABULARY = 8, 4, 24


PAPER = ((r"connector/.*", True), (r".*/lora_[ab]", True), (r".*", False))
HLORA = ((r"connector/.*", True), (r".*/lora_(a|b|route)", True), (r".*", False))
ALL = ((r"encoder/.*", False), (r".*", True))
GEMMA = {
  "tied": True, "window": 3, "global_every": 2, "qk_norm": True, "post_norms": True,
  "norm_offset": True, "image_both_ways": True,
}  # fmt: skip


_LOSSES: dict[int, object] = {}


def loss_of(model: Vlm):
  """One function a model: jax compiles anew for each new one."""
  return _LOSSES.setdefault(id(model), vlm.row_loss(model))


@functools.cache
def make_model(**changes) -> Vlm:
  fields = zoo.model("toy")
  fields["encoder"].update(image_px=8, patch_px=2, width=8, depth=1, num_heads=1)
  fields["encoder"].update(mlp_width=8)
  fields["decoder"].update(width=16, depth=2, num_heads=2, num_kv_heads=1, mlp_width=24)
  fields["decoder"].update(vocab_size=VOCABULARY, unroll=1, fold=False, lora_rank=2)
  fields["decoder"].update(lora_alpha=2.0)  # tame gradients: rounding is below 1e-6
  fields["decoder"].update(changes)
  return Vlm(**fields)


def make_batches(rows=ROWS, **share) -> EntryBatches:
  rng = np.random.default_rng(3)
  entry = records.TokenizedEntry
  images = [
    records.TokenizedImage(
      str(number),
      np.array([1, 2, *[0] * SLOTS, 3], np.int32),
      np.array([-1, -1, *range(SLOTS), -1], np.int32),
      tuple(
        entry(
          *(rng.integers(4, VOCABULARY, size).astype(np.int32) for size in pair), None
        )
        for pair in ((2, 3), (4, 1), (3, 5))
      ),
    )
    for number in range(6)
  ]
  pairs = [(number % 6, number % 3) for number in range(2 * rows)]
  pixels = rng.normal(size=(6, 4 * SLOTS, 8)).astype(np.float32)
  return EntryBatches(images, lambda i: pixels[i], pairs, group_size=rows, **share)


def make_params(model: Vlm, rules) -> tuple[dict, dict]:
  batch = make_batches()[0]
  made = jax.eval_shape(lambda: model.init(jax.random.key(0), batch))["params"]
  rng = np.random.default_rng(0)

  def draw(path: str, leaf) -> np.ndarray:
    """Of a size at which the loss is tame, and B is not zero."""
    size = leaf.shape[-2] ** -0.5 if len(leaf.shape) > 1 else 0.1
    size *= 0.1 if path.endswith("lora_b") else 1
    return np.float32(path.endswith("scale") + size * rng.normal(size=leaf.shape))

  moved = tree_lib.map_paths(draw, made)
  return tree_lib.split(moved, rules)


def explicit(loss, trainable, frozen, batch) -> np.ndarray:
  """J of float64, a row at a time, without anything of `gram`."""
  rows = grads.split_rows(batch)

  @jax.jit
  def gradient(row):
    of = jax.grad(lambda trainable: -loss(trainable, frozen, row)[0].sum())
    leaves = tree_lib.flatten(of(trainable)).values()
    return jnp.concatenate([jnp.ravel(leaf) for leaf in leaves])

  found = [
    gradient({k: v[n] for k, v in rows.items()}) for n in range(len(batch["text"]))
  ]
  return np.stack(found).astype(np.float64)


# ── Taps ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
  ("rules", "changes"),
  [
    (PAPER, {"remat": "inputs"}),
    (PAPER, {"fold": True, "unroll": 2}),
    (HLORA, {"lora_rank": 4, "lora_experts": 2, "remat": "inputs"}),
    (ALL, {"tied": True, "qkv_bias": True}),
    (ALL, GEMMA),
  ],
  ids=["lora", "folded", "h-lora", "all", "gemma"],
)
def test_taps_in_scanned_layers_give_the_gram_of_explicit_gradients(rules, changes):
  model = make_model(**changes)
  trainable, frozen = make_params(model, rules)
  batch, loss = make_batches()[0], loss_of(model)
  jacobian = explicit(loss, trainable, frozen, batch)
  whole = jacobian @ jacobian.T / ROWS
  scalars = gram.choose_scalars(trainable, seed=1)
  found = gram.measure_gram(
    loss, trainable, frozen, batch, scalars=scalars, tapped=vlm.TAPPED
  )
  np.testing.assert_allclose(found.exact, whole, atol=1e-5 * np.abs(whole).max())
  assert len(found.traces) == len(tree_lib.flatten(trainable))
  columns, start = {}, 0
  for path, leaf in tree_lib.flatten(trainable).items():
    matrices = gram.num_matrices(path, leaf)
    own = jacobian[:, start : start + leaf.size].reshape(ROWS, matrices, -1)
    traces = np.square(own).sum(axis=(0, 2)) / ROWS
    np.testing.assert_allclose(
      found.traces[path], traces, rtol=1e-4, atol=1e-9, err_msg=path
    )
    for matrix, at in enumerate(scalars.get(path, ())):
      columns[path, matrix] = own[:, matrix, at]
    start += leaf.size
  wanted = np.stack([columns[p, m] for p in scalars for m in range(len(scalars[p]))], 1)
  np.testing.assert_allclose(found.entries, wanted, atol=1e-5 * np.abs(wanted).max())


def test_gram_is_that_of_torch_func_on_the_same_weights():
  sizes = ("rows", 4), ("width", 32), ("depth", 2), ("vocab", 40), ("times", 1)
  words = [word for name, size in sizes for word in (f"--{name}", str(size))]
  ours, theirs = (
    np.array(found["gram"])
    for options in [benchmark.parsed([*words, "--threads=1"])]
    for found in (benchmark.ours(options, "taps"), benchmark.theirs(options))
  )
  assert ours.shape == (4, 4)
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


def test_gradients_of_layers_are_not_in_memory_together():
  """The temporary memory of the tapped pass does not grow with N x trainable size."""
  sizes = {"width": 32, "mlp_width": 64, "depth": 8, "remat": "inputs"}
  model = make_model(**sizes)
  trainable, frozen = make_params(model, ALL)
  loss, rows = loss_of(model), grads.split_rows(make_batches()[0])
  index = gram._indices(None, trainable)

  def temporary(rows_at_once: int) -> int:
    program = gram._program(loss, "sum", rows_at_once, vlm.TAPPED, None)
    compiled = program.lower(trainable, frozen, rows, index).compile()
    return int(compiled.memory_analysis().temp_size_in_bytes)

  layers = tree_lib.flatten(trainable["decoder"]["layers"]).values()
  gradients = 4 * ROWS * sum(leaf.size for leaf in layers)
  assert temporary(1) > gradients
  assert temporary(0) < gradients


def test_the_training_program_knows_nothing_of_taps():
  model = make_model()
  trainable, frozen = make_params(model, PAPER)
  loss, batch = loss_of(model), dict(make_batches()[0])
  plain = str(jax.make_jaxpr(loss)(trainable, frozen, batch))
  assert "custom_vmap" not in plain
  hung = {"decoder": {"layers": {"attn": {"q": {"lora_a": taps.each(
    {**taps.make(jnp.zeros(2, int), ROWS), "index": jnp.zeros(2, int)})}}}}}  # fmt: skip
  assert str(jax.make_jaxpr(loss)(trainable, frozen, batch, hung)) != plain


def test_a_tap_outside_of_vmap_gives_no_number_that_could_be_taken_for_one():
  def value(tap, x=1.0):
    return x * taps.tapped({"w": jnp.ones(2)}, {"w": tap})["w"].sum()

  tap = {**taps.make(jnp.zeros(1, int), 4), "index": jnp.zeros(1, int)}
  alone = jax.grad(value, allow_int=True)(tap)
  assert np.isnan(alone["row"]).all()
  assert np.isnan(alone["entry"]).all()
  with pytest.raises(ValueError, match="3 examples under vmap, but taps for 4"):
    jax.vmap(lambda x: jax.grad(value, allow_int=True)(tap, x)["row"])(jnp.ones(3))


# ── Devices ───────────────────────────────────────────────────────────────────────

PROGRAM = """
import json, sys
import numpy as np
from imax_jax import mesh as mesh_lib
from imax_jax import tree as tree_lib
from imax_jax.fisher import gram
from imax_jax.models import vlm
from tests import test_fisher_model as own

model = own.make_model(num_kv_heads=2)
loss = own.loss_of(model)
trainable, frozen = own.make_params(model, own.PAPER)
batches = own.make_batches()
scalars = gram.choose_scalars(trainable, seed=0)
found = {}
for name, axes, k in (
  ("data and fsdp", {"data": 2, "fsdp": 2}, 0),
  ("fsdp and tensor", {"fsdp": 2, "tensor": 2}, 0), ("kept", {"data": 2, "fsdp": 2}, 1),
):
  mesh = mesh_lib.make_mesh(axes)
  where = mesh_lib.shardings(tree_lib.merge(trainable, frozen), mesh, mesh_lib.FSDP)
  placed = mesh_lib.place(tree_lib.merge(trainable, frozen), where)
  parts = tree_lib.split(placed, own.PAPER)
  one = gram.measure_gram(loss, *parts, batches[0], scalars=scalars, rows_at_once=k,
                          tapped=vlm.TAPPED, mesh=mesh)
  found[name] = [one.exact.tolist(), one.entries.tolist()]
try:
  gram.check_rows(6, mesh_lib.make_mesh({"data": 4}))
except ValueError as error:
  found["refused"] = str(error)
json.dump(found, sys.stdout)
"""


@pytest.fixture(scope="module")
def four() -> dict:
  """What PROGRAM found on four devices."""
  root = os.path.dirname(os.path.dirname(__file__))
  environment = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "PYTHONPATH": root,
    "JAX_NUM_CPU_DEVICES": "4",
  }
  done = subprocess.run(
    [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True,
    timeout=240, check=False, cwd=root,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", ["data and fsdp", "fsdp and tensor", "kept"])
def test_the_gram_is_the_same_on_four_devices(four, name):
  model = make_model(num_kv_heads=2)
  trainable, frozen = make_params(model, PAPER)
  scalars = gram.choose_scalars(trainable, seed=0)
  alone = gram.measure_gram(
    loss_of(model), trainable, frozen, make_batches()[0], scalars=scalars,
    tapped=vlm.TAPPED,
  )  # fmt: skip
  # float32 gradients, summed in another order where weights are split: 2e-6 was seen.
  exact, entries = map(np.array, four[name])
  for got, wanted in ((exact, alone.exact), (entries, alone.entries)):
    np.testing.assert_allclose(got, wanted, rtol=0, atol=5e-6 * np.abs(wanted).max())


def test_groups_that_the_mesh_does_not_divide_are_refused(four):
  assert (
    "group of 6 entries does not divide over the mesh's 4 row shards" in four["refused"]
  )


def test_processes_have_their_own_rows_of_a_group():
  whole = grads.split_rows(make_batches()[0])
  parts = [
    grads.split_rows(make_batches(process_index=process, process_count=2)[0])
    for process in range(2)
  ]
  for name, value in whole.items():
    joined = np.concatenate([part[name] for part in parts])
    np.testing.assert_array_equal(joined, value, err_msg=name)


# ── The model's own answers ───────────────────────────────────────────────────────

END = 5


def test_answers_are_drawn_from_the_model_token_after_token():
  model = make_model()
  trainable, frozen = make_params(model, PAPER)
  params = tree_lib.merge(trainable, frozen)
  rows = 512
  one = make_batches()[0]
  alike = {name: np.repeat(np.asarray(one[name])[:1], rows, axis=0) for name in one}
  alike["image"] = np.where(alike["image"] >= 0, np.arange(rows)[:, None], -1)
  sample = expected.make_sampler(
    model, (END,), 3, seed=0, mesh=mesh_lib.make_mesh({"data": -1})
  )
  drawn = np.concatenate([sample(params, alike, number) for number in range(4)])
  assert drawn.shape == (4 * rows, 3)
  assert (drawn[:, 1:][drawn[:, :1].ravel() == END] == expected.NO_TOKEN).all()
  assert (drawn[drawn[:, 0] != END, 1] != expected.NO_TOKEN).all()

  def probabilities(answer) -> np.ndarray:
    """Of the next token, by running the row whole."""
    start = int(expected.prompt_lengths(one)[0])
    row = {name: np.asarray(one[name])[:1].copy() for name in one}
    row["text"] = row["text"].copy()
    row["text"][0, start : start + len(answer)] = answer
    for name, value in (("image", 0), ("segment", 1)):
      row[name][0, start : start + len(answer)] = value
    row["position"][0] = np.arange(row["text"].shape[1])
    row["pixels"] = row["pixels"][:1]
    logits = model.apply({"params": params}, row).logits[0, start + len(answer) - 1]
    return np.asarray(jax.nn.softmax(logits))

  counts = np.bincount(drawn[:, 0], minlength=VOCABULARY)
  assert _chi_square(counts, probabilities([])) < 60  # 23 degrees: p < 4e-5
  common = int(np.argmax(np.where(np.arange(VOCABULARY) == END, 0, counts)))
  after = drawn[drawn[:, 0] == common, 1]
  assert len(after) > 100
  counts = np.bincount(after, minlength=VOCABULARY)
  assert _chi_square(counts, probabilities([common])) < 60
  assert not np.array_equal(sample(params, alike, 0), sample(params, alike, 1))
  np.testing.assert_array_equal(sample(params, alike, 0), drawn[:rows])


def _chi_square(counts: np.ndarray, probability: np.ndarray) -> float:
  wanted = counts.sum() * probability
  return float((np.square(counts - wanted) / wanted).sum())


def test_a_row_with_another_answer_is_the_row_as_if_packed_with_it():
  batch = make_batches()[0]
  starts, real = expected.prompt_lengths(batch), np.asarray(batch["image"]) >= 0
  lengths = real.sum(axis=1) - starts
  same = np.full((ROWS, 7), expected.NO_TOKEN)
  for row, (start, length) in enumerate(zip(starts, lengths, strict=True)):
    same[row, :length] = batch["text"][row, start : start + length]
  again = expected.replace_answers(batch, same)
  width = batch["text"].shape[1]
  for name in ("text", "slot", "image", "segment", "position", "loss_weight"):
    got, wanted = np.asarray(again[name]), np.asarray(batch[name])
    np.testing.assert_array_equal(got[:, :width], wanted, err_msg=name)
    if name in ("text", "image"):
      assert (got[:, width:] == (0 if name == "text" else -1)).all()
  model = make_model()
  trainable, frozen = make_params(model, PAPER)
  loss = loss_of(model)
  first, second = (
    gram.measure_gram(loss, trainable, frozen, one, tapped=vlm.TAPPED).exact
    for one in (batch, again)
  )
  np.testing.assert_allclose(first, second, atol=1e-5 * np.abs(first).max())
  with pytest.raises(ValueError, match="8 sampled answers have no token"):
    expected.replace_answers(batch, np.full((ROWS, 2), expected.NO_TOKEN))


def test_gradients_of_the_model_s_own_answers_have_mean_zero():
  """The identity that makes the expected Fisher a Fisher: the data's answers break it."""
  model = make_model()
  trainable, frozen = make_params(model, PAPER)
  params, loss = tree_lib.merge(trainable, frozen), loss_of(model)
  batches = make_batches(64)
  sample = expected.make_sampler(
    model, (END,), 6, seed=1, mesh=mesh_lib.make_mesh({"data": -1})
  )
  answered = expected.Answered(batches, functools.partial(sample, params))
  assert len(answered) == 2

  def length_of_mean(batch) -> float:
    """Squared, in units of what independent gradients of mean zero would give."""
    found = gram.measure_gram(loss, trainable, frozen, batch, tapped=vlm.TAPPED).exact
    return float(found.sum() / np.trace(found))

  assert length_of_mean(batches[0]) > 6
  assert length_of_mean(answered[0]) < 3
