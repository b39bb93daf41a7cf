"""The lambda layer, an operator without attention weights, in timm's form.

"LambdaNetworks: Modeling Long-Range Interactions Without Attention", Bello,
ICLR 2021, arXiv:2102.08602.
"""

import dataclasses

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from halonet.fields import MOST_WIDTH, field
from halonet.layers import layouts
from halonet.layers.base import (
  Attention,
  Norm,
  Site,
  average_pool,
  check_map,
)
from halonet.layers.layouts import Entries, Layout, Shapes
from halonet.layers.projections import check_heads, project
from halonet.ops.arguments import check_count
from halonet.ops.lambdas import local_lambda


class LambdaLayer(nn.Module):
  """Local lambda layer with learned projections.

  Queries and values are batch-normalised (section 3.2). The intra-depth of the
  paper is 1, and an average pool takes the place of a stride, as in timm.

  Attributes:
    heads: number of heads, which share keys and values.
    window: side in pixels of the window of the position lambdas; odd.
    norm: makes a batch norm, given its `name`.
    qk_features: width of all queries together.
    value_features: width of the output. `heads` must divide both.
    stride: size and stride of the average pool.
    dtype: of the computation; parameters are float32.
  """

  heads: int
  window: int
  norm: Norm
  qk_features: int
  value_features: int
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
    check_count("window", self.window)
    check_count("stride", self.stride)
    heads = self.heads
    check_heads(heads, self.qk_features, self.value_features, half_tables=False)
    depth, value_dim = self.qk_features // heads, self.value_features // heads
    query = project(x, heads, self.qk_features, self.dtype, "query")
    query = query.reshape(*x.shape[:3], self.qk_features)
    query = self.norm(name="query_norm")(query)
    key = project(x, 1, depth, self.dtype, "key")[..., 0, :]
    value = project(x, 1, value_dim, self.dtype, "value")[..., 0, :]
    value = self.norm(name="value_norm")(value)
    kernel = self.param(
      "relative_kernel",
      nn.initializers.normal(depth**-0.5),
      (self.window, self.window, depth),
    )
    bias = self.param("relative_bias", nn.initializers.zeros, (depth,))
    query = query.reshape(*x.shape[:3], heads, depth)
    output = local_lambda(query, key, value, kernel, bias)
    output = output.reshape(*x.shape[:3], self.value_features)
    return average_pool(output, self.stride)


@dataclasses.dataclass(frozen=True)
class Lambda(Attention):
  """The operator "lambda"."""

  half_tables = False

  lambda_window: int = field(
    9,
    "Side of the window of the position lambdas in pixels; odd.",
    least=1,
    most=2047,  # The kernel has as many rows and columns.
    sides=2,  # From every pixel it then sees the whole image.
  )
  lambda_depth: int = field(
    16, "Width of a head's queries, and of the keys.", least=1, most=MOST_WIDTH
  )

  def window(self, block: Site) -> int:
    return self.lambda_window

  def widths(self, block: Site) -> tuple[int, int]:
    return self.lambda_depth * self.heads[block.stage], block.width

  def check(self, block: Site) -> None:
    super().check(block)
    if self.lambda_window % 2 == 0:
      raise ValueError(f"lambda_window is {self.lambda_window}; it must be odd")

  def layer(self, block: Site, norm: Norm, dtype: DTypeLike) -> nn.Module:
    return LambdaLayer(
      window=self.lambda_window, norm=norm, **self.shared(block, dtype)
    )

  def timm_entries(self, ours: str, theirs: str, shapes: Shapes) -> Entries:
    layer, other = f"{ours}/attention", f"{theirs}.self_attn"
    kernel = Layout(  # [y, x, depth] ↔ [depth, 1, y, x, 1]
      (f"params/{layer}/relative_kernel",),
      lambda x: x.transpose(2, 0, 1)[:, None, ..., None],
      lambda x: (x[:, 0, ..., 0].transpose(1, 2, 0),),
    )
    return (
      layouts.joined_projections(
        layer, f"{other}.qkv", ("query", "key", "value"), shapes
      )
      | {f"{other}.conv_lambda.weight": kernel}
      | layouts.same(
        f"params/{layer}/relative_bias", f"{other}.conv_lambda.bias"
      )
      | layouts.norm(f"{layer}/query_norm", f"{other}.norm_q")
      | layouts.norm(f"{layer}/value_norm", f"{other}.norm_v")
      | layouts.norm(f"{ours}/attention_norm", f"{theirs}.post_attn")
    )
