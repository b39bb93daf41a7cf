"""HaloNet: a ResNet whose spatial operator is blocked local self-attention.

"Scaling Local Self-Attention for Parameter Efficient Visual Backbones",
Vaswani et al., CVPR 2021, arXiv:2103.12731: Table 2 specifies the family.
"""

import functools
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from halonet.models import layers


def _row(block_size, halo_size, rv, rb, depth3, df=None):
  return dict(
    block_size=block_size,
    halo_size=halo_size,
    rv=rv,
    rb=rb,
    depths=(3, 3, depth3, 3),
    df=df,
  )


# Table 2: name → (image size, b, h, r_v, r_b, blocks in stage 3, d_f).
HALONETS: dict[str, tuple[int, dict[str, Any]]] = {
  "halonet_h0": (256, _row(8, 3, 1.0, 0.5, 7)),
  "halonet_h1": (256, _row(8, 3, 1.0, 1.0, 10)),
  "halonet_h2": (256, _row(8, 3, 1.0, 1.25, 11)),
  "halonet_h3": (320, _row(10, 3, 1.0, 1.5, 12, 1024)),
  "halonet_h4": (384, _row(12, 2, 1.0, 3.0, 12, 1280)),
  "halonet_h5": (448, _row(14, 2, 2.5, 2.0, 23, 1536)),
  "halonet_h6": (512, _row(8, 4, 3.0, 2.75, 24, 1536)),
  "halonet_h7": (600, _row(10, 3, 4.0, 3.5, 26, 2048)),
}

_DTYPES = ("float32", "bfloat16")


class HaloNet(nn.Module):
  """The network of Table 2.

  A stem (7×7 convolution and max pool, each of stride 2), stages of
  bottleneck blocks, each stage after the first at half the resolution and
  twice the width, an optional 1×1 convolution, global average pooling and a
  linear classifier.

  Attributes:
    block_size: side of an attention block in pixels (b).
    halo_size: width of the halo in pixels (h).
    rv: width of the values over that of the queries (r_v).
    rb: width of a block's output over that of the queries (r_b).
    depths: blocks in each stage (l_i). One to four or more stages.
    heads: attention heads in each stage. The paper does not say; (4, 8, 8, 8)
      is from a secondary source.
    base_width: width of the stem and of the queries in stage 1.
    df: width of the 1×1 convolution before the pooling (d_f), or None.
    num_classes: number of logits.
    mask_padding: leaves keys beyond the border out of the softmax. The paper
      does not say; masking is our choice.
    zero_init_residual: starts every block as the identity, by a zero scale in
      its last batch norm. The paper does not say; common in ResNets.
    dtype: "float32" or "bfloat16", of the computation. Parameters, batch-norm
      statistics, softmax and logits are float32.

  Raises:
    ValueError: when made, if a field is out of range.
  """

  block_size: int = 8
  halo_size: int = 3
  rv: float = 1.0
  rb: float = 1.0
  depths: tuple[int, ...] = (3, 3, 10, 3)
  heads: tuple[int, ...] = (4, 8, 8, 8)
  base_width: int = 64
  df: int | None = None
  num_classes: int = 1000
  mask_padding: bool = True
  zero_init_residual: bool = True
  dtype: str = "float32"

  def __post_init__(self):
    _check(self)
    super().__post_init__()

  def __call__(
    self, images: Float[Array, "b h w c"], train: bool = False
  ) -> Float[Array, "b num_classes"]:
    """Classifies images.

    Args:
      images: `[batch, height, width, channels]` of any size, normalised.
      train: uses the statistics of the batch in batch norms, and updates
        the collection `batch_stats` if it is mutable.

    Returns:
      float32 logits, `[batch, num_classes]`.
    """
    return self._forward(images, train)[1]

  def features(
    self, images: Float[Array, "b h w c"], train: bool = False
  ) -> dict[str, Float[Array, "b fh fw fc"]]:
    """Returns the output of every stage: `stage1` at a quarter of the input's
    resolution (rounded up), each further one at half of the one before."""
    return self._forward(images, train)[0]

  @nn.compact
  def _forward(self, images, train):
    dtype = jnp.dtype(self.dtype)
    norm = functools.partial(
      nn.BatchNorm,
      use_running_average=not train,
      momentum=0.9,
      epsilon=1e-5,
      dtype=dtype,
    )

    x = nn.Conv(
      self.base_width,
      (7, 7),
      strides=2,
      padding=3,
      use_bias=False,
      dtype=dtype,
      kernel_init=_RELU_INIT,
      name="stem",
    )(images.astype(dtype))
    x = nn.relu(norm(name="stem_norm")(x))
    x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))

    features = {}
    stages = zip(self.depths, self.heads, strict=True)
    for stage, (depth, heads) in enumerate(stages, start=1):
      for block in range(1, depth + 1):
        x = Bottleneck(
          width=self.base_width * 2 ** (stage - 1),
          rv=self.rv,
          rb=self.rb,
          heads=heads,
          block_size=self.block_size,
          halo_size=self.halo_size,
          stride=2 if stage > 1 and block == 1 else 1,
          project=block == 1,
          mask_padding=self.mask_padding,
          zero_init_residual=self.zero_init_residual,
          dtype=dtype,
          norm=norm,
          name=f"stage{stage}_block{block}",
        )(x)
      features[f"stage{stage}"] = x

    if self.df:
      x = _dense(self.df, dtype, "final")(x)
      x = nn.relu(norm(name="final_norm")(x))
    x = x.astype(jnp.float32).mean(axis=(1, 2))
    logits = nn.Dense(
      self.num_classes,
      kernel_init=nn.initializers.normal(0.01),
      name="classifier",
    )(x)
    return features, logits


