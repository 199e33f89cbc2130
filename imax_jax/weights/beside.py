"""A decoder's tokenizer and processor files, as its publisher wrote them.

    published folder ──keep──▶ foundation/as_published ──copy──▶ published/…, merged/…

A foundation's own tokenizer.json is what is read here: of tokenizer.model one is made,
by a newer library than published systems pin. What they read goes out as it came in, or
with the tokens that the model has beyond it (`add`).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from imax_jax import ledger
from imax_jax.weights import published

FOLDER = "as_published"
TOKENIZER, CONFIG = "tokenizer.json", "tokenizer_config.json"
SPECIAL, ADDED = "special_tokens_map.json", "added_tokens.json"
FILES = (
  TOKENIZER, "tokenizer.model", CONFIG, SPECIAL, ADDED, "vocab.json", "merges.txt",
  "chat_template.jinja", "chat_template.json", "preprocessor_config.json",
  "processor_config.json",
)  # fmt: skip
_ROLES = ("bos_token", "eos_token", "unk_token", "pad_token")
_FIELDS = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")


def keep(source: Path, foundation: Path) -> None:
  """Puts a decoder's files away in a foundation, in place of those of one before it."""
  shutil.rmtree(foundation / FOLDER, ignore_errors=True)
  copy(source, foundation / FOLDER)


def copy(source: Path, folder: Path) -> None:
  """Copies them from a published folder, or from a foundation what it was made of."""
  kept = source / FOLDER
  for file in map((kept if kept.is_dir() else source).joinpath, FILES):
    if file.is_file() and file.stat().st_size:
      with ledger.whole(folder / file.name) as part:
        shutil.copyfile(file, part)


def add(folder: Path, tokenizer: PreTrainedTokenizerFast, added: Sequence[str]) -> None:
  """Makes files that `copy` left in a folder those of a tokenizer with more tokens.

  A slow tokenizer of transformers takes its vocabulary from tokenizer.model and
  added_tokens.json, since 4.34 from `added_tokens_decoder` if tokenizer_config.json has
  it. transformers 5 would name a class that exists in no version before it.

  Args:
    tokenizer: all of it.
    added: the texts of tokens that the decoder's files do not have.

  Raises:
    ValueError: one of the files is damaged.
  """
  config, special = _json(folder / CONFIG), _json(folder / SPECIAL)
  backend = tokenizer.backend_tokenizer
  vocabulary = backend.get_vocab(with_added_tokens=False)
  tokens = backend.get_added_tokens_decoder()
  beyond = {
    token.content: i
    for i, token in sorted(tokens.items())
    if token.content not in vocabulary
  }
  named = special | config
  marks = {
    role: getattr(tokenizer, role)
    for role in _ROLES
    if not named.get(role) and getattr(tokenizer, role)
  }
  # transformers 5 has a list under a name that is an object in versions before it.
  if isinstance(config.get("extra_special_tokens"), list):
    named.setdefault("additional_special_tokens", config.pop("extra_special_tokens"))
  said = named.get("additional_special_tokens") or ()
  known = {token["content"] if isinstance(token, dict) else token for token in said}
  more = [*said, *(text for text in added if text not in known)]
  marked: dict[str, Any] = marks | {"additional_special_tokens": more}
  config.pop("backend", None)
  config |= marked | {"tokenizer_class": _class(config, folder)}
  if "added_tokens_decoder" in config:
    config["added_tokens_decoder"] = {
      str(i): {field: getattr(token, field) for field in _FIELDS}
      for i, token in sorted(tokens.items())
    }
  ledger.write_json(folder / TOKENIZER, _spelt(json.loads(backend.to_str())))
  ledger.write_json(folder / ADDED, _json(folder / ADDED) | beyond)
  ledger.write_json(folder / CONFIG, config)
  ledger.write_json(folder / SPECIAL, special | marked)


def _spelt(tokenizer: dict[str, Any]) -> dict[str, Any]:
  """A tokenizer.json with each merge as one text, which tokenizers before 0.20 expect.

  Later ones read both; a piece with a space in it can only stand in a list.
  """
  merges = tokenizer["model"].get("merges")
  if merges and not any(" " in piece for merge in merges for piece in merge):
    tokenizer["model"]["merges"] = [" ".join(merge) for merge in merges]
  return tokenizer


def _class(config: Mapping[str, Any], folder: Path) -> str:
  """What the source says, but for classes that are transformers 5's alone."""
  said = str(config.get("tokenizer_class") or "")
  if said and not said.endswith("Backend"):
    return said
  slow = (folder / "tokenizer.model").is_file()
  return "LlamaTokenizer" if slow else "PreTrainedTokenizerFast"


def _json(file: Path) -> dict[str, Any]:
  return published.read_json(file) if file.is_file() else {}
