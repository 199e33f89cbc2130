"""Keys of a config.json about what the model sees: written, and compared.

    LLaVA         mm_vision_…, mm_projector_type, s2, image_aspect_ratio, …
    transformers  vision_feature_layer, vision_feature_select_strategy, …
    MedM-VL       lvlm_encoder_image_…, lvlm_connector_image_…
    Gemma 3       mm_tokens_per_image

Two layers of one tower, or its patches with and without a class token, have the same
names and nearly the same shapes: these keys alone tell them apart. An eye is a row, and a
field of its family (`families`). Sources: LLaVA's llava_arch.py and clip_encoder.py,
MedTrinity's clip_encoder.py for `s2`, transformers' modeling_llava.py and
modeling_gemma3.py, MedM-VL's encoder/base.py and connector/mlp.py.
"""

from __future__ import annotations

from collections.abc import Callable
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
from imax_jax.weights.checkpoints import BESIDE_AN_ADAPTER

# What LLaVA's code does with a picture that is no square; it squeezes none.
_ASPECTS = {"pad": "pad", "square": "crop"}


class Shown(NamedTuple):
  """How a model's study shows it images: `data.geometry`, and the tokens it adds."""

  geometry: str
  added_tokens: tuple[str, ...]


AS_IT_COMES = Shown("stretch", ())


class _Seen(NamedTuple):
  """What keys are made of: fields with their defaults, and which of the tower's
  `hidden_states` is read. The input of the first block is number 0, the last is -1.
  """

  encoder: Mapping[str, Any]
  connector: Mapping[str, Any]
  shown: Shown
  layer: int

  @property
  def has_all_tokens(self) -> bool:
    """Whether nothing is cut off in front; of a tower without a class token, a patch."""
    return bool(self.encoder["keep_class"] or not self.encoder["class_token"])


class Eye(NamedTuple):
  """A row.

  Args:
    keys: their values of a model, as they are written. A value of another is refused.
    layer: that of them which counts the tower's blocks.
    spare: how many blocks of a published tower come after the last that is read.
    off: keys that are not written where they are off, and the value that means it.
    untold: keys that are written and not compared.
    prefix: what the keys begin with in some releases, and in others do not.
    tower: the key of the tower's name.
    aspect: the key of what happens to a picture that is no square.
    trained_beside: the file of what was trained with a LoRA and is none.
  """

  keys: Callable[[_Seen], dict[str, Any]]
  layer: str = ""
  spare: int = 0
  off: Mapping[str, Any] = {}
  untold: tuple[str, ...] = ()
  prefix: str = ""
  tower: str = ""
  aspect: str = ""
  trained_beside: str = ""

  def name(self, config: Mapping[str, Any], key: str) -> str:
    """How that config spells the key."""
    return key if key in config else key.removeprefix(self.prefix)


# ── The rows ──────────────────────────────────────────────────────────────────────


def _mlp(depth: int) -> str:
  return f"mlp{depth}x_gelu"


def _llava(seen: _Seen) -> dict[str, Any]:
  encoder, shown, depth = seen.encoder, seen.shown, seen.connector["depth"]
  scales = tuple(encoder["scales"])
  keys = {
    "mm_hidden_size": encoder["width"] * max(1, len(scales)),
    "mm_vision_select_layer": seen.layer,
    "mm_vision_select_feature": "cls_patch" if encoder["keep_class"] else "patch",
    "mm_projector_type": "linear" if depth == 1 else _mlp(depth),
    "mm_use_im_start_end": "<im_start>" in shown.added_tokens,
    "mm_use_im_patch_token": "<im_patch>" in shown.added_tokens,
  }
  aspects = {ours: theirs for theirs, ours in _ASPECTS.items()}
  if shown.geometry in aspects:
    keys["image_aspect_ratio"] = aspects[shown.geometry]
  if scales:
    keys |= {"s2": True, "s2_scales": ",".join(map(str, scales))}
  return keys


def _hf_llava(seen: _Seen) -> dict[str, Any]:
  """Not `image_seq_length`: 576 by default, whatever the tower, and never read."""
  return {
    "vision_feature_layer": seen.layer,
    "vision_feature_select_strategy": "full" if seen.has_all_tokens else "default",
    "projector_hidden_act": "gelu",
  }


