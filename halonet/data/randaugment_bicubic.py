"""RandAugment's geometric operations with bicubic interpolation, as in timm.

Each gives the same bits as Pillow's `Image.transform` and `Image.rotate` with
`BICUBIC`: a cubic with a = -1, whose results are cut, not rounded. Therefore
they compute in float64. Pixels are those of `randaugment_operations.py`.
"""

import math

from halonet.data.randaugment_operations import join, split
from halonet.data.runtime import tf

# Levels of pixels from outside of the image: ImageNet's mean, as timm rounds
# the mean of the images that it is given.
FILL = (124, 116, 104)


def rotate(pixels: tf.Tensor, degrees: tf.Tensor) -> tf.Tensor:
  """Rotates counter-clockwise about the centre."""
  height, width = tf.unstack(tf.shape(pixels))
  angle = _float(degrees) % 360 * (math.pi / 180)
  # Pillow rounds to 15 digits, so that sin(30°) is 1/2. By a constant XLA would
  # not divide, but multiply by its inverse.
  unit = 1e15 + 0 * angle
  cos, sin = (
    tf.round(ratio * unit) / unit for ratio in (tf.cos(angle), tf.sin(angle))
  )
  x, y = _centres(width), _centres(height)[:, None]
  middle_x, middle_y = _float(width) / 2, _float(height) / 2

  def turned(a, b, middle):
    offset = _product(a, -middle_x) + _product(b, -middle_y) + middle
    return _product(a, x) + _product(b, y) + offset

  column, x_share, inside_x = _place(turned(cos, -sin, middle_x), width)
  row, y_share, inside_y = _place(turned(sin, cos, middle_y), height)

  columns, rows = (
    [tf.clip_by_value(first + step, 0, size - 1) for step in range(-1, 3)]
    for first, size in ((column, width), (row, height))
  )
  # One gather of all places is faster than sixteen.
  places = tf.stack(
    [row * width + column for row in rows for column in columns]
  )
  near = tf.unstack(tf.gather(tf.reshape(pixels, [-1]), places))
  lines = [
    _between(map(split, near[start : start + 4]), x_share)
    for start in (0, 4, 8, 12)
  ]
  return _cut(_between(lines, y_share), inside_x & inside_y)


def shear_x(pixels: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
  """Moves row y to the left by `factor · y` pixels."""
  rows = _centres(tf.shape(pixels)[0])[:, None]
  return _move_left(pixels, _product(_float(factor), rows))


def shear_y(pixels: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
  """Moves column x upwards by `factor · x` pixels."""
  return tf.transpose(shear_x(tf.transpose(pixels), factor))


def translate_x(pixels: tf.Tensor, share: tf.Tensor) -> tf.Tensor:
  """Moves to the left by `share` of the width."""
  distance = _product(_float(share), _float(tf.shape(pixels)[1]))
  return _move_left(pixels, tf.reshape(distance, [1, 1]))


def translate_y(pixels: tf.Tensor, share: tf.Tensor) -> tf.Tensor:
  """Moves upwards by `share` of the height."""
  return tf.transpose(translate_x(tf.transpose(pixels), share))


def _move_left(pixels, distance):
  """Moves rows to the left by distances, float64 `[height, 1]` or `[1, 1]`."""
  height, width = tf.unstack(tf.shape(pixels))
  before, share, inside = _place(_centres(width) + distance, width)
  # Neighbours come from neighbours, so that a row needs one gather. The minimum
  # is the first; XLA would compute that anew for each pixel.
  first = tf.reduce_min(before, 1, keepdims=True)
  share += _float(before - first - tf.range(width))
  places = first + tf.range(-1, width + 2)
  places = tf.clip_by_value(places, 0, width - 1)
  places += width * tf.range(height)[:, None]
  row = tf.gather(tf.reshape(pixels, [-1]), places)
  near = [split(row[:, start : start + width]) for start in range(4)]
  return _cut(_between(near, share), inside)


def _product(a, b):
  """Multiplies coordinates, and cuts; XLA would fuse a product to a sum."""
  return tf.clip_by_value(a * b, -1e9, 1e9)


def _float(number):
  return tf.cast(number, tf.float64)


def _centres(size):
  """Returns the coordinates of pixels' centres along an axis."""
  return _float(tf.range(size)) + 0.5


def _place(coordinate, size):
  """Returns the pixel before, how far beyond it, and whether that is inside."""
  inside = (coordinate >= 0) & (coordinate < _float(size))
  coordinate -= 0.5
  before = tf.floor(coordinate)
  return tf.cast(before, tf.int32), coordinate - before, inside


def _between(near, share):
  """Interpolates each channel between the second and third of four pixels."""

  def cubic(a, b, c, d):
    a, b, c, d = map(_float, (a, b, c, d))
    third = 2 * (a - b) + c - d
    return b + share * (c - a + share * (third + share * (b - a - c + d)))

  return [cubic(*channel) for channel in zip(*near, strict=True)]


def _cut(levels, inside):
  levels = (
    tf.cast(tf.clip_by_value(level, 0.0, 255.0), tf.int32) for level in levels
  )
  return tf.where(inside, join(levels), join(FILL))
