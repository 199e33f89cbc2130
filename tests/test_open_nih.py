"""ChestX-ray14 as downloaded: the header traps, the labels, the boxes. Invented rows."""

from __future__ import annotations

import csv
import gzip
import json
import shutil
from pathlib import Path

import pytest
from open_nih_layout import BOX_HEADER
from open_nih_layout import NIH_HEADER
from open_nih_layout import write_lines
from open_nih_layout import write_nih
from open_nih_layout import write_png

from imax_jax.data.sources import nih
from imax_jax.data.sources.intake import DamagedFile
from imax_jax.data.sources.intake import Intake
from imax_jax.data.sources.intake import Tally
from imax_jax.schema import FINDINGS
from imax_jax.schema import TARGET_OF_TASK


def _row(name: str, labels: str, patient: str = "1", view: str = "PA") -> str:
  return f"{name},{labels},0,{patient},50,M,{view},2500,2048,0.168,0.168"


def _labels(root: Path, *rows: str, file: str = nih.LABELS[0]) -> Path:
  return write_lines(root / file, [NIH_HEADER, *rows])


def _boxes(root: Path, *rows: str) -> Path:
  return write_lines(root / nih.BOXES, [BOX_HEADER, *rows])


def _read(root: Path, tally: Tally | None = None):
  radiographs = nih.read_radiographs(root, require_images=False)
  return list(nih.read(root, radiographs, tally=tally))


ONE, TWO = "00000001_000.png", "00000002_000.png"


def test_the_brackets_of_the_header_are_columns_as_in_the_rows():
  header, row = csv.reader([NIH_HEADER, _row(ONE, "Edema")])
  assert len(header) == len(row) == 11
  box_header, box_row = csv.reader([BOX_HEADER, f"{ONE},Mass,1,2,3,4"])
  assert (len(box_header), len(box_row)) == (9, 6)


def test_a_download_is_read_whole(tmp_path):
  names = write_nih(tmp_path, 12)
  images, tally = Tally("nih images"), Tally("nih")
  found = nih.read_radiographs(tmp_path, tally=images)
  assert list(found) == names
  first, second = found["00000001_000"], found["00000001_001"]
  assert (first.view, second.view) == ("AP", "PA")
  assert first.patient_id == second.patient_id == "00000001"
  assert first.study_id != second.study_id
  assert (first.width, first.height) == (1024, 1024)
  assert all(Path(r.path).is_file() for r in found.values())
  assert found["00000004_002"].path.endswith("images_002/images/00000004_002.png")
  said = list(nih.read(tmp_path, found, tally=tally))
  assert tally.counts == {"kept": len(said)} and not tally.rejected
  assert {a.task for a in said} == {"multi_label", "rec", "reg"}
  assert all(isinstance(a.target, TARGET_OF_TASK[a.task]) for a in said)
  assert {a.origin.rule for a in said} | {nih.IMAGE_RULE} == set(nih.RULES)
  assert tally.cases["label file"].endswith("11 columns: the release of 2020")
  assert {path.name for path in tally.inputs} == {nih.LABELS[0], nih.BOXES}


def test_eight_labels_in_the_papers_order(tmp_path):
  _labels(
    tmp_path,
    _row(ONE, "Nodule|Effusion|Hernia|Infiltration"),
    _row(TWO, "No Finding", "2"),
    _row("00000003_000.png", "Cardiomegaly", "3"),
  )
  effusion, none, other = _read(tmp_path)
  assert effusion.target.labels == nih.NAMES
  assert set(FINDINGS) - set(nih.NAMES) == {"Lung Opacity", "Fracture"}
  assert list(nih.NAMES) == sorted(nih.NAMES, key=FINDINGS.index)
  present = {n for n, bit in zip(nih.NAMES, effusion.target.values, strict=True) if bit}
  assert present == {"Pleural Effusion", "Infiltration", "Nodule"}
  assert none.target.values == other.target.values == (0,) * 8
  assert (none.origin.file, none.origin.row) == (nih.LABELS[0], 1)


def test_the_first_release_has_an_empty_column_more(tmp_path):
  rows = [_row(ONE, "Edema") + ",", _row(TWO, "No Finding", "2")]
  write_lines(tmp_path / nih.LABELS[1], [NIH_HEADER + ",", *rows])
  tally = Tally("nih")
  (edema,) = _read(tmp_path, tally)
  assert edema.image_id == "00000001_000"
  assert "12 columns: the first release" in tally.cases["label file"]
  assert tally.rejected == {"has more or fewer cells than the header": 1}
  # Where both are there, the newer labels are read.
  _labels(tmp_path, _row(ONE, "Edema"), _row(TWO, "No Finding", "2"))
  assert len(_read(tmp_path)) == 2


