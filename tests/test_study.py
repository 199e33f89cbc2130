"""The whole study at a tiny size: interrupted, resumed, repeated, changed."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import imax_7b
from configs import phantom
from imax_jax import answers
from imax_jax import build
from imax_jax import experiment
from imax_jax import main
from imax_jax import runs
from imax_jax.data import shards
from imax_jax.evaluate import scoring
from imax_jax.evaluate.metrics import STRICT
from imax_jax.study import Study
from imax_jax.train import loop
from imax_jax.tree import flatten

ROOT = Path(__file__).parent.parent
NO_REQUEST: dict[str, str | None] = {}


class Killed(BaseException):
  """As a signal would: nothing catches it."""


def config() -> ConfigDict:
  return phantom.get_config("tiny")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
  """A finished tiny study."""
  workdir = tmp_path_factory.mktemp("study")
  experiment.run(config(), workdir, config().verbs, NO_REQUEST)
  return workdir


def marks(workdir: Path) -> dict[str, int]:
  """{station: when it was last written, in ns}."""
  found = sorted(workdir.glob("**/station.json"))
  return {str(m.parent.relative_to(workdir)): m.stat().st_mtime_ns for m in found}


def test_results_are_whole(done: Path) -> None:
  results = json.loads((done / "results.json").read_text("utf8"))
  names = {metric.name for metric in STRICT}
  for run in ("constant", "dmax", "imax", "dmax_long"):
    assert results["tables"][run].keys() == names, run
    assert all(np.isfinite(v) for v in results["tables"][run].values())
  assert results["gains"].keys() >= {"imax", "dmax_long"}
  # The untrained model's labels cannot be read: that is told, and no row.
  assert results["unlabelled"] == [["pseudo", 0]]
  assert "pseudo" not in results["tables"] | results["gains"]
  assert "DMAX & Pseudo IMAX, seed 0: no label could be kept" in results["caveats"][0]
  assert {row["phase"] for row in results["fisher"]} == {
    "initial",
    "early",
    "mid",
    "late",
  }
  assert {row["kind"] for row in results["fisher"]} == {"sampled", "exact"}
  assert results["timings"]
  assert results["versions"]["jax"]
  page = (done / "report" / "index.html").read_text("utf8")
  assert "no label could be kept" in page
  audit = (done / "report" / "audit.html").read_text("utf8")
  assert "No label could be" in audit
  assert "Not run." not in audit
  assert "is not known" not in audit
  assert "phantom numbers" in page
  assert "http://" not in page.replace("http://www.w3.org", "")
  # Not splitlines(): an untrained model also says U+2028.
  lines = (
    (done / "predictions" / "imax-s0.jsonl").read_text("utf8").rstrip().split("\n")
  )
  assert len(lines) == results["statistics"]["imax_test"]["entries"]


def test_every_number_has_its_interval_or_the_reason(done: Path) -> None:
  results = json.loads((done / "results.json").read_text("utf8"))
  names = {metric.name for metric in STRICT}
  for run in ("constant", "blind", "dmax", "imax", "dmax_long"):
    ends, why = results["intervals"][run], results["no_interval"][run]
    assert ends.keys() | why.keys() == names, run
    for name, (low, high) in ends.items():
      assert low <= results["tables"][run][name] <= high, (run, name)
  gain = results["gains"]["imax"]
  assert gain["tests"].keys() == gain["per_metric"].keys()
  assert results["definitions"]["strict"].keys() == names
  evaluation = done / "evaluations" / "imax-s0" / "scores.json"
  said = json.loads(evaluation.read_text("utf8"))
  assert said["intervals"] == results["intervals"]["imax"]


def test_work_directories_stand_side_by_side(
  done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
  experiment.run(config(), tmp_path, ["report"], {"runs": str(done)})
  found = json.loads((tmp_path / "comparison.json").read_text("utf8"))
  results = json.loads((done / "results.json").read_text("utf8"))
  assert list(found["rows"]) == ["Phantom hospital"]
  row = found["rows"]["Phantom hospital"]
  assert row["gains"] == results["gains"]
  assert row["tables"] == results["tables"]
  assert "IMAX / DMAX" in capsys.readouterr().out
  page = (tmp_path / "report" / "comparison.html").read_text("utf8")
  assert "Table 1, as measured" in page
  with pytest.raises(ValueError, match=r"gone/results\.json: no results there"):
    experiment.run(config(), tmp_path, ["report"], {"runs": f"{done},{done}/gone"})


def test_no_patient_is_in_train_and_test(done: Path) -> None:
  study = Study(config(), done)
  test = {record.patient_id for record in study.records("imax_test")}
  for split in ("imax_train", "dmax_train"):
    assert not test & {record.patient_id for record in study.records(split)}, split


def test_dmax_has_the_entries_of_imax(done: Path) -> None:
  results = json.loads((done / "results.json").read_text("utf8"))
  missing = sum(results["construction"]["shortfall"].values())
  splits = results["statistics"]
  assert splits["dmax_train"]["entries"] == splits["imax_train"]["entries"] - missing
  assert splits["dmax_train"]["images"] > splits["imax_train"]["images"]


def test_a_second_run_does_nothing(done: Path) -> None:
  before = marks(done)
  experiment.run(config(), done, config().verbs, NO_REQUEST)
  assert marks(done) == before


def test_a_changed_config_redoes_what_depends_on_it(done: Path) -> None:
  before = marks(done)
  changed = config()
  changed.fisher.num_groups = 1
  experiment.run(changed, done, changed.verbs, NO_REQUEST)
  redone = {name for name, at in marks(done).items() if before[name] != at}
  assert redone == {"fisher/dmax-s0", "fisher/imax-s0"}


@pytest.mark.parametrize(
  ("key", "value", "says"),
  [
    ("num_groups", 5000, r"num_groups: 5000 groups of 4 different .* dmax_train has \d+"),
    ("group_size", 500, r"2 groups of 500 different entries, but dmax_train has"),
    ("group_size", 0, "group_size: 0, expected 2 or more"),
    ("group_size", 1, "group_size: 1, expected 2 or more"),
    ("num_groups", 0, "num_groups: 0, expected 1 or more"),
    ("normalise", "average", r"normalise: \['average'\], expected some of \('sum', 'mean'"),
    ("answers", (), r"answers: \[\], expected some of \('data', 'model'\)"),
    ("runs", ("imax", "pseudo"), r"runs: \['pseudo'\], expected some of \('dmax', 'imax'"),
    ("phases", (("late", 1.0), ("late", 1.0)), r"phases: \['late', 'late'\], expected"),
  ],
)  # fmt: skip
def test_spectra_outlive_a_config_that_is_refused(
  done: Path, key: str, value: object, says: str
) -> None:
  before = marks(done)
  changed = config()
  changed.fisher.seed = 9  # the stations would be made anew
  with changed.unlocked(), changed.ignore_type():
    changed.fisher[key] = value
  with pytest.raises(ValueError, match=rf"fisher\..*{says}"):
    experiment.run(changed, done, ["fisher"], NO_REQUEST)
  assert marks(done) == before
  assert (done / "fisher" / "imax-s0" / "spectra.json").exists()


def test_another_config_is_not_reported_as_this_one(done: Path) -> None:
  """A number must never stand beside settings that did not make it."""
  before = (done / "results.json").read_bytes()
  changed = config()
  changed.train.peak_lr = 0.123
  for verb in ("evaluate", "fisher", "report"):
    with pytest.raises(ValueError, match=r"another config \(train.peak_lr\)"):
      experiment.run(changed, done, [verb], NO_REQUEST)
  for key, value, verb in (
    ("train.epochs", 2.0, "train"),
    ("evaluate.max_new_tokens", 9, "evaluate"),
    ("fisher.seed", 7, "fisher"),
    ("pseudo.num_images", 3, "pseudo"),
    ("pseudo.pretrain_from", "foundation", "pseudo"),
  ):
    changed = config()
    changed.update_from_flattened_dict({key: value})
    with pytest.raises(ValueError, match=rf"another config.*the verb {verb} again"):
      experiment.run(changed, done, ["report"], NO_REQUEST)
  changed = config()
  changed.data.construct.seed = 5
  for verb in ("train", "evaluate", "report"):
    with pytest.raises(ValueError, match=r"data was made .*\(construct.seed\)"):
      experiment.run(changed, done, [verb], NO_REQUEST)
  assert (done / "results.json").read_bytes() == before


def test_three_stages_of_an_earlier_primary_are_refused(
  done: Path, tmp_path: Path
) -> None:
  """They would not have as many steps as the control that stands beside them."""
  workdir = tmp_path / "study"
  shutil.copytree(done, workdir)
  changed = config()
  changed.train.epochs = 1.5
  experiment.run(changed, workdir, ["train"], NO_REQUEST)
  for verb, remedy in (("report", "evaluate"), ("evaluate", "pseudo")):
    with pytest.raises(ValueError, match=rf"another config.*the verb {remedy} again"):
      experiment.run(changed, workdir, [verb], NO_REQUEST)


def test_all_seeds_share_the_frozen_weights(done: Path) -> None:
  study = Study(config(), done)
  (one, base), (two, same) = study.parameters.split(0), study.parameters.split(7)
  for path, leaf in flatten(base).items():
    np.testing.assert_array_equal(leaf, flatten(same)[path], err_msg=path)
  differ = [
    p for p, leaf in flatten(one).items() if not np.array_equal(leaf, flatten(two)[p])
  ]
  assert differ
  assert all("lora_a" in path for path in differ)


def test_killed_and_resumed_is_the_same_run(
  done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  """Bit for bit, from a kill between two checkpoints of the training."""
  study = Study(config(), tmp_path)
  build.build(study)
  real, last = loop.train, 3

  def killed(**arguments: object) -> None:
    real(**arguments, stop_after=last)  # type: ignore[arg-type]
    raise Killed

  monkeypatch.setattr(loop, "train", killed)
  with pytest.raises(Killed):
    experiment.train(study)
  monkeypatch.undo()
  assert not study.ledger.is_done("runs/dmax-s0")
  with pytest.raises(ValueError, match="train first"):
    answers.evaluate(study)
  experiment.train(Study(config(), tmp_path))
  for name in ("dmax-s0", "imax-s0"):
    straight = runs.weights_of(Study(config(), done), done / "runs" / name)
    resumed = runs.weights_of(study, tmp_path / "runs" / name)
    for path, leaf in flatten(straight).items():
      np.testing.assert_array_equal(leaf, flatten(resumed)[path], err_msg=path)
    lines = [
      (w / "runs" / name / "metrics.jsonl").read_text() for w in (done, tmp_path)
    ]
    assert lines[0] == lines[1]


def test_a_killed_evaluation_ends_with_the_same_file(
  done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  workdir, name = tmp_path / "w", "answers/imax-s0"
  shutil.copytree(done, workdir)
  shutil.rmtree(workdir / name)
  path, kills = workdir / name / "predictions.jsonl", 0
  real = Study.stream

  def killed(*asked: Any, **known: Any) -> Iterator[Any]:
    for count, answer in enumerate(real(*asked, **known)):
      if count == 5 + 15 * kills:
        with path.open("ab") as file:  # as what dies in the middle of a line leaves it
          file.write(b'{"id": "x')
        raise Killed
      yield answer

  monkeypatch.setattr(Study, "stream", killed)
  study = Study(config(), workdir)
  while True:
    before = path.read_bytes() if path.exists() else b""
    try:
      answers.evaluate(study)
      break
    except Killed:
      kills += 1
      assert path.read_bytes().startswith(before[: before.rfind(b"\n") + 1])
  assert kills > 3
  for file in (f"{name}/predictions.jsonl", "evaluations/imax-s0/scores.json"):
    assert (workdir / file).read_bytes() == (done / file).read_bytes()
  # One answer of another data set stops it: nothing is mixed.
  (workdir / name / "station.json").unlink()
  path.write_bytes(path.read_bytes().replace(b'"answer": "', b'"answer": "not ', 1))
  mark = json.loads((done / name / "station.json").read_text("utf8"))
  del mark["finished"]
  (workdir / name / "station.json").write_text(json.dumps(mark))
  with pytest.raises(ValueError, match="another version of the data set"):
    answers.evaluate(Study(config(), workdir))


def test_a_run_that_diverges_says_so_in_one_line(done: Path, tmp_path: Path) -> None:
  workdir = tmp_path / "w"
  shutil.copytree(done, workdir)
  rate = "--config.train.peak_lr=1e30"
  answer = command(*PHANTOM, "--workdir", str(workdir), rate, "train")
  assert answer.returncode == 1, answer.stderr
  assert "lower the learning rate" in answer.stderr
  assert "Traceback" not in answer.stderr


def test_predict_draws_the_box(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
  predict(done, task="rec", question="heart")
  answer = json.loads(capsys.readouterr().out)
  assert answer["prompt"].startswith("[rec] Based on the input image")
  assert ("picture" in answer) == (not answer["reason"])


def predict(done: Path, changed: ConfigDict | None = None, **request: str) -> None:
  """`predict` on the first film of the hospital, unless the request says otherwise."""
  image = sorted((done / "hospital").rglob("*.jpg"))[0]
  checkpoint = str(done / "runs" / "imax-s0")
  asked = {"image": str(image), "task": "report", "question": None} | request
  asked = {"checkpoint": checkpoint} | asked
  experiment.run(changed or config(), done, ["predict"], asked)


def test_predict_draws_an_answer(
  done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
  said = []
  for seed in ("1", "1", "2"):
    predict(done, temperature="1.5", top_p="0.95", sample_seed=seed)
    said.append(json.loads(capsys.readouterr().out))
  assert said[0] == said[1]
  assert said[0]["text"] != said[2]["text"]
  assert said[0]["log_prob"] < 0
  with pytest.raises(ValueError, match="need --temperature"):
    predict(done, top_p="0.9")
  for wrong in ("0", "warm", "nan"):
    with pytest.raises(ValueError, match="--temperature"):
      predict(done, temperature=wrong)


def test_other_scorers_score_the_answers_that_are_there(
  done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  workdir = tmp_path / "w"
  shutil.copytree(done, workdir)
  shutil.rmtree(workdir / "fisher")  # of the config that an earlier test changed

  def unasked(*_: Any, **__: Any) -> Iterator[Any]:
    raise Killed
    yield

  monkeypatch.setattr(Study, "stream", unasked)
  before = marks(workdir)
  metric = dataclasses.replace(STRICT[0], version="another")
  monkeypatch.setattr(scoring.metrics, "STRICT", (metric, *STRICT[1:]))
  with pytest.raises(ValueError, match=r"\(metrics.strict.cpar_mae.version\): run the"):
    experiment.run(config(), workdir, ["report"], NO_REQUEST)
  experiment.run(config(), workdir, ["evaluate", "report"], NO_REQUEST)
  after = marks(workdir)
  scored = {name for name in before if name.startswith("evaluations/")}
  assert {name for name, at in after.items() if before[name] != at} == scored
  said = json.loads((workdir / "evaluations/imax-s0/scores.json").read_text("utf8"))
  assert said["definitions"]["strict"]["cpar_mae"]["version"] == "another"
  # A jar is another scorer too, and a missing one is told before anything is asked.
  given = config()
  given.evaluate.meteor_jar = str(tmp_path / "meteor-1.5.jar")
  shutil.rmtree(workdir / "answers")
  with pytest.raises(ValueError, match="found no file"):
    answers.evaluate(Study(given, workdir))
  shutil.copytree(done / "answers", workdir / "answers")
  Path(given.evaluate.meteor_jar).write_bytes(b"")
  monkeypatch.setenv("PATH", str(tmp_path))
  with pytest.raises(ValueError, match="needs `java`"):
    answers.evaluate(Study(given, workdir))
  (tmp_path / "java").write_text("#!/bin/sh\n")
  (tmp_path / "java").chmod(0o755)
  with pytest.raises(ValueError, match="expected 23 numbers"):  # it was asked to score
    answers.evaluate(Study(given, workdir))


def test_answers_that_were_deleted_are_made_again(done: Path, tmp_path: Path) -> None:
  workdir = tmp_path / "w"
  shutil.copytree(done, workdir)
  shutil.rmtree(workdir / "fisher")  # of the config that an earlier test changed
  path = workdir / "answers" / "imax-s0" / "predictions.jsonl"
  scores = workdir / "evaluations" / "dmax-s0" / "scores.json"
  whole = path.read_bytes()
  for gone in (scores, path):
    kept = gone.read_bytes()
    gone.unlink()
    with pytest.raises(FileNotFoundError, match=f"{gone}: missing; run .* evaluate"):
      experiment.run(config(), workdir, ["report"], NO_REQUEST)
    gone.write_bytes(kept)
  path.write_bytes(whole[:-1])
  with pytest.raises(ValueError, match=r"cut off\. Delete it and evaluate again"):
    experiment.run(config(), workdir, ["evaluate"], NO_REQUEST)
  path.unlink()
  scores.unlink()
  before = marks(workdir)
  experiment.run(config(), workdir, ["evaluate", "report"], NO_REQUEST)
  redone = {name for name, at in marks(workdir).items() if before.get(name) != at}
  redone -= {"audit"}
  assert redone == {"answers/imax-s0", "evaluations/imax-s0", "evaluations/dmax-s0"}
  assert path.read_bytes() == whole


def test_an_evaluated_checkpoint_is_of_its_config_and_of_no_other(
  done: Path, tmp_path: Path
) -> None:
  workdir = tmp_path / "w"
  shutil.copytree(done, workdir)
  asked: dict[str, str | None] = {"checkpoint": str(workdir / "runs" / "imax-s0")}
  bare = tmp_path / "bare"  # weights alone: they do not say what they were trained with
  shutil.copytree(workdir / "runs" / "imax-s0" / "snapshots", bare / "snapshots")
  other = config()
  other.model.decoder.update({"width": 32, "mlp_width": 64})
  with pytest.raises(ValueError, match="another config"):
    experiment.run(other, workdir, ["evaluate"], asked)
  for folder, said in (("report", "no trained weights"), ("data", "data holds no run")):
    with pytest.raises((FileNotFoundError, ValueError), match=said):
      experiment.run(
        config(), workdir, ["evaluate"], {"checkpoint": str(done / folder)}
      )
  assert marks(workdir).keys() == marks(done).keys()
  experiment.run(config(), workdir, ["evaluate"], asked)
  before = marks(workdir)
  with pytest.raises(ValueError, match=r"another config .*model.decoder.mlp_width"):
    experiment.run(other, workdir, ["evaluate"], asked)
  experiment.run(config(), workdir, ["evaluate"], {"checkpoint": str(bare)})
  with pytest.raises(ValueError, match="bare"):
    experiment.run(other, workdir, ["evaluate"], {"checkpoint": str(bare)})
  assert before.items() <= marks(workdir).items()
  made = Study(config(), workdir).ledger.inputs(f"answers/{tmp_path.name}-bare")
  assert made["model"]["decoder"]["width"] == config().model.decoder.width


def test_predict_names_what_is_wrong(done: Path, tmp_path: Path) -> None:
  torn = tmp_path / "torn.jpg"
  torn.write_bytes(b"\xff\xd8\xff no more")
  with pytest.raises(ValueError, match=r"torn\.jpg.*Copy the file again"):
    predict(done, image=str(torn))
  with pytest.raises(FileNotFoundError, match=r"absent\.png.*--image"):
    predict(done, image="absent.png")
  with pytest.raises(FileNotFoundError, match="no trained weights here"):
    predict(done, checkpoint=str(tmp_path / "runs" / "imax-s9"))
  assert not (tmp_path / "runs").exists()
  cut = tmp_path / "cut"
  shutil.copytree(done / "runs" / "imax-s0", cut)
  (cut / "snapshots" / "final" / "_METADATA").write_text("{")
  with pytest.raises(
    ValueError, match=r"cut/snapshots/final/.*: was changed since it was made"
  ):
    predict(done, checkpoint=str(cut))
  with pytest.raises(ValueError, match="expected one of calculation"):
    predict(done, task="captoin")
  with pytest.raises(ValueError, match=r"needs --question"):
    predict(done, task="vqa")
  other = config()
  other.model.decoder.lora_rank = 2
  with pytest.raises(ValueError, match=r"another config \(model.decoder.lora_rank\)"):
    predict(done, other)
  other = config()
  other.foundation = "package"
  with pytest.raises(ValueError, match=r"another config \(foundation\)"):
    predict(done, other)


def test_a_missing_source_file_is_named(done: Path, tmp_path: Path) -> None:
  broken = tmp_path / "files"
  shutil.copytree(done / "hospital" / "files", broken)
  (broken / "cxr-cardiomegaly/1.0.0/CTRs.csv").unlink()
  changed = config()
  changed.data.source, changed.data.root = "physionet", str(broken)
  with pytest.raises(FileNotFoundError, match=r"CTRs\.csv"):
    experiment.run(changed, tmp_path / "w", ["build"], NO_REQUEST)
  empty = tmp_path / "empty"
  empty.mkdir()
  changed.data.root = str(empty)
  with pytest.raises(FileNotFoundError, match=r"empty: expected a folder"):
    experiment.run(changed, tmp_path / "w", ["build"], NO_REQUEST)


@pytest.mark.parametrize(
  "error",
  [
    OSError(errno.ENOSPC, "No space left on device"),
    RuntimeError("write() failed: No space left on device"),  # array_record's
  ],
)
def test_a_full_disk_leaves_nothing_that_looks_finished(
  done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
  changed = config()
  changed.data.source, changed.data.root = "physionet", str(done / "hospital" / "files")
  changed.data.workers = 1  # here, where the disk is full

  def full(*_: object, **__: object) -> None:
    raise error

  monkeypatch.setattr(shards, "_example", full)
  with pytest.raises(OSError, match=r"data: no space left; make room"):
    experiment.run(changed, tmp_path, ["build"], NO_REQUEST)
  assert not (tmp_path / "data" / "imax").exists()
  assert not Study(changed, tmp_path).ledger.is_done("data")
  monkeypatch.undo()
  experiment.run(changed, tmp_path, ["build"], NO_REQUEST)
  assert Study(changed, tmp_path).ledger.is_done("data")


def command(*words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
  environment = os.environ | {"JAX_PLATFORMS": "cpu"}
  return subprocess.run(
    [sys.executable, "-m", "imax_jax.main", *words],
    cwd=cwd, env=environment, capture_output=True, text=True, check=False,
  )  # fmt: skip


PHANTOM = ("--config", "configs/phantom.py:tiny")


@pytest.mark.parametrize(
  ("words", "code", "said"),
  [
    ((*PHANTOM, "--workdir", "W", "evalute"), 2, "did you mean evaluate"),
    (
      (*PHANTOM, "--workdir", "W", "--config.train.peek_lr=1"),
      2,
      "you mean",
    ),
    ((*PHANTOM, "--workdr", "W"), 2, "workdir"),
    ((*PHANTOM,), 2, "--workdir"),
    (("--workdir", "W"), 2, "--config FILE and --workdir DIR"),
    ((), 2, "--help shows examples"),
    (("--config", "configs/foundation.py", "--workdir", "W", "train"), 2, "foundation"),
    (
      (*PHANTOM, "--workdir", "W", "--config.data.source=mimic", "build"),
      2,
      "expected one of phantom, physionet, open, opencxr, own",
    ),
    (("--config", "configs/none.py", "--workdir", "W"), 2, "configs/none.py"),
    (("--config", "configs/zoo/baseline.py", "--workdir", "W"), 2, "it is no config"),
    ((*PHANTOM, "--workdir", "W", "train"), 1, "not finished"),
    (
      (*PHANTOM, "--workdir", "W", "--config.data.source=opencxr", "build"),
      2,
      "data.root",
    ),
    (("--help",), 0, "pseudo"),
    (("--config", "configs/phantom.py:foo", "--workdir", "W"), 2, "nothing or 'tiny'"),
    ((*PHANTOM, "--workdir", "W", "predict"), 2, "predict needs --image"),
  ],
)
def test_the_door_answers_in_one_line(
  words: tuple[str, ...], code: int, said: str, tmp_path: Path
) -> None:
  words = tuple(str(tmp_path / "w") if word == "W" else word for word in words)
  answer = command(*words)
  text = answer.stdout + answer.stderr
  assert answer.returncode == code, text
  assert said in text
  assert "Traceback" not in text
  if code:
    assert len(answer.stderr.strip().splitlines()) <= 2, answer.stderr


def test_programs_are_kept_in_the_work_directory_unless_another_folder_is_named(
  tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  before = jax.config.values["jax_compilation_cache_dir"]
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "elsewhere")
  main._keep_programs(tmp_path)
  assert jax.config.values["jax_compilation_cache_dir"] == before
  monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
  try:
    main._keep_programs(tmp_path)
    found = jax.config.values["jax_compilation_cache_dir"]
  finally:
    jax.config.update("jax_compilation_cache_dir", before)
  assert found == str(tmp_path / "programs")


def test_the_flags_that_help_shows_exist() -> None:
  keys = re.findall(r"--config\.([a-z_.]+)", main._USAGE)
  assert keys
  known = {
    key.replace("/", ".")
    for c in (config(), imax_7b.get_config())
    for key in flatten(c.to_dict())
  }
  assert set(keys) <= known


def test_the_control_has_the_steps_of_the_three_stages(done: Path) -> None:
  made = Study(config(), done).ledger.inputs
  names = ("dmax-s0", "pseudo_pretrain-s0", "pseudo-s0")
  together = sum(made(f"runs/{name}")["num_steps"] for name in names)
  assert made("runs/dmax_long-s0")["num_steps"] == together
