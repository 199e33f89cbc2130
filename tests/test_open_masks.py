"""JSRT, Montgomery and Shenzhen as downloaded. Every image and mask is invented."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from open_vqa_layout import film
from open_vqa_layout import masks_of
from open_vqa_layout import save
from open_vqa_layout import write_jsrt
from open_vqa_layout import write_montgomery
from open_vqa_layout import write_shenzhen
from PIL import Image

from imax_jax.data.sources import jsrt
from imax_jax.data.sources import montgomery
from imax_jax.data.sources import pictures
from imax_jax.data.sources import shenzhen
from imax_jax.data.sources import sides
from imax_jax.data.sources.intake import DamagedFile
from imax_jax.data.sources.intake import Intake
from imax_jax.data.sources.intake import Tally
from imax_jax.schema import Grade
from imax_jax.schema import Ratio


def _tally(root: Path) -> Tally:
  return Intake().tally("masks", root)


def _read(reader, root, tally=None):
  tally = _tally(root) if tally is None else tally
  return list(reader.read(root, reader.read_radiographs(root), tally=tally)), tally


def _boxes(found, image_id, task="rec"):
  return {
    a.subtask: a.target.box for a in found if (a.image_id, a.task) == (image_id, task)
  }


def _ratios_of(organs):
  """By counting pixels, apart from the code under test."""
  columns = {name: np.flatnonzero(mask.any(axis=0)) for name, mask in organs.items()}
  lungs = np.concatenate([columns["left lung"], columns["right lung"]])
  heart = columns["heart"]
  areas = {name: int(mask.sum()) for name, mask in organs.items()}
  return {
    "ctr": (heart.max() - heart.min() + 1) / (lungs.max() - lungs.min() + 1),
    "cpar": areas["heart"] / (areas["left lung"] + areas["right lung"]),
  }


# ── JSRT and SCR ──────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def jsrt_root(tmp_path_factory):
  root = tmp_path_factory.mktemp("jsrt")
  write_jsrt(root, 2)
  return root


@pytest.fixture
def jsrt_copy(jsrt_root, tmp_path):
  return shutil.copytree(jsrt_root, tmp_path / "jsrt")


def test_scr_masks_give_regions_and_both_ratios(jsrt_root):
  images = jsrt.read_radiographs(jsrt_root)
  assert list(images) == ["jsrt/JPCLN001", "jsrt/JPCNN002"]
  first = images["jsrt/JPCLN001"]
  assert (first.width, first.height, first.view) == (2048, 2048, "PA")
  found, tally = _read(jsrt, jsrt_root)
  assert len(found) == 2 * (5 * 2 + 2)
  boxes = _boxes(found, "jsrt/JPCLN001")
  assert set(boxes) == set(jsrt.MASKED) == set(_boxes(found, "jsrt/JPCLN001", "reg"))
  assert boxes["right lung"][0] < boxes["left lung"][0]
  assert boxes["heart"] == pytest.approx((0.42, 0.46, 0.68, 0.74), abs=0.002)
  for number, name in enumerate(images):
    expected = _ratios_of(masks_of(1024, 1024, number))
    got = {
      a.subtask: a.target
      for a in found
      if (a.image_id, a.task) == (name, "calculation")
    }
    assert got == {
      kind: Ratio(pytest.approx(value)) for kind, value in expected.items()
    }
  assert tally.cases[sides.QUESTION] == "the patient's (in 2 of 2 images)"
  assert tally.cases["raw grey scale"] == "0 is white (2 of 2 looked at)"
  assert tally.cases["masks"] == "scratch/fold1/masks and scratch/fold2/masks"
  assert tally.counts["kept"] == len(found)
  assert not tally.rejected
  seen = _tally(jsrt_root)
  jsrt.read_radiographs(jsrt_root, tally=seen)
  assert seen.cases["image files"] == "All247images/*.IMG"
  origin = found[0].origin
  assert origin.file == "scratch/fold1/masks/heart/JPCLN001.gif"
  assert {a.origin.rule for a in found} <= jsrt.RULES.keys()


def test_a_raw_image_becomes_a_png_with_dark_lungs(jsrt_root):
  data = jsrt.encoded(jsrt_root / "All247images/JPCLN001.IMG")
  pixels = np.asarray(Image.open(io.BytesIO(data)))
  np.testing.assert_array_equal(pixels, film(2048, 2048, 0))


@pytest.mark.parametrize("damage", ["short", "bits"])
def test_no_jsrt_raw_image_no_pixels(jsrt_root, damage):
  data = (jsrt_root / "All247images/JPCLN001.IMG").read_bytes()
  with pytest.raises(ValueError, match="x.IMG: expected 2048 x 2048"):
    jsrt.raw_to_png(
      data[:-2] if damage == "short" else b"\xff" + data[1:], name="x.IMG"
    )


def test_a_short_raw_image_is_rejected_alone(jsrt_copy):
  with (jsrt_copy / "All247images/JPCLN001.IMG").open("ab") as file:
    file.write(b"x")
  tally = _tally(jsrt_copy)
  assert list(jsrt.read_radiographs(jsrt_copy, tally=tally)) == ["jsrt/JPCNN002"]
  assert tally.rejected == {"image is not 2048 x 2048 pixels of two bytes": 1}


def test_masks_named_by_the_image_s_sides_are_exchanged(jsrt_copy):
  expected, _ = _read(jsrt, jsrt_copy)
  for fold in (1, 2):
    place = jsrt_copy / f"scratch/fold{fold}/masks"
    for part in ("lung", "clavicle"):
      (place / f"left {part}").rename(place / "x")
      (place / f"right {part}").rename(place / f"left {part}")
      (place / "x").rename(place / f"right_{part}")
  found, tally = _read(jsrt, jsrt_copy)
  for name in ("jsrt/JPCLN001", "jsrt/JPCNN002"):
    assert _boxes(found, name) == _boxes(expected, name)
  assert (
    tally.cases[sides.QUESTION] == "the image's, made the patient's (in 2 of 2 images)"
  )


def test_a_raw_grey_scale_the_other_way_round_is_not_read(jsrt_copy):
  for path in (jsrt_copy / "All247images").iterdir():
    values = np.frombuffer(path.read_bytes(), ">u2")
    path.write_bytes((4095 - values).astype(">u2").tobytes())
  with pytest.raises(DamagedFile, match="0 is not white as in JSRT .2 of 2 looked at"):
    _read(jsrt, jsrt_copy)


def test_jsrt_without_masks_or_images_says_what_to_do(tmp_path):
  with pytest.raises(
    FileNotFoundError, match="All247images/JPCLN001.IMG.*Point jsrt at"
  ):
    jsrt.read_radiographs(tmp_path)
  save(tmp_path / "images/JPCLN001.png", film(64, 64))
  images = jsrt.read_radiographs(tmp_path)
  assert images["jsrt/JPCLN001"].width == 64
  with pytest.raises(FileNotFoundError, match="scratch/fold1/masks/heart"):
    list(jsrt.read(tmp_path, images))


# ── Montgomery ────────────────────────────────────────────────────────────────────


def test_montgomery_gives_classes_lungs_and_with_hearts_ratios(tmp_path):
  names = write_montgomery(tmp_path, 4)
  found, tally = _read(montgomery, tmp_path)
  images = montgomery.read_radiographs(tmp_path)
  assert list(images) == [f"montgomery/{name}" for name in names]
  assert {i.patient_id for i in images.values()} == {
    f"montgomery/{n:04d}" for n in range(1, 5)
  }
  grades = [a.target for a in found if a.task == "multi_class"]
  classes = ("normal", "tuberculosis")
  assert grades == [Grade(classes[n % 2], classes) for n in range(4)]
  assert set(_boxes(found, "montgomery/MCUCXR_0001_0")) == {
    "heart", "left lung", "right lung",
  }  # fmt: skip
  got = {a.subtask: a.target.value for a in found if a.image_id.endswith("0003_0")
         and a.task == "calculation"}  # fmt: skip
  assert got == pytest.approx(_ratios_of(masks_of(120, 100, 2)))
  assert tally.cases["heart masks"] == (
    "heart-lung-segmentations-data/1.0.0/montgomery_masks/heart"
  )
  assert {a.origin.rule for a in found} <= montgomery.RULES.keys()
  assert tally.counts["kept"] == len(found) == 4 * (1 + 6 + 2)


def test_montgomery_without_hearts_has_no_ratios_and_says_so(tmp_path):
  write_montgomery(tmp_path, 2, hearts=False)
  found, tally = _read(montgomery, tmp_path)
  assert not [a for a in found if a.task == "calculation"]
  assert tally.cases["heart masks"] == "none, so no CTR and no CPAR"
  assert tally.counts["ratio: not all three organs"] == 2
  assert not tally.rejected


def test_one_mirrored_image_loses_its_sides_not_its_ratios(tmp_path):
  names = write_montgomery(tmp_path, 3)
  for part in ("leftMask", "rightMask"):
    path = tmp_path / f"MontgomerySet/ManualMask/{part}/{names[1]}.png"
    save(path, np.asarray(Image.open(path))[:, ::-1])
  found, tally = _read(montgomery, tmp_path)
  assert set(_boxes(found, f"montgomery/{names[1]}")) == {"heart"}
  assert len([a for a in found if a.task == "calculation"]) == 6
  assert tally.counts[sides.ODD] == 2
  assert tally.cases[sides.QUESTION] == "the patient's (in 2 of 3 images)"


def _damage_shape(path):
  save(path, masks_of(100, 100)["left lung"])


def _damage_cut(path):
  path.write_bytes(path.read_bytes()[:60])


def _damage_bomb(path):
  Image.new("1", (9000, 9000)).save(path)


@pytest.mark.parametrize(
  ("damage", "reason"),
  [
    (_damage_shape, "mask has another shape than its image"),
    (_damage_cut, "can not be decoded to its end"),
    (_damage_bomb, f"has no pixels, or over {pictures.MAX_PIXELS}"),
    (lambda path: path.write_text("x"), "is no PNG or GIF or BMP image"),
  ],
)
def test_a_bad_mask_costs_that_mask(tmp_path, damage, reason):
  names = write_montgomery(tmp_path, 2)
  damage(tmp_path / f"MontgomerySet/ManualMask/leftMask/{names[0]}.png")
  found, tally = _read(montgomery, tmp_path)
  assert set(_boxes(found, f"montgomery/{names[0]}")) == {"heart", "right lung"}
  assert len(_boxes(found, f"montgomery/{names[1]}")) == 3
  assert tally.rejected == {reason: 1}


def test_an_empty_mask_is_left_out_and_two_hearts_are_none(tmp_path):
  names = write_montgomery(tmp_path, 2)
  lung = tmp_path / f"MontgomerySet/ManualMask/rightMask/{names[0]}.png"
  save(lung, np.zeros((100, 120), bool))
  save(tmp_path / f"other/heart_{names[1]}.png", masks_of(120, 100)["heart"])
  found, tally = _read(montgomery, tmp_path)
  assert set(_boxes(found, f"montgomery/{names[0]}")) == {"heart", "left lung"}
  assert set(_boxes(found, f"montgomery/{names[1]}")) == {"left lung", "right lung"}
  assert tally.counts["mask empty"] == 1
  assert tally.rejected == {"one of several heart masks of an image": 2}


def test_images_of_other_names_or_kinds_are_rejected(tmp_path):
  write_montgomery(tmp_path, 2)
  folder = tmp_path / "MontgomerySet/CXR_png"
  save(folder / "MCUCXR_1_7.png", film(20, 20))
  (folder / "MCUCXR_0009_0.png").write_text("no image")
  (folder / "Thumbs.db").write_text("x")
  outside = save(tmp_path.parent / "outside.png", film(20, 20))
  (folder / "MCUCXR_0010_0.png").symlink_to(outside)
  tally = _tally(tmp_path)
  assert len(montgomery.read_radiographs(tmp_path, tally=tally)) == 2
  assert tally.rejected == {
    "image name of the wrong form": 1, "image is no PNG or JPEG image": 1,
    "image is a link that leads out of its folder": 1,
  }  # fmt: skip


# ── Shenzhen ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
  ("folder", "suffix"), [("mask", "_mask"), ("masks", ""), ("mask/mask", "_mask")]
)
def test_shenzhen_s_one_mask_is_parted_into_the_lungs(tmp_path, folder, suffix):
  names = write_shenzhen(tmp_path, 3)
  if folder != "mask":
    (tmp_path / "mask").rename(tmp_path / "x")
    (tmp_path / folder).mkdir(parents=True)
    for path in (tmp_path / "x").iterdir():
      path.rename(tmp_path / folder / path.name.replace("_mask", suffix))
  found, tally = _read(shenzhen, tmp_path)
  boxes = _boxes(found, f"shenzhen/{names[0]}")
  organs = masks_of(110, 100)
  for organ in ("left lung", "right lung"):
    columns = np.flatnonzero(organs[organ].any(axis=0))
    assert boxes[organ][0] == columns.min() / 110
    assert boxes[organ][2] == (columns.max() + 1) / 110
  assert len([a for a in found if a.task == "multi_class"]) == 3
  assert not _boxes(found, f"shenzhen/{names[2]}")
  assert tally.counts["no mask of the lungs"] == 1
  assert tally.cases["masks"] == f"2 in {folder}"
  assert {a.origin.rule for a in found} <= shenzhen.RULES.keys()


def test_lungs_that_touch_are_not_parted(tmp_path):
  names = write_shenzhen(tmp_path, 3)
  save(tmp_path / f"mask/{names[0]}_mask.png", np.ones((100, 110), np.uint8))
  found, tally = _read(shenzhen, tmp_path)
  assert not _boxes(found, f"shenzhen/{names[0]}")
  assert tally.counts["lungs' mask has no gap between them"] == 1


def test_shenzhen_without_masks_gives_classes(tmp_path):
  write_shenzhen(tmp_path, 3)
  shutil.rmtree(tmp_path / "mask")
  found, tally = _read(shenzhen, tmp_path)
  assert {a.task for a in found} == {"multi_class"}
  assert tally.cases["masks"] == "none"


@pytest.mark.parametrize("reader", [montgomery, shenzhen])
def test_sets_without_images_say_what_to_do(tmp_path, reader):
  with pytest.raises(
    FileNotFoundError, match="CXR_png.*Point (montgomery|shenzhen) at"
  ):
    reader.read_radiographs(tmp_path)


def test_masks_of_0_and_1_of_0_and_255_and_soft_ones_are_the_same(tmp_path):
  mask = masks_of(60, 50)["heart"]
  soft = np.where(mask, 250, 30).astype(np.uint8)
  for number, values in enumerate(
    (mask, mask.astype(np.uint8), mask * np.uint8(255), soft)
  ):
    path = save(tmp_path / f"{number}.png", values)
    np.testing.assert_array_equal(pictures.read_mask(path), mask)
