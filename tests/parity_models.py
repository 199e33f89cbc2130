"""Reference models at reduced size, ours with the same weights, and how far apart they are.

    transformers, peft (torch, float32) ── weights/layouts ──▶ our parameters
            │                                                        │
            └────────────── the same pixels and text ────────────────┘ ──▶ Measure

tests/test_parity.py holds every measure to its bound; benchmarks/parity.py prints them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from collections.abc import Mapping
from functools import partial
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import peft
import torch
import transformers

from imax_jax import tree
from imax_jax.data import packing
from imax_jax.models import lora
from imax_jax.models import loss as loss_lib
from imax_jax.models import storage
from imax_jax.models import zoo
from imax_jax.models.decoder import Decoder
from imax_jax.models.vit import Encoder
from imax_jax.weights.layouts import Layout
from imax_jax.weights.rows_of_layouts import layout

# Of matrices this small, threads take longer to meet than to multiply.
torch.set_num_threads(1)
# Issue 4's bounds: of the largest value, and of a gradient's length.
EXACT, GRADIENT = 2e-5, 1e-4
# Compiling is what the time goes to.
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


class Measure(NamedTuple):
  row: str
  quantity: str
  error: float
  bound: float


def far(got: Any, want: Any) -> float:
  """The largest absolute difference over the largest absolute value."""
  got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
  assert got.shape == want.shape, (got.shape, want.shape)
  return float(np.abs(got - want).max() / np.abs(want).max())


def length(got: Any, want: Any) -> float:
  """The length (L2) of the difference over the length of what is wanted."""
  got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
  assert got.shape == want.shape, (got.shape, want.shape)
  return float(np.linalg.norm(got - want) / np.linalg.norm(want))


# ── Weights ───────────────────────────────────────────────────────────────────────

# What the residual stream starts as is small, as in trained models: beside a variance of
# one nobody would see the eps of a norm. What layers add to it is not.
_SPREADS = (
  (r".*(embed|position|class_)[^.]*(\.(weight|bias))?", 0.03),
  (r".*(out_proj|o_proj|projection|fc2|down_proj)\.(weight|bias)", 0.3),
  (r".*", 1.0),
)


def randomise(model: torch.nn.Module, seed: int = 0) -> None:
  """Seeded normal numbers for what is trainable: no one or zero of an initialisation
  hides a parameter."""
  noise = torch.Generator().manual_seed(seed)
  for name, parameter in model.named_parameters():
    if not parameter.requires_grad:
      continue
    spread = next(spread for rule, spread in _SPREADS if re.fullmatch(rule, name))
    if parameter.ndim == 1:
      spread *= 0.3
    elif "lora_B" in name:
      spread *= 0.1
    elif not re.search("embed_tokens|class_embedding|position_embedding", name):
      spread /= parameter[0].numel() ** 0.5
    drawn = spread * torch.randn(parameter.shape, generator=noise)
    parameter.data = drawn + ("norm" in name and name.endswith("weight"))
    if name.endswith("qkv.bias"):  # of EVA, which has none for its keys
      parameter.data[len(parameter) // 3 : -len(parameter) // 3] = 0


def ours(
  expected: tree.Tree, *sources: tuple[Mapping[str, torch.Tensor], Layout]
) -> dict[str, Any]:
  """({published name: tensor}, their table) … as a tree of ours, filled throughout."""
  flat = tree.flatten(expected)
  leaves = {
    path: np.full(leaf.shape, np.nan, np.float32) for path, leaf in flat.items()
  }
  for tensors, table in sources:
    for name, tensor in tensors.items():
      for row, layer in table.rows_of(table.canonical(name)):
        if row.path not in leaves or (layer or 0) >= len(leaves[row.path]):
          continue
        leaf = leaves[row.path][... if layer is None else layer]
        share = row.to_ours(tensor.detach().numpy())
        at = row.slot[0] * share.shape[-1]
        leaf[..., at : at + share.shape[-1]] = share
  empty = [path for path, leaf in leaves.items() if np.isnan(leaf).any()]
  assert not empty, f"no tensor fills {empty}"
  return tree.unflatten(leaves)


def narrow(params: tree.Tree, kind: str) -> dict[str, Any]:
  """Parameters of a decoder as they are kept where `kernel_dtype` is `kind`."""
  kept: dict[str, Any] = {}
  for path, leaf in tree.flatten(params).items():
    if kind in storage.QUANTIZED and re.fullmatch("decoder/layers/.*/kernel", path):
      stored = storage.store(leaf, kind)
      kept |= {path: stored["kernel"], f"{path}_scale": stored["kernel_scale"]}
    elif kind != "float32" and path.endswith(("/kernel", "/embedding")):
      kept[path] = jnp.asarray(leaf, storage.float_dtype(kind))
    else:
      kept[path] = leaf
  return tree.unflatten(kept)


def _reference(kind: str, ending: str, settings: Mapping[str, Any]) -> Any:
  config = getattr(transformers, f"{kind}Config")(**settings)
  model = getattr(transformers, f"{kind}{ending}")._from_config(
    config, attn_implementation="eager"
  )
  randomise(model)
  return model.eval()


def _caught(layer: torch.nn.Module, run: Callable[[], Any]) -> tuple[Any, Any]:
  """(what `run` returns, what the layer gave meanwhile)."""
  seen: list[Any] = []
  hook = layer.register_forward_hook(lambda _, __, output: seen.append(output))
  with torch.no_grad():
    output = run()
  hook.remove()
  return output, seen[0][0] if isinstance(seen[0], tuple) else seen[0]


# ── Encoders ──────────────────────────────────────────────────────────────────────

TOWER: dict[str, Any] = {
  "image_px": 32, "patch_px": 8, "width": 48, "depth": 2, "num_heads": 4,
  "mlp_width": 80, "dtype": "float32", "kernel_dtype": "float32",
}  # fmt: skip
VISION: dict[str, Any] = {
  "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
  "intermediate_size": 80, "image_size": 32, "patch_size": 8,
}  # fmt: skip
# Row of zoo: the reference, its settings where they are not its defaults, our names for
# it, and what is ours.
ENCODERS: dict[str, tuple[str, dict[str, Any], str, dict[str, Any]]] = {
  # Its features are those of the last block but one, so it has one more than ours.
  "clip_vit_l14": (
    "CLIPVision", {"num_hidden_layers": 3, "hidden_act": "quick_gelu"},
    "clip_vision", {},
  ),
  "siglip_b16_256": (
    "SiglipVision", {"hidden_act": "gelu_pytorch_tanh"}, "siglip_vision", {},
  ),
  # As 384 is no multiple of 14.
  "siglip_so400m_384": (
    "SiglipVision", {"hidden_act": "gelu_pytorch_tanh", "image_size": 30},
    "siglip_vision", {"image_px": 30},
  ),
  # The port's last norm has the eps of its blocks; tests/test_models.py holds the
  # original's.
  "eva_vit_g14": (
    "Blip2Vision", {"layer_norm_eps": 1e-6}, "blip2_vision", {"post_norm_eps": 1e-6},
  ),
}  # fmt: skip


def encoder_fields(name: str) -> dict[str, Any]:
  return zoo.ENCODERS[name] | TOWER | ENCODERS[name][3]


def pixels(count: int, side: int) -> np.ndarray:
  return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8)


def published_pixels(raw: np.ndarray, name: str) -> torch.Tensor:
  """uint8[N, H, W, C] as the publisher's processor gives them: float32[N, C, H, W]."""
  own = transformers.image_utils
  clip = (own.OPENAI_CLIP_MEAN, own.OPENAI_CLIP_STD)
  half = (own.IMAGENET_STANDARD_MEAN, own.IMAGENET_STANDARD_STD)
  mean, std = (torch.tensor(x) for x in (half if "siglip" in name else clip))
  scaled = (torch.from_numpy(raw).float() / 255 - mean) / std
  return scaled.permute(0, 3, 1, 2).contiguous()


