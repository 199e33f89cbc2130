"""Decoders handed out as differences, and our own foundations for other structures."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import published_systems as systems
import pytest
from published_systems import SYSTEMS

from imax_jax import tree
from imax_jax.weights import files
from imax_jax.weights import load
from imax_jax.weights.convert import convert

LLAMA_1 = {
  "model_type": "llama", "hidden_size": 8, "num_hidden_layers": 2, "rms_norm_eps": 1e-6,
  "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 12,
  "max_position_embeddings": 2048,
}  # fmt: skip
MODEL: dict[str, dict[str, Any]] = {
  "encoder": {"depth": 2, "width": 6}, "connector": {"depth": 1},
  "decoder": {
    "width": 8, "depth": 2, "num_heads": 2, "num_kv_heads": 1, "mlp_width": 12,
    "vocab_size": 20, "rope_base": 1e4, "norm_eps": 1e-6,
  },
}  # fmt: skip
BASE_ROWS = systems.ROWS - 4


class Delta:
  """LLaVA-Med 1.0's folder of differences, and the LLaMA below it, to be spoilt."""

  def __init__(self, folder: pathlib.Path) -> None:
    self.folder = folder
    self.found = SYSTEMS["llava_med_1"]()
    self.base, _ = systems.made(lambda m: systems.decoder(m, rows=BASE_ROWS), 77)
    # A real norm's weights are all of a sign; what training added to them is little.
    norm = self.found.parts["decoder"]["model.norm.weight"]
    self.base["model.norm.weight"] = 3 + np.abs(norm)
    self.settings = {"delta": LLAMA_1 | {"model_type": "llava"}, "base": dict(LLAMA_1)}

  def convert(self) -> dict[str, np.ndarray]:
    sources = systems.write(self.folder, self.found)
    del sources["encoder"]
    sources |= {"encoder": self.folder / "encoder", "base": self.folder / "base"}
    files.write_tensors(sources["base"] / "model.safetensors", self.base)
    for part, folder in (("delta", sources["decoder"]), ("base", sources["base"])):
      (folder / "config.json").write_text(json.dumps(self.settings[part]))
    out = self.folder / "out"
    record = convert(sources, MODEL, tree.unflatten(self.found.ours), out)
    names = [file["name"] for file in record["sources"][0]["files"]]
    assert len(names) == 2 and record["sources"][0]["layout"] == "hf_llama"
    return load.load_params(out / "foundation.safetensors")


def test_differences_are_added_to_their_base(tmp_path: pathlib.Path) -> None:
  delta = Delta(tmp_path)
  got = delta.convert()
  ours = delta.found.ours
  _, base = systems.made(lambda m: systems.decoder(m, rows=BASE_ROWS), 77)
  base["decoder/norm/scale"] = delta.base["model.norm.weight"]
  for path, array in ours.items():
    want = array.copy()
    if path == "decoder/embed/embedding":
      want[:BASE_ROWS] += base[path]  # added tokens are no differences
    elif path == "decoder/head/kernel":
      want[:, :BASE_ROWS] += base[path]
    elif path in base:
      want += base[path]
    np.testing.assert_array_equal(got[path], want, err_msg=path)


def test_half_precision_is_summed_in_single(tmp_path: pathlib.Path) -> None:
  delta = Delta(tmp_path)
  there = delta.found.parts["decoder"]
  name = "model.layers.0.mlp.up_proj.weight"
  there[name] = np.full_like(there[name], 3e4).astype(np.float16)
  delta.base[name] = np.full_like(delta.base[name], -25013).astype(np.float32)
  got = delta.convert()["decoder/layers/mlp/up/kernel"]
  want = (np.float32(np.float16(3e4)) - np.float32(25013)).astype(np.float16)
  np.testing.assert_array_equal(got[0], np.full_like(got[0], want))


def _eps(delta: Delta) -> None:
  delta.settings["base"]["rms_norm_eps"] = 1e-5


def _positions(delta: Delta) -> None:
  delta.settings["base"]["max_position_embeddings"] = 4096


def _both_of_llama_2(delta: Delta) -> None:
  """Refused by the model's own row, though both agree."""
  for settings in delta.settings.values():
    settings["rms_norm_eps"] = 1e-5


def _family(delta: Delta) -> None:
  fused, _ = systems.made(lambda m: systems.decoder(m, rows=BASE_ROWS, fused=True), 3)
  delta.base = fused


def _width(delta: Delta) -> None:
  name = "model.layers.1.mlp.up_proj.weight"
  delta.base[name] = delta.base[name][:, :4].copy()


def _layers(delta: Delta) -> None:
  for name in [*delta.base]:
    if ".layers.1." in name:
      del delta.base[name]


def _more_rows(delta: Delta) -> None:
  array = delta.base["model.embed_tokens.weight"]
  delta.base["model.embed_tokens.weight"] = np.concatenate([array, array])


def _whole(delta: Delta) -> None:
  there = delta.found.parts["decoder"]
  there["model.norm.weight"] = delta.base["model.norm.weight"] + np.float32(0.01)


