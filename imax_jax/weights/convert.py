"""Published files to a foundation: the folder of weights that the model starts from.

    EVA's .pth ─┐                     ┌─ foundation.safetensors  our paths, our layout
    LLaMA's     ├─ layouts, plan ─────┼─ tokenizer.json          the decoder's, if it has one
    shards      ┘                     ├─ as_published/           its files, as they came
                                      └─ foundation.json         what was made of what

One tensor is in memory at a time. foundation.json is written last.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from transformers import PreTrainedTokenizerFast

from imax_jax import ledger
from imax_jax import tree as tree_lib
from imax_jax.data import tokenizer as tokenizer_lib
from imax_jax.weights import beside
from imax_jax.weights import digests
from imax_jax.weights import files
from imax_jax.weights import own
from imax_jax.weights import plan as plan_lib
from imax_jax.weights import positions
from imax_jax.weights import vocabulary as vocabulary_lib
from imax_jax.weights.checkpoints import Checkpoint
from imax_jax.weights.eyes import AS_IT_COMES
from imax_jax.weights.eyes import Shown
from imax_jax.weights.plan import Piece
from imax_jax.weights.plan import Plan
from imax_jax.weights.plan import Source
from imax_jax.weights.sources import open_sources
from imax_jax.weights.vocabulary import AS_IT_IS
from imax_jax.weights.vocabulary import Vocabulary

WEIGHTS, RECORD = "foundation.safetensors", "foundation.json"
TOKENIZER = "tokenizer.json"
# Beside tokenizer.json: which of its tokens begin, end and pad.
_TOKENIZER_NAMES = ("tokenizer_config.json", "special_tokens_map.json")
# What a merged decoder is published with again.
_SETTINGS = ("config.json", "generation_config.json")


def convert(
  sources: Mapping[str, str | Path],
  model: Mapping[str, Mapping[str, Any]],
  expected: tree_lib.Tree,
  out: str | Path,
  *,
  shown: Shown = AS_IT_COMES,
  vocabulary: Vocabulary = AS_IT_IS,
  whole: Collection[str] = (),
  fits: Callable[[PreTrainedTokenizerFast], None] | None = None,
  tick: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
  """Makes a foundation of published files; returns what foundation.json says.

  Args:
    sources: {"encoder": path, "decoder": path} and, to start from a trained connector
      and LoRA, "adapter"; "qformer" of a model with one; "base" where the decoder's are
      differences from it. A path is a safetensors file, a pickle, a folder with shards
      and their index, or a foundation of ours of which that part is taken.
    model: the fields of the model's parts, as `Vlm` takes them.
    expected: its parameters or their `jax.eval_shape` stand-ins.
    out: the folder, made if missing. Pickles need their size of space beside it.
    shown: how the model's study shows it images, which some files say too.
    vocabulary: tokens that the model has beyond its files, and rows to leave out.
    whole: "connector", "adapter" or "qformer", which then may not start fresh.
    fits: raises a ValueError for a tokenizer that the model's prompts can not be put in;
      None: no prompts will be, and the tokenizer may be missing.
    tick: called with (slices written, slices).

  Raises:
    FileNotFoundError: a source, a part of one, or the tokenizer is not there.
    ValueError: anything that does not fit, is damaged, or is refused; it names the
      file, the key, what was expected and what came. Nothing is left in `out`.
  """
  out = Path(out)
  leaves = plan_lib.stored_leaves(tree_lib.flatten(expected))
  out.mkdir(parents=True, exist_ok=True)
  with ExitStack() as stack:
    scratch = stack.enter_context(
      tempfile.TemporaryDirectory(prefix=".unpickled-", dir=out)
    )
    opened = open_sources(sources, model, leaves, shown, Path(scratch), stack)
    plan = plan_lib.make_plan(opened, leaves, vocabulary, whole)
    vocab_size = leaves["decoder/embed/embedding"].shape[0]
    tokenizer = _tokenizer(opened, vocab_size, Path(scratch), fits)
    written = _table(plan)
    _check_room(out, written)
    _tell(plan)
    _write(plan, written, out / WEIGHTS, tick)
    (out / RECORD).unlink(missing_ok=True)
    for file in [*tokenizer, *_settings(opened)]:
      with ledger.whole(out / file.name) as part:
        shutil.copyfile(file, part)
    beside.keep(_decoder(opened).checkpoint.folder, out)
    record = _record(opened, plan, written, model)
  record["foundation"] = digests.describe(out / WEIGHTS)
  ledger.write_json(out / RECORD, record)
  return record


def _tell(plan: Plan) -> None:
  """What no file holds, in the log."""
  for path, value in plan.filled.items():
    logging.info("%s is in no file: filled with %g", path, value)
  for group in sorted({own.group_of(path) for path in plan.absent}):
    logging.warning("%s: none of it is in a file; it starts fresh", group)


def _tokenizer(
  sources: list[Source],
  vocab_size: int,
  scratch: Path,
  fits: Callable[[PreTrainedTokenizerFast], None] | None,
) -> list[Path]:
  """The decoder's tokenizer.json, if it has one, and what names its special tokens.

  Where SentencePiece's tokenizer.model stands alone, one is made of it. Its ids must
  have rows.

  Raises:
    ValueError: an id beyond the embedding's rows, or a file that is none.
  """
  folder = _decoder(sources).checkpoint.folder
  if not (folder / TOKENIZER).is_file() and (folder / "tokenizer.model").is_file():
    made = scratch / "tokenizer"
    tokenizer_lib.save(tokenizer_lib.load(folder), made)
    folder = made
  path = folder / TOKENIZER
  if not path.is_file():
    if fits is not None:
      raise FileNotFoundError(
        f"{path}: missing, and no tokenizer.model there; put the tokenizer of the decoder "
        "beside its weights: tokenizer.json and tokenizer_config.json as published"
      )
    return []
  try:
    # As training will: one that it would refuse is refused before hours of work.
    found = tokenizer_lib.load(tokenizer_lib.source_of(path))
  except ValueError:
    raise
  except Exception as error:  # the library raises no narrower class
    raise ValueError(f"{path}: not a readable tokenizer ({error})") from error
  largest = max(found.get_vocab().values())
  if largest >= vocab_size:
    raise ValueError(
      f"{path}: its largest id is {largest}, but the embedding has {vocab_size} rows; "
      "give the tokenizer of these weights"
    )
  if fits is not None:
    try:
      fits(found)
    except ValueError as error:
      raise ValueError(f"{path}: {error}") from error
  return [path, *filter(Path.is_file, map(path.with_name, _TOKENIZER_NAMES))]


def _settings(sources: list[Source]) -> list[Path]:
  folder = _decoder(sources).checkpoint.folder
  return [*filter(Path.is_file, map(folder.joinpath, _SETTINGS))]


def _decoder(sources: list[Source]) -> Source:
  return next(source for source in sources if source.layout.part == "decoder")


def _table(plan: Plan) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
  absent = set(plan.absent)
  return {path: leaf for path, leaf in plan.leaves.items() if path not in absent}


def _check_room(out: Path, written: Mapping[str, Any]) -> None:
  need = sum(math.prod(shape) * dtype.itemsize for shape, dtype in written.values())
  free = shutil.disk_usage(out).free
  if need > free:
    raise ValueError(
      f"{out}: the foundation needs {need / 2**30:.1f} GiB, {free / 2**30:.1f} are free"
    )


def _write(
  plan: Plan,
  written: Mapping[str, tuple[tuple[int, ...], np.dtype]],
  path: Path,
  tick: Callable[[int, int], None] | None,
) -> None:
  for piece in plan.zeros:
    _check_zero(piece)
  for source, name, twin in plan.tied:
    _check_same(
      source.checkpoint, name, twin, "but the model is tied: they are one there. Set "
      "tied=False, or give the files of a tied model"
    )  # fmt: skip
  for source, name, twin in plan.twins:
    _check_same(
      source.checkpoint, name, twin, "which is another name of the same tensor; the file "
      "is damaged, or was put together of two"
    )  # fmt: skip
  with files.tensor_writer(path, written) as writer:
    for where, value in plan.filled.items():
      leaf, _, number_of = where.partition("[")
      shape, dtype = written[leaf]
      if number_of:
        filled = np.full(shape[1:], value, dtype)
        writer.write(leaf, filled, int(number_of.rstrip("]")))
      else:
        writer.write(leaf, np.full(shape, value, dtype))
    for number, ((leaf, layer), pieces) in enumerate(plan.slabs.items()):
      writer.write(leaf, slab(pieces, plan), layer)
      if tick:
        tick(number + 1, len(plan.slabs))


def slab(pieces: list[Piece], plan: Plan) -> np.ndarray:
  """A leaf, or one layer of it, in the dtype that it is stored in."""
  path = pieces[0].row.path
  parts = [_part(piece, plan) for piece in pieces]
  axis = vocabulary_lib.AXES.get(path)
  if axis is not None:
    size = plan.leaves[path].shape[axis]
    if parts[0].shape[axis] != size or len(parts) > 1:
      rows = [piece.rows or (0, size) for piece in pieces]
      return vocabulary_lib.mixed([*zip(parts, rows, strict=True)], size, axis)
  return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)


def _part(piece: Piece, plan: Plan) -> np.ndarray:
  """What a tensor is of its leaf, in the leaf's dtype."""
  (checkpoint, _), name, row, _ = piece
  leaf = plan.leaves[row.path]
  where = f"{checkpoint.file(name)}: {name}"
  tensor = checkpoint.read(name)
  files.check_finite(tensor, where, "it is damaged, or training had diverged")
  part = row.to_ours(tensor)
  if row.path == "encoder/positions" and len(part) != leaf.shape[0]:
    class_token = "encoder/class_token" in plan.leaves
    part = positions.resize(part, leaf.shape[0], class_token=class_token)
  if part.dtype != leaf.dtype:
    with np.errstate(over="ignore"):
      part = part.astype(leaf.dtype)
    files.check_finite(part, where, f"{leaf.dtype} cannot hold it: use a wider dtype")
  return part


