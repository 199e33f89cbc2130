"""Published systems in small: their files' names as the publishers' code spells them.

Each maker returns ({published name: array}, {our path: array}): what lies in the file and
what must come of it, the latter by a transpose written out here and not by our tables.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import numpy as np

from imax_jax.weights import files

Arrays = dict[str, np.ndarray]
Pair = tuple[Arrays, Arrays]
WIDTH, MLP, DEPTH, ROWS, TOWER = 8, 12, 2, 20, 6
Q_WIDTH, EXPERTS = 4, 3


class System(NamedTuple):
  """Files of each part, what must come of them, and names that may be left out."""

  parts: dict[str, Arrays]
  ours: Arrays
  spare: tuple[str, ...] = ()
  tasks: tuple[str, ...] = ()


SYSTEMS: dict[str, Callable[[], System]] = {}


def system(make: Callable[[], System]) -> Callable[[], System]:
  SYSTEMS[make.__name__] = make
  return make


class Maker:
  """Seeded arrays, put down under both names."""

  def __init__(self, seed: int = 0) -> None:
    self.rng = np.random.default_rng(seed)
    self.there: Arrays = {}
    self.ours: Arrays = {}
    self.stacks: dict[str, dict[int, np.ndarray]] = {}

  def draw(self, *shape: int) -> np.ndarray:
    return self.rng.normal(size=shape).astype(np.float32)

  def put(
    self, name: str, shape: tuple[int, ...], path: str, layer: int | None = None,
    turn: Callable[[np.ndarray], np.ndarray] = lambda a: a,
  ) -> None:  # fmt: skip
    array = self.draw(*shape)
    self.there[name] = array
    if layer is None:
      self.ours[path] = np.ascontiguousarray(turn(array))
    else:
      self.stacks.setdefault(path, {})[layer] = turn(array)

  def matrix(
    self, name: str, out: int, into: int, path: str, layer: int | None = None
  ) -> None:
    self.put(f"{name}.weight", (out, into), f"{path}/kernel", layer, np.transpose)

  def linear(
    self, name: str, out: int, into: int, path: str, layer: int | None = None
  ) -> None:
    self.matrix(name, out, into, path, layer)
    self.put(f"{name}.bias", (out,), f"{path}/bias", layer)

  def norm(self, name: str, width: int, path: str, layer: int | None = None) -> None:
    self.put(f"{name}.weight", (width,), f"{path}/scale", layer)
    self.put(f"{name}.bias", (width,), f"{path}/bias", layer)

  def close(self) -> Pair:
    for path, slices in self.stacks.items():
      self.ours[path] = np.stack([slices[n] for n in sorted(slices)])
    return self.there, self.ours


def decoder(
  m: Maker, prefix: str = "", *, head: str = "", kv: int = 4, bias: bool = False,
  tied: bool = False, fused: bool = False, rows: int = ROWS, wrap: str = "model",
) -> None:  # fmt: skip
  """`prefix` before "model.layers", `head` before "lm_head"."""
  m.put(f"{prefix}{wrap}.embed_tokens.weight", (rows, WIDTH), "decoder/embed/embedding")
  here = "decoder/layers"
  for n in range(DEPTH):
    there = f"{prefix}{wrap}.layers.{n}"
    if fused:
      m.matrix(
        f"{there}.self_attn.qkv_proj", WIDTH + 2 * kv, WIDTH, f"{here}/attn/qkv", n
      )
      m.matrix(f"{there}.mlp.gate_up_proj", 2 * MLP, WIDTH, f"{here}/mlp/gate_up", n)
    else:
      for name, out in (("q", WIDTH), ("k", kv), ("v", kv)):
        layer = m.linear if bias else m.matrix
        layer(f"{there}.self_attn.{name}_proj", out, WIDTH, f"{here}/attn/{name}", n)
      for name in ("gate", "up"):
        m.matrix(f"{there}.mlp.{name}_proj", MLP, WIDTH, f"{here}/mlp/{name}", n)
    m.matrix(f"{there}.self_attn.o_proj", WIDTH, WIDTH, f"{here}/attn/o", n)
    m.matrix(f"{there}.mlp.down_proj", WIDTH, MLP, f"{here}/mlp/down", n)
    for name, ours in (("input", "attn"), ("post_attention", "mlp")):
      path = f"{here}/{ours}_norm/scale"
      m.put(f"{there}.{name}_layernorm.weight", (WIDTH,), path, n)
    m.there[f"{there}.self_attn.rotary_emb.inv_freq"] = m.draw(2)
  m.put(f"{prefix}{wrap}.norm.weight", (WIDTH,), "decoder/norm/scale")
  if not tied:
    m.matrix(f"{head or prefix}lm_head", rows, WIDTH, "decoder/head")


def tower(m: Maker, prefix: str, *, clip: bool = True) -> None:
  """CLIP of three blocks, of which two are read, or SigLIP of two with its head."""

  def patch(a: np.ndarray) -> np.ndarray:
    return a.transpose(2, 3, 1, 0).reshape(-1, TOWER)

  tokens = 5 if clip else 4
  m.put(f"{prefix}embeddings.patch_embedding.weight", (TOWER, 3, 2, 2),
        "encoder/embed/kernel", None, patch)  # fmt: skip
  m.put(
    f"{prefix}embeddings.position_embedding.weight",
    (tokens, TOWER),
    "encoder/positions",
  )
  if clip:
    m.put(f"{prefix}embeddings.class_embedding", (TOWER,), "encoder/class_token")
    m.norm(f"{prefix}pre_layrnorm", TOWER, "encoder/pre_norm")
  else:
    m.put(f"{prefix}embeddings.patch_embedding.bias", (TOWER,), "encoder/embed/bias")
    m.there[f"{prefix}head.probe"] = m.draw(1, 1, TOWER)
    m.there[f"{prefix}head.attention.in_proj_weight"] = m.draw(3 * TOWER, TOWER)
  m.there[f"{prefix}post_layernorm.weight"] = m.draw(TOWER)
  here = "encoder/layers"
  for n in range(3 if clip else 2):
    there = f"{prefix}encoder.layers.{n}"
    block = Maker(100 + n)
    for k, name in enumerate("qkv"):
      block.linear(f"{there}.self_attn.{name}_proj", TOWER, TOWER, f"{k}", None)
    block.ours[f"{here}/attn/qkv/kernel"] = np.concatenate(
      [block.ours.pop(f"{k}/kernel") for k in range(3)], 1
    )
    for k, name in enumerate("qkv"):
      block.ours[f"{here}/attn/{name}_bias"] = block.ours.pop(f"{k}/bias")
    block.linear(f"{there}.self_attn.out_proj", TOWER, TOWER, f"{here}/attn/out")
    block.norm(f"{there}.layer_norm1", TOWER, f"{here}/attn_norm")
    block.norm(f"{there}.layer_norm2", TOWER, f"{here}/mlp_norm")
    block.linear(f"{there}.mlp.fc1", MLP, TOWER, f"{here}/up")
    block.linear(f"{there}.mlp.fc2", TOWER, MLP, f"{here}/down")
    m.there |= block.there
    for path, array in block.ours.items():
      if n < 2:
        m.stacks.setdefault(path, {})[n] = array


def eva(m: Maker) -> None:
  """EVA's names, ln_vision not among them: as the file is."""
  m.put("cls_token", (1, 1, TOWER), "encoder/class_token", None, np.ravel)
  m.put("pos_embed", (1, 5, TOWER), "encoder/positions", None, lambda a: a[0])
  m.put("patch_embed.proj.weight", (TOWER, 3, 2, 2), "encoder/embed/kernel", None,
        lambda a: a.transpose(2, 3, 1, 0).reshape(-1, TOWER))  # fmt: skip
  m.put("patch_embed.proj.bias", (TOWER,), "encoder/embed/bias")
  here = "encoder/layers"
  for n in range(2):
    there = f"blocks.{n}"
    m.norm(f"{there}.norm1", TOWER, f"{here}/attn_norm", n)
    m.norm(f"{there}.norm2", TOWER, f"{here}/mlp_norm", n)
    m.matrix(f"{there}.attn.qkv", 3 * TOWER, TOWER, f"{here}/attn/qkv", n)
    for name in "qv":
      m.put(f"{there}.attn.{name}_bias", (TOWER,), f"{here}/attn/{name}_bias", n)
    m.linear(f"{there}.attn.proj", TOWER, TOWER, f"{here}/attn/out", n)
    m.linear(f"{there}.mlp.fc1", MLP, TOWER, f"{here}/up", n)
    m.linear(f"{there}.mlp.fc2", TOWER, MLP, f"{here}/down", n)


