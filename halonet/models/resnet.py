"""ResNets of bottlenecks, whose spatial operators mix freely.

HaloNet, SASA, the ResNets and timm's models are rows of fields; see
`halonet.models.resnet_spec`.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from halonet.fields import Field
from halonet.layers import layouts
from halonet.layers.base import check_map
from halonet.layers.classifier import classifier
from halonet.layers.convolution import dense
from halonet.layers.layouts import Entries, Shapes
from halonet.layers.normalization import STATISTICS, BatchNorm
from halonet.models import resnet_spec
from halonet.models.resnet_spec import BlockSpec, ResNetSpec

_ACTIVATIONS = {"relu": nn.relu, "silu": nn.silu}


class ResNet(nn.Module):
  """A stem, stages of bottleneck blocks, pooling and a linear classifier.

  Attributes:
    spec: what it is made of.
  """

  spec: ResNetSpec

  @staticmethod
  def fields(chosen: Mapping[str, Any]) -> dict[str, Field]:
    """Returns the fields of a model; see `resnet_spec.spec_fields`."""
    return resnet_spec.spec_fields(chosen)

  @classmethod
  def make(cls, **values: Any) -> "ResNet":
    """Makes a model of checked values for all `fields`."""
    return cls(resnet_spec.make_spec(values))

  @staticmethod
  def owners(name: str) -> list[str]:
    """Names the parts that would have a field."""
    return resnet_spec.owners(name)

  def __call__(
    self, images: Array, train: bool = False
  ) -> Float[Array, "b num_classes"]:
    """Classifies images.

    Args:
      images: `[batch, height, width, channels]` of any size, normalised.
      train: uses the statistics of the batch in batch norms, updates the
        collection `batch_stats` if it is mutable, and drops paths and features,
        for which it needs `rngs={"dropout": key}` where the model has any.

    Returns:
      float32 logits, `[batch, num_classes]`.

    Raises:
      ValueError: if the images are of another shape, or of whole numbers.
    """
    return self._forward(images, train)[1]

  def features(
    self, images: Array, train: bool = False
  ) -> dict[str, Float[Array, "b fh fw fc"]]:
    """Returns the output of every stage, by the names in
    `spec.feature_info`.

    A map has the input's height and width over the stage's stride, rounded up.
    """
    return self._forward(images, train)[0]

  @nn.compact
  def _forward(self, images, train):
    spec = self.spec
    check_map(images, "images")
    dtype = jnp.dtype(spec.dtype)
    if dtype == jnp.float64 and not jax.config.jax_enable_x64:
      raise ValueError("dtype is 'float64', which asks for jax_enable_x64")
    activation = _ACTIVATIONS[spec.activation]
    norm = functools.partial(
      BatchNorm,
      use_running_average=not train,
      group=spec.batch_norm_group,
      momentum=spec.batch_norm_momentum,
      dtype=dtype,
    )
    width = spec.stem_width or spec.base_width
    x = spec.stem_part(images.astype(dtype), width, norm, activation)
    policy = jax.checkpoint_policies.save_only_these_names(STATISTICS)
    block_class = Block
    if spec.remat == "block":
      block_class = nn.remat(Block, policy=policy)

    def run_stage(module, x, stage):
      for block in stage:
        x = block_class(spec, block, norm, train, name=block.name)(x)
      return x

    if spec.remat == "stage":
      run_stage = nn.remat(run_stage, policy=policy, static_argnums=2)
    features = {}
    for number, stage in enumerate(spec.stages, start=1):
      x = features[f"stage{number}"] = run_stage(self, x, stage)
    if spec.df:
      x = dense(spec.df, dtype, "final")(x)
      x = activation(norm(name="final_norm")(x))
    x = x.astype(jnp.promote_types(dtype, jnp.float32)).mean(axis=(1, 2))
    x = nn.Dropout(spec.dropout, deterministic=not train)(x)
    init = nn.initializers.normal(0.01)
    if spec.zero_init_classifier:
      init = nn.initializers.zeros
    return features, classifier(spec.num_classes, init)(x)

  @property
  def window(self) -> int | None:
    """Side in pixels of what a query sees in the widest local attention."""
    windows = [self.spec.operator(b).window() for b in self.spec.blocks]
    return max((each for each in windows if each is not None), default=None)

  @nn.nowrap
  def adapt(
    self, path: str, array: np.ndarray, shape: tuple[int, ...], source: Any
  ) -> np.ndarray | None:
    """Fits a variable of another model to this one.

    Args:
      path: such as `params/stage1_block1/attention/relative_height`.
      array: its value in the other model.
      shape: shape that it must have here.
      source: the other model.

    Returns:
      An array of that shape, with resized relative tables; `array` itself
      where nothing has to change; None if there is no way.
    """
    if not isinstance(source, ResNet):
      return array if array.shape == shape else None
    _, block, *rest = path.split("/")
    mine, theirs = (
      {b.name: model.spec.operator(b) for b in model.spec.blocks}.get(block)
      for model in (self, source)
    )
    if mine is None or type(mine) is not type(theirs) or rest[0] != mine.name:
      return array if array.shape == shape else None
    return mine.adapt("/".join(rest[1:]), array, shape, theirs)

  @nn.nowrap
  def timm_entries(self, shapes: Shapes) -> Entries:
    """Relates all variables to timm's names.

    Args:
      shapes: shapes of the model's variables by path.

    Raises:
      ValueError: if timm has no such model.
    """
    spec = self.spec
    if not spec.bottleneck.timm:
      raise ValueError(
        f"timm has no such model: block_type is {spec.block_type!r}"
      )
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
    if spec.df:
      entries |= layouts.conv_norm("final", "final_conv", shapes)
    entries |= layouts.transposed("classifier", "head.fc", 1, 0)
    return entries | layouts.same("params/classifier/bias", "head.fc.bias")


class Block(nn.Module):
  """`1×1 → operator → 1×1`, each with batch norm, around a shortcut."""

  network: ResNetSpec
  spec: BlockSpec
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
