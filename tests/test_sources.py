"""The readers against the releases' dialects. Every row here is invented."""

from __future__ import annotations

import collections
import gzip
import json
import logging as std_logging
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from imax_jax.data import sources
from imax_jax.data.sources import cardiomegaly
from imax_jax.data.sources import chexmask
from imax_jax.data.sources import cxr_lt
from imax_jax.data.sources import json_files
from imax_jax.data.sources import masks
from imax_jax.data.sources import mimic_cxr
from imax_jax.data.sources import mimic_cxr_jpg
from imax_jax.data.sources import mimic_ids
from imax_jax.data.sources import pe_severity
from imax_jax.data.sources import published
from imax_jax.data.sources import sections
from imax_jax.data.sources import vqa
from imax_jax.data.sources.intake import DamagedFile
from imax_jax.data.sources.intake import Tally
from imax_jax.schema import FINDINGS
from imax_jax.schema import Annotation
from imax_jax.schema import Radiograph


def _name(number: int) -> str:
  return f"aaaaaaaa-aaaaaaaa-aaaaaaaa-aaaaaaaa-{number:08x}"


def _radiograph(
  number: int, study: int, width: int = 10, height: int = 8
) -> Radiograph:
  study_id = str(50_000_000 + study)
  patient = str(10_000_000 + study)
  return Radiograph(_name(number), study_id, patient, "PA", width, height, "")


# Images 1 and 2 are of study 1, image 3 of study 2.
RADIOGRAPHS = {r.image_id: r for r in map(_radiograph, (1, 2, 3), (1, 1, 2))}
ONE = {_name(1): _radiograph(1, 1)}


def _write(path: Path, text: str) -> Path:
  path.parent.mkdir(parents=True, exist_ok=True)
  if path.suffix == ".gz":
    path.write_bytes(gzip.compress(text.encode()))
  else:
    path.write_text(text, encoding="utf-8")
  return path


# ── MIMIC-CXR-JPG ─────────────────────────────────────────────────────────────────

METADATA = f"""dicom_id,subject_id,study_id,PerformedProcedureStepDescription,\
ViewPosition,Rows,Columns,StudyDate,StudyTime
{_name(1)},10000001,50000001,CHEST (PA AND LAT),PA,3056,2544,21800506,213014.531
{_name(2)},10000001,50000001,CHEST (PA AND LAT),LATERAL,3056,2544,21800506,213014.531
{_name(3)},10000002,50000002,,,2544,3056,21800726,92.0
{_name(4)},10000002,50000002,,PA LLD,2544,3056,21800726,92.0
{_name(5)},10000002,50000002,,AP AXIAL,2544,3056,21800726,92.0
{_name(6)},10000003,50000003,CHEST (PORTABLE AP),AP,2544,3056,21800726,92.0
{_name(6)},10000003,50000003,CHEST (PORTABLE AP),AP,2544,3056,21800726,92.0
{_name(7)},10000003,50000003,CHEST (PORTABLE AP),AP,,,21800726,92.0
"""


@pytest.mark.parametrize("suffix", [".csv.gz", ".csv"])
def test_only_exact_ap_and_pa_are_frontal(tmp_path, suffix):
  _write(tmp_path / f"mimic-cxr-2.0.0-metadata{suffix}", METADATA)
  tally = Tally("made")
  found = mimic_cxr_jpg.read_radiographs(tmp_path, require_images=False, tally=tally)
  assert list(found) == [_name(1), _name(6)]
  first = found[_name(1)]
  assert (first.width, first.height) == (2544, 3056)
  assert (first.patient_id, first.study_id, first.view) == (
    "10000001", "50000001", "PA",
  )  # fmt: skip
  assert first.path.endswith(f"files/p10/p10000001/s50000001/{_name(1)}.jpg")
  assert tally.counts == {
    "kept": 2, "not frontal": 3, "view missing": 1,
    "says again what another row says": 1, "Rows or Columns not a number of pixels": 1,
  }  # fmt: skip


def test_absent_images_of_a_partial_download_are_counted(tmp_path):
  _write(tmp_path / mimic_cxr_jpg.METADATA, METADATA)
  with pytest.raises(FileNotFoundError, match="none of the 2 frontal images"):
    mimic_cxr_jpg.read_radiographs(tmp_path)
  _write(tmp_path / f"files/p10/p10000001/s50000001/{_name(1)}.jpg", "x")
  tally = Tally("made")
  assert list(mimic_cxr_jpg.read_radiographs(tmp_path, tally=tally)) == [_name(1)]
  assert tally.counts["image file absent"] == 1


def test_the_official_split_says_validate(tmp_path):
  _write(
    tmp_path / mimic_cxr_jpg.SPLIT,
    f"dicom_id,study_id,subject_id,split\n{_name(1)},50000001,10000001,validate\n",
  )
  assert mimic_cxr_jpg.read_splits(tmp_path) == {_name(1): "validate"}


def test_what_is_no_number_of_pixels_or_no_view_is_rejected(tmp_path):
  rows = METADATA.splitlines()[:1]
  for number, (view, height, width) in enumerate(
    (
      ("PA", "64.0", "50"), ("PA", "64.7", "50"), ("PA", "64", "0_5"),
      ("PA", "٦٤", "50"), ("PA", "1e3", "50"), ("PA", "-64", "50"), (" PA", "64", "50"),
      ("pa", "64", "50"), (" ", "64", "50"), ("LATERAL", "64", "50"),
    )
  ):  # fmt: skip
    rows.append(f"{_name(number)},10000001,50000001,,{view},{height},{width},,")
  _write(tmp_path / mimic_cxr_jpg.METADATA, "\n".join(rows) + "\n")
  tally = Tally("made")
  found = mimic_cxr_jpg.read_radiographs(tmp_path, require_images=False, tally=tally)
  assert [(r.height, r.width) for r in found.values()] == [(64, 50)]
  assert tally.rejected == {
    "Rows or Columns not a number of pixels": 5, "view of another spelling": 2,
  }  # fmt: skip
  assert tally.counts["view missing"] == tally.counts["not frontal"] == 1


