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

from halonet.ops.forms.tpu.grid_steps import first_row
from halonet.ops.forms.tpu.tiling import Tiling


def windows_shape(tiling: Tiling, lanes: int) -> tuple[int, ...]:
  """Returns the shape of scratch for every column of blocks with its halo."""
  rows = (
    tiling.strip_rows * tiling.layer.block_size + 2 * tiling.layer.halo_size
  )
  return tiling.panel_cols, rows, tiling.window_padded, lanes


def buffer_shape(tiling: Tiling, lanes: int) -> tuple[int, ...]:
  """Returns the shape of scratch for a row of blocks and its halo."""
  return tiling.layer.block_size, tiling.row_buffer, lanes


def queries_shape(tiling: Tiling, lanes: int) -> tuple[int, ...]:
  """Returns the shape of scratch for the dense queries of every block."""
  return (
    tiling.strip_rows,
    tiling.panel_cols,
    tiling.bands,
    tiling.band_queries,
    lanes,
  )


def stage_windows(tiling: Tiling, refs, strip, buffer, windows) -> None:
  """Copies keys and values to the windows of their columns.

  Args:
    tiling: the layer's tiling.
    refs: operands as `grid_steps.seen` specifies them.
    strip: index of the strip.
    buffer: scratch for a row of blocks.
    windows: buffer to write to.
  """
  size, halo = tiling.layer.block_size, tiling.layer.halo_size
  border = halo - tiling.halo_cols
  top = strip * tiling.rows - first_row(tiling, strip)
  buffer[...] = jnp.zeros_like(buffer)
  # Keys and values come one after the other in a window.
  channels = [(refs[0], tiling.context_lanes)]
  if tiling.groups > 1:
    channels = [(refs[0], tiling.key_lanes), (refs[1], tiling.value_lanes)]

  def stage(place, row, count):
    first = 0
    for ref, lanes in channels:
      buffer[:count, border : border + tiling.width, first : first + lanes] = (
        ref[0, pl.ds(row, count), :, :lanes].astype(buffer.dtype)
      )
      first += lanes
    for col in range(tiling.panel_cols):
      columns = pl.ds(col * size, tiling.window_padded)
      windows[col, pl.ds(place, count)] = buffer[:count, columns].astype(
        windows.dtype
      )

  @pl.loop(0, tiling.strip_rows)
  def _(row):
    stage(halo + row * size, top + row * size, size)

  if not halo:
    return
  edges = jnp.zeros((tiling.panel_cols, halo, *windows.shape[2:]))
  edges = edges.astype(windows.dtype)
  if tiling.strips == 1:
    windows[:, :halo] = edges
    windows[:, -halo:] = edges
    return

  @pl.loop(0, 2 * halo)
  def _(place):
    place = jnp.where(place < halo, place, place + tiling.rows)
    row = strip * tiling.rows - halo + place
    inside = (row >= 0) & (row < tiling.strips * tiling.rows)
    pl.when(inside)(lambda: stage(place, top - halo + place, 1))

    @pl.when(jnp.logical_not(inside))
    def _():
      windows[:, pl.ds(place, 1)] = edges[:, :1]


def carry_windows(tiling: Tiling, strip, windows) -> None:
  """Moves up gradients of rows to which earlier strips have added, and sets the
  others to zero."""
  kept = 2 * tiling.halo_rows
  if not kept:
    windows[...] = jnp.zeros_like(windows)
    return
  empty = jnp.zeros((windows.shape[0], 1, *windows.shape[2:]), windows.dtype)

  @pl.loop(0, kept)
  def _(row):
    windows[:, pl.ds(row, 1)] = jnp.where(
      strip > 0, windows[:, pl.ds(tiling.rows + row, 1)], empty
    )

  @pl.loop(kept, windows.shape[1])
  def _(row):
    windows[:, pl.ds(row, 1)] = empty


