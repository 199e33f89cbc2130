"""The verb `convert`: what it is given is looked at before anything is built or lost."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from configs import phantom
from imax_jax import experiment
from imax_jax.data import styles
from imax_jax.parameters import ASSETS
from imax_jax.study import Study
from imax_jax.study import UsageError


def config(**published: str) -> ConfigDict:
  c = phantom.get_config()
  asked = {"encoder": "package", "decoder": "package"} | published
  rest = {"adapter": "", "base": "", "qformer": "", "drop_rows": 0}
  rest |= {"needs": ("encoder", "decoder")}
  c.published = rest | asked
  c.foundation = "converted"
  return c


def convert(c: ConfigDict, workdir: Path) -> None:
  experiment.run(c, workdir, ["convert"], {})


def test_our_own_foundation_is_a_source_and_comes_back(tmp_path: Path) -> None:
  convert(config(), tmp_path)
  study = Study(config(), tmp_path)
  assert study.parameters.given.keys() == {
    path for path in Study(phantom.get_config(), tmp_path / "p").parameters.given
    if not path.startswith("connector/")
  }  # fmt: skip
  assert len(study.tokenizer) <= study.config.model.decoder.vocab_size


def test_a_refused_conversion_leaves_the_one_before_it(tmp_path: Path) -> None:
  convert(config(), tmp_path)
  kept = (tmp_path / "foundation" / "foundation.json").read_bytes()
  with pytest.raises(ValueError):
    convert(config(encoder=str(ASSETS / "tokenizer.json")), tmp_path)
  assert (tmp_path / "foundation" / "foundation.json").read_bytes() == kept
  assert Study(config(), tmp_path).parameters.given


def test_wrong_paths_are_told_before_the_first_verb(tmp_path: Path) -> None:
  for c, message in (
    (config(encoder=""), "--config.published.encoder=PATH"),
    (config(encoder="no", decoder="nor"), "decoder=nor, .*encoder=no"),
  ):
    with pytest.raises(FileNotFoundError, match=message):
      experiment.run(c, tmp_path, ["build", "convert"], {})
  assert not (tmp_path / "hospital").exists()
  with pytest.raises(UsageError, match="not made of published weights"):
    convert(phantom.get_config(), tmp_path)
  with pytest.raises(FileNotFoundError, match="run the verb convert first"):
    _ = Study(config(), tmp_path / "new").parameters.given


@pytest.mark.parametrize(
  ("style", "told"), [("llama2", True), ("llama3", True), ("phi4", False)]
)
def test_a_begin_token_that_a_release_has_otherwise_is_told(
  tmp_path: Path, caplog: pytest.LogCaptureFixture, style: str, told: bool
) -> None:
  """The tokenizer puts none in front by itself, as phi-4's; LLaMA's put one. LLaMA-3's
  template spells a second."""
  source = Path(shutil.copytree(ASSETS, tmp_path / "published"))
  marks = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
  (source / "tokenizer_config.json").write_text(json.dumps(marks))
  c = config(decoder=str(source))
  c.prompt.style = style
  c.added_tokens = styles.style_of(style).marks
  c.model.decoder.vocab_size += len(c.added_tokens)
  convert(c, tmp_path)
  words = f"puts 0 begin tokens in front by itself, prompt style {style} .* that puts 1"
  assert bool(re.search(words, caplog.text)) == told
  assert ("begin tokens" in caplog.text) == told


def test_a_decoder_without_a_tokenizer_is_refused_before_it_is_read(
  tmp_path: Path,
) -> None:
  source = Path(shutil.copytree(ASSETS, tmp_path / "published"))
  (source / "tokenizer.json").unlink()
  with pytest.raises(
    FileNotFoundError, match=r"tokenizer\.json: missing, and no token"
  ):
    convert(config(decoder=str(source)), tmp_path / "run")
  assert not (tmp_path / "run" / "foundation").exists()
