"""The model: parity with the published encoder, packing, LoRA, sizes."""

from __future__ import annotations

import pathlib
import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from imax_jax import tree
from imax_jax.data import packing
from imax_jax.models import attention
from imax_jax.models import lora
from imax_jax.models import loss
from imax_jax.models import storage
from imax_jax.models import vlm
from imax_jax.models.connector import Connector
from imax_jax.models.vit import Encoder
from imax_jax.models.vlm import Vlm

# Compiling is what these tests spend their time on.
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
GOLDEN = pathlib.Path(__file__).parent / "golden"
SLOTS = 4


def small(**decoder: Any) -> dict[str, Any]:
  """A model of a few thousand parameters; `decoder` overrides its fields."""
  return {
    "encoder": {
      "image_px": 16, "patch_px": 4, "channels": 1,
      "width": 16, "depth": 2, "num_heads": 2, "mlp_width": 32,
    },
    "connector": {"merge": 4, "depth": 2},
    "decoder": {
      "width": 32, "depth": 2, "num_heads": 4, "num_kv_heads": 2, "mlp_width": 48,
      "vocab_size": 50, "rope_base": 1e4, "norm_eps": 1e-5, "lora_rank": 3,
      "lora_alpha": 6.0,
    } | decoder,
  }  # fmt: skip


def pack(rows: list[list[tuple[int, list[int]]]], tokens: int) -> dict[str, np.ndarray]:
  """Rows of (image, lengths of its entries); text is a function of image and entry."""
  shape = (len(rows), tokens)
  batch = {
    name: np.full(shape, fill, np.int32)
    for name, fill in (
      ("text", 0), ("image", -1), ("slot", -1), ("segment", 0), ("position", 0)
    )
  }  # fmt: skip
  weight = np.zeros(shape, np.float32)
  for row, images in enumerate(rows):
    at = 0
    for image, entries in images:
      prefix = 2 + SLOTS
      here = slice(at, at + prefix)
      batch["text"][row, here] = [1, 7] + [0] * SLOTS
      batch["slot"][row, here] = [-1, -1, *range(SLOTS)]
      batch["image"][row, here] = image
      batch["position"][row, here] = np.arange(prefix)
      at += prefix
      for segment, length in enumerate(entries, start=1):
        here = slice(at, at + length)
        rng = np.random.default_rng([image, length])
        batch["text"][row, here] = rng.integers(3, 50, length)
        batch["image"][row, here] = image
        batch["segment"][row, here] = segment
        batch["position"][row, here] = prefix + np.arange(length)
        weight[row, at + 1 : at + length - 1] = 0.5 + segment
        at += length
  supervised = packing.supervised(weight, 1, np.count_nonzero(weight) + 2)
  return batch | {"loss_weight": weight, "pixels": pixels(3), "supervised": supervised}


def pixels(count: int) -> np.ndarray:
  return np.random.default_rng(0).integers(0, 256, (count, 16, 16, 1), np.uint8)


# One image twice in a row's company, entries of different lengths, padding at the end.
PACKED = pack([[(0, [5, 7, 4]), (2, [6])], [(1, [9, 3])]], 40)
SEPARATE = pack(
  [[(0, [5])], [(0, [7])], [(0, [4])], [(2, [6])], [(1, [9])], [(1, [3])]], 16
)
# Segments weigh differently, and a separate row's only entry is segment 1.
SEPARATE["loss_weight"] *= np.array([1, 2.5 / 1.5, 3.5 / 1.5, 1, 1, 2.5 / 1.5])[:, None]


@pytest.fixture(scope="module")
def params() -> dict[str, Any]:
  """Random throughout: no zero or one of an initialisation hides a parameter."""
  shapes = jax.eval_shape(Vlm(**small()).init, jax.random.key(0), PACKED)["params"]

  def draw(path: str, leaf: Any) -> np.ndarray:
    noise = np.random.default_rng(list(path.encode())).standard_normal(leaf.shape)
    width = leaf.shape[-2] if path.endswith(("kernel", "lora_a")) else 100
    return (path.endswith("scale") + noise / width**0.5).astype(np.float32)

  return tree.map_paths(draw, shapes)


