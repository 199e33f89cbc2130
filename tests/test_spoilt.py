"""What a study of the phantom spoils on purpose: answers exchanged, films in negative."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs import phantom_study
from imax_jax import build
from imax_jax import experiment
from imax_jax import runs
from imax_jax.data import images
from imax_jax.data import noise
from imax_jax.data import prompts
from imax_jax.data.construct import Selected
from imax_jax.data.construct import construct
from imax_jax.schema import Annotation
from imax_jax.schema import Ratio
from imax_jax.schema import Region
from imax_jax.schema import Report
from imax_jax.study import Study
from imax_jax.study import UsageError
from tests.test_construct import hospital

NUM_IMAGES = 120


@pytest.fixture(scope="module")
def splits() -> dict[str, list[Selected]]:
  radiographs, annotations = hospital(NUM_IMAGES)
  varied = [_varied(a, number % 17) for number, a in enumerate(annotations)]
  return construct(
    radiographs, varied, seed=0, num_images=40, controls=("same_images",)
  ).splits


def _varied(annotation: Annotation, number: int) -> Annotation:
  target = annotation.target
  if isinstance(target, Ratio):
    target = Ratio(0.3 + number / 100)
  elif isinstance(target, Region):
    target = dataclasses.replace(target, box=(0.0, 0.0, 0.5, 0.5 + number / 100))
  elif isinstance(target, Report):
    target = Report(f"report {number}")
  return dataclasses.replace(annotation, target=target)


def entries(group: list[Selected]) -> dict[str, object]:
  return {entry.id: entry for selected in group for entry in selected.entries}


def test_a_share_of_the_training_entries_answers_as_another(
  splits: dict[str, list[Selected]],
) -> None:
  spoilt = noise.exchange_answers(splits, 0.5, seed=3)
  assert spoilt["imax_test"] == splits["imax_test"]
  before, after = entries(splits["imax_train"]), entries(spoilt["imax_train"])
  assert before.keys() == after.keys()
  changed = [name for name in before if before[name] != after[name]]
  assert 0.2 < len(changed) / len(before) < 0.55
  for name in changed:
    old, new = before[name], after[name]
    assert new.prompt == old.prompt and new.answer != old.answer  # type: ignore[attr-defined]
    donor = before[new.origin.rule.split("answer of ")[1]]  # type: ignore[attr-defined]
    assert (donor.task, donor.answer) == (old.task, new.answer)  # type: ignore[attr-defined]
    # The target says what the answer says, and asks what the prompt asks.
    assert prompts.answer_of(new.target, new.task) == new.answer  # type: ignore[attr-defined]
    if old.task == "reg":  # type: ignore[attr-defined]
      assert new.target.box == old.target.box  # type: ignore[attr-defined]


def test_noise_hangs_on_seed_and_entry_alone(splits: dict[str, list[Selected]]) -> None:
  spoilt = noise.exchange_answers(splits, 0.3, seed=3)
  assert spoilt == noise.exchange_answers(splits, 0.3, seed=3)
  assert spoilt != noise.exchange_answers(splits, 0.3, seed=4)
  assert noise.exchange_answers(splits, 0.0, seed=3) == splits
  noisy = [
    {
      name
      for name, entry in entries(spoilt[split]).items()
      if "noise" in entry.origin.rule  # type: ignore[attr-defined]
    }
    for split in ("imax_train", "core_train")
  ]
  shared = entries(splits["core_train"]).keys()
  # A kind may know one answer only in the smaller split.
  assert noisy[1] <= noisy[0] & shared
  assert len(noisy[1]) > 0.8 * len(noisy[0] & shared)
  with pytest.raises(ValueError, match=r"noise 1.5: expected a share"):
    noise.exchange_answers(splits, 1.5, seed=0)


def test_a_negative_exchanges_black_and_white() -> None:
  film = np.arange(64, dtype=np.uint8).reshape(8, 8)
  found = images.to_negative(images.encode_png(film))
  np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(found))), 255 - film)


def test_the_settings_of_the_study(tmp_path: Path) -> None:
  """Controls are trained as long as the rest; films are negatives where asked for."""
  shared = str(tmp_path / "shared")
  plain, negative = (
    Study(config(shared, *names), tmp_path / f"w{len(names)}")
    for names in ((), ("dmax",))
  )
  build.build(plain)
  build.build(negative)
  assert not (plain.workdir / "hospital").exists()
  for split, same in (("imax_train", True), ("dmax_train", False)):
    one, other = plain.records(split)[0], negative.records(split)[0]
    assert one.entries == other.entries
    if same:
      assert one.image == other.image
    else:
      film = images.decode(one.image)
      np.testing.assert_array_equal(images.decode(other.image), 255 - film)
  steps = {
    runs.plan(plain, f"{run}-s0")["num_steps"]
    for run in ("imax", "dmax", "core", "same_images", "same_count")
  }
  assert len(steps) == 1
  assert runs.split_of("same_images-s0") == "same_images_train"
  other = config(shared)
  other.data.hospital.seed = 12
  with pytest.raises(ValueError, match=r"shared/hospital was made with another config"):
    build.build(Study(other, tmp_path / "w2"))


def config(root: str, *negative: str) -> object:
  c = phantom_study.get_config("tiny")
  c.data.root, c.data.negative = root, negative
  c.data.noise = 0.0
  return c


@pytest.mark.parametrize(
  ("key", "value", "message"),
  [
    ("noise", 0.2, "--config.data.noise spoils training data"),
    ("noise", -1.0, "--config.data.noise=-1.0: expected a share"),
    ("negative", ("imax",), "--config.data.negative spoils training data"),
    ("negative", ("mimic",), "--config.data.negative: no dataset 'mimic'"),
  ],
)
def test_only_a_phantom_is_spoilt(
  key: str, value: object, message: str, tmp_path: Path
) -> None:
  c = phantom_study.get_config("tiny")
  c.data.source, c.data[key] = "physionet", value
  with pytest.raises(UsageError, match=message):
    experiment.run(c, tmp_path, ["build"], {})


def test_selected_is_what_noise_keeps() -> None:
  assert {field.name for field in dataclasses.fields(Selected)} == {
    "radiograph",
    "entries",
  }
