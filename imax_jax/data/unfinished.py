"""A build that was stopped goes on: what is finished of it, and how that is known.

    data_dir/.unfinished/imax/1.1.0/…    shards, named as they will be
    data_dir/.unfinished/whole/*.json    for each whole shard: what it was made from, and
                                         its `ShardInfo`
    data_dir/.unfinished/moving.json     all is written, and being moved to data_dir

Each file appears at once, a shard before its JSON. So a shard without one is a part.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Generator
from collections.abc import Iterable
from collections.abc import Sequence
from pathlib import Path

import PIL

from imax_jax.data import shards
from imax_jax.data.entries import entry_to_json
from imax_jax.data.manifest import ShardInfo
from imax_jax.data.manifest import sha256_of
from imax_jax.data.shards import DamagedImages
from imax_jax.data.shards import Shard
from imax_jax.ledger import write_json

FOLDER = ".unfinished"
_MOVING = "moving.json"
_WHOLE = "whole"
_THREADS = min(8, os.cpu_count() or 1)  # hashing releases the interpreter's lock


def is_left_in(data_dir: str | Path) -> bool:
  """Whether a build in this folder was stopped before its end."""
  folder = Path(data_dir) / FOLDER
  return folder.is_dir() and any(folder.iterdir())


@dataclasses.dataclass(frozen=True, slots=True)
class Work:
  """The work folder of the build of one `data_dir`. Picklable.

  `settings` is what decides a shard's bytes beside its images and entries.
  """

  data_dir: Path
  settings: str

  @property
  def folder(self) -> Path:
    return self.data_dir / FOLDER

  def begin(self, plan: Sequence[Shard]) -> dict[str, ShardInfo]:
    """Makes the folder, or removes from it all but the plan's whole shards; tells these.

    A shard is taken over if it was made from the very images and entries of the plan,
    by their files' sizes and times, and is still the file that was written.
    """
    self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
      try:
        kept = [info for info in pool.map(self._find, plan) if info is not None]
      finally:
        pool.shutdown(cancel_futures=True)
    self._keep_only({info.name for info in kept})
    return {info.name: info for info in kept}

  def write(self, shard: Shard, store: shards.Store) -> ShardInfo | DamagedImages:
    """`shards.write_shard`, so that a later build finds it; gives what it raises."""
    made_from = self.digest(shard)
    try:
      info = shards.write_shard(shard, self.folder, store)
    except DamagedImages as damage:
      return damage
    self.keep(info, made_from)
    return info

  def keep(self, info: ShardInfo, made_from: str | None) -> None:
    """Says that a shard is whole; `made_from` is its `digest` before it was begun."""
    if made_from is not None:
      record = {"made_from": made_from, "shard": dataclasses.asdict(info)}
      write_json(self._note(info.name), record)

  def digest(self, shard: Shard) -> str | None:
    """Of all that decides a shard's bytes; None: not all images can be seen from here."""
    # Another version of Pillow may decode or compress otherwise.
    head = (shard.name, self.settings, PIL.__version__)
    digest = hashlib.sha256(repr(head).encode())
    for selected in shard.images:
      try:
        file = os.stat(selected.radiograph.path)
      except OSError:
        return None
      lines = [repr((selected.radiograph, file.st_size, file.st_mtime_ns))]
      lines += (entry_to_json(entry) for entry in selected.entries)
      # A lone surrogate is for the writing to complain of.
      digest.update("\n".join((*lines, "")).encode("utf8", "surrogatepass"))
    return digest.hexdigest()

  def end(self, datasets: Iterable[str]) -> None:
    """Moves the datasets to their place. `take_back` undoes it until `remove`."""
    names = list(datasets)
    write_json(self.folder / _MOVING, names)
    for name in names:
      (self.folder / name).rename(self.data_dir / name)

  def take_back(self) -> None:
    """Moves back what a build that was stopped at its `end` had moved."""
    moving = self.folder / _MOVING
    if not moving.exists():
      return
    for name in json.loads(moving.read_text(encoding="utf8")):
      if (self.data_dir / name).exists() and not (self.folder / name).exists():
        (self.data_dir / name).rename(self.folder / name)
    moving.unlink()

  def remove(self) -> None:
    """Removes the folder once all is in its place; what tells of moving, last."""
    shutil.rmtree(self.folder / _WHOLE, ignore_errors=True)
    (self.folder / _MOVING).unlink(missing_ok=True)
    shutil.rmtree(self.folder, ignore_errors=True)

  def tidy(self) -> None:
    """Leaves the whole shards only, and no folder where there are none."""
    notes = (self.folder / _WHOLE).glob("*.json")
    self._keep_only({json.loads(n.read_bytes())["shard"]["name"] for n in notes})
    with contextlib.suppress(OSError):  # not empty
      self.folder.rmdir()

  def _note(self, name: str) -> Path:
    return self.folder / _WHOLE / f"{Path(name).name}.json"

  def _find(self, shard: Shard) -> ShardInfo | None:
    try:
      record = json.loads(self._note(shard.name).read_text(encoding="utf8"))
      info = ShardInfo(**record["shard"])
      if record["made_from"] != self.digest(shard):
        return None
      # A machine that lost its power may have kept a file's size and not its bytes.
      return info if sha256_of(self.folder / info.name) == info.sha256 else None
    except (OSError, KeyError, TypeError, ValueError):
      return None

  def _keep_only(self, names: Collection[str]) -> None:
    keep = {self.folder / name for name in names} | {self._note(name) for name in names}
    for path in sorted(
      self.folder.rglob("*"), reverse=True
    ):  # what a folder holds first
      if path.is_dir() and not path.is_symlink():
        with contextlib.suppress(OSError):  # not empty
          path.rmdir()
      elif path not in keep:
        path.unlink()


