"""The tables of published layouts: both ways, and the resized positions of torch."""

from __future__ import annotations

import dataclasses
import math

import ml_dtypes
import numpy as np
import pytest

from imax_jax.weights import layouts
from imax_jax.weights import positions
from imax_jax.weights.rows_of_layouts import LAYOUTS
from imax_jax.weights.rows_of_layouts import layout

WIDTH, LAYERS = 6, 2
RNG = np.random.default_rng(0)


def _leaf(row: layouts.Row) -> np.ndarray:
  """Random numbers for a leaf that a row fills, whole or in part."""
  own = {
    layouts.CONVOLUTION: (2 * 2 * 3, WIDTH),
    layouts.MATRIX: (4, WIDTH * row.slot[1]),
    layouts.TABLE: (5, WIDTH),
    layouts.TABLE_OF_3: (5, WIDTH),
  }.get(row.form, (WIDTH,))
  layers = (LAYERS,) if row.layered else ()
  return RNG.normal(size=(*layers, *own)).astype(np.float32)


@pytest.mark.parametrize("table", LAYOUTS, ids=lambda table: table.name)
def test_there_and_back(table: layouts.Layout) -> None:
  # Connectors have two names for the first layer: alone, and the first of several.
  once = {(row.path, row.slot, row.cut): row for row in table.rows}
  table = dataclasses.replace(table, rows=tuple(once.values()))
  leaves = {row.path: _leaf(row) for row in table.rows if row.path}
  published = dict(table.publish(leaves))
  assert table.fits(tuple(published)) and table.paths == leaves.keys()
  back = {path: np.full_like(leaf, np.nan) for path, leaf in leaves.items()}
  for name, tensor in published.items():
    rows = table.rows_of(table.canonical(name))
    assert rows, name
    for row, layer in rows:
      share = row.to_ours(tensor)
      if not row.path:
        assert not share.any()
        continue
      leaf = back[row.path] if layer is None else back[row.path][layer]
      assert row.shape(tensor.shape) == share.shape == row.share(back[row.path].shape)
      width = share.shape[-1]
      leaf[..., row.slot[0] * width : (row.slot[0] + 1) * width] = share
  for path, leaf in leaves.items():
    np.testing.assert_array_equal(back[path], leaf, err_msg=path)


def test_a_file_has_one_layout() -> None:
  for table in LAYOUTS:
    names = tuple(row.name(0 if row.layered else None) for row in table.rows)
    fitting = [other.name for other in LAYOUTS if other.fits(names)]
    # PEFT's names are a part of others', LLaMA's of Gemma's: the first that fits is taken.
    assert fitting[0] == table.name
    assert fitting[1:] in ([], ["peft"], ["hf_llama"])


def test_shapes_of_another_rank_have_none() -> None:
  row = layout("eva").rows_of("patch_embed.proj.weight")[0][0]
  assert row.shape((8, 3, 14, 14)) == (588, 8)
  assert row.shape((8, 588)) is None


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
@pytest.mark.parametrize("shape", [(1, 1), (3, 2500), (1500, 1030)])
def test_transpose(shape: tuple[int, int], dtype: type) -> None:
  matrix = RNG.normal(size=shape).astype(dtype)
  turned = layouts.transpose(matrix)
  assert turned.flags.c_contiguous and turned.dtype == dtype
  np.testing.assert_array_equal(turned, matrix.T)


@pytest.mark.parametrize(
  "sides", [(16, 32), (24, 16), (37, 27), (4, 5), (1, 3), (6, 6)]
)
def test_positions_are_resized_as_torch_does(sides: tuple[int, int]) -> None:
  torch = pytest.importorskip("torch", reason="torch's bicubic is the reference")
  size, target = sides
  table = RNG.normal(size=(size**2 + 1, 7)).astype(np.float32)
  got = positions.resize(table, target**2 + 1, class_token=True)
  grid = torch.from_numpy(table[1:]).reshape(1, size, size, 7).permute(0, 3, 1, 2)
  want = torch.nn.functional.interpolate(
    grid, size=(target, target), mode="bicubic", align_corners=False
  )
  want = want.permute(0, 2, 3, 1).reshape(-1, 7).numpy()
  np.testing.assert_allclose(got[1:], want, atol=1e-6 * np.abs(want).max(), rtol=0)
  np.testing.assert_array_equal(got[0], table[0])
  np.testing.assert_array_equal(
    positions.resize(table[1:], target**2, class_token=False), got[1:]
  )


def test_positions_without_a_square_are_refused() -> None:
  assert math.isqrt(256) == 16
  with pytest.raises(ValueError, match="256 rows for 1025 tokens.*and a class token"):
    positions.resize(np.zeros((256, 2), np.float32), 1025, class_token=True)
