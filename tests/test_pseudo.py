"""The three stages as data, and pseudo labels against a model that we play ourselves."""

from __future__ import annotations

import collections
import dataclasses

import pytest

from imax_jax.data import prompts
from imax_jax.pseudo import label
from imax_jax.pseudo import stages
from imax_jax.schema import FINDINGS
from imax_jax.schema import ORGANS
from imax_jax.schema import TASKS
from imax_jax.schema import Annotation
from imax_jax.schema import Answer
from imax_jax.schema import Bits
from imax_jax.schema import Entry
from imax_jax.schema import Grade
from imax_jax.schema import ImageRecord
from imax_jax.schema import Origin
from imax_jax.schema import Ratio
from imax_jax.schema import Region
from imax_jax.schema import Report

HEART_BOX = (0.4, 0.5, 0.7, 0.8)
# What the model we play says; each is readable.
SAYS = {
  "calculation": "0.4312",
  "report": "The lungs are clear.",
  "multi_class": "interstitial edema",
  "multi_label": "1,0,0,1,0,0,0,0,0,1",
  "rec": "<100><200><300><400>",
  "reg": "left lung",
  "vqa": "yes",
}
POOL = (
  label.Question("is there a nodule?", "verify", "presence"),
  label.Question("is there a nodule?", "verify", "presence"),
  label.Question("is there a nodule?", "verify", "presence"),
  label.Question("which is it, edema or fracture?", "choose", "presence"),
  label.Question("what is seen in the left lung?", "query", "abnormality"),
  label.Question("is there a fracture?", "verify", "presence"),
)


def make_record(name: str, *annotated: tuple[str, str, object]) -> ImageRecord:
  counts: collections.Counter[tuple[str, str]] = collections.Counter()
  entries = []
  for row, (task, subtask, target) in enumerate(annotated):
    annotation = Annotation(
      name, task, subtask, target, Origin("made", "file.csv", row, "made")
    )
    entries.append(prompts.make_entry(annotation, counts[task, subtask]))
    counts[task, subtask] += 1
  return ImageRecord(name, f"s-{name}", f"p-{name}", "PA", b"jpeg", tuple(entries))


def make_records() -> list[ImageRecord]:
  return [
    make_record("a", ("calculation", "ctr", Ratio(0.51))),
    make_record("b", ("report", "", Report("No pneumothorax."))),
    make_record(
      "c",
      ("rec", "heart", Region("heart", HEART_BOX)),
      ("reg", "left lung", Region("left lung", (0.5, 0.1, 0.9, 0.8))),
    ),
    make_record(
      "d",
      ("multi_label", "", Bits((1, *[0] * 9))),
      ("multi_class", "", Grade("none")),
      ("vqa", "verify", Answer("is there edema?", ("no",), "presence")),
    ),
  ]


class Model:
  """Says `SAYS`, and remembers what it was asked."""

  def __init__(self, **says: str) -> None:
    self.says = SAYS | says
    self.asked: list[list[label.Request]] = []

  def __call__(self, requests):
    self.asked.append(list(requests))
    return [self.says[request.entry.task] for request in requests]


def wanted(requests) -> list[tuple[int, str, str]]:
  return [
    (request.index, request.entry.task, request.entry.subtask) for request in requests
  ]


def ask(records, *, seed=0, questions_per_image=2, tasks=TASKS, pool=POOL):
  return label.missing_requests(
    records, pool, seed=seed, questions_per_image=questions_per_image, tasks=tasks
  )


# ── Requests ──────────────────────────────────────────────────────────────────────


def test_every_missing_annotation_is_asked_for_once():
  requests = ask(make_records())
  found = wanted(requests)
  everything = [
    ("calculation", "ctr"), ("calculation", "cpar"), ("report", ""), ("multi_class", ""),
    ("multi_label", ""), *[("rec", organ) for organ in ORGANS],
  ]  # fmt: skip
  have = {
    0: {("calculation", "ctr")},
    1: {("report", "")},
    2: {("rec", "heart")},
    3: {("multi_label", ""), ("multi_class", "")},
  }
  for image, own in have.items():
    asked = [pair[1:] for pair in found if pair[0] == image and pair[1] != "vqa"]
    assert sorted(asked) == sorted(set(everything) - own)
  questions = collections.Counter(image for image, task, _ in found if task == "vqa")
  assert questions == {0: 2, 1: 2, 2: 2}
  assert not [pair for pair in found if pair[1] == "reg"]
  ids = [request.entry.id for request in requests]
  assert len(set(ids)) == len(ids)


def test_tasks_restrict_what_is_asked():
  assert {task for _, task, _ in wanted(ask(make_records(), tasks=("rec",)))} == {"rec"}
  with pytest.raises(ValueError, match="unknown"):
    ask(make_records(), tasks=("segmentation",))


