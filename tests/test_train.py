"""The training engine: schedule, optimiser, step, checkpoints, and a bit-exact resume."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reliability import record

from imax_jax import mesh as mesh_lib
from imax_jax import tree as tree_lib
from imax_jax.data.pipeline import Batches
from imax_jax.data.records import TokenizedEntry
from imax_jax.data.records import TokenizedImage
from imax_jax.models.loss import example_loss
from imax_jax.models.loss import token_nll
from imax_jax.models.vlm import Vlm
from imax_jax.schema import Answer
from imax_jax.schema import Entry
from imax_jax.schema import Origin
from imax_jax.train import snapshots
from imax_jax.train.checkpoint import Checkpointer
from imax_jax.train.guards import Guard
from imax_jax.train.loop import train
from imax_jax.train.metrics import MetricsWriter
from imax_jax.train.metrics import read_metrics
from imax_jax.train.optim import make_optimizer
from imax_jax.train.optim import make_schedule
from imax_jax.train.state import init_state
from imax_jax.train.step import make_train_step

GOLDEN = Path(__file__).parent / "golden"
VOCAB, SLOTS, STEPS = 24, 4, 12
DECAY = ((".*(kernel|embed)", True), (".*", False))


# ── A dataset and a model in a few lines ──────────────────────────────────────────


def make_images(count: int = 9) -> list[TokenizedImage]:
  """Images whose questions' answers depend on the question and on the image."""
  rng = np.random.default_rng(0)
  prefix = np.array([1, 3] + [0] * SLOTS, np.int32)
  slot = np.array([-1, -1, *range(SLOTS)], np.int32)
  images = []
  for image in range(count):
    entries = []
    for number in range(rng.integers(1, 5)):
      prompt = np.array([4, 5 + number], np.int32)
      answer = np.array([10 + (image + number) % 8] * (1 + number) + [2], np.int32)
      noun = Entry(
        f"{image}/vqa//{number}",
        str(image),
        "vqa",
        "",
        "",
        "",
        Answer("", ()),
        Origin("made", "made", 0, "made"),
      )
      entries.append(TokenizedEntry(prompt, answer, noun))
    images.append(TokenizedImage(str(image), prefix, slot, tuple(entries)))
  return images


def pixels_of(index: int) -> np.ndarray:
  return np.random.default_rng(index).integers(0, 256, (16, 16, 1), np.uint8)


def make_batches(num_steps: int = STEPS, **kwargs) -> Batches:
  settings = {"entries_per_step": 6, "row_tokens": 32, "seed": 1}
  return Batches(make_images(), pixels_of, num_steps=num_steps, **(settings | kwargs))


def bigram_loss(trainable, frozen, batch, rng):
  """The next token from this one, with noise from `rng`: a loss without a model."""
  logits = frozen["embed"][batch["text"]] @ trainable["kernel"] + trainable["bias"]
  noise = 0.01 * jax.random.normal(rng, logits.shape)
  total, weight = example_loss(token_nll, logits + noise, batch)
  return total.sum(), weight.sum()


def bigram_params():
  key = jax.random.key(3)
  trainable = {"kernel": jnp.zeros((8, VOCAB)), "bias": jnp.zeros(VOCAB)}
  return trainable, {"embed": jax.random.normal(key, (VOCAB, 8))}


def make_toy_optimizer(trainable, num_steps: int = STEPS, **kwargs):
  schedule = make_schedule(
    num_steps=num_steps,
    peak_lr=0.05,
    final_lr=0.01,
    warmup_fraction=0.25,
    warmup_start_lr=0.0,
  )
  return make_optimizer(trainable, schedule, weight_decay=0.05, decay=DECAY, **kwargs)


