"""The verb `convert`: published weights -> the study's foundation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from absl import logging

from imax_jax import ledger
from imax_jax import parameters
from imax_jax import progress
from imax_jax.data import tokenizer as tokenizer_lib
from imax_jax.ledger import plain
from imax_jax.study import Study
from imax_jax.study import UsageError
from imax_jax.weights import bundle as bundle_lib
from imax_jax.weights import convert as convert_lib
from imax_jax.weights.eyes import Shown
from imax_jax.weights.vocabulary import AS_IT_IS
from imax_jax.weights.vocabulary import Vocabulary


def convert(study: Study) -> None:
  """The config's published weights -> WORKDIR/foundation, its foundation "converted"."""
  if "published" not in study.config:
    raise UsageError(
      "convert: this config's model is not made of published weights; configs/imax_7b.py "
      "is an example of one that is"
    )
  sources = published(study)
  model = plain(study.config.model)
  vocabulary = Vocabulary(
    added=len(study.config.added_tokens),
    dropped=study.config.published.drop_rows,
  )
  inputs: dict[str, Any] = {
    "sources": {part: ledger.stamps(path) for part, path in sources.items()},
    "model": bundle_lib.model_facts(model),
  }
  if vocabulary != AS_IT_IS:
    inputs["vocabulary"] = list(vocabulary)

  def make(folder: Path) -> None:
    with progress.bar("converting weights") as tick:
      convert_lib.convert(
        sources,
        model,
        study.parameters.abstract,
        folder,
        shown=Shown(study.config.image.geometry, tuple(study.config.added_tokens)),
        vocabulary=vocabulary,
        # A system whose trained weights are asked for has a trained connector.
        whole=("connector",) if "adapter" in study.config.published.needs else (),
        fits=study.fit_tokenizer,
        tick=tick,
      )
    _tell_begins(study, sources["decoder"])

  study.ledger.station(parameters.CONVERTED, inputs, make, aside=True)


def _tell_begins(study: Study, decoder: Path) -> None:
  """In the log, where a decoder's tokenizer begins texts otherwise than its release's."""
  template = study.style.training
  released = template.begins - template.spelled
  folder = decoder if decoder.is_dir() else decoder.parent
  own = tokenizer_lib.own_begins(folder)
  if own is not None and own != released:
    logging.warning(
      "%s: its tokenizer puts %d begin tokens in front by itself, prompt style %s is "
      "released with one that puts %d: this model is trained and asked with %d in all, "
      "its published weights may have been trained with %d",
      folder, own, study.config.prompt.style, released, template.begins,
      own + template.spelled,
    )  # fmt: skip


def published(study: Study) -> dict[str, Path]:
  """{part: path} that the config's `published` names; "package" is what ships.

  Beside the parts (`convert.convert`) it holds `needs`, those that must be given (with an
  adapter, its connector too), and `drop_rows`: how many last rows of a vocabulary that is
  longer than the model's are left out.

  Raises:
    FileNotFoundError: a path that is not there, or a needed part without one.
  """
  named = {
    part: path
    for part, path in study.config.published.items()
    if part not in ("drop_rows", "needs")
  }
  flags = {part: f"--config.published.{part}" for part in named}
  for part in study.config.published.needs:
    if not named[part]:
      raise FileNotFoundError(
        f"convert: no published {part}: give its file or folder by {flags[part]}=PATH"
      )
  found = {
    part: parameters.ASSETS if path == "package" else Path(path)
    for part, path in named.items()
    if path
  }
  lost = [f"{flags[part]}={path}" for part, path in found.items() if not path.exists()]
  if lost:
    raise FileNotFoundError(f"convert: no such file or folder: {', '.join(lost)}")
  return found
