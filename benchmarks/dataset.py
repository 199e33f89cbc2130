"""From tables of the real size to the entries of IMAX and DMAX: how long, in how much?

  python -m benchmarks.dataset [--scale 0.1] [--root FOLDER]

Writes a census (imax_jax.data.phantom.census) of a tenth of the real size, or reads one
that lies in --root, and prints a line a stage, the peak of memory, and two ratios measured
in the same run: masks to boxes by arithmetic on the runs against the published way (decode
the mask, then np.where), and reading and joining the small tables against polars, where
that is installed. At scale 1 the mask file has 13 GB.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from configs import imax_data
from imax_jax import selection
from imax_jax.data import construct
from imax_jax.data import sources
from imax_jax.data.phantom import census
from imax_jax.data.sources import cardiomegaly
from imax_jax.data.sources import cxr_lt
from imax_jax.data.sources import mimic_cxr_jpg
from imax_jax.data.sources.files import Inside
from imax_jax.data.sources.intake import Intake
from imax_jax.data.sources.masks import parse_runs
from imax_jax.ledger import plain
from imax_jax.schema import FINDINGS
from imax_jax.schema import Annotation
from imax_jax.schema import Bits
from imax_jax.schema import Origin
from imax_jax.schema import Radiograph
from imax_jax.schema import Ratio

_MASKS = 60
_ROUNDS = 3
_LOOKED_UP = 20_000


def say(text: str) -> None:
  sys.stdout.write(f"{text}\n")
  sys.stdout.flush()


def peak_gib() -> float:
  """Of this process and of its largest worker."""
  own, workers = (
    resource.getrusage(who).ru_maxrss
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
  )
  return (own + workers * (os.cpu_count() or 1)) / 2**20


def select(root: Path, scale: float) -> None:
  """Every source in turn, then the construction with the paper's quotas, scaled."""
  roots = sources.roots_of(root)
  intake = Intake()
  options = {
    "mimic_cxr_jpg": {"require_images": False},
    "chexmask": {"workers": os.cpu_count()},
  }
  begun = start = time.perf_counter()
  radiographs = sources.read_radiographs(roots, intake=intake, options=options)
  say(f"  {'mimic_cxr_jpg':16}{time.perf_counter() - start:8.1f} s")
  found: list[Annotation] = []
  for name in roots:
    if name == "mimic_cxr_jpg":
      continue
    start = time.perf_counter()
    one = {"mimic_cxr_jpg": roots["mimic_cxr_jpg"], name: roots[name]}
    found += sources.read_all(one, radiographs, intake=intake, options=options)
    rows = intake.tallies[name].rows
    say(f"  {name:16}{time.perf_counter() - start:8.1f} s{rows:12,} rows")
  intake.finish()
  start = time.perf_counter()
  settings = plain(imax_data.get_config().data.construct)
  settings["quotas"] = {k: round(v * scale) for k, v in settings["quotas"].items()}
  for key in ("num_images", "num_dmax_images"):
    settings[key] = round(settings[key] * scale)
  made = construct.construct(radiographs, found, **settings)
  end = time.perf_counter()
  counts = {name: len(split) for name, split in made.splits.items()}
  say(f"  {'construct':16}{end - start:8.1f} s   {counts}")
  say(f"  {'all':16}{end - begun:8.1f} s, at most {peak_gib():.2f} GiB")


def lookups(root: Path) -> None:
  """Whether each image is there and no link leads out: on empty files, like the real ones.

  The census has no images, so `select` above does not look.
  """
  release = root / sources.FOLDERS["mimic_cxr_jpg"]
  found = mimic_cxr_jpg.read_radiographs(release, require_images=False)
  paths = [r.path.removeprefix(f"{release}/") for r in found.values()][:_LOOKED_UP]
  with tempfile.TemporaryDirectory() as folder:
    for path in paths:
      Path(folder, path).parent.mkdir(parents=True, exist_ok=True)
      Path(folder, path).touch()
    start = time.perf_counter()
    leads_inside = Inside(folder)
    for path in paths:
      whole = f"{folder}/{path}"
      assert os.path.isfile(whole) and leads_inside(whole)
    each = (time.perf_counter() - start) / len(paths)
  say(
    f"images looked up, {len(paths):,} empty files: {1e6 * each:.1f} us each, "
    f"{each * len(found):.1f} s for all {len(found):,} (on this disk)"
  )


def masks(root: Path) -> None:
  """Ours against decode-then-where, on the same masks, in turn."""
  path = root / sources.FOLDERS["chexmask"] / "OriginalResolution/MIMIC-CXR-JPG.csv"
  texts = []
  with path.open(encoding="utf-8") as file:
    file.readline()
    while len(texts) < _MASKS and (line := file.readline()):
      if line.rstrip().count(",") >= 5 and line.startswith(" ["):
        *cells, height, width = line.rstrip().split(",")
        texts += [(cell, int(height), int(width)) for cell in cells[-3:] if cell]
  ours, theirs = [], []
  for _ in range(_ROUNDS):
    start = time.perf_counter()
    boxes = [
      runs.box() for text, h, w in texts if (runs := parse_runs(text, h, w)) is not None
    ]
    ours.append(time.perf_counter() - start)
    start = time.perf_counter()
    decoded = [_decoded_box(text, h, w) for text, h, w in texts]
    theirs.append(time.perf_counter() - start)
    assert boxes == decoded, "the two ways disagree"
  fast, slow = (1e3 * statistics.median(times) / len(texts) for times in (ours, theirs))
  say(
    f"masks to boxes, {len(texts)} masks: {fast:.3f} ms each by the runs, {slow:.1f} ms "
    f"by decoding: {slow / fast:.0f} times as fast"
  )