def encoder_reference(name: str, **more: Any) -> Any:
  kind, settings, _, _ = ENCODERS[name]
  return _reference(kind, "Model", VISION | settings | more)


def encoder_pair(name: str) -> tuple[Callable[..., np.ndarray], np.ndarray, np.ndarray]:
  """(our features of a variant's fields, the reference's after the last block of our
  row, its features after the norm behind them)."""
  reference, fields = encoder_reference(name), encoder_fields(name)
  raw = pixels(2, fields["image_px"])
  blocks = next(m for n, m in reference.named_modules() if n.endswith("encoder.layers"))
  output, hidden = _caught(
    blocks[fields["depth"] - 1],
    lambda: reference(pixel_values=published_pixels(raw, name)),
  )
  first = int(fields.get("class_token", True))

  def features(**variant: Any) -> np.ndarray:
    encoder = Encoder(**fields | variant)
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), raw)["params"]
    params = ours(
      {"encoder": shapes}, (reference.state_dict(), layout(ENCODERS[name][2]))
    )
    apply = jit(encoder.apply)
    return np.asarray(apply({"params": params["encoder"]}, raw))

  return (
    features,
    hidden[:, first:].numpy(),
    output.last_hidden_state[:, first:].numpy(),
  )


def encoder_measures(name: str) -> list[Measure]:
  features, hidden, normed = encoder_pair(name)
  if not encoder_fields(name).get("post_norm_eps", 1):
    return [Measure(name, "features", far(features(), hidden), EXACT)]
  return [
    Measure(name, "last block", far(features(post_norm_eps=0.0), hidden), EXACT),
    Measure(name, "features", far(features(), normed), EXACT),
  ]


