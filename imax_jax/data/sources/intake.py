"""What became of every row that was read: kept, left out by a rule, or rejected.

    intake = Intake(quarantine=Path("quarantine.jsonl"))
    tally = intake.tally("cardiomegaly")
    tally.keep(); tally.leave_out("heart not found"); tally.reject("CTRs.csv", 7, …)
    intake.finish()      # a count by reason; an error if too much was rejected

A row is *left out* where a documented rule of the method does not want it (a lateral
view, a mask below the quality gate): it is counted. A row or file is *rejected* where it
is not what its format says: it is counted and listed in the quarantine, a JSON line each:

    {"source": "cardiomegaly", "file": "CTRs.csv", "row": 7, "reason": "not a number",
     "rule": "cardiomegaly/ratio"}

`row` counts data rows from 0 and is null where the file as a whole is meant. No line
holds a cell of the file: it may be a patient's.
"""

from __future__ import annotations

import collections
import json
import os
from collections.abc import Hashable
from collections.abc import Iterator
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from typing import Generic
from typing import TextIO
from typing import TypeVar

from absl import logging

from imax_jax.schema import Origin

KEPT = "kept"
# What a damaged or misnamed file is listed by, whichever its source.
FILE_RULE = "reading/whole file"
ROW_RULE = "reading/row"
IMAGE_RULE = "reading/image"
TWICE_RULE = "reading/twice"
CONTRADICTS = "contradicts another row about the same thing"
_AGAIN = "says again what another row says"
RULES: dict[str, str] = {
  FILE_RULE: "A file must be readable to its end and have the columns of its release.",
  ROW_RULE: "A row must be UTF-8 without NUL bytes, with a cell for each column.",
  IMAGE_RULE: "An image must be one that can be decoded to its end.",
  TWICE_RULE: "Of rows that contradict each other about the same thing none is used.",
}

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class DamagedFile(ValueError):
  """A file that can not be read to its end, or is not what its name says."""

  def __init__(self, path: str | Path, reason: str, remedy: str = "") -> None:
    super().__init__(f"{path}: {reason}" + (f". {remedy}" if remedy else ""))
    self.path, self.reason = Path(path), reason


