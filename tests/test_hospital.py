"""The phantom hospital: what its files say is what was drawn."""

from __future__ import annotations

import collections
import csv
import gzip
import hashlib
import json
import re
import stat
import zipfile
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from imax_jax.data import sources
from imax_jax.data.phantom import anatomy
from imax_jax.data.phantom import chart
from imax_jax.data.phantom import films
from imax_jax.data.phantom import hospital
from imax_jax.data.phantom import inquiry
from imax_jax.data.phantom import questions
from imax_jax.data.phantom import render
from imax_jax.data.phantom import reports
from imax_jax.data.phantom import roster
from imax_jax.data.sources import chexmask
from imax_jax.data.sources import reading
from imax_jax.data.sources import sections
from imax_jax.data.sources.intake import Tally
from imax_jax.schema import EDEMA_GRADES
from imax_jax.schema import FINDINGS
from imax_jax.schema import ORGANS

PX = 96
FULL = {"calculation": 1.0, "report": 1.0, "multi_class": 1.0, "vqa": 1.0}

ROW_START = re.compile(chexmask.SETS["mimic"].row_start)


@pytest.fixture(scope="module")
def ward(tmp_path_factory: pytest.TempPathFactory) -> Path:
  root = tmp_path_factory.mktemp("phantom") / "hospital"
  hospital.write_hospital(
    root, seed=4, num_patients=10, image_px=PX, workers=1, coverage=FULL
  )
  return root


@pytest.fixture(scope="module")
def truth(ward: Path) -> dict[str, dict]:
  lines = (ward / hospital.TRUTH).read_text(encoding="utf-8").splitlines()
  return {item["image_id"]: item for item in map(json.loads, lines)}


@pytest.fixture(scope="module")
def read(ward: Path) -> tuple[dict, list]:
  roots = sources.roots_of(ward)
  radiographs = sources.read_radiographs(roots)
  return radiographs, list(sources.read_all(roots, radiographs))


def _of(read: tuple[dict, list], task: str, subtask: str = "") -> dict:
  return {
    a.image_id: a.target
    for a in read[1]
    if a.task == task and subtask in ("", a.subtask)
  }


def _digest(root: Path) -> dict[str, str]:
  return {
    path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
    for path in sorted(root.rglob("*"))
    if path.is_file()
  }


def test_every_frontal_film_is_read_with_its_ids_and_size(ward, truth, read):
  radiographs, _ = read
  assert len(radiographs) > 8
  for name, radiograph in radiographs.items():
    fact = truth[name]
    assert name.startswith("aaaaaaaa-")
    assert len(name) == 44
    assert radiograph.patient_id == fact["patient_id"]
    assert radiograph.patient_id.startswith("1000")
    assert radiograph.study_id == fact["study_id"]
    assert radiograph.study_id.startswith("5000")
    assert radiograph.view == fact["view"] != "LATERAL"
    with PIL.Image.open(radiograph.path) as image:
      assert image.mode == "L"
      assert image.format == "JPEG"
      assert image.size == (radiograph.width, radiograph.height) == (PX, PX)


def test_boxes_read_are_those_of_the_rendered_masks(truth, read):
  cases = {
    exposure.image_id: exposure.case
    for visit in roster.draw_roster(4, 10)
    for exposure in visit.exposures
  }
  found = {organ: _of(read, "rec", organ) for organ in ORGANS}
  names = list(found["heart"])
  assert len(names) > 8
  for name in names[:5]:
    film = render.render(cases[name], PX)
    for organ in ORGANS:
      ys, xs = np.nonzero(film.masks[organ])
      box = (xs.min() / PX, ys.min() / PX, (xs.max() + 1) / PX, (ys.max() + 1) / PX)
      assert found[organ][name].box == pytest.approx(box, abs=1e-12)
  for name in names:
    for organ in ORGANS:
      assert found[organ][name].box == pytest.approx(
        tuple(truth[name]["organ_boxes"][organ]), abs=1e-12
      )
  assert _of(read, "reg", "heart") == found["heart"]


