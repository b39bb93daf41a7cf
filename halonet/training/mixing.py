"""Mixup and CutMix on the devices, by shares and boxes from the data.

Neighbours in a batch are partners. A device that holds an even number of
images has both of each pair, so that mixing needs no communication.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


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


def _blend(x: jax.Array, own: jax.Array) -> jax.Array:
  pairs = x.reshape(x.shape[0] // 2, 2, *x.shape[1:])
  partner = pairs[:, ::-1].reshape(x.shape)
  return (x * own + partner * (1 - own)).astype(x.dtype)
