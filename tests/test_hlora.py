"""H-LoRA: HealthGPT's mixture of low-rank experts, in a layer, a decoder and a model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec

torch = pytest.importorskip("torch", reason="the reference runs in torch")
pytest.importorskip("peft", reason="LoRA's reference")

# After the two lines above: these import what may be missing.
from imax_jax import mesh as mesh_lib  # noqa: E402
from imax_jax import tree  # noqa: E402
from imax_jax.data import tokenizer as tokenizer_lib  # noqa: E402
from imax_jax.evaluate.generate import Generator  # noqa: E402
from imax_jax.models import lora  # noqa: E402
from imax_jax.models import zoo  # noqa: E402
from imax_jax.models.decoder import Decoder  # noqa: E402
from imax_jax.models.lora import Dense  # noqa: E402
from imax_jax.models.vlm import Vlm  # noqa: E402
from imax_jax.weights import export  # noqa: E402
from imax_jax.weights import peft as adapters  # noqa: E402
from tests import parity_models as models  # noqa: E402
from tests import test_generate as answers  # noqa: E402
from tests import test_models as toy  # noqa: E402

RANK, EXPERTS, ALPHA = 6, 3, 5.0
HLORA = {"lora_rank": RANK, "lora_experts": EXPERTS, "lora_alpha": ALPHA}
TRAINED = ((r".*/lora_(a|b|route)", True), (r".*", False))


# ── A layer ───────────────────────────────────────────────────────────────────────


def layer_weights(inside: int, outside: int) -> dict[str, np.ndarray]:
  rng = np.random.default_rng(0)
  shapes = {
    "kernel": (inside, outside), "lora_a": (inside, RANK), "lora_b": (RANK, outside),
    "lora_route": (inside, EXPERTS),
  }  # fmt: skip
  return {
    name: (rng.standard_normal(shape) / shape[0] ** 0.5).astype(np.float32)
    for name, shape in shapes.items()
  }


def mixture(
  weights: Any, x: np.ndarray, *, scale: float, own: Callable[[int], Any]
) -> np.ndarray:
  """Expert after expert in float64; `own` are the columns of A that are expert e's."""
  w = {name: np.asarray(leaf, np.float64) for name, leaf in weights.items()}
  x = np.asarray(x, np.float64)
  shares = np.exp(x @ w["lora_route"])
  shares /= shares.sum(-1, keepdims=True)
  y = x @ w["kernel"]
  for e in range(EXPERTS):
    y += (
      shares[:, e : e + 1] * scale * (x @ w["lora_a"][:, own(e)] @ w["lora_b"][own(e)])
    )
  return y


def test_a_layer_is_its_experts_one_after_the_other() -> None:
  weights = layer_weights(12, 20)
  x = np.random.default_rng(1).standard_normal((40, 12)).astype(np.float32)
  layer = Dense(20, rank=RANK, alpha=ALPHA, experts=EXPERTS)
  got = layer.apply({"params": weights}, x)
  each = RANK // EXPERTS
  right: dict[str, Any] = {
    "scale": ALPHA / each, "own": lambda e: slice(e * each, (e + 1) * each)
  }  # fmt: skip
  assert models.far(got, mixture(weights, x, **right)) <= models.EXACT
  for wrong in ({"scale": ALPHA / RANK}, {"own": lambda e: slice(e, RANK, EXPERTS)}):
    assert models.far(got, mixture(weights, x, **right | wrong)) > 0.05, wrong


def test_the_softmax_is_in_the_activations_dtype() -> None:
  """As in HealthGPT's code, whose layers run in float16 throughout."""
  layer = Dense(20, rank=RANK, experts=EXPERTS, dtype="bfloat16")
  weights = layer_weights(12, 20)
  text = str(
    jax.make_jaxpr(lambda x: layer.apply({"params": weights}, x))(jnp.ones((4, 12)))
  )
  [line] = [line for line in text.splitlines() if " exp " in line]
  assert f"bf16[4,{EXPERTS}]" in line


