"""Image tokens that depend on the task: in training, in answers, in the Fisher's rows."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from ml_collections import ConfigDict

from imax_jax import feed
from imax_jax import mesh as mesh_lib
from imax_jax import tree
from imax_jax.data import eye
from imax_jax.data import templates
from imax_jax.data import tokenizer as tokenizer_lib
from imax_jax.data.geometry import Geometry
from imax_jax.data.pipeline import Batches
from imax_jax.data.pipeline import EntryBatches
from imax_jax.evaluate import lines
from imax_jax.evaluate.generate import Generator
from imax_jax.fisher import expected
from imax_jax.fisher import grads as grads_lib
from imax_jax.models.connector import Connector
from imax_jax.models.vlm import Vlm
from imax_jax.schema import Answer
from imax_jax.schema import Entry
from imax_jax.schema import ImageRecord
from imax_jax.schema import Origin
from tests import test_generate

TASKS = ("vqa", "rec", "report")
SLOTS, BUDGET, ROW = 4, 7, 160
FIELDS = test_generate.FIELDS | {
  "connector": {"merge": 4, "depth": 2, "experts": 3, "tasks": TASKS},
  "decoder": test_generate.FIELDS["decoder"] | {"depth": 1, "lora_rank": 0},
}
MODEL = Vlm(**FIELDS)
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def record(number: int, tasks: str) -> ImageRecord:
  """One entry for each letter: v, r or c (a caption: the task "report")."""
  named = {"v": "vqa", "r": "rec", "c": "report"}
  image = f"image{number}"
  entries = tuple(
    Entry(
      f"{image}/{named[letter]}//{i}", image, named[letter], "",
      f"[{letter}] {'what ' * (i % 3)}is {number + i}?", "yes" * (1 + i % 2),
      Answer("", ()), Origin("made", "made", i, "made"),
    )
    for i, letter in enumerate(tasks)
  )  # fmt: skip
  return ImageRecord(image, f"s{number}", f"p{number}", "PA", b"", entries)


RECORDS = [record(0, "vrvc"), record(1, "rr"), record(2, "crv"), record(3, "v")]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
  return tokenizer_lib.train_tokenizer([], 259)


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
  return np.random.default_rng(0).integers(0, 256, (4, 16, 16, 1), np.uint8)


@pytest.fixture(scope="module")
def params(pixels: np.ndarray) -> Any:
  line = jnp.zeros((1, 4), jnp.int32)
  names = ("text", "image", "slot", "segment", "position")
  batch = dict.fromkeys(names, line) | {"pixels": pixels[:1], "task": line[0, :1]}
  shapes = jax.eval_shape(MODEL.init, jax.random.key(0), batch)["params"]

  def draw(path: str, leaf: Any) -> np.ndarray:
    noise = np.random.default_rng(list(path.encode())).standard_normal(leaf.shape)
    width = leaf.shape[-2] if path.endswith(("kernel", "lora_a", "lora_b")) else 4
    return (path.endswith("scale") + noise / width**0.5).astype(np.float32)

  return tree.map_paths(draw, shapes)


def study(tokenizer: Any, model: Vlm = MODEL) -> Any:
  """What `feed` asks a study for where it tokenises."""
  style = templates.STYLES["llama2"]
  train = ConfigDict({"row_tokens": ROW})
  return SimpleNamespace(
    model=model, tokenizer=tokenizer, num_slots=model.num_slots, style=style,
    eye=eye.Eye(Geometry("stretch"), model.encoder["image_px"], 3),
    config=SimpleNamespace(train=train),
  )  # fmt: skip


def batches(
  tokenizer: Any, pixels: np.ndarray, model: Vlm = MODEL, **how: Any
) -> Batches:
  images = feed._tokenized(study(tokenizer, model), RECORDS, [])
  how = {"num_steps": 2, "entries_per_step": 6, "row_tokens": ROW, "seed": 3} | how
  return Batches(images, lambda i: pixels[i], **how)


def loss_and_grads(params: Any, batch: Any) -> tuple[jax.Array, Any]:
  def total(params: Any) -> jax.Array:
    sums, weights = MODEL.apply({"params": params}, batch, method="loss")
    return sums.sum() / weights.sum()

  return jit(jax.value_and_grad(total))(params)


def test_shared_prefixes_equal_separate_rows(
  params: Any, tokenizer: Any, pixels: np.ndarray
) -> None:
  shared = batches(tokenizer, pixels)
  apart = batches(tokenizer, pixels, share_prefix=False)
  assert shared.entries(0) == apart.entries(0)
  one, many = shared[0], apart[0]
  assert len(one["text"]) < len(many["text"]) == 6
  loss, grads = loss_and_grads(params, one)
  want, wanted = loss_and_grads(params, many)
  np.testing.assert_allclose(loss, want, rtol=1e-5)
  flat = tree.flatten(wanted)
  for path, leaf in tree.flatten(grads).items():
    norm = np.linalg.norm(flat[path])
    assert norm > 0, path
    assert np.linalg.norm(leaf - flat[path]) <= 1e-4 * norm, path
  # The case is worth the name: seen for other tasks, the images give another loss.
  other, _ = loss_and_grads(params, {**one, "task": one["task"][::-1].copy()})
  assert abs(other - loss) > 5e-5 * abs(loss)


def test_a_picture_is_as_many_images_as_it_has_tasks(
  tokenizer: Any, pixels: np.ndarray
) -> None:
  """Every entry's tokens point to its picture's pixels and to its task."""
  found = batches(tokenizer, pixels, num_shards=2, entries_per_step=10)
  plain = Vlm(**test_generate.FIELDS)
  before = batches(tokenizer, pixels, model=plain, num_shards=2, entries_per_step=10)
  for step in range(2):
    # The same entries in the same steps as where tasks play no part.
    assert found.entries(step) == before.entries(step)
    assert not before[step]["task"].any()
    batch, seen = found[step], set()
    shards = len(batch["supervised"])
    for row, line in enumerate(batch["image"]):
      for number in set(line[line >= 0].tolist()):
        assert number // (len(batch["pixels"]) // shards) == row // (
          len(batch["image"]) // shards
        )
        picture = int((batch["pixels"][number] == pixels).all((1, 2, 3)).argmax())
        task = TASKS[batch["task"][number]]
        asked = RECORDS[picture].entries
        text = batch["text"][row][line == number].tolist()
        said = tokenizer.decode(text)
        for entry in asked:
          if f" {entry.prompt} " in said:
            assert entry.task == task
            seen.add(entry.id)
    assert seen == set(found.names(step)) == {e.id for r in RECORDS for e in r.entries}
    # Two processes' parts are the whole batch.
    parts = [
      batches(
        tokenizer, pixels, num_shards=2, entries_per_step=10, process_index=process,
        process_count=2,
      )[step]
      for process in range(2)
    ]  # fmt: skip
    for name, array in batch.items():
      both = np.concatenate([part[name] for part in parts])  # type: ignore[literal-required]
      np.testing.assert_array_equal(both, array, err_msg=name)


def test_an_entry_without_a_token_is_named(tokenizer: Any) -> None:
  connector = FIELDS["connector"] | {"tasks": ("vqa", "rec")}
  model = Vlm(**FIELDS | {"connector": connector})
  with pytest.raises(ValueError, match=r"entry image0/report//3: task 'report' has no"):
    feed._tokenized(study(tokenizer, model), RECORDS, [])


def test_rows_of_one_entry_keep_their_task(
  params: Any, tokenizer: Any, pixels: np.ndarray
) -> None:
  """As the Fisher takes them apart, and as it puts other answers in."""
  images = feed._tokenized(study(tokenizer), RECORDS, [])
  pairs = [(0, 3), (1, 1), (2, 2), (0, 1)]
  batch = EntryBatches(images, lambda i: pixels[i], pairs, group_size=4)[0]
  assert [TASKS[n] for n in batch["task"]] == ["report", "rec", "vqa", "rec"]
  other = expected.replace_answers(batch, np.full((4, 3), 9))
  assert other["task"].tolist() == batch["task"].tolist()
  for made in (batch, other):
    rows = grads_lib.split_rows(made)
    assert rows["task"].tolist() == batch["task"][:, None].tolist()
  tokens = jit(
    lambda params, batch: MODEL.apply(
      {"params": params}, batch["pixels"], batch["task"], method="image_tokens"
    )
  )
  whole = tokens(params, {name: other[name] for name in ("pixels", "task")})
  alone = [
    tokens(params, {name: rows[name][i] for name in ("pixels", "task")})[0]
    for i in range(4)
  ]
  np.testing.assert_allclose(alone, whole, rtol=1e-5, atol=1e-5)


def test_answers_are_those_of_one_at_a_time(
  params: Any, tokenizer: Any, pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
  """Each equals its row run whole, the picture seen for its task."""
  monkeypatch.setattr(lines, "_LEVEL", 2)
  generator = Generator(MODEL, tokenizer, SLOTS, BUDGET, rows=8)
  prompts = [
    (image, text)
    for image in (3, 0)
    for text in ("[vqa] is it?", "[reg] what is there, and where?")
    for _ in TASKS
  ]
  tasks = [*TASKS] * 4
  found = generator(params, pixels, prompts, tasks=tasks)
  forward = jax.jit(lambda params, batch: MODEL.apply({"params": params}, batch).logits)
  for prompt, task, got in zip(prompts, tasks, found, strict=True):
    number = np.array([TASKS.index(task)], np.int32)
    [(ids, score)] = test_generate.scored_rows(
      params, tokenizer, pixels, [prompt], BUDGET,
      lambda params, batch, number=number: forward(params, batch | {"task": number}),
    )  # fmt: skip
    assert got.text == tokenizer.decode(ids, skip_special_tokens=True)
    np.testing.assert_allclose(got.log_prob, score, atol=2e-5)
  # Worth the name: the same question about the same picture, seen for three tasks.
  assert len({one.log_prob for one in found[:3]}) == 3
  with pytest.raises(ValueError, match="12 prompts and 0 tasks"):
    generator(params, pixels, prompts)
  with pytest.raises(ValueError, match="task 'reg' has no token.*vqa, rec, report"):
    generator(params, pixels, prompts[:1], tasks=["reg"])


# ── Sizes that a model tells of itself ────────────────────────────────────────────

_QFORMER: dict[str, Any] = {
  "queries": 6,
  "width": 8,
  "depth": 2,
  "num_heads": 2,
  "mlp_width": 16,
}


@pytest.mark.parametrize(
  ("encoder", "connector", "features", "slots"),
  [
    ({}, {"merge": 4}, (16, 16), 4),
    ({}, {"merge": 1, "pool": 2}, (16, 16), 4),
    ({"scales": (16, 32), "image_px": 32}, {"merge": 2}, (16, 32), 8),
    ({"keep_class": True}, {"merge": 1, "qformer": _QFORMER}, (17, 16), 6),
    ({"keep_class": True}, {"merge": 17}, (17, 16), 1),
  ],
)
def test_a_model_knows_its_sizes(
  encoder: Any, connector: Any, features: tuple[int, int], slots: int
) -> None:
  fields = FIELDS | {"encoder": FIELDS["encoder"] | encoder, "connector": connector}
  model = Vlm(**ConfigDict(fields))
  assert (model.features_shape, model.num_slots) == (features, slots)
  side = model.encoder["image_px"]
  line = jnp.zeros((1, 4), jnp.int32)
  names = ("text", "image", "slot", "segment", "position")
  batch = dict.fromkeys(names, line) | {
    "pixels": np.zeros((2, side, side, 1), np.uint8)
  }

  def made(pixels: Any) -> Any:
    return model.init_with_output(jax.random.key(0), {**batch, "pixels": pixels})

  out, variables = jax.eval_shape(made, batch["pixels"])
  assert out.image_tokens.shape == (2, slots, 32)
  kept = jnp.zeros((2, *features), jnp.float32)
  again, same = jax.eval_shape(made, kept)
  assert again.image_tokens.shape == out.image_tokens.shape
  tree.check_same(variables["params"], same["params"], name="from features")


def test_every_part_has_a_place_on_a_mesh() -> None:
  """A router's few outputs are not split over devices, and nothing lacks a rule."""
  connector: dict[str, Any] = {
    "merge": 1,
    "qformer": _QFORMER,
    "norm_eps": 1e-6,
    "experts": 3,
  }
  made = jax.eval_shape(
    Connector(32, tasks=TASKS, **connector).init,
    jax.random.key(0), jnp.zeros((1, 9, 16)), jnp.zeros(1, jnp.int32),
  )["params"]  # fmt: skip
  mesh = jax.make_mesh((1,), ("fsdp",))
  placed = tree.flatten(mesh_lib.shardings({"connector": made}, mesh, mesh_lib.FSDP))
  assert placed["connector/router/dense_1/kernel"].spec == PartitionSpec("fsdp", None)
  assert placed["connector/experts/dense_0/kernel"].spec[-1] == "fsdp"
  assert not any(placed["connector/task_tokens"].spec)
