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

from imax_jax.data.sources.reading import NOT_FRONTAL
from imax_jax.data.sources.reading import Counts
from imax_jax.data.sources.reading import find_file
from imax_jax.data.sources.reading import image_id_of
from imax_jax.data.sources.reading import images_by_study
from imax_jax.data.sources.reading import log_counts
from imax_jax.data.sources.reading import plain_id
from imax_jax.data.sources.reading import table_rows
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
  counts: Counts | None = None,
) -> Iterator[Annotation]:
  """Yields one grade an image.

  Raises:
    FileNotFoundError: one of the three tables is missing.
    ValueError: other columns, or a damaged file.
  """
  counts = Counts() if counts is None else counts
  studies = images_by_study(radiographs)
  given: set[str] = set()
  for file, key in ((CONSENSUS, "dicom_id"), (EXPERT, "study_id"), (REGEX, "study_id")):
    path = find_file(root, [file], remedy=REMEDY)
    # The sibling repository misspells the column.
    columns = (key, ("edema_severity", "edeme_severity"))
    for row, (identity, cell) in table_rows(path, columns):
      if key == "dicom_id":
        images = [name for name in [image_id_of(identity)] if name in radiographs]
      else:
        images = studies.get(plain_id(identity), [])
      code = cell.strip().removesuffix(".0")
      if not images:
        counts[NOT_FRONTAL] += 1
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
  log_counts("pe_severity", counts)
