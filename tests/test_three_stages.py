"""The verb `pseudo` as a plan of stations, with a model that we play and runs that do not train."""

from __future__ import annotations

import collections
import functools
import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any
from typing import NamedTuple

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import three_stage
from imax_jax import audit
from imax_jax import experiment
from imax_jax import outlook
from imax_jax import runs
from imax_jax import strategy
from imax_jax.data import prompts
from imax_jax.data.phantom.truth import Truth
from imax_jax.ledger import plain
from imax_jax.parameters import Parameters
from imax_jax.pseudo import stream
from imax_jax.pseudo.labels import LabelFile
from imax_jax.schema import FINDINGS
from imax_jax.schema import ORGANS
from imax_jax.schema import TASKS
from imax_jax.schema import Answer
from imax_jax.schema import Entry
from imax_jax.schema import Origin
from imax_jax.schema import Ratio
from imax_jax.schema import Region
from imax_jax.schema import Report
from imax_jax.study import Study
from imax_jax.study import UsageError
from imax_jax.train import snapshots


class Said(NamedTuple):
  text: str
  log_prob: float
  num_tokens: int


class Killed(BaseException):
  """As a signal would: nothing catches it."""


class Player:
  """Answers prompts from what is true of the films; of some, nonsense.

  Args:
    nonsense: the share of answers that say nothing.
    lies: the share of ratios that are said too large.
    kill_at: the call at which the process ends.
  """

  def __init__(
    self, workdir: Path, nonsense: float = 0.0, lies: float = 0.0, kill_at: int = 10**9
  ) -> None:
    self.truth = Truth(workdir / "hospital" / "files" / "phantom_truth.jsonl")
    study = Study(config(), workdir)
    self.images = [record.image_id for record in study.records("dmax_train")]
    self.nonsense, self.lies = nonsense, lies
    self.kill_at, self.calls = kill_at, 0
    self.asked: list[tuple[int, str]] = []

  def __call__(self, params: Any, pixels: Any, asked: Any) -> list[Said]:
    self.calls += 1
    if self.calls == self.kill_at:
      raise Killed
    self.asked += asked
    return [self.answer(place, prompt) for place, prompt in asked]

  def answer(self, place: int, prompt: str) -> Said:
    rng = np.random.default_rng([place, *prompt.encode()])
    text, unsure = self.say(self.images[place], prompt), float(rng.random())
    if rng.random() < self.nonsense:
      text, unsure = "?", unsure + 1
    elif prompt.startswith("[calculate]") and rng.random() < self.lies:
      text = "0.9900"
    return Said(text, -unsure, 4)

  def say(self, image: str, prompt: str) -> str:
    question = prompt.partition("Based on the input image, ")[2]
    if prompt.startswith("[caption]"):
      bits = self.truth.bits(image)
      named = (
        [n for n, bit in zip(FINDINGS, bits.values, strict=True) if bit] if bits else []
      )
      return f"There is {' and '.join(named).lower() or 'nothing of note'}."
    task, subtask, target = "vqa", "query", Answer(question, ())
    if prompt.startswith("[calculate]"):
      task, subtask, target = (
        "calculation",
        "ctr" if "CTR" in prompt else "cpar",
        Ratio(0),
      )
    elif prompt.startswith("[cls]"):
      many = "binary" in prompt
      task, target = (
        ("multi_label", audit.Bits((0,) * 10))
        if many
        else ("multi_class", audit.Grade("none"))
      )
    elif prompt.startswith("[rec]"):
      task, subtask = "rec", next(organ for organ in ORGANS if organ in prompt)
      target = Region(subtask, (0.0, 0.0, 1.0, 1.0))
    elif prompt.startswith("[reg]"):
      sides = [int(side) / 1000 for side in re.findall(r"<(\d+)>", prompt)]
      task, target = "reg", Region("heart", tuple(sides))
    origin = Origin("pseudo", "", 0, "pseudo")
    entry = Entry("", image, task, subtask, "", "", target, origin)
    found = self.truth.target(entry)
    return "" if found is None else prompts.answer_of(found, task)


def config(**changed: Any) -> ConfigDict:
  c = three_stage.get_config("tiny")
  c.pseudo.images_at_once = 7
  c.update_from_flattened_dict(
    {key.replace("__", "."): v for key, v in changed.items()}
  )
  return c


