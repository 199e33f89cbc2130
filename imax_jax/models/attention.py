"""Who attends to whom, rotary positions and attention itself.

Two axes beside those of `schema`: J, the tokens attended to, and G, the query heads that
share one key/value head (H = K·G). A head's own width is d.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

# Far below any score, and finite: a row of padding attends evenly instead of to NaN.
_HIDDEN = -1e30
_BLOCK = 256  # queries that are attended with together


def batch_mask(
  image: jax.Array, segment: jax.Array, slot: jax.Array | None = None
) -> jax.Array:
  """`schema.Batch`'s rule of attention: int32[B, T] twice -> bool[B, T, J].

  image    0 0 0 0 -1        1 . . . .     a prefix token,
  segment  0 1 1 2  0   ->   1 1 . . .     two tokens of its first entry,
                             1 1 1 . .
                             1 . . 1 .     one of its second,
                             . . . . .     padding

  With `slot`, int32[B, T] too, all tokens of an image (slot >= 0) see each other, those
  behind them as well.
  """
  tokens = jnp.arange(image.shape[-1])
  causal = tokens[:, None] >= tokens[None, :]
  if slot is not None:
    causal = causal | (slot[:, :, None] >= 0) & (slot[:, None, :] >= 0)
  same_image = (image[:, :, None] == image[:, None, :]) & (image >= 0)[:, :, None]
  own, other = segment[:, :, None], segment[:, None, :]
  return causal & same_image & ((other == 0) | (other == own))


def mask_bias(mask: jax.Array) -> jax.Array:
  """bool[B, T, J] -> float32[B, 1, T, J]: what is added to the scores, once a batch."""
  return jnp.where(mask, 0.0, _HIDDEN).astype(jnp.float32)[:, None]


def rotary_table(
  position: jax.Array, head_width: int, base: float, factor: float = 1.0
) -> tuple[jax.Array, jax.Array]:
  """int32[B, T] -> (cos, sin), each float32[B, T, 1, d/2].

  All turn `factor` times as slowly as `base` says: linear scaling.
  """
  exponent = jnp.arange(0, head_width, 2, dtype=jnp.float32) / head_width
  angle = position[..., None].astype(jnp.float32) / (factor * base**exponent)
  return jnp.cos(angle)[:, :, None], jnp.sin(angle)[:, :, None]


def rotate(x: jax.Array, table: tuple[jax.Array, jax.Array]) -> jax.Array:
  """Rotary embedding of [B, T, H, d] in Hugging Face's layout.

  Dimension i turns with i + d/2, where Meta's own files pair 2i with 2i + 1; weights
  published in Hugging Face's format are permuted to suit.
  """
  cos, sin = table
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  turned = (first * cos - second * sin, second * cos + first * sin)
  return jnp.concatenate(turned, axis=-1).astype(x.dtype)


def attend_causal(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  bias: jax.Array,
  *,
  ahead: int = 0,
  scale: float = 0.0,
) -> jax.Array:
  """`attend` where no token sees one more than `ahead` behind it: J = T, and `bias` hides
  those.

  A block of queries leaves out the keys behind it, half of all products and of what is
  kept of them for the way back.
  """
  tokens = q.shape[2]
  parts = []
  for start in range(0, tokens, _BLOCK):
    end = min(start + _BLOCK, tokens)
    seen = min(end + ahead, tokens)
    hides = bias[:, :, start:end, :seen]
    parts.append(
      attend(q[:, :, start:end], k[:, :, :seen], v[:, :, :seen], hides, scale=scale)
    )
  return jnp.concatenate(parts, axis=2)


def attend(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  bias: jax.Array | None,
  *,
  scale: float = 0.0,
) -> jax.Array:
  """Dot-product attention with a float32 softmax, scaled; 0 stands for 1/sqrt(d).

  q [B, H, T, d], k and v [B, K, J, d], bias float32[B, 1, T, J] or None for all to all
  -> [B, H, T, d]. Head h reads key/value head h // G.
  """
  rows, num_heads, tokens, width = q.shape
  num_kv_heads = k.shape[1]
  groups = num_heads // num_kv_heads
  # Heads before tokens and G folded into T leave plain batched matrix products; written
  # with the axes as they come, XLA's CPU backward pass takes 2.4 times as long.
  q = (q * (scale or width**-0.5)).reshape(rows, num_kv_heads, groups * tokens, width)
  scores = jnp.einsum("BKTd,BKJd->BKTJ", q, k, preferred_element_type=jnp.float32)
  if bias is not None:
    scores += jnp.tile(bias, (1, 1, groups, 1)) if groups > 1 else bias
  # Divided by their sum after mixing: d columns instead of J.
  weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
  total = weights.sum(-1, keepdims=True)
  mixed = jnp.einsum(
    "BKTJ,BKJd->BKTd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
  )
  return (mixed / total).astype(v.dtype).reshape(rows, num_heads, tokens, width)


def attend_both(
  q: jax.Array,
  new: tuple[jax.Array, jax.Array],
  shared: tuple[jax.Array, jax.Array],
  own: tuple[jax.Array, jax.Array],
  bias: tuple[jax.Array | None, jax.Array],
  *,
  scale: float = 0.0,
) -> jax.Array:
  """`attend` of a row's Q continuations to what they share, what each has said, and itself.

  q [N, H, Q, d]; keys and values new [N, K, Q, d] twice, shared [N, K, J, d] twice, own
  [N, K, Q, A, d] twice; bias float32[N, 1, Q, J], or None for all, and float32[N, 1, Q, A]
  -> [N, H, Q, d]. The shared ones are read once for all queries, and nothing is laid beside
  anything else.
  """
  rows, num_heads, tokens, width = q.shape
  num_kv_heads = shared[0].shape[1]
  groups = num_heads // num_kv_heads
  wide = {"preferred_element_type": jnp.float32}
  q = (q * (scale or width**-0.5)).reshape(rows, num_kv_heads, groups, tokens, width)
  by_query = q.transpose(0, 1, 3, 2, 4)
  # Three parts of the scores, each [N, K, Q, G, its columns].
  near = jnp.einsum(
    "BKTd,BKJd->BKTJ", q.reshape(rows, num_kv_heads, -1, width), shared[0], **wide
  )
  near = near.reshape(rows, num_kv_heads, groups, tokens, -1).transpose(0, 1, 3, 2, 4)
  if bias[0] is not None:
    near += bias[0][:, :, :, None]
  late = jnp.einsum("BKQGd,BKQAd->BKQGA", by_query, own[0], **wide)
  late += bias[1][:, :, :, None]
  last = jnp.einsum("BKQGd,BKQd->BKQG", by_query, new[0], **wide)[..., None]
  top = jnp.maximum(jnp.maximum(near.max(-1), late.max(-1))[..., None], last)
  near, late, last = jnp.exp(near - top), jnp.exp(late - top), jnp.exp(last - top)
  total = near.sum(-1, keepdims=True) + late.sum(-1, keepdims=True) + last
  flat = near.transpose(0, 1, 3, 2, 4).reshape(rows, num_kv_heads, groups * tokens, -1)
  mixed = jnp.einsum("BKTJ,BKJd->BKTd", flat.astype(q.dtype), shared[1], **wide)
  mixed = mixed.reshape(rows, num_kv_heads, groups, tokens, width)
  mixed = mixed.transpose(0, 1, 3, 2, 4)
  mixed += jnp.einsum("BKQGA,BKQAd->BKQGd", late.astype(q.dtype), own[1], **wide)
  mixed += last.astype(q.dtype) * new[1][:, :, :, None]
  mixed = (mixed / total).transpose(0, 1, 3, 2, 4)
  return mixed.astype(q.dtype).reshape(rows, num_heads, tokens, width)
