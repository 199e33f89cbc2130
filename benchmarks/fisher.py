"""The exact Fisher spectrum beside a plain backward pass and torch.func's vmap(grad).

  python -m benchmarks.fisher [--rows 32] [--width 256] [--depth 4]   on the CPU, with torch
  python -m benchmarks.fisher --device gpu                            on one GPU
  python -m benchmarks.fisher --limit 3                               and with so many GiB

One group of entries at IMAX's mix, an entry a row, LoRA of rank 8 on all linears and a
connector, or with --full every weight of decoder and connector. Contenders, each in a process
of its own that does one thing:

  backward  the same rows' plain batched backward pass, one gradient in all
  taps      the Gram matrix of all trainable parameters, rows together (rows_at_once 0)
  rows      the same, a row after the other (rows_at_once 1)
  torch     transformers' LLaMA with the same weights, torch.func.vmap(grad), and the Gram
            matrix of its gradients; head and loss at supervised places only, as ours

For each: seconds (the least of --times, after one that compiles), the peak of memory above
what was there before the pass (of the process on a CPU, of the device on a GPU), XLA's own
count of temporary memory, and both as a ratio to `backward`. Gram matrices must agree to
1e-5 of their largest value, or there is no time to compare. With --limit, no process may
have more memory than that, and it is printed which of them end.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import mix
from imax_jax import tree as tree_lib
from imax_jax.data import pipeline
from imax_jax.data.pipeline import EntryBatches
from imax_jax.fisher import grads
from imax_jax.fisher import gram
from imax_jax.models import vlm
from imax_jax.models.vlm import Vlm

_CONTENDERS = ("backward", "taps", "rows", "torch")
_PAPER = ((r"connector/.*", True), (r".*/lora_[ab]", True), (r".*", False))
_FULL = ((r"encoder/.*", False), (r".*", True))
_FEATURES = 64  # the encoder's width; it is not run


def fields(options: argparse.Namespace) -> dict[str, Any]:
  side = int(options.image_tokens**0.5)
  return {
    "encoder": {
      "image_px": 4 * side, "patch_px": 4, "channels": 1, "width": _FEATURES, "depth": 1,
      "num_heads": 2, "mlp_width": 64,
    },
    "connector": {"merge": 1, "depth": 2},
    "decoder": {
      "width": options.width, "depth": options.depth, "num_heads": 8, "num_kv_heads": 8,
      "mlp_width": options.width * 11 // 4, "vocab_size": options.vocab,
      "rope_base": 1e4, "norm_eps": 1e-5, "lora_rank": 0 if options.full else 8,
      "remat": options.remat,
    },
  }  # fmt: skip


def group(options: argparse.Namespace) -> Any:
  found = mix.images(4 * options.rows, options.image_tokens, options.vocab)
  rng = np.random.default_rng(1)
  shape = (len(found), options.image_tokens, _FEATURES)
  features = rng.normal(size=shape).astype(np.float32)
  pairs = pipeline.draw(found, 1, options.rows, seed=0)
  return EntryBatches(found, lambda i: features[i], pairs, group_size=options.rows)[0]


def weights(options: argparse.Namespace, batch: Any) -> dict[str, Any]:
  """Numpy's, so that each process has the same: B is not zero, or A had no gradient."""
  model = Vlm(**fields(options))
  made = jax.eval_shape(lambda: model.init(jax.random.key(0), batch))["params"]
  rng = np.random.default_rng(0)

  def draw(path: str, leaf: Any) -> np.ndarray:
    scale = 0.02 if leaf.ndim < 2 or "embed" in path else leaf.shape[-2] ** -0.5
    scale *= 0.1 if path.endswith("lora_b") else 1
    drawn = rng.standard_normal(leaf.shape, np.float32)
    return np.float32(path.endswith("scale")) + np.float32(scale) * drawn

  return tree_lib.map_paths(draw, made)


# ── Ours ────────────────────────────────────────────────────────────────────────────


