"""Dense pre-training of the encoder: each patch says what covers it.

It stands for what EVA-CLIP learned from images and captions by the hundred million, for
which a phantom hospital is too small: a linear probe on the patch features answers, for
each organ and finding, which share of the patch it covers.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Findings are small: most patches of most maps are empty.
_WEIGHT_OF_COVERED = 5.0


class DenseBatches:
  """Batch `step` is a pure function of the seed and the step, as in `data.pipeline`."""

  def __init__(
    self,
    pixels: np.ndarray,
    maps: np.ndarray,
    *,
    num_steps: int,
    images_per_step: int,
    seed: int,
  ) -> None:
    self._pixels, self._maps = pixels, maps
    self._num_steps = num_steps
    self.examples_per_step = images_per_step
    self._seed = seed

  def __len__(self) -> int:
    return self._num_steps

  def __getitem__(self, step: int) -> dict[str, np.ndarray]:
    """pixels uint8[N, H, W, C], maps float32[N, P, M], loss_weight float32[N]."""
    chosen = self._chosen(step)
    maps = self._maps[chosen].astype(np.float32)
    return {
      "pixels": self._pixels[chosen],
      "maps": maps.reshape(len(chosen), -1, maps.shape[-1]),
      "loss_weight": np.ones(len(chosen), np.float32),
    }

  def names(self, step: int) -> list[str]:
    """Numbers of the step's images."""
    return [f"image {number}" for number in self._chosen(step)]

  def _chosen(self, step: int) -> np.ndarray:
    rng = np.random.default_rng((self._seed, step))
    return rng.choice(len(self._pixels), self.examples_per_step, replace=False)


def init_probe(seed: int, width: int, num_maps: int) -> dict[str, jax.Array]:
  """The linear probe on the features: {"kernel": [D, M], "bias": [M]}."""
  kernel = jax.random.normal(jax.random.key(seed), (width, num_maps)) * width**-0.5
  # Empty patches are the rule: start from that.
  return {"kernel": kernel * 0.1, "bias": jnp.full(num_maps, -3.0)}


def make_loss(
  encode: Callable[[Any, jax.Array], jax.Array],
) -> Callable[..., tuple[jax.Array, jax.Array]]:
  """Weighted binary cross-entropy of coverage, less the targets' own entropy.

  `encode(encoder params, pixels)` gives features [N, P, D]. The loss takes trainable
  {"encoder": …, "probe": …} and returns (sum over images, number of images); zero is a
  perfect answer.
  """

  def loss(
    trainable: Mapping[str, Any], _: Any, batch: Mapping[str, jax.Array], __: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    features = encode(trainable["encoder"], batch["pixels"])
    probe, target = trainable["probe"], batch["maps"]
    logits = features @ probe["kernel"] + probe["bias"]
    cross = -target * jax.nn.log_sigmoid(logits)
    cross -= (1 - target) * jax.nn.log_sigmoid(-logits)
    entropy = -jax.scipy.special.xlogy(target, target)
    entropy -= jax.scipy.special.xlogy(1 - target, 1 - target)
    weighted = (cross - entropy) * (1 + _WEIGHT_OF_COVERED * target)
    # A patch's maps are summed: their mean would shrink with every map that is added.
    return weighted.sum(-1).mean(-1).sum(), batch["loss_weight"].sum()

  return loss
