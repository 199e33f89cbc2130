"""Gemma 3's decoder beside transformers': two kinds of layers, images seen both ways.

The reference makes the image tokens (SigLIP, pooling, norm, projection); ours takes them
as features, through a connector that changes nothing.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the reference runs in torch")
pytest.importorskip("peft", reason="the other references'")

# After the two lines above: these import what may be missing.
import transformers  # noqa: E402

from imax_jax import tree  # noqa: E402
from imax_jax.data import records  # noqa: E402
from imax_jax.data import templates  # noqa: E402
from imax_jax.data import tokenizer as tokenizer_lib  # noqa: E402
from imax_jax.evaluate import lines  # noqa: E402
from imax_jax.evaluate.generate import Generator  # noqa: E402
from imax_jax.models import attention  # noqa: E402
from imax_jax.models import zoo  # noqa: E402
from imax_jax.models.decoder import Decoder  # noqa: E402
from imax_jax.models.vit import Encoder  # noqa: E402
from imax_jax.models.vlm import Vlm  # noqa: E402
from imax_jax.weights import export  # noqa: E402
from tests import parity_models as models  # noqa: E402
from tests import test_generate as answers  # noqa: E402
from tests import test_models as toy  # noqa: E402

ROW = "gemma3_4b"
# As google-deepmind/gemma (gm/nn/_gemma.py, Gemma3_4B), AI-Hypercomputer/maxtext
# (configs/models/gemma3-4b.yml) and transformers' own converter of the weights
# (convert_gemma3_weights.py, gemma3_4b, which adds 64 rows for the image) have them.
PUBLISHED: dict[str, Any] = {
  "vocab_size": 262_144 + 64, "hidden_size": 2560, "intermediate_size": 10240,
  "num_hidden_layers": 34, "num_attention_heads": 8, "num_key_value_heads": 4,
  "head_dim": 256, "query_pre_attn_scalar": 256, "sliding_window": 1024,
  "rope_parameters": {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
  },
}  # fmt: skip
TOWER: dict[str, Any] = {
  "model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304,
  "num_hidden_layers": 27, "num_attention_heads": 16, "image_size": 896, "patch_size": 14,
  "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6, "vision_use_head": False,
}  # fmt: skip
VOCABULARY, WIDTH, DEPTH = 264, 64, 3
IMAGE = VOCABULARY  # the id that stands for an image token: of no row of the embedding
# Two kinds of layers, the last a global one; a window shorter than an image.
SMALL = PUBLISHED | {
  "vocab_size": VOCABULARY, "hidden_size": WIDTH, "intermediate_size": 128,
  "num_hidden_layers": DEPTH, "num_attention_heads": 4, "num_key_value_heads": 2,
  "head_dim": 24, "query_pre_attn_scalar": 40, "sliding_window": 3,
  "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
}  # fmt: skip
FIELDS = zoo.DECODERS[ROW] | {
  "width": WIDTH, "depth": DEPTH, "num_heads": 4, "num_kv_heads": 2, "head_width": 24,
  "mlp_width": 128, "vocab_size": VOCABULARY, "window": 3, "global_every": 3,
  "query_scale": 40**-0.5, "dtype": "float32", "kernel_dtype": "float32", "remat": "",
}  # fmt: skip
# What must be seen if it is otherwise.
WRONG: tuple[dict[str, Any], ...] = (
  {"norm_offset": False}, {"rope_factor": 1.0}, {"global_every": 2}, {"global_every": 0},
  {"qk_norm": False}, {"query_scale": 0.0}, {"post_norms": False}, {"embed_scale": False},
  {"activation": "silu"}, {"window": 4}, {"local_rope_base": 1e6}, {"norm_eps": 1e-4},
)  # fmt: skip


# ── Weights ───────────────────────────────────────────────────────────────────────

NAMES = {
  "input_layernorm": "attn_norm", "post_attention_layernorm": "attn_post_norm",
  "pre_feedforward_layernorm": "mlp_norm", "post_feedforward_layernorm": "mlp_post_norm",
  "self_attn.q_norm": "attn/q_norm", "self_attn.k_norm": "attn/k_norm",
  **{f"self_attn.{name}_proj": f"attn/{name}" for name in "qkvo"},
  **{f"mlp.{name}_proj": f"mlp/{name}" for name in ("gate", "up", "down")},
}  # fmt: skip


def ours(model: Any, read: Any = lambda weight: weight.detach()) -> dict[str, Any]:
  """What `read` takes of a Gemma3TextModel's weights, as a tree of our decoder's."""
  found = {
    "embed/embedding": read(model.embed_tokens.weight).numpy(),
    "norm/scale": read(model.norm.weight).numpy(),
  }
  for theirs, here in NAMES.items():
    leaves = [
      read(layer.get_submodule(theirs).weight).numpy() for layer in model.layers
    ]
    field = "kernel" if leaves[0].ndim == 2 else "scale"
    found[f"layers/{here}/{field}"] = np.stack([leaf.T for leaf in leaves])
  return tree.unflatten(found)


@pytest.fixture(scope="module")
def reference() -> Any:
  """Gemma 3 at reduced width; four tokens an image."""
  config = transformers.Gemma3Config(
    text_config=SMALL | {"pad_token_id": 0},
    vision_config=TOWER | models.VISION,
    mm_tokens_per_image=toy.SLOTS,
    image_token_index=IMAGE,
  )
  made = transformers.Gemma3ForConditionalGeneration._from_config(
    config, attn_implementation="eager"
  )
  models.randomise(made)
  projection = made.model.multi_modal_projector.mm_input_projection_weight
  projection.data *= 0.15  # about as large as embedded text
  return made.eval()


@pytest.fixture(scope="module")
def features(reference: Any) -> jax.Array:
  """float32[5, S, D], the image tokens of five pictures."""
  pixels = models.published_pixels(models.pixels(5, 32), "siglip")
  with torch.no_grad():
    found = reference.model.get_image_features(pixels).pooler_output
  assert found.std() > 0.1
  return jnp.asarray(found)


def vlm(**decoder: Any) -> Vlm:
  return Vlm(
    encoder=answers.FIELDS["encoder"] | {"width": WIDTH},
    connector={"merge": 1, "depth": 1},
    decoder=FIELDS | decoder,
  )


def params_of(reference: Any) -> dict[str, Any]:
  one = {"kernel": np.eye(WIDTH, dtype=np.float32), "bias": np.zeros(WIDTH, np.float32)}
  decoder = ours(reference.model.language_model)
  return {"connector": {"dense_0": one}, "decoder": decoder}


# ── Text ──────────────────────────────────────────────────────────────────────────


def test_text_far_from_the_start(reference: Any) -> None:
  """The stream after the last layer, the logits, and that each field is seen in them."""
  language = reference.model.language_model
  alone = transformers.Gemma3ForCausalLM(language.config)
  alone.model.load_state_dict(language.state_dict())
  alone.eval()
  output, hidden = models._caught(alone.model.layers[-1], lambda: models.read(alone))
  params = {"decoder": ours(language)}
  x, logits = models.run_decoder(FIELDS, params)
  assert models.far(x, hidden) <= models.EXACT
  assert models.far(logits, output.logits) <= models.EXACT
  for wrong in WRONG:
    fields = FIELDS | wrong
    shapes = tree.flatten(models.decoder_shapes(fields))
    kept = {path: x for path, x in tree.flatten(params).items() if path in shapes}
    error = models.far(
      models.run_decoder(fields, tree.unflatten(kept))[1], output.logits
    )
    assert error > 5 * models.EXACT, (wrong, error)


# ── Text and images ───────────────────────────────────────────────────────────────


def read_alone(reference: Any, image: int, ids: np.ndarray) -> Any:
  """Logits [T, V] of one image's prefix with one entry behind it."""
  ids = np.asarray(ids)
  return reference(
    input_ids=torch.from_numpy(ids[None]).long(),
    token_type_ids=torch.from_numpy((ids == IMAGE)[None]).long(),
    pixel_values=models.published_pixels(models.pixels(5, 32), "siglip")[image][None],
  ).logits[0]


