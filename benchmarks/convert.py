"""Does conversion stay under the largest shard plus 1 GiB of memory, and how long is it?

  python -m benchmarks.convert --folder FOLDER [--layers 32] [--keep]

Writes into FOLDER a checkpoint of LLaMA-2 7B's shapes in bfloat16 (13.5 GB in shards of
5 GB, seeded random bits) and EVA ViT-G's as a float16 pickle (2 GB; needs torch), converts
both in a process of its own, and prints its time and its peaks of memory as the kernel
counts them, those of the process that reads the pickle too, and whether tensors arrived.
Needs 34 GB of disk at full size; --layers makes both models shallower.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from imax_jax import tree
from imax_jax.models import zoo
from imax_jax.models.vlm import Vlm
from imax_jax.weights import convert as convert_lib
from imax_jax.weights import files
from imax_jax.weights.layouts import MATRIX
from imax_jax.weights.plan import part_of
from imax_jax.weights.rows_of_layouts import layout

_SHARD = 5_000_000_000  # bytes
_SECONDS = 0.02  # between two looks at a process
_MODEL = "imax_7b"


def say(text: str) -> None:
  print(text, flush=True)


def model_of(layers: int) -> dict[str, dict[str, Any]]:
  model = zoo.model(_MODEL)
  for part in ("encoder", "decoder"):
    model[part]["depth"] = min(model[part]["depth"], layers)
  return model


def expected_of(model: dict[str, dict[str, Any]]) -> Any:
  side, line = model["encoder"]["image_px"], jnp.zeros((1, 4), jnp.int32)
  batch = dict.fromkeys(("text", "image", "slot", "segment", "position"), line)
  batch["pixels"] = jnp.zeros((1, side, side, 3), jnp.uint8)
  vlm = Vlm(**model)
  return jax.eval_shape(lambda: vlm.init(jax.random.key(0), batch)["params"])


def published_shapes(name: str, leaves: dict[str, Any]) -> dict[str, tuple[int, ...]]:
  """{published name: shape} of a whole part: arrays of one repeated byte are enough."""
  blank = {
    path: np.broadcast_to(np.int8(0), leaf.shape)
    for path, leaf in leaves.items()
    if part_of(path) == layout(name).part
  }
  return {name: array.shape for name, array in layout(name).publish(blank)}


def random_bits(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
  """bfloat16 of both signs between 2^-7 and 2^-6: as fast as bits can be drawn."""
  bits = rng.integers(0, 1 << 16, shape, np.uint16)
  bits &= np.uint16(0x807F)
  bits |= np.uint16(0x3C00)
  return bits.view(ml_dtypes.bfloat16)


def write_llama(folder: Path, shapes: dict[str, tuple[int, ...]]) -> list[Path]:
  """Shards and their index; returns the shards."""
  parts: list[dict[str, tuple[tuple[int, ...], Any]]] = [{}]
  size = 0
  for name, shape in shapes.items():
    size += 2 * int(np.prod(shape))
    if size > _SHARD:
      parts.append({})
      size = 2 * int(np.prod(shape))
    parts[-1][name] = (shape, ml_dtypes.bfloat16)
  rng, index, shards = np.random.default_rng(0), {}, []
  for number, table in enumerate(parts, 1):
    path = folder / f"model-{number:05}-of-{len(parts):05}.safetensors"
    with files.tensor_writer(path, table) as writer:
      for name, (shape, _) in table.items():
        writer.write(name, random_bits(rng, shape))
    index |= dict.fromkeys(table, path.name)
    shards.append(path)
  text = json.dumps({"weight_map": index})
  (folder / "model.safetensors.index.json").write_text(text)
  return shards


def write_eva(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
  """The published dialect: a flat pickle, half precision, no ln_vision."""
  import torch

  torch.manual_seed(0)
  weights = {
    name: torch.randn(shape, dtype=torch.float16).mul_(0.02)
    for name, shape in shapes.items()
    if "ln_vision" not in name
  }
  torch.save(weights, path)


def memory(pid: int) -> dict[str, int]:
  """{VmHWM, RssAnon: bytes} of a living process; {} of one that has gone."""
  try:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
  except OSError:
    return {}
  found = dict(line.split(":", 1) for line in lines)
  return {
    key: int(found[key].split()[0]) * 1024
    for key in ("VmHWM", "RssAnon")
    if key in found
  }


def children(pid: int) -> Iterator[int]:
  try:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
  except OSError:
    return
  yield from map(int, text.split())


def watch(command: list[str]) -> tuple[float, dict[str, int], dict[str, int]]:
  """Seconds, and the peaks of a process and of its children."""
  start = time.perf_counter()
  process = subprocess.Popen(command)
  own: dict[str, int] = {}
  below: dict[str, int] = {}
  while process.poll() is None:
    for key, value in memory(process.pid).items():
      own[key] = max(own.get(key, 0), value)
    for child in children(process.pid):
      for key, value in memory(child).items():
        below[key] = max(below.get(key, 0), value)
    time.sleep(_SECONDS)
  if process.returncode:
    sys.exit(process.returncode)
  return time.perf_counter() - start, own, below


def convert(folder: Path, layers: int) -> None:
  model = model_of(layers)
  sources = {"encoder": folder / "eva_vit_g.pth", "decoder": folder / "llama"}
  say(f"before: {report(memory(os.getpid()))} (jax, flax and this package)")
  convert_lib.convert(sources, model, expected_of(model), folder / "foundation")


def report(peaks: dict[str, int]) -> str:
  return (
    f"peak resident {peaks['VmHWM'] / 2**30:.2f} GiB, of that anonymous "
    f"{peaks['RssAnon'] / 2**30:.2f} GiB"
  )


def check(folder: Path, layers: int) -> int:
  """Compares one tensor of each kind of the last layer; returns how many."""
  table, count = layout("hf_llama"), 0
  index = json.loads((folder / "llama/model.safetensors.index.json").read_text())
  with files.open_tensors(folder / "foundation" / convert_lib.WEIGHTS) as made:
    for row in table.rows:
      if row.path not in made.specs:
        continue
      name = row.name(layers - 1 if row.layered else None)
      with files.open_tensors(folder / "llama" / index["weight_map"][name]) as shard:
        want, got = shard.view(name), made.view(row.path)
        got = got[layers - 1] if row.layered else got
        want = want.T if row.form is MATRIX else want
        assert np.array_equal(want.astype(np.float32), got.astype(np.float32)), name
        count += 1
  return count


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--folder", type=Path, required=True)
  parser.add_argument("--layers", type=int, default=32)
  parser.add_argument("--keep", action="store_true", help="leave the files there")
  parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
  asked = parser.parse_args()
  folder = asked.folder / "convert"
  if asked.child:
    convert(folder, asked.layers)
    return
  model = model_of(asked.layers)
  leaves = tree.flatten(expected_of(model))
  (folder / "llama").mkdir(parents=True)
  try:
    shards = write_llama(folder / "llama", published_shapes("hf_llama", leaves))
    write_eva(folder / "eva_vit_g.pth", published_shapes("eva", leaves))
    sizes = [shard.stat().st_size for shard in shards]
    say(f"{sum(sizes) / 1e9:.2f} GB in {len(sizes)} shards of LLaMA")
    command = [sys.executable, "-m", "benchmarks.convert", "--child", *sys.argv[1:]]
    seconds, own, below = watch(command)
    limit = max(sizes) + 2**30
    made = (folder / "foundation" / convert_lib.WEIGHTS).stat().st_size
    say(f"converted to {made / 1e9:.2f} GB in {seconds:.0f} s")
    say(f"converter: {report(own)}")
    say(f"reader of pickles: {report(below)}")
    say(f"limit: the largest shard and 1 GiB, {limit / 2**30:.2f} GiB")
    say(f"{check(folder, asked.layers)} tensors compared, all as they were")
    assert own["VmHWM"] < limit, "over the limit"
  finally:
    if not asked.keep:
      shutil.rmtree(folder)


if __name__ == "__main__":
  main()
