"""Several scales of a picture equal S2 written out in torch; the class token kept."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the references run in torch")
pytest.importorskip("peft", reason="tests.parity_models imports it")

# After the two lines above: these import what may be missing.
from imax_jax import tree  # noqa: E402
from imax_jax.models import scales as scales_lib  # noqa: E402
from imax_jax.models.vit import Encoder  # noqa: E402
from imax_jax.weights.rows_of_layouts import layout  # noqa: E402
from tests import parity_models as models  # noqa: E402

ROW = "clip_vit_l14"
SCALES = (32, 64, 96)


@pytest.fixture(scope="module")
def reference() -> Any:
  return models.encoder_reference(ROW)


def ours(reference: Any, raw: np.ndarray, **fields: Any) -> np.ndarray:
  encoder = Encoder(**models.encoder_fields(ROW) | fields)
  shapes = jax.eval_shape(encoder.init, jax.random.key(0), raw)["params"]
  params = models.ours(
    {"encoder": shapes}, (reference.state_dict(), layout("clip_vision"))
  )
  apply = models.jit(encoder.apply)
  got = np.asarray(apply({"params": params["encoder"]}, raw))
  assert got.shape[1:] == (encoder.num_tokens, encoder.out_width)
  return got


def tower(reference: Any, pixels: Any) -> Any:
  """[N, C, H, W] -> [N, 1 + P, D] of the last block of our row."""
  depth = models.TOWER["depth"]
  with torch.no_grad():
    return reference(pixel_values=pixels, output_hidden_states=True).hidden_states[
      depth
    ]


def s2(reference: Any, pixels: Any) -> np.ndarray:
  """Scale by scale, tile by tile, image by image."""
  resize, side = torch.nn.functional.interpolate, SCALES[0] // models.TOWER["patch_px"]
  images = []
  for image in pixels:
    channels = []
    for scale in SCALES:
      x = resize(image[None], size=(scale, scale), mode="bicubic")
      rows = []
      for top in range(0, scale, SCALES[0]):
        row = []
        for left in range(0, scale, SCALES[0]):
          tile = x[:, :, top : top + SCALES[0], left : left + SCALES[0]]
          row.append(tower(reference, tile)[0, 1:].reshape(side, side, -1))
        rows.append(torch.cat(row, dim=1))
      whole = torch.cat(rows).permute(2, 0, 1)[None]
      small = resize(whole, size=(side, side), mode="area")[0]
      channels.append(small.permute(1, 2, 0).reshape(side * side, -1))
    images.append(torch.cat(channels, dim=-1))
  return torch.stack(images).numpy()


def test_three_scales_are_s2s(reference: Any) -> None:
  raw = models.pixels(2, SCALES[-1])
  want = s2(reference, models.published_pixels(raw, ROW))
  fields = {"image_px": SCALES[-1], "scales": SCALES}
  got = ours(reference, raw, **fields)
  assert got.shape == (2, 16, 3 * 48)
  for part, own in zip(np.split(got, 3, -1), np.split(want, 3, -1), strict=True):
    assert models.far(part, own) <= models.EXACT
  # The tower's parameters are those of one scale of its own size.
  one, many = (
    jax.eval_shape(
      Encoder(**models.encoder_fields(ROW) | more).init, jax.random.key(0), pixels
    )["params"]
    for more, pixels in (({}, raw[:, :32, :32]), (fields, raw))
  )
  tree.check_same(one, many, name="several scales")


@pytest.mark.parametrize("method", ["linear", "cubic"])
def test_another_resampling_is_seen(
  reference: Any, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
  raw = models.pixels(1, SCALES[-1])
  want = s2(reference, models.published_pixels(raw, ROW))

  other = {
    scale: np.asarray(
      jax.image.resize(np.eye(96), (scale, 96), method, antialias=False), np.float64
    )
    for scale in SCALES
  }
  monkeypatch.setattr(scales_lib, "bicubic", lambda size, target: other[target])
  got = ours(reference, raw, image_px=SCALES[-1], scales=SCALES)
  assert models.far(got, want) > 5 * models.EXACT


@pytest.mark.parametrize(("size", "target"), [(30, 10), (48, 36), (9, 20)])
def test_the_kernel_is_torchs(size: int, target: int) -> None:
  columns = torch.eye(size)[None, None]
  want = torch.nn.functional.interpolate(columns, size=(target, size), mode="bicubic")
  np.testing.assert_allclose(
    scales_lib.bicubic(size, target), want[0, 0].numpy(), atol=2e-6
  )


def test_the_class_token_may_stay(reference: Any) -> None:
  raw = models.pixels(2, 32)
  want = tower(reference, models.published_pixels(raw, ROW)).numpy()
  got = ours(reference, raw, keep_class=True)
  assert models.far(got, want) <= models.EXACT
  np.testing.assert_array_equal(got[:, 1:], ours(reference, raw))


@pytest.mark.parametrize(
  ("fields", "words"),
  [
    ({"scales": (32, 64)}, r"scales \(32, 64\).*image_px=96"),
    ({"scales": (64, 32, 96)}, "rising"),
    ({"scales": (36, 96)}, "multiples of the first"),
    ({"scales": (32, 96), "keep_class": True}, "keep_class.*one tile an image"),
    ({"class_token": False, "keep_class": True}, "class_token=False.*token to keep"),
  ],
)
def test_scales_that_do_not_divide_are_refused(
  fields: dict[str, Any], words: str
) -> None:
  with pytest.raises(ValueError, match=words):
    Encoder(**models.encoder_fields(ROW) | {"image_px": 96} | fields)
