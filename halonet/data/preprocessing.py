"""From an encoded image to the array that a model sees, in TensorFlow.

Everything is stateless: a random choice follows from the seed it is given.
"""

import ml_collections
import tensorflow as tf


def train_image(
  encoded: tf.Tensor, config: ml_collections.ConfigDict, seed: tf.Tensor
) -> tf.Tensor:
  """Decodes an image, crops and flips it at random, resizes and normalises.

  Args:
    encoded: bytes of a JPEG, PNG, GIF or BMP file, a scalar string.
    config: the `data` part of a training config.
    seed: two int32 numbers; the same seed gives the same crop and flip.

  Returns:
    float32 `[image_size, image_size, 3]`.
  """
  image = decode(encoded)
  if config.crop_area < 1:
    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
      tf.shape(image),
      tf.zeros([1, 0, 4]),
      seed,
      min_object_covered=0,
      aspect_ratio_range=(3 / 4, 4 / 3),
      area_range=(config.crop_area, 1.0),
      use_image_if_no_bounding_boxes=True,
    )
    image = tf.slice(image, begin, size)
  if config.flip:
    seed = tf.random.experimental.stateless_fold_in(seed, 1)
    image = tf.image.stateless_random_flip_left_right(image, seed)
  return normalise(resize(image, config.image_size), config)


def test_image(
  encoded: tf.Tensor, config: ml_collections.ConfigDict
) -> tf.Tensor:
  """Decodes an image, takes its central square, resizes and normalises.

  Arguments and result as for `train_image`.
  """
  return normalise(central_square(decode(encoded), config.image_size), config)


def decode(encoded: tf.Tensor) -> tf.Tensor:
  """Decodes to uint8 `[height, width, 3]`; grey becomes equal channels."""
  return tf.io.decode_image(encoded, channels=3, expand_animations=False)


def central_square(image: tf.Tensor, size: int) -> tf.Tensor:
  """Cuts out the largest central square and resizes it to float32."""
  height, width = tf.shape(image)[0], tf.shape(image)[1]
  side = tf.minimum(height, width)
  image = tf.image.crop_to_bounding_box(
    image, (height - side) // 2, (width - side) // 2, side, side
  )
  return resize(image, size)


def resize(image: tf.Tensor, size: int) -> tf.Tensor:
  """Resizes to a float32 square, bilinearly and, downwards, antialiased."""
  image = tf.image.resize(image, (size, size), antialias=True)
  return tf.ensure_shape(image, (size, size, 3))


def normalise(image: tf.Tensor, config: ml_collections.ConfigDict) -> tf.Tensor:
  """From 0 … 255 to 0 … 1, then by the config's mean and std per channel."""
  return (image / 255 - tf.constant(config.mean)) / tf.constant(config.std)
