"""The census: the releases' numbers at any scale, in files that the readers read whole."""

from __future__ import annotations

import collections
import csv
import gzip
import hashlib
import io
import json
import os
import re
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from imax_jax.data import sources
from imax_jax.data.phantom import census
from imax_jax.data.phantom import census_masks
from imax_jax.data.phantom import census_people
from imax_jax.data.phantom import census_questions
from imax_jax.data.phantom import census_tables
from imax_jax.data.phantom import census_texts
from imax_jax.data.phantom import labels
from imax_jax.data.phantom import tables
from imax_jax.data.sources import intake as intake_lib
from imax_jax.data.sources import mimic_cxr_jpg
from imax_jax.data.sources import mimic_ids
from imax_jax.data.sources import sections
from imax_jax.schema import ORGANS

SCALE = 0.002
SIZE = (764, 636)  # a quarter of the real film, so that the masks are small
JPG = "mimic-cxr-jpg/2.1.0"
LT = "cxr-lt-iccv-workshop-cvamd/2.0.0"
PE = "mimic-cxr-pe-severity/1.0.1"
VQA = "mimic-ext-mimic-cxr-vqa/1.0.0/MIMIC-Ext-MIMIC-CXR-VQA/dataset"
MASKS = "chexmask-cxr-segmentation-data/1.0.0/OriginalResolution/MIMIC-CXR-JPG.csv"
METADATA = f"{JPG}/mimic-cxr-2.0.0-metadata.csv.gz"


def _write(root: Path, seed: int = 3) -> dict[str, int]:
  return census.write_census(root, seed=seed, scale=SCALE, image_size=SIZE)


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int]]:
  root = tmp_path_factory.mktemp("phantom") / "census"
  return root, _write(root)


@pytest.fixture(scope="module")
def root(counted) -> Path:
  return counted[0]


@pytest.fixture(scope="module")
def whole() -> census_people.People:
  """The people of a census of the real size; nothing of it is written."""
  return census_people.draw_people(1, 1.0, census_people.SIZES[0][:2])


def _table(root: Path, name: str) -> list[dict[str, str]]:
  data = (root / name).read_bytes()
  text = (gzip.decompress(data) if name.endswith(".gz") else data).decode()
  before = csv.field_size_limit(2**24)
  try:
    return list(csv.DictReader(io.StringIO(text, newline="")))
  finally:
    csv.field_size_limit(before)


def _digest(root: Path) -> dict[str, str]:
  return {
    path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
    for path in sorted(root.rglob("*"))
    if path.is_file()
  }


# ── People ────────────────────────────────────────────────────────────────────────


def test_the_real_size_has_the_released_numbers(whole):
  views = collections.Counter(census_people.VIEWS[v] for v in whole.view.tolist())
  assert len(whole.image_ids) == len(set(whole.image_ids)) == 377_110
  assert len(set(whole.study_ids)) == 227_835
  assert len(set(whole.subject_ids)) == 65_379
  assert (views["AP"], views["PA"], views["LATERAL"]) == (147_173, 96_161, 82_853)
  assert (views["LL"], views[""]) == (35_133, 15_769)
  assert sum(views[view] for view in census_people.VIEWS[5:]) == 21
  assert whole.frontal.size == 243_334
  films = np.bincount(whole.study, minlength=227_835)
  assert set(films.tolist()) == {1, 2, 3, 4}
  visits = np.bincount(whole.patient, minlength=65_379)
  assert visits.min() == 1 and visits.max() > 30
  assert {subject[:2] for subject in whole.subject_ids} == {f"1{n}" for n in range(10)}
  by_hand = {*sections.SECTION_OF_STUDY, *sections.CHARACTERS_OF_STUDY}
  assert not by_hand & set(whole.study_ids)
  upright = sum(whole.sizes[s][0] > whole.sizes[s][1] for s in whole.size.tolist())
  assert upright / 377_110 == pytest.approx(0.605, abs=0.01)


def test_a_patient_is_in_one_official_split(whole):
  names, counts = census_tables.SPLITS
  split = whole.split(names, counts, code=11)
  assert len(split) == 65_379
  images = collections.Counter(np.array(split)[whole.patient[whole.study]].tolist())
  for name, count in zip(names, counts, strict=True):
    assert images[name] == pytest.approx(count, abs=60)