def test_bad_rows_are_listed_and_good_ones_are_kept(tmp_path):
  rows = [
    _row(ONE, "Edema"),
    _row("../00000001_001.png", "Edema"),
    _row("00000001_002.png", "Edema", "2"),
    _row("00000001_003.png", "Edema", "x"),
    _row("00000001_004.png", "Edema", view="LL"),
    _row("00000001_005.png", "Fracture"),
    _row("00000001_006.png", "No Finding|Mass"),
    _row("00000001_007.png", ""),
    _row("00000001_008.png", "Nodule").replace(",M,", ","),
    _row("00000001_009.png", "Nodule"),
    _row("00000001_009.png", "Mass"),
    _row(TWO, "Mass", "2"),
    _row(TWO, "Mass", "2"),
  ]
  _labels(tmp_path, *rows)
  intake = Intake(tmp_path / "quarantine.jsonl", max_quarantined=1)
  images = intake.tally("nih images", tmp_path)
  found = nih.read_radiographs(tmp_path, require_images=False, tally=images)
  numbers = [name[-3:] for name in found]
  assert numbers == ["000", "005", "006", "007", "009", "000"]
  tally = intake.tally("nih", tmp_path)
  kept = [a.image_id for a in nih.read(tmp_path, found, tally=tally)]
  assert kept == ["00000001_000", "00000002_000"]
  assert tally.rejected == {
    "image name of the wrong form": 1, "label of another name": 2,
    "No Finding beside a finding": 1, "contradicts another row about the same thing": 2,
    "has more or fewer cells than the header": 1,
  }  # fmt: skip
  assert images.rejected == {
    "image name of the wrong form": 1, "patient is not the one in the image's name": 2,
    "view neither PA nor AP": 1, "has more or fewer cells than the header": 1,
  }  # fmt: skip
  assert tally.rows == len(rows)
  assert sum(tally.counts.values()) == len(rows)
  intake.finish()
  lines = (tmp_path / "quarantine.jsonl").read_text().splitlines()
  listed = [json.loads(line) for line in lines]
  assert [line["row"] for line in listed if line["source"] == "nih"] == [
    1, 5, 6, 7, 8, 9, 10,
  ]  # fmt: skip
  assert all(line["file"] == nih.LABELS[0] for line in listed)
  assert "Edema" not in "".join(lines)


def test_images_lie_in_one_folder_or_in_twelve_or_are_absent(tmp_path):
  _labels(tmp_path, *(_row(f"00000001_{n:03d}.png", "Edema") for n in range(3)))
  with pytest.raises(FileNotFoundError, match=r"none of the 3 images.*images_001"):
    nih.read_radiographs(tmp_path)
  one = write_png(tmp_path / "images" / "00000001_000.png", 0)
  two = write_png(tmp_path / "images_012/images/00000001_002.png", 1)
  write_png(tmp_path / "images_013/00000001_001.png", 1)
  intake = Intake()
  found = nih.read_radiographs(tmp_path, tally=intake.tally("nih images"))
  assert [r.path for r in found.values()] == [str(one), str(two)]
  assert intake.tallies["nih images"].counts == {"kept": 2, "image file absent": 1}
  tally = intake.tally("nih")
  assert len(list(nih.read(tmp_path, found, tally=tally))) == 2
  assert tally.counts["image: image file absent"] == 1


# ── Boxes ─────────────────────────────────────────────────────────────────────────


def test_boxes_are_in_1024_pixels_under_the_papers_names(tmp_path):
  _labels(tmp_path, _row(ONE, "Effusion|Infiltration"))
  _boxes(
    tmp_path,
    f"{ONE},Infiltrate,256,512,128,64.5",
    f"{ONE},Effusion,-0.4,0,1024.5,512,,,",
  )
  said = [a for a in _read(tmp_path) if a.task != "multi_label"]
  assert [(a.task, a.subtask) for a in said] == [
    ("rec", "infiltration"), ("reg", "infiltration"),
    ("rec", "pleural effusion"), ("reg", "pleural effusion"),
  ]  # fmt: skip
  assert said[0].target.name == "infiltration"
  assert said[0].target.box == (0.25, 0.5, 0.375, 576.5 / 1024)
  assert said[2].target.box == (0.0, 0.0, 1.0, 0.5)
  assert (said[2].origin.file, said[2].origin.row) == (nih.BOXES, 1)
  assert said[2].origin.rule == nih.BOX_RULE


