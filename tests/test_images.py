"""Files of every kind to pixels; squares as the published transforms make them; bombs."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import assume
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from PIL import EpsImagePlugin
from PIL import Image
from PIL import ImageFile

from imax_jax.data import geometry
from imax_jax.data import images
from imax_jax.data.geometry import Geometry
from imax_jax.data.phantom.anatomy import sample_case
from imax_jax.data.phantom.render import render

KINDS = ("stretch", "pad", "crop")
BICUBIC = Image.Resampling.BICUBIC


def encode(image, file_format="PNG", **options):
  buffer = io.BytesIO()
  image.save(buffer, file_format, **options)
  return buffer.getvalue()


def picture(shape, seed=0):
  """Smooth with grain: uint8[shape]."""
  rng = np.random.default_rng(seed)
  y, x = np.mgrid[: shape[0], : shape[1]]
  smooth = 128 + 90 * np.sin(x / 37 + seed) * np.cos(y / 23)
  if len(shape) == 3:
    smooth = smooth[:, :, None] * np.array([1.0, 0.8, 0.6])
  return np.clip(smooth + rng.normal(0, 20, shape), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def film():
  """uint8[1024, 1024] of the phantom."""
  return render(sample_case(np.random.default_rng(3), view="PA"), 1024).pixels


# ── Resizing, against a second implementation ─────────────────────────────────────


def bicubic_weights(size, out):
  """float64[out, size]: cubic convolution, a = -0.5, widened by the scale (antialias)."""
  scale = size / out
  widen = max(scale, 1.0)
  weights = np.zeros((out, size))
  for i in range(out):
    center = (i + 0.5) * scale
    first = max(int(center - 2 * widen + 0.5), 0)
    last = min(int(center + 2 * widen + 0.5), size)
    t = np.abs((np.arange(first, last) + 0.5 - center) / widen)
    near = 1.5 * t**3 - 2.5 * t**2 + 1
    far = -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
    row = np.where(t < 1, near, np.where(t < 2, far, 0))
    weights[i, first:last] = row / row.sum()
  return weights


def bicubic(pixels, size):
  """Along the rows, then down the columns; 8 bits between the two, as PIL has it."""
  for axis in (1, 0):
    weights = bicubic_weights(pixels.shape[axis], size)
    summed = np.moveaxis(np.tensordot(weights, pixels, (1, axis)), 0, axis)
    pixels = np.rint(np.clip(summed, 0, 255))
  return pixels


@pytest.mark.parametrize("size", [224, 336, 448])
@pytest.mark.parametrize("shape", [(1501, 1330), (200, 700), (611, 530, 3)])
def test_stretch_is_antialiased_bicubic(size, shape):
  pixels = picture(shape)
  got = images.to_pixels(images.encode_png(pixels), size, colour=len(shape) == 3)
  want = bicubic(pixels, size)
  if len(shape) == 2:
    want = np.repeat(want[:, :, None], 3, axis=2)
  assert np.abs(got - want).max() <= 1
  assert np.abs(got - want).mean() < 0.05


# ── Geometries, against the published transforms ──────────────────────────────────


def test_crop_by_hand():
  pixels = picture((301, 403))
  got = images.to_pixels(images.encode_png(pixels), 224, 1, geometry=Geometry("crop"))
  # 403 * 224 / 301 = 299.9 rounds down; of the 75 over, 37 are left and 38 right.
  want = Image.fromarray(pixels).resize((299, 224), BICUBIC).crop((37, 0, 261, 224))
  np.testing.assert_array_equal(got[:, :, 0], np.asarray(want))


@pytest.mark.parametrize(
  "size", [(401, 300), (300, 401), (255, 613), (224, 224), (90, 91)]
)
def test_crop_is_clips(size):
  clip = pytest.importorskip(
    "transformers.models.clip.image_processing_pil_clip",
    reason="this transformers has no CLIP processor on PIL",
  )
  pixels = picture((size[1], size[0], 3))
  processor = clip.CLIPImageProcessorPil(do_rescale=False, do_normalize=False)
  want = processor(Image.fromarray(pixels), return_tensors="np")["pixel_values"][0]
  got = images.to_pixels(
    images.encode_png(pixels), 224, colour=True, geometry=Geometry("crop")
  )
  np.testing.assert_array_equal(got, want.transpose(1, 2, 0))


@pytest.mark.parametrize("shape", [(300, 401), (401, 300), (300, 300)])
@pytest.mark.parametrize("fill", [(122, 116, 104), (0, 0, 0)])
def test_pad_is_llavas(shape, fill):
  pixels = picture((*shape, 3))
  side = max(shape)
  canvas = np.empty((side, side, 3), np.uint8)
  canvas[:] = fill
  top, left = (side - shape[0]) // 2, (side - shape[1]) // 2
  canvas[top : top + shape[0], left : left + shape[1]] = pixels
  want = np.asarray(Image.fromarray(canvas).resize((112, 112), BICUBIC))
  data = images.encode_png(pixels)
  got = images.to_pixels(data, 112, colour=True, geometry=Geometry("pad", fill))
  np.testing.assert_array_equal(got, want)
  if fill == (122, 116, 104):
    default = images.to_pixels(data, 112, colour=True, geometry=Geometry("pad"))
    np.testing.assert_array_equal(default, want)


def test_a_grey_film_is_padded_in_its_luminance():
  data = images.encode_png(np.zeros((10, 40), np.uint8))
  got = images.to_pixels(data, 40, geometry=Geometry("pad"))
  assert (got[0] == 116).all()
  assert (got[20] == 0).all()
  black = images.to_pixels(data, 40, geometry=Geometry("pad", (0, 0, 0)))
  assert not black.any()


def test_an_unknown_geometry_is_refused():
  with pytest.raises(ValueError, match="'zoom': expected one of stretch, pad, crop"):
    Geometry("zoom")


@pytest.mark.parametrize("kind", ["pad", "crop"])
def test_a_thread_of_a_picture_makes_no_huge_canvas(kind):
  data = images.encode_png(np.zeros((60_000, 1), np.uint8))
  with pytest.raises(ValueError, match="a1: a picture this narrow needs .* 'stretch'"):
    images.to_pixels(data, 2000, geometry=Geometry(kind), name="a1")
  assert images.to_pixels(data, 8).shape == (8, 8, 3)


# ── Boxes ─────────────────────────────────────────────────────────────────────────

SIDES = st.integers(20, 4000)
FRACTIONS = st.tuples(*[st.integers(0, 1000)] * 4).map(
  lambda four: (
    min(four[0], four[2]) / 1000, min(four[1], four[3]) / 1000,
    max(four[0], four[2]) / 1000, max(four[1], four[3]) / 1000,
  )
).filter(lambda box: box[0] < box[2] and box[1] < box[3])  # fmt: skip


@given(st.sampled_from(["stretch", "pad"]), FRACTIONS, SIDES, SIDES)
def test_there_and_back_is_the_same_box(kind, box, width, height):
  way = Geometry(kind)
  there = way.to_square(box, width, height, 224)
  assert way.to_picture(there, width, height, 224) == pytest.approx(box, abs=1e-9)


@given(FRACTIONS, SIDES, SIDES)
def test_back_and_there_is_the_same_box_of_a_crop(box, width, height):
  way = Geometry("crop")
  back = way.to_picture(box, width, height, 224)
  assert way.to_square(back, width, height, 224) == pytest.approx(box, abs=1e-9)


@settings(max_examples=60)
@given(st.sampled_from(KINDS), st.integers(64, 300), st.integers(64, 300), st.data())
def test_boxes_go_where_their_pixels_go(kind, width, height, data):
  x, y = data.draw(st.integers(0, width - 16)), data.draw(st.integers(0, height - 16))
  right = data.draw(st.integers(x + 16, width))
  bottom = data.draw(st.integers(y + 16, height))
  pixels = np.zeros((height, width), np.uint8)
  pixels[y:bottom, x:right] = 255
  way, size = Geometry(kind, (0, 0, 0)), 96
  box = (x / width, y / height, right / width, bottom / height)
  moved = way.to_square(box, width, height, size, min_share=0)
  square = images.to_pixels(images.encode_png(pixels), size, 1, geometry=way)[:, :, 0]
  rows, columns = np.nonzero(square >= 128)
  assume(moved is None or min(moved[2] - moved[0], moved[3] - moved[1]) > 2 / size)
  if moved is None:
    assert rows.size == 0
    return
  drawn = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
  assert np.abs(np.array(moved) * size - drawn).max() <= 0.75


def test_what_is_cut_off_has_no_box():
  way = Geometry("crop")  # of 400 x 200: the middle 200 x 200
  see = lambda box, **options: way.to_square(box, 400, 200, 100, **options)  # noqa: E731
  assert see((0.0, 0.0, 0.2, 1.0)) is None
  assert see((0.0, 0.0, 0.25, 1.0), min_share=0) is None
  assert see((0.15, 0.0, 0.3, 1.0)) is None  # a third is left
  assert see((0.15, 0.0, 0.3, 1.0), min_share=0.3) == pytest.approx((0, 0, 0.1, 1))
  assert see((0.2, 0.0, 0.4, 1.0)) == pytest.approx((0, 0, 0.3, 1))
  assert see((0.5, 0.5, 0.5, 0.5)) is None
  assert way.to_picture((0, 0, 1, 1), 400, 200, 100) == pytest.approx(
    (0.25, 0, 0.75, 1)
  )


def test_a_box_in_the_padding_is_nowhere_on_the_picture():
  assert Geometry("pad").to_picture((0, 0, 0.2, 1), 100, 200, 224) is None
  assert Geometry("pad").to_picture((0, 0, 0.5, 1), 100, 200, 224) == pytest.approx(
    (0, 0, 0.5, 1)
  )


# ── Kinds of files ────────────────────────────────────────────────────────────────

GREY = picture((30, 40))
RGB = picture((30, 40, 3))
LUMA = np.asarray(Image.fromarray(RGB).convert("L"))
ALIKE = np.repeat(GREY[:, :, None], 3, axis=2)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P"])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_grey_in_any_mode(mode, kind):
  data = encode(Image.fromarray(GREY).convert(mode), kind)
  np.testing.assert_array_equal(images.decode(data), GREY)
  np.testing.assert_array_equal(images.decode(data, colour=True), ALIKE)


def test_palettes():
  indexed = Image.fromarray(RGB).quantize(64)
  want = indexed.convert("RGB")
  data = encode(indexed, transparency=3)
  np.testing.assert_array_equal(images.decode(data, colour=True), np.asarray(want))
  np.testing.assert_array_equal(images.decode(data), np.asarray(want.convert("L")))


def test_colour_is_kept_or_made_luminance():
  data = images.encode_png(RGB)
  np.testing.assert_array_equal(images.decode(data, colour=True), RGB)
  np.testing.assert_array_equal(images.decode(data), LUMA)
  clear = Image.fromarray(RGB).convert("RGBA")
  clear.putalpha(0)
  np.testing.assert_array_equal(images.decode(encode(clear)), LUMA)


def test_bilevel():
  bits = Image.fromarray(np.where(GREY > 128, 255, 0).astype(np.uint8)).convert("1")
  np.testing.assert_array_equal(images.decode(encode(bits)) > 0, GREY > 128)


def test_a_jpeg_of_four_inks():
  # One ink, so that no colour conversion is left to taste: black at 55 of 255.
  inks = Image.merge("CMYK", [Image.new("L", (16, 16), ink) for ink in (0, 0, 0, 55)])
  got = images.decode(encode(inks, "JPEG", quality=95), colour=True)
  np.testing.assert_allclose(got.astype(int), 200, atol=2)


@pytest.mark.parametrize(("bits", "order"), [(12, "<"), (16, "<"), (16, ">")])
def test_sixteen_bits(bits, order):
  values = np.linspace(0, 2**bits - 1, 1200).reshape(30, 40).astype(np.uint16)
  data = encode(Image.fromarray(values), "PNG" if order == "<" else "TIFF")
  if order == ">":
    data = encode(
      Image.frombytes("I;16B", (40, 30), values.astype(">u2").tobytes()), "TIFF"
    )
  want = (values >> (bits - 8)).astype(np.uint8)
  np.testing.assert_array_equal(images.decode(data), want)
  np.testing.assert_array_equal(images.decode(data, colour=True)[:, :, 2], want)
  pixels = images.to_pixels(data, 16, 1)[:, :, 0]
  np.testing.assert_array_equal(
    pixels, np.asarray(Image.fromarray(want).resize((16, 16), BICUBIC))
  )


def test_floating_point_pixels_are_refused():
  with pytest.raises(ValueError, match="do not decode"):
    images.decode(encode(Image.fromarray(GREY.astype(np.float32)), "TIFF"))


UPRIGHT = {
  1: lambda stored: stored,
  2: lambda stored: stored[:, ::-1],
  3: lambda stored: stored[::-1, ::-1],
  4: lambda stored: stored[::-1],
  5: lambda stored: stored.T,
  6: lambda stored: np.rot90(stored, -1),  # stored a quarter turn to the left
  7: lambda stored: stored[::-1, ::-1].T,
  8: lambda stored: np.rot90(stored),
}


def oriented(pixels, value, kind="PNG", **options):
  exif = Image.Exif()
  exif[0x0112] = value
  return encode(Image.fromarray(pixels), kind, exif=exif, **options)


@pytest.mark.parametrize("value", list(UPRIGHT))
def test_the_orientation_of_exif_is_carried_out(value):
  want = UPRIGHT[value](GREY)
  data = oriented(GREY, value)
  np.testing.assert_array_equal(images.decode(data), want)
  jpeg = oriented(GREY, value, "JPEG", quality=100)
  assert np.abs(images.decode(jpeg).astype(int) - want).max() <= 3
  np.testing.assert_array_equal(
    images.to_pixels(data, 16, 1)[:, :, 0],
    np.asarray(Image.fromarray(want).resize((16, 16), BICUBIC)),
  )
  stored = images.to_stored(data, None)
  np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(stored))), want)
  assert (stored == data) == (value == 1)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("part", [b"garbage", b"MM\0*garbage", b"MM\0*\0\xa4\0"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_damaged_exif_part_does_not_cost_the_picture(kind, part):
  data = encode(Image.fromarray(GREY), kind, exif=b"Exif\0\0" + part)
  assert images.decode(data).shape == GREY.shape
  assert images.to_stored(data, None) == data


@pytest.mark.parametrize("kind", ["GIF", "PNG", "TIFF", "WEBP"])
def test_the_first_frame_is_taken(kind):
  frames = [Image.new("L", (8, 8), shade) for shade in (40, 200)]
  options = {"lossless": True} if kind == "WEBP" else {}
  data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
  assert Image.open(io.BytesIO(data)).n_frames == 2
  assert np.abs(images.decode(data).astype(int) - 40).max() <= 1


def test_colour_needs_three_channels():
  with pytest.raises(ValueError, match="3 channels, not 1"):
    images.to_pixels(images.encode_png(RGB), 8, 1, colour=True)


def test_what_is_stored_is_fitted():
  data = images.encode_png(picture((60, 90)))
  for kind in KINDS:
    way = Geometry(kind)
    stored = images.decode(images.to_stored(data, 32, geometry=way))
    want = images.to_pixels(data, 32, 1, geometry=way)[:, :, 0]
    np.testing.assert_array_equal(stored, want)
  fits = images.encode_png(picture((32, 32)))
  assert images.to_stored(fits, 32, geometry=Geometry("pad")) == fits


# ── Bombs and other malice ────────────────────────────────────────────────────────


def png_that_declares(width, height):
  def chunk(kind, body):
    crc = struct.pack(">I", zlib.crc32(kind + body))
    return struct.pack(">I", len(body)) + kind + body + crc

  head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
  body = zlib.compress(bytes(1000))
  return (
    b"\x89PNG\r\n\x1a\n"
    + chunk(b"IHDR", head)
    + chunk(b"IDAT", body)
    + chunk(b"IEND", b"")
  )


def jpeg_that_declares(width, height):
  data = encode(Image.fromarray(GREY), "JPEG")
  return data.replace(struct.pack(">HH", 30, 40), struct.pack(">HH", height, width), 1)


@pytest.mark.parametrize("pils_limit", [None, 1000, 89_478_485])
@pytest.mark.parametrize("make", [png_that_declares, jpeg_that_declares])
def test_bombs_are_refused_by_their_header(make, pils_limit, monkeypatch):
  monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pils_limit)
  monkeypatch.setattr(
    ImageFile.ImageFile, "load", lambda self: pytest.fail("it was unpacked")
  )
  for read in (
    images.decode,
    lambda data, name: images.to_pixels(data, 8, draft=True, name=name),
  ):
    with pytest.raises(ValueError, match="^a1: expected at most 80000000 pixels, got"):
      read(make(60_000, 50_000), name="a1")


@pytest.mark.filterwarnings("error")
def test_the_limit_is_ours(monkeypatch):
  monkeypatch.setattr(images, "MAX_PIXELS", GREY.size)
  assert images.decode(images.encode_png(GREY)).shape == GREY.shape
  with pytest.raises(ValueError, match="declares more"):
    images.decode(images.encode_png(picture((30, 41))))
  assert geometry.MAX_PIXELS < Image.MAX_IMAGE_PIXELS  # so PIL never warns before


WHOLE = [
  encode(Image.fromarray(GREY), "PNG"),
  encode(Image.fromarray(GREY.astype(np.uint16) * 9), "PNG"),
  encode(Image.fromarray(RGB).quantize(16), "PNG"),
  oriented(GREY, 6, "JPEG"),
  encode(Image.fromarray(RGB), "JPEG", progressive=True),
  encode(Image.fromarray(RGB), "GIF"),
  encode(Image.fromarray(RGB), "WEBP"),
  encode(Image.fromarray(RGB), "TIFF"),
  encode(Image.fromarray(RGB), "BMP"),
]


@pytest.mark.filterwarnings("ignore::UserWarning")  # PIL's, of corrupt EXIF
@given(st.sampled_from(WHOLE), st.data(), st.sampled_from(KINDS), st.booleans())
def test_damaged_files_raise_only_value_errors(whole, data, kind, colour):
  cut = data.draw(st.integers(0, len(whole)))
  noise = data.draw(st.binary(max_size=40))
  end = data.draw(st.sampled_from([len(whole), cut + len(noise)]))
  damaged = whole[:cut] + noise + whole[cut + len(noise) : end]
  try:
    pixels = images.to_pixels(
      damaged, 4, draft=True, geometry=Geometry(kind), colour=colour, name="p10/x"
    )
  except ValueError as error:
    told = str(error)
  else:
    assert pixels.shape == (4, 4, 3)
    return
  assert told.startswith("p10/x: ")


def test_a_program_is_not_run(monkeypatch):
  monkeypatch.setattr(
    EpsImagePlugin, "Ghostscript", lambda *args: pytest.fail("it was run")
  )
  eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"
  with pytest.raises(ValueError, match="do not decode"):
    images.decode(eps)


# ── Draft ─────────────────────────────────────────────────────────────────────────


def off(data, image_px, **options):
  """Mean difference of the draft from the whole reading, of 255."""
  draft = images.to_pixels(data, image_px, draft=True, **options).astype(int)
  return np.abs(draft - images.to_pixels(data, image_px, **options)).mean()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("image_px", "shrunk"), [(96, 4), (160, 2)])
@pytest.mark.parametrize("colour", [False, True])
def test_a_draft_is_near_the_whole(film, kind, image_px, shrunk, colour):
  way = Geometry(kind)
  pixels = film[:1013, :865]  # the last row and column of a draft are a part of a pixel
  assert way.shrink(865, 1013, image_px) == shrunk
  image = Image.fromarray(pixels).convert("RGB" if colour else "L")
  data = encode(image, "JPEG", quality=92)
  assert 0 < off(data, image_px, geometry=way, colour=colour) < 0.35


@pytest.mark.parametrize("grain", [0, 6])
@pytest.mark.parametrize("image_px", [224, 448])
def test_a_draft_of_a_large_film_is_within_one(film, grain, image_px):
  large = np.asarray(Image.fromarray(film).resize((2544, 3056), BICUBIC), np.float32)
  large += np.random.default_rng(0).normal(0, grain, large.shape)
  pixels = np.clip(large, 0, 255).astype(np.uint8)
  data = encode(Image.fromarray(pixels), "JPEG", quality=95)
  for kind in KINDS:
    assert 0 < off(data, image_px, geometry=Geometry(kind)) <= 1


def test_no_draft_where_it_would_cost(film):
  small = encode(Image.fromarray(film[:440, :440]), "JPEG")
  turned = oriented(film, 6, "JPEG")
  for data in (small, images.encode_png(film), turned):
    assert off(data, 224) == 0
  assert off(encode(Image.fromarray(film), "JPEG"), 224) > 0


def test_how_far_a_draft_may_shrink():
  stretch, pad = Geometry("stretch"), Geometry("pad")
  assert stretch.shrink(896, 1500, 224) == 2
  assert stretch.shrink(895, 1500, 224) == 1
  assert stretch.shrink(9000, 9000, 224) == 4
  assert pad.shrink(447, 900, 224) == 2
  assert pad.shrink(3, 9000, 224) == 2


def test_a_stored_draft_is_the_drafts_pixels(film):
  data = encode(Image.fromarray(film), "JPEG")
  stored = images.decode(images.to_stored(data, 112, draft=True))
  np.testing.assert_array_equal(
    stored, images.to_pixels(data, 112, 1, draft=True)[..., 0]
  )
