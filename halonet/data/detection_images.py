"""Images with boxes for a detector, in TensorFlow.

An image keeps its aspect: its longer side is scaled to the model's, and what is
missing at the bottom and the right is filled with the mean colour, which is
zero after `preprocessing.normalise`. Boxes follow by the image's `Geometry`.
All functions are stateless, as those of `halonet.data.preprocessing`.
"""

import functools
from collections.abc import Mapping

import ml_collections

from halonet.data import preprocessing
from halonet.data.erasing import random_erasing
from halonet.data.images import padding
from halonet.data.preprocessing import Geometry, map_boxes
from halonet.data.runtime import tf

# A JPEG is decoded at one of these fractions of its size.
_RATIOS = (1, 2, 4, 8)


def train_image(
  encoded: tf.Tensor, config: ml_collections.ConfigDict, seed: tf.Tensor
) -> tuple[tf.Tensor, Geometry]:
  """Decodes, scales, crops or pads, flips and augments.

  The longer side becomes `image_size` times a factor that is uniform in
  `scale_jitter`. Where the image is then larger than the model's input, a
  random part is cut out, each place with the same probability.

  Args:
    encoded: bytes of an image, a scalar string.
    config: the `data` part of a training config.
    seed: two int32 numbers; the same seed gives the same choices.

  Returns:
    The image, uint8 `[image_size, image_size, 3]`, and its geometry, by which
    boxes of the upright source image follow to within a pixel, as long as
    RandAugment's policy moves none.
  """
  size = config.image_size
  seeds = tf.unstack(tf.random.split(seed, 4))
  image, geometry, sides = random_scale(
    encoded, size, config.scale_jitter, seeds[0]
  )
  still = tf.constant(False)
  flip = still
  if config.flip:
    flip = tf.random.stateless_uniform([], seeds[1]) < 0.5
  image = _pad(_rounded(image, flip), config)
  if config.randaugment_layers:
    image = preprocessing.augment(image, still, config, seeds[2])
    # Colours of the padding have changed as well.
    image = _pad(image[: sides[0], : sides[1]], config)
  if config.random_erasing:
    image = random_erasing(image, seeds[3], config.random_erasing)
  return image, _padded(geometry, sides, flip, size)


def test_image(
  encoded: tf.Tensor, config: ml_collections.ConfigDict
) -> tuple[tf.Tensor, Geometry]:
  """Decodes an image, scales its longer side to `image_size`, and pads it.

  Arguments and results are those of `train_image`; there is no crop. The filter
  is the config's `interpolation`, antialiased.
  """
  size, image = config.image_size, preprocessing.decode(encoded)
  whole = tf.shape(image)[:2]
  sides = scaled(whole, whole, size, size)
  image = preprocessing.resize_to(image, sides, config.interpolation)
  flip = tf.constant(False)
  window = tf.concat([[0, 0], whole], 0)
  geometry = _padded(Geometry(whole, window, flip), sides, flip, size)
  return _pad(_rounded(image, flip), config), geometry


def train_objects(
  objects: Mapping[str, tf.Tensor],
  geometry: Geometry,
  size: int,
  max_objects: int,
) -> dict[str, tf.Tensor]:
  """Moves an image's objects with it and pads them to a fixed number.

  Boxes are clipped to the image. Crowds are left out, and so are boxes of which
  less than a pixel in height or width is left.

  Args:
    objects: `bbox`, `label` and `is_crowd` as in TFDS's coco, of n objects.
    geometry: what `train_image` returned.
    size: side of the image in pixels.
    max_objects: how many are returned; if there are more, the first ones.

  Returns:
    boxes: top, left, bottom and right in pixels, float32 `[max_objects, 4]`; 0
      where there is no object.
    labels: int32 `[max_objects]`; −1 where there is no object.
    objects: how many there are without the limit, an int32 scalar.
  """
  boxes = tf.clip_by_value(objects["bbox"], 0.0, 1.0)
  boxes = tf.clip_by_value(size * map_boxes(boxes, geometry), 0.0, float(size))
  seen = tf.reduce_all(boxes[:, 2:] - boxes[:, :2] >= 1, -1)
  places = tf.where(seen & ~objects["is_crowd"])[:, 0]
  rows = {"boxes": boxes, "labels": tf.cast(objects["label"], tf.int32)}
  rows = {name: tf.gather(items, places) for name, items in rows.items()}
  return _in_rows(rows, max_objects)


