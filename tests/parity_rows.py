"""The paper's baselines beside models made of reference parts, at reduced width.

    CLIP, SigLIP, EVA (transformers) ─ S2, Q-Former ─ Linear, MLP, experts ─┐
    text ───────────────────────────────────── embed_tokens ────────────────┴─ LLaMA,
                                                Qwen2, Phi-3 (transformers) + LoRA, H-LoRA

Which parts a reference has is read off the row's fields. Ours reads a packed batch, the
reference each entry alone.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import peft
import torch
import transformers

from configs.zoo import phantom
from imax_jax import tree
from imax_jax.data import packing
from imax_jax.data import records
from imax_jax.data import templates
from imax_jax.data import tokenizer as tokenizer_lib
from imax_jax.evaluate.generate import Generator
from imax_jax.models import zoo
from imax_jax.models.vlm import Vlm
from imax_jax.weights.layouts import TABLE
from imax_jax.weights.layouts import Layout
from imax_jax.weights.layouts import Row
from imax_jax.weights.rows_of_layouts import layout
from tests import parity_models as models
from tests.parity_models import Measure

# Today's reference is one class of transformers.
TODAY = "medgemma_4b"
ROWS = phantom.NAMES
_SIDE, _PATCH, _VOCABULARY = 32, 4, 264
IMAGES, NEW_TOKENS = 6, 10
_QFORMER = {"queries": 6, "width": 32, "depth": 4, "num_heads": 4, "mlp_width": 48}
_CONNECTOR = "llama_proj"  # as MiniGPT's checkpoints call it
_TOKENS = Layout("", "", (), (Row("tokens", "connector/task_tokens", TABLE),))


def fields(name: str) -> dict[str, Any]:
  """The row's model, narrow."""
  row, model = zoo.MODELS[name], zoo.model(name)
  scales = len(model["encoder"]["scales"])
  encoder = models.encoder_fields(_tower(row)) | {
    "patch_px": _PATCH,
    "image_px": _SIDE * max(scales, 1),
    "scales": tuple(_SIDE * (number + 1) for number in range(scales)),
    "keep_class": model["encoder"]["keep_class"],
  }
  connector = model["connector"] | {"dtype": "float32"}
  if connector["qformer"]:
    connector["qformer"] = connector["qformer"] | _QFORMER
  own = {key: value for key, value in row.own.items() if key != "vocab_size"}
  if own.get("lora_experts"):
    own |= {"lora_rank": 8, "lora_alpha": 16.0}
  return {
    "encoder": encoder,
    "connector": connector,
    "decoder": model["decoder"]
    | models.decoder_fields(_llm(row))
    | own
    | {"vocab_size": _VOCABULARY},
  }


def _tower(row: zoo.Row) -> str:
  return next(name for name in models.ENCODERS if row.encoder.startswith(name))


def _llm(row: zoo.Row) -> str:
  return row.decoder


def trained(name: str) -> tree.Rules:
  """What the system's page trains."""
  rules: tree.Rules = (
    importlib.import_module(f"configs.zoo.{name}").get_config().trainable
  )
  return rules


def _trains(name: str, path: str) -> bool:
  return next(value for rule, value in trained(name) if re.fullmatch(rule, path))


# ── The reference ─────────────────────────────────────────────────────────────────


class Experts(torch.nn.Module):
  """Uni-Med's CMoE with soft routing by a task's token, written out."""

  def __init__(self, inside: int, width: int, connector: dict[str, Any]) -> None:
    super().__init__()
    count = connector["experts"]
    self.moe_layers = torch.nn.ModuleList(
      _mlp(inside, width, connector["depth"]) for _ in range(count)
    )
    self.router = torch.nn.Module()
    self.router.fc1 = torch.nn.Linear(2 * inside, 8 * inside)
    self.router.fc2 = torch.nn.Linear(8 * inside, count)
    self.task_tokens = torch.nn.ParameterDict(
      {
        task: torch.nn.Parameter(torch.zeros(1, 1, inside))
        for task in connector["tasks"]
      }
    )
    self._tasks = connector["tasks"]

  def forward(self, x: torch.Tensor, task: int) -> torch.Tensor:
    token = self.task_tokens[self._tasks[task]].expand(len(x), x.shape[1], -1)
    asked = self.router.fc1(torch.cat([token, x], -1))
    share = torch.sigmoid(self.router.fc2(torch.nn.functional.gelu(asked)))
    share = share / share.sum(-1, keepdim=True)
    said = torch.stack([expert(x) for expert in self.moe_layers], -1)
    return (said * share[..., None, :]).sum(-1)