class Tally:
  """The rows of one source. Used alone (in a test, at a prompt) it lists nothing.

  Attributes:
    source: whose rows these are, "nih"; or which part of them, "nih images".
    dataset: the former, where `source` is the latter.
    unit: what is kept: "annotations", "images" or "rows".
    root: its folder, which the file names of the quarantine are relative to.
    counts: "kept", and every other row by the reason why it was not.
    rejected: the reasons among those of `counts` that are rejections.
    rows: data rows read, of all files.
    cases: what an unverified point of the format turned out to be,
      {"Height and Width": "as the metadata's Rows and Columns"}.
    inputs: the files that were opened.
  """

  def __init__(self, source: str, intake: Intake | None = None) -> None:
    self.source = self.dataset = source
    self.unit = "annotations"
    self.root = Path()
    self.counts: collections.Counter[str] = collections.Counter()
    self.rejected: collections.Counter[str] = collections.Counter()
    self.rows = 0
    self.damaged_files = 0
    self.cases: dict[str, str] = {}
    self.inputs: dict[Path, None] = {}  # a set that remembers its order
    self._intake = intake
    self._names: dict[str | Path, str] = {}

  def keep(self, count: int = 1) -> None:
    self.counts[KEPT] += count

  def leave_out(self, reason: str, count: int = 1) -> None:
    if count:
      self.counts[reason] += count

  def leave_out_image(self, image_id: str, reason: str) -> None:
    """As `leave_out`, and remembers why for the sources that speak of this image."""
    self.leave_out(reason)
    if self._intake is not None:
      self._intake.absent[image_id] = reason

  def reject(self, file: str, row: int | None, reason: str, rule: str) -> None:
    self.counts[reason] += 1
    self.rejected[reason] += 1
    if self._intake is not None:
      self._intake.list_rejected(self.source, file, row, reason, rule)

  def add(self, unlisted: Tally) -> None:
    """Counts what another counted alone: rows that are met, and listed, a second time."""
    self.rows += unlisted.rows
    self.damaged_files += unlisted.damaged_files
    self.counts += unlisted.counts
    self.rejected += unlisted.rejected

  def reject_file(self, error: DamagedFile) -> None:
    self.damaged_files += 1
    self.reject(self.name(error.path), None, error.reason, FILE_RULE)

  def reject_image(self, image_id: str, path: Path, reason: str) -> None:
    """An image that was kept and turned out not to be readable."""
    self.counts[KEPT] -= 1
    self.reject(self.name(path), None, f"image: {reason}", IMAGE_RULE)
    if self._intake is not None:
      self._intake.absent[image_id] = "not readable"

  def met(self, question: str, case: str) -> None:
    """Records which case of an unverified point these files are; `case` has no cell."""
    self.cases[question] = case

  def opened(self, path: Path) -> Path:
    """Notes the file, and whether it ends within a line: then it may be cut short."""
    self.inputs[path] = None
    if path.suffix == ".csv" and not _ends_a_line(path):
      self.met(f"end of {path.name}", "within a line: complete, or cut short?")
    return path

  def name(self, path: str | Path) -> str:
    """A file's name as the quarantine and an `Origin` give it: relative to the root."""
    if path not in self._names:  # asked for every row, and Path is slow
      place = Path(path)
      inside = place != self.root and place.is_relative_to(self.root)
      self._names[path] = (
        place.relative_to(self.root).as_posix() if inside else place.name
      )
    return self._names[path]

  def origin(self, path: str | Path, row: int, rule: str) -> Origin:
    """`path` is a file, or, as a str, what `name` has made of one."""
    name = path if isinstance(path, str) else self.name(path)
    return Origin(self.source, name, row, rule)

  def absent(self, image_id: str) -> None:
    """Counts a row about an image that is not among the radiographs, by the reason."""
    known = self._intake.absent if self._intake is not None else {}
    self.leave_out(f"image: {known.get(image_id, 'not among the radiographs')}")

  def log(self) -> None:
    """What was kept, left out, rejected, for which reasons; short if an intake sums up."""
    if self._intake is not None:
      logging.info(
        "%s: %s rows read, %s %s kept, %s rejected", self.source, f"{self.rows:,}",
        f"{self.counts[KEPT]:,}", self.unit, f"{self.rejected.total():,}",
      )  # fmt: skip
      return
    left_out = self.counts - self.rejected
    logging.info(
      "%s: %d rows read, %d %s kept; left out %s; rejected %s",
      self.source, self.rows, left_out.pop(KEPT, 0), self.unit,
      dict(sorted(left_out.items())), dict(sorted(self.rejected.items())),
    )  # fmt: skip
    for question, case in self.cases.items():
      logging.info("%s: %s: %s", self.source, question, case)