def blank_norm(ours: Arrays) -> Arrays:
  """ln_vision, which no file holds."""
  return ours | {
    "encoder/norm/scale": np.ones(TOWER, np.float32),
    "encoder/norm/bias": np.zeros(TOWER, np.float32),
  }


def projector(m: Maker, name: str, depth: int, into: int = TOWER) -> None:
  m.linear(f"{name}.0" if depth > 1 else name, WIDTH, into, "connector/dense_0")
  if depth > 1:
    m.linear(f"{name}.2", WIDTH, WIDTH, "connector/dense_1")


def pairs(m: Maker, prefix: str, names: dict[str, tuple[str, int, int]], ending: str,
          rank: int = 2, route: int = 0) -> None:  # fmt: skip
  """`names` {theirs: (ours, out, in)}; `ending` after lora_A."""
  for n in range(DEPTH):
    for name, (path, out, into) in names.items():
      stem, here = f"{prefix}.{n}.{name}", f"decoder/layers/{path}"
      m.put(f"{stem}.lora_A{ending}", (rank, into), f"{here}/lora_a", n, np.transpose)
      m.put(f"{stem}.lora_B{ending}", (out, rank), f"{here}/lora_b", n, np.transpose)
      if route:
        path = f"{here}/lora_route"
        m.put(f"{stem}.lora_route{ending}", (route, into), path, n, np.transpose)


