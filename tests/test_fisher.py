"""Spectra against the explicit p x p Fisher matrix and against closed forms."""

from __future__ import annotations

import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from imax_jax import tree as tree_lib
from imax_jax.data import packing
from imax_jax.fisher import grads
from imax_jax.fisher import gram
from imax_jax.fisher.measure import measure
from imax_jax.fisher.spectrum import dominant_ratio
from imax_jax.fisher.spectrum import spectral_entropy
from imax_jax.fisher.spectrum import spectrum
from imax_jax.models import zoo
from imax_jax.models.vlm import Vlm

NUM_ROWS, TOKENS, IMAGE_TOKENS, VOCABULARY, WIDTH, RANK, LAYERS = 6, 9, 2, 11, 5, 2, 3


PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down")


def make_batch(seed: int = 0, num_images: int = NUM_ROWS) -> dict[str, np.ndarray]:
  """One-entry rows of different answer lengths; row b shows image b % num_images."""
  rng = np.random.default_rng(seed)
  shape = (NUM_ROWS, TOKENS)
  image = np.tile((np.arange(NUM_ROWS) % num_images)[:, None], (1, TOKENS))
  segment = np.ones(shape, np.int32)
  segment[:, : 1 + IMAGE_TOKENS] = 0
  slot = np.full(shape, -1, np.int32)
  slot[:, 1 : 1 + IMAGE_TOKENS] = np.arange(IMAGE_TOKENS)
  weight = np.zeros(shape, np.float32)
  for row in range(NUM_ROWS):
    end = TOKENS - 1 - row % 3
    weight[row, 4:end] = 1
    image[row, end + 1 :] = -1
    segment[row, end + 1 :] = 0
  return {
    "pixels": rng.normal(size=(num_images, IMAGE_TOKENS, WIDTH)).astype(np.float32),
    "text": rng.integers(1, VOCABULARY, size=shape).astype(np.int32),
    "image": image.astype(np.int32),
    "slot": slot,
    "segment": segment,
    "position": np.tile(np.arange(TOKENS, dtype=np.int32), (NUM_ROWS, 1)),
    "loss_weight": weight,
    "supervised": packing.supervised(weight, 1, weight.size),
  }


def make_params(seed: int = 0, *, zero_b: bool = False) -> tuple[dict, dict]:
  rng = np.random.default_rng(seed)

  def normal(*shape: int) -> jax.Array:
    return jnp.asarray(rng.normal(size=shape) / 2, jnp.float32)

  lora_b = normal(LAYERS, RANK, WIDTH) * (0 if zero_b else 1)
  trainable = {
    "connector": {"kernel": normal(WIDTH, WIDTH), "bias": normal(WIDTH)},
    "decoder": {
      "layers": {
        "attn": {"q": {"lora_a": normal(LAYERS, WIDTH, RANK), "lora_b": lora_b}},
        "norm": {"scale": 1 + normal(LAYERS, WIDTH)},
      }
    },
  }
  frozen = {
    "decoder": {
      "embedding": normal(VOCABULARY, WIDTH),
      "layers": {"attn": {"q": {"kernel": normal(LAYERS, WIDTH, WIDTH)}}},
    }
  }
  return trainable, frozen


def loss(trainable, frozen, batch):
  """A toy of Vlm's contract: image tokens, scanned LoRA layers, (sum, weight) a row."""
  params = tree_lib.merge(trainable, frozen)
  connector, decoder = params["connector"], params["decoder"]
  tokens = batch["pixels"] @ connector["kernel"] + connector["bias"]  # [N, S, D]
  shown = tokens[
    jnp.maximum(batch["image"], 0), jnp.maximum(batch["slot"], 0)
  ]  # [B, T, D]
  word = decoder["embedding"][batch["text"]]
  x = jnp.where((batch["slot"] >= 0)[..., None], shown, word)
  # Causal mixing, so that an answer's tokens depend on the image.
  real = (batch["image"] >= 0).astype(jnp.float32)[..., None]
  layers = decoder["layers"]
  for layer in range(LAYERS):
    q = layers["attn"]["q"]
    kernel = q["kernel"][layer] + q["lora_a"][layer] @ q["lora_b"][layer]
    mixed = jnp.cumsum(x * real, axis=1) / jnp.maximum(jnp.cumsum(real, axis=1), 1)
    x = x + jnp.tanh(mixed @ kernel) * layers["norm"]["scale"][layer]
  logits = x @ decoder["embedding"].T
  target = jnp.roll(batch["text"], -1, axis=1)
  nll = -jnp.take_along_axis(jax.nn.log_softmax(logits), target[..., None], -1)[..., 0]
  weight = batch["loss_weight"]
  return (nll * weight).sum(axis=1), weight.sum(axis=1)


