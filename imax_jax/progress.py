"""Progress bars with the remaining time, and calm log lines."""

from __future__ import annotations

import contextlib
import logging as python_logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import tqdm
from absl import logging


class Tick(Protocol):
  """What work calls as it goes: so many of so many are done, and a few words."""

  def __call__(self, done: int, total: int, words: str = "", /) -> None: ...


@contextlib.contextmanager
def bar(title: str) -> Iterator[Tick]:
  """`with bar("rendering") as tick: work(progress=tick)`; work calls `tick(done, total)`.

  A terminal sees one moving line; a file sees a line every ten seconds.
  """
  calm = not sys.stderr.isatty()
  with tqdm.tqdm(
    desc=f"  {title}",
    total=1,
    file=sys.stderr,
    leave=calm,
    dynamic_ncols=not calm,
    mininterval=10.0 if calm else 0.2,
    delay=1.0,
    bar_format="{desc:<34} {percentage:3.0f}% |"
    f"{{bar{':17' if calm else ''}}}"
    "| {n}/{total} {remaining} left{postfix}",
  ) as meter:

    def tick(done: int, total: int, words: str = "") -> None:
      meter.total = total
      meter.set_postfix_str(words, refresh=False)
      meter.update(done - meter.n)

    yield tick
    if meter.n:
      meter.refresh()
    if calm and meter.n:
      sys.stderr.write("\n")  # tqdm leaves a short bar's line open


class _Line(python_logging.Formatter):
  def format(self, record: python_logging.LogRecord) -> str:
    clock = self.formatTime(record, "%H:%M:%S")
    level = (
      "" if record.levelno <= python_logging.INFO else f"{record.levelname.lower()}: "
    )
    return f"{clock} {level}{record.getMessage()}"


def _is_ours(record: python_logging.LogRecord) -> bool:
  """Orbax and others speak through absl's logger, a page for every checkpoint."""
  ours = Path(__file__).parent in Path(record.pathname).parents
  return ours or record.levelno > python_logging.WARNING


def calm_logging() -> None:
  """One short line a message of this package: the time and what happened."""
  logging.use_absl_handler()
  logging.set_verbosity(logging.INFO)
  handler = logging.get_absl_handler()
  handler.setFormatter(_Line())
  handler.addFilter(_is_ours)
