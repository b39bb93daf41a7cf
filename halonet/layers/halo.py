"""Blocked local self-attention, the operator of HaloNet.

"Scaling Local Self-Attention for Parameter Efficient Visual Backbones",
Vaswani et al., CVPR 2021, arXiv:2103.12731.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from halonet.fields import MOST_RATIO, MOST_SIDE, field
from halonet.layers.base import (
  Attention,
  Norm,
  Site,
  average_pool,
  check_map,
)
from halonet.layers.projections import (
  merge_heads,
  projections,
  relative_table,
)
from halonet.layers.sinusoids import sinusoids
from halonet.ops import dispatch
from halonet.ops.arguments import check_count
from halonet.ops.attention import (
  blocked_local_attention,
  blocked_local_attention_weights,
)
from halonet.ops.positions import num_offsets

# "direct" is for attention per pixel.
BLOCKED_IMPLEMENTATIONS = tuple(
  name for name in dispatch.IMPLEMENTATIONS if name != "direct"
)
POSITIONS = ("relative", "absolute", "none")
DOWNSAMPLINGS = ("attention", "pool")


class HaloAttention(nn.Module):
  """Blocked local self-attention with learned projections.

  Queries, keys and values are linear in the input, without biases; there is
  no output projection (HaloNet, section 3).

  The paper leaves two things open, chosen here: the queries are scaled by
  `head_dim ** -0.5`, relative term included; keys beyond the border are masked.

  Attributes:
    heads: number of attention heads.
    block_size: side of a block in pixels.
    halo_size: pixels that a neighbourhood reaches beyond its block.
    qk_features: width of all queries (and keys) together; the input's width
      if None. `heads` must divide it, to an even width per head where there
      are tables.
    value_features: width of the output; the input's width if None. `heads`
      must divide it.
    stride: pixels between neighbouring outputs.
    downsampling: "attention", in which only the queries at every `stride`-th
      row and column are used (section 3); or "pool", an average pool after the
      attention, as in SASA.
    position: "relative", a row and a column table, each of half the width of a
      head and shared by all heads; "absolute", sinusoids of a pixel's row and
      column, added to the input, and so to queries, keys and values; or "none".
    mask_padding: leaves keys beyond the border out of the softmax.
    mask_window: lets a query see only keys at most `halo_size` pixels away, as
      SASA does (figure 5).
    implementation: form of the attention; see `blocked_local_attention`.
    dtype: of the computation; parameters are float32.

  With `mutable=["attention"]`, `apply` also returns what `sow_attention` says.
  """

  heads: int
  block_size: int
  halo_size: int
  qk_features: int | None = None
  value_features: int | None = None
  stride: int = 1
  downsampling: str = "attention"
  position: str = "relative"
  mask_padding: bool = True
  mask_window: bool = False
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
    check_position(self.position)
    check_count("block_size", self.block_size)
    check_count("halo_size", self.halo_size, least=0)
    check_count("stride", self.stride)
    if self.downsampling not in DOWNSAMPLINGS:
      raise ValueError(
        f"downsampling is {self.downsampling!r}; it must be one of"
        f" {DOWNSAMPLINGS}"
      )
    pool = self.stride if self.downsampling == "pool" else 1
    stride = self.stride // pool
    query, key, value, tables = positioned(
      self,
      x,
      offsets=num_offsets(self.block_size, self.halo_size),
      strided=stride > 1,
    )
    options = dict(
      block_size=self.block_size,
      halo_size=self.halo_size,
      stride=stride,
      mask_padding=self.mask_padding,
      mask_window=self.mask_window,
    )
    sow_attention(self, query, key, *tables, **options)
    output = blocked_local_attention(
      query, key, value, *tables, implementation=self.implementation, **options
    )
    return average_pool(merge_heads(output), pool)


def positioned(
  module: Any,
  x: Float[Array, "b h w c"],
  *,
  offsets: int,
  keys: bool = True,
  strided: bool = False,
) -> tuple[jax.Array, jax.Array | None, jax.Array, list[jax.Array]]:
  """Projects a map, with positions, in a layer's compact method.

  Args:
    module: has `position`, and what `projections` asks for.
    x: `[batch, height, width, channels]`.
    offsets: number of rows of a relative table.
    keys: whether there are keys.
    strided: whether only some queries are used.

  Returns:
    Queries, keys and values, `[batch, height, width, heads, …]`; and the
    tables, `[offsets, head_dim / 2]` of rows and columns, or none of them.
  """
  relative = module.position == "relative"
  if module.position == "absolute":
    x = x + sinusoids(*x.shape[1:]).astype(x.dtype)
  query, key, value, head_dim = projections(
    module,
    x,
    half_tables=relative,
    scaled=True,
    keys=keys,
    strided=strided,
  )
  names = ("relative_height", "relative_width") if relative else ()
  shape = offsets, head_dim // 2
  tables = [relative_table(module, name, shape, head_dim) for name in names]
  return query, key, value, tables


def check_position(position: str) -> None:
  """Raises ValueError unless there are such positions."""
  if position not in POSITIONS:
    raise ValueError(f"position is {position!r}; it must be one of {POSITIONS}")


def sow_attention(
  module: nn.Module,
  query: Float[Array, "b h w heads d"],
  *keys: Float[Array, "..."],
  **options: Any,
) -> None:
  """Stores where a layer looks, if the collection "attention" is mutable.

  It stores `weights`, the softmax weights as `blocked_local_attention_weights`
  returns them, of all queries where the strided ones sit differently in every
  block; and `geometry`, int32 `[5]`: height and width of the map, block_size,
  halo_size, and the pixels between the queries of the weights.

  Args:
    module: the layer.
    query: queries.
    *keys: keys, and tables if there are any.
    **options: of `blocked_local_attention_weights`.
  """
  if module.is_mutable_collection("attention") and not module.is_initializing():
    block, halo = options["block_size"], options["halo_size"]
    stride = options["stride"] if block % options["stride"] == 0 else 1
    options |= {"stride": stride}
    weights = blocked_local_attention_weights(query, *keys, **options)
    module.sow("attention", "weights", weights)
    geometry = jnp.array([*query.shape[1:3], block, halo, stride], jnp.int32)
    module.sow("attention", "geometry", geometry)


@dataclasses.dataclass(frozen=True)
class Blocked(Attention):
  """Fields of all attention in blocks."""

  block_size: int = field(
    8,
    "Side of an attention block in pixels.",
    least=1,
    most=MOST_SIDE,
    sides=2,  # Most of a larger block would be padding.
  )
  halo_size: int = field(
    3,
    "Width of the halo in pixels.",
    least=0,
    most=MOST_SIDE,
    sides=1,  # From every block it then sees the whole image.
  )
  attention_implementation: str = field(
    "auto",
    "Form of the attention. It changes no parameter; docs/attention.md"
    " explains the forms.",
    choices=BLOCKED_IMPLEMENTATIONS,
  )

  def window(self, block: Site) -> int:
    return self.block_size + 2 * self.halo_size

  @property
  def implementation(self) -> str:
    """Form for blocks; "direct" is only for attention per pixel beside it."""
    name = self.attention_implementation
    return "xla" if name == "direct" else name


@dataclasses.dataclass(frozen=True)
class Valued(Attention):
  """Fields of attention whose queries and values have widths of their own."""

  rqk: float = field(
    1.0,
    "Width of the queries and keys over that of the block (r_qk).",
    above=0,
    most=MOST_RATIO,
  )
  rv: float = field(
    1.0,
    "Width of the values over that of the block (r_v).",
    above=0,
    most=MOST_RATIO,
  )
  position: str = field(
    "relative",
    "Positions in the attention: relative, by a row and a column table;"
    " absolute, sinusoids added to its input; or none.",
    choices=POSITIONS,
  )
  mask_padding: bool = field(
    True,
    "Leaves keys beyond the border out of the softmax. The papers do not say;"
    " masking is our choice.",
  )

  @property
  def half_tables(self) -> bool:
    return self.position == "relative"

  def widths(self, block: Site) -> tuple[int, int]:
    for name, ratio in (("rqk", self.rqk), ("rv", self.rv)):
      if block.width * ratio % 1:
        raise ValueError(
          f"{name} is {ratio}; {name} times {block.width}, the width of"
          f" {block.name}, must be a whole number"
        )
    return round(block.width * self.rqk), round(block.width * self.rv)


@dataclasses.dataclass(frozen=True)
class Halo(Valued, Blocked):
  """The operator "halo"."""

  mask_window: bool = field(
    False,
    "Lets a query see only keys at most halo_size pixels away, as in HaloNet's"
    " comparison with SASA (figure 5).",
  )
  downsampling: str = field(
    "attention",
    "How a block halves its map: attention, in which every other query is left"
    " out; or pool, an average pool after the attention, as in SASA.",
    choices=DOWNSAMPLINGS,
  )

  def window(self, block: Site) -> int:
    if self.mask_window:
      return 2 * self.halo_size + 1
    return super().window(block)

  def layer(self, block: Site, norm: Norm, dtype: DTypeLike) -> nn.Module:
    return HaloAttention(
      block_size=self.block_size,
      halo_size=self.halo_size,
      position=self.position,
      mask_padding=self.mask_padding,
      mask_window=self.mask_window,
      downsampling=self.downsampling,
      implementation=self.implementation,
      **self.shared(block, dtype),
    )