def test_prompts_are_those_of_real_entries():
  request = ask(make_records(), tasks=("multi_label",))[0]
  truth = Annotation(
    "a", "multi_label", "", Bits((1,) * 10), Origin("made", "x", 0, "made")
  )
  assert request.index == 0
  assert request.entry.prompt == prompts.make_entry(truth, 0).prompt


def changed_truth(record: ImageRecord) -> ImageRecord:
  """Another patient's truth behind the same questions."""
  other = {
    "calculation": Ratio(0.9),
    "report": Report("Large effusion."),
    "multi_label": Bits((0, *[1] * 9)),
    "multi_class": Grade("alveolar edema"),
    "vqa": Answer("is there edema?", ("yes",), "presence"),
  }
  entries = tuple(
    dataclasses.replace(entry, target=other.get(entry.task, entry.target), answer="?")
    for entry in record.entries
  )
  return dataclasses.replace(record, entries=entries)


def test_requests_do_not_depend_on_what_is_true_of_the_image():
  records = make_records()
  changed = [changed_truth(record) for record in records]
  assert [record.entries for record in changed] != [
    record.entries for record in records
  ]
  assert ask(changed) == ask(records)


def test_questions_are_distinct_seeded_and_independent_of_other_images():
  records = [make_record(name) for name in "abcdefgh"]

  def drawn(records, **options):
    questions = collections.defaultdict(list)
    for request in ask(records, tasks=("vqa",), **options):
      questions[request.index].append(request.entry.target.question)
    return questions

  first = drawn(records)
  assert all(len(set(asked)) == len(asked) == 2 for asked in first.values())
  assert first == drawn(records)
  assert first != drawn(records, seed=1)
  assert len({tuple(asked) for asked in first.values()}) > 1
  assert drawn(records[:3]) == {image: first[image] for image in range(3)}
  # More than the pool has: each once.
  assert {len(asked) for asked in drawn(records, questions_per_image=99).values()} == {
    4
  }


def test_frequent_questions_are_asked_more_often():
  records = [make_record(str(number)) for number in range(400)]
  asked = collections.Counter(
    request.entry.target.question
    for request in ask(records, tasks=("vqa",), questions_per_image=1)
  )
  assert 140 < asked["is there a nodule?"] < 260  # three of six
  assert 30 < asked["is there a fracture?"] < 110  # one of six


def test_question_pool_is_the_records_own_questions():
  assert label.question_pool(make_records()) == (
    label.Question("is there edema?", "verify", "presence"),
  )
  with pytest.raises(ValueError, match="question pool is empty"):
    ask(make_records(), pool=())
  assert ask(make_records(), pool=(), tasks=("report",))


def test_regions_are_asked_of_own_boxes_first_and_predicted_ones_else():
  records = make_records()
  requests = ask(records, tasks=("rec", "reg"))
  texts = [f"<10><20><{100 + number}><900>" for number in range(len(requests))]
  regions, dropped = label.region_requests(records, requests, texts)
  assert dropped == {}
  expected = [(image, "reg", organ) for image in range(4) for organ in ORGANS]
  expected.remove((2, "reg", "left lung"))
  assert wanted(regions) == expected
  said = dict(zip(wanted(requests), texts, strict=True))
  for request in regions:
    entry = request.entry
    box = said.get((request.index, "rec", entry.subtask), "<400><500><700><800>")
    assert box in entry.prompt
    assert entry.subtask not in entry.prompt


def test_an_unreadable_box_leaves_its_region_unasked():
  records = [make_record("a")]
  requests = ask(records, tasks=("rec",))
  texts = ["<10><20><30><40>", "somewhere", "<90><20><30><40>"]
  regions, dropped = label.region_requests(records, requests, texts)
  assert wanted(regions) == [(0, "reg", "heart")]
  assert dropped == {"reg: no box from rec": 2}


# ── Labels ────────────────────────────────────────────────────────────────────────


def test_labels_complete_every_image():
  records = make_records()
  model = Model()
  labelled, dropped = label.label(records, model, POOL, seed=0, questions_per_image=2)
  assert dropped == {}
  assert len(labelled) == len(records)
  for before, after in zip(records, labelled, strict=True):
    own = len(before.entries)
    assert after.entries[:own] == before.entries
    assert dataclasses.replace(after, entries=before.entries) == before
    assert {entry.task for entry in after.entries} == set(TASKS)
    counts = collections.Counter(
      (entry.task, entry.subtask) for entry in after.entries if entry.task != "vqa"
    )
    assert set(counts.values()) == {1}
    assert len(counts) == 2 + 1 + 1 + 1 + 3 + 3
    for entry in after.entries[own:]:
      assert entry.id.endswith(".pseudo")
      assert entry.origin.file == "pseudo"
      assert entry.answer == SAYS[entry.task]
      assert entry.image_id == before.image_id
  first, second = model.asked
  assert {request.entry.task for request in second} == {"reg"}
  asked = {
    f"{request.entry.id}.pseudo": request.entry.prompt for request in first + second
  }
  pseudo = [entry for record in labelled for entry in record.entries]
  pseudo = [entry for entry in pseudo if entry.origin.file == "pseudo"]
  assert {entry.id: entry.prompt for entry in pseudo} == asked
  rows = [entry.origin.row for entry in pseudo]
  assert sorted(rows) == list(range(len(asked)))


