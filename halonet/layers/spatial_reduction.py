"""Attention to a reduced map, the operator of PVT.

"Pyramid Vision Transformer: A Versatile Backbone for Dense Prediction without
Convolutions", Wang et al., ICCV 2021, arXiv:2102.12122.
"""

import dataclasses

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
)
from halonet.layers.convolution import KERNEL_INIT
from halonet.layers.layouts import Entries, Shapes
from halonet.layers.projections import check_heads, project
from halonet.ops.arguments import check_count
from halonet.ops.tokens import token_attention


class SpatialReductionAttention(nn.Module):
  """Self-attention whose keys and values are those of a smaller map.

  A convolution of ratio × ratio pixels, with as large a stride, and a norm
  reduce the map. Rows and columns beyond the last whole square are in no key,
  as in PVT; on maps smaller than a square there is one key of what is there.
  Queries, keys and values have biases; there is no output projection.

  Attributes:
    heads: number of attention heads.
    ratio: side of the squares that become a key; 1: every pixel is one.
    norm: makes a norm, given its `name`.
    qk_features: see `HaloAttention`.
    value_features: see `HaloAttention`.
    stride: size and stride of an average pool that follows.
    dtype: of the computation; parameters are float32.
  """

  heads: int
  ratio: int
  norm: Norm
  qk_features: int | None = None
  value_features: int | None = None
  stride: int = 1
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, x: Array, token: Float[Array, "b 1 c"] | None = None
  ) -> Float[Array, "b oh ow v"] | tuple[Array, Array]:
    """Maps `[batch, height, width, channels]` to `[batch, ⌈height/stride⌉,
    ⌈width/stride⌉, value_features]`.

    Args:
      x: the map.
      token: a class token, `[batch, 1, channels]`, that takes part as query,
        and unreduced as key.

    Returns:
      The map; with a token, also what becomes of that, `[batch, 1,
      value_features]`.

    Raises:
      ValueError: if x is no floating-point map in a batch, if `heads` does not
        divide a width, or if an attribute is out of range.
    """
    check_map(x)
    check_count("ratio", self.ratio)
    check_count("stride", self.stride)
    heads, dtype, channels = self.heads, self.dtype, x.shape[-1]
    qk_features = self.qk_features or channels
    value_features = self.value_features or channels
    check_heads(heads, qk_features, value_features, half_tables=False)
    shape = x.shape[:3]
    reduced = x
    if self.ratio > 1:
      reduced = nn.Conv(
        channels,
        (self.ratio, self.ratio),
        strides=self.ratio,
        padding=[(0, max(0, self.ratio - length)) for length in shape[1:]],
        dtype=dtype,
        kernel_init=KERNEL_INIT,
        name="reduction",
      )(x)
      reduced = self.norm(name="reduction_norm")(reduced)
    tokens, keys = (y.reshape(shape[0], -1, channels) for y in (x, reduced))
    if token is not None:
      tokens, keys = (
        jnp.concatenate([token, y], axis=1) for y in (tokens, keys)
      )
    scale = (qk_features // heads) ** -0.5
    output = token_attention(
      project(tokens, heads, qk_features, dtype, "query", scale, bias=True),
      project(keys, heads, qk_features, dtype, "key", bias=True),
      project(keys, heads, value_features, dtype, "value", bias=True),
    )
    output = output.reshape(*output.shape[:2], value_features)
    first = tokens.shape[1] - shape[1] * shape[2]
    y = output[:, first:].reshape(*shape, value_features)
    y = average_pool(y, self.stride)
    return y if token is None else (y, output[:, :first])


@dataclasses.dataclass(frozen=True)
class SpatialReduction(Attention):
  """The operator "spatial_reduction"."""

  half_tables = False
  takes_token = True
  per_stage = ("heads", "sr_ratios")

  sr_ratios: tuple[int, ...] = field(
    (8, 4, 2, 1),
    "Side of the squares that spatial-reduction attention makes a key of, for"
    " each stage.",
    least=1,
    most=MOST_SIDE,
  )

  def layer(self, block: Site, norm: Norm, dtype: DTypeLike) -> nn.Module:
    return SpatialReductionAttention(
      ratio=self.sr_ratios[block.stage],
      norm=norm,
      **self.shared(block, dtype),
    )

  def timm_entries(self, ours: str, theirs: str, shapes: Shapes) -> Entries:
    ours, theirs = f"{ours}/attention", f"{theirs}.attn"
    entries = layouts.joined_linears(ours, f"{theirs}.q", ("query",), shapes)
    entries |= layouts.joined_linears(
      ours, f"{theirs}.kv", ("key", "value"), shapes
    )
    reduction = f"{ours}/reduction"
    if f"params/{reduction}/kernel" in shapes:
      entries |= layouts.conv(reduction, f"{theirs}.sr", shapes)
      entries |= layouts.bias(reduction, f"{theirs}.sr")
      entries |= layouts.layer_norm(f"{reduction}_norm", f"{theirs}.norm")
    return entries