@pytest.fixture(scope="module")
def packed(params: Any) -> tuple[jax.Array, Any]:
  """(loss, gradients) of the packed rows, LoRA as it stands."""
  return value_and_grad(params, PACKED)


def value_and_grad(params: Any, batch: Any, **decoder: Any) -> tuple[jax.Array, Any]:
  model = Vlm(**small(**decoder))

  def total(params: Any, batch: Any) -> jax.Array:
    sums, _ = model.apply({"params": params}, batch, method="loss")
    return sums.sum()

  return jit(jax.value_and_grad(total))(params, batch)


def check_grads(got: Any, want: Any) -> None:
  want = tree.flatten(want)
  for path, leaf in tree.flatten(got).items():
    assert np.linalg.norm(want[path]) > 0, path
    distance = np.linalg.norm(leaf - want[path])
    assert distance <= 1e-5 * np.linalg.norm(want[path]), (path, distance)


def run(model: Any, params: Any, *args: Any, **kwargs: Any) -> Any:
  """`model.apply` under jit: op by op it would compile a hundred small programs."""
  apply = partial(model.apply, **kwargs)
  return jit(lambda params, args: apply({"params": params}, *args))(params, args)


def init(model: Any, *args: Any, seed: int = 0) -> Any:
  return jit(model.init)(jax.random.key(seed), *args)["params"]


def test_encoder_equals_the_published_one() -> None:
  oracle = np.load(GOLDEN / "eva_vit_tiny_smallscale.npz")
  encoder, images = Encoder(56, 14, 64, 3, 4, 279), oracle["in/pixels"]
  got = run(encoder, eva_params(oracle), images.transpose(0, 2, 3, 1))
  want = oracle["out/ln_vision"][:, 1:]
  np.testing.assert_allclose(got, want, atol=2e-5)


def eva_params(oracle: Any) -> dict[str, Any]:
  """The published state dict under this project's names."""

  def read(name: str) -> np.ndarray:
    return oracle[f"w/visual_encoder.{name}"]

  def layers(name: str, *axes: int) -> np.ndarray:
    each = [read(f"blocks.{i}.{name}") for i in range(3)]
    return np.stack([w.transpose(axes) if axes else w for w in each])

  flat = {
    "class_token": read("cls_token")[0, 0],
    "positions": read("pos_embed")[0],
    "embed/kernel": read("patch_embed.proj.weight")
    .transpose(2, 3, 1, 0)
    .reshape(-1, 64),
    "embed/bias": read("patch_embed.proj.bias"),
    "norm/scale": oracle["w/ln_vision.weight"],
    "norm/bias": oracle["w/ln_vision.bias"],
    "layers/attn/q_bias": layers("attn.q_bias"),
    "layers/attn/v_bias": layers("attn.v_bias"),
    "layers/attn/qkv/kernel": layers("attn.qkv.weight", 1, 0),
  }
  for ours, theirs in (("attn_norm", "norm1"), ("mlp_norm", "norm2")):
    flat[f"layers/{ours}/scale"] = layers(f"{theirs}.weight")
    flat[f"layers/{ours}/bias"] = layers(f"{theirs}.bias")
  for ours, theirs in (
    ("attn/out", "attn.proj"), ("up", "mlp.fc1"), ("down", "mlp.fc2")
  ):  # fmt: skip
    flat[f"layers/{ours}/kernel"] = layers(f"{theirs}.weight", 1, 0)
    flat[f"layers/{ours}/bias"] = layers(f"{theirs}.bias")
  return tree.unflatten(flat)


def test_uint8_pixels_are_normalised() -> None:
  grey = Encoder(**small()["encoder"])
  raw = pixels(2)
  params = init(grey, raw)
  # The means of CLIP's three means and of its three deviations.
  normal = ((raw / 255.0 - 0.4491643) / 0.2685697).astype(np.float32)
  np.testing.assert_allclose(
    run(grey, params, raw), run(grey, params, normal), atol=1e-4
  )


