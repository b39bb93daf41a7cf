"""From an encoded image to the array that a model sees, in TensorFlow.

An image stays in bytes until its batch is whole: `train_image` and `test_image`
make uint8 pixels, `normalise` turns a batch of them into numbers. Everything is
stateless: a random choice follows from the seed it is given.

Decoding is most of the work, so a JPEG is decoded only where, and only as
finely as, it is needed. All that follows is as cheap as it gets without a loss:
what was measured stands at each choice.
"""

import functools
from collections.abc import Callable

import ml_collections
import numpy as np
import tensorflow as tf

from halonet.data.erasing import random_erasing
from halonet.data.randaugment import randaugment

Window = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def train_image(
  encoded: tf.Tensor, config: ml_collections.ConfigDict, seed: tf.Tensor
) -> tf.Tensor:
  """Decodes, crops, resizes, flips, augments and erases.

  Args:
    encoded: bytes of a JPEG, PNG, GIF or BMP file, a scalar string.
    config: the `data` part of a training config.
    seed: two int32 numbers; the same seed gives the same choices.

  Returns:
    uint8 `[image_size, image_size, 3]`. Without crops the whole image is
    resized as a test image is; crops are resized faster, by `resize_crop`.
  """
  crop_seed, flip_seed, augment_seed, erasing_seed = tf.unstack(
    tf.random.split(seed, 4)
  )
  if config.crop_area < 1:
    image = decode_crop(
      encoded,
      functools.partial(
        random_window, least_area=config.crop_area, seed=crop_seed
      ),
      config.image_size,
    )
    image = resize_crop(image, config.image_size)
  else:
    image = resize(decode(encoded), config)
  # The resized image is the smaller one as a rule, and of a known shape.
  flip = tf.random.stateless_uniform([], flip_seed) < 0.5
  if not config.flip:
    flip = tf.constant(False)
  if config.randaugment_layers:
    image = randaugment(
      image,
      augment_seed,
      flip=flip,
      layers=config.randaugment_layers,
      magnitude=config.randaugment_magnitude,
      magnitude_std=config.randaugment_std,
    )
  else:
    image = _round(image, flip)
  if config.random_erasing:
    image = random_erasing(image, erasing_seed, config.random_erasing)
  return image


def test_image(
  encoded: tf.Tensor, config: ml_collections.ConfigDict
) -> tf.Tensor:
  """Decodes an image's central square and resizes it.

  Arguments and result as for `train_image`.
  """
  window = functools.partial(central_window, fraction=config.crop_fraction)
  return resize_test(decode_crop(encoded, window), config)


def resize_test(
  image: tf.Tensor, config: ml_collections.ConfigDict
) -> tf.Tensor:
  """The part of `test_image` that follows the crop: uint8 to uint8."""
  return _round(resize(image, config))


def decode(encoded: tf.Tensor) -> tf.Tensor:
  """Decodes to uint8 `[height, width, 3]`, whatever the format.

  Grey becomes equal channels, CMYK becomes RGB as in Pillow, of 16 bits the
  upper 8 remain, and of an animation the first image.
  """
  return tf.io.decode_image(encoded, channels=3, expand_animations=False)


def decode_crop(
  encoded: tf.Tensor, window: Window, least_size: int | None = None
) -> tf.Tensor:
  """Decodes a window of an image; of a JPEG, only that window.

  The format shows in the bytes: files are not always what their names say.

  Args:
    encoded: as for `train_image`.
    window: from an image's height and width to row, column, height and width
      of the part that is wanted, int32 `[4]`.
    least_size: if given, a JPEG's window may come reduced by 2, 4 or 8, as long
      as its sides keep this many pixels.

  Returns:
    uint8 `[height, width, 3]`.
  """

  def jpeg():
    height, width, _ = tf.unstack(tf.io.extract_jpeg_shape(encoded))
    wanted = window(height, width)

    def reduced(ratio):
      # The window counts pixels of the reduced image. Rounding it down moves
      # its borders by less than `ratio` pixels, so by less than one pixel of
      # what it is resized to.
      return lambda: tf.io.decode_and_crop_jpeg(
        encoded,
        wanted // ratio,
        channels=3,
        ratio=ratio,
        # As fast as the default, and the pixels are Pillow's. Leaving out
        # fancy_upscaling is no faster either.
        dct_method="INTEGER_ACCURATE",
      )

    if least_size is None:
      return reduced(1)()
    # A reduced image is decoded from the lower frequencies alone: at half the
    # size this takes about half of the time, and after the resize it is as near
    # to an antialiased one of all pixels as without the reduction.
    spare = tf.minimum(wanted[2], wanted[3]) // least_size
    index = tf.reduce_sum(tf.cast(spare >= [2, 4, 8], tf.int32))
    return tf.switch_case(index, [reduced(ratio) for ratio in (1, 2, 4, 8)])

  def other():
    image = decode(encoded)
    return crop(image, window(tf.shape(image)[0], tf.shape(image)[1]))

  image = tf.cond(tf.io.is_jpeg(encoded), jpeg, other)
  return tf.ensure_shape(image, (None, None, 3))


