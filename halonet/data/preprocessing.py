"""Turns an encoded image into the array that a model sees, in TensorFlow.

An image stays in bytes until its batch is whole: `train_image` and `test_image`
make uint8 pixels, `normalise` turns a batch of them into numbers. All functions
are stateless: a random choice follows from the seed that they are given.

Decoding is most of the work, so a JPEG is decoded only where, and only as
finely as, it is needed. All that follows is as cheap as it gets without a loss;
comments give what was measured.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import ml_collections

from halonet.data.erasing import random_erasing
from halonet.data.images import normalisation
from halonet.data.orientation import (
  orientation,
  stored_window,
  upright,
  upright_size,
)
from halonet.data.randaugment import randaugment
from halonet.data.runtime import tf

Window = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
Sides = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


class Geometry(NamedTuple):
  """Where the pixels of a preprocessed image come from.

  The window is resized to the whole result. What RandAugment moves is not
  recorded. The source image is the upright one, whichever way it is stored.

  Attributes:
    size: height and width of the source image, int32 `[2]`.
    window: row, column, height and width of the part used, int32 `[4]`. Where
      an image is padded, the window reaches beyond it and is float32.
    flip: whether it is mirrored left to right, a boolean scalar.
  """

  size: tf.Tensor
  window: tf.Tensor
  flip: tf.Tensor


def map_boxes(boxes: tf.Tensor, geometry: Geometry) -> tf.Tensor:
  """Moves boxes from the source image to the preprocessed one.

  Args:
    boxes: top, left, bottom and right as shares of the upright image's height
      and width, as in TFDS, float32 `[..., 4]`. A point is a box of no size.
    geometry: what `train_image` or `test_image` returned.

  Returns:
    The same of the preprocessed image. A box that leaves the window is not
    clipped: its sides may lie outside of 0 … 1.
  """
  size, window = (
    tf.cast(item, tf.float32) for item in (geometry.size, geometry.window)
  )
  boxes = boxes * tf.tile(size, [2]) - tf.tile(window[:2], [2])
  boxes = boxes / tf.tile(window[2:], [2])
  top, left, bottom, right = tf.unstack(boxes, axis=-1)
  mirrored = tf.stack([top, 1 - right, bottom, 1 - left], -1)
  return tf.where(geometry.flip, mirrored, boxes)


def train_image(
  encoded: tf.Tensor, config: ml_collections.ConfigDict, seed: tf.Tensor
) -> tuple[tf.Tensor, Geometry]:
  """Decodes, crops, resizes, flips, augments and erases.

  Args:
    encoded: bytes of a JPEG, PNG, GIF, BMP or WebP file, a scalar string.
    config: the `data` part of a training config.
    seed: two int32 numbers; the same seed gives the same choices.

  Returns:
    The image, uint8 `[image_size, image_size, 3]`, and its geometry. Without
    crops the whole image is resized as a test image is; crops are resized
    faster, by `resize_crop`.
  """
  crop_seed, flip_seed, augment_seed, erasing_seed = tf.unstack(
    tf.random.split(seed, 4)
  )
  if config.crop_area < 1:
    window = functools.partial(
      random_window, least_area=config.crop_area, seed=crop_seed
    )
    image, geometry = decode_crop(encoded, window, config.image_size)
    image = resize_crop(image, config.image_size)
  else:
    image = decode(encoded)
    geometry = _geometry(tf.shape(image)[:2])
    image = resize(image, config)
    if config.crop_padding:
      image, geometry = pad_and_crop(
        image, geometry, config.crop_padding, crop_seed
      )
  # The resized image is usually the smaller one, and its shape is known.
  flip = tf.random.stateless_uniform([], flip_seed) < 0.5
  if not config.flip:
    flip = tf.constant(False)
  if config.randaugment_layers:
    image = augment(image, flip, config, augment_seed)
  else:
    image = _round(image, flip)
  if config.random_erasing:
    image = random_erasing(image, erasing_seed, config.random_erasing)
  return image, geometry._replace(flip=flip)


def pad_and_crop(
  image: tf.Tensor, geometry: Geometry, padding: int, seed: tf.Tensor
) -> tuple[tf.Tensor, Geometry]:
  """Pads a square with black on all sides, and cuts out one of its size."""
  size = image.shape[0]
  begin = tf.random.stateless_uniform(
    [2], seed, maxval=2 * padding + 1, dtype=tf.int32
  )
  padded = tf.pad(image, [[padding, padding]] * 2 + [[0, 0]])
  moved = tf.cast(begin - padding, tf.float32) / size
  whole = tf.cast(geometry.size, tf.float32)
  window = tf.concat([moved * whole, whole], 0)
  image = crop(padded, tf.concat([begin, [size, size]], 0))
  return image, geometry._replace(window=window)


def augment(
  image: tf.Tensor,
  flip: tf.Tensor,
  config: ml_collections.ConfigDict,
  seed: tf.Tensor,
) -> tf.Tensor:
  """Applies the config's RandAugment, after mirroring if `flip` holds."""
  return randaugment(
    image,
    seed,
    flip=flip,
    policy=config.randaugment_policy,
    layers=config.randaugment_layers,
    magnitude=config.randaugment_magnitude,
    magnitude_std=config.randaugment_std,
  )


