"""The paper's optimiser: AdamW, linear warm-up, cosine (section 4.2.2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import optax

from imax_jax import tree as tree_lib

# "after_warmup": the cosine begins at its top when the warm-up ends. "whole_run": its
# clock has run since step 0, so that the rate falls by a notch there; so do Uni-Med and
# MiniGPT-v2 (uni_med/common/optims.py, linear_warmup_cosine_lr).
Clock = Literal["after_warmup", "whole_run"]


class Optimizer(NamedTuple):
  update: optax.GradientTransformation
  schedule: optax.Schedule


def make_schedule(
  *,
  num_steps: int,
  peak_lr: float,
  final_lr: float,
  warmup_fraction: float,
  warmup_start_lr: float,
  clock: Clock = "after_warmup",
  may_rise: bool = False,
) -> optax.Schedule:
  """Learning rate of the update that follows `step` earlier ones.

  With W = round(warmup_fraction * num_steps):

      step < W   start + (peak - start) step / W
      else       final + (peak - final) (1 + cos(pi x)) / 2,
                 x = (step - W) / (num_steps - W), or step / num_steps ("whole_run")

  A warm-up as long as the run is a warm-up only; no step count is an error.

  Args:
    may_rise: the final rate may be above `peak_lr`, where the cosine then rises to it.
      A mistyped rate elsewhere, it is what MiniGPT-Med's published recipe says.

  Raises:
    ValueError: a fraction outside [0, 1], a negative rate, an unknown clock, or a final
      rate above the peak that may not be.
  """
  if not 0 <= warmup_fraction <= 1:
    raise ValueError(f"warmup_fraction {warmup_fraction}: expected 0 to 1")
  if min(final_lr, peak_lr, warmup_start_lr) < 0 or (
    final_lr > peak_lr and not may_rise
  ):
    raise ValueError(
      f"warmup_start_lr {warmup_start_lr}, peak_lr {peak_lr}, final_lr {final_lr}: "
      "expected 0 <= start and 0 <= final <= peak; may_rise=True is for a recipe whose "
      "rate is meant to rise"
    )
  if clock not in ("after_warmup", "whole_run"):
    raise ValueError(f"clock {clock!r}: expected 'after_warmup' or 'whole_run'")
  warmup = round(warmup_fraction * num_steps)
  begin = warmup if clock == "after_warmup" else 0

  def schedule(step: optax.ScalarOrSchedule) -> jnp.ndarray:
    step = jnp.asarray(step, jnp.float32)
    rising = warmup_start_lr + (peak_lr - warmup_start_lr) * step / max(warmup, 1)
    done = jnp.clip((step - begin) / max(num_steps - begin, 1), 0.0, 1.0)
    falling = final_lr + (peak_lr - final_lr) * 0.5 * (1 + jnp.cos(np.pi * done))
    return jnp.where(step < warmup, rising, falling)

  return schedule


def make_optimizer(
  trainable: tree_lib.Tree,
  schedule: optax.Schedule,
  *,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  weight_decay: float = 0.0,
  decay: tree_lib.Rules = (),
  clip_norm: float | None = None,
  lr_scales: tree_lib.Rules = (),
) -> Optimizer:
  """AdamW as torch's: decay is multiplied by the learning rate, not by Adam's scale.

  Args:
    trainable: the tree that will be trained; only its paths are read.
    decay: path rules with true or false, e.g. [(".*(kernel|lora_.)", True),
      (".*", False)]: matrices decay, biases do not. Read if `weight_decay` is not 0.
      Paths decide and not ranks, since a scanned layer's bias has two dimensions.
    clip_norm: the gradient's largest norm; None does not clip, as the paper's code.
    lr_scales: path rules with factors of the learning rate, e.g. [("connector/.*", 0.1),
      (".*", 1.0)]: a part with a rate of its own. None: one rate for all.

  Raises:
    ValueError: a leaf that no rule matches, a rule that matches none, or a factor that
      is not above 0.
  """
  parts = [] if clip_norm is None else [optax.clip_by_global_norm(clip_norm)]
  parts.append(optax.scale_by_adam(b1=b1, b2=b2, eps=eps))
  if weight_decay:
    chosen = tree_lib.first_match(decay, trainable, name="decay")
    mask = tree_lib.map_paths(lambda path, _: bool(chosen[path]), trainable)
    parts.append(optax.add_decayed_weights(weight_decay, mask=mask))
  parts.append(optax.scale_by_learning_rate(schedule))
  if lr_scales:
    parts.append(_scaled(tree_lib.first_match(lr_scales, trainable, name="lr_scales")))
  return Optimizer(optax.chain(*parts), schedule)


def _scaled(factors: Mapping[str, float]) -> optax.GradientTransformation:
  """Multiplies the update of each path; its decay, too, as in torch's groups."""
  wrong = {path: factor for path, factor in factors.items() if not factor > 0}
  if wrong:
    path, factor = next(iter(wrong.items()))
    raise ValueError(
      f"lr_scales: {path} has the factor {factor}, expected more than 0; what is not to "
      "be trained is named in trainable"
    )

  def scale(updates: optax.Updates, _: optax.Params | None) -> optax.Updates:
    return tree_lib.map_paths(lambda path, leaf: factors[path] * leaf, updates)

  return optax.stateless(scale)