def ours(options: argparse.Namespace, name: str) -> dict[str, Any]:
  batch, model = group(options), Vlm(**fields(options))
  rules = _FULL if options.full else _PAPER
  trainable, frozen = tree_lib.split(jax.device_put(weights(options, batch)), rules)
  loss = vlm.row_loss(model)
  if name == "backward":
    fed = jax.device_put(dict(batch))

    def total(trainable: Any, frozen: Any, batch: Any) -> Any:
      return jax.grad(lambda t: -loss(t, frozen, batch)[0].sum())(trainable)

    program, rest = jax.jit(total), (fed,)
  else:
    index = gram._indices(None, trainable)
    at_once = 0 if name == "taps" else 1
    program = gram._program(loss, "sum", at_once, vlm.TAPPED, None)
    rest = (jax.device_put(grads.split_rows(batch)), index)
  compiled = program.lower(trainable, frozen, *rest).compile()
  memory: Any = compiled.memory_analysis()

  def run() -> Any:
    return jax.block_until_ready(compiled(trainable, frozen, *rest))

  found = measured(options, run)
  found["temporary"] = memory.temp_size_in_bytes / 2**20
  if name != "backward":
    products = [np.asarray(row, float).sum(axis=1) for _, row in run().values()]
    found["gram"] = (sum(products) / options.rows).tolist()
  return found


def measured(options: argparse.Namespace, run: Callable[[], Any]) -> dict[str, Any]:
  """Seconds, and the MiB that passes add to what there was before the first.

  The first counts: an allocator that keeps what it was given adds nothing later.
  """
  gc.collect()
  before = now(options)
  seconds = []
  for _ in range(options.times + 1):
    began = time.perf_counter()
    run()
    seconds.append(time.perf_counter() - began)
  return {"seconds": min(seconds[1:]), "peak": most(options) - before}


def now(options: argparse.Namespace) -> float:
  """MiB in use; forgets the most there was, where that can be forgotten."""
  if options.device == "gpu":
    return in_device("bytes_in_use")
  Path("/proc/self/clear_refs").write_text("5", "ascii")
  return in_process("VmRSS")


def most(options: argparse.Namespace) -> float:
  return (
    in_device("peak_bytes_in_use") if options.device == "gpu" else in_process("VmHWM")
  )


def in_process(field: str) -> float:
  for line in Path("/proc/self/status").read_text("ascii").splitlines():
    if line.startswith(field):
      return int(line.split()[1]) / 1024
  raise ValueError(f"/proc/self/status has no {field}: Linux is needed")


def in_device(field: str) -> float:
  if "torch" in sys.modules:
    import torch

    kinds = {
      "bytes_in_use": torch.cuda.memory_allocated,
      "peak_bytes_in_use": torch.cuda.max_memory_allocated,
    }
    return kinds[field]() / 2**20
  return (jax.devices()[0].memory_stats() or {})[field] / 2**20


# ── torch.func ──────────────────────────────────────────────────────────────────────


def theirs(options: argparse.Namespace) -> dict[str, Any]:
  import torch

  torch.set_num_threads(options.threads)
  device = torch.device("cuda" if options.device == "gpu" else "cpu")
  if device.type == "cuda" and not torch.cuda.is_available():
    return {"refused": "torch sees no GPU"}
  batch = group(options)
  base, trained, rows = torch_parts(options, batch, device)

  def log_likelihood(trained: Any, row: Any) -> Any:
    text, features, at, target, weight = row
    parts = dict(zip(("connector.0", "connector.2"), (0, 1), strict=True))
    x = features
    for name, number in parts.items():
      x = torch.nn.functional.gelu(x) if number else x
      x = x @ trained[f"{name}.weight"].T + trained[f"{name}.bias"]
    embeds = torch.nn.functional.embedding(text, base.embedding(trained))
    first, slots = base.first, x.shape[0]
    embeds = torch.cat([embeds[:first], x, embeds[first + slots :]])
    hidden = base.run(trained, embeds[None])
    logits = base.head(trained, hidden[0][at])
    found = torch.nn.functional.log_softmax(logits, dim=-1)
    return (found.gather(1, target[:, None])[:, 0] * weight).sum()

  per_row = torch.func.vmap(torch.func.grad(log_likelihood), in_dims=(None, 0))

  def run() -> Any:
    gradients = per_row(trained, rows)
    found = sum(
      g.reshape(options.rows, -1) @ g.reshape(options.rows, -1).T
      for g in gradients.values()
    )
    return (found.double() / options.rows).cpu().numpy()

  found = measured(options, run)
  return found | {"gram": run().tolist()}


