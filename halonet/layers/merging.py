"""Patch merging: what halves the map between the stages of a transformer."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from halonet.layers import layouts
from halonet.layers.base import Norm
from halonet.layers.convolution import embed_patches
from halonet.layers.layouts import Entries, Shapes
from halonet.layers.mlp import linear


@dataclasses.dataclass(frozen=True)
class Merging:
  """Base class of mergings.

  Attributes:
    timm: names of the stages and of the classifier in timm's model with such a
      merging; None if it has no such model.
  """

  timm: ClassVar[tuple[str, str] | None] = None

  def __call__(
    self, x: Float[Array, "b h w c"], features: int, norm: Norm, name: str
  ) -> Float[Array, "b oh ow features"]:
    """Maps `[batch, height, width, channels]` to `[batch, ⌈height/2⌉,
    ⌈width/2⌉, features]`, in the dtype of `x`.

    Called in a compact method, whose module owns the layers: `name` and
    `{name}_norm`.
    """
    raise NotImplementedError

  def timm_entries(self, ours: str, theirs: str, shapes: Shapes) -> Entries:
    """Returns the weights by timm's names; see `Operator.timm_entries`."""
    raise ValueError(f"timm has no such model: nothing like {type(self)}")


class LinearMerging(Merging):
  """The merging "linear" of Swin: a norm and a linear layer, without bias.

  They act on the channels of pixels (0, 0), (1, 0), (0, 1) and (1, 1) of every
  2×2 square, in this order of row and column. The last squares are completed
  with zeros.
  """

  timm = "layers", "head.fc"

  def __call__(
    self, x: Float[Array, "b h w c"], features: int, norm: Norm, name: str
  ) -> Float[Array, "b oh ow features"]:
    batch, height, width, channels = x.shape
    x = jnp.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
    rows, cols = x.shape[1] // 2, x.shape[2] // 2
    x = x.reshape(batch, rows, 2, cols, 2, channels)
    x = x.transpose(0, 1, 3, 4, 2, 5).reshape(batch, rows, cols, 4 * channels)
    x = norm(name=f"{name}_norm")(x)
    return linear(features, x.dtype, name, use_bias=False)(x)

  def timm_entries(self, ours: str, theirs: str, shapes: Shapes) -> Entries:
    return layouts.layer_norm(
      f"{ours}_norm", f"{theirs}.norm"
    ) | layouts.transposed(ours, f"{theirs}.reduction", 1, 0)


class ConvMerging(Merging):
  """The merging "conv2" of PVT: a 2×2 convolution of stride 2, and a norm."""

  size = 2

  def __call__(
    self, x: Float[Array, "b h w c"], features: int, norm: Norm, name: str
  ) -> Float[Array, "b oh ow features"]:
    return norm(name=f"{name}_norm")(
      embed_patches(x, features, self.size, 2, name)
    )


class OverlappingMerging(ConvMerging):
  """The merging "conv3" of PVTv2: patches overlap by a pixel."""

  timm = "stages", "head"
  size = 3

  def timm_entries(self, ours: str, theirs: str, shapes: Shapes) -> Entries:
    return (
      layouts.conv(ours, f"{theirs}.proj", shapes)
      | layouts.bias(ours, f"{theirs}.proj")
      | layouts.layer_norm(f"{ours}_norm", f"{theirs}.norm")
    )


MERGINGS: dict[str, type[Merging]] = {
  "linear": LinearMerging,
  "conv2": ConvMerging,
  "conv3": OverlappingMerging,
}