# ── Decoders ──────────────────────────────────────────────────────────────────────

SIZES: dict[str, Any] = {
  "width": 64, "depth": 2, "mlp_width": 128, "vocab_size": 128,
  "dtype": "float32", "kernel_dtype": "float32", "remat": "",
}  # fmt: skip
LLM: dict[str, Any] = {
  "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128,
  "vocab_size": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
  "tie_word_embeddings": False, "sliding_window": None,
}  # fmt: skip
_TIED = {"tie_word_embeddings": True}
# Row of zoo, then "+" what a variant of it is for: the reference, its query and its
# key/value heads, rope base and norm eps, the rest, and what is ours.
DECODERS: dict[str, tuple[str, tuple[int, int], float, float, Any, Any]] = {
  "llama2_7b": ("Llama", (4, 4), 1e4, 1e-5, {}, {}),
  "vicuna_7b": ("Llama", (4, 4), 1e4, 1e-6, {}, {}),
  "mistral_7b": ("Mistral", (4, 2), 1e6, 1e-5, {}, {}),
  "mistral_7b + wide heads": (
    "Mistral", (4, 2), 1e6, 1e-5, {"head_dim": 24}, {"head_width": 24},
  ),
  "llama3_8b": ("Llama", (8, 2), 5e5, 1e-5, {}, {}),
  "qwen25_3b": ("Qwen2", (8, 1), 1e6, 1e-6, _TIED, {}),
  "phi3_mini": ("Phi3", (4, 4), 1e4, 1e-5, {"sliding_window": 9}, {"window": 9}),
  "phi4": ("Phi3", (8, 2), 2.5e5, 1e-5, {}, {}),
  "smollm2_135m": (
    "Llama", (9, 3), 1e5, 1e-5, {"hidden_size": 576, **_TIED}, {"width": 576},
  ),
}  # fmt: skip
# Two rows of text, longer than the window, far from the start of the context.
TEXT = np.random.default_rng(0).integers(3, 128, (2, 24)).astype(np.int32)
POSITION = np.broadcast_to(np.arange(2000, 2024, dtype=np.int32), TEXT.shape)


def decoder_fields(name: str) -> dict[str, Any]:
  _, heads, *_, fields = DECODERS[name]
  counts = {"num_heads": heads[0], "num_kv_heads": heads[1]}
  return zoo.DECODERS[name.split(" + ")[0]] | SIZES | counts | fields


def decoder_reference(name: str, **more: Any) -> Any:
  kind, heads, base, eps, settings, _ = DECODERS[name]
  return _reference(
    kind,
    "ForCausalLM",
    LLM
    | {"num_attention_heads": heads[0], "num_key_value_heads": heads[1]}
    | {"rope_parameters": {"rope_type": "default", "rope_theta": base}}
    | {"rms_norm_eps": eps}
    | settings
    | more,
  )


def decoder_table(fields: Mapping[str, Any]) -> Layout:
  return layout("hf_phi3" if fields.get("fused") else "hf_llama")