def test_apportion_and_portions_lose_nothing():
  assert census_people.apportion(10, (2, 1, 1)) == [5, 3, 2]
  assert census_people.apportion(0, (2, 1)) == [0, 0]
  rng = np.random.default_rng(0)
  counts = census_people.portions(95, 10, 10, rng)
  assert counts.sum() == 95 and counts.min() >= 1 and counts.max() <= 10
  with pytest.raises(ValueError, match="does not go"):
    census_people.portions(101, 10, 10, rng)


def test_metadata_has_the_scaled_counts_and_the_official_layout(counted):
  root, counts = counted
  rows = _table(root, METADATA)
  assert tuple(rows[0]) == tables._METADATA
  assert len(rows) == counts["images"] == 754
  assert len({row["study_id"] for row in rows}) == counts["studies"] == 456
  assert len({row["subject_id"] for row in rows}) == counts["patients"] == 131
  views = collections.Counter(row["ViewPosition"] for row in rows)
  expected = {"AP": 294, "PA": 192, "LATERAL": 166, "LL": 70, "PA LLD": 1}
  assert views == {**expected, "": 754 - sum(expected.values())}
  keys = [(int(row["subject_id"]), int(row["study_id"])) for row in rows]
  assert keys == sorted(keys)
  assert all(mimic_ids.is_dicom_id(row["dicom_id"]) for row in rows)
  assert all(re.fullmatch(r"1\d{7}", row["subject_id"]) for row in rows)
  assert all(re.fullmatch(r"5\d{7}", row["study_id"]) for row in rows)
  assert all(re.fullmatch(r"2[12]\d{6}", row["StudyDate"]) for row in rows)
  assert all(0 <= float(row["StudyTime"]) < 240_000 for row in rows)
  sizes = collections.Counter((int(row["Rows"]), int(row["Columns"])) for row in rows)
  assert [size for size, _ in sizes.most_common(2)] == [SIZE, SIZE[::-1]]
  assert len(sizes) > 4
  names = (root / JPG / "IMAGE_FILENAMES").read_text().splitlines()
  assert names == [
    f"files/p{row['subject_id'][:2]}/p{row['subject_id']}/s{row['study_id']}/"
    f"{row['dicom_id']}.jpg"
    for row in rows
  ]
  split = _table(root, f"{JPG}/mimic-cxr-2.0.0-split.csv.gz")
  assert list(split[0]) == ["dicom_id", "study_id", "subject_id", "split"]
  key = ("dicom_id", "subject_id", "study_id")
  assert [[r[k] for k in key] for r in split] == [[r[k] for k in key] for r in rows]


def test_both_labellers_lack_the_same_few_studies(root, whole):
  assert census_tables._lacking(1.0) == 8
  tables_of = {
    name: _table(root, f"{JPG}/mimic-cxr-2.0.0-{name}.csv.gz")
    for name in ("chexpert", "negbio")
  }
  rows, others = tables_of["chexpert"], tables_of["negbio"]
  assert tuple(rows[0]) == ("subject_id", "study_id", *tables._CHEXPERT)
  assert [row["study_id"] for row in rows] == [row["study_id"] for row in others]
  assert len(rows) == 456 - census_tables._lacking(SCALE)
  cells = [cell for row in rows for cell in list(row.values())[2:]]
  assert set(cells) == {"1.0", "0.0", "-1.0", ""}
  same = np.mean([a == b for a, b in zip(rows, others, strict=True)])
  assert 0.5 < same < 1


# ── Reports ───────────────────────────────────────────────────────────────────────