def run(workdir, *, batches=None, loss=bigram_loss, **kwargs):
  trainable, frozen = bigram_params()
  batches = batches or make_batches()
  settings = {"save_steps": 3, "snapshots": {"initial": 0, "late": 12}}
  return train(
    model_loss=loss,
    trainable=trainable,
    frozen=frozen,
    optimizer=make_toy_optimizer(trainable, len(batches)),
    batches=batches,
    mesh=mesh_lib.make_mesh({"data": -1}),
    workdir=workdir,
    seed=7,
    **(settings | kwargs),
  )


def assert_same_bits(left, right):
  jax.tree.map(np.testing.assert_array_equal, left, right)


# ── Schedule and optimiser ────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["unimed_yaml", "imax_3ep_10pct", "warmup_start_zero"])
def test_schedule_is_the_published_one(name):
  golden = json.loads((GOLDEN / "lr_schedule_unimed_3.json").read_text())
  case = golden["linear_warmup_cosine_lr"][name]
  kwargs = case["kwargs"]
  num_steps = kwargs["max_epoch"] * kwargs["iters_per_epoch"]
  schedule = make_schedule(
    num_steps=num_steps,
    peak_lr=kwargs["init_lr"],
    final_lr=kwargs["min_lr"],
    warmup_fraction=kwargs["warmup_steps"] / num_steps,
    warmup_start_lr=kwargs["warmup_start_lr"],
    clock="whole_run",
  )
  steps = np.array([row[0] for row in case["rows"]])
  expected = np.array([row[3] for row in case["rows"]])
  # float32 against float64: an error of 1e-7 of the peak.
  np.testing.assert_allclose(
    schedule(steps), expected, rtol=0, atol=3e-7 * expected.max()
  )


def test_the_papers_schedule_is_continuous():
  schedule = make_schedule(
    num_steps=1000,
    peak_lr=1e-6,
    final_lr=1e-7,
    warmup_fraction=0.1,
    warmup_start_lr=1e-8,
  )
  rates = np.array(schedule(np.arange(1001)))
  np.testing.assert_allclose(rates[[0, 100, 1000]], [1e-8, 1e-6, 1e-7], rtol=1e-5)
  assert np.argmax(rates) == 100
  assert np.abs(np.diff(rates)).max() < 1.1e-8


@pytest.mark.parametrize("num_steps", [0, 1, 2])
def test_a_run_of_warmup_only(num_steps):
  schedule = make_schedule(
    num_steps=num_steps,
    peak_lr=1.0,
    final_lr=0.5,
    warmup_fraction=1.0,
    warmup_start_lr=0.0,
  )
  assert np.isfinite(np.array(schedule(np.arange(4)))).all()
  if num_steps == 2:
    np.testing.assert_allclose(schedule(np.arange(3)), [0, 0.5, 1.0])


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"warmup_fraction": 1.5}, "warmup_fraction"),
    ({"final_lr": 2.0}, "final <= peak"),
    ({"final_lr": -1.0, "may_rise": True}, "expected 0 <= start"),
    ({"clock": "cosine"}, "expected 'after_warmup'"),
  ],
)
def test_schedule_errors(change, message):
  kwargs = {"num_steps": 9, "peak_lr": 1.0, "final_lr": 0.1, "warmup_fraction": 0.1}
  with pytest.raises(ValueError, match=message):
    make_schedule(**(kwargs | {"warmup_start_lr": 0.0} | change))


def test_a_rate_rises_only_where_it_may():
  """MiniGPT-Med's: 1e-5 after the warm-up, 8e-5 at the end."""
  schedule = make_schedule(
    num_steps=1000,
    peak_lr=1e-5,
    final_lr=8e-5,
    warmup_fraction=0.1,
    warmup_start_lr=1e-6,
    may_rise=True,
  )
  rates = np.array(schedule(np.array([0, 100, 550, 1000])))
  np.testing.assert_allclose(rates, [1e-6, 1e-5, 4.5e-5, 8e-5], rtol=1e-5)