def test_splits_and_labels_of_ids_of_another_form_are_rejected(tmp_path):
  _write(
    tmp_path / mimic_cxr_jpg.SPLIT,
    "dicom_id,study_id,subject_id,split\n"
    f"{_name(1)},s50000001,p10000001,train\nsecret,50000001,10000001,train\n"
    f"{_name(2)},secret,10000001,train\n{_name(3)},50000001,secret,train\n"
    f"{_name(4)},50000001,10000001,secret\n",
  )
  tally = Tally("made")
  assert mimic_cxr_jpg.read_splits(tmp_path, tally=tally) == {_name(1): "train"}
  assert tally.rejected == {
    "image id of the wrong form": 1, "patient or study id of the wrong form": 2,
    "split of another name": 1,
  }  # fmt: skip
  _write(
    tmp_path / mimic_cxr_jpg.LABEL_TABLES["chexpert"],
    "subject_id,study_id,secret,Edema\n10000001,50000001.0,secret,1.0\n"
    "10000001,secret,,\nsecret,50000002,,\n10000001,50000003,,secret\n",
  )
  tally = Tally("made")
  found = mimic_cxr_jpg.read_labels(tmp_path, tally=tally)
  assert found == {"50000001": {"Edema": 1}}
  assert tally.rejected == {
    "patient or study id of the wrong form": 2, "label not 1, 0, -1 or blank": 1,
  }  # fmt: skip
  (said,) = [v for k, v in tally.cases.items() if k.startswith("labels of")]
  assert said == "1 of 14 known labels, 1 other columns"


@pytest.mark.parametrize("table", mimic_cxr_jpg.LABEL_TABLES)
def test_a_table_without_a_header_tells_nothing_of_its_patient(tmp_path, table):
  cells = ",".join(["10000001", "50000001", "secret", *["1.0"] * 13])
  _write(tmp_path / mimic_cxr_jpg.LABEL_TABLES[table], f"{cells}\n" * 2)
  tally = Tally("made")
  with pytest.raises(DamagedFile, match="has none of the 14 known labels") as caught:
    mimic_cxr_jpg.read_labels(tmp_path, table, tally=tally)
  for told in (str(caught.value), str(tally.cases)):
    assert "secret" not in told
    assert "0000001" not in told


def test_the_published_numbers_of_rows_are_held_against_the_file(tmp_path, monkeypatch):
  question = "rows of mimic-cxr-2.0.0-metadata.csv"
  _write(tmp_path / mimic_cxr_jpg.METADATA, METADATA)
  for number, said in (
    (377_110, "8, where 377,110 were published: a part, or cut short"),
    (8, "8, as published"),
    (7, "8, where 7 were published: joined, or another release"),
  ):
    monkeypatch.setitem(published.ROWS, "mimic-cxr-2.0.0-metadata.csv", number)
    tally = Tally("made")
    mimic_cxr_jpg.read_radiographs(tmp_path, require_images=False, tally=tally)
    assert tally.cases == {question: said}


# ── CXR-Cardiomegaly ──────────────────────────────────────────────────────────────


def _ratios(root: Path, ctrs: list[str], cpars: list[str], key: str = "dicom_file"):
  for column, cells in (("CTR", ctrs), ("CPAR", cpars)):
    rows = "".join(f"{cell}\n" for cell in cells)
    _write(root / f"{column}s.csv", f"{key},{column}\n{rows}")


def test_error_marks_are_no_ratios(tmp_path):
  names = [_name(number) for number in (1, 2, 3)]
  _ratios(
    tmp_path,
    [f"{names[0]},0.4731182795698925", f"{names[1]},2.0", f"{names[2]},0.5"],
    [f"{names[0]},0.361244019138756", f"{names[1]},0.3", f"{names[2]},4"],
  )
  tally = Tally("made")
  found = list(cardiomegaly.read(tmp_path, RADIOGRAPHS, tally=tally))
  assert [(a.image_id, a.subtask, a.target.value) for a in found] == [
    (names[0], "ctr", 0.4731182795698925),
    (names[0], "cpar", 0.361244019138756),
  ]
  assert found[1].origin.file == "CPARs.csv"
  assert found[1].origin.row == 0
  assert tally.counts == {
    "kept": 2, "CTR: heart not found": 1, "CPAR: heart and lungs not found": 1,
    "only one of CTR and CPAR": 2,
  }  # fmt: skip
  alone = list(cardiomegaly.read(tmp_path, RADIOGRAPHS, require_both=False))
  assert [(a.image_id, a.subtask) for a in alone[2:]] == [
    (names[2], "ctr"), (names[1], "cpar"),
  ]  # fmt: skip


def test_all_ways_in_which_error_marks_print_are_told(tmp_path):
  cells = [f"{_name(1)},2", f"{_name(2)},3.0", f"{_name(3)},0.5"]
  for ctrs, cpars, said in ((cells, cells[2:], "2 and 2.0"), (cells[:1], cells[:1], "2"),
                            (cells[1:], cells[1:], "2.0")):  # fmt: skip
    _ratios(tmp_path, ctrs, cpars)
    tally = Tally("made")
    list(cardiomegaly.read(tmp_path, RADIOGRAPHS, tally=tally))
    assert tally.cases["error marks print as"] == said
    short = "where 96,161 were published: a part, or cut short"
    assert tally.cases["rows of CPARs.csv"] == f"{len(cpars)}, {short}"