def test_objects(
  objects: Mapping[str, tf.Tensor],
  geometry: Geometry,
  size: int,
  max_objects: int,
) -> dict[str, tf.Tensor]:
  """Pads an image's objects to a fixed number, and changes nothing else.

  Args:
    objects: as for `train_objects`, and `area` in pixels.
    geometry: what `test_image` returned.
    size: side of the image in pixels.
    max_objects: how many are returned; if there are more, the first ones.

  Returns:
    boxes: top, left, bottom and right in pixels of the upright source image,
      float32 `[max_objects, 4]`.
    labels: int32 `[max_objects]`; −1 where there is no object.
    crowd: whether a box is around a group of objects, bool `[max_objects]`.
    area: pixels of the source image, float32 `[max_objects]`.
    objects: how many there are without the limit, an int32 scalar.
    to_source: what boxes in pixels of the model's image are multiplied by to be
      in pixels of the source image, float32 `[4]`.
  """
  sides = tf.tile(tf.cast(geometry.size, tf.float32), [2])
  rows = {
    "boxes": objects["bbox"] * sides,
    "labels": tf.cast(objects["label"], tf.int32),
    "crowd": objects["is_crowd"],
    "area": tf.cast(objects["area"], tf.float32),
  }
  to_source = tf.tile(geometry.window[2:] / size, [2])
  return _in_rows(rows, max_objects) | {"to_source": to_source}


def _in_rows(rows, most):
  """Cuts or pads items of objects to `most` rows, and counts them."""
  count = tf.shape(rows["labels"])[0]
  missing = tf.maximum(most - count, 0)
  padded = {}
  for name, items in rows.items():
    ends = [[0, missing]] + [[0, 0]] * (items.shape.rank - 1)
    filler = -1 if name == "labels" else tf.zeros([], items.dtype)
    items = tf.pad(items[:most], ends, constant_values=filler)
    padded[name] = tf.ensure_shape(items, (most, *items.shape[1:]))
  return padded | {"objects": count}


# -------------------------------------------------------------------- geometry