def test_wrong_pixels_are_named() -> None:
  encoder = Encoder(**small()["encoder"])
  with pytest.raises(
    ValueError, match=r"expected pixels \[N, 16, 16, 1\].*\(1, 8, 8, 1\)"
  ):
    jax.eval_shape(encoder.init, jax.random.key(0), np.zeros((1, 8, 8, 1), np.uint8))


def test_connector_merges_neighbours_of_a_row() -> None:
  connector = Connector(8, merge=4, depth=1)
  features = np.random.default_rng(0).standard_normal((2, 16, 3)).astype(np.float32)
  params = init(connector, features)
  got = run(connector, params, features)
  second = np.concatenate([features[1, i] for i in (4, 5, 6, 7)])
  np.testing.assert_allclose(got[1, 1], second @ params["dense_0"]["kernel"], atol=1e-5)
  with pytest.raises(ValueError, match="no multiple of merge=4"):
    connector.apply({"params": params}, features[:, :15])


def test_mask_follows_the_drawing() -> None:
  batch = pack([[(0, [2, 2])]], 12)
  mask = np.asarray(attention.batch_mask(batch["image"], batch["segment"]))[0]
  image, segment = batch["image"][0], batch["segment"][0]
  for i in range(12):
    for j in range(12):
      same = image[i] == image[j] >= 0 and segment[j] in (0, segment[i])
      assert mask[i, j] == (j <= i and same)


def test_packed_rows_equal_separate_rows(params: Any, packed: Any) -> None:
  separate = value_and_grad(params, SEPARATE)
  np.testing.assert_allclose(packed[0], separate[0], rtol=1e-5)
  check_grads(packed[1], separate[1])


def test_example_loss_is_each_rows_own(params: Any) -> None:
  model = Vlm(**small())
  logits = run(model, params, SEPARATE).logits
  sums, weights = loss.example_loss(loss.token_nll, logits, SEPARATE)
  row = 1
  log_p = np.asarray(jax.nn.log_softmax(logits[row]))
  text, weight = SEPARATE["text"][row], SEPARATE["loss_weight"][row]
  want = -sum(weight[t] * log_p[t, text[t + 1]] for t in range(len(text) - 1))
  np.testing.assert_allclose(sums[row], want, rtol=1e-5)
  np.testing.assert_allclose(weights[row], weight.sum(), rtol=1e-6)


@pytest.mark.parametrize("num_shards", [1, 2, 6])
@pytest.mark.parametrize("chunk", [1024, 7, 1])
def test_a_loss_makes_the_logits_it_needs(
  params: Any, monkeypatch: pytest.MonkeyPatch, num_shards: int, chunk: int
) -> None:
  """However the rows are sharded and the places chunked: loss and gradients of `loss`
  are those of all logits."""
  monkeypatch.setattr(vlm, "_CHUNK", chunk)
  model = Vlm(**small())
  most = SEPARATE["supervised"].size
  batch = SEPARATE | {
    "supervised": packing.supervised(SEPARATE["loss_weight"], num_shards, most)
  }

  def whole(params: Any) -> tuple[jax.Array, Any]:
    logits = model.apply({"params": params}, batch).logits.astype(jnp.float32)
    nll = -jax.nn.log_softmax(logits)[:, :-1]
    picked = jnp.take_along_axis(nll, batch["text"][:, 1:, None], -1)[..., 0]
    rows = (picked * batch["loss_weight"][:, :-1]).sum(1)
    return rows.sum(), (rows, batch["loss_weight"].sum(1))

  def few(params: Any) -> tuple[jax.Array, Any]:
    found = model.apply({"params": params}, batch, method="loss")
    return found[0].sum(), found

  (_, want), grads_want = jit(jax.value_and_grad(whole, has_aux=True))(params)
  (_, got), grads = jit(jax.value_and_grad(few, has_aux=True))(params)
  np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
  np.testing.assert_array_equal(got[1], want[1])
  check_grads(grads, grads_want)
  # No more logits at once than are asked for.
  text = jax.jit(few).lower(params).as_text()
  made = re.findall(r"tensor<(\d+)x(\d+)x50xf32>", text)
  sizes = {int(shards) * int(places) for shards, places in made}
  assert max(sizes) == num_shards * min(chunk, most)