def test_every_study_has_a_report_of_a_documented_form(root):
  path = root / "mimic-cxr/2.1.0/mimic-cxr-reports.zip"
  kinds: collections.Counter[tuple[str, ...]] = collections.Counter()
  short, titles = 0, ""
  with zipfile.ZipFile(path) as archive:
    names = archive.namelist()
    for name in names:
      text = archive.read(name).decode()
      titles += text
      found = sections.last_of_each(text)
      kinds[tuple(n for n in ("findings", "impression") if n in found)] += 1
      if "findings" in found and "impression" in found:
        short += len(found["findings"].split()) < 10
      elif text and "findings" not in found and "impression" not in found:
        assert found["last_paragraph"]
  studies = {(row["subject_id"], row["study_id"]) for row in _table(root, METADATA)}
  assert set(names) == {f"files/p{p[:2]}/p{p}/s{s}.txt" for p, s in studies}
  assert len(names) == 456
  shares = census_people.apportion(456, list(census_texts.FORMS.values()))
  assert kinds == {
    ("findings", "impression"): shares[0],
    ("impression",): shares[1],
    ("findings",): shares[2],
    (): shares[3] + shares[4],
  }
  assert 0 < short < 0.2 * shares[0]
  for trap in ("CONCLUSION:", "FINDINS:", "CHEST TWO VIEWS:", "WET READ:",
               " Comparison:", "\nCOMPARISON:", "  COMPARISON: ", "___"):  # fmt: skip
    assert trap in titles, trap
  assert max(map(len, titles.splitlines())) <= 79


def test_the_real_size_has_the_released_forms():
  values = list(census_texts.FORMS.values())
  assert sum(values) == 227_835
  assert census_people.apportion(227_835, values) == values


# ── Ratios, grades, labels ────────────────────────────────────────────────────────


def test_ratios_are_of_exactly_the_pa_images_with_some_marks(root):
  images = [r["dicom_id"] for r in _table(root, METADATA) if r["ViewPosition"] == "PA"]
  marked = 0
  for column in ("CTR", "CPAR"):
    rows = _table(root, f"cxr-cardiomegaly/1.0.0/{column}s.csv")
    assert [row["dicom_file"] for row in rows] == images
    values = [float(row[column]) for row in rows]
    assert all(0 < value < 1 or value in (2, 3, 4) for value in values)
    marked += sum(value >= 1 for value in values)
  assert 0 < marked < 0.1 * 2 * len(images)


def test_grades_of_the_real_size_are_the_released(whole, tmp_path):
  assert census_tables.write_pe_severity(tmp_path, whole) == 6_710
  tables_of = {
    name: _table(tmp_path, f"{name}_edema_severity.csv")
    for name in ("regex_report", "expert_report", "consensus_image")
  }
  grade = {
    name: {row["study_id"]: int(row["edema_severity"]) for row in rows}
    for name, rows in tables_of.items()
  }
  regex, expert, consensus = grade.values()
  assert [len(regex), len(expert), len(consensus)] == [6_710, 485, 141]
  assert np.bincount([*regex.values()]).tolist() == [2801, 1497, 1736, 676]
  assert np.bincount([*expert.values()]).tolist() == [216, 98, 105, 66]
  assert np.bincount([*consensus.values()]).tolist() == [61, 44, 20, 16]
  assert sum(regex[study] != value for study, value in expert.items()) == 50
  assert sum(regex[study] != value for study, value in consensus.items()) == 80
  people = [
    {row["subject_id"] for row in tables_of[name]}
    for name in ("expert_report", "consensus_image")
  ]
  assert not people[0] & people[1]
  views = dict(zip(whole.image_ids, whole.view.tolist(), strict=True))
  images = [row["dicom_id"] for row in tables_of["consensus_image"]]
  assert all(census_people.VIEWS[views[image]] in ("AP", "PA") for image in images)
  graded = np.isin(np.array(whole.study_ids), list(regex))
  assert graded[whole.study[whole.frontal]].sum() == pytest.approx(7_400, abs=200)
  auxiliary = _table(
    tmp_path, "auxiliary_metadata/mimic_cxr_metadata_available_CHF_view.csv"
  )
  assert len(auxiliary) == 17_900
  assert {row["view"] for row in auxiliary} == {"frontal", "lateral"}
  assert set(regex) <= {row["study_id"] for row in auxiliary}