def whole(decoder: Decoder, text: Any, position: Any) -> tuple[jax.Array, jax.Array]:
  """The stream after the last layer, and the logits, of rows that are all text."""
  tokens = jnp.arange(text.shape[1])
  mask = jnp.broadcast_to(
    tokens[:, None] >= tokens, (len(text), len(tokens), len(tokens))
  )
  x, _ = decoder(decoder.embed(text), position, mask)
  return x, decoder.head(x)


def decoder_shapes(fields: Mapping[str, Any]) -> dict[str, Any]:
  make = partial(Decoder(**fields).init, method=whole)
  made = jax.eval_shape(make, jax.random.key(0), TEXT, POSITION)
  return {"decoder": made["params"]}


def run_decoder(
  fields: Mapping[str, Any], params: tree.Tree
) -> tuple[np.ndarray, np.ndarray]:
  apply = jit(partial(Decoder(**fields).apply, method=whole))
  x, logits = apply({"params": params["decoder"]}, TEXT, POSITION)
  return np.asarray(x), np.asarray(logits)


def read(reference: Any) -> Any:
  """What a reference makes of the text."""
  text, position = torch.from_numpy(TEXT).long(), torch.from_numpy(POSITION.copy())
  return reference(input_ids=text, position_ids=position.long())


def decoder_pair(name: str) -> tuple[Callable[..., Any], np.ndarray, np.ndarray]:
  """(our stream and logits of a variant's fields, the reference's stream, its logits)."""
  reference, fields = decoder_reference(name), decoder_fields(name)
  output, hidden = _caught(reference.model.layers[-1], lambda: read(reference))

  def run(**variant: Any) -> tuple[np.ndarray, np.ndarray]:
    own = fields | variant
    shapes = decoder_shapes(own | {"kernel_dtype": "float32"})
    params = ours(shapes, (reference.state_dict(), decoder_table(own)))
    return run_decoder(own, narrow(params, own["kernel_dtype"]))

  return run, hidden.numpy(), output.logits.numpy()


def decoder_measures(name: str) -> list[Measure]:
  run, hidden, logits = decoder_pair(name)
  x, own_logits = run()
  return [
    Measure(name, "last block", far(x, hidden), EXACT),
    Measure(name, "logits", far(own_logits, logits), EXACT),
  ]


# ── Narrow kernels and narrow arithmetic ──────────────────────────────────────────


def formula(kernel: np.ndarray, kind: str) -> np.ndarray:
  """A kernel [in, out] through bitsandbytes' int8 or NF4 and back, written out."""
  weight = torch.from_numpy(kernel.T.copy())  # [out, in]
  if kind == "int8":
    largest = weight.abs().amax(1, keepdim=True)
    return (torch.round(weight * (127 / largest)) * (largest / 127)).numpy().T
  # Half the levels are positive quantiles, half negative ones, and 0 stands between.
  normal = torch.distributions.Normal(0.0, 1.0)
  up = normal.icdf(torch.linspace(0.9677083, 0.5, 9, dtype=torch.float64)[:-1])
  down = -normal.icdf(torch.linspace(0.9677083, 0.5, 8, dtype=torch.float64)[:-1])
  levels = torch.cat([up, down, torch.zeros(1)]).sort().values / up[0]
  blocks = weight.reshape(-1, 64)
  largest = blocks.abs().amax(1, keepdim=True)
  index = (blocks[..., None] / largest[..., None] - levels).abs().argmin(-1)
  return (levels[index] * largest).reshape(weight.shape).float().numpy().T


def narrow_measures(name: str = "llama2_7b") -> list[Measure]:
  """Kernels and logits where kernels are kept, or numbers multiplied, with fewer bits.

  All but those against the formula are errors by intent; their bounds are what such a
  model may lose here.
  """
  run, _, logits = decoder_pair(name)
  state = decoder_reference(name).state_dict()
  kernel = state["model.layers.1.mlp.down_proj.weight"].numpy().T
  found = []
  for kind, lost, logits_lost in (("int8", 0.01, 0.03), ("nf4", 0.11, 0.4)):
    stored = storage.store(kernel, kind)
    back = storage.restore(stored["kernel"], stored["kernel_scale"], jnp.float32)
    row = f"{name}, {kind}"
    found += [
      Measure(row, "kernel, to the formula's", far(back, formula(kernel, kind)), 1e-6),
      Measure(row, "kernel (L2)", length(back, kernel), lost),
      Measure(
        row, "logits (L2)", length(run(kernel_dtype=kind)[1], logits), logits_lost
      ),
    ]
  for fields in ({"kernel_dtype": "bfloat16"}, {"dtype": "bfloat16"}):
    row = f"{name}, " + " ".join(f"{key} {value}" for key, value in fields.items())
    found.append(Measure(row, "logits (L2)", length(run(**fields)[1], logits), 0.02))
  return found


