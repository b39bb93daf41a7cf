"""RandAugment's operations on pixels; `randaugment.py` draws them.

Each gives the same bits as Pillow where Pillow has it. Every operation takes
the pixels of an image, int32 `[height, width]`, and one number, which three
ignore, and returns pixels. Cutout also takes a place. A pixel is red + 256
green + 65536 blue, because processors compute on many such numbers at once, but
not on groups of three bytes.
"""

import math
from collections.abc import Iterable

from halonet.data.runtime import tf

# Level of pixels from outside of the image; the grey of the published code,
# which is close to ImageNet's mean.
FILL = 128

# Fixed-point units per pixel of coordinates, as in Pillow.
_UNITS = 65536

# Weights of red, green and blue in luma (ITU-R 601-2), in units of 1/65536.
_LUMA = (19595, 38470, 7471)


def join(levels: Iterable[tf.Tensor]) -> tf.Tensor:
  """Returns the pixels that have these levels of red, green and blue."""
  return sum(
    tf.bitwise.left_shift(level, shift)
    for level, shift in zip(levels, (0, 8, 16), strict=True)
  )


def split(pixels: tf.Tensor) -> list[tf.Tensor]:
  """Returns the levels of red, green and blue, int32 `[height, width]`."""
  return [
    tf.bitwise.bitwise_and(tf.bitwise.right_shift(pixels, shift), 255)
    for shift in (0, 8, 16)
  ]


# ------------------------------------------------------------------ histograms


def autocontrast(pixels: tf.Tensor, _: tf.Tensor) -> tf.Tensor:
  """Stretches each channel linearly to 0 … 255; `ImageOps.autocontrast`."""
  levels = tf.range(256, dtype=tf.float64)

  def table(channel):
    low, high = (
      tf.cast(reduce(reduce(channel, 0), 0), tf.float64)
      for reduce in (tf.reduce_min, tf.reduce_max)
    )
    scale = 255.0 / (high - low)
    # Cut before the difference, because XLA would fuse the products to it.
    # Pillow rounds these first.
    offset = tf.maximum(low * scale, 0.0)
    product = tf.clip_by_value(levels * scale, offset, offset + 256.0)
    stretched = tf.where(high > low, product - offset, levels)
    return tf.cast(tf.minimum(stretched, 255.0), tf.int32)

  return _look_up(pixels, tf.stack(list(map(table, split(pixels)))))


