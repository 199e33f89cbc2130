"""Image features to the decoder's width: neighbouring patches merged, then an MLP.

The paper's "2-layer MLP" (section 4.2.2) is Uni-Med's `mlp2x_gelu` (uni_med.py); it does
not say whether Uni-Med's `projection` resampling, four neighbours made one token, stands
before it. `merge` 4 with it, 64 tokens at 224 px; 1 without, 256. Depth 1 is MiniGPT-v2's
single linear layer.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax

from imax_jax.models import storage
from imax_jax.models.lora import Dense


class Connector(nn.Module):
  """`merge` patches that follow each other in a row become one image token.

  The MLP has `depth` linear layers of `width`, exact GELU between them.
  """

  width: int
  merge: int = 4
  depth: int = 2
  dtype: Any = "float32"

  @nn.compact
  def __call__(self, features: jax.Array) -> jax.Array:
    """[N, P, D] -> [N, S, width], S = P / merge.

    Raises:
      ValueError: P is no multiple of `merge`.
    """
    storage.check_dtype("connector", self.dtype)
    images, patches, width = features.shape
    if patches % self.merge:
      raise ValueError(
        f"connector: {patches} patches an image are no multiple of merge={self.merge}. "
        "Choose a merge that divides them."
      )
    x = features.reshape(images, patches // self.merge, self.merge * width)
    for number in range(self.depth):
      x = nn.gelu(x, approximate=False) if number else x
      dense = Dense(self.width, use_bias=True, dtype=self.dtype, name=f"dense_{number}")
      x = dense(x)
    return x
