"""Stems of convolutions, and all stems by name."""

import dataclasses

import jax
from flax import linen as nn

from halonet.fields import field
from halonet.layers import layouts
from halonet.layers.attention_stem import (
  ConvValuesStem,
  LinearStem,
  MixedStem,
)
from halonet.layers.base import Activation, Norm, Stem
from halonet.layers.convolution import conv, embed_patches
from halonet.layers.layouts import Entries, Shapes


@dataclasses.dataclass(frozen=True)
class ConvStem(Stem):
  """One convolution of stride 2, and a max pool; "conv7" is 7×7."""

  size = 7

  stem_pool: bool = field(
    True,
    "Whether a 3×3 max pool of stride 2 ends the stem. Without it, the last"
    " convolution of the stem tiered has a stride of 2.",
  )

  @property
  def stride(self) -> int:
    return 4 if self.stem_pool else 2

  @property
  def stage_stride(self) -> int:
    return 4 // self.stride

  def convs(self, width: int) -> tuple[tuple[int, int, int, str], ...]:
    """Returns features, size, stride and name of each convolution."""
    return ((width, self.size, 2, "stem"),)

  def __call__(
    self, x: jax.Array, width: int, norm: Norm, activation: Activation
  ) -> jax.Array:
    for features, size, stride, name in self.convs(width):
      x = conv(features, size, stride, x.dtype, name)(x)
      x = activation(norm(name=f"{name}_norm")(x))
    if self.stem_pool:
      x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
    return x

  def timm_entries(self, shapes: Shapes) -> Entries:
    theirs = "stem.conv1" if self.stem_pool else "stem"
    return layouts.conv_norm("stem", theirs, shapes)


class SmallConvStem(ConvStem):
  """The stem "conv3"."""

  size = 3


class TieredStem(ConvStem):
  """The stem "tiered": three 3×3 convolutions."""

  stride = 4

  def check(self, width: int) -> None:
    if width % 8:
      raise ValueError(
        f"the stem's width is {width}; the tiered one asks for a multiple of 8"
      )

  def convs(self, width: int) -> tuple[tuple[int, int, int, str], ...]:
    return (
      (3 * width // 8, 3, 2, "stem1"),
      (width // 2, 3, 1, "stem2"),
      (width, 3, 1 if self.stem_pool else 2, "stem3"),
    )

  def timm_entries(self, shapes: Shapes) -> Entries:
    entries = {}
    for number in (1, 2, 3):
      entries |= layouts.conv_norm(
        f"stem{number}", f"stem.conv{number}", shapes
      )
    return entries


@dataclasses.dataclass(frozen=True)
class CifarStem(Stem):
  """The stem "cifar": one 3×3 convolution.

  With a stride of 1 it is that of He et al. 2016, section 4.2, for images of 32
  pixels.
  """

  stem_stride: int = field(1, "Stride of the stem cifar.", least=1, most=2)

  @property
  def stride(self) -> int:
    return self.stem_stride

  def __call__(
    self, x: jax.Array, width: int, norm: Norm, activation: Activation
  ) -> jax.Array:
    x = conv(width, 3, self.stride, x.dtype, "stem")(x)
    return activation(norm(name="stem_norm")(x))


@dataclasses.dataclass(frozen=True)
class PatchStem(Stem):
  """The stem "patch4": a linear projection of 4×4 patches."""

  def __call__(
    self, x: jax.Array, width: int, norm: Norm, activation: Activation
  ) -> jax.Array:
    x = nn.Conv(
      width,
      (4, 4),
      strides=4,
      use_bias=False,
      dtype=x.dtype,
      kernel_init=nn.initializers.lecun_normal(),
      name="stem",
    )(x)
    return norm(name="stem_norm")(x)


@dataclasses.dataclass(frozen=True)
class PatchEmbedding(Stem):
  """The stem "embed4" of Swin and PVT: 4×4 patches, with a bias."""

  size = 4

  def __call__(
    self, x: jax.Array, width: int, norm: Norm, activation: Activation
  ) -> jax.Array:
    x = embed_patches(x, width, self.size, self.stride, "stem")
    return norm(name="stem_norm")(x)

  def timm_entries(self, shapes: Shapes) -> Entries:
    return (
      layouts.conv("stem", "patch_embed.proj", shapes)
      | layouts.bias("stem", "patch_embed.proj")
      | layouts.layer_norm("stem_norm", "patch_embed.norm")
    )


class OverlappingEmbedding(PatchEmbedding):
  """The stem "embed7" of PVTv2: 7×7 patches, four pixels apart."""

  size = 7


STEMS: dict[str, type[Stem]] = {
  "conv7": ConvStem,
  "conv3": SmallConvStem,
  "tiered": TieredStem,
  "cifar": CifarStem,
  "patch4": PatchStem,
  "embed4": PatchEmbedding,
  "embed7": OverlappingEmbedding,
  "attention": MixedStem,
  "attention_linear": LinearStem,
  "attention_conv": ConvValuesStem,
}
