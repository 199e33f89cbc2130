"""VQA-RAD, SLAKE and VinDr-CXR as downloaded. Every row and image is invented."""

from __future__ import annotations

import collections
import json
import re
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from open_vqa_layout import film
from open_vqa_layout import rad_item
from open_vqa_layout import save
from open_vqa_layout import slake_item
from open_vqa_layout import vindr_film
from open_vqa_layout import vindr_id
from open_vqa_layout import write_kaggle
from open_vqa_layout import write_slake
from open_vqa_layout import write_vindr
from open_vqa_layout import write_vqa_rad
from PIL import Image

from imax_jax.data.prompts import make_entry
from imax_jax.data.sources import agreement
from imax_jax.data.sources import pictures
from imax_jax.data.sources import questions
from imax_jax.data.sources import sides
from imax_jax.data.sources import slake
from imax_jax.data.sources import slake_doubles
from imax_jax.data.sources import vindr
from imax_jax.data.sources import vqa_rad
from imax_jax.data.sources.agreement import Drawn
from imax_jax.data.sources.intake import DamagedFile
from imax_jax.data.sources.intake import Intake
from imax_jax.schema import FINDINGS
from imax_jax.schema import Annotation
from imax_jax.schema import Origin
from imax_jax.schema import Radiograph
from imax_jax.schema import Region

RAD_JSON = "VQA_RAD Dataset Public.json"


def _read(reader, root):
  tally = Intake().tally("s", root)
  found = list(reader.read(root, reader.read_radiographs(root), tally=tally))
  assert tally.counts["kept"] == len(found)
  assert {a.origin.rule for a in found} <= reader.RULES.keys()
  for annotation in found:
    make_entry(annotation, 0)  # it can be put into words
  return found, tally


def _rewrite(path: Path, change) -> None:
  items = json.loads(path.read_text())
  path.write_text(json.dumps(change(items)))


# ── VQA-RAD ───────────────────────────────────────────────────────────────────────


def test_vqa_rad_s_chest_questions_by_the_paper_s_subtasks(tmp_path):
  write_vqa_rad(tmp_path, 4)
  images = vqa_rad.read_radiographs(tmp_path)
  assert list(images) == [f"vqa_rad/synpic{n}" for n in range(4)]
  first = images["vqa_rad/synpic0"]
  assert (first.width, first.height, first.view) == (60, 48, "")
  # Two images of a case are one patient's.
  assert collections.Counter(i.patient_id for i in images.values()) == {
    f"vqa_rad/https://example.invalid/case?id={n}": 2 for n in range(2)
  }
  found, tally = _read(vqa_rad, tmp_path)
  said = [
    (a.subtask, a.target.answers, a.target.content_type)
    for a in found
    if a.image_id == "vqa_rad/synpic0"
  ]
  assert said == [
    ("verify", ("no",), "pres"), ("verify", ("no",), "pres"),
    ("choose", ("pa",), "plane"), ("query", ("2",), "count, pres"),
  ]  # fmt: skip
  assert found[2].target.question == "Is this a PA or an AP film?"
  assert (found[2].origin.file, found[2].origin.row) == (RAD_JSON, 2)
  assert tally.counts == {"kept": 16, "organ is not the chest": 1}
  assert tally.rows == 17


@pytest.mark.parametrize(
  ("change", "reason"),
  [
    ({"question": " "}, "question empty or no text"),
    ({"question": ["x"]}, "question empty or no text"),
    ({"answer": None}, "answer empty, or neither text nor number"),
    ({"answer": True}, "answer empty, or neither text nor number"),
    ({"answer": float("nan")}, "answer empty, or neither text nor number"),
    ({"answer_type": "MAYBE"}, "answer_type neither OPEN nor CLOSED"),
    ({"image_organ": ""}, "no image_name or image_organ"),
    ({"image_name": None}, "no image_name or image_organ"),
  ],
)
def test_a_bad_item_is_rejected_and_the_others_read(tmp_path, change, reason):
  write_vqa_rad(tmp_path, 2)
  _rewrite(tmp_path / RAD_JSON, lambda items: [items[0] | change, *items[1:]])
  found, tally = _read(vqa_rad, tmp_path)
  assert len(found) == 7
  assert tally.rejected == {reason: 1}