def write_all(
  plan: Sequence[Shard],
  work: Work,
  store: shards.Store,
  workers: int,
  beam_args: Sequence[str] | None,
  progress: Callable[[int], object] | None,
) -> list[ShardInfo]:
  """Writes the shards that an earlier go has not; tells of all, in the plan's order.

  The arguments are those of `builder.build`.

  Raises:
    DamagedImages: those of all shards; the other shards are written.
    ValueError, OSError: at once, as `shards.write_shard` and `data.beam` do.
  """
  tell = progress or (lambda count: None)
  whole = work.begin(plan)
  for info in whole.values():
    tell(info.num_examples)
  rest = [shard for shard in plan if shard.name not in whole]
  damaged = []
  with contextlib.closing(_outcomes(rest, work, store, workers, beam_args)) as outcomes:
    for outcome in outcomes:
      if isinstance(outcome, DamagedImages):
        damaged.append(outcome)
        continue
      whole[outcome.name] = outcome
      tell(outcome.num_examples)
  if damaged:
    raise DamagedImages.all_of(damaged)
  return [whole[shard.name] for shard in plan]


def _outcomes(
  plan: Sequence[Shard],
  work: Work,
  store: shards.Store,
  workers: int,
  beam_args: Sequence[str] | None,
) -> Generator[ShardInfo | DamagedImages, None, None]:
  """Writes the shards, and notes each that is whole."""
  write = functools.partial(work.write, store=store)
  if beam_args is not None:
    try:
      from imax_jax.data import beam
    except ImportError as error:
      raise ValueError(
        f"building with Apache Beam needs the extra: pip install 'imax_jax[beam]' ({error})"
      ) from error
    made_from = [work.digest(shard) for shard in plan]
    outcomes = beam.run(plan, work.folder, store, beam_args) if plan else iter(())
    for digest, outcome in zip(made_from, outcomes, strict=True):
      if not isinstance(outcome, DamagedImages):
        work.keep(outcome, digest)
      yield outcome
  elif workers == 1 or len(plan) <= 1:
    yield from map(write, plan)
  else:
    yield from shards.in_processes(write, plan, min(workers, len(plan)))