def _decoded_box(text: str, height: int, width: int) -> tuple[int, int, int, int]:
  """The published way: runs -> pixels -> np.where -> box."""
  numbers = np.array(text.split(), dtype=int)
  mask = np.zeros(height * width, np.uint8)
  for start, length in zip(numbers[0::2] - 1, numbers[1::2], strict=True):
    mask[start : start + length] = 255
  rows, columns = np.where(mask.reshape(height, width) > 0)
  return (
    int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1
  )  # fmt: skip


def joins(root: Path) -> None:
  """Reading and joining metadata, ratios and labels: ours against polars, in turn.

  polars twice: as it would do it, in columns of which none is checked; and with the same
  checks of ids, sizes and values, made into the same annotations.
  """
  try:
    import polars
  except ImportError:
    say("joins: polars is not installed, nothing to compare with")
    return
  roots = {name: root / folder for name, folder in sources.FOLDERS.items()}

  def ours() -> int:
    radiographs = mimic_cxr_jpg.read_radiographs(
      roots["mimic_cxr_jpg"], require_images=False
    )
    ratios = list(cardiomegaly.read(roots["cardiomegaly"], radiographs))
    return len(ratios) + len(list(cxr_lt.read(roots["cxr_lt"], radiographs)))

  def tables(make: bool) -> int:
    column = polars.col
    images = polars.read_csv(roots["mimic_cxr_jpg"] / mimic_cxr_jpg.METADATA)
    labels = polars.read_csv(cxr_lt.label_files(roots["cxr_lt"])[0])
    ratios = {
      name: polars.read_csv(roots["cardiomegaly"] / f"{name}s.csv").rename(
        {"dicom_file": "dicom_id"}
      )
      for name in ("CTR", "CPAR")
    }
    if make:
      dicom = column("dicom_id").str.contains(r"^[0-9a-f]{8}(-[0-9a-f]{8}){4}$")
      number = polars.col("subject_id", "study_id").is_between(10**7, 10**8 - 1)
      pixels = polars.col("Rows", "Columns").is_between(1, 2**16 - 1)
      images = images.with_row_index("row").filter(dicom, number, pixels)
      bits = polars.col(*FINDINGS).is_in([0, 1])
      labels = labels.with_row_index("row").filter(dicom, bits)
      ratios = {n: t.with_row_index("row").filter(dicom) for n, t in ratios.items()}
      # The same image twice: the same is said, or neither counts.
      images, labels = (
        table.unique(polars.exclude("row"), keep="first", maintain_order=True).unique(
          "dicom_id", keep="none", maintain_order=True
        )
        for table in (images, labels)
      )
    images = images.filter(column("ViewPosition").is_in(["PA", "AP"]))
    ratios = {
      name: table.filter(column(name).is_between(0, 1, closed="none"))
      for name, table in ratios.items()
    }
    both = images.select("dicom_id")
    for table in ratios.values():
      both = both.join(table.select("dicom_id"), on="dicom_id")
    labels = images.select("dicom_id").join(labels, on="dicom_id")
    if not make:
      return 2 * both.height + labels.height
    place = str(roots["mimic_cxr_jpg"])
    radiographs = {}
    wanted = ("dicom_id", "study_id", "subject_id", "ViewPosition", "Columns", "Rows")
    for name, study, patient, *rest in images.select(wanted).iter_rows():
      path = f"{place}/files/p{patient // 10**6}/p{patient}/s{study}/{name}.jpg"
      radiographs[name] = Radiograph(name, str(study), str(patient), *rest, path)
    found = []
    for kind, table in ratios.items():
      joined = both.join(table, on="dicom_id").select("dicom_id", kind, "row")
      for name, value, row in joined.iter_rows():
        origin = Origin("cardiomegaly", f"{kind}s.csv", row, cardiomegaly.RULE)
        found.append(
          Annotation(name, "calculation", kind.lower(), Ratio(value), origin)
        )
    for name, row, *values in labels.select("dicom_id", "row", *FINDINGS).iter_rows():
      origin = Origin("cxr_lt", "labels.csv", row, cxr_lt.RULE)
      found.append(Annotation(name, "multi_label", "", Bits(tuple(values)), origin))
    return len(found)

  ways: dict[str, Callable[[], int]] = {
    "ours": ours,
    "columns": lambda: tables(make=False),
    "annotations": lambda: tables(make=True),
  }
  times: dict[str, list[float]] = {name: [] for name in ways}
  counts = set()
  for _ in range(_ROUNDS):
    for name, way in ways.items():
      start = time.perf_counter()
      counts.add(way())
      times[name].append(time.perf_counter() - start)
  assert len(counts) == 1, f"the ways disagree: {counts}"
  own, columns, made = (statistics.median(times[name]) for name in ways)
  say(
    f"joins, {counts.pop():,} annotations: {own:.2f} s here, each bad row named; with "
    f"polars {made:.2f} s when as much is checked and made into annotations ({own / made:.1f} "
    f"times its time), {columns:.2f} s for unchecked columns ({own / columns:.1f} times)"
  )


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--scale", type=float, default=0.1)
  parser.add_argument("--root", type=Path, help="a census that lies there already")
  asked = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    root = asked.root or Path(folder, "census")
    if asked.root is None:
      start = time.perf_counter()
      census.write_census(root, seed=0, scale=asked.scale)
      say(
        f"census of scale {asked.scale}: written in {time.perf_counter() - start:.1f} s"
      )
    size = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
    say(f"{size / 1e9:.2f} GB of tables, {os.cpu_count()} cores")
    with selection.uncollected():  # as the verbs `select` and `build` do
      select(root, asked.scale)
      lookups(root)
      masks(root)
      joins(root)


if __name__ == "__main__":
  main()