class HLora(torch.nn.Module):
  """HealthGPT's linear layer, an expert after the other."""

  def __init__(self, linear: torch.nn.Linear, rank: int, alpha: float, k: int) -> None:
    super().__init__()
    self.base = linear.requires_grad_(False)
    self.lora_A = torch.nn.Linear(linear.in_features, rank, bias=False)
    self.lora_B = torch.nn.Linear(rank, linear.out_features, bias=False)
    self.lora_route = torch.nn.Linear(linear.in_features, k, bias=False)
    self._scale = alpha * k / rank

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    weights = torch.softmax(self.lora_route(x), -1)
    y, count = self.base(x), weights.shape[-1]
    each = self.lora_A.out_features // count
    for expert in range(count):
      own = slice(expert * each, (expert + 1) * each)
      hidden = x @ self.lora_A.weight[own].T
      pair = hidden @ self.lora_B.weight[:, own].T
      y = y + self._scale * weights[..., expert, None] * pair
    return y


def _mlp(inside: int, width: int, depth: int) -> torch.nn.Module:
  layers: list[torch.nn.Module] = [torch.nn.Linear(inside, width)]
  for _ in range(depth - 1):
    layers += [torch.nn.GELU(), torch.nn.Linear(width, width)]
  return torch.nn.Sequential(*layers) if depth > 1 else layers[0]


