"""LLaVA's keys of a config.json about what the model sees: written, and compared.

    mm_vision_tower   mm_vision_select_layer  mm_vision_select_feature     the encoder
    mm_projector_type mm_hidden_size          s2  s2_scales                the connector
    image_aspect_ratio                        mm_use_im_start_end          the image's place

Two layers of one tower, or its patches with and without a class token, have the same
names and nearly the same shapes: these keys alone tell them apart. Source: LLaVA's
llava_arch.py and clip_encoder.py, MedTrinity's clip_encoder.py for `s2`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from typing import NamedTuple

from absl import logging

from imax_jax import tree as tree_lib
from imax_jax.models import zoo
from imax_jax.models.connector import Connector
from imax_jax.models.vit import Encoder
from imax_jax.weights import signatures

# Of `hidden_states`, in which the input of the first block is number 0.
_LAST_BUT_ONE = -2
# What LLaVA's code does with a picture that is no square; it squeezes none.
_ASPECTS = {"pad": "pad", "square": "crop"}


class Shown(NamedTuple):
  """How a model's study shows it images: `data.geometry`, and the tokens it adds."""

  geometry: str
  added_tokens: tuple[str, ...]


AS_IT_COMES = Shown("stretch", ())


def keys_of(
  model: Mapping[str, Mapping[str, Any]], shown: Shown, blocks: int | None = None
) -> dict[str, Any]:
  """What LLaVA calls the model's fields.

  Args:
    model: the fields of its parts; defaults may be left out.
    blocks: how many its tower's file has; None: one more than are used, as in LLaVA.
  """
  encoder = zoo.defaults(Encoder) | dict(model["encoder"])
  connector = zoo.defaults(Connector) | dict(model["connector"])
  scales = tuple(encoder["scales"])
  unused = 1 if blocks is None else blocks - encoder["depth"]
  keys = {
    "mm_hidden_size": encoder["width"] * max(1, len(scales)),
    "mm_vision_select_layer": _LAST_BUT_ONE + 1 - unused,
    "mm_vision_select_feature": "cls_patch" if encoder["keep_class"] else "patch",
    "mm_projector_type": _projector(connector["depth"]),
    "mm_use_im_start_end": "<im_start>" in shown.added_tokens,
    "mm_use_im_patch_token": "<im_patch>" in shown.added_tokens,
  }
  aspects = {ours: theirs for theirs, ours in _ASPECTS.items()}
  if shown.geometry in aspects:
    keys["image_aspect_ratio"] = aspects[shown.geometry]
  if scales:
    keys |= {"s2": True, "s2_scales": ",".join(map(str, scales))}
  return keys


def _projector(depth: int) -> str:
  return "linear" if depth == 1 else f"mlp{depth}x_gelu"


def check(
  path: Path,
  config: Mapping[str, Any],
  model: Mapping[str, Mapping[str, Any]],
  shown: Shown,
  blocks: int | None,
) -> None:
  """Refuses what a LLaVA's config says of its eye and the model's differs in.

  A key that the config lacks is not compared. Another geometry is a study's choice: it is
  told in the log.

  Args:
    path: where the config lies, for messages.
    blocks: how many the tower's file has; None: not known, and the layer not compared.

  Raises:
    ValueError: lists every key that differs.
  """
  mine = {"s2": False} | keys_of(model, shown, blocks)
  if config.get("image_aspect_ratio") in _ASPECTS:
    _tell_geometry(path, config, shown.geometry)
  mine.pop("image_aspect_ratio", None)
  mine.pop("mm_use_im_patch_token")  # never stands in a prompt of the later releases
  if blocks is None:
    del mine["mm_vision_select_layer"]
  lines = [
    f"{key}: {config[key]!r}, {value!r} of the model"
    for key, value in mine.items()
    if config.get(key) is not None and config[key] != value
  ]
  tower = str(config.get("mm_vision_tower") or "")
  other = signatures.other_tower(tower, model["encoder"])
  lines += [f"mm_vision_tower: {tower!r}, whose encoder has {other}"] if other else []
  if lines:
    raise ValueError(
      f"{path}: its model saw images otherwise than this one:\n{tree_lib.listed(lines)}\n"
      "Give the files of this model, or the zoo row and prompt of these files."
    )


def _tell_geometry(path: Path, config: Mapping[str, Any], geometry: str) -> None:
  there = config["image_aspect_ratio"]
  if geometry != _ASPECTS[there]:
    logging.warning(
      "%s: image_aspect_ratio is %r; this study's image.geometry is %r, LLaVA's code does "
      "what %r does here",
      path, there, geometry, _ASPECTS[there],
    )  # fmt: skip
