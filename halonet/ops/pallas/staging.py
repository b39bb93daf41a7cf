"""Between maps as they lie in memory and the pieces that a tile computes with.

Maps are `[rows, columns, channels]` in vector memory, channels in lanes and
columns in sublanes. A neighbourhood may begin at any column, and slices of
registers want to begin at whole tiles of sublanes. So each column of blocks
gets a copy of its columns of the map, halo included, that begins at one; from
there, any neighbourhood is a slice along untiled axes. The queries of a block
are laid one after another, without gaps.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from halonet.ops.pallas.geometry import Geometry


def windows_shape(geometry: Geometry, lanes: int) -> tuple[int, ...]:
  """Scratch of `stage_windows`: every column of blocks with its halo."""
  rows = geometry.rows * geometry.block_size + 2 * geometry.halo_size
  return geometry.cols, rows, geometry.window_padded, lanes


def buffer_shape(geometry: Geometry, lanes: int) -> tuple[int, ...]:
  """Scratch of `stage_windows`: a row of blocks between zero columns."""
  return geometry.block_size, geometry.row_buffer, lanes


def queries_shape(geometry: Geometry, lanes: int) -> tuple[int, ...]:
  """Scratch of `stage_queries`: dense queries of every block."""
  return (
    geometry.rows,
    geometry.cols,
    geometry.bands,
    geometry.band_queries,
    lanes,
  )


def stage_windows(geometry: Geometry, map_ref, buffer, windows) -> None:
  """Copies a map `[1, rows, columns, lanes]` to the windows of its columns."""
  size, halo = geometry.block_size, geometry.halo_size
  width = geometry.cols * size
  skipped = halo - geometry.halo_rows
  buffer[...] = jnp.zeros_like(buffer)
  if skipped:
    border = jnp.zeros(
      (geometry.cols, skipped, *windows.shape[2:]), windows.dtype
    )
    windows[:, :skipped] = border
    windows[:, -skipped:] = border

  def stage(first, count):
    rows = pl.ds(first, count)
    buffer[:count, halo : halo + width] = map_ref[0, rows].astype(buffer.dtype)
    for col in range(geometry.cols):
      columns = pl.ds(col * size, geometry.window_padded)
      windows[col, pl.ds(first + skipped, count)] = buffer[
        :count, columns
      ].astype(windows.dtype)

  _for_rows(geometry, stage)


def add_windows(geometry: Geometry, windows, buffer, map_ref) -> None:
  """The adjoint of `stage_windows`: adds overlapping windows up, to a map."""
  size, halo = geometry.block_size, geometry.halo_size
  width = geometry.cols * size
  skipped = halo - geometry.halo_rows

  def add(first, count):
    buffer[...] = jnp.zeros_like(buffer)
    for col in range(geometry.cols):
      columns = pl.ds(col * size, geometry.window_padded)
      buffer[:count, columns] += windows[col, pl.ds(first + skipped, count)]
    rows = pl.ds(first, count)
    map_ref[0, rows] = buffer[:count, halo : halo + width].astype(map_ref.dtype)

  _for_rows(geometry, add)


def _for_rows(geometry, body):
  """Calls `body(first, count)` for all rows of a map of keys."""
  size = geometry.block_size

  @pl.loop(0, geometry.rows)
  def _(row):
    body(row * size, size)

  first = geometry.rows * size
  end = first + 2 * geometry.halo_rows
  while first < end:
    body(first, min(size, end - first))
    first += size


def stage_queries(geometry: Geometry, map_ref, queries) -> None:
  """Copies a map of queries to dense queries, the empty ones zero."""
  side, band_rows = geometry.side, geometry.band_rows
  if geometry.band_queries > band_rows * side:
    queries[...] = jnp.zeros_like(queries)

  @pl.loop(0, geometry.rows)
  def _(row):
    for i in range(side):
      line = map_ref[0, row * side + i].astype(queries.dtype)
      band, first = divmod(i, band_rows)
      for col in range(geometry.cols):
        queries[row, col, band, pl.ds(first * side, side)] = line[
          col * side : (col + 1) * side
        ]


def unstage_queries(geometry: Geometry, queries, map_ref) -> None:
  """The inverse of `stage_queries`."""
  side, band_rows = geometry.side, geometry.band_rows

  @pl.loop(0, geometry.rows)
  def _(row):
    for i in range(side):
      band, first = divmod(i, band_rows)
      line = jnp.concatenate(
        [
          queries[row, col, band, pl.ds(first * side, side)]
          for col in range(geometry.cols)
        ],
        axis=0,
      )
      map_ref[0, row * side + i] = line.astype(map_ref.dtype)


def masked_heads(
  geometry: Geometry, queries: jax.Array, head_tile: int, dim: int, dtype
) -> jax.Array:
  """`[band_queries, lanes]` → `[tile_lanes, lanes]`, each head by itself.

  Every head of the tile gets a copy in which the other heads' lanes are zero,
  so that a product over all lanes is one over the head's.
  """
  lane = lax.broadcasted_iota(jnp.int32, queries.shape, 1)
  copies = []
  for head in range(geometry.tile_heads):
    first = (head_tile * geometry.tile_heads + head) * dim
    inside = (lane >= first) & (lane < first + dim)
    copies.append(jnp.where(inside, queries, 0.0))
  return jnp.concatenate(copies, axis=0).astype(dtype)


def merged_heads(
  geometry: Geometry, tiles: list[jax.Array], dim: int
) -> jax.Array:
  """The adjoint of `masked_heads` for all tiles of a group's heads.

  Args:
    geometry: of the layer.
    tiles: one `[tile_heads · dim, tile_lanes]` per tile: channels of the
      tile's heads in sublanes. Where channels and query are of different
      heads, there may be anything.
    dim: channels of a head.

  Returns:
    `[band_queries, group_heads · dim]`.
  """
  size = geometry.band_queries
  if geometry.tile_heads > 1:
    shape = (dim, geometry.tile_lanes)
    lane = lax.broadcasted_iota(jnp.int32, shape, 1)
    parts = []
    for tile in tiles:
      for head in range(geometry.tile_heads):
        inside = (lane >= head * size) & (lane < (head + 1) * size)
        part = tile[head * dim : (head + 1) * dim]
        parts.append(jnp.where(inside, part, 0.0))
    tiles = parts
  turned = jnp.concatenate(tiles, axis=0).T
  merged = turned[:size]
  for head in range(1, geometry.tile_heads):
    merged = merged + turned[head * size : (head + 1) * size]
  return merged