def test_a_part_has_its_own_rate():
  """As torch's groups: the decay of a group is multiplied by its rate, too."""
  params = {"head": {"kernel": jnp.ones(2)}, "body": {"kernel": jnp.ones(2)}}
  grads = jax.tree.map(jnp.ones_like, params)

  def updates(lr_scales=()):
    optimizer = make_optimizer(
      params,
      optax.constant_schedule(0.1),
      weight_decay=0.5,
      decay=((".*", True),),
      lr_scales=lr_scales,
    ).update
    return optimizer.update(grads, optimizer.init(params), params)[0]

  own, one = updates((("head/.*", 0.25), (".*", 1.0))), updates()
  np.testing.assert_allclose(one["head"]["kernel"], -0.15, rtol=1e-5)
  np.testing.assert_allclose(own["head"]["kernel"], -0.15 / 4, rtol=1e-5)
  np.testing.assert_array_equal(own["body"]["kernel"], one["body"]["kernel"])
  with pytest.raises(ValueError, match="head/kernel has the factor 0, expected more"):
    updates((("head/.*", 0), (".*", 1.0)))
  with pytest.raises(ValueError, match="lr_scales: no rule matches"):
    updates((("head/.*", 0.5),))


def test_decay_touches_what_the_rules_say():
  params = {"a": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}
  zero = jax.tree.map(jnp.zeros_like, params)
  optimizer = make_optimizer(
    params, optax.constant_schedule(0.1), weight_decay=0.5, decay=DECAY
  )
  updates, _ = optimizer.update.update(zero, optimizer.update.init(params), params)
  np.testing.assert_allclose(updates["a"]["kernel"], -0.05, rtol=1e-6)
  np.testing.assert_array_equal(updates["a"]["bias"], 0)
  with pytest.raises(ValueError, match="decide no parameter"):
    make_optimizer(
      params,
      optax.constant_schedule(0.1),
      weight_decay=0.5,
      decay=(("lora", True), *DECAY),
    )


def test_adamw_by_hand_and_clipping():
  """Two steps against the recurrences of AdamW, as torch writes them."""
  grads = np.array([[3.0, -4.0], [0.5, 0.25]])
  for clip in (None, 1.0):
    p, m, v = np.array([1.0, -2.0]), np.zeros(2), np.zeros(2)
    params = {"kernel": jnp.array(p, jnp.float32)}
    optimizer = make_optimizer(
      params,
      optax.constant_schedule(0.1),
      weight_decay=0.2,
      decay=((".*", True),),
      clip_norm=clip,
    )
    opt_state = optimizer.update.init(params)
    for t, g in enumerate(grads, start=1):
      updates, opt_state = optimizer.update.update(
        {"kernel": jnp.array(g, jnp.float32)}, opt_state, params
      )
      params = optax.apply_updates(params, updates)
      if clip is not None:
        g = g * min(1.0, clip / np.linalg.norm(g))
      p = p * (1 - 0.1 * 0.2)
      m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
      p = p - 0.1 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    np.testing.assert_allclose(params["kernel"], p, rtol=1e-5)


# ── Step ──────────────────────────────────────────────────────────────────────────


def test_step_metrics_and_what_is_differentiated():
  trainable, frozen = bigram_params()
  optimizer = make_toy_optimizer(trainable)
  batch = {name: jnp.asarray(value) for name, value in make_batches()[0].items()}
  state = init_state(trainable, optimizer.update, seed=0)
  step = make_train_step(bigram_loss, optimizer)
  new, metrics = step(state, frozen, batch)
  assert int(new.step) == 1
  assert set(tree_lib.flatten(new.trainable)) == {"kernel", "bias"}
  assert int(metrics["tokens"]) == int((batch["loss_weight"] > 0).sum())
  assert float(metrics["lr"]) == 0.0
  assert float(metrics["loss"]) == pytest.approx(np.log(VOCAB), rel=0.01)
  assert float(metrics["grad_norm"]) > 0
  assert not trainable["kernel"].is_deleted()  # the caller's weights are not donated
  assert state.trainable["kernel"].is_deleted()
  # The rate was 0: only the noise, drawn anew for each step, is another.
  _, again = step(new, frozen, batch)
  assert float(again["loss"]) != float(metrics["loss"])


