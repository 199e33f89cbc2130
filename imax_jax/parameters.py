"""The model's parameters: where their values come from and where they lie.

    foundation.safetensors ──▶ encoder, decoder (and connector, LoRA where it has them)
    a seed                 ──▶ whatever it has not

Each leaf is read or drawn straight into its shards: no device and no process ever holds
more than its part.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from collections.abc import Mapping
from functools import cached_property
from functools import lru_cache
from pathlib import Path
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from imax_jax import mesh as mesh_lib
from imax_jax import tree as tree_lib
from imax_jax.models.vlm import Vlm
from imax_jax.weights import digests
from imax_jax.weights import files as weight_files
from imax_jax.weights import load as weights
from imax_jax.weights.plan import part_of

ASSETS = Path(__file__).parent / "assets"
# Where the verb `convert` leaves what the config's foundation "converted" means.
CONVERTED = "foundation"


class Foundation(NamedTuple):
  """A folder that the verb `convert` or `foundation` made, or the package's own."""

  weights: Path
  tokenizer: Path
  facts: Path  # says what it was converted from; absent where nothing was

  @classmethod
  def find(cls, named: str, workdir: Path) -> Foundation | None:
    """What the config's `foundation` names, or None for "".

    A folder, or "package" for the one that ships, or "converted" for what the verb
    `convert` made in this work directory.

    Raises:
      FileNotFoundError: its weights or its tokenizer are missing.
    """
    if not named:
      return None
    known = {"package": ASSETS, "converted": workdir / CONVERTED}
    folder = known.get(named, Path(named))
    found = cls(
      folder / "foundation.safetensors",
      folder / "tokenizer.json",
      folder / "foundation.json",
    )
    if not found.weights.is_file():
      remedy = (
        "run the verb convert first"
        if named == "converted"
        else "make one with configs/foundation.py, or from published weights with the verb "
        "convert, and name its folder in --config.foundation"
      )
      raise FileNotFoundError(f"{found.weights}: no foundation checkpoint; {remedy}")
    if not found.tokenizer.is_file():
      raise FileNotFoundError(
        f"{found.tokenizer}: missing; put the decoder's own tokenizer.json there"
      )
    return found

  def check(self) -> None:
    """Compares the weights with what `convert` said of them when it wrote them.

    Raises:
      ValueError: other bytes than were written.
    """
    if self._said:
      remedy = f"delete {self.weights.parent} and convert the published weights again"
      digests.check(self.weights, self._said, remedy)

  def digest(self) -> str:
    """16 hexadecimal digits that change with the weights or the tokenizer.

    Of their values alone: it does not matter what they were converted from. A converted
    foundation's facts hold the hash of its weights, which `check` compares when they are
    loaded: a start that loads nothing does not read gigabytes.
    """
    weights = self._said or digests.describe(self.weights)
    hashes = (weights["sha256"], digests.describe(self.tokenizer)["sha256"])
    return hashlib.sha256("".join(hashes).encode()).hexdigest()[:16]

  @property
  def _said(self) -> dict[str, Any]:
    """What `convert` said of the weights when it wrote them."""
    if not self.facts.is_file():
      return {}
    try:
      return dict(json.loads(self.facts.read_text("utf8"))["foundation"])
    except (ValueError, KeyError, TypeError) as error:
      raise ValueError(
        f"{self.facts}: damaged; delete {self.facts.parent} and convert the published "
        "weights again"
      ) from error