# ── LoRA ──────────────────────────────────────────────────────────────────────────

_SEVEN = ("q", "k", "v", "o", "gate", "up", "down")
# Row of zoo, PEFT's targets, ours.
ADAPTERS: dict[str, tuple[str, tuple[str, ...], str]] = {
  "LoRA on all seven": ("mistral_7b", _SEVEN, ".*"),
  "LoRA on q and v": ("mistral_7b", ("q", "v"), "attn/[qv]"),
  "LoRA on fused": ("phi4", ("qkv", "o", "gate_up", "down"), ".*"),
}
RANK, ALPHA = 8, 16
PAIRS = ((r".*/lora_[ab]", True), (r".*", False))
SUPERVISED = np.random.default_rng(1).random(TEXT.shape) < 0.5
SUPERVISED[:, -1] = False  # nothing follows it


def adapter(name: str) -> tuple[dict[str, torch.Tensor], Any]:
  """(the base model's tensors, the base model with PEFT's pairs as they start)."""
  row, targets, _ = ADAPTERS[name]
  base = decoder_reference(row)
  tensors = dict(base.state_dict())
  torch.manual_seed(0)
  settings = peft.LoraConfig(
    r=RANK, lora_alpha=ALPHA, target_modules=[f"{target}_proj" for target in targets]
  )
  return tensors, peft.get_peft_model(base, settings).eval()


def adapter_fields(name: str) -> dict[str, Any]:
  row, _, targets = ADAPTERS[name]
  lora = {"lora_rank": RANK, "lora_alpha": float(ALPHA), "lora_targets": targets}
  return decoder_fields(row) | lora


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
  return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def farthest(got: tree.Tree, want: tree.Tree) -> float:
  """`length` of the tensor, of one layer each, where it is largest."""
  have, errors = tree.flatten(got), []
  for path, leaf in tree.flatten(want).items():
    layers = (
      zip(have[path], leaf, strict=True) if leaf.ndim == 3 else [(have[path], leaf)]
    )
    errors += [length(*pair) for pair in layers]
  return max(errors)


def adapter_measures(name: str) -> list[Measure]:
  tensors, reference = adapter(name)
  randomise(reference)
  fields = adapter_fields(name)
  shapes = decoder_shapes(fields)
  table = decoder_table(fields)
  params = ours(shapes, (tensors, table), (reference.state_dict(), layout("peft")))
  want = read(reference).logits
  target = torch.from_numpy(np.roll(TEXT, -1, 1)).long()
  chosen = torch.from_numpy(SUPERVISED)
  torch.nn.functional.cross_entropy(want[chosen], target[chosen]).backward()
  pairs, frozen = tree.split(params, PAIRS)

  def loss(pairs: Any) -> tuple[jax.Array, jax.Array]:
    own = tree.merge(pairs, frozen)["decoder"]
    _, logits = Decoder(**fields).apply({"params": own}, TEXT, POSITION, method=whole)
    weight = SUPERVISED.astype(np.float32)
    places = packing.supervised(weight, 1, int(SUPERVISED.sum()))
    batch = {"text": TEXT, "loss_weight": weight, "supervised": places}
    total, weight = loss_lib.example_loss(loss_lib.token_nll, logits, batch)
    return total.sum() / weight.sum(), logits

  grads, logits = jit(jax.grad(loss, has_aux=True))(pairs)
  wanted = ours(pairs, (gradients(reference), layout("peft")))
  want_merged = ours(frozen, (reference.merge_and_unload().state_dict(), table))
  flat = tree.flatten(params)
  merged = {path: lora.merged(flat, path, ALPHA) for path in tree.flatten(frozen)}
  return [
    Measure(name, "logits", far(logits, want.detach()), EXACT),
    Measure(name, "gradients (L2)", farthest(grads, wanted), GRADIENT),
    Measure(name, "merged kernels (L2)", farthest(merged, want_merged), EXACT),
  ]
