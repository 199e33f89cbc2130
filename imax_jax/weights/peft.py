"""A LoRA adapter as PEFT keeps it, out of our parameters and back into them.

    decoder/layers/attn/q/lora_a [L, in, R]
      <->  adapter_model.safetensors  …layers.{i}.self_attn.q_proj.lora_A.weight [R, in]
           adapter_config.json        rank, alpha, dropout, the linears it stands on

The names are the table's (`rows_of_layouts`), the file is float32.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from imax_jax.ledger import write_json
from imax_jax.models import lora
from imax_jax.models import zoo
from imax_jax.models.decoder import Decoder
from imax_jax.weights import files
from imax_jax.weights import plan as plan_lib
from imax_jax.weights import published
from imax_jax.weights.checkpoints import open_checkpoint
from imax_jax.weights.plan import Source
from imax_jax.weights.rows_of_layouts import layout
from imax_jax.weights.rows_of_layouts import recognise

WEIGHTS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"
# What torch's readers ask a file for.
TORCH = {"format": "pt"}
DIVERGED = "training had diverged"  # the usual cause of a NaN in what was trained


def write_adapter(
  folder: str | Path,
  pairs: Mapping[str, Any],
  decoder: Mapping[str, Any],
  *,
  base: str = "",
) -> None:
  """Writes both files of an adapter, which `peft` and `read_adapter` load.

  Args:
    folder: an existing one.
    pairs: {path: array}, every `lora_a` and `lora_b` of the model.
    decoder: its decoder's fields.
    base: what the adapter stands on, as PEFT's users would name it.

  Raises:
    ValueError: a value that is no number, or a parameter that PEFT has no place for;
      H-LoRA's pairs.
  """
  folder, table = Path(folder), layout("peft")
  fields = filled(decoder)
  if fields["lora_experts"]:
    raise ValueError(f"{folder}: {lora.NOT_A_PAIR}")
  foreign = sorted(pairs.keys() - table.paths)
  if foreign:
    raise ValueError(
      f"{folder}: {foreign[:3]} can not be kept in a PEFT adapter, only lora_a and "
      "lora_b of the decoder's linear layers"
    )
  leaves = {path: np.asarray(leaf, np.float32) for path, leaf in pairs.items()}
  for path, leaf in leaves.items():
    files.check_finite(leaf, path, DIVERGED)
  tensors = dict(table.publish(leaves))
  header = {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
  with files.tensor_writer(folder / WEIGHTS, header, TORCH) as writer:
    for name, tensor in tensors.items():
      writer.write(name, tensor)
  write_json(folder / SETTINGS, settings_of(tensors, decoder, base))


def settings_of(
  names: Iterable[str], decoder: Mapping[str, Any], base: str
) -> dict[str, Any]:
  """adapter_config.json of an adapter with tensors of these names."""
  fields = filled(decoder)
  return {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": base or None,
    "inference_mode": True,
    "r": fields["lora_rank"],
    "lora_alpha": fields["lora_alpha"],
    "lora_dropout": fields["lora_dropout"],
    "target_modules": sorted({name.split(".")[-3] for name in names}),
    "bias": "none",
    "fan_in_fan_out": False,
  }


def read_adapter(
  folder: str | Path, expected: Mapping[str, Any], decoder: Mapping[str, Any]
) -> dict[str, np.ndarray]:
  """{path: float32 array} of an adapter's folder, ours or PEFT's own.

  Args:
    expected: {path: array or stand-in} of the model's pairs, all of which it must hold.
    decoder: the model's decoder's fields.

  Raises:
    FileNotFoundError: one of the files is missing.
    ValueError: other names, shapes, rank, alpha or targets than the model's; a value
      that is no number. Nothing is read before names and shapes are known to fit.
  """
  folder = Path(folder)
  with open_checkpoint(folder / WEIGHTS, folder) as checkpoint:
    table = recognise(checkpoint, "adapter")
    published.check_adapter(folder / SETTINGS, table, decoder, frozenset(expected))
    return read_leaves(Source(checkpoint, table), plan_lib.stored_leaves(expected))


def read_leaves(
  source: Source, leaves: Mapping[str, plan_lib.Leaf]
) -> dict[str, np.ndarray]:
  """{path: array} of all leaves, which the source must hold, exactly, one tensor each.

  Raises:
    ValueError: it does not; both sides are printed. Or a value that is no number.
  """
  plan = plan_lib.make_plan([source], leaves)
  found = {path: np.empty(*leaf) for path, leaf in plan.leaves.items()}
  for (path, layer), [piece] in plan.slabs.items():
    array = piece.row.to_ours(source.checkpoint.read(piece.name))
    where = f"{source.checkpoint.file(piece.name)}: {piece.name}"
    files.check_finite(array, where, f"the file is damaged, or {DIVERGED}")
    found[path][... if layer is None else layer] = array
  return found


def filled(decoder: Mapping[str, Any]) -> dict[str, Any]:
  """The decoder's fields, with the defaults of those that are left out."""
  return zoo.defaults(Decoder) | dict(decoder)