def seen_apart(reference: Any, batch: Any) -> tuple[list[Any], list[Any]]:
  """(where each entry with its prefix lies in the batch, the reference's logits there)."""
  places, logits = [], []
  for image in range(3):
    for segment in range(1, 1 + batch["segment"][batch["image"] == image].max()):
      own = (batch["segment"] == 0) | (batch["segment"] == segment)
      where = (batch["image"] == image) & own
      ids = np.where(batch["slot"] >= 0, IMAGE, batch["text"])[where]
      places.append(where)
      logits.append(read_alone(reference, image, ids))
  return places, logits


def test_packed_rows_with_images(
  reference: Any, features: jax.Array, monkeypatch: pytest.MonkeyPatch
) -> None:
  """Logits and gradients; blocks of queries end inside of images."""
  monkeypatch.setattr(attention, "_BLOCK", 5)
  batch = toy.PACKED | {"pixels": features[:3]}
  places, want = seen_apart(reference, batch)
  total = 0.0
  for where, logits in zip(places, want, strict=True):
    weight = torch.from_numpy(batch["loss_weight"][where])
    target = torch.from_numpy(np.roll(batch["text"][where], -1)).long()
    nll = torch.nn.functional.cross_entropy(logits, target, reduction="none")
    total = total + (nll * weight).sum()
  language = reference.model.language_model
  names, weights = zip(*language.named_parameters(), strict=True)
  # What the reference's own names say, of the embedding through both of its uses.
  found = dict(zip(names, torch.autograd.grad(total, weights), strict=True))
  grads = {id(weight): found[name] for name, weight in zip(names, weights, strict=True)}
  wanted = ours(language, lambda weight: grads[id(weight)])
  params, model = params_of(reference), vlm()

  def loss(decoder: Any) -> tuple[jax.Array, jax.Array]:
    variables = {"params": params | {"decoder": decoder}}
    sums, _ = model.apply(variables, batch, method="loss")
    return sums.sum(), model.apply(variables, batch).logits

  grads, logits = models.jit(jax.grad(loss, has_aux=True))(params["decoder"])
  flat = np.concatenate([one.detach().numpy() for one in want])

  def error(logits: Any) -> float:
    got = np.asarray(logits)
    return models.far(np.concatenate([got[where] for where in places]), flat)

  assert error(logits) <= models.EXACT
  for path, leaf in tree.flatten(wanted).items():
    got = tree.flatten(grads)[path]
    assert models.length(got, leaf) <= models.GRADIENT, path
  with jax.disable_jit():
    one_way = toy.run(vlm(image_both_ways=False), params, batch).logits
  assert error(one_way) > 100 * models.EXACT
  # Unless blocks look as far ahead as images reach, they cut them.
  attend = attention.attend_causal
  monkeypatch.setattr(
    attention, "attend_causal", lambda *heads, ahead, scale: attend(*heads, scale=scale)
  )
  with jax.disable_jit():
    cut = toy.run(model, params, batch).logits
  assert error(cut) > 100 * models.EXACT