@pytest.mark.parametrize("value", ["0.5", ".5", "5e-1", "+0.5", " 0.5 "])
def test_decimal_numbers_are_ratios(tmp_path, value):
  _ratios(tmp_path, [f"{_name(1)},{value}"], [f"{_name(1)},{value}"])
  assert [a.target.value for a in cardiomegaly.read(tmp_path, ONE)] == [0.5, 0.5]


@pytest.mark.parametrize(
  "value",
  ["1.0", "1.2", "0", "-0.3", "nan", "inf", "", "x", "0_0.5", "0.4_7", "٠.٥", "0.5."],
)
def test_only_numbers_between_0_and_1_are_ratios(tmp_path, value):
  _ratios(tmp_path, [f"{_name(1)},{value}"], [f"{_name(1)},{value}"])
  assert not list(cardiomegaly.read(tmp_path, ONE, require_both=False))


def test_the_scripts_own_columns_are_read_too(tmp_path):
  rows = f",dicom_id,{{}}\n0,{_name(1)}.dcm,0.4\n"
  _write(tmp_path / "CTRs.csv", rows.format("CTR"))
  _write(tmp_path / "CPARs.csv", rows.format("CPAR"))
  found = list(cardiomegaly.read(tmp_path, ONE))
  assert [a.image_id for a in found] == [_name(1)] * 2


# ── PE severity ───────────────────────────────────────────────────────────────────


def _severity(root: Path, consensus: str, expert: str, regex: str) -> None:
  key = "subject_id,study_id"
  _write(root / pe_severity.CONSENSUS, f"{key},dicom_id,edema_severity\n{consensus}")
  _write(root / pe_severity.EXPERT, f"{key},edema_severity\n{expert}")
  _write(root / pe_severity.REGEX, f"{key},edema_severity\n{regex}")


def test_the_more_careful_table_wins(tmp_path):
  _severity(
    tmp_path,
    f"10000001,50000001,{_name(1)},2\n",
    "10000002,50000002,3\n",
    "10000001,50000001,0\n10000002,50000002,1\n10000009,50000009,1\n",
  )
  tally = Tally("made")
  found = list(pe_severity.read(tmp_path, RADIOGRAPHS, tally=tally))
  assert {a.image_id: a.target.name for a in found} == {
    _name(1): "interstitial edema",  # the consensus is this image's
    _name(2): "none",  # of the same study, but only the regex has it
    _name(3): "alveolar edema",
  }
  assert tally.counts["graded by a more careful table"] == 2
  assert tally.counts["image or study without a frontal radiograph here"] == 1


def test_a_wrong_grade_is_counted(tmp_path):
  _severity(tmp_path, "", "", "10000001,50000001,7\n")
  tally = Tally("made")
  assert not list(pe_severity.read(tmp_path, RADIOGRAPHS, tally=tally))
  assert tally.counts == {"grade not 0 to 3": 1}


@pytest.mark.parametrize(
  ("consensus", "regex"),
  [
    (f"10000009,50000001,{_name(1)},2", ""), (f"10000001,50000002,{_name(1)},2", ""),
    (f",50000001,{_name(1)},2", ""), ("", "10000002,50000001,2"),
  ],
)  # fmt: skip
def test_a_grade_of_another_patient_or_study_is_rejected(tmp_path, consensus, regex):
  good = "10000002,50000002.0,1"
  _severity(tmp_path, f"{consensus}\n", "", f"{regex}\n{good}\n")
  tally = Tally("made")
  (found,) = pe_severity.read(tmp_path, RADIOGRAPHS, tally=tally)
  assert found.image_id == _name(3)
  assert tally.rejected == {"patient or study is not the image's": 1}


# ── CXR-LT ────────────────────────────────────────────────────────────────────────


def _labels(
  path: Path, names: list[str], rows: list[tuple[int, dict[str, str]]]
) -> None:
  text = ",".join(("dicom_id", "subject_id", "study_id", "fpath", *names)) + "\n"
  for number, cells in rows:
    values = [cells.get(name, "0") for name in names]
    whose = ("10000002", "s50000002") if number == 3 else ("10000001", "s50000001")
    text += ",".join((_name(number), *whose, "files/x.jpg", *values)) + "\n"
  _write(path, text)


def test_labels_are_selected_by_name(tmp_path):
  names = ["Adenopathy", *sorted(FINDINGS), "Normal"]
  present = {"Pneumonia": "1", "Edema": "1.0", "Adenopathy": "1"}
  _labels(tmp_path / "cxr-lt-2024/labels.csv", names, [(1, present), (9, present)])
  (found,) = cxr_lt.read(tmp_path, RADIOGRAPHS)
  positive = {n for n, v in zip(FINDINGS, found.target.values, strict=True) if v == 1}
  assert positive == {"Pneumonia", "Edema"}
  assert found.target.labels == FINDINGS


def test_splits_pool_and_unlabelled_files_are_passed_over(tmp_path):
  names = list(FINDINGS)
  place = tmp_path / "cxr-lt-2.0.0" / "cxr-lt-2024"  # unzipped one folder deeper
  _labels(place / "train_labeled.csv", names, [(1, {})])
  _labels(place / "development.csv", [], [(2, {})])
  _labels(place / "test_labeled_task1.csv", names, [(3, {}), (1, {})])
  tally = Tally("made")
  found = list(cxr_lt.read(tmp_path, RADIOGRAPHS, tally=tally))
  assert [a.image_id for a in found] == [_name(1), _name(3)]
  assert tally.counts["says again what another row says"] == 1


def test_the_release_of_2023_is_read(tmp_path):
  _labels(tmp_path / "cxr-lt-2023/train.csv", list(FINDINGS), [(1, {"Nodule": "1"})])
  (found,) = cxr_lt.read(tmp_path, RADIOGRAPHS)
  assert found.target.values[FINDINGS.index("Nodule")] == 1


