"""What a run hands out: bundles and merged decoders, whole or not at all."""

from __future__ import annotations

import gc
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import phantom
from imax_jax import deliver
from imax_jax import publication
from imax_jax import tree
from imax_jax.data import records
from imax_jax.data import tokenizer as tokenizer_lib
from imax_jax.ledger import plain
from imax_jax.parameters import Parameters
from imax_jax.study import Study
from imax_jax.study import UsageError
from imax_jax.train import snapshots
from imax_jax.weights import bundle
from imax_jax.weights import export
from imax_jax.weights import load
from imax_jax.weights import peft as adapters

RUN = "runs/imax-s0"


class Killed(BaseException):
  """As a signal would: nothing catches it."""


def config(foundation: Path, **changes: Any) -> ConfigDict:
  c = phantom.get_config("tiny")
  c.foundation = str(foundation)
  c.update_from_flattened_dict(changes)
  return c


@pytest.fixture(scope="module")
def foundation(tmp_path_factory: pytest.TempPathFactory) -> Path:
  """Drawn weights of the tiny model, and a tokenizer."""
  folder = tmp_path_factory.mktemp("base")
  made = tokenizer_lib.train_tokenizer(records.fixed_phrases(), 400)
  tokenizer_lib.save(made, folder / "tokenizer.json")
  c = config(folder)
  c.foundation = ""
  params = Study(c, folder / "scratch").parameters.init(3)
  flat = {p: x for p, x in tree.flatten(params).items() if "/lora_" not in p}
  load.save_params(folder / "foundation.safetensors", flat)
  return folder


