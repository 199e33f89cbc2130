"""Where parameters come from and where they lie: given, drawn, narrowed, sharded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import phantom
from imax_jax import encoder as encoder_lib
from imax_jax import mesh as mesh_lib
from imax_jax import tree
from imax_jax.data import features
from imax_jax.data import images
from imax_jax.models import storage
from imax_jax.parameters import Foundation
from imax_jax.parameters import Parameters
from imax_jax.schema import ImageRecord
from imax_jax.study import Study
from imax_jax.weights import digests
from imax_jax.weights import load

# Two devices share each kernel, once along its inputs and once along its outputs.
SHARDED = """
import json, sys
import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from imax_jax.models import storage
from imax_jax.weights import load

path, kernel = sys.argv[1], np.load(sys.argv[2])
mesh = jax.make_mesh((2,), ("fsdp",))
found = {}
for kind in ("int8", "nf4"):
  whole = {name: np.asarray(leaf) for name, leaf in storage.store(kernel, kind).items()}
  want = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in whole.items()}
  for spec in ((None, "fsdp", None), (None, None, "fsdp")):
    places = {
      name: NamedSharding(mesh, PartitionSpec(*(
        axis if leaf.shape[i] > 1 else None for i, axis in enumerate(spec))))
      for name, leaf in whole.items()
    }
    got = load.load_sharded(path, {"q": want}, {"q": places})["q"]
    found[f"{kind} {spec}"] = [
      bool(np.array_equal(got[name], whole[name])) for name in sorted(whole)
    ] + [got["kernel"].addressable_shards[0].data.size * 2 == whole["kernel"].size]
