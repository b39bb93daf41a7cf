"""Layers that the families share."""

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from halonet.ops import relative
from halonet.ops.attention import (
  blocked_local_attention,
  blocked_local_attention_weights,
)


class HaloAttention(nn.Module):
  """Blocked local self-attention with learned projections.

  Queries, keys and values are linear in the input, without biases; there is
  no output projection (HaloNet, section 3). A row and a column table, each of
  half the width of a head and shared by all heads, give the relative
  positions.

  The paper leaves three things open, chosen here: the queries are scaled by
  `head_dim ** -0.5`, relative term included; one pair of tables serves all
  heads; keys beyond the border are masked.

  Attributes:
    heads: number of attention heads.
    block_size: side of a block in pixels.
    halo_size: pixels that a neighbourhood reaches beyond its block.
    qk_features: width of all queries (and keys) together; the input's width
      if None. `heads` must divide it, to an even width per head.
    value_features: width of the output; the input's width if None. `heads`
      must divide it.
    stride: keeps the queries at every `stride`-th row and column.
    mask_padding: leaves keys beyond the border out of the softmax.
    dtype: of the computation; parameters are float32.

  With `mutable=["attention"]`, `apply` also returns the softmax weights, as
  `halonet.ops.attention.blocked_local_attention_weights` documents them.
  """

  heads: int
  block_size: int
  halo_size: int
  qk_features: int | None = None
  value_features: int | None = None
  stride: int = 1
  mask_padding: bool = True
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b oh ow v"]:
    """Maps `[batch, height, width, channels]` to `[batch, ⌈height/stride⌉,
    ⌈width/stride⌉, value_features]`.

    Raises:
      ValueError: if `heads` does not divide a width.
    """
    qk_features = self.qk_features or x.shape[-1]
    value_features = self.value_features or x.shape[-1]
    check_heads(self.heads, qk_features, value_features)
    head_dim = qk_features // self.heads

    def project(features, name):
      # DenseGeneral initialises as one matrix of the full width.
      return nn.DenseGeneral(
        (self.heads, features // self.heads),
        use_bias=False,
        dtype=self.dtype,
        name=name,
      )(x)

    offsets = relative.num_offsets(self.block_size, self.halo_size)
    tables = [
      self.param(
        name,
        nn.initializers.normal(head_dim**-0.5),
        (offsets, head_dim // 2),
      )
      for name in ("relative_height", "relative_width")
    ]
    query = project(qk_features, "query") * head_dim**-0.5
    key = project(qk_features, "key")
    value = project(value_features, "value")
    options = dict(
      block_size=self.block_size,
      halo_size=self.halo_size,
      stride=self.stride,
      mask_padding=self.mask_padding,
    )
    if self.is_mutable_collection("attention") and not self.is_initializing():
      weights = blocked_local_attention_weights(query, key, *tables, **options)
      self.sow("attention", "weights", weights)
    output = blocked_local_attention(query, key, value, *tables, **options)
    return output.reshape(*output.shape[:3], value_features)


def check_heads(heads: int, qk_features: int, value_features: int) -> None:
  """Raises ValueError unless both widths split evenly over the heads."""
  if heads < 1:
    raise ValueError(f"heads is {heads}; it must be at least 1")
  if qk_features % (2 * heads):
    raise ValueError(
      f"heads is {heads}, which does not divide the query width {qk_features}"
      " to an even width per head (half for rows, half for columns)"
    )
  if value_features % heads:
    raise ValueError(
      f"heads is {heads}, which does not divide the value width"
      f" {value_features}"
    )
