"""The verb `explain`: from an entry back to the row of the file that it was read from.

    explain --entry aaaaaaaa-…-00000001/rec/heart/0

      entry     aaaaaaaa-…-00000001/rec/heart/0, imax_train
      prompt    [rec] Based on the input image, … the heart.      (wording rec/0)
      answer    <250><310><520><700>
      target    Region: box (0.25, 0.31, 0.52, 0.7), name heart, …
      rule      chexmask/box: The box around the runs of an organ's mask, …
      source    chexmask, OriginalResolution/MIMIC-CXR-JPG.csv, data row 17
      file      SHA-256 9f86…, as it was when the data were built
      image     SHA-256 60303ae2…, patient 10000001, study 50000001, view PA

A report's text is not printed, only its length and SHA-256. After `select` alone, which
writes no entries, it prints what the recipe has of one: all but answer, target and image.
"""

from __future__ import annotations

import bisect
import hashlib
import sys
from collections.abc import Iterator
from collections.abc import Mapping
from pathlib import Path

from imax_jax.data import builder
from imax_jax.data import entries
from imax_jax.data import manifest
from imax_jax.data import prompts
from imax_jax.data import recipe
from imax_jax.data import sources
from imax_jax.schema import TASKS
from imax_jax.schema import Entry
from imax_jax.schema import ImageRecord
from imax_jax.schema import Origin
from imax_jax.schema import Report
from imax_jax.study import Study
from imax_jax.study import UsageError


def explain(study: Study, request: Mapping[str, str | None]) -> None:
  """Prints the chain of every place where the entry is.

  Raises:
    UsageError: no --entry.
    ValueError: no split has it.
  """
  wanted = request["entry"]
  if not wanted:
    raise UsageError("explain needs --entry, an entry's id: IMAGE/TASK/SUBTASK/NUMBER")
  ledger = study.ledger
  if ledger.is_done("selection") and not ledger.is_done("data"):
    ledger.digest("selection", study.data_inputs)
    chains = _selected(study.workdir / "selection", wanted)
  else:
    study.require_data()
    chains = _built(study.workdir / "data", wanted)
  for said in chains:
    sys.stdout.write("".join(f"  {key:<9} {text}\n" for key, text in said) + "\n")


# (what, what about it), a line each
_Chain = list[tuple[str, str]]


def _selected(folder: Path, wanted: str) -> list[_Chain]:
  """Of the recipe's lines."""
  inputs = manifest.read(folder)["inputs"]
  return [
    [
      ("entry", f"{line['id']}, {line['split']}"),
      ("prompt", f"wording {line['template']}; written out by the verb build"),
      *_origin(
        Origin(*(line[key] for key in ("source", "file", "row", "rule"))), inputs
      ),
    ]
    for line in recipe.find(folder / "recipe.jsonl.gz", wanted)
  ]


def _built(data_dir: Path, wanted: str) -> list[_Chain]:
  inputs = manifest.read(data_dir)["inputs"]
  chains = [
    _chain(data_dir, split, record, entry, inputs)
    for split in builder.splits_of(data_dir)
    for record, entry in _find(data_dir, split, wanted)
  ]
  if not chains:
    raise ValueError(
      f"no split in {data_dir} has the entry {wanted!r}; ids are IMAGE/TASK/SUBTASK/"
      f"NUMBER, and {data_dir / 'recipe.jsonl.gz'} lists them all"
    )
  return chains


def _find(
  data_dir: Path, split: str, wanted: str
) -> Iterator[tuple[ImageRecord, Entry]]:
  """By the image's id: a split is sorted by it."""
  records = builder.open_split(data_dir, split)
  images = {
    wanted[: wanted.find(f"/{task}/")] for task in TASKS if f"/{task}/" in wanted
  }
  for image in sorted(images):
    place = bisect.bisect_left(
      range(len(records)), image, key=lambda i: records[i].image_id
    )
    if place < len(records) and records[place].image_id == image:
      for entry in records[place].entries:
        if entry.id == wanted:
          yield records[place], entry


def _chain(
  data_dir: Path,
  split: str,
  record: ImageRecord,
  entry: Entry,
  inputs: Mapping[str, str],
) -> _Chain:
  answer, target = entry.answer, entries.target_fields(entry.target)
  if isinstance(entry.target, Report):
    digest = hashlib.sha256(answer.encode()).hexdigest()
    answer = f"a report of {len(answer.split())} words, SHA-256 {digest}"
    target = {}
  fields = ", ".join(f"{key} {value}" for key, value in target.items())
  return [
    ("entry", f"{entry.id}, {split}"),
    ("prompt", f"{entry.prompt}      (wording {prompts.template_id(entry)})"),
    ("answer", answer),
    ("target", f"{type(entry.target).__name__}{': ' if fields else ''}{fields}"),
    *_origin(entry.origin, inputs),
    (
      "image",
      f"SHA-256 {manifest.image_digest(data_dir, record.image_id)}, patient "
      f"{record.patient_id}, study {record.study_id}, view {record.view or 'not given'}",
    ),
  ]


def _origin(origin: Origin, inputs: Mapping[str, str]) -> _Chain:
  return [
    ("rule", f"{origin.rule}: {sources.RULES.get(origin.rule, 'no longer a rule')}"),
    ("source", f"{origin.source}, {origin.file}, data row {origin.row}"),
    ("file", _file(origin, inputs)),
  ]


def _file(origin: Origin, inputs: Mapping[str, str]) -> str:
  """The hash of the file, or of the archives that it can be a member of."""
  if digest := inputs.get(f"{origin.source}/{origin.file}"):
    return f"SHA-256 {digest}"
  archives = [
    f"{name.removeprefix(f'{origin.source}/')}, SHA-256 {digest}"
    for name, digest in inputs.items()
    if name.startswith(f"{origin.source}/") and name.endswith((".zip", ".tgz"))
  ]
  return f"a member of {' or '.join(archives)}" if archives else "not in the manifest"
