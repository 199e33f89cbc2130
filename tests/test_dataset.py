"""From raw files to datasets by the verbs, on releases and on the open layouts."""

from __future__ import annotations

import gzip
import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from imax_jax import experiment
from imax_jax.data import builder
from imax_jax.data import interchange
from imax_jax.data import manifest
from imax_jax.data import shards
from imax_jax.data import sources
from imax_jax.data.sources.intake import Intake
from imax_jax.schema import TASKS
from tests import open_nih_layout
from tests import open_vqa_layout

ROOT = Path(__file__).parent.parent
MADE_BEFORE = "made before, of the same files and settings: nothing done"


def config(name: str, **data: object):
  made = importlib.import_module(f"configs.{name}").get_config("tiny")
  made.data.workers = 1
  made.data.update(data)
  return made


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Path:
  """A small phantom hospital's files, in PhysioNet's layout."""
  folder = tmp_path_factory.mktemp("phantom")
  experiment.run(config("phantom"), folder, ["build"], {})
  return folder / "hospital" / "files"


@pytest.fixture(scope="module")
def built(hospital: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
  folder = tmp_path_factory.mktemp("imax")
  experiment.run(config("imax_data", root=str(hospital)), folder, ["build"], {})
  return folder


def entries_of(folder: Path) -> dict[str, object]:
  return {
    entry.id: entry
    for split in builder.splits_of(folder / "data")
    for record in builder.open_split(folder / "data", split)
    for entry in record.entries
  }


def ask(folder: Path, hospital: Path, verb: str, **request: str) -> None:
  known = dict.fromkeys(("entry", "split", "style", "per_image"), "")
  asked = config("imax_data", root=str(hospital))
  experiment.run(asked, folder, [verb], known | request)


def test_every_entry_leads_back_to_its_row(built, hospital, capsys):
  said = {}
  for task in TASKS:
    entry = next(e for e in entries_of(built).values() if e.task == task)
    ask(built, hospital, "explain", entry=entry.id)
    said[task] = capsys.readouterr().out
    origin = entry.origin
    assert f"{origin.source}, {origin.file}, data row {origin.row}" in said[task]
    assert f"{origin.rule}: " in said[task]
    assert "no longer a rule" not in said[task]
    if task == "report":
      assert entry.answer not in said[task]
      assert "words, SHA-256" in said[task]
      archive = hospital / "mimic-cxr/2.1.0/mimic-cxr-reports.zip"
      digest = manifest.sha256_of(archive)
      assert f"a member of {archive.name}, SHA-256 {digest}" in said[task]
    else:
      assert entry.answer in said[task]
  folder = hospital / "cxr-cardiomegaly/1.0.0"
  digests = {manifest.sha256_of(path) for path in folder.iterdir()}
  assert any(digest in said["calculation"] for digest in digests)
  with pytest.raises(ValueError, match="no split"):
    ask(built, hospital, "explain", entry="nobody/rec/heart/0")
  with pytest.raises(experiment.UsageError, match="--entry"):
    ask(built, hospital, "explain")


def test_the_manifest_names_every_input_and_shard(built, hospital):
  found = manifest.read(built / "data")
  names = {name.rsplit("/", 1)[-1] for name in found["inputs"]}
  assert {
    "mimic-cxr-2.0.0-metadata.csv.gz", "CTRs.csv", "CPARs.csv", "labels.csv",
    "MIMIC-CXR-JPG.csv", "mimic-cxr-reports.zip", "train.json",
    "regex_report_edema_severity.csv",
  } <= names  # fmt: skip
  assert {name.split("/")[0] for name in found["shards"]} == {"imax", "dmax"}
  assert not manifest.verify(built / "data")


def test_a_build_has_the_counts_the_audit_and_a_quarantine(built):
  told = json.loads((built / "data/statistics.json").read_text())
  assert sum(told["audit"]["official_splits"]["imax_train"].values()) == 10
  assert told["audit"]["chexpert"]
  assert told["intake"]["chexmask"]["cases"]["masks lie where their landmarks do"]
  assert (built / "data/quarantine.jsonl").read_text() == ""
  assert oct((built / "data/quarantine.jsonl").stat().st_mode)[-3:] == "600"


def test_a_recipe_gives_the_very_entries_again(built, hospital, tmp_path):
  recipe = built / "data/recipe.jsonl.gz"
  again = config("imax_data", root=str(hospital), recipe=str(recipe))
  again.data.construct.seed = 99  # which the recipe makes idle
  experiment.run(again, tmp_path, ["build"], {})
  assert entries_of(tmp_path) == entries_of(built)
  lines = gzip.decompress(recipe.read_bytes()).decode()
  for entry in entries_of(built).values():
    if entry.task == "report":
      assert entry.answer not in lines


def test_other_workers_hash_seed_locale_and_zone_give_the_same_files(
  built, hospital, tmp_path
):
  code = (
    "import sys; from tests import test_dataset as t; from imax_jax import experiment;"
    "c = t.config('imax_data', root=sys.argv[1], workers=2);"
    "experiment.run(c, sys.argv[2], ['build'], {})"
  )
  env = os.environ | {
    "PYTHONHASHSEED": "7", "LC_ALL": "C", "TZ": "Asia/Tokyo", "JAX_PLATFORMS": "cpu"
  }  # fmt: skip
  command = [sys.executable, "-c", code, str(hospital), str(tmp_path)]
  subprocess.run(command, check=True, env=env, cwd=ROOT, capture_output=True)
  for name in ("manifest.json", "images.sha256", "recipe.jsonl.gz"):
    assert (tmp_path / "data" / name).read_bytes() == (
      built / "data" / name
    ).read_bytes()


def test_select_needs_no_image_and_says_the_counts(hospital, tmp_path, capsys):
  asked = config("imax_data", root=str(hospital))
  asked.data.options.mimic_cxr_jpg.require_images = False
  experiment.run(asked, tmp_path, ["select"], {})
  text = capsys.readouterr().out
  assert "354,595" in text  # the paper's
  assert "left out: Dice RCA below the gate" in text
  assert not (tmp_path / "data").exists()
  assert "not to be published" in text and "selection: made\n" in text
  # The same again: the same lines, and nothing is done.
  experiment.run(asked, tmp_path, ["select"], {})
  again = capsys.readouterr().out
  assert again == text.replace(": made\n", f": {MADE_BEFORE}\n")
  recipe = gzip.decompress((tmp_path / "selection/recipe.jsonl.gz").read_bytes())
  line = next(x for x in map(json.loads, recipe.splitlines()[1:]) if x["task"] == "rec")
  experiment.run(asked, tmp_path, ["explain"], {"entry": line["id"]})
  chain = capsys.readouterr().out
  masks = hospital / "chexmask-cxr-segmentation-data/1.0.0" / line["file"]
  assert f"chexmask, {line['file']}, data row {line['row']}" in chain
  assert f"SHA-256 {manifest.sha256_of(masks)}" in chain
  with pytest.raises(ValueError, match="no entry 'nobody/rec/heart/0'"):
    experiment.run(asked, tmp_path, ["explain"], {"entry": "nobody/rec/heart/0"})


def test_a_split_that_is_not_built_is_refused_with_those_that_are(built, hospital):
  with pytest.raises(FileNotFoundError, match="there are dmax_train, imax_test, imax_"):
    ask(built, hospital, "export", split="core_train", style="messages")


@pytest.mark.parametrize("style", ["llava", "conversations", "messages"])
def test_an_export_comes_back_whole(built, hospital, style, capsys):
  ask(
    built, hospital, "export", split="imax_train", style=style, per_image="yes"
  )  # fmt: skip
  folder = built / "export" / style
  path = folder / f"imax_train.json{'' if style == 'llava' else 'l'}"
  back = list(interchange.import_jsonl(path, folder / "images"))
  there = list(builder.open_split(built / "data", "imax_train"))
  assert [r.entries for r in back] == [r.entries for r in there]
  assert "10 conversations" in capsys.readouterr().out


def test_unreadable_images_are_listed_and_done_without(hospital, tmp_path, caplog):
  files = damage(hospital, tmp_path, 0.0)
  images = sorted((files / "mimic-cxr-jpg/2.1.0/files").rglob("*.jpg"))
  asked = config("imax_data", root=str(files), max_quarantined=0.2)
  experiment.run(asked, tmp_path / "work", ["build"], {})
  used = {r.image_id for s in builder.splits_of(tmp_path / "work/data")
          for r in builder.open_split(tmp_path / "work/data", s)}  # fmt: skip
  broken = [path for path in images if path.stem in used][::15]
  for path in broken:
    path.write_bytes(b"\xff\xd8 a secret sentence")
  experiment.run(asked, tmp_path / "again", ["build"], {})
  lines = [
    json.loads(line)
    for line in (tmp_path / "again/data/quarantine.jsonl").read_text().splitlines()
  ]
  assert {Path(line["file"]).stem for line in lines} == {p.stem for p in broken}
  assert all(line["source"] == "mimic_cxr_jpg" for line in lines)
  assert "secret" not in json.dumps(lines) + caplog.text
  told = json.loads((tmp_path / "again/data/statistics.json").read_text())
  assert sum(told["intake"]["mimic_cxr_jpg"]["rejected"].values()) == len(broken)
  # As if they had never been there.
  for path in broken:
    path.unlink()
  experiment.run(asked, tmp_path / "never", ["build"], {})
  assert entries_of(tmp_path / "never") == entries_of(tmp_path / "again")
  for path in broken:
    path.write_bytes(b"")
  asked.data.max_quarantined = 0.0
  with pytest.raises(ValueError, match=rf"mimic_cxr_jpg: {len(broken)} rejected of"):
    experiment.run(asked, tmp_path / "strict", ["build"], {})


def inodes(folder: Path) -> dict[str, int]:
  """Of the shards: which files they are."""
  found = (folder / "data").rglob("*.array_record-*-of-?????")
  return {path.name: path.stat().st_ino for path in found}


def test_a_stopped_build_goes_on(hospital, built, tmp_path, monkeypatch):
  asked = config("imax_data", root=str(hospital))
  write, written = shards.write_shard, []

  def stop(shard, *rest, **options):
    if len(written) == 2:
      raise KeyboardInterrupt
    written.append(shard.name)
    return write(shard, *rest, **options)

  monkeypatch.setattr(shards, "write_shard", stop)
  with pytest.raises(KeyboardInterrupt):
    experiment.run(asked, tmp_path, ["build"], {})
  monkeypatch.setattr(shards, "write_shard", write)
  assert not (tmp_path / "data/imax").exists()
  kept = inodes(tmp_path)
  assert len(kept) == 2
  experiment.run(asked, tmp_path, ["build"], {})
  assert kept.items() <= inodes(tmp_path).items()
  for name in ("manifest.json", "images.sha256", "recipe.jsonl.gz"):
    assert (tmp_path / "data" / name).read_bytes() == (
      built / "data" / name
    ).read_bytes()


def test_files_are_private_in_a_folder_that_is_not(hospital, tmp_path):
  tmp_path.chmod(0o755)
  experiment.run(config("imax_data", root=str(hospital)), tmp_path, ["select"], {})
  for path in [*tmp_path.rglob("*")]:
    assert path.stat().st_mode & 0o077 == 0, path


def damage(hospital: Path, folder: Path, share: float) -> Path:
  """A copy of the hospital with so many rows of CTRs.csv spoilt."""
  copy = folder / "files"
  shutil.copytree(hospital, copy)
  path = copy / "cxr-cardiomegaly/1.0.0/CTRs.csv"
  header, *rows = path.read_text().splitlines()
  for row in range(round(share * len(rows))):
    rows[row] = "a secret sentence"
  path.write_text("\n".join([header, *rows]) + "\n")
  return copy


def test_too_many_rejected_rows_end_the_build_and_are_listed(hospital, tmp_path):
  files = damage(hospital, tmp_path, 0.3)
  spoilt = config("imax_data", root=str(files))
  spoilt.data.options.mimic_cxr_jpg.require_images = False
  with pytest.raises(ValueError, match=r"cardiomegaly: \d+ rejected of") as caught:
    experiment.run(spoilt, tmp_path / "work", ["select"], {})
  assert "secret" not in str(caught.value)
  lines = (tmp_path / "work/quarantine.jsonl").read_text().splitlines()
  assert len(lines) > 5
  assert {json.loads(line)["file"] for line in lines} == {"CTRs.csv"}
  assert "secret" not in "".join(lines)
  spoilt.data.max_quarantined = 0.5
  experiment.run(spoilt, tmp_path / "work", ["select"], {})
  spoilt.data.max_quarantined = 0.01  # what is made already is looked at again
  with pytest.raises(ValueError, match=r"cardiomegaly: \d+ rejected of"):
    experiment.run(spoilt, tmp_path / "work", ["select"], {})
  kept = json.loads((tmp_path / "work/selection/statistics.json").read_text())
  assert sum(kept["intake"]["cardiomegaly"]["rejected"].values()) == len(lines)


def test_a_changed_table_is_noticed(hospital, tmp_path, capsys):
  files = damage(hospital, tmp_path, 0.0)
  asked = config("imax_data", root=str(files))
  asked.data.options.mimic_cxr_jpg.require_images = False
  experiment.run(asked, tmp_path / "work", ["select"], {})
  capsys.readouterr()
  experiment.run(asked, tmp_path / "work", ["select"], {})
  assert MADE_BEFORE in capsys.readouterr().out
  path = files / "cxr-cardiomegaly/1.0.0/CTRs.csv"
  path.write_text(path.read_text() + "\n")
  experiment.run(asked, tmp_path / "work", ["select"], {})
  assert MADE_BEFORE not in capsys.readouterr().out


@pytest.mark.parametrize(
  ("gone", "kept"), [("split", "chexpert"), ("chexpert", "official_splits")]
)
def test_each_check_is_made_with_the_tables_that_are_there(
  hospital, tmp_path, gone, kept
):
  files = damage(hospital, tmp_path, 0.0)
  (files / f"mimic-cxr-jpg/2.1.0/mimic-cxr-2.0.0-{gone}.csv.gz").unlink()
  asked = config("imax_data", root=str(files))
  experiment.run(asked, tmp_path / "work", ["select"], {})
  told = json.loads((tmp_path / "work/selection/statistics.json").read_text())
  assert [name for name, found in told["audit"].items() if found] == [kept]
  cases = told["intake"]["mimic_cxr_jpg checks"]["cases"]
  assert "not there: nothing to check against" in cases.values()


def test_a_recipe_of_other_settings_is_refused_by_their_name(built, hospital, tmp_path):
  asked = config("imax_data", root=str(hospital))
  asked.data.recipe = str(built / "data/recipe.jsonl.gz")
  asked.data.boxes.order = "yx"
  with pytest.raises(experiment.UsageError, match=r"boxes\.order='xy' \(here 'yx'\)"):
    experiment.run(asked, tmp_path, ["select"], {})


def test_an_absent_source_is_named_and_may_be_done_without(hospital, tmp_path):
  files = damage(hospital, tmp_path, 0.0)
  (files / "cxr-cardiomegaly/1.0.0").rename(files / "cxr-cardiomegaly/0.9")
  asked = config("imax_data", root=str(files))
  asked.data.options.mimic_cxr_jpg.require_images = False
  with pytest.raises(FileNotFoundError, match=r"cardiomegaly \(cxr-cardiomegaly/1.0.0"):
    experiment.run(asked, tmp_path / "work", ["select"], {})
  asked.data.without = ("cardiomegaly",)
  experiment.run(asked, tmp_path / "work", ["select"], {})
  told = json.loads((tmp_path / "work/selection/statistics.json").read_text())
  assert told["splits"]["imax"]["entries_per_task"]["calculation"] == 0


@pytest.mark.parametrize(
  ("key", "value", "message"),
  [
    ("recipe", "/nowhere", "no such file"), ("geometry", "bend", "geometry"),
    ("boxes.order", "zz", "boxes.order"), ("boxes.scale", -5, "boxes.scale"),
    ("construct.split_unit", "ward", "split_unit"),
    ("max_quarantined", 3.0, "max_quarantined"),
    ("max_report_words", -5, "max_report_words"), ("workers", -3, "workers"),
    ("without", ("chexmas",), "no source 'chexmas'"),
    ("construct.min_tasks", 9, "min_tasks 9: expected 1 to 7"),
    ("construct.train_fraction", 1.5, "train_fraction"), ("construct.seed", -1, "seed"),
    ("options.chexmask.min_dice", 7.0, "options.chexmask: min_dice=7.0"),
    ("options.mimic_cxr.text", "foo", "options.mimic_cxr: .*text"),
    ("options.cxr_lt.release", "2025", "options.cxr_lt: .*release"),
    ("construct.controls", ("other",), "controls"),
  ],
)  # fmt: skip
def test_a_wrong_choice_is_refused_before_anything_is_read(
  hospital, tmp_path, monkeypatch, key, value, message
):
  def read(*_: object, **__: object) -> None:
    raise AssertionError("files are read")

  monkeypatch.setattr(sources, "read_radiographs", read)
  asked = config("imax_data", root=str(hospital))
  asked.data.update_from_flattened_dict({key: value})
  with pytest.raises(experiment.UsageError, match=message):
    experiment.run(asked, tmp_path, ["select"], {})


def test_pixels_are_those_of_the_stored_picture(hospital, tmp_path):
  asked = config("imax_data", root=str(hospital), image_px=32, geometry="pad")
  asked.data.boxes.scale = 0
  experiment.run(asked, tmp_path, ["build"], {})
  for entry in entries_of(tmp_path).values():
    if entry.task == "rec":
      assert entry.target.scale == (32, 32)


def test_another_recipe_file_is_noticed(built, hospital, tmp_path):
  recipe = tmp_path / "recipe.jsonl.gz"
  shutil.copy(built / "data/recipe.jsonl.gz", recipe)
  asked = config("imax_data", root=str(hospital), recipe=str(recipe))
  experiment.run(asked, tmp_path / "work", ["select"], {})
  other = config("imax_data", root=str(hospital))
  other.data.construct.seed = 5
  experiment.run(other, tmp_path / "other", ["select"], {})
  shutil.copy(tmp_path / "other/selection/recipe.jsonl.gz", recipe)
  experiment.run(asked, tmp_path / "work", ["select"], {})
  found = (tmp_path / "work/selection/recipe.jsonl.gz").read_bytes()
  assert found == recipe.read_bytes()
  assert found != (built / "data/recipe.jsonl.gz").read_bytes()


def test_max_quarantined_is_a_share():
  with pytest.raises(ValueError, match="0 to 1"):
    Intake(max_quarantined=3)


def test_boxes_in_pixels_and_padded_pictures(hospital, tmp_path):
  asked = config("imax_data", root=str(hospital))
  asked.data.boxes.update({"order": "yx", "scale": 0})
  experiment.run(asked, tmp_path / "yx", ["build"], {})
  plain = config("imax_data", root=str(hospital), image_px=32, geometry="pad")
  experiment.run(plain, tmp_path / "pad", ["build"], {})
  regions = [e.target for e in entries_of(tmp_path / "yx").values() if e.task == "rec"]
  assert {(r.order, r.scale) for r in regions} == {("yx", (64, 64))}
  record = builder.open_split(tmp_path / "pad/data", "imax_train")[0]
  assert record.image.startswith(b"\x89PNG")
  with pytest.raises(experiment.UsageError, match="thousandths"):
    experiment.run(asked, tmp_path / "yx", ["pseudo"], {})
  with pytest.raises(experiment.UsageError, match="image_px"):
    experiment.run(
      config("imax_data", root=str(hospital), geometry="pad"), tmp_path / "x",
      ["build"], {},
    )  # fmt: skip


def write_masks(files: Path, images: list[str]) -> None:
  """CheXmask's NIH part for 1024 x 1024 pixels: lungs 200 px wide, a heart of 240."""

  def runs(x: int, width: int, top: int, bottom: int) -> str:
    return " ".join(f"{1024 * y + x + 1} {width}" for y in range(top, bottom))

  organs = [
    runs(560, 200, 200, 800),
    runs(240, 200, 200, 800),
    runs(400, 240, 500, 750),
  ]
  header = (
    "Image Index,Dice RCA (Mean),Dice RCA (Max),Landmarks,Left Lung,Right Lung,Heart,"
    "Height,Width\n"
  )
  marks = ",".join(["5"] * 240)
  path = files / "chexmask_nih/OriginalResolution/ChestX-Ray8.csv"
  path.parent.mkdir(parents=True)
  rows = [
    f'{image}.png,0.9,0.95,"{marks}",{",".join(organs)},1024,1024\n' for image in images
  ]
  path.write_text(header + "".join(rows))


def test_ratios_come_from_chexmasks_masks_of_nih(tmp_path):
  images = open_nih_layout.write_nih(tmp_path / "nih", 3)
  write_masks(tmp_path, images)
  roots = {name: tmp_path / name for name in ("nih", "chexmask_nih")}
  found = list(sources.read_all(roots, sources.read_radiographs(roots)))
  said = {
    (a.image_id, a.subtask): a.target.value for a in found if a.task == "calculation"
  }
  # The lungs reach from 240 to 760.
  assert said == {
    (image, kind): value
    for image in images
    for kind, value in (("ctr", 240 / 520), ("cpar", 240 * 250 / (2 * 200 * 600)))
  }
  boxes = {a.subtask: a.target.box for a in found if a.task == "rec"}
  assert boxes["heart"] == (400 / 1024, 500 / 1024, 640 / 1024, 750 / 1024)


def test_the_open_route_builds_from_the_original_layouts(tmp_path, capsys):
  files = tmp_path / "files"
  write_masks(files, open_nih_layout.write_nih(files / "nih", 40))
  open_nih_layout.write_openi(files / "openi", 6)
  for name in ("vqa_rad", "slake", "vindr", "jsrt", "montgomery", "shenzhen"):
    getattr(open_vqa_layout, f"write_{name}")(files / name)
  asked = config("open_cxr_public", root=str(files))
  asked.data.construct.min_tasks = 2
  experiment.run(asked, tmp_path / "work", ["build"], {})
  told = json.loads((tmp_path / "work/data/statistics.json").read_text())
  used = {entry.origin.source for entry in entries_of(tmp_path / "work").values()}
  assert {"nih", "montgomery"} <= used
  for name in ("nih", "chexmask_nih", "openi", "vqa_rad", "slake", "vindr", "jsrt", "montgomery",
               "shenzhen"):  # fmt: skip
    assert told["intake"][name]["kept"] > 0, name
    assert not told["intake"][name]["rejected"], name
  roots = {name: files / name for name in ("jsrt", "montgomery")}
  found = sources.read_all(roots, sources.read_radiographs(roots))
  assert {a.subtask for a in found if a.task == "calculation"} == {"ctr", "cpar"}
