"""How the fused TPU kernels divide a layer: tiles, bands, groups and strips.

A kernel works on *tiles*: one product of all keys of a neighbourhood with as
many queries as fill the 128 lanes of a register. A small block leaves room for
several heads beside each other (`tile_heads`); a large one is cut into bands
of rows of queries (`bands`). Heads that share a register's lanes in the maps
form a group. An image that does not fit in vector memory is cut into strips of
whole rows of blocks. Every grid step computes one group of one strip of one
image.

The channels of keys lie before those of values in one map, and so do a group's
in vector memory: keys and values that are narrower than a register share its
lanes.
"""

import dataclasses

import numpy as np

from halonet.ops.neighbourhood import Neighbourhood
from halonet.ops.positions import num_offsets

LANES = 128
_SUBLANES = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tiling:
  """The sizes with which the kernels work on one layer.

  Attributes:
    layer: Geometry of the layer.
    heads: Number of heads.
    head_dim: Channels of a head's queries and keys.
    value_dim: Channels of a head's values.
    strips: Number of parts into which an image is cut from top to bottom. All
      have the same number of rows of blocks.
    panels: Number of parts into which it is cut from left to right, with equal
      numbers of columns of blocks. They are images to the kernels, with columns
      of their neighbours on both sides.
    wide: Whether the map of a single group has more than one register of
      channels, empty ones if need be. The compiler for v3 copies no rows of a
      narrower map.
  """

  layer: Neighbourhood
  heads: int
  head_dim: int
  value_dim: int
  strips: int = 1
  panels: int = 1
  wide: bool = False

  @property
  def joined(self) -> bool:
    """Whether queries lie in the map of the keys and values, after them.

    Strided queries have a map of their own, and so have those of panels.
    """
    return self.layer.stride == 1 and self.panels == 1

  @property
  def strip_rows(self) -> int:
    """Rows of blocks in a strip."""
    return -(-self.layer.rows // self.strips)

  @property
  def panel_cols(self) -> int:
    """Columns of blocks in a panel."""
    return -(-self.layer.cols // self.panels)

  @property
  def halo_cols(self) -> int:
    """Columns of pixels that a panel has from its neighbours, on each side."""
    return self.layer.halo_size if self.panels > 1 else 0

  @property
  def width(self) -> int:
    """Columns of pixels in a panel, those of its neighbours included."""
    return self.panel_cols * self.layer.block_size + 2 * self.halo_cols

  @property
  def rows(self) -> int:
    """Rows of pixels in a strip."""
    return self.strip_rows * self.layer.block_size

  @property
  def halo_rows(self) -> int:
    """Rows of halo above and below a strip; a whole image has none."""
    return self.layer.halo_size if self.strips > 1 else 0

  @property
  def seen_rows(self) -> int:
    """Rows of the map that a grid step sees, of a strip and its halos."""
    return min(self.strips * self.rows, self.rows + 2 * self.halo_rows)

  @property
  def window_padded(self) -> int:
    """Keys in a row of a neighbourhood, padded with masked ones to whole tiles
    of sublanes."""
    return round_up(self.layer.window, _SUBLANES)

  @property
  def keys(self) -> int:
    """Keys of a neighbourhood, the masked ones of the padding included."""
    return self.layer.window * self.window_padded

  @property
  def offsets_padded(self) -> int:
    """Rows of a relative table, with empty ones that align it."""
    offsets = num_offsets(self.layer.block_size, self.layer.halo_size)
    return round_up(offsets, _SUBLANES)

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
      for rows in range(1, self.layer.side + 1)
      if self.layer.side % rows == 0
      and (rows == 1 or rows * self.layer.side <= LANES)
    )

  @property
  def bands(self) -> int:
    """Bands of a block."""
    return self.layer.side // self.band_rows

  @property
  def band_queries(self) -> int:
    """Queries of a band, with empty ones that align it."""
    return round_up(self.band_rows * self.layer.side, _SUBLANES)

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
    """Queries of a tile, all its heads together."""
    return self.tile_heads * self.band_queries

  @property
  def key_lanes(self) -> int:
    """Channels of a group's keys, and of its queries."""
    return self.group_heads * self.head_dim

  @property
  def value_lanes(self) -> int:
    """Channels of a group's values."""
    return self.group_heads * self.value_dim

  @property
  def context_lanes(self) -> int:
    """Channels of a group's keys and values."""
    return self.key_lanes + self.value_lanes

  @property
  def map_lanes(self) -> int:
    """Channels of a group in the map of keys and values, those of queries
    included where they are joined."""
    lanes = self.context_lanes + self.joined * self.key_lanes
    return 2 * LANES if self.wide and lanes <= LANES else lanes

  @property
  def key_span(self) -> int:
    """Channels in the registers that hold keys: the first of the context."""
    return min(round_up(self.key_lanes, LANES), self.context_lanes)

  @property
  def value_start(self) -> int:
    """First channel of the first register that holds values."""
    return self.key_lanes // LANES * LANES

  @property
  def value_shift(self) -> int:
    """Channels of keys in the register at `value_start`, before the values."""
    return self.key_lanes - self.value_start

  @property
  def row_buffer(self) -> int:
    """Columns of the scratch for a row of blocks and its halo."""
    return (self.panel_cols - 1) * self.layer.block_size + self.window_padded

  def lane_table(self) -> np.ndarray:
    """Describes the query in each lane: int32 `[bands, 8, tile_lanes]`.

    Entries 0 and 1 of the second axis are the shifts of its relative logits
    along rows and along columns, `block_size − 1 −` its place. Entries 2 and 3
    are its row and its column in the block, in pixels. The others, and all
    entries of empty queries, are zero.
    """
    query = np.arange(self.band_rows * self.layer.side)
    row, col = np.divmod(query, self.layer.side)
    empty = self.band_queries - len(query)
    table = np.zeros((self.bands, 8, self.tile_lanes), np.int32)
    for band in range(self.bands):
      i = row + band * self.band_rows
      last = self.layer.block_size - 1
      values = [
        last - self.layer.relative_stride * i,
        last - self.layer.relative_stride * col,
        self.layer.stride * i,
        self.layer.stride * col,
      ]
      for index, value in enumerate(values):
        one = np.pad(value, (0, empty))
        table[band, index] = np.tile(one, self.tile_heads)
    return table


def tile_bytes(shape: tuple[int, ...], itemsize: int) -> int:
  """Returns the bytes of an array in vector memory, with its padding."""
  *leading, sublanes, lanes = shape
  size = round_up(lanes, LANES) * round_up(sublanes, 32 // itemsize)
  return int(np.prod(leading, dtype=np.int64)) * size * itemsize


def round_up(size: int, multiple: int) -> int:
  return -(-size // multiple) * multiple