QV = {
  "self_attn.q_proj": ("attn/q", WIDTH, WIDTH), "self_attn.v_proj": ("attn/v", 4, WIDTH)
}  # fmt: skip
PHI = {
  "self_attn.qkv_proj": ("attn/qkv", WIDTH + 8, WIDTH),
  "self_attn.o_proj": ("attn/o", WIDTH, WIDTH),
  "mlp.gate_up_proj": ("mlp/gate_up", 2 * MLP, WIDTH),
  "mlp.down_proj": ("mlp/down", WIDTH, MLP),
}


def made(make: Callable[[Maker], object], seed: int) -> Pair:
  m = Maker(seed)
  make(m)
  return m.close()


def _three(adapter: Pair, *spare: str, encoder: Pair | None = None, tasks: tuple[str, ...] = (),
           **options: Any) -> System:  # fmt: skip
  """EVA, LLaMA and an adapter, each in a file of its own."""
  see, seen = encoder or made(eva, 1)
  say, said = made(lambda m: decoder(m, **options), 2)
  there, ours = adapter
  parts = {"encoder": see, "decoder": say, "adapter": there}
  seen = seen if encoder else blank_norm(seen)
  return System(parts, seen | said | ours, spare, tasks)


def _whole(pair: Pair, *spare: str) -> System:
  there, ours = pair
  return System(dict.fromkeys(("encoder", "decoder", "adapter"), there), ours, spare)


@system
def llava_med_1() -> System:
  """One linear projector inside the decoder's folder, the tower in one of its own."""
  see, seen = made(lambda m: tower(m, "vision_model."), 1)

  def rest(m: Maker) -> None:
    decoder(m)
    projector(m, "model.mm_projector", 1)

  there, ours = made(rest, 2)
  return System({"encoder": see, "decoder": there, "adapter": there}, seen | ours)


@system
def llava_med_15() -> System:
  """Mistral's fewer key heads, two layers of projector, the tower inside."""

  def all_of(m: Maker) -> None:
    decoder(m)
    projector(m, "model.mm_projector", 2)
    tower(m, "model.vision_tower.vision_tower.vision_model.")

  return _whole(made(all_of, 3))


@system
def llava_tri() -> System:
  """The projector reads three scales side by side."""

  def all_of(m: Maker) -> None:
    decoder(m)
    projector(m, "model.mm_projector", 2, 3 * TOWER)
    tower(m, "model.vision_tower.vision_tower.vision_model.")

  return _whole(made(all_of, 4))


@system
def medm_vl() -> System:
  """Three sub-models in one file; Qwen's tied head is absent, SigLIP's own is there."""

  def all_of(m: Maker) -> None:
    decoder(m, "llm.", bias=True, tied=True)
    projector(m, "connector_image.connector", 2)
    tower(m, "encoder_image.encoder.vision_model.", clip=False)

  return _whole(made(all_of, 5))


@system
def hf_llava() -> System:
  """LlavaForConditionalGeneration as transformers saves it."""

  def all_of(m: Maker) -> None:
    decoder(m, "language_model.")
    m.linear("multi_modal_projector.linear_1", WIDTH, TOWER, "connector/dense_0")
    m.linear("multi_modal_projector.linear_2", WIDTH, WIDTH, "connector/dense_1")
    tower(m, "vision_tower.vision_model.")

  return _whole(made(all_of, 6))


