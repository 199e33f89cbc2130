"""What a training run hands out: one folder that our `predict` and PEFT both load.

    adapter_model.safetensors, adapter_config.json   the decoder's LoRA, PEFT's own files
    connector.safetensors                            our paths, float32
    tokenizer.json                                   a copy, if it is small
    bundle.json                                      what all this fits, and its hashes
    README.md                                        the model card

Encoder and base decoder are not in it. bundle.json is written last.
"""

from __future__ import annotations

import importlib.metadata
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from imax_jax import tree as tree_lib
from imax_jax.ledger import plain
from imax_jax.ledger import write_json
from imax_jax.models import zoo
from imax_jax.models.connector import Connector
from imax_jax.models.decoder import Decoder
from imax_jax.models.vit import Encoder
from imax_jax.weights import digests
from imax_jax.weights import files
from imax_jax.weights import load
from imax_jax.weights import peft
from imax_jax.weights import published
from imax_jax.weights.plan import part_of

RECORD, CARD = "bundle.json", "README.md"
CONNECTOR, TOKENIZER = "connector.safetensors", "tokenizer.json"
FORMAT = 1
_SMALL = 20_000_000  # bytes of a tokenizer that comes along
_PARTS: dict[str, Any] = {
  "encoder": Encoder, "connector": Connector, "decoder": Decoder
}  # fmt: skip
# Fields of a model that change how it is computed and not which weights it has.
HOW = {"dtype", "remat", "unroll", "fold", "lora_dropout"}
# What of the facts must be equal where a bundle is loaded; the rest is for people.
_MUST_FIT = (
  "model", "foundation/digest", "tokenizer/sha256", "prompt", "image", "boxes"
)  # fmt: skip