def test_items_that_are_no_objects_are_rejected(tmp_path):
  write_vqa_rad(tmp_path, 2)
  _rewrite(tmp_path / RAD_JSON, lambda items: [3, "x", *items])
  found, tally = _read(vqa_rad, tmp_path)
  assert len(found) == 8
  assert tally.rejected == {"no image_name or image_organ": 2}


def test_questions_said_twice_count_once_and_contradictions_not(tmp_path):
  write_vqa_rad(tmp_path, 1)
  again = [
    rad_item(0, "is the heart LARGE?", "No"), rad_item(0, "Is it Tuesday?", "yes"),
    rad_item(0, "Is it Tuesday?", "no"),
  ]  # fmt: skip
  _rewrite(tmp_path / RAD_JSON, lambda items: [*items, *again])
  found, tally = _read(vqa_rad, tmp_path)
  assert len(found) == 4
  assert found[0].target.question == "Is the heart large?"  # as it was first asked
  assert tally.counts["says again what another row says"] == 1
  assert tally.rejected == {"contradicts another row about the same thing": 2}


def test_an_image_s_case_is_its_patient_the_image_itself_where_there_is_none(tmp_path):
  write_vqa_rad(tmp_path, 1)
  more = [
    rad_item(0, "Is it?", "no", image_case_url="https://example.invalid/case?id=9"),
    rad_item(1, "Is it?", "no", image_case_url=""),
  ]  # fmt: skip
  save(tmp_path / "VQA_RAD Image Folder/synpic1.jpg", film(20, 20))
  _rewrite(tmp_path / RAD_JSON, lambda items: [*items, *more])
  tally = Intake().tally("s", tmp_path)
  images = vqa_rad.read_radiographs(tmp_path, tally=tally)
  assert [i.patient_id for i in images.values()] == [
    "vqa_rad/https://example.invalid/case?id=0", "vqa_rad/synpic1",
  ]  # fmt: skip
  assert tally.cases == {"an image under two cases": "yes: the first counts"}


@pytest.mark.parametrize("name", ["../secret.jpg", "a/../../secret.jpg", "a\\b.jpg"])
def test_image_names_that_climb_out_are_not_opened(tmp_path, name):
  root = tmp_path / "rad"
  write_vqa_rad(root, 2)
  save(tmp_path / "secret.jpg", film(20, 20))
  _rewrite(
    root / RAD_JSON,
    lambda items: [*items, rad_item(7, "Is it?", "no", image_name=name)],
  )
  tally = Intake().tally("s", root)
  assert len(vqa_rad.read_radiographs(root, tally=tally)) == 2
  assert tally.rejected == {"image names a file outside its own folder": 1}


def test_absent_and_broken_images_are_told_apart(tmp_path):
  write_vqa_rad(tmp_path, 4)
  folder = tmp_path / "VQA_RAD Image Folder"
  (folder / "synpic0.jpg").unlink()
  (folder / "synpic1.jpg").write_bytes(b"GIF89a no")
  outside = save(tmp_path.parent / "elsewhere.jpg", film(20, 20))
  (folder / "synpic2.jpg").unlink()
  (folder / "synpic2.jpg").symlink_to(outside)
  tally = Intake().tally("s", tmp_path)
  images = vqa_rad.read_radiographs(tmp_path, tally=tally)
  assert list(images) == ["vqa_rad/synpic3"]
  assert tally.counts["image file absent"] == 1
  assert tally.rejected == {
    "image is no PNG or JPEG image": 1, "image is a link that leads out of its folder": 1,
  }  # fmt: skip
  found, tally = _read(vqa_rad, tmp_path)
  assert len(found) == 4
  assert tally.counts["image: not among the radiographs"] == 3 * 4
  (folder / "synpic3.jpg").unlink()
  with pytest.raises(FileNotFoundError, match="none of the 4 images.*Point vqa_rad at"):
    vqa_rad.read_radiographs(tmp_path)


