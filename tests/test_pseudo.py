"""The three stages as data, and pseudo labels against a model that we play ourselves."""

from __future__ import annotations

import collections
import dataclasses
import json
from typing import NamedTuple

import numpy as np
import pytest

from imax_jax.data import prompts
from imax_jax.pseudo import journal
from imax_jax.pseudo import label
from imax_jax.pseudo import labels as labels_lib
from imax_jax.pseudo import questions
from imax_jax.pseudo import stages
from imax_jax.pseudo import stream
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
  questions.Question("is there a nodule?", "verify", "presence"),
  questions.Question("is there a nodule?", "verify", "presence"),
  questions.Question("is there a nodule?", "verify", "presence"),
  questions.Question("which is it, edema or fracture?", "choose", "presence"),
  questions.Question("what is seen in the left lung?", "query", "abnormality"),
  questions.Question("is there a fracture?", "verify", "presence"),
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


class Said(NamedTuple):
  text: str
  log_prob: float = -0.1
  num_tokens: int = 5


class Model:
  """Says `SAYS`, and remembers what it was asked."""

  def __init__(self, **says: str) -> None:
    self.says = SAYS | says
    self.asked: list[list[label.Request]] = []

  def __call__(self, requests):
    self.asked.append(list(requests))
    return [Said(self.says[request.entry.task]) for request in requests]


def wanted(requests) -> list[tuple[int, str, str]]:
  return [
    (request.place, request.entry.task, request.entry.subtask) for request in requests
  ]


def ask(records, *, seed=0, questions_per_image=2, tasks=TASKS, pool=POOL):
  return label.missing_requests(
    dict(enumerate(records)), questions.Pool(pool),
    seed=seed, questions_per_image=questions_per_image, tasks=tasks,
  )  # fmt: skip


def ask_regions(records, requests, texts):
  said = [Said(text) for text in texts]
  images = dict(enumerate(records))
  return label.region_requests(images, requests, said, max_new_tokens=99)


def asking(**changed) -> stream.Asking:
  return dataclasses.replace(
    stream.Asking("f00d", seed=0, questions_per_image=2, max_new_tokens=99), **changed
  )


def write(folder, records, generate, *, pool=POOL, places=None, **changed):
  """Labels the records; returns (pseudo-IMAX, its labels, counts)."""
  places = range(len(records)) if places is None else places
  stream.write_labels(
    folder, records, places, generate, questions.Pool(pool), asking(**changed)
  )
  found = labels_lib.LabelFile(folder / stream.LABELS)
  return labels_lib.PseudoRecords(records, found), found, stream.counts_of(folder)


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
  with pytest.raises(ValueError, match="'reg' is asked about the boxes that 'rec'"):
    ask(make_records(), tasks=("reg", "report"))


def test_prompts_are_those_of_real_entries():
  request = ask(make_records(), tasks=("multi_label",))[0]
  truth = Annotation(
    "a", "multi_label", "", Bits((1,) * 10), Origin("made", "x", 0, "made")
  )
  assert request.place == 0
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
      questions[request.place].append(request.entry.target.question)
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
  pool = questions.pool_of(make_records())
  assert len(pool) == pool.num_distinct == 1
  [drawn] = pool.draw(3, np.random.default_rng(0))
  assert drawn == questions.Question("is there edema?", "verify", "presence")
  with pytest.raises(ValueError, match="question pool is empty"):
    ask(make_records(), pool=())
  assert ask(make_records(), pool=(), tasks=("report",))


def test_regions_are_asked_of_own_boxes_first_and_predicted_ones_else():
  records = make_records()
  requests = ask(records, tasks=("rec", "reg"))
  texts = [f"<10><20><{100 + number}><900>" for number in range(len(requests))]
  regions, rejected = ask_regions(records, requests, texts)
  assert rejected == []
  expected = [(image, "reg", organ) for image in range(4) for organ in ORGANS]
  expected.remove((2, "reg", "left lung"))
  assert wanted(regions) == expected
  said = dict(zip(wanted(requests), texts, strict=True))
  for request in regions:
    entry = request.entry
    box = said.get((request.place, "rec", entry.subtask), "<400><500><700><800>")
    assert box in entry.prompt
    assert entry.subtask not in entry.prompt