def one_by_one(trainable, frozen, batch, normalise) -> np.ndarray:
  """J by a loop over hand-made one-row batches: nothing of the module under test."""

  @jax.jit
  def gradient(alone):
    def log_likelihood(trainable):
      total, weight = loss(trainable, frozen, alone)
      return -(total[0] / weight[0] if normalise == "mean" else total[0])

    return tree_lib.flatten(jax.grad(log_likelihood)(trainable))

  rows = []
  for row in range(NUM_ROWS):
    alone = {name: value[row : row + 1] for name, value in batch.items()}
    which = batch["image"][row].max()
    alone["pixels"] = batch["pixels"][which : which + 1]
    alone["image"] = np.minimum(alone["image"], 0)
    flat = gradient(alone)
    rows.append(np.concatenate([np.ravel(leaf) for leaf in flat.values()]))
  return np.stack(rows)


def fim_eigenvalues(jacobian: np.ndarray) -> np.ndarray:
  """Of the explicit p x p matrix of Eq. 2, largest first."""
  jacobian = jacobian.astype(np.float64)
  outer = sum(np.outer(row, row) for row in jacobian) / len(jacobian)
  return np.linalg.eigvalsh(outer)[::-1]


@pytest.mark.parametrize(
  ("normalise", "num_images", "rows_at_once"),
  [("mean", NUM_ROWS, 0), ("sum", NUM_ROWS, 1), ("mean", 2, 4)],
)
def test_per_example_grads_are_those_of_rows_alone(normalise, num_images, rows_at_once):
  trainable, frozen = make_params()
  batch = make_batch(num_images=num_images)
  expected = one_by_one(trainable, frozen, batch, normalise)
  got = grads.per_example_grads(
    loss, trainable, frozen, batch, normalise=normalise, rows_at_once=rows_at_once
  )
  assert got.dtype == jnp.float32
  np.testing.assert_allclose(got, expected, rtol=2e-4, atol=2e-6)


def test_sum_of_per_example_grads_is_the_batch_gradient():
  trainable, frozen = make_params()
  batch = make_batch()
  whole = tree_lib.flatten(
    jax.jit(jax.grad(lambda trainable: -loss(trainable, frozen, batch)[0].sum()))(
      trainable
    )
  )
  expected = np.concatenate([np.ravel(leaf) for leaf in whole.values()])
  got = grads.per_example_grads(loss, trainable, frozen, batch, normalise="sum")
  np.testing.assert_allclose(
    np.asarray(got).sum(axis=0), expected, rtol=2e-4, atol=1e-5
  )