@pytest.mark.parametrize("reader", [vqa_rad, slake, vindr])
def test_a_folder_of_something_else_says_what_to_do(tmp_path, reader):
  with pytest.raises(FileNotFoundError, match="Point (vqa_rad|slake|vindr) at"):
    reader.read_radiographs(tmp_path)


@pytest.mark.parametrize(
  ("value", "text"), [("PA\t", "PA"), (2, "2"), (2.0, "2"), (2.5, "2.5"), (False, "")]
)
def test_an_answer_may_be_a_number_or_end_with_a_tab(value, text):
  assert questions.text_of(value) == text


@given(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(),
                 st.lists(st.integers())))  # fmt: skip
def test_any_json_value_is_a_line_or_nothing(value):
  text = questions.text_of(value)
  assert text == " ".join(text.split())
  found = questions.asked(
    {"question": "Q", "answer": value, "answer_type": "OPEN"}, "c"
  )
  assert isinstance(found, str) == (text == "")


# ── SLAKE ─────────────────────────────────────────────────────────────────────────


def test_slake_s_english_chest_questions_and_boxes(tmp_path):
  write_slake(tmp_path, 4)
  images = slake.read_radiographs(tmp_path)
  assert list(images) == [f"slake/xmlab{n}" for n in range(4)]
  found, tally = _read(slake, tmp_path)
  one = [a for a in found if a.image_id == "slake/xmlab1"]
  assert [(a.subtask, a.target.answers) for a in one if a.task == "vqa"] == [
    ("verify", ("no",)), ("choose", ("right",)), ("query", ("lung, heart",)),
  ]  # fmt: skip
  assert {a.target.content_type for a in one if a.task == "vqa"} == {
    "abnormality", "organ",
  }  # fmt: skip
  # xmlab1 has two nodules: each can be named from its box, neither found by its name.
  names = collections.Counter((a.task, a.subtask) for a in one if a.task != "vqa")
  assert names == {
    ("rec", "left lung"): 1, ("rec", "right lung"): 1, ("rec", "heart"): 1,
    ("reg", "left lung"): 1, ("reg", "right lung"): 1, ("reg", "heart"): 1,
    ("reg", "nodule"): 2,
  }  # fmt: skip
  heart = next(a for a in one if (a.task, a.subtask) == ("rec", "heart"))
  assert heart.target.box == (27 / 64, 20 / 50, 45.5 / 64, 36 / 50)
  assert (heart.origin.file, heart.origin.row) == ("imgs/xmlab1/detection.json", 2)
  assert one[0].origin.file == "train.json"
  assert tally.counts["not in English"] == 4
  assert tally.counts["modality is not X-Ray"] == 1
  assert tally.counts["location neither Lung nor Chest"] == 1
  assert tally.cases[sides.QUESTION] == "the patient's (in 4 of 4 images)"
  assert not tally.rejected


def test_slake_s_release_folder_and_the_other_name_of_a_split_are_found(tmp_path):
  write_slake(tmp_path / "Slake1.0", 4)
  expected, _ = _read(slake, tmp_path / "Slake1.0")
  (tmp_path / "Slake1.0/validate.json").rename(tmp_path / "Slake1.0/validation.json")
  found, _ = _read(slake, tmp_path)
  assert [(a.image_id, a.target) for a in found] == [
    (a.image_id, a.target) for a in expected
  ]


def test_slake_s_left_of_the_image_becomes_the_patient_s(tmp_path):
  write_slake(tmp_path / "a", 4)
  write_slake(tmp_path / "b", 4, of_image=True)
  expected, _ = _read(slake, tmp_path / "a")
  found, tally = _read(slake, tmp_path / "b")
  targets = [
    {(a.image_id, a.task, a.target) for a in said if a.task != "vqa"}
    for said in (expected, found)
  ]
  assert targets[0] == targets[1]
  assert (
    tally.cases[sides.QUESTION] == "the image's, made the patient's (in 4 of 4 images)"
  )


