"""Open radiographs by manifest: a small invented folder, and the real one if there."""

from __future__ import annotations

import collections
import json
import os
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from imax_jax.data import sources
from imax_jax.data.sources import opencxr
from imax_jax.data.sources.intake import Tally
from imax_jax.schema import TARGET_OF_TASK
from imax_jax.schema import Answer
from imax_jax.schema import Bits
from imax_jax.schema import Grade

_NIH = ("Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule",
        "Pneumonia", "Pneumothorax", "Consolidation", "Edema")  # fmt: skip


def _item(name: str, **fields: object) -> dict[str, object]:
  base = {"id": name, "image": f"images/{name.split('/')[1]}.png", "size": [20, 10]}
  return base | {"tasks": [], "boxes": []} | fields


def _box(name: str, *box: float) -> dict[str, object]:
  return {"name": name, "box": list(box), "origin": "invented"}


ITEMS: dict[str, list[dict[str, object]]] = {
  "alpha": [
    _item(
      "alpha/1",
      tasks=["calculation", "rec", "reg", "vqa"],
      ctr=0.5,
      cpar=1.2,
      view="PA",
      patient=7,
      boxes=[_box("heart", 5, 2, 15, 9), _box("Lung Opacity", 0, 0, 2, 2),
             _box("Lung Opacity", 4, 4, 5, 5)],
      vqa=[
        {"question": "PA or AP?", "answer": "PA", "paper_type": "choose",
         "question_type": "MODALITY"},
        {"question": "Where?", "answer": "Left Lung, Right", "paper_type": "odd"},
      ],
      pseudo={"confidence": 0.9, "ctr": 0.4, "cpar": 0.3,
              "boxes": [_box("heart", 0, 0, 1, 1), _box("left lung", 10, 0, 20, 5)]},
    ),
    _item("alpha/2", tasks=["rec"], patient=7, boxes=[_box("heart", 5, 2, 25, 9)]),
  ],
  "beta": [
    _item(
      "beta/1",
      tasks=["multi_label", "multi_class", "report"],
      patient=7,
      multi_label=dict.fromkeys(_NIH, 0) | {"Effusion": 1},
      multi_class={"kind": "b"},
      report="Clear \n lungs.",
    ),
    _item("beta/2", tasks=["multi_label"], multi_label={"COVID-19": 1, "Pneumonia": 1}),
    _item("beta/3", near_duplicate_of="alpha/1", report="a note", tasks=["multi_class"],
          multi_class={"kind": "a"}),
    _item("beta/4", case_url="https://example.org/9"),
    _item("beta/5", case_url="https://example.org/9"),
  ],
}  # fmt: skip
DERIVED = [
  {"id": "beta/1", "type": "query", "question": "What?", "answer": "none"},
  {"id": "beta/1", "type": "verify", "question": "Ill?", "answer": "yes"},
  {"id": "beta/2", "type": "query", "question": "What?", "answer": "Mass, edema"},
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
  for source, items in ITEMS.items():
    (tmp_path / source / "images").mkdir(parents=True)
    manifest = {"source": source, "images": items}
    (tmp_path / source / "manifest.json").write_text(json.dumps(manifest))
    for item in items:
      pixels = np.zeros((10, 20), np.uint8)
      PIL.Image.fromarray(pixels).save(tmp_path / source / str(item["image"]))
  lines = "".join(json.dumps(item) + "\n" for item in DERIVED)
  (tmp_path / opencxr.DERIVED).write_text(lines)
  return tmp_path


def _read(root: Path, *layers: str, **options: float) -> tuple[list, Tally]:
  tally = Tally("opencxr")
  radiographs = opencxr.read_radiographs(root)
  found = opencxr.read(root, radiographs, layers=layers, tally=tally, **options)
  return list(found), tally.counts


def _said(found: list, name: str) -> list[tuple]:
  return [(a.task, a.subtask, a.target) for a in found if a.image_id == name]


def test_patients_are_grouped_by_number_case_and_near_duplicate(root):
  radiographs = opencxr.read_radiographs(root)
  person = {name: radiograph.patient_id for name, radiograph in radiographs.items()}
  assert person["alpha/1"] == person["alpha/2"] == person["beta/3"]
  assert person["beta/1"] == "beta/7", "another source's patient 7 is another person"
  assert person["beta/4"] == person["beta/5"] != person["beta/2"] == "beta/2"
  assert radiographs["alpha/1"].view == "PA"
  assert radiographs["beta/1"].view == ""


def test_native_annotations_are_those_that_tasks_lists(root):
  found, counts = _read(root, "native")
  said = _said(found, "alpha/1")
  assert [(task, subtask) for task, subtask, _ in said] == [
    ("calculation", "ctr"), ("rec", "heart"), ("reg", "heart"), ("reg", "lung opacity"),
    ("reg", "lung opacity"), ("vqa", "choose"), ("vqa", "query"),
  ]  # fmt: skip
  assert said[1][2].box == (0.25, 0.2, 0.75, 0.9)
  assert said[5][2] == Answer("PA or AP?", ("pa",), "modality")
  assert said[6][2].answers == ("left lung, right",)
  labels = ("Pleural Effusion", "Atelectasis", "Pneumonia", "Edema", "Consolidation",
            "Pneumothorax", "Infiltration", "Nodule")  # fmt: skip
  assert [target for _, _, target in _said(found, "beta/1")] == [
    Bits((1, 0, 0, 0, 0, 0, 0, 0), labels),
    Grade("b", ("a", "b")),
    _report("Clear lungs."),
  ]
  assert [task for task, _, _ in _said(found, "beta/3")] == ["multi_class"]
  assert counts == {
    "kept": 11, "cpar absent or outside (0, 1)": 1, "box outside the image": 1,
    "rec: several boxes of one name": 2, "multi_label: labels are not the paper's": 1,
  }  # fmt: skip
  assert {a.origin.file for a in found} == {"alpha/manifest.json", "beta/manifest.json"}


def _report(text: str) -> object:
  return TARGET_OF_TASK["report"](text)


def test_derived_and_pseudo_layers_are_read_only_when_asked_for(root):
  derived, _ = _read(root, "derived")
  assert {a.origin.file for a in derived} == {opencxr.DERIVED}
  assert [a.target.answers for a in derived] == [(), ("yes",), ("mass", "edema")]
  pseudo, _ = _read(root, "pseudo")
  assert {a.origin.file for a in pseudo} == {"alpha/manifest.json#pseudo"}
  # The heart and the ratios are given by people.
  assert [(a.task, a.subtask) for a in pseudo] == [
    ("rec", "left lung"), ("reg", "left lung")
  ]  # fmt: skip
  assert not _read(root, "pseudo", min_confidence=0.95)[0]


def test_unknown_layers_are_named(root):
  with pytest.raises(ValueError, match=r"layers: expected some of .* got \('human',\)"):
    _read(root, "human")


def test_a_missing_image_is_named_with_the_number_of_them(root):
  (root / "beta/images/2.png").unlink()
  with pytest.raises(FileNotFoundError, match=r"2\.png.*1 of 7 images are missing"):
    opencxr.read_radiographs(root)


def test_a_bad_image_is_named(root):
  (root / "beta/images/2.png").write_bytes(b"not an image")
  with pytest.raises(ValueError, match=r"2\.png: not a readable image"):
    opencxr.read_radiographs(root)
  PIL.Image.new("L", (5, 5)).save(root / "beta/images/2.png")
  with pytest.raises(ValueError, match=r"2\.png: is 5 x 5, but .* 20 x 10"):
    opencxr.read_radiographs(root)


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("{", "is not JSON from line 1"),
    ("[]", "expected"),
    ('{"images": [{"id": "x"}]}', "image 0 lacks"),
  ],
)
def test_a_bad_manifest_is_named(root, text, message):
  (root / "beta/manifest.json").write_text(text)
  with pytest.raises(ValueError, match=f"beta/manifest.json: {message}"):
    opencxr.read_radiographs(root)