def test_dropout_falls_on_what_a_has_made() -> None:
  """Not on x, as in LoRA, nor on the weights of the experts."""
  rate, rows = 0.3, 3000
  weights = layer_weights(12, RANK)
  weights |= {"kernel": np.zeros((12, RANK)), "lora_b": np.eye(RANK)}
  x = 1 + np.random.default_rng(0).random((rows, 12)).astype(np.float32)
  layer = Dense(RANK, rank=RANK, alpha=ALPHA, experts=EXPERTS, dropout=rate)
  still = np.asarray(layer.apply({"params": weights}, x))
  rngs = {"dropout": jax.random.key(0)}
  got = np.asarray(layer.apply({"params": weights}, x, False, rngs=rngs))
  dropped = got == 0
  # Five standard deviations of a share of 18,000.
  assert abs(dropped.mean() - rate) < 5 * (rate * (1 - rate) / got.size) ** 0.5
  np.testing.assert_allclose(got[~dropped], still[~dropped] / (1 - rate), rtol=1e-5)


# ── A decoder, beside transformers' ───────────────────────────────────────────────


class Expert(torch.nn.Module):  # type: ignore[misc]
  """One of HealthGPT's layers, as its formula says, an expert at a time."""

  def __init__(self, base: Any) -> None:
    super().__init__()
    self.base = base.requires_grad_(False)
    inside, outside = base.in_features, base.out_features
    self.lora_A = torch.nn.Linear(inside, RANK, bias=False)
    self.lora_B = torch.nn.Linear(RANK, outside, bias=False)
    self.lora_route = torch.nn.Linear(inside, EXPERTS, bias=False)

  def forward(self, x: Any) -> Any:
    shares = torch.softmax(self.lora_route(x), -1)
    y, each = self.base(x), RANK // EXPERTS
    for e in range(EXPERTS):
      own = slice(e * each, (e + 1) * each)
      low = x @ self.lora_A.weight[own].T @ self.lora_B.weight[:, own].T
      y = y + shares[..., e : e + 1] * (ALPHA / each) * low
    return y


NAMES = {
  "self_attn.qkv_proj": "attn/qkv", "self_attn.o_proj": "attn/o",
  "mlp.gate_up_proj": "mlp/gate_up", "mlp.down_proj": "mlp/down",
}  # fmt: skip


def adapters_of(reference: Any, read: Callable[[Any], Any]) -> dict[str, Any]:
  """{path: stacked array} of what `read` takes of each adapter's matrix."""
  found = {}
  for theirs, ours in NAMES.items():
    for name in ("A", "B", "route"):
      leaves = [
        read(getattr(block.get_submodule(theirs), f"lora_{name}").weight).numpy().T
        for block in reference.model.layers
      ]
      found[f"decoder/layers/{ours}/lora_{name.lower()}"] = np.stack(leaves)
  return found