# ── Loop ──────────────────────────────────────────────────────────────────────────


def test_resume_is_exact(tmp_path):
  seen: list[int] = []

  def evaluator(trainable):
    return {"norm": float(jnp.linalg.norm(trainable["kernel"]))}

  kwargs = {"evaluators": {"test": evaluator}, "evaluate_steps": 3}
  straight = run(tmp_path / "a", **kwargs)
  lines = (tmp_path / "a" / "metrics.jsonl").read_text()
  killed = run(tmp_path / "b", stop_after=7, **kwargs)
  assert not np.array_equal(killed["kernel"], straight["kernel"])
  before = read_metrics(tmp_path / "b" / "metrics.jsonl")
  assert [row["step"] for row in before if "loss" in row] == [1, 2, 3, 4, 5, 6, 7]
  resumed = run(
    tmp_path / "b", on_step=lambda step, total, loss: seen.append(step), **kwargs
  )
  assert seen == [7, 8, 9, 10, 11, 12]  # from the checkpoint of step 6
  assert_same_bits(resumed, straight)
  assert (tmp_path / "b" / "metrics.jsonl").read_text() == lines
  rows = read_metrics(tmp_path / "a" / "metrics.jsonl")
  assert [r["step"] for r in rows if "test/norm" in r] == [3, 6, 9, 12]
  losses = [row["loss"] for row in rows if "loss" in row]
  assert losses[-1] < losses[0]
  # A finished run does nothing more.
  assert_same_bits(run(tmp_path / "b", **kwargs), straight)
  assert (tmp_path / "b" / "metrics.jsonl").read_text() == lines


def test_snapshots_hold_the_phases(tmp_path):
  final = run(tmp_path)
  trainable, _ = bigram_params()
  assert snapshots.names(tmp_path) == ("initial", "late")
  assert_same_bits(snapshots.restore(tmp_path, "initial", trainable), trainable)
  assert_same_bits(snapshots.restore(tmp_path, "late", trainable), final)
  with pytest.raises(FileNotFoundError, match="no trained weights here"):
    snapshots.restore(tmp_path, "middle", trainable)
  other = {"kernel": jnp.zeros((8, 5)), "bias": jnp.zeros(VOCAB)}
  with pytest.raises(ValueError, match=r"kernel is float32\[8, 24\], expected"):
    snapshots.restore(tmp_path, "late", other)


class Poisoned:
  """Batches of which one makes the loss or the gradient no number."""

  def __init__(self, step: int) -> None:
    self.clean, self.step = make_batches(), step
    self.names = self.clean.names
    self.examples_per_step = self.clean.examples_per_step

  def __len__(self) -> int:
    return len(self.clean)

  def __getitem__(self, step: int) -> dict[str, np.ndarray]:
    return {**self.clean[step], "poison": np.full(1, step == self.step, np.float32)}


def poisoned_loss(quantity):
  def loss(trainable, frozen, batch, rng):
    total, weight = bigram_loss(trainable, frozen, batch, rng)
    bad = batch["poison"][0]
    if quantity == "loss":
      return total + jnp.where(bad, jnp.nan, 0.0), weight
    # sqrt'(0) is infinite: the loss itself is a number.
    zero = jnp.where(bad, 0.0 * trainable["bias"].sum(), 1.0)
    return total + jnp.sqrt(zero) - 1.0, weight

  return loss


