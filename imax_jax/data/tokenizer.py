"""A small byte-pair tokenizer, trained on the entries themselves, and the loading of any.

    "[reg] … <120><35>: 0.49"  ->  "[reg]" … "<" "1" "2" "0" ">" "<" "3" "5" ">" …

Any text comes back from its ids as it went in (the alphabet is the 256 bytes). Every
digit and the marks of boxes, lists and sentences stand alone, so that a number is always
spelt digit by digit; elsewhere a token may hold several words ("superword"). The prompts
that the study repeats for each of its images can be made one token each (`phrases`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Regex
from tokenizers import Tokenizer
from tokenizers import decoders
from tokenizers import models
from tokenizers import pre_tokenizers
from tokenizers import trainers
from transformers import PreTrainedTokenizerFast

from imax_jax.data import sentencepiece

PAD, BOS, EOS = "<pad>", "<s>", "</s>"  # ids 0, 1, 2

# Whole: the template's and the tasks' tags, with the space before them. Apart: digits
# (or the decoder meets a different alphabet for each number), and the marks that
# separate what an answer lists.
_ISOLATED = r" ?\[/?[A-Za-z]+\]| ?</?Img>|\d|[<>,.;:?!\[\]\n]"
# Long enough for two or three words of a prompt, too short for a report's sentence: a
# decoder that says a sentence as one token has not learnt to say it.
_MAX_TOKEN_CHARS = 24


def train_tokenizer(
  texts: Iterable[str],
  vocab_size: int,
  *,
  phrases: Sequence[str] = (),
  max_token_chars: int = _MAX_TOKEN_CHARS,
) -> PreTrainedTokenizerFast:
  """Learns a vocabulary of at most `vocab_size` ids; the same texts give the same one.

  Args:
    texts: prompts and answers. Only their counts matter, not their order.
    vocab_size: all ids, the three special tokens and the phrases among them. A small
      corpus may use fewer: `len(tokenizer)` says how many.
    phrases: fixed wordings that become one token each, wherever they stand (the longest
      first). For questions; an answer that is one token is a class, not a text.
    max_token_chars: the longest token that merging may make, in bytes.

  Raises:
    ValueError: `vocab_size` cannot hold the bytes, special tokens and phrases.
  """
  phrases = sorted(set(phrases))
  smallest = 256 + 3 + len(phrases)
  if vocab_size < smallest:
    raise ValueError(
      f"vocab_size {vocab_size}: expected at least {smallest} (256 bytes, 3 special "
      f"tokens, {len(phrases)} phrases); raise it or pass fewer phrases"
    )
  tokenizer = Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(Regex(_ISOLATED), behavior="isolated"),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )
  tokenizer.decoder = decoders.ByteLevel()
  # Known before training: the text of a phrase then teaches no merges of its own.
  trainer = trainers.BpeTrainer(
    vocab_size=vocab_size - len(phrases),
    min_frequency=2,
    show_progress=False,
    special_tokens=[PAD, BOS, EOS],
    initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    max_token_length=max_token_chars,
  )
  tokenizer.train_from_iterator(_without(texts, phrases), trainer)
  tokenizer.add_tokens([AddedToken(phrase, normalized=False) for phrase in phrases])
  return _wrap(tokenizer)


def _without(texts: Iterable[str], phrases: Sequence[str]) -> Iterable[str]:
  """The pieces that merging has to spell: what is left of a text around the phrases."""
  longest_first = sorted(phrases, key=len, reverse=True)
  for text in texts:
    pieces = [text]
    for phrase in longest_first:
      pieces = [part for piece in pieces for part in piece.split(phrase)]
    yield from (piece for piece in pieces if piece)


def _wrap(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
  return PreTrainedTokenizerFast(
    tokenizer_object=tokenizer,
    pad_token=PAD,
    bos_token=BOS,
    eos_token=EOS,
    clean_up_tokenization_spaces=False,
  )


def save(tokenizer: PreTrainedTokenizerFast, path: str | Path) -> None:
  """Writes one tokenizer.json where `path` ends in ".json", else a directory."""
  path = Path(path)
  if path.suffix == ".json":
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.backend_tokenizer.save(str(path))
  else:
    tokenizer.save_pretrained(str(path))


def load(path: str | Path) -> PreTrainedTokenizerFast:
  """Reads what `save` wrote, or a published directory; offline.

  A directory may have a tokenizer.json, or SentencePiece's tokenizer.model alone, as
  LLaMA's first releases do. A tokenizer without pad token gets its unknown token as one
  (its end token if it has no unknown one): an id that the embedding has a row for
  already and that no text holds. What stands at a pad is never seen and never trained.

  Raises:
    FileNotFoundError: no tokenizer there.
    ValueError: a tokenizer that knows no end-of-text token, that asks for code of its
      own to be run, or whose files do not agree.
  """
  path = Path(path)
  if path.suffix == ".json" and path.is_file():
    alone = Tokenizer.from_file(str(path))
    if any(alone.token_to_id(token) is None for token in (PAD, BOS, EOS)):
      raise ValueError(
        f"{path}: it has not the tokens {PAD}, {BOS} and {EOS} of a tokenizer of ours; "
        "give the published directory, whose other files name its tokens"
      )
    tokenizer = _wrap(alone)
  elif (path / "tokenizer.json").is_file():
    _refuse_code(path)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(
      str(path), local_files_only=True, clean_up_tokenization_spaces=False
    )
  elif (path / "tokenizer.model").is_file():
    _refuse_code(path)
    tokenizer = _from_sentencepiece(path)
  else:
    raise FileNotFoundError(
      f"{path}: no tokenizer here; give a tokenizer.json or the directory that holds "
      "it, or one with a tokenizer.model"
    )
  if tokenizer.eos_token_id is None:
    raise ValueError(
      f"{path}: tokenizer without end token; name it (eos_token) in its "
      "tokenizer_config.json"
    )
  if tokenizer.pad_token_id is None:
    tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
  # A published file may ask for either; a text that is cut would be trained as whole.
  tokenizer.backend_tokenizer.no_truncation()
  tokenizer.backend_tokenizer.no_padding()
  return tokenizer


def _refuse_code(folder: Path) -> None:
  """Refuses a directory whose files name Python code to be run on loading."""
  for name in ("tokenizer_config.json", "config.json"):
    for key in ("auto_map", "trust_remote_code"):
      if _json(folder / name).get(key):
        raise ValueError(
          f"{folder / name}: {key!r} asks for the repository's own code to be run on "
          "loading, which is never done; remove it if the tokenizer is of a usual kind"
        )


def _json(file: Path) -> dict[str, Any]:
  """A file's object; empty where there is no file."""
  if not file.is_file():
    return {}
  try:
    found = json.loads(file.read_text(encoding="utf8"))
  except ValueError as error:
    raise ValueError(f"{file}: no JSON ({error}); copy it again") from None
  if not isinstance(found, dict):
    raise ValueError(f"{file}: a {type(found).__name__}, expected an object")
  return found