def test_two_boxes_of_one_finding_give_no_rec(tmp_path):
  _labels(tmp_path, _row(ONE, "Nodule"), _row(TWO, "Nodule", "2"))
  _boxes(
    tmp_path,
    f"{ONE},Nodule,10,10,5,5",
    f"{ONE},Mass,10,10,5,5",
    f"{ONE},Nodule,90,90,5,5",
    f"{ONE},Nodule,10,10,5,5",
    f"{TWO},Nodule,10,10,5,5",
    "00000009_000.png,Nodule,10,10,5,5",
  )
  tally = Tally("nih")
  said = [a for a in _read(tmp_path, tally) if a.task != "multi_label"]
  asked = sorted((a.image_id[:8], a.task, a.subtask) for a in said)
  assert asked == [
    ("00000001", "rec", "mass"), ("00000001", "reg", "mass"),
    ("00000001", "reg", "nodule"), ("00000001", "reg", "nodule"),
    ("00000002", "rec", "nodule"), ("00000002", "reg", "nodule"),
  ]  # fmt: skip
  assert tally.counts["rec: several boxes of one finding"] == 2
  assert tally.counts["says again what another row says"] == 1
  assert tally.counts["image: not among the radiographs"] == 1


@pytest.mark.parametrize(
  ("row", "reason"),
  [
    (f"{ONE},Nodule,10,10,5", "has more or fewer than six cells"),
    (f"{ONE},Nodule,10,10,5,5,6", "has more or fewer than six cells"),
    (f"{ONE},Nodule,10,ten,5,5", "box not of numbers"),
    (f"{ONE},Nodule,10,nan,5,5", "box not of numbers"),
    (f"{ONE},Nodule,10,inf,5,5", "box not of numbers"),
    (f"{ONE},Nodule,10,10,0,5", "box without area"),
    (f"{ONE},Nodule,10,10,5,-5", "box without area"),
    (f"{ONE},Nodule,1000,10,26,5", "box outside its image"),
    (f"{ONE},Nodule,-2,10,26,5", "box outside its image"),
    (f"{ONE},Nodule,-0.9,10,0.5,5", "box outside its image"),
    (f"{ONE},Rib,10,10,5,5", "label of another name"),
    ("1.png,Nodule,10,10,5,5", "image name of the wrong form"),
    (f"{ONE},\0,10,10,5,5", "has a NUL byte"),
    (f'{ONE},"Nodule,10,10,5,5', "is not csv (a quote is missing, or a cell is too long)"),
  ],
)  # fmt: skip
def test_a_bad_box_costs_itself_alone(tmp_path, row, reason):
  _labels(tmp_path, _row(ONE, "Nodule"))
  _boxes(tmp_path, f"{ONE},Mass,10,10,5,5", row, "", f"{ONE},Nodule,20,20,5,5")
  tally = Tally("nih")
  said = _read(tmp_path, tally)
  assert [(a.task, a.subtask, a.origin.row) for a in said[1:]] == [
    ("rec", "mass", 0), ("reg", "mass", 0), ("rec", "nodule", 2), ("reg", "nodule", 2),
  ]  # fmt: skip
  assert tally.rejected == {reason: 1}


def test_without_boxes_there_are_labels(tmp_path):
  _labels(tmp_path, _row(ONE, "Nodule"))
  tally = Tally("nih")
  assert len(_read(tmp_path, tally)) == 1
  assert tally.cases["boxes"] == "no BBox_List_2017.csv: none are read"


# ── Whole files ───────────────────────────────────────────────────────────────────


def test_files_that_are_not_what_they_are_named(tmp_path):
  with pytest.raises(FileNotFoundError, match="Data_Entry_2017_v2020.csv or"):
    nih.read_radiographs(tmp_path)
  path = write_lines(tmp_path / nih.LABELS[0], [])
  with pytest.raises(DamagedFile, match="Image Index"):
    nih.read_radiographs(tmp_path)
  write_lines(path, ["Image Index,Finding Labels", f"{ONE},Edema"])
  with pytest.raises(DamagedFile, match="Patient ID"):
    nih.read_radiographs(tmp_path)
  _labels(tmp_path, _row(ONE, "Nodule"))
  write_lines(tmp_path / nih.BOXES, ["Image Index,Finding Label,x,y,w,h"])
  with pytest.raises(DamagedFile, match=r"Bbox \[x,y,w,h\]"):
    _read(tmp_path)


def test_gzipped_files_are_read_and_cut_ones_refused(tmp_path):
  write_nih(tmp_path, 6)
  plain = _read(tmp_path)
  for name in (nih.LABELS[0], nih.BOXES):
    path = tmp_path / name
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
  packed = _read(tmp_path)
  assert [a.target for a in packed] == [a.target for a in plain]
  path = tmp_path / f"{nih.BOXES}.gz"
  shutil.copy(path, tmp_path / "whole")
  path.write_bytes(path.read_bytes()[:-30])
  with pytest.raises(DamagedFile, match="BBox_List_2017.csv.gz"):
    _read(tmp_path)
