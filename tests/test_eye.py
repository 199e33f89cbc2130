"""A model's eye: what of a picture it sees, in which frame boxes are told, and back."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from PIL import Image
from PIL import ImageFile
from PIL import PngImagePlugin

from configs import imax_data
from configs import phantom
from imax_jax import choices
from imax_jax.data import entries as entries_lib
from imax_jax.data import eye as eye_lib
from imax_jax.data import geometry
from imax_jax.data import images
from imax_jax.data import prompts
from imax_jax.data import spelling
from imax_jax.data.eye import Eye
from imax_jax.data.geometry import Geometry
from imax_jax.evaluate import additive
from imax_jax.evaluate import predictions
from imax_jax.evaluate import published
from imax_jax.models.vit import CLIP_MEAN
from imax_jax.pseudo import label
from imax_jax.pseudo import labels as labels_lib
from imax_jax.pseudo import questions
from imax_jax.pseudo import stream
from imax_jax.report import page
from imax_jax.schema import WHOLE
from imax_jax.schema import Annotation
from imax_jax.schema import Answer
from imax_jax.schema import Entry
from imax_jax.schema import ImageRecord
from imax_jax.schema import Origin
from imax_jax.schema import Region
from imax_jax.study import UsageError

# Of a picture of 100 x 200 a crop shows the rows 50 to 150.
MIDDLE, HIGH, LOW, EDGE = (
  (0.2, 0.3, 0.6, 0.7), (0.2, 0.0, 0.6, 0.2), (0.2, 0.6, 0.6, 0.9), (0.2, 0.7, 0.6, 0.8)
)  # fmt: skip
CROP = Eye(Geometry("crop"), 50, 3, boxes="seen")
PAD = Eye(Geometry("pad"), 50, 3, boxes="seen")


def picture(width: int, height: int) -> bytes:
  return images.encode_png(np.zeros((height, width), np.uint8))


def entry_of(task: str, target: Any, number: int = 0, subtask: str = "heart") -> Entry:
  annotation = Annotation("a", task, subtask, target, Origin("made", "f", 0, "made"))
  return prompts.make_entry(annotation, number)


def record_of(*entries: Entry, width: int = 100, height: int = 200) -> ImageRecord:
  return ImageRecord("a", "s", "p", "PA", picture(width, height), entries)


def both(box: Any, name: str = "heart", number: int = 0) -> tuple[Entry, Entry]:
  region = Region(name, box)
  return tuple(entry_of(task, region, number, name) for task in ("rec", "reg"))


# ── Geometry ──────────────────────────────────────────────────────────────────────


def test_what_is_said_of_each_geometry_is_what_it_does():
  said = str(geometry.__doc__)
  width, height, px = 2544, 3056, 224
  assert f"{width} x {height} pixels and its boxes, on a square of {px}:" in said
  for kind in ("stretch", "pad", "crop"):
    x_min, y_min, x_max, y_max = Geometry(kind).window(width, height, px)
    [row] = re.findall(rf"^ +{kind}  +(.+?)  +([\d.]+)  +([\d.]+)$", said, re.M)
    times = (f"{1 / (x_max - x_min):.3f}", f"{1 / (y_max - y_min):.3f}")
    cut = f"{100 * y_min:.1f} % at the top, {100 * (1 - y_max):.1f} % below"
    assert row == (cut if kind == "crop" else "nothing", *times)
    assert x_min <= 0 and x_max >= 1


@settings(max_examples=40)
@given(st.sampled_from(["stretch", "pad", "crop"]), *[st.integers(8, 3000)] * 2)
def test_the_window_is_the_square_on_the_picture(kind, width, height):
  way = Geometry(kind)
  window = way.window(width, height, 224)
  cut = tuple(min(max(side, 0.0), 1.0) for side in window)
  assert way.to_picture(WHOLE, width, height, 224) == pytest.approx(cut, abs=1e-12)
  assert way.to_square(cut, width, height, 224) is not None
  x_min, y_min, x_max, y_max = cut
  area = (x_max - x_min) * (y_max - y_min)
  assert way.share(WHOLE, width, height, 224) == pytest.approx(area)


def test_a_size_is_read_of_the_header_of_what_is_stored(monkeypatch):
  assert images.size_of(picture(30, 50)) == (30, 50)
  turned, file = Image.Exif(), io.BytesIO()
  turned[0x0112] = 6
  Image.new("L", (30, 50)).save(file, "JPEG", exif=turned)
  stored = images.to_stored(file.getvalue(), None)
  # Nothing is unpacked, not even in search of more header.
  for load in (Image.Image, PngImagePlugin.PngImageFile, ImageFile.ImageFile):
    monkeypatch.setattr(load, "load", None)
  assert images.size_of(stored) == (50, 30)
  with pytest.raises(ValueError, match="a1: expected a whole PNG or JPEG, got 4 bytes"):
    images.size_of(b"none", name="a1")


# ── Boxes in a frame ──────────────────────────────────────────────────────────────


@settings(max_examples=40)
@given(
  st.sampled_from(["pad", "crop"]), *[st.integers(40, 1000)] * 2,
  st.lists(st.floats(0.05, 0.95), min_size=4, max_size=4, unique=True),
  st.sampled_from(["xy", "yx"]),
)  # fmt: skip
def test_a_box_that_is_seen_comes_back(kind, width, height, sides, order):
  eye = Eye(Geometry(kind), 336, 3, boxes="seen")
  frame = eye.frame(picture(width, height))
  left, top, right, bottom = (min(max(side, 0.0), 1.0) for side in frame)
  x_min, x_max = sorted(left + side * (right - left) for side in sides[:2])
  y_min, y_max = sorted(top + side * (bottom - top) for side in sides[2:])
  region = Region("heart", (x_min, y_min, x_max, y_max), order=order, frame=frame)
  text = spelling.box_text(region)
  square = eye.geometry.to_square(region.box, width, height, 336, min_share=0)
  said = spelling.box_text(Region("heart", square, order=order))
  apart = np.subtract(*(np.array(re.findall(r"\d+", t), int) for t in (text, said)))
  assert np.abs(apart).max() <= 1  # the same square's sides, up to a last digit
  back = spelling.parse_box(text, region)
  units = max(frame[2] - frame[0], frame[3] - frame[1]) / 1000
  assert back == pytest.approx(region.box, abs=1.001 * units)


def test_a_frame_is_written_where_it_is_not_the_picture():
  plain = Region("heart", MIDDLE)
  text = entries_lib.target_to_json(plain)
  assert text == (
    '{"kind": "Region", "name": "heart", "box": [0.2, 0.3, 0.6, 0.7], "scale": '
    '[1000, 1000], "order": "xy"}'
  )
  framed = dataclasses.replace(plain, frame=(0.0, 0.25, 1.0, 0.75))
  for region in (plain, framed):
    text = entries_lib.target_to_json(region)
    assert entries_lib.target_from_json(text) == region


def test_texts_are_of_the_seen_frame_and_in_their_own_words():
  question = entry_of("vqa", Answer("what is in <200><300><600><700>?", ("heart",)))
  pairs = [both(MIDDLE, number=number) for number in range(8)]
  record = record_of(question, *(entry for pair in pairs for entry in pair))
  labelled = dataclasses.replace(pairs[3][1], id=f"{pairs[3][1].id}.pseudo")
  record = dataclasses.replace(record, entries=(*record.entries, labelled))
  spelt = CROP.spell(record)
  assert spelt.entries[0] == question
  for old, new in zip(record.entries[1:], spelt.entries[1:], strict=True):
    assert new.target == dataclasses.replace(old.target, frame=(0.0, 0.25, 1.0, 0.75))
    before, after = "<200><300><600><700>", "<200><100><600><900>"
    sides = (old.answer, old.prompt) if old.task == "rec" else (old.prompt, old.answer)
    assert before in sides[0]
    changed = (
      (new.answer, new.prompt) if old.task == "rec" else (new.prompt, new.answer)
    )
    assert changed == (sides[0].replace(before, after), sides[1])
  assert len({entry.prompt for entry in spelt.entries}) == 5  # both wordings of each
  padded = PAD.spell(record)
  assert padded.entries[1].answer == "<350><300><550><700>"


def test_where_nothing_differs_nothing_is_spelt_anew():
  record = record_of(*both(MIDDLE), *both(HIGH, number=1))
  for eye in (
    Eye(Geometry("stretch"), 50, 3, boxes="seen"), Eye(Geometry("crop"), 50, 3),
    Eye(Geometry("pad"), 50, 3),
  ):  # fmt: skip
    assert eye.spell(record) is record
    assert eye.teach(record) is record
  assert Eye(Geometry("stretch"), 50, 3, boxes="seen").facts == {}
  square = dataclasses.replace(record, image=picture(60, 60))
  assert CROP.teach(square) is square


def test_an_entry_that_does_not_have_its_box_is_refused():
  rec, reg = both(MIDDLE)
  for entry in (
    dataclasses.replace(rec, answer="<1><2><3><4>"),
    dataclasses.replace(reg, prompt="[reg] what is here?"),
  ):
    with pytest.raises(ValueError, match=rf"^{entry.id}: its .* build the data anew"):
      CROP.spell(record_of(entry))


def test_what_is_not_seen_is_counted_and_not_taught():
  record = record_of(
    *both(MIDDLE), *both(HIGH, "left lung"), *both(LOW, "right lung"),
    *both(EDGE, "a name", 1),
  )  # fmt: skip
  counts: eye_lib.Counts = {}
  CROP.count(record, counts)
  assert counts == {
    "heart": {"whole": 2, "cut": 0, "unseen": 0},
    "left lung": {"whole": 0, "cut": 0, "unseen": 2},
    "right lung": {"whole": 0, "cut": 2, "unseen": 0},
    "other": {"whole": 0, "cut": 2, "unseen": 0},
  }
  assert eye_lib.words(counts).startswith("heart 2 whole, 0 cut, 0 unseen; left lung ")
  taught = [entry.subtask for entry in CROP.teach(record).entries]
  assert taught == [name for name in ("heart", "right lung", "a name") for _ in "ab"]
  asked = CROP.spell(record).entries
  assert [entry.id for entry in asked] == [entry.id for entry in record.entries]
  # Cut at the square's edge; one that is all outside is a line on it.
  assert [e.answer for e in asked[:6:2]] == [
    "<200><100><600><900>", "<200><0><600><0>", "<200><700><600><1000>",
  ]  # fmt: skip


def test_answers_are_scored_in_the_picture():
  names = ("heart", "left lung", "right lung")
  boxes = (MIDDLE, HIGH, LOW)
  record = record_of(*(both(b, n)[0] for b, n in zip(boxes, names, strict=True)))
  asked = CROP.spell(record).entries
  made = predictions.predict_values(asked, [entry.answer for entry in asked])
  assert made[0].value.box == pytest.approx(MIDDLE)
  # Of a cut box the best answer is what is seen of it: half of the whole box.
  assert additive.box_ious(made) == pytest.approx([1, 0, 0.5], abs=2e-3)
  assert published.overlaps(made)[:, 1] == pytest.approx([1, 0, 0.5], abs=1e-2)
  plain = predictions.predict_values(record.entries, [e.answer for e in record.entries])
  assert additive.box_ious(plain) == pytest.approx([1, 1, 1], abs=1e-2)
  # The same texts in the wrong frame are other boxes.
  wrong = predictions.predict_values(record.entries, [e.answer for e in asked])
  assert additive.box_ious(wrong)[0] < 0.6
  # In the padding there is no picture: no box, and no error.
  [beside] = predictions.predict_values(
    PAD.spell(record).entries[:1], ["<0><100><200><900>"]
  )
  assert beside.reason == ""
  assert additive.box_ious([beside]) == [0]


def test_kept_predictions_are_read_again(tmp_path):
  asked = {e.id: e for e in CROP.spell(record_of(*both(MIDDLE))).entries}
  made = predictions.predict_values([*asked.values()], ["<0><0><1000><1000>", "heart"])
  predictions.write_predictions(tmp_path / "p.jsonl", made)
  assert predictions.read_predictions(tmp_path / "p.jsonl", asked) == made
  first = json.loads((tmp_path / "p.jsonl").read_text().split("\n")[0])
  assert first["value"]["box"] == first["value"]["frame"] == [0.0, 0.25, 1.0, 0.75]


ENCODER = {"image_px": 32, "channels": 3, "pixel_mean": CLIP_MEAN}

# ── Pixels ────────────────────────────────────────────────────────────────────────


def test_pixels_are_the_geometrys_and_padding_has_the_encoders_mean():
  rng = np.random.default_rng(0)
  data = images.encode_png(rng.integers(0, 256, (80, 40), np.uint8))
  for kind in ("stretch", "crop"):
    eye = eye_lib.of({"geometry": kind, "boxes": "picture"}, ENCODER)
    want = images.to_pixels(data, 32, geometry=Geometry(kind))
    assert np.array_equal(eye.pixels(data), want)
  image = {"geometry": "pad", "boxes": "picture"}
  for encoder, corner in (
    ({}, (122, 116, 104)), ({"pixel_mean": (0.5, 0.5, 0.5)}, (127, 127, 127)),
  ):  # fmt: skip
    eye = eye_lib.of(image, ENCODER | encoder)
    pixels = eye.pixels(data)
    assert pixels[0, 0].tolist() == list(corner)
    assert (pixels[:, 10:22, 0] == pixels[:, 10:22, 2]).all()
  grey = eye_lib.of(image, ENCODER | {"channels": 1}).pixels(data)
  assert grey.shape == (32, 32, 1)
  assert grey[0, 0, 0] in (116, 117)


def test_what_decides_pixels_and_boxes_is_told():
  facts = Eye(Geometry("pad"), 32, 3, boxes="seen").facts
  assert facts == {"geometry": "pad", "fill": [122, 116, 104], "boxes": "seen"}
  assert Eye(Geometry("crop"), 32, 3).facts == {"geometry": "crop", "boxes": "picture"}
  assert Eye(Geometry("stretch"), 32, 3).facts == {}


# ── Pseudo labels ─────────────────────────────────────────────────────────────────


def test_labels_are_made_in_the_frame_and_are_of_the_picture(tmp_path):
  asked: dict[str, Entry] = {}

  def generate(requests):
    asked.update((request.entry.id, request.entry) for request in requests)
    texts = {"rec": "<200><100><600><900>", "reg": "heart"}
    return [Said(texts[request.entry.task]) for request in requests]

  record = record_of(both(HIGH, "left lung")[0])
  asking = stream.Asking("f00d", 0, 0, 99, ("rec", "reg"))
  stream.write_labels(
    tmp_path, [record], [0], generate, questions.Pool(()), asking,
    frame=lambda record: CROP.frame(record.image),
  )  # fmt: skip
  assert "<200><100><600><900>" in asked["a/reg/heart/0"].prompt
  assert "<200><0><600><0>" in asked["a/reg/left lung/0"].prompt  # its own box, unseen
  made = labels_lib.LabelFile(tmp_path / stream.LABELS).at(0)
  labels = {one.entry.id: one.entry for one in made}
  assert len(labels) == 5
  for name in ("a/rec/heart/0.pseudo", "a/reg/heart/0.pseudo"):
    target = labels[name].target
    assert target.box == pytest.approx(MIDDLE)
    assert target.frame == WHOLE
  assert labels["a/rec/heart/0.pseudo"].answer == "<200><300><600><700>"
  assert labels["a/reg/left lung/0.pseudo"].target.box == HIGH
  # What it is taught of them is what it has said.
  taught = CROP.teach(dataclasses.replace(record, entries=(*labels.values(),))).entries
  said = {entry.id: entry for entry in taught}
  assert said["a/rec/heart/0.pseudo"].answer == "<200><100><600><900>"
  assert said["a/reg/heart/0.pseudo"].prompt == asked["a/reg/heart/0"].prompt
  assert "a/reg/left lung/0.pseudo" not in said


@dataclasses.dataclass
class Said:
  text: str
  log_prob: float = -0.1
  num_tokens: int = 5


def test_a_box_all_in_the_padding_is_no_label():
  entry = PAD.spell(record_of(*both(MIDDLE))).entries[0]
  assert label.read(entry, Said("<0><0><100><900>"), 99) == (None, "box without area")


# ── Choices ───────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
  ("changed", "message"),
  [
    ({"image.geometry": "bend"}, r"--config\.image: geometry 'bend': expected one of"),
    ({"image.boxes": "told"}, r"--config\.image: boxes 'told': expected one of"),
    (
      {"image.geometry": "pad", "data.image_px": 32},
      r"image_px=32 pictures are stored",
    ),
    (
      {"image.geometry": "crop", "data.image_px": 32, "data.geometry": "pad"},
      r"stored as squares \(pad\), and nothing is left",
    ),
    ({"image.boxes": "seen", "data.boxes.scale": 0}, r"boxes in pixels .*give a scale"),
  ],
)
def test_choices_that_can_not_be_had_are_refused(changed, message):
  for page_ in (phantom.get_config("tiny"), imax_data.get_config()):
    choices.check_image(page_)
    page_.update_from_flattened_dict(changed)
    with pytest.raises(UsageError, match=message):
      choices.check_image(page_)


# ── Report ────────────────────────────────────────────────────────────────────────


def test_the_page_says_what_is_seen():
  of = {"heart": {"whole": 1234, "cut": 8, "unseen": 2}}
  seen = {"geometry": "crop", "boxes": "seen", "image_px": 224, "least": 0.5}
  results = {"boxes_seen": seen | {"splits": {"imax_test": of}}}
  statistics = {"imax_test": {"images": 9, "entries": 99}}
  html = page._data(results | {"statistics": statistics})
  assert "1,244" in html and "1,234" in html
  assert "not trained on" in html
  assert "Boxes that the model sees" not in page._data({"statistics": statistics})
