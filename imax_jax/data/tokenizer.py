"""A small byte-pair tokenizer, trained on the entries themselves, and the loading of any.

    "[reg] … <120><35>: 0.49"  ->  "[reg]" … "<" "1" "2" "0" ">" "<" "3" "5" ">" …

Any text comes back from its ids as it went in (the alphabet is the 256 bytes). Every
digit and the marks of boxes, lists and sentences stand alone, so that a number is always
spelt digit by digit; elsewhere a token may hold several words ("superword"). The prompts
that the study repeats for each of its images can be made one token each (`phrases`).
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence
from pathlib import Path

from tokenizers import AddedToken
from tokenizers import Regex
from tokenizers import Tokenizer
from tokenizers import decoders
from tokenizers import models
from tokenizers import pre_tokenizers
from tokenizers import trainers
from transformers import PreTrainedTokenizerFast

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
  """Reads what `save` wrote, or a published directory with a tokenizer.json; offline.

  Raises:
    FileNotFoundError: no tokenizer.json there.
    ValueError: a tokenizer that knows no begin-of-text or end-of-text token.
  """
  path = Path(path)
  file = path if path.suffix == ".json" else path / "tokenizer.json"
  if not file.is_file():
    raise FileNotFoundError(
      f"{file}: no tokenizer here; give a tokenizer.json or the directory that holds it"
    )
  if path.suffix == ".json":
    tokenizer = _wrap(Tokenizer.from_file(str(file)))
  else:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(
      str(path), local_files_only=True, clean_up_tokenization_spaces=False
    )
  if tokenizer.bos_token_id is None or tokenizer.eos_token_id is None:
    raise ValueError(
      f"{path}: tokenizer without begin or end token; name them (bos_token, eos_token) "
      "in its tokenizer_config.json"
    )
  return tokenizer


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
  """Ids of a piece of text alone: no begin or end token is added."""
  return list(tokenizer.encode(text, add_special_tokens=False))


def count_tokens(
  tokenizer: PreTrainedTokenizerFast, texts: Iterable[str]
) -> dict[str, int]:
  """{text: number of ids}: what a set of fixed prompts costs."""
  return {text: len(encode(tokenizer, text)) for text in texts}
