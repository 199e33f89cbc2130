"""Numbers of a run as lines of JSON: {"step": 12, "loss": 0.71, …}."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from imax_jax.ledger import whole


class MetricsWriter:
  """Appends lines and flushes each, so that a killed run has lost at most one.

  Args:
    path: a .jsonl file; its directory is made.
    step: the step from which the run goes on. Lines of later steps, which the killed
      run wrote and this one will write again, are dropped. 0 begins anew.
  """

  def __init__(self, path: str | Path, *, step: int = 0) -> None:
    self.path = Path(path)
    kept = lines_until(self.path, step)
    with whole(self.path) as part:
      part.write_text("".join(map(_line, kept)))
    self._file = self.path.open("a")

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Appends a line.

    Raises:
      OSError: it could not be written; names the file, which an open one's error lacks.
    """
    try:
      self._file.write(_line({"step": step, **values}))
      self._file.flush()
    except OSError as error:
      raise OSError(error.errno, error.strerror, str(self.path)) from error

  def close(self) -> None:
    self._file.close()

  def __enter__(self) -> MetricsWriter:
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    self.close()


def _line(row: Mapping[str, float]) -> str:
  return json.dumps(row, allow_nan=False) + "\n"


def lines_until(path: str | Path, step: int) -> list[dict[str, float]]:
  """The lines of a run that goes on from `step`; none where it begins."""
  kept = read_metrics(path) if step and Path(path).exists() else []
  return [row for row in kept if row["step"] <= step]


def read_metrics(path: str | Path) -> list[dict[str, float]]:
  """All lines in order. A last line without its end, of a killed run, is left out.

  Raises:
    ValueError: a line that is not JSON.
  """
  *lines, _unfinished = Path(path).read_text().split("\n")
  rows = []
  for number, line in enumerate(lines, start=1):
    try:
      rows.append(json.loads(line))
    except json.JSONDecodeError as error:
      raise ValueError(
        f"{path}, line {number}: not JSON; repair or remove the file"
      ) from error
  return rows
