"""The stem of SASA, which is made of attention.

"Stand-Alone Self-Attention in Vision Models", Ramachandran et al., NeurIPS
2019, arXiv:1906.05909, appendix A.1.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from halonet.fields import field
from halonet.layers.base import Activation, Norm, Stem
from halonet.layers.halo import BLOCKED_IMPLEMENTATIONS
from halonet.layers.projections import check_heads, project
from halonet.ops import blocks, positions
from halonet.ops.arguments import check_count
from halonet.ops.attention import blocked_local_attention


class AttentionStem(nn.Module):
  """Attention within blocks of 4×4 pixels, without positions (appendix A.1).

  Like a convolution's filters, the values may depend on where in the block a
  pixel lies.

  Attributes:
    features: width of queries, keys and values. `HEADS` must divide it.
    values: "mixed", spatially-aware: every place in the block has a matrix of
      its own, a mixture of `MIXTURES` learned ones; "linear", the same matrix
      everywhere; or "conv", a 3×3 convolution. The last two are our reading of
      table 7, which says no more than that they are stand-alone attention, and
      attention with a convolution for the values.
    mask_padding: leaves out of the softmax the places of a last block that
      lie beyond the border.
    implementation: form of the attention; see `blocked_local_attention`.
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


@dataclasses.dataclass(frozen=True)
class MixedStem(Stem):
  """The stem "attention", and the base class of its variants.

  Attributes:
    values: `AttentionStem.values`.
  """

  values: ClassVar[str] = "mixed"

  mask_padding: bool = field(
    True, "Leaves keys beyond the border out of the softmax."
  )
  attention_implementation: str = field(
    "auto", "Form of the attention.", choices=BLOCKED_IMPLEMENTATIONS
  )

  def check(self, width: int) -> None:
    if width % AttentionStem.HEADS:
      raise ValueError(
        f"the stem's width is {width}; the four heads of its attention ask for"
        " a multiple of 4"
      )

  def __call__(
    self, x: jax.Array, width: int, norm: Norm, activation: Activation
  ) -> jax.Array:
    name = self.attention_implementation
    name = "xla" if name == "direct" else name
    x = AttentionStem(
      width, self.values, self.mask_padding, name, x.dtype, name="stem"
    )(x)
    x = norm(name="stem_norm")(x)
    # The pool takes the blocks of the attention, completed at their ends.
    ends = [(0, -side % 4) for side in x.shape[1:3]]
    return nn.max_pool(x, (4, 4), strides=(4, 4), padding=ends)


class LinearStem(MixedStem):
  """The stem "attention_linear"."""

  values = "linear"


class ConvValuesStem(MixedStem):
  """The stem "attention_conv"."""

  values = "conv"