def test_a_folder_without_manifests_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"expected SOURCE/manifest\.json"):
    opencxr.read_radiographs(tmp_path)


# ── The real folder ───────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def shared() -> Path:
  beside = Path(__file__).resolve().parents[2] / "shared" / "data" / "opencxr"
  root = Path(os.environ.get("IMAX_JAX_OPENCXR", beside))
  if not root.is_dir():
    pytest.skip("no open radiographs: set IMAX_JAX_OPENCXR to their folder")
  return root


def test_the_shared_folder_reads_to_its_documented_counts(shared):
  radiographs = sources.read_radiographs({"opencxr": shared})
  assert len(radiographs) == 1438
  twins = ("nih/00002658_002", "nih/00002658_001")
  assert len({radiographs[name].patient_id for name in twins}) == 1
  found = list(sources.read_all({"opencxr": shared}, radiographs))
  counts = collections.Counter(a.task for a in found)
  # 1,337 boxes are documented; REC leaves out what has several boxes of one name,
  # calculation a CPAR above 1, multi-label the labels that are not the paper's.
  assert counts == {
    "calculation": 419, "report": 239, "multi_class": 597, "multi_label": 814,
    "rec": 1218, "reg": 1337, "vqa": 748,
  }  # fmt: skip
  for item in found:
    assert isinstance(item.target, TARGET_OF_TASK[item.task])
    if item.task == "rec":
      x0, y0, x1, y1 = item.target.box
      assert 0 <= x0 < x1 <= 1
      assert 0 <= y0 < y1 <= 1


def test_the_shared_folders_right_lung_is_on_the_images_left(shared):
  radiographs = opencxr.read_radiographs(shared)
  boxes: dict[str, dict[str, tuple]] = collections.defaultdict(dict)
  for item in opencxr.read(shared, radiographs, layers=("native", "pseudo")):
    if item.task == "rec":
      boxes[item.image_id][item.subtask] = item.target.box
  both = [b for b in boxes.values() if {"left lung", "right lung"} <= set(b)]
  assert len(both) > 1300
  # A film or two may be mirrored or mislabelled by its source.
  right = [b["right lung"][0] + b["right lung"][2] for b in both]
  left = [b["left lung"][0] + b["left lung"][2] for b in both]
  assert np.mean(np.less(right, left)) > 0.99


def test_the_shared_derived_questions_are_all_read(shared):
  radiographs = opencxr.read_radiographs(shared)
  found = list(opencxr.read(shared, radiographs, layers=("derived",)))
  assert collections.Counter(a.subtask for a in found) == {
    "verify": 1670, "query": 1231, "choose": 749,
  }  # fmt: skip
