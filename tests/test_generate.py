"""Greedy decoding with a cache equals running each row whole."""

from __future__ import annotations

import dataclasses
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
from imax_jax.evaluate.generate import Generated
from imax_jax.evaluate.generate import Generator
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
  length = 96
  prefix, slots = records.prefix_of(tokenizer, SLOTS)
  answers = []
  for image, prompt in prompts:
    text = [*prefix, *tokenizer_lib.encode(tokenizer, templates.LLAMA2.wrap(prompt))]
    asked = len(text)
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
      text.append(int(np.argmax(forward(params, batch)[0, used - 1])))
    answers.append(text[asked:])
  return answers


def texts_of(found: Sequence[Generated]) -> list[str]:
  return [generated.text for generated in found]


def test_cache_equals_whole_rows(
  ending: Any, tokenizer: Any, pixels: np.ndarray
) -> None:
  params = ending
  want = whole_rows(params, tokenizer, pixels, PROMPTS, BUDGET)
  # The case must be worth the name: different answers, of different lengths.
  assert len({tuple(ids) for ids in want}) >= 5
  assert len({len(ids) for ids in want}) >= 2
  assert any(ids[-1] != tokenizer.eos_token_id for ids in want)
  seen: list[tuple[int, int]] = []
  generator = Generator(Vlm(**FIELDS), tokenizer, SLOTS, BUDGET, rows=3)
  got = generator(params, pixels, PROMPTS, progress=lambda *at: seen.append(at))
  texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in want]
  assert texts_of(got) == texts
  assert seen[-1] == (len(PROMPTS), len(PROMPTS))
  # Neither chunking nor company changes an answer, nor do features instead of pixels.
  features = jax.jit(partial(Vlm(**FIELDS).apply, method="encode"))(
    {"params": params}, pixels
  )
  one_chunk = Generator(Vlm(**FIELDS), tokenizer, SLOTS, 99, rows=8)
  again = one_chunk(params, features, PROMPTS, max_new_tokens=BUDGET)
  assert texts_of(again) == texts
  [first] = one_chunk(params, features, PROMPTS[:1], max_new_tokens=1)
  assert first.text == tokenizer.decode(want[0][:1], skip_special_tokens=True)
  assert first.num_tokens == 1


def test_padding_rows_do_not_hold_up_the_others(
  params: Any, tokenizer: Any, pixels: np.ndarray
) -> None:
  generator = Generator(Vlm(**FIELDS), tokenizer, SLOTS, BUDGET, rows=4)
  text, length, image = generator._pad([[5, 6], [7] * 20], [1, 0])
  assert text.shape == (4, 32)
  assert text[0].tolist() == [0] * 30 + [5, 6]
  assert length.tolist() == [2, 20, 0, 0]
  assert image.tolist() == [1, 0, 0, 0]
  cache = generator._prefill(params, pixels[:2])
  assert cache.k.shape == (2, 2, 2, len(generator.prefix_ids), 8)
  out, _ = generator._decode(params, cache, text, length, image, max_new_tokens=5)
  assert out.shape == (4, 5)
  assert not np.asarray(out[2:, 1:]).any()


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


def test_the_evaluation_half_of_a_style_is_asked(tokenizer: Any) -> None:
  style = templates.style_of("llama2", legacy=True)
  generator = Generator(Vlm(**FIELDS), tokenizer, SLOTS, BUDGET, style=style)
  assert generator.prefix_ids[:3].tolist() == [1, 1, ord("[") - 33 + 3]
  assert generator.prefix_slot.tolist()[-SLOTS:] == [*range(SLOTS)]


def test_mistakes_are_named(params: Any, tokenizer: Any, pixels: np.ndarray) -> None:
  generator = Generator(Vlm(**FIELDS), tokenizer, SLOTS, BUDGET)
  assert generator(params, pixels, []) == []
  with pytest.raises(ValueError, match="image 5, pixels holds 5") as caught:
    generator(params, pixels, [(5, "[vqa] secret question")])
  assert "secret" not in str(caught.value)
  with pytest.raises(ValueError, match="a prompt is refused: .*special") as caught:
    generator(params, pixels, [(0, "[vqa] secret </s>")])
  assert "secret" not in str(caught.value)
  with pytest.raises(ValueError, match="max_new_tokens=0"):
    generator(params, pixels, PROMPTS, max_new_tokens=0)