def test_image(
  encoded: tf.Tensor, config: ml_collections.ConfigDict
) -> tuple[tf.Tensor, Geometry]:
  """Decodes an image's central square and resizes it.

  Arguments and results are those of `train_image`.
  """
  window = functools.partial(central_window, fraction=config.crop_fraction)
  image, geometry = decode_crop(encoded, window)
  return resize_test(image, config), geometry


def resize_test(
  image: tf.Tensor, config: ml_collections.ConfigDict
) -> tf.Tensor:
  """Does what `test_image` does after the crop: uint8 to uint8."""
  return _round(resize(image, config))


def _geometry(size, window=None):
  if window is None:
    window = tf.concat([[0, 0], size], 0)
  return Geometry(size, window, tf.constant(False))


def decode(encoded: tf.Tensor) -> tf.Tensor:
  """Decodes to uint8 `[height, width, 3]`, upright, whatever the format.

  Grey becomes equal channels and CMYK becomes RGB as in Pillow. 16 bits are cut
  to the upper 8. An animation gives its first image.
  """
  image, turn = decode_stored(encoded), orientation(encoded)
  return tf.cond(turn > 1, lambda: upright(image, turn), lambda: image)


def decode_stored(encoded: tf.Tensor) -> tf.Tensor:
  """Does the same as `decode`, but leaves an image as it is stored."""
  return tf.io.decode_image(encoded, channels=3, expand_animations=False)


