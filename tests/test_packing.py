"""Packing: every entry once an epoch, and packed rows mean what separate rows mean."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from imax_jax.data import packing
from imax_jax.data.records import TokenizedEntry
from imax_jax.data.records import TokenizedImage
from imax_jax.schema import Answer
from imax_jax.schema import Entry
from imax_jax.schema import Origin

PREFIX, ROW = 5, 32


def make_images(lengths: list[list[tuple[int, int]]]) -> list[TokenizedImage]:
  """Images whose tokens are all different, from (prompt, answer) lengths."""
  ids = itertools.count(10)

  def take(count: int) -> np.ndarray:
    return np.array([next(ids) for _ in range(count)], np.int32)

  def entry(image: int, number: int, sizes: tuple[int, int]) -> TokenizedEntry:
    origin, target = Origin("made", "made", number, "made"), Answer("", ())
    noun = Entry(
      f"{image}/vqa//{number}", str(image), "vqa", "", "", "", target, origin
    )
    return TokenizedEntry(take(sizes[0]), take(sizes[1]), noun)

  slot = np.array([-1, -1, 0, 1, 2], np.int32)
  return [
    TokenizedImage(
      str(image),
      np.array([1, 9, 0, 0, 0], np.int32),
      slot,
      tuple(entry(image, number, sizes) for number, sizes in enumerate(entries)),
    )
    for image, entries in enumerate(lengths)
  ]


def _lengths(images: list[TokenizedImage]) -> list[list[int]]:
  return [[entry.length for entry in image.entries] for image in images]


datasets = st.lists(
  st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), max_size=9),
  min_size=1,
  max_size=12,
).filter(any)
settings_of_runs = {
  "data": datasets,
  "per_step": st.integers(1, 20),
  "seed": st.integers(0, 99),
}


def _planner(images, per_step, seed, **kwargs):
  return packing.Planner(
    _lengths(images),
    PREFIX,
    entries_per_step=per_step,
    row_tokens=ROW,
    seed=seed,
    **kwargs,
  )


@settings(max_examples=80)
@given(**settings_of_runs)
def test_every_entry_once_an_epoch_and_exactly_so_many_a_step(data, per_step, seed):
  images = make_images(data)
  everything = {(i, e) for i, image in enumerate(data) for e in range(len(image))}
  planner = _planner(images, per_step, seed)
  stream = []
  for step in range(-(-3 * len(everything) // per_step)):
    pairs = planner.plan(step).pairs()
    assert len(pairs) == per_step
    assert Counter(pairs) == Counter(planner.entries(step))
    stream += planner.entries(step)
  for epoch in range(3):
    part = stream[epoch * len(everything) : (epoch + 1) * len(everything)]
    assert len(part) == len(everything)
    assert set(part) == everything


@settings(max_examples=80)
@given(**settings_of_runs, num_shards=st.integers(1, 3))
def test_rows_hold_what_they_can(data, per_step, seed, num_shards):
  images = make_images(data)
  planner = _planner(images, per_step, seed)
  shapes = packing.shapes_of(planner, images, 4, row_tokens=ROW, num_shards=num_shards)
  for step in range(4):
    plan = planner.plan(step)
    for row in plan.rows:
      chosen = [image for image, _ in row]
      assert len(chosen) == len(set(chosen))
      entries = [images[i].entries[e].length for i, part in row for e in part]
      assert PREFIX * len(row) + sum(entries) <= ROW
    arrays, index = packing.assemble(plan, images, shapes)
    assert arrays["text"].shape == (shapes.rows, ROW)
    assert arrays["supervised"].shape == (num_shards, shapes.supervised)
    weights = arrays["loss_weight"].reshape(num_shards, -1)
    for places, weight in zip(arrays["supervised"], weights, strict=True):
      assert places[places >= 0].tolist() == np.flatnonzero(weight).tolist()
    assert index.shape == (shapes.images,)


def _separate(batch, index):
  """What the attention rule makes of a batch, entry by entry: what it sees, in order."""
  views = []
  for row in range(len(batch["text"])):
    line = {n: array[row] for n, array in batch.items() if n != "supervised"}
    for image in sorted(set(line["image"].tolist()) - {-1}):
      here = line["image"] == image
      for segment in sorted(set(line["segment"][here].tolist()) - {0}):
        seen = here & ((line["segment"] == 0) | (line["segment"] == segment))
        view = [line[n][seen].tolist() for n in ("text", "slot", "position")]
        weights = line["loss_weight"][seen].copy()
        weights[line["segment"][seen] == 0] = 0  # counted once, if anywhere
        assert line["loss_weight"][here & (line["segment"] == 0)].sum() == 0
        views.append((int(index[image]), *map(tuple, view), tuple(weights.tolist())))
  return Counter(views)


@settings(max_examples=80)
@given(**settings_of_runs, weighting=st.sampled_from(["token", "entry"]))
def test_packed_rows_mean_what_separate_rows_mean(data, per_step, seed, weighting):
  images = make_images(data)
  views = []
  for share_prefix in (True, False):
    planner = _planner(images, per_step, seed, share_prefix=share_prefix)
    shapes = packing.shapes_of(planner, images, 3, row_tokens=ROW)
    plan = planner.plan(2)
    arrays, index = packing.assemble(plan, images, shapes, weighting=weighting)
    views.append(_separate(arrays, index))
    total = sum(arrays["loss_weight"].ravel().tolist())
    answers = [len(images[i].entries[e].answer_ids) for i, e in plan.pairs()]
    expected = sum(answers) if weighting == "token" else len(answers)
    assert total == pytest.approx(expected, rel=1e-6)
  assert views[0] == views[1]


def test_the_drawn_batch():
  images = make_images([[(2, 2), (1, 1)], [(1, 2)]])
  plan = packing.StepPlan((((0, (0, 1)), (1, (0,))),))
  arrays, index = packing.assemble(plan, images, packing.Shapes(1, 2, 3, 20, 7))
  assert index.tolist() == [0, 1, -1]
  # Image 0: prefix, entry 1, entry 2; image 1: prefix, entry 1; one place of padding.
  expected = {
    "text": [1, 9, 0, 0, 0, 10, 11, 12, 13, 14, 15, 1, 9, 0, 0, 0, 16, 17, 18, 0],
    "image": [0] * 11 + [1] * 8 + [-1],
    "slot": [-1, -1, 0, 1, 2, *[-1] * 6, -1, -1, 0, 1, 2, *[-1] * 4],
    "segment": [0] * 5 + [1] * 4 + [2] * 2 + [0] * 5 + [1] * 3 + [0],
    "position": [0, 1, 2, 3, 4, 5, 6, 7, 8, 5, 6, 0, 1, 2, 3, 4, 5, 6, 7, 0],
    "loss_weight": [0, 0, 0, 0, 0, 0, 1, 1, 0, 1, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0],
  }
  for name, values in expected.items():
    assert arrays[name][0].tolist() == values, name
  assert arrays["supervised"].tolist() == [[6, 7, 9, 16, 17, -1, -1]]
  assert (arrays["image"][1] == -1).all()
  assert not arrays["loss_weight"][1].any()


def test_an_image_is_cut_where_that_saves_a_row():
  lengths = [[6] * 6] * 3  # 41 tokens each with their prefix
  kwargs = {"entries_per_step": 18, "seed": 0}
  two = packing.Planner(lengths, PREFIX, row_tokens=64, **kwargs).plan(0)
  assert sorted(len(row) for row in two.rows) == [2, 2]
  three = packing.Planner(lengths, PREFIX, row_tokens=63, **kwargs).plan(0)
  assert [len(row) for row in three.rows] == [1, 1, 1]


def test_seeds_and_epochs_differ():
  lengths = [[4]] * 50
  kwargs = {"entries_per_step": 50, "row_tokens": ROW}
  orders = [
    packing.Planner(lengths, PREFIX, seed=seed, **kwargs).entries(step)
    for seed in (0, 1)
    for step in (0, 1)
  ]
  assert len({tuple(order) for order in orders}) == 4


def test_errors():
  with pytest.raises(ValueError, match="raise row_tokens to at least 35"):
    packing.Planner([[30]], PREFIX, entries_per_step=1, row_tokens=ROW, seed=0)
  with pytest.raises(ValueError, match="0 entries"):
    packing.Planner([[]], PREFIX, entries_per_step=1, row_tokens=ROW, seed=0)
  images = make_images([[(1, 1)], [(1, 1)]])
  plan = packing.StepPlan((((0, (0,)),), ((1, (0,)),)))
  with pytest.raises(ValueError, match="has 2 supervised tokens, .* laid out for 1"):
    packing.assemble(plan, images, packing.Shapes(1, 2, 2, ROW, 1))
  with pytest.raises(ValueError, match="needs 2 rows and 2 images"):
    packing.assemble(plan, images, packing.Shapes(1, 1, 2, ROW, 9))
