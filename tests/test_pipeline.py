"""From records to a run's batches: errors by id, random access, resuming, processes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from reliability import record

from imax_jax.data import records
from imax_jax.data.pipeline import Batches
from imax_jax.data.pipeline import EntryBatches
from imax_jax.data.pipeline import draw
from imax_jax.data.pipeline import make_iterator
from imax_jax.data.tokenizer import train_tokenizer
from imax_jax.schema import Answer
from imax_jax.schema import Entry
from imax_jax.schema import ImageRecord
from imax_jax.schema import Origin

NUM_SLOTS = 4


def make_record(number: int) -> ImageRecord:
  image_id = f"image{number}"
  target, origin = Answer("", ()), Origin("made", "made", number, "made")
  entries = tuple(
    Entry(
      f"{image_id}/vqa/verify/{i}",
      image_id,
      "vqa",
      "verify",
      f"[vqa] Based on the input image, is sign {number + i} there?",
      "yes" if (number + i) % 2 else "no, it is not",
      target,
      origin,
    )
    for i in range(number % 5)
  )
  return ImageRecord(image_id, f"s{number}", f"p{number}", "PA", b"", entries)


RECORDS = [make_record(number) for number in range(13)]
TOKENIZER = train_tokenizer(
  records.training_texts(entry for record in RECORDS for entry in record.entries),
  320,
  phrases=records.fixed_phrases(),
)
IMAGES = [
  records.tokenize_record(record, TOKENIZER, num_slots=NUM_SLOTS, row_tokens=64)
  for record in RECORDS
]


def pixels_of(index: int) -> np.ndarray:
  return np.full((2, 2, 1), index + 1, np.uint8)


def make_batches(**kwargs) -> Batches:
  settings = {"num_steps": 9, "entries_per_step": 7, "row_tokens": 64, "seed": 5}
  return Batches(IMAGES, pixels_of, **(settings | kwargs))


def _equal(left, right) -> bool:
  return left.keys() == right.keys() and all(
    np.array_equal(left[name], right[name]) for name in left
  )


def test_tokenized_record_is_the_template():
  image, record = IMAGES[3], RECORDS[3]
  assert image.prefix_ids[0] == 1
  text = image.prefix_slot < 0
  assert TOKENIZER.decode(image.prefix_ids[text][1:]) == "[INST] <Img>"
  assert image.prefix_slot[~text].tolist() == list(range(NUM_SLOTS))
  assert not text[-NUM_SLOTS:].any()
  for tokenized, entry in zip(image.entries, record.entries, strict=True):
    assert TOKENIZER.decode(tokenized.prompt_ids) == f"</Img> {entry.prompt} [/INST]"
    assert TOKENIZER.decode(tokenized.answer_ids[:-1]) == entry.answer
    assert tokenized.answer_ids[-1] == 2


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"answer": ""}, "no token"),
    ({"answer": "secret </s> words"}, "begin or end token"),
    ({"prompt": "secret " * 90}, "raise row_tokens"),
  ],
)
def test_a_bad_entry_is_named_and_not_quoted(change, message):
  record = RECORDS[3]
  bad = dataclasses.replace(record.entries[1], **change)
  record = dataclasses.replace(record, entries=(record.entries[0], bad))
  with pytest.raises(ValueError, match=message) as error:
    records.tokenize_record(record, TOKENIZER, num_slots=NUM_SLOTS, row_tokens=64)
  assert bad.id in str(error.value)
  assert "secret" not in str(error.value)


# Records that would teach nothing, or something else (R12): texts of one of an image's
# entries, and what a damaged file or another template would make of its tokens.
MASKED_TEXTS = [
  *({"answer": text} for text in ("", "</s>", "<s>", "yes </s>", "</s> yes", "<s>yes")),
  *({"prompt": text} for text in ("</s>", "is <s> there?", "long " * 90)),
  {"answer": "long " * 90},
]
MASKED_TOKENS = [
  {"answer_ids": lambda ids: []},  # all masked
  {"answer_ids": lambda ids: [2]},  # the end token alone
  {"answer_ids": lambda ids: ids[:-1]},  # cut off: no end token
  {"answer_ids": lambda ids: [*ids[:-2], 2]},  # truncated
  {"answer_ids": lambda ids: [*ids, 2]},  # two ends
  {"answer_ids": lambda ids: [3, *ids]},  # a word of the template before it
  {"answer_ids": lambda ids: [1, 2]},
  {"prefix_slot": lambda slot: [-1] * len(slot)},  # no image
  {"prefix_slot": lambda slot: slot[::-1]},
  {"prefix_ids": lambda ids: [*ids, *[3] * 64], "prefix_slot": lambda s: [-1] * 64 + s},
]


def test_masked_labels_are_refused_before_they_are_trained_on():
  """And of those that are not refused every step has something to learn."""
  refused, id_ = 0, RECORDS[3].entries[1].id
  kwargs = {"num_slots": NUM_SLOTS, "row_tokens": 64}
  for change in MASKED_TEXTS:
    first, bad, *_ = RECORDS[3].entries
    entries = (first, dataclasses.replace(bad, **change))
    with pytest.raises(ValueError, match=id_):
      records.tokenize_record(
        dataclasses.replace(RECORDS[3], entries=entries), TOKENIZER, **kwargs
      )
    refused += 1
  for change in MASKED_TOKENS:
    of_image = "prefix_slot" in change
    good = IMAGES[3] if of_image else IMAGES[3].entries[1]
    made = {
      name: np.array(make(getattr(good, name).tolist()), np.int32)
      for name, make in change.items()
    }
    bad = dataclasses.replace(good, **made)
    if not of_image:
      bad = dataclasses.replace(IMAGES[3], entries=(IMAGES[3].entries[0], bad))
    with pytest.raises(ValueError, match="image3" if of_image else id_):
      records.check_image(bad, TOKENIZER, **kwargs)
    refused += 1
  batches = make_batches()
  assert all((batches[step]["loss_weight"] > 0).sum() > 7 for step in range(9))
  words = "crafted records refused before training, each by its id"
  record("R12", words, f"{refused} of 20", "20 of 20", refused == 20)


def test_random_access_is_pure_and_shapes_are_fixed():
  first, second = make_batches(), make_batches()
  backwards = {step: second[step] for step in reversed(range(9))}
  shapes = set()
  for step in range(9):
    batch = first[step]
    assert _equal(batch, backwards[step])
    shapes.add(tuple(array.shape for array in batch.values()))
  assert len(shapes) == 1
  with pytest.raises(IndexError):
    first[9]
  assert not _equal(first[0], make_batches(seed=6)[0])


def test_a_longer_run_has_the_same_entries():
  short, long = make_batches(num_steps=3), make_batches(num_steps=30)
  assert [short.entries(s) for s in range(3)] == [long.entries(s) for s in range(3)]


@pytest.mark.parametrize("num_threads", [0, 3])
def test_iterator_resumes_where_it_was(num_threads):
  batches = make_batches()
  iterator = make_iterator(batches, num_threads=num_threads)
  straight = list(iterator)
  assert len(straight) == 9
  assert all(_equal(batch, batches[step]) for step, batch in enumerate(straight))
  iterator = make_iterator(batches, num_threads=num_threads)
  for _ in range(4):
    next(iterator)
  state = iterator.get_state()
  assert state == {"example": 28}  # of the run's, whoever made them
  with pytest.raises(ValueError, match="example 27 is not the first of a step of 7"):
    iterator.set_state({"example": 27})
  other = make_iterator(batches, num_threads=num_threads)
  other.set_state(state)
  rest = list(other)
  assert len(rest) == 5
  assert all(map(_equal, rest, straight[4:]))
  assert _equal(next(make_iterator(batches, start_step=8)), straight[8])
  assert not list(make_iterator(batches, start_step=9))


def test_pixels_belong_to_their_images():
  batch = make_batches()[0]
  used = sorted(set(batch["image"].ravel().tolist()) - {-1})
  assert len(used) > 1
  asked = {IMAGES[i].image_id for i, _ in make_batches().entries(0)}
  values = {f"image{batch['pixels'][i, 0, 0, 0] - 1}" for i in used}
  assert values == asked
  unused = sorted(set(range(len(batch["pixels"]))) - set(used))
  assert not batch["pixels"][unused].any()


def test_processes_together_make_the_whole_batch():
  whole = make_batches(num_shards=4)
  parts = [
    make_batches(num_shards=4, process_index=i, process_count=2) for i in range(2)
  ]
  for step in range(9):
    batch = whole[step]
    halves = [part[step] for part in parts]
    joined = {name: np.concatenate([h[name] for h in halves]) for name in batch}
    assert _equal(joined, batch)
    # A shard's rows look at the shard's images only.
    [shapes] = whole.shapes
    rows, images = shapes.rows_per_shard, shapes.images_per_shard
    for shard in range(4):
      ids = batch["image"][shard * rows : (shard + 1) * rows]
      ids = ids[ids >= 0]
      assert ((ids >= shard * images) & (ids < (shard + 1) * images)).all()


def test_a_process_reads_its_own_pixels_only():
  read: list[int] = []

  def recording(index: int) -> np.ndarray:
    read.append(index)
    return pixels_of(index)

  kwargs = {"num_steps": 1, "entries_per_step": 12, "row_tokens": 64, "seed": 0}
  counts = []
  for count in (1, 2):
    read.clear()
    Batches(IMAGES, recording, num_shards=2, process_count=count, **kwargs)[0]
    counts.append(len(read))
  assert 0 < counts[1] < counts[0]


def test_errors():
  with pytest.raises(ValueError, match="multiple of process_count"):
    make_batches(num_shards=3, process_count=2)
  with pytest.raises(ValueError, match="expected 'token' or 'entry'"):
    make_batches(weighting="answer")
  short = records.tokenize_record(RECORDS[1], TOKENIZER, num_slots=2)
  with pytest.raises(ValueError, match="same tokenizer and num_slots"):
    Batches(
      [*IMAGES, short],
      pixels_of,
      num_steps=1,
      entries_per_step=1,
      row_tokens=64,
      seed=0,
    )


def test_random_entries_are_alone_distinct_and_from_all_images():
  groups, again = (
    EntryBatches(IMAGES, pixels_of, draw(IMAGES, 3, 4, seed=5), group_size=4)
    for _ in range(2)
  )
  assert len(groups) == 3
  seen = []
  for number in range(len(groups)):
    batch = groups[number]
    assert _equal(batch, again[number])
    for row in range(4):
      real = batch["image"][row] >= 0
      image = int(batch["image"][row].max())
      assert set(batch["image"][row][real]) == {image}
      assert batch["segment"][row].max() == 1
      seen.append(batch["text"][row].tobytes() + batch["pixels"][image].tobytes())
  assert len(set(seen)) == 12
  with pytest.raises(ValueError, match="ask for fewer"):
    draw(IMAGES, 1000, 4, seed=5)