def test_labels_are_the_studys_in_both_releases(root):
  metadata = _table(root, METADATA)
  rows = _table(root, f"{LT}/cxr-lt-2024/labels.csv")
  key = ("dicom_id", "subject_id", "study_id", "ViewPosition",
         "ViewCodeSequence_CodeMeaning")  # fmt: skip
  assert tuple(rows[0]) == (*key, "fpath", *labels.LABELS_45, "split")
  assert [row["dicom_id"] for row in rows] == [row["dicom_id"] for row in metadata]
  of_study: dict[str, tuple[str, ...]] = {}
  for row, known in zip(rows, metadata, strict=True):
    assert row["study_id"] == f"s{known['study_id']}"
    assert row["fpath"].endswith(f"s{known['study_id']}/{known['dicom_id']}.jpg")
    bits = tuple(row[name] for name in labels.LABELS_45)
    assert set(bits) <= {"0", "1"}
    assert of_study.setdefault(row["study_id"], bits) == bits
    findings = {n for n in labels.LABELS_45 if row[n] == "1"} - {"Support Devices"}
    assert findings and ("Normal" in findings) == (findings == {"Normal"})
    assert row["Fracture"] == "1" or row["Rib Fracture"] == "0"
  splits = {row["subject_id"]: row["split"] for row in rows}
  assert all(splits[row["subject_id"]] == row["split"] for row in rows)
  labelled = {row["dicom_id"]: row for row in rows}
  pooled, patients = [], []
  for name in ("train", "development", "test"):
    older = _table(root, f"{LT}/cxr-lt-2023/{name}.csv")
    assert tuple(older[0]) == (*key, "path", *labels.LABELS_26)
    pooled += older
    patients.append({row["subject_id"] for row in older})
  assert sorted(row["dicom_id"] for row in pooled) == sorted(labelled)
  assert sum(map(len, patients)) == len(set().union(*patients))
  for row in pooled:
    newer = labelled[row["dicom_id"]]
    assert row["No Finding"] == newer["Normal"] and row["Edema"] == newer["Edema"]
    assert row["study_id"] == newer["study_id"].removeprefix("s")
  common = np.mean([row["Lung Opacity"] == "1" for row in rows])
  assert 0.15 < common < 0.4


# ── Masks ─────────────────────────────────────────────────────────────────────────


def test_masks_are_of_exactly_the_frontal_images(root):
  metadata = {row["dicom_id"]: row for row in _table(root, METADATA)}
  frontal = [n for n, r in metadata.items() if r["ViewPosition"] in ("AP", "PA")]
  rows = _table(root, MASKS)
  assert ",".join(rows[0]) == census_masks.HEADER
  assert [row["dicom_id"] for row in rows] == frontal
  means = [float(row["Dice RCA (Mean)"]) for row in rows]
  assert sum(mean >= 0.7 for mean in means) == round(237_498 / 243_334 * len(rows))
  for row, mean in zip(rows, means, strict=True):
    known = metadata[row["dicom_id"]]
    assert (row["Height"], row["Width"]) == (known["Rows"], known["Columns"])
    assert mean <= float(row["Dice RCA (Max)"]) <= 1
    assert row["Landmarks"].count("\n") == 119
    assert row["Landmarks"].startswith("[[") and row["Landmarks"].endswith("]]")


def _decoded(text: str, height: int, width: int) -> np.ndarray:
  """bool[H, W]; fails where a run overlaps another or the image's edge."""
  flat = np.zeros(height * width, bool)
  numbers = [int(number) for number in text.split(" ")]
  for start, length in zip(numbers[0::2], numbers[1::2], strict=True):
    assert start >= 1 and length >= 1 and start - 1 + length <= flat.size
    assert (start - 1) // width == (start + length - 2) // width
    assert not flat[start - 1 : start - 1 + length].any()
    flat[start - 1 : start - 1 + length] = True
  return flat.reshape(height, width)