def add_windows(tiling: Tiling, strip, windows, buffer, rows, emit) -> None:
  """Adds overlapping windows up to rows of a map.

  This is the adjoint of `stage_windows`. The rows are those to which no strip
  that follows adds anything.

  Args:
    tiling: the layer's tiling.
    strip: index of the strip.
    windows: gradients.
    buffer: scratch for a row of blocks.
    rows: buffer to write to, `[rows + halo_rows, columns, ≥ context_lanes]`;
      its first row is `halo_rows` above the strip.
    emit: called with the first of `rows` that are done, and their number.
  """
  size, halo = tiling.layer.block_size, tiling.layer.halo_size
  border = halo - tiling.halo_cols
  skipped = halo - tiling.halo_rows

  def add(first, count):
    buffer[...] = jnp.zeros_like(buffer)
    for col in range(tiling.panel_cols):
      columns = pl.ds(col * size, tiling.window_padded)
      buffer[:count, columns] += windows[col, pl.ds(first + skipped, count)]
    rows[pl.ds(first, count), :, : tiling.context_lanes] = buffer[
      :count, border : border + tiling.width
    ].astype(rows.dtype)
    emit(first, count)

  @pl.loop(0, tiling.strip_rows)
  def _(row):
    add(row * size, size)

  if tiling.halo_rows:

    @pl.when(strip == tiling.strips - 1)
    def _():
      @pl.loop(tiling.rows, tiling.rows + tiling.halo_rows)
      def _(row):
        add(row, 1)


def stage_queries(tiling: Tiling, read, queries, shift: int = 0) -> None:
  """Copies a map of queries to dense queries, the empty ones zero.

  Args:
    tiling: the layer's tiling.
    read: returns a row of the strip, `[columns, lanes]`, by its index.
    queries: buffer to write to.
    shift: first lane there.
  """
  side, band_rows = tiling.layer.side, tiling.band_rows
  if tiling.band_queries > band_rows * side:
    queries[...] = jnp.zeros_like(queries)

  @pl.loop(0, tiling.strip_rows)
  def _(row):
    for i in range(side):
      line = read(row * side + i).astype(queries.dtype)
      band, first = divmod(i, band_rows)
      lanes = pl.ds(shift, line.shape[-1])
      for col in range(tiling.panel_cols):
        queries[row, col, band, pl.ds(first * side, side), lanes] = line[
          col * side : (col + 1) * side
        ]


def unstage_queries(tiling: Tiling, queries, write) -> None:
  """Inverts `stage_queries`; `write` takes the index of a row, and the row."""
  side, band_rows = tiling.layer.side, tiling.band_rows

  @pl.loop(0, tiling.strip_rows)
  def _(row):
    for i in range(side):
      band, first = divmod(i, band_rows)
      line = jnp.concatenate(
        [
          queries[row, col, band, pl.ds(first * side, side)]
          for col in range(tiling.panel_cols)
        ],
        axis=0,
      )
      write(row * side + i, line)


def masked_heads(
  tiling: Tiling,
  queries: jax.Array,
  head_tile: int,
  dim: int,
  dtype,
  shift: int = 0,
) -> jax.Array:
  """Separates heads: `[band_queries, lanes]` → `[tile_lanes, lanes]`.

  Every head of the tile gets a copy in which the other heads' lanes are zero,
  so that a product over all lanes is one over the head's. The first head's
  lanes begin at `shift`.
  """
  lane = lax.broadcasted_iota(jnp.int32, queries.shape, 1)
  copies = []
  for head in range(tiling.tile_heads):
    first = shift + (head_tile * tiling.tile_heads + head) * dim
    inside = (lane >= first) & (lane < first + dim)
    copies.append(jnp.where(inside, queries, 0.0))
  return jnp.concatenate(copies, axis=0).astype(dtype)


def merged_heads(tiling: Tiling, tiles: list[jax.Array], dim: int) -> jax.Array:
  """Merges all tiles of a group's heads: the adjoint of `masked_heads`.

  Args:
    tiling: the layer's tiling.
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