def equalize(pixels: tf.Tensor, _: tf.Tensor) -> tf.Tensor:
  """Makes each channel's histogram even; `ImageOps.equalize`."""
  levels = tf.range(256)
  counts = tf.stack(
    [
      tf.math.unsorted_segment_sum(tf.ones_like(level), level, 256)
      for level in split(pixels)
    ]
  )
  # A matrix product is XLA's fastest cumulative sum, and exact in float32 up to
  # 2^24 pixels.
  lower = tf.cast(levels[:, None] < levels, tf.float32)
  below = tf.cast(tf.matmul(tf.cast(counts, tf.float32), lower), tf.int32)
  # Pixels per output level; the brightest level that occurs is left out.
  brightest = tf.reduce_max(tf.where(counts > 0, levels, 0), 1, keepdims=True)
  total = tf.where(levels < brightest, counts, 0)
  step = tf.reduce_sum(total, 1, keepdims=True) // 255
  tables = (below + step // 2) // tf.maximum(step, 1)
  return _look_up(pixels, tf.where(step > 0, tf.minimum(tables, 255), levels))


def _look_up(pixels, tables):
  """Replaces each channel's levels by those in its table, int32 `[3, 256]`."""
  # Tables are increasing, so sorting changes nothing; but XLA would compute an
  # unsorted one anew for each pixel.
  tables = tf.sort(tables, axis=1)
  return join(map(tf.gather, tf.unstack(tables), split(pixels)))


# ------------------------------------------------------------ levels and blends


def solarize(pixels: tf.Tensor, threshold: tf.Tensor) -> tf.Tensor:
  """Inverts levels of at least `threshold`, 0 … 256; `ImageOps.solarize`."""
  return join(
    tf.where(tf.cast(level, tf.float32) < threshold, level, 255 - level)
    for level in split(pixels)
  )


def solarize_add(pixels: tf.Tensor, addition: tf.Tensor) -> tf.Tensor:
  """Adds to levels below 128, up to 255; `addition` is a whole number ≥ 0."""
  addition = tf.cast(addition, tf.int32)
  return join(
    tf.where(level < 128, tf.minimum(level + addition, 255), level)
    for level in split(pixels)
  )


def invert(pixels: tf.Tensor, _: tf.Tensor) -> tf.Tensor:
  """Turns each level v into 255 − v; `ImageOps.invert`."""
  return join([255] * 3) - pixels


def posterize(pixels: tf.Tensor, bits: tf.Tensor) -> tf.Tensor:
  """Keeps a level's upper `bits`, rounded; `ImageOps.posterize`.

  It keeps one bit for less, and all eight for more.
  """
  bits = tf.clip_by_value(tf.round(bits), 1.0, 8.0)
  return drop_bits(pixels, 8 - bits)


def drop_bits(pixels: tf.Tensor, bits: tf.Tensor) -> tf.Tensor:
  """Zeroes a level's lower `bits`, a whole number; all eight leave black."""
  mask = 256 - tf.bitwise.left_shift(1, tf.cast(bits, tf.int32))
  return tf.bitwise.bitwise_and(pixels, join([mask] * 3))


def brightness(pixels: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
  """Blends black (0) with the image (1); `ImageEnhance.Brightness`."""
  return _blend([tf.constant(0)] * 3, pixels, factor)


def contrast(pixels: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
  """Blends the mean grey (0) with the image (1); `ImageEnhance.Contrast`."""
  total = tf.reduce_sum(tf.cast(tf.reduce_sum(_luma(pixels), 0), tf.int64))
  count = tf.size(pixels, tf.int64)
  mean = tf.cast((2 * total + count) // (2 * count), tf.int32)
  return _blend([mean] * 3, pixels, factor)


def color(pixels: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
  """Blends grey (0) with the image (1); `ImageEnhance.Color`."""
  return _blend([_luma(pixels)] * 3, pixels, factor)


def sharpness(pixels: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
  """Blends smooth (0) with the image (1); `ImageEnhance.Sharpness`."""
  centre = pixels[1:-1, 1:-1]

  def smooth(level):
    rows = level[:-2] + level[1:-1] + level[2:]
    box = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
    # The central pixel weighs 5, its neighbours 1; rounded to nearest.
    return (2 * (box + 4 * level[1:-1, 1:-1]) + 13) // 26

  inner = _blend(map(smooth, split(pixels)), centre, factor)
  # The outermost pixels stay.
  rows = pixels[1:-1]
  inner = tf.concat([rows[:, :1], inner, rows[:, 1:][:, -1:]], 1)
  return tf.concat([pixels[:1], inner, pixels[1:][-1:]], 0)


def _luma(pixels):
  weighted = map(tf.multiply, split(pixels), _LUMA)
  return tf.bitwise.right_shift(sum(weighted) + 0x8000, 16)


def _blend(bases, pixels, factor):
  """Blends from bases (0) to pixels (1) and beyond; `Image.blend`.

  The bases are levels of red, green and blue. Results are cut to 0 … 255.
  """

  def blend(base, level):
    base, level = tf.cast(base, tf.float32), tf.cast(level, tf.float32)
    change = factor * (level - base)
    # Cut before the sum, because XLA would fuse the product to it. Pillow
    # rounds the product first, which changes levels at factors such as 1.2.
    change = tf.clip_by_value(change, -base, 255.0 - base)
    return tf.cast(base + change, tf.int32)

  return join(map(blend, bases, split(pixels)))


# -------------------------------------------------------------------- geometry


def rotate(pixels: tf.Tensor, degrees: tf.Tensor) -> tf.Tensor:
  """Rotates counter-clockwise about the centre; `Image.rotate`."""
  angle = tf.cast(degrees, tf.float64) * (math.pi / 180)
  cos, sin = tf.cos(angle), tf.sin(angle)
  height, width = _size(pixels)
  x, y = width / 2, height / 2
  return _transform(
    pixels, cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y
  )


def shear_x(pixels: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
  """Moves row y to the left by `factor · y` pixels."""
  return _transform(pixels, 1, factor, 0, 0, 1, 0)


def shear_y(pixels: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
  """Moves column x upwards by `factor · x` pixels."""
  return _transform(pixels, 1, 0, 0, factor, 1, 0)


def translate_x(pixels: tf.Tensor, share: tf.Tensor) -> tf.Tensor:
  """Moves to the left by `share` of the width, to the nearest pixel."""
  _, width = _size(pixels)
  return move_left(pixels, tf.cast(share, tf.float64) * width)


def translate_y(pixels: tf.Tensor, share: tf.Tensor) -> tf.Tensor:
  """Moves upwards by `share` of the height, to the nearest pixel."""
  height, _ = _size(pixels)
  return move_up(pixels, tf.cast(share, tf.float64) * height)


def move_left(pixels: tf.Tensor, distance: tf.Tensor) -> tf.Tensor:
  """Moves to the left by `distance` in pixels, to the nearest one."""
  return _transform(pixels, 1, 0, distance, 0, 1, 0)


def move_up(pixels: tf.Tensor, distance: tf.Tensor) -> tf.Tensor:
  """Moves upwards by `distance` in pixels, to the nearest one."""
  return _transform(pixels, 1, 0, 0, 0, 1, distance)


def cutout(pixels: tf.Tensor, reach: tf.Tensor, place: tf.Tensor) -> tf.Tensor:
  """Fills a square around a random pixel with `FILL` (DeVries and Taylor 2017).

  Args:
    pixels: int32 `[height, width]`.
    reach: half of the square's side, a whole number. The pixel is the first
      one below and to the right of the square's centre.
    place: two numbers of 0 … 1, float32: of the height and the width, the
      shares above and to the left of the pixel.
  """
  size = tf.shape(pixels)
  reach = tf.cast(reach, tf.int32)
  row, column = tf.unstack(
    # Rounding must not take a place beyond the last.
    tf.minimum(tf.cast(place * tf.cast(size, tf.float32), tf.int32), size - 1)
  )
  below = tf.range(size[0])[:, None] - row
  right = tf.range(size[1])[None] - column
  inside = (-reach <= below) & (below < reach)
  inside &= (-reach <= right) & (right < reach)
  return tf.where(inside, join([FILL] * 3), pixels)


def _size(pixels):
  shape = tf.shape(pixels)
  return tf.cast(shape[0], tf.float64), tf.cast(shape[1], tf.float64)


def _transform(pixels, a, b, c, d, e, f):
  """Transforms by an affine map with nearest pixels; `Image.transform`.

  The pixel with centre (x, y) is taken from (a x + b y + c, d x + e y + f), and
  is `FILL` if that lies outside of the image.
  """
  height, width = tf.shape(pixels)[0], tf.shape(pixels)[1]
  x, y = tf.range(width)[None], tf.range(height)[:, None]

  def source(along_x, along_y, offset):
    along_x, along_y, offset = (
      tf.cast(value, tf.float64) for value in (along_x, along_y, offset)
    )
    offset += 0.5 * (along_x + along_y)
    along_x, along_y, offset = (
      tf.cast(tf.floor(value * _UNITS + 0.5), tf.int32)
      for value in (along_x, along_y, offset)
    )
    return tf.bitwise.right_shift(offset + x * along_x + y * along_y, 16)

  column, row = source(a, b, c), source(d, e, f)
  inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
  pixels = tf.gather(
    tf.reshape(pixels, [-1]), tf.where(inside, row * width + column, 0)
  )
  return tf.where(inside, pixels, join([FILL] * 3))
