"""The unified model: encoder, connector and decoder; toy and full size are the same.

pixels ─encoder─▶ [N, P, D] ─connector─▶ image tokens [N, S, D] ─┐ slot >= 0
text ────────────embed──────────────────────────▶ [B, T, D] ─────┴─▶ decoder ─▶ logits
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from imax_jax import schema
from imax_jax import tree as tree_lib
from imax_jax.models import attention
from imax_jax.models import loss as loss_lib
from imax_jax.models import taps
from imax_jax.models.block import Cache
from imax_jax.models.block import Caches
from imax_jax.models.block import Past
from imax_jax.models.connector import Connector
from imax_jax.models.decoder import Decoder
from imax_jax.models.vit import Encoder

_CHUNK = 1024  # supervised places of a shard whose logits are in memory together

# A `schema.Batch` on devices: a mapping of the same names to arrays of jax.
Batch = Mapping[str, Any]


class Vlm(nn.Module):
  """Built from the fields of its three parts: `Vlm(**config.model)`.

  A field that a part lacks is a TypeError which names it. `zoo` holds the sizes.
  """

  encoder: Mapping[str, Any]
  connector: Mapping[str, Any]
  decoder: Mapping[str, Any]

  def __post_init__(self) -> None:
    for part in ("encoder", "connector", "decoder"):
      object.__setattr__(self, part, _plain(getattr(self, part)))
    super().__post_init__()

  def setup(self) -> None:
    self.vit = Encoder(**self.encoder, name="encoder")
    self.mlp = self._connector(name="connector")
    self.llm = Decoder(**self.decoder, name="decoder")

  def _connector(self, **more: Any) -> Connector:
    # It ends where the decoder begins.
    return Connector(**{"width": self.decoder["width"], **self.connector, **more})

  @property
  def features_shape(self) -> tuple[int, int]:
    """P and D: what the encoder gives for an image."""
    encoder = Encoder(**self.encoder, parent=None)
    return encoder.num_tokens, encoder.out_width

  @property
  def num_slots(self) -> int:
    """S, the image tokens of an image."""
    return self._connector(parent=None).num_slots(self.features_shape[0])

  @property
  def tasks(self) -> tuple[str, ...]:
    """The tasks that image tokens depend on, in the order of their numbers."""
    return tuple(self.connector.get("tasks", ()))

  def task_number(self, task: str) -> int:
    """Where it stands among `tasks`; 0 where image tokens depend on none.

    Raises:
      ValueError: there are tasks, and it is none of them.
    """
    if self.tasks and task not in self.tasks:
      raise ValueError(
        f"task {task!r} has no token: connector.tasks are {', '.join(self.tasks)}; add it "
        "there, or leave it out of the data"
      )
    return self.tasks.index(task) if self.tasks else 0

  def __call__(self, batch: Batch, deterministic: bool = True) -> schema.Output:
    """A batch of packed rows -> float32 logits[B, T, V] and image tokens [N, S, D].

    `pixels` with four axes are encoded; with three they are the encoder's output, which
    is then skipped. `deterministic=False` turns LoRA's dropout on (rng "dropout").
    """
    if self.is_initializing() and batch["pixels"].ndim == 3:
      size, channels = self.vit.image_px, self.vit.channels
      self.vit(jnp.zeros((1, size, size, channels), jnp.uint8))
    x, image_tokens = self._run(batch, deterministic)
    return schema.Output(self.llm.head(x), image_tokens)

  def loss(
    self, batch: Batch, deterministic: bool = True
  ) -> tuple[jax.Array, jax.Array]:
    """What training and the Fisher ask for: `loss.example_loss` of a batch.

    That of `__call__`'s logits, of which only those at supervised places are made, at
    most `_CHUNK` of a shard's at once: a chunk's are made again on the way back.
    """
    x, _ = self._run(batch, deterministic)

    def nll(vlm: Vlm, x: jax.Array, target: jax.Array) -> jax.Array:
      return loss_lib.token_nll(vlm.llm.head(x), target)

    def of_chunks(x: jax.Array, target: jax.Array) -> jax.Array:
      shards, size = target.shape
      if size <= _CHUNK:
        return nll(self, x, target)
      count = -(-size // _CHUNK)
      short = count * _CHUNK - size
      x = jnp.pad(x, ((0, 0), (0, short), (0, 0)))
      x = x.reshape(shards, count, _CHUNK, -1)
      target = jnp.pad(target, ((0, 0), (0, short))).reshape(shards, count, _CHUNK)
      scan = nn.scan(
        nn.remat(lambda vlm, carry, x, target: (carry, nll(vlm, x, target))),
        variable_broadcast="params", split_rngs={"params": False}, in_axes=1, out_axes=1,
      )  # fmt: skip
      _, found = scan(self, (), x, target)
      return found.reshape(shards, -1)[:, :size]

    return loss_lib.example_loss(of_chunks, x, batch)

  def _run(self, batch: Batch, deterministic: bool) -> tuple[jax.Array, jax.Array]:
    """The decoder's output [B, T, D] over a batch, and its image tokens [N, S, D]."""
    image_tokens = self._image_tokens_of(batch)
    x, _ = self._read(batch, image_tokens, deterministic=deterministic)
    return x, image_tokens

  def encode(self, pixels: jax.Array) -> jax.Array:
    """uint8[N, H, W, C] -> float32[N, P, D]: what may be cached of a frozen encoder."""
    return self.vit(pixels)

  def image_tokens(self, pixels: jax.Array, task: jax.Array | None = None) -> jax.Array:
    """Pixels [N, H, W, C] or features [N, P, D] -> [N, S, D].

    Args:
      task: int32[N], which of `tasks` each is seen for, where there are some.
    """
    features = pixels if pixels.ndim == 3 else self.encode(pixels)
    return self.mlp(features, task)

  def _image_tokens_of(self, batch: Batch) -> jax.Array:
    return self.image_tokens(batch["pixels"], batch["task"] if self.tasks else None)

  def prefill(self, batch: Batch, last: jax.Array) -> tuple[jax.Array, Cache]:
    """Rows of an image with questions, each to be continued.

    Args:
      batch: rows as in training; the texts after the prefix end where answers begin.
      last: int32[B, Q], the place of each question's last token.

    Returns:
      float32 logits[B, Q, V] after these tokens, and keys and values of all.
    """
    image_tokens = self._image_tokens_of(batch)
    x, cache = self._read(batch, image_tokens, remember=True)
    return self.llm.head(jnp.take_along_axis(x, last[..., None], axis=1)), cache

  @property
  def apart(self) -> bool:
    """Whether `extend` takes layers one by one (`Decoder.apart`)."""
    return Decoder(**self.decoder).apart

  def extend(
    self,
    past: Past,
    text: jax.Array,
    position: jax.Array,
    mask: jax.Array | None = None,
  ) -> tuple[jax.Array, Caches]:
    """Reads the next token of each of N rows' Q continuations.

    Where `apart`, the weights are `by_layer`'s.

    Args:
      past: what they look back on.
      text, position: int32[N, Q].
      mask: bool[N, Q, J], the shared columns that each reads; None: all.

    Returns:
      float32 logits[N, Q, V], and `past.own` with these tokens in column `past.step`.
    """
    x, own = self.llm(self.llm.embed(text), position, mask, past)
    return self.llm.head(x), own

  def _read(self, batch: Any, image_tokens: jax.Array, **how: Any) -> tuple[Any, Any]:
    """What the decoder makes of a batch's rows, by the batch's rule of attention.

    An image's tokens stand side by side: where they see each other both ways, none sees
    farther than they are many.
    """
    both_ways = self.llm.image_both_ways
    slot = batch["slot"] if both_ways else None
    mask = attention.batch_mask(batch["image"], batch["segment"], slot)
    x, made = self.llm(
      self._join(batch, image_tokens),
      batch["position"],
      mask,
      ahead=image_tokens.shape[1] - 1 if both_ways else 0,
      **how,
    )
    return x, made

  def _join(self, batch: Any, image_tokens: jax.Array) -> jax.Array:
    """[B, T, D]: the image token where `slot` says one stands, else the text's."""
    slot, image = batch["slot"], batch["image"]
    text = self.llm.embed(batch["text"])
    picked = image_tokens[jnp.maximum(image, 0), jnp.maximum(slot, 0)]
    return jnp.where((slot >= 0)[..., None], picked.astype(text.dtype), text)


