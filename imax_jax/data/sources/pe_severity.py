"""MIMIC-CXR-PE-Severity 1.0.1: the grade of pulmonary edema, in three tables.

    consensus_image_edema_severity.csv   subject_id,study_id,dicom_id,edema_severity
    expert_report_edema_severity.csv     subject_id,study_id,edema_severity
    regex_report_edema_severity.csv      subject_id,study_id,edema_severity

The tables overlap and disagree (80 of 141 consensus grades differ from the regex's), so
the more careful wins: consensus (an image's) over expert over regex (a study's, given
to all its frontal images). The names are those of the authors' own repository; the
log says whether the release has them.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping
from pathlib import Path

from imax_jax.data.sources.files import find_file
from imax_jax.data.sources.intake import Distinct
from imax_jax.data.sources.intake import Tally
from imax_jax.data.sources.mimic_ids import OF_ANOTHER
from imax_jax.data.sources.mimic_ids import identity_columns
from imax_jax.data.sources.mimic_ids import image_id_of
from imax_jax.data.sources.mimic_ids import images_by_study
from imax_jax.data.sources.mimic_ids import is_dicom_id
from imax_jax.data.sources.mimic_ids import is_mimic_number
from imax_jax.data.sources.mimic_ids import is_of
from imax_jax.data.sources.mimic_ids import plain_id
from imax_jax.data.sources.published import note_rows
from imax_jax.data.sources.reading import Column
from imax_jax.data.sources.reading import table_header
from imax_jax.data.sources.reading import table_rows
from imax_jax.schema import EDEMA_GRADES
from imax_jax.schema import Annotation
from imax_jax.schema import Grade
from imax_jax.schema import Radiograph

REMEDY = (
  "Point pe_severity at the folder of https://physionet.org/content/"
  "mimic-cxr-pe-severity/1.0.1/ (restricted access)."
)
CONSENSUS = "consensus_image_edema_severity.csv"
EXPERT = "expert_report_edema_severity.csv"
REGEX = "regex_report_edema_severity.csv"
# From the most careful table on: file, key column, rule.
TABLES: tuple[tuple[str, str, str], ...] = (
  (CONSENSUS, "dicom_id", "pe_severity/consensus"),
  (EXPERT, "study_id", "pe_severity/expert"),
  (REGEX, "study_id", "pe_severity/regex"),
)
IDENTITY_RULE = "pe_severity/identity"
RULES: dict[str, str] = {
  "pe_severity/consensus": "The consensus of radiologists on this image.",
  "pe_severity/expert": "An expert's reading of the study's report, given to all its "
  "frontal images that have no consensus.",
  "pe_severity/regex": "Regular expressions over the study's report, given to all its "
  "frontal images that have neither consensus nor expert's grade.",
  IDENTITY_RULE: "Where a row has subject_id or study_id, they are those of its image, "
  "or of its study's.",
}


def read(
  root: str | Path,
  radiographs: Mapping[str, Radiograph],
  *,
  tally: Tally | None = None,
) -> Iterator[Annotation]:
  """Yields one grade an image.

  Raises:
    FileNotFoundError: one of the three tables is missing.
    DamagedFile: other columns, or a file that can not be read to its end.
  """
  tally = Tally("pe_severity") if tally is None else tally
  studies = images_by_study(radiographs)
  given: set[str] = set()
  for file, key, rule in TABLES:
    path = find_file(root, [file], remedy=REMEDY, tally=tally)
    images_of = {name: [name] for name in radiographs} if key == "dicom_id" else studies
    whose = {name: radiographs[images[0]] for name, images in images_of.items()}
    for identity, code, _, row in _codes(path, key, rule, whose, tally).items():
      images = images_of.get(identity, [])
      if not images:
        tally.leave_out("image or study without a frontal radiograph here")
      for name in images:
        if name in given:
          tally.leave_out("graded by a more careful table")
          continue
        given.add(name)
        tally.keep()
        grade = Grade(EDEMA_GRADES[code])
        yield Annotation(name, "multi_class", "", grade, tally.origin(path, row, rule))
  tally.log()


def _codes(
  path: Path, key: str, rule: str, whose: Mapping[str, Radiograph], tally: Tally
) -> Distinct[str, int]:
  """Image or study id -> code, of the well-formed rows.

  `whose` has the image of the same key, or one of its images.
  """
  codes: Distinct[str, int] = Distinct(tally)
  file, before, header = tally.name(path), tally.rows, table_header(path)
  # The sibling repository misspells the column.
  misspelt = "edeme_severity" in header
  tally.met(f"{path.name} grade column", "edeme" if misspelt else "edema_severity")
  given = identity_columns(header)
  columns: tuple[Column, ...] = (key, ("edema_severity", "edeme_severity"), *given)
  for row, (identity, cell, *ids) in table_rows(path, columns, tally):
    code = cell.strip().removesuffix(".0")
    if key == "dicom_id":
      name = image_id_of(identity)
      good = is_dicom_id(name)
    else:
      name = plain_id(identity)
      good = is_mimic_number(name)
    if not good:
      tally.reject(file, row, f"{key} of the wrong form", rule)
    elif code not in ("0", "1", "2", "3"):
      tally.reject(file, row, "grade not 0 to 3", rule)
    elif name in whose and not is_of(whose[name], given, ids):
      tally.reject(file, row, OF_ANOTHER, IDENTITY_RULE)
    else:
      codes.add(name, int(code), file, row)
  note_rows(tally, path.name, tally.rows - before)
  return codes
