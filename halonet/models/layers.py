"""Layers that the families share."""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from halonet.models.spec import check_heads
from halonet.ops import positions
from halonet.ops.attention import (
  blocked_local_attention,
  blocked_local_attention_weights,
  global_attention,
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
    mask_window: lets a query see only keys at most `halo_size` pixels away, as
      SASA does (figure 6).
    timm: does as `HaloAttn` of timm does, whose trained weights ask for it (it
      does not mask either: set `mask_padding=False`). Each table is as wide as
      a head and the two terms are summed; it has rows for 2·window − 1 offsets,
      of which the first 2·halo_size meet no key. The relative term is that of
      the unscaled query. With a stride, query n is taken to stand at pixel n
      of its block, not at `stride·n`; and where the stride does not divide
      the block, an average pool after the attention takes its place.
    implementation: of the attention, as `blocked_local_attention` takes it.
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
  mask_window: bool = False
  timm: bool = False
  implementation: str = "auto"
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
    check_heads(self.heads, qk_features, value_features, not self.timm)
    head_dim = qk_features // self.heads
    scale = head_dim**-0.5
    query = project(x, self.heads, qk_features, self.dtype, "query", scale)
    key = project(x, self.heads, qk_features, self.dtype, "key")
    value = project(x, self.heads, value_features, self.dtype, "value")

    offsets = positions.num_offsets(self.block_size, self.halo_size)
    dead = 2 * self.halo_size if self.timm else 0
    shape = (dead + offsets, head_dim if self.timm else head_dim // 2)
    tables = [
      relative_table(self, f"relative_{axis}", shape, head_dim)[dead:]
      for axis in ("height", "width")
    ]
    stride, pool = self.stride, 1
    options = {}
    if self.timm:
      tables = [table * head_dim**0.5 for table in tables]
      if self.block_size % stride:
        stride, pool = 1, stride
      options["relative_stride"] = 1
    options |= dict(
      block_size=self.block_size,
      halo_size=self.halo_size,
      stride=stride,
      mask_padding=self.mask_padding,
      mask_window=self.mask_window,
    )
    if self.is_mutable_collection("attention") and not self.is_initializing():
      # Of all queries, where the strided ones sit differently in every block.
      seen = stride if self.block_size % stride == 0 else 1
      weights = blocked_local_attention_weights(
        query, key, *tables, **options | {"stride": seen}
      )
      self.sow("attention", "weights", weights)
    output = blocked_local_attention(
      query, key, value, *tables, implementation=self.implementation, **options
    )
    output = output.reshape(*output.shape[:3], value_features)
    return average_pool(output, pool)


class GlobalAttention(nn.Module):
  """Self-attention of the whole map, with relative positions, as in BoTNet.

  "Bottleneck Transformers for Visual Recognition", Srinivas et al., CVPR 2021,
  in timm's form: full-width tables, the relative term of the unscaled query,
  an average pool after it in place of a stride.

  Attributes:
    heads: number of attention heads.
    size: side of the square map that the tables are made for. For another
      map they are resized, linearly along the offsets.
    qk_features: width of all queries (and keys) together; the input's width
      if None. `heads` must divide it.
    value_features: width of the output; the input's width if None. `heads`
      must divide it.
    stride: of the average pool, which has the same size.
    dtype: of the computation; parameters are float32.
  """

  heads: int
  size: int
  qk_features: int | None = None
  value_features: int | None = None
  stride: int = 1
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
    check_heads(self.heads, qk_features, value_features, half_tables=False)
    head_dim = qk_features // self.heads
    query = project(x, self.heads, qk_features, self.dtype, "query")
    key = project(x, self.heads, qk_features, self.dtype, "key")
    value = project(x, self.heads, value_features, self.dtype, "value")
    tables = []
    for axis, length in zip(("height", "width"), x.shape[1:3], strict=True):
      shape = (2 * self.size - 1, head_dim)
      table = relative_table(self, f"relative_{axis}", shape, head_dim)
      if length != self.size:
        shape = (2 * length - 1, head_dim)
        table = jax.image.resize(table, shape, "linear", antialias=False)
      tables.append(table * head_dim**0.5)
    output = global_attention(query * head_dim**-0.5, key, value, *tables)
    output = output.reshape(*output.shape[:3], value_features)
    return average_pool(output, self.stride)


class SqueezeExcite(nn.Module):
  """Scales channels by a gate that the mean of the map decides.

  "Squeeze-and-Excitation Networks", Hu et al., CVPR 2018.

  Attributes:
    ratio: width of the hidden layer over the channels; rounded to a multiple
      of eight, at least eight.
    dtype: of the computation; parameters are float32.
  """

  cost_kind = "channel attention"

  ratio: float = 1 / 16
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    hidden = max(8, int(x.shape[-1] * self.ratio + 4) // 8 * 8)
    y = x.mean(axis=(1, 2), keepdims=True)
    y = nn.relu(nn.Dense(hidden, dtype=self.dtype, name="reduce")(y))
    y = nn.Dense(x.shape[-1], dtype=self.dtype, name="expand")(y)
    return x * nn.sigmoid(y)


class EfficientChannelAttention(nn.Module):
  """Scales channels by a gate that neighbouring channels' means decide.

  "ECA-Net", Wang et al., CVPR 2020; the kernel's width follows from the number
  of channels.

  Attributes:
    dtype: of the computation; parameters are float32.
  """

  cost_kind = "channel attention"

  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    size = int((math.log2(x.shape[-1]) + 1) / 2)
    size = max(size if size % 2 else size + 1, 3)
    y = x.mean(axis=(1, 2))[..., None]
    y = nn.Conv(1, (size,), use_bias=False, dtype=self.dtype, name="conv")(y)
    return x * nn.sigmoid(y)[:, None, None, :, 0]


class Projection(nn.Module):
  """A linear map of the channels to those of all heads, without bias.

  Parameters are those of `nn.DenseGeneral`. The product is with a matrix, and
  its result flat: arrays with an axis of heads would be laid out in another
  way in a TPU's memory, and copied before the attention's kernel.
  """

  heads: int
  features: int
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x):
    def init(key, shape):
      flat = nn.initializers.lecun_normal()(key, (shape[0], self.features))
      return flat.reshape(shape)

    heads = (self.heads, self.features // self.heads)
    kernel = self.param("kernel", init, (x.shape[-1], *heads))
    x, kernel = nn.dtypes.promote_dtype(x, kernel, dtype=self.dtype)
    return x @ kernel.reshape(x.shape[-1], self.features)


def project(x, heads, features, dtype, name, scale=None):
  """A `Projection` of that name: `[..., c]` → `[..., heads, head_dim]`."""
  y = Projection(heads, features, dtype, name=name)(x)
  if scale is not None:
    y = y * scale  # While it is flat.
  return y.reshape(*x.shape[:-1], heads, features // heads)


def relative_table(module, name, shape, head_dim):
  """A parameter of the module: an embedding for every offset, `shape`."""
  return module.param(name, nn.initializers.normal(head_dim**-0.5), shape)


def average_pool(x, size):
  """Means of squares; those that the border cuts, of what is inside."""
  if size == 1:
    return x
  return nn.avg_pool(
    x, (size, size), (size, size), "SAME", count_include_pad=False
  )