def test_probabilities_are_no_labels(tmp_path):
  _labels(tmp_path / "labels.csv", list(FINDINGS), [(1, {"Edema": "0.31"})])
  tally = Tally("made")
  assert not list(cxr_lt.read(tmp_path, RADIOGRAPHS, tally=tally))
  assert tally.counts == {"label not 0 or 1": 1}


@pytest.mark.parametrize(
  ("patient", "study", "kept"),
  [
    ("10000001", "s50000001", 1), ("10000001", "50000001", 1),
    ("10000001.0", "50000001.0", 1), ("10000002", "50000001", 0),
    ("10000001", "s50000002", 0), ("", "", 0),
  ],
)  # fmt: skip
def test_labels_of_another_patient_or_study_are_rejected(
  tmp_path, patient, study, kept
):
  names = ",".join(FINDINGS)
  bits = ",".join("0" * 10)
  text = f"study_id,dicom_id,subject_id,{names}\n{study},{_name(1)},{patient},{bits}\n"
  _write(tmp_path / "labels.csv", text)
  tally = Tally("made")
  assert len(list(cxr_lt.read(tmp_path, RADIOGRAPHS, tally=tally))) == kept
  assert tally.rejected["patient or study is not the image's"] == 1 - kept
  _write(tmp_path / "labels.csv", f"dicom_id,{names}\n{_name(1)},{bits}\n")
  assert len(list(cxr_lt.read(tmp_path, RADIOGRAPHS))) == 1


# ── CheXmask ──────────────────────────────────────────────────────────────────────

_LANDMARKS = "[[" + "]\n [".join(f"{n:>4} {n:>4}" for n in range(120)) + "]]"


CHEXMASK = "OriginalResolution/MIMIC-CXR-JPG.csv"


def _masks(root: Path, rows: list[str]) -> None:
  header = (
    "dicom_id,Dice RCA (Mean),Dice RCA (Max),Landmarks,"
    "Left Lung,Right Lung,Heart,Height,Width\n"
  )
  _write(root / CHEXMASK, header + "".join(f"{row}\n" for row in rows))


def _mask_row(number: int = 1, dice: str = "0.84", heart: str = "24 3 34 2",
              size: str = "8,10") -> str:  # fmt: skip
  return f'{_name(number)},{dice},0.91,"{_LANDMARKS}",7 2,2 2,{heart},{size}'


def test_boxes_come_from_row_major_runs_that_start_from_1(tmp_path):
  _masks(tmp_path, [_mask_row()])
  found = list(chexmask.read(tmp_path, ONE))
  assert [(a.task, a.subtask) for a in found] == [
    (task, organ)
    for task in ("rec", "reg")
    for organ in ("heart", "left lung", "right lung")
  ]
  # Row 2, columns 3 to 5, and row 3, columns 3 and 4, of a 10 x 8 image.
  assert found[0].target.box == (0.3, 2 / 8, 0.6, 4 / 8)
  assert found[1].target.box == (0.6, 0.0, 0.8, 1 / 8)
  assert found[2].target.box == (0.1, 0.0, 0.3, 1 / 8)


@pytest.mark.parametrize(
  ("row", "reason"),
  [
    (_mask_row(dice="0.6999"), "Dice RCA below the gate"),
    (_mask_row(dice=""), "Dice, Height or Width is not a number"),
    (_mask_row(dice="nan"), "Dice, Height or Width is not a number"),
    (_mask_row(heart=""), "a mask is empty"),
    (_mask_row(heart="24 3 34"), "a mask is not made of start-length pairs"),
    (_mask_row(heart="80 2"), "a run of a mask lies outside its image"),
    (_mask_row(heart="24 3 x 2"), "a mask is not made of whole numbers"),
    (_mask_row(heart="24 3 34.5 2"), "a mask is not made of whole numbers"),
    (_mask_row(heart="0 2"), "a run of a mask lies outside its image"),
    (_mask_row(size="9,10"), "Height and Width are not the image's"),
    (_mask_row(number=9), "image: not among the radiographs"),
  ],
)
def test_rejected_masks_are_counted_by_reason(tmp_path, row, reason):
  _masks(tmp_path, [row])
  tally = Tally("made")
  assert not list(chexmask.read(tmp_path, ONE, tally=tally))
  assert tally.counts == {reason: 1}


def test_the_gate_is_inclusive(tmp_path):
  _masks(tmp_path, [_mask_row(dice="0.7")])
  assert len(list(chexmask.read(tmp_path, ONE))) == 6


def test_exchanged_height_and_width_decode_with_the_recorded_pair(tmp_path):
  # Recorded as 10 high and 8 wide, though the image is 8 high and 10 wide.
  heart = f"{3 * 8 + 2} 4"
  _masks(tmp_path, [_mask_row(heart=heart, size="10,8")])
  found = list(chexmask.read(tmp_path, ONE))
  assert found[0].target.box == (0.1, 3 / 8, 0.5, 4 / 8)


def test_cells_longer_than_csvs_default_limit_are_read(tmp_path):
  size = 400
  runs = " ".join(f"{start} 1" for start in range(1, size * size, 5))
  assert len(runs) > 131_072
  _masks(tmp_path, [_mask_row(heart=runs, size=f"{size},{size}")])
  radiographs = {_name(1): _radiograph(1, 1, size, size)}
  found = list(chexmask.read(tmp_path, radiographs))
  assert found[0].target.box == (0.0, 0.0, 396 / 400, 1.0)


@settings(max_examples=80)
@given(st.integers(1, 12), st.integers(1, 12), st.data())
def test_run_length_box_equals_that_of_the_decoded_mask(height, width, data):
  size = height * width
  bits = data.draw(st.lists(st.booleans(), min_size=size, max_size=size))
  flat = np.array(bits)
  edges = np.flatnonzero(np.diff(np.concatenate(([0], flat.astype(int), [0]))))
  pairs = zip(edges[0::2], edges[1::2], strict=True)
  text = " ".join(f"{start + 1} {stop - start}" for start, stop in pairs)
  ys, xs = np.nonzero(flat.reshape(height, width))
  expected = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) if flat.any() else None
  runs = masks.parse_runs(text, height, width)
  assert (runs.box() if runs else None) == expected
  assert (runs.area if runs else 0) == flat.sum()