def test_a_decoder_is_phi_with_healthgpts_layers() -> None:
  row = "phi4"
  reference = models.decoder_reference(row)
  tensors = dict(reference.state_dict())
  for block in reference.model.layers:
    for name in NAMES:
      parent, _, leaf = name.rpartition(".")
      setattr(block.get_submodule(parent), leaf, Expert(block.get_submodule(name)))
  for parameter in reference.parameters():
    parameter.requires_grad_(False)
  trained = [m for n, m in reference.named_modules() if "lora_" in n]
  torch.manual_seed(0)
  for module in trained:
    module.weight.requires_grad_(True)
    torch.nn.init.normal_(module.weight, std=module.in_features**-0.5)
  want = models.read(reference).logits
  target = torch.from_numpy(np.roll(models.TEXT, -1, 1)).long()
  torch.nn.functional.cross_entropy(want.flatten(0, 1), target.flatten()).backward()

  fields = models.decoder_fields(row) | HLORA
  shapes = tree.flatten(models.decoder_shapes(fields))
  own = adapters_of(reference, lambda weight: weight.detach())
  assert {path for path in shapes if "lora_" in path} == own.keys()
  rest = tree.unflatten({path: x for path, x in shapes.items() if path not in own})
  base = models.ours(rest, (tensors, models.decoder_table(fields)))

  def loss(own: Any, fields: Any = fields) -> tuple[jax.Array, jax.Array]:
    params = tree.merge(tree.unflatten(own), base)["decoder"]
    _, logits = Decoder(**fields).apply(
      {"params": params}, models.TEXT, models.POSITION, method=models.whole
    )
    picked = jnp.take_along_axis(
      jax.nn.log_softmax(logits), np.roll(models.TEXT, -1, 1)[..., None], -1
    )
    return -picked.mean(), logits

  grads, logits = models.jit(jax.grad(loss, has_aux=True))(own)
  assert models.far(logits, want.detach()) <= models.EXACT
  wanted = adapters_of(reference, lambda weight: weight.grad)
  assert (
    models.farthest(tree.unflatten(grads), tree.unflatten(wanted)) <= models.GRADIENT
  )
  for wrong in ({"lora_experts": 2}, {"lora_alpha": 1.1 * ALPHA}):
    cut = {p: x[..., :2] if p.endswith("route") and "lora_experts" in wrong else x
           for p, x in own.items()}  # fmt: skip
    assert models.far(loss(cut, fields | wrong)[1], want.detach()) > 100 * models.EXACT


@pytest.mark.parametrize(
  ("row", "rank", "total"), [("phi3_mini", 64, 102_891_520), ("phi4", 32, 116_736_000)]
)
def test_the_published_adapters_have_as_many_numbers(
  row: str, rank: int, total: int
) -> None:
  """HealthGPT-M3's and -L14's, four experts each."""
  fields = zoo.DECODERS[row] | {"lora_rank": rank, "lora_experts": 4}
  found = tree.flatten(models.decoder_shapes(fields))
  own = {path: leaf for path, leaf in found.items() if "/lora_" in path}
  assert sum(leaf.size for leaf in own.values()) == total
  # On a mesh a router lies as A does.
  mesh = AbstractMesh((4, 2), ("fsdp", "tensor"))
  where = tree.flatten(mesh_lib.shardings(tree.unflatten(found), mesh, mesh_lib.FSDP))
  for ours, inputs in (("attn/qkv", "fsdp"), ("mlp/down", "tensor")):
    assert where[f"decoder/layers/{ours}/lora_route"].spec == PartitionSpec(
      None, inputs, None
    )


# ── A model ───────────────────────────────────────────────────────────────────────


def drawn(shapes: Any, narrow: float = 1.0) -> Any:
  """Random throughout, B `narrow` times as wide as it could be."""

  def draw(path: str, leaf: Any) -> np.ndarray:
    noise = np.random.default_rng(list(path.encode())).standard_normal(leaf.shape)
    wide = path.endswith("kernel") or "/lora_" in path
    noise *= (leaf.shape[-2] if wide else 100) ** -0.5
    noise *= narrow if path.endswith("lora_b") else 1
    return (path.endswith("scale") + noise).astype(np.float32)

  return tree.map_paths(draw, shapes)


@pytest.fixture(scope="module")
def params() -> Any:
  model = Vlm(**toy.small(**HLORA))
  return drawn(jax.eval_shape(model.init, jax.random.key(0), toy.PACKED)["params"])


def test_it_starts_as_the_base_model_and_b_moves_first() -> None:
  made = toy.init(Vlm(**toy.small(**HLORA)), toy.PACKED, seed=1)
  flat = tree.flatten(made)
  kept = {path: leaf for path, leaf in flat.items() if "/lora_" not in path}
  assert len(flat) - len(kept) == 21
  want = toy.run(Vlm(**toy.small(lora_rank=0)), tree.unflatten(kept), toy.PACKED).logits
  got = toy.run(Vlm(**toy.small(**HLORA)), made, toy.PACKED).logits
  np.testing.assert_array_equal(got, want)
  route = flat["decoder/layers/mlp/down/lora_route"]
  assert route.shape == (2, 48, EXPERTS)
  assert 0.8 * 48**-0.5 < np.abs(route).max() <= 48**-0.5
  grads = tree.flatten(toy.value_and_grad(made, toy.PACKED, **HLORA)[1])
  for path in flat.keys() - kept.keys():
    assert np.any(grads[path]) == path.endswith("lora_b"), path


