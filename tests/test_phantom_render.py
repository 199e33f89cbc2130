"""The phantom radiographs: same case same film, masks and findings as the case says."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import subprocess
import sys

import numpy as np
import pytest

from imax_jax import schema
from imax_jax.data.phantom import anatomy
from imax_jax.data.phantom.anatomy import Case
from imax_jax.data.phantom.anatomy import Finding
from imax_jax.data.phantom.practice import coverage_maps
from imax_jax.data.phantom.practice import practice_entries
from imax_jax.data.phantom.render import Film
from imax_jax.data.phantom.render import render

SIZE = 128
DRAWN = [name for name in schema.FINDINGS if name != "Lung Opacity"]


@pytest.fixture(scope="module")
def films() -> list[Film]:
  rng = np.random.default_rng(11)
  views = ("PA", "AP", "PA", "LATERAL")
  return [
    render(anatomy.sample_case(rng, view=views[n % 4]), SIZE)  # type: ignore[arg-type]
    for n in range(60)
  ]


def _healthy(seed: int, ctr: float = 0.45) -> Case:
  """A PA case without findings or devices."""
  rng = np.random.default_rng(seed)
  patient = dataclasses.replace(anatomy.sample_patient(rng), ctr=ctr)
  study = dataclasses.replace(
    anatomy.sample_study(rng, patient),
    ctr=ctr, findings=(), edema_grade=0, devices=(), seed=seed,
  )  # fmt: skip
  return anatomy.make_case(study, "PA", seed)


def _ill(case: Case, name: str, side: str) -> Case:
  zone = {"Pleural Effusion": "lower", "Pneumothorax": "upper"}.get(name, "mid")
  finding = Finding(name, "", "") if name == "Edema" else Finding(name, side, zone)
  return dataclasses.replace(
    case, findings=(finding,), edema_grade=3 if name == "Edema" else 0
  )


def test_same_case_same_film_in_any_process():
  case = anatomy.sample_case(np.random.default_rng(3), view="AP")
  digest = hashlib.sha256(render(case, 96).pixels.tobytes()).hexdigest()
  assert hashlib.sha256(render(case, 96).pixels.tobytes()).hexdigest() == digest
  program = (
    "import hashlib, numpy as np\n"
    "from imax_jax.data.phantom.anatomy import sample_case\n"
    "from imax_jax.data.phantom.render import render\n"
    "render(sample_case(np.random.default_rng(8)), 96)\n"
    "case = sample_case(np.random.default_rng(3), view='AP')\n"
    "print(hashlib.sha256(render(case, 96).pixels.tobytes()).hexdigest())\n"
  )
  done = subprocess.run(
    [sys.executable, "-c", program], capture_output=True, text=True, check=True
  )
  assert done.stdout.strip() == digest


def test_another_seed_is_another_film():
  study = _healthy(1).study
  first, second = (anatomy.make_case(study, "PA", seed) for seed in (1, 2))
  assert not np.array_equal(render(first, 96).pixels, render(second, 96).pixels)
  assert first.findings == second.findings


def test_ctr_and_cpar_follow_from_the_masks(films: list[Film]):
  frontal = [film for film in films if film.case.view != "LATERAL"]
  for film in frontal:
    columns = {n: np.flatnonzero(m.any(axis=0)) for n, m in film.masks.items()}
    lungs = np.concatenate([columns["left lung"], columns["right lung"]])
    heart = columns["heart"]
    ratio = (heart.max() - heart.min() + 1) / (lungs.max() - lungs.min() + 1)
    assert film.ctr == pytest.approx(ratio, abs=1e-6)
    assert abs(film.ctr - film.case.ctr) < 0.02
    lung_area = film.masks["left lung"].sum() + film.masks["right lung"].sum()
    assert film.cpar == pytest.approx(film.masks["heart"].sum() / lung_area)
    assert not (film.masks["heart"] & film.masks["left lung"]).any()
  drawn = [film.case.ctr for film in frontal]
  assert max(drawn) - min(drawn) > 0.15


def test_ctr_is_the_drawn_one_at_fine_size():
  for seed, ctr in ((1, 0.38), (2, 0.5), (3, 0.7)):
    assert render(_healthy(seed, ctr), 256).ctr == pytest.approx(ctr, rel=0.02)


def test_the_left_lung_lies_on_the_images_right(films: list[Film]):
  for film in films:
    if film.case.view == "LATERAL":
      assert not any(mask.any() for mask in film.masks.values())
      assert np.isnan(film.ctr)
      continue
    left, right, heart = (
      np.argwhere(film.masks[name]).mean(axis=0)[1]
      for name in ("left lung", "right lung", "heart")
    )
    assert right < heart < left


def test_the_organs_are_where_the_film_shows_them(films: list[Film]):
  for film in films:
    if film.case.view == "LATERAL" or film.finding_masks:
      continue
    lungs = film.masks["left lung"] | film.masks["right lung"]
    heart = film.pixels[film.masks["heart"]].mean()
    assert heart > film.pixels[lungs].mean() + 60


@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.parametrize("side", anatomy.SIDES)
def test_a_finding_is_seen_in_its_mask_and_on_its_side(name: str, side: str):
  case = _healthy(21)
  before, after = render(case, SIZE), render(_ill(case, name, side), SIZE)
  mask = after.finding_masks[name]
  change = np.abs(after.pixels.astype(int) - before.pixels.astype(int))
  # Inside: a multiple of what noise does; outside only the window's levels move.
  assert change[mask].mean() > 14
  assert change[mask].mean() > 3 * change[~mask].mean()
  assert mask.sum() >= 36
  if name != "Edema":
    center = np.argwhere(mask).mean(axis=0)[1]
    other = "right" if side == "left" else "left"
    own, far = (
      np.argwhere(before.masks[f"{s} lung"]).mean(axis=0)[1] for s in (side, other)
    )
    assert abs(center - own) < abs(center - far)
  assert ("Lung Opacity" in after.finding_masks) == bool(
    _ill(case, name, side).label("Lung Opacity")
  )


def test_edema_grades_add_up():
  case = _healthy(33)
  plain = render(case, SIZE)
  lungs = plain.masks["left lung"] | plain.masks["right lung"]
  levels = []
  for grade in range(4):
    found = (Finding("Edema", "", ""),) if grade >= 2 else ()
    ill = dataclasses.replace(case, edema_grade=grade, findings=found)
    levels.append(render(ill, SIZE).pixels[lungs].mean())
  assert levels == sorted(levels)
  assert levels[3] > levels[0] + 15


def test_labels_follow_the_findings():
  rng = np.random.default_rng(5)
  cases = [anatomy.sample_case(rng) for _ in range(1500)]
  for case in cases:
    opaque = any(case.label(name) for name in anatomy.OPACITIES)
    assert case.label("Lung Opacity") == int(opaque)
    assert case.label("Edema") == int(case.edema_grade >= 2)
    assert case.bits == tuple(case.label(name) for name in schema.FINDINGS)
  rate = np.mean([case.bits for case in cases], axis=0)
  expected = [0.66, 0.40, 0.17, 0.16, 0.35, 0.16, 0.13, 0.13, 0.13, 0.22]
  np.testing.assert_allclose(rate, expected, atol=0.05)
  grades = np.bincount([case.edema_grade for case in cases]) / len(cases)
  np.testing.assert_allclose(grades, [0.45, 0.20, 0.18, 0.17], atol=0.05)
  with pytest.raises(ValueError, match=r"schema\.FINDINGS"):
    cases[0].label("lung opacity")


def test_views_of_a_study_share_what_the_patient_has():
  rng = np.random.default_rng(6)
  study = anatomy.sample_study(rng, anatomy.sample_patient(rng))
  cases = [anatomy.make_case(study, view, 4) for view in anatomy.VIEWS]
  assert len({(c.findings, c.edema_grade, c.sex, c.devices) for c in cases}) == 1
  assert cases[1].ctr == pytest.approx(min(cases[0].ctr + 0.035, 0.72))
  with pytest.raises(ValueError, match="LATERAL"):
    anatomy.make_case(study, "lateral", 4)  # type: ignore[arg-type]


def test_no_constant_box_is_a_good_guess():
  rng = np.random.default_rng(7)
  boxes = [
    render(anatomy.sample_case(rng, view="AP" if n % 3 == 0 else "PA"), 64).organ_boxes
    for n in range(120)
  ]
  for organ in schema.ORGANS:
    box = np.array([found[organ] for found in boxes])
    guess = np.median(box, axis=0)
    low, high = np.maximum(box[:, :2], guess[:2]), np.minimum(box[:, 2:], guess[2:])
    both = np.prod(np.clip(high - low, 0, None), axis=1)
    areas = np.prod(box[:, 2:] - box[:, :2], axis=1) + np.prod(guess[2:] - guess[:2])
    assert (both / (areas - both)).mean() < 0.60


def test_boxes_and_marker(films: list[Film]):
  for film in films:
    for name, (x_min, y_min, x_max, y_max) in film.boxes.items():
      assert name not in schema.ORGANS
      assert 0 <= x_min < x_max <= 1, name
      assert 0 <= y_min < y_max <= 1, name
    assert set(film.case.devices) <= set(film.boxes) or film.case.view == "LATERAL"
    x_min, y_min, x_max, y_max = film.boxes["side marker"]
    cut = film.pixels[
      round(y_min * SIZE) : round(y_max * SIZE),
      round(x_min * SIZE) : round(x_max * SIZE),
    ]
    assert (cut == 250).any()
    if film.case.view != "LATERAL":
      assert (x_min > 0.5) == (film.case.marker_side == "left")


def test_coverage_maps(films: list[Film]):
  for film in films[:20]:
    maps = coverage_maps(film)
    assert maps.shape == (8, 8, 14)
    assert maps.dtype == np.float32
    assert maps.min() >= 0
    assert maps.max() <= 1
    heart = film.masks["heart"]
    assert maps[..., 0].sum() * (SIZE / 8) ** 2 == pytest.approx(heart.sum(), rel=1e-5)
    for number, name in enumerate(schema.FINDINGS):
      shown = maps[..., 3 + number].any()
      assert shown == (name in film.finding_masks and film.finding_masks[name].any())
    if film.case.view != "LATERAL":
      assert maps[..., 13].any() == (film.case.edema_grade > 0)
  with pytest.raises(ValueError, match="divisor"):
    coverage_maps(films[0], grid=7)


def test_practice_never_asks_what_the_study_asks(films: list[Film]):
  tags = ("[calculate]", "[caption]", "[cls]", "[rec]", "[reg]", "[vqa]")
  words = ("based on", "heart", "cardio", "cpar", "ctr", "lung", "severity", "grade")
  rng = np.random.default_rng(9)
  seen: set[str] = set()
  for film in films:
    entries = practice_entries(film, rng, "img")
    assert 6 <= len(entries) <= 9
    assert len({entry.id for entry in entries}) == len(entries)
    for entry in entries:
      seen.add(entry.subtask)
      assert entry.task == "practice"
      assert entry.prompt.startswith("[practice] ")
      text = (entry.prompt + " " + entry.answer).lower()
      assert not any(tag in text for tag in tags)
      assert not any(word in text for word in words), text
      assert not re.fullmatch(r"[01](,[01]){9}", entry.answer)
      if entry.subtask == "box":
        assert isinstance(entry.target, schema.Region)
        want = "".join(f"<{int(1000 * edge)}>" for edge in entry.target.box)
        assert entry.answer == want
        assert entry.target.box == film.boxes[entry.target.name]
  assert seen >= {"caption", "box", "name", "ratio", "verify", "choose", "where"}


def test_practice_says_which_findings_are_visible():
  case = _ill(_healthy(4), "Nodule", "left")
  entry = practice_entries(render(case, 64), np.random.default_rng(0), "x")[0]
  assert "left nodule" in entry.answer
  plain = practice_entries(render(_healthy(4), 64), np.random.default_rng(0), "x")[0]
  assert "nodule" not in plain.answer


def test_size_must_be_sensible():
  with pytest.raises(ValueError, match="at least 32"):
    render(_healthy(1), 16)