def test_slake_without_lung_boxes_says_that_sides_are_not_known(tmp_path):
  write_slake(tmp_path, 2)
  for path in tmp_path.glob("imgs/*/detection.json"):
    _rewrite(
      path, lambda items: [{"Effusion": [1, 2, 3, 4]}, {"Left Lung": [1, 2, 3, 4]}]
    )
  found, tally = _read(slake, tmp_path)
  assert {a.subtask for a in found if a.task == "rec"} == {
    "pleural effusion",
    "left lung",
  }
  assert tally.cases[sides.QUESTION].startswith("not to be seen")


@pytest.mark.parametrize(
  ("item", "reason"),
  [
    ({"Heart": [0, 0, 10]}, "box is not four numbers"),
    ({"Heart": "0 0 10 10"}, "box is not four numbers"),
    ({"Heart": [0, 0, 10, True]}, "box is not four numbers"),
    ({"Heart": [0, 0, 10, float("nan")]}, "box is not four numbers"),
    ({"Heart": [0, 0, 10**400, 1]}, "box is not four numbers"),
    ({"Heart": [-1, 0, 10, 10]}, "box empty or outside the image"),
    ({"Heart": [0, 0, 0, 10]}, "box empty or outside the image"),
    ({"Heart": [60, 0, 5, 10]}, "box empty or outside the image"),
    ({"Heart": [0, 45, 5, 6]}, "box empty or outside the image"),
    ({" ": [0, 0, 5, 5]}, "a box without a name"),
    ({"Heart": [0, 0, 5, 5], "Nodule": [0, 0, 5, 5]}, "not one name with one box"),
    (["Heart", [0, 0, 5, 5]], "not one name with one box"),
  ],
)
def test_a_bad_box_is_rejected_and_the_others_read(tmp_path, item, reason):
  write_slake(tmp_path, 1)
  path = tmp_path / "imgs/xmlab0/detection.json"
  _rewrite(path, lambda items: [item, *items])
  found, tally = _read(slake, tmp_path)
  assert len([a for a in found if a.task == "reg"]) == 4
  assert tally.rejected == {reason: 1}


@pytest.mark.parametrize(
  "text",
  ['{"Heart": [1, 1, 2, 2]}', "[", "", "\0", "[" * 100_000],
)
def test_a_broken_detection_file_costs_that_image_s_boxes(tmp_path, text):
  write_slake(tmp_path, 2)
  (tmp_path / "imgs/xmlab0/detection.json").write_text(text)
  found, tally = _read(slake, tmp_path)
  assert {a.image_id for a in found if a.task == "reg"} == {"slake/xmlab1"}
  assert len([a for a in found if a.task == "vqa"]) == 6
  assert tally.rejected.total() == 1


def test_a_broken_list_of_questions_is_a_damaged_file(tmp_path):
  write_slake(tmp_path, 2)
  (tmp_path / "test.json").write_text('[{"img_name": "xmlab0')
  with pytest.raises(
    DamagedFile, match="test.json: is not JSON from line 1 on"
  ) as caught:
    _read(slake, tmp_path)
  assert "xmlab0" not in str(caught.value)


def test_slake_s_bad_names_and_items_are_rejected(tmp_path):
  write_slake(tmp_path, 2)
  more = [
    slake_item(0, "Is it?", "no", img_name="../../etc/passwd"), {"question": "x"},
    slake_item(0, "Is it not?", "", answer_type="CLOSED"),
  ]  # fmt: skip
  _rewrite(tmp_path / "train.json", lambda items: [*more, *items])
  tally = Intake().tally("s", tmp_path)
  assert len(slake.read_radiographs(tmp_path, tally=tally)) == 2
  assert tally.rejected == {"image names a file outside its own folder": 1}
  found, tally = _read(slake, tmp_path)
  assert len([a for a in found if a.task == "vqa"]) == 6
  assert tally.rejected == {
    "no img_name": 1, "answer empty, or neither text nor number": 1
  }  # fmt: skip


