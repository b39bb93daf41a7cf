"""Random erasing, by the rectangles that it leaves."""

import numpy as np
import tensorflow as tf

from halonet.data.erasing import random_erasing

SIZE = 64
PLAIN = 77


def erase(count, probability):
  image = tf.fill([SIZE, SIZE, 3], tf.constant(PLAIN, tf.uint8))
  seeds = tf.stack([tf.range(count), tf.fill([count], 3)], -1)
  stream = tf.data.Dataset.from_tensor_slices(seeds).map(
    lambda seed: random_erasing(image, seed, probability)
  )
  assert stream.element_spec == tf.TensorSpec([SIZE, SIZE, 3], tf.uint8)
  return np.stack(list(stream.as_numpy_iterator()))


def rectangles(images):
  """Top, left, height and width of what was erased in each image."""
  for image in images:
    gone = (image != PLAIN).any(-1)
    rows, columns = np.flatnonzero(gone.any(1)), np.flatnonzero(gone.any(0))
    box = rows[0], columns[0], np.ptp(rows) + 1, np.ptp(columns) + 1
    # Whole, and every channel, but for what is plain by chance.
    kept = 3 * box[2] * box[3] - (image != PLAIN).sum()
    assert kept <= 5 + 0.02 * box[2] * box[3]
    yield box


def test_rectangles_have_the_area_and_the_aspect_of_the_paper():
  images = erase(600, 1.0)
  top, left, height, width = np.array(list(rectangles(images))).T
  area = height * width / SIZE**2
  # Sides are rounded to whole pixels, the smallest are five of them.
  assert 0.015 < area.min() < 0.03
  assert 0.31 < area.max() < 0.345
  assert 0.16 < area.mean() < 0.19  # Uniform.
  aspect = height / width
  assert 0.25 < aspect.min() < 0.4
  assert 2.8 < aspect.max() < 3.9
  assert 1.6 < aspect.mean() < 1.95
  for start, side in ((top, height), (left, width)):
    assert start.min() == 0
    assert (start + side).max() == SIZE
    inner = side < SIZE
    place = start[inner] / (SIZE - side[inner])
    assert abs(place.mean() - 0.5) < 0.06


def test_noise_has_every_level_alike_and_independently():
  images = erase(200, 1.0)
  noise = []
  for image, box in zip(images, rectangles(images), strict=True):
    top, left, height, width = box
    part = image[top : top + height, left : left + width]
    noise.append(part.reshape(-1, 3))
  noise = np.concatenate(noise)
  for channel in noise.T:
    counts = np.bincount(channel, minlength=256)
    mean = len(noise) / 256
    # Six standard deviations.
    assert abs(counts - mean).max() < 6 * mean**0.5
  # Channels and neighbours have nothing to do with each other.
  kinds = [*noise.T, noise[:, 0][np.arange(1, len(noise) + 1) % len(noise)]]
  np.testing.assert_allclose(np.corrcoef(kinds), np.eye(4), atol=0.02)


def test_probability():
  assert (erase(50, 0.0) == PLAIN).all()
  erased = (erase(600, 0.25) != PLAIN).any((1, 2, 3))
  assert 0.19 < erased.mean() < 0.31


def test_results_follow_from_the_seed():
  first, second = erase(10, 1.0), erase(10, 1.0)
  np.testing.assert_array_equal(first, second)
  assert len(set(rectangles(first))) == 10