def test_mean_is_the_sum_over_the_number_of_answer_tokens():
  trainable, frozen = make_params()
  batch = make_batch()
  summed = grads.per_example_grads(loss, trainable, frozen, batch, normalise="sum")
  mean = grads.per_example_grads(loss, trainable, frozen, batch, normalise="mean")
  lengths = batch["loss_weight"].sum(axis=1)
  assert len(set(lengths)) > 1
  np.testing.assert_allclose(mean, summed / lengths[:, None], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("normalise", ["sum", "mean"])
def test_training_weights_are_no_part_of_a_log_likelihood(normalise):
  trainable, frozen = make_params()
  batch = make_batch()
  weighted = batch | {
    "loss_weight": batch["loss_weight"] / batch["loss_weight"].sum(axis=1)[:, None]
  }
  plain, other = (
    grads.per_example_grads(loss, trainable, frozen, one, normalise=normalise)
    for one in (batch, weighted)
  )
  np.testing.assert_array_equal(plain, other)


@pytest.mark.parametrize("rows_at_once", [0, 1, 4])
@pytest.mark.parametrize("normalise", ["sum", "mean"])
def test_gram_is_that_of_explicit_float64_gradients(normalise, rows_at_once):
  trainable, frozen = make_params()
  batch = make_batch()
  jacobian = one_by_one(trainable, frozen, batch, normalise).astype(np.float64)
  found = gram.measure_gram(
    loss, trainable, frozen, batch, normalise=normalise, rows_at_once=rows_at_once
  )
  whole = jacobian @ jacobian.T / NUM_ROWS
  np.testing.assert_allclose(found.exact, whole, atol=1e-5 * np.abs(whole).max())
  assert found.exact.shape == (NUM_ROWS, NUM_ROWS)
  eigenvalues = fim_eigenvalues(jacobian)
  np.testing.assert_allclose(
    np.linalg.eigvalsh(found.exact)[::-1], eigenvalues[:NUM_ROWS],
    atol=1e-5 * eigenvalues[0],
  )  # fmt: skip
  np.testing.assert_allclose(eigenvalues[NUM_ROWS:], 0, atol=1e-9 * eigenvalues[0])
  spread = spectrum(found.exact)
  expected = spectral_entropy(eigenvalues[:NUM_ROWS])
  assert spread.entropy == pytest.approx(expected, rel=1e-5)
  assert spread.dominant == pytest.approx(
    100 * eigenvalues[0] / eigenvalues.sum(), rel=1e-5
  )


@pytest.mark.parametrize("rows_at_once", [0, 2])
def test_sampled_gram_is_the_fisher_matrix_of_the_chosen_columns(rows_at_once):
  trainable, frozen = make_params()
  batch = make_batch()
  scalars = gram.choose_scalars(trainable, seed=3)
  jacobian = one_by_one(trainable, frozen, batch, "sum")
  columns, start, traces = [], 0, {}
  for path, leaf in tree_lib.flatten(trainable).items():
    matrix_size = leaf.size // gram.num_matrices(path, leaf)
    columns += [
      start + number * matrix_size + index
      for number, index in enumerate(scalars.get(path, ()))
    ]
    squares = np.square(jacobian[:, start : start + leaf.size].astype(np.float64))
    traces[path] = squares.sum(axis=0).reshape(-1, matrix_size).sum(axis=1) / NUM_ROWS
    start += leaf.size
  assert len(columns) == gram.num_scalars(scalars) == 2 * LAYERS + 1
  found = gram.measure_gram(
    loss, trainable, frozen, batch, scalars=scalars, rows_at_once=rows_at_once
  )
  np.testing.assert_allclose(found.entries, jacobian[:, columns], rtol=2e-4, atol=2e-6)
  np.testing.assert_allclose(
    found.sampled, gram.gram_of(jacobian[:, columns]), rtol=1e-3
  )
  for path, trace in traces.items():
    np.testing.assert_allclose(found.traces[path], trace, rtol=1e-4, err_msg=path)
  assert sum(t.sum() for t in found.traces.values()) == pytest.approx(
    np.trace(found.exact)
  )


def test_gradients_of_lora_a_vanish_while_b_is_zero():
  """Shown, not stumbled over: measured, counted, and refused only if all vanish."""
  trainable, frozen = make_params(zero_b=True)
  batch = make_batch()
  rows = grads.split_rows(batch)
  gradients = jax.jit(functools.partial(grads.row_gradients, loss, normalise="sum"))(
    trainable, frozen, rows
  )
  assert not np.any(gradients["decoder/layers/attn/q/lora_a"])
  assert np.abs(gradients["decoder/layers/attn/q/lora_b"]).min() > 0
  scalars = gram.choose_scalars(trainable, seed=0)
  sampled, exact = measure(loss, trainable, frozen, [batch], scalars=scalars)
  assert sampled["vanishing"] == exact["vanishing"] == LAYERS  # of 2 * LAYERS + 1
  assert sampled["rank"] == [min(NUM_ROWS, LAYERS + 1)]
  assert exact["trace"]["decoder/layers/attn/q/lora_a"] == [0.0] * LAYERS
  lora = trainable["decoder"]["layers"]["attn"]["q"]
  only_a = {"decoder": {"layers": {"attn": {"q": {"lora_a": lora.pop("lora_a")}}}}}
  rest = tree_lib.merge(trainable, frozen)
  found = gram.measure_gram(loss, only_a, rest, batch)
  with pytest.raises(ValueError, match="LoRA's B is zero"):
    spectrum(found.exact)


def paper_shapes(layers: int, *, scanned: bool) -> dict:
  """LoRA on seven projections and a connector of two matrices with biases."""

  def leaf(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)

  def projections(*stack: int) -> dict:
    return {
      name: {"lora_a": leaf(*stack, 64, 8), "lora_b": leaf(*stack, 8, 64)}
      for name in PROJECTIONS
    } | {"norm": {"scale": leaf(*stack, 64)}}

  blocks = (
    {"layers": projections(layers)}
    if scanned
    else {f"block_{number}": projections() for number in range(layers)}
  )
  connector = {
    name: {"kernel": leaf(64, 64), "bias": leaf(64)} for name in ("fc1", "fc2")
  }
  return {"connector": connector, "decoder": blocks}


@pytest.mark.parametrize("scanned", [True, False])
@pytest.mark.parametrize(("layers", "expected"), [(4, 58), (32, 450)])
def test_one_scalar_of_each_trainable_matrix(layers, expected, scanned):
  scalars = gram.choose_scalars(paper_shapes(layers, scanned=scanned), seed=0)
  assert gram.num_scalars(scalars) == expected
  assert not [path for path in scalars if "bias" in path or "scale" in path]


def test_the_paper_s_model_has_450_scalars_and_the_toy_58():
  for name, expected in (("imax_7b", 450), ("toy", 58)):
    model = Vlm(**zoo.model(name))
    encoder, connector = zoo.model(name)["encoder"], zoo.model(name)["connector"]
    patches = (encoder["image_px"] // encoder["patch_px"]) ** 2
    row = jax.ShapeDtypeStruct((1, 8), jnp.int32)
    names = ("text", "image", "slot", "segment", "position")
    batch = dict.fromkeys(names, row) | {
      "pixels": jax.ShapeDtypeStruct((1, patches, encoder["width"]), jnp.float32)
    }
    assert connector["depth"] == 2
    params = jax.eval_shape(model.init, jax.random.key(0), batch)["params"]
    rules = ((r".*/lora_[ab]", True), (r"connector/.*", True), (r".*", False))
    trainable, _ = tree_lib.split(params, rules)
    scalars = gram.choose_scalars(trainable, seed=0)
    assert gram.num_scalars(scalars) == expected


def test_each_expert_has_matrices_of_its_own():
  """Uni-Med's paper counts five MLPs of two matrices and a router of two."""
  shapes = {
    "connector": {
      "experts": {"dense_0": {"kernel": np.zeros((5, 4, 3)), "bias": np.zeros((5, 3))}},
      "router": {"dense_0": {"kernel": np.zeros((8, 16)), "bias": np.zeros(16)}},
    }
  }
  scalars = gram.choose_scalars(shapes, seed=0)
  assert {path: len(found) for path, found in scalars.items()} == {
    "connector/experts/dense_0/kernel": 5, "connector/router/dense_0/kernel": 1
  }  # fmt: skip


def test_scalars_depend_on_the_seed_alone_and_survive_json():
  shapes = paper_shapes(4, scanned=True)
  first = gram.choose_scalars(shapes, seed=5)
  assert first == gram.choose_scalars(shapes, seed=5)
  assert first != gram.choose_scalars(shapes, seed=6)
  stored = json.loads(json.dumps(first))
  assert {path: tuple(index) for path, index in stored.items()} == first


def test_choosing_scalars_without_a_matrix_names_the_remedy():
  with pytest.raises(ValueError, match="no trainable matrix"):
    gram.choose_scalars({"norm": {"scale": np.zeros(3)}}, seed=0)


@pytest.mark.parametrize("count", [1, 2, 32])
def test_equal_eigenvalues_have_entropy_ln_n(count):
  found = spectrum(3.5 * np.eye(count))
  assert found.entropy == pytest.approx(math.log(count), abs=1e-12)
  assert found.dominant == pytest.approx(100 / count)


def test_rank_one_is_fully_dominant_and_has_no_entropy():
  direction = np.arange(1.0, 9.0)
  found = spectrum(np.outer(direction, direction))
  assert len(found.eigenvalues) == 1
  assert found.dominant == 100
  assert found.entropy == 0


def test_entropy_and_dominance_do_not_depend_on_scale_or_order():
  values = np.array([5.0, 1.0, 2.0])
  assert spectral_entropy(values) == pytest.approx(0.9002560, abs=1e-6)
  assert dominant_ratio(values) == pytest.approx(62.5)
  for other in (values * 1e-20, values[::-1], np.append(values, 0.0)):
    assert spectral_entropy(other) == pytest.approx(spectral_entropy(values))
    assert dominant_ratio(other) == pytest.approx(62.5)


def test_rounding_is_not_an_eigenvalue():
  rotation, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))
  planted = rotation @ np.diag([4.0, 1.0, 1e-9, -1e-12]) @ rotation.T
  np.testing.assert_allclose(spectrum(planted).eigenvalues, [4.0, 1.0], rtol=1e-9)


