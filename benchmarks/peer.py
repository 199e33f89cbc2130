"""A training step beside the one that people have: transformers, PEFT and torch's AdamW.

  python -m benchmarks.peer [--image_tokens 256] [--vocab 32000] [--steps 12]

The same decoder (LLaMA) and connector with the same weights, LoRA of rank
8 on all linears, the same entries a step, float32, two threads each. Entries come as in the
paper's IMAX: 7.46 an image, its seven tasks in its proportions, answers as long as theirs.
Three contenders take turns at every step:

  peer    transformers and peft, an entry a row, padded to the batch's longest
  entry   ours, an entry a row
  image   ours, all entries of an image behind one image prefix

Losses must agree at every step (1e-5 relative), or there is no time to compare. The steps
are gone through twice, and the second time is timed: by then all sizes are compiled. A 7B
model's head is 2 % of its values, and attention among 411 tokens 2 % of its products;
a width of 512 comes near the latter, --vocab 512 gives this small one such a head; LLaMA's own
vocabulary of 32,000 outweighs its layers.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import peft
import torch
import transformers

from benchmarks import mix
from imax_jax import mesh as mesh_lib
from imax_jax import tree as tree_lib
from imax_jax.data import records
from imax_jax.data.pipeline import Batches
from imax_jax.models.vlm import Vlm
from imax_jax.models.vlm import batch_loss
from imax_jax.train.optim import Optimizer
from imax_jax.train.optim import make_optimizer
from imax_jax.train.state import init_state
from imax_jax.train.step import make_train_step
from imax_jax.weights import export
from imax_jax.weights import peft as adapters

_LR, _DECAY = 1e-3, 0.05
_MATRICES = r".*(kernel|lora_[ab])"


def fields(options: argparse.Namespace) -> dict[str, Any]:
  side = int(options.image_tokens**0.5)
  return {
    "encoder": {
      "image_px": 4 * side, "patch_px": 4, "channels": 1, "width": 64, "depth": 1,
      "num_heads": 2, "mlp_width": 64,
    },
    "connector": {"width": options.width, "merge": 1, "depth": 2},
    "decoder": {
      "width": options.width, "depth": options.depth, "num_heads": 8, "num_kv_heads": 8,
      "mlp_width": options.width * 11 // 4, "vocab_size": options.vocab, "rope_base": 1e4, "norm_eps": 1e-5, "lora_rank": 8,
      "fold": options.fold, "unroll": options.depth,  # what pays on a CPU
    },
  }  # fmt: skip


# ── Ours ────────────────────────────────────────────────────────────────────────────


def ours(
  options: argparse.Namespace, start: tree_lib.Tree, batches: Batches
) -> Callable[[int], float]:
  model, mesh = Vlm(**fields(options)), mesh_lib.make_mesh({"data": 1})
  trainable, frozen = tree_lib.split(
    mesh_lib.replicate(start, mesh),
    (("connector/.*", True), (".*/lora_[ab]", True), (".*", False)),
  )
  optimizer = _adamw(trainable)
  state = mesh_lib.replicate(init_state(trainable, optimizer.update, seed=0), mesh)
  step = make_train_step(batch_loss(model), optimizer)
  held = [state]

  def run(number: int) -> float:
    batch: Any = mesh_lib.put_batch(dict(batches[number]), mesh)
    held[0], metrics = step(held[0], frozen, batch)
    return float(metrics["loss"])

  return run


def _adamw(trainable: tree_lib.Tree) -> Optimizer:
  decay = ((_MATRICES, True), (".*", False))
  schedule = optax.constant_schedule(_LR)
  return make_optimizer(trainable, schedule, weight_decay=_DECAY, decay=decay)


# ── The peer ────────────────────────────────────────────────────────────────────────


def peer(
  options: argparse.Namespace,
  start: tree_lib.Tree,
  found: list[records.TokenizedImage],
  features: np.ndarray,
  batches: Batches,
) -> Callable[[int], float]:
  decoder = fields(options)["decoder"]
  flat = tree_lib.flatten(start)
  with tempfile.TemporaryDirectory() as folder:
    base = {path: leaf for path, leaf in flat.items() if "/lora_" not in path}
    pairs = {path: leaf for path, leaf in flat.items() if "/lora_" in path}
    export.write_merged(folder, base, decoder, dtype="float32")
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder)
    adapter = Path(folder) / "adapter"
    adapter.mkdir()
    adapters.write_adapter(adapter, pairs, decoder)
    model = peft.PeftModel.from_pretrained(model, adapter, is_trainable=True)
  width = options.width
  connector = torch.nn.Sequential(
    torch.nn.Linear(64, width), torch.nn.GELU(), torch.nn.Linear(width, width)
  )
  for number, layer in ((0, connector[0]), (1, connector[2])):
    kernel, bias = (flat[f"connector/dense_{number}/{x}"] for x in ("kernel", "bias"))
    layer.load_state_dict(
      {"weight": torch.tensor(np.array(kernel).T), "bias": torch.tensor(np.array(bias))}
    )
  named = [*model.named_parameters(), *connector.named_parameters()]
  trained = [(name, p) for name, p in named if p.requires_grad]
  optimizer = torch.optim.AdamW(
    [
      {"params": [p for n, p in trained if "bias" not in n], "weight_decay": _DECAY},
      {"params": [p for n, p in trained if "bias" in n], "weight_decay": 0.0},
    ],
    lr=_LR,
  )
  embed = model.get_input_embeddings()
  made = {n: _collate(found, batches.entries(n)) for n in range(options.steps)}

  def run(number: int) -> float:
    text, mask, labels, at, shown = made[number]
    x = embed(text)
    tokens = connector(torch.from_numpy(features[shown]))
    x = torch.cat([x[:, :at], tokens, x[:, at + tokens.shape[1] :]], dim=1)
    loss = model(inputs_embeds=x, attention_mask=mask, labels=labels).loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()

  model.train()
  return run


def _collate(
  found: list[records.TokenizedImage], entries: list[tuple[int, int]]
) -> tuple[Any, ...]:
  """(text, attention mask, labels, where the image begins, whose it is), a row an entry."""
  rows = []
  for image, number in entries:
    entry = found[image].entries[number]
    prompt = [*found[image].prefix_ids, *entry.prompt_ids]
    rows.append((prompt, [*entry.answer_ids]))
  longest = max(len(prompt) + len(answer) for prompt, answer in rows)
  text = torch.zeros(len(rows), longest, dtype=torch.long)
  mask = torch.zeros_like(text)
  labels = torch.full_like(text, -100)
  for row, (prompt, answer) in enumerate(rows):
    end = len(prompt) + len(answer)
    text[row, :end] = torch.tensor([*prompt, *answer])
    mask[row, :end] = 1
    labels[row, len(prompt) : end] = torch.tensor(answer)
  at = int((found[0].prefix_slot >= 0).argmax())
  return text, mask, labels, at, [image for image, _ in entries]


# ── Side by side ────────────────────────────────────────────────────────────────────


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--image_tokens", type=int, default=256, choices=(64, 256))
  parser.add_argument("--vocab", type=int, default=32_000)
  parser.add_argument("--width", type=int, default=512)
  parser.add_argument("--depth", type=int, default=2)
  parser.add_argument("--fold", action="store_true")
  parser.add_argument("--steps", type=int, default=6)
  parser.add_argument("--row_tokens", type=int, default=0, help="of image, at most")
  parser.add_argument("--shapes", type=int, default=8, help="of batches, at most")
  parser.add_argument("--entries", type=int, default=32, help="a step")
  parser.add_argument("--images", type=int, default=100)
  options = parser.parse_args()
  torch.set_num_threads(2)
  found = mix.images(options.images, options.image_tokens, options.vocab)
  rng = np.random.default_rng(1)
  features = rng.normal(size=(len(found), options.image_tokens, 64)).astype(np.float32)
  prefix = len(found[0].prefix_ids)
  longest = mix.longest(found)

  def layout(**kwargs: Any) -> Batches:
    return Batches(
      found, lambda i: features[i], num_steps=options.steps, seed=0, row_multiple=32,
      entries_per_step=options.entries, max_shapes=options.shapes, **kwargs,
    )  # fmt: skip

  layouts = {
    "entry": layout(row_tokens=prefix + longest, share_prefix=False),
    "image": layout(
      row_tokens=options.row_tokens or {256: 896, 64: 512}[options.image_tokens]
    ),
  }
  start = jax.jit(Vlm(**fields(options)).init)(jax.random.key(0), layouts["entry"][0])
  params = _away_from_zero(start["params"])
  contenders = {
    "peer": peer(options, params, found, features, layouts["entry"]),
    **{name: ours(options, params, batches) for name, batches in layouts.items()},
  }
  seconds: dict[str, list[float]] = {name: [] for name in contenders}
  worst = 0.0
  for number in [*range(options.steps)] * 2:
    losses = {}
    for name, run in contenders.items():
      began = time.perf_counter()
      losses[name] = run(number)
      seconds[name].append(time.perf_counter() - began)
    worst = max(worst, *(abs(x / losses["peer"] - 1) for x in losses.values()))
  sys.stdout.write(
    f"{options.image_tokens} image tokens, vocabulary {options.vocab:,}, "
    f"{options.depth} layers of {options.width}, {options.entries} entries a step; losses differ by {worst:.1e} at most\n"
  )
  if worst > 1e-5:
    sys.exit("peer: the contenders do not do the same work")
  report(seconds, options.entries, layouts)


def report(
  seconds: dict[str, list[float]], entries: int, layouts: dict[str, Batches]
) -> None:
  """Of the second round. A step's ratio is to the peer's at the same step, beside it."""
  second = {name: times[len(times) // 2 :] for name, times in seconds.items()}
  for name, times in second.items():
    ratios = [peer / own for peer, own in zip(second["peer"], times, strict=True)]
    padding = ""
    if name in layouts:
      loads = [layouts[name].load(n) for n in range(len(layouts[name]))]
      share = 1 - sum(x.tokens for x in loads) / sum(x.places for x in loads)
      places = sum(x.places for x in loads) / len(loads)
      padding = f", {places:,.0f} places a step, padding {share:.0%}"
    sys.stdout.write(
      f"  {name:<6} {statistics.mean(times):7.3f} s a step, "
      f"{entries * len(times) / sum(times):6.1f} entries/s, "
      f"{statistics.median(ratios):5.2f} times the peer{padding}\n"
    )


def _away_from_zero(params: tree_lib.Tree) -> dict[str, Any]:
  """B is zero at first, and A then has no gradient: not a step like the others."""
  return tree_lib.map_paths(
    lambda path, leaf: np.asarray(leaf) + (0.01 if path.endswith("lora_b") else 0.0),
    params,
  )


if __name__ == "__main__":
  main()