def test_an_unreadable_box_leaves_its_region_unasked():
  records = [make_record("a")]
  requests = ask(records, tasks=("rec",))
  texts = ["<10><20><30><40>", "somewhere", "<30><20><30><40>"]  # the last: no area
  regions, rejected = ask_regions(records, requests, texts)
  assert wanted(regions) == [(0, "reg", "heart")]
  assert [one.reason for one in rejected] == [label.NO_BOX] * 2
  assert {one.log_prob for one in rejected} == {None}


def test_questions_come_by_stratum_as_in_training():
  """Systematic sampling: hardly any chance is left in how often a type comes."""
  many = [
    questions.Question(f"{kind} {content} {number}", kind, content)
    for kind, content, count in (
      ("verify", "presence", 60), ("verify", "plane", 10), ("choose", "anatomy", 20),
      ("query", "anatomy", 10),
    )
    for number in range(count)
  ]  # fmt: skip
  pool = questions.Pool(many)
  counts: collections.Counter[tuple[str, str]] = collections.Counter()
  for place in range(1000):
    drawn = pool.draw(5, np.random.default_rng((3, place)))
    assert len(set(drawn)) == 5
    counts.update((one.subtask, one.content_type) for one in drawn)
    # 60 of 100 are on a stretch as long as three of the five distances.
    assert sum(one[1:] == ("verify", "presence") for one in drawn) == 3
  assert counts["choose", "anatomy"] == 1000
  assert 400 < counts["query", "anatomy"] < 600


# ── Labels ────────────────────────────────────────────────────────────────────────


def test_labels_complete_every_image(tmp_path):
  records, model = make_records(), Model()
  labelled, _, counts = write(tmp_path, records, model)
  assert counts["rejected"] == {}
  assert counts["asked"] == counts["made"]
  assert len(labelled) == len(records)
  for before, after in zip(records, labelled, strict=True):
    own = len(before.entries)
    assert after.entries[:own] == before.entries
    assert dataclasses.replace(after, entries=before.entries) == before
    assert {entry.task for entry in after.entries} == set(TASKS)
    found = collections.Counter(
      (entry.task, entry.subtask) for entry in after.entries if entry.task != "vqa"
    )
    assert set(found.values()) == {1}
    assert len(found) == 2 + 1 + 1 + 1 + 3 + 3
    for entry in after.entries[own:]:
      assert entry.id.endswith(".pseudo")
      assert entry.origin.source == "pseudo"
      assert entry.origin.file == "f00d"
      assert entry.answer == SAYS[entry.task]
      assert entry.image_id == before.image_id
  first, second = model.asked
  assert {request.entry.task for request in second} == {"reg"}
  asked = {
    f"{request.entry.id}.pseudo": request.entry.prompt for request in first + second
  }
  pseudo = [entry for record in labelled for entry in record.entries]
  pseudo = [entry for entry in pseudo if entry.origin.source == "pseudo"]
  assert {entry.id: entry.prompt for entry in pseudo} == asked
  assert sorted(entry.origin.row for entry in pseudo) == list(range(len(asked)))


def test_targets_are_what_the_model_said(tmp_path):
  labelled, _, _ = write(tmp_path, [make_record("a")], Model())
  targets = {entry.task: entry.target for entry in labelled[0].entries}
  assert targets["calculation"] == Ratio(0.4312)
  assert targets["multi_class"] == Grade("interstitial edema")
  assert targets["multi_label"].values == (1, 0, 0, 1, 0, 0, 0, 0, 0, 1)
  assert targets["multi_label"].labels == FINDINGS
  assert targets["reg"] == Region("left lung", (0.1, 0.2, 0.3, 0.4))
  assert targets["vqa"].answers == ("yes",)


def test_the_unreadable_is_rejected_and_counted_without_its_text(tmp_path):
  model = Model(calculation="about half", multi_label="1,0", vqa="yes,  , no", rec="?")
  records = [make_record("a"), make_record("b")]
  labelled, _, counts = write(tmp_path, records, model)
  tasks = {entry.task for record in labelled for entry in record.entries}
  assert tasks == {"report", "multi_class"}
  assert counts["made"] == {"report": 2, "multi_class": 2}
  rejected = counts["rejected"]
  assert rejected["calculation"] == {"no number": 4}
  assert rejected["rec"] == {"no box": 6}
  assert rejected["reg"] == {label.NO_BOX: 6}
  assert rejected["vqa"] == {"an empty part": 4}
  posed = sum(len(requests) for requests in model.asked)
  assert sum(counts["asked"].values()) == posed + 6
  lines = (tmp_path / stream.REJECTED).read_text().splitlines()
  kept = {task: sum(reasons.values()) for task, reasons in rejected.items()}
  assert collections.Counter(json.loads(line)["task"] for line in lines) == kept
  said = (tmp_path / stream.REJECTED).read_text() + json.dumps(counts)
  assert not [text for text in ("about half", "yes,", "1,0") if text in said]


