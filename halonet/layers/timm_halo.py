"""Halo attention as timm computes it, for timm's weights."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from halonet.fields import MOST_RATIO, MOST_WIDTH, field
from halonet.layers import layouts
from halonet.layers.base import (
  Norm,
  Site,
  average_pool,
  check_map,
  position_entries,
  round_to_eight,
)
from halonet.layers.halo import Blocked, sow_attention
from halonet.layers.layouts import Entries, Layout, Shapes
from halonet.layers.projections import (
  merge_heads,
  projections,
  relative_table,
)
from halonet.ops import positions
from halonet.ops.arguments import check_count
from halonet.ops.attention import blocked_local_attention


class TimmHaloAttention(nn.Module):
  """Does what timm's `HaloAttn` does, which differs from `HaloAttention`.

  - Each table is as wide as a head, and the two terms are summed. It has rows
    for 2·window − 1 offsets; the first 2·halo_size meet no key.
  - The relative term is that of the unscaled query.
  - Keys beyond the border take part as zeros.
  - With a stride, query n is taken to stand at pixel n of its block, not at
    stride·n. Where the stride does not divide the block, an average pool after
    the attention takes its place.

  Attributes are those of `HaloAttention`.
  """

  heads: int
  block_size: int
  halo_size: int
  qk_features: int | None = None
  value_features: int | None = None
  stride: int = 1
  implementation: str = "auto"
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Float[Array, "b oh ow v"]:
    """Maps `[batch, height, width, channels]` to `[batch, ⌈height/stride⌉,
    ⌈width/stride⌉, value_features]`.

    Raises:
      ValueError: if x is no floating-point map in a batch, if `heads` does not
        divide a width, or if an attribute is out of range.
    """
    check_map(x)
    check_count("block_size", self.block_size)
    check_count("halo_size", self.halo_size, least=0)
    check_count("stride", self.stride)
    query, key, value, head_dim = projections(
      self,
      x,
      half_tables=False,
      scaled=True,
      strided=self.stride > 1,
    )
    dead = 2 * self.halo_size
    rows = dead + positions.num_offsets(self.block_size, self.halo_size)
    tables = [
      relative_table(self, f"relative_{axis}", (rows, head_dim), head_dim)[
        dead:
      ]
      * head_dim**0.5
      for axis in ("height", "width")
    ]
    stride, pool = self.stride, 1
    if self.block_size % stride:
      stride, pool = 1, stride
    options = dict(
      block_size=self.block_size,
      halo_size=self.halo_size,
      stride=stride,
      mask_padding=False,
      relative_stride=1,
    )
    sow_attention(self, query, key, *tables, **options)
    output = blocked_local_attention(
      query, key, value, *tables, implementation=self.implementation, **options
    )
    return average_pool(merge_heads(output), pool)


@dataclasses.dataclass(frozen=True)
class TimmHalo(Blocked):
  """The operator "timm_halo"."""

  half_tables = False

  qk_ratio: float = field(
    1.0,
    "Width of queries and keys over the block's width, rounded to a multiple of"
    " eight per head.",
    above=0,
    most=MOST_RATIO,
  )
  qk_head_dim: int | None = field(
    None,
    "Width of a head's queries, in place of qk_ratio.",
    least=1,
    most=MOST_WIDTH,
  )

  def widths(self, block: Site) -> tuple[int, int]:
    heads = self.heads[block.stage]
    if self.qk_head_dim:
      return self.qk_head_dim * heads, block.width
    if self.qk_ratio == 1:
      return block.width, block.width
    width = round_to_eight(block.width * self.qk_ratio)
    return width // heads * heads, block.width

  def dead_rows(self) -> int:
    return 2 * self.halo_size

  def layer(self, block: Site, norm: Norm, dtype: DTypeLike) -> nn.Module:
    return TimmHaloAttention(
      block_size=self.block_size,
      halo_size=self.halo_size,
      implementation=self.implementation,
      **self.shared(block, dtype),
    )

  def timm_entries(self, ours: str, theirs: str, shapes: Shapes) -> Entries:
    """Returns a convolution for queries, and one in which each head has its
    keys before its values."""
    key, value = (
      f"params/{ours}/attention/{x}/kernel" for x in ("key", "value")
    )
    _, heads, key_dim = shapes[key]

    def export(*kernels):
      rows = [layouts.to_rows(kernel) for kernel in kernels]
      return layouts.as_conv(np.concatenate(rows, axis=1))

    def read(array):
      rows = array[..., 0, 0].reshape(heads, -1, array.shape[1])
      return tuple(
        layouts.from_rows(part)
        for part in (rows[:, :key_dim], rows[:, key_dim:])
      )

    attention = f"{ours}/attention"
    return (
      layouts.joined_projections(
        attention, f"{theirs}.self_attn.q", ("query",), shapes
      )
      | {f"{theirs}.self_attn.kv.weight": Layout((key, value), export, read)}
      | position_entries(ours, theirs)
    )
