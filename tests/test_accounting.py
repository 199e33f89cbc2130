"""Every record exactly once an epoch, in what the hosts' arrays hold (R5)."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
import test_train as toy
from reliability import record

from imax_jax.data.pipeline import Batches
from imax_jax.data.records import TokenizedEntry
from imax_jax.data.records import TokenizedImage
from imax_jax.schema import Batch

RECORDS, EPOCHS, BATCH = 1003, 3, 8
NAMES = 100  # from this token on, a prompt's second token is the record's number


def make_images(count: int) -> list[TokenizedImage]:
  """`count` entries on images of one to five; the second token of each is its number."""
  rng = np.random.default_rng(0)
  prefix, slot = np.array([1, 3, 0, 0], np.int32), np.array([-1, -1, 0, 1], np.int32)
  images: list[TokenizedImage] = []
  made = 0
  while made < count:
    entries = []
    for number in range(made, min(count, made + int(rng.integers(1, 6)))):
      answer = np.array([10] * int(rng.integers(1, 6)) + [2], np.int32)
      noun = toy.make_images(1)[0].entries[0].entry
      prompt = np.array([4, NAMES + number], np.int32)
      entries.append(TokenizedEntry(prompt, answer, noun))
    made += len(entries)
    images.append(TokenizedImage(str(len(images)), prefix, slot, tuple(entries)))
  return images


def held(batch: Batch) -> Counter[tuple[int, int]]:
  """(record, how many of its tokens are trained on) of each record in a host's arrays."""
  found: Counter[tuple[int, int]] = Counter()
  width = batch["text"].shape[-1]
  text, weight = (batch[key].reshape(-1, width) for key in ("text", "loss_weight"))
  for row, weights in zip(text, weight, strict=True):
    starts = [*np.flatnonzero(row >= NAMES), width]
    for start, stop in itertools.pairwise(starts):
      found[int(row[start]) - NAMES, int((weights[start:stop] > 0).sum())] += 1
  return found


@pytest.mark.parametrize("share_prefix", [True, False])
@pytest.mark.parametrize("hosts", [1, 2, 3])
def test_every_record_is_held_once_an_epoch(hosts: int, share_prefix: bool) -> None:
  """Epochs do not end with steps: 1,003 records, 8 a step. So records are counted along
  the stream; a step that holds the end of one epoch begins the next."""
  images = make_images(RECORDS)
  answers = [len(entry.answer_ids) for image in images for entry in image.entries]
  first = np.cumsum([0, *(len(image.entries) for image in images)])
  steps = -(-RECORDS * EPOCHS // BATCH)
  parts = [
    Batches(
      images, lambda index: np.zeros((1, 1, 1), np.uint8), num_steps=steps,
      entries_per_step=BATCH, row_tokens=40, seed=3, share_prefix=share_prefix,
      num_shards=hosts, process_index=host, process_count=hosts,
    )
    for host in range(hosts)
  ]  # fmt: skip
  stream: list[int] = []
  for step in range(steps):
    planned = [int(first[i]) + e for i, e in parts[0].entries(step)]
    arrays = sum((held(part[step]) for part in parts), Counter())
    # What all hosts' arrays hold together, every answer token of it trained on.
    assert arrays == Counter((number, answers[number]) for number in planned)
    stream += planned
  epochs = [
    Counter(stream[epoch * RECORDS : (epoch + 1) * RECORDS]) for epoch in range(EPOCHS)
  ]
  lost = sum(RECORDS - len(epoch) for epoch in epochs)
  again = sum(count - 1 for epoch in epochs for count in epoch.values())
  assert len({tuple(epoch) for epoch in epochs}) == EPOCHS  # each in its own order
  assert len(stream) == steps * BATCH == EPOCHS * RECORDS + 7  # of the next epoch
  mode = "image" if share_prefix else "entry"
  record(
    "R5", f"{RECORDS:,} records, {EPOCHS} epochs, batch {BATCH}, mode {mode}, "
    f"{hosts} host{'s' * (hosts > 1)}", f"{lost} lost, {again} twice", "0 lost, 0 twice",
    lost == again == 0,
  )  # fmt: skip
