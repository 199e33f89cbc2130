"""Trained words of the template: a shared prefix trains as its entries' own rows do."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
from test_generate import FIELDS
from test_generate import SLOTS
from test_generate import params as params
from test_generate import pixels as pixels
from test_templates import entry_of
from test_templates import record_of

from imax_jax import tree
from imax_jax.data import pipeline
from imax_jax.data import records
from imax_jax.data import templates
from imax_jax.data import tokenizer as tokenizer_lib
from imax_jax.data.weighting import weigh
from imax_jax.fisher import expected
from imax_jax.fisher import grads
from imax_jax.models.vlm import Vlm

STYLE = templates.style_of("vicuna_v0")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
  made = tokenizer_lib.train_tokenizer(
    [], 262, phrases=(STYLE.training.system, "###", "Assistant")
  )
  tokenizer_lib.add_tokens(made, STYLE.marks, 264)
  return made


@pytest.fixture(scope="module")
def images(tokenizer: Any) -> list[records.TokenizedImage]:
  found = []
  for answers in (("yes", "a long answer", "0.5"), ("no",)):
    entries = [
      entry_of(f"[vqa] {'q' * (n + 1)}?", answer, f"i/vqa//{n}")
      for n, answer in enumerate(answers)
    ]
    found.append(
      records.tokenize_record(
        record_of(*entries), tokenizer, num_slots=SLOTS, style=STYLE
      )
    )
  return found


def batches(
  images: list[records.TokenizedImage], pixels: np.ndarray, **kwargs: Any
) -> pipeline.Batches:
  return pipeline.Batches(
    images, lambda i: pixels[i], num_steps=1, entries_per_step=4, row_tokens=200,
    seed=0, **kwargs,
  )  # fmt: skip


def test_what_is_taught_is_weighed_once_for_each_entry(
  images: list[records.TokenizedImage], tokenizer: Any, pixels: np.ndarray
) -> None:
  [mark] = tokenizer_lib.encode(tokenizer, "###")
  batch = batches(images, pixels, weighting="entry")[0]
  taught = batch["loss_weight"] * (np.roll(batch["text"], -1, 1) == mark)
  taught = taught * (batch["segment"] == 0)
  weight_of = weigh("entry")
  for number, image in enumerate(images):
    [place] = image.taught
    assert image.prefix_ids[place] == mark
    [there] = np.nonzero(taught[batch["image"] == number])
    assert len(there) == 1
    total = sum(weight_of(entry) for entry in image.entries)
    assert taught[batch["image"] == number].sum() == pytest.approx(total, rel=1e-6)
    for entry in image.entries:
      assert entry.supervised == entry.lead + len(entry.answer_ids)
      assert tokenizer.decode(entry.prompt_ids[-entry.lead :]) == "### Assistant:"
  load = batches(images, pixels).load(0)
  assert load.supervised == (batch["supervised"] >= 0).sum()


@jax.jit
def step(params: Any, batch: Any) -> Any:
  def loss(params: Any) -> Any:
    sums, weights = Vlm(**FIELDS).apply({"params": params}, batch, method="loss")
    return sums.sum() / weights.sum()

  return jax.value_and_grad(loss)(params)


@pytest.mark.parametrize("weighting", ["token", "entry"])
def test_shared_prefixes_train_as_separate_rows_do(
  images: list[records.TokenizedImage], params: Any, pixels: np.ndarray, weighting: str
) -> None:
  found = []
  for share_prefix in (True, False):
    [batch] = batches(images, pixels, weighting=weighting, share_prefix=share_prefix)
    found.append((step(params, batch), batch["loss_weight"].sum()))
  (shared, apart), (weight, other) = zip(*found, strict=True)
  assert weight == pytest.approx(other, rel=1e-6)
  assert float(shared[0]) == pytest.approx(float(apart[0]), rel=1e-6)
  for path, leaf in tree.flatten(shared[1]).items():
    wanted = np.asarray(tree.flatten(apart[1])[path])
    far = np.linalg.norm(np.asarray(leaf) - wanted)
    assert far <= 1e-4 * np.linalg.norm(wanted) + 1e-8, path


def test_the_fisher_information_is_of_answers_alone(
  images: list[records.TokenizedImage], pixels: np.ndarray, tokenizer: Any
) -> None:
  pairs = [(0, 1), (1, 0)]
  batch = pipeline.EntryBatches(
    images, lambda i: pixels[i], pairs, group_size=2, answers_only=True
  )[0]
  for row, (image, entry) in enumerate(pairs):
    held = images[image].entries[entry]
    start = len(images[image].prefix_ids) + len(held.prompt_ids)
    assert expected.prompt_lengths(batch)[row] == start
    places = np.flatnonzero(grads.split_rows(batch)["loss_weight"][row, 0])
    assert places.tolist() == [*range(start - 1, start - 1 + len(held.answer_ids))]
  whole = pipeline.EntryBatches(images, lambda i: pixels[i], pairs, group_size=2)[0]
  more = (whole["loss_weight"] > 0).sum() - (batch["loss_weight"] > 0).sum()
  assert more == sum(1 + images[i].entries[e].lead for i, e in pairs)