def test_greedy_answers(
  reference: Any, features: jax.Array, monkeypatch: pytest.MonkeyPatch
) -> None:
  """The grid's, in a stack and layer by layer, are transformers' and the full run's."""
  monkeypatch.setattr(lines, "_LEVEL", 2)
  tokenizer = tokenizer_lib.train_tokenizer([], 259)
  prefix, slots = records.prefix_of(tokenizer, answers.SLOTS)
  before = np.where(np.asarray(slots) >= 0, IMAGE, prefix)
  pixels = models.published_pixels(models.pixels(5, 32), "siglip")
  want, gap = [], np.inf
  for image, prompt in answers.PROMPTS:
    asked = tokenizer_lib.encode(tokenizer, templates.LLAMA2.wrap(prompt))
    ids = torch.from_numpy(np.concatenate([before, asked])[None]).long()
    out = reference.generate(
      input_ids=ids, token_type_ids=(ids == IMAGE).long(),
      attention_mask=torch.ones_like(ids), pixel_values=pixels[image][None],
      do_sample=False, max_new_tokens=answers.BUDGET, pad_token_id=0,
      eos_token_id=answers.END, return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    want.append(out.sequences[0, ids.shape[1] :].tolist())
    tops = torch.stack(out.logits).topk(2).values[:, 0]
    gap = min(gap, float(((tops[:, 0] - tops[:, 1]) / tops[:, 0].abs()).min()))
  # Other answers to other questions, and none that an error within the bound could turn.
  assert len({tuple(ids) for ids in want}) >= 5
  assert gap > models.EXACT
  params = params_of(reference)
  texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in want]
  scores = []
  for unroll in (1, DEPTH):
    model = vlm(unroll=unroll)
    assert model.apart == (unroll > 1)
    generator = Generator(model, tokenizer, answers.SLOTS, answers.BUDGET, rows=8)
    found = generator(params, features, answers.PROMPTS)
    assert answers.texts_of(found) == texts
    scores.append([one.log_prob for one in found])
  forward = jax.jit(lambda params, batch: vlm().apply({"params": params}, batch).logits)
  asked = (tokenizer, features, answers.PROMPTS, answers.BUDGET)
  whole = answers.scored_rows(params, *asked, forward)
  assert [ids for ids, _ in whole] == want
  for found in scores:
    np.testing.assert_allclose(found, [score for _, score in whole], atol=2e-5)


