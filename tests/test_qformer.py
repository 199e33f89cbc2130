"""The Q-Former equals transformers' at reduced width."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the reference runs in torch")
pytest.importorskip("peft", reason="tests.parity_models imports it")

# After the two lines above: these import what may be missing.
import transformers  # noqa: E402

from imax_jax import tree  # noqa: E402
from imax_jax.models.connector import Connector  # noqa: E402
from imax_jax.models.qformer import QFormer  # noqa: E402
from tests import parity_models as models  # noqa: E402

FIELDS: dict[str, Any] = {
  "queries": 6, "width": 48, "depth": 5, "num_heads": 4, "mlp_width": 80,
}  # fmt: skip
MEMORY = np.random.default_rng(0).standard_normal((3, 17, 40)).astype(np.float32)
# Ours, and what the file says behind its layer's number.
NAMES = {
  **{f"attn/{ours}": f"attention.attention.{theirs}" for ours, theirs in (
    ("q", "query"), ("k", "key"), ("v", "value")
  )},
  **{f"cross/{ours}": f"crossattention.attention.{theirs}" for ours, theirs in (
    ("q", "query"), ("k", "key"), ("v", "value")
  )},
  "attn/out": "attention.output.dense", "attn_norm": "attention.output.LayerNorm",
  "cross/out": "crossattention.output.dense",
  "cross_norm": "crossattention.output.LayerNorm",
  "up": "intermediate_query.dense", "down": "output_query.dense",
  "mlp_norm": "output_query.LayerNorm",
}  # fmt: skip


@pytest.fixture(scope="module")
def reference() -> tuple[Any, Any]:
  """(transformers' model, its queries as a parameter)."""
  config = transformers.Blip2QFormerConfig(
    hidden_size=48, num_hidden_layers=5, num_attention_heads=4, intermediate_size=80,
    encoder_hidden_size=40, attn_implementation="eager",
  )  # fmt: skip
  model = transformers.Blip2QFormerModel(config).eval()
  models.randomise(model)
  for name, parameter in model.named_parameters():
    if name.endswith("LayerNorm.weight"):  # about one, as in trained models
      parameter.data += 1
  queries = torch.nn.Parameter(torch.randn(1, 6, 48, generator=_seed()))
  return model, queries


def _seed() -> Any:
  return torch.Generator().manual_seed(3)


def ours(tensors: Mapping[str, Any], queries: Any) -> dict[str, Any]:
  """Published tensors (or gradients) under our paths; {} of what the file lacks."""
  flat: dict[str, np.ndarray] = {"queries": queries[0].numpy()}
  for theirs, here in (("layernorm", "norm"), *_layers()):
    for last, ours in (("weight", ""), ("bias", "/bias")):
      if f"{theirs}.{last}" in tensors:
        array = tensors[f"{theirs}.{last}"].numpy()
        kind = ours or ("/kernel" if array.ndim == 2 else "/scale")
        flat[f"{here}{kind}"] = array.T
  return tree.unflatten(flat)


def _layers() -> list[tuple[str, str]]:
  return [
    (f"encoder.layer.{number}.{theirs}", f"layers_{number}/{here}")
    for number in range(FIELDS["depth"])
    for here, theirs in NAMES.items()
  ]


def test_queries_and_gradients_are_blip2s(reference: tuple[Any, Any]) -> None:
  model, queries = reference
  out = model(queries.expand(3, -1, -1), encoder_hidden_states=torch.tensor(MEMORY))
  want = out.last_hidden_state
  weigh = np.random.default_rng(1).standard_normal(want.shape).astype(np.float32)
  (want * torch.tensor(weigh)).sum().backward()
  params = ours(
    {name: value.detach() for name, value in model.state_dict().items()},
    queries.detach(),
  )
  former = QFormer(**FIELDS)
  made = jax.eval_shape(former.init, jax.random.key(0), MEMORY)["params"]
  tree.check_same(made, params, name="published names")

  def total(params: Any) -> tuple[jax.Array, jax.Array]:
    found = former.apply({"params": params}, MEMORY)
    return (found * weigh).sum(), found

  grads, got = models.jit(jax.grad(total, has_aux=True))(params)
  assert models.far(got, want.detach().numpy()) <= models.EXACT
  wanted = ours({n: p.grad for n, p in model.named_parameters()}, queries.grad)
  flat = tree.flatten(grads)
  for path, leaf in tree.flatten(wanted).items():
    if path.endswith("/k/bias"):  # moves all scores alike: nothing but rounding
      assert np.abs(flat[path]).max() < 1e-5
    else:
      assert models.length(flat[path], leaf) <= models.GRADIENT, path


def test_as_large_as_blip2s() -> None:
  """At full size, without a weight made."""
  with torch.device("meta"):
    theirs = transformers.Blip2QFormerModel(transformers.Blip2QFormerConfig())
  former = QFormer(32, 768, 12, 12, 3072)
  memory = jax.ShapeDtypeStruct((1, 257, 1408), np.float32)
  made = tree.flatten(jax.eval_shape(former.init, jax.random.key(0), memory)["params"])
  want = sum(parameter.numel() for parameter in theirs.parameters())
  assert sum(leaf.size for leaf in made.values()) == want + 32 * 768


@pytest.mark.parametrize("variant", [{"cross_every": 4}, {"norm_eps": 1e-3}])
def test_another_variant_is_seen(
  reference: tuple[Any, Any], variant: dict[str, Any]
) -> None:
  model, queries = reference
  with torch.no_grad():
    want = model(queries.expand(3, -1, -1), encoder_hidden_states=torch.tensor(MEMORY))
  params = ours(model.state_dict(), queries.detach())
  got = models.jit(QFormer(**FIELDS | variant).apply)({"params": params}, MEMORY)
  assert models.far(got, want.last_hidden_state.numpy()) > 5 * models.EXACT


def test_a_connector_of_queries(reference: tuple[Any, Any]) -> None:
  """Its linear layer reads the queries, however many patches there are."""
  model, queries = reference
  connector = Connector(8, merge=1, depth=1, qformer=FIELDS)
  assert connector.num_slots(17) == 6
  made = models.jit(connector.init)(jax.random.key(0), MEMORY)["params"]
  params = {**made, "qformer": ours(model.state_dict(), queries.detach())}
  with torch.no_grad():
    out = model(queries.expand(3, -1, -1), encoder_hidden_states=torch.tensor(MEMORY))
  want = out.last_hidden_state.numpy() @ np.asarray(made["dense_0"]["kernel"])
  got = models.jit(connector.apply)({"params": params}, MEMORY)
  assert models.far(got, want) <= models.EXACT
  with pytest.raises(ValueError, match="merge=4 and pool=1 behind a qformer"):
    Connector(8, qformer=FIELDS)
  with pytest.raises(TypeError, match="querys"):
    Connector(8, merge=1, qformer=FIELDS | {"querys": 3}).num_slots(17)
  with pytest.raises(ValueError, match="width=50 a multiple of num_heads=4"):
    QFormer(**FIELDS | {"width": 50})