@pytest.mark.parametrize("quantity", ["loss", "grad_norm"])
@pytest.mark.parametrize("step", [1, 5, 11])
def test_not_finite_stops_and_names_the_entries(tmp_path, quantity, step):
  """Before anything of it is saved (R11)."""
  batches = Poisoned(step)
  names = ", ".join(batches.names(step))
  with pytest.raises(FloatingPointError) as error:
    run(tmp_path, batches=batches, loss=poisoned_loss(quantity), save_steps=1)
  assert str(error.value).startswith(f"step {step + 1}: {quantity} is ")
  assert f"(its 6 entries: {names})" in str(error.value)
  keeper = Checkpointer(tmp_path)
  assert keeper.latest_step() == step
  trainable, _ = bigram_params()
  found = keeper.restore(
    init_state(trainable, make_toy_optimizer(trainable).update, seed=7)
  )
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found.state.trainable))
  keeper.close()
  words = "loss or gradient not finite: stopped, entries named, no checkpoint holds it"
  record("R11", words, "1 of 1", "6 of 6", True)


@pytest.mark.parametrize("quantity", ["loss", "grad_norm"])
def test_a_skipped_step_changes_nothing(tmp_path, quantity, caplog):
  """Neither weights nor moments nor schedule, and a resume remembers it."""
  kwargs = {"batches": Poisoned(5), "loss": poisoned_loss(quantity), "snapshots": {}}
  states = []

  def keep(trainable):
    states.append(jax.device_get(trainable))
    return {}

  run(
    tmp_path / "a", max_skipped=1, evaluators={"keep": keep}, evaluate_steps=1, **kwargs
  )
  assert_same_bits(states[4], states[5])
  assert not np.array_equal(states[5]["kernel"], states[6]["kernel"])
  rows = read_metrics(tmp_path / "a" / "metrics.jsonl")
  lines = {row["step"]: row for row in rows if "tokens" in row}
  assert lines[6]["skipped"] == 1 and quantity not in lines[6]
  assert lines[7]["lr"] == lines[6]["lr"] != lines[8]["lr"]
  assert "skipped, 1 so far" in caplog.text
  # One more is too many, in the same life or after a resume.
  run(tmp_path / "b", max_skipped=1, stop_after=8, **kwargs)
  kwargs["batches"] = Poisoned(9)
  with pytest.raises(FloatingPointError, match=f"step 10: {quantity}"):
    run(tmp_path / "b", max_skipped=1, **kwargs)
  words = "a step that may be skipped changes nothing; one more stops"
  record("R11", words, "1 of 1", "2 of 2", True)


def test_a_batch_that_teaches_nothing_stops(tmp_path):
  class Masked(Poisoned):
    def __getitem__(self, step):
      batch = super().__getitem__(step)
      blank = 0 if step == self.step else 1
      return {**batch, "loss_weight": batch["loss_weight"] * blank}

  with pytest.raises(
    ValueError, match=r"step 3: none of the batch's tokens.*0/vqa//|/vqa"
  ):
    run(tmp_path, batches=Masked(2), loss=poisoned_loss("loss"))


def test_a_loss_that_jumps_is_an_event(caplog):
  rng = np.random.default_rng(0)
  guard = Guard(lambda step: [f"entry {step}"])
  even = {"tokens": 9.0, "grad_norm": 1.0}
  for step, loss in enumerate(rng.normal(1.0, 0.1, 120), start=1):
    assert "spike" not in guard.look(step, even | {"loss": loss})
  line = guard.look(121, even | {"loss": 3.0})
  assert 15 < line["spike"] < 45 and line["loss"] == 3.0
  assert "entry 120" in caplog.text
  past = [{"step": 1.0, "loss": 1.0 + 0.01 * (n % 7)} for n in range(60)]
  again = Guard(lambda step: [], past)
  assert "spike" in again.look(61, even | {"loss": 1.5})
  # Too few to know, and a fall is none.
  assert "spike" not in Guard(lambda step: [], past[:49]).look(50, even | {"loss": 9.0})
  assert "spike" not in again.look(62, even | {"loss": 0.1})


def test_loop_errors(tmp_path):
  with pytest.raises(ValueError, match="13 steps of 12 batches"):
    run(tmp_path, num_steps=13)
  run(tmp_path, stop_after=4, snapshots={})
  with pytest.raises(ValueError, match="at step 3, beyond the 2 steps"):
    run(tmp_path, num_steps=2, snapshots={})
  with pytest.raises(ValueError, match=r"snapshots \['late'\]"):
    run(tmp_path, num_steps=11)


