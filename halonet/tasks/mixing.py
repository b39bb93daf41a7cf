"""Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019).

How each pair of images is mixed is drawn with the data, in TensorFlow, so that
it follows from the same seeds. The images are mixed on the devices.

Neighbours in a batch are partners. A device that holds an even number of
images has both of each pair, so mixing needs no communication.
"""

from typing import TYPE_CHECKING

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

if TYPE_CHECKING:
  import tensorflow as tf


def draw_mix(
  seeds: "tf.Tensor", image_size: int, mixup: float, cutmix: float
) -> "dict[str, tf.Tensor]":
  """Draws how each pair of neighbours in a batch is mixed.

  Args:
    seeds: int32 `[pairs, 2]`; each pair's draws follow from its own alone.
    image_size: side of the square images in pixels.
    mixup: alpha of the beta distribution of the share (Zhang et al. 2018); 0:
      no mixup.
    cutmix: the same of the share outside of a box that the other image fills
      (Yun et al. 2019); 0: no CutMix. With both, a fair coin decides for each
      pair; at least one is above 0.

  Returns:
    For the images 2k and 2k+1 of pair k alike: `mix_share`, float32
    `[2 * pairs]`, the share of the image itself, and `mix_box`, int32
    `[2 * pairs, 4]`, the box as top, left, bottom and right, cut to the image,
    all 0 for mixup. With a box, the share is that of the pixels outside of it.
  """
  import tensorflow as tf  # It takes seconds to import.

  coin, share, centre = tf.map_fn(
    lambda seed: _draw_pair(seed, mixup, cutmix),
    seeds,
    fn_output_signature=(
      tf.TensorSpec([], tf.bool),
      tf.TensorSpec([], tf.float32),
      tf.TensorSpec([2], tf.float32),
    ),
  )
  size = tf.cast(image_size, tf.float32)
  centre = tf.cast(centre * size, tf.int32)
  half = tf.cast(tf.sqrt(1 - share) * size, tf.int32)[:, None] // 2
  box = tf.concat([centre - half, centre + half], -1)
  box = tf.where(coin[:, None], tf.clip_by_value(box, 0, image_size), 0)
  area = tf.reduce_prod(box[:, 2:] - box[:, :2], -1)
  outside = 1 - tf.cast(area, tf.float32) / size**2
  share = tf.where(coin, outside, share)
  return {
    "mix_share": tf.repeat(share, 2),
    "mix_box": tf.repeat(box, 2, axis=0),
  }


def _draw_pair(seed, mixup, cutmix):
  """Draws whether to cut, the share, and the box's centre in 0 … 1."""
  import tensorflow as tf

  seeds = tf.random.experimental.stateless_split(seed, 2)
  drawn = tf.random.stateless_uniform([5], seeds[0])
  cut = drawn[0] < (0.5 if mixup and cutmix else float(cutmix > 0))
  alpha = tf.where(cut, float(cutmix), float(mixup))
  # Logarithms, because Gamma(alpha) = Gamma(alpha + 1) · uniform^(1 / alpha):
  # with a small alpha the numbers themselves would often be 0.
  gamma = tf.random.stateless_gamma([2], seeds[1], alpha + 1)
  logs = tf.math.log(gamma) + tf.math.log(1 - drawn[1:3]) / alpha
  return cut, tf.sigmoid(logs[0] - logs[1]), drawn[3:]


def mix(
  images: Float[Array, "b h w c"],
  targets: Float[Array, "b classes"],
  share: Float[Array, " b"],
  box: Int[Array, "b 4"],
) -> tuple[Float[Array, "b h w c"], Float[Array, "b classes"]]:
  """Mixes the images 2k and 2k+1, and their targets.

  Args:
    images: an even number of images, of any float dtype, which is kept.
    targets: probabilities of the classes.
    share: of the image itself in the mixture; its partner has the rest.
    box: top, left, bottom and right in pixels. The partner's pixels fill it
      (Yun et al. 2019); if it is empty, the whole images are blended (Zhang et
      al. 2018).

  Returns:
    Mixed images and targets.
  """
  height, width = images.shape[1:3]
  top, left, bottom, right = (side[:, None, None] for side in box.T)
  y, x = jnp.arange(height)[:, None], jnp.arange(width)
  inside = (y >= top) & (y < bottom) & (x >= left) & (x < right)
  cut = (bottom > top) & (right > left)
  own = jnp.where(cut, ~inside, share[:, None, None]).astype(jnp.float32)
  return _blend(images, own[..., None]), _blend(targets, share[:, None])


def _blend(x, own):
  pairs = x.reshape(x.shape[0] // 2, 2, *x.shape[1:])
  partner = pairs[:, ::-1].reshape(x.shape)
  return (x * own + partner * (1 - own)).astype(x.dtype)