# ── Reports ───────────────────────────────────────────────────────────────────────

FINDINGS_TEXT = "The lungs are clear and the heart is of normal size today."
REPORT = "\n".join(
  (
    "                                 FINAL REPORT",
    " EXAMINATION:  CHEST (PA AND LAT)",
    " ",
    " INDICATION:  ___ year old woman with cough  // pneumonia?",
    " ",
    " FINDINGS: ",
    " ",
    f" {FINDINGS_TEXT}  No",
    " pleural effusion.",
    " ",
    " IMPRESSION: ",
    " ",
    " No acute process on ___.",
    "",
  )
)


def _zip(path: Path, texts: dict[int, str]) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  with zipfile.ZipFile(path, "w") as archive:
    for study, text in texts.items():
      archive.writestr(f"files/p10/p10000001/s{50_000_000 + study}.txt", text)


def test_a_report_is_findings_and_impression_for_every_frontal_image(tmp_path):
  _zip(tmp_path / mimic_cxr.ZIP, {1: REPORT, 9: REPORT})
  found = list(mimic_cxr.read(tmp_path, RADIOGRAPHS))
  assert [a.image_id for a in found] == [_name(1), _name(2)]
  expected = f"{FINDINGS_TEXT} No pleural effusion. No acute process on ___."
  assert {a.target.text for a in found} == {expected}
  assert found[0].origin.file == "files/p10/p10000001/s50000001.txt"
  (first, _) = mimic_cxr.read(tmp_path, RADIOGRAPHS, keep_blanks=False)
  assert "_" not in first.target.text


def test_unzipped_and_sectioned_reports_read_the_same(tmp_path):
  _zip(tmp_path / "a" / mimic_cxr.ZIP, {1: REPORT})
  _write(tmp_path / "b/files/p10/p10000001/s50000001.txt", REPORT)
  quoted = "\n ".join(FINDINGS_TEXT.split(" ", maxsplit=3))
  _write(
    tmp_path / "c" / mimic_cxr.SECTIONED,
    "study,impression,findings,last_paragraph,comparison\n"
    f's50000001,No acute process on ___.,"{quoted}  No\n pleural effusion.",,\n'
    "s50000002,,,,\n",
  )
  tally = Tally("made")
  texts = {
    tuple(a.target.text for a in mimic_cxr.read(tmp_path / f, RADIOGRAPHS, tally=tally))
    for f in "abc"
  }
  assert len(texts) == 1
  assert len(texts.pop()) == 2
  assert tally.counts["no findings or no impression"] == 1


def test_a_folder_and_a_zip_judge_names_alike(tmp_path):
  files = {
    "p10/p10000001/s50000001.txt": REPORT,
    "50000002.txt": REPORT,  # without the letter, at another depth
    "p10/p10000009/old/s50000009.txt": REPORT,
    "p10/p10000001/s50000001.TXT": REPORT,
    "p10/p10000001/notes.txt": REPORT,
    "p10/p10000001/s7.txt": REPORT,
    "index.html": "x",
    "p10/p10000001/s50000001/film.jpg": "x",
  }
  with zipfile.ZipFile(tmp_path / mimic_cxr.ZIP, "w") as archive:
    for name, text in files.items():
      archive.writestr(f"files/{name}", text)
      _write(tmp_path / "unzipped" / "files" / name, text)
  read = []
  for root in (tmp_path, tmp_path / "unzipped"):
    tally = Tally("made")
    found = list(mimic_cxr.read(root, RADIOGRAPHS, tally=tally))
    assert [a.image_id for a in found] == [_name(3), _name(1), _name(2)]
    assert tally.counts == {
      "kept": 3, "study without a frontal radiograph here": 1,
      "a file that is no text": 2, "a name that is no report's": 2,
      "study id of another form": 1,
    }  # fmt: skip
    assert tally.rows == len(files)
    short = "3, where 227,835 were published: a part, or cut short"
    assert tally.cases["rows of reports"] == short
    read.append(found)
  assert read[0] == read[1]


def test_a_linked_folder_of_reports_is_listed(tmp_path):
  _write(tmp_path / "files/p10/p10000001/s50000001.txt", REPORT)
  _write(tmp_path / "elsewhere/s50000002.txt", REPORT)
  (tmp_path / "files/p11").symlink_to(tmp_path / "elsewhere")
  tally = Tally("made")
  assert len(list(mimic_cxr.read(tmp_path, RADIOGRAPHS, tally=tally))) == 2
  assert tally.rejected == {"a link to a folder": 1}


def test_xraygpts_captions_are_read(tmp_path):
  items = [{"image_id": _name(2), "caption": "The chest\nis clear."}]
  path = _write(tmp_path / "filter_cap.json", json.dumps({"annotations": items}))
  (found,) = mimic_cxr.read(path, RADIOGRAPHS)
  assert (found.image_id, found.target.text) == (_name(2), "The chest is clear.")
  _write(path, '{"secret": [{"image_id": "secret"}]}')
  with pytest.raises(DamagedFile, match="expected") as caught:
    list(mimic_cxr.read(path, RADIOGRAPHS))
  assert "secret" not in str(caught.value)
  tally = Tally("made")
  _write(path, json.dumps({"annotations": [{"image_id": "secret"}, *items]}))
  assert len(list(mimic_cxr.read(path, RADIOGRAPHS, tally=tally))) == 1
  assert tally.rejected == {"lacks image_id or caption": 1}


