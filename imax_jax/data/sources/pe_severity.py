"""MIMIC-CXR-PE-Severity 1.0.1: the grade of pulmonary edema, in three tables.

    consensus_image_edema_severity.csv   subject_id,study_id,dicom_id,edema_severity
    expert_report_edema_severity.csv     subject_id,study_id,edema_severity
    regex_report_edema_severity.csv      subject_id,study_id,edema_severity

The tables overlap and disagree (80 of 141 consensus grades differ from the regex's), so
the more careful wins: consensus (an image's) over expert over regex (a study's, given
to all its frontal images).
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping
from pathlib import Path

from imax_jax.data.sources import reading
from imax_jax.schema import EDEMA_GRADES
from imax_jax.schema import Annotation
from imax_jax.schema import Grade
from imax_jax.schema import Origin
from imax_jax.schema import Radiograph

REMEDY = (
  "Point pe_severity at the folder of https://physionet.org/content/"
  "mimic-cxr-pe-severity/1.0.1/ (restricted access)."
)
CONSENSUS = "consensus_image_edema_severity.csv"
EXPERT = "expert_report_edema_severity.csv"
REGEX = "regex_report_edema_severity.csv"


def read(
  root: str | Path,
  radiographs: Mapping[str, Radiograph],
  *,
  counts: reading.Counts | None = None,
) -> Iterator[Annotation]:
  """Yields one grade an image.

  Raises:
    FileNotFoundError: one of the three tables is missing.
    ValueError: other columns, or a damaged file.
  """
  counts = reading.Counts() if counts is None else counts
  studies = reading.by_study(radiographs)
  given: set[str] = set()
  for file, key in ((CONSENSUS, "dicom_id"), (EXPERT, "study_id"), (REGEX, "study_id")):
    path = reading.find(root, [file], remedy=REMEDY)
    # The sibling repository misspells the column.
    columns = (key, ("edema_severity", "edeme_severity"))
    for row, (identity, cell) in reading.rows(path, columns):
      if key == "dicom_id":
        images = [name for name in [reading.image_id(identity)] if name in radiographs]
      else:
        images = studies.get(reading.plain_id(identity), [])
      code = cell.strip().removesuffix(".0")
      if not images:
        counts[reading.NOT_FRONTAL] += 1
      elif code not in ("0", "1", "2", "3"):
        counts["grade not 0 to 3"] += 1
      else:
        grade = Grade(EDEMA_GRADES[int(code)])
        for name in images:
          if name in given:
            counts["graded by a more careful table"] += 1
            continue
          given.add(name)
          counts["kept"] += 1
          yield Annotation(name, "multi_class", "", grade, Origin(path.name, row))
  reading.log_counts("pe_severity", counts)
