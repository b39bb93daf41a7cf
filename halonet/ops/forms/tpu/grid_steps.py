"""The grid of the kernels: operands of a step, loops over blocks, bytes.

A step is an image, a group and a strip, which come in this order. The map has
the channels of all keys, then those of all values, then, where they are joined,
those of all queries.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from halonet.ops.forms.tpu.tiling import LANES, Tiling, tile_bytes

# A tile of fewer keys counts as one of so many: its queries need memory, too.
_LEAST_KEYS = 224


def whole(shape: tuple[int, ...]) -> pl.BlockSpec:
  """Specifies an operand that every grid step sees as a whole."""
  return pl.BlockSpec(shape, lambda n, group, strip: (0,) * len(shape))


def strip_of_queries(
  tiling: Tiling, shape: tuple[int, ...], lanes: int
) -> pl.BlockSpec:
  """Specifies a map of queries: a grid step sees a strip of its group's."""
  return pl.BlockSpec(
    (1, shape[1] // tiling.strips, shape[2], lanes),
    lambda n, group, strip: (n, strip, 0, group),
  )


def own(shape: tuple[int, ...]) -> pl.BlockSpec:
  """Specifies `[batch, groups, strips, …]`: a grid step sees its own entry."""
  rest = shape[3:]
  return pl.BlockSpec(
    (1, 1, 1, *rest),
    lambda n, group, strip: (n, group, strip, *(0 for _ in rest)),
  )


def seen(tiling: Tiling) -> list[pl.BlockSpec]:
  """Specifies the map as operands, one for each of its `pieces`.

  A grid step sees the rows of a strip and of its halos, which overlap with
  those of its neighbours.
  """

  def spec(first, lanes):
    size = 1, tiling.seen_rows, tiling.width, lanes
    if tiling.strips == 1 and first % lanes == 0:

      def block(n, group, strip):
        return n, 0, 0, first // lanes + group

      return pl.BlockSpec(size, block)

    def start(n, group, strip):
      # Written so that the compiler sees where a register begins.
      registers = first // LANES + group * (lanes // LANES)
      return n, first_row(tiling, strip), 0, registers * LANES

    def start_of_all(n, group, strip):
      return n, first_row(tiling, strip), 0, 0

    return pl.BlockSpec(
      tuple(map(pl.Element, size)), start if tiling.groups > 1 else start_of_all
    )

  return [spec(first, lanes) for first, lanes in pieces(tiling)]


def operand_specs(
  tiling: Tiling, maps: tuple[jax.Array, ...]
) -> list[pl.BlockSpec]:
  """Specifies `operands`."""
  queries = [
    strip_of_queries(tiling, x.shape, tiling.key_lanes) for x in maps[1:]
  ]
  return seen(tiling) + queries


def operands(tiling: Tiling, maps: tuple[jax.Array, ...]) -> list[jax.Array]:
  """Returns the map, once for every part in which a grid step sees it, and the
  map of separate queries."""
  return [maps[0]] * len(pieces(tiling)) + list(maps[1:])


def query_rows(tiling: Tiling, refs, strip: jax.Array | int) -> Callable:
  """Returns a function that reads a row of a strip's queries."""
  if not tiling.joined:
    return lambda row: refs[-1][0, row]
  top = strip * tiling.rows - first_row(tiling, strip)
  first = tiling.context_lanes if tiling.groups == 1 else 0
  lanes = pl.ds(first, tiling.key_lanes)
  return lambda row: refs[-1][0, top + row, :, lanes]


def parts(tiling: Tiling) -> list[tuple[int, int]]:
  """Returns where keys, values and, if joined, queries begin in the map, and
  the number of a group's channels."""
  keys = tiling.heads * tiling.head_dim
  values = tiling.heads * tiling.value_dim
  found = [(0, tiling.key_lanes), (keys, tiling.value_lanes)]
  if tiling.joined:
    found.append((keys + values, tiling.key_lanes))
  return found


def pieces(tiling: Tiling) -> list[tuple[int, int]]:
  """Returns `parts`, or the whole map if there is a single group."""
  return parts(tiling) if tiling.groups > 1 else [(0, tiling.map_lanes)]


def strip_index(tiling: Tiling) -> jax.Array | int:
  """Returns the index of a grid step's strip."""
  return pl.program_id(2) if tiling.strips > 1 else 0


def first_block(tiling: Tiling) -> tuple[jax.Array | int, jax.Array | int]:
  """Returns row and column of the first block that a grid step computes."""
  col = 0
  if tiling.panels > 1:
    col = lax.rem(pl.program_id(0), tiling.panels) * tiling.panel_cols
  return strip_index(tiling) * tiling.strip_rows, col


def first_row(tiling: Tiling, strip: jax.Array | int) -> jax.Array | int:
  """Returns the first row of the map that a grid step sees."""
  if tiling.strips == 1:
    return 0
  last = tiling.strips * tiling.rows - tiling.seen_rows
  return jnp.clip(strip * tiling.rows - tiling.halo_rows, 0, last)


def for_blocks(tiling: Tiling, body: Callable[..., None], keys: int) -> None:
  """Calls `body(places, band)` for all blocks, several of them at a time.

  Args:
    tiling: the layer's tiling.
    body: gets the rows and columns of some blocks, and a band. It computes
      these blocks without a loop, so that the compiler overlaps their work.
    keys: most keys that all tiles of one call have together; more than that
      only if a single block has more.
  """
  rows, cols = together(tiling, keys)

  @pl.loop(0, tiling.strip_rows // rows)
  def _(row):
    @pl.loop(0, tiling.panel_cols // cols)
    def _(col):
      places = [
        (row * rows + down, col * cols + along)
        for down in range(rows)
        for along in range(cols)
      ]

      @pl.loop(0, tiling.bands)
      def _(band):
        body(places, band)


def together(tiling: Tiling, keys: int) -> tuple[int, int]:
  """Returns how many rows and columns of blocks `for_blocks` computes at a
  time."""
  each = tiling.head_tiles * max(tiling.keys, _LEAST_KEYS)
  cols = _divisor(tiling.panel_cols, keys // each)
  if cols < tiling.panel_cols:
    return 1, cols
  return _divisor(tiling.strip_rows, keys // (each * cols)), cols


def _divisor(count, most):
  """Returns the largest divisor of `count` that is at most `most`, or 1."""
  return max(
    n for n in range(1, count + 1) if count % n == 0 and n <= max(most, 1)
  )


def key_window(
  tiling: Tiling, windows, row: jax.Array, col: jax.Array
) -> jax.Array:
  """Returns a block's neighbourhood in the registers that hold keys: `[keys,
  key_span]`. Channels of values are among them."""
  return _window(tiling, windows, row, col, 0, tiling.key_span)


def value_window(
  tiling: Tiling, windows, row: jax.Array, col: jax.Array
) -> jax.Array:
  """Returns a block's neighbourhood in the registers that hold values: `[keys,
  value_shift + value_lanes]`. The first channels are of keys."""
  lanes = tiling.value_shift + tiling.value_lanes
  return _window(tiling, windows, row, col, tiling.value_start, lanes)


def _window(tiling, windows, row, col, first, lanes):
  start = row * tiling.layer.block_size
  found = windows[
    col, pl.ds(start, tiling.layer.window), :, pl.ds(first, lanes)
  ]
  return found.reshape(tiling.keys, lanes)


def head_rows(
  tiling: Tiling, x: jax.Array, head_tile: int, dim: int, first: int = 0
) -> jax.Array:
  """Returns the channels of a tile's heads from `[first + group_heads · dim,
  …]`."""
  size = tiling.tile_heads * dim
  start = first + head_tile * size
  return x[start : start + size]


def map_bytes(tiling: Tiling, itemsize: int) -> int:
  """Returns the bytes of the map, of separate queries and of an output."""
  shapes = [
    (tiling.seen_rows, tiling.width, lanes) for _, lanes in pieces(tiling)
  ]
  queries = (
    tiling.strip_rows * tiling.layer.side,
    tiling.panel_cols * tiling.layer.side,
  )
  shapes.append((*queries, tiling.value_lanes))
  if not tiling.joined:
    shapes.append((*queries, tiling.key_lanes))
  return sum(tile_bytes(shape, itemsize) for shape in shapes)


def scratch_bytes(scratch) -> int:
  """Returns the bytes of scratch in vector memory."""
  return sum(
    tile_bytes(shape, jnp.dtype(dtype).itemsize) for shape, dtype in scratch
  )