JSON = st.recursive(
  st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
  lambda inner: st.one_of(
    st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=5), inner, max_size=4)
  ),
  max_leaves=8,
)
KEYS = (
  "image_name", "image_organ", "image_case_url", "img_name", "question", "answer",
  "answer_type", "q_lang", "modality", "location", "content_type",
)  # fmt: skip


@given(st.lists(st.tuples(st.sampled_from(KEYS), JSON), max_size=3), JSON, JSON)
@settings(max_examples=60)
def test_no_json_value_in_any_place_stops_the_readers(
  tmp_path_factory, changes, item, box
):
  root = tmp_path_factory.mktemp("any")
  write_vqa_rad(root, 1)
  write_slake(root, 1)
  _rewrite(root / RAD_JSON, lambda items: [*items, items[0] | dict(changes), item])
  _rewrite(root / "train.json", lambda items: [*items, items[0] | dict(changes), item])
  _rewrite(
    root / "imgs/xmlab0/detection.json", lambda items: [*items, box, {"Heart": box}]
  )
  for reader, count in ((vqa_rad, 2), (slake, 9)):
    found, tally = _read(reader, root)
    assert len(found) >= count
    assert tally.rows >= len(found) / 2


# ── VinDr-CXR ─────────────────────────────────────────────────────────────────────


def _bits(found):
  return {a.image_id: a.target for a in found if a.task == "multi_label"}


def _boxes(found, number, task):
  return {
    a.subtask: a.target.box
    for a in found
    if a.task == task and a.image_id == f"vindr/{vindr_id(number)}"
  }


def test_vindr_labels_are_what_two_of_three_readers_say(tmp_path):
  write_vindr(tmp_path, 6)
  found, tally = _read(vindr, tmp_path)
  bits = _bits(found)
  assert len(bits) == 6 + 3
  labels = tuple(vindr.COLUMNS)
  assert all(target.labels == labels for target in bits.values())
  assert labels == tuple(
    name for name in FINDINGS if name not in ("Fracture", "Nodule")
  )
  effusion = tuple(int(name == "Pleural Effusion") for name in labels)
  assert bits[f"vindr/{vindr_id(0)}"].values == effusion
  assert set(bits[f"vindr/{vindr_id(2)}"].values) == {0}
  consensus = tuple(int(name in ("Edema", "Lung Opacity")) for name in labels)
  assert bits[f"vindr/{vindr_id(1001)}"].values == consensus
  assert tally.cases["layout"] == "PhysioNet's: train and test"
  assert tally.cases["blank labels in image_labels_train.csv"] == "none"
  assert not tally.rejected


def test_one_reader_of_three_is_no_majority(tmp_path):
  write_vindr(tmp_path, 3)
  path = tmp_path / "annotations/image_labels_train.csv"
  header, *rows = path.read_text().splitlines()
  place = header.split(",").index("Pneumothorax")
  cells = rows[0].split(",")
  cells[place] = "1"
  path.write_text("\n".join([header, ",".join(cells), *rows[1:]]) + "\n")
  found, _ = _read(vindr, tmp_path)
  target = _bits(found)[f"vindr/{vindr_id(0)}"]
  assert target.values[target.labels.index("Pneumothorax")] == 0
  rows[1] = rows[1].replace(rows[1], ",".join([*cells[:1], "R2", *cells[2:]]))
  path.write_text("\n".join([header, ",".join(cells), *rows[1:]]) + "\n")
  found, _ = _read(vindr, tmp_path)
  target = _bits(found)[f"vindr/{vindr_id(0)}"]
  assert target.values[target.labels.index("Pneumothorax")] == 1


