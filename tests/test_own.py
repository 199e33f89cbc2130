"""A user's own images: what spreadsheets write is read, and each bad row is named."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from imax_jax.data import construct
from imax_jax.data.sources import own
from imax_jax.data.sources import own_answers
from imax_jax.data.sources import own_rows
from imax_jax.data.sources.intake import DamagedFile
from imax_jax.data.sources.intake import Intake
from imax_jax.schema import EDEMA_GRADES
from imax_jax.schema import FINDINGS
from imax_jax.schema import TARGET_OF_TASK
from imax_jax.schema import Answer
from imax_jax.schema import Bits
from imax_jax.schema import Grade
from imax_jax.schema import Origin
from imax_jax.schema import Ratio
from imax_jax.schema import Region
from imax_jax.schema import Report

HEADER = "image,patient,task,name,answer"
# What the README shows.
EXAMPLE = f"""{HEADER}
ana/1.png,ana,calculation,CTR,0.47
ana/1.png,ana,report,,"Clear lungs.
No effusion."
ana/1.png,ana,multi_class,none; mild; severe,mild
ana/1.png,ana,multi_label,Edema; Nodule,Nodule
ana/1.png,ana,box,heart,10 20 30 50
bo.png,bo,vqa,Is the heart enlarged?,no
"""


class Folder:
  """A folder with two images of 40 x 60 pixels, and what was read in it."""

  def __init__(self, root: Path) -> None:
    self.root = root
    self.image("ana/1.png")
    self.image("bo.png")

  def image(self, name: str, size: tuple[int, int] = (40, 60), **options) -> None:
    path = self.root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, 128).save(path, **options)

  def csv(self, text: str | bytes) -> None:
    data = text if isinstance(text, bytes) else text.encode()
    (self.root / "annotations.csv").write_bytes(data)

  def jsonl(self, *rows: object) -> None:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (self.root / "annotations.jsonl").write_text("\n".join(lines))

  def read(self) -> list:
    """All annotations; `rejected` then has (source, row, reason, rule) of each."""
    quarantine = self.root.parent / "quarantine.jsonl"
    intake = Intake(quarantine)
    images = intake.tally("own images", self.root)
    self.tally = intake.tally("own", self.root)
    self.radiographs = own.read_radiographs(self.root, tally=images)
    found = list(own.read(self.root, self.radiographs, tally=self.tally))
    self.cases = images.cases | self.tally.cases
    intake.close()
    lines = map(json.loads, quarantine.read_text().splitlines())
    assert all(
      line["rule"] in own.RULES or "reading/" in line["rule"] for line in lines
    )
    lines = map(json.loads, quarantine.read_text().splitlines())
    self.rejected = [(x["source"], x["row"], x["reason"], x["rule"]) for x in lines]
    return found

  def said(self, *rows: str) -> list[tuple]:
    """(task, sub-task, target) of rows "task,name,answer" about ana/1.png."""
    self.csv("\n".join([HEADER, *(f"ana/1.png,ana,{row}" for row in rows)]))
    return [(a.task, a.subtask, a.target) for a in self.read()]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
  return Folder(tmp_path / "own")


HEART = Region("heart", (10 / 40, 20 / 60, 30 / 40, 50 / 60))
EXPECTED = [
  ("ana/1.png", "calculation", "ctr", Ratio(0.47)),
  ("ana/1.png", "report", "", Report("Clear lungs. No effusion.")),
  ("ana/1.png", "multi_class", "", Grade("mild", ("none", "mild", "severe"))),
  ("ana/1.png", "multi_label", "", Bits((0, 1), ("Edema", "Nodule"))),
  ("ana/1.png", "rec", "heart", HEART),
  ("ana/1.png", "reg", "heart", HEART),
  ("bo.png", "vqa", "verify", Answer("Is the heart enlarged?", ("no",))),
]


def told(annotations: list) -> list[tuple]:
  return [(a.image_id, a.task, a.subtask, a.target) for a in annotations]


# ── What is read ──────────────────────────────────────────────────────────────────


def test_the_readme_s_example(folder):
  folder.csv(EXAMPLE)
  found = folder.read()
  assert told(found) == EXPECTED
  assert folder.rejected == []
  assert found[2].origin == Origin("own", "annotations.csv", 2, "own/multi_class")
  ana = folder.radiographs["ana/1.png"]
  assert (ana.patient_id, ana.study_id, ana.view) == ("ana", "ana/1.png", "")
  assert (ana.width, ana.height, ana.path) == (40, 60, str(folder.root / "ana/1.png"))
  assert folder.cases["patients"] == "named for all 2 images"
  assert list(folder.tally.inputs) == [folder.root / "annotations.csv"]
  assert {a.task for a in found} == set(TARGET_OF_TASK)


def test_it_becomes_a_dataset(folder):
  """Every kind of target can be put into words and divided."""
  names = [f"x/{number}.png" for number in range(12)]
  lines = [HEADER]
  for name in names:
    folder.image(name)
    rows = EXAMPLE.replace("ana/1.png,ana", f"{name},{name[2]}").splitlines()[1:8]
    lines += rows[: 3 if name > "x/6" else None]
  folder.csv("\n".join(lines))
  annotations = folder.read()
  made = construct.construct(
    folder.radiographs, annotations, seed=0, views=("",), required_subtasks={}
  )
  assert len(made.splits["imax_train"]) > 4
  assert made.splits["imax_test"]


EXCEL = {
  "byte order mark": lambda text: b"\xef\xbb\xbf" + text.encode(),
  "carriage returns": lambda text: text.replace("\n", "\r\n").encode(),
  "old Macintosh": lambda text: text.replace("\n", "\r").encode(),
  "no last newline": lambda text: text.rstrip("\n").encode(),
  "capitals": lambda text: text.replace(HEADER, HEADER.upper()).encode(),
  "spaces": lambda text: text.replace(",ana,", " , ana , ").encode(),
  "quoted header": lambda text: text.replace(
    HEADER, ",".join(f'"{name}"' for name in HEADER.split(","))
  ).encode(),
}  # fmt: skip


@pytest.mark.parametrize("habit", EXCEL)
def test_a_spreadsheet_s_habits_are_met(folder, habit):
  folder.csv(EXCEL[habit](EXAMPLE))
  assert told(folder.read()) == EXPECTED
  assert folder.rejected == []
  assert folder.cases["cells are parted by"] == "commas"


@pytest.mark.parametrize(("delimiter", "word"), [(";", "semicolons"), ("\t", "tabs")])
def test_other_delimiters_and_decimal_commas(folder, delimiter, word):
  rows = [
    ["Image", "Patient", "Task", "Name", "Answer"],
    ["ana\\1.png", "ana", "calculation", "CTR", "0,47"],
    ["ana\\1.png", "ana", "multi_class", '"none; mild"', "none"],
    ["ana\\1.png", "ana", "box", "heart", "9,5 20 30 50,25"],
  ]
  folder.csv("\r\n".join(delimiter.join(row) for row in rows))
  found = [a.target for a in folder.read()]
  box = (9.5 / 40, 20 / 60, 30 / 40, 50.25 / 60)
  assert found[:2] == [Ratio(0.47), Grade("none", ("none", "mild"))]
  assert found[2] == found[3] == Region("heart", box)
  assert folder.cases["cells are parted by"] == word
  assert folder.rejected == []


def test_empty_columns_and_rows_are_passed_over_and_counted(folder):
  folder.csv(
    f"{HEADER},,remark,\n,,,,,,,\n\nbo.png,bo,calculation,ctr,0.5,,seen,,,\n"
    "bo.png,bo,calculation,cpar,0.4\nbo.png,bo,report,,Clear,lungs,,\n"
    "bo.png,bo,report\n"
  )
  found = folder.read()
  assert [(a.subtask, a.origin.row) for a in found] == [("ctr", 2), ("cpar", 3)]
  assert folder.cases["columns that are not read"] == "1"
  assert folder.tally.rows == 4
  assert ("own", 4, "has more cells than the header", "reading/row") in folder.rejected
  assert ("own", 5, "answer empty", "own/report") in folder.rejected


def test_json_lines_may_have_lists_and_numbers(folder):
  image = {"image": "ana/1.png", "patient": 7, "study": "b", "view": "pa"}
  folder.jsonl(
    image | {"task": "calculation", "name": "cpar", "answer": 0.25},
    "",
    image | {"Task": "multi_label", "name": ["Edema", "Nodule"], "answer": []},
    image | {"task": "multi_class", "name": None, "answer": EDEMA_GRADES[1].upper()},
    image | {"task": "reg", "name": "Heart", "answer": [10, 20.0, 30, 50]},
    image | {"task": "vqa", "name": "What?", "answer": ["a; b", "C"]},
    image | {"task": "vqa", "name": "PA or AP?", "answer": "PA", "subtask": "query"},
  )
  found = folder.read()
  assert told(found) == [
    ("ana/1.png", *said)
    for said in (
      ("calculation", "cpar", Ratio(0.25)),
      ("multi_label", "", Bits((0, 0), ("Edema", "Nodule"))),
      ("multi_class", "", Grade("vascular congestion", EDEMA_GRADES)),
      ("reg", "heart", HEART),
      ("vqa", "query", Answer("What?", ("a; b", "c"))),
      ("vqa", "query", Answer("PA or AP?", ("pa",))),
    )
  ]
  assert [a.origin.row for a in found] == [0, 2, 3, 4, 5, 6]
  ana = folder.radiographs["ana/1.png"]
  assert (ana.patient_id, ana.study_id, ana.view) == ("7", "7/b", "PA")
  assert folder.rejected == []


def test_json_lines_that_are_none(folder):
  good = {"image": "bo.png", "task": "report", "answer": "Clear."}
  folder.jsonl(
    "{", "[1]", '"secret"', '{"reader": 1}', "[" * 100_000, '{"image": "\\ud800"}', good
  )
  data = (folder.root / "annotations.jsonl").read_bytes()
  (folder.root / "annotations.jsonl").write_bytes(b"\xef\xbb\xbf" + data + b"\n\xff{}")
  assert told(folder.read()) == [("bo.png", "report", "", Report("Clear."))]
  assert [x[1:3] for x in folder.rejected if x[0] == "own"] == [
    (0, "is not JSON"), (1, "is not a JSON object"), (2, "is not a JSON object"),
    (3, "has none of the columns"), (4, "is not JSON"), (5, "is not JSON"),
    (7, "is not UTF-8"),
  ]  # fmt: skip


@pytest.mark.parametrize(
  ("name", "answer", "subtask"),
  [
    ("Is it?", "Yes", "verify"),
    ("Is it or not?", "no", "verify"),
    ("PA or AP?", "AP", "choose"),
    ("Left or right?", "right; left", "choose"),
    ("Where?", "left lung", "query"),
    ("Left or right?", "heart", "query"),
    ("Is it the left lung?", "left lung", "query"),
    ("Left or right?", "none", "query"),
  ],
)
def test_a_question_s_subtask_is_inferred(folder, name, answer, subtask):
  answers = () if answer == "none" else tuple(answer.lower().split("; "))
  assert folder.said(f"vqa,{name},{answer}") == [
    ("vqa", subtask, Answer(name, answers))
  ]


def test_labels_and_classes_have_the_paper_s_for_default(folder):
  bits = tuple(int(name in ("Edema", "Fracture")) for name in FINDINGS)
  assert folder.said(
    "multi_label,,fracture;EDEMA", "multi_class,,Alveolar edema", "multi_label,a;b,none"
  ) == [
    ("multi_label", "", Bits(bits)),
    ("multi_class", "", Grade("alveolar edema")),
    ("multi_label", "", Bits((0, 0), ("a", "b"))),
  ]


@pytest.mark.parametrize(
  "answer",
  [
    "10 20 30 50",
    '"10,20,30,50"',
    '"10, 20, 30, 50"',
    "10;20;30;50",
    '"10,0, 20, 30, 50"',
  ],
)
def test_boxes_are_typed_in_several_ways(folder, answer):
  assert folder.said(f"rec,Heart,{answer}") == [("rec", "heart", HEART)]


def test_rec_leaves_out_what_is_there_twice(folder):
  rows = ("box,nodule,1 1 5 5", "box,nodule,9 9 20 20", "box,heart,10 20 30 50")
  found = folder.said(*rows, "rec,heart,10 20 30 50")
  assert [said[:2] for said in found] == [
    ("reg", "nodule"), ("reg", "nodule"), ("rec", "heart"), ("reg", "heart")
  ]  # fmt: skip
  assert folder.tally.counts["rec: several boxes of one name"] == 2
  assert folder.tally.counts["says again what another row says"] == 1


def test_rows_that_contradict_each_other_are_not_used(folder):
  found = folder.said(
    "calculation,ctr,0.4", "calculation,CTR,0.5", "calculation,cpar,.3"
  )
  assert found == [("calculation", "cpar", Ratio(0.3))]
  assert [x[1] for x in folder.rejected] == [0, 1]


# ── Bad rows ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
  ("row", "rule", "reason"),
  [
    ("secret,x,y", "task", "unknown task"),
    (",x,y", "task", "unknown task"),
    ("report,,", "report", "answer empty"),
    ("calculation,heart,0.4", "calculation", "name neither ctr nor cpar"),
    ("calculation,ctr,0", "calculation", "answer not between 0 and 1"),
    ("calculation,ctr,47", "calculation", "answer not between 0 and 1"),
    ("calculation,ctr,nan", "calculation", "answer is no number"),
    ("calculation,ctr,1e999", "calculation", "answer not between 0 and 1"),
    ("calculation,ctr,47%", "calculation", "answer is no number"),
    ("calculation,ctr,0_4", "calculation", "answer is no number"),
    ("calculation,ctr,٠.٤", "calculation", "answer is no number"),
    ("multi_class,a;b,c", "multi_class", "answer is not among the names"),
    ("multi_class,a;A,a", "multi_class", "name: expected several different names"),
    ("multi_class,a,a", "multi_class", "name: expected several different names"),
    ("multi_label,a;b,a;c", "multi_label", "answer is not among the names"),
    ("multi_label,a;b,1;0", "multi_label", "answer is not among the names"),
    ("multi_label,a;b,a;a", "multi_label", "answer says one thing twice"),
    ("multi_label,a;b,none;a", "multi_label", "answer is not among the names"),
    ("multi_label,a;None,a", "multi_label", "none is no label"),
    ("multi_label,a;b,;", "multi_label", "answer empty"),
    ("rec,,1 2 3 4", "box", "name of the object empty"),
    ("box,heart,1 2 3", "box", "answer: expected four numbers"),
    ("box,heart,1 2 3 x", "box", "answer is no number"),
    ("box,heart,5 2 5 4", "box", "box without an inside"),
    ("box,heart,5 9 7 4", "box", "box without an inside"),
    ("box,heart,-1 2 3 4", "box", "box outside the image"),
    ("box,heart,1 2 41 4", "box", "box outside the image"),
    ("box,heart,1 2 3 61", "box", "box outside the image"),
    ('box,heart,"1,024 2 30 50"', "box", "answer has a comma that may part thousands"),
    ("box,heart,1 2 inf inf", "box", "answer is no number"),
    ("vqa,,yes", "vqa", "question (name) empty"),
  ],
)
def test_a_bad_row_is_named_and_the_others_are_kept(folder, row, rule, reason):
  found = folder.said("report,,before", row, "vqa,after?,yes")
  assert [said[0] for said in found] == ["report", "vqa"]
  ((source, number, given_reason, given_rule),) = folder.rejected
  assert (source, number, given_rule) == ("own", 1, f"own/{rule}")
  assert given_reason.startswith(reason)


@pytest.mark.parametrize(
  ("fields", "reason"),
  [
    ({"task": ["report"]}, "unknown task"),
    ({"task": "report", "answer": ["a"]}, "answer is no text"),
    ({"task": "report", "answer": {"a": 1}}, "answer is no text"),
    ({"task": "calculation", "name": "ctr", "answer": True}, "answer is no number"),
    ({"task": "calculation", "name": "ctr", "answer": 10**400}, "answer is too large"),
    ({"task": "calculation", "name": 3, "answer": 0.4}, "name is no text"),
    ({"task": "box", "name": "a", "answer": [1, 2, 3, None]}, "answer is no number"),
    (
      {"task": "multi_label", "name": [1, 2], "answer": "a"},
      "name is neither text nor",
    ),
    ({"task": "multi_label", "name": 3, "answer": "a"}, "name is neither text nor a"),
    ({"task": "vqa", "name": "a?", "answer": [1]}, "answer is neither text nor a list"),
    ({"task": "vqa", "name": "a?", "subtask": "open"}, "subtask none of verify"),
  ],
)
def test_json_of_a_wrong_type_is_named(folder, fields, reason):
  good = {"image": "bo.png", "task": "report", "answer": "Clear."}
  folder.jsonl({"image": "bo.png", "answer": "x"} | fields, good)
  assert told(folder.read()) == [("bo.png", "report", "", Report("Clear."))]
  ((_, number, given, _),) = folder.rejected
  assert number == 0 and given.startswith(reason)


# ── Images ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
  ("image", "reason"),
  [
    ("", "image empty or no text"),
    ("no.png", "image file absent"),
    ("ana", "image file absent"),
    ("x" * 5000, "names a file that no folder can hold"),
    ("text.png", "is no PNG or JPEG"),
    ("cut.png", "is no PNG or JPEG"),
    ("film.tif", "is no PNG or JPEG"),
    ("../outside.png", "names a file outside its own folder"),
    ("..\\outside.png", "names a file outside its own folder"),
    ("/outside.png", "names a file outside its own folder"),
    ("link.png", "is a link that leads out of its folder"),
    ("door/outside.png", "is a link that leads out of its folder"),
  ],
)
def test_a_bad_image_is_named_and_the_others_are_kept(folder, image, reason):
  root = folder.root
  folder.image("../outside.png")
  (root / "text.png").write_text("no image")
  (root / "cut.png").write_bytes((root / "bo.png").read_bytes()[:20])
  folder.image("film.tif")
  os.symlink(root.parent / "outside.png", root / "link.png")
  os.symlink(root.parent, root / "door")
  folder.csv(
    f"{HEADER}\n{image},,report,,a\nbo.png,,report,,b\n{image},x,calculation,ctr,.5\n"
  )
  assert told(folder.read()) == [("bo.png", "report", "", Report("b"))]
  assert [x[:2] for x in folder.rejected] == [("own images", 0), ("own images", 2)]
  for _, _, given, rule in folder.rejected:
    assert given.startswith(reason) and rule == "own/image"
  assert folder.tally.counts["image: not among the radiographs"] == 2


@pytest.mark.parametrize("image", [3, ["bo.png"], "a\0.png"])
def test_json_of_a_wrong_image_is_named(folder, image):
  good = {"image": "bo.png", "task": "report", "answer": "Clear."}
  folder.jsonl(good | {"image": image}, good)
  assert told(folder.read()) == [("bo.png", "report", "", Report("Clear."))]
  assert [x[:2] for x in folder.rejected] == [("own images", 0)]


def test_one_image_has_one_name_and_its_upright_size(folder):
  exif = Image.Exif()
  exif[0x0112] = 6
  folder.image("turned.jpg", (40, 60), exif=exif)
  folder.csv(f"{HEADER}\n./turned.jpg,,report,,a\n.\\turned.jpg,,box,heart,0 0 60 40\n")
  found = folder.read()
  assert {a.image_id for a in found} == {"turned.jpg"}
  assert found[1].target == Region("heart", (0.0, 0.0, 1.0, 1.0))


def test_a_dicom_gives_its_view(folder, monkeypatch):
  (folder.root / "film").write_bytes(b"\0" * 128 + b"DICM")
  monkeypatch.setattr(own, "size_and_view", lambda path: (9, 8, "pa"))
  folder.csv("image,view,task,answer\nfilm,,report,Clear.\n")
  folder.read()
  film = folder.radiographs["film"]
  assert (film.width, film.height, film.view) == (9, 8, "PA")
  folder.csv("image,view,task,answer\nfilm,ap,report,Clear.\n")
  folder.read()
  assert folder.radiographs["film"].view == "AP"


def test_patients_are_said_once_an_image_or_not_at_all(folder):
  folder.csv(
    "image,patient,study,view,task,answer\nana/1.png,,,,report,Clear.\n"
    "ana/1.png,ana,s1,pa,calculation,x\nbo.png,,,,report,Clear.\n"
  )
  folder.read()
  ana, bo = folder.radiographs.values()
  assert (ana.patient_id, ana.study_id, ana.view) == ("ana", "ana/s1", "PA")
  assert (bo.patient_id, bo.study_id, bo.view) == ("bo.png", "bo.png", "")
  assert folder.cases["patients"].startswith("named for 1 of 2 images; every other")


@pytest.mark.parametrize("column", ["patient", "study", "view"])
def test_an_image_of_two_patients_is_of_none(folder, column):
  folder.csv(
    f"image,{column},task,answer\nbo.png,a,report,Clear.\nana/1.png,a,report,Clear.\n"
    "bo.png,b,calculation,x\n"
  )
  assert [a.image_id for a in folder.read()] == ["ana/1.png"]
  reason = f"rows of one image differ in its {column}"
  assert folder.rejected == [
    ("own images", 0, reason, "own/image"), ("own images", 2, reason, "own/image")
  ]  # fmt: skip


# ── Bad files ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
  ("data", "message"),
  [
    (b"", "has no column image, task, answer on line 1"),
    (b"image,name,answer\n", "has no column task on line 1, found 3 others"),
    (b"secret,x,y,z\n", "has no column image, task, answer"),
    (b"image,task,answer,Task\n", "has the column task twice"),
    (EXAMPLE.replace('effusion."', "effusion.").encode(), "begins on line 3"),
    (EXAMPLE.replace('effusion."', 'effusion." x').encode(), "begins on line 3"),
    (EXAMPLE.replace("Clear", "Größe").encode("cp1252"), "is not UTF-8 on line 3"),
    (EXAMPLE.encode("utf-16"), "is not UTF-8 on line 1"),
    (EXAMPLE.replace("Clear", "Cl\0ear").encode(), "has a NUL byte"),
  ],
)  # fmt: skip
def test_a_bad_file_is_named_and_not_shown(folder, data, message):
  folder.csv(data)
  with pytest.raises(DamagedFile, match=message) as error:
    folder.read()
  assert "annotations.csv" in str(error.value)
  assert not any(word in str(error.value) for word in ("effusion", "ecret", "Gr"))


def test_there_is_one_annotation_file(folder):
  with pytest.raises(FileNotFoundError, match=r"expected annotations\.csv or"):
    folder.read()
  folder.csv(EXAMPLE)
  folder.jsonl({})
  with pytest.raises(DamagedFile, match=r"has both annotations\.csv and"):
    folder.read()


def test_the_rules_are_those_that_are_used():
  tasks = set(TARGET_OF_TASK) - {"rec", "reg"} | {"box"}
  assert own_answers.RULES.keys() == {f"own/{name}" for name in (*tasks, "task")}
  assert own.RULES.keys() == own_answers.RULES.keys() | {"own/image"}
  assert set(own_rows.REQUIRED) < set(own_rows.COLUMNS)