def crop(image: tf.Tensor, window: tf.Tensor) -> tf.Tensor:
  """Cuts row, column, height and width `[4]` out of an image."""
  # The hundred nodes of tf.image's own crop, mostly checks, would cost time for
  # every JPEG too: TensorFlow walks through branches that are not taken.
  row, col, height, width = tf.unstack(window)
  return tf.slice(image, [row, col, 0], [height, width, 3])


def random_window(
  height: tf.Tensor, width: tf.Tensor, *, least_area: float, seed: tf.Tensor
) -> tf.Tensor:
  """Draws a window of `least_area` … 1 of the area and of aspect 3/4 … 4/3.

  The aspect is uniform, and so is the height among those that fit; areas are
  therefore more often small than large. This is TensorFlow's own sampler. An
  image so narrow that no window fits is taken whole.

  Returns:
    row, column, height and width, int32 `[4]`.
  """
  begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
    tf.stack([height, width, 3]),
    tf.zeros([1, 0, 4]),
    seed,
    min_object_covered=0,
    aspect_ratio_range=(3 / 4, 4 / 3),
    area_range=(least_area, 1.0),
    use_image_if_no_bounding_boxes=True,
  )
  return tf.concat([begin[:2], size[:2]], 0)


def central_window(
  height: tf.Tensor, width: tf.Tensor, *, fraction: float
) -> tf.Tensor:
  """The central square whose side is `fraction` of the shorter side.

  Returns:
    row, column, height and width, int32 `[4]`.
  """
  shorter = tf.minimum(height, width)
  side = tf.round(tf.cast(shorter, tf.float32) * fraction)
  side = tf.maximum(tf.cast(side, tf.int32), 1)
  return tf.stack([(height - side) // 2, (width - side) // 2, side, side])


def resize(image: tf.Tensor, config: ml_collections.ConfigDict) -> tf.Tensor:
  """Resizes uint8 pixels to a float32 square of 0 … 255, antialiased.

  The filter is the config's `interpolation`, the same as Pillow's of that name.
  """
  size = config.image_size
  image = tf.image.resize(
    image, (size, size), config.interpolation, antialias=True
  )
  if config.interpolation == "bicubic":  # It overshoots at edges.
    image = tf.clip_by_value(image, 0, 255)
  return tf.ensure_shape(image, (size, size, 3))


def resize_crop(image: tf.Tensor, size: int) -> tf.Tensor:
  """Resizes uint8 pixels to a float32 square of 0 … 255, fast.

  Bilinear if a side grows, else the mean over the area of each new pixel. From
  200 pixels to 256 that takes 0.2 ms of a core, from 300 pixels 0.4 ms where
  TensorFlow's antialiased filter takes 1.3 ms. Upwards there is no difference.
  Downwards, on random crops of photographs, the mean differs from that filter
  by 0.6 of 255 levels; without any antialiasing it would be 1.3, and between
  the filters that people choose from, bilinear and Lanczos, it is 2.3.
  """
  height, width = tf.shape(image)[0], tf.shape(image)[1]
  image = tf.cond(
    tf.minimum(height, width) >= size,
    lambda: tf.image.resize(image, (size, size), "area"),
    # From float32 in half of the time, the cast included: the same numbers.
    lambda: tf.image.resize(
      tf.cast(image, tf.float32), (size, size), "bilinear"
    ),
  )
  return tf.ensure_shape(image, (size, size, 3))


@functools.partial(tf.function, jit_compile=True, autograph=False)
def _round(image, flip=None):
  """From float32 to the nearest uint8; mirrored if the scalar `flip` holds."""
  # One pass over the pixels, as in `_scale`.
  image = tf.cast(image + 0.5, tf.uint8)
  if flip is None:
    return image
  return tf.cond(flip, lambda: tf.reverse(image, [1]), lambda: image)


def normalise(
  images: tf.Tensor, config: ml_collections.ConfigDict
) -> tf.Tensor:
  """From 0 … 255 to 0 … 1, then by the config's mean and std per channel.

  Args:
    images: uint8 `[..., image_size, image_size, 3]`, best a whole batch.
    config: the `data` part of a training config.

  Returns:
    The config's `image_dtype`, of that shape; computed in float32.
  """
  mean, std = np.array(config.mean), np.array(config.std)
  return _scale(
    images,
    (255 * mean).astype(np.float32),
    (1 / (255 * std)).astype(np.float32),
    tf.as_dtype(config.image_dtype),
  )


@functools.partial(tf.function, jit_compile=True, autograph=False)
def _scale(images, mean, scale, dtype):
  # Compiled, this is one pass over the pixels. The difference comes first: XLA
  # may fuse a product to a sum, and then rounds otherwise, here but not there.
  scaled = (tf.cast(images, tf.float32) - mean) * scale
  if dtype != tf.bfloat16:
    return tf.cast(scaled, dtype)
  # To the nearest number, of two to the even one, as a cast. With integers it
  # takes half of the time; nothing here is infinite or no number.
  bits = tf.bitcast(scaled, tf.uint32)
  odd = tf.bitwise.bitwise_and(tf.bitwise.right_shift(bits, 16), 1)
  upper = tf.bitwise.right_shift(bits + 0x7FFF + odd, 16)
  return tf.bitcast(tf.cast(upper, tf.uint16), tf.bfloat16)
