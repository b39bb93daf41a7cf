"""The grid of the kernels: operands of a step, loops over blocks, bytes."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from halonet.ops.forms.tpu.tiling import Tiling, tile_bytes


def whole(shape: tuple[int, ...]) -> pl.BlockSpec:
  """Specifies an operand that every grid step sees as a whole."""
  return pl.BlockSpec(shape, lambda n, strip, group: (0,) * len(shape))


def strip(tiling: Tiling, shape: tuple[int, ...], lanes: int) -> pl.BlockSpec:
  """Specifies a map: a grid step sees one strip and one group's channels."""
  return pl.BlockSpec(
    (1, shape[1] // tiling.strips, shape[2], lanes),
    lambda n, strip, group: (n, strip, 0, group),
  )


def own(shape: tuple[int, ...]) -> pl.BlockSpec:
  """Specifies `[batch, strips, groups, …]`: a grid step sees its own entry."""
  rest = shape[3:]
  return pl.BlockSpec(
    (1, 1, 1, *rest),
    lambda n, strip, group: (n, strip, group, *(0 for _ in rest)),
  )


def for_blocks(tiling: Tiling, body: Callable[..., None], keys: int) -> None:
  """Calls `body(places, band)` for all blocks, several of them at a time.

  Args:
    tiling: of the layer.
    body: gets the rows and columns of some blocks, and a band. It computes
      these blocks without a loop, so that the compiler overlaps their work.
    keys: most keys that all tiles of one call have together; more than that
      only if a single block has more.
  """
  each = tiling.head_tiles * tiling.keys
  cols = _together(tiling.layer.cols, keys // each)
  rows = 1
  if cols == tiling.layer.cols:
    rows = _together(tiling.strip_rows, keys // (each * cols))

  @pl.loop(0, tiling.strip_rows // rows)
  def _(row):
    @pl.loop(0, tiling.layer.cols // cols)
    def _(col):
      places = [
        (row * rows + down, col * cols + along)
        for down in range(rows)
        for along in range(cols)
      ]

      @pl.loop(0, tiling.bands)
      def _(band):
        body(places, band)


def _together(count, most):
  """Returns the largest divisor of `count` that is at most `most`, or 1."""
  return max(
    n for n in range(1, count + 1) if count % n == 0 and n <= max(most, 1)
  )


def window(
  tiling: Tiling, windows, row: jax.Array, col: jax.Array
) -> jax.Array:
  """Returns the neighbourhood of a block: `[keys, lanes]`."""
  start = row * tiling.layer.block_size
  found = windows[col, pl.ds(start, tiling.layer.window)]
  return found.reshape(tiling.keys, found.shape[-1])


def head_rows(
  tiling: Tiling, x: jax.Array, head_tile: int, dim: int
) -> jax.Array:
  """Returns the channels of a tile's heads from `[group_heads · dim, …]`."""
  size = tiling.tile_heads * dim
  return x[head_tile * size : (head_tile + 1) * size]


def map_bytes(tiling: Tiling, itemsize: int) -> int:
  """Returns the bytes of query, key, value and output in vector memory."""
  queries = (
    tiling.strip_rows * tiling.layer.side,
    tiling.layer.cols * tiling.layer.side,
  )
  keys = (
    tiling.strip_rows * tiling.layer.block_size + 2 * tiling.halo_rows,
    tiling.layer.cols * tiling.layer.block_size,
  )
  return sum(
    tile_bytes((*size, lanes), itemsize)
    for size in (queries, keys)
    for lanes in (tiling.key_lanes, tiling.value_lanes)
  )


def scratch_bytes(scratch) -> int:
  """Returns the bytes of scratch in vector memory."""
  return sum(
    tile_bytes(shape, jnp.dtype(dtype).itemsize) for shape, dtype in scratch
  )
