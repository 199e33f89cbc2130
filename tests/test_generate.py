"""Greedy decoding with a cache equals running each row whole."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imax_jax import tree
from imax_jax.data import records
from imax_jax.data import templates
from imax_jax.data import tokenizer as tokenizer_lib
from imax_jax.evaluate import grid
from imax_jax.evaluate import lines
from imax_jax.evaluate.generate import Generated
from imax_jax.evaluate.generate import Generator
from imax_jax.evaluate.grid import Sampling
from imax_jax.models import stops
from imax_jax.models.block import Cache
from imax_jax.models.vlm import Vlm

SLOTS = 4
BUDGET = 7
END = 2
FIELDS: dict[str, Any] = {
  "encoder": {
    "image_px": 16, "patch_px": 4, "channels": 1,
    "width": 16, "depth": 1, "num_heads": 2, "mlp_width": 32,
  },
  "connector": {"merge": 4, "depth": 2},
  "decoder": {
    "width": 32, "depth": 2, "num_heads": 4, "num_kv_heads": 2, "mlp_width": 48,
    "vocab_size": 264, "rope_base": 1e4, "norm_eps": 1e-5, "lora_rank": 2,
  },
}  # fmt: skip
# Two padded lengths, several questions an image, an image nobody asks about.
PROMPTS = [
  (3, "[reg] a"),
  (0, "[vqa] is it?"),
  (0, "[rec] where is the heart, and where the left lung?"),
  (4, "[vqa] is it?"),
  (1, "[reg] b"),
  (0, "[reg] a"),
  (4, "[rec] where is the heart, and where the right lung?"),
]


@pytest.fixture(autouse=True)
def short_levels(monkeypatch: pytest.MonkeyPatch) -> None:
  """Answers of two and seven tokens: a move."""
  monkeypatch.setattr(lines, "_LEVEL", 2)
  assert lines.levels(BUDGET) == [2, 7]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
  return tokenizer_lib.train_tokenizer([], 259)


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
  return np.random.default_rng(0).integers(0, 256, (5, 16, 16, 1), np.uint8)


@pytest.fixture(scope="module")
def params(pixels: np.ndarray) -> Any:
  model, line = Vlm(**FIELDS), jnp.zeros((1, 4), jnp.int32)
  names = ("text", "image", "slot", "segment", "position")
  batch = dict.fromkeys(names, line) | {"pixels": pixels[:1]}
  shapes = jax.eval_shape(model.init, jax.random.key(0), batch)["params"]

  def draw(path: str, leaf: Any) -> np.ndarray:
    noise = np.random.default_rng(list(path.encode())).standard_normal(leaf.shape)
    width = leaf.shape[-2] if path.endswith(("kernel", "lora_a", "lora_b")) else 100
    noise = path.endswith("scale") + noise / width**0.5
    return noise.astype(np.float32)

  return tree.map_paths(draw, shapes)


@pytest.fixture(scope="module")
def ending(params: Any, tokenizer: Any, pixels: np.ndarray) -> Any:
  """The same, but one token that some answers say later than first ends them instead."""
  said = whole_rows(params, tokenizer, pixels, PROMPTS, BUDGET)
  later = {token for ids in said for token in ids[1:]} - {ids[0] for ids in said}
  end = min(later, key=lambda token: (-sum(token in ids for ids in said), token))
  head = np.array(params["decoder"]["head"]["kernel"])
  head[:, [END, end]] = head[:, [end, END]]
  decoder = params["decoder"] | {"head": {"kernel": head}}
  return params | {"decoder": decoder}


@jax.jit
def forward(params: Any, batch: Any) -> jax.Array:
  return Vlm(**FIELDS).apply({"params": params}, batch).logits


def whole_rows(
  params: Any, tokenizer: Any, pixels: np.ndarray, prompts: Any, budget: int
) -> list[list[int]]:
  """Greedy ids of each prompt by the full forward, one token at a time, no cache."""
  return [ids for ids, _ in scored_rows(params, tokenizer, pixels, prompts, budget)]


def scored_rows(
  params: Any,
  tokenizer: Any,
  pixels: np.ndarray,
  prompts: Any,
  budget: int,
  forward: Callable[..., jax.Array] = forward,
) -> list[tuple[list[int], float]]:
  """The same, and the mean log-probability of each answer's ids."""
  length = 96
  prefix, slots = records.prefix_of(tokenizer, SLOTS)
  answers = []
  for image, prompt in prompts:
    text = [*prefix, *tokenizer_lib.encode(tokenizer, templates.LLAMA2.wrap(prompt))]
    asked, total = len(text), 0.0
    while len(text) < asked + budget and text[-1] != tokenizer.eos_token_id:
      used = len(text)
      batch = {
        "pixels": pixels[image : image + 1],
        "text": np.array([text + [0] * (length - used)], np.int32),
        "image": np.where(np.arange(length) < used, 0, -1)[None].astype(np.int32),
        "slot": np.full((1, length), -1, np.int32),
        "segment": (np.arange(length) >= len(prefix))[None].astype(np.int32),
        "position": np.arange(length)[None].astype(np.int32),
      }
      batch["slot"][0, : len(prefix)] = slots
      logits = np.asarray(forward(params, batch)[0, used - 1], np.float64)
      text.append(int(np.argmax(logits)))
      total += logits.max() - np.log(np.exp(logits).sum())
    answers.append((text[asked:], total / (len(text) - asked)))
  return answers


