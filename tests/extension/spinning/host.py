"""A host with layer norms: it has no batch statistics."""

import jax.numpy as jnp
from flax import linen as nn


class MixerNet(nn.Module):
  """Patches, pre-norm blocks of a depthwise convolution and an MLP, a head.

  Attributes:
    num_classes: numbers that it puts out.
    width: channels.
    depth: blocks.
    kernel_size: side of the depthwise convolutions.
  """

  num_classes: int = 1000
  width: int = 32
  depth: int = 2
  kernel_size: int = 3

  @nn.compact
  def __call__(self, images, train=False):
    x = nn.Conv(self.width, (4, 4), strides=4, name="patches")(images)
    for index in range(self.depth):
      y = nn.LayerNorm(name=f"norm{index}")(x)
      y = nn.Conv(
        self.width,
        (self.kernel_size,) * 2,
        feature_group_count=self.width,
        name=f"mix{index}",
      )(y)
      y = nn.Dense(self.width, name=f"mlp{index}")(nn.gelu(y))
      x = x + nn.Dropout(0.1, deterministic=not train)(y)
    # A collection of its own: how many training batches it has seen.
    seen = self.variable("counters", "batches", jnp.zeros, (), jnp.int32)
    if train and not self.is_initializing():
      seen.value += 1
    x = nn.LayerNorm(name="norm")(x).mean(axis=(1, 2))
    return nn.Dense(self.num_classes, name="classifier")(x)

  @property
  def window(self):
    return self.kernel_size