def _from_sentencepiece(folder: Path) -> PreTrainedTokenizerFast:
  """A tokenizer.model with the tokens that the files beside it add and name."""
  tokenizer = sentencepiece.convert(folder / "tokenizer.model")
  config = _json(folder / "tokenizer_config.json")
  added = {
    text: (int(i), False) for text, i in _json(folder / "added_tokens.json").items()
  }
  for i, token in config.get("added_tokens_decoder", {}).items():
    added[token["content"]] = int(i), bool(token.get("special"))
  for text, (wanted, special) in sorted(added.items(), key=lambda item: item[1]):
    # Ids are counted on: one given twice, or a gap, would shift all that follow.
    if tokenizer.token_to_id(text) is None:
      tokenizer.add_tokens([AddedToken(text, normalized=False, special=special)])
    if tokenizer.token_to_id(text) != wanted:
      raise ValueError(
        f"{folder}: added token {text!r} has id {wanted}, expected "
        f"{tokenizer.token_to_id(text)} after the pieces of tokenizer.model; these "
        "files do not belong together"
      )
  named = _json(folder / "special_tokens_map.json") | config
  marks: dict[str, str | None] = {
    role: _text(named.get(role)) or default
    for role, default in (
      ("bos_token", BOS), ("eos_token", EOS), ("unk_token", "<unk>"), ("pad_token", None)
    )
  }  # fmt: skip
  for role, mark in marks.items():
    if mark is not None and tokenizer.token_to_id(mark) is None:
      raise ValueError(
        f"{folder}: {role} {mark!r} is no token of tokenizer.model; name one that is in "
        "tokenizer_config.json"
      )
  return PreTrainedTokenizerFast(
    tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **marks
  )


def _text(token: str | dict[str, Any] | None) -> str | None:
  """A token as the configs name it: its text, or an object with its text inside."""
  return token["content"] if isinstance(token, dict) else token


