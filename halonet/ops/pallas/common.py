"""What the two kernels' calls and bodies have in common."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from halonet.ops.pallas.geometry import Geometry, tile_bytes


def whole(shape: tuple[int, ...]) -> pl.BlockSpec:
  """An operand that every grid step sees as a whole."""
  return pl.BlockSpec(shape, lambda n, strip, group: (0,) * len(shape))


def strip(
  geometry: Geometry, shape: tuple[int, ...], lanes: int
) -> pl.BlockSpec:
  """A map of which a grid step sees one strip and one group's channels."""
  return pl.BlockSpec(
    (1, shape[1] // geometry.strips, shape[2], lanes),
    lambda n, strip, group: (n, strip, 0, group),
  )


def own(shape: tuple[int, ...]) -> pl.BlockSpec:
  """An array `[batch, strips, groups, …]` of which a grid step has its own."""
  rest = shape[3:]
  return pl.BlockSpec(
    (1, 1, 1, *rest),
    lambda n, strip, group: (n, strip, group, *(0 for _ in rest)),
  )


def for_blocks(
  geometry: Geometry, body: Callable[..., None], keys: int
) -> None:
  """Calls `body(places, band)` for all blocks, some of them together.

  As many together as have about `keys` keys in all their tiles; `body` gets
  their rows and columns. It has them in its program one after another, and the
  compiler overlaps their work.
  """
  each = geometry.head_tiles * geometry.keys
  cols = _together(geometry.cols, keys // each)
  rows = 1
  if cols == geometry.cols:
    rows = _together(geometry.rows, keys // (each * cols))

  @pl.loop(0, geometry.rows // rows)
  def _(row):
    @pl.loop(0, geometry.cols // cols)
    def _(col):
      places = [
        (row * rows + down, col * cols + along)
        for down in range(rows)
        for along in range(cols)
      ]

      @pl.loop(0, geometry.bands)
      def _(band):
        body(places, band)


def _together(count, most):
  """The largest divisor of `count` that is at most `most`, or 1."""
  return max(
    n for n in range(1, count + 1) if count % n == 0 and n <= max(most, 1)
  )


def window(
  geometry: Geometry, windows, row: jax.Array, col: jax.Array
) -> jax.Array:
  """The neighbourhood of a block: `[keys, lanes]`."""
  start = row * geometry.block_size
  found = windows[col, pl.ds(start, geometry.window)]
  return found.reshape(geometry.keys, found.shape[-1])


def head_rows(
  geometry: Geometry, x: jax.Array, head_tile: int, dim: int
) -> jax.Array:
  """Of `[group_heads · dim, …]`, the channels of a tile's heads."""
  size = geometry.tile_heads * dim
  return x[head_tile * size : (head_tile + 1) * size]


def map_bytes(geometry: Geometry, itemsize: int) -> int:
  """Blocks of query, key, value and output in vector memory."""
  queries = geometry.rows * geometry.side, geometry.cols * geometry.side
  keys = (
    geometry.rows * geometry.block_size + 2 * geometry.halo_rows,
    geometry.cols * geometry.block_size,
  )
  return sum(
    tile_bytes((*size, lanes), itemsize)
    for size in (queries, keys)
    for lanes in (geometry.key_lanes, geometry.value_lanes)
  )


def scratch_bytes(scratch) -> int:
  """Scratch in vector memory."""
  return sum(
    tile_bytes(shape, jnp.dtype(dtype).itemsize) for shape, dtype in scratch
  )
