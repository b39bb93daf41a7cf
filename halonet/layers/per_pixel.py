"""Local self-attention of every pixel, the operator of SASA.

"Stand-Alone Self-Attention in Vision Models", Ramachandran et al., NeurIPS
2019, arXiv:1906.05909.
"""

import dataclasses

import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Initializer
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from halonet.fields import MOST_SIDE, field
from halonet.layers.base import (
  Norm,
  Site,
  average_pool,
  check_map,
)
from halonet.layers.halo import (
  BLOCKED_IMPLEMENTATIONS,
  Valued,
  check_position,
  positioned,
)
from halonet.layers.projections import merge_heads
from halonet.ops.arguments import check_count
from halonet.ops.attention import per_pixel_attention


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
    qk_features: see `HaloAttention`.
    value_features: see `HaloAttention`.
    stride: of the average pool, which has the same size; 1: none.
    position: see `HaloAttention`; table 5. SASA does not say what absolute
      positions are added to.
    content: whether keys take part. If not, the logits come from the query and
      the relative positions alone (table 6).
    mask_padding: leaves keys beyond the border out of the softmax.
    implementation: form of the attention; see `per_pixel_attention`.
    dtype: of the computation; parameters are float32.
    value_init: draws the kernel of the values; None: LeCun's rule.
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
  value_init: Initializer | None = None

  @nn.compact
  def __call__(self, x: Array) -> Float[Array, "b oh ow v"]:
    """Maps `[batch, height, width, channels]` to `[batch, ⌈height/stride⌉,
    ⌈width/stride⌉, value_features]`.

    Raises:
      ValueError: if x is no floating-point map in a batch, if `heads` does not
        divide a width, or if an attribute is out of range.
    """
    check_map(x)
    check_per_pixel(self.window_size, self.position, self.content)
    check_count("stride", self.stride)
    query, key, value, tables = positioned(
      self, x, offsets=self.window_size, keys=self.content
    )
    output = per_pixel_attention(
      query,
      key,
      value,
      *tables,
      window_size=self.window_size,
      mask_padding=self.mask_padding,
      implementation=self.implementation,
    )
    return average_pool(merge_heads(output), self.stride)


def check_per_pixel(window_size: int, position: str, content: bool) -> None:
  """Raises ValueError unless per-pixel attention can be so."""
  check_count("window_size", window_size)
  check_position(position)
  if not content and position != "relative":
    raise ValueError(
      f"content is False and position {position!r}: nothing is left to attend"
      " by; without content it must be 'relative'"
    )


@dataclasses.dataclass(frozen=True)
class PerPixel(Valued):
  """The operator "per_pixel"."""

  window_size: int = field(
    7,
    "Side of the window of per-pixel attention in pixels (k).",
    least=1,
    most=MOST_SIDE,
    sides=2,  # From every pixel it then sees the whole image.
  )
  content: bool = field(
    True,
    "Whether the keys of per-pixel attention take part in its logits, beside"
    " the relative positions.",
  )
  attention_implementation: str = field(
    "auto",
    "Form of the attention; attention in blocks takes direct for xla. It"
    " changes no parameter; docs/attention.md explains the forms.",
    choices=(*BLOCKED_IMPLEMENTATIONS, "direct"),
  )

  def window(self, block: Site) -> int:
    return self.window_size

  def check(self, block: Site) -> None:
    check_per_pixel(self.window_size, self.position, self.content)
    super().check(block)

  def layer(self, block: Site, norm: Norm, dtype: DTypeLike) -> nn.Module:
    return PerPixelAttention(
      window_size=self.window_size,
      position=self.position,
      content=self.content,
      mask_padding=self.mask_padding,
      implementation=self.attention_implementation,
      **self.shared(block, dtype),
    )