class Bottleneck(nn.Module):
  """1×1 → attention → 1×1, each with batch norm, around a shortcut.

  The first block of a stage projects its shortcut (a 1×1 convolution and
  batch norm), also where no shape changes: only so are the published parameter
  counts met.
  """

  width: int
  rv: float
  rb: float
  heads: int
  block_size: int
  halo_size: int
  stride: int
  project: bool
  mask_padding: bool
  zero_init_residual: bool
  dtype: DTypeLike
  norm: Any

  @nn.compact
  def __call__(self, x):
    features = round(self.width * self.rb)
    y = _dense(self.width, self.dtype, "reduce")(x)
    y = nn.relu(self.norm(name="reduce_norm")(y))
    y = layers.HaloAttention(
      heads=self.heads,
      block_size=self.block_size,
      halo_size=self.halo_size,
      value_features=round(self.width * self.rv),
      stride=self.stride,
      mask_padding=self.mask_padding,
      dtype=self.dtype,
      name="attention",
    )(y)
    y = nn.relu(self.norm(name="attention_norm")(y))
    y = _dense(features, self.dtype, "expand")(y)
    scale_init = (
      nn.initializers.zeros if self.zero_init_residual else nn.initializers.ones
    )
    y = self.norm(scale_init=scale_init, name="expand_norm")(y)
    if self.project:
      x = x[:, :: self.stride, :: self.stride]
      x = _dense(features, self.dtype, "shortcut")(x)
      x = self.norm(name="shortcut_norm")(x)
    return nn.relu(x + y)


_RELU_INIT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def _dense(features, dtype, name):
  """A 1×1 convolution: over NHWC it is a product with a matrix."""
  return nn.Dense(
    features,
    use_bias=False,
    dtype=dtype,
    kernel_init=_RELU_INIT,
    name=name,
  )


def _check(model: HaloNet) -> None:
  for name, least in (
    ("block_size", 1),
    ("halo_size", 0),
    ("base_width", 1),
    ("num_classes", 1),
  ):
    value = getattr(model, name)
    if value < least:
      raise ValueError(f"{name} is {value}; it must be at least {least}")
  if model.df is not None and model.df < 1:
    raise ValueError(f"df is {model.df}; it must be at least 1, or None")
  if not model.depths or min(model.depths) < 1:
    raise ValueError(
      f"depths is {model.depths}; it must name one or more stages of at least"
      " one block each"
    )
  if len(model.heads) != len(model.depths):
    raise ValueError(
      f"heads is {model.heads}; it must have one entry per stage, and depths is"
      f" {model.depths}"
    )
  if model.dtype not in _DTYPES:
    raise ValueError(f"dtype is {model.dtype!r}; it must be one of {_DTYPES}")
  for stage, heads in enumerate(model.heads):
    width = model.base_width * 2**stage
    for name in ("rv", "rb"):
      ratio = getattr(model, name)
      if ratio <= 0 or width * ratio % 1:
        raise ValueError(
          f"{name} is {ratio}; {name} times {width}, the width of stage"
          f" {stage + 1}, must be a positive whole number"
        )
    try:
      layers.check_heads(heads, width, round(width * model.rv))
    except ValueError as error:
      raise ValueError(f"stage {stage + 1}: {error}") from None
