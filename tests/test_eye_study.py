"""A tiny study of pictures taller than wide, by a model that is shown their middle."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from configs import phantom
from imax_jax import deliver
from imax_jax import experiment
from imax_jax import feed
from imax_jax.data import eye as eye_lib
from imax_jax.data import images
from imax_jax.evaluate import predictions
from imax_jax.schema import Region
from imax_jax.study import Study

WIDTH, HEIGHT = 64, 160
TOP, BOTTOM = 0.3, 0.7  # of what is seen


def config(geometry: str = "crop", boxes: str = "seen") -> ConfigDict:
  c = phantom.get_config("tiny")
  c.data.workers = 1
  c.image.update({"geometry": geometry, "boxes": boxes})
  c.train.runs = ("imax",)
  c.train.epochs = 0.25
  c.evaluate.max_new_tokens = 2
  return c


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
  """The phantom's films are square: they are stored drawn out, which no fraction feels."""
  stored = images.to_stored

  def tall(data: bytes, image_px: int | None, **how: object) -> bytes:
    film = Image.fromarray(images.decode(stored(data, image_px, **how)))
    return images.encode_png(np.asarray(film.resize((WIDTH, HEIGHT))))

  workdir = tmp_path_factory.mktemp("tall")
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(images, "to_stored", tall)
    experiment.run(config(), workdir, ["build", "train", "evaluate", "report"], {})
  return workdir


def test_boxes_are_counted_and_shown(done: Path) -> None:
  said = json.loads((done / "results.json").read_text("utf8"))["boxes_seen"]
  assert (said["geometry"], said["boxes"], said["image_px"]) == ("crop", "seen", 32)
  assert said["splits"].keys() == {"dmax_train", "imax_test", "imax_train"}
  study = Study(config(), done)
  for split, counts in said["splits"].items():
    want: eye_lib.Counts = {}
    for entry in study.entries(split):
      if isinstance(entry.target, Region):
        _, top, _, bottom = entry.target.box
        left = (min(bottom, BOTTOM) - max(top, TOP)) / (bottom - top)
        kind = "whole" if left > 0.9999 else "cut" if left >= 0.5 else "unseen"
        want.setdefault(entry.subtask, dict.fromkeys(eye_lib.KINDS, 0))[kind] += 1
    assert counts == want, split
  kinds = [of for counts in said["splits"].values() for of in counts.values()]
  assert all(any(of[kind] for of in kinds) for kind in eye_lib.KINDS)
  assert "Boxes that the model sees" in (done / "report/index.html").read_text("utf8")


def test_the_unseen_are_not_trained_on_and_are_asked(done: Path) -> None:
  study = Study(config(), done)
  entries, asked = study.entries("dmax_train"), study.asked("dmax_train")
  assert [entry.id for entry in entries] == [entry.id for entry in asked]
  counts = json.loads((done / "sight/dmax_train/boxes.json").read_text("utf8"))
  unseen = sum(of["unseen"] for of in counts.values())
  records = study.records("dmax_train")
  none = np.zeros(0, np.uint8)
  fed, _ = feed.batches(study, records, lambda: none, num_steps=1, seed=0)
  taught = [one.entry for image in fed._images for one in image.entries]
  assert 0 < unseen == len(entries) - len(taught)
  frames = {e.target.frame for e in taught if isinstance(e.target, Region)}
  assert frames == {(0.0, TOP, 1.0, BOTTOM)}
  test = {entry.id: entry for entry in study.asked("imax_test")}
  kept = predictions.read_predictions(done / "predictions/imax-s0.jsonl", test)
  assert len(kept) == len(study.entries("imax_test"))


def test_features_are_of_the_seen_picture(done: Path) -> None:
  study = Study(config(), done)
  other = Study(config("stretch"), done)
  assert other.store.folder != study.store.folder
  [record, *_] = study.records("imax_test")
  film = images.decode(record.image)
  assert film.shape == (HEIGHT, WIDTH)
  shown = images.decode(images.encode_png(film[48:112]))
  want = np.asarray(Image.fromarray(shown).resize((32, 32), Image.Resampling.BICUBIC))
  off = study.eye.pixels(record.image)[2:-2, :, 0].astype(int) - want[2:-2]
  assert np.abs(off).max() <= 1


def test_weights_of_another_eye_are_refused(
  done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
  run = done / "runs/imax-s0"
  for other in (config(boxes="picture"), config("pad"), config("stretch", "picture")):
    with pytest.raises(ValueError, match=r"trained with another config \(image"):
      deliver.weights_from(Study(other, done), run)
  deliver.bundle(Study(config(), done), {"checkpoint": str(run)})
  folder = Path(capsys.readouterr().out.strip())
  card = " ".join((folder / "README.md").read_text("utf8").split())
  assert "32 px (crop)" in card
  assert "of the square that the model sees" in card
  with pytest.raises(ValueError, match=r"image/eye/boxes: 'seen', expected 'picture'"):
    deliver.weights_from(Study(config(boxes="picture"), done), folder)


def test_predict_asks_and_answers_in_the_picture(
  done: Path,
  tmp_path: Path,
  capsys: pytest.CaptureFixture[str],
  monkeypatch: pytest.MonkeyPatch,
) -> None:
  path = tmp_path / "film.png"
  path.write_bytes(Study(config(), done).records("imax_test")[0].image)
  said = [("<100><0><900><1000>", -0.1, 9)]
  monkeypatch.setattr(Study, "answer", lambda *_: said)
  asked = {"image": str(path), "checkpoint": str(done / "runs/imax-s0")}
  for task, question in (("rec", "heart"), ("reg", "<100><300><900><500>")):
    request = asked | {"task": task, "question": question}
    experiment.run(config(), done, ["predict"], request)
  rec, reg = (
    json.loads(part + "}") for part in capsys.readouterr().out.split("\n}\n")[:2]
  )
  assert (rec["text"], rec["box"]) == ("<100><0><900><1000>", "<100><300><900><700>")
  assert "<100><0><900><500>" in reg["prompt"]
