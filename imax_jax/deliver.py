"""A trained run handed out: the verbs `bundle` and `merge`, and what loads them again.

runs/imax-s0 ──bundle──▶ bundles/imax-s0   adapter, connector, card: predict and PEFT
             ──merge───▶ merged/imax-s0    the decoder alone, as Hugging Face keeps it
"""

from __future__ import annotations

import contextlib
import gc
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from imax_jax import ledger
from imax_jax import model_card
from imax_jax import runs
from imax_jax import tree as tree_lib
from imax_jax.data import records
from imax_jax.data import tokenizer as tokenizer_lib
from imax_jax.data.tokenizer import encode
from imax_jax.ledger import plain
from imax_jax.models.decoder import Decoder
from imax_jax.study import Study
from imax_jax.study import UsageError
from imax_jax.weights import beside
from imax_jax.weights import bundle as bundle_lib
from imax_jax.weights import digests
from imax_jax.weights import export

_ROWS = 8  # prompts that the merged decoder is compared on


def bundle(study: Study, request: Mapping[str, str | None]) -> None:
  """A run's weights -> WORKDIR/bundles/NAME, and prints that path.

  Args:
    request: "checkpoint", the folder of a finished run: WORKDIR/runs/imax-s0.

  Raises:
    UsageError: no checkpoint, or several processes.
    FileNotFoundError: there is no finished run.
    ValueError: it was trained with another config.
  """
  folder = checkpoint_of(request, "bundle")
  _refuse_bundle(folder)
  facts = facts_of(study, folder)
  trained = runs.weights_of(study, folder)
  out = study.workdir / "bundles" / folder.name
  with whole_folder(out, bundle_lib.RECORD) as part:
    bundle_lib.write_bundle(
      part,
      trained,
      plain(study.config.model),
      facts,
      tokenizer=_tokenizer(study),
      card=model_card.text(folder.name, facts),
    )
  sys.stdout.write(f"{out}\n")


def merge(study: Study, request: Mapping[str, str | None]) -> None:
  """A run's or a bundle's decoder -> WORKDIR/merged/NAME, compared with the original.

  Prints the shards, their bytes, and the largest difference between the logits of the
  decoder with its adapter and of what was written, read back.

  Args:
    request: "checkpoint", a run's or a bundle's folder; "dtype", "bfloat16" if empty.

  Raises:
    UsageError, FileNotFoundError, ValueError: as `bundle`.
  """
  folder = checkpoint_of(request, "merge")
  dtype = request.get("dtype") or "bfloat16"
  fields = plain(study.config.model.decoder)
  export.config_of(fields, dtype)  # refuses now what could not be written then
  trained = weights_from(study, folder)
  frozen = study.parameters.split(study.config.seeds[0])[1]
  params: Any = {"decoder": tree_lib.merge(trained, frozen)["decoder"]}
  del trained, frozen
  ids = _prompts(study)
  before = _logits(fields, params["decoder"], ids)
  out = study.workdir / "merged" / folder.name
  with whole_folder(out, export.INDEX) as part:
    written = export.write_merged(
      part,
      tree_lib.flatten(params),
      fields,
      dtype=dtype,
      base=base_of(study),
      special={"eos_token_id": study.tokenizer.eos_token_id},
    )
    if study.config.added_tokens:
      beside.add(part, study.tokenizer, tuple(study.config.added_tokens))
    # Two full models do not fit where one does: the first goes before the second comes.
    del params
    study.release()
    gc.collect()
    bare = fields | {"lora_rank": 0, "fold": False, "kernel_dtype": dtype}
    stand_in = jax.eval_shape(
      lambda: Decoder(**bare).init(jax.random.key(0), ids, method=_run)["params"]
    )
    expected = tree_lib.flatten({"decoder": stand_in})
    back = export.read_merged(part, expected, bare)
    merged = tree_lib.unflatten({path: jnp.asarray(back.pop(path)) for path in [*back]})
    after = _logits(bare, merged["decoder"], ids)
  difference = float(np.abs(after - before)[ids >= 0].max())
  largest = float(np.abs(before[ids >= 0]).max())
  sys.stdout.write(
    f"{out}: {written.num_files} shards, {written.num_bytes:,} bytes; largest logit "
    f"difference {difference:.3g} of {largest:.3g} over {len(ids)} prompts\n"
  )