def test_r2gens_annotation_is_told_from_captions(tmp_path):
  splits = {"train": [], "val": [], "test": []}
  splits["val"] = [{"id": _name(1), "report": "Clear  lungs .", "image_path": ["x"]}]
  path = _write(tmp_path / "annotation.json", json.dumps(splits))
  tally = Tally("made")
  (found,) = mimic_cxr.read(path, RADIOGRAPHS, tally=tally)
  assert (found.target.text, found.origin.rule) == (
    "Clear lungs .", "mimic_cxr/annotation",
  )  # fmt: skip
  assert "R2Gen" in tally.cases["report file"]


def test_the_54_studies_are_left_out_of_sections_and_concluded_by_hand(tmp_path):
  named, cut = "59363654", "50196495"
  radiographs = {
    _name(n): Radiograph(_name(n), study, "10000001", "PA", 9, 9, "")
    for n, study in enumerate((named, cut), 1)
  }
  assert len(sections.SECTION_OF_STUDY) == 23
  assert len(sections.CHARACTERS_OF_STUDY) == 31
  text = REPORT.replace("CHEST (PA AND LAT)", "The whole conclusion.")
  with zipfile.ZipFile(tmp_path / mimic_cxr.ZIP, "w") as archive:
    for study in (named, cut):
      archive.writestr(f"files/p10/p10000001/s{study}.txt", text)
  tally = Tally("made")
  assert not list(mimic_cxr.read(tmp_path, radiographs, tally=tally))
  reason = "one of the 54 studies without sections of their own"
  assert tally.counts == {reason: 2}
  found = list(mimic_cxr.read(tmp_path, radiographs, text="conclusion"))
  by_study = {radiographs[a.image_id].study_id: a.target.text for a in found}
  assert by_study[named] == "The whole conclusion."
  assert by_study[cut] == " ".join(text[59:399].split())


@pytest.mark.parametrize(
  ("text", "reason"),
  [
    (REPORT.replace(" FINDINGS", " TECHNIQUE"), "no findings or no impression"),
    (REPORT.replace(" IMPRESSION", "IMPRESSION"), "no findings or no impression"),
    (REPORT.replace(FINDINGS_TEXT, "Clear."), "findings too short"),
    (REPORT.replace("No acute process on ___.", "Normal."), "impression too short"),
  ],
)
def test_short_and_lacking_reports_are_counted(tmp_path, text, reason):
  _zip(tmp_path / mimic_cxr.ZIP, {2: text})
  tally = Tally("made")
  assert not list(mimic_cxr.read(tmp_path, RADIOGRAPHS, tally=tally))
  assert tally.counts == {reason: 1}


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("no header at all", {"full report": "no header at all"}),
    ("x\n FINDINGS: a\n b\n", {"preamble": "x", "findings": "a\n b"}),
    # A space is a header's first; small letters, digits and no white space end one.
    ("x\nFINDINGS: a", {"full report": "x\nFINDINGS: a"}),
    ("x\n  FINDINGS: a", {"preamble": "x", "findings": "a"}),
    ("x\n Findings: a", {"full report": "x\n Findings: a"}),
    ("x\n VIEW 2: a", {"full report": "x\n VIEW 2: a"}),
    ("x\n FINDINGS:a", {"full report": "x\n FINDINGS:a"}),
    # A second header on the line belongs to the text.
    ("x\n FINDINGS: a IMPRESSION: b\n",
     {"preamble": "x", "findings": "a IMPRESSION: b"}),
    # Spellings, then parts of names, then views.
    ("x\n CONCLUSION: a\n", {"preamble": "x", "impression": "a"}),
    ("x\n IMPRSSION: a\n", {"preamble": "x", "impression": "a"}),
    ("x\n FINDINGS AND IMPRESSION: a\n", {"preamble": "x", "impression": "a"}),
    ("x\n FINAL IMPRESSION: a\n", {"preamble": "x", "impression": "a"}),
    ("x\n CHEST, PA AND LATERAL: a\n", {"preamble": "x", "findings": "a"}),
    ("x\n REASON FOR EXAM: a\n", {"preamble": "x", "indication": "a"}),
    ("x\n OTHER: a\n", {"preamble": "x", "other": "a"}),
    # An empty title-like header is no section; of two, the last counts.
    ("x\n CHEST: \n FINDINGS: a\n", {"preamble": "x", "findings": "a"}),
    ("x\n FINDINGS: a\n FINDINGS: b\n", {"preamble": "x", "findings": "b"}),
    # Without both sections: what follows the last section's first blank line.
    (
      "x\n COMPARISON: none\n \n The chest.\n \n Is clear.\n",
      {
        "preamble": "x",
        "comparison": "none\n \n The chest.\n \n Is clear.",
        "last_paragraph": "The chest.\n \n Is clear.",
      },
    ),
    ("x\r\n FINDINGS: a\r\n IMPRESSION: b\r\n",
     {"preamble": "x", "findings": "a", "impression": "b"}),
  ],
)  # fmt: skip
def test_sections_follow_the_official_rules(text, expected):
  assert sections.last_of_each(text) == expected


# ── VQA ───────────────────────────────────────────────────────────────────────────


def _question(**changes: object) -> dict[str, object]:
  base = {
    "split": "train", "idx": 7, "subject_id": "10000001", "study_id": "50000001",
    "image_id": _name(1), "image_path": f"p10/p10000001/s50000001/{_name(1)}.jpg",
    "question": "Is there any sign of pneumonia in the left lung?",
    "semantic_type": "verify", "content_type": "presence",
    "template_arguments": {"object": {"0": "left lung"}}, "answer": ["no"],
  }  # fmt: skip
  return base | changes


def _lists(folder: Path, *train: object) -> None:
  for split in vqa.SPLITS:
    items = train if split == "train" else ()
    _write(folder / f"{split}.json", json.dumps(list(items), indent=4))


