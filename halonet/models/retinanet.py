"""RetinaNet, over any backbone, and SASA's by name.

"Focal Loss for Dense Object Detection", Lin et al., ICCV 2017,
arXiv:1708.02002, as Google's code has it; with attention in place of
convolutions in "Stand-Alone Self-Attention in Vision Models", Ramachandran et
al., NeurIPS 2019, arXiv:1906.05909, table 2 and A.3.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from halonet.fields import Field, fields_of
from halonet.layers.base import Norm
from halonet.layers.normalization import BatchNorm
from halonet.models.backbone import KEPT, Backbone
from halonet.models.fpn import (
  WINDOW,
  FeaturePyramid,
  Levels,
  spatial_layer,
)
from halonet.models.inner import Inner
from halonet.models.parts import Feature
from halonet.models.retinanet_spec import RetinaNetSpec
from halonet.ops import anchors as anchor_ops
from halonet.ops import suppression
from halonet.ops.kernel_gradients import convolve
from halonet.ops.suppression import Detections

# Share of objects among the anchors that an untrained model sees (section 4.1).
PRIOR = 0.01
# Deviations of the first weights: the towers' is the paper's and SASA's W_V's,
# that of the last layers is of Google's code.
TOWER_INIT = nn.initializers.normal(0.01)
OUTPUT_INIT = nn.initializers.normal(1e-5)


class RetinaNet(nn.Module):
  """A backbone, a feature pyramid, and two heads that all levels share.

  Each head is a tower of layers, with batch norms of each level's own, and a
  last layer. One head predicts the class of the object at each anchor, the
  other its box relative to the anchor.

  Attributes:
    spec: what it is made of.
    backbone: the network below, without a classifier.
    head_modules: modules that another number of classes draws anew.
  """

  spec: RetinaNetSpec
  backbone: Backbone
  spec_class: ClassVar[type[RetinaNetSpec]] = RetinaNetSpec
  head_modules: ClassVar[tuple[str, ...]] = ("class_output",)

  @classmethod
  def own_fields(cls, chosen: Mapping[str, Any]) -> dict[str, Field]:
    """Returns the fields that are the detector's, beside its backbone's."""
    fields = fields_of(RetinaNetSpec)
    operators = {
      fields[name].check(name, chosen.get(name, fields[name].default))
      for name in ("fpn_operator", "head_operator")
    }
    if "per_pixel" not in operators:
      del fields["attention_implementation"]
    return fields

  @classmethod
  def over(cls, backbone: Backbone, values: Mapping[str, Any]) -> "RetinaNet":
    """Makes a detector over a backbone, of checked values for `own_fields`.

    Raises:
      ValueError: if they do not go together.
    """
    spec = RetinaNetSpec(**values)
    spec.check()
    found = _stages(backbone, spec.levels[0])
    if spec.levels[0] not in found:
      strides = [info.stride for info in backbone.spec.feature_info]
      raise ValueError(
        f"levels is {spec.levels}, whose first has a stride of"
        f" {2 ** spec.levels[0]}; {spec.backbone} has stages with strides of"
        f" {', '.join(map(str, strides))}"
      )
    if spec.levels[1] < max(found):
      raise ValueError(
        f"levels is {spec.levels}; the last must be at least {max(found)}, that"
        f" of the last stage of {spec.backbone}"
      )
    return cls(spec, backbone)

  def __call__(
    self, images: Array, train: bool = False
  ) -> dict[str, Float[Array, "b anchors outputs"]]:
    """Looks for objects at all anchors.

    Args:
      images: `[batch, height, width, channels]` of any size, normalised.
      train: uses the statistics of the batch in batch norms, updates the
        collection `batch_stats` if it is mutable, and drops paths, for which it
        needs `rngs={"dropout": key}` where the backbone has any.

    Returns:
      `class_logits`, `[batch, anchors, num_classes]`, and `box_deltas`,
      `[batch, anchors, 4]`, as `halonet.ops.boxes.encode` defines them; float32
      both, in the order of `anchors`.

    Raises:
      ValueError: if the images are of another shape, or of whole numbers.
    """
    return self._forward(images, train)[1]

  def features(
    self, images: Array, train: bool = False
  ) -> dict[str, Float[Array, "b fh fw fc"]]:
    """Returns the levels of the feature pyramid, "p3" and so on.

    A map has the input's height and width over the level's stride, rounded up.
    """
    return self._forward(images, train)[0]

  @nn.compact
  def _forward(self, images, train):
    spec = self.spec
    dtype = jnp.dtype(spec.dtype)
    norm = functools.partial(
      BatchNorm,
      use_running_average=not train,
      group=spec.batch_norm_group,
      momentum=spec.batch_norm_momentum,
      dtype=dtype,
    )
    pyramid, head, output, layer = FeaturePyramid, Head, Output, HeadLayer
    if spec.remat != "none":
      pyramid, output = (
        nn.remat(each, policy=KEPT) for each in (pyramid, output)
      )
    if spec.remat == "stage":
      head = nn.remat(Head, policy=KEPT)
    elif spec.remat == "block":
      layer = nn.remat(HeadLayer, policy=KEPT)
    stages = self.backbone.features(images, train)
    levels = pyramid(
      spec.fpn_width,
      spec.levels[1],
      spec.fpn_operator,
      norm,
      spec.attention_implementation,
      dtype,
      name="fpn",
    )(
      {
        level: stages[name]
        for level, name in _stages(self.backbone, spec.levels[0]).items()
      }
    )
    prior = -math.log((1 - PRIOR) / PRIOR)
    outputs = {}
    for name, kind, width, bias in (
      ("class_logits", "class", spec.num_classes, prior),
      ("box_deltas", "box", 4, 0.0),
    ):
      y = head(spec, layer, norm, name=f"{kind}_head")(levels)
      y = output(spec, width, bias, name=f"{kind}_output")(y)
      outputs[name] = y
    return {f"p{level}": x for level, x in levels.items()}, outputs

  @property
  def inner(self) -> Inner:
    """The backbone, whose weights can begin a training."""
    spec = self.backbone.spec
    fields = {each: getattr(spec, each) for each in fields_of(type(spec))}
    return Inner("backbone", self.spec.backbone, fields | dict(spec.options))

  @property
  def feature_info(self) -> tuple[Feature, ...]:
    """What `method="features"` returns."""
    first, last = self.spec.levels
    return tuple(
      Feature(f"p{level}", self.spec.fpn_width, 2**level)
      for level in range(first, last + 1)
    )

  @property
  def window(self) -> int | None:
    """Side in pixels of what a query sees in the widest local attention."""
    own = WINDOW if self.spec.attends else None
    windows = [each for each in (self.backbone.window, own) if each is not None]
    return max(windows, default=None)

  @nn.nowrap
  def anchors(self, height: int, width: int) -> Float[Array, "n 4"]:
    """Returns the anchors of an image of that size, in the outputs' order.

    Levels come one after the other, and within each rows, columns and the
    anchors around a pixel; see `halonet.ops.anchors.anchors`.
    """
    return anchor_ops.flatten(self._anchors(height, width))

  @nn.nowrap
  def detect(
    self,
    outputs: Mapping[str, jax.Array],
    size: tuple[int, int],
    image_sizes: Float[Array, "b 2"] | None = None,
    **options: Any,
  ) -> Detections:
    """Turns outputs into boxes, scores and classes, best first.

    Args:
      outputs: what the model returned.
      size: height and width of the model's input.
      image_sizes: heights and widths without padding; by default `size`.
      **options: of `halonet.ops.suppression.detect`.
    """
    levels = self._anchors(*size)
    logits = outputs["class_logits"]
    if image_sizes is None:
      image_sizes = jnp.tile(jnp.asarray(size, logits.dtype), (len(logits), 1))
    return suppression.detect(
      logits,
      outputs["box_deltas"],
      anchor_ops.flatten(levels),
      [math.prod(each.shape[:3]) for each in levels.values()],
      image_sizes,
      **options,
    )

  @nn.nowrap
  def _anchors(self, height, width):
    spec = self.spec
    first, last = spec.levels
    return anchor_ops.anchors(
      height,
      width,
      range(first, last + 1),
      spec.anchor_scales,
      spec.anchor_ratios,
      spec.anchor_size,
    )

  @nn.nowrap
  def adapt(
    self, path: str, array: np.ndarray, shape: tuple[int, ...], source: Any
  ) -> np.ndarray | None:
    """Fits a variable of another detector to this one; see `Backbone.adapt`."""
    collection, module, *rest = path.split("/")
    if module != "backbone" or not isinstance(source, type(self)):
      return array if array.shape == shape else None
    path = "/".join([collection, *rest])
    return self.backbone.adapt(path, array, shape, source.backbone)


def _stages(backbone, first):
  """Returns the names of a backbone's stages by level, from `first` on."""
  return {
    level: info.name
    for info in backbone.spec.feature_info
    if (level := info.stride.bit_length() - 1) >= first
  }


