"""The verb `publish`: a run in the files that its system's own users load.

runs/imax-s0 ──publish.layout──▶ published/imax-s0   files, settings, tokenizer, card

`bundle` hands out what was trained, to us and to PEFT; `merge` the decoder alone.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.metadata
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import logging

from imax_jax import deliver
from imax_jax import ledger
from imax_jax import model_card
from imax_jax import tree as tree_lib
from imax_jax.ledger import plain
from imax_jax.study import Study
from imax_jax.study import UsageError
from imax_jax.weights import beside
from imax_jax.weights import digests
from imax_jax.weights import editions
from imax_jax.weights import publish as publish_lib
from imax_jax.weights import settings
from imax_jax.weights.checkpoints import Checkpoint
from imax_jax.weights.checkpoints import open_checkpoint

RECORD, CARD = "published.json", "README.md"


def publish(study: Study, request: Mapping[str, str | None]) -> None:
  """A run's or a bundle's weights -> WORKDIR/published/NAME, and prints what it is.

  The layout is the config's `publish.layout`. All files are read back, as the verb
  `convert` reads them, before the folder has its name.

  Args:
    request: "checkpoint", a run's or a bundle's folder; "dtype" of whole parts, the
      layout's own if empty.

  Raises:
    UsageError: no checkpoint, no layout, several processes.
    FileNotFoundError: there is no finished run.
    ValueError: it was trained with another config, or holds what the layout can not.
  """
  folder = deliver.checkpoint_of(request, "publish")
  edition, asked = _edition(study)
  model = plain(study.config.model)
  dtype = request.get("dtype") or ""
  trainable = frozenset(tree_lib.flatten(study.parameters.trainable))
  with contextlib.ExitStack() as stack:
    if asked["base"] and not edition.differs:
      raise ValueError(
        f"publish: layout {edition.name} holds no differences, but publish.base is "
        f"{asked['base']}; leave it empty"
      )
    base = _base(study, asked, stack)
    # Refused on shapes alone, before gigabytes are read.
    flat = tree_lib.flatten(study.parameters.abstract)
    planned = publish_lib.plan(edition, flat, trainable, model, dtype, base)
    about = deliver.facts_of(study, folder)
    needed = {path for found in planned for path in found.leaves}
    params = _params(study, folder, needed)
    planned = publish_lib.plan(edition, params, trainable, model, dtype, base)
    facts = _facts(study, about, asked, edition, planned, dtype)
    out = study.workdir / "published" / f"{edition.prefix}{folder.name}"
    with deliver.whole_folder(out, RECORD) as part:
      size = publish_lib.write(part, edition, planned, facts)
      for found in planned:
        if found.file.is_folder and facts.added_tokens:
          target = part / found.file.name.strip("/")
          beside.add(target, study.tokenizer, facts.added_tokens)
      error = publish_lib.check(part, planned, model["decoder"], base)
      _describe(part, edition, about, base)
  counted = sum(len(found.items) for found in planned)
  rounded = f"; on its base {error:.3g} from what was trained" if base else ""
  sys.stdout.write(
    f"{out}: layout {edition.name}, {counted} tensors, {size:,} bytes, read back "
    f"equal{rounded}\n"
  )


def _base(
  study: Study, asked: Mapping[str, Any], stack: contextlib.ExitStack
) -> Checkpoint | None:
  """The published decoder that the config's `publish.base` names, opened."""
  if not asked.get("base"):
    return None
  study.workdir.mkdir(parents=True, exist_ok=True)
  scratch = tempfile.TemporaryDirectory(prefix=".unpickled-", dir=study.workdir)
  folder = Path(stack.enter_context(scratch))
  return stack.enter_context(open_checkpoint(asked["base"], folder))


def _edition(study: Study) -> tuple[editions.Edition, dict[str, Any]]:
  asked = plain(study.config.publish)
  if not asked.get("layout"):
    known = ", ".join(sorted(row.name for row in editions.EDITIONS))
    raise UsageError(
      f"publish: the config names no layout: set its publish.layout to one of {known}"
    )
  return editions.edition(asked["layout"]), asked


def _params(study: Study, folder: Path, needed: set[str]) -> dict[str, Any]:
  """{path: array} of the model; of what was trained alone, if no more is needed."""
  trained = tree_lib.flatten(deliver.weights_from(study, folder))
  if needed <= trained.keys():
    return trained
  frozen = tree_lib.flatten(study.parameters.split(study.config.seeds[0])[1])
  study.release()
  gc.collect()
  return trained | frozen


def _facts(
  study: Study,
  about: Mapping[str, Any],
  asked: Mapping[str, Any],
  edition: editions.Edition,
  planned: list[publish_lib.Planned],
  dtype: str,
) -> settings.Facts:
  sources = about["foundation"].get("sources", ())
  names = {source["part"]: source["name"] for source in sources}
  for part in ("encoder", "decoder"):
    names[part] = asked.get(part) or names.get(part, "")
    if part in edition.named and not names[part]:
      logging.warning(
        "publish: nothing says what the %s is called where it was published: name it in "
        "--config.publish.%s, a loader looks for it",
        part,
        part,
      )
  tokenizer, image = study.tokenizer, about["image"]
  special = ("bos_token_id", "eos_token_id", "pad_token_id")
  return settings.Facts(
    model=plain(study.config.model),
    dtype=dtype or edition.dtype,
    names=names,
    base=deliver.base_of(study),
    special={key: getattr(tokenizer, key) for key in special},
    style=study.config.prompt.style,
    geometry=image.get("eye", image)["geometry"],
    added_tokens=tuple(study.config.added_tokens),
    tensors={found.file.name: found.names for found in planned},
  )


def _describe(
  folder: Path,
  edition: editions.Edition,
  about: Mapping[str, Any],
  base: Checkpoint | None,
) -> None:
  """The card, and last published.json: what the folder is and what its files are."""
  words = edition.about
  if base is not None:
    words += (
      f" Its decoder holds differences from {base.path.name}: add that before use, with "
      "the publisher's apply_delta.py."
    )
  name = about["training"]["run"]
  card = model_card.published(name, edition.name, words.strip(), about)
  (folder / CARD).write_text(card, encoding="utf8")
  files = sorted(path for path in folder.rglob("*") if path.is_file())
  ledger.write_json(
    folder / RECORD,
    {
      "layout": edition.name,
      "imax_jax": importlib.metadata.version("imax_jax"),
      **{key: about[key] for key in ("foundation", "training", "prompt", "image")},
      "files": {
        str(path.relative_to(folder)): digests.describe(path) for path in files
      },
    },
  )