@pytest.mark.parametrize("folder", vqa.FOLDERS)
def test_answers_keep_their_lists_and_types(tmp_path, folder):
  _lists(
    tmp_path / folder,
    _question(),
    _question(semantic_type="query", content_type="gender", answer=["m"]),
    _question(semantic_type="choose", content_type="attribute", answer=[]),
    _question(semantic_type="choose", answer=["atelectasis", "pneumonia"]),
    _question(image_id=_name(9)),
    _question(semantic_type="other"),
    _question(answer="no"),
    _question(subject_id=10000001, study_id=50000001),
  )
  tally = Tally("made")
  found = list(vqa.read(tmp_path, RADIOGRAPHS, tally=tally))
  assert [(a.subtask, a.target.answers) for a in found] == [
    ("verify", ("no",)),
    ("query", ("m",)),
    ("choose", ()),
    ("choose", ("atelectasis", "pneumonia")),
  ]
  assert [a.origin.row for a in found] == [0, 1, 2, 3]
  assert tally.counts["says again what another row says"] == 1
  assert tally.rejected == {"unknown semantic type": 1, "answer not a list of texts": 1}
  assert found[1].target.content_type == "gender"
  assert tally.counts.total() == 8


@pytest.mark.parametrize(
  ("changes", "kept"),
  [
    ({}, 1), ({"study_id": "s50000001"}, 1), ({"study_id": 50000001.0}, 1),
    ({"study_id": 50000001, "subject_id": "p10000001"}, 1),
    ({"study_id": "50000002"}, 0), ({"subject_id": 10000002}, 0),
    ({"subject_id": None}, 0), ({"study_id": ["50000001"]}, 0), ({"study_id": True}, 0),
  ],
)  # fmt: skip
def test_a_question_on_another_patient_or_study_is_rejected(tmp_path, changes, kept):
  _lists(tmp_path, _question(**changes))
  tally = Tally("made")
  assert len(list(vqa.read(tmp_path, RADIOGRAPHS, tally=tally))) == kept
  assert tally.rejected["patient or study is not the image's"] == 1 - kept


def test_ids_that_a_question_does_not_give_are_not_compared(tmp_path):
  item = _question()
  del item["study_id"], item["subject_id"]
  _lists(tmp_path, item)
  assert len(list(vqa.read(tmp_path, RADIOGRAPHS))) == 1


def test_what_is_kept_of_the_questions_without_an_answer_is_counted(tmp_path):
  choose = {"semantic_type": "choose", "answer": []}
  _lists(
    tmp_path,
    _question(**choose),
    _question(**choose),
    _question(**choose, question="Which?"),
    _question(semantic_type="choose", question="Which?"),
    _question(),
  )
  tally = Tally("made")
  assert len(list(vqa.read(tmp_path, RADIOGRAPHS, tally=tally))) == 2
  assert tally.cases["kept questions to which nothing applies"] == "1"
  assert tally.counts["says again what another row says"] == 1
  assert tally.rejected == {"contradicts another row about the same thing": 2}
  short = "5, where 290,031 were published: a part, or cut short"
  assert tally.cases["rows of train.json"] == short


@pytest.mark.parametrize(
  ("text", "line", "before"),
  [
    ("[1 2]", 1, [1]), ("[1\n2]", 2, [1]), ("[1,,2]", 1, [1]), ("[,1]", 1, []),
    ("[1,]", 1, [1]), ("[1,\n,\n,]", 2, [1]), ("[1,2", 1, [1, 2]), ("[", 1, []),
    ('[{"a": 1}{"a": 2}]', 1, [{"a": 1}]), ("[1}", 1, [1]),
  ],
)  # fmt: skip
def test_a_list_needs_its_commas(tmp_path, text, line, before):
  path = _write(tmp_path / "list.json", text)
  items = json_files.json_list(path)
  assert [next(items)[1] for _ in before] == before
  with pytest.raises(DamagedFile, match=f"is not JSON from line {line} on"):
    next(items)


@pytest.mark.parametrize("text", ["[]", " [\n] ", "[1,2]", "[1 ,\r\n\t2 ]\n"])
def test_a_list_may_have_white_space_anywhere(tmp_path, text):
  path = _write(tmp_path / "list.json", text)
  assert [item for _, item in json_files.json_list(path)] == json.loads(text)


def test_answerless_lists_are_refused_without_quoting_the_question(tmp_path):
  item = _question()
  del item["answer"]
  _lists(tmp_path, item)
  tally = Tally("made")
  assert not list(vqa.read(tmp_path, RADIOGRAPHS, tally=tally))
  (reason,) = tally.rejected
  assert reason.startswith("lacks one of")
  assert "pneumonia" not in reason


@pytest.mark.parametrize(
  "text", ['{"a": 1}', "", '[{"question": "a secret', '[{"question": "x"} oops]']
)
def test_damaged_json_is_named_and_not_quoted(tmp_path, text):
  _lists(tmp_path)
  _write(tmp_path / "train.json", text)
  with pytest.raises(ValueError, match=r"train.json: ") as caught:
    list(vqa.read(tmp_path, RADIOGRAPHS))
  assert "secret" not in str(caught.value)
  assert caught.value.__cause__ is None


# ── All sources ───────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
  "read",
  [
    cardiomegaly.read, chexmask.read, cxr_lt.read, mimic_cxr.read, pe_severity.read,
    vqa.read,
  ],
)  # fmt: skip
@pytest.mark.parametrize("exists", [True, False])
def test_a_missing_file_is_named_with_its_remedy(tmp_path, read, exists):
  root = tmp_path if exists else tmp_path / "nowhere"
  with pytest.raises(FileNotFoundError, match="physionet") as caught:
    list(read(root, RADIOGRAPHS))
  message = str(caught.value)
  assert str(root) in message
  assert "expected" in message
  assert "\n" not in message