def weigh(
  study: Study, name: str, found: Any, pixels: Any, *, start: Any = None, **planned: Any
) -> None:
  """`runs.fit` without training: the weights it begins with are those it ends with."""
  facts = runs._facts(
    study, *(planned[k] for k in ("seed", "num_steps", "inputs", "snapshots"))
  )

  def make(folder: Path) -> None:
    initial, _ = study.parameters.split(planned["seed"])
    snapshots.save(folder, runs.FINAL, initial if start is None else start())
    entries = [entry.id for i in range(len(found)) for entry in found[i].entries]
    (folder / "entries.json").write_text(json.dumps(entries))

  study.ledger.station(f"runs/{name}", facts, make)


@functools.cache
def parameters() -> Parameters:
  """Made once: what XLA compiles to draw them takes longer than a test."""
  return Study(config(), tempfile.mkdtemp()).parameters


def open_study(workdir: Path, **changed: Any) -> Study:
  study = Study(config(**changed), workdir)
  study.__dict__["parameters"] = study.__dict__["own_parameters"] = parameters()
  return study


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
  """The data, and a primary run."""
  workdir = tmp_path_factory.mktemp("three") / "study"
  experiment.run(config(), workdir, ["build"], {})
  study = open_study(workdir)
  records, pixels = runs.examples_of(study, "dmax_train")
  weigh(study, "dmax-s0", records, pixels, **runs.plan(study, "dmax-s0"))
  study.pixels("dmax_train")
  return workdir