class Reference(torch.nn.Module):
  def __init__(self, name: str) -> None:
    super().__init__()
    self.fields, row = fields(name), zoo.MODELS[name]
    self._tower, self._row = _tower(row), row
    self.tower = models.encoder_reference(
      self._tower, image_size=_SIDE, patch_size=_PATCH
    )
    base = models.decoder_reference(_llm(row), vocab_size=_VOCABULARY)
    self.tensors = dict(base.state_dict())
    c, d, width = (
      self.fields["connector"],
      self.fields["decoder"],
      base.config.hidden_size,
    )
    inside = self.tower.config.hidden_size * max(
      len(self.fields["encoder"]["scales"]), 1
    )
    if c["qformer"]:
      self.qformer, inside = self._queries(inside), c["qformer"]["width"]
    inside *= c["merge"]
    self.proj = (
      Experts(inside, width, c) if c["experts"] else _mlp(inside, width, c["depth"])
    )
    self.llm = self._adapted(base, d)
    models.randomise(self, seed=1)
    for part, path in (("tower", "encoder/"), ("qformer", "connector/qformer/")):
      if not _trains(name, f"{path}layers/attn/q/kernel"):
        getattr(self, part, torch.nn.Module()).requires_grad_(False)
    self.eval()

  def _queries(self, memory: int) -> torch.nn.Module:
    q = self.fields["connector"]["qformer"]
    config = transformers.Blip2QFormerConfig(
      hidden_size=q["width"], num_hidden_layers=q["depth"],
      num_attention_heads=q["num_heads"], intermediate_size=q["mlp_width"],
      cross_attention_frequency=q["cross_every"], encoder_hidden_size=memory,
      layer_norm_eps=q["norm_eps"],
    )  # fmt: skip
    found = transformers.Blip2QFormerModel._from_config(
      config, attn_implementation="eager"
    )
    found.query_tokens = torch.nn.Parameter(torch.zeros(1, q["queries"], q["width"]))
    return found

  def _adapted(self, base: Any, d: dict[str, Any]) -> Any:
    if not d["lora_rank"]:
      return base
    if not d["lora_experts"]:
      targets = d["lora_targets"].replace("attn/", r".*\.self_attn\.")
      settings = peft.LoraConfig(
        r=d["lora_rank"], lora_alpha=d["lora_alpha"],
        target_modules="all-linear" if targets == ".*" else f"{targets}_proj",
      )  # fmt: skip
      return peft.get_peft_model(base, settings)
    base.requires_grad_(False)
    for layer in base.model.layers:
      for part, leaf in (
        (layer.self_attn, "qkv_proj"), (layer.self_attn, "o_proj"),
        (layer.mlp, "gate_up_proj"), (layer.mlp, "down_proj"),
      ):  # fmt: skip
        linear = getattr(part, leaf)
        setattr(
          part, leaf, HLora(linear, d["lora_rank"], d["lora_alpha"], d["lora_experts"])
        )
    return base

  def image_tokens(self, raw: np.ndarray, task: int) -> torch.Tensor:
    """uint8[N, H, W, C] -> [N, S, D]."""
    e, c = self.fields["encoder"], self.fields["connector"]
    pixels = models.published_pixels(raw, self._tower)
    if e["scales"]:
      x = torch.cat([self._scale(pixels, side) for side in e["scales"]], -1)
    else:
      x = self._features(pixels)
    if c["qformer"]:
      asked = self.qformer.query_tokens.expand(len(x), -1, -1)
      x = self.qformer(query_embeds=asked, encoder_hidden_states=x).last_hidden_state
    x = x.reshape(len(x), x.shape[1] // c["merge"], -1)
    found: torch.Tensor = self.proj(x, task) if c["experts"] else self.proj(x)
    return found

  def _features(self, pixels: torch.Tensor) -> torch.Tensor:
    """[N, P, D] of the block that the row reads, as it reads it."""
    e = self.fields["encoder"]
    output = self.tower(pixel_values=pixels, output_hidden_states=True)
    x = (
      output.last_hidden_state
      if e.get("post_norm_eps", 1)
      else (output.hidden_states[e["depth"]])
    )
    drop = e.get("class_token", True) and not e["keep_class"]
    return x[:, int(drop) :]

  def _scale(self, pixels: torch.Tensor, side: int) -> torch.Tensor:
    """S2: tiles of one scale, put together again and averaged to the first one's size."""
    functional, count = torch.nn.functional, side // _SIDE
    resized = functional.interpolate(
      pixels, size=(side, side), mode="bicubic", align_corners=False
    )
    grid = _SIDE // _PATCH
    rows = []
    for y in range(count):
      tiles = resized[:, :, y * _SIDE : (y + 1) * _SIDE].split(_SIDE, dim=3)
      found = [self._features(tile.contiguous()) for tile in tiles]
      rows.append(torch.cat([x.reshape(len(x), grid, grid, -1) for x in found], 2))
    whole = torch.cat(rows, 1).permute(0, 3, 1, 2)
    small = functional.adaptive_avg_pool2d(whole, grid)
    return small.flatten(2).transpose(1, 2)

  def embeds(self, image: torch.Tensor, before: Any, after: Any) -> torch.Tensor:
    """Text, one image's tokens [S, D], text: [1, T, D]."""
    embed = self.llm.get_input_embeddings()
    text = [embed(torch.tensor(np.asarray(ids)).long()) for ids in (before, after)]
    return torch.cat([text[0], image, text[1]])[None]

  def published(
    self, grads: bool = False
  ) -> list[tuple[dict[str, torch.Tensor], Layout]]:
    """Its weights, or their gradients, as published files name them, with their tables."""
    own = dict(self.state_dict())
    if grads:  # a task that no image has gets none
      zeros = {
        f"proj.{n}": torch.zeros_like(x) for n, x in self.proj.named_parameters()
      }
      own = zeros | models.gradients(self)

    def part(prefix: str, to: str = "") -> dict[str, torch.Tensor]:
      size = len(prefix)
      return {to + n[size:]: x for n, x in own.items() if n.startswith(prefix)}

    c, d = self.fields["connector"], self.fields["decoder"]
    queries = part("qformer.query_tokens", "query_tokens")
    tokens = [own[f"proj.task_tokens.{task}"][0, 0] for task in c["tasks"]]
    proj = "" if c["experts"] else f"{_CONNECTOR}."
    found = [
      (part("tower."), layout(models.ENCODERS[self._tower][2])),
      (part("proj.", proj), layout("unimed_cmoe" if c["experts"] else "minigpt")),
      ({"tokens": torch.stack(tokens)} if tokens else {}, _TOKENS),
      (part("qformer.", "qformer.") | queries, layout("hf_qformer")),
    ]
    if not d["lora_rank"]:
      return [*found, (part("llm."), models.decoder_table(d))]
    name, to = ("healthgpt", "base_model.model.") if d["lora_experts"] else ("peft", "")
    base = {} if grads else self.tensors
    return [*found, (base, models.decoder_table(d)), (part("llm.", to), layout(name))]

  def params(self, expected: tree.Tree, grads: bool = False) -> dict[str, Any]:
    """Its weights, or their gradients, as a tree of ours."""
    found = [pair for pair in self.published(grads) if pair[0]]
    return models.ours(expected, *found)


# ── Logits and gradients ──────────────────────────────────────────────────────────


def _image(number: int, slots: int, lengths: Sequence[tuple[int, int]]) -> Any:
  rng = np.random.default_rng(number)
  entry: Any = None  # what is said plays no part
  return records.TokenizedImage(
    f"image{number}",
    np.array([1, 7, 8, *[0] * slots], np.int32),
    np.array([-1, -1, -1, *range(slots)], np.int32),
    tuple(
      records.TokenizedEntry(*(rng.integers(3, 264, n, np.int32) for n in pair), entry)
      for pair in lengths
    ),
  )


# (prompt, answer) lengths of each entry; the first row of the batch holds two images.
_LENGTHS = ([(4, 3), (9, 1)], [(5, 6)], [(6, 8), (3, 12)])
_ROWS: tuple[packing.Row, ...] = (((0, (0, 1)), (1, (0,))), ((2, (0, 1)),))


def _batch(model: Vlm, tasks: int) -> tuple[list[Any], dict[str, np.ndarray]]:
  held = [_image(n, model.num_slots, own) for n, own in enumerate(_LENGTHS)]
  room = 2 * (3 + model.num_slots) + 32
  shapes = packing.Shapes(1, len(_ROWS), len(held), room, 40)
  batch, index = packing.assemble(packing.StepPlan(_ROWS, room), held, shapes)
  assert index.tolist() == [0, 1, 2]
  own = {"pixels": models.pixels(len(held), model.encoder["image_px"])}
  own["task"] = np.array([n % tasks for n in (0, 2, 5)], np.int32)
  return held, batch | own


def _expected(model: Vlm, batch: dict[str, np.ndarray]) -> tree.Tree:
  made: tree.Tree = jax.eval_shape(model.init, jax.random.key(0), batch)["params"]
  return made


def measures(name: str) -> list[Measure]:
  """Image tokens, logits of every entry, and the gradients of all that is trained."""
  if name == TODAY:
    return _todays_measures()
  reference, model = Reference(name), Vlm(**fields(name))
  held, batch = _batch(model, len(fields(name)["connector"]["tasks"]) or 1)
  params = reference.params(_expected(model, batch))
  tokens, said, losses = [], {}, []
  for number, image in enumerate(held):
    raw, task = batch["pixels"][number : number + 1], int(batch["task"][number])
    tokens.append(reference.image_tokens(raw, task)[0])
    before = image.prefix_ids[image.prefix_slot < 0]
    for segment, entry in enumerate(image.entries, start=1):
      after = np.concatenate([entry.prompt_ids, entry.answer_ids])
      out = reference.llm(
        inputs_embeds=reference.embeds(tokens[-1], before, after),
        output_hidden_states=True,
      )
      said[number, segment] = _arrays(out)
      losses.append(_losses(out, entry.answer_ids))
  torch.cat(losses).mean().backward()
  own, frozen = tree.split(params, trained(name))
  grads, output = _differentiated(model, own, frozen, batch)
  wanted = reference.params(own, grads=True)
  image_tokens = np.stack([found.detach().numpy() for found in tokens])
  return _compared(name, batch, said, image_tokens, output, grads, wanted)


def _arrays(out: Any) -> dict[str, np.ndarray]:
  """{"hidden states": [T, D] after the last norm, "logits": [T, V]} of a reference."""
  found = {"hidden states": out.hidden_states[-1], "logits": out.logits}
  return {name: value[0].detach().numpy() for name, value in found.items()}


def _losses(out: Any, ids: np.ndarray) -> torch.Tensor:
  """Of each token of an answer, the last of what was read."""
  answer = torch.from_numpy(ids).long()
  logits = out.logits[0, -len(answer) - 1 : -1]
  return torch.nn.functional.cross_entropy(logits, answer, reduction="none")


def _differentiated(model: Vlm, own: Any, frozen: Any, batch: Any) -> tuple[Any, Any]:
  """Gradients of the token mean, and what the model made on the way."""

  def loss(own: Any) -> tuple[jax.Array, Any]:
    params = {"params": tree.merge(own, frozen)}
    sums, weights = model.apply(params, batch, method="loss")
    output, seen = model.apply(
      params, batch, capture_intermediates=lambda part, _: part.name == "norm"
    )
    hidden = seen["intermediates"]["decoder"]["norm"]["__call__"][0]
    return sums.sum() / weights.sum(), {
      "image tokens": output.image_tokens, "hidden states": hidden,
      "logits": output.logits,
    }  # fmt: skip

  found: tuple[Any, Any] = models.jit(jax.grad(loss, has_aux=True))(own)
  return found


def _compared(
  name: str,
  batch: Any,
  said: dict[tuple[int, int], dict[str, np.ndarray]],
  image_tokens: np.ndarray,
  output: dict[str, Any],
  grads: Any,
  wanted: tree.Tree,
) -> list[Measure]:
  """said: {(image, segment): `_arrays` of the reference}."""
  places = [
    (batch["image"] == image)
    & ((batch["segment"] == 0) | (batch["segment"] == segment))
    for image, segment in said
  ]
  found = {"image tokens": models.far(output["image tokens"], image_tokens)}
  for kind in ("hidden states", "logits"):
    got = np.concatenate([np.asarray(output[kind])[place] for place in places])
    found[kind] = models.far(got, np.concatenate([one[kind] for one in said.values()]))
  return [
    *(Measure(name, kind, error, models.EXACT) for kind, error in found.items()),
    Measure(name, "gradients (L2)", _farthest(grads, wanted), models.GRADIENT),
  ]


def _farthest(got: tree.Tree, want: tree.Tree) -> float:
  """`models.farthest`, but for leaves whose gradient is rounding alone.

  A key's bias adds the same to all scores of a query, which softmax does not see.
  """
  have, wanted = tree.flatten(got), tree.flatten(want)
  largest = max(float(np.linalg.norm(leaf)) for leaf in wanted.values())
  for path in [path for path in wanted if path.endswith("attn/k_bias")]:
    assert np.linalg.norm(wanted.pop(path)) < 1e-5 * largest, path
    assert np.linalg.norm(have.pop(path)) < 1e-5 * largest, path
  return models.farthest(have, wanted)


# ── Today's row ───────────────────────────────────────────────────────────────────

# Behind the vocabulary, as transformers' default image token is.
_IMAGE = _VOCABULARY
_LAYERS = ("sliding_attention", "sliding_attention", "full_attention")


def today_fields() -> dict[str, Any]:
  """MedGemma's, narrow."""
  model = zoo.model(TODAY)
  sizes = {"width": 48, "depth": 2, "num_heads": 4, "mlp_width": 80}
  plain = {"dtype": "float32", "kernel_dtype": "float32"}
  return {
    "encoder": model["encoder"] | sizes | plain | {"image_px": 32, "patch_px": 4},
    "connector": model["connector"] | {"dtype": "float32"},
    "decoder": model["decoder"] | plain | {
      "width": 64, "depth": 3, "num_heads": 4, "num_kv_heads": 2, "head_width": 24,
      "mlp_width": 128, "vocab_size": _VOCABULARY, "window": 3, "global_every": 3,
      "query_scale": 40**-0.5, "remat": "", "lora_rank": 4, "lora_alpha": 8.0,
    },
  }  # fmt: skip


def _today_reference() -> Any:
  d = today_fields()["decoder"]
  text = {
    "vocab_size": _VOCABULARY, "hidden_size": 64, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 24,
    "intermediate_size": 128, "sliding_window": 3, "layer_types": list(_LAYERS),
    "query_pre_attn_scalar": 40, "pad_token_id": 0,
    "rope_parameters": {
      "full_attention": {
        "rope_type": "linear", "factor": d["rope_factor"], "rope_theta": d["rope_base"],
      },
      "sliding_attention": {"rope_type": "default", "rope_theta": d["local_rope_base"]},
    },
  }  # fmt: skip
  vision = models.VISION | {
    "model_type": "siglip_vision_model", "hidden_act": "gelu_pytorch_tanh",
    "image_size": 32, "patch_size": 4, "vision_use_head": False,
  }  # fmt: skip
  config = transformers.Gemma3Config(
    text_config=text, vision_config=vision, image_token_index=_IMAGE,
    mm_tokens_per_image=Vlm(**today_fields()).num_slots,
  )  # fmt: skip
  made = transformers.Gemma3ForConditionalGeneration._from_config(
    config, attn_implementation="eager"
  )
  settings = peft.LoraConfig(
    r=d["lora_rank"], lora_alpha=d["lora_alpha"], target_modules=r"layers.*_proj"
  )
  peft.inject_adapter_in_model(settings, made.model.language_model)
  models.randomise(made)
  projector = made.model.multi_modal_projector
  projector.mm_input_projection_weight.data *= 0.15  # about as large as embedded text
  learns = re.compile(r".*(lora_|multi_modal_projector|language_model\.embed_tokens).*")
  for name, parameter in made.named_parameters():
    parameter.requires_grad_(bool(learns.fullmatch(name)))
  return made.eval()


def _today_params(
  tensors: dict[str, torch.Tensor], expected: tree.Tree
) -> dict[str, Any]:
  """By the tables that read its files; LoRA's as PEFT would save them."""
  names = ("siglip_vision", "gemma3", "hf_gemma3", "peft")
  plain = {
    re.sub(
      r"^model\.language_model\.(.*lora_.*)", r"base_model.model.model.\1", name
    ).replace(".base_layer", ""): tensor
    for name, tensor in tensors.items()
  }
  return models.ours(expected, *((plain, layout(name)) for name in names))


def _today_output(reference: Any, ids: np.ndarray, pixels: torch.Tensor) -> Any:
  """Of ids [1, T] with placeholders for one image."""
  return reference(
    input_ids=torch.from_numpy(ids).long(), pixel_values=pixels[None],
    token_type_ids=torch.from_numpy(ids == _IMAGE).long(), output_hidden_states=True,
  )  # fmt: skip


def _todays_measures() -> list[Measure]:
  """As `measures`, of all three parts of transformers' own class."""
  reference, model = _today_reference(), Vlm(**today_fields())
  held, batch = _batch(model, 1)
  params = _today_params(dict(reference.state_dict()), _expected(model, batch))
  pixels = models.published_pixels(batch["pixels"], "siglip")
  with torch.no_grad():
    tokens = reference.model.get_image_features(pixels).pooler_output
  said, losses = {}, []
  for number, image in enumerate(held):
    before = np.where(image.prefix_slot < 0, image.prefix_ids, _IMAGE)
    for segment, entry in enumerate(image.entries, start=1):
      ids = np.concatenate([before, entry.prompt_ids, entry.answer_ids])[None]
      out = _today_output(reference, ids, pixels[number])
      said[number, segment] = _arrays(out)
      losses.append(_losses(out, entry.answer_ids))
  torch.cat(losses).mean().backward()
  own, frozen = tree.split(params, trained(TODAY))
  grads, output = _differentiated(model, own, frozen, batch)
  wanted = _today_params(models.gradients(reference), own)
  return _compared(TODAY, batch, said, np.asarray(tokens), output, grads, wanted)


# ── Answers ───────────────────────────────────────────────────────────────────────


class _Ids(Generator):
  """Answers as they are decoded, before they become text."""

  def _text(self, ids: np.ndarray) -> Any:
    return ids.tolist()


def _asked() -> list[tuple[int, str]]:
  """16 questions of the images, each with its image's number."""
  rng = np.random.default_rng(3)
  letters = list("abcdefghij klmnop")
  return [
    (int(rng.integers(IMAGES)), f"[vqa] {''.join(rng.choice(letters, 1 + n))}?")
    for n in range(16)
  ]


def _said(
  model: Vlm, params: tree.Tree, held: np.ndarray
) -> tuple[list[list[int]], templates.Layout]:
  """Our ids of each question, end tokens left out; how questions are put."""
  tokenizer = tokenizer_lib.train_tokenizer([], 259)
  generator = _Ids(model, tokenizer, model.num_slots, NEW_TOKENS, rows=16)
  asked = _asked()
  found: Any = generator(params, held, asked, tasks=["vqa"] * len(asked))
  template = templates.STYLES["llama2"].evaluation
  return [said.text for said in found], templates.layout_of(tokenizer, template)


def answers(name: str) -> tuple[list[list[int]], list[list[int]]]:
  """(our ids of each of 16 prompts, the reference's), end tokens left out."""
  if name == TODAY:
    return _todays_answers()
  reference, model = Reference(name), Vlm(**fields(name))
  tasks = fields(name)["connector"]["tasks"]
  held = models.pixels(IMAGES, model.encoder["image_px"])
  _, batch = _batch(model, len(tasks) or 1)
  got, spoken = _said(model, reference.params(_expected(model, batch)), held)
  want = []
  with torch.no_grad():
    for image, prompt in _asked():
      task = tasks.index("vqa") if tasks else 0
      tokens = reference.image_tokens(held[image : image + 1], task)[0]
      embeds = reference.embeds(tokens, spoken.prefix_ids, spoken.prompt_ids(prompt))
      out = reference.llm.generate(
        inputs_embeds=embeds,
        attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long),
        do_sample=False,
        max_new_tokens=NEW_TOKENS,
        eos_token_id=spoken.end_id,
        pad_token_id=0,
      )
      want.append([token for token in out[0].tolist() if token != spoken.end_id])
  return got, want


def _todays_answers() -> tuple[list[list[int]], list[list[int]]]:
  """As `answers`, of transformers' class, each token by a pass over all before it."""
  reference, model = _today_reference(), Vlm(**today_fields())
  held = models.pixels(IMAGES, model.encoder["image_px"])
  _, batch = _batch(model, 1)
  params = _today_params(dict(reference.state_dict()), _expected(model, batch))
  got, spoken = _said(model, params, held)
  pixels, want = models.published_pixels(held, "siglip"), []
  for image, prompt in _asked():
    slots = [_IMAGE] * model.num_slots
    ids = [*spoken.prefix_ids, *slots, *spoken.prompt_ids(prompt)]
    said: list[int] = []
    while len(said) < NEW_TOKENS:
      out = _today_output(reference, np.array([ids + said]), pixels[image])
      said.append(int(out.logits[0, -1].argmax()))
      if said[-1] == spoken.end_id:
        break
    want.append([token for token in said if token != spoken.end_id])
  return got, want