class Head(nn.Module):
  """A tower of layers, which all levels share.

  Attributes:
    network: description of the detector.
    layer: class of the layers.
    norm: makes a norm, given its `name`.
  """

  network: RetinaNetSpec
  layer: type[nn.Module]
  norm: Norm

  @nn.compact
  def __call__(self, levels: dict[int, jax.Array]) -> Levels:
    for number in range(1, self.network.head_depth + 1):
      levels = self.layer(self.network, self.norm, name=f"layer{number}")(
        levels
      )
    return levels


class HeadLayer(nn.Module):
  """A convolution or an attention, then a batch norm of each level, a ReLU.

  Attributes:
    network: description of the detector.
    norm: makes a norm, given its `name`.
  """

  network: RetinaNetSpec
  norm: Norm

  @nn.compact
  def __call__(self, levels: dict[int, jax.Array]) -> Levels:
    layer = _layer(self.network, jnp.dtype(self.network.dtype))
    return {
      level: nn.relu(self.norm(name=f"norm{level}")(layer(x)))
      for level, x in levels.items()
    }


class Output(nn.Module):
  """The last layer of a head.

  It is a 3×3 convolution; or an attention and a 1×1 convolution, with nothing
  between them. The convolution is computed in float32 or wider.

  Attributes:
    network: description of the detector.
    width: numbers for each anchor.
    bias: initial bias of the outputs.
  """

  network: RetinaNetSpec
  width: int
  bias: float

  @nn.compact
  def __call__(
    self, levels: dict[int, jax.Array]
  ) -> Float[Array, "b anchors width"]:
    network = self.network
    dtype: DTypeLike = jnp.promote_types(network.dtype, jnp.float32)
    attends = network.head_operator == "per_pixel"
    side = 1 if attends else 3
    attention = _layer(network, jnp.dtype(network.dtype)) if attends else None
    conv = nn.Conv(
      network.places * self.width,
      (side, side),
      padding=side // 2,
      dtype=dtype,
      kernel_init=OUTPUT_INIT,
      conv_general_dilated=convolve,
      bias_init=nn.initializers.constant(self.bias),
      name="conv",
    )
    found = []
    for x in levels.values():
      y = conv(attention(x) if attends else x)
      found.append(y.reshape(y.shape[0], -1, self.width))
    return jnp.concatenate(found, axis=1)


def _layer(network, dtype):
  """Makes a layer of a head, in a compact method."""
  conv = network.head_operator == "conv"
  return spatial_layer(
    network.head_operator,
    network.fpn_width,
    dtype,
    implementation=network.attention_implementation,
    conv_init=TOWER_INIT,
    value_init=TOWER_INIT,
    name="conv" if conv else "attention",
  )


_ATTENTION = dict(head_operator="per_pixel")

# SASA, table 2. Name → (image size, fields).
RETINANETS = {
  f"retinanet_{name}": (640, fields)
  for name, fields in (
    ("resnet50", dict(backbone="resnet50")),
    ("sasa_resnet50", dict(backbone="sasa_resnet50")),
    ("sasa_resnet50_full", dict(backbone="sasa_resnet50_full")),
    ("sasa_resnet50_attention", dict(backbone="sasa_resnet50") | _ATTENTION),
    (
      "sasa_resnet50_full_attention",
      dict(backbone="sasa_resnet50_full") | _ATTENTION,
    ),
  )
}
