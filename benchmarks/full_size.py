"""The paper's model whole, on two cores and 24 GiB: load, forward, step, answer.

  python -m benchmarks.full_size --workdir runs/full_size [--kernel_dtype nf4]

EVA-CLIP ViT-G/14 (39 blocks), the connector and LLaMA-2 7B with LoRA of rank 8 on all
seven linears, as configs/imax_7b.py has them, through the package's own functions. Frozen
weights are seeded: what they say matters neither to time nor to memory. They are written
once (WORKDIR/foundation-7b, 15.4 GB in bfloat16) and then loaded as published ones would
be. Two starts, each a process of its own: the second finds the programs that the first
one compiled. Fails where a loss or gradient is not finite or the peak passes 20 GiB.

Needs jax 0.12 or newer, which needs Python 3.12: XLA has no bfloat16 product on most CPUs
and converts kernels to float32, jax 0.12's a layer at a time. That of jax 0.10 converts
the stack of all layers before their scan, 27 GB for the decoder alone.

--depth N cuts encoder and decoder to N layers of full width; --tiny is for tests.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import resource
import shutil
import subprocess
import sys
import time
import types
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from configs import imax_7b
from imax_jax import mesh as mesh_lib
from imax_jax import tree as tree_lib
from imax_jax.data import records
from imax_jax.data import templates
from imax_jax.data import tokenizer as tokenizer_lib
from imax_jax.data.pipeline import Batches
from imax_jax.evaluate.generate import Generator
from imax_jax.models import vlm
from imax_jax.parameters import ASSETS
from imax_jax.parameters import Parameters
from imax_jax.train import optim
from imax_jax.train.state import init_state
from imax_jax.train.step import make_train_step
from imax_jax.weights import files
from imax_jax.weights import plan

_NEEDS = (0, 12)
_GIB = 1 << 30
_LIMIT_GIB = 20.0
_NEW_TOKENS = 4
_TURN = 37  # outputs, from a layer to the next
_NUM_STEPS = 2  # the second sees what the first changed
_TINY: dict[str, dict[str, Any]] = {
  "encoder": {"image_px": 56, "width": 32, "depth": 2, "num_heads": 2, "mlp_width": 64},
  "decoder": {
    "width": 64, "depth": 2, "num_heads": 2, "num_kv_heads": 2, "mlp_width": 128,
    "vocab_size": 1024,
  },
}  # fmt: skip


class Log:
  """Prints what happens when, in how much memory, and keeps it for the table.

  Beside the seconds that passed stand those that cores worked, which others' work on the
  same machine does not lengthen as much.
  """

  def __init__(self, path: Path, start: int) -> None:
    self._path, self._start, self._began = path, start, time.perf_counter()

  def say(self, text: str) -> None:
    seconds = time.perf_counter() - self._began
    sys.stdout.write(f"[start {self._start}, {seconds:6.1f} s] {text}\n")
    sys.stdout.flush()

  @contextmanager
  def phase(self, name: str) -> Iterator[None]:
    self.say(f"{name} …")
    begin, worked = time.perf_counter(), time.process_time()
    yield
    row: dict[str, Any] = {
      "start": self._start,
      "phase": name,
      "seconds": time.perf_counter() - begin,
      "worked": time.process_time() - worked,
      "held": held_gib(),
      "peak": peak_gib(),
    }
    self.say(
      "{phase}: {seconds:.1f} s ({worked:.1f} of cores), {held:.2f} GiB, peak {peak:.2f} GiB".format(
        **row
      )
    )
    with self._path.open("a", encoding="utf8") as file:
      file.write(json.dumps(row) + "\n")


def peak_gib() -> float:
  """The most this process ever held, VmHWM."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)


def held_gib() -> float:
  pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
  return pages * resource.getpagesize() / _GIB