def _not_a_number(delta: Delta) -> None:
  delta.base["model.layers.1.mlp.up_proj.weight"][1, 2] = np.nan


@pytest.mark.parametrize(
  ("spoil", "says"),
  [
    (_eps, r"base/config.json: another model .*\n.*rms_norm_eps: 1e-05, 1e-06 in"),
    (_positions, r"max_position_embeddings: 4096, 2048 in"),
    (_both_of_llama_2, r"rms_norm_eps: 1e-05, the model's norm_eps is 1e-06"),
    (_family, r"base: given as what decoder stands on.*hf_phi3; expected hf_llama"),
    (_width, r"layers.1.mlp.up_proj.weight \(12, 8\), \(12, 4\) in the base"),
    (_layers, r"missing    model.layers.1.input_layernorm.weight"),
    (_more_rows, r"model.embed_tokens.weight \(20, 8\), \(32, 8\) in the base"),
    (_whole, r"no differences but a model, which needs no base"),
    (_not_a_number, r"up_proj.weight\[1, 2\] is nan"),
  ],
)  # fmt: skip
def test_another_base_is_refused(tmp_path: pathlib.Path, spoil: Any, says: str) -> None:
  delta = Delta(tmp_path)
  spoil(delta)
  with pytest.raises(ValueError, match=says):
    delta.convert()
  assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(("scale", "told"), [(2e-3, True), (0.04, True), (0.5, False)])
def test_differences_without_their_base_are_told(
  tmp_path: pathlib.Path, scale: float, told: bool
) -> None:
  """Of the same shapes as a model: a decoder of noise about zero would say nothing."""
  found = SYSTEMS["llava_med_1"]()
  norm = found.parts["decoder"]["model.norm.weight"]
  norm[:] = scale * np.sign(norm)
  found.ours["decoder/norm/scale"] = norm
  sources = systems.write(tmp_path, found)
  expected = tree.unflatten(found.ours)
  if not told:
    convert(sources, MODEL, expected, tmp_path / "out")
    return
  with pytest.raises(
    ValueError, match=r"look like differences.*published\.base=FOLDER"
  ):
    convert(sources, MODEL, expected, tmp_path / "out")
  # Gemma's norms count from 1.
  model = MODEL | {"decoder": MODEL["decoder"] | {"norm_offset": True}}
  convert(sources, model, expected, tmp_path / "out")


# ── Our own foundation for another structure ──────────────────────────────────────


def _own(folder: pathlib.Path, kv: int = 8) -> systems.Arrays:
  _, seen = systems.made(systems.eva, 1)
  _, said = systems.made(lambda m: systems.decoder(m, kv=kv), 2)
  ours = systems.blank_norm(seen) | said
  load.save_params(folder / "foundation.safetensors", ours)
  return ours


def _from_own(folder: pathlib.Path, leaves: systems.Arrays) -> Any:
  sources = dict.fromkeys(("encoder", "decoder"), folder)
  out = folder / "out"
  record = convert(sources, MODEL, tree.unflatten(leaves), out)
  return record, load.load_params(out / "foundation.safetensors")


def _fuse(ours: systems.Arrays) -> systems.Arrays:
  here, fused = "decoder/layers", dict(ours)
  for whole, parts in (("attn/qkv", ("q", "k", "v")), ("mlp/gate_up", ("gate", "up"))):
    block = whole.split("/")[0]
    cut = [fused.pop(f"{here}/{block}/{part}/kernel") for part in parts]
    fused[f"{here}/{whole}/kernel"] = np.concatenate(cut, -1)
  return fused


def test_linears_apart_become_fused_ones(tmp_path: pathlib.Path) -> None:
  fused = _fuse(_own(tmp_path))
  _, got = _from_own(tmp_path, fused)
  assert got.keys() == fused.keys()
  for path, array in fused.items():
    np.testing.assert_array_equal(got[path], array, err_msg=path)


def test_unequal_linears_are_not_fused(tmp_path: pathlib.Path) -> None:
  fused = _fuse(_own(tmp_path, kv=4))
  with pytest.raises(ValueError, match=r"shape .*decoder/layers/attn/.*qkv/kernel"):
    _from_own(tmp_path, fused)


def test_biases_that_it_lacks_are_zero_and_told(tmp_path: pathlib.Path) -> None:
  ours = _own(tmp_path)
  more = {f"decoder/layers/attn/{n}/bias": np.ones((2, 8), np.float32) for n in "qkv"}
  more["encoder/layers/attn/k_bias"] = np.ones((2, systems.TOWER), np.float32)
  record, got = _from_own(tmp_path, ours | more)
  assert record["filled"] == dict.fromkeys(more, 0.0)
  assert not any(got[path].any() for path in more)
  np.testing.assert_array_equal(
    got["encoder/layers/attn/q_bias"], ours["encoder/layers/attn/q_bias"]
  )
  more["decoder/layers/mlp/up/bias"] = np.ones((2, 12), np.float32)
  with pytest.raises(ValueError, match="missing    decoder/layers/mlp/up/bias"):
    _from_own(tmp_path, ours | more)