@system
def hf_llava_in_memory() -> System:
  """The same with the names that transformers 5 has in memory."""

  def all_of(m: Maker) -> None:
    decoder(m, wrap="model.language_model")
    m.linear("model.multi_modal_projector.linear_1", WIDTH, TOWER, "connector/dense_0")
    m.linear("model.multi_modal_projector.linear_2", WIDTH, WIDTH, "connector/dense_1")
    tower(m, "model.vision_tower.")

  return _whole(made(all_of, 6))


@system
def minigpt_v2() -> System:
  """llama_proj of one layer and LoRA on q and v, as PEFT 0.2 names them."""

  def file(m: Maker) -> None:
    m.linear("llama_proj", WIDTH, 4 * TOWER, "connector/dense_0")
    pairs(m, "llama_model.base_model.model.model.layers", QV, ".weight")
    m.there[
      "llama_model.base_model.model.model.layers.0.self_attn.rotary_emb.inv_freq"
    ] = m.draw(2)

  return _three(made(file, 7))


@system
def uni_med() -> System:
  """mlp2x_gelu; its names carry the adapter's "default", and it says llm."""

  def file(m: Maker) -> None:
    projector(m, "llm_proj", 2, 4 * TOWER)
    pairs(m, "llm_model.base_model.model.model.layers", QV, ".default.weight")

  return _three(made(file, 8))


@system
def uni_med_cmoe() -> System:
  """Experts under two names, the router, and five task tokens for our tasks."""
  theirs = {"vqa": "vqa", "rec": "refer", "reg": "identify", "report": "caption",
            "multi_class": "cls"}  # fmt: skip
  tasks = ("report", "rec", "multi_class", "vqa", "reg")

  def file(m: Maker) -> None:
    into = 4 * TOWER
    for e in range(EXPERTS):
      for inner, layer, width in ((0, "dense_0", into), (2, "dense_1", WIDTH)):
        name = f"moe_layers.{e}.{inner}"
        m.linear(name, WIDTH, width, f"connector/experts/{layer}", e)
        for kind in ("weight", "bias"):
          m.there[f"llm_proj.{e}.{inner}.{kind}"] = m.there[f"{name}.{kind}"]
    m.linear("router.fc1", 5, 2 * into, "connector/router/dense_0")
    m.linear("router.fc2", EXPERTS, 5, "connector/router/dense_1")
    for number, task in enumerate(tasks):
      m.put(f"task_tokens.{theirs[task]}", (1, 1, into), "connector/task_tokens", number,
            np.ravel)  # fmt: skip
    pairs(m, "llm_model.base_model.model.model.layers", QV, ".default.weight")

  return _three(made(file, 9), r"llm_proj\..*|moe_layers\..*", tasks=tasks)


def qformer(m: Maker, there: str, inner: str, norm: str) -> None:
  m.put(
    "query_tokens", (1, 3, Q_WIDTH), "connector/qformer/queries", None, lambda a: a[0]
  )
  m.norm(norm, Q_WIDTH, "connector/qformer/norm")
  for n in range(DEPTH):
    name, here = f"{there}.{n}", f"connector/qformer/layers_{n}"
    blocks = [("attention", "attn", Q_WIDTH)]
    blocks += [("crossattention", "cross", TOWER)] if n % 2 == 0 else []
    for theirs, ours, memory in blocks:
      for word, width in (("query", Q_WIDTH), ("key", memory), ("value", memory)):
        m.linear(
          f"{name}.{theirs}.{inner}.{word}", Q_WIDTH, width, f"{here}/{ours}/{word[0]}"
        )
      m.linear(f"{name}.{theirs}.output.dense", Q_WIDTH, Q_WIDTH, f"{here}/{ours}/out")
      m.norm(f"{name}.{theirs}.output.LayerNorm", Q_WIDTH, f"{here}/{ours}_norm")
    m.linear(f"{name}.intermediate_query.dense", MLP, Q_WIDTH, f"{here}/up")
    m.linear(f"{name}.output_query.dense", Q_WIDTH, MLP, f"{here}/down")
    m.norm(f"{name}.output_query.LayerNorm", Q_WIDTH, f"{here}/mlp_norm")


def _with_queries(file: Pair) -> System:
  """XrayGPT: EVA, BLIP-2's Q-Former with its norm, and one trained linear layer."""
  adapter = made(
    lambda m: m.linear("llama_proj", WIDTH, Q_WIDTH, "connector/dense_0"), 10
  )
  adapter[0]["Qformer.bert.embeddings.position_ids"] = np.zeros((1, 4), np.int64)
  found = _three(adapter, encoder=made(eva, 1))
  there, ours = file
  return found._replace(parts=found.parts | {"qformer": there}, ours=found.ours | ours)