def test_vindr_label_rows_that_can_not_be_used(tmp_path):
  write_vindr(tmp_path, 5)
  path = tmp_path / "annotations/image_labels_train.csv"
  header, *rows = path.read_text().splitlines()
  rows[0] = rows[0].replace(vindr_id(0), "x")  # image 0: two readers are left
  rows[3] = rows[3].replace(",R1,0", ",R1,", 1)  # a column that is not read
  rows[4] = ",".join(rows[4].split(",")[:-5])
  cells = rows[6].split(",")
  cells[header.split(",").index("Edema")] = "2"
  rows[6] = ",".join(cells)
  cells = rows[9].split(",")
  cells[header.split(",").index("Edema")] = ""
  rows[9] = ",".join(cells)
  path.write_text(
    "\n".join([header, *rows, rows[9], rows[12].replace(",0", ",1")]) + "\n"
  )
  found, tally = _read(vindr, tmp_path)
  assert set(_bits(found)) >= {f"vindr/{vindr_id(3)}"}
  assert not set(_bits(found)) & {f"vindr/{vindr_id(n)}" for n in (0, 1, 2, 4)}
  assert tally.rejected == {
    "image or reader id of the wrong form": 1, "a label is neither 0 nor 1": 1,
    "has more or fewer cells than the header": 1,
    "contradicts another row about the same thing": 2,
  }  # fmt: skip
  assert tally.counts["not read by 3 readers"] == 4
  assert tally.counts["says again what another row says"] == 1
  assert tally.cases["blank labels in image_labels_train.csv"] == "some: read as 0"


def test_vindr_boxes_are_those_that_two_readers_agree_on(tmp_path):
  write_vindr(tmp_path, 3)
  found, tally = _read(vindr, tmp_path)
  for task in ("rec", "reg"):
    assert _boxes(found, 0, task) == {
      "pleural effusion": pytest.approx((11 / 80, 40 / 64, 30.5 / 80, 60 / 64))
    }
    assert _boxes(found, 2, task) == {}
    assert _boxes(found, 1000, task) == {
      "lung opacity": (8 / 80, 10.25 / 64, 40 / 80, 50 / 64)
    }
  assert tally.counts["region: of one reader only"] == 2 * 3
  assert tally.counts["region: no finding"] == 3
  origin = next(a.origin for a in found if a.task == "rec")
  assert (origin.file, origin.row) == ("annotations/annotations_train.csv", 0)


def test_vindr_box_rows_that_can_not_be_used(tmp_path):
  write_vindr(tmp_path, 3)
  path = tmp_path / "annotations/annotations_test.csv"
  rows = [
    f"{vindr_id(1000)},Edema,1,1,0,4", f"{vindr_id(1000)},Edema,1,1,nan,4",
    f"{vindr_id(1000)},Edema,1,1,,4", f"{vindr_id(1000)},Edema,1,1,-3,4",
    f"{vindr_id(1000)},,1,1,3,4", "x,Edema,1,1,3,4", f"{vindr_id(77)},Edema,1,1,3,4",
    f"{vindr_id(1000)},Other lesion,1,1,3,4", f"{vindr_id(1000)},Lung Opacity,8,10.25,40,50",
    f"{vindr_id(1000)},Rib fracture,70.5,60,80.5,64",
  ]  # fmt: skip
  with path.open("a") as file:
    file.write("\n".join(rows) + "\n")
  found, tally = _read(vindr, tmp_path)
  assert set(_boxes(found, 1000, "rec")) == {"lung opacity", "rib fracture"}
  assert _boxes(found, 1000, "rec")["rib fracture"][2:] == (1, 1)
  assert tally.rejected == {
    "box empty or outside the image": 3, "box is not four numbers": 1,
    "image id, reader or class_name of the wrong form": 2,
  }  # fmt: skip
  assert tally.counts["region: other lesion"] == 1
  assert tally.counts["says again what another row says"] == 1
  assert tally.counts["image: not among the radiographs"] == 1


def test_smaller_copies_are_seen_by_boxes_outside_of_them(tmp_path):
  write_vindr(tmp_path, 6)
  save(tmp_path / f"train/{vindr_id(0)}.png", film(30, 24))
  found, tally = _read(vindr, tmp_path)
  assert not _boxes(found, 0, "reg")
  assert _boxes(found, 1, "reg")
  reason = "a box of this image is outside of it: is the image a smaller copy?"
  assert tally.rejected == {reason: 5}
  for number in (*range(6), 1000, 1001, 1002):
    folder = "test" if number > 999 else "train"
    save(tmp_path / f"{folder}/{vindr_id(number)}.png", film(30, 24))
  images = vindr.read_radiographs(tmp_path)
  labels = []
  with pytest.raises(
    DamagedFile, match="boxes outside of 4 of 4 images.*smaller copies"
  ):
    labels += vindr.read(tmp_path, images)


