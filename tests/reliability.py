"""What the reliability tests measured, and the table of it in a page of notes.

    IMAX_RELIABILITY=FILE python -m pytest …     each `record` is a line of FILE
    IMAX_RELIABILITY=FILE python -m tests.reliability BUILD_NOTES.md

The second puts FILE's table between the page's two marks. IMAX_CHAOS=1 asks the tests for
their longer forms.
"""

from __future__ import annotations

import datetime
import json
import os
import re
import sys
from collections.abc import Iterable
from collections.abc import Mapping
from pathlib import Path

import jax

from imax_jax.ledger import whole

CHAOS = bool(os.environ.get("IMAX_CHAOS"))
TITLES = {
  "R1": "kill -9 during saves",
  "R2": "kill -9 at named places",
  "R3": "bit-identical resume",
  "R4": "change of topology",
  "R5": "every record once an epoch",
  "R6": "SIGTERM",
  "R7": "peer death and stall",
  "R8": "bit rot, truncation, deletion",
  "R9": "disk full, read-only, I/O error",
  "R10": "soak of saves",
  "R11": "NaN and infinity",
  "R12": "masked labels",
  "R16": "gradient accumulation",
  "R28": "two runs in one work directory",
  "R29": "chaos",
}
_MARKS = ("<!-- reliability -->", "<!-- /reliability -->")
_SHARE = re.compile(r"(\d+) of (\d+)")


def record(number: str, what: str, figure: str, asked: str, reached: bool) -> None:
  """Prints a figure, keeps it where IMAX_RELIABILITY says, and fails if it is short.

  Args:
    number: of the test matrix, e.g. "R3".
    figure: what was measured. Where it is "a of b", later ones of the same `what` are
      added to it: a test that runs for many cases records each.
    asked: what it should have been.
  """
  line = json.dumps(
    {
      "number": number, "what": what, "figure": figure, "asked": asked,
      "reached": bool(reached),
    }
  )  # fmt: skip
  print(f"{number} {what}: {figure} (asked: {asked})")
  if os.environ.get("IMAX_RELIABILITY"):
    with Path(os.environ["IMAX_RELIABILITY"]).open("a") as file:
      file.write(line + "\n")
  assert reached, f"{number} {what}: {figure}, asked: {asked}"


def table(lines: Iterable[Mapping[str, str]]) -> str:
  """Markdown: a row for each thing measured, in the order of the numbers."""
  rows: dict[tuple[str, str], dict[str, str]] = {}
  for line in lines:
    key = (line["number"], line["what"])
    rows[key] = _together(rows[key], line) if key in rows else dict(line)
  out = ["| | what | measured | asked | |", "|---|---|---|---|---|"]
  for number, title in TITLES.items():
    mine = [row for key, row in sorted(rows.items()) if key[0] == number]
    if not mine:
      out.append(f"| {number} | {title} | no figure: not run, or failed | | |")
    for row in mine:
      # A case that failed before it was recorded is missing in the sum.
      complete = not _SHARE.fullmatch(row["asked"]) or row["figure"] == row["asked"]
      verdict = "reached" if row["reached"] and complete else "**not reached**"
      out.append(
        f"| {number} | {title}: {row['what']} | {row['figure']} | {row['asked']} "
        f"| {verdict} |"
      )
  return "\n".join(out)


def _together(one: Mapping[str, str], other: Mapping[str, str]) -> dict[str, str]:
  shares = [_SHARE.fullmatch(line["figure"]) for line in (one, other)]
  reached = one["reached"] and other["reached"]
  if not all(shares):
    return {
      **other,
      "figure": f"{one['figure']}; {other['figure']}",
      "reached": reached,
    }
  done, cases = (sum(int(share[i]) for share in shares if share) for i in (1, 2))
  return {**other, "figure": f"{done} of {cases}", "reached": reached}


def main(page: Path, figures: Path) -> None:
  """Replaces what stands between the page's marks.

  Raises:
    ValueError: a page without both marks.
  """
  text = page.read_text(encoding="utf8")
  before, first, rest = text.partition(_MARKS[0])
  _, last, after = rest.partition(_MARKS[1])
  if not first or not last:
    raise ValueError(f"{page}: expected the marks {_MARKS[0]} and {_MARKS[1]}")
  lines = [json.loads(line) for line in figures.read_text().splitlines()]
  command = "make chaos" if CHAOS else "make reliability"
  words = (
    f"Printed by `{command}` on {datetime.date.today()}: {os.cpu_count()} cores, jax "
    f"{jax.__version__}."
  )
  with whole(page) as part:
    part.write_text(
      f"{before}{first}\n{words}\n\n{table(lines)}\n{last}{after}", encoding="utf8"
    )


if __name__ == "__main__":
  main(Path(sys.argv[1]), Path(os.environ["IMAX_RELIABILITY"]))
