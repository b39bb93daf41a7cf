"""Layers of SASA: per-pixel local attention, and the stem made of attention.

"Stand-Alone Self-Attention in Vision Models", Ramachandran et al., NeurIPS
2019, arXiv:1906.05909.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from halonet.models.layers import average_pool, project, relative_table
from halonet.models.spec import check_heads, check_per_pixel
from halonet.ops import blocks, positions
from halonet.ops.arguments import check_count
from halonet.ops.attention import blocked_local_attention, per_pixel_attention


class PerPixelAttention(nn.Module):
  """Self-attention of every pixel to the window around it (section 3).

  Queries, keys and values are linear in the input, without biases; there is
  no output projection. Where the layer is to shrink the map, an average pool
  follows.

  The paper leaves these open, chosen as for `HaloAttention`: the queries are
  scaled by `head_dim ** -0.5`, relative term included; one pair of tables
  serves all heads; keys beyond the border are masked.

  Attributes:
    heads: number of attention heads.
    window_size: side of the window in pixels (k).
    qk_features: width of all queries (and keys) together; the input's width
      if None. `heads` must divide it, to an even width per head if positions
      are relative.
    value_features: width of the output; the input's width if None. `heads`
      must divide it.
    stride: of the average pool, which has the same size; 1: none.
    position: "relative", a row and a column table, each of half the width of a
      head; "absolute", sinusoids of a pixel's place, added to the input, and
      so to queries, keys and values (the paper does not say to what); or "none"
      (table 5).
    content: whether keys take part. If not, the logits come from the query and
      the relative positions alone (table 6).
    mask_padding: leaves keys beyond the border out of the softmax.
    implementation: of the attention, as `per_pixel_attention` takes it.
    dtype: of the computation; parameters are float32.
  """

  heads: int
  window_size: int
  qk_features: int | None = None
  value_features: int | None = None
  stride: int = 1
  position: str = "relative"
  content: bool = True
  mask_padding: bool = True
  implementation: str = "auto"
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b oh ow v"]:
    """Maps `[batch, height, width, channels]` to `[batch, ⌈height/stride⌉,
    ⌈width/stride⌉, value_features]`.

    Raises:
      ValueError: if `heads` does not divide a width, or a field is out of
        range.
    """
    check_per_pixel(self.window_size, self.position, self.content)
    check_count("stride", self.stride)
    qk_features, value_features = (
      x.shape[-1] if features is None else features
      for features in (self.qk_features, self.value_features)
    )
    check_count("qk_features", qk_features)
    check_count("value_features", value_features)
    halves = self.position == "relative"
    check_heads(self.heads, qk_features, value_features, halves)
    head_dim = qk_features // self.heads
    if self.position == "absolute":
      x = x + sinusoids(*x.shape[1:]).astype(x.dtype)
    scale = head_dim**-0.5
    query = project(x, self.heads, qk_features, self.dtype, "query", scale)
    key = None
    if self.content:
      key = project(x, self.heads, qk_features, self.dtype, "key")
    value = project(x, self.heads, value_features, self.dtype, "value")
    tables = {}
    if self.position == "relative":
      shape = self.window_size, head_dim // 2
      for name in ("relative_height", "relative_width"):
        tables[name] = relative_table(self, name, shape, head_dim)
    output = per_pixel_attention(
      query,
      key,
      value,
      **tables,
      window_size=self.window_size,
      mask_padding=self.mask_padding,
      implementation=self.implementation,
    )
    output = output.reshape(*output.shape[:3], value_features)
    return average_pool(output, self.stride)


def sinusoids(height: int, width: int, channels: int) -> Float[Array, "h w c"]:
  """Sines and cosines of every pixel's row beside those of its column.

  As in "Attention Is All You Need", section 3.5, for each axis: wavelengths
  from 2π on, in geometric progression towards 10,000 · 2π. What is left of the
  channels, where four does not divide them, is zero.
  """
  count = channels // 4
  rates = 10_000.0 ** (-np.arange(count) / max(count, 1))
  waves = []
  for length in (height, width):
    angles = np.arange(length)[:, None] * rates
    both = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    waves.append(jnp.asarray(both, jnp.float32))
  rows = jnp.broadcast_to(waves[0][:, None], (height, width, 2 * count))
  cols = jnp.broadcast_to(waves[1], (height, width, 2 * count))
  rest = jnp.zeros((height, width, channels - 4 * count))
  return jnp.concatenate([rows, cols, rest], axis=-1)


class AttentionStem(nn.Module):
  """Attention within blocks of 4×4 pixels, without positions (appendix A.1).

  A single pixel says little, and what a convolution's filters see in a patch
  depends on where in it a pixel lies; so do the values here.

  Attributes:
    features: width of queries, keys and values. `HEADS` must divide it.
    values: "mixed", spatially-aware: every place in the block has a matrix of
      its own, a mixture of `MIXTURES` learned ones; "linear", the same matrix
      everywhere; or "conv", a 3×3 convolution. The last two are our reading of
      table 7, which says no more than that they are stand-alone attention, and
      attention with a convolution for the values.
    mask_padding: leaves out of the softmax the places of a last block that
      lie beyond the border.
    implementation: of the attention, as `blocked_local_attention` takes it.
    dtype: of the computation; parameters are float32.
  """

  HEADS = 4
  BLOCK_SIZE = 4
  MIXTURES = 4  # The paper does not say how many.

  features: int
  values: str
  mask_padding: bool = True
  implementation: str = "auto"
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w v"]:
    """Maps `[batch, height, width, channels]` to as many features.

    Raises:
      ValueError: if `HEADS` does not divide `features`, or `values` is none.
    """
    heads, features, size = self.HEADS, self.features, self.BLOCK_SIZE
    check_heads(heads, features, features, half_tables=False)
    if self.values not in ("mixed", "linear", "conv"):
      raise ValueError(
        f"values is {self.values!r}; it must be one of mixed, linear, conv"
      )
    head_dim = features // heads
    scale = head_dim**-0.5
    query = project(x, heads, features, self.dtype, "query", scale)
    key = project(x, heads, features, self.dtype, "key")
    if self.values == "mixed":
      value = MixedValues(
        features, size, self.MIXTURES, self.dtype, name="value"
      )
      value = value(x)
    elif self.values == "conv":
      value = nn.Conv(
        features, (3, 3), use_bias=False, dtype=self.dtype, name="value"
      )(x)
    else:
      value = project(x, heads, features, self.dtype, "value")
    value = value.reshape(*x.shape[:3], heads, head_dim)
    no_positions = jnp.zeros((positions.num_offsets(size, 0), 1), self.dtype)
    output = blocked_local_attention(
      query,
      key,
      value,
      no_positions,
      no_positions,
      block_size=size,
      halo_size=0,
      mask_padding=self.mask_padding,
      implementation=self.implementation,
    )
    return output.reshape(*x.shape[:3], features)


class MixedValues(nn.Module):
  """Spatially-aware values: a matrix for every place in a block.

  `W(a, b) = Σ_m softmax_m((row_a + col_b) · ν_m) W_m` for the place in row a
  and column b, with the same mixture for all heads.

  Attributes:
    features: width of the values.
    block_size: side of a block in pixels.
    mixtures: learned matrices.
    dtype: of the computation; parameters are float32.
  """

  EMBEDDING = 16  # Width of row_a, col_b and ν_m; the paper does not say.

  features: int
  block_size: int
  mixtures: int
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w v"]:
    """Maps `[batch, height, width, channels]` to as many features.

    Raises:
      ValueError: if a field is out of range.
    """
    check_count("block_size", self.block_size)
    check_count("mixtures", self.mixtures)
    size, width = self.block_size, self.EMBEDDING
    normal = nn.initializers.normal(1.0)
    rows = self.param("rows", normal, (size, width))
    cols = self.param("cols", normal, (size, width))
    towards = self.param(
      "mixtures", nn.initializers.normal(width**-0.5), (self.mixtures, width)
    )
    kernels = self.param(
      "kernel",  # Whose weights decay.
      nn.initializers.lecun_normal(in_axis=1, out_axis=2, batch_axis=0),
      (self.mixtures, x.shape[-1], self.features),
    )
    places = rows[:, None] + cols
    shares = jax.nn.softmax(jnp.einsum("abe,me->abm", places, towards))
    # Mixed before the product: with few input channels this is far less work.
    kernel = jnp.einsum("abm,mcv->abcv", shares, kernels).astype(self.dtype)
    height, width = x.shape[1:3]
    x = blocks.split_blocks(
      blocks.pad_to_blocks(x.astype(self.dtype), size), size
    )
    values = jnp.einsum("nyxabc,abcv->nyxabv", x, kernel)
    return blocks.merge_blocks(values)[:, :height, :width]
