"""Arithmetic on run-length masks against the decoded mask, and the two ratios."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from imax_jax.data.sources import chexmask
from imax_jax.data.sources import masks
from imax_jax.data.sources.intake import Intake
from imax_jax.schema import ORGANS
from imax_jax.schema import Radiograph

SIZES = st.tuples(st.integers(1, 9), st.integers(1, 9))
PICTURES = SIZES.flatmap(lambda size: st_numpy.arrays(bool, size))


def encode(mask: np.ndarray) -> str:
  """Run-length text, 1-based and row-major, one pixel after the other."""
  runs: list[list[int]] = []
  for place in np.flatnonzero(mask):
    if runs and runs[-1][0] + runs[-1][1] == place + 1:
      runs[-1][1] += 1
    else:
      runs.append([int(place) + 1, 1])
  return " ".join(f"{start} {length}" for start, length in runs)


@given(PICTURES)
def test_runs_say_what_the_decoded_mask_says(mask):
  runs = masks.parse_runs(encode(mask), *mask.shape)
  if not mask.any():
    assert runs is None and masks.box_of(mask) is None and masks.area_of(mask) == 0
    return
  rows, columns = np.nonzero(mask)
  box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
  assert runs is not None
  assert runs.box() == box == masks.box_of(mask)
  assert runs.area == len(rows) == masks.area_of(mask)
  assert all(type(edge) is int for edge in (*runs.box(), runs.area))


@given(st.integers(1, 9), st.integers(1, 9), st.data())
def test_runs_cut_anywhere_say_the_same(height, width, data):
  """Runs that wrap at a row's end, and runs that touch, are runs all the same."""
  mask = np.zeros(height * width, bool)
  starts = sorted(data.draw(st.sets(st.integers(1, mask.size), min_size=1)))
  ends = [*starts[1:], mask.size + 1]
  lengths = [
    data.draw(st.integers(1, end - a)) for a, end in zip(starts, ends, strict=True)
  ]
  for start, length in zip(starts, lengths, strict=True):
    mask[start - 1 : start - 1 + length] = True
  mask = mask.reshape(height, width)
  text = " ".join(f"{a} {n}" for a, n in zip(starts, lengths, strict=True))
  runs = masks.parse_runs(text, height, width)
  assert runs is not None
  assert (runs.box(), runs.area) == (masks.box_of(mask), masks.area_of(mask))


def test_the_drawn_example():
  runs = masks.parse_runs(" 2 2 12 1\n", height=3, width=5)
  assert runs is not None
  assert (runs.box(), runs.area) == ((1, 0, 3, 3), 3)
  assert masks.parse_runs(" \n", height=3, width=5) is None


@pytest.mark.parametrize(
  ("text", "reason"),
  [
    ("1 2 3", "pairs"),
    ("1  2", "pairs"),
    ("nan", "whole numbers"),
    ("1 2.5", "whole numbers"),
    ("1 2.", "whole numbers"),
    ("-1 2", "whole numbers"),
    ("1,2", "whole numbers"),
    ("1 ²", "whole numbers"),
    ("0 3", "outside"),
    ("16 1", "outside"),
    ("14 3", "outside"),
    ("99999999999999999999 1", "outside"),
    ("99999999999999999999 9", "outside"),
    ("2 0", "empty"),
    ("1 99999999999999999999", "longer"),
    ("1 3 3 2", "overlap"),
    ("7 2 1 2", "order"),
    ("2 2 2 2", "overlap"),
  ],
)
def test_what_is_no_mask_is_refused_without_quoting_it(text, reason):
  with pytest.raises(ValueError, match=reason) as caught:
    masks.parse_runs(text, height=3, width=5)
  assert caught.value.args == (str(caught.value),)
  assert text not in str(caught.value)