@pytest.mark.parametrize(
  ("module", "name", "good", "bad"),
  [
    (mimic_cxr, "text", ["sections", "conclusion"], ["findings", None]),
    (mimic_cxr, "keep_blanks", [True, False], [1, "no", None]),
    (cxr_lt, "release", ["", "2023", "2024"], [2024, "2025", None]),
    (vqa, "keep_empty", [True, False], [0, "yes"]),
    (cardiomegaly, "require_both", [True, False], [0, "yes"]),
  ],
)  # fmt: skip
def test_wrong_options_are_named_before_anything_is_read(
  tmp_path, module, name, good, bad
):
  module.check_options()
  for value in good:
    module.check_options(**{name: value})
  for value in bad:
    for check in (
      module.check_options,
      lambda **given: list(module.read(tmp_path / "nowhere", RADIOGRAPHS, **given)),
    ):
      with pytest.raises(ValueError, match=f"option {name}: expected .*, got") as error:
        check(**{name: value})
      assert repr(value) in str(error.value)
  with pytest.raises(ValueError, match=f"option blanks: expected one of .*{name}"):
    module.check_options(blanks=True)


def test_missing_metadata_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"metadata\.csv\.gz.*physionet"):
    mimic_cxr_jpg.read_radiographs(tmp_path)


def test_other_columns_are_an_error_that_names_both_sides(tmp_path):
  _ratios(tmp_path, [f"{_name(1)},0.5"], [f"{_name(1)},0.5"], key="image")
  with pytest.raises(
    ValueError, match=r"CTRs.csv: has no column dicom_file or dicom_id; expected"
  ):
    list(cardiomegaly.read(tmp_path, RADIOGRAPHS))


def test_a_truncated_gzip_is_an_error_that_names_the_file(tmp_path):
  path = _write(tmp_path / mimic_cxr_jpg.METADATA, METADATA * 50)
  path.write_bytes(path.read_bytes()[:-40])
  with pytest.raises(
    ValueError, match=r"metadata.csv.gz: cannot be read to its end \(EOFError\)"
  ):
    mimic_cxr_jpg.read_radiographs(tmp_path, require_images=False)


def test_a_row_cut_short_is_rejected_and_the_others_are_kept(tmp_path):
  _ratios(tmp_path, [_name(2), f"{_name(1)},0.5"], [f"{_name(1)},0.5"])
  tally = Tally("made")
  assert len(list(cardiomegaly.read(tmp_path, RADIOGRAPHS, tally=tally))) == 2
  assert tally.rejected == {"has more or fewer cells than the header": 1}


def test_a_broken_zip_is_an_error_that_names_it(tmp_path):
  _write(tmp_path / mimic_cxr.ZIP, "PK not a zip")
  with pytest.raises(ValueError, match=r"mimic-cxr-reports.zip: is not a complete zip"):
    list(mimic_cxr.read(tmp_path, RADIOGRAPHS))


def test_no_text_of_a_patient_is_logged(tmp_path, caplog):
  _zip(tmp_path / mimic_cxr.ZIP, {1: REPORT, 2: "x\n FINDINGS: secret\n"})
  with caplog.at_level(std_logging.DEBUG, logger="absl"):
    assert len(list(mimic_cxr.read(tmp_path, RADIOGRAPHS))) == 2
  assert "2 annotations kept" in caplog.text
  assert "no impression" in caplog.text
  assert "lungs" not in caplog.text
  assert "secret" not in caplog.text


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("s50000001", "50000001"), ("50000001", "50000001"), ("50000001.0", "50000001"),
    ("p10000001", "10000001"), (" 10000001 ", "10000001"), ("scan", "scan"),
  ],
)  # fmt: skip
def test_ids_lose_their_prefixes(text, expected):
  assert mimic_ids.plain_id(text) == expected


def test_image_ids_are_found_in_paths():
  for text in (_name(1), f"{_name(1)}.dcm", f"files/p10/{_name(1)}.jpg"):
    assert mimic_ids.image_id_of(text) == _name(1)


def test_roots_say_what_is_read(tmp_path):
  with pytest.raises(ValueError, match="unknown source"):
    sources.read_radiographs({"mimic": tmp_path})
  with pytest.raises(ValueError, match="give no images"):
    sources.read_radiographs({"vqa": tmp_path})
  with pytest.raises(FileNotFoundError, match=r"mimic-cxr-jpg/2\.1\.0"):
    sources.roots_of(tmp_path)


def test_a_source_without_a_root_is_not_read_and_wget_folders_are_found(tmp_path):
  place = tmp_path / "physionet.org" / "files"
  _write(place / "mimic-cxr-jpg/2.1.0/mimic-cxr-2.0.0-metadata.csv.gz", METADATA)
  _ratios(place / "cxr-cardiomegaly/1.0.0", [f"{_name(1)},0.5"], [f"{_name(1)},0.4"])
  roots = sources.roots_of(tmp_path)
  assert sorted(roots) == ["cardiomegaly", "mimic_cxr_jpg"]
  found: list[Annotation] = list(sources.read_all(roots, RADIOGRAPHS))
  assert collections.Counter(a.task for a in found) == {"calculation": 2}


def test_a_repeated_row_is_listed_when_a_third_contradicts_it(tmp_path):
  rows = [f"{_name(1)},0.5", f"{_name(1)},0.5", f"{_name(1)},0.6"]
  _ratios(tmp_path, rows, [f"{_name(1)},0.4"])
  tally = Tally("made")
  found = list(cardiomegaly.read(tmp_path, ONE, require_both=False, tally=tally))
  assert [a.subtask for a in found] == ["cpar"]
  assert tally.rejected == {"contradicts another row about the same thing": 3}
  assert not tally.counts["says again what another row says"]
