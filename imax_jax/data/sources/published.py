"""How many rows the releases' tables have, to tell a part of one from the whole.

Counted by those who hold the files: MIMIC-CXR-JPG's own pages and notebooks, the copies
of PE-Severity and CXR-Cardiomegaly, the questions' description.
"""

from __future__ import annotations

from imax_jax.data.sources.intake import Tally

# By name, without ".gz". CXR-LT's label files of either release have as many together.
ROWS: dict[str, int] = {
  "mimic-cxr-2.0.0-metadata.csv": 377_110,
  "mimic-cxr-2.0.0-split.csv": 377_110,
  "mimic-cxr-2.0.0-chexpert.csv": 227_827,
  "mimic-cxr-2.0.0-negbio.csv": 227_827,
  "mimic-cxr-2.1.0-test-set-labeled.csv": 687,
  "reports": 227_835,
  "CTRs.csv": 96_161,
  "CPARs.csv": 96_161,
  "regex_report_edema_severity.csv": 6_710,
  "expert_report_edema_severity.csv": 485,
  "consensus_image_edema_severity.csv": 141,
  "label files": 377_110,
  "train.json": 290_031,
  "valid.json": 73_567,
  "test.json": 13_793,
}


def note_rows(tally: Tally, name: str, rows: int) -> None:
  """Records whether `rows` are as many as were published; `name` may end in ".gz"."""
  name = name.removesuffix(".gz")
  number = ROWS[name]
  if rows == number:
    said = "as published"
  elif rows < number:
    said = f"where {number:,} were published: a part, or cut short"
  else:
    said = f"where {number:,} were published: joined, or another release"
  tally.met(f"rows of {name}", f"{rows:,}, {said}")