@pytest.fixture(scope="module")
def done(foundation: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
  """A work directory with a run, as training leaves it, and its bundle."""
  workdir = tmp_path_factory.mktemp("study")
  study = Study(config(foundation), workdir)
  trainable, _ = study.parameters.split(0)
  noisy = tree.map_paths(
    lambda path, leaf: jax.device_put(
      leaf + 0.1 * jax.random.normal(jax.random.key(len(path)), leaf.shape),
      leaf.sharding,
    ),
    trainable,
  )
  snapshots.save(workdir / RUN, "final", noisy)
  inputs = {
    "model": plain(study.config.model),
    "trainable": plain(study.config.trainable),
    "prompt": plain(study.config.prompt),
    "foundation": study.parameters.digest,
    "seed": 0,
    "num_steps": 8,
    "split": "imax_train",
    "data": "0123456789abcdef",
  }
  (workdir / RUN / "station.json").write_text(json.dumps({"inputs": inputs}))
  deliver.bundle(study, {"checkpoint": str(workdir / RUN)})
  return workdir


@pytest.fixture(scope="module")
def asking(done: Path, foundation: Path) -> Study:
  """A study that only reads: its model's shapes are worked out once."""
  return Study(config(foundation), done)


@pytest.fixture
def copied(done: Path, tmp_path: Path) -> Path:
  """The bundle alone, where it may be damaged."""
  return Path(shutil.copytree(done / "bundles" / "imax-s0", tmp_path / "bundle"))


def equal(one: Any, other: Any) -> None:
  one, other = tree.flatten(one), tree.flatten(other)
  assert one.keys() == other.keys()
  for path, leaf in one.items():
    np.testing.assert_array_equal(leaf, other[path], err_msg=path)
    assert leaf.dtype == other[path].dtype
    assert leaf.sharding == other[path].sharding


def test_a_bundle_is_the_run(done: Path, copied: Path, foundation: Path) -> None:
  """Elsewhere too, and computed in another way."""
  study = Study(config(foundation), done)
  changed = config(foundation)
  changed.model.decoder.lora_dropout = 0.5
  changed.model.decoder.remat = "inputs"
  elsewhere = Study(changed, copied.parent / "other")
  equal(
    deliver.weights_from(study, done / RUN), deliver.weights_from(elsewhere, copied)
  )
  names = {path.name for path in copied.iterdir()}
  assert names == {
    bundle.RECORD, bundle.CARD, bundle.CONNECTOR, bundle.TOKENIZER, adapters.WEIGHTS,
    adapters.SETTINGS,
  }  # fmt: skip
  record = (copied / bundle.RECORD).read_text()
  assert str(foundation.parent) not in record + (copied / bundle.CARD).read_text()
  assert copied.stat().st_mode & 0o077 == 0


def test_a_drawn_base_has_the_bundles_tokenizer(done: Path, copied: Path) -> None:
  """Without a foundation nothing need be built where the bundle is used."""
  study = Study(config(Path()), copied.parent / "elsewhere")
  study.config.foundation = ""
  edit_record("foundation", value={"digest": "none", "name": ""})(copied)
  assert study.parameters.foundation is None
  equal(
    deliver.weights_from(study, copied),
    deliver.weights_from(Study(study.config, done), copied),
  )
  assert study.tokenizer.get_vocab()
  assert not list(study.workdir.glob("tokenizer*"))


def test_the_card_says_who_may_have_it(done: Path, foundation: Path) -> None:
  card = (done / "bundles/imax-s0" / bundle.CARD).read_text()
  assert "not for clinical use" in card
  assert "patients that do not exist" in card
  changed = config(foundation, **{"data.source": "physionet"})
  study = Study(changed, done)
  study.workdir = done.parent / "credentialed"
  deliver.bundle(study, {"checkpoint": str(done / RUN)})
  card = (study.workdir / "bundles/imax-s0" / bundle.CARD).read_text()
  assert "credentialed PhysioNet data" in card
  assert "same\nagreement" in card or "same agreement" in card


def test_peft_loads_the_folder(done: Path, foundation: Path, tmp_path: Path) -> None:
  """The merged base with the bundle's adapter is the merged decoder."""
  torch = pytest.importorskip("torch", reason="PEFT runs on it")
  peft = pytest.importorskip("peft", reason="it is what loads the folder")
  transformers = pytest.importorskip("transformers", reason="the base decoder's")
  study = Study(config(foundation), done)
  _, frozen = study.parameters.split(0)
  fields = plain(study.config.model.decoder)
  export.write_merged(tmp_path, tree.flatten(frozen), fields, dtype="float32")
  base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
  model = peft.PeftModel.from_pretrained(base, done / "bundles/imax-s0")
  ids = np.arange(10, dtype=np.int32)[None] * 7
  with torch.no_grad():
    got = model.eval()(torch.from_numpy(ids).long()).logits.numpy()
  trained = deliver.weights_from(study, done / RUN)
  params = tree.merge(trained, frozen)["decoder"]
  want = deliver._logits(fields, params, ids)
  np.testing.assert_allclose(got, want, atol=2e-5 * np.abs(want).max(), rtol=0)


@pytest.mark.parametrize("dtype", ["", "float32"])
def test_merge_says_how_far_it_is_off(
  done: Path, foundation: Path, capsys: pytest.CaptureFixture[str], dtype: str
) -> None:
  study = Study(config(foundation), done)
  folder = done / ("bundles/imax-s0" if dtype else RUN)
  deliver.merge(study, {"checkpoint": str(folder), "dtype": dtype})
  words = capsys.readouterr().out.split()
  assert "1 shards," in " ".join(words)
  difference = float(words[words.index("difference") + 1])
  largest = float(words[words.index("difference") + 3])
  assert difference < (2e-5 if dtype else 0.05) * largest
  assert difference > (0 if dtype else 1e-4) * largest or dtype
  merged = done / "merged/imax-s0"
  assert (merged / "tokenizer.json").is_file()
  held = json.loads((merged / export.INDEX).read_text())["metadata"]["total_size"]
  assert f"{held:,}" in words
  assert not list(merged.parent.glob(".*"))


def test_a_run_is_bundled_without_its_base(
  done: Path, foundation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  """Gigabytes are not read for what an adapter's megabytes say."""
  monkeypatch.setattr(Parameters, "given", property(lambda self: pytest.fail("read")))
  monkeypatch.setattr(Parameters, "init", lambda self, seed: pytest.fail("drawn"))
  study = Study(config(foundation), tmp_path)
  deliver.bundle(study, {"checkpoint": str(done / RUN)})
  assert (tmp_path / "bundles/imax-s0" / bundle.RECORD).is_file()


@pytest.mark.parametrize("folder", [RUN, "bundles/imax-s0"])
def test_two_models_are_never_in_memory(
  done: Path, foundation: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
  """When the merged decoder is read back, the one it was made of is gone."""
  leaves = tree.flatten(Study(config(foundation), done).parameters.abstract)
  kernels = {leaf.shape for path, leaf in leaves.items() if leaf.ndim > 1}

  def alive() -> int:
    gc.collect()
    return sum(array.shape in kernels for array in jax.live_arrays())

  before, held, real = alive(), [], export.read_merged

  def read(*args: Any) -> Any:
    held.append(alive() - before)
    return real(*args)

  monkeypatch.setattr(export, "read_merged", read)
  study = Study(config(foundation), done)
  deliver.merge(study, {"checkpoint": str(done / folder)})
  assert held == [0]


# ── in the files of a published system ────────────────────────────────────────────


def published(c: ConfigDict, layout: str, **more: str) -> ConfigDict:
  c.publish = {"encoder": "", "decoder": "", "base": "", "layout": layout} | more
  return c


def test_published_without_its_base(
  done: Path, foundation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
  capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
  """A file of connector and LoRA needs nothing else; a bundle has them too."""
  pytest.importorskip("torch", reason="what is published is read back by it")
  monkeypatch.setattr(Parameters, "given", property(lambda self: pytest.fail("read")))
  monkeypatch.setattr(Parameters, "init", lambda self, seed: pytest.fail("drawn"))
  study = Study(published(config(foundation), "minigpt"), tmp_path)
  for folder in (RUN, "bundles/imax-s0"):
    publication.publish(study, {"checkpoint": str(done / folder)})
    said = capsys.readouterr().out
    assert "layout minigpt, 32 tensors" in said and "read back equal" in said
  out = tmp_path / "published/imax-s0"
  assert {path.name for path in out.iterdir()} == {
    "checkpoint_0.pth", publication.CARD, publication.RECORD
  }  # fmt: skip
  record = json.loads((out / publication.RECORD).read_text())
  bundle.digests.check(
    out / "checkpoint_0.pth", record["files"]["checkpoint_0.pth"], ""
  )
  card = (out / publication.CARD).read_text()
  assert "not for clinical use" in card and "patients that do not exist" in card


def test_published_whole(
  done: Path, foundation: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
  """The decoder with its adapter added in is the one that `merge` writes."""
  c = published(config(foundation), "llava", encoder="its/tower", decoder="its/words")
  study = Study(c, tmp_path)
  asked = {"checkpoint": str(done / RUN), "dtype": "float32"}
  publication.publish(study, asked)
  assert "layout llava" in capsys.readouterr().out
  out = tmp_path / "published/llava-imax-s0"
  assert (out / "tokenizer.json").is_file()
  said = json.loads((out / "config.json").read_text())
  assert said["mm_vision_tower"] == "its/tower" and said["dtype"] == "float32"
  assert said["eos_token_id"] == study.tokenizer.eos_token_id
  deliver.merge(study, asked)
  folders = (out, tmp_path / "merged/imax-s0")
  held, merged = (
    load.load_params(next(folder.glob("*.safetensors"))) for folder in folders
  )
  projector = {name for name in held if "mm_projector" in name}
  assert len(projector) == 4 and held.keys() - projector == merged.keys()
  for name, tensor in merged.items():
    np.testing.assert_array_equal(held[name], tensor, err_msg=name)


def test_added_tokens_are_in_a_tokenizer_that_goes_out(
  done: Path, foundation: Path, tmp_path: Path
) -> None:
  base = tmp_path / "base"
  made = tokenizer_lib.train_tokenizer(records.fixed_phrases(), 399)
  tokenizer_lib.save(made, base / "tokenizer.json")
  shutil.copy(foundation / "foundation.safetensors", base)
  c = published(config(base), "llava", encoder="tower", decoder="words")
  c.added_tokens = ("<im_start>",)
  study = Study(c, tmp_path)
  run = Path(shutil.copytree(done / RUN, tmp_path / RUN))
  mark = json.loads((run / "station.json").read_text())
  mark["inputs"] |= {"prompt": study.prompt, "foundation": study.parameters.digest}
  (run / "station.json").write_text(json.dumps(mark))
  publication.publish(study, {"checkpoint": str(run)})
  deliver.merge(study, {"checkpoint": str(run)})
  number = study.tokenizer.get_vocab()["<im_start>"]
  for name in ("published/llava-imax-s0", "merged/imax-s0"):
    out = tmp_path / name
    assert tokenizer_lib.load(out).get_vocab() == study.tokenizer.get_vocab()
    said = json.loads((out / "added_tokens.json").read_text())
    assert said == {"<im_start>": number}


def test_publish_refuses_before_it_reads(
  done: Path, foundation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  monkeypatch.setattr(Parameters, "given", property(lambda self: pytest.fail("read")))
  asked = {"checkpoint": str(done / RUN)}
  with pytest.raises(UsageError, match=r"publish.layout to one of .*llava, .*minigpt"):
    publication.publish(Study(published(config(foundation), ""), tmp_path), asked)
  with pytest.raises(UsageError, match="publish needs --checkpoint"):
    publication.publish(Study(published(config(foundation), "llava"), tmp_path), {})
  with pytest.raises(ValueError, match=r"com_hlora_weights|healthgpt has no name"):
    publication.publish(
      Study(published(config(foundation), "healthgpt"), tmp_path), asked
    )
  changed = published(config(foundation, **{"model.decoder.lora_alpha": 3.0}), "llava")
  with pytest.raises(ValueError, match=r"config \(model.decoder.lora_alpha\)"):
    publication.publish(Study(changed, tmp_path), asked)
  assert not list(tmp_path.rglob("*.safetensors"))


# ── what is refused ───────────────────────────────────────────────────────────────


def truncate(folder: Path) -> None:
  path = folder / adapters.WEIGHTS
  path.write_bytes(path.read_bytes()[:-4])


def flip(folder: Path) -> None:
  path = folder / bundle.CONNECTOR
  data = bytearray(path.read_bytes())
  data[-1] ^= 1
  path.write_bytes(bytes(data))


def edit_settings(folder: Path) -> None:
  path = folder / adapters.SETTINGS
  path.write_text(path.read_text().replace("16.0", "32.0"))


def lose(folder: Path) -> None:
  (folder / bundle.CONNECTOR).unlink()


def edit_record(*keys: str, value: Any) -> Any:
  def edit(folder: Path) -> None:
    record = node = json.loads((folder / bundle.RECORD).read_text())
    for key in keys[:-1]:
      node = node[key]
    node[keys[-1]] = value
    (folder / bundle.RECORD).write_text(json.dumps(record))

  return edit


def rename(file: str, old: str, new: str) -> Any:
  """Also in the record, as a careful hand would."""

  def edit(folder: Path) -> None:
    held = load.load_params(folder / file)
    load.save_params(
      folder / file, {name.replace(old, new): x for name, x in held.items()}
    )
    edit_record("files", file, value=bundle.digests.describe(folder / file))(folder)

  return edit


@pytest.mark.parametrize(
  ("damage", "message"),
  [
    (truncate, r"adapter_model.safetensors: was changed .*expected .*found"),
    (flip, r"connector.safetensors: was changed"),
    (edit_settings, r"adapter_config.json: was changed"),
    (lose, r"connector.safetensors: missing"),
    (edit_record("format", value=2), r"bundle.json: format 2, expected 1"),
    (edit_record("files", value=[]), r"bundle.json: format 1"),
    (edit_record("files", "../x", value={}), r"'../x' is no file of this folder"),
    (edit_record("files", value={}), r"adapter_model.*expected by the config and not"),
    (
      rename(adapters.WEIGHTS, "1.mlp.up_proj", "1.mlp.uq_proj"),
      r"(?s)unexpected .*uq_proj.*missing .*up_proj",
    ),
    (
      rename(bundle.CONNECTOR, "dense_0/b", "dense_0/c"),
      r"(?s)connector.safetensors does not fit.*missing .*dense_0/bias.*unexpected",
    ),
    (lambda folder: (folder / bundle.RECORD).write_text("{"), r"bundle.json: not read"),
  ],
)
def test_damaged_bundles_are_refused(
  copied: Path, asking: Study, damage: Any, message: str
) -> None:
  damage(copied)
  with pytest.raises((ValueError, FileNotFoundError), match=message):
    deliver.weights_from(asking, copied)


def test_a_bundle_is_loaded_that_is_older_than_a_field(
  copied: Path, asking: Study
) -> None:
  want = deliver.weights_from(asking, copied)
  record = json.loads((copied / bundle.RECORD).read_text())
  assert record["model"]["decoder"].pop("lora_experts") == 0
  edit_record("model", value=record["model"])(copied)
  equal(deliver.weights_from(asking, copied), want)


@pytest.mark.parametrize(
  ("key", "value", "message"),
  [
    ("model.decoder.lora_rank", 4, r"model/decoder/lora_rank: 8, expected 4"),
    ("model.decoder.rope_base", 5e5, r"rope_base: 10000.0, expected 500000.0"),
    ("model.connector.depth", 1, r"model/connector/depth: 2, expected 1"),
    ("prompt.legacy", True, r"prompt/legacy: False, expected True"),
    ("data.boxes.order", "yx", r"boxes/order: 'xy', expected 'yx'"),
    ("data.geometry", "pad", r"image/geometry: 'stretch', expected 'pad'"),
    ("image.geometry", "crop", r"image/eye/geometry: 'nothing', expected 'crop'"),
  ],
)
def test_other_configs_are_refused(
  copied: Path, foundation: Path, key: str, value: Any, message: str
) -> None:
  study = Study(config(foundation, **{key: value}), copied.parent / "other")
  with pytest.raises(ValueError, match=message):
    deliver.weights_from(study, copied)


def test_another_foundation_is_refused(
  copied: Path, done: Path, foundation: Path, tmp_path: Path
) -> None:
  other = Path(shutil.copytree(foundation, tmp_path / "base"))
  held = load.load_params(other / "foundation.safetensors")
  held["decoder/norm/scale"][0] += 1
  load.save_params(other / "foundation.safetensors", held)
  study = Study(config(other), tmp_path / "other")
  with pytest.raises(ValueError, match=r"bundle.json .*\n +foundation/digest: "):
    deliver.weights_from(study, copied)
  for verb in (deliver.bundle, deliver.merge):
    with pytest.raises(ValueError, match="trained (on|with) another"):
      verb(study, {"checkpoint": str(done / RUN)})


def test_the_same_base_from_elsewhere_is_the_same(
  copied: Path, foundation: Path, tmp_path: Path
) -> None:
  """Converted from other files, under another name, and computed in another way."""
  other = Path(shutil.copytree(foundation, tmp_path / "renamed"))
  said = bundle.digests.describe(other / "foundation.safetensors")
  sources = [{"part": "decoder", "name": "elsewhere", "files": []}]
  (other / "foundation.json").write_text(
    json.dumps({"foundation": said, "sources": sources, "model": {"dtype": "other"}})
  )
  how = {"model.decoder.dtype": "bfloat16", "model.decoder.fold": False}
  changed = config(other, **how)
  assert deliver.weights_from(Study(changed, tmp_path / "there"), copied)


def test_an_edited_card_is_fine(copied: Path, asking: Study) -> None:
  (copied / bundle.CARD).write_text("mine")
  assert deliver.weights_from(asking, copied)


def test_what_is_no_run_is_refused(done: Path, foundation: Path) -> None:
  study = Study(config(foundation), done)
  for verb in (deliver.bundle, deliver.merge):
    with pytest.raises(UsageError, match="needs --checkpoint"):
      verb(study, {"checkpoint": ""})
    with pytest.raises(FileNotFoundError):
      verb(study, {"checkpoint": str(done / "runs" / "dmax-s0")})
  changed = config(foundation, **{"model.decoder.lora_alpha": 3.0})
  for use in (
    lambda study: deliver.bundle(study, {"checkpoint": str(done / RUN)}),
    lambda study: deliver.merge(study, {"checkpoint": str(done / RUN)}),
    lambda study: deliver.weights_from(study, done / RUN),
  ):
    with pytest.raises(ValueError, match=r"config \(model.decoder.lora_alpha\)"):
      use(Study(changed, done))


def test_a_trained_base_is_in_no_bundle(tmp_path: Path, foundation: Path) -> None:
  study = Study(config(foundation), tmp_path)
  with pytest.raises(ValueError, match=r"decoder/embed/embedding.* were trained"):
    bundle.write_bundle(
      tmp_path, study.parameters.abstract, plain(study.config.model), {},
      tokenizer=foundation / "tokenizer.json", card="",
    )  # fmt: skip


# ── whole or not at all ───────────────────────────────────────────────────────────


@pytest.mark.parametrize("verb", ["bundle", "merge", "publish"])
def test_killed_in_the_middle_nothing_looks_finished(
  done: Path, foundation: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
  folder = done.parent / f"killed-{verb}"
  c = published(config(foundation), "llava")
  study = Study(c, folder)
  asked: dict[str, str | None] = {"checkpoint": str(done / RUN), "dtype": ""}
  run = {
    "bundle": deliver.bundle, "merge": deliver.merge, "publish": publication.publish
  }[verb]  # fmt: skip
  module: Any = {"bundle": bundle, "merge": export, "publish": export}[verb]
  real = module.write_json

  def killed(path: Path, value: Any) -> None:
    assert path.parent.is_dir() and any(path.parent.glob("*.safetensors"))
    raise Killed

  monkeypatch.setattr(module, "write_json", killed)
  with pytest.raises(Killed):
    run(study, asked)
  place = folder / {"bundle": "bundles", "merge": "merged"}.get(verb, "published")
  assert not list(place.iterdir())
  monkeypatch.setattr(module, "write_json", real)
  run(study, asked)
  # The one that is there stays, and stays whole, until another takes its place.
  name = "llava-imax-s0" if verb == "publish" else "imax-s0"
  before = {p.name: p.read_bytes() for p in (place / name).iterdir()}
  monkeypatch.setattr(module, "write_json", killed)
  with pytest.raises(Killed):
    run(Study(c, folder), asked)
  assert {p.name: p.read_bytes() for p in (place / name).iterdir()} == before
  monkeypatch.setattr(module, "write_json", real)
  run(Study(c, folder), asked)
  assert [p.name for p in place.iterdir()] == [name]


def test_a_folder_of_somebody_else_is_left_alone(
  done: Path, foundation: Path, tmp_path: Path
) -> None:
  theirs = tmp_path / "bundles" / "imax-s0" / "notes.txt"
  theirs.parent.mkdir(parents=True)
  theirs.write_text("keep")
  study = Study(config(foundation), tmp_path)
  with pytest.raises(ValueError, match="imax_jax did not make"):
    deliver.bundle(study, {"checkpoint": str(done / RUN)})
  assert theirs.read_text() == "keep"