def _plain(fields: Any) -> dict[str, Any]:
  """A ConfigDict is no dict: linen would neither freeze nor hash it."""
  return {
    key: _plain(value) if hasattr(value, "items") else value
    for key, value in fields.items()
  }


def by_layer(params: Mapping[str, Any]) -> dict[str, Any]:
  """Weights whose decoder's layers stand one by one, as `extend` takes them apart."""
  decoder = dict(params["decoder"])
  stack = decoder.pop("layers")
  for number in range(len(jax.tree.leaves(stack)[0])):
    decoder[f"layers_{number}"] = jax.tree.map(lambda leaf, n=number: leaf[n], stack)
  return {**params, "decoder": decoder}


# A model's loss as a function of its weights.


# What `row_loss` hangs taps in itself: these weights' gradients are made layer by layer.
TAPPED = r"decoder/layers/.*"


def row_loss(model: Vlm) -> Callable[..., tuple[jax.Array, jax.Array]]:
  """(trainable, frozen, batch, taps) -> each row's weighted sum of nll, and its weight.

  Only the Fisher hands in taps, those of `TAPPED` (see `models.taps`). To be made once
  and kept: jax compiles anew for each new function.
  """

  def loss(
    trainable: Any, frozen: Any, batch: Any, hung: Any = None
  ) -> tuple[jax.Array, jax.Array]:
    variables = {"params": tree_lib.merge(trainable, frozen)}
    if hung:
      variables[taps.NAME] = hung
    found: Any = model.apply(variables, batch, method="loss")
    return found

  return loss


def batch_loss(model: Vlm) -> Callable[..., tuple[jax.Array, jax.Array]]:
  """(trainable, frozen, batch, rng) -> the same summed over rows, with LoRA's dropout."""

  def loss(
    trainable: Any, frozen: Any, batch: Any, rng: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    params = tree_lib.merge(trainable, frozen)
    found: Any = model.apply(
      {"params": params}, batch, False, rngs={"dropout": rng}, method="loss"
    )
    total, weight = found
    return total.sum(), weight.sum()

  return loss
