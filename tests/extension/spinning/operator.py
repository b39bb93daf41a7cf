"""An operator: depthwise convolutions in the place of attention."""

import dataclasses

from flax import linen as nn

from halonet.fields import field
from halonet.layers.base import Operator


@dataclasses.dataclass(frozen=True)
class Depthwise(Operator):
  """The operator "depthwise"."""

  name = "depthwise"

  kernel_size: int = field(3, "Side of the depthwise convolutions.", least=1)

  def layer(self, block, norm, dtype):
    del norm
    return nn.Conv(
      block.width,
      (self.kernel_size,) * 2,
      strides=block.stride,
      feature_group_count=block.width,
      use_bias=False,
      dtype=dtype,
      name=self.name,
    )

  def window(self, block):
    return self.kernel_size
