"""DICOM files, written here by pydicom itself, to the grey that a reading room shows."""

import io
import logging
import sys
import traceback
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from PIL import Image

from imax_jax.data import images

RAMP = np.arange(0, 4096, 4, dtype=np.uint16).reshape(16, 64)
NAME = "Geheim^Patientin"


def write(values, *, kind="MONOCHROME2", bits=12, deflated=False, **elements):
  """uint8 or (u)int16 [H, W], [F, H, W] or [H, W, 3] -> the bytes of a DICOM file."""
  pydicom = pytest.importorskip("pydicom", reason="the extra 'dicom' is not installed")
  dataset = pydicom.Dataset()
  dataset.file_meta = pydicom.dataset.FileMetaDataset()
  dataset.file_meta.TransferSyntaxUID = (
    pydicom.uid.DeflatedExplicitVRLittleEndian
    if deflated
    else pydicom.uid.ExplicitVRLittleEndian
  )
  dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
  dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
  dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1.1", "1.2.3.4"
  dataset.PatientName = NAME
  colour = kind == "RGB"
  dataset.SamplesPerPixel = 3 if colour else 1
  if colour:
    dataset.PlanarConfiguration = 0
  if values.ndim == 3 and not colour:
    dataset.NumberOfFrames = len(values)
  dataset.PhotometricInterpretation = kind
  dataset.Rows, dataset.Columns = values.shape[-3:-1] if colour else values.shape[-2:]
  dataset.BitsAllocated = 8 * values.itemsize
  dataset.BitsStored = min(bits, dataset.BitsAllocated)
  dataset.HighBit = dataset.BitsStored - 1
  dataset.PixelRepresentation = int(values.dtype.kind == "i")
  dataset.PixelData = values.tobytes()
  for name, value in elements.items():
    setattr(dataset, name, value)
  file = io.BytesIO()
  dataset.save_as(file, enforce_file_format=True)
  return file.getvalue()


def lut(entries, first, bits):
  pydicom = pytest.importorskip("pydicom", reason="the extra 'dicom' is not installed")
  item = pydicom.Dataset()
  item.LUTDescriptor = [len(entries), first, bits]
  item.LUTData = list(entries)
  item["LUTDescriptor"].VR = item["LUTData"].VR = "US"
  return [item]


def linear(values, low, high):
  return np.rint(np.clip((values.astype(float) - low) / (high - low), 0, 1) * 255)


def test_the_window_is_shown():
  # The standard's window of center c and width w runs over [c - w/2, c + w/2 - 1].
  data = write(RAMP, WindowCenter=2048, WindowWidth=1024)
  np.testing.assert_array_equal(images.decode(data), linear(RAMP, 1536, 2559))


def test_the_first_of_several_windows_is_taken():
  several = write(RAMP, WindowCenter=[2048, 9], WindowWidth=[1024, 4])
  one = write(RAMP, WindowCenter=2048, WindowWidth=1024)
  np.testing.assert_array_equal(images.decode(several), images.decode(one))


def test_window_functions():
  narrow = {"WindowCenter": 2000, "WindowWidth": 16}
  exact = images.decode(write(RAMP, VOILUTFunction="LINEAR_EXACT", **narrow))
  np.testing.assert_array_equal(exact, linear(RAMP, 1992, 2008))
  broad = {"WindowCenter": 2000, "WindowWidth": 1000}
  curve = images.decode(write(RAMP, VOILUTFunction="SIGMOID", **broad))
  want = 255 / (1 + np.exp(-4 * (RAMP.astype(float) - 2000) / 1000))
  np.testing.assert_allclose(curve, want, atol=0.501)
  threshold = images.decode(write(RAMP, WindowCenter=2000, WindowWidth=1))
  np.testing.assert_array_equal(threshold, np.where(RAMP >= 2000, 255, 0))


@pytest.mark.filterwarnings("error")
def test_without_a_window_the_films_own_range_is_shown():
  values = RAMP[4:12] + 100
  np.testing.assert_array_equal(
    images.decode(write(values)), linear(values, values.min(), values.max())
  )
  assert not images.decode(write(np.full((8, 8), 700, np.uint16))).any()


@pytest.mark.parametrize("window", [{}, {"WindowCenter": 2048, "WindowWidth": 1024}])
def test_monochrome1_is_turned_around(window):
  black_is_high = images.decode(write(RAMP, kind="MONOCHROME1", **window))
  np.testing.assert_array_equal(
    black_is_high, 255 - images.decode(write(RAMP, **window))
  )


