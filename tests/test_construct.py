"""IMAX and DMAX out of an invented hospital's annotations."""

import collections
import json

import numpy as np
import pytest

from imax_jax.data import construct as construct_lib
from imax_jax.data import statistics
from imax_jax.schema import ORGANS
from imax_jax.schema import TASKS
from imax_jax.schema import Annotation
from imax_jax.schema import Answer
from imax_jax.schema import Bits
from imax_jax.schema import Grade
from imax_jax.schema import Origin
from imax_jax.schema import Radiograph
from imax_jax.schema import Ratio
from imax_jax.schema import Region
from imax_jax.schema import Report

# How often a frontal image has each task, about as in MIMIC-CXR.
RATES = {
  "calculation": 0.4, "report": 0.8, "multi_class": 0.03, "multi_label": 1.0,
  "rec": 0.95, "reg": 0.95, "vqa": 0.5,
}  # fmt: skip


def hospital(num_images, seed=0, patients_per_image=0.3):
  """(radiographs, annotations) with missing tasks and parts, and lateral views."""
  rng = np.random.default_rng(seed)
  radiographs, annotations = {}, []

  def add(image, task, subtask, target):
    origin = Origin("made", f"{task}.csv", len(annotations), "made")
    annotations.append(Annotation(image, task, subtask, target, origin))

  for number in range(num_images):
    image = f"i{number:06d}"
    patient = f"p{rng.integers(max(1, int(num_images * patients_per_image)))}"
    view = str(rng.choice(["PA", "AP", "LATERAL", "PA LLD"], p=[0.4, 0.4, 0.15, 0.05]))
    radiographs[image] = Radiograph(image, f"s{number}", patient, view, 8, 8, "")
    has = {task for task, rate in RATES.items() if rng.random() < rate}
    if "calculation" in has:
      add(image, "calculation", "ctr", Ratio(0.5))
      if rng.random() < 0.95:
        add(image, "calculation", "cpar", Ratio(0.4))
    if "report" in has:
      add(image, "report", "", Report("clear"))
    if "multi_class" in has:
      add(image, "multi_class", "", Grade("none"))
    if "multi_label" in has:
      add(image, "multi_label", "", Bits((0,) * 10))
    for task in sorted(has & {"rec", "reg"}):
      for organ in ORGANS[: 3 if rng.random() < 0.97 else 2]:
        add(image, task, organ, Region(organ, (0, 0, 1, 1)))
    if "vqa" in has:
      for question in range(rng.integers(1, 6)):
        kind = str(rng.choice(["verify", "choose", "query"]))
        add(image, "vqa", kind, Answer(f"{question}?", ("yes",)))
  return radiographs, annotations


RADIOGRAPHS, ANNOTATIONS = hospital(6000)


def run(seed=1, num_images=600, **options):
  return construct_lib.construct(
    RADIOGRAPHS, ANNOTATIONS, seed=seed, num_images=num_images, **options
  )


DATASETS = run()


def patients(split):
  return {selected.radiograph.patient_id for selected in DATASETS.splits[split]}


def images(split):
  return {selected.radiograph.image_id for selected in DATASETS.splits[split]}


def counts(selected):
  return collections.Counter((e.task, e.subtask) for s in selected for e in s.entries)


def test_imax_is_dense_frontal_and_whole():
  both = DATASETS.splits["imax_train"] + DATASETS.splits["imax_test"]
  assert len(both) == 600
  for selected in both:
    assert selected.radiograph.view in ("PA", "AP")
    tasks = collections.Counter(entry.task for entry in selected.entries)
    assert len(tasks) >= 3
    assert tasks["calculation"] in (0, 2)
    assert tasks["rec"] in (0, 3)
    assert tasks["reg"] in (0, 3)
    # All that the image has is kept, under ids that tell its entries apart.
    assert len({entry.id for entry in selected.entries}) == len(selected.entries)
    theirs = [a for a in ANNOTATIONS if a.image_id == selected.radiograph.image_id]
    assert {a.origin for a in theirs if a.task == "vqa"} == {
      entry.origin for entry in selected.entries if entry.task == "vqa"
    }


def test_split_is_four_to_one_by_patient():
  assert len(DATASETS.splits["imax_test"]) == 120
  assert len(DATASETS.splits["imax_train"]) == 480
  assert not patients("imax_train") & patients("imax_test")


