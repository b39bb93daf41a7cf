"""Resizing in NumPy gives the numbers of TensorFlow."""

import platform

import numpy as np
import pytest
from sklearn.datasets import load_sample_image

from halonet.data.resampling import resize
from halonet.data.runtime import tf


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("side", [1, 2, 31, 32, 33, 100, 427])
@pytest.mark.parametrize("size", [1, 32, 97])
def test_the_numbers_are_those_of_tensorflow(side, size, interpolation):
  photograph = load_sample_image("china.jpg")[:side, 100 : 100 + side]
  noise = np.random.default_rng(side).integers(0, 256, photograph.shape)
  for image in (photograph, noise.astype(np.uint8)):
    expected = tf.image.resize(
      image, (size, size), interpolation, antialias=True
    )
    actual = resize(image, (size, size), interpolation)
    if platform.machine() == "x86_64":
      np.testing.assert_array_equal(actual, expected)
    else:
      # Processors that fuse a product to a sum may round otherwise.
      np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-4)
