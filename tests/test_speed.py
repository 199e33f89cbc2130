"""What a run says of its speed, by hand."""

from __future__ import annotations

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_train as toy

from imax_jax.costs import accelerators
from imax_jax.costs import products
from imax_jax.data.packing import Load
from imax_jax.train import speed


def test_figures_are_of_the_last_steps() -> None:
  # Two seconds a step, 30 tokens of 40 places, 6 of them supervised, 4 entries.
  meter = speed.Speed(
    lambda step: Load(tokens=30, supervised=6, entries=4, places=40),
    layers=1000, head=100, peak=1e6,
  )  # fmt: skip
  assert meter(1, now=100.0) == {}  # it was compiled
  for step in range(2, 40):
    figures = meter(step, now=100.0 + 2 * step)
  assert figures["tokens_per_second"] == 15 and figures["entries_per_second"] == 2
  assert figures["padding"] == 0.25
  assert figures["mfu"] == pytest.approx((4 * 1000 * 15 + 4 * 100 * 3) / 1e6)
  assert figures["memory_gb"] > 0.05
  slow = meter(40, now=100.0 + 2 * 39 + 40)
  assert 30 * 20 / 80 < slow["tokens_per_second"] < 15  # a window, not the last alone
  unknown = speed.Speed(lambda step: Load(1, 1, 1, 2), layers=1, head=1)
  unknown(1, now=0.0)
  assert "mfu" not in unknown(2, now=1.0)


def test_the_batches_say_what_they_hold() -> None:
  for share_prefix in (True, False):
    batches = toy.make_batches(share_prefix=share_prefix)
    for step in range(len(batches)):
      batch, load = batches[step], batches.load(step)
      assert load.tokens == np.count_nonzero(batch["image"] >= 0)
      assert load.supervised == np.count_nonzero(batch["loss_weight"])
      assert load.places == batch["text"].size and load.entries == 6


def test_values_that_a_token_meets() -> None:
  """LLaMA-2 7B: 6.476e9 in the layers' kernels and 131,072,000 in the head."""
  leaf = jax.ShapeDtypeStruct
  width, mlp = 4096, 11008
  shapes = {f"attn/{n}": (width, width) for n in "qkvo"}
  shapes |= {"mlp/gate": (width, mlp), "mlp/up": (width, mlp), "mlp/down": (mlp, width)}
  flat = {
    f"decoder/layers/{name}/kernel": leaf((32, *shape), jnp.bfloat16)
    for name, shape in shapes.items()
  }
  more = {
    "decoder/head/kernel": leaf((width, 32000), jnp.bfloat16),
    "decoder/layers/attn/q/lora_a": leaf((32, width, 8), jnp.float32),
    "encoder/layers/up/kernel": leaf((39, 1408, 6144), jnp.bfloat16),
  }
  decoder = {"vocab_size": 32000, "width": width}
  assert products.values_of(decoder, flat | more) == (6_476_005_376, 131_072_000)
  halved = {
    path: leaf((32, one.shape[1] // 2, one.shape[2]), jnp.uint8)
    for path, one in flat.items()
  }
  assert products.values_of(decoder, halved | more).layers == 6_476_005_376


@pytest.mark.parametrize(
  ("kind", "name"),
  [
    ("NVIDIA A100-SXM4-80GB", "A100 / A800 80GB"),
    ("NVIDIA A800 80GB PCIe", "A100 / A800 80GB"),
    ("NVIDIA H100 80GB HBM3", "H100 80GB"),
    ("NVIDIA H200", "H200"),
    ("NVIDIA GeForce RTX 4090", "RTX 4090"),
    ("TPU v4", "TPU v4"),
    ("TPU v5 lite", "TPU v5e"),
    ("TPU v5e", "TPU v5e"),
    ("TPU v5", "TPU v5p"),
    ("TPU v5p", "TPU v5p"),
    ("TPU v6 lite", "TPU v6e"),
  ],
)
def test_a_device_is_found_in_the_table(kind: str, name: str) -> None:
  """By the names that JAX gives them (jax/_src/pallas/mosaic, NVIDIA's own)."""
  [card] = [card for card in accelerators.CARDS if card.name == name]
  assert accelerators.peak_of(kind) == card.peak


def test_what_is_not_in_the_table_has_no_peak() -> None:
  assert accelerators.peak_of("cpu") == accelerators.peak_of("NVIDIA L4") == 0.0


def test_the_words() -> None:
  assert doctest.testmod(speed).attempted == 1 and not doctest.testmod(speed).failed
  assert speed.words(float("nan"), {}) == "loss nan"
