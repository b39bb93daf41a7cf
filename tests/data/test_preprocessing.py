"""Preprocessing against Pillow and by its invariants."""

import io

import ml_collections
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from halonet.data import preprocessing


def data(**overrides):
  fields = dict(
    image_size=24,
    mean=(0.0, 0.0, 0.0),
    std=(1.0, 1.0, 1.0),
    crop_area=1.0,
    flip=False,
  )
  return ml_collections.ConfigDict(fields | overrides)


def photograph(width=90, height=60, mode="RGB"):
  """A smooth picture without symmetries."""
  y, x = np.mgrid[0:height, 0:width] / max(width, height)
  channels = [np.sin(5 * x + y), np.cos(3 * y - x), np.sin(4 * x * y)]
  array = np.stack(channels, -1) * 100 + 128
  return Image.fromarray(array.astype(np.uint8)).convert(mode)


def encode(image, kind="PNG"):
  file = io.BytesIO()
  image.save(file, kind)
  return tf.constant(file.getvalue())


@pytest.mark.parametrize("size", [24, 100])
def test_test_image_is_the_resized_central_square(size):
  image = photograph()
  actual = preprocessing.test_image(encode(image), data(image_size=size))
  square = image.crop((15, 0, 75, 60))
  expected = square.resize((size, size), Image.Resampling.BILINEAR)
  # Pillow rounds to whole numbers.
  np.testing.assert_allclose(actual * 255, np.asarray(expected), atol=1.01)


def test_whole_image_is_used_without_crops():
  image = photograph(60, 60)
  seed = tf.constant([0, 1])
  np.testing.assert_array_equal(
    preprocessing.train_image(encode(image), data(), seed),
    preprocessing.test_image(encode(image), data()),
  )


def test_grey_becomes_three_equal_channels():
  actual = preprocessing.test_image(encode(photograph(mode="L")), data())
  assert actual.shape == (24, 24, 3)
  np.testing.assert_array_equal(actual[..., 0], actual[..., 2])


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "GIF"])
def test_formats_decode(kind):
  image = photograph()
  actual = preprocessing.decode(encode(image, kind))
  assert actual.shape == (60, 90, 3) and actual.dtype == tf.uint8


def test_normalised_by_mean_and_std():
  config = data(mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 2.0))
  white = encode(Image.new("RGB", (8, 8), "white"))
  actual = preprocessing.test_image(white, config).numpy()
  np.testing.assert_allclose(actual[3, 4], [1.0, 3.0, 0.5], rtol=1e-6)


def test_crops_stay_in_their_range():
  # The channels hold the row and the column, so a crop shows its corners.
  rows, cols = np.mgrid[0:200, 0:200]
  array = np.stack([rows, cols, rows], -1).astype(np.uint8)
  encoded = encode(Image.fromarray(array))
  config = data(crop_area=0.3, image_size=50)
  areas, ratios = [], []
  for number in range(60):
    seed = tf.constant([7, number])
    crop = preprocessing.train_image(encoded, config, seed).numpy() * 255
    height = crop[-1, 0, 0] - crop[0, 0, 0]
    width = crop[0, -1, 1] - crop[0, 0, 1]
    areas.append(height * width / 200**2)
    ratios.append(width / height)
  # The outermost samples lie inside of the crop: some per cent are lost.
  assert 0.25 <= min(areas) < 0.4 and 0.8 < max(areas) <= 1
  assert 0.70 <= min(ratios) < 0.85 and 1.15 < max(ratios) <= 1.4


def test_flips_half_of_the_images():
  encoded = encode(photograph(60, 60))
  plain = preprocessing.test_image(encoded, data()).numpy()
  flipped = 0
  for number in range(100):
    seed = tf.constant([3, number])
    image = preprocessing.train_image(encoded, data(flip=True), seed).numpy()
    is_flipped = not np.array_equal(image, plain)
    if is_flipped:
      np.testing.assert_allclose(image, plain[:, ::-1], atol=1e-6)
    flipped += is_flipped
  assert 30 <= flipped <= 70
