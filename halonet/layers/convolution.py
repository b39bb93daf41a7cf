"""Convolutions, the operator of ResNets."""

import dataclasses

from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from halonet.fields import MOST_WIDTH, field
from halonet.layers import layouts
from halonet.layers.base import Norm, Operator, Site
from halonet.layers.layouts import Entries, Shapes
from halonet.ops.kernel_gradients import convolve, multiply

KERNEL_INIT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def conv(
  features: int,
  size: int,
  stride: int,
  dtype: DTypeLike,
  name: str,
  groups: int = 1,
) -> nn.Conv:
  """Makes a square convolution without bias, padded alike on all sides."""
  return nn.Conv(
    features,
    (size, size),
    strides=stride,
    padding=size // 2,
    feature_group_count=groups,
    use_bias=False,
    dtype=dtype,
    kernel_init=KERNEL_INIT,
    conv_general_dilated=convolve,
    name=name,
  )


def embed_patches(
  x: Float[Array, "b h w c"],
  features: int,
  size: int,
  stride: int,
  name: str,
) -> Float[Array, "b oh ow features"]:
  """Applies a square convolution with bias, for one output per patch.

  Called in a compact method, whose module owns the convolution. Patches that
  overlap (`size > stride`) are padded alike on all sides. The others begin at
  the first pixel, and the last ones are completed with zeros.

  Args:
    x: the map.
    features: channels to put out.
    size: side of a patch.
    stride: pixels between neighbouring patches.
    name: name of the convolution.

  Returns:
    `[batch, ⌈height/stride⌉, ⌈width/stride⌉, features]` in the dtype of `x`.
  """
  return nn.Conv(
    features,
    (size, size),
    strides=stride,
    padding=[
      (size // 2,) * 2 if size > stride else (0, -length % size)
      for length in x.shape[1:3]
    ],
    dtype=x.dtype,
    kernel_init=KERNEL_INIT,
    name=name,
  )(x)


def dense(features: int, dtype: DTypeLike, name: str) -> nn.Dense:
  """Makes a 1×1 convolution: over NHWC it is a product with a matrix."""
  return nn.Dense(
    features,
    use_bias=False,
    dtype=dtype,
    kernel_init=KERNEL_INIT,
    dot_general=multiply,
    name=name,
  )


@dataclasses.dataclass(frozen=True)
class Convolution(Operator):
  """The operator "conv", a 3×3 convolution."""

  name = "conv"

  group_width: int = field(
    0,
    "Channels per group of the 3×3 convolutions; 0: one group.",
    least=0,
    most=MOST_WIDTH,
  )

  def check(self, block: Site) -> None:
    if self.group_width and block.width % self.group_width:
      raise ValueError(
        f"group_width is {self.group_width}, which does not divide"
        f" {block.width}, the width of {block.name}"
      )

  def layer(self, block: Site, norm: Norm, dtype: DTypeLike) -> nn.Module:
    groups = block.width // (self.group_width or block.width)
    return conv(block.width, 3, block.stride, dtype, self.name, groups)

  def timm_entries(self, ours: str, theirs: str, shapes: Shapes) -> Entries:
    return layouts.conv_norm(f"{ours}/conv", f"{theirs}.conv2_kxk", shapes)