print(json.dumps(found))
"""


def config() -> ConfigDict:
  return phantom.get_config("tiny")


def parameters(tmp_path: Path, c: ConfigDict) -> Parameters:
  return Parameters(c, mesh_lib.make_mesh({"data": -1}), tmp_path)


def give(folder: Path, flat: dict[str, Any]) -> str:
  """Makes a foundation of these leaves."""
  load.save_params(folder / "foundation.safetensors", flat)
  (folder / "tokenizer.json").write_text("{}", encoding="utf8")
  return str(folder)


def test_what_a_foundation_lacks_is_drawn(tmp_path: Path) -> None:
  """Encoder and decoder given, the connector drawn alike and LoRA by seed."""
  c = config()
  fresh = tree.flatten(parameters(tmp_path, c).init(0))
  given = {
    path: np.asarray(leaf) + 1
    for path, leaf in fresh.items()
    if not path.startswith("connector/") and "lora_" not in path
  }
  c.foundation = give(tmp_path, given)
  made = parameters(tmp_path, c)
  one, two = tree.flatten(made.init(0)), tree.flatten(made.init(1))
  for path, leaf in one.items():
    want = given.get(path, fresh[path])
    np.testing.assert_array_equal(leaf, want, err_msg=path)
    same = np.array_equal(leaf, two[path])
    assert same is ("lora_a" not in path), path


def test_a_foundation_may_hold_trained_parts_too(tmp_path: Path) -> None:
  c = config()
  fresh = tree.flatten(parameters(tmp_path, c).init(0))
  c.foundation = give(
    tmp_path, {path: np.asarray(leaf) for path, leaf in fresh.items()}
  )
  made = parameters(tmp_path, c)
  for path, leaf in tree.flatten(made.init(1)).items():
    np.testing.assert_array_equal(leaf, fresh[path], err_msg=path)


def test_half_a_part_is_refused(tmp_path: Path) -> None:
  c = config()
  flat = {
    path: np.asarray(leaf)
    for path, leaf in tree.flatten(parameters(tmp_path, c).init(0)).items()
    if "lora_" not in path and path != "connector/dense_0/bias"
  }
  c.foundation = give(tmp_path, flat)
  with pytest.raises(ValueError, match="missing    connector/dense_0/bias"):
    parameters(tmp_path, c).init(0)
  c.foundation = give(
    tmp_path, {p: leaf for p, leaf in flat.items() if "conn" not in p}
  )
  assert parameters(tmp_path, c).init(0)
  c.foundation = give(tmp_path, {p: leaf for p, leaf in flat.items() if "enc" not in p})
  with pytest.raises(ValueError, match="missing    encoder/"):
    parameters(tmp_path, c).init(0)


def test_a_foundation_is_found_or_named(tmp_path: Path) -> None:
  assert Foundation.find("", tmp_path) is None
  with pytest.raises(FileNotFoundError, match="verb convert"):
    Foundation.find("converted", tmp_path)
  (tmp_path / "foundation").mkdir()
  give(tmp_path / "foundation", {"a": np.ones(2, np.float32)})
  found = Foundation.find("converted", tmp_path)
  assert found is not None
  before = found.digest()
  # Once it says what its weights are, that decides and not what they were made of.
  facts = {"foundation": digests.describe(found.weights), "sources": ["elsewhere"]}
  found.facts.write_text(json.dumps(facts), encoding="utf8")
  assert found.digest() == before
  facts["foundation"]["sha256"] = "0" * 64
  found.facts.write_text(json.dumps(facts), encoding="utf8")
  assert found.digest() != before
  found.facts.write_text("[]", encoding="utf8")
  with pytest.raises(ValueError, match=r"foundation.json: damaged; delete"):
    found.digest()


def test_images_are_encoded_a_few_at_a_time_and_go_on(
  tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  """Memory is that of a few, and what was encoded before a stop is not encoded again."""
  monkeypatch.setattr(encoder_lib, "AT_ONCE", 4)
  monkeypatch.setattr(features, "IMAGES_PER_SHARD", 4)
  rng = np.random.default_rng(0)
  films = rng.integers(0, 256, (10, 64, 64), np.uint8)
  found = [
    ImageRecord(str(i), str(i), str(i), "PA", images.encode_png(film), ())
    for i, film in enumerate(films)
  ]
  monkeypatch.setattr(Study, "records", lambda self, split: found)
  monkeypatch.setattr(Study, "require_data", lambda self: "made")
  make, sizes = encoder_lib.make, []

  def watched(parameters: Parameters, dtype: Any, most: int = 10**9) -> Any:
    encode = make(parameters, dtype)

    def count(pixels: np.ndarray) -> np.ndarray:
      if len(sizes) == most:
        raise KeyboardInterrupt
      sizes.append(len(pixels))
      return encode(pixels)

    return count

  c = config()
  monkeypatch.setattr(encoder_lib, "make", partial(watched, most=2))
  with pytest.raises(KeyboardInterrupt):
    Study(c, tmp_path).pixels("imax_train")
  assert sizes == [4, 4]
  monkeypatch.setattr(encoder_lib, "make", watched)
  study = Study(c, tmp_path)
  got = study.pixels("imax_train")
  assert sizes == [4, 4, 2] and got.dtype == np.float32
  px, channels = c.model.encoder.image_px, c.model.encoder.channels
  pixels = np.stack([images.to_pixels(one.image, px, channels) for one in found])
  params = study.parameters.init(0)
  want = study.model.apply({"params": params}, pixels, method="encode")
  # bfloat16 rounds by half of 2^-8 at most.
  np.testing.assert_allclose(got[np.arange(10)], want, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("kind", storage.QUANTIZED)
def test_a_narrow_decoder_is_made_of_a_float_foundation(
  tmp_path: Path, kind: str
) -> None:
  c = config()
  c.model.decoder.update({"width": 64, "mlp_width": 64})
  flat = {
    path: np.asarray(leaf)
    for path, leaf in tree.flatten(parameters(tmp_path, c).init(0)).items()
    if "lora_" not in path
  }
  c.foundation = give(tmp_path, flat)
  c.model.decoder.kernel_dtype = kind
  made = tree.flatten(parameters(tmp_path, c).init(0))
  kernels = [path for path in flat if "decoder/layers" in path and "kernel" in path]
  assert len(kernels) == 7
  for path in kernels:
    back = storage.restore(made[path], made[f"{path}_scale"], "float32")
    error = np.linalg.norm(back - flat[path]) / np.linalg.norm(flat[path])
    assert 0 < error < (0.012 if kind == "int8" else 0.11), path
  # All else but the embedding and the head, which become bfloat16, is as it was.
  others = [path for path in flat if path not in kernels and "/norm" in path]
  for path in others:
    np.testing.assert_array_equal(made[path], flat[path], err_msg=path)


def test_what_is_trained_is_float32_however_it_is_kept(tmp_path: Path) -> None:
  """In bfloat16 a weight of 1 takes no step below 2^-8."""
  c = config()
  c.model.decoder.kernel_dtype = "bfloat16"
  c.trainable = ((r"decoder/embed/.*|.*/lora_[ab]", True), (r".*", False))
  made = parameters(tmp_path, c)
  kept = tree.flatten(made.abstract)["decoder/embed/embedding"]
  assert kept.dtype == "bfloat16"
  trainable, frozen = made.split(0)
  for found in (trainable, made.trainable):
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(found)} == {"float32"}
  assert jax.tree.structure(trainable) == jax.tree.structure(made.trainable)
  assert tree.flatten(frozen)["decoder/layers/attn/q/kernel"].dtype == "bfloat16"
  drawn = tree.flatten(made.init(0))["decoder/embed/embedding"]
  own = tree.flatten(trainable)["decoder/embed/embedding"]
  np.testing.assert_array_equal(own, drawn.astype("float32"))


def test_integers_are_made_on_the_shard_that_needs_them(tmp_path: Path) -> None:
  kernel = np.random.default_rng(0).standard_normal((3, 128, 8)).astype(np.float32)
  path, array = tmp_path / "f.safetensors", tmp_path / "kernel.npy"
  load.save_params(path, {"q": {"kernel": kernel}})
  np.save(array, kernel)
  done = subprocess.run(
    [sys.executable, "-c", SHARDED, str(path), str(array)],
    env=os.environ
    | {
      "JAX_PLATFORMS": "cpu",
      "JAX_NUM_CPU_DEVICES": "2",
    },
    capture_output=True,
    text=True,
    timeout=120,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout)
  assert len(found) == 4
  assert all(all(checks) for checks in found.values()), found


def test_the_values_do_not_depend_on_where_they_lie(tmp_path: Path) -> None:
  """Drawn whole by plain `init`, and part by part straight into shards."""
  c = config()
  made = parameters(tmp_path, c)
  whole = tree.flatten(jax.jit(lambda: made._init(0))())
  for path, leaf in tree.flatten(made.init(0)).items():
    np.testing.assert_array_equal(leaf, whole[path], err_msg=path)


def test_a_foundation_with_a_nan_is_refused(tmp_path: Path) -> None:
  c = config()
  flat = {
    path: np.array(leaf)
    for path, leaf in tree.flatten(parameters(tmp_path, c).init(0)).items()
    if "lora_" not in path
  }
  flat["decoder/norm/scale"][3] = np.nan
  c.foundation = give(tmp_path, flat)
  with pytest.raises(ValueError, match=r"decoder/norm/scale\[3\] is nan"):
    parameters(tmp_path, c).init(0)
