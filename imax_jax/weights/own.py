"""Our own paths: the part that each belongs to, and a foundation of ours as a source."""

from __future__ import annotations

import re
from collections.abc import Collection

from imax_jax.weights.checkpoints import Checkpoint
from imax_jax.weights.layouts import WHOLE
from imax_jax.weights.layouts import Form
from imax_jax.weights.layouts import Layout
from imax_jax.weights.layouts import Row
from imax_jax.weights.layouts import same

NAME = "imax_jax"
# Parts of the model that a foundation may lack, as a whole: they start fresh.
OPTIONAL = ("connector", "adapter", "qformer")
# What a decoder or encoder of another family has besides; zero leaves its sums the same.
_BIASES = re.compile(r"(encoder|decoder)/layers/attn/([qkv]_bias|(q|k|v|qkv)/bias)")
_FUSED = (("attn/qkv", ("q", "k", "v")), ("mlp/gate_up", ("gate", "up")))


def part_of(path: str) -> str:
  """The part of the model that a leaf belongs to."""
  return "adapter" if "/lora_" in path else path.split("/")[0]


def group_of(path: str) -> str:
  """The same, a Q-Former apart from its connector: it is there as a whole or not at all."""
  return "qformer" if path.startswith("connector/qformer/") else part_of(path)


def layout(checkpoint: Checkpoint, part: str, paths: Collection[str]) -> Layout:
  """One of our own foundations, of which a part is taken as it is.

  A decoder whose linears are apart also fills one that has them fused, where the parts
  are equally wide; biases that it lacks are zero.

  Args:
    paths: the model's.
  """
  parts = {"adapter": OPTIONAL}.get(part, (part,))
  rows = tuple(
    Row(name, *_place(name, len(checkpoint.shape(name)), paths))
    for name in checkpoint.names
    if group_of(name) in parts
  )
  given = {row.path for row in rows}
  zeros = {
    path: 0.0
    for path in paths
    if _BIASES.fullmatch(path) and part_of(path) == part and path not in given
  }
  return Layout(NAME, part, (), rows, ignored=(".*",), fill=zeros, resized=True)


def _place(
  name: str, rank: int, paths: Collection[str]
) -> tuple[str, Form, tuple[int, int]]:
  """(path, form, slot) of one of our own tensors in a model of these paths."""
  form = Form(rank, same, same)
  if name in paths:
    return name, form, WHOLE
  for whole, parts in _FUSED:
    for number, part in enumerate(parts):
      apart = f"{whole.split('/')[0]}/{part}/kernel"
      path = name.removesuffix(apart) + f"{whole}/kernel"
      if name.endswith(f"/{apart}") and path in paths:
        return path, form, (number, len(parts))
  return name, form, WHOLE