def torch_parts(options: argparse.Namespace, batch: Any, device: Any) -> Any:
  """(the decoder, {name: trained tensor}, rows), with our weights."""
  import peft
  import torch
  import transformers

  from imax_jax.weights import export
  from imax_jax.weights import peft as adapters

  flat, decoder = tree_lib.flatten(weights(options, batch)), fields(options)["decoder"]
  with tempfile.TemporaryDirectory() as folder:
    pairs = {path: leaf for path, leaf in flat.items() if "/lora_" in path}
    whole = {path: leaf for path, leaf in flat.items() if path not in pairs}
    export.write_merged(folder, whole, decoder, dtype="float32")
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
      folder, attn_implementation="eager"
    )
    if pairs:
      (Path(folder) / "adapter").mkdir()
      adapters.write_adapter(Path(folder) / "adapter", pairs, decoder)
      model = peft.PeftModel.from_pretrained(
        model, Path(folder) / "adapter", is_trainable=True
      )
  model = model.to(device).eval()
  named = dict(model.named_parameters())
  trained = {
    name: value.detach() for name, value in named.items()
    if options.full or "lora_" in name
  }  # fmt: skip
  for number, name in enumerate(("connector.0", "connector.2")):
    kernel, bias = (flat[f"connector/dense_{number}/{x}"] for x in ("kernel", "bias"))
    trained[f"{name}.weight"] = torch.tensor(kernel.T.copy(), device=device)
    trained[f"{name}.bias"] = torch.tensor(bias, device=device)
  return Decoder(model, batch["slot"]), trained, torch_rows(batch, device)


class Decoder:
  """transformers' model as functions of the trained tensors."""

  def __init__(self, model: Any, slot: np.ndarray) -> None:
    import torch

    self._whole, self._causal = model, getattr(model, "base_model", model)
    self._causal = self._causal.model if hasattr(model, "peft_config") else model
    self._prefix = "base_model.model." if hasattr(model, "peft_config") else ""
    self.first = int(np.argmax(slot[0] == 0))
    tokens, device = slot.shape[1], next(model.parameters()).device
    mask = torch.full((1, 1, tokens, tokens), -1e30, device=device).triu(1)
    self._given = {
      "attention_mask": mask, "position_ids": torch.arange(tokens, device=device)[None],
      "use_cache": False,
    }  # fmt: skip

  def _own(self, trained: Any, part: str) -> dict[str, Any]:
    start = f"{self._prefix}{part}."
    return {n[len(start) :]: v for n, v in trained.items() if n.startswith(start)}

  def embedding(self, trained: Any) -> Any:
    name = f"{self._prefix}model.embed_tokens.weight"
    return trained.get(name, self._causal.model.embed_tokens.weight)

  def run(self, trained: Any, embeds: Any) -> Any:
    import torch

    return torch.func.functional_call(
      self._causal.model, self._own(trained, "model"), (),
      {"inputs_embeds": embeds, **self._given},
    ).last_hidden_state  # fmt: skip

  def head(self, trained: Any, x: Any) -> Any:
    name = f"{self._prefix}lm_head.weight"
    return x @ trained.get(name, self._causal.lm_head.weight).T


