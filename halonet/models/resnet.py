"""ResNets of bottlenecks, whose spatial operators mix freely.

HaloNet, SASA, the ResNets and timm's models are rows of fields; see
`halonet.models.resnet_spec`.
"""

import functools
from collections.abc import Callable
from typing import ClassVar

import jax.numpy as jnp
from flax import linen as nn

from halonet.layers import layouts
from halonet.layers.convolution import dense
from halonet.layers.layouts import Entries, Shapes
from halonet.layers.normalization import BatchNorm
from halonet.models.backbone import KEPT, Backbone, check_images, classify, pool
from halonet.models.resnet_spec import BottleneckSpec, ResNetSpec

_ACTIVATIONS = {"relu": nn.relu, "silu": nn.silu}


class ResNet(Backbone):
  """A stem, stages of bottleneck blocks, pooling and a linear classifier.

  Attributes:
    spec: what it is made of.
  """

  spec: ResNetSpec
  spec_class: ClassVar[type[ResNetSpec]] = ResNetSpec

  @nn.compact
  def _forward(self, images, train):
    spec = self.spec
    check_images(images, spec.dtype)
    dtype = jnp.dtype(spec.dtype)
    activation = _ACTIVATIONS[spec.activation]
    norm = functools.partial(
      BatchNorm,
      use_running_average=not train,
      group=spec.batch_norm_group,
      momentum=spec.batch_norm_momentum,
      dtype=dtype,
    )
    x = images.astype(dtype)
    x = spec.stem_part(x, spec.stem_features, norm, activation)
    block_class = Block
    if spec.remat == "block":
      block_class = nn.remat(Block, policy=KEPT)

    def run_stage(module, x, stage):
      for block in stage:
        x = block_class(spec, block, norm, train, name=block.name)(x)
      return x

    if spec.remat == "stage":
      run_stage = nn.remat(run_stage, policy=KEPT, static_argnums=2)
    features = {}
    for number, stage in enumerate(spec.stages, start=1):
      x = features[f"stage{number}"] = run_stage(self, x, stage)
    if spec.df and spec.num_classes:
      x = dense(spec.df, dtype, "final")(x)
      x = activation(norm(name="final_norm")(x))
    init = nn.initializers.normal(0.01)
    return features, classify(spec, pool(x), train, init)

  @nn.nowrap
  def timm_entries(self, shapes: Shapes) -> Entries:
    """Relates all variables to timm's names.

    Blocks of timm's have the names of its `byobnet.py`. Plain ones have those
    of its `resnet.py`, which are torchvision's.

    Args:
      shapes: shapes of the model's variables by path.

    Raises:
      ValueError: if timm has no such model.
    """
    spec = self.spec
    if not spec.bottleneck.timm:
      return self._plain_entries(shapes)
    entries = spec.stem_part.timm_entries(shapes)
    for block in spec.blocks:
      ours = block.name
      index = int(ours.rpartition("block")[2]) - 1
      theirs = f"stages.{block.stage}.{index}"
      layers = [("reduce", "conv1_1x1"), ("expand", "conv3_1x1")]
      if block.shortcut == "project":
        layers.append(("shortcut", "shortcut"))
      for layer, other in layers:
        entries |= layouts.conv_norm(
          f"{ours}/{layer}", f"{theirs}.{other}", shapes
        )
      operator = spec.operator(block)
      entries |= operator.timm_entries(ours, theirs, shapes)
      if operator.name == "conv":
        entries |= spec.gate.timm_entries(ours, theirs, shapes)
    if not spec.num_classes:
      return entries
    if spec.df:
      entries |= layouts.conv_norm("final", "final_conv", shapes)
    entries |= layouts.transposed("classifier", "head.fc", 1, 0)
    return entries | layouts.same("params/classifier/bias", "head.fc.bias")

  @nn.nowrap
  def _plain_entries(self, shapes):
    spec = self.spec
    plain = dict(
      operators={"conv"}, stem="conv7", stem_pool=True, activation="relu"
    )
    found = dict(
      operators={block.operator for block in spec.blocks},
      stem=spec.stem,
      stem_pool=spec.stem_part.stride == 4,
      activation=spec.activation,
    )
    for field, value in found.items():
      if value != plain[field]:
        raise ValueError(
          f"timm has no such model: {field} is {value}, and a plain ResNet's is"
          f" {plain[field]}"
        )
    layers = [("stem", "", "1")]
    for block in spec.blocks:
      ours = block.name
      theirs = f"layer{block.stage + 1}.{block.index}."
      layers += [
        (f"{ours}/{name}", theirs, number)
        for name, number in (("reduce", "1"), ("conv", "2"), ("expand", "3"))
      ]
    entries = {}
    for ours, theirs, number in layers:
      entries |= layouts.conv(ours, f"{theirs}conv{number}", shapes)
      entries |= layouts.norm(f"{ours}_norm", f"{theirs}bn{number}")
    for block in spec.blocks:
      if block.shortcut == "project":
        ours = f"{block.name}/shortcut"
        theirs = f"layer{block.stage + 1}.{block.index}.downsample"
        entries |= layouts.conv(ours, f"{theirs}.0", shapes)
        entries |= layouts.norm(f"{ours}_norm", f"{theirs}.1")
    if spec.num_classes:
      entries |= layouts.linear("classifier", "fc")
    return entries


class Block(nn.Module):
  """`1×1 → operator → 1×1`, each with batch norm, around a shortcut."""

  network: ResNetSpec
  spec: BottleneckSpec
  norm: Callable[..., nn.Module]
  train: bool

  @nn.compact
  def __call__(self, x):
    network, spec, norm = self.network, self.spec, self.norm
    dtype = jnp.dtype(network.dtype)
    activation = _ACTIVATIONS[network.activation]
    y = dense(spec.width, dtype, "reduce")(x)
    y = activation(norm(name="reduce_norm")(y))

    operator = network.operator(spec)
    y = operator.layer(spec, norm, dtype)(y)
    y = activation(norm(name=f"{operator.name}_norm")(y))
    gate = network.gate
    if gate.place == "operator" or gate.place == operator.name == "conv":
      y = gate.layer(dtype)(y)

    y = dense(spec.features, dtype, "expand")(y)
    zero = network.zero_init_residual and spec.shortcut != "none"
    scale_init = nn.initializers.zeros if zero else nn.initializers.ones
    y = norm(scale_init=scale_init, name="expand_norm")(y)
    if gate.place == "end":
      y = gate.layer(dtype)(y)
    # One draw per example: the whole block, or nothing of it.
    y = nn.Dropout(
      spec.drop_path, broadcast_dims=(1, 2, 3), deterministic=not self.train
    )(y)

    if spec.shortcut == "project":
      x = x[:, :: spec.stride, :: spec.stride]
      x = dense(spec.features, dtype, "shortcut")(x)
      x = norm(name="shortcut_norm")(x)
    if spec.shortcut != "none":
      y = x + y
    return activation(y) if network.bottleneck.activates else y