@pytest.mark.parametrize(
  ("matrix", "message"),
  [
    (np.zeros((3, 3)), "all eigenvalues are zero"),
    (np.full((2, 2), np.nan), "NaN or infinity"),
    (np.zeros((2, 3)), "shape"),
  ],
)
def test_spectrum_rejects_what_has_no_spectrum(matrix, message):
  with pytest.raises(ValueError, match=message):
    spectrum(matrix)


def test_spectral_numbers_reject_negative_and_empty():
  for values in (np.array([]), np.array([0.0]), np.array([2.0, -1.0])):
    with pytest.raises(ValueError, match="non-negative eigenvalues"):
      spectral_entropy(values)
    with pytest.raises(ValueError, match="non-negative eigenvalues"):
      dominant_ratio(values)


def test_split_rows_rejects_rows_that_are_not_one_entry():
  empty, several, two_images, unweighted = (make_batch() for _ in range(4))
  empty["image"][2] = -1
  several["segment"][1, 6] = 2
  two_images["image"][3, 5] = 0
  unweighted["loss_weight"][4] = 0
  broken = {2: empty, 1: several, 3: two_images, 4: unweighted}
  for row, batch in broken.items():
    with pytest.raises(ValueError, match=f"row {row} .*share_prefix=False"):
      grads.split_rows(batch)