def source_of(path: Path) -> Path:
  """What `load` is given for a tokenizer.json: its folder, where other files name its
  special tokens, else the file."""
  return path.parent if (path.parent / "tokenizer_config.json").is_file() else path


def check_vocabulary(tokenizer: PreTrainedTokenizerFast, rows: int) -> None:
  """Refuses a tokenizer with an id for which the embedding, of so many rows, has none.

  More rows than ids are usual: published embeddings are padded.

  Raises:
    ValueError: with both numbers.
  """
  ids = max(tokenizer.get_vocab().values()) + 1
  if ids > rows:
    raise ValueError(
      f"the tokenizer has ids up to {ids - 1}, the decoder's embedding has {rows} rows, "
      f"expected at least {ids}; take the tokenizer of this decoder, or set "
      "model.decoder.vocab_size to what the checkpoint holds"
    )


def own_begins(folder: Path) -> int | None:
  """How many begin tokens a published tokenizer puts in front of a text by itself.

  `encode` never does: how many there are is the prompt's to say. tokenizer_config.json's
  `add_bos_token` comes first, as in transformers. None: no file says it, or none of
  transformers' is there.
  """
  config, file = _json(folder / "tokenizer_config.json"), folder / "tokenizer.json"
  if isinstance(config.get("add_bos_token"), bool):
    return int(config["add_bos_token"])
  if not config or not _json(file).get("post_processor"):
    return None
  bos = load(folder).bos_token_id
  ids = Tokenizer.from_file(str(file)).encode("a").ids
  return next((n for n, token in enumerate(ids) if token != bos), len(ids))


def add_tokens(
  tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], rows: int
) -> None:
  """Adds special tokens behind all others; those that its file has already stay.

  Args:
    rows: of the embedding, which must have one for each.

  Raises:
    ValueError: one gets another id than the next, since the file has other tokens at
      their place, or has some of them in another order; or an id beyond the embedding.
  """
  known = tokenizer.get_vocab()
  missing = [text for text in texts if text not in known]
  tokenizer.backend_tokenizer.add_special_tokens(
    [AddedToken(text, normalized=False, special=True) for text in missing]
  )
  wanted = max(i for text, i in known.items() if text not in texts) + 1
  if not missing and texts:  # a file may have more behind them
    wanted = min(known[text] for text in texts)
  for expected, text in enumerate(texts, start=wanted):
    found = tokenizer.backend_tokenizer.token_to_id(text)
    if found != expected or found not in special_ids(tokenizer):
      raise ValueError(
        f"added token {text!r}: expected id {expected}, a special token's, got {found}; "
        f"the last tokens of the tokenizer's file are {_last(known, len(texts) + 2)}, "
        f"added_tokens names {', '.join(map(repr, texts))}: take the tokenizer of this "
        "checkpoint, or name its own tokens"
      )
    if found >= rows:
      raise ValueError(
        f"added token {text!r}: got id {found}, expected one below the {rows} rows of "
        "the decoder's embedding; take the tokenizer of this decoder, or set "
        "model.decoder.vocab_size to what the checkpoint holds"
      )


def _last(vocabulary: Mapping[str, int], count: int) -> str:
  """ "'[PAD]' 32000, '<im_patch>' 32001": the tokens of the highest ids."""
  found = sorted(vocabulary.items(), key=lambda pair: pair[1])[-count:]
  return ", ".join(f"{token!r} {number}" for token, number in found)


def special_ids(tokenizer: PreTrainedTokenizerFast) -> frozenset[int]:
  """Ids of begin, end, pad and the marks of roles: those that no text may spell."""
  marked = tokenizer.added_tokens_decoder.items()
  return frozenset(tokenizer.all_special_ids) | {i for i, t in marked if t.special}


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
  """Ids of a piece of text alone: no begin or end token is added."""
  # Not tokenizer.encode: the same ids, at twice the time.
  return list(tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids)


def encode_with_places(
  tokenizer: PreTrainedTokenizerFast, text: str
) -> tuple[list[int], list[tuple[int, int]]]:
  """`encode`, and of each id (begin, end): the characters of the text that it stands for.

  The bytes of one character all have its place.
  """
  found = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
  return list(found.ids), list(found.offsets)


def decode(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int]) -> str:
  """The text of ids as it is, special tokens and all."""
  return str(tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=False))


def count_tokens(
  tokenizer: PreTrainedTokenizerFast, texts: Iterable[str]
) -> dict[str, int]:
  """{text: number of ids}: what a set of fixed prompts costs."""
  return {text: len(encode(tokenizer, text)) for text in texts}