@pytest.mark.parametrize(
  ("task", "subtask", "text", "reason"),
  [
    ("calculation", "ctr", "1.2", "no possible ratio"),
    ("calculation", "cpar", "1.2", ""),
    ("calculation", "cpar", "0.0", "no possible ratio"),
    ("reg", "heart", "spleen", "no organ"),
    ("reg", "heart", "Heart", ""),
    ("vqa", "verify", "perhaps", "neither yes nor no"),
    ("vqa", "verify", "yes, no", "neither yes nor no"),
    ("vqa", "choose", "perhaps", ""),
    ("rec", "heart", "<10><20><10><40>", "box without area"),
  ],
)
def test_what_no_label_of_a_task_says_is_rejected(task, subtask, text, reason):
  target = {
    "calculation": Ratio(0.0),
    "reg": Region(subtask, HEART_BOX),
    "rec": Region(subtask, HEART_BOX),
    "vqa": Answer("is it so?", (), "presence"),
  }[task]
  asked = label._ask("a", task, subtask, target, 0)
  found, why = label.read(asked, Said(text), 99)
  assert why == reason
  assert (found is None) == bool(reason)
  assert label.read(asked, Said(text, num_tokens=99), 99)[0] is None


def test_a_generator_that_skips_requests_is_refused(tmp_path):
  with pytest.raises(ValueError, match="requests but 0 answers"):
    write(tmp_path, [make_record("a")], lambda requests: [])


def test_labels_are_read_an_image_at_a_time_and_index_like_a_sequence(tmp_path):
  class Disk:
    reads = 0

    def __len__(self):
      return 4

    def __getitem__(self, index):
      assert 0 <= index < 4
      Disk.reads += 1
      return make_records()[index]

  _, found, _ = write(tmp_path, make_records(), Model(), places=[3])
  records = labels_lib.PseudoRecords(Disk(), found)
  assert Disk.reads == 0
  assert len(records[-1].entries) == 3 + len(found)
  assert records[0] == make_records()[0]
  assert Disk.reads == 2
  with pytest.raises(IndexError):
    records[4]
  assert len(list(records)) == 4


def test_only_the_lines_that_are_kept_are_read(tmp_path):
  _, found, _ = write(tmp_path, make_records(), Model())
  kept = np.zeros(found.num_lines, bool)
  kept[[0, 5]] = True
  some = labels_lib.LabelFile(tmp_path / stream.LABELS, kept)
  assert len(some) == 2
  assert [line for _, group in some.images() for line, _ in group] == [0, 5]
  with pytest.raises(ValueError, match="it is said of 3"):
    labels_lib.LabelFile(tmp_path / stream.LABELS, kept[:3])


def test_labels_of_other_images_are_refused(tmp_path):
  _, found, _ = write(tmp_path, make_records(), Model())
  others = labels_lib.PseudoRecords(make_records()[::-1], found)
  with pytest.raises(ValueError, match="another version of the data"):
    others[0]


def test_a_label_is_the_same_behind_its_line(tmp_path):
  _, found, _ = write(tmp_path, make_records(), Model())
  for place in range(4):
    for one in found.at(place):
      assert labels_lib.from_json(labels_lib.to_json(one)) == one
      assert (one.log_prob, one.num_tokens, one.place) == (-0.1, 5, place)
  with pytest.raises(ValueError, match="no pseudo label"):
    labels_lib.from_json('{"id": "x"}')


# ── Killed and started again ──────────────────────────────────────────────────────


class Killed(BaseException):
  """As a signal would: nothing catches it."""


class Hazard:
  """Ends the process, as it were, after so many of the things that can be interrupted."""

  def __init__(self, left: int) -> None:
    self.left = left

  def pass_by(self) -> None:
    self.left -= 1
    if self.left < 0:
      raise Killed


