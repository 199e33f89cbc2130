"""Ours equals the reference implementations; benchmarks/parity.py prints by how much."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the references run in torch")
peft = pytest.importorskip("peft", reason="LoRA's reference")

# After the two lines above: these import what may be missing.
from imax_jax import tree  # noqa: E402
from imax_jax.models.decoder import Decoder  # noqa: E402
from imax_jax.models.lora import Dense  # noqa: E402
from tests import parity_models as models  # noqa: E402
from tests import parity_vlm as vlm  # noqa: E402

# A wrong variant must be seen. Tanh's GELU is the nearest of all to its exact self; the
# others are a hundred times the bound and more.
SEEN = 5 * models.EXACT
WRONG_ENCODERS: dict[str, tuple[dict[str, Any], ...]] = {
  "clip_vit_l14": (
    {"activation": "gelu"}, {"activation": "gelu_tanh"}, {"norm_eps": 1e-6},
    {"biases": ("k", "v")}, {"biases": ("q", "k")}, {"pre_norm": False}, {"depth": 3},
  ),
  "siglip_b16_256": (
    {"activation": "gelu"}, {"norm_eps": 1e-5}, {"patch_bias": False},
    {"pixel_mean": (0.48, 0.46, 0.41)},
  ),
  "eva_vit_g14": (
    {"activation": "gelu_tanh"}, {"activation": "quick_gelu"}, {"norm_eps": 1e-5},
    {"post_norm_eps": 0.0}, {"biases": ("q",)}, {"biases": ("v",)},
  ),
}  # fmt: skip
WRONG_DECODERS: dict[str, tuple[dict[str, Any], ...]] = {
  "llama2_7b": ({"rope_base": 5e5}, {"norm_eps": 1e-6}),
  "qwen25_3b": ({"qkv_bias": False},),
  "phi3_mini": ({"window": 0}, {"window": 8}, {"window": 10}),
}


def check(measures: list[models.Measure]) -> None:
  for measure in measures:
    assert measure.error <= measure.bound, measure


@pytest.mark.parametrize("name", models.ENCODERS)
def test_encoder_rows(name: str) -> None:
  check(models.encoder_measures(name))


@pytest.mark.parametrize("name", models.DECODERS)
def test_decoder_rows(name: str) -> None:
  check(models.decoder_measures(name))


@pytest.mark.parametrize("name", WRONG_ENCODERS)
def test_another_encoder_is_seen(name: str) -> None:
  features, hidden, normed = models.encoder_pair(name)
  # What the row reads: EVA's features are normed, the others' are not.
  post_norm = models.encoder_fields(name).get("post_norm_eps", 1)
  for variant in WRONG_ENCODERS[name]:
    error = models.far(features(**variant), normed if post_norm else hidden)
    assert error > SEEN, (variant, error)


@pytest.mark.parametrize("name", WRONG_DECODERS)
def test_another_decoder_is_seen(name: str) -> None:
  run, _, logits = models.decoder_pair(name)
  for variant in WRONG_DECODERS[name]:
    error = models.far(run(**variant)[1], logits)
    assert error > SEEN, (variant, error)


@pytest.mark.parametrize("name", models.ADAPTERS)
def test_adapters(name: str) -> None:
  check(models.adapter_measures(name))


def test_adapters_start_as_pefts_do() -> None:
  """A uniform within 1 / sqrt(in), B zero."""
  name = "LoRA on all seven"
  _, reference = models.adapter(name)
  make = partial(Decoder(**models.adapter_fields(name)).init, method=models.whole)
  made = models.jit(make)(jax.random.key(0), models.TEXT, models.POSITION)
  own = {"decoder": made["params"]}
  pairs, _ = tree.split(own, models.PAIRS)
  theirs = models.ours(pairs, (reference.state_dict(), models.layout("peft")))
  for found in (pairs, theirs):
    for path, leaf in tree.flatten(found).items():
      if path.endswith("lora_b"):
        assert not np.any(leaf), path
        continue
      scaled = np.asarray(leaf) * leaf.shape[-2] ** 0.5
      assert 0.95 < np.abs(scaled).max() <= 1 + 1e-6, path
      # Of 1,024 numbers and more: the deviation of a uniform distribution, within 5%.
      assert abs(scaled.std() * 3**0.5 - 1) < 0.05, path
      assert abs(scaled.mean()) < 0.1, path


def test_dropout_is_pefts() -> None:
  """On the input of A alone: with A and B as identities what is left of x is seen."""
  width, rate, rows = 16, 0.3, 2000
  x = 1 + np.random.default_rng(0).random((rows, width)).astype(np.float32)
  kernel = np.random.default_rng(1).standard_normal((width, width)).astype(np.float32)
  one = np.eye(width, dtype=np.float32)
  layer = Dense(width, rank=width, alpha=2.0 * width, dropout=rate)
  ours = layer.apply(
    {"params": {"kernel": kernel, "lora_a": one, "lora_b": one}},
    x,
    deterministic=False,
    rngs={"dropout": jax.random.key(0)},
  )
  settings = peft.LoraConfig(
    r=width, lora_alpha=2 * width, lora_dropout=rate, target_modules=["0"]
  )
  base = torch.nn.Sequential(torch.nn.Linear(width, width, bias=False))
  theirs = peft.get_peft_model(base, settings).train()
  for name, parameter in theirs.named_parameters():
    parameter.data = torch.from_numpy(one if "lora" in name else kernel.T.copy())
  torch.manual_seed(0)
  for got in (np.asarray(ours), theirs(torch.from_numpy(x)).detach().numpy()):
    left = (got - x @ kernel) / (2 * x)
    dropped = np.abs(left) < 1e-4
    # Five standard deviations of a share of 32,000.
    assert abs(dropped.mean() - rate) < 5 * (rate * (1 - rate) / left.size) ** 0.5
    np.testing.assert_allclose(left[~dropped], 1 / (1 - rate), rtol=1e-4)
    # Each number by itself: hardly a row of 16 keeps all.
    assert dropped.any(axis=1).mean() > 0.98


def test_narrow_kernels() -> None:
  measures = models.narrow_measures()
  check(measures)
  error = {(row.split(", ")[1], what): value for row, what, value, _ in measures}
  for what in ("kernel (L2)", "logits (L2)"):
    assert 0 < error["int8", what] < error["nf4", what] / 5


def test_the_whole_model() -> None:
  check(vlm.whole_measures())


def test_greedy_answers() -> None:
  ours, theirs, gap = vlm.answers()
  assert ours == theirs
  # The case is worth the name: other answers to other questions, and none that an error
  # within the bound could turn.
  assert len({tuple(ids) for ids in theirs}) > 48
  assert len({token for ids in theirs for token in ids}) > 24
  assert gap > models.EXACT, gap
