"""Image features to the decoder's width: neighbouring patches merged, then an MLP.

The paper's "2-layer MLP" (section 4.2.2), read as Uni-Med's `mlp2x_gelu` behind its
`projection` resampling: see arXiv 2504.09967 and MSIIP/Uni-Med, uni_med.py.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax

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