@pytest.fixture(scope="module")
def generator(tokenizer: Any) -> Generator:
  return Generator(Vlm(**FIELDS), tokenizer, SLOTS, BUDGET, rows=8)


def texts_of(found: Sequence[Generated]) -> list[str]:
  return [generated.text for generated in found]


def test_cache_equals_whole_rows(
  ending: Any, tokenizer: Any, pixels: np.ndarray, generator: Generator,
  monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
  monkeypatch.setattr(lines, "_LEVEL", 1)
  assert lines.levels(BUDGET) == [1, 4, 7]  # two moves
  params = ending
  scored = scored_rows(params, tokenizer, pixels, PROMPTS, BUDGET)
  want = [ids for ids, _ in scored]
  # The case must be worth the name: different answers, of different lengths.
  assert len({tuple(ids) for ids in want}) >= 5
  assert len({len(ids) for ids in want}) >= 2
  assert any(ids[-1] != tokenizer.eos_token_id for ids in want)
  seen: list[tuple[int, int]] = []
  got = generator(params, pixels, PROMPTS, progress=lambda *at: seen.append(at))
  texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in want]
  assert texts_of(got) == texts
  assert [generated.num_tokens for generated in got] == [*map(len, want)]
  # Whole rows themselves move by 6e-6 with the padding behind them.
  np.testing.assert_allclose(
    [generated.log_prob for generated in got], [score for _, score in scored], atol=2e-5
  )
  assert seen[-1] == (len(PROMPTS), len(PROMPTS))
  # Neither chunking nor company changes an answer, nor do features instead of pixels.
  features = jax.jit(partial(Vlm(**FIELDS).apply, method="encode"))(
    {"params": params}, pixels
  )
  again = generator(params, features, PROMPTS, max_new_tokens=BUDGET - 1)
  for one, two in zip(again, got, strict=True):
    assert one.num_tokens == min(two.num_tokens, BUDGET - 1)
    assert one.text == two.text or two.num_tokens == BUDGET
  [first] = generator(params, features, PROMPTS[:1], max_new_tokens=1)
  assert first.text == tokenizer.decode(want[0][:1], skip_special_tokens=True)
  assert first.num_tokens == 1


def many() -> list[tuple[int, str]]:
  """64 questions of many lengths about five images, in no order."""
  rng = np.random.default_rng(7)
  letters = [*"abcdefgh "]
  return [
    (int(rng.integers(5)), f"[vqa] {''.join(rng.choice(letters, 1 + number % 8))}?")
    for number in range(64)
  ]


def test_company_changes_no_answer(
  ending: Any, tokenizer: Any, pixels: np.ndarray, generator: Generator
) -> None:
  prompts = many()
  together = generator(ending, pixels, prompts)
  assert len(set(texts_of(together))) > 32
  assert len({generated.num_tokens for generated in together}) > 3
  scores = [generated.log_prob for generated in together]

  def same(found: Sequence[Generated]) -> None:
    assert texts_of(found) == texts_of(together)
    np.testing.assert_allclose([one.log_prob for one in found], scores, atol=1e-4)

  same([generator(ending, pixels, [prompt])[0] for prompt in prompts])
  order = np.random.default_rng(1).permutation(64)
  shuffled = generator(ending, pixels, [prompts[i] for i in order])
  same([shuffled[place] for place in np.argsort(order)])
  same(
    Generator(Vlm(**FIELDS), tokenizer, SLOTS, BUDGET, rows=5)(ending, pixels, prompts)
  )