class Moody:
  """Answers by what it is asked, some of it unreadably; may be killed at it."""

  def __init__(self, hazard: Hazard | None = None) -> None:
    self.hazard, self.answers = hazard, 0

  def __call__(self, requests):
    said = []
    if self.hazard is not None:
      self.hazard.pass_by()
    for request in requests:
      rng = np.random.default_rng([*request.entry.prompt.encode(), request.place])
      text = SAYS[request.entry.task] if rng.random() < 0.8 else "?"
      said.append(Said(text, -float(rng.random()), int(rng.integers(2, 9))))
    self.answers += len(said)
    return said


def sure(folder, name: str) -> int:
  """The bytes of a file that the journal speaks of."""
  return journal._read(folder)["sizes"][name] if (folder / journal.MARK).exists() else 0


def contents(folder) -> dict[str, bytes]:
  return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_labels_are_the_same_after_twenty_random_kills(tmp_path, monkeypatch):
  """Killed while answering, and between any two writes to a file, torn ones included."""
  records = [dataclasses.replace(r, image_id=f"{r.image_id}{n}")
             for n in range(8) for r in make_records()]  # fmt: skip
  whole, cut = tmp_path / "whole", tmp_path / "cut"
  whole.mkdir()
  cut.mkdir()
  _, found, _ = write(whole, records, Moody(), images_at_once=3)
  made = [one for place in range(len(records)) for one in found.at(place)]
  assert len({one.entry.id for one in made}) == len(made)
  assert len({one.entry.origin.row for one in made}) == len(made)
  rng, hazard = np.random.default_rng(5), Hazard(0)

  def torn(value: int) -> None:
    """fsync: what was written may stop anywhere."""
    try:
      hazard.pass_by()
    except Killed:
      for name in (stream.LABELS, stream.REJECTED):
        path = cut / name
        size = path.stat().st_size
        with path.open("ab") as file:
          file.truncate(int(rng.integers(sure(cut, name), size + 1)))
      raise

  monkeypatch.setattr(journal.os, "fsync", torn)
  torn_files = 0
  for _ in range(20):
    hazard.left = int(rng.integers(0, 6))  # a chunk is two questions and two writes
    with pytest.raises(Killed):
      write(cut, records, Moody(hazard), images_at_once=3)
    torn_files += (cut / stream.LABELS).stat().st_size > sure(cut, stream.LABELS)
  assert torn_files > 3
  hazard.left = 10**9
  last = Moody()
  write(cut, records, last, images_at_once=3)
  assert contents(cut) == contents(whole)
  assert last.answers  # the kills had left something to do
  again = Moody()
  write(cut, records, again, images_at_once=3)
  assert again.answers == 0
  assert contents(cut) == contents(whole)


def test_a_shortened_file_is_refused(tmp_path):
  write(tmp_path, make_records(), Model())
  path = tmp_path / stream.LABELS
  path.write_bytes(path.read_bytes()[:-1])
  with pytest.raises(ValueError, match=r"labels.jsonl: damaged; remove"):
    write(tmp_path, make_records(), Model())
  (tmp_path / journal.MARK).write_text("{")
  with pytest.raises(ValueError, match=r"written.json: damaged; remove"):
    write(tmp_path, make_records(), Model())


def test_what_stands_in_memory_is_one_chunk(tmp_path):
  """However many images there are: records are read one by one, asked a few at a time."""
  asked = []

  class Disk:
    def __len__(self):
      return 40

    def __getitem__(self, index):
      return make_record(f"i{index}")

  def generate(requests):
    asked.append({request.place for request in requests})
    return Moody()(requests)

  write(tmp_path, Disk(), generate, images_at_once=4)
  assert max(map(len, asked)) == 4
  assert len(asked) == 2 * 10


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


def test_rows_and_their_stations():
  config = {
    "filters": {"confidence": 0.0, "agreement": False, "balance": 0.0},
    "ablations": ["balance"],
    "named_filters": {"balance": {"balance": 2.0}, "agreement": {"agreement": True}},
  }
  rows = stages.rows(config)
  assert list(rows) == ["pseudo", "pseudo_balance"]
  assert rows["pseudo"] == config["filters"]
  assert rows["pseudo_balance"] == config["filters"] | {"balance": 2.0}
  assert stages.pretraining_of("pseudo_balance") == "pseudo_pretrain_balance"
  assert stages.kept_station("pseudo_balance", 3) == "pseudo/kept_balance-s3"
  with pytest.raises(ValueError, match="'nosuch' is none of pseudo.named_filters"):
    stages.rows(config | {"ablations": ["nosuch"]})