def test_targets_are_what_the_model_said():
  labelled, _ = label.label(
    [make_record("a")], Model(), POOL, seed=0, questions_per_image=1
  )
  targets = {entry.task: entry.target for entry in labelled[0].entries}
  assert targets["calculation"] == Ratio(0.4312)
  assert targets["multi_class"] == Grade("interstitial edema")
  assert targets["multi_label"].values == (1, 0, 0, 1, 0, 0, 0, 0, 0, 1)
  assert targets["multi_label"].labels == FINDINGS
  assert targets["reg"] == Region("left lung", (0.1, 0.2, 0.3, 0.4))
  assert targets["vqa"].answers == ("yes",)


def test_the_unreadable_is_dropped_and_counted_without_its_text():
  model = Model(calculation="about half", multi_label="1,0", vqa="yes,  , no", rec="?")
  labelled, dropped = label.label(
    [make_record("a"), make_record("b")], model, POOL, seed=0, questions_per_image=1
  )
  tasks = {entry.task for record in labelled for entry in record.entries}
  assert tasks == {"report", "multi_class"}
  kept = sum(len(record.entries) for record in labelled)
  asked = sum(len(requests) for requests in model.asked)
  assert dropped["calculation: no number"] == 4
  assert dropped["rec: no box"] == dropped["reg: no box from rec"] == 6
  unasked = dropped.pop("reg: no box from rec")
  assert unasked == 6
  assert kept + sum(dropped.values()) == asked
  assert not [
    reason for reason in dropped for said in model.says.values() if said in reason
  ]


def test_an_answer_that_no_entry_could_hold_is_dropped():
  request = label.Request(0, ask([make_record("a")], tasks=("vqa",))[0].entry)
  labelled = label.to_entries([request], ["yes,  , no"])
  assert labelled.entries == {}
  assert labelled.dropped == {"vqa: not a valid target": 1}


def test_a_generator_that_skips_requests_is_refused():
  with pytest.raises(ValueError, match="requests but 0 texts"):
    label.label(
      [make_record("a")], lambda requests: [], POOL, seed=0, questions_per_image=1
    )


def test_pseudo_records_read_lazily_and_index_like_a_sequence():
  class Disk:
    reads = 0

    def __len__(self):
      return 4

    def __getitem__(self, index):
      assert 0 <= index < 4
      Disk.reads += 1
      return make_records()[index]

  extra = dataclasses.replace(make_records()[1].entries[0], id="more")
  records = label.PseudoRecords(Disk(), {3: (extra,)})
  assert Disk.reads == 0
  assert records[-1].entries[-1] == extra
  assert records[0] == make_records()[0]
  assert Disk.reads == 2
  with pytest.raises(IndexError):
    records[4]
  assert len(list(records)) == 4


# ── Stages ────────────────────────────────────────────────────────────────────────


def test_the_paper_s_stages():
  steps = [(stage.name, stage.action, stage.data) for stage in stages.STAGES]
  assert steps == [
    ("primary", "train", "dmax_train"),
    ("label", "label", "dmax_train"),
    ("pretrain", "train", "pseudo_imax"),
    ("finetune", "train", "dmax_train"),
  ]
  names = [stage.name for stage in stages.lineage(stages.STAGES)]
  assert names == ["primary", "pretrain", "finetune"]
  afresh = stages.lineage(stages.from_foundation())
  assert [stage.name for stage in afresh] == ["pretrain", "finetune"]


def test_the_step_matched_control():
  steps = {"primary": 141, "pretrain": 183, "finetune": 24}
  assert stages.control_steps(stages.STAGES, steps) == 348
  assert stages.control_steps(stages.STAGES, steps, "primary") == 141
  assert stages.control_steps(stages.from_foundation(), steps) == 207


def test_stage_errors_name_the_stage():
  with pytest.raises(ValueError, match="no stage 'finetun'"):
    stages.lineage(stages.STAGES, "finetun")
  with pytest.raises(ValueError, match="trains nothing"):
    stages.lineage(stages.STAGES, "label")
  # A loop, or a start from a later stage, is no lineage.
  loop = (dataclasses.replace(stages.STAGES[0], start="primary"),)
  with pytest.raises(ValueError, match="no stage 'primary'"):
    stages.lineage(loop, "primary")


def test_requests_are_entries_without_an_answer():
  for request in ask(make_records()):
    entry = request.entry
    assert isinstance(entry, Entry)
    assert entry.answer == ""
    assert entry.origin.file == "pseudo"