def test_answers_that_are_known_are_not_asked_for_again(
  ending: Any, pixels: np.ndarray, generator: Generator
) -> None:
  prompts = many()
  whole = list(generator.stream(ending, pixels, prompts))
  assert sorted(number for number, _ in whole) == [*range(64)]
  for cut in (0, 1, 13, 40, 63, 64):
    known = {number for number, _ in whole[:cut]}
    seen: list[tuple[int, int]] = []
    rest = generator.stream(
      ending, pixels, prompts, known=known, progress=lambda *at, to=seen: to.append(at)
    )
    assert list(rest) == whole[cut:]  # to the last bit
    assert seen == [(done, 64) for done in range(cut + 1, 65)]


def test_a_window_hides_what_is_far(
  params: Any, tokenizer: Any, pixels: np.ndarray
) -> None:
  # Shorter than prefix, prompt and answer, and than an answer with its question.
  for window in (20, 5):
    model = Vlm(**FIELDS | {"decoder": FIELDS["decoder"] | {"window": window}})

    @jax.jit
    def near(params: Any, batch: Any, model: Vlm = model) -> jax.Array:
      return model.apply({"params": params}, batch).logits

    scored = scored_rows(params, tokenizer, pixels, PROMPTS, BUDGET, near)
    got = Generator(model, tokenizer, SLOTS, BUDGET, rows=8)(params, pixels, PROMPTS)
    texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids, _ in scored]
    assert texts_of(got) == texts
    np.testing.assert_allclose(
      [generated.log_prob for generated in got], [x for _, x in scored], atol=1e-5
    )
    assert texts != whole_rows(params, tokenizer, pixels, PROMPTS, BUDGET)


def test_layers_apart_answer_as_layers_in_a_stack(
  ending: Any, pixels: np.ndarray, tokenizer: Any, generator: Generator
) -> None:
  model = Vlm(**FIELDS | {"decoder": FIELDS["decoder"] | {"unroll": 2}})
  assert model.apart
  assert not Vlm(**FIELDS).apart
  apart = Generator(model, tokenizer, SLOTS, BUDGET, rows=8)
  got, want = (one(ending, pixels, PROMPTS) for one in (apart, generator))
  assert texts_of(got) == texts_of(want)
  np.testing.assert_allclose(
    [one.log_prob for one in got], [one.log_prob for one in want], atol=1e-5
  )


def test_samples_are_the_seeds_and_the_questions(
  params: Any, pixels: np.ndarray, generator: Generator
) -> None:
  prompts, drawn = many(), Sampling(0.8, 0.9, seed=3)
  found = texts_of(generator(params, pixels, prompts, sampling=drawn))
  # Neither those behind a question nor those about other images change what it draws.
  assert texts_of(generator(params, pixels, prompts[:9], sampling=drawn)) == found[:9]
  other = texts_of(generator(params, pixels, prompts, sampling=drawn._replace(seed=4)))
  assert sum(one == two for one, two in zip(found, other, strict=True)) < 8
  greedy = texts_of(generator(params, pixels, prompts))
  for cold in (Sampling(temperature=1e-4), Sampling(top_p=1e-6)):
    assert texts_of(generator(params, pixels, prompts, sampling=cold)) == greedy
  # The same question, asked again and again, is answered in several ways.
  again = texts_of(generator(params, pixels, prompts[:1] * 8, sampling=Sampling()))
  assert len(set(again)) > 4


def test_tokens_are_drawn_by_their_probabilities() -> None:
  shares = np.array([0.5, 0.3, 0.15, 0.05])
  logits = jnp.broadcast_to(jnp.log(shares), (40, 100, 4))
  number = jnp.arange(4000).reshape(40, 100)

  def drawn(sampling: Sampling) -> np.ndarray:
    token, log_prob = grid.choose(logits, number, 5, sampling)
    np.testing.assert_allclose(log_prob, np.log(shares)[np.asarray(token)], atol=1e-5)
    return np.bincount(np.asarray(token).ravel(), minlength=4) / 4000

  np.testing.assert_allclose(drawn(Sampling()), shares, atol=0.03)
  np.testing.assert_allclose(
    drawn(Sampling(top_p=0.7)), [0.625, 0.375, 0, 0], atol=0.03
  )
  hot = shares**0.5 / (shares**0.5).sum()
  np.testing.assert_allclose(drawn(Sampling(temperature=2.0)), hot, atol=0.03)