@system
def xraygpt() -> System:
  def file(m: Maker) -> None:
    qformer(
      m, "Qformer.bert.encoder.layer", "self", "Qformer.bert.embeddings.LayerNorm"
    )
    m.norm("ln_vision", TOWER, "encoder/norm")
    m.there["t5_proj.weight"] = m.draw(4, 4)
    m.there["Qformer.bert.encoder.layer.0.output.dense.weight"] = m.draw(4, 4)

  return _with_queries(made(file, 11))


@system
def xraygpt_of_hf() -> System:
  def file(m: Maker) -> None:
    qformer(m, "qformer.encoder.layer", "attention", "qformer.layernorm")
    m.norm("vision_model.post_layernorm", TOWER, "encoder/norm")
    m.there["language_projection.weight"] = m.draw(4, 4)
    m.there["language_model.lm_head.weight"] = m.draw(4, 4)
    m.there["vision_model.embeddings.class_embedding"] = m.draw(1, 1, 4)

  return _with_queries(made(file, 12))


@system
def healthgpt() -> System:
  """H-LoRA on Phi's fused linears, and the projector, in one file."""

  def file(m: Maker) -> None:
    pairs(m, "base_model.model.model.layers", PHI, ".weight", rank=4, route=2)
    projector(m, "base_model.model.model.mm_projector", 2)

  clip = made(lambda m: tower(m, "vision_model."), 1)
  return _three(made(file, 13), encoder=clip, fused=True)


@system
def llava_lora() -> System:
  """LLaVA's LoRA folder: pairs, and the projector that PEFT did not wrap."""

  def file(m: Maker) -> None:
    pairs(m, "base_model.model.model.layers", QV, ".weight")
    projector(m, "base_model.model.model.mm_projector", 2)

  clip = made(lambda m: tower(m, "vision_model."), 1)
  return _three(made(file, 14), encoder=clip)


def _gemma(before: str, wrap: str, tower_of: str) -> System:
  """Four norms a layer and two more of its heads; the last norm of the tower is read."""

  def all_of(m: Maker) -> None:
    decoder(m, before, wrap=wrap, tied=True)
    here = "decoder/layers"
    for n in range(DEPTH):
      there = f"{before}{wrap}.layers.{n}"
      for name in ("q_norm", "k_norm"):
        path = f"{here}/attn/{name}/scale"
        m.put(f"{there}.self_attn.{name}.weight", (4,), path, n)
      # LLaMA's name for the norm before the MLP is that of another one here.
      m.stacks.pop(f"{here}/mlp_norm/scale", None)
    for n in range(DEPTH):
      there = f"{before}{wrap}.layers.{n}"
      for name, ours in (
        ("post_attention", "attn_post"), ("pre_feedforward", "mlp"),
        ("post_feedforward", "mlp_post"),
      ):  # fmt: skip
        path = f"{here}/{ours}_norm/scale"
        m.put(f"{there}.{name}_layernorm.weight", (WIDTH,), path, n)
    stem = f"{tower_of.partition('vision_tower')[0]}multi_modal_projector"
    m.put(
      f"{stem}.mm_input_projection_weight", (TOWER, WIDTH), "connector/dense_0/kernel"
    )
    m.put(f"{stem}.mm_soft_emb_norm.weight", (TOWER,), "connector/norm/scale")
    tower(m, tower_of, clip=False)
    m.norm(f"{tower_of}post_layernorm", TOWER, "encoder/norm")

  return _whole(made(all_of, 15))


@system
def medgemma() -> System:
  """As transformers 4 wrote the hub's files."""
  return _gemma("language_model.", "model", "vision_tower.vision_model.")


@system
def medgemma_in_memory() -> System:
  """With the names that transformers 5 has in memory."""
  return _gemma("", "model.language_model", "model.vision_tower.")


def write(folder: pathlib.Path, found: System) -> dict[str, pathlib.Path]:
  """A folder for each file: {part: path}."""
  paths: dict[int, pathlib.Path] = {}
  for part, arrays in found.parts.items():
    if id(arrays) not in paths:
      paths[id(arrays)] = folder / part
      (folder / part).mkdir(parents=True, exist_ok=True)
      name = "adapter_model" if part == "adapter" else "model"
      files.write_tensors(folder / part / f"{name}.safetensors", arrays)
  sources = {part: paths[id(arrays)] for part, arrays in found.parts.items()}
  settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "bias": "none"}
  if "adapter" in sources:
    (sources["adapter"] / "adapter_config.json").write_text(json.dumps(settings))
  return sources