def test_ratios_read_are_those_of_the_masks(read, ward):
  path = ward / "chexmask-cxr-segmentation-data/1.0.0/OriginalResolution"
  columns = ("dicom_id", "Heart", "Left Lung", "Right Lung")
  ctr, cpar = _of(read, "calculation", "ctr"), _of(read, "calculation", "cpar")
  checked = 0
  for _, (name, *runs) in reading.table_rows(
    path / "MIMIC-CXR-JPG.csv", columns, Tally("chexmask"), row_start=ROW_START
  ):
    if name not in ctr or not all(runs):
      continue
    heart, left, right = (_decoded(text) for text in runs)
    widths = [np.ptp(np.flatnonzero(m.any(axis=0))) + 1 for m in (heart, left | right)]
    assert ctr[name].value == pytest.approx(widths[0] / widths[1], abs=1e-12)
    area = heart.sum() / (left.sum() + right.sum())
    assert cpar[name].value == pytest.approx(area, abs=1e-12)
    checked += 1
  assert checked >= 3


def _decoded(text: str) -> np.ndarray:
  mask = np.zeros(PX * PX, bool)
  numbers = [int(number) for number in text.split()]
  for start, length in zip(numbers[0::2], numbers[1::2], strict=True):
    mask[start - 1 : start - 1 + length] = True
  return mask.reshape(PX, PX)


def test_grades_and_findings_read_are_the_true_ones(truth, read):
  grades, bits = _of(read, "multi_class"), _of(read, "multi_label")
  assert set(grades) == set(bits) == set(read[0])
  for name, grade in grades.items():
    assert grade.name == EDEMA_GRADES[truth[name]["edema_grade"]]
    present = {finding for finding, _, _ in truth[name]["findings"]}
    for label, bit in zip(FINDINGS, bits[name].values, strict=True):
      if label != "Lung Opacity":
        assert bit == (label in present)


def test_the_regex_table_disagrees_with_the_careful_ones(ward):
  tables = {}
  for kind in ("regex_report", "expert_report", "consensus_image"):
    path = ward / f"mimic-cxr-pe-severity/1.0.1/{kind}_edema_severity.csv"
    rows = reading.table_rows(path, ("study_id", "edema_severity"), Tally("pe"))
    tables[kind] = dict(cells for _, cells in rows)
  regex = tables.pop("regex_report")
  for table in tables.values():
    assert table
    assert set(table) <= set(regex)
    assert any(regex[study] != grade for study, grade in table.items())
  assert not set(tables["expert_report"]) & set(tables["consensus_image"])


def test_reports_name_what_is_there_and_nothing_else(truth, read):
  texts = _of(read, "report")
  assert set(texts) == set(read[0])
  for name, report in texts.items():
    words = report.text.lower()
    for finding, side, zone in truth[name]["findings"]:
      if finding in ("Nodule", "Consolidation", "Pneumonia", "Infiltration"):
        assert f"{side} {zone} zone" in words
      if finding == "Pneumothorax":
        assert f"{side} pneumothorax" in words
    if truth[name]["edema_grade"] == 0:
      assert "edema" not in words
      assert "congest" not in words
    assert 15 <= len(words.split()) <= 110


def test_question_answers_follow_from_the_truth(truth, read):
  asked = [a for a in read[1] if a.task == "vqa"]
  images = {a.image_id for a in asked}
  assert 4 * len(images) <= len(asked) <= 6 * len(images)
  assert len({truth[name]["study_id"] for name in images}) == len(images)
  for item in asked:
    fact, target = truth[item.image_id], item.target
    assert tuple(sorted(target.answers)) == target.answers
    assert all(answer == answer.lower() for answer in target.answers)
    if target.content_type == "gender" and item.subtask != "verify":
      assert target.answers == (fact["sex"],)
    if target.content_type == "plane" and item.subtask != "verify":
      assert target.answers == (fact["view"].lower(),)
    if target.content_type == "size" and "at most" in target.question:
      assert target.answers == ("no" if fact["ctr"] > 0.5 else "yes",)


