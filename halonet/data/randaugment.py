"""RandAugment (Cubuk et al. 2020): a few operations on an image, at random.

Pillow, on which the original is built, is the reference of every operation:
on uint8 the results are the same bits. Within an input pipeline every pass over
the pixels counts, so XLA compiles each operation, or its costly part, into one;
this happens once for each image size. Nothing random is kept between calls: all
choices follow from a seed.

Every operation takes an image, uint8 `[height, width, 3]`, and, but for three,
one number, and returns an image of the same kind.
"""

import functools
import math
from collections.abc import Callable

import tensorflow as tf

MAX_MAGNITUDE = 10.0

# What pixels from outside of the image become; the same grey as in the
# published code, which is close to ImageNet's mean.
FILL = 128

# Fixed-point units per pixel of coordinates, as in Pillow.
_UNITS = 65536

# Of red, green and blue in luma (ITU-R 601-2), in units of 1/65536.
_LUMA = (19595, 38470, 7471)


def randaugment(
  image: tf.Tensor,
  seed: tf.Tensor,
  *,
  layers: int,
  magnitude: float,
  magnitude_std: float,
) -> tf.Tensor:
  """Applies `layers` operations, each drawn uniformly from `OPERATIONS`.

  Args:
    image: uint8 `[height, width, 3]`.
    seed: two int32 numbers; the same seed gives the same operations.
    layers: operations in a row, with repetition.
    magnitude: their strength, 0 to 10.
    magnitude_std: standard deviation of normal noise on the magnitude, drawn
      for each operation; the sum is clipped to 0 … 10.

  Returns:
    uint8 `[height, width, 3]`.
  """
  if not layers:
    return image
  seeds = tf.random.experimental.stateless_split(seed, 2)
  drawn = tf.random.stateless_uniform([2, layers], seeds[0])
  choices = tf.cast(drawn[0] * len(OPERATIONS), tf.int32)
  strengths = tf.fill([layers], magnitude / MAX_MAGNITUDE)
  if magnitude_std:
    noise = tf.random.stateless_normal([layers], seeds[1])
    strengths += magnitude_std / MAX_MAGNITUDE * noise
  strengths = tf.clip_by_value(strengths, 0.0, 1.0)
  strengths *= tf.where(drawn[1] < 0.5, -1.0, 1.0)
  for layer in range(layers):
    branches = [
      functools.partial(_apply, name, image, strengths[layer])
      for name in OPERATIONS
    ]
    shape = image.shape
    image = tf.ensure_shape(tf.switch_case(choices[layer], branches), shape)
  return image


def _apply(name, image, strength):
  operation, argument = OPERATIONS[name]
  if argument is None:
    return operation(image)
  return operation(image, argument(strength))


def _compiled(function):
  """Compiles a function of an image and, perhaps, one number."""
  compiled = tf.function(function, jit_compile=True, autograph=False)

  @functools.wraps(function)
  def operation(image, *argument):
    # A Python number would be compiled into the code.
    return compiled(image, *(tf.cast(x, tf.float32) for x in argument))

  return operation


def identity(image: tf.Tensor) -> tf.Tensor:
  """Leaves the image as it is."""
  return tf.identity(image)


# ------------------------------------------------------------------ histograms


def autocontrast(image: tf.Tensor) -> tf.Tensor:
  """Stretches each channel linearly to 0 … 255; `ImageOps.autocontrast`."""
  low, high = (tf.cast(level, tf.float64) for level in _extrema(image))
  levels = tf.range(256, dtype=tf.float64)[:, None]
  # Not compiled: XLA would fuse product and sum, and round otherwise.
  scale = 255.0 / (high - low)
  stretched = levels * scale + -low * scale
  stretched = tf.where(high > low, stretched, levels)
  table = tf.cast(tf.clip_by_value(stretched, 0.0, 255.0), tf.uint8)
  return _look_up(image, table)


