"""The shards of a build, written by Apache Beam: on many machines, or here.

The driver, which has read the tables and made the plan, puts every shard's plan into an
exchange folder; a worker takes a plan, writes the shard and puts it back; the driver
fetches it and compares its SHA-256. Only the shards' numbers pass through Beam itself:
its graph stays small, and its logs hold no patient's text.

Beside Beam's own options (`--runner`, …) `run` knows

    --exchange=FOLDER      where driver and workers meet: a shared folder, or any file
                           system Beam can write (gs://, s3://, hdfs://). Without it, the
                           folder of the dataset, which all machines must then share
    --images=HERE=THERE    images the driver sees below HERE the workers read from THERE

Beam is the extra `[beam]`. Its pins are older than this package's: install the two
without constraints.txt, in an environment of their own (`launch/beam.sh`).
"""

from __future__ import annotations

import dataclasses
import errno
import functools
import json
import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import apache_beam
from apache_beam.io.filesystem import BeamIOError
from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.options.pipeline_options import StandardOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from imax_jax.data import shards
from imax_jax.data.construct import Selected
from imax_jax.data.entries import entry_from_json
from imax_jax.data.entries import entry_to_json
from imax_jax.data.manifest import ShardInfo
from imax_jax.data.manifest import sha256_of
from imax_jax.data.shards import DamagedImages
from imax_jax.data.shards import Shard
from imax_jax.data.shards import Store
from imax_jax.ledger import whole
from imax_jax.schema import Radiograph

_RAW = CompressionTypes.UNCOMPRESSED  # else Beam unpacks what ends in .gz


class _Options(PipelineOptions):
  @classmethod
  def _add_argparse_args(cls, parser: Any) -> None:
    parser.add_argument("--exchange", default="")
    parser.add_argument("--images", default="")


def run(
  plan: Sequence[Shard],
  folder: Path,
  store: Store,
  pipeline_args: Sequence[str],
) -> Iterator[ShardInfo | DamagedImages]:
  """Has all shards written, then puts them below `folder`; tells of each, in order.

  A shard with damaged images is not written: these are told instead.

  Args:
    pipeline_args: Beam's options and those above.

  Raises:
    ValueError: `--images` without a pair, a shard that failed or did not arrive whole.
  """
  options, exchange, images = _parse(pipeline_args, folder)
  _make_folder(exchange)
  try:
    for number, shard in enumerate(plan):
      _put(f"{exchange}/{number}.plan", _plan_to_json(shard).encode())
    write = functools.partial(_write, exchange=exchange, store=store, images=images)
    _run_pipeline(options, write, len(plan))
    for number, shard in enumerate(plan):
      yield _fetch(f"{exchange}/{number}", folder / shard.name)
  finally:
    _remove(exchange)


def _parse(
  pipeline_args: Sequence[str], folder: Path
) -> tuple[PipelineOptions, str, tuple[str, str]]:
  """Beam's options, the exchange folder, and (HERE, THERE) of the images."""
  options = PipelineOptions(list(pipeline_args))
  ours = options.view_as(_Options)
  here, equals, there = ours.images.partition("=")
  if ours.images and not (here and equals and there):
    raise ValueError(f"--images={ours.images}: expected HERE=THERE, two folders")
  root = (ours.exchange or os.path.abspath(folder)).rstrip("/")
  return options, f"{root}/exchange-{secrets.token_hex(4)}", (here, there)


def _run_pipeline(
  options: PipelineOptions, write: Callable[[int], None], count: int
) -> None:
  name = options.view_as(StandardOptions).runner
  # Beam's own choice for "DirectRunner" is to fetch a program from the network.
  direct = name in (None, "DirectRunner", "SwitchingDirectRunner")
  pipeline = apache_beam.Pipeline(
    runner=FnApiRunner() if direct else None, options=options
  )
  _ = (
    pipeline
    | "shards" >> apache_beam.Create(list(range(count)), reshuffle=False)
    | "spread over the workers" >> apache_beam.Reshuffle()
    | "write" >> apache_beam.Map(write)
  )
  try:
    pipeline.run().wait_until_finish()
  except (
    Exception
  ) as error:  # a runner may raise anything, with a worker's error inside
    logging.getLogger(__name__).debug("the pipeline failed", exc_info=True)
    raise ValueError(f"writing with Apache Beam failed: {error}") from error


# ── On a worker ───────────────────────────────────────────────────────────────────


