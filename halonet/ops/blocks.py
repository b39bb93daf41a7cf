"""Cutting a feature map into blocks and the neighbourhoods around them.

Everything here is a pure rearrangement of `[batch, height, width, ...]` arrays
(HaloNet, section 3: the map is cut into blocks, and every block gathers the
keys and values of its own pixels and of a halo around it). Trailing axes pass
through untouched.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Shaped


def num_blocks(length: int, block_size: int) -> int:
  """Returns how many blocks of `block_size` cover `length` pixels."""
  return -(-length // block_size)


def pad_to_blocks(
  x: Shaped[Array, "b h w *c"], block_size: int
) -> Shaped[Array, "b ph pw *c"]:
  """Zero-pads height and width, at their ends, to whole blocks.

  Args:
    x: `[batch, height, width, ...]`, any dtype.
    block_size: side of a block in pixels, at least 1.

  Returns:
    `[batch, ⌈height/block_size⌉·block_size, ⌈width/block_size⌉·block_size,
    ...]`; `x` itself where nothing needs padding.
  """
  pads = [(0, -length % block_size) for length in x.shape[1:3]]
  if not any(after for _, after in pads):
    return x
  return jnp.pad(x, [(0, 0), *pads] + [(0, 0)] * (x.ndim - 3))


def split_blocks(
  x: Shaped[Array, "b h w *c"], block_size: int
) -> Shaped[Array, "b rows cols block block *c"]:
  """Cuts a map whose sides are whole blocks into those blocks.

  Args:
    x: `[batch, rows·block_size, columns·block_size, ...]`.
    block_size: side of a block in pixels.

  Returns:
    `[batch, rows, columns, block_size, block_size, ...]`.
  """
  batch, height, width, *rest = x.shape
  rows, cols = height // block_size, width // block_size
  x = x.reshape(batch, rows, block_size, cols, block_size, *rest)
  return jnp.swapaxes(x, 2, 3)


def merge_blocks(
  blocks: Shaped[Array, "b rows cols block block *c"],
) -> Shaped[Array, "b h w *c"]:
  """Puts blocks back together: the inverse of `split_blocks`."""
  batch, rows, cols, block_size, _, *rest = blocks.shape
  x = jnp.swapaxes(blocks, 2, 3)
  return x.reshape(batch, rows * block_size, cols * block_size, *rest)


def extract_halos(
  x: Shaped[Array, "b h w *c"], block_size: int, halo_size: int
) -> Shaped[Array, "b rows cols window window *c"]:
  """Gathers, for every block, its pixels and a halo around them.

  Args:
    x: `[batch, rows·block_size, columns·block_size, ...]`.
    block_size: side of a block in pixels.
    halo_size: width of the halo in pixels, at least 0; it may exceed the block
      and the map.

  Returns:
    `[batch, rows, columns, window, window, ...]` with `window = block_size +
    2·halo_size`; what lies outside of the map is zero.
  """
  x = _extract_axis(x, 1, block_size, halo_size)  # [b, rows, window, w, ...]
  x = _extract_axis(x, 3, block_size, halo_size)
  return jnp.swapaxes(x, 2, 3)


def _extract_axis(x, axis, block_size, halo_size):
  """Extracts windows of an axis, one every `block_size` pixels.

  The axis becomes two: blocks and window. A window spans its own block and
  `reach` more, so `reach + 1` shifted slices of whole blocks, side by side,
  hold every window; no gather is needed, and the gradient is a sum of pads.
  """
  window = block_size + 2 * halo_size
  blocks = x.shape[axis] // block_size
  reach = -(-2 * halo_size // block_size)
  if halo_size:
    pads = [(0, 0)] * x.ndim
    pads[axis] = (halo_size, reach * block_size - halo_size)
    x = jnp.pad(x, pads)
  x = x.reshape(
    *x.shape[:axis], blocks + reach, block_size, *x.shape[axis + 1 :]
  )
  shifted = [
    lax.slice_in_dim(x, shift, shift + blocks, axis=axis)
    for shift in range(reach + 1)
  ]
  x = jnp.concatenate(shifted, axis=axis + 1)
  return lax.slice_in_dim(x, 0, window, axis=axis + 1)