def test_files_have_the_releases_columns(ward):
  jpg = ward / "mimic-cxr-jpg/2.1.0"
  with gzip.open(jpg / "mimic-cxr-2.0.0-split.csv.gz", "rt") as file:
    assert file.readline() == "dicom_id,study_id,subject_id,split\n"
  lt = ward / "cxr-lt-iccv-workshop-cvamd/2.0.0"
  with (lt / "cxr-lt-2024/train_labeled.csv").open() as file:
    row = next(csv.DictReader(file))
  assert row["study_id"].startswith("s5")
  assert row["fpath"].startswith("files/p10/")
  assert len(row) == 46
  with (lt / "cxr-lt-2023/train.csv").open() as file:
    row = next(csv.DictReader(file))
  assert row["study_id"].startswith("5")
  assert len(row) == 32
  assert "path" in row
  lines = (jpg / "IMAGE_FILENAMES").read_text().splitlines()
  assert lines
  assert all((jpg / line).is_file() for line in lines)
  with zipfile.ZipFile(ward / "mimic-cxr/2.1.0/mimic-cxr-reports.zip") as archive:
    assert all(name.startswith("files/p10/p1000") for name in archive.namelist())
  assert stat.S_IMODE(ward.stat().st_mode) == 0o700


def test_any_number_of_workers_writes_the_same_bytes(tmp_path):
  seen: list[tuple[int, int]] = []
  for workers in (1, 2):
    hospital.write_hospital(
      tmp_path / str(workers),
      seed=9,
      num_patients=6,
      image_px=48,
      workers=workers,
      progress=lambda done, total: seen.append((done, total)),
    )
  assert _digest(tmp_path / "1") == _digest(tmp_path / "2")
  total = seen[0][1]
  assert total > films._CHUNK, "else the second run has no second worker"
  assert seen == [(done, total) for done in range(1, total + 1)] * 2


def test_a_larger_hospital_begins_with_the_smaller():
  small, large = roster.draw_roster(2, 5), roster.draw_roster(2, 9)
  assert large[: len(small)] == small
  assert roster.draw_roster(3, 5) != small


def test_a_stopped_run_leaves_nothing(tmp_path):
  def stop(done: int, total: int) -> None:
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    hospital.write_hospital(
      tmp_path / "h", seed=1, num_patients=1, image_px=48, progress=stop
    )
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"num_patients": 0}, "num_patients: expected 1 to"),
    ({"seed": -1}, "seed: expected"),
    ({"workers": -1}, "workers: expected"),
    ({"coverage": {"vaq": 1.0}}, r"unknown \['vaq'\]"),
    ({"coverage": {"vqa": 1.5}}, r"expected a fraction in \[0, 1\], got 1.5"),
  ],
)
def test_bad_arguments_are_named_and_nothing_is_left(tmp_path, change, message):
  good = {"seed": 1, "num_patients": 1, "image_px": 48}
  with pytest.raises(ValueError, match=message):
    hospital.write_hospital(tmp_path / "h", **{**good, **change})
  assert not list(tmp_path.iterdir())


def test_an_existing_hospital_is_not_overwritten(ward):
  before = _digest(ward)
  with pytest.raises(ValueError, match="an empty one; choose another"):
    hospital.write_hospital(ward, seed=4, num_patients=1, image_px=48)
  assert _digest(ward) == before


def test_coverage_is_exact_for_studies():
  visits = roster.draw_roster(7, 60)
  from imax_jax.data.phantom import tables

  with_frontal = sum(bool(visit.frontals) for visit in visits)
  picked = tables.chosen(visits, 0.6, seed=7, code=51)
  assert len(picked) == round(0.6 * with_frontal)