def test_lora_starts_as_the_base_model_bit_for_bit() -> None:
  made = init(Vlm(**small()), PACKED, seed=1)
  flat = tree.flatten(made)
  kept = {path: leaf for path, leaf in flat.items() if "/lora_" not in path}
  assert len(flat) - len(kept) == 14
  want = run(Vlm(**small(lora_rank=0)), tree.unflatten(kept), PACKED).logits
  for fold in (False, True):
    got = run(Vlm(**small(fold=fold)), made, PACKED).logits
    np.testing.assert_array_equal(got, want)
  a = flat["decoder/layers/mlp/down/lora_a"]
  assert a.shape == (2, 48, 3)
  assert 0.8 * 48**-0.5 < np.abs(a).max() <= 48**-0.5
  assert not np.array_equal(a[0], a[1])


@pytest.mark.parametrize(
  ("part", "field", "value", "words"),
  [
    ("decoder", "dtype", "float15", "dtype 'float15', expected float32 or bfloat16"),
    ("decoder", "dtype", "float16", "dtype 'float16', expected float32 or bfloat16"),
    ("encoder", "dtype", "int8", "encoder: dtype 'int8'"),
    ("connector", "dtype", "float8", "connector: dtype 'float8'"),
    ("decoder", "lora_targets", "attn/(q|v", r"no regular expression \("),
    ("decoder", "lora_targets", "attn/x", "matches none of"),
    ("decoder", "lora_rank", -2, "lora_rank=-2.*expected rank >= 0"),
    ("decoder", "lora_alpha", -1.0, "lora_alpha=-1.0.*expected rank >= 0, alpha > 0"),
    ("decoder", "lora_dropout", 1.5, "lora_dropout=1.5"),
  ],
)
def test_fields_that_mean_nothing_are_refused(
  part: str, field: str, value: Any, words: str
) -> None:
  fields = small()
  fields[part] = fields[part] | {field: value}
  with pytest.raises(ValueError, match=words):
    init(Vlm(**fields), PACKED)


def test_folded_and_merged_lora_equal_the_pair(params: Any) -> None:
  want = run(Vlm(**small()), params, PACKED).logits
  folded = run(Vlm(**small(fold=True)), params, PACKED).logits
  flat = tree.flatten(params)
  bare = {path: lora.merged(flat, path, 6.0) for path in flat if "/lora_" not in path}
  merged = run(Vlm(**small(lora_rank=0)), tree.unflatten(bare), PACKED).logits
  np.testing.assert_allclose(folded, want, atol=1e-4)
  np.testing.assert_allclose(merged, want, atol=1e-4)
  with pytest.raises(ValueError, match="fold=True needs dtype float32"):
    run(Vlm(**small(fold=True, dtype="bfloat16")), params, PACKED)


def test_dropout_needs_asking(params: Any) -> None:
  model = Vlm(**small(lora_dropout=0.5, fold=True))

  @jit
  def drop(seed: int) -> jax.Array:
    rngs = {"dropout": jax.random.key(seed)}
    return model.apply({"params": params}, PACKED, False, rngs=rngs).logits

  still = run(Vlm(**small(fold=True)), params, PACKED).logits
  np.testing.assert_array_equal(run(model, params, PACKED).logits, still)
  assert np.array_equal(drop(0), drop(0))
  assert not np.allclose(drop(0), drop(1), atol=1e-3)
  assert not np.allclose(drop(0), still, atol=1e-3)