def _medmvl(seen: _Seen) -> dict[str, Any]:
  return {
    "lvlm_encoder_image_type": "clip" if seen.encoder["class_token"] else "siglip",
    "lvlm_encoder_image_select_layer": seen.layer,
    "lvlm_encoder_image_select_feature": "cls_patch"
    if seen.has_all_tokens
    else "patch",
    "lvlm_connector_image_type": "mlp",
    "lvlm_connector_image_name": _mlp(seen.connector["depth"]),
  }


def _gemma3(seen: _Seen) -> dict[str, Any]:
  """It reads its tower after the last norm, and says how far its map is averaged."""
  patches = seen.encoder["image_px"] // seen.encoder["patch_px"]
  return {"mm_tokens_per_image": (patches // seen.connector["pool"]) ** 2}


LLAVA = Eye(
  _llava, "mm_vision_select_layer", spare=1, off={"s2": False},
  # Which never stands in a prompt of the later releases.
  untold=("mm_use_im_patch_token",),
  tower="mm_vision_tower", aspect="image_aspect_ratio", trained_beside=BESIDE_AN_ADAPTER,
)  # fmt: skip
HF_LLAVA = Eye(_hf_llava, "vision_feature_layer", spare=1)
MEDMVL = Eye(
  _medmvl, "lvlm_encoder_image_select_layer", prefix="lvlm_",
  tower="lvlm_encoder_image_name_or_path",
)  # fmt: skip
GEMMA3 = Eye(_gemma3)

# ── Written and compared ──────────────────────────────────────────────────────────


def keys_of(
  eye: Eye,
  model: Mapping[str, Mapping[str, Any]],
  shown: Shown,
  blocks: int | None = None,
) -> dict[str, Any]:
  """What a family calls the model's fields.

  Args:
    model: the fields of its parts; defaults may be left out.
    blocks: how many its tower's file has; None: as many more than are used as in the
      published one.
  """
  encoder = zoo.defaults(Encoder) | dict(model["encoder"])
  connector = zoo.defaults(Connector) | dict(model["connector"])
  unused = eye.spare if blocks is None else blocks - encoder["depth"]
  return eye.keys(_Seen(encoder, connector, shown, -1 - unused))


def check(
  eye: Eye,
  path: Path,
  config: Mapping[str, Any],
  model: Mapping[str, Mapping[str, Any]],
  shown: Shown,
  blocks: int | None,
) -> None:
  """Refuses what a family's config says of its eye and the model's differs in.

  A key that the config lacks is not compared. Another geometry is a study's choice: it is
  told in the log.

  Args:
    path: where the config lies, for messages.
    blocks: how many the tower's file has; None: not known, and the layer not compared.

  Raises:
    ValueError: lists every key that differs.
  """
  mine = {**eye.off, **keys_of(eye, model, shown, blocks)}
  unknown = blocks is None or blocks < model["encoder"]["depth"]  # it lacks tensors
  skipped = {eye.aspect, *eye.untold, *([eye.layer] if unknown else [])}
  lines = []
  for key, value in mine.items():
    name = eye.name(config, key)
    there = config.get(name)
    counted = _from_the_end(there, blocks) if key == eye.layer else there
    if key not in skipped and there is not None and counted != value:
      lines.append(f"{name}: {there!r}, {value!r} of the model")
  name = eye.name(config, eye.tower)
  tower = str(config.get(name) or "")
  other = signatures.other_tower(tower, model["encoder"])
  lines += [f"{name}: {tower!r}, whose encoder has {other}"] if other else []
  if config.get(eye.aspect) is not None:
    _tell_geometry(path, eye.aspect, str(config[eye.aspect]), shown.geometry)
  if lines:
    raise ValueError(
      f"{path}: its model saw images otherwise than this one:\n{tree_lib.listed(lines)}\n"
      "Give the files of this model, or the zoo row and prompt of these files."
    )


def _from_the_end(layer: Any, blocks: int | None) -> Any:
  """-2 of -2, of [-2], and of 23 where there are 24 blocks."""
  if isinstance(layer, list) and len(layer) == 1:
    layer = layer[0]
  if isinstance(layer, int) and layer >= 0 and blocks is not None:
    return layer - (blocks + 1)
  return layer


def _tell_geometry(path: Path, key: str, there: str, geometry: str) -> None:
  same = _ASPECTS.get(there)
  if same != geometry:
    logging.warning(
      "%s: %s is %r; this study's image.geometry is %r, %s",
      path, key, there, geometry,
      f"LLaVA's code does what {same!r} does here" if same else
      "and what is the same as that value is not known here",
    )  # fmt: skip
