"""How the kernels of slide attention divide a map: groups, images and rows.

A grid step computes one group of heads, as many as fit in the 128 lanes of a
register, of one image, or of eight. One image is `[height, width, channels]`,
with columns in sublanes; maps are then read and written as they lie in memory.
Where the width is no multiple of eight, XLA rather has `[height, width, batch,
channels]`, and so do the kernels, with eight images in sublanes. There, a map
that is moved by a pixel lies at other addresses, but in the same sublanes.
"""

import dataclasses

import jax.numpy as jnp

from halonet.ops.forms.tpu.tiling import LANES, round_up, tile_bytes

_SUBLANES = 8
# Pixels that are computed together; more take longer to compile.
_PIXELS = 1600
# Vector memory for values that do not fit in registers, in bytes.
_SPILLED = 4 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class SlideTiling:
  """The sizes with which the kernels work on one layer.

  Attributes:
    height: Height of the map.
    width: Width of the map.
    heads: Number of heads.
    head_dim: Channels of a head.
    window_size: Side of the window.
    images: Images of a grid step: 1, in which case columns are in sublanes, or
      8, which are in sublanes.
  """

  height: int
  width: int
  heads: int
  head_dim: int
  window_size: int
  images: int

  @property
  def shifts(self) -> int:
    """Shifts of the map, and pixels of the window."""
    return self.window_size**2

  @property
  def radius(self) -> int:
    """Rows and columns of zeros that a window sees beyond a border."""
    return self.window_size // 2

  @property
  def channels(self) -> int:
    """Channels of all heads."""
    return self.heads * self.head_dim

  @property
  def group_heads(self) -> int:
    """Heads of a grid step."""
    return min(self.heads, LANES // self.head_dim)

  @property
  def groups(self) -> int:
    """Groups of heads; the last may have fewer heads."""
    return -(-self.heads // self.group_heads)

  @property
  def lanes(self) -> int:
    """Channels of a group."""
    return self.group_heads * self.head_dim

  @property
  def head_logits(self) -> int:
    """Lanes of a head's logits, which are repeated for sums in a circle."""
    return 2 * self.shifts - 1

  @property
  def logits(self) -> int:
    """Lanes of a group's logits, the empty ones included."""
    return round_up(self.group_heads * self.head_logits, LANES)

  @property
  def columns(self) -> int:
    """Columns that are computed, with empty ones that align them."""
    return self.width if self.images > 1 else round_up(self.width, _SUBLANES)

  @property
  def left(self) -> int:
    """Columns of zeros before a map."""
    return self.radius if self.images > 1 else round_up(self.radius, _SUBLANES)

  @property
  def map_block(self) -> tuple[int, ...]:
    """The part of a map that a grid step sees."""
    images = (self.images,) if self.images > 1 else ()
    return self.height, self.width, *images, self.lanes

  @property
  def bordered(self) -> tuple[int, ...]:
    """The shape of a float32 map between zeros."""
    height = self.height + 2 * self.radius
    width = self.left + self.columns + self.radius
    if self.images > 1:
      return height, width, self.images, LANES
    return height, round_up(width, _SUBLANES), LANES

  @property
  def rows(self) -> int:
    """Rows of pixels that are computed together."""
    most = _PIXELS // (self.columns * self.images)
    return max(
      n
      for n in range(1, self.height + 1)
      if self.height % n == 0 and n <= max(most, 1)
    )

  def vector_memory(self, dtype: jnp.dtype) -> int:
    """Returns the bytes that the larger kernel, the backward one, needs."""
    itemsize = jnp.dtype(dtype).itemsize
    # A tile of maps has eight sublanes, whatever the dtype.
    block = tile_bytes(self.map_block, 4) * itemsize // 4
    matrices = 4 * tile_bytes((self.shifts + 1, LANES, self.logits), itemsize)
    gradients = 2 * tile_bytes((self.shifts + 1, self.logits, LANES), 4)
    scratch = 4 * tile_bytes(self.bordered, 4)
    return _SPILLED + 2 * (7 * block + matrices + gradients) + scratch


def fit(
  shape: tuple[int, ...], window_size: int, dtype: jnp.dtype, memory: int | None
) -> SlideTiling | None:
  """Finds the tiling for a map that fits in vector memory.

  Args:
    shape: `[batch, height, width, heads, head_dim]` of a device's share.
    window_size: side of the window.
    dtype: dtype of the map.
    memory: bytes of vector memory; None if there is no limit.

  Returns:
    The tiling, or None if there is none.
  """
  batch, height, width, heads, head_dim = shape
  if head_dim > LANES or (heads * head_dim > LANES and LANES % head_dim):
    return None
  aside = width % _SUBLANES and batch % _SUBLANES == 0
  for images in (_SUBLANES, 1) if aside else (1,):
    tiling = SlideTiling(
      height=height,
      width=width,
      heads=heads,
      head_dim=head_dim,
      window_size=window_size,
      images=images,
    )
    if memory is None or tiling.vector_memory(dtype) <= memory:
      return tiling
  return None