def _write(
  number: int, *, exchange: str, store: Store, images: tuple[str, str]
) -> None:
  """Writes one shard into the exchange folder, and after it what is to tell of it.

  A runner may have it done twice, even at once: the bytes are the same, and each file
  appears whole.
  """
  shard = _plan_from_json(_get(f"{exchange}/{number}.plan").decode())
  read = shards.read_file
  if images[0]:
    read = functools.partial(_read_elsewhere, images=images)
  beside = exchange if _is_local(exchange) else None
  with tempfile.TemporaryDirectory(dir=beside) as work:
    try:
      info = shards.write_shard(shard, Path(work), store, read)
    except DamagedImages as damage:
      told = {"reasons": damage.reasons, "files": damage.files}
    else:
      _put(f"{exchange}/{number}.shard", Path(work) / info.name)
      told = dataclasses.asdict(info)
  _put(f"{exchange}/{number}.info", json.dumps(told).encode())


def _read_elsewhere(path: str, *, images: tuple[str, str]) -> bytes:
  here, there = (root.rstrip("/") for root in images)
  if not path.startswith(f"{here}/"):
    # Without an errno: the machine's error, and not a damaged image.
    raise OSError(f"{path}: expected it below {here}, as --images has it")
  return _get(there + path.removeprefix(here))


# ── Files that driver and workers share ───────────────────────────────────────────


def _is_local(path: str) -> bool:
  return "://" not in path


def _make_folder(path: str) -> None:
  if _is_local(path):
    Path(path).mkdir(mode=0o700, parents=True)
  else:
    FileSystems.mkdirs(path)


def _remove(path: str) -> None:
  if _is_local(path):
    shutil.rmtree(path, ignore_errors=True)
  else:
    FileSystems.delete([f"{path}/"])


def _put(path: str, source: bytes | Path) -> None:
  """Makes a file of these bytes, or of this file, which may be moved."""
  if _is_local(path):
    if isinstance(source, Path):
      source.replace(path)
    else:
      with whole(path) as part:
        part.write_bytes(source)
    return
  # An object store shows a file when it is whole.
  with FileSystems.create(path, compression_type=_RAW) as file:
    if isinstance(source, Path):
      with source.open("rb") as content:
        shutil.copyfileobj(content, file)
    else:
      file.write(source)


def _get(path: str) -> bytes:
  try:
    with FileSystems.open(path, compression_type=_RAW) as file:
      return file.read()
  except BeamIOError:
    if FileSystems.exists(path):
      raise
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from None


def _fetch(source: str, path: Path) -> ShardInfo | DamagedImages:
  """Brings a shard to its place, or tells why there is none."""
  try:
    told = json.loads(_get(f"{source}.info"))
    if "reasons" in told:
      return DamagedImages(**told)
    info = ShardInfo(**told)
  except (OSError, TypeError, ValueError) as error:
    raise ValueError(
      f"{path.name}: no worker has written it to {source} ({type(error).__name__}). Is "
      "this a folder that all machines share? Give one with --exchange=FOLDER"
    ) from error
  with whole(path) as part:
    if _is_local(source):
      shutil.move(f"{source}.shard", part)
    else:
      with (
        FileSystems.open(f"{source}.shard", compression_type=_RAW) as content,
        part.open("wb") as file,
      ):
        shutil.copyfileobj(content, file)
    if sha256_of(part) != info.sha256:
      raise ValueError(
        f"{path.name}: did not arrive as the worker wrote it; is {source} on storage "
        "that is full or damaged? Build the data anew"
      )
  return info


# ── Plans as JSON ─────────────────────────────────────────────────────────────────


def _plan_to_json(shard: Shard) -> str:
  images = [
    {
      "radiograph": dataclasses.asdict(selected.radiograph),
      "entries": [entry_to_json(entry) for entry in selected.entries],
    }
    for selected in shard.images
  ]
  place = {"number": shard.number, "count": shard.count, "negative": shard.negative}
  return json.dumps(
    {"dataset": shard.dataset, "split": shard.split, **place, "images": images}
  )


def _plan_from_json(text: str) -> Shard:
  fields = json.loads(text)
  images = tuple(
    Selected(
      Radiograph(**image["radiograph"]),
      tuple(entry_from_json(entry) for entry in image["entries"]),
    )
    for image in fields.pop("images")
  )
  return Shard(**fields, images=images)