def test_scalars_of_another_model_and_unknown_words_are_refused():
  trainable, frozen = make_params()
  batch = make_batch()
  for foreign in ({"connector/kernel": (WIDTH * WIDTH,)}, {"connector/other": (0,)}):
    with pytest.raises(ValueError, match="do not fit"):
      gram.measure_gram(loss, trainable, frozen, batch, scalars=foreign)
  with pytest.raises(ValueError, match="'sum' or 'mean'"):
    gram.measure_gram(loss, trainable, frozen, batch, normalise="token")


def test_measure_gives_one_spectrum_a_batch_and_kind():
  trainable, frozen = make_params()
  batches = [make_batch(seed) for seed in range(3)]
  scalars = gram.choose_scalars(trainable, seed=0)
  done: list[tuple[int, int]] = []
  results = measure(
    loss, trainable, frozen, batches, scalars=scalars,
    tasks_of=lambda number: ["vqa", "rec"] * (NUM_ROWS // 2),
    progress=lambda *tick: done.append(tick),
  )  # fmt: skip
  assert json.loads(json.dumps(results)) == results
  assert [result["kind"] for result in results] == ["sampled", "exact"]
  assert done == [(1, 3), (2, 3), (3, 3)]
  for result in results:
    assert result["entropy_limit"] == pytest.approx(math.log(NUM_ROWS))
    for number, batch in enumerate(batches):
      matrix = gram.measure_gram(loss, trainable, frozen, batch, scalars=scalars)
      found = spectrum(getattr(matrix, result["kind"]))
      assert result["entropy"][number] == pytest.approx(found.entropy)
      assert result["dominant"][number] == pytest.approx(found.dominant)
      assert result["rank"][number] == len(found.eigenvalues)
      assert 0 <= found.entropy <= result["entropy_limit"] + 1e-9
  sampled, exact = results
  assert sampled["parameters"] == 2 * LAYERS + 1
  leaves = tree_lib.flatten(trainable)
  assert exact["parameters"] == sum(leaf.size for leaf in leaves.values())
  assert exact["trace"].keys() == leaves.keys()
  assert sum(map(sum, exact["trace"].values())) == pytest.approx(100)
  assert exact["tasks"]["names"] == ["rec", "vqa"]
  assert exact["tasks"]["pairs"] == [[18, 27], [27, 18]]


def test_measure_rejects_no_batch_and_uneven_batches():
  trainable, frozen = make_params()
  scalars = gram.choose_scalars(trainable, seed=0)
  with pytest.raises(ValueError, match="no batch"):
    measure(loss, trainable, frozen, [], scalars=scalars)
  short = {name: value[:-1] for name, value in make_batch().items()}
  with pytest.raises(ValueError, match="incomplete batch"):
    measure(loss, trainable, frozen, [make_batch(), short], scalars=scalars)


def test_a_new_checkpoint_does_not_compile_again():
  traced = []

  def counted(trainable, frozen, batch):
    traced.append(1)
    return loss(trainable, frozen, batch)

  counts = []
  for seed in range(3):
    trainable, frozen = make_params(seed)
    gram.measure_gram(counted, trainable, frozen, make_batch(seed))
    counts.append(len(traced))
  assert counts[0] > 0
  assert counts == counts[:1] * 3


# ── Spectra that are known beforehand ─────────────────────────────────────────────


def planted(jacobian: np.ndarray) -> tuple[dict, dict, dict]:
  """(trainable, frozen, batch) of one-entry rows whose gradients are J's rows."""
  rows, width = jacobian.shape
  line = np.zeros((rows, 2), np.int32)
  batch = {
    "pixels": jacobian[:, None].astype(np.float32),
    "text": line, "image": line + np.arange(rows)[:, None], "slot": line - 1,
    "segment": line + 1, "position": line, "loss_weight": np.float32([[1, 0]] * rows),
    "supervised": line[:, :1],
  }  # fmt: skip
  return {"layers": {"w": np.zeros((2, width // 2), np.float32)}}, {}, batch


def linear(trainable, frozen, batch):
  weights = jnp.ravel(trainable["layers"]["w"])
  return -(batch["pixels"][:, 0] @ weights), batch["loss_weight"].sum(axis=1)


@pytest.mark.parametrize("rows_at_once", [0, 2])
@pytest.mark.parametrize(
  "eigenvalues",
  [
    [1.0] * 6, [5, 4, 3, 2, 1, 0.5], [1, 1e-1, 1e-2, 1e-3, 1e-4, 0], [7, 0, 0, 0, 0, 0]
  ],
)  # fmt: skip
def test_planted_spectra_are_found(eigenvalues, rows_at_once):
  rng = np.random.default_rng(1)
  left, _ = np.linalg.qr(rng.normal(size=(6, 6)))
  right, _ = np.linalg.qr(rng.normal(size=(40, 6)))
  jacobian = left @ np.diag(np.sqrt(6 * np.array(eigenvalues))) @ right.T
  trainable, frozen, batch = planted(jacobian)
  found = gram.measure_gram(
    linear, trainable, frozen, batch, rows_at_once=rows_at_once
  ).exact
  got = np.linalg.eigvalsh(found)[::-1]
  np.testing.assert_allclose(got, eigenvalues, atol=1e-5 * max(eigenvalues) / 10)
  spread, wanted = spectrum(found), np.array([x for x in eigenvalues if x])
  assert spread.entropy == pytest.approx(spectral_entropy(wanted), abs=1e-5)
  assert spread.dominant == pytest.approx(dominant_ratio(wanted), rel=1e-5)


@settings(max_examples=60, deadline=None)
@given(
  rows=st.integers(1, 9), width=st.integers(1, 12), scale=st.floats(-6, 6),
  seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_entropy_is_at_most_ln_n_and_order_and_scale_play_no_part(
  rows, width, scale, seed
):
  rng = np.random.default_rng(seed)
  jacobian = rng.normal(size=(rows, width)) * np.exp(rng.normal(size=(rows, 1)))
  found = spectrum(gram.gram_of(jacobian))
  assert 0 <= found.entropy <= math.log(min(rows, width)) + 1e-9
  assert 100 / min(rows, width) - 1e-9 <= found.dominant <= 100 + 1e-9
  other = spectrum(gram.gram_of(10.0**scale * rng.permutation(jacobian)))
  assert other.entropy == pytest.approx(found.entropy, abs=1e-7)
  assert other.dominant == pytest.approx(found.dominant, rel=1e-7)


@pytest.mark.parametrize("rows_at_once", [0, 2])
def test_the_order_of_entries_plays_no_part(rows_at_once):
  trainable, frozen = make_params()
  batch, order = make_batch(), np.random.default_rng(0).permutation(NUM_ROWS)
  # Rows say which image is theirs, and `supervised` counts through all of them.
  kept = {name: batch[name] for name in ("pixels", "supervised")}
  other = {
    name: value if name in kept else value[order] for name, value in batch.items()
  }
  first, second = (
    gram.measure_gram(loss, trainable, frozen, one, rows_at_once=rows_at_once).exact
    for one in (batch, other)
  )
  assert np.abs(first - first[order][:, order]).max() > 0.01 * np.abs(first).max()
  np.testing.assert_allclose(
    second, first[order][:, order], atol=1e-6 * np.abs(first).max()
  )
