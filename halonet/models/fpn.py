"""A feature pyramid over the stages of a backbone.

"Feature Pyramid Networks for Object Detection", Lin et al., CVPR 2017, with the
further levels of RetinaNet ("Focal Loss for Dense Object Detection", Lin et
al., ICCV 2017) and the batch norms of Google's code. Level l has a stride of
2^l pixels.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Initializer
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from halonet.layers.base import Norm
from halonet.layers.per_pixel import PerPixelAttention
from halonet.ops.kernel_gradients import convolve

# What a detector's layers do in space.
SPATIAL = ("conv", "per_pixel")
# SASA, A.3.
HEADS = 8
WINDOW = 7

Levels = dict[int, Float[Array, "b h w c"]]

# TensorFlow's default, which Google's code leaves to a pyramid's convolutions.
FPN_INIT = nn.initializers.glorot_uniform()


def spatial_layer(
  operator: str,
  features: int,
  dtype: DTypeLike,
  *,
  stride: int = 1,
  implementation: str = "auto",
  conv_init: Initializer = FPN_INIT,
  value_init: Initializer | None = None,
  name: str,
) -> nn.Module:
  """Makes a layer of a detector that looks around each pixel.

  Args:
    operator: "conv", a 3×3 convolution with a bias, padded alike on all sides;
      or "per_pixel", SASA's attention with 8 heads in windows of 7×7, which
      shrinks a map by an average pool of its own (A.3).
    features: channels of input and output.
    dtype: of the computation.
    stride: pixels between neighbouring outputs.
    implementation: form of the attention.
    conv_init: draws the kernel of the convolution.
    value_init: draws the kernel of the attention's values.
    name: name of the module.
  """
  if operator == "conv":
    return nn.Conv(
      features,
      (3, 3),
      strides=stride,
      padding=1,
      dtype=dtype,
      kernel_init=conv_init,
      conv_general_dilated=convolve,
      name=name,
    )
  return PerPixelAttention(
    HEADS,
    WINDOW,
    stride=stride,
    implementation=implementation,
    dtype=dtype,
    value_init=value_init,
    name=name,
  )


class FeaturePyramid(nn.Module):
  """Gives every level the same width, and context from the coarser ones.

  Every given map passes a 1×1 convolution, and the sum so far of the next
  coarser level is added to it, each pixel four times. An output layer follows.
  Levels beyond the given ones are strided layers on the output of the level
  before, after a ReLU from the second on. A batch norm ends every level.

  Attributes:
    features: channels of every level.
    last: number of the last level, at least that of the coarsest given map.
    operator: what the output layers do in space; see `spatial_layer`.
    norm: makes a norm, given its `name`.
    implementation: form of the attention.
    dtype: of the computation; parameters are float32.
  """

  features: int
  last: int
  operator: str
  norm: Norm
  implementation: str = "auto"
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, maps: dict[int, jax.Array]) -> Levels:
    """Maps features by their levels to the levels up to `last`.

    Level l is half as high and wide as level l − 1, rounded up.
    """

    def output(level, x, stride):
      return spatial_layer(
        self.operator,
        self.features,
        self.dtype,
        stride=stride,
        implementation=self.implementation,
        name=f"output{level}",
      )(x)

    merged, coarser = {}, None
    for level in sorted(maps, reverse=True):
      x = nn.Dense(
        self.features,
        dtype=self.dtype,
        kernel_init=FPN_INIT,
        name=f"lateral{level}",
      )(maps[level])
      if coarser is not None:
        x += upsample(coarser, x.shape[1:3])
      merged[level] = coarser = x
    outputs = {level: output(level, merged[level], 1) for level in sorted(maps)}
    top = max(maps)
    for level in range(top + 1, self.last + 1):
      x = outputs[level - 1]
      x = nn.relu(x) if level > top + 1 else x
      outputs[level] = output(level, x, 2)
    return {
      level: self.norm(name=f"norm{level}")(x) for level, x in outputs.items()
    }


def upsample(
  x: Float[Array, "b h w c"], size: tuple[int, int]
) -> Float[Array, "b oh ow c"]:
  """Repeats rows and columns, and cuts off what `size` has no place for."""
  x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
  return x[:, : size[0], : size[1]]