def torch_rows(batch: Any, device: Any) -> tuple[Any, ...]:
  """(text, features, supervised places, their targets, 1 or 0 for padding) of each row.

  A row is a causal sequence of its own: what stands behind its end is seen by nothing.
  """
  import torch

  rows = grads.split_rows(batch)
  at = rows["supervised"][:, 0].astype(np.int64)
  real, at = at >= 0, np.maximum(at, 0)
  text = rows["text"][:, 0].astype(np.int64)
  target = np.take_along_axis(np.roll(text, -1, axis=1), at, axis=1)
  arrays = (text, rows["pixels"][:, 0], at, target, real.astype(np.float32))
  return tuple(torch.tensor(array, device=device) for array in arrays)


# ── Side by side ────────────────────────────────────────────────────────────────────


def alone(options: argparse.Namespace, name: str) -> dict[str, Any]:
  """A contender in a process of its own."""
  command = [sys.executable, "-m", "benchmarks.fisher", *sys.argv[1:], "--only", name]
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  if done.returncode:
    last = (done.stderr.strip().splitlines() or ["killed"])[-1]
    return {"refused": f"ended with {done.returncode}: {last[:150]}"}
  return dict(json.loads(done.stdout.splitlines()[-1]))


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--rows", type=int, default=32)
  parser.add_argument("--image_tokens", type=int, default=64, choices=(64, 256))
  parser.add_argument("--width", type=int, default=256)
  parser.add_argument("--depth", type=int, default=4)
  parser.add_argument("--vocab", type=int, default=2000)
  parser.add_argument("--remat", default="", choices=("", "dots", "inputs"))
  parser.add_argument("--full", action="store_true", help="train every weight")
  parser.add_argument("--times", type=int, default=3)
  parser.add_argument("--threads", type=int, default=2, help="torch's, on a CPU")
  parser.add_argument("--device", default="cpu", choices=("cpu", "gpu"))
  parser.add_argument("--limit", type=float, default=0.0, help="GiB of a process")
  parser.add_argument("--contenders", default=",".join(_CONTENDERS))
  parser.add_argument("--only", default="", help="one contender; prints JSON")
  return parser.parse_args(arguments)


def main() -> None:
  options = parsed()
  if options.device == "gpu":  # as torch multiplies float32
    jax.config.update("jax_default_matmul_precision", "highest")
  if options.limit:
    most_bytes = int(options.limit * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (most_bytes, most_bytes))
  if options.only:
    found = theirs(options) if options.only == "torch" else ours(options, options.only)
    sys.stdout.write(json.dumps(found) + "\n")
    return
  names = options.contenders.split(",")
  report(options, {name: alone(options, name) for name in names})


def report(options: argparse.Namespace, results: dict[str, dict[str, Any]]) -> None:
  what = "every weight" if options.full else "LoRA and connector"
  limit = f", at most {options.limit} GiB a process" if options.limit else ""
  sys.stdout.write(
    f"{options.rows} entries, {options.image_tokens} image tokens, {options.depth} layers "
    f"of {options.width}, vocabulary {options.vocab:,}, {what}, remat "
    f"{options.remat or 'none'}{limit}\n"
    f"  {'':<9}{'s':>9}{'MiB':>9}{'XLA MiB':>9}   of backward's: time, memory, XLA's\n"
  )
  base, matrices = results.get("backward", {}), {}
  for name, found in results.items():
    if "refused" in found:
      sys.stdout.write(f"  {name:<9}{found['refused']}\n")
      continue
    ratios = [
      f"{found[key] / base[key]:>6.2f}"
      if key in found and base.get(key)
      else f"{'':>6}"
      for key in ("seconds", "peak", "temporary")
    ]
    sys.stdout.write(
      f"  {name:<9}{found['seconds']:>9.3f}{found['peak']:>9.1f}"
      f"{found.get('temporary', float('nan')):>9.1f}   {' '.join(ratios)}\n"
    )
    if "gram" in found:
      matrices[name] = np.array(found["gram"])
  if len(matrices) > 1:
    first, *others = matrices.values()
    worst = max(np.abs(one - first).max() / np.abs(first).max() for one in others)
    sys.stdout.write(f"  Gram matrices differ by {worst:.1e} of the largest value\n")
    if worst > 1e-5:
      sys.exit("fisher: the contenders do not do the same work")


if __name__ == "__main__":
  main()
