"""The network that a `NetworkSpec` describes, as Flax modules."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from halonet.models import layers, per_pixel
from halonet.models.normalization import STATISTICS, BatchNorm
from halonet.models.spec import BlockSpec, NetworkSpec

_ACTIVATIONS = {"relu": nn.relu, "silu": nn.silu}
_KERNEL_INIT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class Network(nn.Module):
  """A stem, stages of bottleneck blocks, pooling and a linear classifier.

  Attributes:
    spec: what it is made of.
  """

  spec: NetworkSpec

  def __call__(
    self, images: Float[Array, "b h w c"], train: bool = False
  ) -> Float[Array, "b num_classes"]:
    """Classifies images.

    Args:
      images: `[batch, height, width, channels]` of any size, normalised.
      train: uses the statistics of the batch in batch norms, updates the
        collection `batch_stats` if it is mutable, and drops paths and features,
        for which it needs `rngs={"dropout": key}` where the model has any.

    Returns:
      float32 logits, `[batch, num_classes]`.
    """
    return self._forward(images, train)[1]

  def features(
    self, images: Float[Array, "b h w c"], train: bool = False
  ) -> dict[str, Float[Array, "b fh fw fc"]]:
    """Returns the output of every stage, by the names in
    `spec.feature_info`.

    A map has the input's height and width over the stage's stride, rounded up.
    """
    return self._forward(images, train)[0]

  @nn.compact
  def _forward(self, images, train):
    spec = self.spec
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
    x = _stem(spec, images.astype(dtype), norm, activation)
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
      x = _dense(spec.df, dtype, "final")(x)
      x = activation(norm(name="final_norm")(x))
    x = x.astype(jnp.promote_types(dtype, jnp.float32)).mean(axis=(1, 2))
    x = nn.Dropout(spec.dropout, deterministic=not train)(x)
    logits = nn.Dense(
      spec.num_classes,
      kernel_init=nn.initializers.normal(0.01),
      name="classifier",
    )(x)
    return features, logits


class Block(nn.Module):
  """`1×1 → spatial operator → 1×1`, each with batch norm, around a shortcut."""

  network: NetworkSpec
  spec: BlockSpec
  norm: Callable
  train: bool

  @nn.compact
  def __call__(self, x):
    network, spec, norm = self.network, self.spec, self.norm
    dtype = jnp.dtype(network.dtype)
    activation = _ACTIVATIONS[network.activation]
    y = _dense(spec.width, dtype, "reduce")(x)
    y = activation(norm(name="reduce_norm")(y))

    if spec.operator == "c":
      groups = spec.width // (network.group_width or spec.width)
      y = _conv(spec.width, 3, spec.stride, dtype, "conv", groups)(y)
      y = activation(norm(name="conv_norm")(y))
      if network.channel_attention == "se":
        y = layers.SqueezeExcite(network.se_ratio, dtype, name="se")(y)
      elif network.channel_attention == "eca":
        y = layers.EfficientChannelAttention(dtype, name="eca")(y)
    else:
      y = _attention(network, spec, dtype)(y)
      y = activation(norm(name="attention_norm")(y))

    y = _dense(spec.features, dtype, "expand")(y)
    zero = network.zero_init_residual and spec.shortcut != "none"
    scale_init = nn.initializers.zeros if zero else nn.initializers.ones
    y = norm(scale_init=scale_init, name="expand_norm")(y)
    if network.channel_attention == "se_last":
      y = layers.SqueezeExcite(network.se_ratio, dtype, name="se")(y)
    # One draw per example: the whole block, or nothing of it.
    y = nn.Dropout(
      spec.drop_path, broadcast_dims=(1, 2, 3), deterministic=not self.train
    )(y)

    if spec.shortcut == "project":
      x = x[:, :: spec.stride, :: spec.stride]
      x = _dense(spec.features, dtype, "shortcut")(x)
      x = norm(name="shortcut_norm")(x)
    if spec.shortcut != "none":
      y = x + y
    return y if network.inverted else activation(y)


def _attention(network, spec, dtype):
  shared = dict(
    heads=spec.heads,
    qk_features=spec.qk_width,
    value_features=spec.value_width,
    stride=spec.stride,
    dtype=dtype,
    name="attention",
  )
  if spec.operator == "g":
    return layers.GlobalAttention(size=network.global_size, **shared)
  implementation = network.attention_implementation
  if spec.operator == "p":
    return per_pixel.PerPixelAttention(
      window_size=network.window_size,
      position=network.position,
      content=network.content,
      mask_padding=network.mask_padding,
      implementation=implementation,
      **shared,
    )
  return layers.HaloAttention(
    block_size=network.block_size,
    halo_size=network.halo_size,
    mask_padding=network.mask_padding,
    mask_window=network.mask_window,
    timm=network.timm,
    implementation=_of_blocks(implementation),
    **shared,
  )


def _of_blocks(implementation):
  """For attention in blocks, where "direct" is asked for per pixel."""
  return "xla" if implementation == "direct" else implementation


def _stem(network, x, norm, activation):
  """Four pixels to one, or two with "conv3" and no pool."""
  width, dtype = network.base_width, x.dtype
  if network.stem == "patch4":
    x = nn.Conv(
      width,
      (4, 4),
      strides=4,
      use_bias=False,
      dtype=dtype,
      kernel_init=nn.initializers.lecun_normal(),
      name="stem",
    )(x)
    return norm(name="stem_norm")(x)
  if network.stem.startswith("attention"):
    values = network.stem.removeprefix("attention").removeprefix("_")
    x = per_pixel.AttentionStem(
      width,
      values or "mixed",
      network.mask_padding,
      _of_blocks(network.attention_implementation),
      dtype,
      name="stem",
    )(x)
    x = norm(name="stem_norm")(x)
    # The blocks of the attention, which are completed at their ends.
    ends = [(0, -side % 4) for side in x.shape[1:3]]
    return nn.max_pool(x, (4, 4), strides=(4, 4), padding=ends)
  if network.stem == "tiered":
    last_stride = 1 if network.stem_pool else 2
    convs = (
      (3 * width // 8, 3, 2, "stem1"),
      (width // 2, 3, 1, "stem2"),
      (width, 3, last_stride, "stem3"),
    )
  else:
    convs = ((width, 7 if network.stem == "conv7" else 3, 2, "stem"),)
  for features, size, stride, name in convs:
    x = _conv(features, size, stride, dtype, name)(x)
    x = activation(norm(name=f"{name}_norm")(x))
  if network.stem_pool:
    x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
  return x


def _conv(features, size, stride, dtype, name, groups=1):
  """A square convolution, padded alike on all sides."""
  return nn.Conv(
    features,
    (size, size),
    strides=stride,
    padding=size // 2,
    feature_group_count=groups,
    use_bias=False,
    dtype=dtype,
    kernel_init=_KERNEL_INIT,
    name=name,
  )


def _dense(features, dtype, name):
  """A 1×1 convolution: over NHWC it is a product with a matrix."""
  return nn.Dense(
    features,
    use_bias=False,
    dtype=dtype,
    kernel_init=_KERNEL_INIT,
    name=name,
  )