def test_waves_hold_every_question_once() -> None:
  rng = np.random.default_rng(0)
  images, lengths = rng.integers(0, 40, 700), rng.integers(5, 90, 700)
  found = lines.plan(images.tolist(), lengths.tolist(), rows=16)
  assert sorted(n for wave in found for one in wave for n in one.questions) == [
    *range(700)
  ]
  assert len(found) == 3  # of some 256 questions
  pieces = [piece for wave in found for piece in wave]
  for piece in pieces:
    assert 0 < len(piece.lines) <= piece.high
    for line in piece.lines:
      assert len(line.questions) <= piece.width <= 16
      assert {images[n] for n in line.questions} == {line.image}
      assert lengths[[*line.questions]].sum() <= piece.room
  assert len({(piece.high, piece.room, piece.width) for piece in pieces}) <= 4
  # An image's prefix is computed once for as many of its questions as a line may hold.
  asked = collections.Counter(images.tolist())
  of_image = collections.Counter(line.image for one in pieces for line in one.lines)
  assert of_image == {image: -(-count // 16) for image, count in asked.items()}
  assert lines.plan([], [], rows=16) == []


def test_sizes_are_few_and_leave_little_room() -> None:
  needed = [100, 3, 50, 97, 16, 20, 21]
  assert lines.sizes(needed, 1) == [112]
  # One more size saves most where many are far below the largest.
  assert lines.sizes(needed, 2) == [32, 112]
  assert lines.sizes(needed, 3) == [32, 64, 112]
  assert lines.sizes(needed, 9) == [16, 32, 64, 112]


def test_a_moved_row_keeps_its_columns_where_rooms_differ() -> None:
  programs, rng = grid.Programs(Vlm(**FIELDS), (END,), 3), np.random.default_rng(0)

  def drawn(rows: int, room: int, columns: int) -> grid.Grid:
    made = programs.empty(
      (Cache(*jnp.zeros((2, 1, 1, 2, 3, 4))),), rows=rows, room=room, columns=columns
    )
    return jax.tree.map(
      lambda x: jnp.asarray(rng.integers(0, 99, x.shape), x.dtype), made
    )

  # From a room of 8 to one of 4, of 16, and as large: questions end where the room does.
  for room in (4, 16, 8):
    source = drawn(5, 8, 2)
    held = programs.empty(source.lines.caches, rows=6, room=room, columns=7)
    place = np.zeros((3, 6), np.int32)
    place[0, :2] = 4, 1
    moved = programs.move(held, source, place, 2, 3)
    for was, now in zip(source.rows.own[0], moved.rows.own[0], strict=True):
      kept = min(room, 8)
      want = np.asarray(was)[:, [4, 1], :, :, 8 - kept :]
      got = np.asarray(now)[:, 3:5, :, :, room - kept : room + 2]
      np.testing.assert_array_equal(got, want)
      assert not np.asarray(now)[:, [0, 1, 2, 5]].any()
    for was, now in zip(source.lines.caches[0], moved.lines.caches[0], strict=True):
      np.testing.assert_array_equal(now[:, 3:5], was[:, jnp.array([4, 1])])
    np.testing.assert_array_equal(
      moved.rows.said[3:5, :, :2], source.rows.said[jnp.array([4, 1])]
    )
    np.testing.assert_array_equal(
      moved.rows.asked[3:5], source.rows.asked[jnp.array([4, 1])]
    )
    assert moved.rows.done[jnp.array([0, 1, 2, 5])].all()


def test_levels_end_at_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setattr(lines, "_LEVEL", 8)
  assert lines.levels(5) == [5]
  assert lines.levels(8) == [8]
  assert lines.levels(112) == [8, 32, 112]
  assert lines.levels(161) == [8, 32, 128, 161]


def test_any_stop_token_ends_an_answer(
  ending: Any, tokenizer: Any, pixels: np.ndarray
) -> None:
  want = whole_rows(ending, tokenizer, pixels, PROMPTS, BUDGET)
  begin = tokenizer.bos_token_id
  assert begin not in {token for ids in want for token in ids}
  # The model now says <s> where it said </s>.
  head = np.array(ending["decoder"]["head"]["kernel"])
  head[:, [END, begin]] = head[:, [begin, END]]
  params = ending | {"decoder": ending["decoder"] | {"head": {"kernel": head}}}
  template = dataclasses.replace(templates.LLAMA2, stops=("<s>",))
  style = templates.Style(templates.LLAMA2, template)
  generator = Generator(Vlm(**FIELDS), tokenizer, SLOTS, BUDGET, rows=8, style=style)
  texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in want]
  assert texts_of(generator(params, pixels, PROMPTS)) == texts


@pytest.mark.parametrize("length", [2, 3])
def test_stop_words_end_an_answer_and_are_cut_off(
  params: Any, tokenizer: Any, pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch,
  length: int,
) -> None:  # fmt: skip
  """Sequences that some answers say, across the border of a level too."""
  prompts = many()[:24]
  want = scored_rows(params, tokenizer, pixels, prompts, BUDGET)
  said = [ids for ids, _ in want]
  counts = collections.Counter(
    tuple(ids[at : at + length]) for ids in said for at in range(1, BUDGET - length)
  )
  stop = max(counts, key=lambda ids: (counts[ids], ids))
  assert END not in stop

  def end_of(ids: list[int]) -> int:
    return next(
      (
        at for at in range(length, len(ids) + 1) if tuple(ids[at - length : at]) == stop
      ),
      len(ids),
    )

  ends = [end_of(ids) for ids in said]
  assert sum(end < len(ids) for end, ids in zip(ends, said, strict=True)) >= 3
  words = tokenizer_lib.decode(tokenizer, stop)
  monkeypatch.setattr(
    templates.Layout, "_stop_words", lambda self: (stop,) if self.end_id is None else ()
  )
  template = dataclasses.replace(
    templates.LLAMA2, end="", says=f"{{answer}}{words}", stop_text=words
  )
  generator = Generator(
    Vlm(**FIELDS), tokenizer, SLOTS, BUDGET, rows=8,
    style=templates.Style(template, template),
  )  # fmt: skip
  assert stop in templates.layout_of(tokenizer, template).stops
  found = generator(params, pixels, prompts)
  for one, ids, end in zip(found, said, ends, strict=True):
    assert one.num_tokens == end
    text = tokenizer.decode(ids[:end], skip_special_tokens=True)
    assert one.text == template.answer_of(text)
    if end < len(ids):
      assert words not in one.text
  [first] = [n for n, end in enumerate(ends) if end == min(ends)][:1]
  [again] = scored_rows(params, tokenizer, pixels, [prompts[first]], ends[first])
  assert found[first].log_prob == pytest.approx(again[1], abs=2e-5)


def test_a_stop_is_no_part_of_what_was_asked() -> None:
  said = jnp.array([[5, 6, 0, 0], [6, 5, 0, 0], [7, 6, 0, 0]])
  token = jnp.array([6, 6, 6])
  stops_of = [(3,), (4, (6, 6)), (4, (5, 6, 6)), (4, (6,))]
  found = [stops.ended(token, said, 2, one).tolist() for one in stops_of]
  assert found == [
    [False] * 3, [True, False, True], [True, False, False], [True] * 3
  ]  # fmt: skip
  # Of a first token nothing was said before, whatever stands there.
  first = [stops.ended(token, said, 0, one).tolist() for one in stops_of]
  assert first == [[False] * 3, [False] * 3, [False] * 3, [True] * 3]
  row = np.array([7, 6, 6, 5, 4, 0])
  assert [stops.length(row, one) for one in stops_of] == [6, 3, 5, 2]


def test_the_evaluation_half_of_a_style_is_asked(tokenizer: Any) -> None:
  style = templates.style_of("llama2", legacy=True)
  generator = Generator(Vlm(**FIELDS), tokenizer, SLOTS, BUDGET, style=style)
  assert generator.prefix_ids[:3].tolist() == [1, 1, ord("[") - 33 + 3]
  assert generator.prefix_slot.tolist()[-SLOTS:] == [*range(SLOTS)]


def test_mistakes_are_named(
  params: Any, pixels: np.ndarray, generator: Generator
) -> None:
  assert generator(params, pixels, []) == []
  with pytest.raises(ValueError, match="image 5, pixels holds 5") as caught:
    generator(params, pixels, [(5, "[vqa] secret question")])
  assert "secret" not in str(caught.value)
  with pytest.raises(ValueError, match="a prompt is refused: .*special") as caught:
    generator(params, pixels, [(0, "[vqa] secret </s>")])
  assert "secret" not in str(caught.value)
  with pytest.raises(ValueError, match="max_new_tokens=0"):
    generator(params, pixels, PROMPTS, max_new_tokens=0)
  for wrong in (
    Sampling(0.0),
    Sampling(1.0, 0.0),
    Sampling(1.0, 1.5),
    Sampling(seed=-1),
  ):
    with pytest.raises(ValueError, match="expected temperature > 0, 0 < top_p"):
      generator(params, pixels, PROMPTS, sampling=wrong)
