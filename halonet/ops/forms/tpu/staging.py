"""Copies between maps in memory and the pieces that a tile computes with.

Maps are `[rows, columns, channels]` in vector memory, channels in lanes and
columns in sublanes. A neighbourhood may begin at any column, but slices of
registers should begin at whole tiles of sublanes. Each column of blocks
therefore gets an aligned copy of its columns of the map, halo included. Any
neighbourhood is then a slice along untiled axes. The queries of a block lie
one after another, without gaps.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from halonet.ops.forms.tpu.tiling import Tiling


def windows_shape(tiling: Tiling, lanes: int) -> tuple[int, ...]:
  """Returns the shape of scratch for every column of blocks with its halo."""
  rows = (
    tiling.strip_rows * tiling.layer.block_size + 2 * tiling.layer.halo_size
  )
  return tiling.layer.cols, rows, tiling.window_padded, lanes


def buffer_shape(tiling: Tiling, lanes: int) -> tuple[int, ...]:
  """Returns the shape of scratch for a row of blocks between zero columns."""
  return tiling.layer.block_size, tiling.row_buffer, lanes


def queries_shape(tiling: Tiling, lanes: int) -> tuple[int, ...]:
  """Returns the shape of scratch for the dense queries of every block."""
  return (
    tiling.strip_rows,
    tiling.layer.cols,
    tiling.bands,
    tiling.band_queries,
    lanes,
  )


def stage_windows(tiling: Tiling, map_ref, buffer, windows) -> None:
  """Copies a map `[1, rows, columns, lanes]` to the windows of its columns."""
  size, halo = tiling.layer.block_size, tiling.layer.halo_size
  width = tiling.layer.cols * size
  skipped = halo - tiling.halo_rows
  buffer[...] = jnp.zeros_like(buffer)
  if skipped:
    border = jnp.zeros(
      (tiling.layer.cols, skipped, *windows.shape[2:]), windows.dtype
    )
    windows[:, :skipped] = border
    windows[:, -skipped:] = border

  def stage(first, count):
    rows = pl.ds(first, count)
    buffer[:count, halo : halo + width] = map_ref[0, rows].astype(buffer.dtype)
    for col in range(tiling.layer.cols):
      columns = pl.ds(col * size, tiling.window_padded)
      windows[col, pl.ds(first + skipped, count)] = buffer[
        :count, columns
      ].astype(windows.dtype)

  _for_rows(tiling, stage)


def add_windows(tiling: Tiling, windows, buffer, map_ref) -> None:
  """Adds overlapping windows up to a map: the adjoint of `stage_windows`."""
  size, halo = tiling.layer.block_size, tiling.layer.halo_size
  width = tiling.layer.cols * size
  skipped = halo - tiling.halo_rows

  def add(first, count):
    buffer[...] = jnp.zeros_like(buffer)
    for col in range(tiling.layer.cols):
      columns = pl.ds(col * size, tiling.window_padded)
      buffer[:count, columns] += windows[col, pl.ds(first + skipped, count)]
    rows = pl.ds(first, count)
    map_ref[0, rows] = buffer[:count, halo : halo + width].astype(map_ref.dtype)

  _for_rows(tiling, add)


def _for_rows(tiling, body):
  """Calls `body(first, count)` for all rows of a map of keys."""
  size = tiling.layer.block_size

  @pl.loop(0, tiling.strip_rows)
  def _(row):
    body(row * size, size)

  first = tiling.strip_rows * size
  end = first + 2 * tiling.halo_rows
  while first < end:
    body(first, min(size, end - first))
    first += size


def stage_queries(tiling: Tiling, map_ref, queries) -> None:
  """Copies a map of queries to dense queries, the empty ones zero."""
  side, band_rows = tiling.layer.side, tiling.band_rows
  if tiling.band_queries > band_rows * side:
    queries[...] = jnp.zeros_like(queries)

  @pl.loop(0, tiling.strip_rows)
  def _(row):
    for i in range(side):
      line = map_ref[0, row * side + i].astype(queries.dtype)
      band, first = divmod(i, band_rows)
      for col in range(tiling.layer.cols):
        queries[row, col, band, pl.ds(first * side, side)] = line[
          col * side : (col + 1) * side
        ]


def unstage_queries(tiling: Tiling, queries, map_ref) -> None:
  """Inverts `stage_queries`."""
  side, band_rows = tiling.layer.side, tiling.band_rows

  @pl.loop(0, tiling.strip_rows)
  def _(row):
    for i in range(side):
      band, first = divmod(i, band_rows)
      line = jnp.concatenate(
        [
          queries[row, col, band, pl.ds(first * side, side)]
          for col in range(tiling.layer.cols)
        ],
        axis=0,
      )
      map_ref[0, row * side + i] = line.astype(map_ref.dtype)


def masked_heads(
  tiling: Tiling, queries: jax.Array, head_tile: int, dim: int, dtype
) -> jax.Array:
  """Separates heads: `[band_queries, lanes]` → `[tile_lanes, lanes]`.

  Every head of the tile gets a copy in which the other heads' lanes are zero,
  so that a product over all lanes is one over the head's.
  """
  lane = lax.broadcasted_iota(jnp.int32, queries.shape, 1)
  copies = []
  for head in range(tiling.tile_heads):
    first = (head_tile * tiling.tile_heads + head) * dim
    inside = (lane >= first) & (lane < first + dim)
    copies.append(jnp.where(inside, queries, 0.0))
  return jnp.concatenate(copies, axis=0).astype(dtype)


def merged_heads(tiling: Tiling, tiles: list[jax.Array], dim: int) -> jax.Array:
  """Merges all tiles of a group's heads: the adjoint of `masked_heads`.

  Args:
    tiling: of the layer.
    tiles: one `[tile_heads · dim, tile_lanes]` per tile: channels of the
      tile's heads in sublanes. Where channel and query belong to different
      heads, values are arbitrary.
    dim: channels of a head.

  Returns:
    `[band_queries, group_heads · dim]`.
  """
  size = tiling.band_queries
  if tiling.tile_heads > 1:
    shape = (dim, tiling.tile_lanes)
    lane = lax.broadcasted_iota(jnp.int32, shape, 1)
    parts = []
    for tile in tiles:
      for head in range(tiling.tile_heads):
        inside = (lane >= head * size) & (lane < (head + 1) * size)
        part = tile[head * dim : (head + 1) * dim]
        parts.append(jnp.where(inside, part, 0.0))
    tiles = parts
  turned = jnp.concatenate(tiles, axis=0).T
  merged = turned[:size]
  for head in range(1, tiling.tile_heads):
    merged = merged + turned[head * size : (head + 1) * size]
  return merged
