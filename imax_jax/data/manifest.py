"""What a built dataset was made from and what it is made of, by SHA-256.

    data_dir/manifest.json    input tables, shards, TFDS's own files, and images.sha256
    data_dir/images.sha256    "<64 hexadecimal digits>  <image id>", by id: source files

Neither names a machine, a folder outside or a time: equal builds have equal manifests.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imax_jax.ledger import whole
from imax_jax.ledger import write_json

FILE = "manifest.json"
IMAGES = "images.sha256"
_FORMAT = 1
_TABLES = ("shards", "metadata")


@dataclasses.dataclass(frozen=True, slots=True)
class ShardInfo:
  """One file of images, as it was written.

  name: below data_dir, "imax/1.1.0/imax-train.array_record-00000-of-00038".
  num_examples: images.
  num_bytes: of the serialised examples, which is what TFDS counts.
  size: of the file, in bytes.
  images: image id -> SHA-256 of the source file's bytes.
  """

  name: str
  num_examples: int
  num_bytes: int
  size: int
  sha256: str
  images: dict[str, str]


def sha256_of(path: str | Path) -> str:
  """Of a file's bytes, as 64 hexadecimal digits."""
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def write(
  data_dir: str | Path, shards: Sequence[ShardInfo], inputs: Mapping[str, str]
) -> None:
  """Writes both files for what lies in `data_dir`.

  Args:
    shards: what `builder.build` returned.
    inputs: the SHA-256 of each input table by its name, which should be relative to its
      source's root: {"cardiomegaly/CTRs.csv": "9f86…"}.

  Raises:
    ValueError: one image id with two files.
  """
  data_dir = Path(data_dir)
  images: dict[str, str] = {}
  for shard in shards:
    for image_id, digest in shard.images.items():
      if images.setdefault(image_id, digest) != digest:
        raise ValueError(
          f"image {image_id!r}: its file differs from shard to shard; it was changed "
          "during the build, build the data anew"
        )
  with whole(data_dir / IMAGES) as part, part.open("w", encoding="utf8") as file:
    file.writelines(f"{images[image_id]}  {image_id}\n" for image_id in sorted(images))
  names = {shard.name for shard in shards}
  content = {
    "format": _FORMAT,
    "images": {"count": len(images), "sha256": sha256_of(data_dir / IMAGES)},
    "inputs": dict(sorted(inputs.items())),
    "metadata": {
      name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
      for name, path in _files(data_dir, names)
      if name not in names
    },
    "shards": {
      shard.name: {
        "bytes": shard.size,
        "examples": shard.num_examples,
        "sha256": shard.sha256,
      }
      for shard in sorted(shards, key=lambda shard: shard.name)
    },
  }
  write_json(data_dir / FILE, content)


def read(data_dir: str | Path) -> dict[str, Any]:
  """The manifest of `data_dir`.

  Raises:
    FileNotFoundError: there is none.
    ValueError: the file is not a manifest of this version.
  """
  path = Path(data_dir) / FILE
  if not path.is_file():
    raise FileNotFoundError(f"{path}: no manifest here; build the data first")
  try:
    content = json.loads(path.read_text(encoding="utf8"))
    recorded = [content["images"], *(v for k in _TABLES for v in content[k].values())]
    if content["format"] == _FORMAT and all("sha256" in item for item in recorded):
      return content
    reason = f"format {content['format']!r}"
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    reason = type(error).__name__
  raise ValueError(
    f"{path}: expected a manifest of format {_FORMAT} ({reason}); build the data anew"
  )


def image_digest(data_dir: str | Path, image_id: str) -> str:
  """The SHA-256 of an image's source file.

  Raises:
    ValueError: the build had no such image.
  """
  with open(Path(data_dir) / IMAGES, encoding="utf8") as lines:
    for line in lines:
      if line[66:].rstrip("\n") == image_id:
        return line[:64]
  raise ValueError(f"{data_dir}: no image {image_id!r} in {IMAGES}")


def verify(data_dir: str | Path) -> list[str]:
  """How what lies in `data_dir` differs from its manifest; nothing: not at all.

  Reads every file: "imax/1.1.0/…-00003-of-00038: missing", ": changed" or ": not in the
  manifest". Raises as `read` does.
  """
  data_dir = Path(data_dir)
  content = read(data_dir)
  recorded = {
    name: item["sha256"] for table in _TABLES for name, item in content[table].items()
  }
  recorded[IMAGES] = content["images"]["sha256"]
  found = dict(_files(data_dir, recorded))
  if (data_dir / IMAGES).is_file():
    found[IMAGES] = data_dir / IMAGES
  differences = []
  for name in sorted(recorded.keys() | found.keys()):
    if name not in found:
      differences.append(f"{name}: missing")
    elif name not in recorded:
      differences.append(f"{name}: not in the manifest")
    elif sha256_of(found[name]) != recorded[name]:
      differences.append(f"{name}: changed")
  return differences


def _files(data_dir: Path, names: Iterable[str]) -> Iterator[tuple[str, Path]]:
  """The files of the named files' datasets, and shards of any other; with their names.

  What is hidden is a build's own, and not written to its end (`data.unfinished`).
  """
  datasets = {Path(name).parts[0] for name in names}
  for path in sorted(data_dir.glob("[!.]*/**/*")):
    name = path.relative_to(data_dir).as_posix()
    known = name.split("/")[0] in datasets or ".array_record-" in path.name
    if known and path.is_file():
      yield name, path