def _organs(**boxes: tuple[int, int, int, int]) -> dict[str, np.ndarray]:
  found = {}
  for organ in ORGANS:
    x_min, y_min, x_max, y_max = boxes[organ.replace(" ", "_")]
    found[organ] = np.zeros((20, 30), bool)
    found[organ][y_min:y_max, x_min:x_max] = True
  return found


def test_ctr_is_heart_width_over_the_width_around_both_lungs():
  organs = _organs(
    right_lung=(2, 1, 10, 15), left_lung=(17, 2, 27, 14), heart=(9, 8, 19, 16)
  )
  boxes = {organ: masks.box_of(mask) for organ, mask in organs.items()}
  assert masks.ctr(boxes) == (19 - 9) / (27 - 2)
  mirrored = {organ: masks.box_of(mask[:, ::-1]) for organ, mask in organs.items()}
  assert masks.ctr(mirrored) == masks.ctr(boxes)


def test_cpar_counts_shared_pixels_on_both_sides():
  organs = _organs(
    right_lung=(2, 1, 10, 15), left_lung=(17, 2, 27, 14), heart=(9, 8, 19, 16)
  )
  areas = {organ: masks.area_of(mask) for organ, mask in organs.items()}
  assert masks.cpar(areas) == (10 * 8) / (8 * 14 + 10 * 12)
  text = {organ: encode(mask) for organ, mask in organs.items()}
  runs = {organ: masks.parse_runs(t, 20, 30) for organ, t in text.items()}
  assert masks.cpar({organ: run.area for organ, run in runs.items()}) == masks.cpar(
    areas
  )


def test_fractions_are_of_width_and_height():
  assert masks.fractions((3, 2, 6, 8), width=12, height=8) == (0.25, 0.25, 0.5, 1.0)


@pytest.mark.parametrize("exchanged", [False, True])
@pytest.mark.parametrize("told", [True, False])
def test_landmarks_tell_whether_height_and_width_are_exchanged(
  tmp_path, exchanged, told
):
  """A wide image whose row says height and width the wrong way round, or not."""
  boxes = {"heart": (14, 9, 23, 17), "left lung": (20, 3, 29, 16),
           "right lung": (2, 3, 13, 17)}  # fmt: skip
  organs = _organs(**{name.replace(" ", "_"): box for name, box in boxes.items()})
  height, width = organs["heart"].shape
  points = []
  for name, count in (("right lung", 44), ("left lung", 50), ("heart", 26)):
    x0, y0, x1, y1 = boxes[name]
    corners = [(x0, y0), (x1 - 1, y0), (x1 - 1, y1 - 1), (x0, y1 - 1)]
    points += [corners[i % 4] for i in range(count)]
  text = "[" + "\n ".join(f"[{x} {y}]" for x, y in points) + "]"
  size = (width, height) if exchanged else (height, width)
  image = "aaaaaaaa-00000000-00000000-00000000-00000001"
  file = tmp_path / "MIMIC-CXR-JPG.csv"
  file.write_text(
    "dicom_id,Dice RCA (Mean),Dice RCA (Max),Landmarks,Left Lung,Right Lung,Heart,Height,"
    f'Width\n{image},0.9,0.9,"{text if told else "[]"}",{encode(organs["left lung"])},'
    f"{encode(organs['right lung'])},{encode(organs['heart'])},{size[0]},{size[1]}\n"
  )
  film = Radiograph(image, "1", "1", "PA", width, height, "x.jpg")
  tally = Intake().tally("chexmask", tmp_path)
  found = list(chexmask.read(tmp_path, {image: film}, tally=tally))
  heart = tuple(np.array(boxes["heart"]) / [width, height, width, height])
  right = found and found[0].target.box == pytest.approx(heart)
  # Without landmarks the recorded pair is believed, as the publishers' users do.
  assert right == (told or not exchanged)
  only = tally.cases["only with Height and Width exchanged, and are read so"]
  assert only == f"in {int(told and exchanged)} of 1 rows"
