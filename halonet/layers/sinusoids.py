"""Absolute positions: sines and cosines of a pixel's place."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def sinusoids(height: int, width: int, channels: int) -> Float[Array, "h w c"]:
  """Returns sines and cosines of every pixel's row and of its column.

  Each axis has the wavelengths of "Attention Is All You Need", section 3.5:
  from 2π on, in geometric progression towards 10,000 · 2π. Channels that are
  left over, where four does not divide them, are zero.
  """
  count = channels // 4
  rates = 10_000.0 ** (-np.arange(count) / max(count, 1))
  waves = []
  for length in (height, width):
    angles = np.arange(length)[:, None] * rates
    both = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    waves.append(jnp.asarray(both, jnp.float32))
  rows = jnp.broadcast_to(waves[0][:, None], (height, width, 2 * count))
  cols = jnp.broadcast_to(waves[1], (height, width, 2 * count))
  rest = jnp.zeros((height, width, channels - 4 * count))
  return jnp.concatenate([rows, cols, rest], axis=-1)
