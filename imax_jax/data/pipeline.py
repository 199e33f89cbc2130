"""From tokenised images to the batches of a run: random access by step, then grain.

`Batches[step]` is a pure function of the data, the seed and the step. A resume therefore
needs one number, and reader threads may finish in any order.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import Protocol
from typing import cast

import grain
import numpy as np

from imax_jax.data.order import Shuffle
from imax_jax.data.order import Stream
from imax_jax.data.packing import Load
from imax_jax.data.packing import Planner
from imax_jax.data.packing import Shapes
from imax_jax.data.packing import StepPlan
from imax_jax.data.packing import assemble
from imax_jax.data.records import TokenizedImage
from imax_jax.data.shapes import lay_out
from imax_jax.data.weighting import EACH_ONE
from imax_jax.data.weighting import Weighting
from imax_jax.data.weighting import WeightOf
from imax_jax.data.weighting import weigh
from imax_jax.schema import Batch
from imax_jax.schema import Entry


class Steps(Protocol):
  """What a run is fed from: a batch for each step, a pure function of the step."""

  @property
  def examples_per_step(self) -> int:
    """How many examples each step takes: entries, or images."""
    ...

  def __len__(self) -> int: ...

  def __getitem__(self, step: int, /) -> Any: ...

  def names(self, step: int, /) -> Sequence[str]:
    """Of what the batch is made, for the message of an error."""
    ...


class Batches:
  """All batches of a run, or one process's part of them: `len`, and `[step] -> Batch`.

  Args:
    images: one for each image, in the order that `pixels_of` counts them.
    pixels_of: image index -> uint8[H, W, C], or float[P, D] of the frozen encoder. It
      is called from reader threads.
    num_steps: the run's length; its shapes hold all these steps.
    entries_per_step, seed, shuffle, sample_ratios: see `Stream`.
    row_tokens, row_multiple, share_prefix: see `Planner`.
    max_shapes: how many sizes of batch there may be; the step is compiled for each.
    weighting, task_weights: see `weigh`.
    num_shards: into how many parts the mesh splits a batch's rows.
    accumulate: turns in which a step goes through each of them; see `make_train_step`.
    process_index, process_count: this process makes shards
      [process_index, process_index + 1) * num_shards / process_count, and reads only
      their pixels. The parts in the order of the processes are the whole batch.

  Raises:
    ValueError: images with different prefixes, or shards that do not divide over the
      processes.
  """

  def __init__(
    self,
    images: Sequence[TokenizedImage],
    pixels_of: Callable[[int], np.ndarray],
    *,
    num_steps: int,
    entries_per_step: int,
    row_tokens: int,
    seed: int,
    shuffle: Shuffle = "image",
    sample_ratios: Mapping[str, float] | None = None,
    row_multiple: int = 0,
    max_shapes: int = 1,
    weighting: Weighting = "token",
    task_weights: Mapping[str, float] | None = None,
    share_prefix: bool = True,
    num_shards: int = 1,
    accumulate: int = 1,
    process_index: int = 0,
    process_count: int = 1,
  ) -> None:
    if num_shards % process_count or not 0 <= process_index < process_count:
      raise ValueError(
        f"process {process_index} of {process_count} cannot share {num_shards} shards: "
        "expected a multiple of process_count; change the mesh axis 'data'"
      )
    if accumulate < 1:
      raise ValueError(f"accumulate {accumulate}: expected 1 or more turns a step")
    prefixes = {len(image.prefix_ids) for image in images}
    if len(prefixes) > 1:
      raise ValueError(
        f"images with prefixes of {sorted(prefixes)} tokens in one run: tokenise all "
        "with the same tokenizer and num_slots"
      )
    self._images = images
    self._pixels_of = pixels_of
    self._weight_of = weigh(weighting, task_weights)
    stream = Stream(
      [[entry.entry.task for entry in image.entries] for image in images],
      entries_per_step=entries_per_step,
      seed=seed,
      shuffle=shuffle,
      sample_ratios=sample_ratios,
    )
    self._planner = Planner(
      stream,
      [[entry.length for entry in image.entries] for image in images],
      max(prefixes, default=0),
      entry_tasks=[[entry.task for entry in image.entries] for image in images],
      row_tokens=row_tokens,
      row_multiple=row_multiple,
      num_shards=num_shards * accumulate,
      share_prefix=share_prefix,
    )
    self.num_entries = stream.num_entries
    self.examples_per_step = entries_per_step
    self._layout = lay_out(self._planner, images, num_steps, max_shapes=max_shapes)
    share = num_shards * accumulate // process_count
    self._shards = range(process_index * share, (process_index + 1) * share)

  @property
  def shapes(self) -> tuple[Shapes, ...]:
    """All that a step of the run has, the largest first."""
    return self._layout.shapes

  def __len__(self) -> int:
    return len(self._layout.chosen)

  def __getitem__(self, step: int) -> Batch:
    if not 0 <= step < len(self):
      raise IndexError(f"step {step} of a run of {len(self)}")
    arrays, index = assemble(
      self._plan(step),
      self._images,
      self._shapes(step),
      weight_of=self._weight_of,
      shards=self._shards,
    )
    return cast(Batch, {"pixels": self._pixels(index), **arrays})

  def _plan(self, step: int) -> StepPlan:
    return self._planner.plan(step, self._shapes(step).row_tokens)

  def _shapes(self, step: int) -> Shapes:
    return self.shapes[self._layout.chosen[step]]

  def _pixels(self, index: np.ndarray) -> np.ndarray:
    """The images' pixels; zeros where the index is -1."""
    chosen = {
      i: self._pixels_of(int(image)) for i, image in enumerate(index) if image >= 0
    }
    # A shard may have no row in a short step; any image then tells the shape.
    sample = next(iter(chosen.values())) if chosen else self._pixels_of(0)
    pixels = np.zeros((len(index), *sample.shape), sample.dtype)
    for i, value in chosen.items():
      pixels[i] = value
    return pixels

  def names(self, step: int) -> list[str]:
    """The ids of the step's entries, over all processes."""
    return [self._images[i].entries[e].entry.id for i, e in self.entries(step)]

  def load(self, step: int) -> Load:
    """What the step's batch holds, over all processes."""
    plan, shapes = self._plan(step), self._shapes(step)
    chosen = [self._images[i].entries[e] for i, e in plan.pairs()]
    held = [self._images[i] for row in plan.rows for i, _ in row]
    return Load(
      tokens=sum(len(image.prefix_ids) for image in held)
      + sum(entry.length for entry in chosen),
      supervised=sum(len(image.taught) for image in held)
      + sum(entry.supervised for entry in chosen),
      entries=len(chosen),
      places=shapes.rows * shapes.row_tokens,
    )

  def entries(self, step: int) -> list[tuple[int, int]]:
    """(image index, entry index) that the step trains on, over all processes."""
    return self._planner.entries(step)