def equalize(image: tf.Tensor) -> tf.Tensor:
  """Makes each channel's histogram even; `ImageOps.equalize`."""
  # tf.math.bincount would look for the greatest level first.
  counts = tf.raw_ops.DenseBincount(
    input=_planes(image), size=256, weights=tf.zeros([0], tf.int32)
  )
  counts = tf.transpose(counts)
  levels = tf.range(256)[:, None]
  below = tf.cumsum(counts, exclusive=True)
  # Pixels per output level; the brightest level that occurs is left out.
  brightest = tf.reduce_max(tf.where(counts > 0, levels, 0), 0)
  total = tf.reduce_sum(tf.where(levels < brightest, counts, 0), 0)
  step = total // 255
  table = (below + step // 2) // tf.maximum(step, 1)
  table = tf.where(step > 0, tf.minimum(table, 255), levels)
  return _look_up(image, tf.cast(table, tf.uint8))


@_compiled
def _extrema(image):
  """The least and the greatest level of each channel, uint8 `[3]` each."""
  rows = _rows(image)
  return [
    reduce(tf.reshape(reduce(rows, 0), [-1, 3]), 0)
    for reduce in (tf.reduce_min, tf.reduce_max)
  ]


@_compiled
def _planes(image):
  """Levels channel after channel, int32 `[3, pixels]`."""
  return tf.reshape(tf.transpose(tf.cast(image, tf.int32), [2, 0, 1]), [3, -1])


@functools.partial(tf.function, jit_compile=True, autograph=False)
def _look_up(image, table):
  """Replaces each channel's levels; `table` is uint8 `[256, 3]`."""
  levels = tf.unstack(tf.cast(image, tf.int32), axis=-1)
  tables = tf.unstack(table, axis=-1)
  return tf.stack(list(map(tf.gather, tables, levels)), -1)


# ------------------------------------------------------------ levels and blends


@_compiled
def solarize(image: tf.Tensor, threshold: tf.Tensor) -> tf.Tensor:
  """Inverts levels of at least `threshold`, 0 … 256; `ImageOps.solarize`."""
  keep = tf.cast(image, tf.float32) < threshold
  return tf.where(keep, image, 255 - image)


@_compiled
def posterize(image: tf.Tensor, bits: tf.Tensor) -> tf.Tensor:
  """Keeps a level's upper `bits`, 1 … 8; `ImageOps.posterize`."""
  mask = 256 - tf.bitwise.left_shift(1, 8 - tf.cast(bits, tf.int32))
  return tf.bitwise.bitwise_and(image, tf.cast(mask, tf.uint8))


@_compiled
def brightness(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
  """From black (0) over the image (1) up; `ImageEnhance.Brightness`."""
  return _blend(tf.zeros([], tf.float32), image, factor)


@_compiled
def contrast(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
  """From its mean grey (0) over the image (1); `ImageEnhance.Contrast`."""
  grey = tf.cast(_luma(image), tf.int64)
  total, count = tf.reduce_sum(grey), tf.size(grey, tf.int64)
  mean = (2 * total + count) // (2 * count)
  return _blend(tf.cast(mean, tf.float32), image, factor)


@_compiled
def color(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
  """From grey (0) over the image (1) to more colour; `ImageEnhance.Color`."""
  grey = tf.cast(_luma(image), tf.float32)[:, :, None]
  return _blend(grey, image, factor)


def sharpness(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
  """From smooth (0) over the image (1) to sharp; `ImageEnhance.Sharpness`."""
  inner = _sharpen_inner(image, factor)
  # The outermost pixels stay. They are put around it here because XLA would
  # compute each pixel several times over.
  rows = image[1:-1]
  inner = tf.concat([rows[:, :1], inner, rows[:, 1:][:, -1:]], 1)
  return tf.concat([image[:1], inner, image[1:][-1:]], 0)


@_compiled
def _sharpen_inner(image, factor):
  levels = _rows(image)
  sums = tf.cast(levels, tf.int32)
  centre = sums[1:-1, 3:-3]
  sums = sums[:-2] + sums[1:-1] + sums[2:]
  box = sums[:, :-6] + sums[:, 3:-3] + sums[:, 6:]
  # The central pixel weighs 5, its neighbours 1; rounded to nearest.
  smooth = tf.cast((2 * (box + 4 * centre) + 13) // 26, tf.float32)
  inner = _blend(smooth, levels[1:-1, 3:-3], factor)
  height, width = tf.shape(image)[0], tf.shape(image)[1]
  return tf.reshape(inner, [height - 2, width - 2, 3])


def _rows(image):
  """Rows of levels `[height, width · 3]`, which XLA runs through faster."""
  shape = tf.shape(image)
  return tf.reshape(image, [shape[0], shape[1] * 3])


def _luma(image):
  red, green, blue = tf.unstack(tf.cast(image, tf.int32), axis=-1)
  weighted = red * _LUMA[0] + green * _LUMA[1] + blue * _LUMA[2]
  return tf.bitwise.right_shift(weighted + 0x8000, 16)


def _blend(base, image, factor):
  """`Image.blend`: from base (0) over image (1) and beyond, cut to a byte."""
  change = factor * (tf.cast(image, tf.float32) - base)
  # Cut before the sum, to which XLA would else fuse the product: Pillow rounds
  # the product first, which decides many a level at factors such as 1.2.
  change = tf.clip_by_value(change, -base, 255.0 - base)
  return tf.cast(base + change, tf.uint8)


# -------------------------------------------------------------------- geometry


@_compiled
def rotate(image: tf.Tensor, degrees: tf.Tensor) -> tf.Tensor:
  """Rotates counter-clockwise about the centre; `Image.rotate`."""
  angle = tf.cast(degrees, tf.float64) * (math.pi / 180)
  cos, sin = tf.cos(angle), tf.sin(angle)
  height, width = _size(image)
  x, y = width / 2, height / 2
  return _transform(
    image, cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y
  )


@_compiled
def shear_x(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
  """Moves row y to the left by `factor · y` pixels."""
  return _transform(image, 1, factor, 0, 0, 1, 0)


@_compiled
def shear_y(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
  """Moves column x upwards by `factor · x` pixels."""
  return _transform(image, 1, 0, 0, factor, 1, 0)


@_compiled
def translate_x(image: tf.Tensor, share: tf.Tensor) -> tf.Tensor:
  """Moves to the left by `share` of the width, to the nearest pixel."""
  _, width = _size(image)
  return _transform(image, 1, 0, tf.cast(share, tf.float64) * width, 0, 1, 0)


@_compiled
def translate_y(image: tf.Tensor, share: tf.Tensor) -> tf.Tensor:
  """Moves upwards by `share` of the height, to the nearest pixel."""
  height, _ = _size(image)
  return _transform(image, 1, 0, 0, 0, 1, tf.cast(share, tf.float64) * height)


def _size(image):
  shape = tf.shape(image)
  return tf.cast(shape[0], tf.float64), tf.cast(shape[1], tf.float64)


def _transform(image, a, b, c, d, e, f):
  """`Image.transform` by AFFINE with the nearest pixel.

  The pixel at (x, y), seen from its centre, is taken from (a x + b y + c,
  d x + e y + f), and is `FILL` if that lies outside of the image.
  """
  height, width = tf.shape(image)[0], tf.shape(image)[1]
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
    tf.reshape(image, [-1, 3]), tf.where(inside, row * width + column, 0)
  )
  return tf.where(inside[:, :, None], pixels, tf.constant(FILL, tf.uint8))


# The operation set of the paper, each with its argument for a strength of
# −1 … 1, which is the magnitude's share of its maximum with a random sign. The
# ranges are those of AutoAugment (Cubuk et al. 2019, table 6); operations
# without directions get stronger with the magnitude.
OPERATIONS: dict[str, tuple[Callable, Callable | None]] = {
  "identity": (identity, None),
  "autocontrast": (autocontrast, None),
  "equalize": (equalize, None),
  "rotate": (rotate, lambda strength: 30 * strength),
  "solarize": (solarize, lambda strength: 256 - 256 * abs(strength)),
  "color": (color, lambda strength: 1 + 0.9 * strength),
  "posterize": (posterize, lambda strength: 8 - tf.round(4 * abs(strength))),
  "contrast": (contrast, lambda strength: 1 + 0.9 * strength),
  "brightness": (brightness, lambda strength: 1 + 0.9 * strength),
  "sharpness": (sharpness, lambda strength: 1 + 0.9 * strength),
  "shear_x": (shear_x, lambda strength: 0.3 * strength),
  "shear_y": (shear_y, lambda strength: 0.3 * strength),
  "translate_x": (translate_x, lambda strength: 150 / 331 * strength),
  "translate_y": (translate_y, lambda strength: 150 / 331 * strength),
}