@pytest.mark.parametrize(
  "decoder", [{"fold": True}, {"remat": "inputs", "unroll": 2}, {"remat": "dots"}]
)
def test_how_it_is_computed_changes_nothing(
  params: Any, packed: Any, decoder: dict[str, Any]
) -> None:
  check_grads(value_and_grad(params, PACKED, **decoder)[1], packed[1])


def test_grouped_heads_share_keys(params: Any) -> None:
  """2 key/value heads for 4 query heads equal 4 of which neighbours are the same."""

  def widen(path: str, leaf: jax.Array) -> jax.Array:
    if not path.endswith(("/k/kernel", "/v/kernel", "/k/lora_b", "/v/lora_b")):
      return leaf
    heads = leaf.reshape(*leaf.shape[:-1], 2, 8)
    return jnp.repeat(heads, 2, axis=-2).reshape(*leaf.shape[:-1], 32)

  want = run(Vlm(**small(num_kv_heads=4)), tree.map_paths(widen, params), PACKED)
  got = run(Vlm(**small()), params, PACKED)
  np.testing.assert_allclose(got.logits, want.logits, atol=2e-5)


def test_rotary_pairs_halves() -> None:
  """A score depends on the distance only, and dimension 0 turns with d/2."""
  x = np.random.default_rng(0).standard_normal((1, 2, 1, 8)).astype(np.float32)

  def scores(first: int, second: int) -> float:
    table = attention.rotary_table(jnp.array([[first, second]]), 8, 1e4)
    turned = attention.rotate(jnp.asarray(x), table)
    return float(turned[0, 0, 0] @ turned[0, 1, 0])

  assert abs(scores(3, 8) - scores(103, 108)) < 1e-4
  table = attention.rotary_table(jnp.array([[1]]), 8, 1e4)
  one = attention.rotate(jnp.eye(8)[:1].reshape(1, 1, 1, 8), table)[0, 0, 0]
  want = np.zeros(8)
  want[[0, 4]] = np.cos(1), np.sin(1)
  np.testing.assert_allclose(one, want, atol=1e-6)


def test_features_skip_the_encoder(params: Any) -> None:
  model = Vlm(**small())
  want = run(model, params, PACKED)
  features = run(model, params, PACKED["pixels"], method="encode")
  assert features.shape == (3, 16, 16)
  rest = {key: value for key, value in params.items() if key != "encoder"}
  got = run(model, rest, PACKED | {"pixels": features})
  np.testing.assert_allclose(got.logits, want.logits, atol=1e-5)
  assert got.image_tokens.shape == (3, SLOTS, 32)
  # An initialisation from features still makes the whole tree.
  made = jax.eval_shape(model.init, jax.random.key(0), PACKED | {"pixels": features})
  tree.check_same(params, made["params"], name="from features")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_shapes_and_dtypes(dtype: str) -> None:
  fields = small(dtype=dtype, tied=True)
  fields["encoder"]["dtype"] = fields["connector"]["dtype"] = dtype
  model = Vlm(**ConfigDict(fields))
  params = init(model, PACKED)
  assert "head" not in params["decoder"]
  assert {leaf.dtype for leaf in tree.flatten(params).values()} == {
    jnp.dtype("float32")
  }
  output = run(model, params, PACKED)
  assert output.logits.shape == (2, 40, 50)
  assert output.logits.dtype == jnp.float32
  assert output.image_tokens.dtype == jnp.dtype(dtype)
  assert np.isfinite(output.logits).all()


def test_a_misspelt_field_is_named() -> None:
  fields = small()
  fields["decoder"]["dept"] = fields["decoder"].pop("depth")
  with pytest.raises(TypeError, match="dept"):
    jax.eval_shape(Vlm(**fields).init, jax.random.key(0), PACKED)
  with pytest.raises(ValueError, match="num_heads=4"):
    jax.eval_shape(Vlm(**small(num_kv_heads=3)).init, jax.random.key(0), PACKED)


