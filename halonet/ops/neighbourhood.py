"""The geometry of local attention: who sees whom, apart from any kernel."""

import dataclasses
import functools
import operator

import jax
import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class Neighbourhood:
  """The geometry of one layer, in pixels.

  The map is cut into blocks. All queries of a block share the keys of its
  neighbourhood, which is the block and a halo around it; masks then hide some
  of these keys from some of the queries.

  Attributes:
    height: Height of the key map before padding.
    width: Width of the key map before padding.
    block_size: Side of a block.
    halo_size: Width of the halo around a block.
    stride: Distance between queries; it divides `block_size`.
    relative_stride: Distance between queries as relative offsets count it.
    mask_padding: Whether keys beyond the border of the map are hidden.
    reach: How far before and after itself a query sees keys along each axis;
      None if it sees the whole neighbourhood.
  """

  height: int
  width: int
  block_size: int
  halo_size: int
  stride: int = 1
  relative_stride: int = 1
  mask_padding: bool = True
  reach: tuple[int, int] | None = None

  @property
  def rows(self) -> int:
    """Number of blocks from top to bottom."""
    return -(-self.height // self.block_size)

  @property
  def cols(self) -> int:
    """Number of blocks from left to right."""
    return -(-self.width // self.block_size)

  @property
  def side(self) -> int:
    """Number of queries along a side of a block."""
    return self.block_size // self.stride

  @property
  def window(self) -> int:
    """Number of keys along a side of a neighbourhood."""
    return self.block_size + 2 * self.halo_size

  @property
  def farthest(self) -> int:
    """Largest offset of a key of the neighbourhood from a query."""
    return self.block_size - 1 + self.halo_size

  @property
  def output_size(self) -> tuple[int, int]:
    """Height and width of the map of queries."""
    return -(-self.height // self.stride), -(-self.width // self.stride)

  def hides(
    self,
    axis: int,
    *,
    pixel: np.ndarray | jax.Array | None = None,
    offset: np.ndarray | jax.Array | None = None,
  ) -> np.ndarray | jax.Array | bool:
    """Says which keys are hidden from which queries, along one axis.

    A key is hidden if its row or its column is. Every form of the attention
    asks this function and no other. Its arguments may be traced, as they are
    inside kernels, or where a device holds only some rows of the map.

    Args:
      axis: 0 for rows, 1 for columns.
      pixel: integers, places of the keys on the whole map. None leaves the
        border out of account.
      offset: integers, places of the keys relative to their queries. None
        leaves the reach of the queries out of account.

    Returns:
      Booleans in the shape to which the arguments broadcast; plain False if
      this layer hides nothing on their account.
    """
    hidden = []
    if pixel is not None and self.mask_padding:
      hidden += [pixel < 0, pixel >= (self.height, self.width)[axis]]
    if offset is not None and self.reach is not None:
      before, after = self.reach
      hidden += [offset < -before, offset > after]
    return functools.reduce(operator.or_, hidden) if hidden else False

  def key_pixels(self, axis: int) -> np.ndarray:
    """Returns places of keys on the map, `[blocks, window]`, along an axis."""
    blocks = (self.rows, self.cols)[axis]
    first = np.arange(blocks) * self.block_size - self.halo_size
    return first[:, None] + np.arange(self.window)

  def key_offsets(self) -> np.ndarray:
    """Returns places of keys relative to queries, `[side, window]`."""
    query = np.arange(0, self.block_size, self.stride)
    return np.arange(self.window) - self.halo_size - query[:, None]
