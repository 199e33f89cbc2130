"""The published files that a foundation is made of: opened, recognised and checked."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from absl import logging

from imax_jax.weights import delta
from imax_jax.weights import eyes
from imax_jax.weights import families
from imax_jax.weights import own
from imax_jax.weights import published
from imax_jax.weights.checkpoints import Checkpoint
from imax_jax.weights.checkpoints import open_checkpoint
from imax_jax.weights.eyes import Shown
from imax_jax.weights.layouts import Row
from imax_jax.weights.plan import Leaf
from imax_jax.weights.plan import Source
from imax_jax.weights.rows_of_layouts import recognise

# What fills the model, and what a decoder of differences stands on.
PARTS, BASE = ("encoder", "decoder", "adapter", "qformer"), "base"


def open_sources(
  paths: Mapping[str, str | Path],
  model: Mapping[str, Mapping[str, Any]],
  leaves: Mapping[str, Leaf],
  shown: Shown,
  scratch: Path,
  stack: ExitStack,
) -> list[Source]:
  """Recognised sources; parts that name the same path share its files.

  Args:
    paths: as for `convert.convert`.
    model: the fields of the model's parts.
    leaves: the model's.
    shown: how its study shows it images.
    scratch: a folder for what is made of pickles.
    stack: closes the files.

  Raises:
    FileNotFoundError, ValueError: as `convert.convert` says.
  """
  _check_parts(paths, leaves)
  checkpoints: dict[Path, Checkpoint] = {}

  def opened(given: str | Path) -> Checkpoint:
    path = Path(given)
    if path not in checkpoints:
      folder = scratch / str(len(checkpoints))
      folder.mkdir()
      checkpoints[path] = stack.enter_context(open_checkpoint(path, folder))
    return checkpoints[path]

  if BASE in paths:
    checkpoints[Path(paths["decoder"])] = delta.Sum.of(
      opened(paths["decoder"]), opened(paths[BASE]), model["decoder"]
    )
  sources = []
  for part in (part for part in paths if part != BASE):
    checkpoint = opened(paths[part])
    layout = recognise(checkpoint, part, leaves)
    tasks = tuple(model["connector"].get("tasks", ()))
    sources.append(Source(checkpoint, layout.of_tasks(tasks)))
  for source in sources:
    _check_settings(source, model, frozenset(leaves), Path(paths["decoder"]))
    delta.check_whole(source, model["decoder"])
  _check_qformer(sources, leaves)
  _check_eye(sources, model, leaves, shown)
  return sources


def _check_parts(paths: Mapping[str, str | Path], leaves: Mapping[str, Leaf]) -> None:
  unknown = sorted(set(paths) - {*PARTS, BASE})
  if unknown:
    raise ValueError(f"convert: no part {unknown}; expected some of {(*PARTS, BASE)}")
  for part in ("encoder", "decoder"):
    if part not in paths:
      raise ValueError(
        f"convert: no file for the {part}; a foundation needs encoder and decoder whole"
      )
  if BASE in paths and Path(paths[BASE]) == Path(paths["decoder"]):
    raise ValueError(
      f"{paths[BASE]}: given as the decoder and as what it stands on; expected the folder "
      "of differences and the folder of the model that they were taken from"
    )
  if "qformer" in paths and not _has_qformer(leaves):
    raise ValueError(
      f"{paths['qformer']}: given for a Q-Former, and the model has none; leave it out, or "
      "take the zoo row of a model with one"
    )


def _has_qformer(leaves: Mapping[str, Leaf]) -> bool:
  return any(own.group_of(path) == "qformer" for path in leaves)


def _check_qformer(sources: list[Source], leaves: Mapping[str, Leaf]) -> None:
  """A frozen Q-Former of random weights would see nothing, and nobody would notice."""
  encoder = next(source for source in sources if source.layout.part == "encoder")
  given = {source.layout.part for source in sources}
  if (
    _has_qformer(leaves) and "qformer" not in given and encoder.layout.name != own.NAME
  ):
    raise ValueError(
      "convert: no file for the Q-Former that the model has; give "
      "blip2_pretrained_flant5xxl.pth, or a BLIP-2 of the Hugging Face layout, as the "
      "part qformer"
    )


def _check_settings(
  source: Source,
  model: Mapping[str, Mapping[str, Any]],
  paths: frozenset[str],
  decoder: Path,
) -> None:
  """What lies beside the files is compared with the model's fields."""
  folder, layout = source.checkpoint.folder, source.layout
  if layout.settings.name:
    beside = folder / layout.settings.name
    config = published.check_adapter(beside, layout, model["decoder"], paths)
    base = config.get(layout.settings.base)
    if base:  # another one of the same sizes fits, too
      logging.info("%s: adapter trained on %s; it is put on %s", beside, base, decoder)
  elif layout.part in ("encoder", "decoder") and layout.name != own.NAME:
    beside = folder / "config.json"
    if not published.check_config(beside, layout, model[layout.part]):
      path = source.checkpoint.path
      logging.info("%s: no config.json of it; names and shapes were checked", path)


def _check_eye(
  sources: list[Source],
  model: Mapping[str, Mapping[str, Any]],
  leaves: Mapping[str, Leaf],
  shown: Shown,
) -> None:
  """A connector was trained behind one layer of one tower, and LLaVA's with its LoRA."""
  for source in sources:
    checkpoint, layout = source
    path = checkpoint.folder / "config.json"
    if layout.part != "adapter" or not path.is_file():
      continue
    config = published.read_json(path)
    eye = families.eye_of(config)
    if eye is None:
      continue
    lacking = "connector/dense_0/kernel" in leaves and not _holds_connector(source)
    if eye.trained_beside and lacking:
      raise ValueError(
        f"{checkpoint.path}: the LoRA of a {config['model_type']} without its projector, "
        f"and no {eye.trained_beside} beside it: the non-LoRA weights that were trained "
        "with it. Download that file too"
      )
    encoder = next(source for source in sources if source.layout.part == "encoder")
    eyes.check(eye, path, config, model, shown, _blocks(encoder))


def _holds_connector(source: Source) -> bool:
  return any(row.path.startswith("connector/") for row, _ in _rows(source))


def _blocks(encoder: Source) -> int | None:
  """How many an encoder's file has; None of one of ours, which may have been cut."""
  if encoder.layout.name == own.NAME:
    return None
  return 1 + max(layer for _, layer in _rows(encoder) if layer is not None)


def _rows(source: Source) -> Iterator[tuple[Row, int | None]]:
  """What its tensors are, with their layers."""
  for name in source.checkpoint.names:
    yield from source.layout.rows_of(source.layout.canonical(name))
