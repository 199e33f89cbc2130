"""Differences of a decoder from the model it was trained from, and that model: their sum.

    LLaVA-Med 1.0's delta [32004, 4096] ─┐ row by row, the base's rows first
    LLaMA's own           [32000, 4096] ─┴─▶ the weights [32004, 4096]

Publishers who may not hand out LLaMA's weights hand out differences. Source: LLaVA-Med
1.0's apply_delta.py and FastChat's: equal shapes are added; of embedding and head the
first rows; the projector is not a difference.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imax_jax import tree as tree_lib
from imax_jax.weights import families
from imax_jax.weights import published
from imax_jax.weights.checkpoints import Checkpoint
from imax_jax.weights.layouts import Layout
from imax_jax.weights.layouts import Tensor
from imax_jax.weights.plan import Source
from imax_jax.weights.rows_of_layouts import recognise
from imax_jax.weights.vocabulary import AXES

_PROBE = "decoder/norm/scale"  # a small tensor that every decoder has
_SMALLEST_SCALE = 0.05


class Sum(Checkpoint):
  """A checkpoint of differences that reads as the model itself, a tensor at a time.

  Sums are made in float32 and kept in the difference's dtype.
  """

  def __init__(
    self, delta: Checkpoint, base: Checkpoint, summed: Mapping[str, str]
  ) -> None:
    """`summed` {the delta's name: the base's}."""
    self._delta, self._base, self._summed = delta, base, dict(summed)
    self.path, self.folder = delta.path, delta.folder
    self.files = (*delta.files, *base.files)
    self.names, self.wrapper, self.beside = delta.names, delta.wrapper, delta.beside

  @classmethod
  def of(cls, delta: Checkpoint, base: Checkpoint, decoder: Mapping[str, Any]) -> Sum:
    """Checks that the two belong together.

    Args:
      decoder: the fields of the model's decoder.

    Raises:
      ValueError: another base than the differences were taken from, a tensor that it
        lacks, or files that are no differences.
    """
    table = recognise(delta, "decoder")
    below = recognise(base, "decoder")
    if below.name != table.name:
      raise ValueError(
        f"{base.path}: given as what {delta.path.name} stands on, and laid out as "
        f"{below.name}; expected {table.name}"
      )
    _check_settings(delta.folder, base.folder)
    published.check_config(base.folder / "config.json", below, decoder)
    names = {below.canonical(name): name for name in base.names}
    summed, problems = {}, []
    for name in delta.names:
      plain = table.canonical(name)
      rows = table.rows_of(plain)
      if not rows:
        continue  # a projector or tower, taken as it is; or what the plan refuses
      if plain not in names:
        problems.append(f"missing    {plain} {delta.shape(name)} in the base")
        continue
      summed[name] = names[plain]
      there, here = base.shape(names[plain]), delta.shape(name)
      longer = rows[0][0].path in AXES and there[0] <= here[0] and there[1:] == here[1:]
      if there != here and not longer:
        problems.append(f"shape      {plain} {here}, {there} in the base")
    if problems:
      raise ValueError(
        f"{base.path} is not what {delta.path} was taken from:\n"
        f"{tree_lib.listed(problems)}\nGive the model that the differences' publisher names."
      )
    found = cls(delta, base, summed)
    found._check_difference(
      {table.rows_of(table.canonical(n))[0][0].path: n for n in summed}
    )
    return found

  def _check_difference(self, names: Mapping[str, str]) -> None:
    """A model that is already whole is nearer to its base than to nothing."""
    name = names.get(_PROBE)
    if name is None:
      return
    delta = self._delta.read(name).astype(np.float64)
    base = self._base.read(self._summed[name]).astype(np.float64)
    if np.linalg.norm(delta - base) < np.linalg.norm(delta):
      raise ValueError(
        f"{self.path}: {name} is nearer to {self._base.path.name}'s than to zero: these "
        "are no differences but a model, which needs no base. Leave the base out"
      )

  def file(self, name: str) -> Path:
    return self._delta.file(name)

  def shape(self, name: str) -> tuple[int, ...]:
    return self._delta.shape(name)

  def dtype(self, name: str) -> np.dtype:
    return self._delta.dtype(name)

  def read(self, name: str) -> np.ndarray:
    array = self._delta.read(name)
    if name in self._summed:
      base = self._base.read(self._summed[name])
      rows = array[: len(base)]
      rows[...] = (rows.astype(np.float32) + base.astype(np.float32)).astype(rows.dtype)
    return array

  def view(self, name: str) -> np.ndarray:
    return self.read(name)


def check_whole(source: Source, decoder: Mapping[str, Any]) -> None:
  """Refuses a decoder that is nothing but differences.

  A trained decoder's last norm multiplies by numbers about 1 and more. What fine-tuning
  changes of them is thousandths; so is what a norm multiplies by that counts from 1
  (Gemma's, in which a 0 is no change), and such a decoder is not looked at.

  Args:
    decoder: the fields of the model's.

  Raises:
    ValueError: names the flag by which the base is given.
  """
  checkpoint, layout = source
  if layout.part != "decoder" or decoder.get("norm_offset"):
    return
  for name in checkpoint.names:
    if any(row.path == _PROBE for row, _ in layout.rows_of(layout.canonical(name))):
      scale = checkpoint.read(name).astype(np.float64)
      size = float(np.sqrt(np.mean(scale**2)))
      if size < _SMALLEST_SCALE:
        raise ValueError(
          f"{checkpoint.path}: {name} is {size:.2g} (root of the mean square), a whole "
          "decoder's is about 1: these look like differences from another model's "
          "weights. Give that model by --config.published.base=FOLDER"
        )


def difference(whole: np.ndarray, base: np.ndarray) -> np.ndarray:
  """What `Sum` adds to the base: a published tensor less its first rows' base.

  Made in float32 and kept in the tensor's dtype.
  """
  rows = whole[: len(base)].astype(np.float32) - base.astype(np.float32)
  return np.concatenate([rows.astype(whole.dtype), whole[len(base) :]])


def stand_on(
  base: Checkpoint, table: Layout, tensors: Sequence[Tensor]
) -> dict[str, str]:
  """{a tensor's name: the base's of what is to be taken from it}.

  Raises:
    ValueError: the base lacks one, or has it in another shape.
  """
  names = {table.canonical(name): name for name in base.names}
  problems = []
  for tensor in tensors:
    there = base.shape(names[tensor.name]) if tensor.name in names else ()
    here = tensor.shape
    longer = tensor.rows[0].path in AXES and there[:1] <= here[:1]
    if there != here and not (longer and there[1:] == here[1:]):
      problems.append(f"{tensor.name} {here}, {there or 'nothing'} in the base")
  if problems:
    raise ValueError(
      f"{base.path}: not what the model was trained from:\n{tree_lib.listed(problems)}\n"
      "Give the model that its publisher's differences stand on."
    )
  return {tensor.name: names[tensor.name] for tensor in tensors}


def _check_settings(delta: Path, base: Path) -> None:
  """What both config.json say of the decoder must be equal."""
  paths = [folder / "config.json" for folder in (delta, base)]
  if not all(path.is_file() for path in paths):
    return
  mine, theirs = (published.read_json(path) for path in paths)
  keys = (*(key for key, _ in families.DECODER), "max_position_embeddings")
  lines = [
    f"{key}: {theirs[key]!r}, {mine[key]!r} in {paths[0]}"
    for key in keys
    if None not in (mine.get(key), theirs.get(key)) and mine[key] != theirs[key]
  ]
  if lines:
    raise ValueError(
      f"{paths[1]}: another model than the differences were taken from:\n"
      f"{tree_lib.listed(lines)}\nGive the model that their publisher names."
    )
