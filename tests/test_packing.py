"""Packing: every entry once an epoch, and packed rows mean what separate rows mean."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from imax_jax.data import order
from imax_jax.data import packing
from imax_jax.data import shapes as shapes_lib
from imax_jax.data.records import TokenizedEntry
from imax_jax.data.records import TokenizedImage
from imax_jax.data.weighting import weigh
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


def _planner(images, per_step, seed=0, *, shuffle="image", **kwargs):
  tasks = [[entry.entry.task for entry in image.entries] for image in images]
  stream = order.Stream(tasks, entries_per_step=per_step, seed=seed, shuffle=shuffle)
  lengths = [[entry.length for entry in image.entries] for image in images]
  return packing.Planner(stream, lengths, PREFIX, **({"row_tokens": ROW} | kwargs))


@settings(max_examples=80)
@given(**settings_of_runs)
def test_every_entry_once_an_epoch_and_exactly_so_many_a_step(data, per_step, seed):
  images = make_images(data)
  everything = {(i, e) for i, image in enumerate(data) for e in range(len(image))}
  planner = _planner(images, per_step, seed)
  stream = []
  for step in range(-(-3 * len(everything) // per_step)):
    pairs = planner.plan(step, ROW).pairs()
    assert len(pairs) == per_step
    assert Counter(pairs) == Counter(planner.entries(step))
    stream += planner.entries(step)
  for epoch in range(3):
    part = stream[epoch * len(everything) : (epoch + 1) * len(everything)]
    assert len(part) == len(everything)
    assert set(part) == everything


@settings(max_examples=80)
@given(
  **settings_of_runs,
  num_shards=st.integers(1, 3),
  max_shapes=st.integers(1, 4),
  row_multiple=st.sampled_from([0, 5, 8]),
)
def test_rows_hold_what_they_can(
  data, per_step, seed, num_shards, max_shapes, row_multiple
):
  images = make_images(data)
  kwargs = {"num_shards": num_shards, "row_multiple": row_multiple}
  planner = _planner(images, per_step, seed, **kwargs)
  layout = shapes_lib.lay_out(planner, images, 4, max_shapes=max_shapes)
  assert len(layout.shapes) <= max_shapes
  assert {*layout.chosen.tolist()} == {*range(len(layout.shapes))}
  for step in range(4):
    shapes = layout.shapes[layout.chosen[step]]
    plan = planner.plan(step, shapes.row_tokens)
    assert plan in planner.plans(step)
    for row in plan.rows:
      chosen = [image for image, _ in row]
      assert len(chosen) == len(set(chosen))
      entries = [images[i].entries[e].length for i, part in row for e in part]
      assert PREFIX * len(row) + sum(entries) <= plan.row_tokens
    arrays, index = packing.assemble(plan, images, shapes)
    assert arrays["text"].shape == (shapes.rows, shapes.row_tokens)
    assert shapes.row_tokens == ROW or shapes.row_tokens % row_multiple == 0
    assert arrays["supervised"].shape == (num_shards, shapes.supervised)
    weights = arrays["loss_weight"].reshape(num_shards, -1)
    for places, weight in zip(arrays["supervised"], weights, strict=True):
      assert places[places >= 0].tolist() == np.flatnonzero(weight).tolist()
    assert index.shape == (shapes.images,)


@settings(max_examples=40)
@given(**settings_of_runs, max_shapes=st.integers(1, 6))
def test_more_shapes_never_need_more_places(data, per_step, seed, max_shapes):
  images = make_images(data)
  planner = _planner(images, per_step, seed, row_multiple=4)
  places = []
  for count in (max_shapes, max_shapes + 1, 1000):
    layout = shapes_lib.lay_out(planner, images, 9, max_shapes=count)
    of = [shapes.rows * shapes.row_tokens for shapes in layout.shapes]
    places.append(sum(of[chosen] for chosen in layout.chosen))
    assert of == sorted(of, reverse=True)
  assert places == sorted(places, reverse=True)
  # With sizes enough, every step has as many places as it needs.
  own = [
    min(len(plan.rows) * plan.row_tokens for plan in planner.plans(step))
    for step in range(9)
  ]
  assert places[-1] == sum(own)


def _separate(batch, index):
  """What the attention rule makes of a batch, entry by entry: what it sees, in order."""
  views = []
  for row in range(len(batch["text"])):
    line = {n: a[row] for n, a in batch.items() if n not in ("supervised", "task")}
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
    layout = shapes_lib.lay_out(planner, images, 3)
    plan = planner.plan(2, ROW)
    weight_of = weigh(weighting)
    [shapes] = layout.shapes
    arrays, index = packing.assemble(plan, images, shapes, weight_of=weight_of)
    views.append(_separate(arrays, index))
    total = sum(arrays["loss_weight"].ravel().tolist())
    answers = [len(images[i].entries[e].answer_ids) for i, e in plan.pairs()]
    expected = sum(answers) if weighting == "token" else len(answers)
    assert total == pytest.approx(expected, rel=1e-6)
  assert views[0] == views[1]


def test_the_drawn_batch():
  images = make_images([[(2, 2), (1, 1)], [(1, 2)]])
  plan = packing.StepPlan((((0, (0, 1)), (1, (0,))),), 20)
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
  images = make_images([[(5, 1)] * 6] * 3)  # 41 tokens each with their prefix
  two = _planner(images, 18, row_tokens=64).plan(0, 64)
  assert sorted(len(row) for row in two.rows) == [2, 2]
  three = _planner(images, 18, row_tokens=63).plan(0, 63)
  assert [len(row) for row in three.rows] == [1, 1, 1]


@pytest.mark.parametrize(
  ("kwargs", "expected"),
  [
    ({"row_tokens": 130}, (130, 1)),
    # 41 x 3 and 123 x 1 are as many places: the shorter attends to less.
    ({"row_tokens": 130, "row_multiple": 41}, (41, 3)),
    ({"row_tokens": 130, "row_multiple": 123}, (123, 1)),
    ({"row_tokens": 64, "row_multiple": 21}, (42, 3)),
    # The fullest shard counts: 3 rows on 2 shards are 4 with padding.
    ({"row_tokens": 64, "row_multiple": 21, "num_shards": 2}, (64, 1)),
  ],
)
def test_rows_are_as_long_as_wastes_least(kwargs, expected):
  images = make_images([[(5, 1)] * 6] * 3)  # 41 tokens each with their prefix
  [shapes] = shapes_lib.lay_out(_planner(images, 18, **kwargs), images, 1).shapes
  assert (shapes.row_tokens, shapes.rows_per_shard) == expected


def test_a_few_sizes_hold_steps_of_many():
  images = make_images([[(1, 1)], [(10, 1)], [(1, 1)] * 3, [(20, 5)]])
  planner = _planner(images, 1, row_multiple=8)
  places = {}
  for most in (1, 2, 9):
    layout = shapes_lib.lay_out(planner, images, 30, max_shapes=most)
    sizes = [shapes.row_tokens for shapes in layout.shapes]
    places[most] = sizes
  assert places == {1: [32], 2: [32, 8], 9: [32, 16, 8]}


@pytest.mark.parametrize("shuffle", ["image", "global", "task"])
def test_seeds_and_epochs_differ(shuffle):
  kwargs = {"entries_per_step": 50, "shuffle": shuffle}
  streams = [order.Stream([["vqa"]] * 50, seed=seed, **kwargs) for seed in (0, 1)]
  orders = {tuple(stream.entries(step)) for stream in streams for step in (0, 1)}
  assert len(orders) == 4


TASKS_OF_IMAGES = [["rec", "vqa", "rec"], ["vqa"], [], ["report", "rec"]] * 7


def test_a_global_shuffle_has_every_entry_once_an_epoch_and_tears_images_apart():
  stream = order.Stream(TASKS_OF_IMAGES, entries_per_step=6, seed=0, shuffle="global")
  epochs = [
    [pair for s in range(e * 7, e * 7 + 7) for pair in stream.entries(s)]
    for e in (0, 1)
  ]
  everything = {
    (i, e) for i, named in enumerate(TASKS_OF_IMAGES) for e in range(len(named))
  }
  for epoch in epochs:
    assert len(epoch) == 42
    assert set(epoch) == everything
    neighbours = sum(a[0] == b[0] for a, b in itertools.pairwise(epoch))
    assert neighbours < 10  # of 41; side by side there are 21
  assert epochs[0] != epochs[1]


def test_steps_of_one_task_and_every_entry_once_in_the_tasks_own_epochs():
  stream = order.Stream(TASKS_OF_IMAGES, entries_per_step=5, seed=3, shuffle="task")
  seen: dict[str, list[tuple[int, int]]] = {}
  for step in range(1300):  # tasks are drawn 1,024 at a time
    pairs = stream.entries(step)
    [task] = {TASKS_OF_IMAGES[i][e] for i, e in pairs}
    seen.setdefault(task, []).extend(pairs)
  shares = {task: len(pairs) / 6500 for task, pairs in seen.items()}
  assert shares == pytest.approx({"rec": 0.5, "vqa": 1 / 3, "report": 1 / 6}, abs=0.05)
  for task, pairs in seen.items():
    own = [
      (i, e)
      for i, named in enumerate(TASKS_OF_IMAGES)
      for e, t in enumerate(named)
      if t == task
    ]
    for epoch in range(len(pairs) // len(own)):
      part = pairs[epoch * len(own) : (epoch + 1) * len(own)]
      assert sorted(part) == own
  # A step is found without those before it, across the blocks in which tasks are drawn.
  assert (
    order.Stream(TASKS_OF_IMAGES, entries_per_step=5, seed=3, shuffle="task").entries(
      2500
    )
    == (stream.entries(2499), stream.entries(2500))[1]
  )


def test_ratios_decide_how_often_a_task_is_drawn():
  stream = order.Stream(
    TASKS_OF_IMAGES, entries_per_step=1, seed=0, shuffle="task",
    sample_ratios={"rec": 1.0, "report": 3.0},
  )  # fmt: skip
  drawn = Counter(
    TASKS_OF_IMAGES[i][e] for s in range(400) for i, e in stream.entries(s)
  )
  assert drawn["report"] / 400 == pytest.approx(0.75, abs=0.07)
  assert drawn["vqa"] == 0


def test_a_tasks_weight_multiplies():
  image = make_images([[(1, 2), (1, 4)]])[0]
  weight_of = weigh("entry", {"vqa": 3.0, "rec": 2.0})
  assert [weight_of(entry) for entry in image.entries] == [1.5, 0.75]
  assert weigh("token", {"rec": 2.0})(image.entries[0]) == 1.0


def test_errors():
  images = make_images([[(1, 1)], [(1, 1)]])
  with pytest.raises(ValueError, match="raise row_tokens to at least 35"):
    _planner(make_images([[(20, 10)]]), 1)
  with pytest.raises(ValueError, match="0 entries"):
    _planner(make_images([[]]), 1)
  with pytest.raises(ValueError, match="shuffle 'page': expected"):
    _planner(images, 1, shuffle="page")
  for ratios, message in (
    ({"vqa": -1.0}, "from 0 on"),
    ({"rec": 1.0}, "no entry of rec"),
  ):
    with pytest.raises(ValueError, match=message):
      order.Stream(
        [["vqa"]], entries_per_step=1, seed=0, shuffle="task", sample_ratios=ratios
      )
  with pytest.raises(ValueError, match="task_weights .* expected more than 0"):
    weigh("token", {"rec": 0.0})
  with pytest.raises(ValueError, match="weighting 'page'"):
    weigh("page")
  with pytest.raises(ValueError, match="max_shapes 0"):
    shapes_lib.lay_out(_planner(images, 1), images, 1, max_shapes=0)
  plan = packing.StepPlan((((0, (0,)),), ((1, (0,)),)), ROW)
  with pytest.raises(ValueError, match="has 2 supervised tokens, .* laid out for 1"):
    packing.assemble(plan, images, packing.Shapes(1, 2, 2, ROW, 1))
  with pytest.raises(ValueError, match="needs 2 rows and 2 images"):
    packing.assemble(plan, images, packing.Shapes(1, 1, 2, ROW, 9))