@pytest.mark.parametrize(("kind", "bound"), [("int8", 0.012), ("nf4", 0.11)])
def test_stored_kernels_are_near_the_float_ones(kind: str, bound: float) -> None:
  kernel = np.random.default_rng(0).standard_normal((3, 128, 24)).astype(np.float32)
  stored = storage.store(kernel, kind)
  back = np.asarray(storage.restore(**_renamed(stored), dtype=jnp.float32))
  error = np.linalg.norm(back - kernel) / np.linalg.norm(kernel)
  assert bound / 2 < error < bound
  # The largest weight of each scale comes back as it was, and so does a column of zeros.
  np.testing.assert_allclose(np.abs(back).max(), np.abs(kernel).max(), rtol=1e-6)
  zero = storage.store(np.zeros((64, 2)), kind)
  assert not np.any(storage.restore(**_renamed(zero), dtype=jnp.float32))


def _renamed(stored: dict[str, np.ndarray]) -> dict[str, Any]:
  return {"kernel": stored["kernel"], "scale": stored["kernel_scale"]}


def test_four_bits_are_the_nearest_levels() -> None:
  """Against a search over all sixteen, an element at a time."""
  rng = np.random.default_rng(1)
  column = rng.standard_normal(64).astype(np.float32)
  stored = storage.store(column[:, None], "nf4")
  levels = np.array(storage._LEVELS) * np.abs(column).max()
  nearest = levels[np.abs(column[:, None] - levels).argmin(1)]
  got = storage.restore(**_renamed(stored), dtype=jnp.float32)[:, 0]
  np.testing.assert_allclose(got, nearest, rtol=1e-6)


@pytest.mark.parametrize("kind", ["int8", "nf4", "bfloat16"])
def test_a_layer_with_a_narrow_kernel(kind: str) -> None:
  """The same output as with the restored kernel, and gradients for the pair only."""
  x = np.random.default_rng(2).standard_normal((5, 64)).astype(np.float32)
  layer = lora.Dense(16, rank=2, kernel_dtype=kind)
  made = dict(init(layer, x))
  made["lora_b"] = np.ones((2, 16), np.float32)
  flat = {f"layer/{name}": leaf for name, leaf in made.items()}
  np.testing.assert_allclose(
    run(layer, made, x), x @ lora.merged(flat, "layer/kernel", 16.0),
    rtol=2e-2 if kind == "bfloat16" else 1e-4, atol=0.3 if kind == "bfloat16" else 1e-4,
  )  # fmt: skip
  pair = {name: made.pop(name) for name in ("lora_a", "lora_b")}
  grads = jax.grad(lambda pair: layer.apply({"params": made | pair}, x).sum())(pair)
  assert all(np.any(leaf) for leaf in jax.tree.leaves(grads))


def test_what_can_not_be_stored_is_refused() -> None:
  with pytest.raises(ValueError, match="float16 is not supported"):
    storage.float_dtype("float16")
  with pytest.raises(ValueError, match="65 is no multiple of the block of 64"):
    storage.shapes("nf4", 65, 8)


def test_a_window_hides_what_lies_too_far_back(params: Any) -> None:
  """The last token's logits do not move with a token that it cannot see."""
  rng = np.random.default_rng(3)
  text = rng.integers(3, 50, (1, 8))
  batch = pack([[(0, [8])]], 2 + SLOTS + 8)
  batch["text"][0, -8:] = text
  other = {**batch, "text": batch["text"].copy()}
  other["text"][0, -8] = 5 + (text[0, 0] == 5)

  def last(batch: Any, window: int) -> np.ndarray:
    # Two layers: what token t - 2 says has passed through t - 1 at most.
    model = Vlm(**small(window=window, depth=1))
    first = tree.map_paths(
      lambda path, leaf: leaf[:1] if path.startswith("decoder/layers") else leaf, params
    )
    return run(model, first, batch).logits[0, -1]

  assert np.array_equal(last(batch, 7), last(other, 7))
  assert not np.array_equal(last(batch, 8), last(other, 8))