# ── Without the reference ─────────────────────────────────────────────────────────


def test_an_image_sees_itself_and_nothing_more() -> None:
  image, segment = (
    jnp.array([[0, 0, 0, 0, 1, 1, -1]]),
    jnp.array([[0, 0, 0, 1, 0, 0, 0]]),
  )
  slot = jnp.array([[-1, 0, 1, -1, 0, 1, -1]])
  seen = attention.batch_mask(image, segment, slot)[0].astype(int)
  np.testing.assert_array_equal(
    seen,
    [
      [1, 0, 0, 0, 0, 0, 0],  # text before the image
      [1, 1, 1, 0, 0, 0, 0],
      [1, 1, 1, 0, 0, 0, 0],
      [1, 1, 1, 1, 0, 0, 0],  # an entry
      [0, 0, 0, 0, 1, 1, 0],  # another image
      [0, 0, 0, 0, 1, 1, 0],
      [0, 0, 0, 0, 0, 0, 0],
    ],
  )


def test_blocks_of_queries_look_as_far_ahead_as_they_are_told() -> None:
  """700 tokens in blocks of 256, an image of 256 across the first two blocks' ends."""
  rng = np.random.default_rng(0)
  place = np.arange(700)
  slot = np.where((place >= 200) & (place < 456), place - 200, -1)[None]
  zeros = np.zeros_like(slot)
  mask = attention.batch_mask(*map(jnp.array, (zeros, zeros, slot)))
  bias = attention.mask_bias(mask)
  q, k, v = (
    jnp.array(rng.standard_normal((1, heads, 700, 8)), jnp.float32)
    for heads in (4, 2, 2)
  )
  want = attention.attend(q, k, v, bias, scale=0.2)
  got = attention.attend_causal(q, k, v, bias, ahead=255, scale=0.2)
  np.testing.assert_allclose(got, want, atol=1e-5)
  short = attention.attend_causal(q, k, v, bias, ahead=100, scale=0.2)
  assert np.abs(short - want).max() > 0.01


def test_how_it_is_computed_changes_nothing(
  reference: Any, features: jax.Array
) -> None:
  batch = toy.PACKED | {"pixels": features[:3]}
  params = params_of(reference)

  def grads(**how: Any) -> Any:
    def loss(params: Any) -> jax.Array:
      return vlm(**how).apply({"params": params}, batch, method="loss")[0].sum()

    return models.jit(jax.grad(loss))(params)

  want = grads()
  for how in ({"remat": "inputs", "unroll": 2}, {"remat": "dots"}):
    toy.check_grads(grads(**how), want)


