"""What a GPU makes of the paper's model: steps, attention and the encoder, in bfloat16.

  python -m benchmarks.gpu [--entries 32] [--steps 12]         the 7B model; one GPU
  python -m benchmarks.gpu --toy                               the same of a toy, on anything

1. A training step (the loop's own, on features) of as many entries as --entries at IMAX's
   mix, an entry a row and all of an image behind one prefix, with 64 and 256 image tokens:
   entries a second, and the share of the card's peak that counted products reach (padding
   and remat included), and the progress line's MFU (neither).
2. Attention: `models.attention.attend` and cuDNN's, both bfloat16 under a batch's mask,
   against `attend` in float32: the gradients' relative difference (asked: under 2e-2), how
   many are no numbers, seconds. Known: cuDNN on Hopper gives NaN where a mask is given and
   the length is 64 more than a multiple of 128.
3. Images a second of the encoder alone.

Weights and tokens are drawn: what they say does not matter to time. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import mix
from benchmarks import paper_training as paper
from configs import imax_7b
from imax_jax import mesh as mesh_lib
from imax_jax import tree as tree_lib
from imax_jax.costs import accelerators
from imax_jax.costs import products
from imax_jax.data.pipeline import Batches
from imax_jax.models import attention
from imax_jax.models import vlm
from imax_jax.parameters import Parameters
from imax_jax.train import optim
from imax_jax.train.state import init_state
from imax_jax.train.step import make_train_step

_LENGTHS = (64, 128, 192, 257, 320, 384, 448, 512)
_ASKED = 2e-2
_ENTRY_TOKENS = 40
_TOY: dict[str, dict[str, Any]] = {
  "encoder": {"width": 64, "depth": 2, "num_heads": 2, "mlp_width": 128},
  "decoder": {
    "width": 128, "depth": 2, "num_heads": 4, "num_kv_heads": 4, "mlp_width": 344,
    "vocab_size": 1024,
  },
}  # fmt: skip


def say(text: str) -> None:
  sys.stdout.write(text + "\n")
  sys.stdout.flush()


def configure(slots: int, toy: bool) -> Any:
  config = imax_7b.get_config("imax")
  config.unlock()
  config.foundation, config.mesh = "", {"data": 1}
  config.model.connector.merge = 256 // slots
  for part, sizes in _TOY.items() if toy else ():
    config.model[part].update(sizes)
  return config


def seconds(run: Callable[[], Any], times: int) -> float:
  """The median, after two that compile and warm."""
  found = []
  for _ in range(times + 2):
    began = time.perf_counter()
    jax.block_until_ready(run())
    found.append(time.perf_counter() - began)
  return statistics.median(found[2:])


# ── Steps ───────────────────────────────────────────────────────────────────────────


def steps(options: argparse.Namespace, peak: float) -> None:
  say(
    f"training step, {options.entries} entries\n  {'tokens':>7} {'mode':<6}{'rows':>5}"
    f"{'places':>8}{'padding':>8}{'s':>9}{'entries/s':>11}{'tokens/s':>10}"
    f"{'of peak':>9}{'MFU':>6}"
  )
  for slots in (64, 256):
    config = configure(slots, options.toy)
    mesh = mesh_lib.make_mesh(config.mesh, jax.devices()[:1])
    parameters = Parameters(config, mesh, "unused")
    trainable, frozen = jax.block_until_ready(parameters.split(0))
    for mode in ("entry", "image"):
      step_of(options, config, parameters, trainable, frozen, mode, peak)
    del trainable, frozen  # before the next are drawn


def layout(options: argparse.Namespace, config: Any, mode: str) -> Batches:
  slots, encoder = 256 // config.model.connector.merge, config.model.encoder
  found = mix.images(200, slots, config.model.decoder.vocab_size)
  features = np.random.default_rng(0).normal(size=(256, encoder.width))
  return Batches(
    found, lambda _: features.astype(np.float16), num_steps=options.steps + 2,
    entries_per_step=options.entries, row_tokens=1024, row_multiple=128, seed=0,
    share_prefix=mode == "image",
  )  # fmt: skip


def step_of(
  options: argparse.Namespace, config: Any, parameters: Parameters, trainable: Any,
  frozen: Any, mode: str, peak: float,
) -> None:  # fmt: skip
  batches, mesh = layout(options, config, mode), parameters.mesh
  schedule = optim.make_schedule(
    num_steps=100, peak_lr=1e-6, final_lr=1e-7, warmup_fraction=0.1, warmup_start_lr=0.0
  )
  optimizer = optim.make_optimizer(trainable, schedule)
  state = mesh_lib.replicate(init_state(trainable, optimizer.update, seed=0), mesh)
  step: Any = make_train_step(vlm.batch_loss(parameters.model), optimizer)
  held, times, flops, known = [state], [], [], {}
  for number in range(len(batches)):
    batch: Any = mesh_lib.put_batch(dict(batches[number]), mesh)
    shape = tuple(leaf.shape for leaf in batch.values())
    if shape not in known:
      known[shape] = paper.counted(step.lower(held[0], frozen, batch))
    flops.append(known[shape])
    began = time.perf_counter()
    held[0], metrics = step(held[0], frozen, batch)
    loss = float(metrics["loss"])
    times.append(time.perf_counter() - began)
    if not np.isfinite(loss):
      sys.exit(f"gpu: step {number} of {mode}: the loss is {loss}")
  loads = np.array([batches.load(n) for n in range(len(batches))][2:], float)
  tokens, supervised, _, places = loads.mean(axis=0)
  flat = tree_lib.flatten(parameters.abstract)
  values = products.values_of(config.model.decoder, flat)
  least = 4 * (values.layers * tokens + values.head * supervised)
  middle = statistics.median(times[2:])
  shares = [
    f"{x / middle / peak:.1%}" if peak else "?" for x in (np.mean(flops[2:]), least)
  ]
  say(
    f"  {256 // config.model.connector.merge:>7} {mode:<6}{batch['text'].shape[0]:>5}"
    f"{places:>8,.0f}{1 - tokens / places:>8.0%}{middle:>9.3f}"
    f"{options.entries / middle:>11.1f}{tokens / middle:>10,.0f}{shares[0]:>9}{shares[1]:>6}"
  )


# ── Attention ───────────────────────────────────────────────────────────────────────


def attend_all(options: argparse.Namespace) -> None:
  heads, width = (4, 32) if options.toy else (32, 128)
  on_gpu = jax.default_backend() == "gpu"
  say(
    f"attention with a mask, 2 rows, {heads} heads of {width}: gradients against float32\n"
    f"  {'tokens':>7}  {'plain':<28}{'cuDNN'}"
  )
  for length in _LENGTHS:
    plain = measured(length, heads, width, "plain", options.steps)
    cudnn = (
      measured(length, heads, width, "cudnn", options.steps)
      if on_gpu
      else f"skipped: needs an NVIDIA GPU, this is {jax.default_backend()}"
    )
    say(f"  {length:>7}  {plain:<28}{cudnn}")


def measured(length: int, heads: int, width: int, how: str, times: int) -> str:
  q, k, v, weight = jax.random.normal(jax.random.key(0), (4, 2, heads, length, width))
  image, segment = rows(length)
  mask = attention.batch_mask(image, segment)
  # Padding's own output is nobody's.
  weight *= (image >= 0)[:, None, :, None]

  def loss(qkv: Any, how: str) -> jax.Array:
    return (mix_heads(*qkv, mask, how).astype(jnp.float32) * weight).sum()

  wide = (q, k, v)
  narrow = tuple(x.astype(jnp.bfloat16) for x in wide)
  right = jax.jit(jax.grad(lambda x: loss(x, "plain")))(
    tuple(x.astype(jnp.float32) for x in narrow)
  )
  grad = jax.jit(jax.grad(lambda x: loss(x, how)))
  try:
    found = jax.device_get(grad(narrow))
  except Exception as error:  # whatever the library refuses with belongs in the table
    return f"refused: {str(error).splitlines()[0][:60]}"
  bad = sum(int((~np.isfinite(x.astype(np.float32))).sum()) for x in found)
  if bad:
    return f"{bad} of {sum(x.size for x in found)} gradients are no numbers"
  worst = max(
    float(np.linalg.norm(x.astype(np.float32) - y) / np.linalg.norm(y))
    for x, y in zip(found, jax.device_get(right), strict=True)
  )
  far = "" if worst < _ASKED else " FAR"
  return f"{worst:.1e}{far}, {1e3 * seconds(lambda: grad(narrow), times):.2f} ms"


def rows(length: int) -> tuple[jax.Array, jax.Array]:
  """image and segment int32[2, T]: a prefix, entries of 40 tokens, an eighth of padding."""
  real, prefix = length - length // 8, length // 4
  at = jnp.arange(length)
  segment = jnp.where(at < prefix, 0, 1 + (at - prefix) // _ENTRY_TOKENS)
  image = jnp.where(at < real, 0, -1)
  return jnp.stack([image] * 2), jnp.stack([jnp.where(at < real, segment, 0)] * 2)


def mix_heads(q: Any, k: Any, v: Any, mask: jax.Array, how: str) -> jax.Array:
  """[B, H, T, d] thrice, bool[B, T, J] -> [B, H, T, d]."""
  if how == "plain":
    return attention.attend(q, k, v, attention.mask_bias(mask))
  q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
  mixed = jax.nn.dot_product_attention(
    q, k, v, mask=mask[:, None], implementation="cudnn"
  )
  return mixed.transpose(0, 2, 1, 3)


# ── The encoder ─────────────────────────────────────────────────────────────────────


def encode(options: argparse.Namespace, peak: float) -> None:
  config = configure(64, options.toy)
  mesh = mesh_lib.make_mesh(config.mesh, jax.devices()[:1])
  parameters, e = Parameters(config, mesh, "unused"), config.model.encoder
  params = {"encoder": parameters.init(0)["encoder"]}
  for count in (1, 8, 32):
    pixels = np.zeros((count, e.image_px, e.image_px, e.channels), np.uint8)
    placed = mesh_lib.replicate(pixels, mesh)
    run = jax.jit(
      lambda p, x: parameters.model.apply({"params": p}, x, method="encode")
    )
    flops = paper.counted(run.lower(params, placed))
    middle = seconds(lambda run=run, x=placed: run(params, x), options.steps)
    share = f"{flops / middle / peak:.0%} of peak" if peak else "peak unknown"
    say(f"encoder, {count:>2} images at once: {count / middle:,.1f} images/s, {share}")


def main() -> None:
  parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
  parser.add_argument("--entries", type=int, default=32, help="a step")
  parser.add_argument("--steps", type=int, default=12, help="that are timed")
  parser.add_argument("--toy", action="store_true")
  options = parser.parse_args()
  device = jax.devices()[0]
  peak = accelerators.peak_of(device.device_kind)
  said = f"{peak / 1e12:.0f} TFLOP/s" if peak else "not in costs/accelerators.py"
  say(f"{device.device_kind}, jax {jax.__version__}; peak in bfloat16 {said}")
  attend_all(options)
  encode(options, peak)
  steps(options, peak)


if __name__ == "__main__":
  main()