def test_lora_stands_where_its_targets_say() -> None:
  found = jax.eval_shape(
    Vlm(**small(lora_targets="attn/[qv]")).init, jax.random.key(0), PACKED
  )["params"]
  pairs = {path for path in tree.flatten(found) if path.endswith("lora_a")}
  assert pairs == {f"decoder/layers/attn/{name}/lora_a" for name in "qv"}
  with pytest.raises(ValueError, match="matches none of"):
    jax.eval_shape(Vlm(**small(lora_targets="q_proj")).init, jax.random.key(0), PACKED)


# ── What is computed otherwise than it is written ─────────────────────────────────


@pytest.mark.parametrize(
  ("tokens", "num_kv_heads"), [(300, 4), (256, 2), (700, 1), (9, 4)]
)
def test_blocks_of_queries_leave_out_only_what_is_hidden(
  tokens: int, num_kv_heads: int
) -> None:
  rng = np.random.default_rng(0)
  image = np.sort(rng.integers(-1, 3, (2, tokens)), axis=1)[:, ::-1].copy()
  segment = rng.integers(0, 3, (2, tokens))
  bias = attention.mask_bias(attention.batch_mask(jnp.array(image), jnp.array(segment)))
  q, *kv = (
    jnp.array(rng.standard_normal((2, heads, tokens, 8)), jnp.float32)
    for heads in (4, num_kv_heads, num_kv_heads)
  )
  weight = jnp.array(rng.standard_normal((2, 4, tokens, 8)), jnp.float32)
  # A row of padding sees nothing: what it gives goes nowhere, in training as here.
  weight *= (image >= 0)[:, None, :, None]

  def mixed(attend: Any, *heads: jax.Array) -> tuple[jax.Array, Any]:
    return jax.value_and_grad(
      lambda heads: (attend(*heads, bias) * weight).sum()  # type: ignore[no-any-return]
    )(heads)

  want, got = (
    mixed(attend, q, *kv) for attend in (attention.attend, attention.attend_causal)
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), got, want
  )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_low_rank_pairs_gradients_are_autodiffs(dtype: str) -> None:
  rng = np.random.default_rng(0)
  x, a, b, weight = (
    jnp.array(rng.standard_normal(shape), jnp.float32)
    for shape in ((40, 12), (12, 3), (3, 20), (40, 20))
  )

  def plain(x: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    return (x @ a.astype(x.dtype)) @ b.astype(x.dtype)

  def grads(pair: Any) -> Any:
    def loss(x: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
      return (pair(x.astype(dtype), a, b) * weight).sum()

    return jax.grad(loss, argnums=(0, 1, 2))(x, a, b)

  limit = 1e-5 if dtype == "float32" else 3e-2
  for got, want in zip(grads(lora._pair), grads(plain), strict=True):
    assert got.dtype == want.dtype == jnp.float32
    np.testing.assert_allclose(got, want, atol=limit * float(jnp.abs(want).max()))
  # One example's own, as the Fisher information asks for.
  each = jax.vmap(
    lambda x, w: jax.grad(lambda a: (lora._pair(x[None], a, b) * w).sum())(a)
  )
  whole = jax.grad(lambda a: (lora._pair(x, a, b) * weight).sum())(a)
  np.testing.assert_allclose(each(x, weight).sum(0), whole, rtol=1e-4, atol=1e-4)


def test_a_pairs_gradients_are_summed_in_float32() -> None:
  """In bfloat16, over tokens and then over devices, small ones would be lost."""
  x, a = jnp.ones((4096, 1), jnp.bfloat16), jnp.ones((1, 1))
  step = jax.jit(jax.grad(lambda b: lora._pair(x, a, b).astype(jnp.float32).sum()))
  text = step.lower(jnp.ones((1, 1))).as_text()
  dots = [line for line in text.splitlines() if "dot_general" in line]
  assert dots and any("tensor<1x1xf32>" in line.split("->")[-1] for line in dots)