def test_the_voi_lut_comes_before_the_window():
  # 8-bit entries for 12-bit values: more places than a byte can count.
  entries = np.minimum(np.arange(3000) // 10, 255)[::-1]
  data = write(
    RAMP, VOILUTSequence=lut(entries.tolist(), 500, 8), WindowCenter=9, WindowWidth=4
  )
  want = entries[np.clip(RAMP.astype(int) - 500, 0, 2999)]
  np.testing.assert_array_equal(images.decode(data), want)


def test_a_lut_of_more_bits_or_of_bytes():
  entries = np.arange(4096) * 16
  want = np.rint(entries[RAMP] / 65535 * 255)
  as_numbers = lut(entries.tolist(), 0, 16)
  np.testing.assert_array_equal(
    images.decode(write(RAMP, VOILUTSequence=as_numbers)), want
  )
  as_bytes = lut([0], 0, 16)
  as_bytes[0].LUTDescriptor = [4096, 0, 16]
  as_bytes[0]["LUTData"].VR = "OW"
  as_bytes[0].LUTData = entries.astype("<u2").tobytes()
  np.testing.assert_array_equal(
    images.decode(write(RAMP, VOILUTSequence=as_bytes)), want
  )


def test_the_modality_comes_before_the_window():
  signed = RAMP.astype(np.int16) - 2048
  data = write(
    signed, RescaleSlope=2, RescaleIntercept=-10, WindowCenter=0, WindowWidth=1001
  )
  np.testing.assert_array_equal(
    images.decode(data), linear(2.0 * signed - 10, -500.5, 499.5)
  )


def test_colour_and_frames():
  rgb = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
  data = write(rgb, kind="RGB", bits=8)
  np.testing.assert_array_equal(images.decode(data, colour=True), rgb)
  grey = np.asarray(Image.fromarray(rgb).convert("L"))
  np.testing.assert_array_equal(images.decode(data), grey)
  frames = np.stack([RAMP, RAMP[::-1]])
  np.testing.assert_array_equal(
    images.decode(write(frames)), images.decode(write(RAMP))
  )


def test_it_goes_where_other_files_go():
  data = write(RAMP)
  grey = images.decode(data)
  np.testing.assert_array_equal(images.decode(images.to_stored(data, None)), grey)
  np.testing.assert_array_equal(
    images.to_pixels(data, 8), images.to_pixels(images.encode_png(grey), 8)
  )


def test_a_bomb_is_refused_by_its_header():
  data = write(RAMP, Rows=60_000, Columns=50_000)
  with pytest.raises(ValueError, match="^a1: expected at most 80000000 pixels"):
    images.decode(data, name="a1")
  with pytest.raises(ValueError, match="^a1: a deflated DICOM file"):
    images.decode(write(RAMP, deflated=True), name="a1")


def test_other_kinds_are_refused():
  with pytest.raises(ValueError, match="^a1: expected a DICOM picture of MONOCHROME1"):
    images.decode(write(RAMP, kind="PALETTE COLOR"), name="a1")


def test_without_pydicom_the_error_says_what_to_install(monkeypatch):
  data = bytes(128) + b"DICM" + bytes(50)
  monkeypatch.setitem(sys.modules, "pydicom", None)
  with pytest.raises(ValueError, match=r"^a1: .*pip install 'imax_jax\[dicom\]'"):
    images.decode(data, name="a1")


@settings(max_examples=400)
@given(st.data())
def test_damaged_files_raise_only_value_errors_without_text(data):
  whole = write(RAMP, WindowCenter=2048, WindowWidth=1024)
  head = len(whole) - RAMP.nbytes
  cut = data.draw(st.integers(132, head) | st.integers(132, len(whole)))
  noise = data.draw(st.binary(max_size=12))
  end = data.draw(st.sampled_from([len(whole), cut + len(noise)]))
  damaged = whole[:cut] + noise + whole[cut + len(noise) : end]
  logged = io.StringIO()
  handler = logging.StreamHandler(logged)
  logging.getLogger("pydicom").addHandler(handler)
  try:
    with warnings.catch_warnings(record=True) as warned:
      grey = images.decode(damaged, name="a1")
  except ValueError as error:
    told = "".join(traceback.format_exception(error))
  else:
    assert grey.dtype == np.uint8
    return
  finally:
    logging.getLogger("pydicom").removeHandler(handler)
    assert "Geheim" not in logged.getvalue() + "".join(str(w.message) for w in warned)
  assert "ValueError: a1: " in told
  assert "Geheim" not in told