def test_dmax_shares_no_image_with_imax_and_no_patient_with_its_test():
  assert not images("dmax_train") & (images("imax_train") | images("imax_test"))
  assert not patients("dmax_train") & patients("imax_test")
  for selected in DATASETS.splits["dmax_train"]:
    assert selected.radiograph.view in ("PA", "AP")


def test_dmax_matches_imax_train_subtask_by_subtask():
  train = counts(DATASETS.splits["imax_train"])
  assert DATASETS.shortfall == {}
  assert counts(DATASETS.splits["dmax_train"]) == train


def test_dmax_is_decentralized():
  told = DATASETS.statistics()
  dmax, imax = told["dmax_train"], told["imax_train"]
  assert dmax["entries_per_task"] == imax["entries_per_task"]
  assert dmax["mean_tasks_per_image"] < 1.3 < 4 < imax["mean_tasks_per_image"]
  assert dmax["tasks_per_image"]["1"] > 0.8 * dmax["images"]
  assert dmax["images"] > 3 * imax["images"]


def test_dmax_keeps_parts_together():
  cut = 0
  for selected in DATASETS.splits["dmax_train"]:
    tasks = collections.Counter(entry.task for entry in selected.entries)
    assert tasks["calculation"] in (0, 2)
    assert tasks["rec"] in (0, 3)
    if tasks["vqa"]:
      image = selected.radiograph.image_id
      cut += tasks["vqa"] < sum(
        1 for a in ANNOTATIONS if a.image_id == image and a.task == "vqa"
      )
  # Only the last images of a sub-task are cut to meet its count.
  with_vqa = DATASETS.statistics()["dmax_train"]["images_per_task"]["vqa"]
  assert cut < 0.2 * with_vqa


def test_order_of_annotations_does_not_matter_and_the_seed_does():
  shuffled = list(ANNOTATIONS)
  np.random.default_rng(3).shuffle(shuffled)
  back = dict(reversed(RADIOGRAPHS.items()))
  again = construct_lib.construct(back, shuffled, seed=1, num_images=600)
  assert again == DATASETS
  assert run(seed=2).splits["imax_train"] != DATASETS.splits["imax_train"]


def test_shortfall_is_recorded():
  datasets = run(num_images=2400)
  train = counts(datasets.splits["imax_train"])
  dmax = counts(datasets.splits["dmax_train"])
  assert datasets.shortfall["multi_class"] > 0
  for (task, subtask), count in train.items():
    name = f"{task}/{subtask}" if subtask else task
    missing = datasets.shortfall.get(name, 0)
    assert dmax[task, subtask] == count - missing


def test_quotas_are_met_and_never_exceeded():
  quotas = {
    "calculation": 690, "report": 560, "multi_class": 60, "multi_label": 570,
    "rec": 642, "reg": 642, "vqa": 1270,
  }  # fmt: skip
  datasets = run(num_images=600, quotas=quotas)
  told = datasets.statistics()["imax"]
  assert 590 < told["images"] <= 600
  for task, quota in quotas.items():
    # An image's entries of a task stay together, so a last few may not fit.
    assert quota - 10 < told["entries_per_task"][task] <= quota
    missing = quota - told["entries_per_task"][task]
    assert (task in datasets.quota_shortfall) == bool(missing)
  assert min(map(int, told["tasks_per_image"])) >= 3
  assert 3.8 < told["mean_tasks_per_image"] < 4.4


def test_images_of_a_full_rare_task_are_left_to_dmax():
  datasets = run(num_images=400, quotas={"multi_class": 40})
  taken = {s.radiograph.image_id for s in datasets.splits["imax_train"]}
  taken |= {s.radiograph.image_id for s in datasets.splits["imax_test"]}
  graded = {a.image_id for a in ANNOTATIONS if a.task == "multi_class"}
  assert len(taken & graded) == 40
  assert "multi_class" not in datasets.shortfall


def test_a_quota_of_zero_leaves_a_task_out():
  told = run(quotas={"vqa": 0}).statistics()
  assert told["imax"]["images"] == 600
  for split in told.values():
    assert split["entries_per_task"]["vqa"] == 0


def test_parts_that_are_missing_drop_the_task_unless_told_otherwise():
  assert DATASETS.dropped["calculation incomplete"] > 0
  assert DATASETS.dropped["view not in PA/AP"] > 0
  lax = run(required_subtasks={})
  assert list(lax.dropped) == ["view not in PA/AP"]