def _check_zero(piece: Piece) -> None:
  (checkpoint, layout), name, row, _ = piece
  share = row.to_ours(checkpoint.read(name))
  if np.any(share != 0):
    raise ValueError(
      f"{checkpoint.file(name)}: {name}: part {row.cut[0] + 1} of {row.cut[1]} should be "
      f"zero in a {layout.name} file, its largest value is {np.abs(share).max()}; the "
      "model has no parameter for it"
    )


def _check_same(checkpoint: Checkpoint, name: str, twin: str, why: str) -> None:
  one, other = checkpoint.view(name), checkpoint.view(twin)
  same = one.shape == other.shape and all(
    np.array_equal(one[row : row + 1024], other[row : row + 1024])
    for row in range(0, len(one), 1024)
  )
  if not same:
    raise ValueError(f"{checkpoint.file(name)}: {name} differs from {twin}, {why}")


def _rows(plan: Plan) -> dict[str, Any]:
  """{path: which rows are whose}, of tables that are not one file's alone."""
  said = {}
  for path, axis in vocabulary_lib.AXES.items():
    pieces = plan.slabs.get((path, None), [])
    size = plan.leaves[path].shape[axis] if pieces else 0
    if pieces and [piece.rows for piece in pieces] not in ([(0, size)], [None]):
      said[path] = {
        "rows": size,
        "from": [[*(piece.rows or ()), piece.name] for piece in pieces],
        "mean": max(0, size - max((piece.rows or (0, 0))[1] for piece in pieces)),
      }
  return said


def _record(
  sources: list[Source],
  plan: Plan,
  written: Mapping[str, tuple[tuple[int, ...], np.dtype]],
  model: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
  sizes: Counter[str] = Counter()
  for shape, dtype in written.values():
    sizes[dtype.name] += math.prod(shape)
  return {
    "sources": [
      {
        "part": layout.part,
        "name": checkpoint.path.name,
        "layout": layout.name,
        "tensors": len(checkpoint.names),
        "files": [digests.describe(file) for file in checkpoint.files],
      }
      for checkpoint, layout in sources
    ],
    "parameters": dict(sizes),
    "ignored": plan.ignored,
    "filled": plan.filled,
    "absent": plan.absent,
    "vocabulary": _rows(plan),
    "model": ledger.plain(model),
  }
