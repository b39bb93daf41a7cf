"""The two-layer perceptron of transformers."""

import functools

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from halonet.layers import layouts
from halonet.layers.layouts import Entries, Shapes
from halonet.layers.projections import LINEAR_INIT

gelu = functools.partial(nn.gelu, approximate=False)


class Mlp(nn.Module):
  """Widens every pixel, applies GELU, and narrows it again.

  Attributes:
    hidden: channels in between.
    conv: whether a depthwise 3×3 convolution, with bias and zero padding,
      precedes the GELU, as in PVTv2.
    dtype: of the computation; parameters are float32.
  """

  hidden: int
  conv: bool = False
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "b *pixels c"]) -> Float[Array, "..."]:
    """Maps `[batch, …, channels]` to the same shape."""
    features = x.shape[-1]
    x = linear(self.hidden, self.dtype, "expand")(x)
    if self.conv:
      x = nn.Conv(
        self.hidden,
        (3, 3),
        padding=1,
        feature_group_count=self.hidden,
        dtype=self.dtype,
        kernel_init=nn.initializers.variance_scaling(2.0, "fan_in", "normal"),
        name="conv",
      )(x)
    return linear(features, self.dtype, "reduce")(gelu(x))


def linear(
  features: int, dtype: DTypeLike, name: str, use_bias: bool = True
) -> nn.Dense:
  """Makes a linear layer of a transformer."""
  return nn.Dense(
    features, use_bias, dtype=dtype, kernel_init=LINEAR_INIT, name=name
  )


def timm_entries(ours: str, theirs: str, shapes: Shapes) -> Entries:
  """Returns the weights by timm's names; see `Operator.timm_entries`."""
  entries = layouts.linear(f"{ours}/expand", f"{theirs}.fc1")
  if f"params/{ours}/conv/kernel" in shapes:
    entries |= layouts.conv(f"{ours}/conv", f"{theirs}.dwconv", shapes)
    entries |= layouts.bias(f"{ours}/conv", f"{theirs}.dwconv")
  return entries | layouts.linear(f"{ours}/reduce", f"{theirs}.fc2")