def boxes_and_labels(num_images, alone):
  """Images with labels, both box tasks, half a report; of `alone`, so many more."""
  radiographs, annotations = {}, []
  for number in range(num_images + sum(alone.values())):
    image = f"i{number:04d}"
    radiographs[image] = Radiograph(image, f"s{number}", f"p{number}", "PA", 8, 8, "")
    boxes = [("rec", o, Region(o, (0, 0, 1, 1))) for o in ORGANS]
    boxes += [("reg", o, Region(o, (0, 0, 1, 1))) for o in ORGANS]
    others = [("multi_label", "", Bits((0,) * 10)), ("report", "", Report("clear"))]
    if number >= num_images:
      kept = "rec" if number - num_images < alone["rec"] else "reg"
      boxes = [said for said in boxes if said[0] == kept]
      others.append(("multi_class", "", Grade("none")))
    elif number % 2:
      others.pop()
    annotations += [
      Annotation(image, *said, Origin("made", "x.csv", number, "made"))
      for said in (*boxes, *others)
    ]
  return radiographs, annotations


@pytest.mark.parametrize(
  ("alone", "quotas"),
  [
    ({"rec": 0, "reg": 0}, {"rec": 540, "reg": 540}),
    # One is on offer more often, so that its quota wants it less often.
    ({"rec": 0, "reg": 100}, {"rec": 540, "reg": 600}),
    ({"rec": 150, "reg": 0}, {"rec": 600, "reg": 540}),
  ],
)
def test_rec_and_reg_go_together(alone, quotas):
  radiographs, annotations = boxes_and_labels(300, alone)
  made = construct_lib.construct(radiographs, annotations, seed=0, quotas=quotas)
  offered = collections.defaultdict(set)
  for a in annotations:
    offered[a.image_id].add(a.task)
  kept = {
    s.radiograph.image_id: {e.task for e in s.entries}
    for s in made.splits["imax_train"] + made.splits["imax_test"]
  }
  pair = {"rec", "reg"}
  apart = collections.Counter(
    min(pair & tasks)
    for image, tasks in kept.items()
    if pair <= offered[image] and len(pair & tasks) == 1
  )
  # The last images only, once the quota of the other task is used up.
  assert len(apart) <= (1 if any(alone.values()) else 0)
  assert apart.total() < 0.05 * len(kept)
  told = made.statistics()["imax"]["entries_per_task"]
  assert {task: told[task] for task in quotas} == quotas


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"seed": -1}, "seed -1: expected 0 or more"),
    ({"min_tasks": 0}, "min_tasks 0: expected 1 to 7"),
    ({"min_tasks": 8}, "min_tasks 8: expected 1 to 7"),
    ({"num_images": 0}, "num_images 0: expected at least 1"),
    ({"num_dmax_images": -5}, "num_dmax_images -5: expected at least 1"),
    ({"train_fraction": 0}, "train_fraction 0: expected above 0 and below 1"),
    ({"train_fraction": 1.0}, r"train_fraction 1\.0: expected above 0 and below 1"),
    ({"train_fraction": float("nan")}, "train_fraction nan: expected above 0"),
    ({"quotas": {"vqq": 1}}, r"quotas of \['vqq'\]: expected some of"),
    ({"quotas": {"vqa": -1, "rec": 3}}, r"quotas \{'vqa': -1\}: expected 0 or more"),
    ({"required_subtasks": {"vqq": ()}}, "required_subtasks of"),
    ({"split_unit": "ward"}, "split_unit 'ward': expected one of"),
    ({"dmax_patients": "all"}, "dmax_patients 'all': expected one of"),
    ({"controls": ("x",)}, r"controls \['x'\]: expected some of"),
  ],
)
def test_mistakes_are_named_before_anything_is_read(options, message):
  with pytest.raises(ValueError, match=message):
    construct_lib.check_choices(**options)
  with pytest.raises(ValueError, match=message):
    construct_lib.construct({}, [], **{"seed": 0} | options)


@pytest.mark.parametrize(
  "options", [{"views": ["RAO"]}, {"quotas": dict.fromkeys(TASKS, 0)}]
)
def test_no_image_is_an_error(options):
  with pytest.raises(ValueError, match="no image has min_tasks=3"):
    run(**options)