def test_what_the_truth_says_of_masks_is_what_they_decode_to(root):
  folder = root / census.TRUTH
  lines = (folder / "masks.jsonl").read_text().splitlines()
  truth = [json.loads(line) for line in lines]
  triple = {
    row["dicom_id"]: int(row["triple"])
    for row in _table(root, f"{census.TRUTH}/images.csv.gz")
  }
  rows = _table(root, MASKS)
  assert set(triple) == {row["dicom_id"] for row in rows}
  assert len(set(triple.values())) > 20
  for row in rows[::16]:
    known = truth[triple[row["dicom_id"]]]
    size = known["height"], known["width"]
    assert size == (int(row["Height"]), int(row["Width"]))
    points = np.array(re.findall(r"\d+", row["Landmarks"]), int).reshape(120, 2)
    middle = {}
    for organ, cell, part in (
      ("right lung", "Right Lung", points[:44]),
      ("left lung", "Left Lung", points[44:94]),
      ("heart", "Heart", points[94:]),
    ):
      mask = _decoded(row[cell], *size)
      ys, xs = np.nonzero(mask)
      box = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
      assert known["boxes"][organ] == box and known["areas"][organ] == mask.sum()
      around = [*part.min(axis=0), *(part.max(axis=0) + 1)]
      assert box == around
      # Filled: nothing but the outline's own hollows is outside of it.
      assert mask.sum() > 0.3 * (box[2] - box[0]) * (box[3] - box[1])
      middle[organ] = xs.mean()
    assert middle["right lung"] < middle["heart"] < middle["left lung"]


def test_a_polygon_is_filled_with_its_edges_and_hollow_with_two_runs_a_row():
  square = np.array([[1, 1], [4, 1], [4, 4], [1, 4]])
  row, first, last = census_masks.fill(square, 6, 6)
  assert row.tolist() == [1, 2, 3, 4]
  assert set(first.tolist()) == {1} and set(last.tolist()) == {4}
  arch = np.array([[0, 0], [9, 0], [9, 6], [7, 6], [7, 3], [2, 3], [2, 6], [0, 6]])
  row, first, last = census_masks.fill(arch, 8, 10)
  assert row.tolist() == [0, 1, 2, 3, 4, 4, 5, 5, 6, 6]
  assert first.tolist()[-2:] == [0, 7] and last.tolist()[-2:] == [2, 9]
  beyond = np.array([[-5, -5], [20, -5], [20, 20], [-5, 20]])
  row, first, last = census_masks.fill(beyond, 6, 6)
  assert (row.max(), first.min(), last.max()) == (5, 0, 5)


def test_a_row_of_the_real_size_is_as_long_as_the_releases():
  people = census_people.draw_people(0, 0.05, census_people.SIZES[0][:2])
  pool = census_masks.draw_pool(people)
  sizes = np.bincount(people.size[people.frontal], minlength=len(pool))
  means = [np.mean([len(triple.text) for triple in triples]) for triples in pool]
  # The id, two numbers and their commas come before.
  mean = 44 + 2 * 19 + np.average(means, weights=sizes)
  assert mean * 243_334 == pytest.approx(13.0e9, rel=0.03)
  assert len(pool[0]) > 200


# ── Questions ─────────────────────────────────────────────────────────────────────


def _lists(root: Path) -> dict[str, list[dict]]:
  return {
    split: json.loads((root / VQA / f"{split}.json").read_text())
    for split in ("train", "valid", "test")
  }


def test_questions_have_the_released_form(root):
  metadata = {row["dicom_id"]: row for row in _table(root, METADATA)}
  lists = _lists(root)
  for split, items in lists.items():
    text = (root / VQA / f"{split}.json").read_text()
    assert text == json.dumps(items, indent=4)
    assert len(items) == round(census_questions.SPLITS[split][0] * SCALE)
    assert [item["idx"] for item in items] == list(range(len(items)))
  fields = ["split", "idx", "subject_id", "study_id", "image_id", "image_path",
            "question", "semantic_type", "content_type", "template",
            "template_program", "template_arguments", "answer"]  # fmt: skip
  every = [item for items in lists.values() for item in items]
  image_of_study: dict[str, str] = {}
  for item in every:
    row = metadata[item["image_id"]]
    assert list(item) == fields
    assert row["ViewPosition"] in ("AP", "PA")
    assert (item["subject_id"], item["study_id"]) == (
      row["subject_id"],
      row["study_id"],
    )
    assert item["image_path"] == (
      f"p{row['subject_id'][:2]}/p{row['subject_id']}/s{row['study_id']}/"
      f"{item['image_id']}.jpg"
    )
    assert (
      image_of_study.setdefault(item["study_id"], item["image_id"])
      == (item["image_id"])
    )
    assert list(item["template_arguments"]) == [
      "object", "attribute", "category", "viewpos", "gender"
    ]  # fmt: skip
    assert item["answer"] == sorted(item["answer"])
    assert item["answer"] or item["semantic_type"] != "verify"
    if item["content_type"] == "plane" and item["semantic_type"] != "verify":
      assert item["answer"] == [row["ViewPosition"].lower()]
    if item["content_type"] == "gender" and item["semantic_type"] != "verify":
      assert item["answer"] in (["m"], ["f"])
  asked = collections.Counter((i["image_id"], i["question"]) for i in every)
  assert max(asked.values()) == 1
  assert {i["semantic_type"] for i in every} == {"verify", "choose", "query"}
  assert {i["content_type"] for i in every} == {
    "presence", "anatomy", "attribute", "abnormality", "size", "plane", "gender"
  }  # fmt: skip
  train = {item["subject_id"] for item in lists["train"] + lists["valid"]}
  assert not train & {item["subject_id"] for item in lists["test"]}