def random_scale(
  encoded: tf.Tensor,
  size: int,
  scale_jitter: tuple[float, float],
  seed: tf.Tensor,
) -> tuple[tf.Tensor, Geometry, tf.Tensor]:
  """Decodes what is shown of an image at a random scale, and resizes it.

  Args:
    encoded: bytes of an image, a scalar string.
    size: side of the model's input.
    scale_jitter: the least and the largest factor, of which one is drawn.
    seed: two int32 numbers; the same seed gives the same choices.

  Returns:
    The part, float32 `[rows, columns, 3]` of 0 … 255; where it was in the
    source image; and its rows and columns, at most `size` each, int32 `[2]`.
  """
  drawn = tf.random.stateless_uniform([3], seed)
  least, most = scale_jitter
  target = size * (least + (most - least) * drawn[0])
  window = functools.partial(
    random_part, size=size, target=target, place=drawn[1:]
  )

  def kept(whole, part):
    return tf.maximum(part[2:] // reduction(whole, target), 1)

  image, geometry = preprocessing.decode_crop(encoded, window, kept)
  sides = scaled(geometry.window[2:], geometry.size, size, target)
  return preprocessing.resize_crop(image, sides), geometry, sides


def reduction(whole: tf.Tensor, target: tf.Tensor) -> tf.Tensor:
  """Returns how many times smaller an image may be decoded: 1, 2, 4 or 8.

  Args:
    whole: height and width of the image, int32 `[2]`.
    target: pixels that its longer side is scaled to, a float32 scalar.
  """
  spare = tf.cast(tf.reduce_max(whole), tf.float32) / target
  index = tf.reduce_sum(tf.cast(spare >= _RATIOS[1:], tf.int32))
  return tf.gather(_RATIOS, index)


def random_part(
  height: tf.Tensor,
  width: tf.Tensor,
  *,
  size: int,
  target: tf.Tensor,
  place: tf.Tensor,
) -> tf.Tensor:
  """Finds the part of an image that its scaled version shows.

  Where the image is decoded at a reduced size, the part lies on its pixels, so
  that boxes are as exact as without.

  Args:
    height: of the image.
    width: of the image.
    size: side of the model's input.
    target: pixels that the longer side is scaled to, a float32 scalar.
    place: where the part lies among all places, 0 … 1, float32 `[2]`.

  Returns:
    row, column, height and width, int32 `[4]`.
  """
  whole = tf.stack([height, width])
  longer = tf.cast(tf.reduce_max(whole), tf.float32)
  part = tf.cast(tf.math.ceil(longer * size / target), tf.int32)
  part = tf.minimum(whole, part)
  step = reduction(whole, target)
  part = tf.where(part >= step, part - part % step, part)
  spare = whole - part
  begin = tf.cast(place * tf.cast(spare + 1, tf.float32), tf.int32)
  begin = tf.minimum(begin, spare)  # Rounding might take it to the end.
  return tf.concat([begin - begin % step, part], 0)


def scaled(
  part: tf.Tensor, whole: tf.Tensor, size: int, target: float | tf.Tensor
) -> tf.Tensor:
  """Returns height and width of a part after the image is scaled, int32 `[2]`.

  They are whole numbers from 1 to `size`, so that the scales of the two sides
  may differ by half a pixel.
  """
  scale = target / tf.cast(tf.reduce_max(whole), tf.float32)
  sides = tf.cast(part, tf.float32) * scale
  # A part that is cut out fills the input, whatever its rounding to pixels.
  cut = (part < whole) & (sides > size - 1)
  sides = tf.where(cut, float(size), tf.floor(sides + 0.5))
  return tf.cast(tf.clip_by_value(sides, 1, size), tf.int32)


def _padded(geometry, sides, flip, size):
  """Extends the window by the padding, which is at the bottom and the right."""
  begin, part = (
    tf.cast(item, tf.float32) for item in tf.split(geometry.window, 2)
  )
  window = part * size / tf.cast(sides, tf.float32)
  # The window is that before the flip: there, the padding is at the left.
  left = tf.where(flip, begin[1] + part[1] - window[1], begin[1])
  window = tf.concat([begin[:1], left[None], window], 0)
  return Geometry(geometry.size, window, flip)


# ---------------------------------------------------------------------- pixels


def _rounded(image, flip):
  """Rounds float32 to uint8, and mirrors it if `flip` holds."""
  image = tf.cast(image + 0.5, tf.uint8)
  return tf.cond(flip, lambda: tf.reverse(image, [1]), lambda: image)


def _pad(image, config):
  """Fills what a uint8 image lacks at the right and at the bottom."""
  # While it is uint8, and by copies alone: at 640 pixels, one compiled pass
  # over a padded float32 image takes three times as long.
  size, (height, width) = config.image_size, tf.unstack(tf.shape(image)[:2])
  level = tf.cast(padding(config.mean), tf.uint8)
  right = tf.broadcast_to(level, [height, size - width, 3])
  below = tf.broadcast_to(level, [size - height, size, 3])
  image = tf.concat([tf.concat([image, right], 1), below], 0)
  return tf.ensure_shape(image, (size, size, 3))
