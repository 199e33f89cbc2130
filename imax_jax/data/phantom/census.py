"""The phantom hospital's census: all tables of the releases in their real size.

    write_census(root, seed=0)            or  python -m imax_jax.data.phantom.census ROOT

writes below `root`, in PhysioNet's layout, what `imax_jax.data.sources` reads, but no
image: 377,110 rows of metadata, 243,334 rows of masks (13 GB), 227,835 reports, 377,391
questions. Nobody was X-rayed for it, not even on paper: a study's tables do not agree
with each other. It is there to be read in full, for speed, memory and counts.
`census_truth` holds the boxes and areas of the masks (`census_masks`) and the counts.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

from imax_jax import progress as progress_lib
from imax_jax.data.phantom import census_labels
from imax_jax.data.phantom import census_masks
from imax_jax.data.phantom import census_people
from imax_jax.data.phantom import census_questions
from imax_jax.data.phantom import census_tables
from imax_jax.data.phantom import census_texts

TRUTH = "census_truth"
# Below it some table would have no row of some kind.
MIN_SCALE = 0.001


def write_census(
  root: str | Path,
  *,
  seed: int,
  scale: float = 1.0,
  image_size: tuple[int, int] = (3056, 2544),
  progress: Callable[[int, int], None] | None = None,
) -> dict[str, int]:
  """Draws a census and writes it; the same arguments give the same bytes.

  All is written to a folder beside `root`, readable by its owner only, that takes
  `root`'s name once it is complete.

  Args:
    root: a path that is not there yet, or an empty folder.
    scale: of all the numbers of rows, from `MIN_SCALE` to 1.
    image_size: rows and columns of the commonest film; a mask's text grows with it.
    progress: called with (rows of masks written, rows in all).

  Returns:
    Counts: patients, studies, images, frontal_images, and what each source holds.

  Raises:
    ValueError: a bad argument, or `root` is not empty.
  """
  root = Path(root)
  if not 0 <= seed < 2**32:
    raise ValueError(f"seed: expected 0 to 2**32 - 1, got {seed}")
  if not MIN_SCALE <= scale <= 1:
    raise ValueError(f"scale: expected {MIN_SCALE} to 1, got {scale}")
  if min(image_size) < 256 or max(image_size) >= 2**16:
    raise ValueError(f"image_size: expected 256 to 65535 pixels, got {image_size}")
  if root.exists() and (not root.is_dir() or any(root.iterdir())):
    raise ValueError(
      f"{root}: expected no such folder, or an empty one; choose another"
    )
  root.parent.mkdir(parents=True, exist_ok=True)
  draft = root.parent / f".{root.name}.{uuid.uuid4().hex[:8]}.partial"
  draft.mkdir(mode=0o700)
  try:
    people = census_people.draw_people(seed, scale, image_size)
    counts = _write_sources(draft, people, progress)
    (draft / TRUTH / "counts.json").write_text(json.dumps(counts, indent=2) + "\n")
    if root.exists():
      root.rmdir()
    os.replace(draft, root)
  except BaseException:  # Ctrl-C too: a draft is of no use to anyone
    shutil.rmtree(draft, ignore_errors=True)
    raise
  return counts


def _write_sources(
  root: Path,
  people: census_people.People,
  progress: Callable[[int, int], None] | None,
) -> dict[str, int]:
  done = 0

  def tick(rows: int) -> None:
    nonlocal done
    done += rows
    if progress is not None:
      progress(done, people.frontal.size)

  census_tables.write_mimic(root / "mimic-cxr-jpg/2.1.0", people)
  return {
    "patients": len(people.subject_ids),
    "studies": len(people.study_ids),
    "images": len(people.image_ids),
    "frontal_images": people.frontal.size,
    "report": census_texts.write_reports(
      root / "mimic-cxr/2.1.0/mimic-cxr-reports.zip", people
    ),
    "calculation": census_tables.write_cardiomegaly(
      root / "cxr-cardiomegaly/1.0.0", people
    ),
    "multi_class": census_tables.write_pe_severity(
      root / "mimic-cxr-pe-severity/1.0.1", people
    ),
    "multi_label": census_labels.write_cxr_lt(
      root / "cxr-lt-iccv-workshop-cvamd/2.0.0", people
    ),
    "vqa": census_questions.write_vqa(
      root / "mimic-ext-mimic-cxr-vqa/1.0.0", people
    ),
    "chexmask": census_masks.write_chexmask(
      root / "chexmask-cxr-segmentation-data/1.0.0", people, root / TRUTH, tick
    ),
  }  # fmt: skip


def main() -> None:
  parser = argparse.ArgumentParser(
    prog="python -m imax_jax.data.phantom.census",
    description="Writes all tables of the releases in their real size (some 14 GB).",
  )
  parser.add_argument("root", type=Path, help="a folder that is not there yet")
  parser.add_argument("--scale", type=float, default=1.0, help="0.1: a tenth of it")
  parser.add_argument("--seed", type=int, default=0)
  given = parser.parse_args()
  with progress_lib.bar("census") as tick:
    counts = write_census(given.root, seed=given.seed, scale=given.scale, progress=tick)
  sys.stdout.write(json.dumps(counts, indent=2) + "\n")


if __name__ == "__main__":
  main()