def test_there_are_48_programs_and_one_list_in_twenty_is_empty():
  programs = census_questions._programs()
  assert [one.name for one in programs] == [f"program_{n}" for n in range(1, 49)]
  assert len({one.text for one in programs}) == 48
  people = census_people.draw_people(0, 0.1, SIZE)
  pool = census_questions.draw_pool(people)
  every = [
    json.loads("{" + text) for cases in pool.values() for case in cases for text in case
  ]
  assert {item["template_program"] for item in every} == {one.name for one in programs}
  lists = [item["answer"] for item in every if item["semantic_type"] != "verify"]
  assert np.mean([not answer for answer in lists]) == pytest.approx(0.05, abs=0.015)


def test_questions_of_the_real_size_are_about_the_released_images(whole):
  chosen = census_questions.choose_studies(whole, whole.rng(52))
  patients = {n: set(whole.patient[s].tolist()) for n, s in chosen.items()}
  assert {name: len(set(s.tolist())) for name, s in chosen.items()} == {
    "train": 133_687, "valid": 8_610, "test": 500
  }  # fmt: skip
  assert {name: len(found) for name, found in patients.items()} == {
    "train": 52_453, "valid": 3_461, "test": 500
  }  # fmt: skip
  assert len(patients["train"] & patients["valid"]) == 698
  assert not patients["test"] & (patients["train"] | patients["valid"])
  assert sum(map(len, chosen.values())) == len(set(np.concatenate([*chosen.values()])))
  assert all((whole.first_frontal[studies] >= 0).all() for studies in chosen.values())


# ── The whole ─────────────────────────────────────────────────────────────────────


def test_the_readers_read_all_of_it(counted, tmp_path):
  root, counts = counted
  roots = sources.roots_of(root)
  assert set(roots) == set(sources.FOLDERS)
  intake = intake_lib.Intake(tmp_path / "quarantine.jsonl", max_quarantined=0.0)
  radiographs = sources.read_radiographs(
    roots, intake=intake, options={"mimic_cxr_jpg": {"require_images": False}}
  )
  annotations = list(sources.read_all(roots, radiographs, intake=intake))
  intake.finish()  # raises where one row was rejected
  assert len(radiographs) == counts["frontal_images"]
  kept = collections.Counter(a.task for a in annotations)
  passing = round(census_masks.PASSING * counts["frontal_images"])
  assert kept["rec"] == kept["reg"] == 3 * passing
  assert kept["multi_label"] == counts["frontal_images"]
  assert kept["vqa"] == counts["vqa"]
  assert 0.85 * 2 * counts["calculation"] < kept["calculation"]
  assert kept["multi_class"] >= counts["multi_class"] == 13
  assert kept["report"] > 0.4 * counts["frontal_images"]
  lines = (root / census.TRUTH / "masks.jsonl").read_text().splitlines()
  truth = [json.loads(line) for line in lines]
  triple = {
    row["dicom_id"]: int(row["triple"])
    for row in _table(root, f"{census.TRUTH}/images.csv.gz")
  }
  for annotation in annotations:
    if annotation.task == "rec":
      known = truth[triple[annotation.image_id]]
      sides = np.array([known["width"], known["height"]] * 2)
      box = np.array(known["boxes"][annotation.subtask]) / sides
      assert annotation.target.box == pytest.approx(tuple(box.tolist()))
  assert {a.subtask for a in annotations if a.task == "rec"} == set(ORGANS)
  tally = intake_lib.Tally("checks")
  splits = mimic_cxr_jpg.read_splits(root / JPG, tally=tally)
  assert len(splits) == counts["images"]
  for table in ("chexpert", "negbio"):
    found = mimic_cxr_jpg.read_labels(root / JPG, table, tally=tally)
    assert len(found) <= counts["studies"]
    said = tally.cases[f"labels of mimic-cxr-2.0.0-{table}.csv.gz"]
    assert said == "14 of 14 known labels, 0 other columns"
  assert not tally.rejected


