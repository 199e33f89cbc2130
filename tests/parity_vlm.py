"""The whole model beside one made of reference parts, as MiniGPT's code puts them together.

    Blip2VisionModel ─ four neighbours side by side ─ Linear, GELU, Linear ─┐
    text ─────────────────────────── embed_tokens ──────────────────────────┴─ LLaMA + PEFT

Ours reads a packed batch, the reference each entry alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import peft
import torch

from imax_jax import tree
from imax_jax.data import packing
from imax_jax.data import records
from imax_jax.data import templates
from imax_jax.data import tokenizer as tokenizer_lib
from imax_jax.evaluate.generate import Generator
from imax_jax.models import zoo
from imax_jax.models.vlm import Vlm
from imax_jax.weights.rows_of_layouts import layout
from tests import parity_models as models
from tests.parity_models import Measure

ROW = "imax_7b"
_SIDE, _PATCH, _MERGE, _VOCABULARY = 32, 4, 4, 264
SLOTS = (_SIDE // _PATCH) ** 2 // _MERGE
IMAGES = 8
NEW_TOKENS = 12
_TRAINABLE = ((r".*/lora_[ab]|connector/.*", True), (r".*", False))


def fields() -> dict[str, Any]:
  model = zoo.model(ROW)
  connector = model["connector"] | {"dtype": "float32"}
  assert connector["merge"] == _MERGE
  eva = models.encoder_fields("eva_vit_g14")
  lora = {key: value for key, value in model["decoder"].items() if "lora" in key}
  return {
    "encoder": eva | {"image_px": _SIDE, "patch_px": _PATCH},
    "connector": connector,
    "decoder": models.decoder_fields("llama2_7b") | lora | {"vocab_size": _VOCABULARY},
  }


class Reference(torch.nn.Module):
  """Its parts have the names that MiniGPT's checkpoints give them."""

  def __init__(self) -> None:
    super().__init__()
    lora = fields()["decoder"]
    self.visual_encoder = models.encoder_reference(
      "eva_vit_g14", image_size=_SIDE, patch_size=_PATCH
    )
    base = models.decoder_reference("llama2_7b", vocab_size=_VOCABULARY)
    inside, width = models.VISION["hidden_size"], models.LLM["hidden_size"]
    self.llama_proj = torch.nn.Sequential(
      torch.nn.Linear(_MERGE * inside, width),
      torch.nn.GELU(),
      torch.nn.Linear(width, width),
    )
    self.frozen = {
      "blip2_vision": dict(self.visual_encoder.state_dict()),
      "hf_llama": dict(base.state_dict()),
    }
    self.visual_encoder.requires_grad_(False)
    settings = peft.LoraConfig(
      r=lora["lora_rank"], lora_alpha=lora["lora_alpha"], target_modules="all-linear"
    )
    self.llama_model = peft.get_peft_model(base, settings)
    models.randomise(self, seed=1)
    self.eval()

  def image_tokens(self, raw: np.ndarray) -> torch.Tensor:
    """uint8[N, H, W, C] -> [N, S, D]."""
    pixels = models.published_pixels(raw, "eva_vit_g14")
    features = self.visual_encoder(pixel_values=pixels).last_hidden_state[:, 1:]
    count, patches, width = features.shape
    merged = features.reshape(count, patches // _MERGE, _MERGE * width)
    return self.llama_proj(merged)

  def embeds(self, image: torch.Tensor, before: Any, after: Any) -> torch.Tensor:
    """Text, one image's tokens [S, D], text: [1, T, D]."""
    embed = self.llama_model.get_input_embeddings()
    text = [embed(torch.tensor(np.asarray(ids)).long()) for ids in (before, after)]
    return torch.cat([text[0], image, text[1]])[None]

  def params(self, expected: tree.Tree) -> dict[str, Any]:
    """Its weights as a tree of ours."""
    frozen = [(tensors, layout(name)) for name, tensors in self.frozen.items()]
    return models.ours(expected, *frozen, (dict(self.state_dict()), layout("minigpt")))


# ── Logits and gradients ──────────────────────────────────────────────────────────


def _image(number: int, lengths: Sequence[tuple[int, int]]) -> records.TokenizedImage:
  rng = np.random.default_rng(number)
  entry: Any = None  # what is said plays no part
  return records.TokenizedImage(
    f"image{number}",
    np.array([1, 7, 8, *[0] * SLOTS], np.int32),
    np.array([-1, -1, -1, *range(SLOTS)], np.int32),
    tuple(
      records.TokenizedEntry(*(rng.integers(3, 264, n, np.int32) for n in pair), entry)
      for pair in lengths
    ),
  )


# (prompt, answer) lengths of each entry; the first row of the batch holds two images.
_HELD = (_image(0, [(4, 3), (9, 1)]), _image(1, [(5, 6)]), _image(2, [(6, 8), (3, 12)]))
_ROWS: tuple[packing.Row, ...] = (((0, (0, 1)), (1, (0,))), ((2, (0, 1)),))


def _batch() -> dict[str, np.ndarray]:
  shapes = packing.Shapes(1, len(_ROWS), len(_HELD), 80, 40)
  batch, index = packing.assemble(packing.StepPlan(_ROWS, 80), _HELD, shapes)
  assert index.tolist() == [0, 1, 2]
  return batch | {"pixels": models.pixels(len(_HELD), _SIDE)}


def _separately(
  reference: Reference, pixels: np.ndarray
) -> tuple[dict[tuple[int, int], np.ndarray], torch.Tensor]:
  """({(image, segment): logits [T, V]}, token mean of the loss) of the reference."""
  tokens, logits, losses = reference.image_tokens(pixels), {}, []
  for number, image in enumerate(_HELD):
    before = image.prefix_ids[image.prefix_slot < 0]
    for segment, entry in enumerate(image.entries, start=1):
      after = np.concatenate([entry.prompt_ids, entry.answer_ids])
      embeds = reference.embeds(tokens[number], before, after)
      out = reference.llama_model(inputs_embeds=embeds).logits[0]
      logits[number, segment] = out.detach().numpy()
      answer = torch.from_numpy(entry.answer_ids).long()
      said = out[-len(answer) - 1 : -1]
      losses.append(torch.nn.functional.cross_entropy(said, answer, reduction="none"))
  return logits, torch.cat(losses).mean()


def expected(model: Vlm, batch: dict[str, np.ndarray]) -> tree.Tree:
  made: tree.Tree = jax.eval_shape(model.init, jax.random.key(0), batch)["params"]
  return made


def whole_measures() -> list[Measure]:
  """Logits of every entry, and the gradients that a step follows."""
  reference, model, batch = Reference(), Vlm(**fields()), _batch()
  params = reference.params(expected(model, batch))
  want, total = _separately(reference, batch["pixels"])
  total.backward()
  pairs, frozen = tree.split(params, _TRAINABLE)

  def loss(pairs: Any) -> tuple[jax.Array, jax.Array]:
    params = tree.merge(pairs, frozen)
    sums, weights = model.apply({"params": params}, batch, method="loss")
    return sums.sum() / weights.sum(), model.apply({"params": params}, batch).logits

  grads, logits = models.jit(jax.grad(loss, has_aux=True))(pairs)
  got = []
  for image, segment in want:
    own = (batch["segment"] == 0) | (batch["segment"] == segment)
    got.append(np.asarray(logits)[(batch["image"] == image) & own])
  wanted = models.ours(pairs, (models.gradients(reference), layout("minigpt")))
  both = [np.concatenate(rows) for rows in (got, list(want.values()))]
  found = [Measure(ROW, "logits", models.far(*both), models.EXACT)]
  for quantity, pattern in (("LoRA", r".*/lora_[ab]"), ("connector", "connector/.*")):
    part = [
      tree.split(held, ((pattern, True), (".*", False)))[0] for held in (grads, wanted)
    ]
    error = models.farthest(*part)
    found.append(Measure(ROW, f"gradients of {quantity} (L2)", error, models.GRADIENT))
  return found


# ── Answers ───────────────────────────────────────────────────────────────────────


class _Ids(Generator):
  """Answers as they are decoded, before they become text."""

  def _text(self, ids: np.ndarray) -> Any:
    return ids.tolist()


def prompts() -> list[tuple[int, str]]:
  """64 questions of many lengths, about images in no order."""
  rng = np.random.default_rng(3)
  letters = list("abcdefghij klmnop")
  return [
    (int(rng.integers(IMAGES)), f"[vqa] {''.join(rng.choice(letters, 1 + n // 2))}?")
    for n in range(64)
  ]


def answers() -> tuple[list[list[int]], list[list[int]], float]:
  """(our ids of each prompt, the reference's, the closest that a second choice came).

  End tokens are left out. The last is the least difference of the two largest logits over
  the largest: an error of half of it could change an answer.
  """
  tokenizer = tokenizer_lib.train_tokenizer([], 259)
  reference, model = Reference(), Vlm(**fields())
  generator = _Ids(model, tokenizer, SLOTS, NEW_TOKENS, rows=32)
  held = models.pixels(IMAGES, _SIDE)
  found = generator(reference.params(expected(model, _batch())), held, prompts())
  got: Any = [generated.text for generated in found]
  template = templates.STYLES["llama2"].evaluation
  spoken = templates.layout_of(tokenizer, template)
  want, gaps = [], []
  with torch.no_grad():
    tokens = reference.image_tokens(held)
    for image, prompt in prompts():
      after = spoken.prompt_ids(prompt)
      embeds = reference.embeds(tokens[image], spoken.prefix_ids, after)
      out = reference.llama_model.generate(
        inputs_embeds=embeds,
        attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long),
        do_sample=False,
        max_new_tokens=NEW_TOKENS,
        eos_token_id=spoken.end_id,
        pad_token_id=tokenizer.pad_token_id,
        return_dict_in_generate=True,
        output_logits=True,
      )
      said = out.sequences[0].tolist()
      want.append([token for token in said if token != spoken.end_id])
      for logits in out.logits:
        first, second = logits[0].topk(2).values
        gaps.append(float((first - second) / logits.abs().max()))
  return got, want, min(gaps)