def weights_from(study: Study, folder: Path) -> dict[str, Any]:
  """The trained weights of a run's folder or of a bundle, placed on the mesh.

  LoRA and connector say nothing on another base, by another alpha or after other words
  than they were trained with.

  Raises:
    FileNotFoundError: neither of them is there.
    ValueError: of another model, foundation or prompt style, or damaged.
  """
  if not (folder / bundle_lib.RECORD).is_file():
    if (folder / "station.json").is_file():
      _check_run(study, folder, _inputs(folder))
    return runs.weights_of(study, folder)
  trainable = study.parameters.trainable
  tokenizer = _tokenizer(study, folder)
  loaded = bundle_lib.load_bundle(
    folder, trainable, plain(study.config.model), _facts(study, tokenizer)
  )
  if study.parameters.foundation is None:
    study.tokenizer = tokenizer_lib.load(tokenizer)
  return jax.tree.map(
    lambda leaf, like: jax.make_array_from_callback(
      leaf.shape, like.sharding, lambda index: leaf[index]
    ),
    loaded,
    trainable,
  )


# ── What is handed out, and what it was made from ─────────────────────────────────


def checkpoint_of(request: Mapping[str, str | None], verb: str) -> Path:
  if not request.get("checkpoint"):
    raise UsageError(f"{verb} needs --checkpoint, a run's folder: WORKDIR/runs/imax-s0")
  if jax.process_count() > 1:
    raise UsageError(f"{verb} is done by one process; leave --distributed out")
  return Path(str(request["checkpoint"]))


def _refuse_bundle(folder: Path) -> None:
  if (folder / bundle_lib.RECORD).is_file():
    raise ValueError(f"{folder} is a bundle already: copy the folder to hand it on")


def _inputs(folder: Path) -> dict[str, Any]:
  """What a run was made from."""
  mark = folder / "station.json"
  if not mark.is_file():
    raise FileNotFoundError(
      f"{mark}: missing; expected the folder of a run, e.g. WORKDIR/runs/imax-s0"
    )
  return json.loads(mark.read_text("utf8"))["inputs"]


def _check_run(study: Study, folder: Path, made: Mapping[str, Any]) -> None:
  """Weights are of the config that they were trained with, and of no other."""
  if "model" not in made:
    raise ValueError(
      f"{folder} holds no run: give a run's folder, WORKDIR/runs/imax-s0"
    )
  asked = {
    "model": bundle_lib.model_facts(plain(study.config.model)),
    "trainable": study.config.trainable,
    "prompt": study.prompt,
    "foundation": study.parameters.digest,
    "image": study.eye.facts or None,
  }
  said = {key: made.get(key) for key in asked}
  said["model"] = bundle_lib.model_facts(made["model"])
  differ = ledger.differing(said, asked)
  if differ:
    raise ValueError(
      f"{folder} was trained with another config ({', '.join(differ[:4])}): give the "
      "config it was trained with"
    )


def _facts(study: Study, tokenizer: Path) -> dict[str, Any]:
  """What a bundle's weights mean something with."""
  d = study.config.data
  return {
    "foundation": {"digest": study.parameters.digest, **_origin(study)},
    "tokenizer": digests.describe(tokenizer),
    "prompt": study.prompt,
    "image": {
      "image_px": study.config.model.encoder.image_px,
      "stored_px": d.image_px,
      "geometry": d.geometry,
      "draft": d.draft,
      **({"eye": study.eye.facts} if study.eye.facts else {}),
    },
    "boxes": plain(d.boxes),
  }


