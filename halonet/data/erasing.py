"""Random erasing (Zhong et al. 2020): a rectangle of an image becomes noise."""

from halonet.data.runtime import tf

# Ranges of the rectangle's share of the area and of its height to width.
_AREA = (0.02, 1 / 3)
_ASPECT = (0.3, 1 / 0.3)

# Rectangles drawn to find one that fits; nearly every one does.
_ATTEMPTS = 10


def random_erasing(
  image: tf.Tensor, seed: tf.Tensor, probability: float
) -> tf.Tensor:
  """Fills a random rectangle with uniform levels of 0 … 255, pixel by pixel.

  Area and aspect ratio of the rectangle are uniform, as in algorithm 1 of the
  paper, and so is its position inside the image.

  Args:
    image: uint8 `[size, size, 3]`.
    seed: two int32 numbers; the same seed gives the same rectangle and noise.
    probability: probability of erasing at all.

  Returns:
    uint8 `[size, size, 3]`.
  """
  seeds = tf.random.experimental.stateless_split(seed, 4)
  chance = tf.random.stateless_uniform([], seeds[0])
  size = tf.shape(image)[0]

  def erase():
    height, width = _rectangle(seeds[1], size)
    places = tf.stack([size - height, size - width])
    place = tf.random.stateless_uniform([2], seeds[2])
    # Rounding must not take a place beyond the last.
    place = tf.minimum(
      tf.cast(place * tf.cast(places + 1, tf.float32), tf.int32), places
    )
    # A random number of 32 bits suffices for the levels of a pixel.
    bits = tf.random.stateless_uniform(
      [height, width], seeds[3], None, None, tf.uint32
    )
    noise = tf.bitcast(bits, tf.uint8)[:, :, :3]
    top, left = place[0], place[1]
    rows = image[top : top + height]
    rows = tf.concat([rows[:, :left], noise, rows[:, left + width :]], 1)
    return tf.concat([image[:top], rows, image[top + height :]], 0)

  erased = tf.cond(chance < probability, erase, lambda: image)
  return tf.ensure_shape(erased, image.shape)


def _rectangle(seed, size):
  """Draws height and width; both are 0 if no attempt fits into the image."""
  drawn = tf.random.stateless_uniform(
    [_ATTEMPTS, 2], seed, [_AREA[0], _ASPECT[0]], [_AREA[1], _ASPECT[1]]
  )
  area, aspect = drawn[:, 0], drawn[:, 1]
  sides = tf.stack([tf.sqrt(area * aspect), tf.sqrt(area / aspect)], -1)
  sides = tf.cast(tf.round(sides * tf.cast(size, tf.float32)), tf.int32)
  fits = tf.reduce_all(sides <= size, -1)
  sides = tf.where(tf.reduce_any(fits), sides[tf.argmax(fits)], 0)
  return sides[0], sides[1]
