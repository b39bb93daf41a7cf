"""What the fused kernels know of a layer before they run: sizes and limits.

A kernel works on *tiles*: one product of all keys of a neighbourhood with as
many queries as fill the 128 lanes of a register. A small block leaves room for
several heads beside each other (`tile_heads`); a large one is cut into bands
of rows of queries (`bands`). Heads that share a register's lanes in the maps
form a group, and every grid step computes one group of one image.
"""

import dataclasses

import numpy as np

from halonet.ops import blocks, relative

LANES = 128
_SUBLANES = 16  # Of a tile of bfloat16; a multiple of float32's eight.


@dataclasses.dataclass(frozen=True)
class Geometry:
  """Sizes of one layer, in pixels, heads and channels of a head.

  Attributes:
    height: of the map of keys, before it is padded to whole blocks.
    width: the same.
    heads: of the layer.
    head_dim: channels of a head's queries and keys.
    value_dim: channels of a head's values.
    block_size: side of a block.
    halo_size: pixels that a neighbourhood reaches beyond its block.
    stride: between queries; divides `block_size`.
    relative_stride: between queries as relative offsets count them.
    mask_padding: whether keys beyond the border are left out.
    reach: how far before and after itself a query sees keys, in pixels along
      each axis; the others are left out. None: it sees the neighbourhood.
    strips: into which an image is cut from top to bottom, each of as many rows
      of blocks, so that one fits in vector memory. They come with their halo.
  """

  height: int
  width: int
  heads: int
  head_dim: int
  value_dim: int
  block_size: int
  halo_size: int
  stride: int
  relative_stride: int
  mask_padding: bool
  reach: tuple[int, int] | None
  strips: int = 1

  @property
  def rows(self) -> int:
    """Blocks from top to bottom of a strip."""
    rows = blocks.num_blocks(self.height, self.block_size)
    return -(-rows // self.strips)

  @property
  def halo_rows(self) -> int:
    """Rows above and below a strip that come with it; an image has none."""
    return self.halo_size if self.strips > 1 else 0

  @property
  def cols(self) -> int:
    """Blocks from left to right."""
    return blocks.num_blocks(self.width, self.block_size)

  @property
  def side(self) -> int:
    """Queries along a side of a block."""
    return self.block_size // self.stride

  @property
  def window(self) -> int:
    """Keys along a side of a neighbourhood."""
    return self.block_size + 2 * self.halo_size

  @property
  def window_padded(self) -> int:
    """Keys of a row of a neighbourhood, with masked ones that align it."""
    return _round_up(self.window, _SUBLANES)

  @property
  def keys(self) -> int:
    """Keys of a neighbourhood as a product takes them."""
    return self.window * self.window_padded

  @property
  def offsets_padded(self) -> int:
    """Rows of a relative table, aligned."""
    offsets = relative.num_offsets(self.block_size, self.halo_size)
    return _round_up(offsets, _SUBLANES)

  @property
  def group_heads(self) -> int:
    """Heads of a grid step: whole registers of lanes, or all heads."""
    for heads in range(1, self.heads):
      widths = heads * self.head_dim, heads * self.value_dim
      if self.heads % heads == 0 and not any(w % LANES for w in widths):
        return heads
    return self.heads

  @property
  def groups(self) -> int:
    """Groups of heads."""
    return self.heads // self.group_heads

  @property
  def band_rows(self) -> int:
    """Rows of queries in a band of a block."""
    return max(
      rows
      for rows in range(1, self.side + 1)
      if self.side % rows == 0 and (rows == 1 or rows * self.side <= LANES)
    )

  @property
  def bands(self) -> int:
    """Bands of a block."""
    return self.side // self.band_rows

  @property
  def band_queries(self) -> int:
    """Queries of a band, with empty ones that align it."""
    return _round_up(self.band_rows * self.side, _SUBLANES)

  @property
  def tile_heads(self) -> int:
    """Heads of a tile."""
    return max(
      heads
      for heads in range(1, self.group_heads + 1)
      if self.group_heads % heads == 0
      and (heads == 1 or heads * self.band_queries <= LANES)
    )

  @property
  def head_tiles(self) -> int:
    """Tiles of a group's heads."""
    return self.group_heads // self.tile_heads

  @property
  def tile_lanes(self) -> int:
    """Queries of a tile, all heads of it together."""
    return self.tile_heads * self.band_queries

  @property
  def key_lanes(self) -> int:
    """Channels of a group's keys."""
    return self.group_heads * self.head_dim

  @property
  def value_lanes(self) -> int:
    """Channels of a group's values."""
    return self.group_heads * self.value_dim

  @property
  def row_buffer(self) -> int:
    """Columns of the zero-bordered map."""
    return (self.cols - 1) * self.block_size + self.window_padded

  def lane_table(self) -> np.ndarray:
    """Which query is in which lane: int32 `[bands, 8, tile_lanes]`.

    Rows: how far the relative logits are shifted along rows and along columns
    (`block_size − 1 −` the query's place), and the query's row and column in
    the block in pixels. The other rows, and empty queries, are zero.
    """
    query = np.arange(self.band_rows * self.side)
    row, col = np.divmod(query, self.side)
    empty = self.band_queries - len(query)
    table = np.zeros((self.bands, 8, self.tile_lanes), np.int32)
    for band in range(self.bands):
      i = row + band * self.band_rows
      last = self.block_size - 1
      values = [
        last - self.relative_stride * i,
        last - self.relative_stride * col,
        self.stride * i,
        self.stride * col,
      ]
      for index, value in enumerate(values):
        one = np.pad(value, (0, empty))
        table[band, index] = np.tile(one, self.tile_heads)
    return table


def tile_bytes(shape: tuple[int, ...], itemsize: int) -> int:
  """Bytes of an array in vector memory, whose last two axes are tiled."""
  *leading, sublanes, lanes = shape
  size = _round_up(lanes, LANES) * _round_up(sublanes, 32 // itemsize)
  return int(np.prod(leading, dtype=np.int64)) * size * itemsize


def _round_up(size, multiple):
  return -(-size // multiple) * multiple