def _facts(number: int) -> list[chart.Facts]:
  visits = roster.draw_roster(5, number)
  return [
    chart.Facts(visit.frontals[0].case, visit.frontals[0].case.ctr)
    for visit in visits
    if visit.frontals
  ]


@pytest.fixture(scope="module")
def drawn() -> list:
  facts = _facts(1000)
  pool = chart.pool_of(facts)
  return [
    (fact, item)
    for index, fact in enumerate(facts)
    for item in inquiry.questions_of(fact, pool, np.random.default_rng((1, index)))
  ]


def test_verify_questions_are_half_yes_and_no_blank_tells(drawn):
  by_blank: dict[str, collections.Counter] = collections.defaultdict(
    collections.Counter
  )
  for _, (number, _, asked) in drawn:
    template = questions.TEMPLATES[number]
    if template.semantic_type == "verify":
      by_blank["all"][asked.answers] += 1
      by_blank[template.content_type][asked.answers] += 1
      if number == 0:
        for blank in (*asked.blanks["attribute"], *asked.blanks["object"]):
          by_blank[blank][asked.answers] += 1
  assert abs(by_blank["all"][("yes",)] / by_blank["all"].total() - 0.5) < 0.04
  for blank, counts in by_blank.items():
    share = counts[("yes",)] / counts.total()
    assert 0.33 < share < 0.67, (blank, counts)


def test_of_a_choice_each_option_is_as_often_right_as_wrong(drawn):
  right: collections.Counter[str] = collections.Counter()
  first: list[bool] = []
  for _, (number, _, asked) in drawn:
    if questions.TEMPLATES[number].ask is not questions._choose_finding:
      continue
    if len(asked.answers) == 1:
      options = asked.blanks["attribute"]
      first.append(options[0] == asked.answers[0])
      for option in options:
        right[f"{option}|{option in asked.answers}"] += 1
  assert abs(np.mean(first) - 0.5) < 0.1
  for name in ("pleural effusion", chart.EDEMA, "pneumonia"):
    share = right[f"{name}|True"] / (right[f"{name}|True"] + right[f"{name}|False"])
    assert 0.3 < share < 0.7, name


def test_the_spread_of_types_is_the_sources(drawn):
  types = {
    (
      questions.TEMPLATES[number].semantic_type,
      questions.TEMPLATES[number].content_type,
    )
    for _, (number, _, _) in drawn
  }
  assert {content for _, content in types} == {
    "presence", "anatomy", "attribute", "abnormality", "size", "plane", "gender"
  }  # fmt: skip
  assert {semantic for semantic, _ in types} == {"verify", "choose", "query"}
  lengths = {len(asked.answers) for _, (_, _, asked) in drawn}
  assert {0, 1, 2} <= lengths


def test_presence_answers_agree_with_the_case(drawn):
  for facts, (number, _, asked) in drawn:
    if number != 0:
      continue
    (attribute,), (place,) = asked.blanks["attribute"], asked.blanks["object"]
    side = place.split(" ", maxsplit=1)[0]
    finding = next(k for k, v in chart.ATTRIBUTES.items() if v == attribute)
    there = any(f.name == finding and f.side in (side, "") for f in facts.case.findings)
    assert asked.answers == (("yes",) if there else ("no",))


def test_run_lengths_and_outline():
  mask = np.array([[0, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 1]], bool)
  # The run of row 0 and that of row 1 do not touch; rows' ends would join.
  assert films.run_lengths(mask) == "2 2 5 2 12 1"
  assert films.run_lengths(np.zeros((3, 3), bool)) == ""
  points = films.outline(mask, 6)
  assert points.shape == (6, 2)
  assert all(mask[y, x] for x, y in points)
  text = films.landmarks_text(points)
  assert text.count("\n") == 5
  assert text.startswith("[[")
  assert "," not in text


