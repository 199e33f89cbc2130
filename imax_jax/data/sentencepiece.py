"""A SentencePiece `tokenizer.model` of the LLaMA kind as a `tokenizers.Tokenizer`.

    pieces 0 … V - 1 (text, score, type)  ->  BPE vocabulary, merges by falling score

The file is a protocol buffer; the few fields that say how text becomes pieces are read
here, so neither sentencepiece nor protobuf need be installed (field numbers:
sentencepiece_model.proto of google/sentencepiece). What is not of LLaMA's kind is
refused: a converted tokenizer gives the original's ids or none.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken
from tokenizers import Tokenizer
from tokenizers import decoders
from tokenizers import models
from tokenizers import normalizers

SPACE = "▁"
_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6  # SentencePiece.Type
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3  # fields of ModelProto
_BPE = 2  # TrainerSpec.ModelType
# (message, field, its default, what LLaMA's has, what the field says)
_LLAMA = (
  (_TRAINER, 3, 1, _BPE, "model_type (2: BPE)"),
  (_TRAINER, 24, 0, 0, "treat_whitespace_as_suffix"),
  (_TRAINER, 35, 0, 1, "byte_fallback"),
  (_NORMALIZER, 2, b"", b"", "precompiled_charsmap (empty: identity)"),
  (_NORMALIZER, 3, 1, 1, "add_dummy_prefix"),
  (_NORMALIZER, 4, 1, 0, "remove_extra_whitespaces"),
  (_NORMALIZER, 5, 1, 1, "escape_whitespaces"),
)


def convert(file: Path) -> Tokenizer:
  """Reads the file; the ids are those of its SentencePiece model, piece i being id i.

  Raises:
    ValueError: the file is cut or no SentencePiece model, or not of LLaMA's kind.
  """
  try:
    pieces, specs = _read(file.read_bytes())
  except (IndexError, TypeError, UnicodeDecodeError, ValueError, struct.error) as error:
    raise ValueError(
      f"{file}: no SentencePiece model, or a part of one ({type(error).__name__}); "
      "copy it again"
    ) from None
  for message, field, default, wanted, name in _LLAMA:
    found = specs[message].get(field, default)
    if found != wanted:
      shown = f"{len(found)} bytes" if isinstance(found, bytes) else found
      raise ValueError(
        f"{file}: {name} is {shown}, expected {wanted!r} as in LLaMA's; give a "
        "tokenizer.json instead"
      )
  kinds = {kind for _, _, kind in pieces}
  unknown = [text for text, _, kind in pieces if kind == _UNKNOWN]
  if not kinds <= {_NORMAL, _UNKNOWN, _CONTROL, _BYTE} or len(unknown) != 1:
    raise ValueError(
      f"{file}: {len(unknown)} unknown pieces and pieces of types {sorted(kinds)}, "
      "expected one, and types 1, 2, 3, 6 only; give a tokenizer.json instead"
    )
  vocabulary = {text: i for i, (text, _, _) in enumerate(pieces)}
  if len(vocabulary) != len(pieces):
    raise ValueError(f"{file}: {len(pieces)} pieces, {len(vocabulary)} different ones")
  tokenizer = Tokenizer(
    models.BPE(
      vocab=vocabulary,
      merges=_merges(pieces),
      unk_token=unknown[0],
      fuse_unk=True,
      byte_fallback=True,
    )
  )
  tokenizer.normalizer = normalizers.Sequence(
    [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
  )
  tokenizer.decoder = decoders.Sequence(
    [
      decoders.Replace(SPACE, " "),
      decoders.ByteFallback(),
      decoders.Fuse(),
      decoders.Strip(" ", 1, 0),
    ]
  )
  tokenizer.add_special_tokens(
    [
      AddedToken(text, normalized=False, special=True)
      for text, _, kind in pieces
      if kind in (_UNKNOWN, _CONTROL)
    ]
  )
  return tokenizer


def _merges(pieces: list[tuple[str, float, int]]) -> list[tuple[str, str]]:
  """All pairs of pieces that make a piece, in the order in which they are merged.

  SentencePiece merges the pair of the highest score, the leftmost if several have it.
  Two pairs that make the same piece, or pieces of equal score (LLaMA's runs of spaces),
  are merged from the left too if the pair with the longer left part goes first.
  """
  normal = {text: score for text, score, kind in pieces if kind == _NORMAL}
  pairs = [
    (-score, -cut, text)
    for text, score in normal.items()
    for cut in range(1, len(text))
    if text[:cut] in normal and text[cut:] in normal
  ]
  return [(text[:-cut], text[-cut:]) for _, cut, text in sorted(pairs)]


def _read(
  data: bytes,
) -> tuple[list[tuple[str, float, int]], dict[int, dict[int, int | bytes]]]:
  """([(text, score, type) of each piece], {message: its fields})."""
  pieces: list[tuple[str, float, int]] = []
  specs: dict[int, dict[int, int | bytes]] = {}
  for field, value in _fields(data):
    if field == _PIECES:
      piece = dict(_fields(_bytes(value)))
      score = struct.unpack("<f", _bytes(piece.get(2, bytes(4))))[0]
      pieces.append((_bytes(piece[1]).decode(), score, int(piece.get(3, _NORMAL))))
    elif field in (_TRAINER, _NORMALIZER):
      specs[field] = dict(_fields(_bytes(value)))
  if not pieces or set(specs) != {_TRAINER, _NORMALIZER}:
    raise ValueError("no pieces, or nothing said about training and normalisation")
  return pieces, specs


def _bytes(value: int | bytes) -> bytes:
  if not isinstance(value, bytes):
    raise TypeError("a number where bytes were expected")
  return value


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
  """(field number, value) of a protocol buffer: numbers as int, the rest as bytes."""
  at = 0
  while at < len(data):
    key, at = _varint(data, at)
    kind = key & 7
    if kind == 0:
      number, at = _varint(data, at)
      yield key >> 3, number
      continue
    if kind not in (1, 2, 5):
      raise ValueError(f"wire type {kind}")
    size, at = _varint(data, at) if kind == 2 else ({1: 8, 5: 4}[kind], at)
    if at + size > len(data):
      raise ValueError("the last field is cut")
    yield key >> 3, data[at : at + size]
    at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
  """(a number of seven bits a byte, low ones first; where the next field begins)."""
  number = shift = 0
  while True:
    byte = data[at]
    number |= (byte & 0x7F) << shift
    at, shift = at + 1, shift + 7
    if byte < 0x80:
      return number, at