def test_checkpoint_of_another_run_or_model(tmp_path):
  run(tmp_path, stop_after=4, metadata={"config": "a"})
  with pytest.raises(ValueError, match=r"config differ.*another workdir"):
    run(tmp_path, metadata={"config": "b"})
  other = {"kernel": jnp.zeros((8, 5)), "bias": jnp.zeros(VOCAB)}
  state = init_state(other, make_toy_optimizer(other).update, seed=0)
  with pytest.raises(ValueError, match=r"another model.*expected float32\[8, 5\]") as e:
    Checkpointer(tmp_path, metadata={"config": "a"}).restore(state)
  assert "\n" not in str(e.value)
  assert Checkpointer(tmp_path / "empty").restore(state) is None


def test_metrics_lines(tmp_path):
  path = tmp_path / "m" / "metrics.jsonl"
  with MetricsWriter(path) as writer:
    for step in range(1, 6):
      writer.write(step, {"loss": step / 3})
  with path.open("a") as file:
    file.write('{"step": 6, "lo')  # killed here
  with MetricsWriter(path, step=3) as writer:
    writer.write(4, {"loss": 0.5})
  assert read_metrics(path) == [
    *({"step": step, "loss": step / 3} for step in range(1, 4)),
    {"step": 4, "loss": 0.5},
  ]
  path.write_text('{"step": 1}\nnot json\n')
  with pytest.raises(ValueError, match="line 2"):
    read_metrics(path)


# ── The real model ────────────────────────────────────────────────────────────────


def make_vlm():
  heads = {"num_heads": 2, "mlp_width": 24}
  encoder = {"image_px": 16, "patch_px": 4, "width": 8, "depth": 1, "channels": 1}
  decoder = {"width": 16, "depth": 2, "num_kv_heads": 2, "vocab_size": VOCAB}
  return Vlm(
    encoder=encoder | heads,
    connector={"width": 16, "merge": 4, "depth": 2},
    decoder=decoder | heads | {"rope_base": 1e4, "norm_eps": 1e-5, "lora_rank": 2},
  )


def test_packed_and_separate_rows_train_the_model_alike():
  model = make_vlm()
  packed, separate = (make_batches(1, share_prefix=share)[0] for share in (True, False))
  missing = len(separate["text"]) - len(packed["text"])
  assert missing > 0
  # Rows of padding, which must not matter, make the shapes equal: one compilation.
  for name in set(packed) - {"pixels", "supervised", "task"}:
    padding = np.full((missing, 32), -1 if name in ("image", "slot") else 0)
    packed[name] = np.concatenate([packed[name], padding]).astype(separate[name].dtype)
  shapes = jax.eval_shape(model.init, jax.random.key(0), packed)["params"]
  rng = np.random.default_rng(
    0
  )  # also lora_b, whose zeros would hide lora_a's gradient
  params = tree_lib.map_paths(
    lambda path, leaf: jnp.asarray(rng.normal(0, 0.3, leaf.shape), jnp.float32), shapes
  )
  rules = [(".*lora_.|connector/.*", True), (".*", False)]
  trainable, frozen = tree_lib.split(params, rules)

  @jax.jit
  def loss_and_grads(batch):
    def loss(trainable):
      params = tree_lib.merge(trainable, frozen)
      total, weight = model.apply({"params": params}, batch, method="loss")
      return total.sum() / weight.sum()

    return jax.value_and_grad(loss)(trainable)

  left, right = loss_and_grads(packed), loss_and_grads(separate)
  np.testing.assert_allclose(left[0], right[0], rtol=1e-5)
  for path, grad in tree_lib.flatten(left[1]).items():
    other = tree_lib.flatten(right[1])[path]
    scale = float(jnp.abs(other).max())
    assert scale > 0, path
    np.testing.assert_allclose(grad, other, atol=2e-5 * scale + 1e-8, err_msg=path)
