"""Channel attention: gates that scale the channels of a map."""

import dataclasses
import math
from typing import ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from halonet.fields import MOST_RATIO, field
from halonet.layers import layouts
from halonet.layers.layouts import Entries, Shapes


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


@dataclasses.dataclass(frozen=True)
class Gate:
  """Base class of gates; by itself, none.

  Attributes:
    place: "conv", after the convolution of convolutional blocks; "operator",
      after the operator of every block; "end", at the end of every block; or
      "", nowhere.
  """

  place: ClassVar[str] = ""

  def layer(self, dtype: DTypeLike) -> nn.Module:
    """Makes the module."""
    raise NotImplementedError

  def timm_entries(self, ours: str, theirs: str, shapes: Shapes) -> Entries:
    """Returns the weights by timm's names; see `Operator.timm_entries`."""
    return {}


@dataclasses.dataclass(frozen=True)
class ConvSqueezeExcite(Gate):
  """The gate "se", as timm places it."""

  place = "conv"

  se_ratio: float = field(
    1 / 16,
    "Width of squeeze-and-excitation's hidden layer over that of its input.",
    above=0,
    most=MOST_RATIO,
  )

  def layer(self, dtype: DTypeLike) -> nn.Module:
    return SqueezeExcite(self.se_ratio, dtype, name="se")

  def timm_entries(self, ours: str, theirs: str, shapes: Shapes) -> Entries:
    entries = {}
    for inner, outer in (("reduce", "fc1"), ("expand", "fc2")):
      layer, other = f"{ours}/se/{inner}", f"{theirs}.attn.{outer}"
      entries |= layouts.conv(layer, other, shapes)
      entries |= layouts.same(f"params/{layer}/bias", f"{other}.bias")
    return entries


@dataclasses.dataclass(frozen=True)
class EverySqueezeExcite(ConvSqueezeExcite):
  """The gate "se_all", of HaloNet's table 3; timm has no place for it."""

  place = "operator"

  def timm_entries(self, ours: str, theirs: str, shapes: Shapes) -> Entries:
    return {}


@dataclasses.dataclass(frozen=True)
class LastSqueezeExcite(EverySqueezeExcite):
  """The gate "se_last", as in SE-ResNet; earlier versions' models have it."""

  place = "end"


@dataclasses.dataclass(frozen=True)
class Efficient(Gate):
  """The gate "eca", as timm places it."""

  place = "conv"

  def layer(self, dtype: DTypeLike) -> nn.Module:
    return EfficientChannelAttention(dtype, name="eca")

  def timm_entries(self, ours: str, theirs: str, shapes: Shapes) -> Entries:
    return layouts.transposed(
      f"{ours}/eca/conv", f"{theirs}.attn.conv", 2, 1, 0
    )


GATES = {
  "none": Gate,
  "se": ConvSqueezeExcite,
  "se_all": EverySqueezeExcite,
  "se_last": LastSqueezeExcite,
  "eca": Efficient,
}