def test_the_same_arguments_give_the_same_bytes_wherever_they_are_written(
  root, tmp_path
):
  _write(tmp_path / "again")
  code = (
    "from pathlib import Path; from imax_jax.data.phantom import census; "
    f"census.write_census(Path({str(tmp_path / 'there')!r}), seed=3, scale={SCALE}, "
    f"image_size={SIZE})"
  )
  environment = os.environ | {
    "PYTHONHASHSEED": "77", "LC_ALL": "C", "TZ": "Pacific/Chatham", "PYTHONUTF8": "0"
  }  # fmt: skip
  subprocess.run([sys.executable, "-c", code], env=environment, check=True)
  digest = _digest(root)
  assert len(digest) == 23
  assert _digest(tmp_path / "again") == digest
  assert _digest(tmp_path / "there") == digest


def test_another_seed_gives_another_census(root, tmp_path):
  _write(tmp_path / "other", seed=4)
  mine, other = _digest(root), _digest(tmp_path / "other")
  same = {name for name in mine if mine[name] == other[name]}
  assert mine.keys() == other.keys()
  assert same == {f"{census.TRUTH}/counts.json"}


def test_only_a_complete_census_takes_its_name(tmp_path, monkeypatch):
  def fails(*args: object) -> int:
    raise KeyboardInterrupt

  monkeypatch.setattr(census_masks, "write_chexmask", fails)
  with pytest.raises(KeyboardInterrupt):
    _write(tmp_path / "census")
  assert list(tmp_path.iterdir()) == []


def test_it_is_its_owners_alone_and_writes_over_nothing(root):
  assert stat.S_IMODE(root.stat().st_mode) == 0o700
  with pytest.raises(ValueError, match="expected no such folder, or an empty one"):
    _write(root)


@pytest.mark.parametrize(
  ("argument", "value"),
  [("scale", 0.0), ("scale", 1.5), ("scale", float("nan")), ("seed", -1),
   ("image_size", (100, 100))],
)  # fmt: skip
def test_bad_arguments_are_named(tmp_path, argument, value):
  given = {"seed": 0, "scale": SCALE, argument: value}
  with pytest.raises(ValueError, match=f"^{argument}: "):
    census.write_census(tmp_path / "census", **given)
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("scale", [0.001, 0.0013, 0.0037])
def test_small_scales_go(tmp_path, scale):
  calls: list[tuple[int, int]] = []
  counts = census.write_census(
    tmp_path / "census", seed=1, scale=scale, image_size=(256, 256),
    progress=lambda done, total: calls.append((done, total)),
  )  # fmt: skip
  assert counts["vqa"] == sum(
    round(number * scale) for number, *_ in census_questions.SPLITS.values()
  )
  assert calls[-1] == (counts["frontal_images"],) * 2
  assert calls == sorted(calls)


def test_the_door_writes_and_counts(tmp_path, monkeypatch, capsys):
  root = tmp_path / "census"
  monkeypatch.setattr(sys, "argv", ["census", str(root), "--scale", "0.001"])
  census.main()
  counts = json.loads(capsys.readouterr().out)
  assert counts["images"] == 377
  assert counts == json.loads((root / census.TRUTH / "counts.json").read_text())