def _origin(study: Study) -> dict[str, Any]:
  """Where the foundation came from: names and hashes of files, no folders.

  `name` is the published decoder's, which an adapter's users look for; "" if none was
  published.
  """
  found = study.parameters.foundation
  if found is None or not found.facts.is_file():
    return {"name": ""}
  sources = json.loads(found.facts.read_text("utf8"))["sources"]
  [decoder] = [source for source in sources if source["part"] == "decoder"]
  return {"name": decoder["name"], "sources": sources}


def _training(study: Study, name: str, made: Mapping[str, Any]) -> dict[str, Any]:
  """The run, and what of the data it saw; images are counted if they are still here."""
  facts = {
    "run": name,
    "steps": made["num_steps"],
    "seed": made["seed"],
    "source": study.config.data.source,
  }
  if study.ledger.is_done("data") and made.get("data") == study.ledger.digest("data"):
    statistics = study.workdir / "data" / "statistics.json"
    counted = json.loads(statistics.read_text("utf8"))["splits"][made["split"]]
    facts |= {key: counted[key] for key in ("images", "entries")}
    facts["split"] = made["split"]
  return facts


def facts_of(study: Study, folder: Path) -> dict[str, Any]:
  """What is to be known of a run's weights, or a bundle's, wherever they go.

  Raises:
    FileNotFoundError, ValueError: neither, or one of another config.
  """
  if (folder / bundle_lib.RECORD).is_file():
    return bundle_lib.read_record(folder)
  made = _inputs(folder)
  _check_run(study, folder, made)
  training = _training(study, folder.name, made)
  return _facts(study, _tokenizer(study)) | {"training": training}


def _tokenizer(study: Study, handed: Path | None = None) -> Path:
  """The file of the foundation's tokenizer, or of the one that was trained for it.

  Args:
    handed: a bundle: where the base is drawn, it brings the tokenizer that the study's
      data would have to be built for.
  """
  if study.parameters.foundation is not None:
    return study.parameters.foundation.tokenizer
  if handed is not None:
    return handed / bundle_lib.TOKENIZER
  assert study.tokenizer
  return study.workdir / "tokenizer" / "tokenizer.json"


def base_of(study: Study) -> Path:
  """The folder whose tokenizer and like files a decoder that goes out gets."""
  return _tokenizer(study).parent


@contextlib.contextmanager
def whole_folder(path: Path, mark: str) -> Iterator[Path]:
  """Yields a private folder to fill, which becomes `path` if the block ends well.

  One that is there already is replaced if it holds the file `mark`, as ours do.

  Raises:
    ValueError: something else has that name.
  """
  if path.exists() and not (path / mark).is_file():
    raise ValueError(
      f"{path} holds files that imax_jax did not make: move them, or give another "
      "--workdir"
    )
  path.parent.mkdir(parents=True, exist_ok=True)
  part = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
  new, old = part / "new", part / "old"
  try:
    new.mkdir(mode=0o700)
    yield new
    if path.exists():
      path.rename(old)
    new.rename(path)
  finally:
    shutil.rmtree(part, ignore_errors=True)


# ── The two decoders' logits ──────────────────────────────────────────────────────


def _prompts(study: Study) -> np.ndarray:
  """int32[B, T]: wordings of the study, padded with -1."""
  found = [encode(study.tokenizer, text) for text in records.fixed_phrases()[:_ROWS]]
  ids = np.full((len(found), max(map(len, found))), -1, np.int32)
  for row, line in zip(ids, found, strict=True):
    row[: len(line)] = line
  return ids


def _run(decoder: Decoder, ids: jax.Array) -> jax.Array:
  """int32[B, T], padding -1 -> float32 logits[B, T, V]."""
  rows, tokens = ids.shape
  position = jnp.tile(jnp.arange(tokens), (rows, 1))
  mask = jnp.tril(jnp.ones((rows, tokens, tokens), bool))
  x, _ = decoder(decoder.embed(jnp.maximum(ids, 0)), position, mask)
  return decoder.head(x)


def _logits(
  fields: Mapping[str, Any], params: tree_lib.Tree, ids: np.ndarray
) -> np.ndarray:
  apply = partial(Decoder(**fields).apply, method=_run)
  return np.asarray(jax.jit(apply)({"params": params}, ids))