class Parameters:
  """The parameters of one config on one mesh; seeds differ in what is drawn."""

  def __init__(
    self, config: ConfigDict, mesh: jax.sharding.Mesh, workdir: Path
  ) -> None:
    self.model = Vlm(**config.model)
    self._config = config
    self.mesh = mesh
    self._workdir = workdir
    self._draw = lru_cache(maxsize=4)(self._make_draw)

  @cached_property
  def foundation(self) -> Foundation | None:
    return Foundation.find(self._config.foundation, self._workdir)

  @cached_property
  def digest(self) -> str:
    return "none" if self.foundation is None else self.foundation.digest()

  @cached_property
  def abstract(self) -> dict[str, Any]:
    """Shapes of all parameters, made without computing any."""
    return jax.eval_shape(lambda: self._init(0))

  @cached_property
  def shardings(self) -> dict[str, Any]:
    """{path: where it lies}."""
    placed = mesh_lib.shardings(self.abstract, self.mesh, self._config.sharding)
    return tree_lib.flatten(placed)

  @cached_property
  def encoder_is_frozen(self) -> bool:
    return "encoder" not in self.trainable

  @cached_property
  def trainable(self) -> dict[str, Any]:
    """Shapes, dtypes and shardings of what is trained; no weight is read or drawn."""
    found = tree_lib.split(self.abstract, self._config.trainable)[0]
    return tree_lib.map_paths(
      lambda path, leaf: jax.ShapeDtypeStruct(
        leaf.shape, _trained_as(leaf.dtype), sharding=self.shardings[path]
      ),
      found,
    )

  def _init(self, seed: jax.Array | int) -> Any:
    encoder = self._config.model.encoder
    size = (1, encoder.image_px, encoder.image_px, encoder.channels)
    line = jnp.zeros((1, 4), jnp.int32)
    batch = {
      "pixels": jnp.zeros(size, jnp.uint8),
      "text": line,
      "image": line,
      "slot": line - 1,
      "segment": line,
      "position": line,
      "loss_weight": jnp.zeros((1, 4), jnp.float32),
      "task": jnp.zeros(1, jnp.int32),
    }
    return self.model.init(jax.random.key(seed), batch)["params"]

  def _make_draw(self, paths: frozenset[str]) -> Callable[[int], dict[str, Any]]:
    """seed -> {path: initial value} of these paths only; XLA leaves out the rest."""

    def draw(seed: jax.Array | int) -> dict[str, Any]:
      flat = tree_lib.flatten(self._init(seed))
      return {path: flat[path] for path in paths}

    where = {path: self.shardings[path] for path in paths}
    return jax.jit(draw, out_shardings=where)

  @cached_property
  def given(self) -> Mapping[str, Any]:
    """{path: array} of what the foundation holds; {} to start from nothing.

    Raises:
      ValueError: it lacks the encoder or the decoder, holds a part of another model, or
        was changed since it was made.
    """
    if self.foundation is None:
      return {}
    self.foundation.check()
    # A foundation has each part whole or not at all.
    with weight_files.open_tensors(self.foundation.weights) as tensors:
      groups = {"encoder", "decoder", *map(part_of, tensors.names)}
    flat = tree_lib.flatten(self.abstract)
    expected = {path: leaf for path, leaf in flat.items() if part_of(path) in groups}
    where = {path: self.shardings[path] for path in expected}
    return tree_lib.flatten(
      weights.load_sharded(self.foundation.weights, expected, where)
    )

  def init(self, seed: int) -> dict[str, Any]:
    """Fresh LoRA pairs of this seed on a base that is the same for all seeds.

    The base is the foundation's; what that does not give is drawn from seed 0, since
    frozen weights are shared by all runs and by what is cached of the encoder.
    """
    missing = frozenset(tree_lib.flatten(self.abstract).keys() - self.given.keys())
    pairs = frozenset(path for path in missing if part_of(path) == "adapter")
    base = self._draw(missing - pairs)(0) | dict(self.given)
    return tree_lib.unflatten(base | self._draw(pairs)(seed))

  def split(self, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """(trainable, frozen) of `init`, by the config's rules; the former in float32."""
    trainable, frozen = tree_lib.split(self.init(seed), self._config.trainable)
    wide = jax.tree.map(lambda leaf: leaf.astype(_trained_as(leaf.dtype)), trainable)
    return wide, frozen


def _trained_as(dtype: Any) -> Any:
  """What a weight is trained in, however the model keeps it: bfloat16 would round small
  updates away. (Quantised kernels are no numbers to train, and stay what they are.)
  """
  return jnp.float32 if jnp.issubdtype(dtype, jnp.floating) else dtype