def configure(options: argparse.Namespace) -> ConfigDict:
  """The paper's page with the model that was asked for."""
  c = imax_7b.get_config("imax")
  c.unlock()
  c.foundation = str(_folder(options))
  c.model.connector.merge = options.merge
  c.model.decoder.kernel_dtype = options.kernel_dtype
  if options.tiny:
    for part, sizes in _TINY.items():
      c.model[part].update(sizes)
  if options.depth:
    c.model.encoder.depth = c.model.decoder.depth = options.depth
  # The prefix is 64 or 256 image tokens and a few words; the rest is text.
  patches = (c.model.encoder.image_px // c.model.encoder.patch_px) ** 2
  c.train.row_tokens = options.row_tokens or patches // options.merge + 256
  return c


def _folder(options: argparse.Namespace) -> Path:
  size = "tiny" if options.tiny else "7b"
  depth = f"-{options.depth}" if options.depth else ""
  return options.workdir / f"foundation-{size}{depth}"


# ── Weights ─────────────────────────────────────────────────────────────────────────


def write_foundation(config: ConfigDict, workdir: Path) -> None:
  """Seeded encoder and decoder, one layer of one matrix at a time.

  A layer's matrix is the first layer's with its outputs rotated: drawing each took 18
  minutes. Connector and LoRA start fresh.
  """
  folder = Path(config.foundation)
  folder.mkdir(parents=True, exist_ok=True)
  shutil.copy(ASSETS / "tokenizer.json", folder)
  abstract = Parameters(config, mesh_lib.make_mesh(config.mesh), workdir).abstract
  table = {
    path: leaf
    for path, leaf in plan.stored_leaves(tree_lib.flatten(abstract)).items()
    if not re.fullmatch(r"connector/.*|.*/lora_[ab]", path)
  }
  where = {path: (leaf.shape, leaf.dtype) for path, leaf in table.items()}
  with files.tensor_writer(folder / "foundation.safetensors", where) as writer:
    for path, leaf in table.items():
      layered = "/layers/" in path
      shape = leaf.shape[1:] if layered else leaf.shape
      values = _draw(path, shape).astype(leaf.dtype)
      for layer in range(leaf.shape[0]) if layered else (None,):
        writer.write(path, np.roll(values, _TURN * (layer or 0), axis=-1), layer)


def _draw(path: str, shape: tuple[int, ...]) -> np.ndarray:
  """float32 of variance 1 / in for kernels, small for tables, ones and zeros else."""
  if path.endswith("scale"):
    return np.ones(shape, np.float32)
  if path.endswith("bias"):
    return np.zeros(shape, np.float32)
  bound = math.sqrt(3 / shape[0]) if path.endswith("kernel") else 0.02
  rng = np.random.default_rng(zlib.crc32(path.encode()))
  values = rng.random(shape, np.float32)
  values *= 2 * bound
  values -= bound
  return values


# ── One start ───────────────────────────────────────────────────────────────────────


def make_batch(config: ConfigDict, tokenizer: Any, num_slots: int) -> dict[str, Any]:
  """A full row: an image of noise, and entries of tokens drawn at random."""
  encoder, row_tokens = config.model.encoder, config.train.row_tokens
  style = templates.style_of(config.prompt.style, legacy=config.prompt.legacy)
  prefix, slot = records.prefix_of(tokenizer, num_slots, style.training)
  rng = np.random.default_rng(0)
  ids = rng.integers(3, len(tokenizer), row_tokens - len(prefix), np.int32)
  entry: Any = types.SimpleNamespace(task="report")
  entries = tuple(
    records.TokenizedEntry(piece[: len(piece) // 2], piece[len(piece) // 2 :], entry)
    for piece in np.array_split(ids, max(1, len(ids) // 64))
  )
  shape = (encoder.image_px, encoder.image_px, encoder.channels)
  pixels = rng.integers(0, 256, shape, np.uint8)
  batches = Batches(
    [records.TokenizedImage("noise", prefix, slot, entries)], lambda _: pixels,
    num_steps=1, entries_per_step=len(entries), row_tokens=row_tokens, seed=0,
    weighting=config.train.weighting,
  )  # fmt: skip
  return dict(batches[0])


def make_optimizer(trainable: Any) -> optim.Optimizer:
  schedule = optim.make_schedule(
    num_steps=10, peak_lr=1e-4, final_lr=1e-5, warmup_fraction=0.0, warmup_start_lr=0.0
  )
  decay = ((r".*(kernel|lora_[ab])", True), (r".*", False))
  return optim.make_optimizer(trainable, schedule, weight_decay=0.05, decay=decay)


def start(options: argparse.Namespace, log: Log) -> None:
  """Loads, computes a loss, trains two steps and answers a question."""
  config = configure(options)
  mesh = mesh_lib.make_mesh(config.mesh)
  parameters = Parameters(config, mesh, options.workdir)
  with log.phase("load"):
    trainable, frozen = jax.block_until_ready(parameters.split(0))
  for name, tree in (("trainable", trainable), ("frozen", frozen)):
    log.say(f"{name}: {_size(tree)}")
  tokenizer = tokenizer_lib.load(ASSETS / "tokenizer.json")
  num_slots = parameters.model.num_slots
  arrays = make_batch(config, tokenizer, num_slots)
  batch = mesh_lib.put_batch(arrays, mesh)
  rows, tokens = arrays["text"].shape
  log.say(f"batch: {rows} row of {tokens} tokens, {num_slots} of them the image's")

  loss_of = jax.jit(vlm.row_loss(parameters.model))
  with log.phase("forward: compile"):
    forward = loss_of.lower(trainable, frozen, batch).compile()
  log.say(_needs(forward))
  with log.phase("forward"):
    total, weight = jax.device_get(forward(trainable, frozen, batch))
  log.say(f"loss {_finite('loss', total.sum() / weight.sum()):.4f}")
  del forward

  optimizer = make_optimizer(trainable)
  state = init_state(trainable, optimizer.update, seed=0)
  state = mesh_lib.place(state, _where(state, mesh))
  trained = train(log, parameters, optimizer, state, frozen, batch)
  answer(log, config, parameters, tree_lib.merge(trained, frozen), tokenizer, arrays)


def _where(state: Any, mesh: Any) -> Any:
  """Where each leaf of the state lies; counters on every device."""
  everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

  def where(leaf: jax.Array) -> Any:
    placed = isinstance(leaf.sharding, jax.sharding.NamedSharding)
    return leaf.sharding if placed else everywhere

  return jax.tree.map(where, state)


def train(
  log: Log, parameters: Parameters, optimizer: Any, state: Any, frozen: Any, batch: Any
) -> Any:
  """The trainable weights after `_NUM_STEPS` updates on the same batch."""
  shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
  loss = vlm.batch_loss(parameters.model)
  step: Any = make_train_step(loss, optimizer, shardings=shardings)
  with log.phase("step: trace"):
    lowered = step.lower(state, frozen, batch)
  with log.phase("step: compile"):
    program = lowered.compile()
  log.say(_needs(program))
  for number in range(_NUM_STEPS):
    with log.phase(f"step {number + 1}"):
      state, metrics = jax.block_until_ready(program(state, frozen, batch))
    values = {name: _finite(name, value) for name, value in metrics.items()}
    log.say(", ".join(f"{name} {value:.5g}" for name, value in values.items()))
    if not number:
      # Adam's first moment after one update is a tenth of the gradient.
      moments = tree_lib.flatten(state.opt_state[0].mu)
      for kind in ("connector", "lora_a", "lora_b"):
        part = [10 * leaf for path, leaf in moments.items() if kind in path]
        norm = math.sqrt(sum(float((leaf**2).sum()) for leaf in part))
        log.say(f"gradient of {len(part)} {kind} leaves: norm {norm:.5g}")
  return state.trainable


def answer(
  log: Log, config: ConfigDict, parameters: Parameters, params: Any, tokenizer: Any,
  arrays: Any,
) -> None:  # fmt: skip
  """One question twice: the second time nothing is compiled."""
  style = templates.style_of(config.prompt.style, legacy=config.prompt.legacy)
  num_slots = int((arrays["slot"] >= 0).sum())
  generator = Generator(
    parameters.model, tokenizer, num_slots, _NEW_TOKENS, rows=1, style=style
  )
  question = [(0, "[vqa] Is there a pleural effusion?")]
  said = []
  for name in ("answer, with compiling", "answer"):
    with log.phase(name):
      said.append(generator(params, arrays["pixels"], question)[0].text)
  log.say(f"{_NEW_TOKENS} tokens at most: {said[0]!r}")
  if said[0] != said[1]:
    raise AssertionError("the same question was answered in two ways")


def _size(tree: Any) -> str:
  leaves = jax.tree.leaves(tree)
  count, held = sum(x.size for x in leaves), sum(x.nbytes for x in leaves)
  kinds = sorted({str(x.dtype) for x in leaves})
  return f"{count:,} values, {held / _GIB:.2f} GiB, {', '.join(kinds)}"


def _needs(program: Any) -> str:
  """What XLA says; a copy of frozen weights would show among the temporaries."""
  m = program.memory_analysis()
  names = ("argument", "output", "alias", "temp", "generated_code")
  sizes = [(name, getattr(m, f"{name}_size_in_bytes") / _GIB) for name in names]
  return "program: " + ", ".join(f"{name} {size:.3f} GiB" for name, size in sizes)


def _finite(name: str, value: Any) -> float:
  if not math.isfinite(float(value)):
    raise FloatingPointError(f"{name} is {float(value)}")
  return float(value)


# ── Both starts ─────────────────────────────────────────────────────────────────────


def check_jax(version: tuple[int, ...]) -> None:
  """Ends the program where jax is too old."""
  if version < _NEEDS:
    sys.exit(
      f"full_size: needs jax {'.'.join(map(str, _NEEDS))} or newer (Python 3.12), this is "
      f"{'.'.join(map(str, version))}, which converts the stacked bfloat16 kernels of all "
      "layers to float32 at once: 27 GB for the decoder alone"
    )


def table(path: Path) -> str:
  rows = [json.loads(line) for line in path.read_text(encoding="utf8").splitlines()]
  names = list(dict.fromkeys(row["phase"] for row in rows))
  found = {(row["phase"], row["start"]): row for row in rows}
  lines = [f"{'':24}{'start 1':>34}{'start 2':>34}"]
  lines += [f"{'phase':24}" + f"{'seconds':>10}{'cores':>8}{'GiB':>8}{'peak':>8}" * 2]
  for name in names:
    cells = [
      "{seconds:10.1f}{worked:8.1f}{held:8.2f}{peak:8.2f}".format(**found[name, number])
      for number in (1, 2)
    ]
    lines.append(f"{name:24}" + "".join(cells))
  return "\n".join(lines)


def parse(argv: list[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
  parser.add_argument("--workdir", type=Path, required=True)
  parser.add_argument(
    "--kernel_dtype", default="bfloat16", choices=("bfloat16", "int8", "nf4")
  )
  parser.add_argument("--merge", type=int, default=4, choices=(4, 1))
  parser.add_argument("--row_tokens", type=int, default=0)
  parser.add_argument("--depth", type=int, default=0)
  parser.add_argument("--tiny", action="store_true")
  parser.add_argument("--start", type=int, default=0, help=argparse.SUPPRESS)
  return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
  options = parse(argv)
  if not options.tiny:
    check_jax(jax.__version_info__)
  options.workdir.mkdir(parents=True, exist_ok=True)
  rows, programs = options.workdir / "phases.jsonl", options.workdir / "programs"
  log = Log(rows, options.start)
  if options.start:
    jax.config.update("jax_compilation_cache_dir", str(programs.resolve()))
    start(options, log)
    peak = peak_gib()
    if peak > _LIMIT_GIB:
      sys.exit(f"full_size: peak of {peak:.2f} GiB, the limit is {_LIMIT_GIB}")
    return
  rows.unlink(missing_ok=True)
  shutil.rmtree(programs, ignore_errors=True)
  folder = _folder(options)
  if not (folder / "foundation.safetensors").is_file():
    log.say(f"writing {folder.name} …")
    write_foundation(configure(options), options.workdir)
    log.say(f"{folder.name} is written")
  command = [sys.executable, "-m", "benchmarks.full_size", *(argv or sys.argv[1:])]
  for number in (1, 2):
    subprocess.run([*command, f"--start={number}"], check=True)
  text = table(rows)
  (options.workdir / "table.txt").write_text(text + "\n", encoding="utf8")
  sys.stdout.write(f"jax {jax.__version__}, {options.kernel_dtype}\n{text}\n")


if __name__ == "__main__":
  main()