def decode_crop(
  encoded: tf.Tensor,
  window: Window,
  least_size: int | Sides | None = None,
) -> tuple[tf.Tensor, Geometry]:
  """Decodes a window of an image; of a JPEG, only that window.

  The bytes tell the format: files are not always what their names say.

  Args:
    encoded: as for `train_image`.
    window: function from the upright image's height and width to row, column,
      height and width of the wanted part, int32 `[4]`.
    least_size: if given, a JPEG's window may come reduced by 2, 4 or 8, as long
      as its sides keep this many pixels; or a function from the upright image's
      height and width, int32 `[2]`, and the window to how many they keep.

  Returns:
    uint8 `[height, width, 3]`, upright, and its geometry.
  """

  def jpeg(turn):
    size = upright_size(tf.io.extract_jpeg_shape(encoded)[:2], turn)
    wanted = window(size[0], size[1])
    stored = stored_window(wanted, size, turn)

    def reduced(ratio):
      # The window counts pixels of the reduced image. Rounding it down moves
      # its borders by less than `ratio` pixels, so by less than one pixel of
      # the resized image.
      return lambda: tf.io.decode_and_crop_jpeg(
        encoded,
        stored // ratio,
        channels=3,
        ratio=ratio,
        # As fast as the default, and the pixels are Pillow's. Leaving out
        # fancy_upscaling is no faster either.
        dct_method="INTEGER_ACCURATE",
      )

    geometry = _geometry(size, wanted)
    if least_size is None:
      return reduced(1)(), geometry
    # A reduced image is decoded from the lower frequencies alone: at half the
    # size this takes about half of the time, and after the resize it is as near
    # to an antialiased one of all pixels as without the reduction.
    least = least_size
    if callable(least_size):
      least = least_size(size, wanted)
    spare = tf.reduce_min(wanted[2:] // least)
    index = tf.reduce_sum(tf.cast(spare >= [2, 4, 8], tf.int32))
    image = tf.switch_case(index, [reduced(ratio) for ratio in (1, 2, 4, 8)])
    return image, geometry

  def other(turn):
    image = decode_stored(encoded)
    size = upright_size(tf.shape(image)[:2], turn)
    wanted = window(size[0], size[1])
    stored = stored_window(wanted, size, turn)
    return crop(image, stored), _geometry(size, wanted)

  def part(turn):
    is_jpeg = tf.io.is_jpeg(encoded)
    return tf.cond(is_jpeg, lambda: jpeg(turn), lambda: other(turn))

  # A function of its own, so that TensorFlow does not walk through all of this
  # for images that are upright as they are, which are most.
  @functools.partial(
    tf.function, autograph=False, experimental_attributes={"_noinline": True}
  )
  def turned():
    image, geometry = part(turn)
    return upright(image, turn), geometry

  turn = orientation(encoded)
  image, geometry = tf.cond(turn > 1, turned, lambda: part(None))
  return tf.ensure_shape(image, (None, None, 3)), geometry


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
  """Returns the central square whose side is `fraction` of the shorter side.

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
  image = resize_to(image, (size, size), config.interpolation)
  return tf.ensure_shape(image, (size, size, 3))


def resize_to(
  image: tf.Tensor, sides: tf.Tensor | tuple[int, int], interpolation: str
) -> tf.Tensor:
  """Does what `resize` does, to any height and width."""
  image = tf.image.resize(image, sides, interpolation, antialias=True)
  if interpolation == "bicubic":  # It overshoots at edges.
    image = tf.clip_by_value(image, 0, 255)
  return image


def resize_crop(image: tf.Tensor, size: int | tf.Tensor) -> tf.Tensor:
  """Resizes uint8 pixels to float32 of 0 … 255, fast.

  The filter is bilinear if a side grows, else the mean over the area of each
  new pixel. From 300 pixels to 256 it takes 0.4 ms of a core, where
  TensorFlow's antialiased filter takes 1.3 ms. Crops of photographs that shrink
  differ from that filter by 0.6 of 255 levels on average, and by 1.3 without
  any antialiasing; bilinear and Lanczos differ by 2.3.

  Args:
    image: uint8 `[height, width, 3]`.
    size: side of the resulting square, or height and width, int32 `[2]`.
  """
  sides = (size, size) if isinstance(size, int) else size
  image = tf.cond(
    tf.reduce_all(tf.shape(image)[:2] >= size),
    lambda: tf.image.resize(image, sides, "area"),
    # From float32 in half of the time, the cast included: the same numbers.
    lambda: tf.image.resize(tf.cast(image, tf.float32), sides, "bilinear"),
  )
  square = sides if isinstance(size, int) else (None, None)
  return tf.ensure_shape(image, (*square, 3))


@functools.partial(tf.function, jit_compile=True, autograph=False)
def _round(image, flip=None):
  """Rounds float32 to uint8, and mirrors it if the scalar `flip` holds."""
  # One pass over the pixels, as in `_scale`.
  image = tf.cast(image + 0.5, tf.uint8)
  if flip is None:
    return image
  return tf.cond(flip, lambda: tf.reverse(image, [1]), lambda: image)


def normalise(
  images: tf.Tensor, config: ml_collections.ConfigDict
) -> tf.Tensor:
  """Scales levels to 0 … 1, then by the config's mean and std per channel.

  Args:
    images: uint8 `[..., image_size, image_size, 3]`, a whole batch for speed.
    config: the `data` part of a training config.

  Returns:
    The same shape in the config's `image_dtype`; computed in float32.
  """
  mean, scale = normalisation(config.mean, config.std)
  return _scale(images, mean, scale, tf.as_dtype(config.image_dtype))


@functools.partial(tf.function, jit_compile=True, autograph=False)
def _scale(images, mean, scale, dtype):
  # Compiled, this is one pass over the pixels. The difference comes first: XLA
  # may fuse a product to a sum, and then rounds otherwise, here but not there.
  scaled = (tf.cast(images, tf.float32) - mean) * scale
  if dtype != tf.bfloat16:
    return tf.cast(scaled, dtype)
  # Rounds to nearest even, as a cast does. With integers it takes half of the
  # time; no number here is infinite or NaN.
  bits = tf.bitcast(scaled, tf.uint32)
  odd = tf.bitwise.bitwise_and(tf.bitwise.right_shift(bits, 16), 1)
  upper = tf.bitwise.right_shift(bits + 0x7FFF + odd, 16)
  return tf.bitcast(tf.cast(upper, tf.uint16), tf.bfloat16)