@pytest.mark.parametrize("seed", range(8))
def test_a_mask_and_its_landmarks_have_one_box(seed):
  """As in CheXmask, whose reader tells where they have not."""
  x, y, a, b = np.random.default_rng(seed).uniform(20, 60, 4)
  ys, xs = np.mgrid[:128, :128]
  mask = ((xs - x) / a) ** 2 + ((ys - y) / b) ** 2 < 1
  for num_points in (26, 44):
    points = films.outline(mask, num_points)
    assert points.shape == (num_points, 2)
    assert all(mask[row, column] for column, row in points)
    assert points.min(axis=0).tolist() == [xs[mask].min(), ys[mask].min()]
    assert points.max(axis=0).tolist() == [xs[mask].max(), ys[mask].max()]


@pytest.mark.parametrize(
  "form", ["both", "impression only", "findings only", "neither"]
)
def test_report_forms_have_the_sections_they_say(form):
  for visit in roster.draw_roster(6, 40):
    text = reports.report_text(visit, 0.55, form, np.random.default_rng(visit.number))
    found = sections.last_of_each(text)
    assert ("findings" in found) == (form in ("both", "findings only"))
    assert ("impression" in found) == (form in ("both", "impression only"))
    assert all(len(line) <= 79 for line in text.splitlines())
    assert all(line.startswith(" ") for line in text.splitlines())


def test_a_report_denies_nothing_that_is_there():
  for visit in roster.draw_roster(8, 60):
    text = reports.findings_text(visit, 0.45, np.random.default_rng(visit.number))
    names = {finding.name for finding in visit.study.findings}
    denials = [s for s in text.split(". ") if s.startswith(("No ", "There is no "))]
    for name in ("Pneumothorax", "Consolidation", "Nodule", "Fracture"):
      if name in names:
        assert not any(name.lower() in denial.lower() for denial in denials)
    if names:
      assert "lungs are clear" not in text


def test_bilateral_effusion_is_one_sentence():
  patient = anatomy.sample_patient(np.random.default_rng(0))
  study = anatomy.Study(
    patient,
    0.5,
    tuple(anatomy.Finding("Pleural Effusion", side, "lower") for side in anatomy.SIDES),
    0,
    (),
    1,
  )
  visit = roster.Visit("1", "5", 0, study, (), "train", "train", 21500101, 0.0)
  for seed in range(6):
    text = reports.findings_text(visit, 0.45, np.random.default_rng(seed))
    assert text.lower().count("effusion") == 1
    assert "bilateral" in text.lower() or "both costophrenic angles" in text
    assert "a bilateral" not in text.lower()


def test_what_the_film_alone_answers_is_answered_by_it(drawn):
  checked: collections.Counter[str] = collections.Counter()
  for facts, (number, text, asked) in drawn:
    template = questions.TEMPLATES[number]
    if template.semantic_type != "verify":
      continue
    if template.content_type == "size":
      denied = "at most" in text or "no wider" in text
      truth = (facts.ctr > 0.5) != denied
    elif template.content_type == "abnormality":
      side = "left" if "left lung" in text else "right"
      healthy = "normal?" in text.replace("abnormal?", "") or "free of" in text
      truth = bool(facts.within(side)) != healthy
    elif template.content_type == "plane":
      truth = f"{facts.case.view} view" in text
    elif template.content_type == "gender":
      truth = (" female" in text) == (facts.case.sex == "f")
    else:
      continue
    checked[template.content_type] += 1
    assert asked.answers == (("yes",) if truth else ("no",)), text
  assert len(checked) == 4
  assert min(checked.values()) > 50


def test_landmarks_stand_on_their_organs_in_chexmasks_order():
  film = render.render(anatomy.sample_case(np.random.default_rng(5), view="PA"), PX)
  text = films.describe("x", film).landmarks
  points = np.array(text.replace("[", " ").replace("]", " ").split(), int)
  points = points.reshape(120, 2)
  start = 0
  for organ, number in (("right lung", 44), ("left lung", 50), ("heart", 26)):
    part = points[start : start + number]
    assert all(film.masks[organ][y, x] for x, y in part), organ
    start += number