@pytest.fixture
def workdir(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
  monkeypatch.setattr(strategy.runs, "fit", weigh)
  monkeypatch.setattr(strategy.audit, "write", lambda study: None)
  return Path(shutil.copytree(built, tmp_path / "study"))


def play(workdir: Path, player: Player | None = None, **changed: Any) -> Player:
  """The verb, with this player; the config's model is not asked."""
  player = player or Player(workdir, nonsense=0.2, lies=0.5)
  study = open_study(workdir, **changed)
  study.__dict__["generator"] = player
  strategy.pseudo(study)
  return player


def marks(workdir: Path) -> dict[str, int]:
  return {
    str(mark.parent.relative_to(workdir)): mark.stat().st_mtime_ns
    for mark in workdir.glob("**/station.json")
  }


def trained_on(workdir: Path, run: str) -> list[str]:
  return json.loads((workdir / "runs" / run / "entries.json").read_text())


def test_the_stages_and_nothing_twice(workdir: Path) -> None:
  before = outlook.text(open_study(workdir))
  states = [line.split()[2] for line in before.splitlines()[1:]]
  assert states == ["done", "to", "to", "to", "to"]
  first = play(workdir)
  labels = LabelFile(workdir / "pseudo/labels-s0" / stream.LABELS)
  own = trained_on(workdir, "dmax-s0")
  pretrained = trained_on(workdir, "pseudo_pretrain-s0")
  assert trained_on(workdir, "pseudo-s0") == own
  assert len(pretrained) == len(own) + len(labels) > 2 * len(own)
  assert sorted(e for e in pretrained if not e.endswith(".pseudo")) == sorted(own)
  # The estimate is of those asked and those that could not be.
  estimate = int(re.findall(r"about ([\d,]+) requests", before)[0].replace(",", ""))
  counts = stream.counts_of(workdir / "pseudo/labels-s0")
  assert sum(counts["asked"].values()) == estimate >= len(first.asked)

  done = marks(workdir)
  assert play(workdir).asked == []
  assert marks(workdir) == done
  after = outlook.text(open_study(workdir))
  assert [line.split()[2] for line in after.splitlines()[1:]] == ["done"] * 5


def test_all_tasks_of_an_image_are_there_in_the_end(workdir: Path) -> None:
  play(workdir, Player(workdir))
  found = collections.defaultdict(set)
  for entry in trained_on(workdir, "pseudo_pretrain-s0"):
    image, task = entry.split("/")[:2]
    found[image].add(task)
  assert {frozenset(tasks) for tasks in found.values()} == {frozenset(TASKS)}


def test_labels_name_the_weights_that_gave_them(workdir: Path) -> None:
  play(workdir)
  labels = LabelFile(workdir / "pseudo/labels-s0" / stream.LABELS)
  [model] = {one.entry.origin.file for _, group in labels.images() for _, one in group}
  assert re.fullmatch(r"[0-9a-f]{64}", model)
  study = open_study(workdir, seeds=(1,))
  records, pixels = runs.examples_of(study, "dmax_train")
  weigh(study, "dmax-s1", records, pixels, **runs.plan(study, "dmax-s1"))
  play(workdir, seeds=(1,))
  labels = LabelFile(workdir / "pseudo/labels-s1" / stream.LABELS)
  [other] = {one.entry.origin.file for _, group in labels.images() for _, one in group}
  assert other != model


def test_a_killed_run_goes_on_to_the_same_bytes(workdir: Path, tmp_path: Path) -> None:
  other = Path(shutil.copytree(workdir, tmp_path / "other"))
  whole = play(workdir)
  for kill_at in (1, 2, 3, 4):
    with pytest.raises(Killed):
      play(other, Player(other, nonsense=0.2, lies=0.5, kill_at=kill_at))
  said = outlook.text(open_study(other))
  assert re.search(r"labels-s0 +begun .*; \d+ images are done", said)
  rest = play(other)
  assert 0 < len(rest.asked) < len(whole.asked)
  for name in (
    "labels-s0/labels.jsonl",
    "labels-s0/rejected.jsonl",
    "kept-s0/kept.npy",
  ):
    assert (workdir / "pseudo" / name).read_bytes() == (
      other / "pseudo" / name
    ).read_bytes(), name


def test_an_ablation_filters_the_labels_that_are_there(workdir: Path) -> None:
  play(workdir)
  before = marks(workdir)
  player = play(workdir, pseudo__ablations=("confidence", "agreement", "balance"))
  assert player.asked == []
  assert {name: at for name, at in marks(workdir).items() if name in before} == before
  whole = set(trained_on(workdir, "pseudo_pretrain-s0"))
  for name in ("confidence", "agreement", "balance"):
    kept = set(trained_on(workdir, f"pseudo_pretrain_{name}-s0"))
    assert kept < whole, name
    lines = (workdir / f"pseudo/kept_{name}-s0/rejected.jsonl").read_text().splitlines()
    assert {json.loads(line)["id"] for line in lines} == whole - kept
    assert trained_on(workdir, f"pseudo_{name}-s0") == trained_on(workdir, "dmax-s0")
    # A later command that does not ask for the row still knows what it is.
    assert runs.digest(open_study(workdir), f"pseudo_{name}-s0")


def test_what_has_changed_is_done_again_and_no_more(workdir: Path) -> None:
  play(workdir)
  before = marks(workdir)
  assert play(workdir, pseudo__filters__confidence=0.5).asked == []
  redone = {name for name, at in marks(workdir).items() if before.get(name) != at}
  assert redone == {"pseudo/kept-s0", "runs/pseudo_pretrain-s0", "runs/pseudo-s0"}
  before = marks(workdir)
  changed = {"pseudo__questions_per_image": 2}
  said = outlook.text(open_study(workdir, **changed))
  assert said.count("made again") == 4
  assert play(workdir, **changed).asked
  redone = {name for name, at in marks(workdir).items() if before.get(name) != at}
  assert redone == {
    "pseudo/labels-s0",
    "pseudo/kept-s0",
    "runs/pseudo_pretrain-s0",
    "runs/pseudo-s0",
  }


# ── The audit ─────────────────────────────────────────────────────────────────────


def test_the_audit_of_a_model_that_knows_all(workdir: Path) -> None:
  ablations = ("confidence",)
  play(workdir, Player(workdir), pseudo__ablations=ablations)
  found = audit.collect(open_study(workdir, pseudo__ablations=ablations))
  counts = found["counts"]
  assert counts["rejected"] == {}
  assert counts["asked"] == counts["made"] == counts["kept"]["pseudo"]
  assert sum(counts["kept"]["pseudo_confidence"].values()) < sum(
    counts["made"].values()
  )
  for task in set(TASKS) - {"report"}:
    one = found["accuracy"][task]
    assert one["made"] == one["kept"]["pseudo"] == pytest.approx(1.0), task
    assert one["constant"] < 1.0 or task == "reg"
    assert sum(part["labels"] for part in one["deciles"]) == one["labels"]
  whole = found["composition"]["pseudo_imax"]
  assert whole["mean_tasks_per_image"] == len(TASKS)
  for rows in found["classes"].values():
    for row in rows:
      assert row["made"] == row["kept"] == pytest.approx(row["true"]), row


def test_the_audit_of_one_that_talks_nonsense_at_times(
  workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  assert not audit.collect(open_study(workdir))["about"]["seeds"]
  monkeypatch.undo()
  monkeypatch.setattr(strategy.runs, "fit", weigh)
  play(workdir, Player(workdir, nonsense=0.4))
  found = json.loads((workdir / "audit" / "audit.json").read_text())
  counts = found["counts"]
  for task, asked in counts["asked"].items():
    rejected = sum(counts["rejected"].get(task, {}).values())
    assert asked == counts["made"].get(task, 0) + rejected
  assert counts["rejected"]["calculation"].keys() == {"no number"}
  page = (workdir / "report" / "audit.html").read_text("utf8")
  assert "no box from rec" in page
  assert "<svg" in page
  assert "http://" not in page.replace("http://www.w3.org", "")
  study = open_study(workdir)
  texts = {
    e.answer for e in study.entries("dmax_train") if isinstance(e.target, Report)
  }
  assert texts
  assert not [text for text in texts if text in page]
  before = marks(workdir)
  audit.write(study)
  assert marks(workdir) == before
  found["accuracy"] = {}  # as of radiographs of which nobody knows what is true
  audit.page.write_audit(found, workdir / "other.html")
  assert "Not known: only a phantom" in (workdir / "other.html").read_text("utf8")


@pytest.mark.parametrize(
  ("said", "true", "expected"),
  [
    (Ratio(0.50), Ratio(0.549), 1.0),
    (Ratio(0.50), Ratio(0.551), 0.0),
    (audit.Bits((1, 0) * 5), audit.Bits((1,) * 10), 0.5),
    (Answer("?", ("a", "b")), Answer("?", ("b", "a")), 1.0),
    (Answer("?", ("a",)), Answer("?", ("b", "a")), 0.0),
    (Answer("?", ()), Answer("?", ()), 1.0),
  ],
)
def test_what_is_right(said: Any, true: Any, expected: float) -> None:
  entry = Entry("", "a", "any", "", "", "", said, Origin("pseudo", "", 0, "pseudo"))
  assert audit.score(entry, true) == expected


# ── Bad input ─────────────────────────────────────────────────────────────────────


def test_a_primary_that_is_missing_or_of_another_config_is_refused(
  workdir: Path,
) -> None:
  with pytest.raises(ValueError, match=r"another config \(train.peak_lr\).*verb train"):
    play(workdir, train__peak_lr=0.5)
  with pytest.raises(ValueError, match=r"data was made .*\(construct.seed\)"):
    play(workdir, data__construct__seed=5)
  weights = workdir / "runs/dmax-s0/snapshots/final"
  [shard, *_] = sorted(
    p for p in weights.rglob("*") if p.is_file() and "d" in p.parts[-2]
  )
  shard.write_bytes(shard.read_bytes()[:-1])
  with pytest.raises(ValueError, match=r"was changed since it was made"):
    play(workdir)
  shutil.rmtree(weights)
  with pytest.raises(FileNotFoundError, match="no trained weights here"):
    play(workdir)
  shutil.rmtree(workdir / "runs/dmax-s0")
  with pytest.raises(ValueError, match=r"dmax-s0 is not finished: run the verb train"):
    play(workdir)
  assert not (workdir / "runs/pseudo_pretrain-s0").exists()


def test_an_empty_question_pool_is_refused(
  workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  monkeypatch.setattr(
    strategy.questions, "pool_of", lambda records: strategy.questions.Pool([])
  )
  with pytest.raises(ValueError, match="the question pool is empty"):
    play(workdir)
  assert play(workdir, pseudo__questions_per_image=0).asked


@pytest.mark.parametrize(
  ("key", "value", "said"),
  [
    ("pseudo.tasks", ("reg", "report"), "'reg' is asked about the boxes that 'rec'"),
    ("pseudo.tasks", ("segmentation",), "segmentation"),
    ("pseudo.images_at_once", 0, "--config.pseudo.images_at_once=0: expected 1"),
    ("pseudo.num_images", -1, "--config.pseudo.num_images=-1: expected 0"),
    ("pseudo.filters.confidence", 1.0, "the row pseudo: confidence=1.0: expected"),
    ("pseudo.filters.balance", -1.0, "balance=-1.0: expected"),
    ("pseudo.ablations", ("nosuch",), "'nosuch' is none of pseudo.named_filters"),
  ],
)
def test_a_config_that_means_nothing_is_refused(
  workdir: Path, key: str, value: Any, said: str
) -> None:
  with pytest.raises(UsageError, match=re.escape(said)):
    play(workdir, **{key.replace(".", "__"): value})


def test_named_filters_are_filters() -> None:
  c = plain(config().pseudo)
  for row, chosen in strategy.stages.rows(
    c | {"ablations": list(c["named_filters"])}
  ).items():
    strategy.filters.Filters(**chosen).check()
    assert row == "pseudo" or chosen != c["filters"]
