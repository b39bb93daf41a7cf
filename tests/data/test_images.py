"""Image files of every kind that people have."""

import os

import numpy as np
import pytest
from PIL import Image

from halonet.data import images
from halonet.errors import UsageError
from tests.data.test_preprocessing import data, photograph


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK"])
def test_every_mode_becomes_rgb(tmp_path, mode):
  path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
  photograph(40, 30, "L" if mode in ("1", "LA") else "RGB").convert(mode).save(
    path
  )
  image = images.read_image(path)
  assert image.mode == "RGB" and image.size == (40, 30)
  array = images.square_input(image, data(image_size=16))
  assert array.shape == (16, 16, 3) and array.dtype == np.float32


def test_sixteen_bits_keep_the_upper_eight(tmp_path):
  path = tmp_path / "image.png"
  Image.fromarray(np.array([[0, 128 << 8, 65535]], np.uint16)).save(path)
  grey = np.asarray(images.read_image(path))[0, :, 0]
  assert grey.tolist() == [0, 128, 255]


def test_other_greys_are_brought_to_eight_bits(tmp_path):
  path = tmp_path / "image.tif"
  for values, expected in (
    (np.array([[0, 7, 255]], np.int32), [0, 7, 255]),
    (np.array([[0, 256, 65535]], np.int32), [0, 1, 255]),
    (np.array([[0, 0.5, 1]], np.float32), [0, 127, 255]),
    (np.array([[0, 100, 200]], np.float32), [0, 100, 200]),
  ):
    Image.fromarray(values).save(path)
    grey = np.asarray(images.read_image(path))[0, :, 0]
    assert grey.tolist() == expected


def test_transparency_is_white(tmp_path):
  path = tmp_path / "image.png"
  Image.new("RGBA", (2, 2), (10, 20, 30, 0)).save(path)
  assert (np.asarray(images.read_image(path)) == 255).all()


@pytest.mark.parametrize("kind", ["jpeg", "png", "tiff", "webp"])
def test_camera_orientation_is_applied(tmp_path, kind):
  path = tmp_path / f"image.{kind}"
  exif = Image.Exif()
  exif[0x0112] = 6  # Turned by a quarter.
  photograph(40, 30).save(path, exif=exif)
  assert images.read_image(path).size == (30, 40)


def test_no_image_is_one_clear_error(tmp_path):
  with pytest.raises(UsageError, match=r"there is no file .*none\.png"):
    images.read_image(tmp_path / "none.png")
  text = tmp_path / "text.png"
  text.write_text("no image")
  with pytest.raises(UsageError, match=r"text\.png is not an image"):
    images.read_image(text)
  whole = tmp_path / "whole.png"
  photograph(200, 200).save(whole)
  cut = tmp_path / "cut.png"
  cut.write_bytes(whole.read_bytes()[:2000])
  with pytest.raises(UsageError, match=r"image .*cut\.png cannot be read"):
    images.read_image(cut)
  pipe = tmp_path / "pipe.png"
  os.mkfifo(pipe)
  for path in (tmp_path, pipe):
    with pytest.raises(UsageError, match=f"{path} is no file; name an image"):
      images.read_image(path)


def test_pillows_limit_is_one_clear_error_and_its_warning_none(
  tmp_path, monkeypatch
):
  path = tmp_path / "large.png"
  photograph(40, 30).save(path)
  # Pillow warns from its limit on, and refuses from twice of it on.
  monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 700)
  assert images.read_image(path).size == (40, 30)
  monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
  with pytest.raises(UsageError, match="large.png has more than 178,956,970"):
    images.read_image(path)


def test_published_preprocessing_is_torchvisions(tmp_path):
  # Resize(272), CenterCrop(256), ToTensor, Normalize, on 300×400 pixels: the
  # longer side becomes 362.67, cut to 362, and 53 of its pixels are cut off.
  image = photograph(400, 300)
  actual = images.published_input(
    image,
    image_size=256,
    crop=0.94,
    mean=(0.5, 0.4, 0.3),
    std=(0.1, 0.2, 0.3),
    interpolation="bicubic",
  )
  resized = np.asarray(image.resize((362, 272), Image.Resampling.BICUBIC))
  expected = resized[8:264, 53:309] / 255.0
  expected = (expected - (0.5, 0.4, 0.3)) / (0.1, 0.2, 0.3)
  np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)