def test_kaggle_s_one_table_gives_labels_and_boxes(tmp_path):
  write_kaggle(tmp_path, 3)
  found, tally = _read(vindr, tmp_path)
  bits = _bits(found)
  assert len(bits) == 3
  target = bits[f"vindr/{vindr_id(0)}"]
  assert target.labels == vindr.KAGGLE
  assert target.values == tuple(int(n == "Pleural Effusion") for n in vindr.KAGGLE)
  assert set(bits[f"vindr/{vindr_id(2)}"].values) == {0}
  assert set(_boxes(found, 0, "rec")) == {"pleural effusion"}
  assert tally.cases["layout"] == "Kaggle's train.csv"
  assert tally.rows == 2 * 5 + 3
  assert not tally.rejected


def _drawn(*boxes):
  return [Drawn(reader, row, box) for row, (reader, box) in enumerate(boxes)]


def test_readers_agree_by_overlap():
  one, near, far = (0, 0, 10, 10), (2, 0, 12, 10), (50, 50, 60, 60)
  assert agreement.iou(one, near) == pytest.approx(80 / 120)
  found = agreement.agree(_drawn(("a", one), ("b", near), ("c", far)))
  assert found == ([(0, (1, 0, 11, 10))], 1, 0)
  # The same reader twice is not two readers, and leaves a pair with another unclear.
  assert agreement.agree(_drawn(("a", one), ("a", near))) == ([], 2, 0)
  assert agreement.agree(_drawn(("a", one), ("b", one), ("a", near))) == ([], 0, 3)
  # A reader's second box does not join the pair that the first one makes.
  twice = _drawn(("a", (3, 0, 13, 10)), ("a", (6, 0, 16, 10)), ("b", (0, 0, 10, 10)))
  assert agreement.agree(twice) == ([(0, (1.5, 0, 11.5, 10))], 1, 0)
  # a and c do not overlap enough, but both do with b.
  chain = _drawn(("a", (0, 0, 10, 10)), ("b", (3, 0, 13, 10)), ("c", (6, 0, 16, 10)))
  assert agreement.agree(chain) == ([(0, (3, 0, 13, 10))], 0, 0)


@given(st.permutations(range(5)))
def test_agreement_does_not_hang_on_the_order_of_the_rows(order):
  drawn = _drawn(
    ("a", (0, 0, 10, 10)), ("b", (1, 0, 11, 10)), ("c", (3, 0, 13, 10)),
    ("a", (40, 0, 50, 10)), ("c", (42, 0, 52, 10)),
  )  # fmt: skip
  found = agreement.agree([drawn[place] for place in order])
  expected = agreement.agree(drawn)
  assert [row for row, _ in found.regions] == [0, 3]
  for (_, box), (_, other) in zip(found.regions, expected.regions, strict=True):
    assert box == pytest.approx(other)


def test_dicom_headers_give_size_and_view(tmp_path):
  pytest.importorskip("pydicom")
  write_vindr(tmp_path, 3, dicom=True)
  tally = Intake().tally("s", tmp_path)
  images = vindr.read_radiographs(tmp_path, tally=tally)
  first = images[f"vindr/{vindr_id(0)}"]
  assert (first.width, first.height, first.view) == (80, 64, "PA")
  assert tally.cases["image sizes"] == "of DICOM headers"
  # A converted copy is decoded, though smaller: the DICOM file beside it measures.
  save(tmp_path / f"train/{vindr_id(0)}.png", film(40, 32))
  (tmp_path / f"train/{vindr_id(1)}.dicom").unlink()
  vindr_film(tmp_path, "train", 1, dicom=False)
  images = vindr.read_radiographs(tmp_path, tally=tally)
  assert tally.cases["image sizes"] == (
    "of DICOM headers and of converted images (true if those have their full size)"
  )
  copied = images[f"vindr/{vindr_id(0)}"]
  assert (copied.width, Path(copied.path).suffix) == (80, ".png")
  found, _ = _read(vindr, tmp_path)
  assert _boxes(found, 0, "rec")