def model_facts(model: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
  """The fields that decide which weights fit, defaults written out.

  Args:
    model: the fields of the parts, as `Vlm` takes them.
  """
  facts = {}
  for part, kind in _PARTS.items():
    fields = zoo.defaults(kind) | dict(model[part])
    facts[part] = {key: plain(fields[key]) for key in sorted(fields.keys() - HOW)}
  facts["connector"].setdefault("width", facts["decoder"]["width"])
  return facts


def write_bundle(
  folder: str | Path,
  trainable: tree_lib.Tree,
  model: Mapping[str, Mapping[str, Any]],
  facts: Mapping[str, Any],
  *,
  tokenizer: Path,
  card: str,
) -> None:
  """Fills an existing, empty folder.

  Args:
    trainable: the trained parameters: LoRA, connector, or both.
    model: the fields of the model's parts.
    facts: JSON-able, what `load_bundle` will be asked for and what else is to be known:
      "foundation", "tokenizer", "prompt", "image", "boxes"; "model" is added.
    tokenizer: the file that facts["tokenizer"] names.
    card: the text of README.md.

  Raises:
    ValueError: another parameter was trained, or a value is no number.
  """
  folder = Path(folder)
  pairs, connector = _sort(trainable, folder)
  if pairs:
    base = facts["foundation"].get("name", "")
    peft.write_adapter(folder, pairs, model["decoder"], base=base)
  if connector:
    arrays = {path: np.asarray(leaf, np.float32) for path, leaf in connector.items()}
    for path, array in arrays.items():
      files.check_finite(array, path, peft.DIVERGED)
    load.save_params(folder / CONNECTOR, arrays)
  if tokenizer.stat().st_size <= _SMALL:
    shutil.copyfile(tokenizer, folder / TOKENIZER)
  hashes = {path.name: digests.describe(path) for path in sorted(folder.iterdir())}
  (folder / CARD).write_text(card, encoding="utf8")
  record = {
    "format": FORMAT,
    "imax_jax": importlib.metadata.version("imax_jax"),
    "model": model_facts(model),
    **facts,
    "files": hashes,
  }
  write_json(folder / RECORD, record)


def load_bundle(
  folder: str | Path,
  trainable: tree_lib.Tree,
  model: Mapping[str, Mapping[str, Any]],
  facts: Mapping[str, Any],
) -> dict[str, Any]:
  """The trained parameters as a tree of arrays, in the dtypes of `trainable`.

  Everything is checked before anything is loaded.

  Args:
    trainable: parameters or their stand-ins, exactly those that the bundle must hold.
    model, facts: as for `write_bundle`, of the study that asks.

  Raises:
    FileNotFoundError: no bundle, or a file of it is missing.
    ValueError: a changed file, other facts, other parameters; it names the file, the
      key, what was expected and what was found.
  """
  folder = Path(folder)
  record = read_record(folder)
  _check_files(folder, record["files"])
  # A field that the record is older than had its default.
  said = {**record, "model": model_facts(record["model"])}
  _check_facts(folder / RECORD, said, {"model": model_facts(model), **facts})
  pairs, connector = _sort(trainable, folder)
  for wanted, name in ((pairs, peft.WEIGHTS), (connector, CONNECTOR)):
    if bool(wanted) != (name in record["files"]):
      side = (
        "expected by the config and not" if wanted else "not trained by the config but"
      )
      raise ValueError(
        f"{folder / name}: {side} in the bundle; give the config it was trained with"
      )
  found: dict[str, Any] = {}
  if pairs:
    found |= peft.read_adapter(folder, pairs, model["decoder"])
  if connector:
    loaded = load.load_into(folder / CONNECTOR, tree_lib.unflatten(connector))
    found |= tree_lib.flatten(loaded)
  want = tree_lib.flatten(trainable)
  return tree_lib.unflatten(
    {path: found[path].astype(want[path].dtype) for path in want}
  )


def read_record(folder: str | Path) -> dict[str, Any]:
  """What bundle.json says.

  Raises:
    FileNotFoundError: it is not there.
    ValueError: it is not a bundle's, or of another version of the format.
  """
  path = Path(folder) / RECORD
  if not path.is_file():
    raise FileNotFoundError(
      f"{path}: no bundle here; give the folder that the verb bundle made"
    )
  record = published.read_json(path)
  if record.get("format") != FORMAT or not isinstance(record.get("files"), dict):
    raise ValueError(
      f"{path}: format {record.get('format')!r}, expected {FORMAT}; load it with the "
      f"imax_jax that wrote it ({record.get('imax_jax')})"
    )
  return record


def _sort(trainable: tree_lib.Tree, folder: Path) -> tuple[dict[str, Any], ...]:
  """({path: LoRA}, {path: connector}) of the trained parameters."""
  flat = tree_lib.flatten(trainable)
  pairs = {path: leaf for path, leaf in flat.items() if part_of(path) == "adapter"}
  connector = {
    path: leaf for path, leaf in flat.items() if part_of(path) == "connector"
  }
  foreign = sorted(flat.keys() - pairs.keys() - connector.keys())
  if foreign:
    raise ValueError(
      f"{folder}: {foreign[:3]} were trained, expected connector and LoRA alone: a "
      "bundle holds no encoder or base decoder. Use the run's folder itself"
    )
  return pairs, connector


def _check_files(folder: Path, files: Mapping[str, Any]) -> None:
  """Every file as it was written; the card is anybody's to edit."""
  for name, said in files.items():
    path = folder / name
    if path.parent != folder:
      raise ValueError(f"{folder / RECORD}: {name!r} is no file of this folder")
    digests.check(path, said, "copy the whole bundle again")


def _check_facts(
  path: Path, record: Mapping[str, Any], facts: Mapping[str, Any]
) -> None:
  said, asked = _flat(record), _flat(facts)
  lines = [
    f"{key}: {said.get(key, 'nothing')!r}, expected {asked.get(key, 'nothing')!r}"
    for key in sorted(said.keys() | asked.keys())
    if said.get(key) != asked.get(key)
  ]
  if any(line.startswith("foundation/digest") for line in lines):
    lines.append(f"foundation: the bundle's was {_base(record['foundation'])}")
  if lines:
    raise ValueError(
      f"{path} does not fit the config:\n{tree_lib.listed(lines)}\nGive the config and the "
      "foundation that it was trained with."
    )


def _base(foundation: Mapping[str, Any]) -> str:
  """The files that a foundation was converted from, for a person to look for."""
  files_ = [
    f"{file['name']} (SHA-256 {file['sha256'][:8]}…)"
    for source in foundation.get("sources", ())
    for file in source["files"]
  ]
  return ", ".join(files_) or "not made from published files"


def _flat(facts: Mapping[str, Any]) -> dict[str, Any]:
  """{"model/decoder/depth": 32, …} of what must fit."""
  return {
    key: value
    for key, value in tree_lib.flatten(plain(dict(facts))).items()
    if any(key == fact or key.startswith(f"{fact}/") for fact in _MUST_FIT)
  }