def test_the_embedding_is_scaled_by_a_rounded_root() -> None:
  """transformers casts the root to the weights' dtype: 50.5 in bfloat16."""
  fields = FIELDS | {"width": 2560, "depth": 1, "vocab_size": 4}
  for dtype, root in (("bfloat16", 50.5), ("float32", np.float32(2560**0.5))):
    decoder = Decoder(**fields | {"dtype": dtype, "kernel_dtype": dtype})
    table = {"embed": {"embedding": jnp.ones((4, 2560), dtype)}}
    found = decoder.apply(
      {"params": table}, jnp.zeros((1, 1), jnp.int32), method="embed"
    )
    assert found.dtype == dtype
    assert float(found[0, 0, 0]) == root


def test_lora_stands_on_it_as_on_the_others() -> None:
  fields = FIELDS | {"lora_rank": 2, "lora_targets": "attn/.*|mlp/(gate|up)"}
  found = tree.flatten(models.decoder_shapes(fields))
  pairs = {path.split("/")[3] for path in found if path.endswith("lora_a")}
  assert pairs == {"q", "k", "v", "o", "gate", "up"}


@pytest.mark.parametrize(
  ("wrong", "words"),
  [
    ({"activation": "gelu"}, "activation 'gelu', expected one of"),
    ({"window": 0}, "global_every=3, window=0: expected .* a window"),
    ({"global_every": -1}, "global_every=-1"),
    ({"rope_factor": 0.0}, "rope_factor=0.0: expected above 0"),
    ({"query_scale": -1.0}, "query_scale=-1.0"),
  ],
)
def test_fields_that_mean_nothing_are_refused(
  wrong: dict[str, Any], words: str
) -> None:
  with pytest.raises(ValueError, match=words):
    models.decoder_shapes(FIELDS | wrong)


def test_a_merge_knows_no_family_for_it() -> None:
  with pytest.raises(ValueError, match="none has global_every, .*qk_norm, post_norms"):
    export.config_of(FIELDS, "float32")


# ── At full size ──────────────────────────────────────────────────────────────────


def test_the_rows_are_the_published_model() -> None:
  """By transformers' classes, made with the published numbers and without memory."""
  config = transformers.Gemma3Config(text_config=PUBLISHED, vision_config=TOWER)
  with torch.device("meta"):
    model = transformers.Gemma3Model._from_config(config)
  text, row = config.text_config, zoo.DECODERS[ROW]
  for theirs, here in {
    "vocab_size": "vocab_size", "hidden_size": "width", "intermediate_size": "mlp_width",
    "num_hidden_layers": "depth", "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads", "head_dim": "head_width",
    "rms_norm_eps": "norm_eps", "sliding_window": "window",
    "tie_word_embeddings": "tied",
  }.items():  # fmt: skip
    assert getattr(text, theirs) == row[here], here
  assert text.query_pre_attn_scalar**-0.5 == row["query_scale"]
  assert text.hidden_activation == "gelu_pytorch_tanh" and not text.attention_bias
  assert text.final_logit_softcapping is text.attn_logit_softcapping is None
  every = row["global_every"]
  assert text.layer_types == [
    "sliding_attention" if (layer + 1) % every else "full_attention"
    for layer in range(row["depth"])
  ]
  far, near = (
    text.rope_parameters[f"{kind}_attention"] for kind in ("full", "sliding")
  )
  assert (far["rope_theta"], far["factor"]) == (row["rope_base"], row["rope_factor"])
  assert near == {"rope_type": "default", "rope_theta": row["local_rope_base"]}

  def size(module: Any) -> int:
    return sum(weight.numel() for weight in module.parameters())

  shapes = tree.flatten(models.decoder_shapes(row))
  assert sum(leaf.size for leaf in shapes.values()) == size(model.language_model)
  fields = zoo.ENCODERS["siglip_so400m_896"]
  made = jax.eval_shape(
    partial(Encoder(**fields).init, jax.random.key(0)),
    jnp.zeros((1, 896, 896, 3), "uint8"),
  )
  assert sum(leaf.size for leaf in jax.tree.leaves(made)) == size(model.vision_tower)