class EntryBatches:
  """Chosen entries, each alone in its row: `len`, and `[group] -> Batch`.

  Args:
    pairs: (image index, entry index) of each, in order.
    group_size: rows of each batch; those that the last one lacks are padding.
    weight_of: see `weighting.weigh`.
    answers_only: see `assemble`.
    process_index, process_count: this process makes rows
      [process_index, process_index + 1) * group_size / process_count.
  """

  def __init__(
    self,
    images: Sequence[TokenizedImage],
    pixels_of: Callable[[int], np.ndarray],
    pairs: Sequence[tuple[int, int]],
    *,
    group_size: int,
    weight_of: WeightOf = EACH_ONE,
    answers_only: bool = False,
    process_index: int = 0,
    process_count: int = 1,
  ) -> None:
    self._images, self._pixels_of, self._pairs = images, pixels_of, list(pairs)
    self._weight_of, self._answers_only = weight_of, answers_only
    chosen = [images[i].entries[e] for i, e in self._pairs]
    prefix = max(len(image.prefix_ids) for image in images)
    longest = prefix + max(entry.length for entry in chosen)
    most = max(
      len(images[i].taught) + images[i].entries[e].supervised for i, e in self._pairs
    )
    # Every row a shard: each is a batch of its own where gradients are taken.
    self._shapes = Shapes(group_size, 1, 1, longest, most)
    share = group_size // process_count
    self._shards = range(process_index * share, (process_index + 1) * share)

  def __len__(self) -> int:
    return -(-len(self._pairs) // self._shapes.rows)

  def __getitem__(self, group: int) -> Batch:
    if not 0 <= group < len(self):
      raise IndexError(f"group {group} of {len(self)}")
    rows = tuple(((image, (entry,)),) for image, entry in self._group(group))
    arrays, index = assemble(
      StepPlan(rows, self._shapes.row_tokens),
      self._images,
      self._shapes,
      weight_of=self._weight_of,
      shards=self._shards,
      answers_only=self._answers_only,
    )
    pixels = [self._pixels_of(int(image)) for image in np.maximum(index, 0)]
    return cast(Batch, {"pixels": np.stack(pixels), **arrays})

  def _group(self, group: int) -> list[tuple[int, int]]:
    return self._pairs[group * self._shapes.rows : (group + 1) * self._shapes.rows]

  def entries(self, group: int) -> list[Entry]:
    """Those of a batch's rows, over all processes."""
    return [self._images[i].entries[e].entry for i, e in self._group(group)]


def draw(
  images: Sequence[TokenizedImage], num_groups: int, group_size: int, *, seed: int
) -> list[tuple[int, int]]:
  """(image index, entry index) of different entries of a whole data set, at random.

  What the Fisher information is measured on. `Batches` keeps the entries of an image
  together; a group of its entries would be of fewer images on IMAX than on DMAX, and
  gradients of one image are alike: that alone would tell the two apart.

  Raises:
    ValueError: fewer entries than that.
  """
  pairs = [(i, e) for i, image in enumerate(images) for e in range(len(image.entries))]
  if len(pairs) < num_groups * group_size:
    raise ValueError(
      f"{num_groups} groups of {group_size} different entries: there are {len(pairs)}; "
      "ask for fewer groups"
    )
  order = np.random.default_rng((seed, 0xF1)).permutation(len(pairs))
  return [pairs[i] for i in order[: num_groups * group_size]]


class BatchIterator:
  """Batches in the order of their steps, read ahead by grain's threads.

  `get_state()` is {"example": the first that was not handed out}, counted through the
  run: what a checkpoint keeps. It does not depend on devices or processes.
  """

  def __init__(
    self, batches: Steps, *, start_step: int, num_threads: int, prefetch: int
  ) -> None:
    self._batches = batches
    self._options = grain.ReadOptions(
      num_threads=num_threads, prefetch_buffer_size=prefetch if num_threads else 0
    )
    self._start(start_step)

  def _start(self, step: int) -> None:
    self._step = step
    dataset = grain.MapDataset.source(self._batches).slice(slice(step, None))
    self._iterator: Iterator[Batch] = iter(dataset.to_iter_dataset(self._options))

  def __iter__(self) -> BatchIterator:
    return self

  def __next__(self) -> Batch:
    if self._step >= len(self._batches):
      raise StopIteration
    batch = next(self._iterator)
    self._step += 1
    return batch

  def get_state(self) -> dict[str, int]:
    return {"example": self._step * self._batches.examples_per_step}

  def set_state(self, state: dict[str, int]) -> None:
    """Raises a ValueError where no step begins at that example."""
    step, off = divmod(state["example"], self._batches.examples_per_step)
    if off:
      raise ValueError(
        f"example {state['example']} is not the first of a step of "
        f"{self._batches.examples_per_step}: go on with as many a step as before"
      )
    self._start(step)


def make_iterator(
  batches: Steps, *, start_step: int = 0, num_threads: int = 2, prefetch: int = 4
) -> BatchIterator:
  """Iterates from `start_step`; `prefetch` batches are kept ready in memory."""
  return BatchIterator(
    batches, start_step=start_step, num_threads=num_threads, prefetch=prefetch
  )
