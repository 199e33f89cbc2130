"""How long the paper's run takes on the paper's two cards, from counted products.

  python -m benchmarks.paper_training [--entries 8] [--steps 200]

Section 4.2.2: EVA-CLIP ViT-G/14 (frozen), a connector, LLaMA-2 7B with LoRA of rank 8, three
epochs, two A800. Matrix products are counted in the lowered program of the training loop's
own step, padding and what remat computes again included, for batches at IMAX's mix; nothing
is run. Time is those products by a share of the cards' stated peak, which is an assumption
and therefore a range. What is assumed beside stands under the table.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import mix
from configs import imax_7b
from imax_jax import runs
from imax_jax import tree as tree_lib
from imax_jax.costs import accelerators
from imax_jax.costs import hlo
from imax_jax.costs import products
from imax_jax.costs.report import abstract_state
from imax_jax.data.pipeline import Batches
from imax_jax.models import vlm
from imax_jax.study import Study
from imax_jax.train.step import make_train_step

CARDS = 2
SHARES = (0.3, 0.4, 0.5)  # of the peak
# The paper's IMAX-train.
ENTRIES, IMAGES, EPOCHS = 284_017, 38_077, 3
VOCAB = 32_000
CARD = next(card for card in accelerators.CARDS if "A800" in card.name)
# NVIDIA's data sheets, bytes a second: the card's memory, NVLink and PCIe each way.
_MEMORY, _NVLINK, _PCIE = 2.0e12, 200e9, 25e9
_IMAGES_DRAWN = 400


class Work(NamedTuple):
  """Means over the steps of a layout, both cards together."""

  rows: float
  images: float
  places: float
  tokens: float
  step: float  # FLOP of a step but its encoder
  least: float  # what the progress line's MFU counts of them

  @property
  def padding(self) -> float:
    return 1 - self.tokens / self.places


class Model:
  """The 7B model with `slots` image tokens, 64 or 256, as shapes only."""

  def __init__(self, slots: int) -> None:
    config = imax_7b.get_config("imax")
    config.unlock()
    config.foundation, config.mesh = "", {"data": 1}
    config.model.connector.merge = 256 // slots
    self.slots, self._config = slots, config
    self._study = Study(config, "unused")
    placed = tree_lib.unflatten(self._study.parameters.shardings)
    params = jax.tree.map(_shape, self._study.parameters.abstract, placed)
    self.trainable, self.frozen = tree_lib.split(params, config.trainable)
    flat = tree_lib.flatten(self._study.parameters.abstract)
    self._values = products.values_of(config.model.decoder, flat)

  def encoder_flops(self) -> int:
    """Of one image."""
    e, model = self._config.model.encoder, self._study.model
    pixels = jax.ShapeDtypeStruct((1, e.image_px, e.image_px, e.channels), jnp.uint8)

    def encode(params: Any, pixels: Any) -> Any:
      return model.apply({"params": params}, pixels, method="encode")

    encoder = {"encoder": self._study.parameters.abstract["encoder"]}
    return counted(jax.jit(encode).lower(encoder, pixels))

  def step_flops(self, batch: dict[str, Any]) -> int:
    study = self._study
    optimizer = runs.optimizer(study, self.trainable, num_steps=1000)
    state = abstract_state(self.trainable, optimizer.update, study.mesh)
    step: Any = make_train_step(vlm.batch_loss(study.model), optimizer)
    return counted(step.lower(state, self.frozen, batch))

  def work(self, batches: Batches) -> Work:
    """Counts each shape of a batch once."""
    shapes = Counter(
      tuple((name, leaf.shape, leaf.dtype.name) for name, leaf in batches[n].items())
      for n in range(len(batches))
    )
    loads = np.mean([batches.load(n) for n in range(len(batches))], axis=0)
    tokens, supervised, _, places = loads
    rows = images = flops = 0.0
    for shape, times in shapes.items():
      batch = {name: jax.ShapeDtypeStruct(size, dtype) for name, size, dtype in shape}
      share = times / len(batches)
      rows += share * batch["text"].shape[0]
      images += share * batch["pixels"].shape[0]
      flops += share * self.step_flops(batch)
    layers, head = self._values
    least = 4 * (layers * tokens + head * supervised)
    return Work(rows, images, places, tokens, flops, least)


def counted(lowered: Any) -> int:
  """FLOP of the matrix products, loop bodies by their trips."""
  text = lowered.compiler_ir("hlo").get_hlo_module().to_string()
  return hlo.read(text, 1).flops


def _shape(leaf: Any, where: Any) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)


def layout(slots: int, share_prefix: bool, entries: int, steps: int) -> Batches:
  """As configs/imax_7b.py lays a run out."""
  found, t = mix.images(_IMAGES_DRAWN, slots, VOCAB), imax_7b.get_config("imax").train
  features = np.broadcast_to(np.float16(0), (256, 1408))
  return Batches(
    found, lambda _: features, num_steps=steps, entries_per_step=entries, seed=0,
    row_tokens=t.row_tokens, row_multiple=t.row_multiple, max_shapes=t.max_shapes,
    share_prefix=share_prefix, num_shards=CARDS,
  )  # fmt: skip


def seconds(flops: float, share: float) -> float:
  return flops / (CARDS * share * CARD.peak)


def table(options: argparse.Namespace) -> Iterator[str]:
  steps = round(ENTRIES * EPOCHS / options.entries)
  yield (
    f"IMAX-train, {ENTRIES:,} entries of {IMAGES:,} images, {EPOCHS} epochs, "
    f"{options.entries} entries a step: {steps:,} steps on {CARDS} x {CARD.name}"
  )
  shares = "".join(f"{share:>6.0%}" for share in SHARES)
  yield (
    f"{'':27}{'image':>7}{'':6}{'':8}{'pad-':>6}{'TFLOP':>8}{'s a step at':>18}"
    f"{'hours in all at':>18}"
  )
  yield (
    f"  {'mode':<8}{'encoder':<17}{'tokens':>7}{'rows':>6}{'places':>8}{'ding':>6}"
    f"{'a step':>8}{shares}{shares}"
  )
  models, counted_by_line = {slots: Model(slots) for slots in (64, 256)}, []
  for slots, model in models.items():
    encoder = model.encoder_flops()
    for mode in ("entry", "image"):
      batches = layout(slots, mode == "image", options.entries, options.steps)
      work = model.work(batches)
      counted_by_line.append(work.least / work.step)
      ways = {"once an image": work.images * encoder, "kept on disk": 0.0}
      if mode == "entry":
        ways = {"once an entry": options.entries * encoder, **ways}
      for way, encoded in ways.items():
        times = [seconds(work.step + encoded, share) for share in SHARES]
        cells = [f"{time:>6.2g}" for time in times]
        cells += [f"{time * steps / 3600:>6.2g}" for time in times]
        yield (
          f"  {mode:<8}{way:<17}{slots:>7}{work.rows:>6.1f}{work.places:>8,.0f}"
          f"{work.padding:>6.0%}{(work.step + encoded) / 1e12:>8.0f}{''.join(cells)}"
        )
  yield "Assumed:"
  low, high = (pick(counted_by_line) for pick in (min, max))
  yield (
    f"  {CARD.peak / 1e12:.0f} TFLOP/s in bfloat16 a card (its data sheet), of which all "
    "products together,\n    those of padding and remat included, reach the share above. "
    "Not measured. The progress line's\n    MFU leaves both out: it would show "
    f"{low:.0%} to {high:.0%} of that share."
  )
  yield (
    f"  {options.entries} entries a step (Uni-Med's 4 a card; the paper states none), "
    f"{mix.ENTRIES_PER_IMAGE} an image; lengths of\n    benchmarks/mix.py; means over "
    f"{options.steps} steps. Compilation, evaluation and saves are not counted."
  )
  yield from _bounds(models[64], encoder)


def _bounds(model: Model, encoder: int) -> Iterator[str]:
  once = [seconds(encoder * IMAGES, share) / 60 for share in SHARES]
  gradients = 4 * sum(leaf.size for leaf in jax.tree.leaves(model.trainable))
  frozen = {
    path: leaf.size * leaf.dtype.itemsize
    for path, leaf in tree_lib.flatten(model.frozen).items()
  }
  layers = sum(size for path, size in frozen.items() if "decoder/layers/" in path)
  yield (
    f"  The encoder takes {encoder / 1e12:.2f} TFLOP an image. To keep the features of all "
    f"{IMAGES:,} takes {min(once):.1g} to\n    {max(once):.1g} minutes, once, and "
    f"{IMAGES * 256 * 1408 * 2 / 1e9:.0f} GB in 16 bits."
  )
  yield (
    f"  All weights on each card ({sum(frozen.values()) / 1e9:.0f} GB; mesh data {CARDS}): "
    f"{gradients / 1e9:.2f} GB of gradients are summed in\n    "
    f"{gradients / _NVLINK * 1e3:.0f} ms over NVLink, {gradients / _PCIE * 1e3:.0f} over "
    f"PCIe; not counted. With mesh fsdp {CARDS} each card sends {layers / 1e9:.0f} GB a "
    f"step:\n    {layers / _NVLINK * 1e3:.0f} ms over NVLink, {layers / _PCIE * 1e3:.0f} "
    "over PCIe."
  )
  yield (
    "  Reading the layers three times (forward, again for remat, back) takes "
    f"{3 * layers / _MEMORY * 1e3:.0f} ms: less than any step."
  )


def main() -> None:
  parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
  parser.add_argument("--entries", type=int, default=8, help="a step")
  parser.add_argument("--steps", type=int, default=200, help="that are looked at")
  options = parser.parse_args()
  for line in table(options):
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
  main()