@pytest.mark.parametrize("keep", [0, 100, 140, 250])
def test_cut_dicom_files_are_rejected_without_their_content(tmp_path, keep):
  pytest.importorskip("pydicom")
  write_vindr(tmp_path, 3, dicom=True)
  path = tmp_path / f"train/{vindr_id(0)}.dicom"
  data = path.read_bytes()
  path.write_bytes(data[:keep])
  tally = Intake().tally("s", tmp_path)
  images = vindr.read_radiographs(tmp_path, tally=tally)
  assert len(images) == 3
  [reason] = tally.rejected
  assert re.fullmatch(r"image has no readable DICOM header \(\w+\)", reason)


def test_without_pydicom_a_dicom_file_says_what_to_install(tmp_path, monkeypatch):
  write_vindr(tmp_path, 3, dicom=True)
  monkeypatch.setitem(sys.modules, "pydicom", None)
  with pytest.raises(ValueError, match=re.escape("pip install 'imax_jax[dicom]'")):
    vindr.read_radiographs(tmp_path)
  for number in (*range(3), 1000):
    folder = "test" if number > 999 else "train"
    (tmp_path / folder / f"{vindr_id(number)}.dicom").unlink()
    vindr_film(tmp_path, folder, number, dicom=False)
  assert len(vindr.read_radiographs(tmp_path)) == 4


def test_a_photograph_on_its_side_has_the_size_it_is_shown_with(tmp_path):
  exif = Image.Exif()
  exif[0x0112] = 6
  path = tmp_path / "x.jpg"
  Image.fromarray(film(40, 30)).save(path, exif=exif)
  assert pictures.size_of(path) == (30, 40)


# ── SLAKE's radiographs are NIH's ─────────────────────────────────────────────────


def _reg(image_id, name, *box):
  sides = tuple(side / 1024 for side in box)
  origin = Origin("s", "f", 0, "r")
  return Annotation(image_id, "reg", name, Region(name, sides), origin)


def test_slake_images_are_found_among_nih_s_by_their_boxes():
  nih = [
    _reg("00000001_000", "mass", 100.9, 200.9, 151.8, 251.8),
    _reg("00000002_000", "mass", 400, 400, 500, 500),
    _reg("00000003_000", "mass", 400.5, 400, 500, 500),
    _reg("00000003_000", "nodule", 10, 10, 20, 20),
    _reg("00000004_000", "nodule", 700, 700, 710, 710),
  ]
  ours = [
    _reg("slake/a", "mass", 100, 200, 150, 250),  # 50.9 wide, cut twice
    _reg("slake/b", "mass", 400, 400, 500, 500),  # two fit
    _reg("slake/c", "mass", 400, 400, 500, 500),  # of two, one has the nodule
    _reg("slake/c", "nodule", 10, 10, 20, 20),
    _reg("slake/d", "nodule", 703, 700, 713, 710),  # three pixels off
    _reg("slake/e", "mass", 700, 700, 710, 710),  # another name
  ]
  doubles = slake_doubles.find_doubles(ours, nih)
  assert doubles == {"slake/a": "00000001_000", "slake/c": "00000003_000"}
  radiographs = {
    name: Radiograph(name, name, patient, "", 1024, 1024, "")
    for name, patient in (
      ("slake/a", "slake/a"), ("slake/b", "slake/b"), ("slake/c", "slake/c"),
      ("00000001_000", "00000001"),
    )
  }  # fmt: skip
  joined = slake_doubles.join_patients(radiographs, doubles)
  assert {name: r.patient_id for name, r in joined.items()} == {
    "slake/a": "00000001", "slake/b": "slake/b", "slake/c": "slake/c",
    "00000001_000": "00000001",
  }  # fmt: skip