def test_unknown_image_is_an_error():
  lost = Annotation(
    "nobody", "report", "", Report("secret"), Origin("made", "r.csv", 7, "made")
  )
  with pytest.raises(ValueError, match=r"r\.csv row 7.*nobody") as error:
    construct_lib.construct(RADIOGRAPHS, [lost], seed=0)
  assert "secret" not in str(error.value)


def test_describe_counts_what_figure_2_shows():
  train = DATASETS.splits["imax_train"]
  told = statistics.describe([train[0].entries, train[1].entries, train[0].entries])
  one, two = train[0].entries, train[1].entries
  assert told["images"] == 3
  assert told["entries"] == 2 * len(one) + len(two)
  assert sum(told["entries_per_task"].values()) == told["entries"]
  assert list(told["entries_per_task"]) == list(TASKS)
  assert told["mean_entries_per_image"] == pytest.approx(told["entries"] / 3)
  sizes = collections.Counter(len(e) for e in (one, two, one))
  assert told["entries_per_image"] == {str(k): sizes[k] for k in sorted(sizes)}
  assert sum(told["tasks_per_image"].values()) == 3
  assert json.loads(json.dumps(told)) == told


def test_describe_of_nothing():
  told = statistics.describe([])
  assert told["images"] == told["entries"] == 0
  assert told["mean_tasks_per_image"] is None


# ── Choices and controls ──────────────────────────────────────────────────────────


def test_dmax_reuses_images_beyond_the_number_asked_for():
  radiographs, annotations = hospital(800)
  sizes = {}
  for number in (None, 150):
    made = construct_lib.construct(
      radiographs, annotations, seed=0, num_images=80, num_dmax_images=number
    )
    sizes[number] = len(made.splits["dmax_train"])
    assert set(made.shortfall) <= {"multi_class"}
  assert sizes[None] > sizes[150]
  assert sizes[150] == 150


def test_the_controls_part_image_count_from_image_centricity():
  radiographs, annotations = hospital(800)
  made = construct_lib.construct(
    radiographs, annotations, seed=0, num_images=80,
    controls=("same_images", "same_count"),
  )  # fmt: skip
  splits = made.splits
  ids = {name: [s.radiograph.image_id for s in split] for name, split in splits.items()}
  assert ids["same_images_train"] == ids["imax_train"]
  for chosen in splits["same_images_train"]:
    assert len({entry.task for entry in chosen.entries}) == 1
  told = made.statistics()
  spread, core, imax = (
    told[name] for name in ("same_images_train", "core_train", "imax_train")
  )
  assert core["entries_per_subtask"] == spread["entries_per_subtask"]
  assert core["entries_per_task"] == spread["entries_per_task"]
  assert set(ids["core_train"]) < set(ids["imax_train"])
  assert core["images"] < 0.5 * spread["images"]
  assert core["mean_tasks_per_image"] > 0.6 * imax["mean_tasks_per_image"]
  for task, images in imax["images_per_task"].items():
    share = images / sum(imax["images_per_task"].values())
    assert abs(spread["images_per_task"][task] / spread["images"] - share) < 0.05
  assert len(ids["same_count_train"]) == len(ids["imax_train"])
  assert set(ids["same_count_train"]) < set(ids["dmax_train"])
  with pytest.raises(ValueError, match="controls"):
    construct_lib.construct(radiographs, annotations, seed=0, controls=("other",))


@pytest.mark.parametrize("unit", ["patient", "study", "image"])
def test_train_and_test_share_no_unit(unit):
  radiographs, annotations = hospital(600)
  made = construct_lib.construct(
    radiographs, annotations, seed=0, num_images=100, split_unit=unit
  )
  units = {
    name: {getattr(s.radiograph, f"{unit}_id") for s in made.splits[name]}
    for name in ("imax_train", "imax_test")
  }
  assert not units["imax_train"] & units["imax_test"]


def test_dmax_takes_the_patients_it_may():
  radiographs, annotations = hospital(600)
  shared = {}
  for choice in ("not in test", "not in imax", "any"):
    made = construct_lib.construct(
      radiographs, annotations, seed=0, num_images=60, dmax_patients=choice
    )
    owners = {
      name: {s.radiograph.patient_id for s in split}
      for name, split in made.splits.items()
    }
    shared[choice] = tuple(
      bool(owners["dmax_train"] & owners[name]) for name in ("imax_test", "imax_train")
    )
  assert shared == {
    "not in test": (False, True), "not in imax": (False, False), "any": (True, True)
  }  # fmt: skip
