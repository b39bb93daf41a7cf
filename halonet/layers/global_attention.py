"""Attention of the whole map, the operator of BoTNet in timm's form.

"Bottleneck Transformers for Visual Recognition", Srinivas et al., CVPR 2021.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from halonet.fields import MOST_SIDE, field
from halonet.layers import layouts
from halonet.layers.base import (
  Attention,
  Norm,
  Site,
  average_pool,
  check_map,
  position_entries,
)
from halonet.layers.layouts import Entries, Shapes
from halonet.layers.projections import (
  merge_heads,
  projections,
  relative_table,
)
from halonet.ops.arguments import check_count
from halonet.ops.attention import global_attention


class GlobalAttention(nn.Module):
  """Self-attention of the whole map, with relative positions.

  It follows timm: tables as wide as a head, the relative term of the unscaled
  query, an average pool in place of a stride.

  Attributes:
    heads: number of attention heads.
    size: side of the square map that the tables are made for. For another
      map they are resized, linearly along the offsets.
    qk_features: see `HaloAttention`.
    value_features: see `HaloAttention`.
    stride: size and stride of the average pool.
    dtype: of the computation; parameters are float32.
  """

  heads: int
  size: int
  qk_features: int | None = None
  value_features: int | None = None
  stride: int = 1
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
    check_count("size", self.size)
    check_count("stride", self.stride)
    query, key, value, head_dim = projections(
      self, x, half_tables=False, scaled=False
    )
    tables = []
    for axis, length in zip(("height", "width"), x.shape[1:3], strict=True):
      shape = (2 * self.size - 1, head_dim)
      table = relative_table(self, f"relative_{axis}", shape, head_dim)
      if length != self.size:
        shape = (2 * length - 1, head_dim)
        table = jax.image.resize(table, shape, "linear", antialias=False)
      tables.append(table * head_dim**0.5)
    output = global_attention(query * head_dim**-0.5, key, value, *tables)
    return average_pool(merge_heads(output), self.stride)


@dataclasses.dataclass(frozen=True)
class Global(Attention):
  """The operator "global"."""

  half_tables = False

  global_size: int = field(
    8,
    "Side of the maps that the tables of global attention are made for; for"
    " other maps they are resized.",
    least=1,
    most=MOST_SIDE,
  )

  def layer(self, block: Site, norm: Norm, dtype: DTypeLike) -> nn.Module:
    return GlobalAttention(size=self.global_size, **self.shared(block, dtype))

  def timm_entries(self, ours: str, theirs: str, shapes: Shapes) -> Entries:
    return layouts.joined_projections(
      f"{ours}/attention",
      f"{theirs}.self_attn.qkv",
      ("query", "key", "value"),
      shapes,
    ) | position_entries(ours, theirs)