class Intake:
  """The tallies of a build, and its quarantine file, written line by line.

  Args:
    quarantine: where to list what is rejected; None: nowhere.
    max_quarantined: the share of a source's rows that may be rejected. A damaged file
      counts as all of its source's rows.

  Attributes:
    absent: image id -> why it is not among the radiographs, for those that the
      metadata does name.
  """

  def __init__(
    self, quarantine: Path | None = None, *, max_quarantined: float = 0.01
  ) -> None:
    check_share(max_quarantined)
    self.tallies: dict[str, Tally] = {}
    self.absent: dict[str, str] = {}
    self._max = max_quarantined
    self._path = quarantine
    self._file: TextIO | None = None
    if quarantine is not None:
      descriptor = os.open(quarantine, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
      self._file = os.fdopen(descriptor, "w", encoding="utf-8")

  def tally(
    self,
    source: str,
    root: str | Path = ".",
    *,
    part: str = "",
    unit: str = "annotations",
  ) -> Tally:
    """Of a source; or of a `part` of its files that is counted by itself."""
    name = f"{source} {part}" if part else source
    tally = self.tallies.setdefault(name, Tally(name, self))
    tally.root, tally.dataset, tally.unit = Path(root), source, unit
    return tally

  def list_rejected(
    self, source: str, file: str, row: int | None, reason: str, rule: str
  ) -> None:
    if self._file is not None:
      line = {"source": source, "file": file, "row": row, "reason": reason}
      self._file.write(json.dumps(line | {"rule": rule}) + "\n")
      self._file.flush()  # a killed build leaves what it had found

  def close(self) -> None:
    if self._file is not None:
      self._file.close()
      self._file = None

  def summary(self) -> dict[str, dict[str, Any]]:
    """{source: {"rows", "kept", "unit", "left_out": {…}, "rejected": {…},
    "damaged_files", "cases": {…}}}; JSON-able.
    """
    return {
      name: {
        "rows": tally.rows,
        KEPT: tally.counts[KEPT],
        "unit": tally.unit,
        "left_out": {
          reason: count
          for reason, count in sorted((tally.counts - tally.rejected).items())
          if reason != KEPT
        },
        "rejected": dict(sorted(tally.rejected.items())),
        "damaged_files": tally.damaged_files,
        "cases": dict(tally.cases),
      }
      for name, tally in self.tallies.items()
    }

  def finish(self) -> None:
    """Closes the quarantine; raises as `check`."""
    self.close()
    check(self.summary(), self._max, self._path)


def check_share(max_quarantined: float) -> None:
  """Raises a ValueError if it is no share."""
  if not 0 <= max_quarantined <= 1:
    raise ValueError(
      f"max_quarantined {max_quarantined}: expected a share of rows, 0 to 1"
    )


def check(
  summary: Mapping[str, Mapping[str, Any]],
  max_quarantined: float,
  quarantine: Path | None,
) -> None:
  """Looks through what `Intake.summary` gave, of this build or of one before.

  Raises:
    ValueError: a source has more rejected than `max_quarantined`; names the reasons,
      their counts and the quarantine.
  """
  lines = []
  for name, said in summary.items():
    rejected = sum(said["rejected"].values())
    share = 1.0 if said["damaged_files"] else rejected / max(said["rows"], rejected, 1)
    if share > max_quarantined:
      reasons = ", ".join(f"{n} × {reason}" for reason, n in said["rejected"].items())
      lines.append(f"{name}: {rejected} rejected of {said['rows']} rows ({reasons})")
  if lines:
    where = f"Each is listed in {quarantine}. " if quarantine else ""
    raise ValueError(
      f"more than {max_quarantined:.2%} of a source was rejected: {'; '.join(lines)}. "
      f"{where}Mend or fetch the files again, or allow it: "
      "--config.data.max_quarantined=SHARE"
    )


def table(summary: Mapping[str, Mapping[str, Any]]) -> str:
  """What `Intake.summary` gave, in lines."""
  lines = []
  for name, said in summary.items():
    lines.append(
      f"{name}: {said['rows']:,} rows read, {said[KEPT]:,} {said['unit']} kept"
    )
    for verb, key in (("left out", "left_out"), ("REJECTED", "rejected")):
      lines += [f"  {n:>9,} {verb}: {reason}" for reason, n in said[key].items()]
    lines += [f"    {question}: {case}" for question, case in said["cases"].items()]
  return "\n".join(lines)


def _ends_a_line(path: Path) -> bool:
  try:
    with path.open("rb") as file:
      file.seek(-1, os.SEEK_END)
      return file.read(1) in b"\r\n"
  except OSError:  # empty, or not to be read: others will say so
    return True


class Distinct(Generic[K, V]):
  """What rows say by key: two that agree count once, two that contradict not at all."""

  def __init__(self, tally: Tally) -> None:
    self._tally = tally
    self._said: dict[K, tuple[V, str, int]] = {}
    self._disputed: set[K] = set()
    self._again: dict[K, list[tuple[str, int]]] = {}

  def add(self, key: K, value: V, path: str | Path, row: int) -> None:
    """`path` is a file, or, as a str, what `Tally.name` has made of one."""
    file = path if isinstance(path, str) else self._tally.name(path)
    if key in self._disputed:
      self._tally.reject(file, row, CONTRADICTS, TWICE_RULE)
    elif key not in self._said:
      self._said[key] = (value, file, row)
    elif self._said[key][0] == value:
      self._tally.leave_out(_AGAIN)
      self._again.setdefault(key, []).append((file, row))
    else:
      _, first_file, first_row = self._said.pop(key)
      self._disputed.add(key)
      self._tally.reject(first_file, first_row, CONTRADICTS, TWICE_RULE)
      for again in self._again.pop(key, []):
        self._tally.counts[_AGAIN] -= 1
        self._tally.reject(*again, CONTRADICTS, TWICE_RULE)
      self._tally.reject(file, row, CONTRADICTS, TWICE_RULE)

  def items(self) -> Iterator[tuple[K, V, str, int]]:
    """(key, value, file, row) of the undisputed, in the order of the rows."""
    for key, (value, file, row) in self._said.items():
      yield key, value, file, row