@pytest.mark.parametrize(
  "decoder", [{"remat": "inputs", "unroll": 2}, {"remat": "dots"}]
)
def test_how_it_is_computed_changes_nothing(
  params: Any, decoder: dict[str, Any]
) -> None:
  want = toy.value_and_grad(params, toy.PACKED, **HLORA)[1]
  toy.check_grads(toy.value_and_grad(params, toy.PACKED, **HLORA, **decoder)[1], want)


def test_the_grid_answers_as_whole_rows_do() -> None:
  fields = answers.FIELDS | {"decoder": answers.FIELDS["decoder"] | HLORA}
  model = Vlm(**fields)
  line = jnp.zeros((1, 4), jnp.int32)
  batch: dict[str, Any] = dict.fromkeys(
    ("text", "image", "slot", "segment", "position"), line
  )
  pixels = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 1), np.uint8)
  batch["pixels"] = pixels[:1]
  shapes = jax.eval_shape(model.init, jax.random.key(0), batch)["params"]
  params, tokenizer = drawn(shapes), tokenizer_lib.train_tokenizer([], 259)

  @jax.jit
  def forward(params: Any, batch: Any) -> jax.Array:
    return model.apply({"params": params}, batch).logits

  asked = (tokenizer, pixels, answers.PROMPTS, answers.BUDGET)
  scored = answers.scored_rows(params, *asked, forward)
  texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids, _ in scored]
  assert len(set(texts)) >= 5
  for unroll in (1, 2):  # in a stack, and layer by layer
    own = Vlm(**fields | {"decoder": fields["decoder"] | {"unroll": unroll}})
    assert own.apart == (unroll == 2)
    generator = Generator(own, tokenizer, answers.SLOTS, answers.BUDGET, rows=8)
    found = generator(params, pixels, answers.PROMPTS)
    assert answers.texts_of(found) == texts
    np.testing.assert_allclose(
      [one.log_prob for one in found], [score for _, score in scored], atol=2e-5
    )
  # The answers are the experts': without them there are others.
  bare = tree.map_paths(
    lambda path, leaf: 0 * leaf if path.endswith("lora_b") else leaf, params
  )
  assert [ids for ids, _ in answers.scored_rows(bare, *asked, forward)] != [
    ids for ids, _ in scored
  ]


# ── What can not be done with it ──────────────────────────────────────────────────


def test_it_is_neither_merged_nor_written_as_a_plain_pair(
  params: Any, tmp_path: Path
) -> None:
  flat, decoder = tree.flatten(params), toy.small(**HLORA)["decoder"]
  pairs = {path: leaf for path, leaf in flat.items() if "/lora_" in path}
  words = (
    "because each token weighs the experts .* publish it in a layout that has a place"
  )
  for use in (
    partial(lora.merged, flat, "decoder/layers/attn/q/kernel", ALPHA),
    partial(export.write_merged, tmp_path, flat, decoder),
    partial(adapters.write_adapter, tmp_path, pairs, decoder),
  ):
    with pytest.raises(ValueError, match=words):
      use()
  assert not list(tmp_path.iterdir())
  # What has no experts on it is still what it is.
  norm = "decoder/layers/attn_norm/scale"
  assert lora.merged(flat, norm, ALPHA) is flat[norm]


@pytest.mark.parametrize(
  "wrong", [{"lora_experts": 4}, {"lora_experts": -1}, {"fold": True}, {"lora_rank": 0}]
)
def test_experts_that_can_not_be_are_refused(wrong: dict[str, Any]) -> None:
  with pytest.raises(
    ValueError, match=r"lora_experts=.*expected a rank that is a multi"
  ):
    toy.init(Vlm(**toy.small(**HLORA | wrong)), toy.PACKED)
